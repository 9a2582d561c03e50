//! How long a fleet takes until every shard is ready, against the least that Discord's limit allows.
//!
//! `cargo bench --bench startup [-- SHARDS MAX_CONCURRENCY]`

use std::time::{Duration, Instant};

use threadcord::{Config, Intents, ShardManager, Token, sim};

const READY_DELAY: Duration = Duration::from_millis(300);
const WINDOW: Duration = Duration::from_secs(5);

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let numbers: Vec<u32> = std::env::args().filter_map(|argument| argument.parse().ok()).collect();
    let (shards, max_concurrency) = (*numbers.first().unwrap_or(&64), *numbers.get(1).unwrap_or(&16));
    let least = WINDOW * (shards.div_ceil(max_concurrency) - 1) + READY_DELAY;
    println!("{shards} shards, {max_concurrency} at once, READY after {READY_DELAY:?}: least possible {least:?}");
    for tls in [false, true] {
        let gateway = sim::Gateway::builder()
            .shards(shards)
            .max_concurrency(max_concurrency)
            .guilds(shards * 2)
            .ready_delay(READY_DELAY)
            .tls(tls)
            .start()?;
        let mut config = Config::new(Token::new(gateway.token())?, Intents::default()).rest_url(gateway.rest_url());
        config.root_certificates = gateway.root_certificate().map(str::to_owned);
        let start = Instant::now();
        let manager = ShardManager::start(config)?;
        manager.wait_ready(least * 2 + Duration::from_secs(60))?;
        let took = start.elapsed();
        let seen = gateway.observed();
        let identifies: Vec<Duration> = seen
            .records
            .iter()
            .filter(|record| matches!(record.action, sim::Action::Identify(_)))
            .map(|record| record.at - start)
            .collect();
        println!(
            "{:<3}  ready after {:.3} s: {:+.2} % of the least; {} violations; the first window's IDENTIFYs came {:?} to {:?} after the start",
            if tls { "wss" } else { "ws" },
            took.as_secs_f64(),
            (took.as_secs_f64() / least.as_secs_f64() - 1.0) * 100.0,
            seen.violations.len(),
            identifies[0],
            identifies[max_concurrency as usize - 1],
        );
    }
    Ok(())
}
