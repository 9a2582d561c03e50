//! The rig: a simulated gateway, and a manager that is pointed at it.

#![allow(dead_code, unreachable_pub, reason = "each test file uses a part of the rig")]

use std::time::{Duration, Instant};

use threadcord::{Config, Event, Events, Intents, ShardId, ShardManager, Timing, Token, sim};

/// How long anything may take on a busy machine before a test gives up.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A hundredth of Discord's time: a window of 5 s has 50 ms.
pub const SCALE: f64 = 0.01;

/// A gateway whose time is scaled, but for the heartbeat interval, which is 5 s.
pub fn gateway() -> sim::Builder {
    sim::Gateway::builder().time_scale(SCALE).heartbeat_interval(Duration::from_secs(500))
}

/// A configuration for a gateway of the rig.
pub fn config(gateway: &sim::Gateway) -> Config {
    let config = Config::new(Token::new(gateway.token()).unwrap(), Intents::all())
        .rest_url(gateway.rest_url())
        .timing(Timing::scaled(SCALE));
    match gateway.root_certificate() {
        Some(pem) => config.root_certificates(pem),
        None => config,
    }
}

/// A manager whose shards are all ready.
pub fn ready(config: Config) -> ShardManager {
    let manager = ShardManager::start(config).expect("it starts");
    manager.wait_ready(PATIENCE).expect("every shard gets ready");
    manager
}

pub fn shard(number: u32, total: u32) -> ShardId {
    ShardId::new(number, total).unwrap()
}

/// The next event that is wanted; the others are dropped.
pub fn next(events: &Events, mut wanted: impl FnMut(&Event) -> bool) -> Event {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let event = events.next_timeout(left).expect("the event comes in time");
        if wanted(&event) {
            return event;
        }
    }
}

/// Waits until something holds.
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}
