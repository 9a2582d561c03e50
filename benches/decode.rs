//! Measures decoding the data of messages: into a small struct that borrows, into one that owns,
//! into `serde_json::Value`, and into the typed model.

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
    let mut measure = |name, is_decoded: fn(&Dispatch) -> bool| {
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                black_box(&messages)
                    .iter()
                    .filter(|message| is_decoded(message))
                    .count()
            });
        });
    };

    measure("a struct that borrows", |dispatch| {
        dispatch
            .decode::<Borrowed<'_>>()
            .is_ok_and(|message| !message.channel_id.is_empty() && !message.content.is_empty())
    });
    measure("a struct that owns", |dispatch| {
        dispatch
            .decode::<Owned>()
            .is_ok_and(|message| !message.channel_id.is_empty() && !message.content.is_empty())
    });
    measure("serde_json::Value", |dispatch| {
        dispatch.decode::<Value>().is_ok_and(|message| {
            message["channel_id"].is_string() && message["content"].is_string()
        })
    });
    #[cfg(feature = "model")]
    measure("typed, with twilight-model", |dispatch| {
        dispatch.typed().is_ok()
    });
    group.finish();
}

criterion_group!(benches, decode);
criterion_main!(benches);
