//! Typed events: every event that the simulator sends and twilight-model knows is decoded; and ids
//! convert both ways.

mod common;

use std::collections::BTreeSet;
use std::time::Instant;

use common::{PATIENCE, config, gateway, ready, shard};
use serde_json::json;
use threadcord::command::VoiceState;
use threadcord::sim::{self, Interaction};
use threadcord::{Command, Dispatch, Intents, MemberQuery, ShardId};
use twilight_model::gateway::event::Event;

/// The events of the simulator for which twilight-model 0.18 has no type.
const UNKNOWN: [&str; 2] = ["SOUNDBOARD_SOUNDS", "CHANNEL_INFO"];

#[test]
fn every_event_of_the_simulator_is_read() {
    let gateway = gateway()
        .guilds(2)
        .activity(2000.0)
        .mix(sim::EVENT_NAMES.map(|name| (name, 1)))
        .start()
        .unwrap();
    let manager = ready(config(&gateway));
    let (guild, shard) = (
        gateway.guild_ids()[0],
        manager.handle().shard(ShardId::ONE).unwrap(),
    );
    let channel = gateway.channel_of(guild).unwrap();
    gateway.chat(channel, "hello").unwrap();
    let hello = Interaction::command(channel, "hello", json!({}));
    gateway.interact(&hello).unwrap();
    let all = || Command::request_members(guild, &MemberQuery::all(), None).unwrap();

    for command in [
        all(),
        Command::voice_state(&VoiceState::join(guild, channel + 1)).unwrap(),
    ] {
        shard.send(command).unwrap();
    }

    let limited = json!({"opcode": 8, "retry_after": 0.1, "meta": {"guild_id": guild.to_string(), "nonce": "n"}});
    gateway.emit(Some(guild), "RATE_LIMITED", &limited).unwrap();
    let others = [
        "READY",
        "GUILD_MEMBERS_CHUNK",
        "INTERACTION_CREATE",
        "VOICE_SERVER_UPDATE",
        "RATE_LIMITED",
    ]
    .into_iter();
    let mut missing: BTreeSet<&str> = sim::EVENT_NAMES.into_iter().chain(others).collect();
    let events = manager.events();
    let deadline = Instant::now() + PATIENCE;

    while !missing.is_empty() {
        let left = deadline.saturating_duration_since(Instant::now());
        let event = events
            .recv_timeout(left)
            .unwrap_or_else(|_| panic!("did not come: {missing:?}"));
        let Some(dispatch) = event.dispatch() else {
            continue;
        };
        let typed = dispatch.typed().unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(typed.kind().name(), Some(dispatch.name().as_str()));
        if let (Event::MessageCreate(message), Some(guild)) = (&typed, dispatch.guild_id()) {
            assert_eq!(
                message.guild_id.map(twilight_model::id::Id::get),
                Some(guild)
            );
        }
        missing.remove(dispatch.name().as_str());
    }
    gateway.assert_lawful();
}

#[test]
fn an_event_without_a_type_is_a_clear_error() {
    for name in UNKNOWN {
        let json = json!({"op": 0, "s": 1, "t": name, "d": {"guild_id": "1"}}).to_string();
        let dispatch = Dispatch::from_json(json).unwrap();
        assert!(dispatch.typed().unwrap_err().to_string().contains(name));
        assert_eq!(dispatch.guild_id(), Some(1), "the rest works anyway");
    }
}

#[test]
fn ids_and_intents_convert_both_ways() {
    let theirs: twilight_model::gateway::ShardId = shard(3, 8).into();
    assert_eq!((theirs.number(), theirs.total()), (3, 8));
    assert_eq!(ShardId::from(theirs), shard(3, 8));
    for intent in Intents::all() {
        let theirs = twilight_model::gateway::Intents::from(intent);
        assert_eq!(Intents::from(theirs), intent);
    }
    assert_eq!(
        twilight_model::gateway::Intents::from(Intents::GUILD_MESSAGE_POLLS),
        twilight_model::gateway::Intents::GUILD_MESSAGE_POLLS
    );
}
