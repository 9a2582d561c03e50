//! Tests the whole library in virtual time. State machines, the limit of outstanding events, merge,
//! reconciler, transition and identify schedule run against the simulator's world, on one thread
//! and from one seed.
//!
//! Only sockets, threads and the clock are replaced. The random generator decides which thread runs
//! next and how long the others wait, how late messages are, what fails, and what the user
//! requests.
//!
//! At times a handler takes the events in several lanes, as that of `run` does. Each lane has one
//! event at a time.
//!
//! An event may be missing only if Discord has ended its session. It may be redelivered after a
//! session was resumed from an older sequence, in the next process or after `suspend_shard`, and
//! after a reshard whose new shards were behind for longer than it waits. A guild's events are in
//! order, with two exceptions: events that a shard missed because it had no session during a
//! reshard, and events that handlers still had when one set took over from another.
//!
//! A failure prints its seed. Set `THREADCORD_VIRTUAL_SEED` to it and pass `--nocapture`: the test
//! repeats the failure exactly and prints the log. `THREADCORD_VIRTUAL_SECONDS` is the real time
//! for which seeds are tried, from that seed or from 1 on.

mod accounts;
mod actions;
mod checks;
mod network;
mod process;
mod program;

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use fastrand::Rng;
use parking_lot::Mutex;

use self::accounts::Accounts;
use self::network::Network;
use self::process::{Actor, Process};
use self::program::{Held, Requested, Store};
use super::operation::Operation;
use crate::clock;
use crate::config::{Config, Plan};
use crate::delivery::Lanes;
use crate::environment;
use crate::intents::Intents;
use crate::sim::{self, Builder, Fault, Gateway, World};
use crate::timing::Timing;
use crate::token::Token;

/// A URL that nothing listens on; nothing is sent to it.
const URL: &str = "ws://127.0.0.1:1";

const GUILDS: u32 = 10;

/// The average time between two events of Discord.
const EVENT_EVERY: Duration = Duration::from_millis(400);

/// The time during which actions and faults happen.
const UPHEAVAL: Duration = Duration::from_secs(10 * 60);

/// The maximum time after that until all events have arrived.
const QUIET: Duration = Duration::from_secs(20 * 60);

/// How long both sets of shards run side by side. If new shards lag for longer, events are
/// delivered twice.
const OVERLAP: Duration = Duration::from_secs(40);

/// The maximum latency of a message to a client.
const LATEST: Duration = Duration::from_secs(8);

/// The faults of Discord. Most of them end no session.
const FAULTS: &str = "\
    cut reset silence no-ack heartbeat-request reconnect invalid-session=true invalid-session=false \
    close=1001 close=4000 close=4007 close=4008 close=4009 repeat out-of-order upgrade=refused upgrade=503 \
    upgrade=hang hello=nothing hello=reconnect hello=close:4000 identify=nothing \
    identify=invalid-session:false resume=nothing resume=invalid-session:true \
    resume=invalid-session:false replay-twice cut reset reconnect cut reset reconnect";

/// What can happen next.
#[derive(Clone, Copy, Debug)]
enum Due {
    Actor(Actor),
    /// Discord has something to do.
    Discord,
    /// A message arrives at Discord.
    Network,
    /// The latency of connections changes.
    LineChange,
    /// A guild has an event.
    Event,
    /// The user or the machine performs an action.
    Action,
    /// The user checks its requests.
    Request,
    /// The program takes an event.
    Take,
    /// The program has handled an event.
    Handled,
    /// The process has ended.
    Ended,
    /// The next process starts.
    Start,
}

/// How often each thing was done.
#[derive(Debug, Default, Clone, Copy)]
struct Done {
    steps: u64,
    events: u64,
    reshards: u64,
    taken_over: u64,
    kills: u64,
    suspends: u64,
    freezes: u64,
    restarts: u64,
    closes: u64,
    sessions_lost: u64,
    splits: u64,
    repeats: u64,
    handlers: u64,
}

impl Done {
    fn add(&mut self, other: &Self) {
        self.steps += other.steps;
        self.events += other.events;
        self.reshards += other.reshards;
        self.taken_over += other.taken_over;
        self.kills += other.kills;
        self.suspends += other.suspends;
        self.freezes += other.freezes;
        self.restarts += other.restarts;
        self.closes += other.closes;
        self.sessions_lost += other.sessions_lost;
        self.splits += other.splits;
        self.repeats += other.repeats;
        self.handlers += other.handlers;
    }
}

/// One simulated run of a program against Discord.
struct Play {
    rng: Rng,
    now: Instant,
    start: Instant,
    wall: SystemTime,
    world: World,
    network: Arc<Mutex<Network>>,
    config: Config,
    store: Store,
    process: Option<Process>,
    /// When the next process starts.
    starts_at: Instant,
    frozen_until: Instant,
    killed_at: Instant,
    /// The lanes of the handler, while one runs.
    lanes: Option<Arc<Lanes>>,
    /// The events that the program is handling.
    held: Vec<Held>,
    stuck_until: Instant,
    /// The pending requests of the user, which it checks again at `next_look`.
    requests: Vec<Requested>,
    next_look: Instant,
    reshard: Option<Operation>,
    reshard_began: Instant,
    next_event: Instant,
    next_action: Instant,
    next_change: Instant,
    /// Whether the next action happens while one set takes over from another.
    is_handing_over: bool,
    is_quiet: bool,
    accounts: Accounts,
    done: Done,
    /// A digest of everything that has happened.
    trace: u64,
    violations: usize,
}

fn faults() -> Vec<Fault> {
    let words = FAULTS.split_whitespace();
    words
        .map(|word| word.parse().expect("`FAULTS` holds valid faults"))
        .collect()
}

/// What an old connection receives when its session is resumed on another one.
const TAKEOVERS: [&str; 4] = ["nothing", "reconnect", "close:4000", "invalid-session:true"];

/// Discord, with a bot of a few shards.
fn gateway(rng: &mut Rng, takeover: &str) -> Builder {
    Gateway::builder()
        .shards(rng.u32(1..4))
        .max_concurrency([1, 2, 16][rng.usize(..3)])
        .guilds(GUILDS)
        .session_starts(1_000_000, 1_000_000, Duration::from_secs(24 * 60 * 60))
        .on_takeover(takeover.parse().expect("`TAKEOVERS` holds valid answers"))
        .replay_events(1_000_000)
        .keep_dispatches(true)
        .seed(rng.u64(..))
}

/// The settings of the program.
fn config(rng: &mut Rng, token: Token) -> Config {
    let timing = Timing {
        reshard_overlap: OVERLAP,
        // Discord's windows begin when a message arrives there.
        guard: network::LATEST + Duration::from_secs(1),
        ..Timing::default()
    };
    Config::new(token, Intents::all())
        .gateway_url(URL)
        .timing(timing)
        .max_outstanding_events(rng.usize(3..40))
        .max_short_sessions(None)
        .auto_split(2)
        .plan(Plan::Stored)
}

impl Play {
    fn new(seed: u64) -> Self {
        fastrand::seed(seed);
        let mut rng = Rng::with_seed(seed);
        let unix = Duration::from_secs(1_800_000_000);
        let (now, wall) = (Instant::now(), SystemTime::UNIX_EPOCH + unix);
        clock::set(now, wall);
        let takeover = TAKEOVERS[rng.usize(..TAKEOVERS.len())];
        let builder = gateway(&mut rng, takeover);
        let token = Token::new(builder.token()).expect("the simulator's token is valid");
        let mut world = builder.world(now, unix, URL.to_owned());
        world.set_random_faults(now, 0.02, faults());
        let config = config(&mut rng, token);
        let network = Network::new(Rng::with_seed(rng.u64(..)), takeover == "nothing");
        Self {
            now,
            start: now,
            wall,
            world,
            network,
            config,
            store: Store::default(),
            process: None,
            starts_at: now,
            frozen_until: now,
            killed_at: now,
            lanes: None,
            held: Vec::new(),
            stuck_until: now,
            requests: Vec::new(),
            next_look: now,
            reshard: None,
            reshard_began: now,
            next_event: now,
            next_action: now + Duration::from_secs(30),
            next_change: now,
            is_handing_over: false,
            is_quiet: false,
            accounts: Accounts::default(),
            done: Done::default(),
            trace: 0,
            violations: 0,
            rng,
        }
    }

    /// A random time from zero to this one. Short times are likelier.
    fn up_to(&mut self, longest: Duration) -> Duration {
        longest.mul_f64(self.rng.f64() * self.rng.f64())
    }

    fn set_time(&mut self, now: Instant) {
        self.wall += now - self.now;
        self.now = now;
        clock::set(self.now, self.wall);
    }

    fn run(&mut self) -> Result<(), String> {
        while self.now < self.start + UPHEAVAL {
            self.step()?;
        }

        self.quiet_down();
        let mut look_at = self.now;
        loop {
            self.step()?;
            if self.now < look_at {
                continue;
            }
            look_at = self.now + Duration::from_secs(5);
            let missing = self.unfinished();
            if missing.is_empty() {
                return Ok(());
            }
            if self.now > self.start + UPHEAVAL + QUIET {
                return Err(format!("in the end: {missing:#?}"));
            }
        }
    }

    /// Stops all actions and faults.
    fn quiet_down(&mut self) {
        log::info!("actions and faults have stopped");
        self.is_quiet = true;
        self.network.lock().mend();
        self.world.set_random_faults(self.now, 0.0, Vec::new());
    }

    /// Runs one step.
    fn step(&mut self) -> Result<(), String> {
        self.done.steps += 1;
        self.accounts.note_losses(&self.world);
        self.check_rules()?;
        let mut due: Vec<Due> = Vec::new();
        let mut next: Option<Instant> = None;
        let now = self.now;
        self.each_deadline(|at, what| {
            if at <= now {
                due.push(what);
            }
            next = Some(next.map_or(at, |next| next.min(at)));
        });

        if due.is_empty() {
            let next = next.ok_or("deadlock: no thread or timer can continue")?;
            self.set_time(next);
            return Ok(());
        }

        let what = due[self.rng.usize(..due.len())];
        let pause = Duration::from_micros(self.rng.u64(..200));
        self.set_time(self.now + pause);
        self.happen(what)
    }

    /// Everything that waits only for a time.
    fn each_deadline(&self, mut each: impl FnMut(Instant, Due)) {
        if !self.is_quiet {
            each(self.next_action, Due::Action);
            each(self.next_change, Due::LineChange);
            each(self.next_event, Due::Event);
        }
        if let Some(at) = self.world.deadline() {
            each(at, Due::Discord);
        }
        if let Some(at) = self.network.lock().next() {
            each(at, Due::Network);
        }
        let Some(process) = &self.process else {
            return each(self.starts_at, Due::Start);
        };

        let thawed = |at: Instant| at.max(self.frozen_until);
        for (actor, at) in process.actors() {
            each(thawed(at), Due::Actor(actor));
        }
        if self.has_more(process) && self.held.len() < 12 {
            each(thawed(self.stuck_until), Due::Take);
        }
        if process.is_over() {
            each(self.now, Due::Ended);
        }
        for at in self.held.iter().map(|held| held.until) {
            each(thawed(at), Due::Handled);
        }
        if !self.requests.is_empty() {
            each(thawed(self.next_look), Due::Request);
        }
    }

    fn happen(&mut self, what: Due) -> Result<(), String> {
        self.trace = self.trace.rotate_left(5) ^ sim::digest(format!("{what:?}").as_bytes());
        self.trace ^= u64::try_from((self.now - self.start).as_nanos()).unwrap_or_default();
        match what {
            Due::Actor(actor) => return self.run_thread(actor),
            Due::Discord => self.network.lock().obey(&mut self.world),
            Due::Network => self.network.lock().carry(&mut self.world),
            Due::LineChange => self.change_lines(),
            Due::Event => self.send_event(),
            Due::Action => self.take_action(),
            Due::Request => self.follow_up(),
            Due::Take => return self.take(),
            Due::Handled => self.finish_handling(),
            Due::Ended => self.end_process(),
            Due::Start => self.start_process(),
        }
        Ok(())
    }

    fn is_resharding(&self) -> bool {
        let reshard = self.reshard.as_ref();
        reshard.is_some_and(|reshard| !reshard.is_over())
    }

    fn change_lines(&mut self) {
        self.next_change = self.now + self.up_to(Duration::from_secs(20));
        self.network.lock().change(LATEST);
    }

    fn send_event(&mut self) {
        let pause = EVENT_EVERY * 2;
        self.next_event = self.now + pause.mul_f64(self.rng.f64());
        let guilds = self.world.guild_ids();
        let guild = guilds[self.rng.usize(..guilds.len())];
        self.accounts.send(&mut self.world, guild);
        self.done.events += 1;
        self.network.lock().obey(&mut self.world);
    }
}

/// Prints what the library logs.
struct Teller(Instant);

impl log::Log for Teller {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        if record.target().starts_with("threadcord") {
            let at = clock::now().saturating_duration_since(self.0);
            println!("{at:?} {}: {}", record.level(), record.args());
        }
    }

    fn flush(&self) {}
}

#[test]
fn no_order_of_events_loses_one() {
    let seconds = environment::number("THREADCORD_VIRTUAL_SECONDS");
    let seed = environment::number("THREADCORD_VIRTUAL_SEED");
    let is_told = seed.is_some() && seconds.is_none();
    let seconds = Duration::from_secs(seconds.unwrap_or(5));
    let first = seed.unwrap_or(1);

    let (start, mut sum, mut seeds) = (Instant::now(), Done::default(), 0);
    for seed in first.. {
        let mut play = Play::new(seed);
        if is_told {
            log::set_boxed_logger(Box::new(Teller(play.start)))
                .expect("no other logger is set when one seed is replayed");
            log::set_max_level(log::LevelFilter::Debug);
        }
        let outcome = play.run();
        let after = play.now - play.start;
        assert_eq!(
            outcome,
            Ok(()),
            "THREADCORD_VIRTUAL_SEED={seed}, after {after:?}"
        );
        seeds += 1;
        play.done.repeats = play.accounts.repeats;
        sum.add(&play.done);
        if is_told || start.elapsed() >= seconds {
            break;
        }
    }
    println!("{seeds} seeds from {first}: {sum:?}");
}

#[test]
fn a_seed_repeats_exactly() {
    let trace = |seed| {
        let mut play = Play::new(seed);
        let outcome = play.run();
        (play.trace, play.done.steps, outcome)
    };
    assert_eq!(trace(1), trace(1));
}
