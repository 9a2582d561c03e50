//! Lists the members of a guild: `cargo run --example members -- GUILD_ID [BEGINNING OF NAME]`.

mod common;

use std::time::Duration;

use serde::Deserialize;
use threadcord::{EventFilter, Intents, MemberQuery, ShardManager};

#[derive(Deserialize)]
struct Member<'a> {
    #[serde(borrow)]
    user: User<'a>,
}

#[derive(Deserialize)]
struct User<'a> {
    id: &'a str,
    #[serde(borrow)]
    username: std::borrow::Cow<'a, str>,
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let guild = arguments
        .next()
        .ok_or("which guild? give its id")?
        .parse()?;
    let query = match arguments.next() {
        Some(prefix) => MemberQuery::prefix(prefix, 100),
        // Needs GUILD_MEMBERS, which has to be switched on in the developer portal.
        None => MemberQuery::all(),
    };

    // The answer is returned by `request_members`, so no event is needed.
    let config =
        common::config(Intents::GUILDS | Intents::GUILD_MEMBERS)?.events(EventFilter::NONE);
    let manager = ShardManager::start(config)?;
    manager.wait_ready(Duration::from_secs(60))?;
    let shard = manager
        .handle()
        .shard_by_guild(guild)
        .ok_or("no shard that runs here has this guild")?;

    let mut count = 0;
    for chunk in shard.request_members(guild, &query)? {
        let chunk = chunk?;
        for Member { user } in chunk.members()? {
            println!("{} {}", user.id, user.username);
            count += 1;
        }
    }

    eprintln!("{count} members");
    Ok(())
}
