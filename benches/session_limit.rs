//! Measures the identify limit: the cost of a grant with a growing number of waiting tickets, and
//! how many threads a release wakes.

#![allow(clippy::cast_precision_loss, reason = "figures are only printed")]

mod common;

use std::num::NonZeroU32;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use common::probe;
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use threadcord::limit::{IdentifyLimiter, Limits, ReleaseAfter, SessionLimit, Ticket};
use threadcord::{ShardId, Timing};

const KEYS: u32 = 16;

/// The number of threads that wait in `enter`.
const WAITERS: u32 = 1000;

/// A limit with windows of length zero: a slot is free as soon as its IDENTIFY is sent.
fn limit() -> SessionLimit {
    let mut timing = Timing::scaled(0.0);
    timing.guard = Duration::ZERO;
    let max_concurrency = NonZeroU32::new(KEYS).expect("some");
    let limits = Limits {
        total: u32::MAX,
        remaining: u32::MAX,
        max_concurrency,
        ..Limits::default()
    };
    SessionLimit::with_timing(limits, &timing, ReleaseAfter::Identify)
}

fn tickets(limit: &SessionLimit, count: u32) -> Vec<Ticket> {
    let shard = |number| ShardId::new(number, count).expect("a shard");
    (0..count)
        .map(|number| limit.request(shard(number), Box::new(|| ())))
        .collect()
}

/// Takes the permit of each ticket, marks it as used, and drops the ticket.
fn grant_all(tickets: Vec<Ticket>) {
    for mut ticket in tickets {
        let mut permit = ticket
            .poll()
            .expect("the limit is open")
            .expect("its turn has come");
        permit.used();
    }
}

fn session_limit(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("session_limit");
    group.sample_size(10);
    for count in [1_000, 10_000, 100_000] {
        let before = probe::resident();
        let limit = limit();
        let waiting = tickets(&limit, count);
        println!(
            "{count} tickets: {} KiB",
            probe::resident().saturating_sub(before)
        );
        grant_all(waiting);
        group.throughput(Throughput::Elements(u64::from(count)));
        group.bench_function(format!("request, {count} on {KEYS} keys"), |bencher| {
            bencher.iter_batched(
                self::limit,
                |limit| (tickets(&limit, count), limit),
                BatchSize::LargeInput,
            );
        });
        group.bench_function(format!("grant, {count} on {KEYS} keys"), |bencher| {
            let new = || (tickets(&limit, count), ());
            bencher.iter_batched(
                new,
                |(tickets, ())| grant_all(tickets),
                BatchSize::LargeInput,
            );
        });
    }

    group.finish();
    wake_one();
}

/// Measures how often each of a thousand waiting threads wakes up until it has its turn. The result
/// is 1 if a release wakes only one thread.
fn wake_one() {
    let limit = Arc::new(limit());
    let shard = ShardId::new(0, 1).expect("a shard");
    let mut held = limit.enter(shard).expect("no other shard holds it");
    let waiter = |_| {
        let limit = Arc::clone(&limit);
        let wait = move || {
            let before = probe::own_switches();
            limit.enter(shard).expect("it is open").used();
            probe::own_switches() - before
        };
        thread::Builder::new()
            .stack_size(128 << 10)
            .spawn(wait)
            .expect("a thread")
    };

    let threads: Vec<_> = (0..WAITERS).map(waiter).collect();
    while limit.waiting() < WAITERS as usize {
        thread::yield_now();
    }

    // All threads are asleep now, so that every wake-up counted below is caused by a release.
    thread::sleep(Duration::from_millis(200));
    let start = Instant::now();
    held.used();
    drop(held);
    let wakes: u64 = threads
        .into_iter()
        .map(|thread| thread.join().expect("it does not panic"))
        .sum();
    let took = start.elapsed().as_secs_f64() * 1e6 / f64::from(WAITERS);
    println!(
        "{WAITERS} threads in `enter`: {:.2} wake-ups each, {took:.1} µs a release",
        wakes as f64 / f64::from(WAITERS)
    );
}

criterion_group!(benches, session_limit);
criterion_main!(benches);
