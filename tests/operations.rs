//! Single shards are opened, resumed, closed and restarted while the others run, and the owner is
//! notified.

mod common;

use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use common::{
    PATIENCE, config, counters_of, eventually, gateway, next, ready, shard, sounds, status_of,
};
use parking_lot::Mutex;
use serde_json::Value;
use threadcord::command::{Activity, OnlineStatus};
use threadcord::config::{CloseCause, ConnectionClosed, SessionStartPolicy};
use threadcord::error::SendFailure;
use threadcord::sim::{Action, Answer, Fault, Gateway};
use threadcord::store::MemoryStore;
use threadcord::transport::{Connector, Settings, WebSocketConnector, WebSocketTransport};
use threadcord::{
    Disconnect, Error, Event, EventKind, Handle, Plan, Presence, Session, ShardId, ShardManager,
    ShardState, StopReason,
};

fn is_live(gateway: &Gateway, shard: ShardId) -> bool {
    gateway.observed().live.contains_key(&shard)
}

fn identifies(gateway: &Gateway) -> usize {
    gateway
        .observed()
        .count(|action| matches!(action, Action::Identify(_)))
}

#[test]
fn one_shard_is_closed_and_opened_again() {
    let gateway = gateway()
        .shards(3)
        .max_concurrency(3)
        .guilds(6)
        .start()
        .unwrap();
    let manager = ready(config(&gateway));
    let (events, id) = (manager.events(), shard(1, 3));
    let old = manager.handle().shard(id).unwrap();
    manager
        .handle()
        .close_shard(id)
        .unwrap()
        .wait(PATIENCE)
        .unwrap();
    assert_eq!(old.status().state, ShardState::Stopped(StopReason::Closed));
    gateway.expect("it is gone", PATIENCE, |seen| !seen.live.contains_key(&id));
    next(&events, |event| {
        event.shard() == id && matches!(event.kind(), EventKind::Stopped(StopReason::Closed))
    });
    assert!(
        matches!(manager.handle().close_shard(id), Err(Error::NotOpen { shard }) if shard == id)
    );
    assert!(matches!(
        old.send(sounds(5)).unwrap_err().failure,
        SendFailure::Stopped { .. }
    ));
    manager.wait_ready(PATIENCE).expect("the others are");

    manager
        .handle()
        .open_shard(id)
        .unwrap()
        .wait(PATIENCE)
        .unwrap();
    next(&events, |event| {
        event.shard() == id && event.name() == "READY"
    });
    assert!(is_live(&gateway, id));
    assert_eq!(status_of(&manager, id).state, ShardState::Ready);
    assert!(matches!(
        manager.handle().open_shard(id),
        Err(Error::AlreadyOpen { .. })
    ));
    gateway.assert_lawful();
}

#[test]
fn shards_of_another_total_open_only_if_no_guild_is_received_twice() {
    let gateway = gateway().guilds(8).start().unwrap();
    let manager = ready(config(&gateway).plan(Plan::range(0..1, 2)));
    match manager.handle().open_shard(shard(2, 4)) {
        Err(Error::Overlaps { shard: given, with }) => {
            assert_eq!((given, with), (shard(2, 4), shard(0, 2)));
        }
        other => panic!("{other:?}"),
    }

    for id in [shard(1, 4), shard(3, 4)] {
        manager
            .handle()
            .open_shard(id)
            .unwrap()
            .wait(PATIENCE)
            .unwrap();
    }

    for guild in gateway.guild_ids() {
        let home = manager.handle().shard_by_guild(guild).unwrap().id();
        assert_eq!(ShardId::for_guild(guild, home.total()), Some(home));
    }

    assert_eq!(gateway.observed().live.len(), 3);
    gateway.assert_lawful();
}

#[test]
fn one_shard_is_resumed_from_a_session() {
    let gateway = gateway()
        .shards(2)
        .max_concurrency(2)
        .guilds(4)
        .start()
        .unwrap();
    let first = ready(config(&gateway));
    first.wait_guilds(PATIENCE).unwrap();
    for event in first.events() {
        drop(event);
        if first
            .handle()
            .shards()
            .iter()
            .all(|shard| shard.status().outstanding_events == 0)
        {
            break;
        }
    }
    let sessions = first.suspend();
    drop(first);
    let of = |number: usize| sessions[number].clone();
    for guild in gateway.guild_ids() {
        gateway
            .chat(gateway.channel_of(guild).unwrap(), "while it was away")
            .unwrap();
    }
    let manager = ready(
        config(&gateway)
            .plan(Plan::range(0..1, 2))
            .session_store(MemoryStore::new(vec![of(0)])),
    );
    manager
        .handle()
        .resume_shard(of(1))
        .unwrap()
        .wait(PATIENCE)
        .unwrap();
    let events = manager.events();
    for _ in 0..4 {
        next(&events, |event| event.name() == "MESSAGE_CREATE");
    }
    assert_eq!(identifies(&gateway), 2, "those of the first time");

    // A session that Discord does not know costs an IDENTIFY, and one of another bot is refused.
    manager
        .handle()
        .close_shard(shard(1, 2))
        .unwrap()
        .wait(PATIENCE)
        .unwrap();
    let mut foreign = of(1);
    foreign.bot_user_id += 1;
    assert!(matches!(
        manager.handle().resume_shard(foreign),
        Err(Error::ForeignSession { .. })
    ));
    gateway.expect("it stays closed", PATIENCE, |seen| {
        !seen.live.contains_key(&shard(1, 2))
    });
    manager
        .handle()
        .resume_shard(of(1))
        .unwrap()
        .wait(PATIENCE)
        .unwrap();
    assert_eq!(identifies(&gateway), 3);
    gateway.assert_lawful();
}

#[test]
fn a_restart_resumes_and_misses_nothing() {
    let gateway = gateway().guilds(1).start().unwrap();
    let manager = ready(config(&gateway));
    let events = manager.events();
    let channel = gateway.channel_of(gateway.guild_ids()[0]).unwrap();

    let mut kept = Vec::new();
    for n in 0..20 {
        gateway.chat(channel, &n.to_string()).unwrap();
        if n % 5 == 0 {
            manager
                .handle()
                .restart_shard(ShardId::ONE)
                .unwrap()
                .wait(PATIENCE)
                .unwrap();
        }
    }

    for n in 0..20 {
        let message = next(&events, |event| event.name() == "MESSAGE_CREATE");
        assert_eq!(
            message.dispatch().unwrap().decode::<Value>().unwrap()["content"],
            n.to_string()
        );
        kept.push(message);
    }

    let one = manager.handle().shard(ShardId::ONE).unwrap();
    assert_eq!(
        (
            one.counters().identifies,
            one.counters().resumes,
            one.status().last_disconnect
        ),
        (1, 4, Some(Disconnect::Restarted))
    );

    // An unfinished event holds back the handled sequence, even across restarts.
    let sequence = kept[0].dispatch().unwrap().sequence();
    assert_eq!(one.session().unwrap().sequence, sequence - 1);
    assert!(matches!(
        manager.handle().restart_shard(shard(0, 2)),
        Err(Error::NotOpen { .. })
    ));
    gateway.assert_lawful();
}

#[test]
fn a_rolling_restart_takes_a_few_at_a_time() {
    let gateway = gateway()
        .shards(8)
        .max_concurrency(4)
        .guilds(8)
        .start()
        .unwrap();
    let manager = ready(config(&gateway));
    assert!(matches!(
        manager.handle().restart_all(0),
        Err(Error::Setting {
            setting: "max_unavailable",
            ..
        })
    ));
    gateway.drain();
    let restart = manager.handle().restart_all(3).unwrap();
    restart.wait(PATIENCE).unwrap();
    let seen = gateway.observed();

    let (mut away, mut max_unavailable) = (0, 0);
    for record in &seen.records {
        match record.action {
            Action::Closed(_) => away += 1,
            Action::Resume { .. } => away -= 1,
            _ => {}
        }
        max_unavailable = max_unavailable.max(away);
    }

    assert!(
        (1..=3).contains(&max_unavailable) && away == 0,
        "{max_unavailable} were away at once"
    );

    for shard in manager.handle().shards() {
        assert_eq!(
            (shard.counters().resumes, shard.counters().identifies),
            (1, 1),
            "{}",
            shard.id()
        );
    }

    // Two shards of one key never restarted at once: each was back before the next one left.
    for key in 0..4 {
        let of_key = seen
            .records
            .iter()
            .filter(|record| record.shard.is_some_and(|shard| shard.number() % 4 == key));
        let steps = of_key.filter_map(|record| match record.action {
            Action::Closed(Some(4000)) => Some(("left", record.shard?.number())),
            Action::Resume { .. } => Some(("back", record.shard?.number())),
            _ => None,
        });
        let steps: Vec<_> = steps.collect();
        assert_eq!(
            steps,
            [
                ("left", key),
                ("back", key),
                ("left", key + 4),
                ("back", key + 4)
            ]
        );
    }
    gateway.assert_lawful();
}

#[test]
fn every_shard_can_have_its_own_settings() {
    let gateway = gateway().shards(2).max_concurrency(2).start().unwrap();
    let asked = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&asked);
    let config = config(&gateway).for_shard(move |shard, config| {
        let name = format!(
            "shard {shard}, time {}",
            count.fetch_add(1, Ordering::SeqCst)
        );
        config.presence = Some(Presence::new(OnlineStatus::Idle).activity(Activity::playing(name)));
        config.compression = common::COMPRESSIONS[shard.number() as usize];
    });
    let manager = ready(config);
    for id in [shard(0, 2), shard(1, 2)] {
        let seen = gateway.observed();
        let (_, identify) = seen.identifies(id).next().unwrap();
        let name = identify["presence"]["activities"][0]["name"]
            .as_str()
            .unwrap();
        assert!(name.starts_with(&format!("shard {id}")), "{name}");
    }
    let before = asked.load(Ordering::SeqCst);
    manager
        .handle()
        .restart_shard(shard(0, 2))
        .unwrap()
        .wait(PATIENCE)
        .unwrap();
    assert!(
        asked.load(Ordering::SeqCst) > before,
        "a restart asks again"
    );

    let wrong = common::config(&gateway).for_shard(|_, config| config.large_threshold = 7);
    assert!(matches!(
        ShardManager::start(wrong),
        Err(Error::Setting {
            setting: "large_threshold",
            ..
        })
    ));
    let wrong = common::config(&gateway).for_shard(|_, _| panic!("a hook of no use"));
    assert!(matches!(
        ShardManager::start(wrong),
        Err(Error::Setting {
            setting: "for_shard",
            ..
        })
    ));
    gateway.assert_lawful();
}

/// A factory that counts the transports that it has created.
struct Counting(WebSocketConnector, Arc<Mutex<Vec<ShardId>>>);

impl Connector for Counting {
    type Transport = WebSocketTransport;

    fn transport(&self, shard: ShardId, settings: Settings) -> std::io::Result<WebSocketTransport> {
        self.1.lock().push(shard);
        self.0.transport(shard, settings)
    }
}

#[test]
fn transports_may_come_from_a_user_defined_factory() {
    let gateway = gateway().shards(2).max_concurrency(2).start().unwrap();
    let made = Arc::<Mutex<Vec<ShardId>>>::default();
    let manager = ShardManager::start_with(config(&gateway), |connector| {
        Counting(connector, Arc::clone(&made))
    })
    .unwrap();
    manager.wait_ready(PATIENCE).unwrap();
    assert_eq!(*made.lock(), [shard(0, 2), shard(1, 2)]);
    gateway.assert_lawful();
}

#[test]
fn closed_connections_are_reported_by_callback_and_event() {
    let gateway = gateway().shards(1).start().unwrap();
    let calls = Arc::<Mutex<Vec<ConnectionClosed>>>::default();
    let noted = Arc::clone(&calls);
    let manager = ready(config(&gateway).on_close(move |closed| {
        noted.lock().push(closed);
        let is_final = !closed.will_reconnect();
        assert!(is_final, "a callback that panics now and then");
    }));
    let events = manager.events();
    gateway.inject(ShardId::ONE, Fault::Reconnect);
    let disconnected = next(&events, |event| event.name() == "Disconnected");
    assert!(matches!(
        disconnected.kind(),
        EventKind::Disconnected {
            reason: Disconnect::ReconnectRequested,
            ..
        }
    ));
    next(&events, |event| event.name() == "Resumed");
    gateway.inject(ShardId::ONE, Fault::Close(4014));
    let closed = next(&events, |event| event.name() == "Stopped");
    let EventKind::Stopped(fatal) = *closed.kind() else {
        panic!()
    };
    let told = calls
        .lock()
        .iter()
        .map(|closed| (closed.shard, closed.cause))
        .collect::<Vec<_>>();
    assert_eq!(
        told,
        [
            (
                ShardId::ONE,
                CloseCause::Disconnected(Disconnect::ReconnectRequested)
            ),
            (ShardId::ONE, CloseCause::Stopped(fatal))
        ]
    );
    assert!(matches!(fatal, StopReason::Discord(code) if code.0 == 4014));
    assert!(events.into_iter().next().is_none(), "the stream has ended");
    assert!(matches!(
        manager.handle().open_shard(shard(0, 2)),
        Err(Error::Closed)
    ));
    gateway.assert_lawful();
}

#[test]
fn guilds_are_reported_when_all_arrived_or_timed_out() {
    let gateway = gateway()
        .shards(2)
        .max_concurrency(2)
        .guilds(10)
        .guild_delay(Duration::from_millis(5))
        .start()
        .unwrap();
    let manager = ShardManager::start(config(&gateway)).unwrap();
    manager.wait_guilds(PATIENCE).unwrap();
    let (mut arrived, mut told) = (0, Vec::new());
    let events = manager.events();
    while told.len() < 2 {
        let event = next(&events, |event| {
            matches!(event.name(), "GUILD_CREATE" | "GuildsReady")
        });
        match event.kind() {
            EventKind::GuildsReady { guilds, missing: 0 } => told.push(*guilds),
            EventKind::GuildsReady { .. } => panic!("{event:?}"),
            _ => arrived += 1,
        }
    }
    assert_eq!((arrived, told.iter().sum::<usize>()), (10, 10));
    assert!(
        manager
            .handle()
            .status()
            .shards
            .iter()
            .all(|shard| shard.guilds_ready && shard.guilds.is_some())
    );
    manager.close();

    // Waiting for late guilds times out, after this time for each.
    let slow = common::gateway()
        .guilds(3)
        .guild_delay(PATIENCE)
        .start()
        .unwrap();
    let mut config = config(&slow);
    config.timing.guilds_timeout = Duration::from_millis(50);
    let manager = ready(config.clone());
    manager.wait_guilds(PATIENCE).unwrap();
    let event = next(&manager.events(), |event| event.name() == "GuildsReady");
    assert!(
        matches!(
            event.kind(),
            EventKind::GuildsReady {
                guilds: 3,
                missing: 2 | 3
            }
        ),
        "{event:?}"
    );
    // The wait times out, and the error names the shards that are not ready.
    config.timing.guilds_timeout = PATIENCE;
    drop(manager);
    let manager = ready(config);
    assert!(matches!(
        manager.wait_guilds(Duration::from_millis(20)),
        Err(Error::NotReady {
            ready: 0,
            total: 1,
            ..
        })
    ));
}

#[test]
fn a_shard_whose_sessions_end_early_stops_until_restarted() {
    let gateway = gateway().shards(2).max_concurrency(2).start().unwrap();
    let mut config = config(&gateway).max_short_sessions(NonZeroU32::new(3));
    // The pauses between the attempts, which would otherwise be most of this test.
    config.timing.circuit_window = PATIENCE;
    let manager = ready(config);
    let (events, id) = (manager.events(), shard(1, 2));
    let refuse = || {
        gateway.inject(
            id,
            Fault::Identify(Answer::InvalidSession { resumable: false }),
        );
    };

    (0..2).for_each(|_| refuse());
    gateway.inject(id, Fault::InvalidSession { resumable: false });
    next(&events, |event| {
        event.shard() == id && matches!(event.kind(), EventKind::Stopped(StopReason::CircuitOpen))
    });
    let stopped = manager.handle().shard(id).unwrap();
    assert_eq!(
        stopped.status().state,
        ShardState::Stopped(StopReason::CircuitOpen)
    );
    assert!(
        manager
            .wait_ready(PATIENCE)
            .unwrap_err()
            .to_string()
            .contains("restart the shard")
    );
    let spent = identifies(&gateway);
    manager
        .handle()
        .restart_shard(id)
        .unwrap()
        .wait(PATIENCE)
        .unwrap();
    assert_eq!(identifies(&gateway), spent + 1);
    manager.wait_ready(PATIENCE).unwrap();
    gateway.assert_lawful();
}

#[test]
fn too_few_identifies_today_is_an_error_if_configured() {
    let gateway = gateway()
        .shards(4)
        .session_starts(1000, 3, Duration::from_secs(3600))
        .start()
        .unwrap();

    match ShardManager::start(config(&gateway).session_start_policy(SessionStartPolicy::Refuse)) {
        Err(Error::SessionStartLimit {
            needed: 4,
            remaining: 3,
            total: 1000,
            ..
        }) => {}
        other => panic!("{other:?}"),
    }

    assert!(gateway.observed().live.is_empty() && identifies(&gateway) == 0);
    // Three fit, and then nothing is left for a reshard, nor for a restart that would identify.
    let manager = ready(
        config(&gateway)
            .plan(Plan::range(0..3, 4))
            .session_start_policy(SessionStartPolicy::Refuse),
    );
    assert!(matches!(
        manager.handle().reshard(&Plan::Total(5)),
        Err(Error::SessionStartLimit {
            needed: 5,
            remaining: 0,
            ..
        })
    ));
    assert_eq!(manager.handle().shards().len(), 3);
    gateway.assert_lawful();
}

#[test]
fn a_large_bots_total_is_rounded_up() {
    // The library knows it from the number of guilds, before anything starts ...
    let large = gateway()
        .shards(2)
        .shard_multiple(2)
        .max_concurrency(8)
        .start()
        .unwrap();
    let manager = ready(config(&large).plan(Plan::Total(3)));
    assert_eq!(
        manager
            .handle()
            .shards()
            .iter()
            .map(threadcord::Shard::id)
            .collect::<Vec<_>>(),
        shard(0, 1).split(4).unwrap()
    );
    manager.close();
    large.assert_lawful();

    // ... or from the close code of a gateway that counts differently.
    let gateway = gateway().shards(2).max_concurrency(8).start().unwrap();
    gateway.inject(shard(1, 3), Fault::Identify(Answer::Close(4010)));
    let manager = ShardManager::start(config(&gateway).plan(Plan::Total(3))).unwrap();
    eventually("four shards run", || {
        manager.wait_ready(PATIENCE).is_ok() && manager.handle().shards().len() == 4
    });
    gateway.expect("only they", PATIENCE, |seen| {
        seen.live.len() == 4 && seen.live.keys().all(|shard| shard.total() == 4)
    });
    manager.close();
    gateway.assert_lawful();

    // A shard that this cannot fix stops as before.
    for number in 0..4 {
        gateway.inject(shard(number, 4), Fault::Identify(Answer::Close(4010)));
    }

    let manager = ShardManager::start(config(&gateway).plan(Plan::Total(4))).unwrap();
    let error = manager
        .run(1, |_: &Handle, _: Event| {})
        .unwrap_err()
        .to_string();
    assert!(error.contains("4010"), "{error}");
}

#[test]
fn the_status_shows_everything() {
    let gateway = gateway()
        .shards(3)
        .max_concurrency(1)
        .guilds(6)
        .ready_delay(Duration::from_millis(200))
        .start()
        .unwrap();
    let mut config = config(&gateway);
    config.timing.guard = Duration::from_millis(400);
    let manager = ShardManager::start(config).unwrap();
    eventually("a shard waits for its turn", || {
        manager
            .handle()
            .status()
            .limit
            .is_some_and(|limit| !limit.waiting.is_empty())
    });
    let status = manager.handle().status();
    assert!(
        status.to_string().contains("wait for a turn, first shard"),
        "{status}"
    );
    manager.wait_guilds(PATIENCE).unwrap();
    gateway.inject(shard(2, 3), Fault::Cut);
    eventually("it resumes", || {
        counters_of(&manager, shard(2, 3)).resumes == 1
    });
    manager.wait_ready(PATIENCE).unwrap();
    let status = manager.handle().status();
    let [_, _, last] = &status.shards[..] else {
        panic!("{status}")
    };
    let counters = &status.counters[&shard(2, 3)];
    assert_eq!(
        (counters.identifies, counters.resumes, counters.connects),
        (1, 1, 2)
    );
    assert_eq!(
        (last.last_disconnect, last.state, last.guilds),
        (Some(Disconnect::ConnectionLost), ShardState::Ready, Some(2))
    );
    assert!(
        counters.bytes > 100
            && counters.events >= 4
            && last.outstanding_events >= 4
            && last.sequence >= 3
    );
    let limit = status.limit.as_ref().unwrap();
    assert_eq!(
        (limit.remaining, limit.total, limit.max_concurrency.get()),
        (997, 1000, 1)
    );
    assert!(
        status.to_string().contains("3 of 3 shards ready"),
        "{status}"
    );
    let json = serde_json::to_value(&status).unwrap();
    assert_eq!(
        json["shards"][2]["last_disconnect"],
        "the connection was cut"
    );
    let handle = manager.handle().clone();
    assert_eq!(handle.status().shards.len(), 3);
    drop(manager);
    assert!(handle.status().shards.is_empty());
    gateway.assert_lawful();
}

#[test]
fn everything_may_be_called_from_a_handler() {
    let gateway = gateway()
        .shards(3)
        .max_concurrency(3)
        .guilds(3)
        .start()
        .unwrap();
    let mut config = config(&gateway);
    config.timing.reshard_overlap = Duration::from_millis(10);
    config.timing.handlers_timeout = Duration::from_millis(10);
    let manager = ready(config);
    let step = AtomicUsize::new(0);

    // On one worker, so that no other thread takes events while the handler waits.
    manager
        .run(1, |handle, event| {
            let id = shard(1, 3);
            match step.fetch_add(1, Ordering::SeqCst) {
                0 => handle.close_shard(id).unwrap().wait(PATIENCE).unwrap(),
                1 => handle.open_shard(id).unwrap().wait(PATIENCE).unwrap(),
                2 => handle
                    .restart_shard(event.shard())
                    .unwrap()
                    .wait(PATIENCE)
                    .unwrap(),
                3 => handle.restart_all(1).unwrap().wait(PATIENCE).unwrap(),
                4 => handle
                    .reshard(&Plan::Total(2))
                    .unwrap()
                    .wait(PATIENCE)
                    .unwrap(),
                5 => handle.request_close(),
                _ => {}
            }
        })
        .unwrap();
    assert!(step.load(Ordering::SeqCst) > 5);
    assert_eq!(manager.handle().status().handler_panics, 0);
    gateway.assert_lawful();
}

#[test]
fn operations_on_shards_that_are_not_open_yet_end() {
    let gateway = gateway()
        .shards(1)
        .session_starts(1000, 1, Duration::from_secs(3600))
        .start()
        .unwrap();

    // Shard 0 takes the day's last IDENTIFY, and the others wait.
    let manager = ready(config(&gateway).plan(Plan::range(0..1, 4)));
    let opening: Vec<_> = (1..4)
        .map(|number| manager.handle().open_shard(shard(number, 4)).unwrap())
        .collect();
    assert!(matches!(
        opening[0].wait(Duration::from_millis(20)),
        Err(Error::TimedOut { .. })
    ));
    let restart = manager.handle().restart_all(1).unwrap();

    for number in [3, 2, 1] {
        manager
            .handle()
            .close_shard(shard(number, 4))
            .unwrap()
            .wait(PATIENCE)
            .unwrap();
        assert!(matches!(
            opening[number as usize - 1].wait(PATIENCE),
            Err(Error::Stopped { .. })
        ));
    }

    assert!(matches!(restart.wait(PATIENCE), Err(Error::Stopped { .. })));
    manager
        .wait_ready(PATIENCE)
        .expect("the one that is left restarts by itself");
    gateway.assert_lawful();
}

#[test]
fn settings_that_fail_later_fail_only_the_operation() {
    let gateway = gateway().shards(2).max_concurrency(2).start().unwrap();
    let fails = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let told = Arc::clone(&fails);
    let hook = move |_: ShardId, _: &mut threadcord::ShardConfig| {
        assert!(!told.load(Ordering::SeqCst), "no settings");
    };
    let manager = ready(config(&gateway).for_shard(hook));
    fails.store(true, Ordering::SeqCst);
    assert!(matches!(
        manager.handle().restart_all(1),
        Err(Error::Setting {
            setting: "for_shard",
            ..
        })
    ));
    manager
        .handle()
        .close_shard(shard(1, 2))
        .unwrap()
        .wait(PATIENCE)
        .unwrap();
    assert!(matches!(
        manager.handle().open_shard(shard(1, 2)),
        Err(Error::Setting { .. })
    ));
    fails.store(false, Ordering::SeqCst);
    manager
        .handle()
        .open_shard(shard(1, 2))
        .unwrap()
        .wait(PATIENCE)
        .unwrap();
    gateway.assert_lawful();
}

#[test]
fn the_first_stored_session_of_a_shard_and_bot_is_used() {
    let gateway = gateway().shards(1).start().unwrap();
    let sessions = ready(config(&gateway)).suspend();
    let [session] = &sessions[..] else {
        panic!("{sessions:?}")
    };
    let mut foreign = session.clone();
    foreign.id = "another bot's".into();
    foreign.bot_user_id += 1;
    let unknown = Session::new("a".into(), 1, String::new(), ShardId::ONE, 0);
    let store = MemoryStore::new(vec![foreign, session.clone(), unknown]);
    let manager = ready(config(&gateway).session_store(store));
    let resumed = manager.handle().shard(ShardId::ONE).unwrap();
    assert_eq!(
        resumed.session().map(|resumed| resumed.id),
        Some(session.id.clone())
    );
    assert_eq!(resumed.counters().identifies, 0);
    gateway.assert_lawful();
}

#[test]
fn a_session_names_its_shard() {
    let session = Session::new("a".into(), 1, String::new(), shard(1, 2), 0);
    let gateway = gateway().start().unwrap();
    let manager = ready(config(&gateway));
    // The session's shard overlaps with one that runs.
    assert!(matches!(
        manager.handle().resume_shard(session),
        Err(Error::Overlaps { .. })
    ));
    gateway.assert_lawful();
}
