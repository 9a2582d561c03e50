//! All kinds of interactions: a command with autocomplete, an answer that takes longer than 3 s, a
//! button, a modal.

mod common;

use std::thread;
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};
use threadcord::rest::Rest;
use threadcord::{DecodeError, Dispatch, Error, Intents, Interaction, ShardManager};

const FRUITS: [&str; 5] = ["apple", "apricot", "banana", "cherry", "plum"];

/// What a user has typed or chosen.
#[derive(Deserialize)]
struct Chosen {
    data: Data,
}

#[derive(Deserialize)]
struct Data {
    #[serde(default)]
    options: Vec<Choice>,
    #[serde(default)]
    components: Vec<Row>,
}

#[derive(Deserialize)]
struct Row {
    components: Vec<Choice>,
}

#[derive(Deserialize)]
struct Choice {
    value: String,
}

impl Chosen {
    fn read(dispatch: &Dispatch) -> Result<String, DecodeError> {
        let Self { data } = dispatch.decode()?;
        let fields = data.components.into_iter().flat_map(|row| row.components);
        let choice = data.options.into_iter().chain(fields).next();
        Ok(choice.map(|choice| choice.value).unwrap_or_default())
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let manager = ShardManager::start(common::config(Intents::empty())?)?;
    register(manager.handle().rest())?;
    manager.run(4, |handle, event| {
        let Some(dispatch) = event.dispatch() else {
            return;
        };
        let Some(interaction) = Interaction::from(dispatch) else {
            return;
        };
        let answered = match Chosen::read(dispatch) {
            Ok(chosen) => answer(handle.rest(), interaction, &chosen),
            Err(error) => return eprintln!("{error}"),
        };
        if let Err(error) = answered {
            eprintln!("{}", error.report());
        }
    })?;
    Ok(())
}

fn register(rest: &Rest) -> Result<(), Error> {
    let option = json!({"name": "fruit", "description": "Which one", "type": 3, "required": true, "autocomplete": true});
    let commands =
        json!([{"name": "peel", "description": "Peels a fruit", "type": 1, "options": [option]}]);
    let application = rest.current_application()?;
    let id = application["id"].as_str().unwrap_or_default();
    rest.put(&format!("/applications/{id}/commands"))
        .json(&commands)
        .send()?;
    println!("registered /peel");
    Ok(())
}

fn answer(rest: &Rest, interaction: Interaction, chosen: &str) -> Result<(), Error> {
    match (interaction.kind(), interaction.name()) {
        (4, Some("peel")) => {
            let matching = FRUITS.iter().filter(|fruit| fruit.starts_with(chosen));
            let choices: Vec<Value> = matching
                .map(|fruit| json!({"name": fruit, "value": fruit}))
                .collect();
            interaction.autocomplete(rest, &choices)
        }

        (2, Some("peel")) => {
            interaction.defer(rest)?;
            // The events behind this one do not wait for it.
            let (rest, fruit) = (rest.clone(), chosen.to_owned());
            thread::spawn(move || {
                if let Err(error) = peel(&rest, &interaction, &fruit) {
                    eprintln!("{}", error.report());
                }
            });
            Ok(())
        }

        (3, Some("rate")) => {
            let field =
                json!({"type": 4, "custom_id": "opinion", "label": "How was it?", "style": 1});
            let row = json!({"type": 1, "components": [field]});
            let modal = json!({"custom_id": "opinion", "title": "Rate it", "components": [row]});
            interaction.modal(rest, &modal)
        }

        (5, Some("opinion")) => {
            // Only this user sees it.
            let thanks = json!({"content": format!("noted: {chosen}"), "flags": 64});
            interaction.reply(rest, &thanks)
        }

        _ => Ok(()),
    }
}

/// Work that takes longer than the 3 s that Discord allows for an answer.
fn peel(rest: &Rest, interaction: &Interaction, fruit: &str) -> Result<(), Error> {
    thread::sleep(Duration::from_secs(1));
    interaction.edit_original(rest, &json!({"content": format!("peeled the {fruit}")}))?;
    let button = json!({"type": 2, "style": 1, "label": "Rate it", "custom_id": "rate"});
    let row = json!({"type": 1, "components": [button]});
    let question = json!({"content": "how was it?", "components": [row]});
    interaction.follow_up(rest, &question)?;
    Ok(())
}
