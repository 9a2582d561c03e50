//! The events that guilds generate by themselves.

use std::time::{Duration, Instant};

use serde_json::json;

use super::super::time::LONGEST;
use super::super::traffic;
use super::rest::Message;
use super::{Guild, Timer, World, payloads};

/// The maximum number of a guild's members that generate events.
const MAX_ACTIVE: usize = 1000;
/// How much generated traffic is made up for after the machine was suspended or busy.
const MAX_LAG: Duration = Duration::from_millis(100);

impl World {
    pub(in crate::sim) fn set_activity(&mut self, now: Instant, events_per_second: f64) {
        self.timers
            .retain(|_, timer| !matches!(timer, Timer::Traffic));
        self.settings.activity = events_per_second;
        if events_per_second > 0.0 {
            self.set_timer(now, Timer::Traffic);
        }
    }

    /// Generates an event in a random guild.
    pub(super) fn traffic(&mut self, now: Instant, due: Instant) {
        let pause = Duration::try_from_secs_f64(1.0 / self.settings.activity)
            .unwrap_or(LONGEST)
            .min(LONGEST);
        let oldest = now.checked_sub(MAX_LAG).unwrap_or(now);
        self.set_timer(due.max(oldest) + pause, Timer::Traffic);
        let Some(at) = self.rng.usize(..).checked_rem(self.guilds.len()) else {
            return;
        };
        let guild = self.guilds[at];
        let name = self.settings.mix.choose(&mut self.rng);
        self.happen(now, guild, name);
    }

    /// Generates an event in a guild, or what must happen before that event is possible.
    fn happen(&mut self, now: Instant, guild: Guild, name: &str) {
        let channel = guild.channel();
        // The first two are skipped: the bot and the owner never leave.
        let others = self.member_ids(guild).skip(2).take(MAX_ACTIVE);
        let others: Vec<u64> = others.collect();
        let Some(member) = self.any(&others) else {
            return self.join(guild);
        };

        // The bot's messages are not changed: its test may need them.
        let messages = self.desk.messages(channel);
        let messages = messages.filter(|message| message.author() != payloads::BOT);
        let messages: Vec<u64> = messages.map(Message::id).collect();
        let message = self.any(&messages);

        match (name, message) {
            ("MESSAGE_CREATE", _)
            | (
                "MESSAGE_UPDATE"
                | "MESSAGE_DELETE"
                | "MESSAGE_REACTION_ADD"
                | "MESSAGE_REACTION_REMOVE",
                None,
            ) => {
                let text = traffic::text(&mut self.rng);
                self.post(now, channel, member, text);
            }
            ("MESSAGE_UPDATE", Some(message)) => {
                let text = traffic::text(&mut self.rng);
                self.rewrite(now, channel, message, text);
            }
            ("MESSAGE_DELETE", Some(message)) => self.drop_message(channel, message),
            ("MESSAGE_REACTION_ADD", Some(message)) => {
                self.react_to(now, channel, message, member);
            }
            ("MESSAGE_REACTION_REMOVE", Some(message)) => {
                self.take_back(now, channel, message, member);
            }
            ("GUILD_MEMBER_ADD", _) => self.join(guild),
            ("GUILD_MEMBER_REMOVE", _) => self.leave(guild, member),
            ("GUILD_MEMBER_UPDATE", _) => drop(self.change_member(guild, member, |_| {})),
            ("GUILD_BAN_ADD", _) => {
                let stranger = self.snowflake(now);
                self.add_ban(guild, stranger, None);
            }
            ("GUILD_BAN_REMOVE", _) => self.end_some_ban(now, guild),
            ("GUILD_CREATE", _) => self.announce_guild(guild),
            _ => {
                let (id, unix) = (self.snowflake(now), self.unix(now));
                let member = (member, self.member(guild, member).unwrap_or_default());
                let data = traffic::data(name, guild, member, id, unix, &mut self.rng);
                self.dispatch_to_guild(Some(guild.id), name, &data);
            }
        }
    }

    /// Removes a ban, or adds one if there is none.
    fn end_some_ban(&mut self, now: Instant, guild: Guild) {
        let banned = self.bans(guild).next().map(|(id, _)| id);
        match banned {
            Some(id) => drop(self.remove_ban(guild, id)),
            None => self.happen(now, guild, "GUILD_BAN_ADD"),
        }
    }

    /// A member reacts to a message. If the member has already reacted, they write another message.
    fn react_to(&mut self, now: Instant, channel: u64, message: u64, member: u64) {
        let emoji = json!({"id": null, "name": traffic::EMOJI});
        if self.has_reacted((channel, message), member, &emoji) {
            let text = traffic::text(&mut self.rng);
            self.post(now, channel, member, text);
        } else {
            // It cannot fail: the message exists.
            let _ = self.react((channel, message), member, &emoji);
        }
    }

    /// Removes one of a message's reactions. If there is none, a member reacts.
    fn take_back(&mut self, now: Instant, channel: u64, message: u64, member: u64) {
        let kept = self.desk.message(channel, message).ok();
        let reaction = kept.and_then(|message| {
            let reaction = message.reactions.first()?;
            Some((reaction.emoji.clone(), *reaction.users.first()?))
        });
        if let Some((emoji, user)) = reaction {
            self.unreact((channel, message), user, &emoji);
        } else {
            self.react_to(now, channel, message, member);
        }
    }

    fn any(&mut self, list: &[u64]) -> Option<u64> {
        let at = self.rng.usize(..).checked_rem(list.len())?;
        Some(list[at])
    }
}
