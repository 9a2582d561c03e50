//! Guilds and their events: who hears of what.

use std::time::{Duration, Instant};

use serde_json::Value;

use super::super::LONGEST;
use super::super::observed::EmitError;
use super::super::traffic;
use super::{Guild, Timer, World, payloads};
use crate::intents::Intents;
use crate::shard_id::ShardId;

/// How far the traffic of a machine that stood still may lie behind.
const LONGEST_LAG: Duration = Duration::from_millis(100);

impl World {
    pub(in crate::sim) fn add_guilds(&mut self, count: u32) {
        let first = u32::try_from(self.guilds.len()).unwrap_or(u32::MAX);
        for n in first..first.saturating_add(count) {
            let guild = Guild::new(n, self.settings.members);
            self.guilds.push(guild);
            self.dispatch_to_guild(
                Some(guild.id),
                "GUILD_CREATE",
                &payloads::guild_create(guild, 50),
            );
        }
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

    /// From now on a shard that starts a session may have so many guilds.
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

    /// Gives an event to those who hear of it; returns how many sessions that are.
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

    /// Somebody writes in a channel; returns the message's id.
    pub(in crate::sim) fn chat(
        &mut self,
        now: Instant,
        channel: u64,
        text: &str,
    ) -> Result<u64, EmitError> {
        let author = match self.guild_of_channel(channel) {
            Some(guild) => guild.member(0),
            None if channel == payloads::DIRECT_CHANNEL => payloads::FRIEND,
            None => return Err(EmitError::UnknownChannel(channel)),
        };
        let id = self.snowflake(now);
        let message = payloads::message(id, self.unix(now), channel, author, text);
        self.post(channel, message);
        Ok(id)
    }

    /// Keeps a message, and tells everyone who hears of it.
    pub(super) fn post(&mut self, channel: u64, mut message: Value) {
        let text = message["content"].as_str().unwrap_or_default();
        if text.contains(&format!("<@{}>", payloads::BOT)) {
            message["mentions"] = vec![payloads::user(payloads::BOT, true)].into();
        }
        self.desk.keep_message(channel, message.clone());
        match self.guild_of_channel(channel) {
            Some(guild) => {
                let message = payloads::guild_message(message, guild);
                self.dispatch_to_guild(Some(guild.id), "MESSAGE_CREATE", &message);
            }
            None => drop(self.dispatch_to_guild(None, "MESSAGE_CREATE", &message)),
        }
    }

    pub(in crate::sim) fn set_activity(&mut self, now: Instant, events_per_second: f64) {
        self.timers
            .retain(|_, timer| !matches!(timer, Timer::Traffic));
        self.settings.activity = events_per_second;
        if events_per_second > 0.0 {
            self.set_timer(now, Timer::Traffic);
        }
    }

    /// Something happens in some guild.
    pub(super) fn traffic(&mut self, now: Instant, due: Instant) {
        let pause = Duration::try_from_secs_f64(1.0 / self.settings.activity)
            .unwrap_or(LONGEST)
            .min(LONGEST);
        let oldest = now.checked_sub(LONGEST_LAG).unwrap_or(now);
        self.set_timer(due.max(oldest) + pause, Timer::Traffic);
        let Some(at) = self.rng.usize(..).checked_rem(self.guilds.len()) else {
            return;
        };
        let guild = self.guilds[at];
        let name = self.settings.mix.choose(&mut self.rng);
        let (id, unix) = (self.snowflake(now), self.unix(now));
        if let "MESSAGE_CREATE" | "MESSAGE_UPDATE" = name {
            let author = guild.member(self.rng.u32(..guild.members));
            let mut message = payloads::message(
                id,
                unix,
                guild.channel(),
                author,
                traffic::text(&mut self.rng),
            );
            if name == "MESSAGE_CREATE" {
                return self.post(guild.channel(), message);
            }
            message["edited_timestamp"] = payloads::timestamp(unix).into();
            let message = payloads::guild_message(message, guild);
            self.dispatch_to_guild(Some(guild.id), name, &message);
        } else {
            let data = traffic::data(name, guild, id, unix, &mut self.rng);
            self.dispatch_to_guild(Some(guild.id), name, &data);
        }
    }

    /// Gives an event to the sessions of a guild's shard, or of shard 0, whose intents want it;
    /// returns how many.
    pub(super) fn dispatch_to_guild(
        &mut self,
        guild_id: Option<u64>,
        name: &str,
        data: &Value,
    ) -> usize {
        let wanted = intents_of(name, guild_id.is_some());
        let mut totals: Vec<u32> = self.homes.keys().map(|(total, _)| *total).collect();
        totals.dedup();
        let mut heard = 0;
        for total in totals {
            let home = guild_id.map_or(0, |id| (id >> 22) % u64::from(total));
            let home = (total, u32::try_from(home).unwrap_or_default());
            for id in self.homes.get(&home).cloned().unwrap_or_default() {
                let intents = self
                    .sessions
                    .get(&id)
                    .map_or(Intents::empty(), |session| session.intents);
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
        }
        heard
    }
}

/// Whether a message's text is kept from a bot without the intent for it.
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

/// The intents of which one must be there for an event to be sent; none for an event that everybody
/// gets.
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
        "CHANNEL_PINS_UPDATE" if in_guild => Intents::GUILDS,
        "CHANNEL_PINS_UPDATE" => Intents::DIRECT_MESSAGES,
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
        "GUILD_SCHEDULED_EVENT_CREATE"
        | "GUILD_SCHEDULED_EVENT_UPDATE"
        | "GUILD_SCHEDULED_EVENT_DELETE"
        | "GUILD_SCHEDULED_EVENT_USER_ADD"
        | "GUILD_SCHEDULED_EVENT_USER_REMOVE" => Intents::GUILD_SCHEDULED_EVENTS,
        "AUTO_MODERATION_RULE_CREATE"
        | "AUTO_MODERATION_RULE_UPDATE"
        | "AUTO_MODERATION_RULE_DELETE" => Intents::AUTO_MODERATION_CONFIGURATION,
        "AUTO_MODERATION_ACTION_EXECUTION" => Intents::AUTO_MODERATION_EXECUTION,
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
