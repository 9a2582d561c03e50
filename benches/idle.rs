//! Idle shards, to be watched from outside: what they call and what they hold.
//!
//! `cargo bench --bench idle -- gateway` serves, and prints the environment for the other side; then, with it,
//! `cargo bench --bench idle -- shards [SECONDS]` connects 8 shards and lets them idle. Under
//! `strace -f -c -p PID` the second process shows every system call of its threads.

use std::time::Duration;

use threadcord::{Config, Intents, Plan, ShardManager, Token, sim};

const SHARDS: u32 = 8;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().collect();
    let seconds = arguments.iter().find_map(|argument| argument.parse().ok()).unwrap_or(75);
    let has = |word: &str| arguments.iter().any(|argument| argument == word);
    if has("gateway") {
        let gateway = sim::Gateway::builder().shards(SHARDS).max_concurrency(SHARDS).guilds(SHARDS).start()?;
        println!("THREADCORD_TOKEN={} THREADCORD_REST={}", gateway.token(), gateway.rest_url());
        std::thread::sleep(Duration::from_secs(seconds));
        gateway.assert_lawful();
    } else if has("shards") {
        let token = Token::new(std::env::var("THREADCORD_TOKEN")?)?;
        let config = Config::new(token, Intents::default())
            .rest_url(std::env::var("THREADCORD_REST")?)
            .plan(Plan::Total(SHARDS));
        let manager = ShardManager::start(config)?;
        manager.wait_ready(Duration::from_secs(60))?;
        // Handled, so that nothing is outstanding.
        while manager.events().try_next().is_ok() {}
        println!("process {}: {SHARDS} shards idle for {seconds} s", std::process::id());
        std::thread::sleep(Duration::from_secs(seconds));
    } else {
        println!("{SHARDS} idle shards: `-- gateway` in one process, `-- shards` in another; see the head of the file");
    }
    Ok(())
}
