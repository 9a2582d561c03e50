//! Guilds and their events, and which sessions receive them.

use std::time::Instant;

use serde_json::Value;

use super::super::observed::EmitError;
use super::rest::Place;
use super::{Guild, World, payloads};
use crate::intents::Intents;
use crate::shard_id::ShardId;

/// `GUILD_CREATE` lists only the bot of a guild with more members.
const MAX_SHOWN: usize = 75_000;

impl World {
    pub(in crate::sim) fn add_guilds(&mut self, count: u32) {
        let first = u32::try_from(self.guilds.len()).unwrap_or(u32::MAX);
        for n in first..first.saturating_add(count) {
            let guild = Guild::new(n, self.settings.members);
            self.guilds.push(guild);
            self.announce_guild(guild);
        }
    }

    /// Sends a guild to all sessions of its shard, as each of them sees it.
    pub(super) fn announce_guild(&mut self, guild: Guild) {
        for id in self.sessions_of(Some(guild.id)) {
            let Some(session) = self.sessions.get(&id) else {
                continue;
            };
            if session.intents.contains(Intents::GUILDS) {
                let (intents, threshold) = (session.intents, session.large_threshold);
                let data = self.guild_create(guild, intents, threshold);
                self.dispatch(&id, "GUILD_CREATE", &data);
            }
        }
    }

    /// The `GUILD_CREATE` that a session with these intents receives.
    ///
    /// Source: [Discord, Guild
    /// Create](https://docs.discord.com/developers/events/gateway-events#guild-create).
    pub(super) fn guild_create(&self, guild: Guild, intents: Intents, threshold: usize) -> Value {
        let count = self.member_count(guild);
        let shows_all = intents.contains(Intents::GUILD_PRESENCES) && count <= MAX_SHOWN;
        // Otherwise only the bot and members in voice channels are listed; no member is in one.
        let most = if shows_all { threshold } else { 1 };
        let ids: Vec<u64> = self.member_ids(guild).take(most).collect();
        let members: Vec<_> = ids
            .iter()
            .filter_map(|id| self.member(guild, *id))
            .collect();
        let presence = |id: &u64| {
            let mut presence = payloads::presence(guild, *id, "online");
            if let Some(presence) = presence.as_object_mut() {
                presence.remove("guild_id");
            }
            presence
        };

        let shown = if shows_all { ids.as_slice() } else { &[] };
        let presences: Vec<_> = shown.iter().map(presence).collect();
        payloads::guild_create(guild, &members, &presences, count, count > threshold)
    }

    pub(crate) fn guild_ids(&self) -> Vec<u64> {
        self.guilds.iter().map(|guild| guild.id).collect()
    }

    pub(in crate::sim) fn guild(&self, id: u64) -> Option<Guild> {
        self.guilds
            .binary_search_by_key(&id, |guild| guild.id)
            .ok()
            .map(|at| self.guilds[at])
    }

    /// Changes how many guilds a shard that starts a session may have.
    #[cfg(test)]
    pub(crate) fn set_guilds_per_shard(&mut self, guilds: usize) {
        self.settings.guilds_per_shard = guilds;
    }

    pub(in crate::sim) fn set_shards(&mut self, shards: u32) {
        self.settings.shards = shards.max(1);
    }

    /// The guild whose text channel this is.
    pub(super) fn guild_of_channel(&self, channel: u64) -> Option<Guild> {
        self.guild(channel.checked_sub(1)?)
    }

    pub(super) fn guilds_of(&self, shard: ShardId) -> impl Iterator<Item = Guild> {
        let home = move |guild: &&Guild| {
            (guild.id >> 22) % u64::from(shard.total()) == u64::from(shard.number())
        };
        self.guilds.iter().filter(home).copied()
    }

    /// Sends an event to the sessions that receive it, and returns their number.
    pub(crate) fn emit(
        &mut self,
        guild_id: Option<u64>,
        name: &str,
        data: &Value,
    ) -> Result<usize, EmitError> {
        if name.is_empty()
            || !name
                .bytes()
                .all(|byte| matches!(byte, b'A'..=b'Z' | b'0'..=b'9' | b'_'))
        {
            return Err(EmitError::NotAName(name.to_owned()));
        }
        if !data.is_object() {
            return Err(EmitError::NotAnObject(name.to_owned()));
        }
        if let Some(guild_id) = guild_id.filter(|id| self.guild(*id).is_none()) {
            return Err(EmitError::UnknownGuild(guild_id));
        }
        Ok(self.dispatch_to_guild(guild_id, name, data))
    }

    /// The guild's owner, or the user of a direct channel, writes a message. Returns its id.
    pub(in crate::sim) fn chat(
        &mut self,
        now: Instant,
        channel: u64,
        text: &str,
    ) -> Result<u64, EmitError> {
        let author = match self.place(channel) {
            Some(Place::Guild(guild)) => guild.member(0),
            Some(Place::Direct(with)) => with,
            None => return Err(EmitError::UnknownChannel(channel)),
        };
        Ok(self.post(now, channel, author, text))
    }

    /// The guild's owner, or the user of a direct channel, reacts to a message.
    pub(in crate::sim) fn member_reacts(
        &mut self,
        channel: u64,
        message: u64,
        emoji: &str,
    ) -> Result<(), EmitError> {
        let user = match self.place(channel) {
            Some(Place::Guild(guild)) => guild.member(0),
            Some(Place::Direct(with)) => with,
            None => return Err(EmitError::UnknownChannel(channel)),
        };
        let unknown = |_| EmitError::UnknownEmoji(emoji.to_owned());
        let emoji = self.emoji(emoji).map_err(unknown)?;
        let reacted = self.react((channel, message), user, &emoji);
        reacted.map_err(|_| EmitError::UnknownMessage(message))
    }

    /// Sends an event to the sessions of a guild's shard, or of shard 0, whose intents include it.
    /// Returns their number.
    pub(super) fn dispatch_to_guild(
        &mut self,
        guild_id: Option<u64>,
        name: &str,
        data: &Value,
    ) -> usize {
        let wanted = intents_of(name, guild_id.is_some());
        let mut heard = 0;
        for id in self.sessions_of(guild_id) {
            let session = self.sessions.get(&id);
            let intents = session.map_or(Intents::empty(), |session| session.intents);
            if !wanted.is_empty() && !intents.intersects(wanted) {
                continue;
            }
            heard += 1;
            if hides_text(name, guild_id, data, intents) {
                let mut blank = data.clone();
                blank["content"] = "".into();
                for list in ["embeds", "attachments", "components"] {
                    blank[list] = Value::Array(Vec::new());
                }
                self.dispatch(&id, name, &blank);
            } else {
                self.dispatch(&id, name, data);
            }
        }
        heard
    }

    /// The sessions of a guild's shard, or of shard 0, for every shard total in use.
    fn sessions_of(&self, guild_id: Option<u64>) -> Vec<String> {
        let mut totals: Vec<u32> = self.homes.keys().map(|(total, _)| *total).collect();
        totals.dedup();
        let homes = totals.into_iter().filter_map(|total| {
            let number = guild_id.map_or(0, |id| (id >> 22) % u64::from(total));
            self.homes.get(&(total, u32::try_from(number).ok()?))
        });
        homes.flatten().cloned().collect()
    }
}

/// Whether a message's content is withheld because the session lacks the intent for it.
///
/// Source: [Discord, Message content
/// intent](https://docs.discord.com/developers/events/gateway#message-content-intent).
fn hides_text(name: &str, guild_id: Option<u64>, message: &Value, intents: Intents) -> bool {
    let bot = payloads::BOT.to_string();
    matches!(name, "MESSAGE_CREATE" | "MESSAGE_UPDATE")
        && !intents.contains(Intents::MESSAGE_CONTENT)
        && guild_id.is_some()
        && message["author"]["id"] != bot
        && !message["mentions"]
            .as_array()
            .is_some_and(|mentions| mentions.iter().any(|user| user["id"] == bot))
}

/// The intents of which a session needs at least one to receive an event; empty if every session
/// receives it.
///
/// Source: [Discord, List of
/// intents](https://docs.discord.com/developers/events/gateway#list-of-intents).
fn intents_of(name: &str, in_guild: bool) -> Intents {
    match name {
        "GUILD_CREATE"
        | "GUILD_UPDATE"
        | "GUILD_DELETE"
        | "GUILD_ROLE_CREATE"
        | "GUILD_ROLE_UPDATE"
        | "GUILD_ROLE_DELETE"
        | "CHANNEL_CREATE"
        | "CHANNEL_UPDATE"
        | "CHANNEL_DELETE"
        | "THREAD_CREATE"
        | "THREAD_UPDATE"
        | "THREAD_DELETE"
        | "THREAD_LIST_SYNC"
        | "THREAD_MEMBER_UPDATE"
        | "STAGE_INSTANCE_CREATE"
        | "STAGE_INSTANCE_UPDATE"
        | "STAGE_INSTANCE_DELETE"
        | "VOICE_CHANNEL_STATUS_UPDATE"
        | "VOICE_CHANNEL_START_TIME_UPDATE" => Intents::GUILDS,
        "THREAD_MEMBERS_UPDATE" => Intents::GUILDS | Intents::GUILD_MEMBERS,
        "GUILD_MEMBER_ADD" | "GUILD_MEMBER_UPDATE" | "GUILD_MEMBER_REMOVE" => {
            Intents::GUILD_MEMBERS
        }
        "GUILD_AUDIT_LOG_ENTRY_CREATE" | "GUILD_BAN_ADD" | "GUILD_BAN_REMOVE" => {
            Intents::GUILD_MODERATION
        }
        "GUILD_EMOJIS_UPDATE"
        | "GUILD_STICKERS_UPDATE"
        | "GUILD_SOUNDBOARD_SOUND_CREATE"
        | "GUILD_SOUNDBOARD_SOUND_UPDATE"
        | "GUILD_SOUNDBOARD_SOUND_DELETE"
        | "GUILD_SOUNDBOARD_SOUNDS_UPDATE" => Intents::GUILD_EXPRESSIONS,
        "GUILD_INTEGRATIONS_UPDATE"
        | "INTEGRATION_CREATE"
        | "INTEGRATION_UPDATE"
        | "INTEGRATION_DELETE" => Intents::GUILD_INTEGRATIONS,
        "WEBHOOKS_UPDATE" => Intents::GUILD_WEBHOOKS,
        "INVITE_CREATE" | "INVITE_DELETE" => Intents::GUILD_INVITES,
        "VOICE_CHANNEL_EFFECT_SEND" | "VOICE_STATE_UPDATE" => Intents::GUILD_VOICE_STATES,
        "PRESENCE_UPDATE" => Intents::GUILD_PRESENCES,
        "GUILD_SCHEDULED_EVENT_CREATE"
        | "GUILD_SCHEDULED_EVENT_UPDATE"
        | "GUILD_SCHEDULED_EVENT_DELETE"
        | "GUILD_SCHEDULED_EVENT_USER_ADD"
        | "GUILD_SCHEDULED_EVENT_USER_REMOVE" => Intents::GUILD_SCHEDULED_EVENTS,
        "AUTO_MODERATION_RULE_CREATE"
        | "AUTO_MODERATION_RULE_UPDATE"
        | "AUTO_MODERATION_RULE_DELETE" => Intents::AUTO_MODERATION_CONFIGURATION,
        "AUTO_MODERATION_ACTION_EXECUTION" => Intents::AUTO_MODERATION_EXECUTION,
        _ => intents_of_channel(name, in_guild),
    }
}

/// Like [`intents_of`], for events in a channel of a guild or in a direct channel.
fn intents_of_channel(name: &str, in_guild: bool) -> Intents {
    match name {
        "CHANNEL_PINS_UPDATE" if in_guild => Intents::GUILDS,
        "CHANNEL_PINS_UPDATE" => Intents::DIRECT_MESSAGES,
        "MESSAGE_CREATE" | "MESSAGE_UPDATE" | "MESSAGE_DELETE" if !in_guild => {
            Intents::DIRECT_MESSAGES
        }
        "MESSAGE_CREATE" | "MESSAGE_UPDATE" | "MESSAGE_DELETE" | "MESSAGE_DELETE_BULK" => {
            Intents::GUILD_MESSAGES
        }
        "MESSAGE_REACTION_ADD"
        | "MESSAGE_REACTION_REMOVE"
        | "MESSAGE_REACTION_REMOVE_ALL"
        | "MESSAGE_REACTION_REMOVE_EMOJI" => {
            if in_guild {
                Intents::GUILD_MESSAGE_REACTIONS
            } else {
                Intents::DIRECT_MESSAGE_REACTIONS
            }
        }
        "TYPING_START" if in_guild => Intents::GUILD_MESSAGE_TYPING,
        "TYPING_START" => Intents::DIRECT_MESSAGE_TYPING,
        "MESSAGE_POLL_VOTE_ADD" | "MESSAGE_POLL_VOTE_REMOVE" => {
            if in_guild {
                Intents::GUILD_MESSAGE_POLLS
            } else {
                Intents::DIRECT_MESSAGE_POLLS
            }
        }
        _ => Intents::empty(),
    }
}
