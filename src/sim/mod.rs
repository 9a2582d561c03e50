//! A simulated gateway to test bots on: Discord's rules, over real sockets, on this machine.
//!
//! ```
//! use std::time::Duration;
//! use threadcord::{Config, Intents, ShardManager, Timing, Token, sim};
//!
//! let gateway = sim::Gateway::builder().guilds(1).time_scale(0.01).start()?;
//! let config = Config::new(Token::new(gateway.token())?, Intents::default() | Intents::MESSAGE_CONTENT)
//!     .rest_url(gateway.rest_url())
//!     .timing(Timing::scaled(0.01));
//!
//! // The bot.
//! let manager = ShardManager::start(config)?;
//! let (handle, events) = (manager.handle().clone(), manager.events());
//! std::thread::spawn(move || {
//!     for event in events.filter(|event| event.name() == "MESSAGE_CREATE") {
//!         let Ok(message) = event.dispatch().unwrap().decode::<serde_json::Value>() else { continue };
//!         if message["content"] == "!ping" {
//!             let path = format!("/channels/{}/messages", message["channel_id"].as_str().unwrap());
//!             handle.rest().call("POST", &path, Some(&serde_json::json!({"content": "pong"}))).unwrap();
//!         }
//!     }
//! });
//!
//! // Its test.
//! let general = gateway.channel_of(gateway.guild_ids()[0]).unwrap();
//! gateway.expect("the shard gets ready", Duration::from_secs(10), |seen| seen.live.len() == 1);
//! gateway.chat(general, "!ping")?;
//! gateway.expect("it answers", Duration::from_secs(10), |seen| seen.posts(general).any(|text| text == "pong"));
//! gateway.assert_lawful();
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! A whole bot is tested the same way: users write, react, use commands, press buttons and submit
//! modals ([`Interaction`]), and what the bot asked for is there to look at ([`Request`]).
//!
//! ```
//! use std::time::Duration;
//! use serde_json::{Value, json};
//! use threadcord::sim::{Gateway, Interaction};
//! # use threadcord::{Config, Event, Handle, Intents, ShardManager, Timing, Token};
//! # fn start_bot(gateway: &Gateway) -> ShardManager {
//! #     let config = Config::new(Token::new(gateway.token()).unwrap(), Intents::all())
//! #         .rest_url(gateway.rest_url())
//! #         .timing(Timing::scaled(0.01));
//! #     let manager = ShardManager::start(config).unwrap();
//! #     let (handle, events) = (manager.handle().clone(), manager.events());
//! #     std::thread::spawn(move || events.for_each(|event| answer(&handle, &event)));
//! #     manager
//! # }
//! # fn answer(handle: &Handle, event: &Event) {
//! #     let Some(dispatch) = event.dispatch() else { return };
//! #     let data: Value = dispatch.decode().unwrap();
//! #     let (rest, text) = (handle.rest(), |field: &str| data[field].as_str().unwrap_or_default().to_owned());
//! #     if dispatch.name() == "MESSAGE_CREATE" && text("content").contains("badword") {
//! #         let message = format!("/channels/{}/messages/{}", text("channel_id"), text("id"));
//! #         rest.put(&format!("{message}/reactions/%E2%9A%A0/@me")).send().unwrap();
//! #         rest.delete(&message).reason("a forbidden word").send().unwrap();
//! #         let open = rest.post("/users/@me/channels").json(&json!({"recipient_id": data["author"]["id"]}));
//! #         let channel: Value = open.send().unwrap().json().unwrap();
//! #         let path = format!("/channels/{}/messages", channel["id"].as_str().unwrap());
//! #         rest.post(&path).json(&json!({"content": "please mind your language"})).send().unwrap();
//! #     }
//! #     let Some(interaction) = threadcord::Interaction::from(dispatch) else { return };
//! #     match interaction.kind() {
//! #         4 => interaction.autocomplete(rest, &[json!({"name": "spam", "value": "spam"})]).unwrap(),
//! #         2 => {
//! #             interaction.defer(rest).unwrap();
//! #             interaction.edit_original(rest, &json!({"content": "warned"})).unwrap();
//! #             let row = json!({"type": 1, "components": [{"type": 2, "style": 1, "label": "Why?", "custom_id": "why"}]});
//! #             interaction.follow_up(rest, &json!({"content": "anything else?", "components": [row]})).unwrap();
//! #         }
//! #         3 => {
//! #             let row = json!({"type": 1, "components": [{"type": 4, "style": 1, "label": "Why?", "custom_id": "text"}]});
//! #             interaction.modal(rest, &json!({"custom_id": "reason", "title": "Why?", "components": [row]})).unwrap();
//! #         }
//! #         _ => {
//! #             let text = &data["data"]["components"][0]["components"][0]["value"];
//! #             interaction.reply(rest, &json!({"content": text, "flags": 64})).unwrap();
//! #         }
//! #     }
//! # }
//!
//! let patience = Duration::from_secs(10);
//! let gateway = Gateway::builder().guilds(1).time_scale(0.01).start()?;
//! let bot = start_bot(&gateway);
//! gateway.expect("the bot is ready", patience, |seen| seen.live.len() == 1);
//! let general = gateway.channel_of(gateway.guild_ids()[0]).unwrap();
//! let expect = |method: &str, path: &str| gateway.expect_request(method, path, patience);
//!
//! // A member writes a forbidden word: the bot reacts, deletes the message and warns.
//! let message = gateway.chat(general, "this badword again")?;
//! let reaction = expect("PUT", "/channels/{}/messages/{}/reactions/{}/@me");
//! assert_eq!(reaction.parameters[2], "⚠");
//! let deleted = expect("DELETE", "/channels/{}/messages/{}");
//! assert_eq!(deleted.parameters[1], message.to_string());
//! assert_eq!(deleted.reason().as_deref(), Some("a forbidden word"));
//! expect("POST", "/users/@me/channels");
//! let warning = expect("POST", "/channels/{}/messages");
//! assert_ne!(warning.parameters[0], general.to_string(), "it is a direct message");
//! assert_eq!(warning.json["content"], "please mind your language");
//!
//! // A moderator types a command, which the bot completes, and uses it.
//! gateway.interact(&Interaction::autocomplete(general, "warn", json!({"for": "sp"}), "for"))?;
//! let completion = expect("POST", "/interactions/{}/{}/callback");
//! assert_eq!(completion.json["data"]["choices"][0]["value"], "spam");
//! gateway.interact(&Interaction::command(general, "warn", json!({"for": "spam"})))?;
//! assert_eq!(expect("POST", "/interactions/{}/{}/callback").json["type"], 5, "it defers");
//! let edited = expect("PATCH", "/webhooks/{}/{}/messages/{}");
//! assert_eq!(edited.json["content"], "warned");
//!
//! // The follow-up has a button, which opens a modal.
//! expect("POST", "/webhooks/{}/{}");
//! gateway.interact(&Interaction::press(general, "why"))?;
//! assert_eq!(expect("POST", "/interactions/{}/{}/callback").json["type"], 9);
//! gateway.interact(&Interaction::submit(general, "reason", json!({"text": "he said it twice"})))?;
//! let thanks = expect("POST", "/interactions/{}/{}/callback");
//! assert_eq!(thanks.json["data"]["content"], "he said it twice");
//!
//! bot.close();
//! gateway.assert_lawful();
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # How it judges
//! It refuses what Discord is documented or known to refuse, as Discord does, and records it as a
//! [violation](Observed::violations). It accepts what widely used libraries send although the
//! documentation says otherwise, and records a [warning](Observed::warnings);
//! [`strict`](Builder::strict) closes gateway connections for it, too.
//!
//! One thread serves the gateway (`ws` or `wss`) and its HTTP interface on one port. A pure core
//! that shares no code with the library decides what it does. Whatever can go wrong with a
//! connection is a [`Fault`], to be [injected](Gateway::inject) at once, after a delay, or at
//! random. The program `gateway-sim` is the same for bots in any language.
//!
//! # What it leaves out
//! - Voice, and the encoding `etf`.
//! - HTTP routes other than [`Gateway::routes`]: threads, webhooks of channels, changes to guilds,
//!   channels, roles and emoji. [`Gateway::on`] answers those that a test needs.
//! - Permissions: the bot has all, unless [`Gateway::deny`] takes some away.
//! - Messages: each channel keeps 100, and those of the bot the longest.
//! - Uploaded files are kept with their request, and cannot be downloaded.
//! - The lists in a `GUILD_CREATE` of voice states, threads, stages, events and sounds are empty.
//! - Limits of Discord's on embeds, components, and the definitions of commands.

mod builder;
mod certificate;
mod encoder;
mod fault;
mod gateway;
mod interaction;
mod observed;
mod payloads;
pub mod permissions;
mod request;
mod server;
mod settings;
mod shared;
mod time;
mod traffic;
mod world;

pub use self::builder::Builder;
pub use self::fault::{
    Answer, Fault, FaultError, RestFault, ResumeUrl, Scope, Target, TlsFault, UpgradeFault,
};
pub use self::gateway::Gateway;
pub use self::interaction::Interaction;
pub use self::observed::{
    Action, Dispatched, EmitError, Observed, Record, Strike, Violation, digest,
};
pub use self::request::{File, Request, Response};
pub use self::settings::{Offer, StartError};
pub use self::traffic::EVENT_NAMES;
#[cfg(test)]
pub(crate) use self::world::{Incoming, Order, Reply, World};
