//! Measures decompressing websocket messages into payloads, compared with the decompressor alone
//! and a reused buffer.

mod common;

use std::hint::black_box;

use common::stream::Encoder;
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use flate2::{Decompress, FlushDecompress};
use threadcord::Compression;
use threadcord::transport::Inflater;
use zstd_safe::{DCtx, InBuffer, OutBuffer};

/// The buffer's capacity in bytes: larger than any event.
const ROOM: usize = 1 << 20;

fn inflate(criterion: &mut Criterion) {
    let events = common::events();
    println!(
        "{} payloads, {} bytes each",
        events.len(),
        common::mean(events.iter().map(String::len))
    );

    for (name, compression) in [
        ("none", Compression::None),
        ("zlib", Compression::ZlibStream),
        ("zstd", Compression::ZstdStream),
    ] {
        let mut encoder = Encoder::new(name);
        let messages: Vec<Vec<u8>> = events.iter().map(|event| encoder.message(event)).collect();
        println!(
            "{name}: {} bytes a message",
            common::mean(messages.iter().map(Vec::len))
        );
        let mut group = criterion.benchmark_group(format!("inflate/{name}"));
        group.throughput(Throughput::Elements(messages.len() as u64));
        group.bench_function("floor", |bencher| {
            bencher.iter_batched(
                || Vec::with_capacity(ROOM),
                |buffer| floor(name, &messages, buffer),
                BatchSize::LargeInput,
            );
        });
        // Payloads are kept for a moment, as by a program, or dropped at once, as by a filter.
        for keeps in [true, false] {
            let label = if keeps {
                "the library"
            } else {
                "the library, filtered"
            };
            group.bench_function(label, |bencher| {
                let new = || Inflater::new(compression, 64 << 20);
                bencher.iter_batched(
                    new,
                    |inflater| library(inflater, name == "none", &messages, keeps),
                    BatchSize::LargeInput,
                );
            });
        }
        group.finish();
    }
}

fn floor(name: &str, messages: &[Vec<u8>], mut buffer: Vec<u8>) {
    let (mut zlib, mut zstd) = (Decompress::new(true), DCtx::create());
    for message in messages {
        buffer.clear();
        match name {
            "zlib" => drop(
                zlib.decompress_vec(message, &mut buffer, FlushDecompress::Sync)
                    .expect("zlib"),
            ),
            "zstd" => {
                let (mut input, mut output) =
                    (InBuffer::around(message), OutBuffer::around(&mut buffer));
                while input.pos() < message.len() {
                    zstd.decompress_stream(&mut output, &mut input)
                        .expect("zstd");
                }
            }
            _ => buffer.extend_from_slice(message),
        }
        black_box(&buffer);
    }
}

fn library(mut inflater: Inflater, is_text: bool, messages: &[Vec<u8>], keeps: bool) {
    let mut kept = Vec::with_capacity(64);
    for message in messages {
        let payload = if is_text {
            inflater.text(message)
        } else {
            let inflated = inflater.binary(message).expect("a valid message");
            inflated.expect("a complete payload")
        };
        if keeps {
            if kept.len() == kept.capacity() {
                kept.clear();
            }
            kept.push(payload);
        }
    }
    black_box(kept);
}

criterion_group!(benches, inflate);
criterion_main!(benches);
