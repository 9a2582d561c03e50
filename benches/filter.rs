//! Measures how long it takes to check whether an event passes a filter.

mod common;

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use threadcord::{Dispatch, EventFilter};

fn filter(criterion: &mut Criterion) {
    let dispatches = common::dispatches();
    let Ok(filter) = EventFilter::except(["PRESENCE_UPDATE", "TYPING_START"]) else {
        return;
    };
    let mut group = criterion.benchmark_group("filter");
    group.throughput(Throughput::Elements(dispatches.len() as u64));
    group.bench_function("passes", |bencher| {
        bencher.iter(|| {
            dispatches
                .iter()
                .map(Dispatch::name)
                .filter(|name| black_box(filter).passes(name))
                .count()
        });
    });
    group.finish();
}

criterion_group!(benches, filter);
criterion_main!(benches);
