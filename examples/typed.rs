//! Prints messages, with the types of twilight-model: `cargo run --features model --example typed`.

mod common;

use threadcord::{Error, Intents, ShardManager};
use twilight_model::gateway::event::Event;

fn main() -> Result<(), Error> {
    let intents = Intents::default() | Intents::MESSAGE_CONTENT;
    ShardManager::start(common::config(intents)?)?.run(4, |_, event| {
        match event.dispatch().map(threadcord::Dispatch::typed) {
            Some(Ok(Event::MessageCreate(message))) => {
                println!("{}: {}", message.author.name, message.content);
            }
            Some(Ok(Event::GuildCreate(guild))) => println!("guild {}", guild.id()),
            Some(Ok(other)) => println!("{:?}", other.kind()),
            // Events that are new at Discord have no type yet.
            Some(Err(error)) => eprintln!("{error}"),
            None => println!("shard {}: {}", event.shard(), event.name()),
        }
    })
}
