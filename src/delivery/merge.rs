//! Two sets of shards hear the same events, and each is delivered once.
#![deny(clippy::disallowed_methods)]

use std::collections::{HashMap, VecDeque};
use std::mem;
use std::time::{Duration, Instant};

/// The guild of an event, as a digest; one lane for all events without a guild.
pub(crate) type Lane = u64;

/// What makes two events of a guild equal: a digest of name and data.
pub(crate) type Digest = u64;

/// The events of an old set of shards, which are delivered, against those of a new one, which are
/// held until the new set takes over.
///
/// It is a multiset for each guild: one event of the old set stands against one equal event of the
/// new set, whichever comes first; two that are equal are two events.
///
/// What the old set delivered just before a new session began the new one never brings. It must not
/// stand against a later event that happens to be equal, so it is forgotten as soon as something
/// later of its guild has come from both sets, for both hear a guild's events in the same order; or
/// once the new shard has read all that was sent by then; or else after `overlap`. So in doubt an
/// event is repeated rather than lost.
#[derive(Debug)]
pub(crate) struct Merge<E> {
    overlap: Duration,
    lanes: HashMap<Lane, Pending<E>>,
    /// Entries of `delivered` in all lanes.
    unmatched: usize,
    held: u64,
    live_since: Option<Instant>,
}

/// What one set has brought of a guild and the other has not.
#[derive(Debug)]
struct Pending<E> {
    /// The old set, in order, with the times.
    delivered: VecDeque<(Instant, Digest)>,
    /// The new set, in order, with the event's number among all that were held.
    held: VecDeque<(u64, Digest, E)>,
}

impl<E> Merge<E> {
    pub(crate) fn new(overlap: Duration) -> Self {
        Self {
            overlap,
            lanes: HashMap::new(),
            unmatched: 0,
            held: 0,
            live_since: None,
        }
    }

    /// Whether the new set has taken over.
    pub(crate) fn is_live(&self) -> bool {
        self.live_since.is_some()
    }

    /// Whether the new set has taken over, and has brought all that the old one delivered or never
    /// will.
    pub(crate) fn is_over(&self, now: Instant) -> bool {
        let is_old = |since: Instant| now.saturating_duration_since(since) > self.overlap;
        self.live_since
            .is_some_and(|since| self.unmatched == 0 || is_old(since))
    }

    /// The old set delivers an event. Returns the equal one of the new set that was held for it, to
    /// be dropped.
    pub(crate) fn old(&mut self, now: Instant, lane: Lane, digest: Digest) -> Option<E> {
        let pending = self.lane(now, lane);
        if let Some(at) = pending
            .held
            .iter()
            .position(|(_, other, _)| *other == digest)
        {
            // What the old set delivered before it the new set would have brought before it.
            let forgotten = mem::take(&mut pending.delivered).len();
            let twin = pending.held.remove(at).map(|(.., event)| event);
            self.unmatched -= forgotten;
            return twin;
        }
        pending.delivered.push_back((now, digest));
        self.unmatched += 1;
        None
    }

    /// The new set brings an event; its shard has read whatever was sent before `read_up_to`.
    /// Returns the event if it is to be delivered now.
    pub(crate) fn new_event(
        &mut self,
        now: Instant,
        read_up_to: Option<Instant>,
        lane: Lane,
        digest: Digest,
        event: E,
    ) -> Option<E> {
        let (is_live, number) = (self.is_live(), self.held);
        self.forget(lane, |at| read_up_to.is_some_and(|read| at < read));
        let pending = self.lane(now, lane);
        if let Some(first) = pending
            .delivered
            .iter()
            .position(|(_, other)| *other == digest)
        {
            // Of several equal ones in a row the latest, so that what is left over is the oldest.
            let equal = pending
                .delivered
                .iter()
                .skip(first)
                .take_while(|(_, other)| *other == digest)
                .count();
            pending.delivered.remove(first + equal - 1);
            // The new set has got past what came before them.
            pending.delivered.drain(..first);
            self.unmatched -= first + 1;
            return None;
        }
        if is_live {
            return Some(event);
        }
        pending.held.push_back((number, digest, event));
        self.held += 1;
        None
    }

    /// The old set is closed and the new one takes over. Returns what was held, in order.
    pub(crate) fn hand_over(&mut self, now: Instant) -> impl Iterator<Item = E> + use<E> {
        self.live_since = Some(now);
        let mut held: Vec<_> = self
            .lanes
            .values_mut()
            .flat_map(|pending| mem::take(&mut pending.held))
            .collect();
        held.sort_unstable_by_key(|(number, ..)| *number);
        held.into_iter().map(|(.., event)| event)
    }

    /// A guild's events, without those that were delivered too long ago.
    fn lane(&mut self, now: Instant, lane: Lane) -> &mut Pending<E> {
        let overlap = self.overlap;
        self.forget(lane, |at| now.saturating_duration_since(at) > overlap);
        self.lanes.entry(lane).or_insert_with(|| Pending {
            delivered: VecDeque::new(),
            held: VecDeque::new(),
        })
    }

    /// Forgets the oldest of what the old set delivered of a guild.
    fn forget(&mut self, lane: Lane, is_old: impl Fn(Instant) -> bool) {
        let Some(pending) = self.lanes.get_mut(&lane) else {
            return;
        };
        while pending.delivered.front().is_some_and(|(at, _)| is_old(*at)) {
            pending.delivered.pop_front();
            self.unmatched -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(
        clippy::disallowed_methods,
        reason = "made-up instants count from some real one"
    )]

    use proptest::prelude::*;

    use super::*;

    const OVERLAP: Duration = Duration::from_secs(10);

    #[test]
    fn equal_events_are_two_events() {
        let now = Instant::now();
        let mut merge = Merge::new(OVERLAP);
        assert_eq!(merge.new_event(now, None, 1, 7, "a"), None, "held");
        assert_eq!(merge.new_event(now, None, 1, 7, "b"), None, "held");
        assert_eq!(
            merge.new_event(now, None, 2, 7, "of another guild"),
            None,
            "held"
        );
        assert_eq!(merge.old(now, 1, 7), Some("a"));
        assert_eq!(
            merge.hand_over(now).collect::<Vec<_>>(),
            ["b", "of another guild"],
            "the old set never delivered them"
        );
        assert_eq!(merge.new_event(now, None, 1, 7, "c"), Some("c"));
        assert!(merge.is_over(now));
    }

    #[test]
    fn what_the_old_set_had_before_the_new_one_began_takes_nothing_away() {
        let start = Instant::now();
        let mut merge = Merge::new(OVERLAP);
        // One that the new session never gets, and then, equal ones that it does get.
        merge.old(start, 1, 7);
        for second in 1..=30 {
            let now = start + Duration::from_secs(second);
            merge.old(now, 1, 7);
            assert_eq!(merge.new_event(now, None, 1, 7, second), None);
        }
        let now = start + Duration::from_secs(31);
        assert_eq!(merge.hand_over(now).count(), 0);
        assert_eq!(
            merge.new_event(now, None, 1, 7, 31),
            Some(31),
            "the one left over is forgotten"
        );
        // The same with something else in between: then the order tells, however quick it is, and
        // whoever is first.
        let now = start;
        for new_first in [false, true] {
            let mut merge = Merge::new(OVERLAP);
            merge.old(now, 1, 7);
            if new_first {
                merge.new_event(now, None, 1, 8, 0);
                merge.old(now, 1, 8);
            } else {
                merge.old(now, 1, 8);
                merge.new_event(now, None, 1, 8, 0);
            }
            assert_eq!(merge.hand_over(now).count(), 0);
            assert_eq!(merge.new_event(now, None, 1, 7, 1), Some(1));
        }
    }

    #[test]
    fn what_a_new_shard_has_read_past_takes_nothing_away() {
        // Two that take turns, every two seconds; the new session begins after the second.
        let start = Instant::now();
        let mut merge = Merge::new(OVERLAP);
        let at = |turn: u64| start + Duration::from_secs(2 * turn + 1);
        // It has read all that was sent up to a second before.
        let read_up_to = |turn: u64| Some(start + Duration::from_secs(2 * turn));
        for turn in 0..8 {
            merge.old(at(turn), 1, turn % 2);
            if turn >= 2 {
                assert_eq!(
                    merge.new_event(at(turn), read_up_to(turn), 1, turn % 2, turn),
                    None
                );
            }
        }
        assert_eq!(merge.hand_over(at(7)).count(), 0);
        for turn in 8..12 {
            assert_eq!(
                merge.new_event(at(turn), read_up_to(turn), 1, turn % 2, turn),
                Some(turn)
            );
        }
    }

    #[test]
    fn a_new_set_that_lags_behind_repeats_nothing() {
        let start = Instant::now();
        let mut merge = Merge::new(OVERLAP);
        for digest in 0..5 {
            assert_eq!(merge.old(start, 1, digest), None);
        }
        assert_eq!(merge.hand_over(start).count(), 0);
        let now = start + Duration::from_secs(9);
        assert!(!merge.is_over(now));
        for digest in 0..5 {
            assert_eq!(merge.new_event(now, None, 1, digest, digest), None);
        }
        assert_eq!(merge.new_event(now, None, 1, 0, 0), Some(0));
        assert!(merge.is_over(now));
        // What never comes is not waited for.
        let mut merge = Merge::new(OVERLAP);
        merge.old(start, 1, 7);
        assert_eq!(merge.hand_over(start).chain([1]).count(), 1);
        assert!(merge.is_over(start + Duration::from_secs(11)));
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 10_000, failure_persistence: None, ..ProptestConfig::default() })]

        /// A stream of events, many of them equal; each set has read some prefix of it at each
        /// moment, and the new set begins somewhere. Whatever the interleaving, none is lost; and
        /// none is repeated where the new set has brought something that is like nothing else.
        #[test]
        fn no_event_is_lost(
            stream in prop::collection::vec(0..4_u64, 1..60),
            begins in 0..30_usize,
            steps in prop::collection::vec(any::<bool>(), 120),
            stop in 0..60_usize,
        ) {
            let mut now = Instant::now();
            let mut merge = Merge::new(OVERLAP);
            let begins = begins.min(stream.len());
            // The old set closes when it has caught up with where the new one began.
            let stop = stop.min(stream.len()).max(begins);
            // An event like no other is the first that the new set hears.
            let mut stream: Vec<u64> = stream;
            stream.insert(begins, 99);
            let stop = stop + 1;
            let (mut old, mut new, mut given) = (0, begins, Vec::new());
            for is_old in steps {
                now += Duration::from_millis(1);
                if is_old && old < stop {
                    merge.old(now, 1, stream[old]);
                    given.push(stream[old]);
                    old += 1;
                // The new session begins once the old set has got there.
                } else if new < stream.len() && old > begins {
                    prop_assert_eq!(merge.new_event(now, None, 1, stream[new], stream[new]), None, "before the hand-over");
                    new += 1;
                }
            }
            while old <= begins {
                merge.old(now, 1, stream[old]);
                given.push(stream[old]);
                old += 1;
            }
            given.extend(merge.hand_over(now));
            while new < stream.len() {
                given.extend(merge.new_event(now, None, 1, stream[new], stream[new]));
                new += 1;
            }
            prop_assert_eq!(given, stream, "each once and in order");
        }
    }
}
