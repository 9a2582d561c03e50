//! Two sets of shards receive the same events, and each is delivered once.
#![deny(clippy::disallowed_methods)]

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::mem;
use std::time::Instant;

use crate::shard_id::ShardId;

/// The guild of an event; one lane for all events without a guild.
pub(crate) type Lane = Option<u64>;

/// What makes two events of a lane equal: a digest of name and data.
pub(crate) type Digest = u64;

/// The events of an old set of shards, which are delivered, against those of a new one, which are
/// held until the new set takes over.
///
/// It is a multiset for each guild: one event of the old set stands against one equal event of the
/// new set, whichever comes first; two that are equal are two events.
///
/// An event that the old set delivered and that the new set will never bring must not stand against
/// a later one that happens to be equal. So an entry of the old set is kept only
/// - from the moment when the guild's new shard [begins](Self::begin): of what was sent before,
///   that one gets nothing;
/// - until something later of its guild has come from both sets, which receive a guild's events in
///   the same order;
/// - until the new shard has [read](Self::new_has_read) all that was sent by then;
/// - until the hand-over, unless it is certain by then that the new shard will bring it: the old
///   one had read all that was sent before the new session was [ready](Self::ready).
///
/// An event of the new set that equals one which may be from before it began is kept until the old
/// set has [read](Self::old_has_read) all that was sent by then: after that, the old set has
/// delivered it as well, whichever of the two it was. Where none of these tells, an event is repeated
/// rather than lost. So that it seldom happens, the old set closes only once it has read all that was
/// sent before the new set was ready, and then, once more, all that was sent before it had; and it
/// waits, for a while, until there is no event that the hand-over [would repeat](Self::is_in_doubt).
///
/// `E` is an event of the new set, and `W` names the copy that the old set delivered.
#[derive(Debug)]
pub(crate) struct Merge<E, W> {
    /// The shards of the new set.
    new: BTreeMap<ShardId, Progress>,
    /// Up to when shards of the old set have read.
    old: HashMap<ShardId, Instant>,
    lanes: HashMap<Lane, Pending<E, W>>,
    /// What the new set told that is no event of Discord, with its number among all that were held.
    notices: Vec<(u64, E)>,
    /// Entries of `delivered` in all lanes.
    unmatched: usize,
    /// How many events were ever held.
    held: u64,
    /// How many are doubtful in all lanes.
    doubtful: usize,
    live_since: Option<Instant>,
}

/// How far a shard of the new set has come.
#[derive(Clone, Copy, Debug, Default)]
struct Progress {
    /// It is starting a session, or has.
    has_begun: bool,
    /// When that was ready: what is sent later, it receives.
    ready_at: Option<Instant>,
    /// It has read whatever any session was sent before that.
    read_up_to: Option<Instant>,
    /// When the old set last delivered an event that this shard may or may not bring.
    uncertain_at: Option<Instant>,
    /// It has stopped, and brings nothing any more.
    has_ended: bool,
}

impl Progress {
    /// When the old set last delivered what this shard may still bring, without that being certain.
    fn awaited(&self) -> Option<Instant> {
        let has_passed = |at| self.has_ended || self.read_up_to.is_some_and(|read| read > at);
        self.uncertain_at.filter(|at| !has_passed(*at))
    }
}

/// What one set has brought of a guild and the other has not.
#[derive(Debug)]
struct Pending<E, W> {
    /// The old set, in order.
    delivered: VecDeque<Delivered<W>>,
    /// The new set, in order, with the event's number among all that were held.
    held: VecDeque<(u64, Digest, E)>,
    /// Events of the new set that may be what the old set delivered, or may be equal to it.
    doubtful: Vec<Doubtful<E, W>>,
}

/// An event that the old set has delivered.
#[derive(Debug)]
struct Delivered<W> {
    at: Instant,
    shard: ShardId,
    digest: Digest,
    /// The new set will bring it.
    is_certain: bool,
    witness: W,
}

/// An event of the new set that the old set has delivered, or will before it has read what was sent
/// by a moment.
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

/// What becomes of an event of the new set.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Verdict<E, W> {
    /// It is delivered now.
    Deliver(E),
    /// It is held until the new set takes over, or the old one brings it.
    Held,
    /// The old set has delivered this copy of it.
    Duplicate(E, W),
}

impl<E, W> Merge<E, W> {
    /// For a new set of these shards, which all have the same total.
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

    /// Whether the new set has taken over, and has brought all that the old one delivered or never
    /// will.
    pub(crate) fn is_over(&self) -> bool {
        let has_read = |since: Instant| {
            let mut progress = self.new.values();
            progress.all(|shard| shard.has_ended || shard.read_up_to.is_some_and(|at| at > since))
        };
        self.live_since
            .is_some_and(|since| self.unmatched == 0 || has_read(since))
    }

    /// Whether the new set may have brought, or may still bring, what a hand-over would repeat.
    pub(crate) fn is_in_doubt(&self) -> bool {
        let mut shards = self.new.values();
        self.doubtful > 0 || shards.any(|shard| shard.awaited().is_some())
    }

    /// A shard of the new set starts a session, or resumes one that it brought along: from now on
    /// it receives what the old set does.
    pub(crate) fn begin(&mut self, shard: ShardId, is_new_session: bool) {
        let Some(progress) = self.new.get_mut(&shard) else {
            return;
        };
        let had_begun = mem::replace(&mut progress.has_begun, true);
        if !had_begun || !is_new_session {
            return;
        }

        // What was sent to the session before this one never comes again.
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

    /// The session of a shard of the new set is live.
    pub(crate) fn ready(&mut self, now: Instant, shard: ShardId) {
        if let Some(progress) = self.new.get_mut(&shard) {
            progress.ready_at.get_or_insert(now);
        }
    }

    /// A shard of the new set has read whatever was sent to any session before that instant.
    pub(crate) fn new_has_read(&mut self, shard: ShardId, up_to: Instant) {
        if let Some(progress) = self.new.get_mut(&shard) {
            progress.read_up_to = Some(up_to);
        }
    }

    /// A shard of the old set has read whatever was sent to any session before that instant. Returns
    /// the duplicates of which that makes sure, with the copies that were delivered.
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

    /// A shard of the new set brings nothing any more.
    pub(crate) fn end(&mut self, shard: ShardId) {
        if let Some(progress) = self.new.get_mut(&shard) {
            progress.has_ended = true;
        }
    }

    /// A shard of the old set delivers an event, which `witness` names. Returns the duplicate of the
    /// new set that was held.
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
        // What is equal and may have been this one takes away all certainty.
        let mut doubtful = pending.doubtful.iter();
        let is_certain = is_certain && !doubtful.any(|doubtful| doubtful.digest == digest);

        let mut held = pending.held.iter();
        if let Some(at) = held.position(|(_, other, _)| *other == digest) {
            let (number, _, event) = pending.held.remove(at)?;
            if is_certain {
                // What the old set delivered before it the new set would have brought before it.
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

    /// The new set brings an event.
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

        // What it must bring, in order, before what it may.
        let certain = |entry: &Delivered<W>| is_equal(entry) && entry.is_certain;
        let entries = &mut pending.delivered;
        if let Some(at) = entries.iter().position(certain) {
            let copy = entries.remove(at);
            // The new set has got past what came before it, but for an equal one that may be what
            // has come now.
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

    /// The new set tells something that is no event of Discord: it is held until the hand-over.
    pub(crate) fn hold_notice(&mut self, notice: E) {
        self.notices.push((self.held, notice));
        self.held += 1;
    }

    /// The old set has closed. Returns what is held, in order, to be delivered; call it again once
    /// that has been done. When nothing is held any more, the new set has taken over.
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

    /// Takes out what is held, in order.
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

    /// What is noted and held, for a test to tell states apart.
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

    /// A lane, without what its new shard has got past.
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

    /// Forgets the oldest of what the old set delivered of a guild.
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
