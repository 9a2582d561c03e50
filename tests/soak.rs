//! A fleet under load and with random faults of every kind that it can survive: no event is lost,
//! no limit is exceeded, and no resource leaks.
//!
//! `THREADCORD_SOAK_SECONDS` makes the test longer, and `THREADCORD_SOAK_SEED` repeats a run.
#![cfg(target_os = "linux")]

mod common;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use common::book::Book;
use common::{COMPRESSIONS, PATIENCE, footprint, variable};
use serde_json::json;
use threadcord::sim::{Fault, Gateway, Observed, RestFault};
use threadcord::status::ShardCounters;
use threadcord::{
    Command, Compression, Config, Events, Handle, MemberQuery, Plan, ShardManager, ShardState,
    Timing,
};

const SHARDS: u32 = 32;
const GUILDS: u32 = 96;
const EVENTS_PER_SECOND: f64 = 2000.0;
const FAULTS_PER_SECOND: f64 = 25.0;

const REST_CALLERS: usize = 16;

/// Time runs 20 times as fast as at Discord: a window of 5 s takes 250 ms, and a session waits 9 s
/// for its client.
const SCALE: f64 = 0.05;

/// The maximum payload size here; the decompression bomb is twice as large.
const MAX_PAYLOAD: usize = 1 << 20;

/// What the process may hold in memory beyond what it began with: the gateway's replay buffers and
/// its journal, and what the shards may have outstanding.
const MAX_MEMORY_MB: usize = 1024;

fn faults() -> Vec<Fault> {
    let resized = |fault| {
        if let Fault::Bomb { .. } = fault {
            Fault::Bomb {
                size: 2 * MAX_PAYLOAD,
            }
        } else {
            fault
        }
    };

    // A shard makes no HTTP request by itself, so that it survives a token that is refused there
    // for once.
    let refused = Fault::Rest(RestFault::Status(401));
    Fault::all()
        .into_iter()
        .map(resized)
        .chain([refused])
        .collect()
}

fn gateway(seed: u64) -> Gateway {
    Gateway::builder()
        .tls(true)
        .shards(SHARDS)
        .max_concurrency(16)
        .guilds(GUILDS)
        .time_scale(SCALE)
        .heartbeat_interval(Duration::from_secs(20))
        .session_starts(1_000_000, 1_000_000, Duration::from_secs(24 * 60 * 60))
        .keep_dispatches(true)
        .seed(seed)
        .start()
        .unwrap()
}

fn config(gateway: &Gateway, compression: Compression) -> Config {
    let mut timing = Timing::scaled(SCALE);
    timing.connect_timeout = Duration::from_secs(2);
    timing.hello_timeout = Duration::from_secs(2);
    timing.answer_timeout = Duration::from_secs(2);
    // With so many faults the circuit breaker would stop one shard or another.
    let config = common::config(gateway)
        .plan(Plan::Total(SHARDS))
        .max_short_sessions(None);
    config
        .compression(compression)
        .max_payload(MAX_PAYLOAD)
        .timing(timing)
}

fn resident_mb() -> usize {
    common::resident_kib() / 1024
}

/// Handles the waiting events; the pause imitates a handler that is sometimes slow.
fn handle(book: &mut Book, events: &Events, until: Instant, rng: &mut fastrand::Rng) {
    while Instant::now() < until {
        let Ok(event) = events.recv_timeout(until.saturating_duration_since(Instant::now())) else {
            return;
        };
        book.note(&event);
        if rng.u32(..20_000) == 0 {
            std::thread::sleep(Duration::from_millis(300));
        }
    }
}

#[test]
fn a_fleet_survives_everything() {
    let seconds = variable("THREADCORD_SOAK_SECONDS").unwrap_or(4);
    let seed = variable("THREADCORD_SOAK_SEED").unwrap_or_else(|| fastrand::u64(..1_000_000));
    let compression = COMPRESSIONS[usize::try_from(seed % 4).unwrap()];
    println!("THREADCORD_SOAK_SECONDS={seconds} THREADCORD_SOAK_SEED={seed}, with {compression:?}");

    // What the libraries keep for good.
    drop(gateway(0));
    let before = footprint();
    let memory = resident_mb();
    let (summary, seen) = soak(seed, Duration::from_secs(seconds), compression, memory);
    common::eventually("all threads and descriptors are gone", || {
        let (threads, descriptors) = footprint();
        threads <= before.0 && descriptors <= before.1
    });
    println!("{summary}");
    let kinds: BTreeSet<_> = seen
        .faults
        .iter()
        .map(|strike| strike.fault.to_string())
        .collect();
    let missed: Vec<_> = faults()
        .into_iter()
        .map(|fault| fault.to_string())
        .filter(|kind| !kinds.contains(kind))
        .collect();
    println!(
        "{} faults of {} kinds; none of: {missed:?}",
        seen.faults.len(),
        kinds.len()
    );
    assert!(
        seconds < 60 || missed.len() <= 3,
        "a long soak meets nearly every fault"
    );
}

/// Calls the HTTP interface until it is stopped. Returns the numbers of successes and failures.
fn call(client: &Handle, stop: &AtomicBool) -> (usize, usize) {
    let mut answers = (0, 0);
    while !stop.load(Ordering::Acquire) {
        match client.rest().call("GET", "/users/@me", None) {
            Ok(_) => answers.0 += 1,
            Err(_) => answers.1 += 1,
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    answers
}

#[expect(
    clippy::too_many_lines,
    reason = "one history, told from its start to its end"
)]
fn soak(
    seed: u64,
    length: Duration,
    compression: Compression,
    memory: usize,
) -> (String, Observed) {
    let gateway = gateway(seed);
    let manager = ShardManager::start(config(&gateway, compression)).unwrap();
    let (events, client) = (manager.events(), manager.handle());
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut book = Book::default();
    manager.wait_ready(PATIENCE).unwrap();

    let stop = Arc::new(AtomicBool::new(false));
    // Many, since each may wait long for a request that hangs.
    let callers: Vec<_> = (0..REST_CALLERS)
        .map(|_| {
            let (client, stop) = (client.clone(), Arc::clone(&stop));
            std::thread::spawn(move || call(&client, &stop))
        })
        .collect();

    gateway.set_activity(EVENTS_PER_SECOND);
    gateway.random_faults(FAULTS_PER_SECOND, faults());
    let (end, mut peak, mut commands) = (Instant::now() + length, 0, 0);
    let guilds = gateway.guild_ids();
    while Instant::now() < end {
        handle(
            &mut book,
            &events,
            Instant::now() + Duration::from_millis(50),
            &mut rng,
        );
        // Equal on purpose, so that being equal is no reason to be dropped.
        let guild = guilds[rng.usize(..guilds.len())];
        for _ in 0..2 {
            gateway
                .emit(
                    Some(guild),
                    "TYPING_START",
                    &json!({"guild_id": guild.to_string(), "user_id": "1"}),
                )
                .unwrap();
        }
        let shard = client.shard_by_guild(guild).unwrap();
        let request = Command::request_members(guild, &MemberQuery::ids([1]), None).unwrap();
        commands += usize::from(shard.send(request).is_ok());
        peak = peak.max(resident_mb());
    }
    gateway.random_faults(0.0, []);
    gateway.set_activity(0.0);
    let deadline = Instant::now() + PATIENCE;
    let ready = || {
        manager
            .handle()
            .shards()
            .iter()
            .filter(|shard| shard.status().state == ShardState::Ready)
            .count()
    };
    while ready() < SHARDS as usize || book.outstanding(&gateway) > 0 {
        assert!(
            Instant::now() < deadline,
            "{} ready, {} events or losses outstanding",
            ready(),
            book.outstanding(&gateway)
        );
        handle(
            &mut book,
            &events,
            Instant::now() + Duration::from_millis(20),
            &mut rng,
        );
    }
    assert!(
        book.closed.is_empty(),
        "shards have stopped: {:?}",
        book.closed
    );
    gateway.assert_lawful();
    let count = book.check(&gateway);
    let counters = manager.handle().status().counters;
    let sum = |of: fn(&ShardCounters) -> u64| counters.values().map(of).sum::<u64>();
    let summary = format!(
        "{count} events in {} sessions, {} of them lost by rule; {} connections, {} resumes, {} IDENTIFYs, {commands} commands; \
         memory {memory} MB before, {peak} MB at most",
        book.sessions.len(),
        book.lost.len(),
        sum(|counters| counters.connects),
        sum(|counters| counters.resumes),
        sum(|counters| counters.identifies),
    );
    assert!(peak < memory + MAX_MEMORY_MB, "{summary}");
    assert_eq!(
        book.lost.len() as u64,
        sum(|counters| counters.sessions_lost),
        "{summary}"
    );
    manager.close();
    drop(manager);
    let seen = gateway.observed();
    // Requests that hang end with the gateway.
    stop.store(true, Ordering::Release);
    drop(gateway);
    let answers: Vec<_> = callers
        .into_iter()
        .map(|caller| caller.join().unwrap())
        .collect();
    let (answered, failed) = answers
        .iter()
        .fold((0, 0), |sum, answer| (sum.0 + answer.0, sum.1 + answer.1));
    (
        format!("{summary}; REST: {answered} answers, {failed} errors"),
        seen,
    )
}
