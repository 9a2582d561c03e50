//! Changes the presence of all shards every few seconds, as often as Discord accepts it.

mod common;

use std::time::Duration;

use crossbeam_channel::{select, tick};
use threadcord::command::{Activity, OnlineStatus};
use threadcord::{Error, Intents, Presence, ShardManager};

/// Discord accepts 5 presences in 20 s. If there were more, the library would send only the latest.
const PERIOD: Duration = Duration::from_secs(4);

fn main() -> Result<(), Error> {
    let presences = [
        Presence::new(OnlineStatus::Online).activity(Activity::watching("the gateway")),
        Presence::new(OnlineStatus::Online).activity(Activity::listening("heartbeats")),
        Presence::new(OnlineStatus::DoNotDisturb).activity(Activity::custom("resuming")),
        Presence::new(OnlineStatus::Idle).activity(Activity::playing("with threads")),
    ];
    let mut presences = presences.iter().cycle();

    // Shards start with this presence, and so do sessions that start later.
    let config = common::config(Intents::GUILDS)?;
    let manager = ShardManager::start(match presences.next() {
        Some(first) => config.presence(first.clone()),
        None => config,
    })?;
    let (events, period) = (manager.events(), tick(PERIOD));

    loop {
        select! {
            recv(period) -> _ => presences.next().map_or(Ok(()), |presence| manager.handle().broadcast(presence))?,
            recv(events.receiver()) -> event => match event {
                Ok(event) => println!("{} {}", event.shard(), event.name()),
                // All shards have stopped for good; `run` says why.
                Err(_) => return manager.run(1, |_, _| {}),
            },
        }
    }
}
