//! The identify limit that processes of one machine share, between real processes.

mod common;

use std::num::NonZeroU32;
use std::process::{Child, Command};
use std::time::{Duration, Instant};
use std::{env, fs, thread};

use common::{PATIENCE, SCALE, eventually, gateway, shard};
use serde_json::Value;
use threadcord::limit::{
    Blocking, FileLimit, Guard, IdentifyLimiter, LimitError, Limits, contract,
};
use threadcord::sim::Gateway;
use threadcord::{Config, Intents, Plan, ShardManager, Timing, Token};

const PROCESSES: u32 = 50;

/// What a key's window is, and by how much the limit makes it longer.
const WINDOW: Duration = Duration::from_millis(100);
const GUARD: Duration = Duration::from_millis(50);

fn timing() -> Timing {
    let mut timing = Timing::scaled(0.02);
    timing.guard = GUARD;
    timing
}

#[test]
fn two_objects_on_one_file_keep_the_contract() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("identify.json");
    let limits = || FileLimit::with_timing(&path, &timing());
    let (a, b) = (limits(), limits());
    contract::grants_once(&a);
    contract::windows_are_shared((&a, shard(0, 2)), (&b, shard(1, 2)), 5, WINDOW);
    contract::windows_are_kept(&b, shard(0, 2), shard(1, 2), WINDOW);
    contract::leaving_frees_the_slot(&a, shard(0, 2), shard(1, 2));

    let keys = Limits {
        max_concurrency: NonZeroU32::new(2).unwrap(),
        ..Limits::default()
    };
    a.update(keys, Instant::now());
    b.update(keys, Instant::now());
    contract::keys_are_independent(&b, &[shard(0, 2), shard(1, 2)]);
    let status = b.status().unwrap();
    assert_eq!((status.total, status.max_concurrency.get()), (1000, 2));
    assert!(
        status.remaining < 1000 && status.reset_after.is_some(),
        "{status:?}"
    );
}

#[test]
fn a_file_that_cannot_be_used_refuses_the_shard() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("identify.json");
    let refused = |path| {
        let limit = FileLimit::new(path);
        let Err(LimitError::Failed(cause)) = limit.request(shard(0, 1), Box::new(|| {})).wait(None)
        else {
            panic!("it cannot tell")
        };
        cause.to_string()
    };
    fs::write(&path, "{}").unwrap();
    assert!(refused(path).contains("identify.json"));
    assert!(refused(folder.path().join("missing/identify.json")).contains("missing"));
}

#[test]
fn a_function_that_blocks_is_a_limiter() {
    /// Sends word when it is used and when it is dropped.
    struct Told(crossbeam_channel::Sender<&'static str>);
    impl Guard for Told {
        fn used(&mut self) {
            self.0.send("used").unwrap();
        }
    }
    impl Drop for Told {
        fn drop(&mut self) {
            self.0.send("dropped").unwrap();
        }
    }

    let (told, tells) = crossbeam_channel::unbounded();
    let (calls, asked) = crossbeam_channel::unbounded();
    let limiter = Blocking::new(move |shard| {
        calls.send(shard.number()).unwrap();
        match shard.number() {
            7 => Err("not this one".to_owned()),
            8 => panic!("nor this one"),
            _ => Ok(Told(told.clone())),
        }
    });
    contract::grants_once(&limiter);
    contract::leaving_frees_the_slot(&limiter, shard(0, 9), shard(1, 9));
    contract::windows_are_kept(&limiter, shard(0, 9), shard(1, 9), Duration::ZERO);
    tells.try_iter().for_each(drop);
    asked.try_iter().for_each(drop);

    for (number, wanted) in [(7, "not this one"), (8, "panicked")] {
        let refused = limiter
            .request(shard(number, 9), Box::new(|| {}))
            .wait(None);
        let Err(LimitError::Failed(cause)) = refused else {
            panic!("{refused:?}")
        };
        assert!(cause.to_string().contains(wanted), "{cause}");
    }
    let mut permit = limiter
        .request(shard(2, 9), Box::new(|| {}))
        .wait(None)
        .unwrap();
    // One that leaves is not asked for.
    drop(limiter.request(shard(3, 9), Box::new(|| {})));
    permit.used();
    drop(
        limiter
            .request(shard(4, 9), Box::new(|| {}))
            .wait(None)
            .unwrap(),
    );
    let told: Vec<_> = (0..3)
        .map(|_| tells.recv_timeout(PATIENCE).unwrap())
        .collect();
    assert_eq!(told, ["used", "dropped", "dropped"]);
    assert_eq!(asked.try_iter().collect::<Vec<_>>(), [7, 8, 2, 4]);

    let waiting = limiter.request(shard(5, 9), Box::new(|| {}));
    drop(waiting.wait(None).unwrap());
    drop(limiter);
}

/// A process that runs one shard, and stays.
struct Process(Child);

impl Process {
    fn start(gateway: &Gateway, path: &std::path::Path, number: u32) -> Self {
        let child = Command::new(env::current_exe().unwrap())
            .args(["--exact", "as_one_of_many", "--ignored", "--nocapture"])
            .env("DISCORD_TOKEN", gateway.token())
            .env("DISCORD_REST_URL", gateway.rest_url())
            .env("LIMIT_FILE", path)
            .env("SHARD", number.to_string())
            .spawn();
        Self(child.unwrap())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn fifty_processes_start_at_once_and_one_is_killed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("identify.json");
    let gateway = gateway().guilds(1).start().unwrap();
    let start = Instant::now();
    let mut processes: Vec<_> = (0..PROCESSES)
        .map(|number| Process::start(&gateway, &path, number))
        .collect();

    // All have reserved, and most of them wait for their time.
    eventually("all have reserved", || {
        let reserved = fs::read(&path).ok();
        let reserved = reserved.and_then(|text| serde_json::from_slice::<Value>(&text).ok());
        let reserved = reserved.and_then(|content| Some(content["reserved"].as_array()?.len()));
        reserved == Some(PROCESSES as usize)
    });
    let live = gateway.observed().live;
    let is_waiting = |number: &u32| !live.contains_key(&shard(*number, PROCESSES));
    let killed = (0..PROCESSES).rev().find(is_waiting).expect("one waits");
    processes.remove(killed as usize);
    gateway.expect("all others are ready", PATIENCE, |seen| {
        seen.live.len() + 1 == PROCESSES as usize
    });
    println!(
        "{} of {PROCESSES} are ready after {:?}",
        PROCESSES - 1,
        start.elapsed()
    );

    processes.push(Process::start(&gateway, &path, killed));
    gateway.expect("all are ready", PATIENCE, |seen| {
        seen.live.len() == PROCESSES as usize
    });
    gateway.assert_lawful();
}

#[test]
#[ignore = "`fifty_processes_start_at_once_and_one_is_killed` starts it"]
fn as_one_of_many() {
    let variable = |name: &str| env::var(name).unwrap();
    let number = variable("SHARD").parse().unwrap();
    let mut timing = Timing::scaled(SCALE);
    timing.guard = Duration::from_millis(100);
    let plan = Plan::Ids {
        ids: vec![number],
        total: PROCESSES,
    };
    let config = Config::new(
        Token::new(variable("DISCORD_TOKEN")).unwrap(),
        Intents::GUILDS,
    )
    .rest_url(variable("DISCORD_REST_URL"))
    .limiter(std::sync::Arc::new(FileLimit::with_timing(
        variable("LIMIT_FILE"),
        &timing,
    )))
    .timing(timing)
    .retry_start_for(PATIENCE)
    .plan(plan);
    let _manager = ShardManager::start(config).unwrap();
    loop {
        thread::park();
    }
}
