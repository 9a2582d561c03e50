//! From HELLO to events in the user's loop, in every compression, with and without TLS.

mod common;

use common::{COMPRESSIONS, config, gateway, next, ready};
use serde_json::Value;
use threadcord::{Compression, ShardState};

fn events_arrive(compression: Compression, tls: bool) {
    let gateway = gateway().shards(2).guilds(6).tls(tls).start().unwrap();
    let manager = ready(config(&gateway).compression(compression));
    let events = manager.events();

    let mut guilds = Vec::new();
    while guilds.len() < 6 {
        let created = next(&events, |event| event.name() == "GUILD_CREATE");
        let guild: Value = created.dispatch().unwrap().decode().unwrap();
        let id: u64 = guild["id"].as_str().unwrap().parse().unwrap();
        assert_eq!(
            manager.handle().shard_by_guild(id).unwrap().id(),
            created.shard()
        );
        guilds.push(id);
    }

    let long = "🦀 \"quoted\" ".repeat(1000);
    for guild in gateway.guild_ids() {
        gateway
            .chat(gateway.channel_of(guild).unwrap(), &long)
            .unwrap();
        let message = next(&events, |event| event.name() == "MESSAGE_CREATE");
        let message: Value = message.dispatch().unwrap().decode().unwrap();
        assert_eq!(message["content"], long);
    }

    for shard in manager.handle().shards() {
        assert_eq!(shard.status().state, ShardState::Ready);
        assert_eq!(
            (shard.counters().identifies, shard.counters().connects),
            (1, 1)
        );
    }

    manager.close();
    gateway.assert_lawful();
}

#[test]
fn plain() {
    events_arrive(Compression::None, false);
    events_arrive(Compression::None, true);
}

#[test]
fn payload_compression() {
    events_arrive(Compression::Payload, false);
    events_arrive(Compression::Payload, true);
}

#[test]
fn zlib_stream() {
    events_arrive(Compression::ZlibStream, false);
    events_arrive(Compression::ZlibStream, true);
}

#[test]
fn zstd_stream() {
    events_arrive(Compression::ZstdStream, false);
    events_arrive(Compression::ZstdStream, true);
}

#[test]
fn payloads_of_many_megabytes() {
    for compression in COMPRESSIONS {
        let gateway = gateway().guilds(1).start().unwrap();
        let config = config(&gateway)
            .compression(compression)
            .max_outstanding_bytes(64 << 20);
        let manager = ready(config);
        let events = manager.events();
        let guild = gateway.guild_ids()[0];
        for megabytes in [0, 1, 20] {
            let text = "0123456789abcdef".repeat((megabytes << 16) + 8000);
            gateway
                .emit(Some(guild), "LARGE", &serde_json::json!({"text": text}))
                .unwrap();
            let event = next(&events, |event| event.name() == "LARGE");
            assert_eq!(
                event.dispatch().unwrap().decode::<Value>().unwrap()["text"],
                text,
                "{compression:?}"
            );
        }
        assert_eq!(manager.handle().shards()[0].counters().connects, 1);
    }
}

#[test]
fn unknown_events_are_delivered_as_they_are() {
    let gateway = gateway().guilds(1).start().unwrap();
    let manager = ready(config(&gateway));
    let events = manager.events();
    let guild = gateway.guild_ids()[0];
    let data = serde_json::json!({"list": [1, 2.5, null], "text": "ü"});
    assert_eq!(gateway.emit(Some(guild), "SOMETHING_NEW", &data), Ok(1));
    let event = next(&events, |event| event.name() == "SOMETHING_NEW");
    let dispatch = event.dispatch().unwrap();
    assert_eq!(dispatch.data(), data.to_string().as_bytes());
    assert_eq!(manager.handle().shards()[0].session().unwrap().id.len(), 32);
    assert_eq!(
        gateway.observed().sequences.values().copied().max(),
        Some(dispatch.sequence())
    );
}
