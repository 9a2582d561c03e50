#![allow(
    clippy::disallowed_methods,
    reason = "the test's instants are offsets from a real one"
)]

use std::time::Duration;

use proptest::prelude::*;

use super::*;

const OLD: ShardId = ShardId::ONE;

/// A guild of the new set's first shard, and one of its second.
const GUILDS: [u64; 2] = [0, 1 << 22];

fn new(number: u32) -> ShardId {
    ShardId::new(number, 2).unwrap()
}

/// A merge whose new set has begun, and the time.
struct Rig {
    merge: Merge<u64, u64>,
    start: Instant,
    now: Instant,
}

impl Rig {
    fn begun() -> Self {
        let mut merge = Merge::new(&[new(0), new(1)]);
        merge.begin(new(0), true);
        merge.begin(new(1), true);
        let now = Instant::now();
        Self {
            merge,
            start: now,
            now,
        }
    }

    /// As `begun`, but the new set will certainly receive what the old set delivers from now on.
    fn certain() -> Self {
        let mut rig = Self::begun();
        rig.merge.ready(rig.now, new(0));
        rig.merge.ready(rig.now, new(1));
        drop(rig.merge.old_has_read(OLD, rig.now));
        rig
    }

    fn at(&mut self, second: u64) {
        self.now = self.start + Duration::from_secs(second);
    }

    /// The old set delivers an event; returns the duplicate.
    fn old(&mut self, digest: Digest) -> Option<u64> {
        self.old_of(GUILDS[0], digest)
    }

    fn old_of(&mut self, guild: u64, digest: Digest) -> Option<u64> {
        self.merge
            .old(self.now, OLD, Some(guild), digest, || digest)
    }

    /// The new set receives an event; returns it if it is delivered.
    fn brings(&mut self, digest: Digest, event: u64) -> Option<u64> {
        self.brings_of(GUILDS[0], digest, event)
    }

    fn brings_of(&mut self, guild: u64, digest: Digest, event: u64) -> Option<u64> {
        match self.merge.new_event(self.now, Some(guild), digest, event) {
            Verdict::Deliver(event) => Some(event),
            Verdict::Held | Verdict::Duplicate(..) => None,
        }
    }

    /// The new set takes over; returns what was held.
    fn hand_over(&mut self) -> Vec<u64> {
        let held = self.merge.hand_over(self.now);
        assert!(self.merge.hand_over(self.now).is_empty() && self.merge.is_live());
        held
    }
}

#[test]
fn equal_events_are_two_events() {
    let mut rig = Rig::certain();
    assert_eq!(rig.brings(7, 1), None, "held");
    assert_eq!(rig.brings(7, 2), None, "held");
    assert_eq!(rig.brings_of(GUILDS[1], 7, 3), None, "held");
    assert_eq!(rig.old(7), Some(1));
    assert_eq!(rig.hand_over(), [2, 3], "the old set never delivered them");
    assert_eq!(rig.brings(7, 4), Some(4));
    assert!(rig.merge.is_over());
}

#[test]
fn a_duplicate_names_the_copy_that_was_delivered() {
    let mut rig = Rig::certain();
    for digest in [5, 6, 6] {
        assert_eq!(rig.old(digest), None);
    }
    let (now, merge) = (rig.now, &mut rig.merge);
    let bring = |merge: &mut Merge<u64, u64>, digest| merge.new_event(now, Some(0), digest, 0);
    assert_eq!(bring(merge, 5), Verdict::Duplicate(0, 5));
    assert_eq!(bring(merge, 6), Verdict::Duplicate(0, 6));
    assert_eq!(bring(merge, 9), Verdict::Held);
}

#[test]
fn what_was_delivered_before_the_new_session_began_is_not_noted() {
    let mut rig = Rig::begun();
    rig.merge = Merge::new(&[new(0), new(1)]);
    rig.merge.begin(new(1), true);
    rig.old(7);
    rig.old_of(GUILDS[1], 7);
    assert_eq!(rig.merge.unmatched, 1, "the second shard has begun");
    // A new session of the second shard begins later.
    rig.merge.begin(new(1), true);
    assert_eq!(rig.merge.unmatched, 0);
}

#[test]
fn what_the_new_set_may_never_bring_takes_nothing_away() {
    let mut rig = Rig::begun();
    // The old shard lags behind: it delivers events that were sent before the new session was
    // ready.
    rig.old(7);
    rig.merge.ready(rig.now, new(0));
    rig.old(8);
    drop(rig.merge.old_has_read(OLD, rig.now));
    rig.old(9);
    assert!(rig.hand_over().is_empty());
    assert_eq!(rig.brings(7, 1), Some(1));
    assert_eq!(rig.brings(8, 2), Some(2), "in doubt again");
    assert_eq!(rig.brings(9, 3), None, "this one was certain to arrive");
    assert_eq!(rig.brings(9, 4), Some(4));
}

#[test]
fn what_equals_something_from_before_is_kept_until_the_old_set_must_have_delivered_it() {
    let mut rig = Rig::begun();
    rig.old(7);
    rig.merge.ready(rig.now, new(0));
    rig.at(1);
    assert_eq!(rig.brings(7, 1), None);
    rig.at(2);
    assert_eq!(rig.brings(7, 2), None, "held: it equals no other one");
    let second = rig.start + Duration::from_secs(1);
    assert!(rig.merge.old_has_read(OLD, second).is_empty(), "not yet");
    let sure = rig
        .merge
        .old_has_read(OLD, second + Duration::from_millis(1));
    assert_eq!(sure, [(1, 7)]);
    assert_eq!(rig.hand_over(), [2]);

    // If the old set never reads that far, both are delivered.
    let mut rig = Rig::begun();
    rig.old(7);
    assert_eq!(rig.brings(7, 1), None);
    assert_eq!(rig.brings(8, 2), None);
    assert_eq!(rig.hand_over(), [1, 2]);
}

#[test]
fn the_order_of_a_guild_tells_what_will_not_come() {
    for new_first in [false, true] {
        let mut rig = Rig::certain();
        rig.old(7);
        if new_first {
            rig.brings(8, 0);
            rig.old(8);
        } else {
            rig.old(8);
            rig.brings(8, 0);
        }
        assert!(rig.hand_over().is_empty());
        assert_eq!(rig.brings(7, 1), Some(1));
    }
}

#[test]
fn what_a_new_shard_has_read_past_takes_nothing_away() {
    let mut rig = Rig::certain();
    rig.at(1);
    rig.old(7);
    rig.at(3);
    rig.old(7);
    rig.merge
        .new_has_read(new(0), rig.start + Duration::from_secs(2));
    assert!(rig.hand_over().is_empty());
    assert_eq!(rig.brings(7, 1), None);
    assert_eq!(rig.brings(7, 2), Some(2), "the first one was read past");
}

#[test]
fn a_new_set_that_lags_behind_repeats_nothing() {
    let mut rig = Rig::certain();
    for digest in 0..5 {
        assert_eq!(rig.old(digest), None);
    }
    assert!(rig.hand_over().is_empty());
    rig.at(600);
    assert!(!rig.merge.is_over());
    for digest in 0..5 {
        assert_eq!(rig.brings(digest, digest), None);
    }
    assert_eq!(rig.brings(0, 0), Some(0));
    assert!(rig.merge.is_over());
}

#[test]
fn what_never_comes_is_not_waited_for() {
    let mut rig = Rig::certain();
    rig.old(7);
    rig.old_of(GUILDS[1], 7);
    assert!(rig.hand_over().is_empty());
    assert!(!rig.merge.is_over());
    rig.at(1);
    rig.merge.new_has_read(new(0), rig.now);
    assert!(!rig.merge.is_over());
    rig.merge.end(new(1));
    assert!(
        rig.merge.is_over(),
        "one has read past it, and one has stopped"
    );
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(10_000) })]

    /// In a stream of events, some or all are distinct. At each moment, each set has read some
    /// prefix of it; the new set begins somewhere. In every interleaving, no event is lost or out
    /// of order, and a distinct event is delivered once.
    #[test]
    fn no_event_is_lost(
        stream in prop_oneof![
            prop::collection::vec(0..4_u64, 1..60),
            (1..60_u64).prop_map(|length| (0..length).collect::<Vec<_>>()),
        ],
        begins in 0..30_usize,
        steps in prop::collection::vec(any::<bool>(), 120),
        stop in 0..60_usize,
    ) {
        let begins = begins.min(stream.len());
        // The old set closes when it has caught up with where the new one began.
        let stop = stop.min(stream.len()).max(begins) + 1;
        // The first event that the new set receives is a distinct one.
        let mut stream: Vec<u64> = stream;
        stream.insert(begins, 99);

        let mut rig = Rig::begun();
        let (mut old, mut new_read, mut given) = (0, begins, Vec::new());
        let read_old = |rig: &mut Rig, old: &mut usize, given: &mut Vec<u64>| {
            rig.old(stream[*old]);
            given.push(stream[*old]);
            *old += 1;
            if *old == begins + 1 {
                rig.merge.ready(rig.now, new(0));
                drop(rig.merge.old_has_read(OLD, rig.now));
            }
        };
        let mut in_doubt = 0;
        for (step, is_old) in steps.into_iter().enumerate() {
            rig.now = rig.start + Duration::from_millis(step as u64);
            if is_old && old < stop {
                read_old(&mut rig, &mut old, &mut given);
            // The new session begins once the old set has reached its first event.
            } else if new_read < stream.len() && old > begins {
                let event = stream[new_read];
                prop_assert_eq!(rig.brings(event, event), None, "before the hand-over");
                new_read += 1;
            }
        }
        while old <= begins {
            read_old(&mut rig, &mut old, &mut given);
        }
        rig.now += Duration::from_millis(1);
        if old >= new_read {
            drop(rig.merge.old_has_read(OLD, rig.now));
        }
        if new_read == begins {
            in_doubt = 1;
        }
        given.extend(rig.hand_over());
        while new_read < stream.len() {
            given.extend(rig.brings(stream[new_read], stream[new_read]));
            new_read += 1;
        }

        let mut rest = given.iter();
        prop_assert!(
            stream.iter().all(|event| rest.any(|other| other == event)),
            "{stream:?} is not in {given:?}"
        );
        for event in &stream {
            let count = |events: &[u64]| events.iter().filter(|other| *other == event).count();
            let allowed = count(&stream) + if *event == 99 { in_doubt.max(1) } else { 0 };
            prop_assert!(count(&stream) > 1 || count(&given) <= allowed, "{given:?}");
        }
    }
}
