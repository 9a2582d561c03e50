//! The events that the benches use, as the simulator generates them.

#![allow(dead_code, reason = "each bench needs a part")]

pub(crate) mod clients;
pub(crate) mod memory;
pub(crate) mod probe;
pub(crate) mod stream;

use std::collections::BTreeSet;
use std::time::Duration;

use threadcord::{
    Command, Config, Dispatch, Intents, MemberQuery, ShardManager, Timing, Token, sim,
};

/// How many events of the usual mix are collected; a few more follow, so that every kind occurs.
const EVENTS: usize = 4000;

/// The number of guilds, with 250 members each. With this number, the mean event size is that of a
/// busy bot: about 1.9 kB.
const GUILDS: u32 = 55;

/// Some thousand events of the usual mix, with at least one of each kind, as Discord writes them.
/// They are 100 bytes to 200 KB long, with escapes and non-ASCII characters, and always the same.
pub(crate) fn events() -> Vec<String> {
    let usual = sim::Gateway::builder()
        .guilds(GUILDS)
        .members(250)
        .activity(4000.0)
        .time_scale(0.01)
        .seed(1);
    let each = sim::EVENT_NAMES.map(|name| (name, 1));
    let each = sim::Gateway::builder()
        .guilds(1)
        .members(600)
        .activity(1000.0)
        .time_scale(0.01)
        .mix(each)
        .seed(1);
    let mut events = collect(usual, |events, _| events.len() >= EVENTS);
    let is_there = |names: &BTreeSet<String>, name| names.contains(name);
    events.extend(collect(each, |_, names| {
        sim::EVENT_NAMES
            .into_iter()
            .chain(["GUILD_MEMBERS_CHUNK"])
            .all(|name| is_there(names, name))
    }));
    fastrand::Rng::with_seed(1).shuffle(&mut events);
    events
}

fn collect(
    gateway: sim::Builder,
    is_enough: impl Fn(&[String], &BTreeSet<String>) -> bool,
) -> Vec<String> {
    let gateway = gateway
        .heartbeat_interval(Duration::from_secs(500))
        .start()
        .expect("the simulator starts");
    let config = Config::new(
        Token::new(gateway.token()).expect("a token"),
        Intents::all(),
    )
    .rest_url(gateway.rest_url())
    .large_threshold(250)
    .timing(Timing::scaled(0.01));
    let manager = ShardManager::start(config).expect("the shard starts");

    let (mut events, mut names) = (Vec::new(), BTreeSet::new());
    for event in manager.events() {
        let Some(dispatch) = event.dispatch() else {
            continue;
        };
        if names.insert(dispatch.name().to_string()) && dispatch.name() == "GUILD_CREATE" {
            // The largest event of all: 600 members.
            let all = Command::request_members(gateway.guild_ids()[0], &MemberQuery::all(), None)
                .expect("a command");
            manager
                .handle()
                .send_to_guild(gateway.guild_ids()[0], all)
                .expect("the command is queued");
        }
        let data = String::from_utf8_lossy(dispatch.data());
        events.push(payload(dispatch.name(), dispatch.sequence(), &data));
        if is_enough(&events, &names) {
            break;
        }
    }
    events
}

/// An event in the order in which Discord writes it.
pub(crate) fn payload(name: impl std::fmt::Display, sequence: u64, data: &str) -> String {
    format!(r#"{{"t":"{name}","s":{sequence},"op":0,"d":{data}}}"#)
}

/// The same events, as the library reads them.
pub(crate) fn dispatches() -> Vec<Dispatch> {
    events()
        .into_iter()
        .map(|json| Dispatch::from_json(json).expect("an event"))
        .collect()
}

/// The names and the data of the same events.
pub(crate) fn parts() -> Vec<(String, String)> {
    let parts = |event: Dispatch| {
        (
            event.name().to_string(),
            String::from_utf8_lossy(event.data()).into_owned(),
        )
    };
    dispatches().into_iter().map(parts).collect()
}

/// The mean of some sizes.
pub(crate) fn mean(sizes: impl ExactSizeIterator<Item = usize>) -> usize {
    let count = sizes.len();
    sizes.sum::<usize>() / count.max(1)
}
