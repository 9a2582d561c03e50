//! Checks of what every identify limiter must do, for the tests of an implementation.
//!
//! Each function panics if the limiter breaks the contract, and names the broken rule. Each takes a
//! few windows at most. [`grants_once`] uses [`ShardId::ONE`]; the other functions use the shards
//! that they are given.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::{IdentifyLimiter, LimitError, Permit, Ticket};
use crate::shard_id::ShardId;

/// How long a limiter may take for what it can do at once.
const SOON: Duration = Duration::from_secs(10);

/// Checks that a ticket is granted once, calls its waker once, and gives one permit.
///
/// # Panics
/// If the limiter breaks this rule.
pub fn grants_once(limiter: &dyn IdentifyLimiter) {
    let wakes = Arc::new(AtomicU32::new(0));
    let woken = Arc::clone(&wakes);
    let mut ticket = limiter.request(
        ShardId::ONE,
        Box::new(move || {
            woken.fetch_add(1, Ordering::SeqCst);
        }),
    );

    let permit = eventually(&mut ticket);
    assert_eq!(
        ticket.poll().err(),
        Some(LimitError::Closed),
        "a ticket gives one permit"
    );
    permit.exit();
    drop(ticket);

    let deadline = Instant::now() + SOON;
    while wakes.load(Ordering::SeqCst) == 0 && Instant::now() < deadline {
        thread::yield_now();
    }
    assert_eq!(
        wakes.load(Ordering::SeqCst),
        1,
        "a grant calls the waker once"
    );
}

/// Checks that an unused permit frees its slot at once, and that a ticket that leaves the queue
/// does not delay the tickets behind it.
///
/// `a` and `b` are two shards of one key.
///
/// # Panics
/// If the limiter breaks this rule.
pub fn leaving_frees_the_slot(limiter: &dyn IdentifyLimiter, a: ShardId, b: ShardId) {
    let first = eventually(&mut limiter.request(a, Box::new(|| {})));
    let left = limiter.request(b, Box::new(|| {}));
    let mut waiting = limiter.request(b, Box::new(|| {}));
    drop(left);
    assert!(
        waiting.poll().expect("not refused").is_none(),
        "one permit of a key at a time"
    );
    drop(first);
    eventually(&mut waiting).exit();
}

/// Checks that used permits of one key are a window apart, and are granted in the order of the
/// requests.
///
/// `a` and `b` are two shards of one key whose window is at least `window`.
///
/// # Panics
/// If the limiter breaks this rule.
pub fn windows_are_kept(limiter: &dyn IdentifyLimiter, a: ShardId, b: ShardId, window: Duration) {
    let mut tickets: Vec<Ticket> = [a, b, a]
        .into_iter()
        .map(|shard| limiter.request(shard, Box::new(|| {})))
        .collect();

    let mut last: Option<Instant> = None;
    while !tickets.is_empty() {
        let mut next = tickets.remove(0);
        let mut permit = eventually(&mut next);
        let now = Instant::now();
        for later in &mut tickets {
            assert!(
                later.poll().expect("not refused").is_none(),
                "first come first served within a key"
            );
        }

        permit.used();
        if let Some(last) = last {
            assert!(
                now - last >= window,
                "only {:?} between two IDENTIFYs of a key",
                now - last
            );
        }
        last = Some(now);
    }
}

/// Checks that two limiters that share one limit, like those of two processes, together keep its
/// window.
///
/// `x` and `y` are two shards of one key whose window is at least `window`. Shard `x` identifies
/// `times` times through limiter `a`, and shard `y` as often through limiter `b`.
///
/// # Panics
/// If the limiters break this rule.
pub fn windows_are_shared(
    (a, x): (&dyn IdentifyLimiter, ShardId),
    (b, y): (&dyn IdentifyLimiter, ShardId),
    times: usize,
    window: Duration,
) {
    let sent = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for (limiter, shard) in [(a, x), (b, y)] {
            let sent = &sent;
            scope.spawn(move || {
                for _ in 0..times {
                    let ticket = limiter.request(shard, Box::new(|| {}));
                    let deadline = Instant::now() + SOON;
                    let mut permit = ticket.wait(Some(deadline)).expect("a turn comes soon");
                    sent.lock().push(Instant::now());
                    permit.used();
                }
            });
        }
    });

    let mut sent = sent.into_inner();
    sent.sort_unstable();
    assert_eq!(sent.len(), 2 * times);
    for pair in sent.windows(2) {
        let apart = pair[1] - pair[0];
        assert!(
            apart >= window,
            "only {apart:?} between two IDENTIFYs of a key"
        );
    }
}

/// Checks that shards of different keys do not wait for each other.
///
/// `shards` are shards of different keys.
///
/// # Panics
/// If the limiter breaks this rule.
pub fn keys_are_independent(limiter: &dyn IdentifyLimiter, shards: &[ShardId]) {
    let permits: Vec<Permit> = shards
        .iter()
        .map(|shard| eventually(&mut limiter.request(*shard, Box::new(|| {}))))
        .collect();
    assert_eq!(permits.len(), shards.len());
}

fn eventually(ticket: &mut Ticket) -> Permit {
    let deadline = Instant::now() + SOON;
    loop {
        if let Some(permit) = ticket.poll().expect("not refused") {
            return permit;
        }
        assert!(Instant::now() < deadline, "a free slot is granted soon");
        thread::sleep(Duration::from_micros(200));
    }
}
