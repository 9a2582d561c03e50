//! Merges the events of two sets of shards that receive the same events, so that each event is
//! delivered once.
#![deny(clippy::disallowed_methods)]

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::mem;
use std::time::Instant;

use crate::shard_id::ShardId;

/// The guild of an event; one lane for all events without a guild.
pub(crate) type Lane = Option<u64>;

/// A digest of an event's name and data. Two events of a lane are equal if their digests are.
pub(crate) type Digest = u64;

/// Matches the events of an old set of shards, which are delivered, with those of a new set, which
/// are held until the new set takes over.
///
/// For each guild it works as a multiset: one event of the old set matches one equal event of the
/// new set, whichever arrives first. Two equal events of the same set are two events.
///
/// An event that the old set delivered and that the new set will never receive must not match a
/// later event that happens to be equal. So an entry of the old set is kept only
/// - from the moment when the guild's new shard [begins](Self::begin): the new shard receives
///   nothing that was sent before;
/// - until a later event of its guild has arrived from both sets, which receive a guild's events in
///   the same order;
/// - until the new shard has [read](Self::new_has_read) everything that was sent by the time of the
///   delivery;
/// - until the hand-over, unless it is certain that the new shard will receive it: at the
///   delivery, the old shard had read everything that was sent before the new session was
///   [ready](Self::ready).
///
/// An event of the new set may equal an entry that is not certain, which may be from before the new
/// shard began. It is kept as doubtful until the old set has [read](Self::old_has_read) everything
/// that was sent by then: after that, the old set has delivered the event as well, whichever of the
/// two it was. Where none of these rules decides, an event is delivered twice rather than lost.
///
/// To make that rare, the old set closes only once it has read everything that was sent before the
/// new set was ready, and then also everything that was sent before that point was reached. It also
/// waits, for a limited time, until there is no event that the hand-over
/// [might deliver twice](Self::is_in_doubt).
///
/// `E` is an event of the new set, and `W` identifies the copy that the old set delivered.
#[derive(Debug)]
pub(crate) struct Merge<E, W> {
    /// The shards of the new set.
    new: BTreeMap<ShardId, Progress>,
    /// The instant up to which each shard of the old set has read.
    old: HashMap<ShardId, Instant>,
    lanes: HashMap<Lane, Pending<E, W>>,
    /// The notices of the new set, which have no equal in the old set, with their numbers among all
    /// events that were ever held.
    notices: Vec<(u64, E)>,
    /// The number of `delivered` entries in all lanes.
    unmatched: usize,
    /// How many events were ever held.
    held: u64,
    /// The number of `doubtful` entries in all lanes.
    doubtful: usize,
    /// When the new set took over.
    live_since: Option<Instant>,
}

/// The progress of a shard of the new set.
#[derive(Clone, Copy, Debug, Default)]
struct Progress {
    /// It has begun to start or resume a session.
    has_begun: bool,
    /// When that session was ready: the shard receives everything that is sent later.
    ready_at: Option<Instant>,
    /// It has read everything that was sent to any session before this instant.
    read_up_to: Option<Instant>,
    /// When the old set last delivered an event that this shard may or may not receive.
    uncertain_at: Option<Instant>,
    /// It has stopped and receives nothing any more.
    has_ended: bool,
}

impl Progress {
    /// When the old set last delivered an event that this shard may or may not receive; `None` if
    /// it will not receive that event any more.
    fn awaited(&self) -> Option<Instant> {
        let has_passed = |at| self.has_ended || self.read_up_to.is_some_and(|read| read > at);
        self.uncertain_at.filter(|at| !has_passed(*at))
    }
}

/// The events of a lane that one set has received and the other has not.
#[derive(Debug)]
struct Pending<E, W> {
    /// Events of the old set, in order.
    delivered: VecDeque<Delivered<W>>,
    /// Events of the new set, in order, each with its number among all events that were ever held.
    held: VecDeque<(u64, Digest, E)>,
    /// Events of the new set, each of which is either a copy of one that the old set delivered or
    /// only equal to it.
    doubtful: Vec<Doubtful<E, W>>,
}

/// An event that the old set has delivered.
#[derive(Debug)]
struct Delivered<W> {
    at: Instant,
    shard: ShardId,
    digest: Digest,
    /// Whether the new set will certainly receive it.
    is_certain: bool,
    witness: W,
}

/// An event of the new set that equals one of the old set. The old set has delivered it too, or
/// will deliver it before it has read everything that was sent by the instant `by`.
#[derive(Debug)]
struct Doubtful<E, W> {
    by: Instant,
    /// The shard of the old set.
    shard: ShardId,
    number: u64,
    digest: Digest,
    event: E,
    witness: W,
}

/// What happens to an event of the new set.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Verdict<E, W> {
    /// It must be delivered now.
    Deliver(E),
    /// It is held until the new set takes over or the old set delivers it.
    Held,
    /// The old set has delivered this copy of it.
    Duplicate(E, W),
}

impl<E, W> Merge<E, W> {
    /// Creates a merge for a new set of these shards, which all have the same total.
    pub(crate) fn new(shards: &[ShardId]) -> Self {
        Self {
            new: shards
                .iter()
                .map(|shard| (*shard, Progress::default()))
                .collect(),
            old: HashMap::new(),
            lanes: HashMap::new(),
            notices: Vec::new(),
            unmatched: 0,
            held: 0,
            doubtful: 0,
            live_since: None,
        }
    }

    /// Whether the new set has taken over.
    pub(crate) fn is_live(&self) -> bool {
        self.live_since.is_some()
    }

    /// Whether the new set has taken over, and will receive no more duplicates of what the old set
    /// delivered.
    pub(crate) fn is_over(&self) -> bool {
        let has_read = |since: Instant| {
            let mut progress = self.new.values();
            progress.all(|shard| shard.has_ended || shard.read_up_to.is_some_and(|at| at > since))
        };
        self.live_since
            .is_some_and(|since| self.unmatched == 0 || has_read(since))
    }

    /// Whether the new set has received, or may still receive, an event that a hand-over now might
    /// deliver twice.
    pub(crate) fn is_in_doubt(&self) -> bool {
        let mut shards = self.new.values();
        self.doubtful > 0 || shards.any(|shard| shard.awaited().is_some())
    }

    /// Records that a shard of the new set starts a session, or resumes one that it brought along.
    /// From now on, it receives what the old set receives.
    pub(crate) fn begin(&mut self, shard: ShardId, is_new_session: bool) {
        let Some(progress) = self.new.get_mut(&shard) else {
            return;
        };
        let had_begun = mem::replace(&mut progress.has_begun, true);
        if !had_begun || !is_new_session {
            return;
        }

        // Events that were sent to its previous session are never redelivered.
        *progress = Progress {
            has_begun: true,
            ..Progress::default()
        };
        let mut lanes: Vec<Lane> = self.lanes.keys().copied().collect();
        lanes.retain(|lane| self.home(*lane) == Some(shard));
        for lane in lanes {
            self.forget(lane, |_| true);
        }
    }

    /// Records that the session of a shard of the new set is live.
    pub(crate) fn ready(&mut self, now: Instant, shard: ShardId) {
        if let Some(progress) = self.new.get_mut(&shard) {
            progress.ready_at.get_or_insert(now);
        }
    }

    /// Records that a shard of the new set has read everything that was sent to any session before
    /// `up_to`.
    pub(crate) fn new_has_read(&mut self, shard: ShardId, up_to: Instant) {
        if let Some(progress) = self.new.get_mut(&shard) {
            progress.read_up_to = Some(up_to);
        }
    }

    /// Records that a shard of the old set has read everything that was sent to any session before
    /// `up_to`. Returns the doubtful events that are now certain to be duplicates, each with the
    /// copy that was delivered.
    pub(crate) fn old_has_read(&mut self, shard: ShardId, up_to: Instant) -> Vec<(E, W)> {
        self.old.insert(shard, up_to);
        if self.doubtful == 0 {
            return Vec::new();
        }

        let mut sure = Vec::new();
        for pending in self.lanes.values_mut() {
            let is_sure =
                |doubtful: &mut Doubtful<E, W>| doubtful.shard == shard && doubtful.by < up_to;
            sure.extend(pending.doubtful.extract_if(.., is_sure));
        }
        self.doubtful -= sure.len();
        sure.into_iter()
            .map(|doubtful| (doubtful.event, doubtful.witness))
            .collect()
    }

    /// Records that a shard of the new set receives nothing any more.
    pub(crate) fn end(&mut self, shard: ShardId) {
        if let Some(progress) = self.new.get_mut(&shard) {
            progress.has_ended = true;
        }
    }

    /// Records an event that a shard of the old set delivers and that `witness` identifies. Returns
    /// the new set's duplicate if it was held and is certain to be one.
    pub(crate) fn old(
        &mut self,
        now: Instant,
        shard: ShardId,
        lane: Lane,
        digest: Digest,
        witness: impl FnOnce() -> W,
    ) -> Option<E> {
        let home = self.home(lane)?;
        let progress = self.new.get(&home)?;
        if !progress.has_begun {
            return None;
        }
        let read_up_to = self.old.get(&shard);
        let is_certain = progress
            .ready_at
            .is_some_and(|at| read_up_to.is_some_and(|read| *read >= at));

        let pending = self.lane(lane);
        // A doubtful event that is equal may have been this one, so nothing is certain.
        let mut doubtful = pending.doubtful.iter();
        let is_certain = is_certain && !doubtful.any(|doubtful| doubtful.digest == digest);

        let mut held = pending.held.iter();
        if let Some(at) = held.position(|(_, other, _)| *other == digest) {
            let (number, _, event) = pending.held.remove(at)?;
            if is_certain {
                // The new set would already have received what the old set delivered before this
                // event.
                self.unmatched -= mem::take(&mut pending.delivered).len();
                return Some(event);
            }
            let doubtful = Doubtful {
                by: now,
                shard,
                number,
                digest,
                event,
                witness: witness(),
            };
            pending.doubtful.push(doubtful);
            self.doubtful += 1;
            return None;
        }

        pending.delivered.push_back(Delivered {
            at: now,
            shard,
            digest,
            is_certain,
            witness: witness(),
        });
        self.unmatched += 1;
        if let Some(progress) = self.new.get_mut(&home).filter(|_| !is_certain) {
            progress.uncertain_at = Some(now);
        }
        None
    }

    /// Decides what happens to an event of the new set.
    pub(crate) fn new_event(
        &mut self,
        now: Instant,
        lane: Lane,
        digest: Digest,
        event: E,
    ) -> Verdict<E, W> {
        let (is_live, number) = (self.is_live(), self.held);
        let pending = self.lane(lane);
        let is_equal = |entry: &Delivered<W>| entry.digest == digest;

        // Entries that the new set will certainly receive match first, in order.
        let certain = |entry: &Delivered<W>| is_equal(entry) && entry.is_certain;
        let entries = &mut pending.delivered;
        if let Some(at) = entries.iter().position(certain) {
            let copy = entries.remove(at);
            // The new set will not receive the entries before this one any more. An equal one is
            // kept, because this event may be its duplicate.
            let before = entries.len();
            let mut place = 0;
            entries.retain(|entry| {
                place += 1;
                place > at || is_equal(entry)
            });
            self.unmatched -= 1 + before - entries.len();
            return match copy {
                Some(copy) => Verdict::Duplicate(event, copy.witness),
                None => Verdict::Deliver(event),
            };
        }
        if is_live {
            return Verdict::Deliver(event);
        }
        if let Some(copy) = entries
            .iter()
            .position(is_equal)
            .and_then(|at| entries.remove(at))
        {
            pending.doubtful.push(Doubtful {
                by: now,
                shard: copy.shard,
                number,
                digest,
                event,
                witness: copy.witness,
            });
            self.unmatched -= 1;
            self.doubtful += 1;
            self.held += 1;
            return Verdict::Held;
        }

        pending.held.push_back((number, digest, event));
        self.held += 1;
        Verdict::Held
    }

    /// Holds an event of the new set that the old set does not have, until the hand-over.
    pub(crate) fn hold_notice(&mut self, notice: E) {
        self.notices.push((self.held, notice));
        self.held += 1;
    }

    /// Hands over to the new set after the old one has closed. Returns the held events, in order.
    /// Deliver them, then call it again, until it returns none: then the new set has taken over.
    pub(crate) fn hand_over(&mut self, now: Instant) -> Vec<E> {
        for pending in self.lanes.values_mut() {
            let before = pending.delivered.len();
            pending.delivered.retain(|entry| entry.is_certain);
            self.unmatched -= before - pending.delivered.len();
        }
        let held = self.take_held();
        if held.is_empty() {
            self.live_since.get_or_insert(now);
        }
        held
    }

    /// Takes out the held events, in order.
    pub(crate) fn take_held(&mut self) -> Vec<E> {
        let mut held = mem::take(&mut self.notices);
        for pending in self.lanes.values_mut() {
            held.extend(
                mem::take(&mut pending.held)
                    .into_iter()
                    .map(|(number, _, event)| (number, event)),
            );
            held.extend(
                mem::take(&mut pending.doubtful)
                    .into_iter()
                    .map(|doubtful| (doubtful.number, doubtful.event)),
            );
        }

        self.doubtful = 0;
        held.sort_unstable_by_key(|(number, _)| *number);
        held.into_iter().map(|(_, event)| event).collect()
    }

    /// A text form of what is recorded and held, with which a test tells states apart.
    #[cfg(test)]
    pub(crate) fn outline(&self, start: Instant) -> String {
        let since = |at: Instant| at.saturating_duration_since(start);
        let lanes: Vec<_> = self
            .lanes
            .values()
            .map(|pending| {
                let mut kinds = Vec::new();
                let mut kind = |digest| {
                    let known = kinds.iter().position(|other| *other == digest);
                    known.unwrap_or_else(|| {
                        kinds.push(digest);
                        kinds.len() - 1
                    })
                };
                let entries = pending.delivered.iter();
                let entry =
                    |entry: &Delivered<W>| (since(entry.at), kind(entry.digest), entry.is_certain);
                let entries: Vec<_> = entries.map(entry).collect();
                let held: Vec<_> = pending.held.iter().map(|(number, ..)| *number).collect();
                let doubtful = pending.doubtful.iter().map(|doubtful| doubtful.number);
                (entries, held, doubtful.collect::<Vec<_>>())
            })
            .collect();
        let new: Vec<_> = self
            .new
            .values()
            .map(|shard| {
                let awaited = shard.awaited().filter(|_| !self.is_live());
                [shard.read_up_to, awaited].map(|at| at.map(since))
            })
            .collect();
        format!("{lanes:?} {new:?} {}", self.old.len())
    }

    /// The shard of the new set that receives the events of a lane.
    fn home(&self, lane: Lane) -> Option<ShardId> {
        let (first, _) = self.new.first_key_value()?;
        match lane {
            None => Some(*first),
            Some(guild) => ShardId::for_guild(guild, first.total()),
        }
    }

    /// A lane, after removal of the entries that its new shard will not receive any more.
    fn lane(&mut self, lane: Lane) -> &mut Pending<E, W> {
        let home = self.home(lane).and_then(|home| self.new.get(&home));
        if let Some(read_up_to) = home.and_then(|progress| progress.read_up_to) {
            self.forget(lane, |at| at < read_up_to);
        }
        self.lanes.entry(lane).or_insert_with(|| Pending {
            delivered: VecDeque::new(),
            held: VecDeque::new(),
            doubtful: Vec::new(),
        })
    }

    /// Removes the oldest entries of what the old set delivered in a lane.
    fn forget(&mut self, lane: Lane, is_old: impl Fn(Instant) -> bool) {
        let Some(pending) = self.lanes.get_mut(&lane) else {
            return;
        };
        while pending
            .delivered
            .front()
            .is_some_and(|entry| is_old(entry.at))
        {
            pending.delivered.pop_front();
            self.unmatched -= 1;
        }
    }
}

#[cfg(test)]
mod tests;
