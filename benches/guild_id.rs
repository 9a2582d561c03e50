//! Measures reading an event's guild id without parsing the whole event, compared with parsing it.

mod common;

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use serde::Deserialize;
use serde_json::Value;
use threadcord::Dispatch;

/// What a program would write without the library's method.
#[derive(Deserialize)]
struct Guild {
    guild_id: Option<String>,
}

fn guild_id(criterion: &mut Criterion) {
    let dispatches = common::dispatches();
    let of = |dispatch: &Dispatch| dispatch.guild_id();
    let with_serde = |dispatch: &Dispatch| dispatch.decode::<Guild>().ok()?.guild_id;
    let with_value = |dispatch: &Dispatch| {
        let data: Value = dispatch.decode().ok()?;
        data["guild_id"].as_str().map(str::to_owned)
    };
    let mut group = criterion.benchmark_group("guild_id");
    group.throughput(Throughput::Elements(dispatches.len() as u64));
    group.bench_function("guild_id()", |bencher| {
        bencher.iter(|| black_box(&dispatches).iter().filter_map(of).count());
    });
    group.bench_function("a struct with that field", |bencher| {
        bencher.iter(|| black_box(&dispatches).iter().filter_map(with_serde).count());
    });
    group.bench_function("serde_json::Value", |bencher| {
        bencher.iter(|| black_box(&dispatches).iter().filter_map(with_value).count());
    });
    group.finish();
}

criterion_group!(benches, guild_id);
criterion_main!(benches);
