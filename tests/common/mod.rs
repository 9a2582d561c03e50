//! The test rig: a simulated gateway, and a manager that connects to it.

#![allow(
    dead_code,
    unreachable_pub,
    reason = "each test file uses a part of the rig"
)]

pub mod book;
pub mod hooked;
pub mod lines;
pub mod process;
#[cfg(feature = "gateway-sim")]
pub mod program;
pub mod proxy;
pub mod raw;
#[cfg(feature = "redis")]
pub mod redis;

use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use threadcord::status::ShardCounters;
use threadcord::{
    Command, Compression, Config, Event, Events, Intents, Shard, ShardId, ShardManager,
    ShardStatus, Timing, Token, sim,
};

/// The timeout for every step of a test, long enough for a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Time runs 100 times as fast as at Discord: a window of 5 s takes 50 ms.
pub const SCALE: f64 = 0.01;

pub const COMPRESSIONS: [Compression; 4] = [
    Compression::None,
    Compression::Payload,
    Compression::ZlibStream,
    Compression::ZstdStream,
];

/// A gateway whose time is scaled, except the heartbeat interval, which is 5 s.
pub fn gateway() -> sim::Builder {
    sim::Gateway::builder()
        .time_scale(SCALE)
        .heartbeat_interval(Duration::from_secs(500))
}

/// A configuration for a gateway of the rig.
pub fn config(gateway: &sim::Gateway) -> Config {
    let mut timing = Timing::scaled(SCALE);
    // Most tests take their events on the thread that suspends, so a suspend must not wait.
    timing.handlers_timeout = Duration::ZERO;
    // The simulator gives an event to all sessions at once.
    timing.session_skew = Duration::from_millis(10);
    let config = Config::new(Token::new(gateway.token()).unwrap(), Intents::all())
        .rest_url(gateway.rest_url())
        .timing(timing);
    match gateway.root_certificate() {
        Some(pem) => config.root_certificates(pem),
        None => config,
    }
}

/// A manager whose shards are all ready.
pub fn ready(config: Config) -> ShardManager {
    let manager = ShardManager::start(config).expect("it starts");
    manager
        .wait_ready(PATIENCE)
        .expect("every shard gets ready");
    manager
}

/// A command that changes nothing, whether it is answered or not.
pub fn sounds(guild: u64) -> Command {
    Command::soundboard_sounds(&[guild]).unwrap()
}

pub fn shard(number: u32, total: u32) -> ShardId {
    ShardId::new(number, total).unwrap()
}

/// The status of a shard that has been opened.
pub fn status_of(manager: &ShardManager, shard: ShardId) -> ShardStatus {
    manager.handle().shard(shard).unwrap().status()
}

/// The counters of a shard that has been opened.
pub fn counters_of(manager: &ShardManager, shard: ShardId) -> ShardCounters {
    manager.handle().shard(shard).unwrap().counters()
}

/// Whether all that a shard has delivered has been handled.
pub fn owes_nothing(shard: &Shard) -> bool {
    let status = shard.status();
    (status.outstanding_events, status.outstanding_bytes) == (0, 0)
}

/// Returns the next event that satisfies a condition; drops the others.
pub fn next(events: &Events, mut wanted: impl FnMut(&Event) -> bool) -> Event {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let event = events.recv_timeout(left).expect("the event comes in time");
        if wanted(&event) {
            return event;
        }
    }
}

/// Sends events to a guild until `condition` holds. The latest event is always held, and those
/// before it are handled. Returns the event that is held at the end.
pub fn hold_newest(
    gateway: &sim::Gateway,
    events: &Events,
    mut condition: impl FnMut(&sim::Observed) -> bool,
) -> Event {
    let guild = gateway.guild_ids()[0];
    let data = json!({"guild_id": guild.to_string(), "user_id": "1", "timestamp": 1});
    let (deadline, mut held) = (Instant::now() + PATIENCE, None);
    while held.is_none() || !condition(&gateway.observed()) {
        assert!(Instant::now() < deadline, "the condition holds in time");
        gateway.emit(Some(guild), "TYPING_START", &data).unwrap();
        if let Ok(event) = events.recv_timeout(Duration::from_millis(5))
            && event.dispatch().is_some()
        {
            held = Some(event);
        }
    }
    held.expect("an event is held")
}

/// Sends every guild numbered events, `rate` a second in total, until it is stopped; each number
/// `copies` times in a row. Each must reach the given number of sessions. Returns the number of
/// events for each guild.
pub fn send(
    gateway: &sim::Gateway,
    rate: u32,
    copies: u64,
    heard_by: RangeInclusive<usize>,
    stop: &AtomicBool,
) -> u64 {
    let (guilds, start, mut sent) = (gateway.guild_ids(), Instant::now(), 0_u64);
    let count = u32::try_from(guilds.len()).unwrap();
    while !stop.load(Ordering::Acquire) || !sent.is_multiple_of(copies) {
        for guild in &guilds {
            let data =
                json!({"guild_id": guild.to_string(), "user_id": "1", "timestamp": sent / copies});
            let heard = gateway.emit(Some(*guild), "TYPING_START", &data).unwrap();
            assert!(heard_by.contains(&heard), "{heard} sessions heard it");
        }
        sent += 1;
        let due = start + Duration::from_secs(1) * u32::try_from(sent).unwrap() * count / rate;
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
    }
    sent
}

/// The guild and the number of a numbered event.
pub fn number(event: &Event) -> Option<(u64, u64)> {
    let dispatch = event
        .dispatch()
        .filter(|dispatch| dispatch.name() == "TYPING_START")?;
    let data: Value = dispatch.decode().unwrap();
    Some((
        data["guild_id"].as_str().unwrap().parse().unwrap(),
        data["timestamp"].as_u64().unwrap(),
    ))
}

/// The numbers of threads and open descriptors of this process.
#[cfg(target_os = "linux")]
pub fn footprint() -> (usize, usize) {
    let entries = |folder| std::fs::read_dir(folder).unwrap().count();
    (entries("/proc/self/task"), entries("/proc/self/fd"))
}

/// The memory of this process that is in use, in KiB.
#[cfg(target_os = "linux")]
pub fn resident_kib() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("VmRSS:"))
        .unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// The number in an environment variable, if that is set.
pub fn variable(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|value| {
        let number = value.parse().ok();
        number.unwrap_or_else(|| panic!("{name}={value} is no number"))
    })
}

/// Waits until a condition holds.
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Runs a function on another thread, and fails if it does not return in time.
pub fn in_time(what: &str, act: impl FnOnce() + Send + 'static) {
    let (done, ended) = crossbeam_channel::bounded(1);
    std::thread::spawn(move || {
        act();
        let _ = done.send(());
    });
    assert!(
        ended.recv_timeout(Duration::from_secs(10)).is_ok(),
        "{what}"
    );
}

/// An HTTP server that answers each connection's first request with the next of `answers`. When
/// they are used up, it repeats the last one.
pub struct Http {
    pub url: String,
    pub requests: std::sync::Arc<std::sync::atomic::AtomicUsize>,
}

impl Http {
    pub fn new(answers: &[(u16, &str, &str)]) -> Self {
        use std::io::{Read, Write};
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/api/v10", listener.local_addr().unwrap());
        let requests = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let count = std::sync::Arc::clone(&requests);
        let answers: Vec<String> = answers
            .iter()
            .map(|(status, headers, body)| {
                let length = body.len();
                format!("HTTP/1.1 {status} X\r\n{headers}content-length: {length}\r\nconnection: close\r\n\r\n{body}")
            })
            .collect();

        // The thread ends with the test's process.
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let mut request = Vec::new();
                let mut byte = [0];
                while !request.ends_with(b"\r\n\r\n") && stream.read(&mut byte).unwrap_or(0) == 1 {
                    request.push(byte[0]);
                }
                let at = count.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                let _ = stream.write_all(answers[at.min(answers.len() - 1)].as_bytes());
            }
        });
        Self { url, requests }
    }

    pub fn count(&self) -> usize {
        self.requests.load(std::sync::atomic::Ordering::SeqCst)
    }
}
