//! Reshards, suspends, kills, restarts and stopping shards, under load and on a bad connection:
//! each event is handled once. The exceptions are those that the README names: a session that
//! Discord ended, a process that was killed, a handler that was stuck during a reshard.
//!
//! `THREADCORD_UPHEAVAL_SECONDS` makes the test longer, and `THREADCORD_UPHEAVAL_SEED` repeats a
//! run.

mod accounts;
#[path = "../common/mod.rs"]
mod common;

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use accounts::{Accounts, Key};
use common::{PATIENCE, ready, variable};
use fastrand::Rng;
use parking_lot::Mutex;
use serde_json::{Value, json};
use threadcord::error::StoreError;
use threadcord::limit::{Limits, ReleaseAfter, SessionLimit};
use threadcord::sim::{Answer, Fault, Gateway, Target};
use threadcord::store::{Saved, SessionStore};
use threadcord::{
    Config, Error, Operation, Plan, Shard, ShardId, ShardManager, ShardState, ShardStatus, Timing,
};

const GUILDS: u32 = 24;

/// Events a second, in total.
const RATE: u32 = 1000;

/// Time runs 20 times as fast as at Discord: a session waits some seconds for its client.
const SCALE: f64 = 0.05;

/// How long both sets of shards run side by side at least.
const OVERLAP: Duration = Duration::from_secs(1);

/// A handler that is stuck for so long in a reshard may handle events again: the old set waits for
/// the new one no longer than the overlap, and the slowest line needs a part of that.
const TOO_LONG: Duration = Duration::from_millis(500);

/// How long after a reshard an event may still be on its way to the new set: as long as a handler
/// may be stuck, and the slowest line.
const ON_THE_WAY: Duration = Duration::from_secs(3);

/// Before it is scaled. An ACK takes less than that on the slowest line.
const HEARTBEAT: Duration = Duration::from_secs(10);

/// Faults that make a connection bad without ending a session.
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
    ]
    .map(|word| word.parse().unwrap())
    .into()
}

/// A store in memory, which counts how often it was written.
#[derive(Clone, Default)]
struct Store(Arc<Mutex<(Saved, u64)>>);

impl Store {
    fn writes(&self) -> u64 {
        self.0.lock().1
    }
}

impl SessionStore for Store {
    fn load(&self) -> Result<Saved, StoreError> {
        Ok(self.0.lock().0.clone())
    }

    fn save(&self, saved: &Saved) -> Result<(), StoreError> {
        let mut store = self.0.lock();
        store.0 = saved.clone();
        store.1 += 1;
        Ok(())
    }
}

/// How often each kind of step was done.
#[derive(Debug, Default)]
struct Done {
    reshards: usize,
    suspends: usize,
    kills: usize,
    jams: usize,
    sessions_ended: usize,
    stopped: usize,
}

impl Done {
    /// How many kinds of steps were never done.
    fn missed(&self) -> usize {
        let Self {
            reshards,
            suspends,
            kills,
            jams,
            sessions_ended,
            stopped,
        } = self;
        let counts = [reshards, suspends, kills, jams, sessions_ended, stopped];
        counts.into_iter().filter(|count| **count == 0).count()
    }
}

/// A gateway under load, a manager, and what it has handled.
struct Play {
    gateway: Arc<Gateway>,
    store: Store,
    config: Config,
    manager: Option<ShardManager>,
    reshard: Option<Operation>,
    accounts: Accounts,
    rng: Rng,
    done: Done,
}

impl Play {
    fn new(seed: u64) -> Self {
        let takeovers = ["nothing", "reconnect", "close:4000", "invalid-session:true"];
        let takeover: Answer = takeovers[usize::try_from(seed % 4).unwrap()]
            .parse()
            .unwrap();
        let gateway = Gateway::builder()
            .time_scale(SCALE)
            .heartbeat_interval(HEARTBEAT)
            .shards(2)
            .max_concurrency(16)
            .guilds(GUILDS)
            .session_starts(1_000_000, 1_000_000, Duration::from_secs(24 * 60 * 60))
            .on_takeover(takeover)
            .replay_events(1_000_000)
            .keep_dispatches(true)
            .seed(seed)
            .start()
            .unwrap();
        let limits = Limits {
            total: 1_000_000,
            remaining: 1_000_000,
            max_concurrency: 16.try_into().unwrap(),
            ..Limits::default()
        };

        let mut timing = Timing::scaled(SCALE);
        timing.reshard_overlap = OVERLAP;
        timing.store_interval = Duration::from_millis(100);

        // The events are handled on the thread that suspends.
        timing.handlers_timeout = Duration::ZERO;
        // The simulator gives an event to all sessions at once.
        timing.session_skew = Duration::from_millis(10);

        // One limit for all managers, since they follow each other quickly.
        let limit = SessionLimit::with_timing(limits, &timing, ReleaseAfter::Identify);
        let store = Store::default();
        let config = common::config(&gateway)
            .timing(timing)
            .max_outstanding_events(50)
            .max_short_sessions(None)
            .session_store(store.clone())
            .plan(Plan::Stored)
            .limiter(Arc::new(limit));
        let manager = Some(ready(config.clone()));
        Self {
            gateway: Arc::new(gateway),
            store,
            config,
            manager,
            reshard: None,
            accounts: Accounts::default(),
            rng: Rng::with_seed(seed),
            done: Done::default(),
        }
    }

    fn manager(&self) -> &ShardManager {
        self.manager.as_ref().expect("a process is running")
    }

    /// Handles events until a deadline, or until a condition holds.
    fn handle(&mut self, until: Instant, mut holds: impl FnMut(&Self) -> bool) -> bool {
        let events = self.manager().events();
        loop {
            if self.reshard.take_if(|reshard| reshard.is_over()).is_some() {
                self.accounts.end_reshard(TOO_LONG);
                let shards = self.manager().handle().shards();
                let sessions: Vec<_> = shards.iter().filter_map(Shard::session).collect();
                self.accounts.orphan(&self.gateway, &sessions);
            }
            if holds(self) {
                return true;
            }
            if Instant::now() >= until {
                return false;
            }
            if let Ok(event) = events.recv_timeout(Duration::from_millis(10)) {
                let store = &self.store;
                self.accounts.handle(event, || store.writes());
                if self.rng.u32(..2000) == 0 {
                    // Long enough to stall, and for some heartbeats.
                    self.pause(0..1200);
                }
            }
        }
    }

    /// Handles events until a condition holds; panics if it does not hold in time.
    fn handle_until(&mut self, what: &str, holds: impl FnMut(&Self) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        assert!(
            self.handle(deadline, holds),
            "{what}: {:?}",
            self.manager().handle().status()
        );
    }

    fn reshard(&mut self) {
        let now = self.manager().handle().shards().len();
        let to = (now + self.rng.usize(1..4)) % 5 + 1;
        if to == now {
            return;
        }

        let plan = Plan::Total(u32::try_from(to).unwrap());
        let Ok(reshard) = self.manager().handle().reshard(&plan) else {
            return;
        };
        self.reshard = Some(reshard);
        self.accounts.begin_reshard();
        self.done.reshards += 1;

        if self.rng.u32(..4) == 0 {
            // Another step comes in between.
            let pause = Duration::from_millis(self.rng.u64(..1500));
            self.handle(Instant::now() + pause, |_| false);
        } else {
            self.wait_resharded();
        }
    }

    fn wait_resharded(&mut self) {
        self.handle_until("the reshard ends", |play| play.reshard.is_none());
    }

    /// Ends the process cleanly, and starts the next one.
    fn suspend(&mut self) {
        let manager = self.manager.take().unwrap();
        let sessions = manager.suspend();
        drop(manager);
        // These know what was handled, whatever the store has.
        self.accounts.end_process(u64::MAX, ON_THE_WAY);
        self.accounts.orphan(&self.gateway, &sessions);
        self.done.suspends += 1;
        self.store.0.lock().0.sessions = sessions;
        self.start(self.config.clone());
    }

    /// Kills the process, as far as the gateway and the next one can see.
    fn kill(&mut self) {
        let (saved, writes) = self.store.0.lock().clone();
        self.gateway.inject(Target::All, Fault::Cut);
        self.accounts.end_process(writes, ON_THE_WAY);
        let manager = self.manager.take().unwrap();
        let running = manager.suspend();
        drop(manager);
        self.accounts.disown(&running, &saved.sessions);
        self.accounts.orphan(&self.gateway, &saved.sessions);
        self.store.save(&saved).unwrap();
        self.done.kills += 1;
        self.start(self.config.clone());
    }

    fn start(&mut self, config: Config) {
        self.reshard = None;
        self.manager = Some(ShardManager::start(config).unwrap());
    }

    /// The handler is stuck for some heartbeats while connections with unread events end.
    fn jam(&mut self) {
        self.pause(100..300);
        let end = ["reset", "cut", "close=4000", "cut-in-frame"][self.rng.usize(..4)];
        self.gateway.inject(Target::All, end.parse().unwrap());
        self.pause(0..1500);
        self.done.jams += 1;
    }

    /// The handler is busy for this many milliseconds.
    fn pause(&mut self, milliseconds: Range<u64>) {
        std::thread::sleep(Duration::from_millis(self.rng.u64(milliseconds)));
    }

    /// Discord ends a session.
    fn end_session(&mut self) {
        let shard = self.any_shard();
        let session = self
            .manager()
            .handle()
            .shard(shard)
            .and_then(|shard| shard.session());
        let session = session.expect("it is ready").id;
        let end = ["invalid-session=false", "close=4009", "close=4007"][self.rng.usize(..3)];
        self.strike(shard, end, |play| play.accounts.lost.contains_key(&session));

        // The first sessions of other shards may be new, too.
        let before = self.accounts.started.len();
        self.handle_until("another session starts", |play| {
            play.accounts.started[before..].contains(&shard)
        });
        self.wait_ready();
        self.done.sessions_ended += 1;
    }

    /// Discord closes a shard for good, and the program opens it again.
    fn stop_shard(&mut self) {
        let (shard, before) = (self.any_shard(), self.accounts.closed.len());
        let end = ["close=4004", "close=4012", "close=4013", "close=4014"][self.rng.usize(..4)];
        self.strike(shard, end, |play| {
            play.accounts.closed[before..].contains(&shard)
        });
        self.done.stopped += 1;

        // The event may come before the manager knows, which then fails the restart.
        for _ in 0..10 {
            let start = match self.manager().handle().restart_shard(shard) {
                Ok(start) => start,
                // It was the last one.
                Err(Error::Closed) => {
                    self.suspend();
                    return self.wait_ready();
                }
                Err(error) => panic!("{shard} does not start again: {error}"),
            };
            self.handle_until("the restart is over", |_| start.is_over());
            if start.wait(Duration::ZERO).is_ok() {
                return self.wait_ready();
            }
        }
        panic!("{shard} does not start again");
    }

    /// Handles events until no reshard is in progress and every shard is ready.
    fn wait_ready(&mut self) {
        self.wait_resharded();
        self.handle_until("all shards are ready", |play| {
            let status = play.manager().handle().status();
            let is_ready = |shard: &ShardStatus| shard.state == ShardState::Ready;
            status.unopened.is_empty() && status.shards.iter().all(is_ready)
        });
        self.accounts.end_gap();
    }

    /// A shard of a fleet that is ready.
    fn any_shard(&mut self) -> ShardId {
        self.wait_ready();
        let shards = self.manager().handle().shards();
        shards[self.rng.usize(..shards.len())].id()
    }

    /// Injects a fault until it has taken effect: the shard may be disconnected.
    fn strike(&mut self, shard: ShardId, fault: &str, has_struck: impl Fn(&Self) -> bool + Copy) {
        for _ in 0..60 {
            self.gateway.inject(shard, fault.parse().unwrap());
            if self.handle(Instant::now() + Duration::from_secs(1), has_struck) {
                return;
            }
        }
        panic!("{fault} does not strike {shard}");
    }

    /// One step of the history.
    fn step(&mut self) {
        match self.rng.u32(..16) {
            0..=4 => self.reshard(),
            5 | 6 => self.suspend(),
            7 | 8 => self.kill(),
            9 | 10 => self.jam(),
            11 => self.end_session(),
            12 => self.stop_shard(),
            13 => drop(self.manager().handle().restart_all(1)),
            _ => {}
        }
        let pause = Duration::from_millis(self.rng.u64(..400));
        self.handle(Instant::now() + pause, |_| false);
    }
}

/// The data of an event.
fn data((guild, number): Key) -> Value {
    json!({"guild_id": guild.to_string(), "user_id": "1", "timestamp": number})
}

/// Sends the guilds numbered events, as long as it is not stopped, and counts the numbers.
fn send(gateway: &Gateway, stop: &AtomicBool, sent: &AtomicU64) {
    let (guilds, start) = (gateway.guild_ids(), Instant::now());
    let mut number = 0;
    while !stop.load(Ordering::Acquire) {
        for guild in &guilds {
            let data = data((*guild, number));
            gateway.emit(Some(*guild), "TYPING_START", &data).unwrap();
        }
        number += 1;
        sent.store(number, Ordering::Release);
        let due = Duration::from_secs(1) * u32::try_from(number).unwrap() * GUILDS / RATE;
        std::thread::sleep((start + due).saturating_duration_since(Instant::now()));
    }
}

#[test]
fn each_event_is_handled_once() {
    let seconds = variable("THREADCORD_UPHEAVAL_SECONDS").unwrap_or(5);
    let seed = variable("THREADCORD_UPHEAVAL_SEED").unwrap_or_else(|| fastrand::u64(..1_000_000));
    println!("THREADCORD_UPHEAVAL_SECONDS={seconds} THREADCORD_UPHEAVAL_SEED={seed}");

    let mut play = Play::new(seed);
    let stop = Arc::<AtomicBool>::default();
    let sender = std::thread::spawn({
        let (gateway, stop) = (Arc::clone(&play.gateway), Arc::clone(&stop));
        let sent = Arc::clone(&play.accounts.sent);
        move || send(&gateway, &stop, &sent)
    });
    play.gateway.random_faults(2.0, faults());
    let end = Instant::now() + Duration::from_secs(seconds);
    while Instant::now() < end {
        play.step();
    }
    play.gateway.random_faults(0.0, []);
    stop.store(true, Ordering::Release);
    sender.join().unwrap();

    // Delays stay with their connections.
    play.gateway.inject(Target::All, Fault::Reconnect);
    play.wait_ready();
    let missing = |play: &Play| {
        let data = |key| data(key).to_string();
        play.accounts.missing(&play.gateway, data)
    };
    let deadline = Instant::now() + PATIENCE;
    while !missing(&play).is_empty() && Instant::now() < deadline {
        play.handle(Instant::now() + Duration::from_millis(100), |_| false);
    }
    play.handle(Instant::now() + Duration::from_secs(1), |_| false);

    let (handled, again) = play.accounts.handled();
    let sent = play.accounts.sent.load(Ordering::Acquire) * u64::from(GUILDS);
    println!(
        "{sent} events sent, {handled} handled, {again} of them again; {} losses told; {:?}",
        play.accounts.lost.len(),
        play.done,
    );
    let missing = missing(&play);
    assert!(missing.is_empty(), "seed {seed}: missing {missing:?}");
    let repeated = play.accounts.repeated();
    assert!(repeated.is_empty(), "seed {seed}: repeated {repeated:?}");
    assert_eq!(play.accounts.out_of_order(), [], "seed {seed}");
    assert!(
        seconds < 60 || play.done.missed() <= 1,
        "seed {seed}: a long one does nearly everything: {:?}",
        play.done
    );
    play.manager.take().unwrap().close();
    play.gateway.assert_lawful();
}
