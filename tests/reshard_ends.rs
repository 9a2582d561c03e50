//! Reshards that end early: by a close or suspend in any phase, a timeout, or lost sessions.

mod common;

use std::time::Duration;

use common::{PATIENCE, config, gateway, hold_newest, in_time, ready, shard};
use threadcord::sim::{Fault, Gateway, Observed};
use threadcord::{Error, Event, EventKind, Events, Plan, ShardId, ShardManager};

fn is_live(seen: &Observed, total: u32) -> bool {
    let live = seen.live.keys().filter(|shard| shard.total() == total);
    live.count() == total as usize
}

/// A gateway of one shard, which is resharded to two.
fn start() -> Gateway {
    let builder = gateway().shards(1).max_concurrency(4).guilds(2);
    builder.start().unwrap()
}

/// Waits until a reshard is in a phase. Returns what the caller must keep in the meantime.
type Phase = fn(&Gateway, &Events) -> Option<Event>;

const PHASES: [(&str, Phase); 4] = [
    ("asked for", |_, _| None),
    ("on its way", |gateway, _| {
        gateway.expect("one is live", PATIENCE, |seen| seen.live.len() > 1);
        None
    }),
    ("overlapping", |gateway, _| {
        gateway.expect("both are live", PATIENCE, |seen| is_live(seen, 2));
        None
    }),
    ("handing over", |gateway, events| {
        let is_old_closed = |seen: &Observed| seen.live.len() == 2 && is_live(seen, 2);
        Some(hold_newest(gateway, events, is_old_closed))
    }),
];

/// Ends a manager in each phase of a reshard; the stream ends, too.
fn end_in_every_phase(end: fn(&ShardManager)) {
    for (name, phase) in PHASES {
        let gateway = start();
        let mut settings = config(&gateway);
        settings.timing.reshard_overlap = Duration::from_millis(50);
        settings.timing.handlers_timeout = if name == "handing over" {
            PATIENCE
        } else {
            Duration::ZERO
        };
        let manager = ready(settings);
        manager.wait_guilds(PATIENCE).unwrap();
        let events = manager.events();
        let reshard = manager.handle().reshard(&Plan::Total(2)).unwrap();
        let kept = phase(&gateway, &events);
        in_time(name, move || {
            std::thread::scope(|scope| {
                let ending = scope.spawn(|| end(&manager));
                events.for_each(drop);
                drop(kept);
                ending.join().unwrap();
            });
            assert!(reshard.is_over(), "{name}");
        });
        let left = |seen: &Observed| seen.live.is_empty();
        gateway.expect("all have left", PATIENCE, left);
        gateway.assert_lawful();
    }
}

#[test]
fn close_in_any_phase_ends_the_stream() {
    end_in_every_phase(ShardManager::close);
}

#[test]
fn suspend_in_any_phase_ends_the_stream() {
    end_in_every_phase(|manager| {
        let sessions = manager.suspend();
        assert!(!sessions.is_empty());
        let total = sessions[0].shard.total();
        let mut shards = sessions.iter().map(|session| session.shard);
        assert!(shards.all(|shard| shard.total() == total), "of one set");
    });
}

#[test]
fn a_reshard_that_takes_too_long_times_out() {
    let gateway = start();
    let mut settings = config(&gateway);
    settings.timing.reshard_overlap = PATIENCE;
    settings.timing.reshard_timeout = Duration::from_millis(300);
    let manager = ready(settings);
    let reshard = manager.handle().reshard(&Plan::Total(2)).unwrap();
    let error = reshard.wait(PATIENCE).unwrap_err();
    assert!(matches!(error, Error::ReshardTimeout), "{error}");
    let is_as_before = |seen: &Observed| seen.live.len() == 1 && is_live(seen, 1);
    gateway.expect("the new ones are gone", PATIENCE, is_as_before);
    assert_eq!(manager.handle().shards()[0].id(), ShardId::ONE);
    manager.wait_ready(PATIENCE).unwrap();
    gateway.assert_lawful();
}

#[test]
fn a_new_shard_reports_the_session_that_it_lost() {
    let gateway = start();
    let mut settings = config(&gateway);
    settings.timing.reshard_overlap = Duration::from_millis(500);
    let manager = ready(settings);
    let events = manager.events();
    let reshard = manager.handle().reshard(&Plan::Total(2)).unwrap();
    gateway.expect("the new ones are live", PATIENCE, |seen| is_live(seen, 2));
    gateway.inject(shard(0, 2), Fault::InvalidSession { resumable: false });
    reshard.wait(PATIENCE).unwrap();
    manager.close();
    let lost = |event: &Event| matches!(event.kind(), EventKind::SessionLost { .. });
    assert_eq!(events.filter(lost).count(), 1);
}
