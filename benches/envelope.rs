//! Measures reading the envelope of a payload: the library's reader, compared with `serde_json` and
//! a `RawValue` for `d`.

mod common;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use serde::Deserialize;
use serde_json::value::RawValue;
use threadcord::protocol::Payload;

/// What a program would write without the library's reader.
#[derive(Deserialize)]
struct Envelope<'a> {
    op: u64,
    s: Option<u64>,
    t: Option<&'a str>,
    #[serde(borrow)]
    d: Option<&'a RawValue>,
}

fn with_serde(bytes: &[u8]) -> bool {
    let envelope = serde_json::from_slice::<Envelope<'_>>(bytes);
    envelope.is_ok_and(|e| e.op == 0 && e.s.is_some() && e.t.is_some() && e.d.is_some())
}

fn envelope(criterion: &mut Criterion) {
    let events = common::events();
    let usual: Vec<Vec<u8>> = events
        .iter()
        .map(|event| event.clone().into_bytes())
        .collect();

    // The same events with `d` first, so that the fields cannot be read from the first bytes.
    let odd = events
        .iter()
        .filter_map(|event| event.split_once(r#","d":"#))
        .map(|(head, data)| {
            let data = &data[..data.len() - 1];
            format!(r#"{{"d":{data},{}}}"#, &head[1..]).into_bytes()
        });
    let odd: Vec<Vec<u8>> = odd.collect();
    let huge: Vec<Vec<u8>> = usual
        .iter()
        .filter(|event| event.len() > 64 << 10)
        .cloned()
        .collect();

    for (name, payloads) in [("usual order", usual), ("odd order", odd), ("huge d", huge)] {
        println!(
            "{name}: {} payloads, {} bytes each",
            payloads.len(),
            common::mean(payloads.iter().map(Vec::len))
        );
        let mut group = criterion.benchmark_group(format!("envelope/{name}"));
        group.throughput(Throughput::Elements(payloads.len() as u64));
        group.bench_function("the library", |bencher| {
            let read = |payloads: Vec<Vec<u8>>| {
                payloads
                    .into_iter()
                    .map(|payload| Payload::read(payload.into()))
                    .collect::<Vec<_>>()
            };
            bencher.iter_batched(|| payloads.clone(), read, BatchSize::LargeInput);
        });
        group.bench_function("serde_json", |bencher| {
            let read = |payloads: Vec<Vec<u8>>| {
                assert!(
                    payloads.iter().all(|payload| with_serde(payload)),
                    "all are events"
                );
                payloads
            };
            bencher.iter_batched(|| payloads.clone(), read, BatchSize::LargeInput);
        });
        group.finish();
    }
}

criterion_group!(benches, envelope);
criterion_main!(benches);
