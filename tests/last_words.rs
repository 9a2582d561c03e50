//! A peer sends data before it closes, while other data may be on its way to the peer.

mod common;

use std::collections::BTreeMap;
use std::net::Shutdown;
use std::time::Duration;

use common::raw::Raw;
use common::{PATIENCE, eventually, next};
use serde_json::json;
use threadcord::{
    CloseCode, Command, Compression, Disconnect, EventKind, ShardId, ShardManager, StopReason,
};

const ONE: ShardId = ShardId::ONE;

/// A heartbeat interval, in milliseconds: a stalled shard soon writes to a peer that is gone. The
/// peer acknowledges no heartbeat, so that the shard must have stalled before it misses one.
const INTERVAL: u64 = 500;

/// A peer sends 50 events and closes. The shard may have 10 outstanding, and keeps heartbeating.
fn told_before(code: u16) -> (Raw, ShardManager, usize) {
    let raw = Raw::new();
    let config = raw.config().max_outstanding_events(10);
    let manager = ShardManager::start(config.compression(Compression::None)).unwrap();
    let mut peer = raw.session(INTERVAL);
    peer.events(50);
    let shard = manager.handle().shard(ONE).unwrap();
    eventually("it stalls", || shard.status().outstanding_events >= 10);
    // The shard's heartbeat carries the TCP acknowledgement of what was sent. Until then the system
    // may hold some of it back, and a reset would discard it.
    for _ in 0..2 {
        peer.until(1);
    }
    peer.close(code, "so long");
    // The next heartbeat is answered with a reset, and the one after it fails.
    std::thread::sleep(Duration::from_millis(3 * INTERVAL));

    let events = manager.events();
    let mut count = 0;
    while count < 50 {
        let event = events.recv_timeout(PATIENCE).expect("all that was sent");
        count += usize::from(event.name() == "TYPING_START");
        let is_over = matches!(
            event.kind(),
            EventKind::Disconnected { .. } | EventKind::Stopped(_)
        );
        assert!(!is_over, "{event:?} after {count} of 50");
    }
    (raw, manager, count)
}

#[test]
fn events_before_a_close_are_delivered_although_nothing_can_be_sent() {
    let (_raw, manager, _) = told_before(4009);
    let event = next(&manager.events(), |event| {
        matches!(event.kind(), EventKind::Disconnected { .. })
    });
    let EventKind::Disconnected { reason, cause, .. } = event.kind() else {
        unreachable!("it is one");
    };
    assert_eq!(*reason, Disconnect::Discord(CloseCode(4009)));
    assert_eq!(cause.as_deref(), Some("so long"));
}

#[test]
fn a_fatal_code_behind_unread_events_spends_no_identify() {
    let (raw, manager, _) = told_before(4004);
    let closed = next(&manager.events(), |event| {
        matches!(event.kind(), EventKind::Stopped(_))
    });
    assert!(matches!(
        closed.kind(),
        EventKind::Stopped(StopReason::Discord(CloseCode(4004)))
    ));
    eventually("it reports why", || manager.check().is_err());
    assert!(manager.check().unwrap_err().to_string().contains("token"));
    assert!(!raw.is_called(Duration::from_millis(300)));
}

#[test]
fn what_the_system_has_taken_is_not_sent_again() {
    const COMMANDS: u64 = 3500;
    let raw = Raw::new();
    let mut config = raw
        .config()
        .compression(Compression::None)
        .max_waiting_commands(usize::try_from(COMMANDS).unwrap());
    // As if there were no limit.
    config.timing.send_window = Duration::from_millis(1);
    config.timing.guard = Duration::ZERO;
    let manager = ShardManager::start(config).unwrap();
    let mut peer = raw.session(60_000);
    next(&manager.events(), |event| event.name() == "READY");
    let shard = manager.handle().shard(ONE).unwrap();
    let filler = "x".repeat(3000);
    for n in 0..COMMANDS {
        let payload = json!({"op": 31, "d": {"guild_ids": [n.to_string()], "filler": filler}});
        shard.send(Command::raw(&payload).unwrap()).unwrap();
    }
    // The peer does not read: the buffers between the two fill up.
    let mut waiting = 0;
    eventually("they are full", || {
        std::thread::sleep(Duration::from_millis(300));
        let before = std::mem::replace(&mut waiting, shard.status().waiting_commands);
        before == waiting
    });

    // The peer ends its side, then reads what is on its way.
    peer.socket.get_ref().shutdown(Shutdown::Write).unwrap();
    let mut came: BTreeMap<u64, usize> = BTreeMap::new();
    let mut note = |payload: &serde_json::Value| {
        if payload["op"] == 31 {
            let number = payload["d"]["guild_ids"][0].as_str().unwrap();
            *came.entry(number.parse().unwrap()).or_default() += 1;
        }
        came.len() as u64
    };
    while let Some(payload) = peer.read() {
        note(&payload);
    }
    let mut peer = raw.accept();
    peer.send(&json!({"op": 10, "d": {"heartbeat_interval": 60_000}}));
    peer.until(6);
    peer.dispatch("RESUMED", &json!({}));
    while note(&peer.read().expect("the rest")) < COMMANDS {}
    let twice = came.values().filter(|count| **count > 1).count();
    assert_eq!(twice, 0, "of {COMMANDS}");
}

#[test]
fn a_server_that_knows_no_compression_is_understood_and_told_who_calls() {
    let raw = Raw::new();
    let config = raw.config();
    assert_eq!(config.shard.compression, Compression::ZstdStream);
    let manager = ShardManager::start(config).unwrap();
    let mut peer = raw.session(60_000);
    assert!(
        peer.user_agent.starts_with("DiscordBot ("),
        "{}",
        peer.user_agent
    );
    peer.events(3);
    for _ in 0..3 {
        next(&manager.events(), |event| event.name() == "TYPING_START");
    }
}

#[test]
fn the_reason_for_a_failed_connection_is_reported() {
    let raw = Raw::new();
    // No program listens there any more.
    let config = raw.config();
    drop(raw);
    let manager = ShardManager::start(config).unwrap();
    let event = next(&manager.events(), |event| {
        matches!(event.kind(), EventKind::Disconnected { .. })
    });
    let EventKind::Disconnected { cause, .. } = event.kind() else {
        unreachable!("it is one");
    };
    let cause = cause.as_deref().unwrap_or_default();
    assert!(cause.contains("refused"), "{cause}");
}
