//! Reshards, suspends and restarts under load, on a bad line: each event is handled once.
//!
//! `THREADCORD_UPHEAVAL_SECONDS` makes it longer than it is for everyday, and
//! `THREADCORD_UPHEAVAL_SEED` repeats one.

mod common;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use common::{PATIENCE, config, ready};
use fastrand::Rng;
use serde_json::json;
use threadcord::limit::{Limits, ReleaseAfter, SessionLimit};
use threadcord::sim::{Answer, Fault, Gateway, Target};
use threadcord::{Config, Event, EventKind, Operation, Plan, ShardManager};

const GUILDS: u32 = 24;

/// Events a second, in all.
const RATE: u64 = 1000;

/// What makes a line bad without ending a session.
fn faults() -> Vec<Fault> {
    [
        "cut",
        "reset",
        "cut-in-frame",
        "reconnect",
        "heartbeat-request",
        "close=4000",
        "invalid-session=true",
        "delay=20ms+200ms",
        "replay-twice",
        "repeat",
        "resume-url=dead",
    ]
    .map(|word| word.parse().unwrap())
    .into()
}

/// How often the program has handled each event, by guild and number.
#[derive(Default)]
struct Book {
    handled: HashMap<(u64, u64), usize>,
    last: HashMap<u64, u64>,
    lost: usize,
    out_of_order: Vec<(u64, u64, u64)>,
}

impl Book {
    fn note(&mut self, event: &Event) {
        if let EventKind::SessionLost { .. } = event.kind() {
            self.lost += 1;
        }
        let Some((guild, number)) = common::number(event) else {
            return;
        };
        *self.handled.entry((guild, number)).or_default() += 1;
        let last = self.last.insert(guild, number);
        if let Some(last) = last.filter(|last| *last >= number) {
            self.out_of_order.push((guild, last, number));
        }
    }
}

/// A gateway under load, a manager, and what it has handled.
struct Play {
    gateway: Arc<Gateway>,
    config: Config,
    manager: Option<ShardManager>,
    book: Book,
    rng: Rng,
    reshards: usize,
    suspends: usize,
}

impl Play {
    fn new(seed: u64) -> Self {
        let takeovers = ["nothing", "reconnect", "close:4000", "invalid-session:true"];
        let takeover: Answer = takeovers[usize::try_from(seed % 4).unwrap()]
            .parse()
            .unwrap();
        let gateway = common::gateway()
            .shards(2)
            .max_concurrency(16)
            .guilds(GUILDS)
            .session_starts(1_000_000, 1_000_000, Duration::from_secs(24 * 60 * 60))
            .on_takeover(takeover)
            .replay_events(1_000_000)
            .seed(seed)
            .start()
            .unwrap();
        let limits = Limits {
            total: 1_000_000,
            remaining: 1_000_000,
            max_concurrency: 16.try_into().unwrap(),
            ..Limits::default()
        };
        let mut config = config(&gateway)
            .max_outstanding_events(50)
            .most_short_sessions(None);
        config.timing.reshard_overlap = Duration::from_millis(500);
        // One limit for all managers, since they follow each other quickly.
        let limit = SessionLimit::with_timing(limits, &config.timing, ReleaseAfter::Identify);
        let config = config.limiter(Arc::new(limit));
        let manager = Some(ready(config.clone()));
        Self {
            gateway: Arc::new(gateway),
            config,
            manager,
            book: Book::default(),
            rng: Rng::with_seed(seed),
            reshards: 0,
            suspends: 0,
        }
    }

    /// Handles what comes, until then or until an operation is over.
    fn handle(&mut self, until: Instant, operation: Option<&Operation>) {
        let events = self.manager.as_ref().unwrap().events();
        while Instant::now() < until && !operation.is_some_and(Operation::is_over) {
            if let Ok(event) = events.next_timeout(Duration::from_millis(10)) {
                self.book.note(&event);
                if self.rng.u32(..2000) == 0 {
                    // Long enough to stall, and for some heartbeats.
                    std::thread::sleep(Duration::from_millis(self.rng.u64(..300)));
                }
            }
        }
    }

    fn reshard(&mut self) {
        let manager = self.manager.as_ref().unwrap();
        let now = manager.shards().len();
        let to = (now + self.rng.usize(1..4)) % 5 + 1;
        if to == now {
            return;
        }
        let plan = Plan::Total(u32::try_from(to).unwrap());
        let Ok(reshard) = manager.reshard(&plan) else {
            return;
        };
        let deadline = if self.rng.u32(..4) == 0 {
            // Something else comes in between.
            Instant::now() + Duration::from_millis(self.rng.u64(..1500))
        } else {
            Instant::now() + PATIENCE
        };
        self.handle(deadline, Some(&reshard));
        self.reshards += usize::from(reshard.is_over());
    }

    /// Ends the process, as far as the library can see, and starts the next one.
    fn suspend(&mut self) {
        let manager = self.manager.take().unwrap();
        let sessions = manager.suspend();
        drop(manager);
        self.suspends += 1;
        let config = self.config.clone().plan(Plan::Stored).sessions(sessions);
        self.manager = Some(ShardManager::start(config).unwrap());
    }

    /// One step of the history.
    fn step(&mut self) {
        match self.rng.u32(..10) {
            0..=2 => self.reshard(),
            3 | 4 => self.suspend(),
            5 => drop(self.manager.as_ref().unwrap().restart_all(1)),
            _ => {}
        }
        let pause = Duration::from_millis(self.rng.u64(..400));
        self.handle(Instant::now() + pause, None);
    }
}

/// Sends numbered events to the guilds by turns until it is told to stop; returns how many each got.
fn send(gateway: &Gateway, stop: &AtomicBool, sent: &AtomicU64) -> u64 {
    let (guilds, start) = (gateway.guild_ids(), Instant::now());
    for n in 0.. {
        if stop.load(Ordering::Acquire) {
            return n;
        }
        for guild in &guilds {
            let data = json!({"guild_id": guild.to_string(), "user_id": "1", "timestamp": n});
            gateway.emit(Some(*guild), "TYPING_START", &data).unwrap();
        }
        sent.store(n + 1, Ordering::Release);
        let due = start + Duration::from_secs(1) * u32::try_from(n + 1).unwrap() * GUILDS / 1000;
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
    }
    unreachable!("numbers do not end")
}

#[test]
fn each_event_is_handled_once() {
    let variable = |name| {
        std::env::var(name).ok().map(|value| {
            let number: Option<u64> = value.parse().ok();
            number.unwrap_or_else(|| panic!("{name}={value} is no number"))
        })
    };
    let seconds = variable("THREADCORD_UPHEAVAL_SECONDS").unwrap_or(5);
    let seed = variable("THREADCORD_UPHEAVAL_SEED").unwrap_or_else(|| fastrand::u64(..1_000_000));
    println!("THREADCORD_UPHEAVAL_SECONDS={seconds} THREADCORD_UPHEAVAL_SEED={seed}");

    let mut play = Play::new(seed);
    let (stop, sent) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
    let sender = std::thread::spawn({
        let (gateway, stop, sent) = (
            Arc::clone(&play.gateway),
            Arc::clone(&stop),
            Arc::clone(&sent),
        );
        move || send(&gateway, &stop, &sent)
    });
    play.gateway.random_faults(5.0, faults());
    let end = Instant::now() + Duration::from_secs(seconds);
    while Instant::now() < end {
        play.step();
    }
    play.gateway.random_faults(0.0, []);
    stop.store(true, Ordering::Release);
    let sent = sender.join().unwrap();
    // Delays stay with their connections.
    play.gateway.inject(Target::All, Fault::Reconnect);

    let wanted = usize::try_from(sent * u64::from(GUILDS)).unwrap();
    let deadline = Instant::now() + PATIENCE;
    while play.book.handled.len() < wanted && Instant::now() < deadline {
        play.handle(Instant::now() + Duration::from_millis(100), None);
    }
    play.handle(Instant::now() + Duration::from_millis(500), None);
    let twice = play
        .book
        .handled
        .values()
        .filter(|count| **count > 1)
        .count();
    println!(
        "{wanted} events of {RATE} a second, {} handled, {twice} twice; {} reshards, {} suspends, {} sessions lost",
        play.book.handled.len(),
        play.reshards,
        play.suspends,
        play.book.lost,
    );
    assert_eq!(
        play.book.handled.len(),
        wanted,
        "seed {seed}: events are lost"
    );
    assert_eq!(twice, 0, "seed {seed}: events are repeated");
    assert_eq!(play.book.out_of_order, [], "seed {seed}");
    play.manager.take().unwrap().close();
    play.gateway.assert_lawful();
}
