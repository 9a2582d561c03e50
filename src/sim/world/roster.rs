//! The members and bans of guilds.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use super::{Guild, World, payloads};

/// What has changed about the members of a guild since the world began.
#[derive(Default)]
pub(super) struct Roster {
    /// Members that have joined in addition to the initial ones.
    joined: u32,
    gone: BTreeSet<u64>,
    /// Members that have changed since they joined.
    changed: BTreeMap<u64, Value>,
    /// The reason of each ban.
    bans: BTreeMap<u64, Option<String>>,
}

impl World {
    /// The members of a guild: the bot, and the others who have not left.
    pub(super) fn member_ids(&self, guild: Guild) -> impl Iterator<Item = u64> + use<'_> {
        let roster = self.rosters.get(&guild.id);
        let count = guild.members + roster.map_or(0, |roster| roster.joined);
        let is_gone = move |id: &u64| roster.is_some_and(|roster| roster.gone.contains(id));
        let others = (0..count).map(move |n| guild.member(n));
        std::iter::once(payloads::BOT).chain(others.filter(move |id| !is_gone(id)))
    }

    pub(super) fn is_member(&self, guild: Guild, id: u64) -> bool {
        let roster = self.rosters.get(&guild.id);
        let joined = roster.map_or(0, |roster| roster.joined);
        let has_joined = id >= guild.member(0) && id < guild.member(guild.members + joined);
        id == payloads::BOT || has_joined && !roster.is_some_and(|roster| roster.gone.contains(&id))
    }

    pub(super) fn member_count(&self, guild: Guild) -> usize {
        let roster = self.rosters.get(&guild.id);
        let (joined, gone) = roster.map_or((0, 0), |roster| (roster.joined, roster.gone.len()));
        1 + (guild.members + joined) as usize - gone
    }

    pub(super) fn member(&self, guild: Guild, id: u64) -> Option<Value> {
        if !self.is_member(guild, id) {
            return None;
        }
        let roster = self.rosters.get(&guild.id);
        let changed = roster.and_then(|roster| roster.changed.get(&id));
        Some(changed.cloned().unwrap_or_else(|| payloads::member(id)))
    }

    /// Changes a member, announces it, and returns the changed member.
    pub(super) fn change_member(
        &mut self,
        guild: Guild,
        id: u64,
        change: impl FnOnce(&mut Value),
    ) -> Option<Value> {
        let mut member = self.member(guild, id)?;
        change(&mut member);
        let roster = self.rosters.entry(guild.id).or_default();
        roster.changed.insert(id, member.clone());

        let mut data = member.clone();
        data["guild_id"] = guild.id.to_string().into();
        self.dispatch_to_guild(Some(guild.id), "GUILD_MEMBER_UPDATE", &data);
        Some(member)
    }

    /// Lets a new member join a guild.
    pub(super) fn join(&mut self, guild: Guild) {
        let roster = self.rosters.entry(guild.id).or_default();
        let id = guild.member(guild.members + roster.joined);
        roster.joined += 1;
        let mut data = payloads::member(id);
        data["guild_id"] = guild.id.to_string().into();
        self.dispatch_to_guild(Some(guild.id), "GUILD_MEMBER_ADD", &data);
    }

    /// Lets a user leave a guild, if the user is a member.
    pub(super) fn leave(&mut self, guild: Guild, id: u64) {
        if id == payloads::BOT || !self.is_member(guild, id) {
            return;
        }
        let roster = self.rosters.entry(guild.id).or_default();
        roster.gone.insert(id);
        roster.changed.remove(&id);
        let data = json!({
            "guild_id": guild.id.to_string(),
            "user": payloads::user(id, false),
        });
        self.dispatch_to_guild(Some(guild.id), "GUILD_MEMBER_REMOVE", &data);
    }

    /// Bans a user, who leaves the guild if they were a member.
    pub(super) fn add_ban(&mut self, guild: Guild, id: u64, reason: Option<String>) {
        let roster = self.rosters.entry(guild.id).or_default();
        roster.bans.insert(id, reason);
        self.announce_ban(guild, id, "GUILD_BAN_ADD");
        self.leave(guild, id);
    }

    /// Removes a ban. Returns whether there was one.
    pub(super) fn remove_ban(&mut self, guild: Guild, id: u64) -> bool {
        let roster = self.rosters.entry(guild.id).or_default();
        let was_banned = roster.bans.remove(&id).is_some();
        if was_banned {
            self.announce_ban(guild, id, "GUILD_BAN_REMOVE");
        }
        was_banned
    }

    fn announce_ban(&mut self, guild: Guild, id: u64, name: &str) {
        let user = payloads::user(id, false);
        let data = json!({"guild_id": guild.id.to_string(), "user": user});
        self.dispatch_to_guild(Some(guild.id), name, &data);
    }

    /// The banned users, in order of their ids.
    pub(super) fn bans(&self, guild: Guild) -> impl Iterator<Item = (u64, Value)> + use<'_> {
        let roster = self.rosters.get(&guild.id).into_iter();
        roster.flat_map(|roster| &roster.bans).map(|(id, reason)| {
            let ban = json!({"reason": reason, "user": payloads::user(*id, false)});
            (*id, ban)
        })
    }
}
