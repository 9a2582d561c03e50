#![allow(
    clippy::disallowed_methods,
    reason = "the tests calculate their instants from a real one"
)]

use std::collections::HashMap;

use proptest::prelude::*;

use super::*;

const WINDOW: Duration = Duration::from_secs(5);
/// How much later than announced a day is assumed to begin.
const GUARD: Duration = Duration::from_secs(30);
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

fn limits(max_concurrency: u32, remaining: u32) -> Limits {
    let max_concurrency = NonZeroU32::new(max_concurrency).unwrap();
    Limits {
        total: 1000,
        remaining,
        reset_after: Duration::from_secs(3600),
        max_concurrency,
    }
}

fn rules(release_after: ReleaseAfter) -> Rules {
    Rules {
        window: WINDOW,
        release_after,
        reset_every: DAY,
        reset_guard: GUARD,
    }
}

fn schedule(now: Instant, limits: Limits) -> Schedule {
    Schedule::new(now, limits, rules(ReleaseAfter::Identify))
}

fn shard(number: u32) -> ShardId {
    ShardId::new(number, 100_000).unwrap()
}

fn granted(schedule: &mut Schedule, now: Instant) -> Vec<TicketId> {
    let mut ids = Vec::new();
    while let Turn::Grant(id) = schedule.poll(now) {
        ids.push(id);
    }
    ids
}

#[test]
fn one_per_key_and_window_in_order() {
    let now = Instant::now();
    let mut schedule = schedule(now, limits(2, 1000));
    let ids: Vec<_> = (0..6).map(|n| schedule.request(shard(n))).collect();
    assert_eq!(granted(&mut schedule, now), ids[..2]);
    schedule.used(now, ids[0]);
    schedule.used(now, ids[1]);
    assert_eq!(schedule.poll(now), Turn::Wait(Some(now + WINDOW)));
    assert_eq!(granted(&mut schedule, now + WINDOW), ids[2..4]);
}

#[test]
fn an_unused_permit_frees_its_slot_at_once() {
    let now = Instant::now();
    let mut schedule = schedule(now, limits(1, 1000));
    let (a, b, c) = (
        schedule.request(shard(0)),
        schedule.request(shard(1)),
        schedule.request(shard(2)),
    );
    assert_eq!(granted(&mut schedule, now), [a]);
    schedule.leave(now, b);
    schedule.leave(now, a);
    assert_eq!(granted(&mut schedule, now), [c]);
    assert_eq!(schedule.remaining(now), 1000);
}

#[test]
fn with_nothing_remaining_everyone_waits_for_the_reset() {
    let now = Instant::now();
    let mut schedule = schedule(now, limits(4, 1));
    let (a, b) = (schedule.request(shard(0)), schedule.request(shard(1)));
    assert_eq!(granted(&mut schedule, now), [a], "one is left");
    schedule.used(now, a);
    let reset = now + Duration::from_secs(3600) + GUARD;
    assert_eq!(schedule.poll(now + WINDOW), Turn::Wait(Some(reset)));
    assert_eq!(granted(&mut schedule, reset), [b]);
    assert_eq!(schedule.remaining(reset), 1000);
}

#[test]
fn a_reset_that_is_now_is_a_new_day() {
    let now = Instant::now();
    let mut schedule = schedule(
        now,
        Limits {
            reset_after: Duration::ZERO,
            ..limits(1, 0)
        },
    );
    let id = schedule.request(shard(0));
    assert_eq!(granted(&mut schedule, now), [id]);
}

#[test]
fn no_wait_overflows() {
    let now = Instant::now();
    let mut schedule = schedule(
        now,
        Limits {
            reset_after: Duration::MAX,
            ..limits(1, 0)
        },
    );
    let id = schedule.request(shard(0));
    assert!(matches!(schedule.poll(now), Turn::Wait(Some(_))));
    schedule.update(now, now, limits(1, 10));
    assert_eq!(granted(&mut schedule, now), [id]);
    schedule.exit_after(now, id, Duration::MAX);
    schedule.request(shard(0));
    assert!(matches!(schedule.poll(now), Turn::Wait(Some(_))));
}

#[test]
fn an_answer_that_is_out_of_date_gives_nothing_back() {
    let (now, second) = (Instant::now(), Duration::from_secs(1));
    let day = Duration::from_secs(3600);
    let answer = |remaining, reset_after| Limits {
        reset_after,
        ..limits(1, remaining)
    };
    // The cases: the day had begun; it had not begun, according to the answer; the reset is at
    // another time than before; and the day has just ended.
    for (before, after, left) in [
        (answer(5, day), answer(5, day), 4),
        (answer(5, Duration::ZERO), answer(5, Duration::ZERO), 4),
        (answer(5, day), answer(5, 20 * day), 4),
        // On the same day, no more can be left than before.
        (answer(5, Duration::ZERO), answer(0, Duration::ZERO), 4),
    ] {
        let mut schedule = schedule(now, before);
        let id = schedule.request(shard(0));
        assert_eq!(granted(&mut schedule, now + second), [id]);
        schedule.used(now + second, id);
        schedule.update(now + 2 * second, now, after);
        assert_eq!(
            schedule.remaining(now + 2 * second),
            left,
            "asked before the IDENTIFY: {before:?}, {after:?}"
        );

        schedule.update(now + 3 * second, now + 2 * second, answer(2, day));
        assert_eq!(schedule.remaining(now + 3 * second), 2, "others spend, too");
        schedule.update(now + 4 * second, now + 3 * second, answer(1000, 20 * day));
        assert_eq!(schedule.remaining(now + 4 * second), 1000, "another day");
    }
}

#[test]
fn what_another_process_sent_just_before_cools_its_key() {
    let now = Instant::now();
    let keys = |n| NonZeroU32::new(n).unwrap();
    let mut schedule = schedule(now, limits(2, 1000));
    schedule.note(1, keys(2), now.checked_sub(WINDOW / 2).unwrap());
    let (other, same) = (schedule.request(shard(0)), schedule.request(shard(1)));
    assert_eq!(granted(&mut schedule, now), [other]);
    assert_eq!(granted(&mut schedule, now + WINDOW / 2), [same]);
    // With another number of keys, any key may have been used.
    let mut schedule = self::schedule(now, limits(2, 1000));
    schedule.note(7, keys(16), now);
    schedule.request(shard(0));
    assert_eq!(schedule.poll(now), Turn::Wait(Some(now + WINDOW)));
}

#[test]
fn those_who_leave_from_the_middle_leave_nothing_behind() {
    let now = Instant::now();
    let mut schedule = schedule(now, limits(1, 1000));
    let ids: Vec<_> = (0..100).map(|n| schedule.request(shard(n))).collect();
    for id in &ids[1..99] {
        schedule.leave(now, *id);
    }
    assert_eq!(schedule.key(shard(0)).queue, [ids[0], ids[99]]);
}

#[test]
fn the_reset_is_told_without_the_guard() {
    let now = Instant::now();
    let day = Duration::from_secs(86_400);
    let mut schedule = schedule(
        now,
        Limits {
            reset_after: day,
            ..limits(1, 5)
        },
    );
    assert_eq!(schedule.status(now).reset_after, Some(day));
}

#[test]
fn ready_may_start_the_window_instead() {
    let now = Instant::now();
    let mut schedule = Schedule::new(now, limits(1, 10), rules(ReleaseAfter::Ready));
    let (a, b) = (schedule.request(shard(0)), schedule.request(shard(1)));
    assert_eq!(granted(&mut schedule, now), [a]);
    schedule.used(now, a);
    let ready = now + 2 * WINDOW;
    assert_eq!(schedule.poll(ready), Turn::Wait(None), "held until READY");
    schedule.leave(ready, a);
    assert_eq!(schedule.poll(ready), Turn::Wait(Some(ready + WINDOW)));
    assert_eq!(granted(&mut schedule, ready + WINDOW), [b]);
    assert_eq!(schedule.remaining(ready), 9);
}

#[test]
fn a_holder_may_choose_its_window() {
    let now = Instant::now();
    let mut schedule = schedule(now, limits(1, 10));
    let (a, b) = (schedule.request(shard(0)), schedule.request(shard(1)));
    assert_eq!(granted(&mut schedule, now), [a]);
    schedule.exit_after(now, a, WINDOW / 5);
    assert_eq!(granted(&mut schedule, now + WINDOW / 5), [b]);
    assert_eq!(schedule.remaining(now), 9);
}

#[test]
fn leaving_after_use_frees_nothing_twice() {
    let now = Instant::now();
    let mut schedule = schedule(now, limits(1, 10));
    let ids: Vec<_> = (0..3).map(|n| schedule.request(shard(n))).collect();
    assert_eq!(granted(&mut schedule, now), ids[..1]);
    schedule.used(now, ids[0]);
    assert_eq!(granted(&mut schedule, now + WINDOW), ids[1..2]);

    schedule.exit_after(now + WINDOW, ids[0], Duration::ZERO);
    schedule.used(now + WINDOW, ids[0]);
    schedule.leave(now + WINDOW, ids[0]);
    assert_eq!(
        granted(&mut schedule, now + WINDOW),
        [],
        "the second is held"
    );
    assert_eq!(schedule.remaining(now), 9);
}

#[test]
fn a_new_number_of_keys_keeps_order_and_windows() {
    let now = Instant::now();
    let mut schedule = schedule(now, limits(1, 1000));
    let ids: Vec<_> = (0..4).map(|n| schedule.request(shard(n))).collect();
    assert_eq!(granted(&mut schedule, now), ids[..1]);
    schedule.used(now, ids[0]);
    schedule.update(now, now, limits(2, 999));
    assert_eq!(schedule.poll(now), Turn::Wait(Some(now + WINDOW)));
    assert_eq!(
        granted(&mut schedule, now + WINDOW),
        [ids[2], ids[1]],
        "keys 0 and 1"
    );
}

#[test]
fn a_hundred_thousand_tickets_in_linear_time() {
    let now = Instant::now();
    let mut schedule = Schedule::new(
        now,
        Limits {
            total: u32::MAX,
            ..limits(16, u32::MAX)
        },
        rules(ReleaseAfter::Identify),
    );
    for n in 0..100_000 {
        schedule.request(shard(n));
    }

    let mut time = now;
    let mut count = 0;
    loop {
        match schedule.poll(time) {
            Turn::Grant(id) => {
                count += 1;
                schedule.used(time, id);
            }
            Turn::Wait(Some(at)) => time = at,
            Turn::Wait(None) => break,
        }
    }
    assert_eq!((count, time), (100_000, now + WINDOW * (100_000 / 16 - 1)));
}

/// One step of a random history.
#[derive(Clone, Copy, Debug)]
enum Step {
    Request(u32),
    /// Drop the n-th known ticket, whether it is queued or held.
    Leave(usize),
    /// Use the n-th ticket that is granted.
    Use(usize),
    /// Let this many milliseconds pass.
    Pass(u64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (0..12_u32).prop_map(Step::Request),
        1 => (0..64_usize).prop_map(Step::Leave),
        4 => (0..64_usize).prop_map(Step::Use),
        3 => (0..6_000_u64).prop_map(Step::Pass),
    ];
    prop::collection::vec(step, 1..60)
}

/// What an outside observer sees of a history.
struct Observer {
    now: Instant,
    keys: NonZeroU32,
    left: u32,
    /// Tickets in the queue, in the order of their requests.
    queued: Vec<(TicketId, ShardId)>,
    held: Vec<(TicketId, ShardId)>,
    last_use: HashMap<u32, Instant>,
}

impl Observer {
    fn key(&self, shard: ShardId) -> u32 {
        shard.rate_limit_key(self.keys)
    }

    /// Takes every grant, and checks it against the rules.
    fn check_grants(&mut self, schedule: &mut Schedule) -> Result<Option<Instant>, TestCaseError> {
        loop {
            match schedule.poll(self.now) {
                Turn::Wait(at) => return Ok(at),
                Turn::Grant(id) => {
                    let at = self.queued.iter().position(|(queued, _)| *queued == id);
                    prop_assert!(at.is_some(), "granted twice, or after it left");

                    let (_, shard) = self.queued.remove(at.unwrap());
                    let key = self.key(shard);
                    let earlier = self.queued[..at.unwrap()]
                        .iter()
                        .any(|(_, other)| self.key(*other) == key);
                    prop_assert!(!earlier, "overtook another ticket of its key");

                    prop_assert!(
                        !self.held.iter().any(|(_, other)| self.key(*other) == key),
                        "two permits of a key"
                    );
                    prop_assert!(
                        self.held.len() < self.left as usize,
                        "more than the day allows"
                    );
                    if let Some(last) = self.last_use.get(&key) {
                        prop_assert!(
                            self.now >= *last + WINDOW,
                            "two IDENTIFYs of a key within the window"
                        );
                    }
                    self.held.push((id, shard));
                }
            }
        }
    }

    fn step(&mut self, schedule: &mut Schedule, step: Step) {
        match step {
            Step::Request(number) => self
                .queued
                .push((schedule.request(shard(number)), shard(number))),
            Step::Leave(n) => {
                let known = self.queued.len() + self.held.len();
                if let Some(at) = n.checked_rem(known) {
                    let (id, _) = match at.checked_sub(self.queued.len()) {
                        Some(held) => self.held.remove(held),
                        None => self.queued.remove(at),
                    };
                    schedule.leave(self.now, id);
                }
            }
            Step::Use(n) => {
                if let Some(at) = n.checked_rem(self.held.len()) {
                    let (id, shard) = self.held.remove(at);
                    schedule.used(self.now, id);
                    self.left -= 1;
                    self.last_use.insert(self.key(shard), self.now);
                }
            }
            Step::Pass(millis) => self.now += Duration::from_millis(millis),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(10_000))]

    /// Never two IDENTIFYs of a key in a window, in order, never above the daily total, and no
    /// shard starves.
    #[test]
    fn every_history_keeps_the_rules(steps in steps(), keys in 1..5_u32, left in 0..40_u32) {
        let start = Instant::now();
        let reset = start + DAY + GUARD;
        let limits = Limits { total: 1000, remaining: left, reset_after: DAY, ..limits(keys, left) };
        let mut schedule = Schedule::new(start, limits, rules(ReleaseAfter::Identify));
        let mut seen = Observer {
            now: start,
            keys: NonZeroU32::new(keys).unwrap(),
            // `reset_after` is not zero, so the schedule begins with `remaining`.
            left,
            queued: Vec::new(),
            held: Vec::new(),
            last_use: HashMap::new(),
        };

        for step in steps {
            seen.step(&mut schedule, step);
            seen.check_grants(&mut schedule)?;
        }

        // From here on every granted ticket is used: the queue must drain, with waits only as long
        // as the schedule requires.
        while !seen.queued.is_empty() || !seen.held.is_empty() {
            while let Some((id, shard)) = seen.held.pop() {
                schedule.used(seen.now, id);
                seen.left -= 1;
                let key = seen.key(shard);
                seen.last_use.insert(key, seen.now);
            }
            let wait = seen.check_grants(&mut schedule)?;
            if seen.held.is_empty() && !seen.queued.is_empty() {
                prop_assert!(wait.is_some(), "a shard waits and is never woken");
                prop_assert!(wait.unwrap() > seen.now, "a spin");
                seen.now = wait.unwrap();
                if seen.now >= reset && seen.left == 0 {
                    seen.left = 1000;
                }
            }
        }
    }
}
