//! With a stuck handler, the shards use no more memory than their outstanding limit, however many
//! events Discord sends.
#![cfg(target_os = "linux")]

mod common;

use common::program::Program;
use common::{PATIENCE, eventually, next, resident_kib};
use threadcord::{Compression, EventKind, ShardManager, Timing};

const SHARDS: usize = 64;
const GUILDS: usize = 20 * SHARDS;
const CREDIT: usize = 500_000;

/// More than a `GUILD_CREATE` with 150 members and their presences has.
const LARGEST_EVENT: usize = 160_000;

/// What a shard takes besides: its thread, and its buffers for an event that is on its way.
const SHARD: usize = 200_000;

#[test]
fn guilds_against_a_stuck_handler() {
    // The gateway runs in a separate process, so that its memory is not counted.
    let (shards, guilds) = (SHARDS.to_string(), GUILDS.to_string());
    let sim = Program::start(&[
        "--quiet",
        "--shards",
        &shards,
        "--max-concurrency",
        &shards,
        "--guilds",
        &guilds,
        "--members",
        "150",
        "--time-scale",
        "0.01",
        "--heartbeat-interval",
        "5000s",
    ]);
    let before = resident_kib();
    let config = sim
        .config()
        .timing(Timing::scaled(0.01))
        .large_threshold(250)
        .max_outstanding_bytes(CREDIT);

    // (The window of a decompressor, which is no part of the credit, would come on top.)
    let config = config.compression(Compression::None);
    let manager = ShardManager::start(config).unwrap();
    let stalled = || {
        manager
            .handle()
            .shards()
            .iter()
            .filter(|shard| shard.status().stalled_for.is_some())
            .count()
    };

    eventually("every shard stalls", || stalled() == SHARDS);
    let bytes: Vec<usize> = manager
        .handle()
        .shards()
        .iter()
        .map(|shard| shard.status().outstanding_bytes)
        .collect();
    assert!(
        bytes
            .iter()
            .all(|bytes| (CREDIT..CREDIT + LARGEST_EVENT).contains(bytes)),
        "{bytes:?}"
    );
    let grown = (resident_kib() - before) * 1024;
    println!(
        "{SHARDS} shards that are stalled take {grown} bytes, {} each",
        grown / SHARDS
    );
    assert!(grown < SHARDS * (CREDIT + LARGEST_EVENT + SHARD), "{grown}");

    // When the handler continues, all events arrive.
    let (events, mut arrived) = (manager.events(), 0);
    next(&events, |event| {
        assert!(
            !matches!(event.kind(), EventKind::Disconnected { .. }),
            "{event:?}"
        );
        arrived += usize::from(event.name() == "GUILD_CREATE");
        arrived == GUILDS
    });
    manager.wait_guilds(PATIENCE).unwrap();
}
