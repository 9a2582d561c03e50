//! One of several processes of a bot, coordinated by Redis, each with a part of its shards. A
//! second process with the same part waits, and resumes its sessions when the first is stopped or
//! killed.
//!
//! ```sh
//! cargo run --features redis --example fleet -- 0 2    # part 0 of 2; again in other terminals
//! ```
//!
//! The URL of Redis is taken from `REDIS_URL`. Ctrl-C suspends.

mod common;

use std::process;
use std::time::{Duration, Instant};
use std::{env, error::Error};

use threadcord::redis::Redis;
use threadcord::{EventKind, Intents, Plan, ShardManager};

fn main() -> Result<(), Box<dyn Error>> {
    let numbers = env::args().skip(1).map(|argument| argument.parse());
    let Ok([part, parts]) = <[u32; 2]>::try_from(numbers.collect::<Result<Vec<_>, _>>()?) else {
        eprintln!("usage: fleet PART PARTS, for example: fleet 0 2");
        process::exit(2);
    };
    let config = common::config(Intents::GUILD_MESSAGES)?;
    let url = env::var("REDIS_URL").unwrap_or_else(|_| "redis://127.0.0.1/".into());
    let redis = Redis::open(&url, &config.token)?;

    println!("process {} waits for part {part} of {parts}", process::id());
    let start = Instant::now();
    let owned = redis.part(part, parts).acquire(Duration::MAX)?;
    println!("it owns the part after {:.1?}", start.elapsed());

    let config = config
        .plan(Plan::bucket(part, parts))
        .limiter(redis.identify_limit())
        .session_store(owned);
    let manager = ShardManager::start(config)?;
    let handle = manager.handle().clone();
    ctrlc::set_handler(move || handle.request_suspend())?;

    manager.run(2, |_, event| match event.kind() {
        EventKind::SessionStarted => println!("{} identified", event.shard()),
        EventKind::Resumed => println!("{} resumed", event.shard()),
        _ => {}
    })?;
    println!("suspended: the next process resumes");
    Ok(())
}
