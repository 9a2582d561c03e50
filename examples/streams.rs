//! Forwards every event to Redis Streams, one stream per shard. An event counts as handled only
//! when Redis has it: a crash loses nothing, but may repeat the events that Redis took just before.
//!
//! ```sh
//! REDIS_URL=redis://127.0.0.1/ cargo run --features redis --example streams
//! redis-cli XREAD COUNT 1 STREAMS events:0 0
//! ```
//!
//! Each entry has the shard, the sequence, the name and the data. The entries of a shard are in
//! order. A repeated entry has the same sequence and data as before.

mod common;

use std::time::{Duration, Instant};
use std::{env, thread};

use redis::{Client, Connection, RedisResult};
use threadcord::store::FileStore;
use threadcord::{Event, Intents, ShardManager};

/// The maximum number of events per call to Redis. More events wait in the shards, which stop
/// reading when too many wait.
const BATCH: usize = 500;

/// Old entries are removed when a stream is longer than about this.
const KEPT: usize = 1_000_000;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let config = common::config(Intents::default() | Intents::MESSAGE_CONTENT)?;
    let url = env::var("REDIS_URL").unwrap_or_else(|_| "redis://127.0.0.1/".into());
    let client = Client::open(url)?;
    let sessions = env::var("SESSIONS").unwrap_or_else(|_| "sessions.json".into());
    let manager = ShardManager::start(config.session_store(FileStore::new(sessions)))?;
    let handle = manager.handle().clone();
    ctrlc::set_handler(move || handle.request_suspend())?;

    let events = manager.events();
    let (mut connection, mut batch) = (None, Vec::with_capacity(BATCH));
    let (mut count, mut last) = (0_u32, Instant::now());
    while let Ok(first) = events.receiver().recv() {
        batch.push(first);
        batch.extend(events.receiver().try_iter().take(BATCH - 1));
        while let Err(error) = forward(&client, &mut connection, &batch) {
            // All of them are sent again, including those that Redis has already.
            eprintln!("Redis has not taken {} events: {error}", batch.len());
            connection = None;
            thread::sleep(Duration::from_secs(1));
        }
        count += u32::try_from(batch.len()).unwrap_or_default();
        // Redis has them, so that they count as handled.
        batch.clear();
        if last.elapsed() >= Duration::from_secs(5) {
            println!(
                "{:.0} events/s",
                f64::from(count) / last.elapsed().as_secs_f64()
            );
            (count, last) = (0, Instant::now());
        }
    }
    Ok(manager.check()?)
}

/// Appends events to the streams of their shards, in one call.
fn forward(
    client: &Client,
    connection: &mut Option<Connection>,
    events: &[Event],
) -> RedisResult<()> {
    let mut calls = redis::pipe();
    for event in events {
        let Some(dispatch) = event.dispatch() else {
            continue;
        };
        let add = calls
            .cmd("XADD")
            .arg(format!("events:{}", event.shard().number()));
        add.arg("MAXLEN").arg("~").arg(KEPT).arg("*");
        add.arg("shard").arg(event.shard().to_string());
        add.arg("sequence").arg(dispatch.sequence());
        add.arg("name").arg(dispatch.name().to_string());
        add.arg("data").arg(dispatch.data()).ignore();
    }
    if calls.is_empty() {
        return Ok(());
    }

    let connection = match connection {
        Some(connection) => connection,
        none => none.insert(client.get_connection_with_timeout(Duration::from_secs(5))?),
    };
    connection.set_read_timeout(Some(Duration::from_secs(5)))?;
    calls.query(connection)
}
