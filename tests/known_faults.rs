//! Faults that are known and not mended yet, each with the test that will show that it is.

mod common;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use common::{PATIENCE, config, eventually, gateway, in_time, next, ready, shard};
use threadcord::sim::{Fault, Observed};
use threadcord::store::{FileStore, SessionStore};
use threadcord::{EventKind, Plan, ShardId, ShardManager, Stage};

fn is_live(seen: &Observed, total: u32) -> bool {
    seen.live
        .keys()
        .filter(|shard| shard.total() == total)
        .count()
        == total as usize
}

#[test]
#[ignore = "A3: a session that a new shard loses before the hand-over is not reported"]
fn a_new_shard_reports_the_session_that_it_lost() {
    let gateway = gateway().shards(1).max_concurrency(4).start().unwrap();
    let mut config = config(&gateway);
    config.timing.reshard_overlap = Duration::from_millis(500);
    let manager = ready(config);
    let events = manager.events();
    let reshard = manager.reshard(&Plan::Total(2)).unwrap();
    gateway.expect("the new ones are live", PATIENCE, |seen| is_live(seen, 2));
    gateway.inject(shard(0, 2), Fault::InvalidSession { resumable: false });
    reshard.wait(PATIENCE).unwrap();
    manager.close();
    let lost = |event: &threadcord::Event| matches!(event.kind(), EventKind::SessionLost { .. });
    assert_eq!(events.filter(lost).count(), 1);
}

#[test]
#[ignore = "A4: a shard that was suspended by hand does not resume when it is restarted"]
fn a_shard_that_was_suspended_resumes_when_it_is_restarted() {
    let gateway = gateway().start().unwrap();
    let manager = ready(config(&gateway));
    let one = manager.shard(ShardId::ONE).unwrap();
    one.suspend();
    eventually("it stops", || {
        matches!(one.status().stage, Stage::Stopped(_))
    });
    let restart = manager.restart_shard(ShardId::ONE).unwrap();
    restart.wait(PATIENCE).unwrap();
    let status = manager.shard(ShardId::ONE).unwrap().status();
    assert_eq!((status.identifies, status.resumes), (0, 1));
}

#[test]
#[ignore = "A9: the store is not written before the handlers are done"]
fn a_suspend_from_a_handle_writes_the_store_while_handlers_go_on() {
    let gateway = gateway().guilds(1).start().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let store = FileStore::new(folder.path().join("sessions.json"));
    let mut settings = config(&gateway).session_store(store.clone());
    settings.timing.store_interval = Duration::from_secs(3600);
    settings.timing.handlers_timeout = PATIENCE;
    let manager = ready(settings);
    let kept = next(&manager.events(), |event| event.name() == "READY");
    manager.handle().suspend();
    gateway.expect("the shard has left", PATIENCE, |seen| seen.live.is_empty());
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(store.load().unwrap().sessions.len(), 1);
    drop(kept);
}

#[test]
#[ignore = "B1: the stream does not end when the manager does so during a hand-over"]
fn a_close_during_a_hand_over_ends_the_stream() {
    let gateway = gateway()
        .shards(1)
        .max_concurrency(4)
        .guilds(1)
        .start()
        .unwrap();
    let mut settings = config(&gateway);
    settings.timing.reshard_overlap = Duration::from_millis(10);
    settings.timing.handlers_timeout = PATIENCE;
    let manager = ready(settings);
    let events = manager.events();
    // It holds the hand-over up.
    let kept = next(&events, |event| event.name() == "GUILD_CREATE");
    let reshard = manager.reshard(&Plan::Total(2)).unwrap();
    gateway.expect("the old one has closed", PATIENCE, |seen| {
        seen.live.len() == 2 && is_live(seen, 2)
    });
    manager.close();
    in_time("the stream ends", move || {
        events.for_each(drop);
        drop((reshard, kept));
    });
}

#[test]
#[ignore = "B4: callbacks on two shards' threads that both close wait for each other"]
fn callbacks_that_close_do_not_wait_for_each_other() {
    let gateway = gateway().shards(2).max_concurrency(2).start().unwrap();
    let owner: Arc<OnceLock<Arc<ShardManager>>> = Arc::default();
    let called = Arc::new(AtomicUsize::new(0));
    let settings = config(&gateway).on_close({
        let (owner, called) = (Arc::clone(&owner), Arc::clone(&called));
        move |_, _, _| {
            called.fetch_add(1, Ordering::SeqCst);
            let deadline = Instant::now() + Duration::from_secs(2);
            while called.load(Ordering::SeqCst) < 2 && Instant::now() < deadline {
                std::thread::yield_now();
            }
            if let Some(manager) = owner.get() {
                manager.close();
            }
        }
    });
    let manager = Arc::new(ready(settings));
    let _ = owner.set(Arc::clone(&manager));
    for number in 0..2 {
        gateway.inject(shard(number, 2), Fault::Cut);
    }
    in_time("close returns", move || manager.close());
}
