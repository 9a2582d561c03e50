//! Compares what the program has handled with what the gateway has sent.

use std::collections::{HashMap, HashSet};
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use threadcord::sim::{self, Dispatched, Gateway};
use threadcord::{Event, EventKind, Session, ShardId};

use crate::{GUILDS, common};

/// A guild and the number of an event of it. Each guild gets each number once.
pub(crate) type Key = (u64, u64);

/// How an event was handled by the process that is running.
struct Handled {
    key: Key,
    at: Instant,
    /// How often the store had been written.
    writes: u64,
}

/// All events that were sent and handled, and everything that explains a difference.
#[derive(Default)]
pub(crate) struct Accounts {
    /// How many numbers each guild has been sent.
    pub(crate) sent: Arc<AtomicU64>,
    /// How often each event was handled.
    counts: HashMap<Key, usize>,
    /// The last number of each guild.
    last: HashMap<u64, u64>,
    /// The digests of the data of the events that were handled.
    digests: HashSet<u64>,
    /// What the current process has handled.
    recent: Vec<Handled>,
    last_handled_at: Option<Instant>,
    /// When the last reshard began, and when it ended.
    reshard_began: Option<Instant>,
    reshard_ended: Option<Instant>,
    /// The longest time without an event while a reshard is in progress.
    silence: Duration,

    /// The sessions whose loss was reported, with their last sequences.
    pub(crate) lost: HashMap<String, u64>,
    /// The shards that have stopped.
    pub(crate) closed: Vec<ShardId>,
    /// The shards that have started a session.
    pub(crate) started: Vec<ShardId>,
    /// The sessions that no process knows any more, with their last known sequences.
    orphans: HashMap<String, u64>,
    /// The numbers that were sent while a shard had no session.
    gaps: Vec<RangeInclusive<u64>>,
    /// Where such a gap begins.
    gap_from: Option<u64>,

    /// A session was lost during a reshard: what it missed comes late, from the other set.
    is_unordered: bool,
    out_of_order: Vec<(u64, u64, u64)>,
    may_repeat: HashSet<Key>,
    repeated: Vec<Key>,
}

impl Accounts {
    /// The program handles an event.
    pub(crate) fn handle(&mut self, event: Event, writes: impl Fn() -> u64) {
        let is_resharding = self.reshard_began.is_some() && self.reshard_ended.is_none();
        match event.kind() {
            EventKind::SessionLost { session, .. } => {
                self.lost.insert(session.id.clone(), session.sequence);
                self.is_unordered |= is_resharding;
                self.begin_gap();
            }
            EventKind::Stopped(_) => {
                self.closed.push(event.shard());
                self.begin_gap();
            }
            EventKind::SessionStarted => self.started.push(event.shard()),
            _ => {}
        }
        let Some(key) = common::number(&event) else {
            return;
        };
        let data = event.dispatch().expect("it has a number").data();
        self.digests.insert(sim::digest(data));
        drop(event);

        let now = Instant::now();
        let silence = self.last_handled_at.replace(now).map(|last| now - last);
        if is_resharding {
            self.silence = self.silence.max(silence.unwrap_or_default());
        }
        self.count(key);
        self.recent.push(Handled {
            key,
            at: now,
            writes: writes(),
        });
    }

    fn count(&mut self, key: Key) {
        let count = self.counts.entry(key).or_default();
        *count += 1;
        let is_repeated = *count > 1;
        if is_repeated && !self.may_repeat.remove(&key) {
            self.repeated.push(key);
        }

        let (guild, number) = key;
        let last = self.last.entry(guild).or_default();
        if !is_repeated && !self.is_unordered && *last > number {
            self.out_of_order.push((guild, *last, number));
        }
        *last = number.max(*last);
    }

    pub(crate) fn begin_reshard(&mut self) {
        self.reshard_began = Some(Instant::now());
        self.reshard_ended = None;
        self.silence = Duration::ZERO;
    }

    /// A reshard is over. If the handler was stuck for so long that the old set may not have waited
    /// for the new one, events that were handled in the meantime may be redelivered.
    pub(crate) fn end_reshard(&mut self, too_long: Duration) {
        self.reshard_ended = Some(Instant::now());
        if self.silence >= too_long {
            let recent = self.recent.iter();
            let during = recent.filter(|handled| Some(handled.at) >= self.reshard_began);
            self.may_repeat.extend(during.map(|handled| handled.key));
        }
    }

    /// The next process starts from a store that was written this many times. The last write
    /// need not have what was handled since the one before. If a reshard goes on, or has ended so
    /// shortly before that events may still be on their way, the new set's sessions need not know
    /// what was handled meanwhile.
    pub(crate) fn end_process(&mut self, writes: u64, on_the_way: Duration) {
        let is_resharding = self.reshard_began.is_some()
            && self
                .reshard_ended
                .is_none_or(|at| at.elapsed() < on_the_way);
        let is_unsaved = |handled: &Handled| {
            handled.writes + 1 >= writes || is_resharding && handled.at.elapsed() < on_the_way
        };
        let recent = std::mem::take(&mut self.recent).into_iter();
        let unsaved = recent.filter(is_unsaved).map(|handled| handled.key);
        self.may_repeat.extend(unsaved);
        self.is_unordered = false;
        (self.last_handled_at, self.reshard_began) = (None, None);
    }

    /// The process goes on, or the next one, with these sessions. Discord may go on with others
    /// until it misses their client: no process reads the events that these get from now on.
    pub(crate) fn orphan(&mut self, gateway: &Gateway, sessions: &[Session]) {
        let mut orphans = gateway.observed().sequences;
        for session in sessions {
            orphans.remove(&session.id);
        }
        for (session, last) in orphans {
            self.orphans.entry(session).or_insert(last);
        }
    }

    /// A process was killed while some of its sessions were too new to be stored: nothing is known
    /// of them.
    pub(crate) fn disown(&mut self, running: &[Session], stored: &[Session]) {
        let is_stored = |session: &Session| stored.iter().any(|other| other.id == session.id);
        let unknown = running.iter().filter(|session| !is_stored(session));
        self.orphans
            .extend(unknown.map(|session| (session.id.clone(), 0)));
    }

    /// A shard has no session. The gap includes the events that it missed before this was noticed.
    fn begin_gap(&mut self) {
        let has_all = self.last.len() == GUILDS as usize;
        let handled = self.last.values().min().filter(|_| has_all);
        self.gap_from.get_or_insert(handled.copied().unwrap_or(0));
    }

    /// Every shard has a session.
    pub(crate) fn end_gap(&mut self) {
        if let Some(from) = self.gap_from.take() {
            self.gaps.push(from..=self.sent.load(Ordering::Acquire));
        }
    }

    /// The events that were sent and not handled, without an explanation. `data` returns the data
    /// of an event.
    pub(crate) fn missing(&self, gateway: &Gateway, data: impl Fn(Key) -> String) -> Vec<String> {
        let mut copies: HashMap<u64, Vec<Dispatched>> = HashMap::new();
        let mut handled: HashMap<String, u64> = HashMap::new();
        for event in gateway.dispatches() {
            if self.digests.contains(&event.digest) {
                let last = handled.entry(event.session).or_default();
                *last = event.sequence.max(*last);
            } else {
                copies.entry(event.digest).or_default().push(event);
            }
        }

        let numbers = 0..self.sent.load(Ordering::Acquire);
        let guilds = gateway.guild_ids();
        let sent = numbers.flat_map(|number| guilds.iter().map(move |guild| (*guild, number)));
        let mut missing = Vec::new();
        for key in sent.filter(|key| !self.counts.contains_key(key)) {
            let copies = copies.remove(&sim::digest(data(key).as_bytes()));
            let copies = copies.unwrap_or_default();
            if !self.is_excused(key, &copies, &handled) {
                let places = copies.iter();
                let places = places.map(|copy| format!("{} of {}", copy.sequence, copy.session));
                missing.push(format!("{key:?}: {:?}", places.collect::<Vec<_>>()));
            }
        }
        missing
    }

    /// Whether the loss of a session explains why an event is missing. Every session that was given
    /// the event must have been lost before it, or closed before it arrived; and one must have been
    /// lost, or there was none.
    fn is_excused(&self, key: Key, copies: &[Dispatched], handled: &HashMap<String, u64>) -> bool {
        let is_lost = |copy: &Dispatched| {
            let ends = [&self.lost, &self.orphans].map(|ends| ends.get(&copy.session));
            ends.into_iter().flatten().any(|end| *end < copy.sequence)
        };
        let is_last = |copy: &Dispatched| {
            let last = handled.get(&copy.session);
            last.is_none_or(|last| *last < copy.sequence)
        };
        let is_in_gap = self.gaps.iter().any(|gap| gap.contains(&key.1));
        (is_in_gap || copies.iter().any(is_lost))
            && copies.iter().all(|copy| is_lost(copy) || is_last(copy))
    }

    pub(crate) fn repeated(&self) -> &[Key] {
        &self.repeated
    }

    /// The guild, the number of an event, and the lower number of an event after it.
    pub(crate) fn out_of_order(&self) -> &[(u64, u64, u64)] {
        &self.out_of_order
    }

    /// How many events were handled, and how often one was handled again.
    pub(crate) fn handled(&self) -> (usize, usize) {
        let times: usize = self.counts.values().sum();
        (self.counts.len(), times - self.counts.len())
    }
}
