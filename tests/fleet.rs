//! Several processes, each with a part of the shards: a real Redis, real processes, and a simulated
//! gateway.

mod common;

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::path::Path;
use std::time::{Duration, Instant};
use std::{env, thread};

use common::process::Process;
use common::redis::RedisServer;
use common::{PATIENCE, SCALE, config, eventually, gateway, shard, status_of};
use parking_lot::Mutex;
use threadcord::redis::{OwnedPart, Redis};
use threadcord::sim::{self, Action, Fault, Gateway, Observed};
use threadcord::store::SessionStore;
use threadcord::{Config, Error, Intents, Plan, ShardManager, Timing, Token};

/// How long a lease lasts here.
const TTL: Duration = Duration::from_secs(1);

/// The exit code of a process whose part another one has taken over.
const OWNERSHIP_LOST: i32 = 42;

/// A twentieth of Discord's time: a session without a connection lasts for 9 s.
const PROCESS_SCALE: f64 = 0.05;

fn timing(scale: f64) -> Timing {
    let mut timing = Timing::scaled(scale);
    timing.guard = Duration::from_millis(20);
    timing.lease_ttl = TTL;
    timing.session_skew = Duration::from_millis(10);
    timing
}

fn open(server: &RedisServer, gateway: &Gateway) -> Redis {
    let token = Token::new(gateway.token()).unwrap();
    Redis::open_with_timing(&server.url(), &token, &timing(SCALE)).unwrap()
}

/// A configuration for a part that this process owns.
fn of_part(gateway: &Gateway, redis: &Redis, plan: Plan, part: OwnedPart) -> Config {
    let limiter = redis.identify_limit();
    let mut config = config(gateway).plan(plan).limiter(limiter);
    config.timing.lease_ttl = TTL;
    config.session_store(part)
}

/// A gateway that wants a heartbeat every 200 ms.
fn lively() -> Gateway {
    let gateway = gateway().guilds(8).shards(4).max_concurrency(4);
    let gateway = gateway.heartbeat_interval(Duration::from_secs(20));
    gateway.start().unwrap()
}

fn resumes(seen: &Observed) -> usize {
    seen.count(|action| matches!(action, Action::Resume { .. }))
}

fn identifies(seen: &Observed) -> usize {
    seen.count(|action| matches!(action, Action::Identify(_)))
}

#[test]
fn a_part_has_one_owner_and_a_standby_goes_on_with_its_sessions() {
    let name = "a_part_has_one_owner_and_a_standby_goes_on_with_its_sessions";
    let Some(server) = RedisServer::start(name, &[]) else {
        return;
    };
    let gateway = lively();
    let redis = open(&server, &gateway);
    let start = Instant::now();
    let first = redis.part(1, 2).acquire(PATIENCE).unwrap();
    assert!(start.elapsed() >= TTL, "Redis may have lost an owner");
    let plan = Plan::bucket(1, 2);
    let config = of_part(&gateway, &redis, plan.clone(), first);
    let manager = ShardManager::start(config.clone()).unwrap();
    manager.wait_ready(PATIENCE).unwrap();

    // Another process that wants it waits.
    let other = open(&server, &gateway);
    let refused = other.part(1, 2).acquire(TTL * 2).unwrap_err();
    let report = refused.report();
    let (pid, wanted) = (std::process::id(), "it belongs to ");
    assert!(
        report.contains(wanted) && report.contains(&format!(":{pid}:")),
        "{report}"
    );
    let status = redis.status().unwrap();
    assert_eq!(status.total, Some(4));
    assert_eq!(status.limit.unwrap().max_concurrency.get(), 4);
    let owners: Vec<_> = status
        .parts
        .iter()
        .map(|part| part.owner.is_some())
        .collect();
    assert_eq!(owners, [false, true]);
    let renewed_ago = status.parts[1].renewed_ago.unwrap();
    assert!(renewed_ago < TTL, "{renewed_ago:?}");

    thread::scope(|scope| {
        let standby = scope.spawn(|| {
            let part = other.part(1, 2).acquire(PATIENCE).unwrap();
            let config = of_part(&gateway, &other, plan, part);
            let manager = ShardManager::start(config).unwrap();
            manager.wait_ready(PATIENCE).unwrap();
            manager
        });
        manager.suspend();
        let error = ShardManager::start(config).unwrap_err().report();
        assert!(error.contains("acquire it again"), "{error}");
        let next = standby.join().unwrap();
        for number in [1, 3] {
            assert_eq!(
                status_of(&next, shard(number, 4)).identifies,
                0,
                "it resumes"
            );
        }
    });
    let seen = gateway.observed();
    assert_eq!((identifies(&seen), resumes(&seen)), (2, 2));
    gateway.assert_lawful();
}

#[test]
fn all_processes_have_one_total_and_one_number_of_parts() {
    let name = "all_processes_have_one_total_and_one_number_of_parts";
    let Some(server) = RedisServer::start(name, &[]) else {
        return;
    };
    let gateway = lively();
    let redis = open(&server, &gateway);
    for (index, of) in [(2, 2), (0, 0)] {
        let error = redis.part(index, of).acquire(PATIENCE).unwrap_err();
        assert!(
            matches!(
                error,
                Error::Setting {
                    setting: "part",
                    ..
                }
            ),
            "{error:?}"
        );
    }
    let start = |index, plan, change: fn(Config) -> Config| {
        let part = redis.part(index, 2).acquire(PATIENCE).unwrap();
        ShardManager::start(change(of_part(&gateway, &redis, plan, part)))
    };
    let refusal = |index, plan, change| {
        let error = start(index, plan, change).unwrap_err();
        assert!(matches!(error, Error::Setting { .. }), "{error:?}");
        error.to_string()
    };
    let bucket = |index, total| Plan::Bucket {
        index,
        of: 2,
        total,
    };

    let first = start(0, bucket(0, Some(6)), |config| config).unwrap();
    first.wait_ready(PATIENCE).unwrap();
    assert!(refusal(1, bucket(0, Some(6)), |config| config).contains("shards of part 1 of 2"));
    let report = refusal(1, bucket(1, Some(8)), |config| config);
    assert!(
        report.contains("of 8 shards") && report.contains("have: 6"),
        "{report}"
    );
    let report = refusal(1, bucket(1, None), |config| config.auto_split(2));
    assert!(
        report.contains("`auto_split`") && report.contains("6 shards"),
        "{report}"
    );
    // Discord recommends four.
    let second = start(1, bucket(1, None), |config| config).unwrap();
    second.wait_ready(PATIENCE).unwrap();
    let shards = second.handle().shards();
    let shards: Vec<_> = shards.iter().map(|shard| shard.id().to_string()).collect();
    assert_eq!(shards, ["1/6", "3/6", "5/6"]);
    let report = second
        .handle()
        .reshard(&bucket(1, Some(8)))
        .unwrap_err()
        .to_string();
    assert!(report.contains("of 8 shards"), "{report}");

    let error = redis.part(0, 3).acquire(PATIENCE).unwrap_err().to_string();
    assert!(
        error.contains("one of 3 parts") && error.contains("one of 2"),
        "{error}"
    );
    let error = redis.set_total(8).unwrap_err().report();
    assert!(error.contains("is owned by"), "{error}");
    first.suspend();
    second.suspend();
    redis.set_total(8).unwrap();
    let first = start(0, bucket(0, None), |config| config).unwrap();
    first.wait_ready(PATIENCE).unwrap();
    assert_eq!(first.handle().shards()[0].id().total(), 8);
    first.close();
    redis.set_parts(3).unwrap();
    assert_eq!(redis.status().unwrap().parts.len(), 3);
    assert!(matches!(redis.set_total(0), Err(Error::Setting { .. })));
    gateway.assert_lawful();
}

#[test]
fn what_is_stored_of_a_part_and_damaged_is_said_at_once() {
    let name = "what_is_stored_of_a_part_and_damaged_is_said_at_once";
    let Some(server) = RedisServer::start(name, &[]) else {
        return;
    };
    let gateway = lively();
    let redis = open(&server, &gateway);
    let bot = Token::new(gateway.token()).unwrap().user_id().unwrap();
    let mut admin = server.admin();
    let mut set = |name: &str, text: &str| {
        let key = format!("threadcord:{{{bot}}}:{name}");
        let () = redis::cmd("SET")
            .arg(&key)
            .arg(text)
            .query(&mut admin)
            .unwrap();
    };
    for (name, text) in [
        ("fleet", "<html>"),
        ("fleet", r#"{"threadcord":2,"parts":2,"total":4}"#),
        ("part:0/2", "{}"),
    ] {
        set("fleet", r#"{"threadcord":1,"parts":2,"total":4}"#);
        set(name, text);
        let error = redis.part(0, 2).acquire(PATIENCE).unwrap_err();
        assert!(matches!(error, Error::Redis(_)), "{error:?}");
        let report = error.report();
        assert!(
            report.contains("cannot be used") && report.contains(name),
            "{report}"
        );
    }
    // Sessions that cannot be used are none.
    set("part:0/2", "");
    let part = redis.part(0, 2).acquire(PATIENCE).unwrap();
    for text in ["<html>", r#"{"threadcord":2,"sessions":[]}"#] {
        set("sessions:0/2", text);
        assert!(part.load().unwrap().sessions.is_empty(), "{text}");
    }
}

#[test]
fn while_redis_is_away_or_emptied_parts_keep_their_owners() {
    let name = "while_redis_is_away_or_emptied_parts_keep_their_owners";
    let Some(mut server) = RedisServer::start(name, &[]) else {
        return;
    };
    let gateway = lively();
    let redis = open(&server, &gateway);
    let part = redis.part(0, 1).acquire(PATIENCE).unwrap();
    let config = of_part(&gateway, &redis, Plan::Total(2), part);
    let manager = ShardManager::start(config).unwrap();
    manager.wait_ready(PATIENCE).unwrap();
    let owner = redis.status().unwrap().parts[0].owner.clone();

    let other = open(&server, &gateway);
    thread::scope(|scope| {
        let standby = scope.spawn(|| other.part(0, 1).acquire(6 * TTL).unwrap_err());
        server.kill();
        thread::sleep(2 * TTL);
        server.restart();
        eventually("the lease is written again", || {
            let status = redis.status();
            status.is_ok_and(|status| status.parts.iter().any(|part| part.owner == owner))
        });
        let report = standby.join().unwrap().report();
        assert!(report.contains("it belongs to"), "{report}");
    });

    // What is asked of a server that may not know of another owner is answered later.
    gateway.inject(shard(0, 2), Fault::Cut);
    gateway.expect("it resumes", PATIENCE, |seen| resumes(seen) == 1);
    manager.wait_ready(PATIENCE).unwrap();
    let statuses = [0, 1].map(|number| status_of(&manager, shard(number, 2)));
    assert_eq!(statuses.map(|status| status.identifies), [1, 1]);
    gateway.assert_lawful();
}

/// What a process has handled, in a file.
struct Journal(Mutex<File>);

/// An event in a journal: its sequence and the digest of its data.
type Entry = (u64, u64);

impl Journal {
    fn append(path: &Path) -> Self {
        let file = OpenOptions::new().create(true).append(true).open(path);
        Self(Mutex::new(file.unwrap()))
    }

    /// In one write, so that a process that is killed leaves whole entries.
    fn note(&self, (sequence, digest): Entry) {
        let mut entry = [0; 16];
        entry[..8].copy_from_slice(&sequence.to_le_bytes());
        entry[8..].copy_from_slice(&digest.to_le_bytes());
        self.0.lock().write_all(&entry).unwrap();
    }

    /// How often each event is in any of the journals of a folder.
    fn read_all(folder: &Path) -> BTreeMap<Entry, u32> {
        let mut entries = BTreeMap::new();
        for path in fs::read_dir(folder).unwrap() {
            let mut bytes = Vec::new();
            File::open(path.unwrap().path())
                .unwrap()
                .read_to_end(&mut bytes)
                .unwrap();
            let (chunks, rest) = bytes.as_chunks::<8>();
            assert!(rest.is_empty());
            for pair in chunks.chunks_exact(2) {
                let entry = (u64::from_le_bytes(pair[0]), u64::from_le_bytes(pair[1]));
                *entries.entry(entry).or_default() += 1;
            }
        }
        entries
    }
}

/// Processes that run the parts of one bot.
struct Fleet<'a> {
    gateway: &'a Gateway,
    server: &'a RedisServer,
    journals: &'a Path,
    parts: u32,
}

impl Fleet<'_> {
    /// Starts a process that wants to own a part.
    fn start(&self, index: u32) -> Process {
        let variables = [
            ("DISCORD_TOKEN", self.gateway.token()),
            ("DISCORD_REST_URL", &self.gateway.rest_url()),
            ("REDIS_URL", &self.server.url()),
            ("JOURNALS", self.journals.to_str().unwrap()),
            ("PART", &index.to_string()),
            ("PARTS", &self.parts.to_string()),
        ];
        Process::start("as_one_of_many", &variables)
    }

    /// Every event that a session was given was handled. Returns how many were handled more than
    /// once.
    fn check(&self) -> usize {
        let is_for_handlers = |event: &sim::Dispatched| event.name != "RESUMED";
        let given: Vec<_> = self
            .gateway
            .dispatches()
            .into_iter()
            .filter(is_for_handlers)
            .collect();
        let deadline = Instant::now() + PATIENCE;
        let handled = loop {
            let handled = Journal::read_all(self.journals);
            let missing =
                |event: &&sim::Dispatched| !handled.contains_key(&(event.sequence, event.digest));
            let Some(missing) = given.iter().find(missing) else {
                break handled;
            };
            assert!(Instant::now() < deadline, "lost: {missing:?}");
            thread::sleep(Duration::from_millis(100));
        };
        handled.values().filter(|count| **count > 1).count()
    }
}

#[test]
fn a_process_that_is_killed_is_replaced_and_nothing_is_lost() {
    let name = "a_process_that_is_killed_is_replaced_and_nothing_is_lost";
    let Some(server) = RedisServer::start(name, &[]) else {
        return;
    };
    let journals = tempfile::tempdir().unwrap();
    let gateway = gateway()
        .time_scale(PROCESS_SCALE)
        .guilds(8)
        .shards(4)
        .max_concurrency(4)
        .activity(500.0)
        .start()
        .unwrap();
    let fleet = Fleet {
        gateway: &gateway,
        server: &server,
        journals: journals.path(),
        parts: 2,
    };
    let mut owners: Vec<_> = (0..2).map(|index| fleet.start(index)).collect();
    gateway.expect("all are ready", PATIENCE, |seen| seen.live.len() == 4);
    let mut standby = fleet.start(0);
    let redis = open(&server, &gateway);
    eventually("sessions are saved", || {
        // The first save of a running process is a second after READY.
        let mut admin = server.admin();
        let bot = Token::new(gateway.token()).unwrap().user_id().unwrap();
        let key = format!("threadcord:{{{bot}}}:sessions:0/2");
        let text: Option<String> = redis::cmd("GET").arg(key).query(&mut admin).unwrap();
        text.is_some_and(|text| text.matches("resume_url").count() == 2)
    });
    // It must have watched before, to take over so soon.
    thread::sleep(TTL);

    owners[0].kill();
    let killed = Instant::now();
    gateway.expect("its sessions are resumed", PATIENCE, |seen| {
        resumes(seen) == 2
    });
    let taken = killed.elapsed();
    println!("resumed {taken:?} after the kill, with a TTL of {TTL:?}");
    let pid = format!(":{}:", standby.id());
    let owner = redis.status().unwrap().parts[0].owner.clone().unwrap();
    assert!(owner.contains(&pid), "{owner}");

    // One that is stopped for longer than its lease finds out when it goes on.
    owners[1].freeze();
    let mut next = fleet.start(1);
    gateway.expect("its sessions are taken over", PATIENCE, |seen| {
        resumes(seen) == 4
    });
    owners[1].thaw();
    assert_eq!(owners[1].wait().code(), Some(OWNERSHIP_LOST));

    standby.say("suspend");
    assert_eq!(standby.wait().code(), Some(0));
    next.say("suspend");
    assert_eq!(next.wait().code(), Some(0));
    gateway.set_activity(0.0);
    let mut last: Vec<_> = (0..2).map(|index| fleet.start(index)).collect();
    gateway.expect("all are resumed", PATIENCE, |seen| {
        seen.live.len() == 4 && resumes(seen) >= 8
    });
    let repeated = fleet.check();
    println!("{repeated} events were handled more than once");
    for process in &mut last {
        process.say("suspend");
        process.wait();
    }
    let seen = gateway.observed();
    assert_eq!(identifies(&seen), 4, "one for each shard");
    assert!(seen.lost.is_empty());
    gateway.assert_lawful();
}

/// Owns a part, runs it until it is told to suspend, or has lost it, and notes what it handles.
#[test]
#[ignore = "other tests start it"]
fn as_one_of_many() {
    let variable = |name: &str| env::var(name).unwrap();
    let number = |name: &str| variable(name).parse().unwrap();
    let token = Token::new(variable("DISCORD_TOKEN")).unwrap();
    let path = Path::new(&variable("JOURNALS")).join(std::process::id().to_string());
    let journal = Journal::append(&path);
    let (index, of) = (number("PART"), number("PARTS"));

    let redis =
        Redis::open_with_timing(&variable("REDIS_URL"), &token, &timing(PROCESS_SCALE)).unwrap();
    let part = redis.part(index, of).acquire(Duration::MAX).unwrap();
    let config = Config::new(token, Intents::all())
        .rest_url(variable("DISCORD_REST_URL"))
        .limiter(redis.identify_limit())
        .timing(timing(PROCESS_SCALE))
        .retry_start_for(PATIENCE)
        .plan(Plan::bucket(index, of))
        .session_store(part);
    let manager = ShardManager::start(config).unwrap();
    let handle = manager.handle().clone();
    thread::spawn(move || {
        let _ = io::stdin().read_line(&mut String::new());
        handle.request_suspend();
    });
    let ended = manager.run(2, |_, event| {
        if let Some(dispatch) = event.dispatch()
            && dispatch.name() != "RESUMED"
        {
            journal.note((dispatch.sequence(), sim::digest(dispatch.data())));
        }
    });
    let is_lost = matches!(ended, Err(Error::OwnershipLost));
    assert!(is_lost || ended.is_ok(), "{ended:?}");
    manager.close();
    if is_lost {
        std::process::exit(OWNERSHIP_LOST);
    }
}
