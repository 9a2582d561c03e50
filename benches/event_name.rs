//! Measures how long it takes to convert the text of an event's name into an `EventName`.

mod common;

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use threadcord::{Dispatch, EventName};

fn event_name(criterion: &mut Criterion) {
    let names: Vec<String> = common::dispatches()
        .iter()
        .map(|dispatch| dispatch.name().to_string())
        .collect();
    let mut group = criterion.benchmark_group("event_name");
    group.throughput(Throughput::Elements(names.len() as u64));
    group.bench_function("interned", |bencher| {
        bencher.iter(|| {
            names
                .iter()
                .map(|name| EventName::from(black_box(&**name)))
                .filter(EventName::is_documented)
                .count()
        });
    });

    group.bench_function("a String", |bencher| {
        bencher.iter(|| {
            names
                .iter()
                .map(|name| String::from(black_box(&**name)))
                .filter(|name| !name.is_empty())
                .count()
        });
    });

    // Each documented name once: the usual mix repeats few names and lacks others.
    let all: Vec<String> = EventName::documented()
        .map(|name| name.to_string())
        .collect();
    group.throughput(Throughput::Elements(all.len() as u64));
    group.bench_function("interned, each name once", |bencher| {
        bencher.iter(|| {
            all.iter()
                .map(|name| EventName::from(black_box(&**name)))
                .filter(EventName::is_documented)
                .count()
        });
    });
    group.finish();
}

/// Reads whole events, for comparison.
fn envelope(criterion: &mut Criterion) {
    let events = common::events();
    println!(
        "{} events, {} bytes each",
        events.len(),
        common::mean(events.iter().map(String::len))
    );
    let mut group = criterion.benchmark_group("envelope");
    group.throughput(Throughput::Elements(events.len() as u64));
    group.bench_function("read", |bencher| {
        bencher.iter_batched(
            || events.clone(),
            |events| {
                events
                    .into_iter()
                    .map(|json| Dispatch::from_json(json).is_ok())
                    .filter(|ok| *ok)
                    .count()
            },
            criterion::BatchSize::LargeInput,
        );
    });
    group.finish();
}

criterion_group!(benches, event_name, envelope);
criterion_main!(benches);
