//! The identify limit that the processes of one machine share through a file, with real processes.

mod common;

use std::num::NonZeroU32;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};
use std::{env, fs, thread};

use common::process::Process;
use common::{PATIENCE, SCALE, config, eventually, gateway, shard};
use crossbeam_channel::{Receiver, Sender};
use threadcord::limit::{
    Blocking, Expiry, FileLimit, Guard, IdentifyLimiter, LimitError, Limits, contract,
};
use threadcord::sim::Gateway;
use threadcord::{Config, Intents, Plan, ShardManager, Timing, Token};

const PROCESSES: u32 = 50;

/// The window of a key, and the guard by which the limit extends it.
const WINDOW: Duration = Duration::from_millis(100);
const GUARD: Duration = Duration::from_millis(50);

/// How long a permit is valid.
const VALIDITY: Duration = Duration::from_millis(500);

fn timing() -> Timing {
    let mut timing = Timing::scaled(0.02);
    timing.guard = GUARD;
    timing.permit_validity = VALIDITY;
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

    // A process that is killed before it identifies delays the key by its permit's validity and one
    // window. A permit that is given back frees the key at once.
    drop(a.request(shard(0, 2), Box::new(|| {})).wait(None).unwrap());
    let start = Instant::now();
    let held = a.request(shard(0, 2), Box::new(|| {})).wait(None).unwrap();
    assert!(!held.is_expired());
    let permit = b.request(shard(1, 2), Box::new(|| {})).wait(None).unwrap();
    assert!(start.elapsed() >= VALIDITY + WINDOW);
    assert!(held.is_expired(), "it may not be used any more");
    drop((held, permit));

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

    fs::write(&path, r#"{"threadcord":9}"#).unwrap();
    let limit = FileLimit::new(&path);
    limit.update(Limits::default(), Instant::now());
    let refusal = refused(path.clone());
    assert!(refusal.contains("version 9"), "it is kept: {refusal}");
    fs::write(&path, "{}").unwrap();
    assert!(refused(path.clone()).contains("identify.json"));

    // New limits from Discord fix the file.
    let limit = FileLimit::with_timing(&path, &timing());
    let said = Limits {
        remaining: 7,
        reset_after: Duration::from_secs(3600),
        ..Limits::default()
    };

    let mended = Instant::now();
    limit.update(said, mended);
    assert_eq!(limit.status().unwrap().remaining, 7);
    drop(
        limit
            .request(shard(0, 1), Box::new(|| {}))
            .wait(None)
            .unwrap(),
    );
    let waited = mended.elapsed();
    let why = "another process may have got a permit just before the file was damaged";
    assert!(waited >= VALIDITY + WINDOW, "{why}: {waited:?}");
    eventually("what was not used is given back", || {
        limit.status().unwrap().remaining == 7
    });
    assert!(refused(folder.path().join("missing/identify.json")).contains("missing"));
}

/// Reports when it is used and when it is dropped.
struct Told(Sender<&'static str>);

impl Guard for Told {
    fn used(&mut self) {
        let _ = self.0.send("used");
    }
}

impl Drop for Told {
    fn drop(&mut self) {
        let _ = self.0.send("dropped");
    }
}

/// A limiter that fails for shard 7 and panics for shard 8, the reports of its guards, and the
/// shards that have requested a permit.
fn telling() -> (Blocking, Receiver<&'static str>, Receiver<u32>) {
    let (told, tells) = crossbeam_channel::unbounded();
    let (calls, asked) = crossbeam_channel::unbounded();
    let limiter = Blocking::new(move |shard| {
        let _ = calls.send(shard.number());
        match shard.number() {
            7 => Err("not this one".to_owned()),
            8 => panic!("nor this one"),
            _ => Ok(Told(told.clone())),
        }
    });
    (limiter, tells, asked)
}

#[test]
fn a_blocking_function_works_as_a_limiter() {
    let (limiter, _tells, _asked) = telling();
    contract::grants_once(&limiter);
    contract::leaving_frees_the_slot(&limiter, shard(0, 9), shard(1, 9));
    contract::windows_are_kept(&limiter, shard(0, 9), shard(1, 9), Duration::ZERO);

    let (limiter, tells, asked) = telling();
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
    // No permit is requested for a shard that has stopped waiting.
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

/// A permit that has expired before the shard gets it, as in a process that was stopped meanwhile.
struct TooLate(bool);

impl Guard for TooLate {
    fn expiry(&self) -> Option<Expiry> {
        self.0.then(|| Expiry::after(Duration::ZERO))
    }
}

#[test]
fn a_permit_that_has_expired_is_not_used() {
    let gateway = gateway().guilds(1).start().unwrap();
    let calls = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&calls);
    let limiter = Blocking::new(move |_| {
        let is_first = counted.fetch_add(1, Ordering::SeqCst) == 0;
        Ok::<_, std::io::Error>(TooLate(is_first))
    });
    let manager = ShardManager::start(config(&gateway).limiter(Arc::new(limiter))).unwrap();
    manager.wait_ready(PATIENCE).unwrap();
    assert_eq!(calls.load(Ordering::SeqCst), 2);
    let counters = manager.handle().shards()[0].counters();
    assert_eq!((counters.connects, counters.identifies), (1, 1));
}

/// Runs one shard until it is killed.
fn process(gateway: &Gateway, path: &Path, number: u32) -> Process {
    let variables = [
        ("DISCORD_TOKEN", gateway.token()),
        ("DISCORD_REST_URL", &gateway.rest_url()),
        ("LIMIT_FILE", path.to_str().unwrap()),
        ("SHARD", &number.to_string()),
    ];
    Process::start("as_one_of_many", &variables)
}

#[test]
fn fifty_processes_start_at_once_and_one_is_killed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("identify.json");
    let gateway = gateway().guilds(1).start().unwrap();
    let start = Instant::now();
    let mut processes: Vec<_> = (0..PROCESSES)
        .map(|number| process(&gateway, &path, number))
        .collect();

    // A process that waits for its turn.
    gateway.expect("some are ready", PATIENCE, |seen| seen.live.len() >= 10);
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

    processes.push(process(&gateway, &path, killed));
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

    // While fifty processes start, the gateway may read an IDENTIFY this much after its arrival.
    timing.guard = Duration::from_millis(250);
    let plan = Plan::Ids {
        ids: vec![number],
        total: PROCESSES,
    };
    let config = Config::new(
        Token::new(variable("DISCORD_TOKEN")).unwrap(),
        Intents::GUILDS,
    )
    .rest_url(variable("DISCORD_REST_URL"))
    .limiter(Arc::new(FileLimit::with_timing(
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
