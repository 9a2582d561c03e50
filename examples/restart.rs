//! A bot's process ends twice, once cleanly and once by `kill -9`, while 2,000 events a second
//! arrive from the simulated gateway. Each time the next process continues where the last one was:
//! no event is missed, and no IDENTIFY is spent.
//!
//! ```sh
//! cargo run --example restart
//! ```

use std::collections::HashMap;
use std::error::Error;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde::Deserialize;
use serde_json::json;
use threadcord::store::FileStore;
use threadcord::{Config, Intents, ShardManager, Token, sim};

const GUILDS: u32 = 40;
const SHARDS: u32 = 4;
const EVENTS_PER_SECOND: u32 = 2000;
const PATIENCE: Duration = Duration::from_secs(60);

fn main() -> Result<ExitCode, Box<dyn Error>> {
    env_logger::init();
    let arguments: Vec<String> = std::env::args().collect();
    if let [_, word, rest_url, token, folder] = &arguments[..]
        && word == "bot"
    {
        bot(rest_url, token, Path::new(folder))?;
        return Ok(ExitCode::SUCCESS);
    }
    let gateway = sim::Gateway::builder()
        .shards(SHARDS)
        .max_concurrency(SHARDS)
        .guilds(GUILDS)
        .start()?;
    let folder = std::env::temp_dir().join(format!("threadcord-restart-{}", std::process::id()));
    fs::create_dir_all(&folder)?;
    let good = play(&Arc::new(gateway), &folder);
    fs::remove_dir_all(&folder)?;
    Ok(if good? {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// The bot. It records each event that it has handled, and ends when a file called `stop` appears.
fn bot(rest_url: &str, token: &str, folder: &Path) -> Result<(), Box<dyn Error>> {
    let config = Config::new(Token::new(token)?, Intents::all())
        .rest_url(rest_url)
        .session_store(FileStore::new(folder.join("sessions.json")));
    let manager = ShardManager::start(config)?;
    let mut handled = File::options()
        .create(true)
        .append(true)
        .open(folder.join("handled"))?;
    let handle = manager.handle().clone();
    let stop = folder.join("stop");
    thread::spawn(move || {
        while !stop.exists() {
            thread::sleep(Duration::from_millis(50));
        }
        handle.request_suspend();
    });

    for event in manager.events() {
        let Some(dispatch) = event
            .dispatch()
            .filter(|dispatch| dispatch.name() == "TYPING_START")
        else {
            continue;
        };
        let typing: Typing = dispatch.decode()?;
        // One write for each event, so that every event in the file has been handled.
        handled.write_all(format!("{} {}\n", typing.guild_id, typing.timestamp).as_bytes())?;
    }

    manager.suspend();
    Ok(())
}

#[derive(Deserialize)]
struct Typing {
    guild_id: String,
    timestamp: u64,
}

/// Starts a bot in a separate process, and waits until its shards are ready.
fn start(gateway: &sim::Gateway, folder: &Path) -> Result<Child, Box<dyn Error>> {
    let child = Command::new(std::env::current_exe()?)
        .args(["bot", &gateway.rest_url(), gateway.token()])
        .arg(folder)
        .spawn()?;
    gateway.expect("its shards are ready", PATIENCE, |seen| {
        seen.live.len() == SHARDS as usize
    });
    println!("process {} runs", child.id());
    Ok(child)
}

fn play(gateway: &Arc<sim::Gateway>, folder: &Path) -> Result<bool, Box<dyn Error>> {
    let mut first = start(gateway, folder)?;
    let stop = Arc::new(AtomicBool::new(false));
    let talking = thread::spawn({
        let (gateway, stop) = (Arc::clone(gateway), Arc::clone(&stop));
        move || talk(&gateway, &stop)
    });

    thread::sleep(Duration::from_secs(7));
    File::create(folder.join("stop"))?;
    first.wait()?;
    fs::remove_file(folder.join("stop"))?;
    let at_suspend = repeats(&handled(folder)?);
    println!("it has suspended; Discord keeps its events");
    thread::sleep(Duration::from_secs(1));

    let mut second = start(gateway, folder)?;
    thread::sleep(Duration::from_secs(7));
    second.kill()?;
    second.wait()?;
    let at_kill = repeats(&handled(folder)?);
    println!("it was killed; its sessions were last written up to 5 s ago");
    thread::sleep(Duration::from_secs(1));

    let mut third = start(gateway, folder)?;
    stop.store(true, Ordering::Release);
    let sent = talking
        .join()
        .map_err(|_| "the thread that talks has panicked")?;

    let deadline = Instant::now() + PATIENCE;
    while missing(&handled(folder)?, sent) > 0 && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(100));
    }
    File::create(folder.join("stop"))?;
    third.wait()?;

    let handled = handled(folder)?;
    let (missing, repeated) = (missing(&handled, sent), repeats(&handled));
    let seen = gateway.observed();
    let identifies = seen.count(|action| matches!(action, sim::Action::Identify(_)));
    println!(
        "events sent {}, missing {missing}",
        sent * u64::from(GUILDS)
    );
    println!(
        "handled twice: before the kill {at_kill}, after it {}",
        repeated - at_kill
    );
    println!(
        "IDENTIFYs {identifies}, for {SHARDS} shards; rules broken {}",
        seen.violations.len()
    );
    let good = missing == 0 && at_suspend == 0 && at_kill == 0 && identifies == SHARDS as usize;
    Ok(good && seen.violations.is_empty())
}

/// How often each event was handled.
fn handled(folder: &Path) -> std::io::Result<HashMap<String, u64>> {
    let path: PathBuf = folder.join("handled");
    let mut counts = HashMap::new();
    for line in fs::read_to_string(path)?.lines() {
        *counts.entry(line.to_owned()).or_default() += 1;
    }
    Ok(counts)
}

fn repeats(handled: &HashMap<String, u64>) -> u64 {
    handled.values().map(|count| count - 1).sum()
}

fn missing(handled: &HashMap<String, u64>, sent: u64) -> u64 {
    (sent * u64::from(GUILDS)).saturating_sub(handled.len() as u64)
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
