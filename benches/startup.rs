//! Measures the time until every shard of a fleet is ready, compared with the minimum that
//! Discord's limit allows.
//!
//! `cargo bench --bench startup`: 8 shards, two at a time, in real time, without and with TLS, and
//! with network jitter; then a thousand, sixteen at a time, ten times as fast as Discord.
//!
//! The gateway judges an IDENTIFY by the time at which it was read, which on a busy machine is
//! later than its arrival; the next one of the key then looks early. So the client's own clock is
//! used as well: it measures from the end of one send to the start of the next.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use std::{io, mem};

use threadcord::transport::{
    Connector, Received, Settings, Transport, TransportError, Uri, Waker, WebSocketConnector,
    WebSocketTransport,
};
use threadcord::{Config, Intents, ShardId, ShardManager, Timing, Token, sim};

const READY_DELAY: Duration = Duration::from_millis(300);
const WINDOW: Duration = Duration::from_secs(5);

/// A fleet, and the conditions under which it starts.
struct Fleet {
    name: &'static str,
    shards: u32,
    max_concurrency: u32,
    tls: bool,
    /// The maximum network delay of each message, in each direction.
    jitter: Duration,
    /// All durations as a fraction of Discord's; 1.0 is real time.
    scale: f64,
    guard: Duration,
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let guard = Timing::default().guard;
    let fleet = Fleet {
        name: "ws",
        shards: 8,
        max_concurrency: 2,
        tls: false,
        jitter: Duration::ZERO,
        scale: 1.0,
        guard,
    };

    let fleets = [
        Fleet {
            name: "wss",
            tls: true,
            ..fleet
        },
        Fleet {
            name: "ws, jitter of up to 80 ms",
            jitter: Duration::from_millis(80),
            ..fleet
        },
        // The guard compensates for network delay, which does not scale with the clock. Within one
        // machine the delay is short, so that a shorter guard is enough.
        Fleet {
            name: "ws",
            shards: 1000,
            max_concurrency: 16,
            scale: 0.1,
            guard: guard / 10,
            ..fleet
        },
        fleet,
    ];
    println!(
        "| | shards, at once | minimum possible | ready after | difference | violations | sent too early | windows wasted | first IDENTIFY after | the next IDENTIFY of a key, after the window's end |"
    );
    println!("|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|");
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
        let mut config = Config::new(Token::new(gateway.token())?, Intents::default())
            .rest_url(gateway.rest_url())
            .timing(timing);
        config.root_certificates = gateway.root_certificate().map(str::to_owned);
        let start = Instant::now();
        let sent = Arc::<Mutex<Vec<Sent>>>::default();
        let manager = ShardManager::start_with(config, |inner| Timed {
            inner,
            sent: Arc::clone(&sent),
        })?;
        manager.wait_ready(least * 2 + Duration::from_secs(60))?;
        let took = start.elapsed();

        let sent = mem::take(&mut *sent.lock().expect("no thread panics"));
        self.report(least, took, start, sent, &gateway.observed());
        Ok(())
    }

    /// Prints the row of one fleet.
    fn report(
        &self,
        least: Duration,
        took: Duration,
        start: Instant,
        sent: Vec<Sent>,
        seen: &sim::Observed,
    ) {
        let window = WINDOW.mul_f64(self.scale);
        let read = seen
            .records
            .iter()
            .filter(|record| matches!(record.action, sim::Action::Identify(_)));
        let read = read.filter_map(|record| {
            Some(Sent {
                shard: record.shard?,
                before: record.at,
                after: record.at,
            })
        });
        // A key that identified more than half a window after its window's end has wasted a window.
        let is_wasted = |late: &&f64| **late > window.as_secs_f64() * 500.0;
        let wasted = after_window(read.collect(), self.max_concurrency, window)
            .iter()
            .filter(is_wasted)
            .count();

        assert!(
            sent.len() >= self.shards as usize,
            "{} IDENTIFYs seen",
            sent.len()
        );
        let first = sent
            .iter()
            .map(|sent| sent.before - start)
            .min()
            .unwrap_or_default();
        let after_window = after_window(sent, self.max_concurrency, window);
        let early = after_window.iter().filter(|late| **late < 0.0).count();
        let median = after_window
            .get(after_window.len() / 2)
            .copied()
            .unwrap_or_default();
        println!(
            "| {} | {}, {} | {:.2} s | {:.2} s | {:+.1} % | {} | {early} | {wasted} | {:.0} ms | {median:.1} ms |",
            self.name,
            self.shards,
            self.max_concurrency,
            least.as_secs_f64(),
            took.as_secs_f64(),
            (took.as_secs_f64() / least.as_secs_f64() - 1.0) * 100.0,
            seen.violations.len(),
            first.as_secs_f64() * 1000.0,
        );
    }
}

/// How many milliseconds each IDENTIFY was sent after the end of the window of the previous one of
/// its key, sorted. A negative value means too early.
fn after_window(mut sent: Vec<Sent>, max_concurrency: u32, window: Duration) -> Vec<f64> {
    let mut last: BTreeMap<u32, Instant> = BTreeMap::new();
    sent.sort_unstable_by_key(|sent| sent.before);
    let late = |sent: Sent| {
        let before = last.insert(sent.shard.number() % max_concurrency, sent.after)?;
        Some(((sent.before - before).as_secs_f64() - window.as_secs_f64()) * 1000.0)
    };
    let mut late: Vec<f64> = sent.into_iter().filter_map(late).collect();
    late.sort_unstable_by(f64::total_cmp);
    late
}

/// The time before and after an IDENTIFY was written to the socket.
struct Sent {
    shard: ShardId,
    before: Instant,
    after: Instant,
}

/// Records when IDENTIFYs are sent.
struct Timed {
    inner: WebSocketConnector,
    sent: Arc<Mutex<Vec<Sent>>>,
}

struct TimedTransport {
    shard: ShardId,
    inner: WebSocketTransport,
    sent: Arc<Mutex<Vec<Sent>>>,
}

impl Connector for Timed {
    type Transport = TimedTransport;

    fn transport(&self, shard: ShardId, settings: Settings) -> io::Result<TimedTransport> {
        Ok(TimedTransport {
            shard,
            inner: self.inner.transport(shard, settings)?,
            sent: Arc::clone(&self.sent),
        })
    }
}

impl Transport for TimedTransport {
    fn connect(&mut self, url: &Uri, deadline: Instant) -> Result<(), TransportError> {
        self.inner.connect(url, deadline)
    }

    fn read(&mut self) -> Result<Received, TransportError> {
        self.inner.read()
    }

    fn send(&mut self, text: String) -> Result<(), TransportError> {
        self.inner.send(text)
    }

    fn send_secret(&mut self, text: &str) -> Result<(), TransportError> {
        let before = Instant::now();
        let result = self.inner.send_secret(text);
        // The only other secret is a RESUME.
        if text.contains(r#""op":2"#) {
            let sent = Sent {
                shard: self.shard,
                before,
                after: Instant::now(),
            };
            self.sent.lock().expect("no thread panics").push(sent);
        }
        result
    }

    fn written(&self) -> u64 {
        self.inner.written()
    }

    fn wait(&mut self, until: Option<Instant>, reading: bool) -> Result<(), TransportError> {
        self.inner.wait(until, reading)
    }

    fn disconnect(&mut self, code: Option<u16>, deadline: Instant) {
        self.inner.disconnect(code, deadline);
    }

    fn shrink(&mut self) {
        self.inner.shrink();
    }

    fn waker(&self) -> Waker {
        self.inner.waker()
    }
}
