//! Limiters: the contract that each must keep, and what `SessionLimit` does for callers without a
//! shard.

mod common;

use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use common::{PATIENCE, config, counters_of, eventually, gateway, ready, shard};
use parking_lot::Mutex;
use threadcord::limit::{
    Granter, IdentifyLimiter, LimitError, Limits, ReleaseAfter, Report, SessionLimit, Ticket,
    Unlimited, Wake, contract,
};
use threadcord::sim::{Fault, Gateway, Target};
use threadcord::store::FileStore;
use threadcord::{Plan, ShardId, ShardManager, ShardState, StopReason, Timing};

fn limits(keys: u32) -> Limits {
    Limits {
        max_concurrency: NonZeroU32::new(keys).unwrap(),
        ..Limits::default()
    }
}

/// Windows of exactly [`WINDOW`], so that the test notices a window that is too short.
fn timing() -> Timing {
    let mut timing = Timing::scaled(0.02);
    timing.guard = Duration::ZERO;
    timing
}

fn scaled(keys: u32) -> SessionLimit {
    SessionLimit::with_timing(limits(keys), &timing(), ReleaseAfter::Identify)
}

const WINDOW: Duration = Duration::from_millis(100);

/// A limiter of one key, as a user of this crate might write it: no window, one permit at a time.
#[derive(Clone, Default)]
struct OneByOne(Arc<Mutex<Queue>>);

#[derive(Default)]
struct Queue {
    busy: Option<u64>,
    waiting: Vec<(u64, Granter)>,
    next: u64,
}

impl OneByOne {
    fn grant_next(&self) {
        let next = {
            let mut queue = self.0.lock();
            if queue.busy.is_some() || queue.waiting.is_empty() {
                return;
            }
            let (id, granter) = queue.waiting.remove(0);
            queue.busy = Some(id);
            granter
        };
        if !next.grant() {
            self.0.lock().busy = None;
            self.grant_next();
        }
    }
}

impl IdentifyLimiter for OneByOne {
    fn request(&self, _shard: ShardId, wake: Wake) -> Ticket {
        let limiter = self.clone();
        let id = {
            let mut queue = self.0.lock();
            queue.next += 1;
            queue.next
        };

        let (ticket, granter) = Ticket::pair(wake, move |report| {
            if report == Report::Left {
                let mut queue = limiter.0.lock();
                queue.waiting.retain(|(waiting, _)| *waiting != id);
                if queue.busy == Some(id) {
                    queue.busy = None;
                }
                drop(queue);
                limiter.grant_next();
            }
        });
        self.0.lock().waiting.push((id, granter));
        self.grant_next();
        ticket
    }
}

#[test]
fn every_limiter_keeps_the_contract() {
    let session_limit = scaled(1);
    let ready_limit = SessionLimit::with_timing(limits(1), &timing(), ReleaseAfter::Ready);
    let one_by_one = OneByOne::default();
    for limiter in [
        &session_limit as &dyn IdentifyLimiter,
        &ready_limit,
        &one_by_one,
        &Unlimited,
    ] {
        contract::grants_once(limiter);
        contract::keys_are_independent(limiter, &[shard(0, 2)]);
    }

    for limiter in [
        &session_limit as &dyn IdentifyLimiter,
        &ready_limit,
        &one_by_one,
    ] {
        contract::leaving_frees_the_slot(limiter, shard(0, 2), shard(1, 2));
    }

    contract::windows_are_kept(&session_limit, shard(0, 2), shard(1, 2), WINDOW);
    let sides = [0, 1].map(|number| (&session_limit as &dyn IdentifyLimiter, shard(number, 2)));
    contract::windows_are_shared(sides[0], sides[1], 5, WINDOW);
    contract::windows_are_kept(&ready_limit, shard(0, 2), shard(1, 2), WINDOW);
    contract::windows_are_kept(&one_by_one, shard(0, 2), shard(1, 2), Duration::ZERO);
    let keys = scaled(4);
    contract::keys_are_independent(&keys, &[shard(0, 4), shard(1, 4), shard(2, 4), shard(3, 4)]);
    contract::windows_are_kept(&keys, shard(1, 8), shard(5, 8), WINDOW);
    contract::keys_are_independent(&Unlimited, &[shard(0, 4), shard(1, 4), shard(0, 4)]);
}

#[test]
fn shards_work_with_a_custom_limiter() {
    let gateway = gateway().shards(3).max_concurrency(3).start().unwrap();
    let manager = ready(config(&gateway).limiter(Arc::new(OneByOne::default())));
    assert_eq!(manager.handle().shards().len(), 3);
    gateway.assert_lawful();
}

#[test]
fn a_caller_may_wait_try_or_time_out() {
    let limit = scaled(1);
    let mut first = limit.enter(ShardId::ONE).unwrap();
    assert!(limit.try_enter(ShardId::ONE).unwrap().is_none());
    assert_eq!(
        limit
            .enter_timeout(ShardId::ONE, Duration::from_millis(5))
            .unwrap_err(),
        LimitError::TimedOut
    );
    assert_eq!(limit.waiting(), 0, "who gives up leaves the queue");
    let used = Instant::now();
    first.used();
    drop(first);
    limit.enter(ShardId::ONE).unwrap().exit();
    assert!(used.elapsed() >= WINDOW);
    assert!(
        limit.try_enter(ShardId::ONE).unwrap().is_some(),
        "what was not used is free at once"
    );
    let used = Instant::now();
    limit
        .enter(ShardId::ONE)
        .unwrap()
        .exit_after(Duration::from_millis(20));
    drop(limit.enter_timeout(ShardId::ONE, PATIENCE).unwrap());
    assert!(used.elapsed() >= Duration::from_millis(20) && limit.remaining() == 998);
}

#[test]
fn a_panic_while_sending_counts_as_used() {
    let limit = scaled(1);
    let mut permit = limit.enter(ShardId::ONE).unwrap();
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        permit.spend(|| panic!("on purpose"))
    }));
    assert!(result.is_err());
    drop(permit);
    assert!(limit.try_enter(ShardId::ONE).unwrap().is_none());
    assert_eq!(limit.remaining(), 999);
}

#[test]
fn threads_get_permits_in_order_one_window_apart() {
    let limit = Arc::new(scaled(2));
    let entered = Arc::new(Mutex::new(Vec::new()));
    let mut threads = Vec::new();
    for number in 0..8 {
        let (limit, entered) = (Arc::clone(&limit), Arc::clone(&entered));
        threads.push(thread::spawn({
            let limit = Arc::clone(&limit);
            move || {
                let mut permit = limit.enter(shard(number, 8)).unwrap();
                permit.spend(|| entered.lock().push((number, Instant::now())));
            }
        }));
        // The next thread starts when this one waits, or has its permit.
        let seen = Arc::clone(&limit);
        eventually("it takes its place", || {
            seen.waiting() + (1000 - seen.remaining() as usize) > number as usize
        });
    }

    for thread in threads {
        thread.join().unwrap();
    }

    let entered = entered.lock();
    for key in 0..2 {
        let of_key: Vec<_> = entered
            .iter()
            .filter(|(number, _)| number % 2 == key)
            .collect();
        assert!(of_key.is_sorted_by_key(|(number, _)| *number), "{of_key:?}");
        for pair in of_key.windows(2) {
            assert!(pair[1].1 - pair[0].1 >= WINDOW, "{of_key:?}");
        }
    }
}

#[test]
fn close_wakes_everyone() {
    let limit = Arc::new(scaled(1));
    let held = limit.enter(ShardId::ONE).unwrap();
    let refused = Arc::new(AtomicUsize::new(0));
    let threads: Vec<_> = (0..50)
        .map(|_| {
            let (limit, refused) = (Arc::clone(&limit), Arc::clone(&refused));
            thread::spawn(move || {
                assert_eq!(limit.enter(ShardId::ONE).unwrap_err(), LimitError::Closed);
                refused.fetch_add(1, Ordering::SeqCst);
            })
        })
        .collect();
    eventually("all wait", || limit.waiting() == 50);
    limit.close();

    for thread in threads {
        thread.join().unwrap();
    }

    assert_eq!(refused.load(Ordering::SeqCst), 50);
    assert_eq!(limit.enter(ShardId::ONE).unwrap_err(), LimitError::Closed);
    drop(held);
}

#[test]
fn with_no_identifies_remaining_it_waits_for_the_reset() {
    let reset_after = Duration::from_millis(300);
    let limits = Limits {
        remaining: 0,
        reset_after,
        ..Limits::default()
    };

    let limit = SessionLimit::with_timing(limits, &timing(), ReleaseAfter::Identify);
    let start = Instant::now();
    limit.enter(ShardId::ONE).unwrap().exit();
    assert!(start.elapsed() >= reset_after);
    assert_eq!(limit.remaining(), 1000);
    let gateway = gateway()
        .session_starts(1000, 0, reset_after)
        .start()
        .unwrap();
    let manager = ready(config(&gateway));
    drop(manager);
    gateway.assert_lawful();
}

#[test]
fn new_values_let_waiters_in() {
    let limit = Arc::new(SessionLimit::new(Limits {
        remaining: 0,
        reset_after: Duration::from_secs(3600),
        ..limits(1)
    }));
    let waiter = {
        let limit = Arc::clone(&limit);
        thread::spawn(move || limit.enter(ShardId::ONE).map(drop))
    };
    eventually("it waits", || limit.waiting() == 1);
    limit.update(limits(1), Instant::now());
    waiter.join().unwrap().unwrap();
}

#[test]
fn only_discord_sets_the_limits_of_a_limiter() {
    let limit = Arc::new(SessionLimit::with_timing(
        Limits {
            remaining: 3,
            reset_after: PATIENCE,
            ..limits(1)
        },
        &timing(),
        ReleaseAfter::Identify,
    ));
    let gateway = gateway().start().unwrap();
    let shared = || {
        config(&gateway)
            .plan(Plan::Total(1))
            .limiter(Arc::clone(&limit) as _)
    };

    drop(ready(shared().gateway_url(gateway.url())));
    assert_eq!(limit.remaining(), 2, "Discord was not asked");
    drop(ready(shared()));
    assert_eq!(
        limit.remaining(),
        998,
        "/gateway/bot says 999, and one was used"
    );
}

#[test]
fn a_closed_limiter_stops_shards_with_a_reason() {
    let limit = Arc::new(scaled(1));
    limit.close();
    let gateway = gateway().start().unwrap();
    let manager = ShardManager::start(config(&gateway).limiter(limit)).unwrap();
    eventually("it stops", || {
        manager
            .handle()
            .shard(ShardId::ONE)
            .is_some_and(|s| s.status().state == ShardState::Stopped(StopReason::LimiterClosed))
    });
}

#[test]
fn a_connection_that_dies_in_the_queue_leaks_no_permit() {
    let limit = Arc::new(scaled(1));
    let gateway = gateway().shards(2).start().unwrap();
    let held = limit.enter(shard(0, 2)).unwrap();
    let manager = ShardManager::start(
        config(&gateway)
            .plan(Plan::Total(2))
            .limiter(Arc::clone(&limit) as _),
    )
    .unwrap();
    eventually("both wait for their turn", || limit.waiting() == 2);

    // They have not identified, so the gateway sees only their connections.
    gateway.inject(Target::All, Fault::Cut);
    eventually("both are away", || {
        manager
            .handle()
            .shards()
            .iter()
            .all(|shard| shard.counters().connects >= 2)
            && limit.waiting() == 2
    });
    held.exit();
    manager.wait_ready(PATIENCE).unwrap();
    assert_eq!((limit.remaining(), limit.waiting()), (998, 0));
    gateway.assert_lawful();
}

#[test]
fn shutdown_in_the_queue_is_prompt() {
    let limit = Arc::new(scaled(1));
    let held = limit.enter(ShardId::ONE).unwrap();
    let gateway = gateway().start().unwrap();
    let manager = ShardManager::start(config(&gateway).limiter(Arc::clone(&limit) as _)).unwrap();
    eventually("it waits for its turn", || limit.waiting() == 1);
    manager.close();
    assert_eq!(limit.waiting(), 0);
    drop(held);
}

/// Fails a number of times before it grants a permit.
struct Flaky(AtomicUsize);

impl IdentifyLimiter for Flaky {
    fn request(&self, _: ShardId, wake: Wake) -> Ticket {
        let (ticket, granter) = Ticket::pair(wake, |_| {});
        let left = self.0.load(Ordering::SeqCst);
        if left > 0 {
            self.0.store(left - 1, Ordering::SeqCst);
            granter.refuse(LimitError::failed("no answer"));
        } else {
            assert!(granter.grant());
        }
        ticket
    }
}

#[test]
fn a_limiter_that_fails_temporarily_is_retried() {
    let gateway = gateway().start().unwrap();
    let limiter = Arc::new(Flaky(AtomicUsize::new(3)));
    let manager = ready(config(&gateway).limiter(limiter.clone()));
    assert_eq!(limiter.0.load(Ordering::SeqCst), 0);
    let counters = counters_of(&manager, ShardId::ONE);
    assert_eq!((counters.connects, counters.identifies), (1, 1));
    gateway.assert_lawful();
}

#[test]
fn a_process_that_restarts_at_once_keeps_to_the_window() {
    // A window of a second.
    let scale = 0.2;
    let gateway = Gateway::builder().time_scale(scale).start().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let settings = || {
        let mut settings = config(&gateway)
            .session_store(FileStore::new(folder.path().join("sessions.json")))
            .timing(Timing::scaled(scale));
        settings.timing.handlers_timeout = Duration::ZERO;
        settings
    };

    for _ in 0..3 {
        // Closed, so that there is no session to resume.
        let manager = ready(settings());
        manager.close();
    }
    gateway.assert_lawful();
}
