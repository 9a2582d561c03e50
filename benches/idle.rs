//! Idle shards, to be watched from outside: what they call and what they hold.
//!
//! `cargo bench --bench idle -- gateway [SECONDS SHARDS]` serves, and prints the environment for the other side; then,
//! with it, `cargo bench --bench idle -- shards [SECONDS SHARDS]` connects the shards (8) and lets them idle. Under
//! `strace -f -c -p PID` the second process shows every system call of its threads.

use std::time::Duration;

use threadcord::{Config, Intents, Plan, ShardManager, Token, sim};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().collect();
    let numbers: Vec<u32> = arguments.iter().filter_map(|argument| argument.parse().ok()).collect();
    let (seconds, shards) = (u64::from(*numbers.first().unwrap_or(&75)), *numbers.get(1).unwrap_or(&8));
    let has = |word: &str| arguments.iter().any(|argument| argument == word);
    if has("gateway") {
        let gateway = sim::Gateway::builder().shards(shards).max_concurrency(shards).guilds(shards).start()?;
        println!("THREADCORD_TOKEN={} THREADCORD_REST={}", gateway.token(), gateway.rest_url());
        std::thread::sleep(Duration::from_secs(seconds));
        gateway.assert_lawful();
    } else if has("shards") {
        let token = Token::new(std::env::var("THREADCORD_TOKEN")?)?;
        let config = Config::new(token, Intents::default())
            .rest_url(std::env::var("THREADCORD_REST")?)
            .plan(Plan::Total(shards));
        let manager = ShardManager::start(config)?;
        manager.wait_ready(Duration::from_secs(60))?;
        // Handled, so that nothing is outstanding.
        while manager.events().try_next().is_ok() {}
        println!("process {}: {shards} shards idle for {seconds} s", std::process::id());
        std::thread::sleep(Duration::from_secs(seconds));
    } else {
        println!("idle shards: `-- gateway` in one process, `-- shards` in another; see the head of the file");
    }
    Ok(())
}
