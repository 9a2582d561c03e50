//! Reshards a bot from 4 shards to 6 and back while 2,000 events a second arrive, against the
//! simulated gateway with Discord's real windows. No event is lost, repeated or out of order, and
//! no guild is interrupted.
//!
//! ```sh
//! cargo run --example reshard
//! ```

use std::collections::HashMap;
use std::error::Error;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde::Deserialize;
use serde_json::json;
use threadcord::{Config, EventKind, Events, Intents, Plan, ShardManager, Token, sim};

const GUILDS: u32 = 40;
const EVENTS_PER_SECOND: u32 = 2000;
const PATIENCE: Duration = Duration::from_secs(60);

fn main() -> Result<ExitCode, Box<dyn Error>> {
    env_logger::init();
    let gateway = sim::Gateway::builder()
        .shards(4)
        .max_concurrency(4)
        .guilds(GUILDS)
        .start()?;
    let config =
        Config::new(Token::new(gateway.token())?, Intents::all()).rest_url(gateway.rest_url());

    let manager = ShardManager::start(config)?;
    let events = manager.events();
    let counting = thread::spawn(move || count(events));
    manager.wait_guilds(PATIENCE)?;

    let (gateway, stop) = (Arc::new(gateway), Arc::new(AtomicBool::new(false)));
    let talking = thread::spawn({
        let (gateway, stop) = (Arc::clone(&gateway), Arc::clone(&stop));
        move || talk(&gateway, &stop)
    });

    for total in [6, 4] {
        println!("--- to {total} shards");
        let start = Instant::now();
        let reshard = manager.handle().reshard(&Plan::Total(total))?;
        thread::sleep(Duration::from_secs(3));
        println!("{}\n", manager.handle().status());

        reshard.wait(PATIENCE)?;
        println!(
            "--- {total} shards run, {:.1} s later",
            start.elapsed().as_secs_f64()
        );
        println!("{}\n", manager.handle().status());
    }

    stop.store(true, Ordering::Release);
    let sent = talking
        .join()
        .map_err(|_| "the thread that talks has panicked")?;
    thread::sleep(Duration::from_millis(500));
    manager.close();
    let counted = counting
        .join()
        .map_err(|_| "the thread that counts has panicked")?;
    let expected = sent * u64::from(GUILDS);
    Ok(show(expected, &counted, &gateway))
}

/// Prints the counts, and returns whether everything is as expected.
fn show(expected: u64, counted: &Counted, gateway: &sim::Gateway) -> ExitCode {
    println!(
        "events sent {expected}, received {}, out of order or delivered twice {}",
        counted.events, counted.wrong
    );
    println!(
        "longest time without an event of some guild: {:.0} ms",
        counted.silence.as_secs_f64() * 1e3
    );
    let violations = gateway.observed().violations.len();
    println!("rules broken, as the gateway saw it: {violations}");

    if counted.events == expected && counted.wrong == 0 && violations == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// Sends numbered events in every guild until it is stopped. Returns the number for each guild.
fn talk(gateway: &sim::Gateway, stop: &AtomicBool) -> u64 {
    let (start, mut sent) = (Instant::now(), 0);
    let guilds = gateway.guild_ids();
    while !stop.load(Ordering::Acquire) {
        for guild in &guilds {
            let typing = json!({"guild_id": guild.to_string(), "channel_id": "1", "user_id": "2", "timestamp": sent});
            if let Err(error) = gateway.emit(Some(*guild), "TYPING_START", &typing) {
                eprintln!("{error}");
            }
        }
        sent += 1;
        let due = start + Duration::from_secs(1) * sent * GUILDS / EVENTS_PER_SECOND;
        thread::sleep(due.saturating_duration_since(Instant::now()));
    }
    sent.into()
}

#[derive(Default)]
struct Counted {
    events: u64,
    wrong: u64,
    silence: Duration,
}

#[derive(Deserialize)]
struct Typing {
    guild_id: String,
    timestamp: u64,
}

/// Takes every event, until the shards have stopped.
fn count(events: Events) -> Counted {
    let mut counted = Counted::default();
    let mut last: HashMap<String, (u64, Instant)> = HashMap::new();
    for event in events {
        if let EventKind::Resharded { from, to } = event.kind() {
            println!(
                "--- {} shards have taken over from {}",
                to.len(),
                from.len()
            );
        }
        let Some(dispatch) = event
            .dispatch()
            .filter(|dispatch| dispatch.name() == "TYPING_START")
        else {
            continue;
        };
        let Ok(typing) = dispatch.decode::<Typing>() else {
            continue;
        };
        counted.events += 1;
        let now = Instant::now();
        let before = last.insert(typing.guild_id, (typing.timestamp, now));
        let expected = before.map_or(0, |(number, _)| number + 1);
        counted.wrong += u64::from(typing.timestamp != expected);
        counted.silence = counted
            .silence
            .max(before.map_or(Duration::ZERO, |(_, at)| now - at));
    }
    counted
}
