//! Reshards, suspends, kills, restarts and shards that stop, under load and on a bad line: each
//! event is handled once, unless its loss is told or the process was killed.
//!
//! `THREADCORD_UPHEAVAL_SECONDS` makes it longer than it is for everyday, and
//! `THREADCORD_UPHEAVAL_SEED` repeats one.

mod common;

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use common::{PATIENCE, ready, variable};
use fastrand::Rng;
use parking_lot::Mutex;
use threadcord::limit::{Limits, ReleaseAfter, SessionLimit};
use threadcord::sim::{self, Answer, Dispatched, Fault, Gateway, Target};
use threadcord::store::{Saved, SessionStore};
use threadcord::{
    Config, Error, Event, EventKind, Operation, Plan, ShardId, ShardManager, Stage, StoreError,
    Timing,
};

const GUILDS: u32 = 24;

/// Events a second, in all.
const RATE: u32 = 1000;

/// A twentieth of Discord's time: a session waits 9 s for its client.
const SCALE: f64 = 0.05;

/// How long both sets of shards run side by side at least.
const OVERLAP: Duration = Duration::from_secs(1);

/// Half a second between heartbeats, and an ACK takes less than that on the slowest line.
const HEARTBEAT: Duration = Duration::from_secs(10);

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

/// How an event was handled by the process that is running.
struct Handled {
    event: (u64, u64),
    /// How often the store had been written.
    writes: u64,
    /// The number of the reshard that was going on.
    reshard: Option<usize>,
}

/// A reshard that is going on.
struct Reshard {
    operation: Operation,
    /// The longest time for which the program handled nothing meanwhile.
    pause: Duration,
}

/// What the program has handled.
#[derive(Default)]
struct Book {
    /// How often each event was, by guild and number.
    counts: HashMap<(u64, u64), usize>,
    /// The digests of the events' data.
    digests: HashSet<u64>,
    last: HashMap<u64, u64>,
    /// The sessions whose loss was told, with their last sequences.
    lost: HashMap<String, u64>,
    /// The sessions of killed processes that were not stored, with the last sequences that somebody
    /// could have handled or resumed.
    orphans: HashMap<String, u64>,
    closed: Vec<ShardId>,
    /// How many sessions have started.
    started: usize,
    /// A session was lost during a reshard: what it missed comes late, from the others.
    has_gap: bool,
    out_of_order: Vec<(u64, u64, u64)>,
    /// Since the process began.
    recent: Vec<Handled>,
    /// What may come again, because a process has ended before it could say that it had it.
    may_repeat: HashSet<(u64, u64)>,
    repeated: Vec<(u64, u64)>,
}

impl Book {
    fn note(&mut self, event: Event, store: &Store, reshard: Option<usize>) {
        match event.kind() {
            EventKind::SessionLost { session, .. } => {
                self.lost.insert(session.id.clone(), session.sequence);
                self.has_gap |= reshard.is_some();
            }
            EventKind::Closed(_) => self.closed.push(event.shard()),
            EventKind::Ready => self.started += 1,
            _ => {}
        }
        let Some((guild, number)) = common::number(&event) else {
            return;
        };
        let data = event.dispatch().expect("it has a number").data();
        self.digests.insert(sim::digest(data));
        drop(event);

        let count = self.counts.entry((guild, number)).or_default();
        *count += 1;
        let is_repeated = *count > 1;
        if is_repeated && !self.may_repeat.remove(&(guild, number)) {
            self.repeated.push((guild, number));
        }
        let last = self.last.get(&guild).copied();
        let is_ordered = !is_repeated && !self.has_gap;
        if let Some(last) = last.filter(|last| is_ordered && *last >= number) {
            self.out_of_order.push((guild, last, number));
        }
        self.last.insert(guild, last.unwrap_or(0).max(number));
        self.recent.push(Handled {
            event: (guild, number),
            writes: store.writes(),
            reshard,
        });
    }

    /// A reshard is over. If the handler was stuck for about as long as the old set waits for the
    /// new one, what the new one held meanwhile may come again.
    fn end_reshard(&mut self, number: usize, pause: Duration) {
        if pause > OVERLAP / 2 {
            let recent = self.recent.iter();
            let during = recent.filter(|handled| handled.reshard == Some(number));
            self.may_repeat.extend(during.map(|handled| handled.event));
        }
    }

    /// The process ends, and the next one starts from what the last of so many writes of the store
    /// has: what was handled before the write before that ended. Of what one set of a reshard has
    /// brought, the sessions of the other may not know.
    fn end_process(&mut self, writes: u64) {
        self.has_gap = false;
        let is_unsaved =
            |handled: &Handled| handled.writes + 1 >= writes || handled.reshard.is_some();
        let recent = self.recent.drain(..).filter(is_unsaved);
        self.may_repeat.extend(recent.map(|handled| handled.event));
    }

    /// The events that were given to sessions and not handled, without an excuse.
    fn missing(&self, gateway: &Gateway) -> Vec<String> {
        let mut given = gateway.dispatches();
        given.retain(|event| event.name == "TYPING_START");
        let mut handled: HashMap<&str, u64> = HashMap::new();
        let mut missing: HashMap<u64, Vec<&Dispatched>> = HashMap::new();
        for event in &given {
            if self.digests.contains(&event.digest) {
                let last = handled.entry(&event.session).or_default();
                *last = event.sequence.max(*last);
            } else {
                missing.entry(event.digest).or_default().push(event);
            }
        }
        missing.retain(|_, copies| !self.is_excused(copies, &handled));
        let copies = missing.into_values().flatten();
        copies
            .map(|event| format!("{} of {}", event.sequence, event.session))
            .collect()
    }

    /// Whether the loss of a session explains why an event is missing: every other session that was
    /// given it was lost, too, or closed at a hand-over before it was there.
    fn is_excused(&self, copies: &[&Dispatched], handled: &HashMap<&str, u64>) -> bool {
        let is_lost = |event: &Dispatched| {
            let ends = [&self.lost, &self.orphans].map(|ends| ends.get(&event.session));
            ends.into_iter().flatten().any(|end| *end < event.sequence)
        };
        let is_last = |event: &Dispatched| {
            let last = handled.get(event.session.as_str());
            last.is_none_or(|last| *last < event.sequence)
        };
        copies.iter().any(|event| is_lost(event))
            && copies.iter().all(|event| is_lost(event) || is_last(event))
    }
}

/// How often each thing was done.
#[derive(Debug, Default)]
struct Done {
    reshards: usize,
    suspends: usize,
    kills: usize,
    jams: usize,
    sessions_ended: usize,
    stopped: usize,
}

/// A gateway under load, a manager, and what it has handled.
struct Play {
    gateway: Arc<Gateway>,
    store: Store,
    config: Config,
    manager: Option<ShardManager>,
    reshard: Option<Reshard>,
    book: Book,
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
            .most_short_sessions(None)
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
            book: Book::default(),
            rng: Rng::with_seed(seed),
            done: Done::default(),
        }
    }

    fn manager(&self) -> &ShardManager {
        self.manager.as_ref().expect("a process is running")
    }

    /// Handles what comes, until then or until something holds.
    fn handle(&mut self, until: Instant, mut holds: impl FnMut(&Self) -> bool) -> bool {
        let events = self.manager().events();
        loop {
            let is_over = |reshard: &mut Reshard| reshard.operation.is_over();
            if let Some(reshard) = self.reshard.take_if(is_over) {
                self.book.end_reshard(self.done.reshards, reshard.pause);
            }
            if holds(self) {
                return true;
            }
            if Instant::now() >= until {
                return false;
            }
            if let Ok(event) = events.next_timeout(Duration::from_millis(10)) {
                let reshard = self.reshard.as_ref().map(|_| self.done.reshards);
                self.book.note(event, &self.store, reshard);
                if self.rng.u32(..2000) == 0 {
                    // Long enough to stall, and for some heartbeats.
                    self.pause(0..1200);
                }
            }
        }
    }

    /// Handles what comes until something holds, which it must.
    fn handle_until(&mut self, what: &str, holds: impl FnMut(&Self) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        assert!(
            self.handle(deadline, holds),
            "{what}: {:?}",
            self.manager().status()
        );
    }

    fn reshard(&mut self) {
        let now = self.manager().shards().len();
        let to = (now + self.rng.usize(1..4)) % 5 + 1;
        if to == now {
            return;
        }
        let plan = Plan::Total(u32::try_from(to).unwrap());
        let Ok(reshard) = self.manager().reshard(&plan) else {
            return;
        };
        self.reshard = Some(Reshard {
            operation: reshard,
            pause: Duration::ZERO,
        });
        self.done.reshards += 1;
        if self.rng.u32(..4) == 0 {
            // Something else comes in between.
            let pause = Duration::from_millis(self.rng.u64(..1500));
            self.handle(Instant::now() + pause, |_| false);
        } else {
            self.end_reshard();
        }
    }

    fn end_reshard(&mut self) {
        self.handle_until("the reshard ends", |play| play.reshard.is_none());
    }

    /// Ends the process in good order, and starts the next one.
    fn suspend(&mut self) {
        let manager = self.manager.take().unwrap();
        let sessions = manager.suspend();
        drop(manager);
        // These know what was handled.
        self.book.end_process(u64::MAX);
        self.done.suspends += 1;
        self.start(self.config.clone().sessions(sessions));
    }

    /// Kills the process, as far as the gateway and the next one can see.
    fn kill(&mut self) {
        let (saved, writes) = self.store.0.lock().clone();
        self.gateway.inject(Target::All, Fault::Cut);
        self.book.end_process(writes);
        let manager = self.manager.take().unwrap();
        let running = manager.suspend();
        drop(manager);
        // Discord goes on with what is not stored until it misses the client.
        let mut orphans = self.gateway.observed().sequences;
        // These were too young to be stored.
        orphans.extend(running.into_iter().map(|session| (session.id, 0)));
        for session in &saved.sessions {
            orphans.remove(&session.id);
        }
        for (session, last) in orphans {
            self.book.orphans.entry(session).or_insert(last);
        }
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

    /// The handler is busy for so many milliseconds.
    fn pause(&mut self, milliseconds: Range<u64>) {
        let pause = Duration::from_millis(self.rng.u64(milliseconds));
        if let Some(reshard) = &mut self.reshard {
            reshard.pause = reshard.pause.max(pause);
        }
        std::thread::sleep(pause);
    }

    /// Discord ends a session.
    fn end_session(&mut self) {
        self.end_reshard();
        let (shard, before, started) = (self.any_shard(), self.book.lost.len(), self.book.started);
        let end = ["invalid-session=false", "close=4009", "close=4007"][self.rng.usize(..3)];
        self.strike(shard, end, |play| play.book.lost.len() > before);
        self.done.sessions_ended += 1;
        self.handle_until("another session starts", |play| play.book.started > started);
        self.wait_ready();
    }

    /// Discord closes a shard for good, and the program opens it again.
    fn stop_shard(&mut self) {
        self.end_reshard();
        let (shard, before) = (self.any_shard(), self.book.closed.len());
        let end = ["close=4004", "close=4012", "close=4013", "close=4014"][self.rng.usize(..4)];
        self.strike(shard, end, |play| play.book.closed.len() > before);
        self.done.stopped += 1;
        let mut is_ready = false;
        // The event may come before the manager knows, which then fails the restart.
        while !is_ready {
            let start = match self.manager().restart_shard(shard) {
                Ok(start) => start,
                // It was the last one.
                Err(Error::Closed) => return self.suspend(),
                Err(error) => panic!("{shard} does not start again: {error}"),
            };
            self.handle_until("the restart is over", |_| start.is_over());
            is_ready = start.wait(Duration::ZERO).is_ok();
        }
    }

    fn wait_ready(&mut self) {
        self.handle_until("all shards are ready", |play| {
            let shards = play.manager().shards();
            shards
                .iter()
                .all(|shard| shard.status().stage == Stage::Ready)
        });
    }

    fn any_shard(&mut self) -> ShardId {
        let shards = self.manager().shards();
        shards[self.rng.usize(..shards.len())].id()
    }

    /// Injects a fault until it has struck: the shard may be away.
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
            13 => drop(self.manager().restart_all(1)),
            _ => {}
        }
        let pause = Duration::from_millis(self.rng.u64(..400));
        self.handle(Instant::now() + pause, |_| false);
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
        move || common::send(&gateway, RATE, 1, 0..=usize::MAX, &stop)
    });
    play.gateway.random_faults(2.0, faults());
    let end = Instant::now() + Duration::from_secs(seconds);
    while Instant::now() < end {
        play.step();
    }
    play.gateway.random_faults(0.0, []);
    stop.store(true, Ordering::Release);
    let sent = sender.join().unwrap() * u64::from(GUILDS);
    // Delays stay with their connections.
    play.gateway.inject(Target::All, Fault::Reconnect);

    play.end_reshard();
    play.handle_until("all shards are live", |play| {
        let shards = play.manager().shards();
        shards
            .iter()
            .all(|shard| shard.status().stage == Stage::Ready)
    });
    let deadline = Instant::now() + PATIENCE;
    while !play.book.missing(&play.gateway).is_empty() && Instant::now() < deadline {
        play.handle(Instant::now() + Duration::from_millis(100), |_| false);
    }
    play.handle(Instant::now() + Duration::from_secs(1), |_| false);
    let book = &play.book;
    let events: usize = book.counts.values().sum();
    println!(
        "{sent} events sent, {} handled, {} of them again; {} losses told; {:?}",
        book.counts.len(),
        events - book.counts.len() - book.repeated.len(),
        book.lost.len(),
        play.done,
    );
    let missing = book.missing(&play.gateway);
    assert_eq!(missing, [""; 0], "seed {seed}: events are missing");
    assert_eq!(book.repeated, [], "seed {seed}: events are repeated");
    assert_eq!(book.out_of_order, [], "seed {seed}");
    play.manager.take().unwrap().close();
    play.gateway.assert_lawful();
}
