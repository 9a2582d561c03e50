//! twilight-gateway as a client of the benches' gateway. It takes the same arguments as the clients
//! of `end_to_end`.
//!
//! `peers client NAME COMPRESSION SHARDS WARM COUNT RATE URL`

use std::cell::RefCell;
use std::rc::Rc;

use futures_util::StreamExt as _;
use rustix::time::{ClockId, clock_gettime};
use serde_json::json;
use tokio::sync::Barrier;
use tokio::task::LocalSet;
use twilight_gateway::{ConfigBuilder, EventTypeFlags, Intents, Message, Shard, ShardId, ShardState, StreamExt as _};

/// The start of the event that ends a block of events; see `benches/common/stream.rs`.
const MARKER: &str = r#"{"t":"MESSAGE_POLL_VOTE_ADD""#;

const BLOCK: usize = 1000;

struct Orders {
    typed: bool,
    shards: u32,
    warm: usize,
    count: usize,
    rate: u64,
    url: String,
}

fn main() {
    let words: Vec<String> = std::env::args().skip(2).collect();
    let number = |at: usize| words[at].parse::<usize>().expect("a number");
    let orders = Orders {
        typed: words[0].contains("typed"),
        shards: u32::try_from(number(2)).expect("few"),
        warm: number(3),
        count: number(4),
        rate: number(5) as u64,
        url: words[6].clone(),
    };

    let mut core = rustix::thread::CpuSet::new();
    core.set(0);
    rustix::thread::sched_setaffinity(None, &core).expect("a core");
    rustls::crypto::ring::default_provider().install_default().expect("it is installed once");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(LocalSet::new().run_until(run(orders)));
}

async fn run(orders: Orders) {
    let orders = Rc::new(orders);
    let barrier = Rc::new(Barrier::new(orders.shards as usize + 1));
    let latencies = Rc::new(RefCell::new(Vec::new()));
    for number in 0..orders.shards {
        let (orders, barrier, latencies) = (Rc::clone(&orders), Rc::clone(&barrier), Rc::clone(&latencies));
        tokio::task::spawn_local(async move {
            let id = ShardId::new(number, orders.shards);
            let config = ConfigBuilder::new("aaa.bbb.ccc".into(), Intents::empty()).proxy_url(orders.url.clone());
            let mut shard = Shard::with_config(id, config.build());
            while shard.state() != ShardState::Active {
                shard.next().await.expect("it goes on").expect("a message");
            }
            take(&mut shard, &orders, orders.warm, &latencies).await;
            latencies.borrow_mut().clear();
            barrier.wait().await;
            take(&mut shard, &orders, orders.count, &latencies).await;
            barrier.wait().await;
        });
    }

    barrier.wait().await;
    let (cpu, switches) = (cpu(), switches());
    barrier.wait().await;
    let (cpu, switches) = (self::cpu() - cpu, self::switches() - switches);
    let mut latencies = latencies.take();
    latencies.sort_unstable();
    println!("{}", json!({"cpu": cpu, "switches": switches, "latencies": latencies}));
}

async fn take(
    shard: &mut Shard,
    orders: &Orders,
    count: usize,
    latencies: &RefCell<Vec<u64>>,
) {
    let mut ids = vec![count.to_string()];
    ids.extend((orders.rate > 0).then(|| orders.rate.to_string()));
    shard.send(json!({"op": 31, "d": {"guild_ids": ids}}).to_string());

    let mut left = count / BLOCK;
    while left > 0 {
        let is_marker = if orders.typed {
            match shard.next_event(EventTypeFlags::all()).await.expect("it goes on") {
                Ok(event) => event.kind().name() == Some("MESSAGE_POLL_VOTE_ADD"),
                // An event that twilight does not know.
                Err(_) => false,
            }
        } else {
            match shard.next().await.expect("it goes on").expect("a message") {
                Message::Text(text) => {
                    if orders.rate > 0 {
                        latencies.borrow_mut().extend(latency(&text));
                    }
                    text.starts_with(MARKER)
                }
                Message::Close(_) => panic!("the connection was closed"),
            }
        };
        left -= usize::from(is_marker);
    }
}

fn latency(text: &str) -> Option<u64> {
    let (_, rest) = text.split_once(r#""d":{"at":"#)?;
    let at: u64 = rest[..rest.find(',')?].parse().ok()?;
    nanoseconds(ClockId::Monotonic).checked_sub(at)
}

fn nanoseconds(clock: ClockId) -> u64 {
    let time = clock_gettime(clock);
    time.tv_sec.unsigned_abs() * 1_000_000_000 + time.tv_nsec.unsigned_abs()
}

fn cpu() -> u64 {
    nanoseconds(ClockId::ProcessCPUTime)
}

fn switches() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let fields = status.lines().filter(|line| line.contains("ctxt_switches"));
    fields.filter_map(|line| line.split_whitespace().last()?.parse::<u64>().ok()).sum()
}
