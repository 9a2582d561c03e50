//! Two sets of shards hear the same events, and each is delivered once.
#![deny(clippy::disallowed_methods)]

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::mem;
use std::time::{Duration, Instant};

/// What makes two events equal: a digest of name and data. The data names the guild, so that guilds keep apart.
pub(crate) type Digest = u64;

/// The events of an old set of shards, which are delivered, against those of a new one, which are held until the new set
/// takes over.
///
/// It is a multiset: one event of the old set stands against one equal event of the new set, whichever comes first; two
/// that are equal are two events. What the old set delivered and the new one did not bring within `overlap` is forgotten,
/// the oldest first: it was sent before the new session began, and must not stand against a later event that happens to be
/// equal. So in doubt an event is repeated, and none is lost.
#[derive(Debug)]
pub(crate) struct Merge<E> {
    overlap: Duration,
    is_live: bool,
    /// What the old set delivered and the new set has not brought: when, oldest first.
    delivered: HashMap<Digest, VecDeque<Instant>>,
    /// The same in order of time, with some that have been matched since.
    expiry: VecDeque<(Instant, Digest)>,
    /// What the new set brought and the old set has not delivered, in order.
    held: BTreeMap<u64, (Digest, E)>,
    held_at: HashMap<Digest, VecDeque<u64>>,
    next: u64,
}

impl<E> Merge<E> {
    pub(crate) fn new(overlap: Duration) -> Self {
        Self {
            overlap,
            is_live: false,
            delivered: HashMap::new(),
            expiry: VecDeque::new(),
            held: BTreeMap::new(),
            held_at: HashMap::new(),
            next: 0,
        }
    }

    /// Whether the new set has taken over.
    pub(crate) fn is_live(&self) -> bool {
        self.is_live
    }

    /// Whether the new set has taken over and has brought all that the old one delivered.
    pub(crate) fn is_over(&self) -> bool {
        self.is_live && self.delivered.is_empty()
    }

    /// The old set delivers an event. Returns the equal one of the new set that was held for it, to be dropped.
    pub(crate) fn old(&mut self, now: Instant, digest: Digest) -> Option<E> {
        self.forget(now);
        if let Some(at) = pop(&mut self.held_at, digest, VecDeque::pop_front) {
            return self.held.remove(&at).map(|(_, event)| event);
        }
        self.delivered.entry(digest).or_default().push_back(now);
        self.expiry.push_back((now, digest));
        None
    }

    /// The new set brings an event. Returns it if it is to be delivered now.
    pub(crate) fn new_event(&mut self, now: Instant, digest: Digest, event: E) -> Option<E> {
        self.forget(now);
        // The latest: what is left over then is the oldest, and forgotten first.
        if pop(&mut self.delivered, digest, VecDeque::pop_back).is_some() {
            return None;
        }
        if self.is_live {
            return Some(event);
        }
        self.next += 1;
        self.held.insert(self.next, (digest, event));
        self.held_at.entry(digest).or_default().push_back(self.next);
        None
    }

    /// The old set is closed and the new one takes over. Returns what was held, in order.
    pub(crate) fn hand_over(&mut self) -> impl Iterator<Item = E> + use<E> {
        self.is_live = true;
        self.held_at.clear();
        mem::take(&mut self.held).into_values().map(|(_, event)| event)
    }

    fn forget(&mut self, now: Instant) {
        while let Some(&(at, digest)) = self.expiry.front()
            && now.saturating_duration_since(at) > self.overlap
        {
            self.expiry.pop_front();
            if self.delivered.get(&digest).is_some_and(|times| times.front() == Some(&at)) {
                pop(&mut self.delivered, digest, VecDeque::pop_front);
            }
        }
    }
}

/// Takes one of the values of a key, and the key with the last of them.
fn pop<T>(of: &mut HashMap<Digest, VecDeque<T>>, digest: Digest, take: fn(&mut VecDeque<T>) -> Option<T>) -> Option<T> {
    let values = of.get_mut(&digest)?;
    let value = take(values);
    if values.is_empty() {
        of.remove(&digest);
    }
    value
}

#[cfg(test)]
mod tests {
    #![allow(clippy::disallowed_methods, reason = "made-up instants count from some real one")]

    use proptest::prelude::*;

    use super::*;

    const OVERLAP: Duration = Duration::from_secs(10);

    #[test]
    fn equal_events_are_two_events() {
        let now = Instant::now();
        let mut merge = Merge::new(OVERLAP);
        assert_eq!(merge.new_event(now, 7, "a"), None, "held");
        assert_eq!(merge.new_event(now, 7, "b"), None, "held");
        assert_eq!(merge.old(now, 7), Some("a"));
        assert_eq!(merge.hand_over().collect::<Vec<_>>(), ["b"], "the old set never delivered it");
        assert_eq!(merge.new_event(now, 7, "c"), Some("c"));
    }

    #[test]
    fn what_the_old_set_had_before_the_new_one_began_takes_nothing_away() {
        let start = Instant::now();
        let mut merge = Merge::new(OVERLAP);
        // One that the new session never gets, and then, equal ones that it does get.
        merge.old(start, 7);
        for second in 1..=30 {
            let now = start + Duration::from_secs(second);
            merge.old(now, 7);
            assert_eq!(merge.new_event(now, 7, second), None);
        }
        assert_eq!(merge.hand_over().count(), 0);
        let now = start + Duration::from_secs(31);
        assert_eq!(merge.new_event(now, 7, 31), Some(31), "the one left over is forgotten");
        assert!(merge.delivered.is_empty());
    }

    #[test]
    fn a_new_set_that_lags_behind_repeats_nothing() {
        let start = Instant::now();
        let mut merge = Merge::new(OVERLAP);
        (0..5).for_each(|digest| assert_eq!(merge.old(start, digest), None));
        assert_eq!(merge.hand_over().count(), 0);
        let now = start + Duration::from_secs(9);
        (0..5).for_each(|digest| assert_eq!(merge.new_event(now, digest, digest), None));
        assert_eq!(merge.new_event(now, 0, 0), Some(0));
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 10_000, failure_persistence: None, ..ProptestConfig::default() })]

        /// A stream of events, many of them equal; each set has read some prefix of it at each moment, and the new set
        /// began somewhere. Whatever the interleaving, each event is delivered once, and the new set's in order.
        #[test]
        fn each_event_once(stream in prop::collection::vec(0..4_u64, 1..60), steps in prop::collection::vec(any::<bool>(), 120), stop in 0..60_usize) {
            let start = Instant::now();
            let mut merge = Merge::new(OVERLAP);
            let (mut old, mut new, mut given) = (0, 0, Vec::new());
            let mut now = start;
            for is_old in steps {
                now += Duration::from_millis(1);
                if is_old && old < stop.min(stream.len()) {
                    merge.old(now, stream[old]);
                    given.push(stream[old]);
                    old += 1;
                } else if new < stream.len() {
                    prop_assert_eq!(merge.new_event(now, stream[new], stream[new]), None, "before the hand-over");
                    new += 1;
                }
            }
            given.extend(merge.hand_over());
            while new < stream.len() {
                given.extend(merge.new_event(now, stream[new], stream[new]));
                new += 1;
            }
            let mut wanted = stream.clone();
            given.sort_unstable();
            wanted.sort_unstable();
            prop_assert_eq!(given, wanted);
        }
    }
}
