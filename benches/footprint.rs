//! Measures what idle shards cost (memory, threads, descriptors, system calls), and what memory a
//! burst of events leaves behind.
//!
//! `cargo bench --bench footprint [-- --shards 1,100,1000 --idle SECONDS --calls --trim]`
//!
//! A gateway that encodes everything in advance runs in a separate process. For each compression,
//! with TLS and without, a second process connects that many shards. It is measured when all are
//! ready, after an idle time, and again after a burst: each shard receives 500 events, 32 of them
//! `GUILD_CREATE`s of about 100 KB, and is then idle for 10 s. With `--calls`, `strace` counts the
//! system calls of half a minute. With `--trim`, the program returns memory to the operating
//! system when no event has arrived for a while, as the example `ndjson` does. The slope between
//! the numbers of shards is the cost of one shard. `--idle` keeps the shards idle for longer at the
//! end, and prints what share of a core that took.

#![allow(clippy::cast_precision_loss, reason = "figures are only printed")]

mod common;
#[path = "../examples/common/memory.rs"]
mod memory;

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use common::probe;
use common::stream::{Script, Server, serve_if_asked};
use serde::{Deserialize, Serialize};
use threadcord::limit::Unlimited;
use threadcord::{Compression, Config, Intents, Plan, ShardManager, Token};

/// The events that each shard receives in a burst, and how many of them are large.
const EVENTS: usize = 500;
const GUILDS: usize = 32;

/// Idle time before a measurement: idle shards have returned their buffers by then.
const REST: Duration = Duration::from_secs(4);
const AFTER_BURST: Duration = Duration::from_secs(10);

/// After this time without an event, the program trims its memory if `--trim` is given.
const QUIET: Duration = Duration::from_secs(5);

/// How long system calls are counted.
const TRACED: Duration = Duration::from_secs(30);

/// What a process reports about itself.
#[derive(Debug, Deserialize, Serialize)]
struct Report {
    /// How long the requested step took, in milliseconds.
    took: u64,
    /// CPU time since the process started, in milliseconds.
    cpu: u64,
    /// Resident memory in KiB.
    resident: u64,
    threads: usize,
    descriptors: usize,
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    serve_if_asked(|_| burst());
    let arguments: Vec<String> = std::env::args().collect();
    if let Some(at) = arguments.iter().position(|argument| argument == "client") {
        return client(&arguments[at + 1..]);
    }

    let value = |flag| {
        arguments
            .iter()
            .skip_while(|argument| **argument != flag)
            .nth(1)
    };

    let shards = value("--shards").map_or("1,100,1000", String::as_str);
    let shards = shards
        .split(',')
        .map(str::parse)
        .collect::<Result<Vec<usize>, _>>()?;
    let has = |flag| arguments.iter().any(|argument| argument == flag);
    let (traces, trims) = (has("--calls"), has("--trim"));
    let idle = value("--idle").map_or(Ok(0), |idle| idle.parse())?;
    println!(
        "| | shards | all ready after | CPU time until then | resident, idle | after the burst | threads | descriptors | calls in {} s | close |",
        TRACED.as_secs()
    );
    println!("|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|");

    for (tls, compression) in ["plain", "tls"]
        .into_iter()
        .flat_map(|tls| ["none", "zlib", "zstd"].map(|c| (tls, c)))
    {
        let server = Server::start(&[tls, compression]);
        let rows = shards
            .iter()
            .map(|shards| row(&server, tls, compression, *shards, traces, trims))
            .collect::<Result<Vec<_>, _>>()?;
        if let ([first, .., last], [(fewest_idle, fewest_after), .., (most_idle, most_after)]) =
            (&shards[..], &rows[..])
        {
            let slope = |few: u64, many: u64| (many as f64 - few as f64) / (last - first) as f64;
            println!(
                "| {tls}, {compression} | each | | | {:.0} KiB | {:.0} KiB | | | | |",
                slope(*fewest_idle, *most_idle),
                slope(*fewest_after, *most_after)
            );
        }
    }

    if idle > 0 {
        idle_for(
            Duration::from_secs(idle),
            shards.last().copied().unwrap_or(1),
        )?;
    }
    Ok(())
}

/// The events of a burst, with the large ones spread evenly among the small ones.
fn burst() -> Script {
    let corpus = Script::corpus(4000);
    let is_large =
        |event: &&(String, String)| event.0 == "GUILD_CREATE" && event.1.len() > 64 << 10;
    let is_small = |event: &&(String, String)| event.1.len() < 4 << 10;
    let (mut large, mut small) = (
        corpus.events.iter().filter(is_large).cycle(),
        corpus.events.iter().filter(is_small),
    );
    let events = (0..EVENTS).filter_map(|n| {
        if n * GUILDS % EVENTS < GUILDS {
            large.next()
        } else {
            small.next()
        }
    });
    Script {
        events: events.cloned().collect(),
        heartbeat_interval: 41_250,
        ..corpus
    }
}

/// Measures a process with this many shards. Returns its memory when idle and after the burst, in
/// KiB.
fn row(
    server: &Server,
    tls: &str,
    compression: &str,
    shards: usize,
    traces: bool,
    trims: bool,
) -> Result<(u64, u64), Box<dyn std::error::Error>> {
    let mut process = Process::start(server, compression, shards)?;
    let ready = process.hear()?;
    let idle = process.ask("idle")?;
    let calls = traces.then(|| process.count_calls()).flatten();
    let after = process.ask(if trims { "burst and trim" } else { "burst" })?;
    let closed = process.ask("close")?;
    println!(
        "| {tls}, {compression} | {shards} | {} ms | {} ms | {} KiB | {} KiB | {} | {} | {} | {} ms |",
        ready.took,
        ready.cpu,
        idle.resident,
        after.resident,
        idle.threads,
        idle.descriptors,
        calls.map_or_else(|| "-".into(), |calls| calls.to_string()),
        closed.took
    );
    Ok((idle.resident, after.resident))
}

/// Measures shards that only heartbeat.
fn idle_for(time: Duration, shards: usize) -> Result<(), Box<dyn std::error::Error>> {
    let server = Server::start(&["plain", "none"]);
    let mut process = Process::start(&server, "none", shards)?;
    process.hear()?;
    let before = process.ask("idle")?;
    thread::sleep(time);
    let after = process.ask("idle")?;
    let percent = (after.cpu - before.cpu) as f64 / (time + REST).as_millis() as f64 * 100.0;
    println!("\n{shards} idle shards that heartbeat every 41.25 s: {percent:.2} % of a core");
    Ok(())
}

/// This program as a client, in a separate process.
struct Process {
    child: Child,
    answers: BufReader<ChildStdout>,
}

impl Process {
    fn start(server: &Server, compression: &str, shards: usize) -> std::io::Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        command
            .args(["client", compression, &shards.to_string(), &server.url])
            .args(&server.pem);
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let answers = BufReader::new(child.stdout.take().expect("piped"));
        Ok(Self { child, answers })
    }

    fn hear(&mut self) -> Result<Report, Box<dyn std::error::Error>> {
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        Ok(serde_json::from_str(&line)?)
    }

    fn ask(&mut self, word: &str) -> Result<Report, Box<dyn std::error::Error>> {
        writeln!(self.child.stdin.as_mut().expect("piped"), "{word}")?;
        self.hear()
    }

    /// Counts the system calls of its threads. Returns `None` if `strace` is not available.
    fn count_calls(&self) -> Option<u64> {
        let mut strace = Command::new("timeout");
        strace.args([
            "--signal=INT",
            &TRACED.as_secs().to_string(),
            "strace",
            "-f",
            "-c",
            "-p",
        ]);
        let output = strace.arg(self.child.id().to_string()).output().ok()?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let total = said.lines().find(|line| line.ends_with(" total"));

        // Without any call, strace prints no total. It does not count a call that lasts the whole
        // time.
        total.map_or(said.contains("attached").then_some(0), |line| {
            line.split_whitespace().nth(3)?.parse().ok()
        })
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // The process may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Connects shards, then runs the steps named on standard input and prints a report after each.
fn client(arguments: &[String]) -> Result<(), Box<dyn std::error::Error>> {
    let (compression, shards, url) = (&arguments[0], arguments[1].parse()?, &arguments[2]);
    let compression = match compression.as_str() {
        "zlib" => Compression::ZlibStream,
        "zstd" => Compression::ZstdStream,
        _ => Compression::None,
    };

    let mut config = Config::new(Token::new("aaa.bbb.ccc")?, Intents::empty())
        .gateway_url(url)
        .limiter(Arc::new(Unlimited))
        .plan(Plan::Total(shards))
        .compression(compression);
    config.root_certificates = arguments.get(3).cloned();
    let start = Instant::now();
    let manager = ShardManager::start(config)?;
    manager.wait_ready(Duration::from_secs(120))?;
    report(start.elapsed())?;

    for line in std::io::stdin().lines() {
        let start = Instant::now();
        match line?.as_str() {
            "idle" => {
                while manager.events().try_recv().is_ok() {}
                thread::sleep(REST);
                report(start.elapsed())?;
            }
            word @ ("burst" | "burst and trim") => {
                let request = threadcord::Command::soundboard_sounds(&[EVENTS as u64])?;
                for shard in manager.handle().shards() {
                    shard.send(request.clone())?;
                }
                let events = manager.events().filter(|event| event.dispatch().is_some());
                assert_eq!(
                    events.take(EVENTS * shards as usize).count(),
                    EVENTS * shards as usize
                );
                thread::sleep(QUIET);
                if word != "burst" {
                    memory::give_back();
                }
                thread::sleep(AFTER_BURST.saturating_sub(QUIET));
                report(start.elapsed())?;
            }
            _ => {
                manager.close();
                return report(start.elapsed());
            }
        }
    }
    Ok(())
}

fn report(took: Duration) -> Result<(), Box<dyn std::error::Error>> {
    let (threads, descriptors) = probe::threads_and_descriptors();
    let milliseconds = |time: Duration| u64::try_from(time.as_millis());
    let (took, cpu) = (milliseconds(took)?, milliseconds(probe::cpu())?);
    let report = Report {
        took,
        cpu,
        resident: probe::resident(),
        threads,
        descriptors,
    };
    println!("{}", serde_json::to_string(&report)?);
    Ok(())
}
