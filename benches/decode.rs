//! Reading the data of messages: into a small struct that borrows, into one that owns, as
//! `serde_json::Value`, and typed.

mod common;

use std::borrow::Cow;
use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use serde::Deserialize;
use serde_json::Value;
use threadcord::Dispatch;

#[derive(Deserialize)]
struct Borrowed<'a> {
    channel_id: &'a str,
    #[serde(borrow)]
    content: Cow<'a, str>,
}

#[derive(Deserialize)]
struct Owned {
    channel_id: String,
    content: String,
}

fn decode(criterion: &mut Criterion) {
    let mut messages = common::dispatches();
    messages.retain(|dispatch| dispatch.name() == "MESSAGE_CREATE");
    println!(
        "{} messages, {} bytes each",
        messages.len(),
        common::mean(messages.iter().map(|m| m.data().len()))
    );
    let mut group = criterion.benchmark_group("decode");
    group.throughput(Throughput::Elements(messages.len() as u64));
    let borrowed = |dispatch: &Dispatch| {
        dispatch
            .decode::<Borrowed<'_>>()
            .is_ok_and(|message| !message.channel_id.is_empty() && !message.content.is_empty())
    };
    let owned = |dispatch: &Dispatch| {
        dispatch
            .decode::<Owned>()
            .is_ok_and(|message| !message.channel_id.is_empty() && !message.content.is_empty())
    };
    let value = |dispatch: &Dispatch| {
        dispatch.decode::<Value>().is_ok_and(|message| {
            message["channel_id"].is_string() && message["content"].is_string()
        })
    };
    group.bench_function("a struct that borrows", |bencher| {
        bencher.iter(|| {
            black_box(&messages)
                .iter()
                .filter(|message| borrowed(message))
                .count()
        });
    });
    group.bench_function("a struct that owns", |bencher| {
        bencher.iter(|| {
            black_box(&messages)
                .iter()
                .filter(|message| owned(message))
                .count()
        });
    });
    group.bench_function("serde_json::Value", |bencher| {
        bencher.iter(|| {
            black_box(&messages)
                .iter()
                .filter(|message| value(message))
                .count()
        });
    });
    #[cfg(feature = "model")]
    group.bench_function("typed, with twilight-model", |bencher| {
        bencher.iter(|| {
            black_box(&messages)
                .iter()
                .filter(|message| message.typed().is_ok())
                .count()
        });
    });
    group.finish();
}

criterion_group!(benches, decode);
criterion_main!(benches);
