//! Deletes messages with forbidden words (given on the command line), warns their authors, and
//! kicks them from the guild the third time. (`MESSAGE_CONTENT` has to be switched on in the
//! developer portal, and the bot needs the permissions to delete messages and to kick members.)

mod common;

use std::collections::HashMap;
use std::env;
use std::sync::Mutex;

use serde::Deserialize;
use serde_json::{Value, json};
use threadcord::rest::Rest;
use threadcord::{Dispatch, Error, EventFilter, Intents, ShardManager};

/// How often an author is warned before being kicked.
const WARNINGS: u32 = 2;

#[derive(Deserialize)]
struct Message {
    id: String,
    channel_id: String,
    guild_id: String,
    content: String,
    author: Author,
}

#[derive(Deserialize)]
struct Author {
    id: String,
    #[serde(default)]
    bot: bool,
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let forbidden: Vec<String> = env::args().skip(1).collect();
    if forbidden.is_empty() {
        eprintln!("usage: moderation WORD...");
        std::process::exit(2);
    }
    let offences: Mutex<HashMap<String, u32>> = Mutex::default();
    let intents = Intents::GUILD_MESSAGES | Intents::MESSAGE_CONTENT;
    let config = common::config(intents)?.events(EventFilter::only(["MESSAGE_CREATE"])?);

    ShardManager::start(config)?.run(4, |handle, event| {
        let Some(Ok(message)) = event.dispatch().map(Dispatch::decode::<Message>) else {
            return;
        };
        let is_forbidden = forbidden.iter().any(|word| message.content.contains(word));
        if message.author.bot || !is_forbidden {
            return;
        }

        let count = {
            let mut offences = offences.lock().expect("no handler panics with it");
            let count = offences.entry(message.author.id.clone()).or_default();
            *count += 1;
            *count
        };
        if let Err(error) = moderate(handle.rest(), &message, count) {
            eprintln!("{}", error.report());
        }
    })?;
    Ok(())
}

fn moderate(rest: &Rest, message: &Message, count: u32) -> Result<(), Error> {
    let Message {
        id,
        channel_id,
        guild_id,
        author,
        ..
    } = message;
    let deleted = rest
        .delete(&format!("/channels/{channel_id}/messages/{id}"))
        .reason("a forbidden word")
        .send();
    match deleted {
        // The author or another bot has deleted it already.
        Err(error) if error.is_unknown_message() => {}
        other => drop(other?),
    }

    if count > WARNINGS {
        rest.delete(&format!("/guilds/{guild_id}/members/{}", author.id))
            .reason(&format!("forbidden words, {count} times"))
            .send()?;
        println!("removed {}", author.id);
        return Ok(());
    }
    warn(rest, &author.id)
}

fn warn(rest: &Rest, user: &str) -> Result<(), Error> {
    let open = rest
        .post("/users/@me/channels")
        .json(&json!({"recipient_id": user}))
        .send()?;
    let channel: Value = open.json()?;
    let id = channel["id"].as_str().unwrap_or_default();
    let warned = rest
        .post(&format!("/channels/{id}/messages"))
        .json(&json!({"content": "please mind your language"}))
        .send();

    match warned {
        Err(error) if error.is_closed_to_messages() => println!("{user} takes no messages"),
        other => {
            other?;
            println!("warned {user}");
        }
    }
    Ok(())
}
