//! Measures delivery from a shard's thread to the program, without sockets: to one stream, and to
//! handlers on several threads.

mod common;

use std::sync::atomic::{AtomicIsize, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use common::memory::Memory;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use threadcord::ShardManager;

const SHARDS: u32 = 4;

/// The number of events per shard and round.
const EVENTS: usize = 5000;

/// The number of events per round if handling each takes 1 ms.
const SLOW: usize = 1000;

const ALL: usize = EVENTS * SHARDS as usize;

fn delivery(criterion: &mut Criterion) {
    let memory = Memory::new();
    let mut group = criterion.benchmark_group("delivery");
    group
        .throughput(Throughput::Elements(ALL as u64))
        .sample_size(10);
    let manager = memory.start(SHARDS);
    group.bench_function("one loop", |bencher| {
        bencher.iter(|| {
            memory.say(&manager, EVENTS);
            manager
                .events()
                .filter(|event| event.dispatch().is_some())
                .take(ALL)
                .count()
        });
    });
    drop(manager);
    for workers in [1, 2, 4] {
        let memory = Memory::new();
        let manager = memory.start(SHARDS);
        group.bench_function(format!("{workers} workers"), |bencher| {
            bencher.iter_custom(|rounds| {
                (0..rounds)
                    .map(|_| with_workers(&memory, &manager, workers))
                    .sum()
            });
        });
    }
    group.finish();

    let mut group = criterion.benchmark_group("handlers that wait 1 ms, one shard");
    group
        .throughput(Throughput::Elements(SLOW as u64))
        .sample_size(10);
    for threads in [1, 16] {
        let memory = Memory::new();
        let manager = memory.start(1);
        group.bench_function(format!("{threads} threads"), |bencher| {
            bencher.iter(|| with_pool(&memory, &manager, threads));
        });
    }
    group.finish();
}

/// Handles events on several threads, each with its own clone of the stream.
fn with_pool(memory: &Memory, manager: &ShardManager, threads: usize) {
    memory.say(manager, SLOW);
    // READY is counted as well in the first round, so that this may end at -1.
    let left = AtomicIsize::new(SLOW.cast_signed());
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                let events = manager.events();
                while left.load(Ordering::Relaxed) > 0 {
                    let event = events.recv_timeout(Duration::from_millis(1));
                    if event.is_ok_and(|event| event.dispatch().is_some()) {
                        thread::sleep(Duration::from_millis(1));
                        left.fetch_sub(1, Ordering::Relaxed);
                    }
                }
            });
        }
    });
}

fn with_workers(memory: &Memory, manager: &ShardManager, workers: usize) -> Duration {
    let handled = AtomicUsize::new(0);
    let start = Instant::now();
    memory.say(manager, EVENTS);
    let run = manager.run(workers, |handle, event| {
        if event.dispatch().is_some() && handled.fetch_add(1, Ordering::Relaxed) + 1 == ALL {
            handle.stop();
        }
    });
    run.expect("the workers start");
    start.elapsed()
}

criterion_group!(benches, delivery);
criterion_main!(benches);
