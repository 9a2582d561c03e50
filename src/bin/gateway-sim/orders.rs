//! Orders on standard input.

use std::io::BufRead;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::Value;
use threadcord::sim::{Gateway, Interaction};

use super::arguments::targeted;

const ORDERS: &str = "autocomplete, chat, command, emit, fault, in, message-command, press, quit, react, \
    select, submit, user-command";

/// Reads orders from standard input until it ends.
pub(crate) fn read_orders(gateway: &Gateway, stop: &AtomicBool) {
    for line in std::io::stdin().lock().lines().map_while(Result::ok) {
        let (word, rest) = split(&line);
        let done = match word {
            "" => Ok(()),
            "emit" => emit(gateway, rest),
            "fault" => targeted(rest).map(|(target, fault)| gateway.inject(target, fault)),
            "quit" => {
                stop.store(true, Ordering::Release);
                Ok(())
            }
            "in" => match split(rest) {
                (channel, rest) if channel.parse::<u64>().is_ok() => {
                    in_channel(gateway, channel.parse().unwrap_or_default(), rest)
                }
                _ => Err("allowed: in CHANNEL ORDER".to_owned()),
            },
            _ => first_channel(gateway).and_then(|channel| in_channel(gateway, channel, &line)),
        };
        if let Err(error) = done {
            eprintln!("error: {error}");
        }
    }
}

/// Splits a text into its first word and the rest.
fn split(text: &str) -> (&str, &str) {
    let text = text.trim();
    let (word, rest) = text.split_once(' ').unwrap_or((text, ""));
    (word, rest.trim())
}

/// Carries out an order that is an action of a user in a channel.
fn in_channel(gateway: &Gateway, channel: u64, order: &str) -> Result<(), String> {
    let (word, rest) = split(order);
    let (first, second) = split(rest);
    let interaction = match word {
        "chat" => return chat(gateway, channel, rest),
        "react" => {
            let reacted = gateway.react(channel, number(first)?, second);
            return reacted.map_err(|error| error.to_string());
        }
        "command" => Interaction::command(channel, first, object(second)?),
        "autocomplete" => {
            let (option, options) = split(second);
            Interaction::autocomplete(channel, first, object(options)?, option)
        }
        "user-command" => Interaction::user_command(channel, second, number(first)?),
        "message-command" => Interaction::message_command(channel, second, number(first)?),
        "press" => Interaction::press(channel, rest),
        "select" => Interaction::select(channel, first, second.split_whitespace()),
        "submit" => Interaction::submit(channel, first, object(second)?),
        _ => return Err(format!("{word:?} is not an order; allowed: {ORDERS}")),
    };

    let used = gateway.interact(&interaction);
    used.map(drop).map_err(|error| error.to_string())
}

fn chat(gateway: &Gateway, channel: u64, text: &str) -> Result<(), String> {
    let written = gateway.chat(channel, text);
    written.map(drop).map_err(|error| error.to_string())
}

fn emit(gateway: &Gateway, rest: &str) -> Result<(), String> {
    let (name, data) = rest.split_once(' ').ok_or("allowed: emit NAME JSON")?;
    let mut data: Value = serde_json::from_str(data)
        .map_err(|error| format!("the data of {name} is not JSON: {error}"))?;
    let guild = first_guild(gateway)?;
    if let Some(data) = data.as_object_mut() {
        data.entry("guild_id")
            .or_insert_with(|| guild.to_string().into());
    }
    let heard = gateway
        .emit(Some(guild), name, &data)
        .map_err(|error| error.to_string())?;
    println!("{heard} sessions receive {name}");
    Ok(())
}

fn first_guild(gateway: &Gateway) -> Result<u64, String> {
    let first = gateway.guild_ids().first().copied();
    first.ok_or_else(|| "there is no guild: set --guilds to 1 or more".into())
}

fn first_channel(gateway: &Gateway) -> Result<u64, String> {
    let guild = first_guild(gateway)?;
    Ok(gateway.channel_of(guild).unwrap_or_default())
}

fn number(text: &str) -> Result<u64, String> {
    text.parse().map_err(|_| format!("{text:?} is not an id"))
}

fn object(text: &str) -> Result<Value, String> {
    if text.is_empty() {
        return Ok(Value::Null);
    }
    serde_json::from_str(text).map_err(|error| format!("{text:?} is not JSON: {error}"))
}
