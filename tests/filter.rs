//! Events that a filter drops do not count as outstanding, and count as handled. The library still
//! sees the events that it needs.

mod common;

use common::{
    COMPRESSIONS, PATIENCE, config, counters_of, eventually, gateway, next, number, owes_nothing,
    ready, status_of,
};
use serde_json::json;
use threadcord::store::MemoryStore;
use threadcord::{EventFilter, Intents, MemberQuery, ShardId, ShardManager};

const ONE: ShardId = ShardId::ONE;

#[test]
fn only_wanted_events_are_delivered_and_the_library_sees_all() {
    for compression in COMPRESSIONS {
        let gateway = gateway().guilds(3).activity(500.0).start().unwrap();
        let filter = EventFilter::only(["TYPING_START"]).unwrap();
        let manager = ready(config(&gateway).compression(compression).events(filter));
        let events = manager.events();
        manager
            .wait_guilds(PATIENCE)
            .expect("it sees READY and GUILD_CREATE");
        assert_eq!(status_of(&manager, ONE).guilds, Some(3));
        gateway.inject(ONE, threadcord::sim::Fault::Cut);
        next(&events, |event| event.name() == "Resumed");
        let members = manager
            .handle()
            .shard(ONE)
            .unwrap()
            .request_members(gateway.guild_ids()[0], &MemberQuery::ids([1]));
        members
            .unwrap()
            .next()
            .unwrap()
            .expect("it sees GUILD_MEMBERS_CHUNK");
        for n in 0..20 {
            let guild = gateway.guild_ids()[0];
            let data = json!({"guild_id": guild.to_string(), "user_id": "1", "timestamp": n});
            gateway.emit(Some(guild), "TYPING_START", &data).unwrap();
        }
        next(&events, |event| {
            assert!(
                event
                    .dispatch()
                    .is_none_or(|dispatch| dispatch.name() == "TYPING_START"),
                "{event:?}"
            );
            number(event).is_some_and(|(_, number)| number == 19)
        });
        let counters = counters_of(&manager, ONE);
        assert!(
            counters.filtered > 3 && counters.events >= 21,
            "{counters:?}"
        );
    }
}

#[test]
fn the_handled_sequence_skips_dropped_events_and_waits_for_held_ones() {
    let gateway = gateway().guilds(1).start().unwrap();
    let filter = EventFilter::of_intents(Intents::GUILD_MESSAGE_TYPING);
    let manager = ready(config(&gateway).events(filter));
    let (shard, events, guild) = (
        manager.handle().shard(ONE).unwrap(),
        manager.events(),
        gateway.guild_ids()[0],
    );
    manager.wait_guilds(PATIENCE).unwrap();
    let mark = || shard.session().unwrap().sequence;
    let base = mark();
    assert_eq!(
        base,
        shard.status().sequence,
        "READY and GUILD_CREATE were dropped, so they are handled"
    );
    let emit = |name| {
        let data = json!({"guild_id": guild.to_string(), "user_id": "1", "timestamp": 0, "channel_id": "5"});
        gateway.emit(Some(guild), name, &data).unwrap();
    };

    for name in [
        "TYPING_START",
        "WEBHOOKS_UPDATE",
        "TYPING_START",
        "WEBHOOKS_UPDATE",
        "TYPING_START",
        "WEBHOOKS_UPDATE",
    ] {
        emit(name);
    }

    let mut held: Vec<_> = (0..3)
        .map(|_| next(&events, |event| event.dispatch().is_some()))
        .collect();
    eventually("all have come", || shard.status().sequence == base + 6);
    assert_eq!(mark(), base, "the first is held");

    // Out of order, and early.
    held[1].release();
    drop(held.pop());
    assert_eq!((mark(), shard.status().outstanding_events), (base, 1));
    drop(held.remove(0));
    assert_eq!(
        (mark(), owes_nothing(&shard)),
        (base + 6, true),
        "what lies between is handled too"
    );

    // The program leaks an event: the handled sequence stays there forever, and the event counts as
    // outstanding forever.
    emit("TYPING_START");
    std::mem::forget(next(&events, |event| event.dispatch().is_some()));
    emit("WEBHOOKS_UPDATE");
    eventually("all have come", || shard.status().sequence == base + 8);
    assert_eq!((mark(), shard.status().outstanding_events), (base + 6, 1));

    // So the events after it are redelivered.
    let sessions = manager.suspend();
    let manager =
        ShardManager::start(config(&gateway).session_store(MemoryStore::new(sessions))).unwrap();
    let again = next(&manager.events(), |event| event.dispatch().is_some());
    assert_eq!(
        (again.name(), again.dispatch().unwrap().sequence()),
        ("TYPING_START", base + 7)
    );
    gateway.assert_lawful();
}

#[test]
fn dropped_events_do_not_count_as_outstanding() {
    let gateway = gateway().guilds(1).start().unwrap();
    let filter = EventFilter::except(["TYPING_START"]).unwrap();
    let manager = ready(config(&gateway).events(filter).max_outstanding_events(5));
    let (shard, guild) = (manager.handle().shard(ONE).unwrap(), gateway.guild_ids()[0]);
    for n in 0..500 {
        let data = json!({"guild_id": guild.to_string(), "user_id": "1", "timestamp": n});
        gateway.emit(Some(guild), "TYPING_START", &data).unwrap();
    }
    // No thread takes events from the stream.
    eventually("all are dropped", || shard.counters().filtered == 500);
    assert_eq!(shard.status().stalled_for, None);
    gateway.assert_lawful();
}
