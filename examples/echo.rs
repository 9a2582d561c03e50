//! Answers `!ping`. (`MESSAGE_CONTENT` has to be switched on in the developer portal.)

mod common;

use serde::Deserialize;
use serde_json::json;
use threadcord::{Dispatch, EventFilter, Intents, ShardManager};

#[derive(Deserialize)]
struct Message {
    channel_id: String,
    content: String,
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let intents = Intents::GUILD_MESSAGES | Intents::DIRECT_MESSAGES | Intents::MESSAGE_CONTENT;
    let config = common::config(intents)?.events(EventFilter::only(["MESSAGE_CREATE"])?);
    ShardManager::start(config)?.run(4, |handle, event| {
        let Some(Ok(message)) = event.dispatch().map(Dispatch::decode::<Message>) else {
            return;
        };
        if message.content == "!ping" {
            let path = format!("/channels/{}/messages", message.channel_id);
            let pong = json!({"content": "pong"});
            if let Err(error) = handle.rest().post(&path).json(&pong).send() {
                eprintln!("{}", error.report());
            }
        }
    })?;
    Ok(())
}
