//! Records what Discord sent and what the program received and handled, and checks the difference.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Instant;

use crate::clock;
use crate::event::{Event, EventKind};
use crate::protocol::Session;
use crate::shard_id::ShardId;
use crate::sim::{Dispatched, World, digest};
use crate::store::Saved;

/// A guild's id and the number of one of its events.
pub(super) type Key = (u64, u64);

/// The events that the program must have handled in the end, and those that it has handled.
#[derive(Default)]
pub(super) struct Accounts {
    /// When each event was sent.
    sent: BTreeMap<Key, Instant>,
    keys: HashMap<u64, Key>,
    /// The number of events that were sent for each guild.
    numbers: HashMap<u64, u64>,
    /// The events that were handled.
    handled: HashSet<Key>,
    /// The events that this process received.
    taken: HashSet<Key>,
    /// The last event number of each guild among `taken`.
    last: HashMap<u64, u64>,
    /// How often each event may be redelivered, because its session was resumed from an earlier
    /// sequence.
    may_repeat: HashMap<Key, u32>,
    /// The sequence of each session after which no event has to be handled.
    ends: HashMap<String, u64>,
    /// The sessions that shards have had: the shard of each, and when it began.
    known: HashMap<String, (ShardId, Instant)>,
    /// The sessions whose events are delivered to the program, and since when. Sessions of new
    /// shards that never took over are not among them.
    active: HashMap<String, Instant>,
    /// The session of each shard.
    current: HashMap<ShardId, String>,
    /// When Discord ended each session.
    lost_at: HashMap<String, Instant>,
    /// When the shard dropped each session.
    knew_at: HashMap<String, Instant>,
    /// The sessions that a process had and the next one did not know.
    left: HashSet<String>,
    /// The guilds whose events may be out of order: either shards had no session during a reshard,
    /// and the events that they missed come late, from the other set; or handlers were behind when
    /// one set took over.
    unordered: HashSet<u64>,
    /// Whether the last reshard has waited for lagging new shards for the maximum time.
    pub(super) has_given_up: bool,
    pub(super) repeats: u64,
}

/// The data of a guild's event.
pub(super) fn data((guild, number): Key) -> serde_json::Value {
    serde_json::json!({"guild_id": guild.to_string(), "user_id": "1", "timestamp": number})
}

fn key_of(event: &Event) -> Option<Key> {
    let dispatch = event.dispatch()?;
    if dispatch.name() != "TYPING_START" {
        return None;
    }
    let data: serde_json::Value = dispatch.decode().expect("the simulator sends valid JSON");
    let guild = data["guild_id"].as_str()?.parse().ok()?;
    Some((guild, data["timestamp"].as_u64()?))
}

impl Accounts {
    /// Sends a guild's next event from Discord.
    pub(super) fn send(&mut self, world: &mut World, guild: u64) {
        let number = self.numbers.entry(guild).or_default();
        *number += 1;
        let key = (guild, *number);
        let data = data(key);
        log::debug!("event {number} of guild {guild} is sent");
        self.sent.insert(key, clock::now());
        self.keys.insert(digest(data.to_string().as_bytes()), key);
        world
            .emit(Some(guild), "TYPING_START", &data)
            .expect("a TYPING_START with a known guild is a valid event");
    }

    /// Records the sessions that Discord has ended.
    pub(super) fn note_losses(&mut self, world: &World) {
        if world.observed.lost.len() != self.lost_at.len() {
            for session in &world.observed.lost {
                self.lost_at
                    .entry(session.clone())
                    .or_insert_with(clock::now);
            }
        }
    }

    /// Records the session of a shard, if it has one.
    pub(super) fn note_session(
        &mut self,
        shard: ShardId,
        session: Option<&Session>,
        is_active: bool,
    ) {
        let id = session.map(|session| session.id.as_str());
        if self.current.get(&shard).map(String::as_str) != id {
            if let Some(last) = self.current.remove(&shard) {
                self.knew_at.insert(last, clock::now());
            }
            if let Some(id) = id {
                log::info!("shard {shard} has session {id}");
                self.current.insert(shard, id.to_owned());
                self.knew_at.remove(id);
                let since = (shard, clock::now());
                self.known.entry(id.to_owned()).or_insert(since);
            }
        }

        if let Some(id) = id.filter(|id| is_active && !self.active.contains_key(*id)) {
            self.active.insert(id.to_owned(), clock::now());
        }
    }

    /// Records that the program takes an event from the stream. Fails if the event is out of order
    /// or must not be redelivered.
    pub(super) fn take(&mut self, event: &Event) -> Result<(), String> {
        if let EventKind::SessionLost { session, .. } = event.kind() {
            self.ends.insert(session.id.clone(), session.sequence);
        }

        let Some(key) = key_of(event) else {
            return Ok(());
        };
        let (guild, number) = key;
        log::debug!(
            "event {number} of guild {guild} is taken from shard {}",
            event.shard()
        );

        if !self.taken.insert(key) || self.handled.contains(&key) {
            let lag = clock::now() - self.sent[&key];
            let allowed = self
                .may_repeat
                .get_mut(&key)
                .filter(|allowed| **allowed > 0);
            if let Some(allowed) = allowed {
                *allowed -= 1;
            } else if !self.has_given_up {
                return Err(format!(
                    "event {number} of guild {guild} is redelivered after {lag:?}"
                ));
            }
            self.repeats += 1;
            return Ok(());
        }

        let last = self.last.entry(guild).or_default();
        if *last > number && !self.unordered.contains(&guild) {
            return Err(format!(
                "event {number} of guild {guild} comes after {last}"
            ));
        }

        *last = number.max(*last);
        Ok(())
    }

    /// Records that the program has handled an event.
    pub(super) fn handle(&mut self, event: &Event) {
        self.handled.extend(key_of(event));
    }

    /// Records that the user ends the session of a shard.
    pub(super) fn end(&mut self, session: String) {
        self.ends.entry(session).or_insert(0);
    }

    /// Records that a process has ended, and that the next one continues from `saved`, which the
    /// last one wrote at `stored_at`. Events that it could not store or report before it ended
    /// need not be handled.
    pub(super) fn restart(&mut self, world: &World, saved: &Saved, stored_at: Option<Instant>) {
        let is_saved = |id: &String| saved.sessions.iter().any(|session| session.id == *id);
        for (session, since) in &self.active {
            let is_young = stored_at.is_none_or(|at| *since >= at);
            if !is_saved(session) && (is_young || world.observed.lost.contains(session)) {
                self.ends.entry(session.clone()).or_insert(0);
            }
        }

        for (_, session) in self.current.extract_if(|_, session| !is_saved(session)) {
            self.knew_at.insert(session.clone(), clock::now());
            self.left.insert(session);
        }

        // The unhandled events of an ended session cannot be replayed.
        self.ends.values_mut().for_each(|end| *end = 0);
        self.may_repeat.clear();
        self.resume(world, &saved.sessions);
        self.taken.clear();
        self.last.clear();
        self.unordered.clear();
        self.has_given_up = false;
    }

    /// Records that a shard has no session while others are about to replace it.
    pub(super) fn note_gap(&mut self, shard: ShardId) {
        let guilds = self.numbers.keys().copied();
        let is_home = |guild: &u64| ShardId::for_guild(*guild, shard.total()) == Some(shard);
        self.unordered.extend(guilds.filter(is_home));
    }

    /// Records that shards have taken over while handlers still had events of the old ones.
    pub(super) fn note_overtaking(&mut self) {
        self.unordered.extend(self.numbers.keys());
    }

    /// The instant from which all of these shards had a session that began at or after `after`.
    pub(super) fn all_known(&self, shards: &[ShardId], after: Instant) -> Option<Instant> {
        let first = |shard: &ShardId| {
            let sessions = self.known.values().filter(|(of, _)| of == shard);
            sessions
                .map(|(_, since)| *since)
                .filter(|since| *since >= after)
                .min()
        };
        shards.iter().map(first).max().flatten()
    }

    /// Records that these sessions are resumed: events after their sequences are redelivered.
    pub(super) fn resume(&mut self, world: &World, sessions: &[Session]) {
        for dispatched in &world.dispatches {
            let session = sessions
                .iter()
                .find(|session| session.id == dispatched.session);
            if session.is_some_and(|session| dispatched.sequence > session.sequence)
                && let Some(key) = self.keys.get(&dispatched.digest)
            {
                *self.may_repeat.entry(*key).or_default() += 1;
            }
        }
    }

    /// Records that the program has returned a suspended session to the library.
    pub(super) fn take_back(&mut self, session: String) {
        self.active.insert(session, clock::now());
    }

    /// The events that were sent but not handled, except those that may be missing.
    pub(super) fn missing(&self, world: &World, live: &HashSet<String>) -> Vec<String> {
        let mut copies: HashMap<Key, Vec<&Dispatched>> = HashMap::new();
        for dispatched in &world.dispatches {
            if let Some(key) = self.keys.get(&dispatched.digest)
                && !self.handled.contains(key)
            {
                copies.entry(*key).or_default().push(dispatched);
            }
        }

        let is_lost = |copy: &&Dispatched| {
            let end = self.ends.get(&copy.session);
            // A session whose READY did not arrive is not known to any client.
            end.is_some_and(|end| *end < copy.sequence) || !self.known.contains_key(&copy.session)
        };

        let is_owed = |copy: &&Dispatched| live.contains(&copy.session) && !is_lost(copy);
        let mut missing = Vec::new();
        for (key, all) in copies {
            // Only sessions count whose client was receiving.
            let is_heard = |copy: &&&Dispatched| {
                let knew = self.knew_at.get(&copy.session);
                self.active.contains_key(&copy.session)
                    && knew.is_none_or(|at| *at > self.sent[&key])
            };
            let copies: Vec<&Dispatched> = all.iter().filter(is_heard).copied().collect();
            if copies.is_empty() {
                continue;
            }
            // The replaced set must handle only the events that no other set has.
            let is_left = copies.iter().all(|copy| self.left.contains(&copy.session));
            let is_lost = copies.iter().any(is_lost) || self.is_in_gap(key, is_left);
            let is_excused = is_lost && !copies.iter().any(is_owed);
            if !is_excused {
                let places: Vec<_> = all
                    .iter()
                    .map(|copy| {
                        let shard = self.known.get(&copy.session);
                        let end = self.ends.get(&copy.session);
                        let is_live = (
                            live.contains(&copy.session),
                            self.active.contains_key(&copy.session),
                        );
                        format!(
                            "{} of {} {shard:?} ended {end:?} live and active {is_live:?}",
                            copy.sequence, copy.session
                        )
                    })
                    .collect();
                missing.push(format!("{key:?}, sent {:?}: {places:?}", self.sent[&key]));
            }
        }

        missing.sort_unstable();
        missing
    }

    /// Whether an event was sent after Discord had ended a session that should have had it, and
    /// before the shard knew. If the process ended while an old set was about to close: before the
    /// shard had another session.
    fn is_in_gap(&self, (guild, number): Key, is_left: bool) -> bool {
        let sent = self.sent[&(guild, number)];
        self.ends.keys().any(|session| {
            let Some((shard, _)) = self.known.get(session) else {
                return false;
            };
            let lost = self.lost_at.get(session).is_some_and(|at| *at <= sent);
            let knew_at = self.knew_at.get(session).copied();
            let until = if is_left {
                knew_at.and_then(|at| self.all_known(&[*shard], at))
            } else {
                knew_at
            };
            let is_before = until.is_some_and(|at| at >= sent);
            lost && is_before && ShardId::for_guild(guild, shard.total()) == Some(*shard)
        })
    }
}
