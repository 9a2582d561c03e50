//! A stuck handler stalls only its own shards, delays no heartbeat, and loses no event.

mod common;

use common::{
    PATIENCE, config, counters_of, eventually, gateway, next, owes_nothing, ready, shard, status_of,
};
use serde_json::Value;
use threadcord::sim::Fault;
use threadcord::sim::{Action, Gateway};
use threadcord::{EventKind, ShardId};

#[test]
fn a_stuck_handler_stalls_only_its_shard() {
    let gateway = Gateway::builder()
        .time_scale(common::SCALE)
        .heartbeat_interval(std::time::Duration::from_secs(5))
        .shards(2)
        .max_concurrency(2)
        .guilds(2)
        .start()
        .unwrap();
    let manager = ready(config(&gateway).max_outstanding_events(20));
    let events = manager.events();
    let stuck = shard(0, 2);
    let guild_of = |shard| {
        gateway
            .guild_ids()
            .into_iter()
            .find(|id| ShardId::for_guild(*id, 2) == Some(shard))
            .unwrap()
    };

    let channel_of = |shard| gateway.channel_of(guild_of(shard)).unwrap();
    for n in 0..100 {
        gateway.chat(channel_of(stuck), &n.to_string()).unwrap();
    }

    // The events of one shard are held, as by a handler that does not return.
    let mut held = Vec::new();
    let mut stalled = false;
    while !stalled {
        let event = events.recv_timeout(PATIENCE).unwrap();
        stalled = matches!(event.kind(), EventKind::Stalled { events: 20, .. });
        if event.shard() == stuck {
            held.push(event);
        }
    }

    assert_eq!(status_of(&manager, stuck).outstanding_events, 20);
    // The other shard continues.
    gateway.chat(channel_of(shard(1, 2)), "on we go").unwrap();
    next(&events, |event| {
        event.name() == "MESSAGE_CREATE" && event.shard() == shard(1, 2)
    });

    // The stuck shard continues to send heartbeats, and is not considered dead.
    let beats = || {
        let records = gateway.observed().records;
        records
            .iter()
            .filter(|r| r.shard == Some(stuck) && matches!(r.action, Action::Heartbeat(_)))
            .count()
    };

    let before = beats();
    eventually("it beats", || beats() >= before + 10);
    assert_eq!(counters_of(&manager, stuck).connects, 1);
    assert_eq!(status_of(&manager, stuck).last_disconnect, None);
    assert_eq!(status_of(&manager, stuck).outstanding_events, 20);

    // When the handler returns, everything follows, in order.
    let mut numbers: Vec<String> = Vec::new();
    let mut take = |event: &threadcord::Event| {
        if let Some(dispatch) = event
            .dispatch()
            .filter(|dispatch| dispatch.name() == "MESSAGE_CREATE")
        {
            numbers.push(
                dispatch.decode::<Value>().unwrap()["content"]
                    .as_str()
                    .unwrap()
                    .to_owned(),
            );
        }
        numbers.len()
    };

    for event in held {
        take(&event);
    }

    while take(&next(&events, |event| event.shard() == stuck)) < 100 {}
    assert!(numbers.into_iter().eq((0..100).map(|n| n.to_string())));
    gateway.assert_lawful();
}

#[test]
fn bytes_stall_too_and_a_release_counts_as_handled() {
    let gateway = gateway().guilds(1).start().unwrap();
    let manager = ready(config(&gateway).max_outstanding_bytes(10_000));
    let events = manager.events();
    let channel = gateway.channel_of(gateway.guild_ids()[0]).unwrap();

    for _ in 0..10 {
        gateway.chat(channel, &"x".repeat(3000)).unwrap();
    }

    let mut kept = Vec::new();
    loop {
        let event = events.recv_timeout(PATIENCE).unwrap();
        if let EventKind::Stalled { bytes, .. } = event.kind() {
            assert!((10_000..20_000).contains(bytes), "{bytes}");
            break;
        }
        kept.push(event);
    }

    for event in &mut kept {
        event.release();
    }

    let mut messages = kept
        .iter()
        .filter(|event| event.name() == "MESSAGE_CREATE")
        .count();

    while messages < 10 {
        next(&events, |event| event.name() == "MESSAGE_CREATE");
        messages += 1;
    }

    drop(kept);
    eventually("nothing is owed", || {
        owes_nothing(&manager.handle().shard(ShardId::ONE).unwrap())
    });
}

#[test]
fn a_stalled_shard_that_is_cut_resumes_and_loses_nothing() {
    let gateway = gateway().guilds(1).start().unwrap();
    let manager = ready(config(&gateway).max_outstanding_events(10));
    let events = manager.events();
    let channel = gateway.channel_of(gateway.guild_ids()[0]).unwrap();

    for n in 0..50 {
        gateway.chat(channel, &n.to_string()).unwrap();
    }

    let mut held = Vec::new();
    while !matches!(
        held.last().map(threadcord::Event::kind),
        Some(EventKind::Stalled { .. })
    ) {
        held.push(events.recv_timeout(PATIENCE).unwrap());
    }

    gateway.inject(ShardId::ONE, Fault::Cut);
    let closed = |record: &threadcord::sim::Record| matches!(record.action, Action::Closed(_));
    assert!(gateway.wait_for(PATIENCE, |seen| seen.records.iter().any(closed)));

    let mut numbers = Vec::new();
    for event in held.into_iter().chain(events) {
        if let Some(dispatch) = event
            .dispatch()
            .filter(|dispatch| dispatch.name() == "MESSAGE_CREATE")
        {
            numbers.push(
                dispatch.decode::<Value>().unwrap()["content"]
                    .as_str()
                    .unwrap()
                    .to_owned(),
            );
        }
        if numbers.len() == 50 {
            break;
        }
    }

    assert!(numbers.into_iter().eq((0..50).map(|n| n.to_string())));
    gateway.assert_lawful();
}
