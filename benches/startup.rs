//! How long a fleet takes until every shard is ready, against the least that Discord's limit allows.
//!
//! `cargo bench --bench startup`: 8 shards, two at a time, in real time: without and with TLS, and with jitter on the wire; then a
//! thousand, sixteen at a time, in a tenth of Discord's time.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use threadcord::{Config, Intents, ShardManager, Timing, Token, sim};

const READY_DELAY: Duration = Duration::from_millis(300);
const WINDOW: Duration = Duration::from_secs(5);

/// A fleet, and the circumstances in which it starts.
struct Fleet {
    name: &'static str,
    shards: u32,
    max_concurrency: u32,
    tls: bool,
    /// What each message may take on the wire, in each direction.
    jitter: Duration,
    /// Of Discord's time.
    scale: f64,
    guard: Duration,
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let guard = Timing::default().guard;
    let fleet =
        Fleet { name: "ws", shards: 8, max_concurrency: 2, tls: false, jitter: Duration::ZERO, scale: 1.0, guard };
    let fleets = [
        Fleet { name: "wss", tls: true, ..fleet },
        Fleet { name: "ws, jitter of up to 80 ms", jitter: Duration::from_millis(80), ..fleet },
        // The guard makes up for the wire, which does not become faster with the clock; on this machine it is short.
        Fleet { name: "ws", shards: 1000, max_concurrency: 16, scale: 0.1, guard: guard / 10, ..fleet },
        fleet,
    ];
    println!("| | shards, at once | least possible | ready after | more | violations | windows wasted |");
    println!("|---|---:|---:|---:|---:|---:|---:|");
    fleets.iter().rev().try_for_each(Fleet::measure)
}

impl Fleet {
    fn measure(&self) -> Result<(), Box<dyn std::error::Error>> {
        let window = WINDOW.mul_f64(self.scale);
        let ready_delay = READY_DELAY.mul_f64(self.scale);
        let least = window * (self.shards.div_ceil(self.max_concurrency) - 1) + ready_delay;
        let day = Duration::from_secs(24 * 60 * 60);
        let gateway = sim::Gateway::builder()
            .shards(self.shards)
            .max_concurrency(self.max_concurrency)
            .session_starts(2000, 2000, day)
            .guilds(self.shards * 2)
            .ready_delay(READY_DELAY)
            .latency(Duration::ZERO, self.jitter)
            .time_scale(self.scale)
            .tls(self.tls)
            .start()?;
        let mut timing = Timing::scaled(self.scale);
        timing.guard = self.guard;
        let mut config =
            Config::new(Token::new(gateway.token())?, Intents::default()).rest_url(gateway.rest_url()).timing(timing);
        config.root_certificates = gateway.root_certificate().map(str::to_owned);
        let start = Instant::now();
        let manager = ShardManager::start(config)?;
        manager.wait_ready(least * 2 + Duration::from_secs(60))?;
        let took = start.elapsed();
        let seen = gateway.observed();
        // A key that identified later than one and a half windows after its last time has let one go by.
        let mut last: BTreeMap<u32, Instant> = BTreeMap::new();
        let mut wasted = 0;
        for record in seen.records.iter().filter(|record| matches!(record.action, sim::Action::Identify(_))) {
            let key = record.shard.map_or(0, |shard| shard.number() % self.max_concurrency);
            let before = last.insert(key, record.at);
            wasted += usize::from(before.is_some_and(|before| record.at - before > window.mul_f64(1.5)));
        }
        println!(
            "| {} | {}, {} | {:.2} s | {:.2} s | {:+.1} % | {} | {wasted} |",
            self.name,
            self.shards,
            self.max_concurrency,
            least.as_secs_f64(),
            took.as_secs_f64(),
            (took.as_secs_f64() / least.as_secs_f64() - 1.0) * 100.0,
            seen.violations.len(),
        );
        Ok(())
    }
}
