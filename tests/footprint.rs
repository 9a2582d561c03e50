//! A thousand shards in one process.
#![cfg(target_os = "linux")]

mod common;

use std::time::{Duration, Instant};

use common::{PATIENCE, config, eventually, footprint, gateway, ready};
use threadcord::ShardManager;

const SHARDS: u32 = 1000;

#[test]
fn a_thousand_shards_get_ready_and_leave_nothing_behind() {
    // The first manager allocates what the libraries keep forever.
    let other = gateway().start().unwrap();
    drop(ready(config(&other)));
    drop(other);
    let day = Duration::from_secs(24 * 60 * 60);
    let gateway = gateway()
        .shards(SHARDS)
        .max_concurrency(64)
        .guilds(2 * SHARDS)
        .session_starts(2000, 2000, day);
    let gateway = gateway.start().unwrap();
    let before = footprint();
    let start = Instant::now();
    let mut config = config(&gateway);

    // The gateway reads a thousand sockets in one thread, so that it may see an IDENTIFY much later
    // than it was sent.
    config.timing.guard = Duration::from_millis(500);
    let manager = ShardManager::start(config).unwrap();
    manager.wait_guilds(PATIENCE).unwrap();
    let ready = start.elapsed();
    assert_eq!(gateway.observed().live.len(), SHARDS as usize);
    let status = manager.handle().status();
    assert_eq!(
        status
            .shards
            .iter()
            .filter_map(|shard| shard.guilds)
            .sum::<usize>(),
        2 * SHARDS as usize
    );
    let start = Instant::now();
    manager.close();
    let closed = start.elapsed();
    println!("{SHARDS} shards and their guilds in {ready:?}, closed in {closed:?}");
    assert!(closed < Duration::from_secs(5), "{closed:?}");
    drop(manager);

    // The gateway must still close its side of each connection.
    eventually("no thread or descriptor is left", || {
        let (threads, descriptors) = footprint();
        threads <= before.0 && descriptors <= before.1
    });
    gateway.assert_lawful();
}
