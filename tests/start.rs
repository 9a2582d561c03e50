//! From HELLO to events in the user's loop, in every compression, with and without TLS.

mod common;

use common::{config, gateway, next, ready};
use serde_json::Value;
use threadcord::{Compression, Stage};

fn events_arrive(compression: Compression, tls: bool) {
    let gateway = gateway().shards(2).guilds(6).tls(tls).start().unwrap();
    let manager = ready(config(&gateway).compression(compression));
    let events = manager.events();
    let mut guilds = Vec::new();
    while guilds.len() < 6 {
        let created = next(&events, |event| event.name() == "GUILD_CREATE");
        let guild: Value = created.dispatch().unwrap().decode().unwrap();
        let id: u64 = guild["id"].as_str().unwrap().parse().unwrap();
        assert_eq!(manager.shard_by_guild(id).unwrap().id(), created.shard());
        guilds.push(id);
    }
    let long = "🦀 \"quoted\" ".repeat(1000);
    for guild in gateway.guild_ids() {
        gateway.chat(gateway.channel_of(guild).unwrap(), &long).unwrap();
        let message = next(&events, |event| event.name() == "MESSAGE_CREATE");
        let message: Value = message.dispatch().unwrap().decode().unwrap();
        assert_eq!(message["content"], long);
    }
    for shard in manager.shards() {
        assert_eq!(shard.status().stage, Stage::Ready);
        assert_eq!((shard.status().identifies, shard.status().connects), (1, 1));
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
