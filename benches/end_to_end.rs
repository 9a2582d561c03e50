//! Measures what an event costs from the socket to the program, compared with the minimum.
//!
//! `cargo bench --features model --bench end_to_end [-- burst|paced --rounds N --peer PROGRAM]`
//!
//! A gateway on the second core encodes some ten thousand events before a client connects. It
//! sends them as fast as the client reads them (`burst`), or one per shard and millisecond
//! (`paced`). The clients run one after the other on the first core, each in a separate process,
//! and measure the CPU time of all their threads. Every client has a turn in each round, so that a
//! busy machine affects all of them equally. The result is the median of the differences to the
//! bare tungstenite loop of the same round. (Criterion would finish one client before the next.)
//!
//! `--peer` names a program that takes the same arguments, such as that of `benches/peers`; `{}` in
//! it is replaced with the compression.

#![allow(clippy::cast_precision_loss, reason = "figures are only printed")]

mod common;

use std::collections::BTreeMap;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, Mutex};
use std::thread;
use std::time::Duration;

use common::clients::{Bare, Client, Floor};
use common::stream::{BLOCK, MARKER, Script, Server, serve_if_asked};
use common::{mean, probe};
use serde::{Deserialize, Serialize};
use threadcord::limit::Unlimited;
use threadcord::{
    Compression, Config, Dispatch, EventFilter, EventName, Intents, Plan, ShardManager, Token,
};

/// The number of events of a shard before the measurement starts, and of those that are measured.
const WARM: usize = 4 * BLOCK;
const COUNT: usize = 16 * BLOCK;

/// The same for events that are sent one at a time.
const PACED_WARM: usize = BLOCK;
const PACED_COUNT: usize = 4 * BLOCK;
const PACE: u64 = 1000;

const FLOOR: &str = "floor";
const FLOOR_FIELDS: &str = "floor that finds op, s, t";
const BARE: &str = "bare tungstenite";
const RAW: &str = "threadcord, events()";
const RUN: &str = "threadcord, run(4, ..)";
const FILTERED: &str = "threadcord, all but a few filtered";
const DECODE: &str = "threadcord, decode";
const TYPED: &str = "threadcord, typed";

/// The arguments of a client.
#[derive(Clone, Debug)]
struct Orders {
    client: String,
    compression: String,
    shards: usize,
    warm: usize,
    count: usize,
    /// Events per second for each shard; 0 sends them as fast as the client reads.
    rate: u64,
    url: String,
}

/// What a client measured.
#[derive(Debug, Default, Deserialize, Serialize)]
struct Report {
    /// CPU time in nanoseconds for all events after the warm-up.
    cpu: u64,
    /// Context switches of its threads.
    switches: u64,
    /// From the socket to the program, in nanoseconds, if events are sent one at a time.
    latencies: Vec<u64>,
}

fn main() {
    serve_if_asked(|arguments| Script::corpus(arguments[0].parse().expect("a number")));
    let arguments: Vec<String> = std::env::args().collect();
    if let Some(at) = arguments.iter().position(|argument| argument == "client") {
        return client(&Orders::read(&arguments[at + 1..]));
    }

    let value = |flag| {
        arguments
            .iter()
            .skip_while(|argument| **argument != flag)
            .nth(1)
    };

    let rounds = value("--rounds").map_or(5, |rounds| rounds.parse().expect("a number"));
    let peers: Vec<String> = value("--peer").into_iter().cloned().collect();
    let has = |word: &str| arguments.iter().any(|argument| argument == word);
    let events = common::events();
    println!(
        "{} events, {} bytes each\n",
        events.len(),
        mean(events.iter().map(String::len))
    );

    if !has("paced") {
        for (compression, shards) in ["none", "zlib", "zstd"]
            .into_iter()
            .flat_map(|c| [(c, 1), (c, 4)])
        {
            burst(compression, shards, rounds, &peers);
        }
    }

    if !has("burst") {
        paced(rounds, &peers);
    }
}

/// The clients of this program, and those of other programs: each a name and a program.
fn clients(
    compression: &str,
    names: &[&str],
    peers: &[String],
    peer_names: &[&str],
) -> Vec<(String, String)> {
    let this = std::env::current_exe()
        .expect("this program")
        .to_string_lossy()
        .into_owned();
    let own = names.iter().map(|name| ((*name).to_owned(), this.clone()));
    let peers = peers
        .iter()
        .map(|peer| peer.replace("{}", compression))
        .collect::<Vec<_>>();
    let peers = peers.iter().flat_map(|peer| {
        peer_names
            .iter()
            .map(|name| ((*name).to_owned(), peer.clone()))
    });
    own.chain(peers).collect()
}

fn burst(compression: &str, shards: usize, rounds: usize, peers: &[String]) {
    let mut names = vec![BARE, FLOOR, FLOOR_FIELDS, RAW, RUN, FILTERED, DECODE];
    if cfg!(feature = "model") {
        names.push(TYPED);
    }
    let clients = clients(
        compression,
        &names,
        peers,
        &["twilight, raw", "twilight, typed"],
    );

    let server = Server::start(&[&(WARM + COUNT).to_string(), compression]);
    let mut costs: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    for (client, program) in (0..rounds).flat_map(|_| &clients) {
        let orders = Orders {
            warm: WARM,
            count: COUNT,
            ..Orders::new(client, compression, shards, &server.url)
        };
        costs
            .entry(client)
            .or_default()
            .push(orders.give(program).cpu as f64 / (COUNT * shards) as f64 / 1000.0);
    }

    println!(
        "| {compression}, {shards} shards | µs of CPU time per event | difference to the bare loop |\n|---|---:|---:|"
    );
    let bare = costs[BARE].clone();
    for (client, _) in &clients {
        let own = &costs[client.as_str()];
        let more = own
            .iter()
            .zip(&bare)
            .map(|(own, bare)| own - bare)
            .collect();
        println!(
            "| {client} | {:.2} | {:+.2} |",
            median(own.clone()),
            median(more)
        );
    }
    println!();
}

fn paced(rounds: usize, peers: &[String]) {
    let clients = clients("none", &[FLOOR, BARE, RAW, RUN], peers, &["twilight, raw"]);

    let server = Server::start(&[&(PACED_WARM + PACED_COUNT).to_string(), "none"]);
    let mut reports: BTreeMap<&str, Vec<Report>> = BTreeMap::new();
    for (client, program) in (0..rounds).flat_map(|_| &clients) {
        let orders = Orders {
            warm: PACED_WARM,
            count: PACED_COUNT,
            rate: PACE,
            ..Orders::new(client, "none", 4, &server.url)
        };
        reports
            .entry(client)
            .or_default()
            .push(orders.give(program));
    }

    println!(
        "| 4 shards, {PACE} events/s each | µs of CPU time per event | relative to the floor | context switches per event | socket to program, median | 99 % |"
    );
    println!("|---|---:|---:|---:|---:|---:|");
    let cost = |report: &Report| report.cpu as f64 / (4 * PACED_COUNT) as f64 / 1000.0;
    for (client, _) in &clients {
        let own = &reports[client.as_str()];
        let ratio = own
            .iter()
            .zip(&reports[FLOOR])
            .map(|(own, floor)| cost(own) / cost(floor))
            .collect();
        let switches = own
            .iter()
            .map(|own| own.switches as f64 / (4 * PACED_COUNT) as f64)
            .collect();
        let latency = |percent: usize| {
            median(
                own.iter()
                    .map(|own| own.latencies[own.latencies.len() * percent / 100] as f64 / 1000.0)
                    .collect(),
            )
        };
        println!(
            "| {client} | {:.1} | {:.2} | {:.2} | {:.0} µs | {:.0} µs |",
            median(own.iter().map(cost).collect()),
            median(ratio),
            median(switches),
            latency(50),
            latency(99)
        );
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

impl Orders {
    fn new(client: &str, compression: &str, shards: usize, url: &str) -> Self {
        let (client, compression, url) =
            (client.to_owned(), compression.to_owned(), url.to_owned());
        Self {
            client,
            compression,
            shards,
            warm: 0,
            count: 0,
            rate: 0,
            url,
        }
    }

    fn read(words: &[String]) -> Self {
        let number = |at: usize| words[at].parse().expect("a number");
        let orders = Self::new(&words[0], &words[1], number(2), &words[6]);
        Self {
            warm: number(3),
            count: number(4),
            rate: number(5) as u64,
            ..orders
        }
    }

    /// Runs a program with these arguments and returns its report.
    fn give(&self, program: &str) -> Report {
        let mut command = Command::new(program);
        command.args(["client", &self.client, &self.compression]);
        command.args([self.shards, self.warm, self.count].map(|number| number.to_string()));
        let output = command
            .args([self.rate.to_string(), self.url.clone()])
            .output()
            .expect("the program runs");
        serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|_| panic!("{self:?}: {}", String::from_utf8_lossy(&output.stderr)))
    }

    /// The command that requests events from a gateway of [`common::stream`].
    fn request(&self, count: usize) -> threadcord::Command {
        let numbers = [count as u64, self.rate];
        threadcord::Command::soundboard_sounds(&numbers[..if self.rate == 0 { 1 } else { 2 }])
            .expect("a command")
    }

    fn query(&self) -> &'static str {
        match self.compression.as_str() {
            "zlib" => "v=10&encoding=json&compress=zlib-stream",
            "zstd" => "v=10&encoding=json&compress=zstd-stream",
            _ => "v=10&encoding=json",
        }
    }
}

/// Runs as a client, and prints what it measured.
fn client(orders: &Orders) {
    probe::pin(0);
    let report = match orders.client.as_str() {
        FLOOR | FLOOR_FIELDS => on_threads(orders, |url| {
            Floor::connect(url, orders.query(), &orders.compression)
        }),
        BARE => on_threads(orders, |url| {
            Bare::connect(url, orders.query(), &orders.compression)
        }),
        _ => threadcord(orders),
    };
    println!("{}", serde_json::to_string(&report).expect("numbers"));
}

/// Measures CPU time and context switches from its start to its end.
struct Meter {
    cpu: Duration,
    switches: u64,
}

impl Meter {
    fn start() -> Self {
        Self {
            switches: probe::switches(),
            cpu: probe::cpu(),
        }
    }

    fn stop(self, latencies: Vec<u64>) -> Report {
        let cpu =
            u64::try_from(probe::cpu().saturating_sub(self.cpu).as_nanos()).expect("a short time");
        let mut report = Report {
            cpu,
            switches: probe::switches() - self.switches,
            latencies,
        };
        report.latencies.sort_unstable();
        report
    }
}

/// The time since an event was sent, in nanoseconds, if events are sent one at a time.
fn latency(data: &[u8]) -> Option<u64> {
    let digits = data.strip_prefix(br#"{"at":"#)?;
    let end = digits.iter().position(|byte| !byte.is_ascii_digit())?;
    let at: u64 = std::str::from_utf8(&digits[..end]).ok()?.parse().ok()?;
    u64::try_from(probe::monotonic().as_nanos())
        .ok()?
        .checked_sub(at)
}

/// The library, as a program uses it.
fn threadcord(orders: &Orders) -> Report {
    let manager = ShardManager::start(orders.config()).expect("the shards start");
    manager
        .wait_ready(Duration::from_secs(60))
        .expect("the shards become ready");
    let take = |count: usize| {
        for shard in manager.handle().shards() {
            shard
                .send(orders.request(count))
                .expect("the command is queued");
        }
        let markers = orders.shards * count / BLOCK;
        match orders.client.as_str() {
            RUN => with_handler(&manager, orders, markers),
            _ => with_loop(&manager, orders, markers),
        }
    };

    take(orders.warm);
    let meter = Meter::start();
    let latencies = take(orders.count);
    meter.stop(latencies)
}

impl Orders {
    fn config(&self) -> Config {
        let compression = match self.compression.as_str() {
            "zlib" => Compression::ZlibStream,
            "zstd" => Compression::ZstdStream,
            _ => Compression::None,
        };

        let filter = match self.client.as_str() {
            FILTERED => EventFilter::only([MARKER]).expect("a documented name"),
            _ => EventFilter::ALL,
        };
        let token = Token::new("aaa.bbb.ccc").expect("a token");
        Config::new(token, Intents::empty())
            .gateway_url(&*self.url)
            .limiter(Arc::new(Unlimited))
            .plan(Plan::Total(u32::try_from(self.shards).expect("few")))
            .events(filter)
            .compression(compression)
    }
}

/// Takes events until this many markers have arrived. Returns the latencies if events are sent one
/// at a time.
fn with_loop(manager: &ShardManager, orders: &Orders, markers: usize) -> Vec<u64> {
    let (mut latencies, mut decoded, mut left) = (Vec::new(), 0, markers);
    for event in manager.events() {
        let Some(dispatch) = event.dispatch() else {
            continue;
        };

        match orders.client.as_str() {
            DECODE => decoded += usize::from(decode(dispatch)),
            #[cfg(feature = "model")]
            TYPED => decoded += usize::from(dispatch.typed().is_ok()),
            _ => {}
        }
        if orders.rate > 0 {
            latencies.extend(latency(dispatch.data()));
        }

        left -= usize::from(is_marker(dispatch));
        if left == 0 {
            break;
        }
    }
    std::hint::black_box(decoded);
    latencies
}

/// The same with a handler on four threads.
fn with_handler(manager: &ShardManager, orders: &Orders, markers: usize) -> Vec<u64> {
    let latencies = Mutex::new(Vec::new());
    let left = AtomicUsize::new(markers);
    let run = manager.run(4, |handle, event| {
        let Some(dispatch) = event.dispatch() else {
            return;
        };
        if orders.rate > 0 {
            let latency = latency(dispatch.data());
            latencies.lock().expect("no thread panics").extend(latency);
        }
        if is_marker(dispatch) && left.fetch_sub(1, Ordering::Relaxed) == 1 {
            handle.stop();
        }
    });
    run.expect("the handler runs");
    latencies.into_inner().expect("no thread panics")
}

fn is_marker(dispatch: &Dispatch) -> bool {
    *dispatch.name() == EventName::MessagePollVoteAdd
}

/// Decodes an event into a small struct, as a bot would.
fn decode(dispatch: &Dispatch) -> bool {
    #[derive(Deserialize)]
    struct Small<'a> {
        id: Option<&'a str>,
        guild_id: Option<&'a str>,
        channel_id: Option<&'a str>,
    }
    dispatch.decode::<Small<'_>>().is_ok_and(|small| {
        small.id.is_some() || small.guild_id.is_some() || small.channel_id.is_some()
    })
}

fn on_threads<C: Client>(orders: &Orders, connect: impl Fn(&str) -> C + Sync) -> Report {
    let barrier = Barrier::new(orders.shards + 1);
    let latencies = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..orders.shards {
            scope.spawn(|| {
                let mut client = connect(&orders.url);
                // HELLO, and READY after the IDENTIFY.
                client.take(1, |_| {});
                client.send(r#"{"op":2,"d":{}}"#);
                client.take(1, |_| {});

                let mut own = Vec::new();
                let mut take = |count| {
                    client.send(orders.request(count).json());
                    client.take(count, |payload| {
                        std::hint::black_box(payload);
                        if orders.client == FLOOR_FIELDS {
                            std::hint::black_box(fields(payload));
                        }
                        if orders.rate > 0 {
                            let data = payload
                                .windows(4)
                                .take(128)
                                .position(|part| part == br#""d":"#);
                            own.extend(data.and_then(|at| latency(&payload[at + 4..])));
                        }
                    });
                };

                take(orders.warm);
                barrier.wait();
                barrier.wait();
                take(orders.count);
                barrier.wait();
                // Until this thread's context switches have been read.
                barrier.wait();
                latencies
                    .lock()
                    .expect("no thread panics")
                    .extend(own.split_off(orders.warm.min(own.len())));
            });
        }

        barrier.wait();
        let meter = Meter::start();
        barrier.wait();
        barrier.wait();
        // The latencies of the threads are complete only after the threads have ended.
        let report = meter.stop(Vec::new());
        barrier.wait();
        report
    })
    .with(latencies.into_inner().expect("no thread panics"))
}

impl Report {
    fn with(mut self, mut latencies: Vec<u64>) -> Self {
        latencies.sort_unstable();
        self.latencies = latencies;
        self
    }
}

/// Reads `op`, `s` and `t` from the start of a payload.
fn fields(payload: &[u8]) -> Option<(u64, u64, &[u8])> {
    let rest = payload.strip_prefix(br#"{"t":""#)?;
    let (name, rest) = rest.split_at(rest.iter().position(|byte| *byte == b'"')?);
    let (sequence, rest) = number(rest.strip_prefix(br#"","s":"#)?)?;
    let (op, _) = number(rest.strip_prefix(br#","op":"#)?)?;
    Some((op, sequence, name))
}

fn number(text: &[u8]) -> Option<(u64, &[u8])> {
    let end = text.iter().position(|byte| !byte.is_ascii_digit())?;
    Some((
        text[..end]
            .iter()
            .fold(0, |number, digit| number * 10 + u64::from(digit - b'0')),
        &text[end..],
    ))
}
