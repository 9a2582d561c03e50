//! A bot that answers `!ping`, and shows the events of its shards' connections.
//!
//! With `DISCORD_TOKEN` it connects to Discord. Without, it starts a simulated gateway over TLS,
//! injects three faults, and ends with a table. Ctrl-C suspends it.

use std::collections::BTreeMap;
use std::error::Error;
use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, bounded, never, select, tick};
use serde::Deserialize;
use serde_json::json;
use threadcord::{
    Config, Event, EventKind, Handle, Intents, ShardId, ShardManager, ShardState, Token, sim,
};

/// How long the simulated bot just listens before the first fault and after the last.
const QUIET: Duration = Duration::from_secs(2);

/// The timeout for each step of the simulation.
const PATIENCE: Duration = Duration::from_secs(60);

fn main() -> ExitCode {
    start().unwrap_or_else(|error| {
        eprintln!("{error}");
        let mut cause = error.source();
        while let Some(error) = cause {
            eprintln!("  because {error}");
            cause = error.source();
        }
        ExitCode::FAILURE
    })
}

fn start() -> Result<ExitCode, Box<dyn Error>> {
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("error")).init();
    let intents = Intents::default() | Intents::MESSAGE_CONTENT;
    if let Ok(token) = std::env::var("DISCORD_TOKEN") {
        return Bot::start(Config::new(Token::new(token)?, intents))?.run(&never());
    }

    let gateway = sim::Gateway::builder()
        .tls(true)
        .shards(4)
        .max_concurrency(2)
        .guilds(24)
        .activity(50.0)
        .ready_delay(Duration::from_millis(300))
        .heartbeat_interval(Duration::from_secs(3))
        .start()?;

    println!(
        "no DISCORD_TOKEN: a simulated gateway serves {}, with 24 guilds on 4 shards",
        gateway.url()
    );
    let config = Config::new(Token::new(gateway.token())?, intents)
        .rest_url(gateway.rest_url())
        .root_certificates(gateway.root_certificate().unwrap_or_default());

    let bot = Bot::start(config)?;
    let handle = bot.manager.handle().clone();
    let gateway = Arc::new(gateway);
    let (done, finished) = bounded(1);
    let world = Arc::clone(&gateway);
    // No thread joins it: Ctrl-C ends the program at any point of the script.
    thread::spawn(move || done.send(play(&world, &handle)));
    let code = bot.run(&finished)?;
    show_identifies(&gateway);
    Ok(code)
}

/// The script of the simulation; it begins when every shard is ready.
fn play(gateway: &sim::Gateway, handle: &Handle) -> Result<(), String> {
    let shard = |number| ShardId::new(number, 4).map_err(|error| error.to_string());
    let live = |count: usize| gateway.wait_for(PATIENCE, |seen| seen.live.len() == count);
    let counters = |id| handle.shard(id).map(|shard| shard.counters());
    if !live(4) {
        return Err("the shards did not get ready".into());
    }
    thread::sleep(QUIET);

    let (reconnected, cut, invalidated) = (shard(1)?, shard(2)?, shard(3)?);
    println!("--- shard {reconnected} is asked to reconnect (op 7)");
    gateway.inject(reconnected, sim::Fault::Reconnect);
    until("it resumes", || {
        counters(reconnected).is_some_and(|counters| counters.resumes == 1)
    })?;

    println!("--- shard {cut} is cut off");
    gateway.inject(cut, sim::Fault::Cut);
    until("it resumes", || {
        counters(cut).is_some_and(|counters| counters.resumes == 1)
    })?;

    println!(
        "--- the session of shard {invalidated} is declared invalid (op 9 false): it has to identify again"
    );
    gateway.inject(invalidated, sim::Fault::InvalidSession { resumable: false });
    until("it is back", || {
        handle.shard(invalidated).is_some_and(|shard| {
            shard.counters().identifies == 2 && shard.status().state == ShardState::Ready
        })
    })?;

    println!("--- a user writes !ping");
    let guild = gateway.guild_ids()[0];
    let channel = gateway
        .channel_of(guild)
        .ok_or("a guild without a channel")?;
    gateway
        .chat(channel, "!ping")
        .map_err(|error| error.to_string())?;
    thread::sleep(QUIET);
    Ok(())
}

fn until(what: &str, condition: impl Fn() -> bool) -> Result<(), String> {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        if Instant::now() > deadline {
            return Err(format!("timed out: {what}"));
        }
        thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

struct Bot {
    manager: ShardManager,
    interrupted: Receiver<()>,
    rows: BTreeMap<ShardId, Row>,
    pongs: usize,
    shown: Instant,
    progress: String,
}

/// What was counted for a shard.
#[derive(Default)]
struct Row {
    events: u64,
    last: u64,
    gaps: u64,
    duplicates: u64,
}

#[derive(Deserialize)]
struct Message {
    channel_id: String,
    content: String,
    author: Author,
}

#[derive(Deserialize)]
struct Author {
    username: String,
    #[serde(default)]
    bot: bool,
}

impl Bot {
    fn start(config: Config) -> Result<Self, Box<dyn Error>> {
        let (interrupt, interrupted) = bounded(1);
        ctrlc::set_handler(move || {
            // A second Ctrl-C changes nothing.
            let _ = interrupt.try_send(());
        })?;
        let manager = ShardManager::start(config)?;
        Ok(Self {
            manager,
            interrupted,
            rows: BTreeMap::new(),
            pongs: 0,
            shown: Instant::now(),
            progress: String::new(),
        })
    }

    /// Takes events until Ctrl-C, until the script of the simulation has ended, or until every
    /// shard has stopped.
    fn run(mut self, finished: &Receiver<Result<(), String>>) -> Result<ExitCode, Box<dyn Error>> {
        let events = self.manager.events();
        let progress = tick(Duration::from_millis(200));
        loop {
            select! {
                recv(events.receiver()) -> event => match event {
                    Ok(event) => self.handle(&event),
                    Err(_) => break,
                },
                recv(progress) -> _ => self.show_progress(),
                recv(self.interrupted) -> _ => {
                    let sessions = self.manager.suspend();
                    println!("\nsuspended: {} sessions can be resumed for a few minutes", sessions.len());
                    return Ok(ExitCode::SUCCESS);
                }
                recv(finished) -> outcome => {
                    outcome??;
                    let good = self.show_table();
                    return Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE });
                }
            }
        }

        println!("every shard has stopped");
        Ok(ExitCode::FAILURE)
    }

    fn handle(&mut self, event: &Event) {
        let row = self.rows.entry(event.shard()).or_default();
        match event.kind() {
            EventKind::Dispatch(dispatch) => {
                row.events += 1;
                if dispatch.name() != "RESUMED" {
                    row.gaps += dispatch.sequence().saturating_sub(row.last + 1);
                    row.duplicates += u64::from(dispatch.sequence() <= row.last);
                    row.last = dispatch.sequence();
                }
                if dispatch.name() == "MESSAGE_CREATE"
                    && let Ok(message) = dispatch.decode::<Message>()
                {
                    self.answer(event.shard(), &message);
                }

                if self.shown.elapsed() > Duration::from_millis(100) {
                    self.shown = Instant::now();
                    println!(
                        "shard {}  {:<21} sequence {}",
                        event.shard(),
                        dispatch.name(),
                        dispatch.sequence()
                    );
                }
            }
            EventKind::SessionStarted => {
                row.last = 0;
                println!("shard {}  ready", event.shard());
            }
            other => println!("shard {}  {other:?}", event.shard()),
        }
    }

    fn answer(&mut self, shard: ShardId, message: &Message) {
        if message.content == "!ping" && !message.author.bot {
            println!("shard {shard}  {} says !ping", message.author.username);
            let path = format!("/channels/{}/messages", message.channel_id);
            let pong = json!({"content": "pong"});
            let rest = self.manager.handle().rest();
            if let Err(error) = rest.post(&path).json(&pong).send() {
                eprintln!("the answer failed: {error}");
            }
        } else if message.content == "pong" && message.author.bot {
            println!("shard {shard}  {} says pong", message.author.username);
            self.pongs += 1;
        }
    }

    /// A line that is updated in place until all shards are ready.
    fn show_progress(&mut self) {
        let stages: Vec<String> = self
            .manager
            .handle()
            .shards()
            .iter()
            .map(|shard| format!("{} {}", shard.id(), shard.status().state))
            .collect();
        let progress = stages.join(" | ");

        if stages.iter().all(|stage| stage.ends_with(" ready")) || progress == self.progress {
            return;
        }

        if std::io::stdout().is_terminal() {
            print!("\r\x1b[K{progress}\r");
            // If flushing fails, this line is flushed together with the next one.
            let _ = std::io::stdout().flush();
        } else {
            println!("{progress}");
        }
        self.progress = progress;
    }

    /// Prints the table, and returns whether everything is as expected.
    fn show_table(&self) -> bool {
        println!(
            "\n  shard   events  resumes  identifies  latency  gaps  duplicates  sessions lost"
        );

        let (mut faults, mut lost) = (0, 0);
        for shard in self.manager.handle().shards() {
            let (counters, row) = (shard.counters(), &self.rows[&shard.id()]);
            let latency = shard.latency().map_or("-".into(), |latency| {
                format!("{:.1} ms", latency.as_secs_f64() * 1e3)
            });
            println!(
                "{:>7}  {:>7}  {:>7}  {:>10}  {:>7}  {:>4}  {:>10}  {:>13}",
                shard.id().to_string(),
                row.events,
                counters.resumes,
                counters.identifies,
                latency,
                row.gaps,
                row.duplicates,
                counters.sessions_lost,
            );
            faults += row.gaps + row.duplicates;
            lost += counters.sessions_lost;
        }

        println!("answered over REST: {} of 1", self.pongs);
        faults == 0 && lost == 1 && self.pongs == 1
    }
}

/// Prints when the shards identified, and the time between the IDENTIFYs of each key.
fn show_identifies(gateway: &sim::Gateway) {
    let seen = gateway.observed();
    let identifies: Vec<_> = seen
        .records
        .iter()
        .filter(|record| matches!(record.action, sim::Action::Identify(_)))
        .collect();
    let Some(first) = identifies.first().map(|record| record.at) else {
        return;
    };

    for key in 0..2 {
        let of_key: Vec<String> = identifies
            .iter()
            .filter_map(|record| {
                Some((
                    record.shard.filter(|shard| shard.number() % 2 == key)?,
                    record.at - first,
                ))
            })
            .map(|(shard, after)| format!("shard {shard} at {:.2} s", after.as_secs_f64()))
            .collect();
        println!("IDENTIFYs of key {key}: {}", of_key.join(", "));
    }

    println!(
        "rules broken, as the gateway saw it: {}",
        seen.violations.len()
    );
}
