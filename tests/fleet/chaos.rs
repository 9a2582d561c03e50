//! The whole fleet under everything that can happen to processes, for minutes.

use std::time::{Duration, Instant};
use std::{fs, thread};

use fastrand::Rng;
use threadcord::redis::Redis;
use threadcord::sim::{Action, Answer, Gateway, Observed, Violation};
use threadcord::{Timing, Token};

use crate::common::process::Process;
use crate::common::redis::RedisServer;
use crate::common::variable;
use crate::identifies;
use crate::processes::{Fleet, OWNERSHIP_LOST};

const PARTS: u32 = 4;
const SHARDS: u32 = 64;
const EVENTS_PER_SECOND: f64 = 5000.0;

/// The timeout for the recovery of the fleet.
const CALM: Duration = Duration::from_secs(90);

/// The library that gives a program another clock, of the package `faketime`.
fn libfaketime() -> String {
    let folders = fs::read_dir("/usr/lib").unwrap();
    let paths = folders.map(|folder| folder.unwrap().path().join("faketime/libfaketime.so.1"));
    let path = paths.into_iter().find(|path| path.exists());
    path.expect("faketime is installed").display().to_string()
}

/// What happens, and when, in seconds from the start.
#[derive(Clone, Copy, Debug)]
enum Act {
    /// An owner is killed.
    Kill(u32),
    /// An owner is frozen, and later continues.
    Freeze(u32),
    Thaw(u32),
    /// Redis is frozen, and later continues.
    FreezeRedis,
    ThawRedis,
    /// Redis restarts without its data.
    EmptyRedis,
    /// The processes of a part are replaced, one after the other.
    Deploy(u32),
}

/// One kill every 15 s, and each of the others once.
fn acts(seconds: u64, rng: &mut Rng) -> Vec<(Duration, Act)> {
    let share = |percent: u64| seconds * percent * 10;
    let frozen = rng.u32(0..PARTS);
    let freeze = share(15) + rng.u64(0..5000);
    let redis = share(45) + rng.u64(0..5000);
    let empty = share(75) + rng.u64(0..5000);
    let mut acts = vec![
        (freeze, Act::Freeze(frozen)),
        (freeze + 30_000, Act::Thaw(frozen)),
        (redis, Act::FreezeRedis),
        (redis + 20_000, Act::ThawRedis),
        (empty, Act::EmptyRedis),
        (share(88), Act::Deploy(rng.u32(0..PARTS))),
    ];

    for slot in (5000..seconds * 1000).step_by(15_000) {
        let kill = slot + rng.u64(0..3000);
        let part = rng.u32(0..PARTS);
        // Sessions without an owner are only in Redis.
        let is_unowned = (empty.saturating_sub(15_000)..empty + 5000).contains(&kill);
        if !is_unowned {
            acts.push((kill, Act::Kill(part)));
        }
    }

    acts.sort_by_key(|(at, _)| *at);
    let acts = acts.into_iter();
    acts.map(|(at, act)| (Duration::from_millis(at), act))
        .collect()
}

/// The processes of one part: its owner, and a standby.
struct Crew {
    part: u32,
    processes: Vec<Process>,
    /// The last process that owned the part.
    owner: u32,
    frozen: Option<Process>,
}

impl Crew {
    /// Takes the process that owns the part out of the others.
    fn take_owner(&mut self) -> Option<Process> {
        let is_owner = |process: &Process| process.id() == self.owner;
        let at = self.processes.iter().position(is_owner)?;
        Some(self.processes.remove(at))
    }

    /// Restarts processes that have ended, as an orchestrator does.
    fn replace_ended(&mut self, fleet: &Fleet<'_>) {
        for process in &mut self.processes {
            if let Some(status) = process.ended() {
                let code = status.code();
                assert_eq!(code, Some(OWNERSHIP_LOST), "part {}", self.part);
                *process = fleet.start(self.part, &[]);
            }
        }
    }
}

/// When sessions went over to other processes: what happened then, and how long it took until the
/// last shard of the part was resumed.
#[derive(Default)]
struct Takeovers(Vec<(&'static str, u32, Instant)>);

impl Takeovers {
    fn print(&self, seen: &Observed) {
        for kind in ["kill", "deploy"] {
            let of_kind = self.0.iter().filter(|(this, ..)| *this == kind);
            let mut times: Vec<_> = of_kind
                .map(|(_, part, since)| last_resume(seen, *part, *since))
                .collect();
            times.sort_unstable();
            let (median, worst) = (times.get(times.len() / 2), times.last());
            println!(
                "{kind} to the last shard resumed: median {median:.2?}, worst {worst:.2?}, {times:.2?}"
            );
        }
    }
}

/// How long after `since` the last shard of a part was resumed for the first time.
fn last_resume(seen: &Observed, part: u32, since: Instant) -> Duration {
    let shards = (part..SHARDS).step_by(PARTS as usize);
    let resumed = shards.map(|number| {
        let resumes = seen.records.iter().filter(|record| {
            let is_resume = matches!(record.action, Action::Resume { .. } | Action::Identify(_));
            let is_own = record.shard.is_some_and(|shard| shard.number() == number);
            is_resume && is_own && record.at > since
        });
        resumes.map(|record| record.at - since).min()
    });
    resumed
        .map(Option::unwrap_or_default)
        .max()
        .unwrap_or_default()
}

struct Chaos<'a> {
    gateway: &'a Gateway,
    fleet: Fleet<'a>,
    redis: Redis,
    server: RedisServer,
    crews: Vec<Crew>,
    takeovers: Takeovers,
    /// Of which part a process was stopped, from when until when.
    frozen: Option<(u32, Instant, Instant)>,
}

impl Chaos<'_> {
    /// Reads in Redis which process owns which part.
    fn look(&mut self) {
        let parts = self
            .redis
            .status()
            .map_or(Vec::new(), |status| status.parts);
        for (crew, part) in self.crews.iter_mut().zip(parts) {
            let owner = part
                .owner
                .as_deref()
                .and_then(|owner| owner.split(':').nth_back(1));
            crew.owner = owner.map_or(crew.owner, |id| id.parse().unwrap());
        }
        for crew in &mut self.crews {
            crew.replace_ended(&self.fleet);
        }
    }

    fn act(&mut self, act: Act) {
        match act {
            Act::Kill(part) => {
                let crew = &mut self.crews[part as usize];
                // It may be frozen just now.
                if let Some(mut owner) = crew.take_owner() {
                    owner.kill();
                    self.takeovers.0.push(("kill", part, Instant::now()));
                    crew.processes.push(self.fleet.start(part, &[]));
                }
            }
            Act::Freeze(part) => {
                let crew = &mut self.crews[part as usize];
                crew.frozen = crew.take_owner();
                if let Some(frozen) = &crew.frozen {
                    frozen.freeze();
                    self.frozen = Some((part, Instant::now(), Instant::now()));
                }
            }
            Act::Thaw(part) => {
                let crew = &mut self.crews[part as usize];
                if let Some(frozen) = crew.frozen.take() {
                    frozen.thaw();
                    crew.processes.push(frozen);
                    if let Some((_, _, until)) = &mut self.frozen {
                        *until = Instant::now();
                    }
                }
            }
            Act::FreezeRedis => self.server.freeze(),
            Act::ThawRedis => self.server.thaw(),
            Act::EmptyRedis => self.server.restart(),
            Act::Deploy(part) => {
                let crew = &mut self.crews[part as usize];
                crew.processes.push(self.fleet.start(part, &[]));
                if let Some(mut owner) = crew.take_owner() {
                    self.takeovers.0.push(("deploy", part, Instant::now()));
                    owner.say("suspend");
                    assert_eq!(owner.wait().code(), Some(0));
                }
            }
        }
    }
}

/// `THREADCORD_FLEET_SECONDS` says for how long, and `THREADCORD_FLEET_SEED` what happens.
#[test]
#[ignore = "it takes minutes: `.ci/long` runs it"]
fn a_fleet_loses_nothing_whatever_happens_to_its_processes() {
    let seconds = variable("THREADCORD_FLEET_SECONDS").unwrap_or(120);
    let seed = variable("THREADCORD_FLEET_SEED").unwrap_or_else(|| fastrand::u64(..1_000_000));
    println!("THREADCORD_FLEET_SECONDS={seconds} THREADCORD_FLEET_SEED={seed}");
    let mut rng = Rng::with_seed(seed);
    let name = "a_fleet_loses_nothing_whatever_happens_to_its_processes";
    let Some(server) = RedisServer::start(name, &[]) else {
        return;
    };
    let takeover = match rng.u32(0..4) {
        0 => Answer::Nothing,
        1 => Answer::Reconnect,
        2 => Answer::InvalidSession { resumable: true },
        _ => Answer::Close(4000),
    };
    println!("a session that is resumed elsewhere is answered with {takeover:?}");
    let journals = tempfile::tempdir().unwrap();
    let gateway = Gateway::builder()
        .shards(SHARDS)
        .guilds(4 * SHARDS)
        .max_concurrency(16)
        .activity(EVENTS_PER_SECOND)
        .keep_dispatches(true)
        .on_takeover(takeover)
        .seed(seed)
        .start()
        .unwrap();
    let fleet = Fleet {
        gateway: &gateway,
        redis_url: server.url(),
        journals: journals.path(),
        parts: PARTS,
        lease_ttl: Timing::default().lease_ttl,
        scale: 1.0,
    };
    let crews = (0..PARTS).map(|part| Crew {
        part,
        processes: vec![fleet.start(part, &[])],
        owner: 0,
        frozen: None,
    });
    let mut crews: Vec<_> = crews.collect();
    let is_ready = |seen: &Observed| seen.live.len() == SHARDS as usize;
    gateway.expect("all shards are ready", CALM, is_ready);

    let odd = rng.u32(0..PARTS);
    let library = libfaketime();
    let clock = [
        ("LD_PRELOAD", &*library),
        ("FAKETIME", if rng.bool() { "+1h" } else { "-1h" }),
        ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
        ("NO_FAKE_STAT", "1"),
    ];
    for crew in &mut crews {
        let others: &[_] = if crew.part == odd { &clock } else { &[] };
        crew.processes.push(fleet.start(crew.part, others));
    }
    let token = Token::new(gateway.token()).unwrap();
    let redis = Redis::open(&fleet.redis_url, &token).unwrap();
    let mut chaos = Chaos {
        gateway: &gateway,
        fleet,
        redis,
        server,
        crews,
        takeovers: Takeovers::default(),
        frozen: None,
    };

    let start = Instant::now();
    for (at, act) in acts(seconds, &mut rng) {
        while start.elapsed() < at {
            chaos.look();
            thread::sleep(Duration::from_millis(200));
        }
        println!("{:.1?}: {act:?}", start.elapsed());
        chaos.act(act);
    }
    while start.elapsed() < Duration::from_secs(seconds) {
        chaos.look();
        thread::sleep(Duration::from_millis(200));
    }
    finish(&mut chaos);
}

/// Checks, after the faults have ended, that every event was handled and that no rule was broken.
fn finish(chaos: &mut Chaos<'_>) {
    let gateway = chaos.gateway;
    gateway.set_activity(0.0);
    let start = Instant::now();
    let is_ready = |seen: &Observed| seen.live.len() == SHARDS as usize;

    while !gateway.wait_for(Duration::from_millis(200), is_ready) {
        chaos.look();
        assert!(start.elapsed() < CALM, "all shards are ready again");
    }

    let (given, repeated) = chaos.fleet.check();
    let seen = gateway.observed();
    chaos.takeovers.print(&seen);
    let (identifies, lost) = (identifies(&seen), seen.lost.len());
    println!(
        "{given} events, {repeated} handled more than once, {identifies} IDENTIFYs, {lost} sessions ended"
    );
    assert_eq!(identifies, SHARDS as usize + lost);
    let is_of_frozen = |violation: &&Violation| {
        chaos.frozen.is_some_and(|(part, from, until)| {
            let is_own = violation
                .shard
                .is_some_and(|shard| shard.number() % PARTS == part);
            // A process that is stopped sends no heartbeat, and the gateway closes its connection.
            let is_heartbeat = violation.rule.contains("a heartbeat per interval");
            is_own && is_heartbeat && (from..=until + CALM).contains(&violation.at)
        })
    };

    let violations: Vec<_> = seen
        .violations
        .iter()
        .filter(|one| !is_of_frozen(one))
        .collect();
    assert!(violations.is_empty(), "{violations:?}");
}
