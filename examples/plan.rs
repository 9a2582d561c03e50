//! Draws a chart of how long it takes until all shards of a bot run.
//!
//! ```sh
//! cargo run --example plan -- 320 16        # 320 shards, max_concurrency 16
//! cargo run --example plan -- 320 16 300    # of which 300 resume a session
//! DISCORD_TOKEN=... cargo run --example plan    # as many as Discord recommends
//! ```

use std::error::Error;
use std::time::Duration;
use std::{env, process};

use threadcord::rest::{Rest, SessionStartLimit};
use threadcord::{Timing, Token};

/// How wide the chart is, in characters.
const WIDTH: usize = 50;

/// More rows than this are drawn in groups.
const MAX_ROWS: usize = 20;

fn main() -> Result<(), Box<dyn Error>> {
    let numbers: Result<Vec<usize>, _> = env::args().skip(1).map(|text| text.parse()).collect();
    let asks = numbers.as_ref().is_ok_and(|numbers| numbers.len() < 2);
    let limit = if asks { ask_discord()? } else { None };
    let recommended = limit.as_ref().map(|(shards, _)| *shards);
    let max_concurrency = limit
        .as_ref()
        .map_or(1, |(_, limit)| limit.max_concurrency.get() as usize);
    let (shards, max_concurrency, resumed) = match (numbers.as_deref(), recommended) {
        (Ok([]), Some(shards)) => (shards, max_concurrency, 0),
        (Ok([shards]), _) => (*shards, max_concurrency, 0),
        (Ok([shards, max_concurrency]), _) => (*shards, *max_concurrency, 0),
        (Ok([shards, max_concurrency, resumed]), _) => (*shards, *max_concurrency, *resumed),
        _ => usage(),
    };
    if shards == 0 || max_concurrency == 0 || resumed > shards {
        usage();
    }

    let waves = waves(shards - resumed, max_concurrency, resumed);
    let identifies = shards - resumed;
    println!("{shards} shards, {max_concurrency} may identify at once; {resumed} of them resume\n");
    draw(&waves, shards);

    let last = waves.last().map_or(Duration::ZERO, |wave| wave.at);
    println!(
        "\nThe last IDENTIFY is sent after {:.1} s. READY and the guilds follow each by a few seconds.",
        last.as_secs_f64()
    );
    if let Some((_, limit)) = limit {
        let left = limit.remaining as usize;
        println!("{identifies} of {left} IDENTIFYs that are left today are spent.");
        if identifies > left {
            println!("That is too few: the others wait for the reset.");
        }
    } else if identifies > 1000 {
        println!("Most bots have 1000 IDENTIFYs a day: too few for {identifies}.");
    }
    Ok(())
}

fn usage() -> ! {
    eprintln!("usage: plan [SHARDS [MAX_CONCURRENCY [SHARDS_THAT_RESUME]]], each at least 1");
    eprintln!("without SHARDS, DISCORD_TOKEN is needed to ask Discord how many it recommends");
    process::exit(2)
}

/// The number of shards that Discord recommends, and the bot's limit, if a token is set.
fn ask_discord() -> Result<Option<(usize, SessionStartLimit)>, Box<dyn Error>> {
    let Ok(token) = env::var("DISCORD_TOKEN") else {
        return Ok(None);
    };
    let mut rest = Rest::builder(Token::new(token)?);
    if let Ok(url) = env::var("DISCORD_REST_URL") {
        rest = rest.base_url(url);
    }
    let answer = rest.build()?.gateway_bot()?;
    let shards = answer.shards.get() as usize;
    Ok(Some((shards, answer.session_start_limit)))
}

/// Shards that start at the same time.
struct Wave {
    at: Duration,
    count: usize,
}

/// Sessions are resumed at once. A shard identifies when its key (its number modulo
/// `max_concurrency`) is free: one of each key in a window.
fn waves(identifies: usize, max_concurrency: usize, resumed: usize) -> Vec<Wave> {
    let timing = Timing::default();
    let window = timing.identify_window + timing.guard;
    let mut waves = Vec::new();
    let mut left = identifies;
    for number in 0.. {
        let count = left.min(max_concurrency);
        let resumed = if number == 0 { resumed } else { 0 };
        if count + resumed == 0 {
            break;
        }
        waves.push(Wave {
            at: window * number,
            count: count + resumed,
        });
        left -= count;
    }
    waves
}

fn draw(waves: &[Wave], shards: usize) {
    let per_row = waves.len().div_ceil(MAX_ROWS);
    let mut started = 0;
    for rows in waves.chunks(per_row) {
        started += rows.iter().map(|wave| wave.count).sum::<usize>();
        let filled = started * WIDTH / shards;
        let bar = format!("{}{}", "#".repeat(filled), ".".repeat(WIDTH - filled));
        let at = rows.last().map_or(0.0, |wave| wave.at.as_secs_f64());
        println!("{at:>8.1} s  {bar}  {started:>6}");
    }
}
