//! Registers the command `/hello`, and answers it over REST.

mod common;

use serde::Deserialize;
use serde_json::json;
use threadcord::{Error, EventName, Handle, Intents, ShardManager};

const APPLICATION_COMMAND: u8 = 2;
const CHANNEL_MESSAGE: u8 = 4;

#[derive(Deserialize)]
struct Interaction {
    id: String,
    token: String,
    #[serde(rename = "type")]
    kind: u8,
    data: Option<Data>,
}

#[derive(Deserialize)]
struct Data {
    name: String,
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    // Interactions come without any intent.
    let manager = ShardManager::start(common::config(Intents::empty())?)?;
    register(manager.handle())?;
    manager.run(4, |handle, event| {
        let Some(dispatch) = event
            .dispatch()
            .filter(|event| *event.name() == EventName::InteractionCreate)
        else {
            return;
        };
        // Answers are due within 3 s: a handler of a real bot would hand long work to another
        // thread.
        let answered = dispatch
            .decode()
            .map_err(Into::into)
            .and_then(|interaction| answer(handle, &interaction));
        if let Err(error) = answered {
            eprintln!("{error}");
        }
    })?;
    Ok(())
}

fn register(handle: &Handle) -> Result<(), Error> {
    let application = handle.rest().current_application()?;
    let path = format!(
        "/applications/{}/commands",
        application["id"].as_str().unwrap_or_default()
    );
    let commands = json!([{"name": "hello", "description": "Says hello", "type": 1}]);
    handle.rest().call("PUT", &path, Some(&commands))?;
    println!("registered /hello");
    Ok(())
}

fn answer(handle: &Handle, interaction: &Interaction) -> Result<(), Box<dyn std::error::Error>> {
    if interaction.kind != APPLICATION_COMMAND
        || interaction
            .data
            .as_ref()
            .is_none_or(|data| data.name != "hello")
    {
        return Ok(());
    }
    let path = format!(
        "/interactions/{}/{}/callback",
        interaction.id, interaction.token
    );
    let answer = json!({"type": CHANNEL_MESSAGE, "data": {"content": "hello to you"}});
    handle.rest().call("POST", &path, Some(&answer))?;
    Ok(())
}
