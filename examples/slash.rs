//! Registers the command `/hello`, and answers it.

mod common;

use serde_json::json;
use threadcord::{Error, Handle, Intents, Interaction, ShardManager};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    // Interactions are delivered without any intent.
    let manager = ShardManager::start(common::config(Intents::empty())?)?;
    register(manager.handle())?;
    manager.run(4, |handle, event| {
        let Some(interaction) = event.dispatch().and_then(Interaction::from) else {
            return;
        };
        if interaction.name() != Some("hello") {
            return;
        }
        let message = json!({"content": "hello to you"});
        if let Err(error) = interaction.reply(handle.rest(), &message) {
            eprintln!("{}", error.report());
        }
    })?;
    Ok(())
}

fn register(handle: &Handle) -> Result<(), Error> {
    let rest = handle.rest();
    let application = rest.current_application()?;
    let id = application["id"].as_str().unwrap_or_default();
    let commands = json!([{"name": "hello", "description": "Says hello", "type": 1}]);
    rest.put(&format!("/applications/{id}/commands"))
        .json(&commands)
        .send()?;
    println!("registered /hello");
    Ok(())
}
