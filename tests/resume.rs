//! A lost connection is resumed: every event arrives once and in order, unless Discord ended the
//! session.

mod common;

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use common::{
    PATIENCE, config, counters_of, eventually, gateway, next, ready, shard, sounds, status_of,
};
use parking_lot::Mutex;
use threadcord::limit::Unlimited;
use threadcord::sim::{Action, Answer, Fault, Gateway, ResumeUrl};
use threadcord::store::MemoryStore;
use threadcord::{
    CloseCode, Disconnect, EventKind, Events, Session, ShardId, ShardManager, StopReason,
};

const ONE: ShardId = ShardId::ONE;

/// Emits numbered messages while something happens, and checks that each arrives once and in order.
fn nothing_is_lost(fault: impl Fn(&Gateway)) {
    let gateway = gateway().guilds(1).start().unwrap();
    let manager = ready(config(&gateway));
    let events = manager.events();
    let channel = gateway.channel_of(gateway.guild_ids()[0]).unwrap();

    for n in 0..60_u64 {
        gateway.chat(channel, &n.to_string()).unwrap();
        if n % 20 == 10 {
            fault(&gateway);
            gateway.chat(channel, "while it is away").unwrap();
            // Wait until the shard knows that it is back. An earlier fault would belong to the same
            // resume.
            eventually("it comes back", || {
                counters_of(&manager, ONE).resumes == n / 20 + 1
            });
        }
    }

    let mut numbers = Vec::new();
    let mut last = 0;
    while numbers.len() < 63 {
        let event = next(&events, |event| event.dispatch().is_some());
        let dispatch = event.dispatch().unwrap();
        if dispatch.name() != "RESUMED" {
            assert_eq!(dispatch.sequence(), last + 1, "no gap and no duplicate");
            last = dispatch.sequence();
        }
        if dispatch.name() == "MESSAGE_CREATE" {
            numbers.push(dispatch.decode::<serde_json::Value>().unwrap()["content"].clone());
        }
    }

    let away = numbers
        .iter()
        .filter(|number| *number == "while it is away")
        .count();
    assert_eq!(away, 3);
    assert_eq!(counters_of(&manager, ONE).identifies, 1);
    gateway.assert_lawful();
}

/// Waits until the gateway has seen the end of a connection.
fn ended(gateway: &Gateway, act: impl FnOnce()) {
    let closes =
        |seen: &threadcord::sim::Observed| seen.count(|action| matches!(action, Action::Closed(_)));
    let before = closes(&gateway.observed());
    act();
    assert!(gateway.wait_for(PATIENCE, |seen| closes(seen) > before));
}

#[test]
fn after_a_cut() {
    nothing_is_lost(|gateway| ended(gateway, || gateway.inject(ONE, Fault::Cut)));
}

#[test]
fn after_op_7() {
    nothing_is_lost(|gateway| ended(gateway, || gateway.inject(ONE, Fault::Reconnect)));
}

#[test]
fn after_op_9_that_allows_it() {
    nothing_is_lost(|gateway| {
        ended(gateway, || {
            gateway.inject(ONE, Fault::InvalidSession { resumable: true });
        });
    });
}

#[test]
fn after_a_close_that_allows_it() {
    nothing_is_lost(|gateway| ended(gateway, || gateway.inject(ONE, Fault::Close(4000))));
}

#[test]
fn after_garbage() {
    nothing_is_lost(|gateway| {
        ended(gateway, || {
            gateway.send_bytes(ONE, b"\xff\x00garbage\x00\x00\xff\xff");
        });
    });
}

/// Ends the session and checks that this is reported, and that a new one starts through the limit.
fn session_is_lost(end: impl Fn(&Gateway), reason: Disconnect) {
    let gateway = gateway().guilds(1).start().unwrap();
    let manager = ready(config(&gateway));
    let events = manager.events();
    let first = manager.handle().shard(ONE).unwrap().session().unwrap();
    end(&gateway);
    let lost = next(&events, |event| {
        matches!(event.kind(), EventKind::SessionLost { .. })
    });
    let EventKind::SessionLost { session: lost, .. } = lost.kind() else {
        unreachable!()
    };
    assert_eq!(lost.id, first.id);
    let disconnected = next(&events, |event| {
        matches!(event.kind(), EventKind::Disconnected { .. })
    });
    let EventKind::Disconnected {
        reason: given,
        resumable: false,
        ..
    } = disconnected.kind()
    else {
        panic!("{disconnected:?}")
    };

    assert_eq!(*given, reason);
    next(&events, |event| {
        matches!(event.kind(), EventKind::SessionStarted)
    });
    let counters = counters_of(&manager, ONE);
    assert_eq!(
        (
            counters.identifies,
            counters.resumes,
            counters.sessions_lost
        ),
        (2, 0, 1)
    );
    gateway.assert_lawful();
}

#[test]
fn op_9_false_starts_a_new_session() {
    session_is_lost(
        |gateway| gateway.inject(ONE, Fault::InvalidSession { resumable: false }),
        Disconnect::InvalidSession { resumable: false },
    );
}

#[test]
fn close_4009_starts_a_new_session() {
    session_is_lost(
        |gateway| gateway.inject(ONE, Fault::Close(4009)),
        Disconnect::Discord(CloseCode(4009)),
    );
}

#[test]
fn a_resume_that_is_refused_falls_back_to_identify() {
    let gateway = gateway().start().unwrap();
    let manager = ready(config(&gateway));
    let events = manager.events();
    gateway.inject(
        ONE,
        Fault::Resume(Answer::InvalidSession { resumable: false }),
    );
    gateway.inject(ONE, Fault::Cut);
    next(&events, |event| {
        matches!(event.kind(), EventKind::SessionLost { .. })
    });
    manager.wait_ready(PATIENCE).unwrap();
    assert_eq!(counters_of(&manager, ONE).identifies, 2);
    gateway.assert_lawful();
}

#[test]
fn op_9_to_an_identify_goes_back_into_the_queue() {
    let gateway = gateway().start().unwrap();
    for _ in 0..2 {
        gateway.inject(
            ONE,
            Fault::Identify(Answer::InvalidSession { resumable: false }),
        );
    }
    let manager = ready(config(&gateway));
    assert_eq!(counters_of(&manager, ONE).identifies, 3);
    gateway.assert_lawful();
}

#[test]
fn op_7_in_place_of_hello_and_of_ready_is_no_start() {
    let gateway = gateway().start().unwrap();
    gateway.inject(ONE, Fault::Hello(Answer::Reconnect));
    gateway.inject(ONE, Fault::Identify(Answer::Reconnect));
    let manager = ShardManager::start(config(&gateway)).unwrap();
    next(&manager.events(), |event| {
        matches!(event.kind(), EventKind::SessionStarted)
    });
    let counters = counters_of(&manager, ONE);
    assert_eq!((counters.connects, counters.identifies), (3, 2));
    gateway.assert_lawful();
}

#[test]
fn a_bad_resume_url_falls_back_to_the_main_url() {
    // Nothing listens on port 1; and a host that is not the gateway's never gets the token.
    for url in ["ws://127.0.0.1:1", "wss://evil.example", "no url"] {
        let gateway = gateway().start().unwrap();
        gateway.inject(ONE, Fault::ResumeUrl(ResumeUrl::Url(url.into())));
        let manager = ready(config(&gateway));
        gateway.inject(ONE, Fault::Cut);
        eventually("it resumes", || counters_of(&manager, ONE).resumes == 1);
        gateway.assert_lawful();
    }
}

#[test]
fn a_zombied_connection_is_dropped_and_resumed() {
    let gateway = threadcord::sim::Gateway::builder()
        .time_scale(common::SCALE)
        .heartbeat_interval(std::time::Duration::from_secs(30))
        .start()
        .unwrap();
    let manager = ready(config(&gateway));
    gateway.inject(ONE, Fault::NoAck);
    eventually("it is noticed", || {
        status_of(&manager, ONE).last_disconnect == Some(Disconnect::Zombied)
    });
    eventually("it resumes", || counters_of(&manager, ONE).resumes >= 1);
    assert_eq!(counters_of(&manager, ONE).identifies, 1);
    eventually("there is a latency", || {
        manager.handle().shard(ONE).unwrap().latency().is_some()
    });
}

#[test]
fn a_requested_heartbeat_is_sent_at_once() {
    let gateway = gateway().start().unwrap();
    let manager = ready(config(&gateway));
    gateway.inject(ONE, Fault::HeartbeatRequest);
    let beat = |seen: &threadcord::sim::Observed| {
        seen.records
            .iter()
            .any(|record| matches!(record.action, Action::Heartbeat(Some(1))))
    };
    assert!(gateway.wait_for(PATIENCE, beat));
    drop(manager);
    gateway.assert_lawful();
}

#[test]
fn commands_survive_a_cut() {
    let gateway = gateway().start().unwrap();
    let manager = ready(config(&gateway));
    let handle = manager.handle().shard(ONE).unwrap();
    gateway.inject(ONE, Fault::Cut);
    eventually("it is away", || handle.status().last_disconnect.is_some());
    handle.send(sounds(5)).unwrap();
    let arrived = |seen: &threadcord::sim::Observed| {
        seen.records
            .iter()
            .any(|record| matches!(record.action, Action::Command { op: 31, .. }))
    };
    assert!(gateway.wait_for(PATIENCE, arrived));
    gateway.assert_lawful();
}

#[test]
fn a_fatal_close_stops_the_shard_and_the_stream() {
    let gateway = gateway().shards(2).start().unwrap();
    let manager = ready(config(&gateway));
    let events: Events = manager.events();
    let reason = StopReason::Discord(CloseCode(4014));
    gateway.inject(shard(0, 2), Fault::Close(4014));
    gateway.inject(shard(1, 2), Fault::Close(4014));
    let closed: Vec<_> = events
        .filter(|event| matches!(event.kind(), EventKind::Stopped(_)))
        .collect();
    assert_eq!(closed.len(), 2, "the stream ends when all have stopped");

    for id in [shard(0, 2), shard(1, 2)] {
        let handle = manager.handle().shard(id).unwrap();
        assert_eq!(
            handle.status().state,
            threadcord::ShardState::Stopped(reason)
        );
        assert!(
            handle
                .send(sounds(5))
                .unwrap_err()
                .to_string()
                .contains("GUILD_MEMBERS")
        );
    }

    assert!(matches!(
        manager.wait_ready(PATIENCE),
        Err(threadcord::Error::Stopped { .. })
    ));
    assert!(
        matches!(
            manager.run(1, |_, _| {}),
            Err(threadcord::Error::Stopped { .. })
        ),
        "a supervisor is to see it"
    );
}

#[test]
fn a_lost_session_reports_since_when_events_may_be_missing() {
    let gateway = gateway().start().unwrap();
    let gone: Arc<Mutex<Option<SystemTime>>> = Arc::default();
    let noted = Arc::clone(&gone);
    let manager = ready(config(&gateway).on_close(move |_| {
        noted.lock().get_or_insert_with(SystemTime::now);
    }));
    let events = manager.events();
    let started = SystemTime::now();
    gateway
        .chat(gateway.direct_channel(), "the last thing that is heard")
        .unwrap();
    next(&events, |event| event.name() == "MESSAGE_CREATE");
    gateway.inject(
        ONE,
        Fault::Resume(Answer::InvalidSession { resumable: false }),
    );
    gateway.inject(ONE, Fault::Cut);
    let lost = next(&events, |event| {
        matches!(event.kind(), EventKind::SessionLost { .. })
    });
    let EventKind::SessionLost { missed_since, .. } = lost.kind() else {
        unreachable!()
    };
    let gone = gone.lock().unwrap();
    assert!(
        (started..=gone).contains(missed_since),
        "what was said on the way to the refusal is no news of the session"
    );
    drop(manager);

    // A session of an earlier process, saved long ago or never.
    for saved_at in [1_700_000_000, u64::MAX] {
        let mut session = Session::new("unknown".into(), 5, gateway.url(), ONE, 0);
        session.saved_at = saved_at;
        let limiter = Arc::new(Unlimited);
        let manager = ShardManager::start(
            config(&gateway)
                .session_store(MemoryStore::new(vec![session]))
                .limiter(limiter),
        )
        .unwrap();
        let lost = next(&manager.events(), |event| {
            matches!(event.kind(), EventKind::SessionLost { .. })
        });
        let EventKind::SessionLost { missed_since, .. } = lost.kind() else {
            unreachable!()
        };
        let saved = UNIX_EPOCH
            .checked_add(Duration::from_secs(saved_at))
            .unwrap_or(UNIX_EPOCH);
        assert_eq!(*missed_since, saved);
    }
}
