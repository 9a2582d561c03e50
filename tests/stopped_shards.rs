//! What remains of a shard that stops, and is continued when its id is opened again.

mod common;

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use common::hooked::{Call, Hooked};
use common::{
    PATIENCE, config, counters_of, eventually, gateway, in_time, next, number, ready, sounds,
    status_of,
};
use parking_lot::Mutex;
use serde_json::json;
use threadcord::sim::{Fault, Gateway};
use threadcord::store::{FileStore, MemoryStore, SessionStore};
use threadcord::transport::WebSocketConnector;
use threadcord::{Error, Event, EventKind, Events, ShardId, ShardManager, ShardState, StopReason};

fn emit(gateway: &Gateway, number: u64) {
    let guild = gateway.guild_ids()[0];
    let data = json!({"guild_id": guild.to_string(), "user_id": "1", "timestamp": number});
    gateway.emit(Some(guild), "TYPING_START", &data).unwrap();
}

/// Handles the next numbered events up to a number, and returns their numbers.
fn numbers_up_to(events: &Events, last: u64) -> Vec<u64> {
    let mut numbers = Vec::new();
    while numbers.last() != Some(&last) {
        let event = next(events, |event| {
            let is_lost = matches!(event.kind(), EventKind::SessionLost { .. });
            assert!(!is_lost, "its session is lost");
            number(event).is_some()
        });
        numbers.extend(number(&event).map(|(_, number)| number));
    }
    numbers
}

fn stop(shard: &threadcord::Shard) {
    eventually("it stops", || {
        matches!(shard.status().state, ShardState::Stopped(_))
    });
}

#[test]
fn a_suspended_shard_resumes_when_restarted() {
    let gateway = gateway().guilds(1).start().unwrap();
    let manager = ready(config(&gateway));
    manager.wait_guilds(PATIENCE).unwrap();
    let events = manager.events();
    let one = manager.handle().shard(ShardId::ONE).unwrap();
    emit(&gateway, 1);
    let held = next(&events, |event| number(event).is_some());
    one.request_suspend();
    stop(&one);
    emit(&gateway, 2);

    manager
        .handle()
        .restart_shard(ShardId::ONE)
        .unwrap()
        .wait(PATIENCE)
        .unwrap();
    let again = manager.handle().shard(ShardId::ONE).unwrap();
    assert_eq!(
        (again.counters().identifies, again.counters().resumes),
        (1, 1)
    );
    emit(&gateway, 3);
    assert_eq!(numbers_up_to(&events, 3), [2, 3], "1 is held, not repeated");
    let mark = || again.session().unwrap().sequence;
    let before = mark();
    drop(held);
    eventually("it counts as handled", || mark() > before);
    gateway.assert_lawful();
}

#[test]
fn a_stopped_shard_can_be_resumed_from_its_own_session() {
    let gateway = gateway().guilds(1).start().unwrap();
    let manager = ready(config(&gateway));
    manager.wait_guilds(PATIENCE).unwrap();
    let one = manager.handle().shard(ShardId::ONE).unwrap();
    let running = manager.handle().resume_shard(one.session().unwrap());
    assert!(matches!(running, Err(Error::AlreadyOpen { .. })));
    one.request_suspend();
    stop(&one);
    let session = one.session().unwrap();
    manager
        .handle()
        .resume_shard(session)
        .unwrap()
        .wait(PATIENCE)
        .unwrap();
    let counters = counters_of(&manager, ShardId::ONE);
    assert_eq!((counters.identifies, counters.resumes), (1, 1));
    gateway.assert_lawful();
}

#[test]
fn one_shard_is_suspended_and_resumed() {
    let gateway = gateway().guilds(1).start().unwrap();
    let mut settings = config(&gateway);
    settings.timing.handlers_timeout = PATIENCE;
    let manager = ready(settings);
    manager.wait_guilds(PATIENCE).unwrap();
    let events = manager.events();
    emit(&gateway, 1);
    let held = next(&events, |event| number(event).is_some());
    let shard = manager.handle().shard(ShardId::ONE).unwrap();
    // No more commands than the limit allows are sent before the shard stops.
    let guild = gateway.guild_ids()[0];
    for _ in 0..200 {
        shard.send(sounds(guild)).unwrap();
    }
    let suspended = std::thread::scope(|scope| {
        let suspending = scope.spawn(|| manager.suspend_shard(ShardId::ONE).unwrap());
        stop(&shard);
        assert!(!suspending.is_finished(), "a handler has an event");
        drop(held);
        suspending.join().unwrap()
    });
    let sent = gateway.observed().commands(ShardId::ONE, 31).count();
    assert_eq!(suspended.unsent.len() + sent, 200);
    assert!(matches!(
        manager.suspend_shard(ShardId::ONE),
        Err(Error::NotOpen { .. })
    ));
    emit(&gateway, 2);

    let session = suspended.session.expect("it has one");
    manager
        .handle()
        .resume_shard(session)
        .unwrap()
        .wait(PATIENCE)
        .unwrap();
    emit(&gateway, 3);
    assert_eq!(numbers_up_to(&events, 3), [2, 3]);
    gateway.assert_lawful();
}

/// Makes transports panic during a read, or connect slowly, on request.
#[derive(Default)]
struct Mischief {
    /// The shard whose transport panics at the next read.
    panics: Mutex<Option<ShardId>>,
    /// Connecting blocks while this is set, as a slow DNS lookup would.
    is_slow: AtomicBool,
    /// Whether connecting has begun.
    has_begun: AtomicBool,
}

impl Mischief {
    /// A connector of such transports.
    fn wires(self: &Arc<Self>) -> impl FnOnce(WebSocketConnector) -> Hooked + use<> {
        let mischief = Arc::clone(self);
        move |connector| Hooked::new(connector, move |shard, call| mischief.make(shard, call))
    }

    fn make(&self, shard: ShardId, call: Call) {
        match call {
            Call::Connect => {
                self.has_begun.store(true, Ordering::SeqCst);
                while self.is_slow.load(Ordering::SeqCst) {
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
            Call::Read => {
                let panics = self.panics.lock().take_if(|panics| *panics == shard);
                assert!(panics.is_none(), "a bug of the transport's");
            }
            _ => {}
        }
    }
}

#[test]
fn a_shard_whose_thread_panicked_resumes_when_restarted() {
    let builder = gateway().shards(2).max_concurrency(2).guilds(8);
    let gateway = builder.start().unwrap();
    let mischief = Arc::new(Mischief::default());
    let first = ShardId::for_guild(gateway.guild_ids()[0], 2).unwrap();
    let wires = mischief.wires();
    let manager = ShardManager::start_with(config(&gateway), wires).unwrap();
    manager.wait_guilds(PATIENCE).unwrap();
    let events = manager.events();
    let one = manager.handle().shard(first).unwrap();
    *mischief.panics.lock() = Some(first);
    emit(&gateway, 1);
    stop(&one);
    emit(&gateway, 2);
    manager
        .handle()
        .restart_shard(one.id())
        .unwrap()
        .wait(PATIENCE)
        .unwrap();
    assert_eq!(numbers_up_to(&events, 2), [1, 2]);
    let counters = counters_of(&manager, one.id());
    assert_eq!((counters.identifies, counters.resumes), (1, 1));
    gateway.assert_lawful();
}

#[test]
fn close_ends_the_stream_during_a_dns_lookup() {
    let gateway = gateway().start().unwrap();
    let mischief = Arc::new(Mischief::default());
    mischief.is_slow.store(true, Ordering::SeqCst);
    let manager = ShardManager::start_with(config(&gateway), mischief.wires()).unwrap();
    eventually("the lookup begins", || {
        mischief.has_begun.load(Ordering::SeqCst)
    });
    let events = manager.events();
    in_time("close returns", move || manager.close());
    in_time("the stream ends", move || events.for_each(drop));
    mischief.is_slow.store(false, Ordering::SeqCst);
}

#[test]
fn a_handler_restarts_a_shard_that_has_closed() {
    let gateway = gateway().guilds(1).start().unwrap();
    let manager = ready(config(&gateway));
    let restarts = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        let running = scope.spawn(|| {
            manager.run(1, |handle, event: Event| {
                if matches!(event.kind(), EventKind::Stopped(_)) && !handle.shards().is_empty() {
                    let restarted = handle.restart_shard(event.shard());
                    restarts.fetch_add(usize::from(restarted.is_ok()), Ordering::SeqCst);
                }
            })
        });
        for count in 1..=20 {
            let old = manager.handle().shard(ShardId::ONE).unwrap();
            old.request_suspend();
            stop(&old);
            eventually("it is restarted", || {
                restarts.load(Ordering::SeqCst) == count
            });
            eventually("it is ready", || {
                status_of(&manager, ShardId::ONE).state == ShardState::Ready
                    && counters_of(&manager, ShardId::ONE).resumes == count as u64
            });
        }
        manager.close();
        running.join().unwrap().unwrap();
    });
    gateway.assert_lawful();
}

#[test]
fn a_suspend_without_waiting_updates_the_store_while_handlers_finish() {
    let gateway = gateway().guilds(1).start().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let store = FileStore::new(folder.path().join("sessions.json"));
    let mut settings = config(&gateway).session_store(store.clone());
    settings.timing.store_interval = Duration::from_secs(3600);
    settings.timing.handlers_timeout = PATIENCE;
    let manager = ready(settings);
    manager.wait_guilds(PATIENCE).unwrap();
    let events = manager.events();

    for number in 1..=2 {
        emit(&gateway, number);
    }

    drop(next(&events, |event| number(event).is_some()));
    let kept = next(&events, |event| number(event).is_some());
    manager.handle().request_suspend();
    gateway.expect("the shard has left", PATIENCE, |seen| seen.live.is_empty());
    let sequence = || Some(store.load().unwrap().sessions.first()?.sequence);
    let last = kept.dispatch().unwrap().sequence();
    eventually("what was handled is stored", || {
        sequence() == Some(last - 1)
    });
    drop(kept);
    drop(manager);
    assert_eq!(sequence(), Some(last), "at its final mark");
}

#[test]
fn a_session_is_stored_as_soon_as_it_is_ready() {
    let gateway = gateway().start().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let store = FileStore::new(folder.path().join("sessions.json"));
    let mut settings = config(&gateway).session_store(store.clone());
    settings.timing.store_interval = Duration::from_secs(3600);
    let _manager = ready(settings);
    eventually("it is stored", || store.load().unwrap().sessions.len() == 1);
}

#[test]
fn callbacks_that_close_do_not_wait_for_each_other() {
    let gateway = gateway().shards(2).max_concurrency(2).start().unwrap();
    let owner: Arc<OnceLock<Arc<ShardManager>>> = Arc::default();
    let called = Arc::new(AtomicUsize::new(0));
    let settings = config(&gateway).on_close({
        let (owner, called) = (Arc::clone(&owner), Arc::clone(&called));
        move |_| {
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
        gateway.inject(common::shard(number, 2), Fault::Cut);
    }
    in_time("close returns", move || manager.close());
}

#[test]
fn a_restart_during_a_stop_takes_effect() {
    let gateway = gateway().guilds(1).start().unwrap();
    let manager = ready(config(&gateway));
    for _ in 0..50 {
        let one = manager.handle().shard(ShardId::ONE).unwrap();
        one.request_suspend();
        let restart = manager.handle().restart_shard(ShardId::ONE).unwrap();
        restart.wait(PATIENCE).unwrap();
        manager.wait_ready(PATIENCE).unwrap();
    }
    gateway.assert_lawful();
}

#[test]
fn a_shard_in_a_dns_lookup_makes_room_at_once() {
    let gateway = gateway().guilds(1).start().unwrap();
    let mischief = Arc::new(Mischief::default());
    let wires = mischief.wires();
    let manager = ShardManager::start_with(config(&gateway), wires).unwrap();
    manager.wait_guilds(PATIENCE).unwrap();
    let one = manager.handle().shard(ShardId::ONE).unwrap();
    mischief.is_slow.store(true, Ordering::SeqCst);
    mischief.has_begun.store(false, Ordering::SeqCst);
    gateway.inject(ShardId::ONE, Fault::Cut);
    eventually("it looks the name up", || {
        mischief.has_begun.load(Ordering::SeqCst)
    });
    one.send(sounds(gateway.guild_ids()[0])).unwrap();
    let suspended = manager.suspend_shard(ShardId::ONE).unwrap();
    assert_eq!(suspended.unsent.len(), 1);
    let opening = manager
        .handle()
        .resume_shard(suspended.session.unwrap())
        .unwrap();
    mischief.is_slow.store(false, Ordering::SeqCst);
    opening.wait(PATIENCE).unwrap();
    stop(&one);
    let again = manager.handle().shard(ShardId::ONE).unwrap();
    assert_eq!(again.counters().identifies, 1);
    assert!(
        again.session().is_some(),
        "that of the other run is its own"
    );
    emit(&gateway, 1);
    assert_eq!(numbers_up_to(&manager.events(), 1), [1]);
    gateway.assert_lawful();
}

#[test]
fn a_shard_that_waits_to_open_is_suspended_with_its_session() {
    let gateway = gateway().shards(2).start().unwrap();
    let manager = ready(config(&gateway));
    let sessions = manager.suspend();
    let mischief = Arc::new(Mischief::default());
    mischief.is_slow.store(true, Ordering::SeqCst);
    let wires = mischief.wires();
    let settings = config(&gateway).session_store(MemoryStore::new(sessions.clone()));
    let manager = ShardManager::start_with(settings, wires).unwrap();
    for session in &sessions {
        let suspended = manager.suspend_shard(session.shard).unwrap();
        let given = suspended.session.expect("it has one");
        assert_eq!((given.shard, &given.id), (session.shard, &session.id));
    }
    mischief.is_slow.store(false, Ordering::SeqCst);
}

#[test]
fn a_shard_that_has_stopped_can_be_opened_before_its_thread_has_ended() {
    let gateway = gateway().start().unwrap();
    // The hook runs after users can see that the shard has stopped, and before its thread ends.
    let (entered, release) = (
        Arc::new(AtomicUsize::new(0)),
        Arc::new(AtomicBool::new(false)),
    );
    let manager = ready(config(&gateway).on_close({
        let (entered, release) = (Arc::clone(&entered), Arc::clone(&release));
        move |_| {
            entered.fetch_add(1, Ordering::SeqCst);
            eventually("the hook may return", || release.load(Ordering::SeqCst));
        }
    }));
    let handle = manager.handle();

    for (round, by_operation) in [false, true].into_iter().enumerate() {
        release.store(false, Ordering::SeqCst);
        let close = if by_operation {
            Some(handle.close_shard(ShardId::ONE).unwrap())
        } else {
            handle.shard(ShardId::ONE).unwrap().request_close();
            None
        };
        eventually("it stops", || entered.load(Ordering::SeqCst) == round + 1);
        let state = status_of(&manager, ShardId::ONE).state;
        assert_eq!(state, ShardState::Stopped(StopReason::Closed));

        let open = handle.open_shard(ShardId::ONE).unwrap();
        if let Some(close) = close {
            close.wait(PATIENCE).unwrap();
        }
        assert!(!open.is_over(), "its thread has not ended");
        release.store(true, Ordering::SeqCst);
        open.wait(PATIENCE).unwrap();
        assert_eq!(status_of(&manager, ShardId::ONE).state, ShardState::Ready);
    }
    assert_eq!(counters_of(&manager, ShardId::ONE).identifies, 3);
    gateway.assert_lawful();
}
