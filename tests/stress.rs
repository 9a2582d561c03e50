//! Threads call random methods of a manager while shards start and stop. There must be no deadlock
//! and no leak, and every shard must work afterwards.
//!
//! `THREADCORD_STRESS_SECONDS` makes the test longer, and `THREADCORD_STRESS_SEED` chooses the
//! random calls.
#![cfg(target_os = "linux")]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use common::{PATIENCE, config, eventually, footprint, gateway, shard, variable};
use fastrand::Rng;
use parking_lot::Mutex;
use threadcord::sim::{Fault, Gateway};
use threadcord::store::FileStore;
use threadcord::{
    Error, Event, Handle, Operation, Plan, ShardId, ShardManager, ShardState, ShardStatus,
};

const CALLERS: u64 = 6;
const GUILDS: u32 = 24;

/// How often each call had each result.
type Tally = Mutex<BTreeMap<String, u32>>;

fn tell(tally: &Tally, call: &str, outcome: Result<Operation, Error>, rng: &mut Rng) {
    let words = match outcome {
        Ok(operation) if rng.bool() => {
            match operation.wait(Duration::from_millis(rng.u64(..200))) {
                Ok(()) => "done".into(),
                Err(error) => kind(&error),
            }
        }
        Ok(_) => "begun".into(),
        Err(error) => kind(&error),
    };
    *tally.lock().entry(format!("{call}: {words}")).or_default() += 1;
}

fn kind(error: &Error) -> String {
    format!("{error:?}")
        .split([' ', '('])
        .next()
        .unwrap_or_default()
        .to_owned()
}

fn call(handle: &Handle, gateway: &Gateway, tally: &Tally, calm: &AtomicBool, rng: &mut Rng) {
    let total = rng.u32(1..7);
    let id = shard(rng.u32(..total), total);
    let running = handle.shards();
    let one = running
        .get(rng.usize(..running.len().max(1)))
        .map_or(id, threadcord::Shard::id);
    let guild = gateway.guild_ids()[rng.usize(..GUILDS as usize)];

    match rng.u32(..100) {
        0..3 => {
            // This needs a quiet moment, which would hardly ever occur by chance.
            calm.store(true, Ordering::Release);
            let mut outcome = handle.reshard(&Plan::Total(total));
            for _ in 0..100 {
                if !matches!(outcome, Err(Error::Busy { .. })) {
                    break;
                }
                std::thread::sleep(Duration::from_millis(2));
                outcome = handle.reshard(&Plan::Total(total));
            }
            tell(tally, "reshard", outcome, rng);
            calm.store(false, Ordering::Release);
        }
        3..50 if calm.load(Ordering::Acquire) && rng.u32(..50) > 0 => {}
        3..6 => tell(
            tally,
            "restart_all",
            handle.restart_all(rng.usize(..4)),
            rng,
        ),
        6..16 => tell(
            tally,
            "restart",
            handle.restart_shard(if rng.bool() { one } else { id }),
            rng,
        ),
        16..26 => tell(
            tally,
            "close",
            handle.close_shard(if rng.bool() { one } else { id }),
            rng,
        ),
        26..45 => tell(
            tally,
            "open",
            handle.open_shard(if rng.bool() { one } else { id }),
            rng,
        ),
        45..50 => {
            // Another thread may have closed it in the meantime.
            let session = handle.shard(one).and_then(|shard| shard.session());
            if let Some(session) = session {
                tell(tally, "resume", handle.resume_shard(session), rng);
            }
        }
        50..60 => drop(handle.status().to_string()),
        60..70 => {
            if let Some(shard) = handle.shard_by_guild(guild) {
                let _ = shard.send(common::sounds(guild));
            }
        }
        70..75 => gateway.inject(one, Fault::Cut),
        75..78 => gateway.inject(one, Fault::InvalidSession { resumable: false }),
        78..80 => gateway.inject(one, Fault::Close(4011)),
        _ => std::thread::sleep(Duration::from_millis(rng.u64(..20))),
    }
}

#[test]
fn random_calls_from_many_threads() {
    let seconds = variable("THREADCORD_STRESS_SECONDS").unwrap_or(4);
    let seed = variable("THREADCORD_STRESS_SEED").unwrap_or_else(|| fastrand::u64(..1_000_000));
    println!("THREADCORD_STRESS_SECONDS={seconds} THREADCORD_STRESS_SEED={seed}");
    let folder = tempfile::tempdir().unwrap();
    let day = Duration::from_secs(24 * 60 * 60);
    let gateway = gateway()
        .shards(4)
        .max_concurrency(4)
        .guilds(GUILDS)
        .activity(500.0)
        .session_starts(1_000_000, 1_000_000, day);
    let gateway = gateway.start().unwrap();
    let before = footprint();
    let mut config = config(&gateway)
        .session_store(FileStore::new(folder.path().join("sessions.json")))
        .auto_split(2);
    config.timing.reshard_overlap = Duration::from_millis(20);
    config.timing.store_interval = Duration::from_millis(5);
    let manager = ShardManager::start(config).unwrap();
    let (handle, tally, stop) = (
        manager.handle().clone(),
        Tally::default(),
        AtomicBool::new(false),
    );
    let calm = AtomicBool::new(false);
    let end = Instant::now() + Duration::from_secs(seconds);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // Handlers call methods, too.
            let mut turns = 0;
            let rng = Mutex::new(Rng::with_seed(seed));
            let handler = |handle: &Handle, event: Event| {
                let mut rng = Rng::with_seed(rng.lock().u64(..));
                if event.name() == "MESSAGE_CREATE"
                    && rng.u32(..50) == 0
                    && !stop.load(Ordering::Acquire)
                {
                    call(handle, &gateway, &tally, &calm, &mut rng);
                }
            };
            while !stop.load(Ordering::Acquire) && turns < 3 {
                turns += 1;
                // `run` returns early only if every shard has stopped for good.
                let _ = manager.run(3, handler);
            }
        });
        let callers: Vec<_> = (0..CALLERS)
            .map(|n| {
                let (handle, gateway, tally, calm) = (&handle, &gateway, &tally, &calm);
                scope.spawn(move || {
                    let mut rng = Rng::with_seed(seed + 1 + n);
                    while Instant::now() < end {
                        call(handle, gateway, tally, calm, &mut rng);
                    }
                })
            })
            .collect();
        for caller in callers {
            caller.join().unwrap();
        }
        stop.store(true, Ordering::Release);
        settle(&manager, &gateway);
        manager.close();
    });
    println!("{:#?}", tally.lock());
    drop((manager, handle));
    gateway.assert_lawful();
    eventually("no thread or descriptor is left", || {
        let (threads, descriptors) = footprint();
        threads <= before.0 && descriptors <= before.1
    });
}

/// Checks that the remaining shards can be made ready, and that the gateway sees the same shards.
fn settle(manager: &ShardManager, gateway: &Gateway) {
    eventually("nothing is under way any more", || {
        match manager.handle().reshard(&Plan::Total(9)) {
            Ok(reshard) => {
                let outcome = reshard.wait(PATIENCE);
                assert!(
                    outcome.is_ok(),
                    "{outcome:?}, although no other thread interferes: {}",
                    manager.handle().status()
                );
                true
            }
            Err(Error::Busy { .. }) => false,
            Err(other) => panic!("{other:?}"),
        }
    });
    manager.wait_guilds(PATIENCE).unwrap();
    let running: BTreeSet<ShardId> = manager
        .handle()
        .shards()
        .iter()
        .map(threadcord::Shard::id)
        .collect();
    assert_eq!(running, (0..9).map(|number| shard(number, 9)).collect());
    gateway.expect("the gateway sees the same", PATIENCE, |seen| {
        seen.live.keys().copied().collect::<BTreeSet<_>>() == running
    });
    let status = manager.handle().status();
    let is_ready = |shard: &ShardStatus| shard.state == ShardState::Ready;
    assert!(status.shards.iter().all(is_ready), "{status}");
    assert!(status.incoming.is_empty(), "{status}");

    for guild in gateway.guild_ids() {
        assert_eq!(
            manager
                .handle()
                .shard_by_guild(guild)
                .map(|shard| shard.id()),
            ShardId::for_guild(guild, 9)
        );
    }
}
