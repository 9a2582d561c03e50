//! A simulated Discord gateway for testing bots. It runs on this machine, over real sockets, and
//! enforces Discord's rules.
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
//! A complete bot is tested the same way. Users write, react, use commands, press buttons and
//! submit modals ([`Interaction`]); the test inspects the requests that the bot made ([`Request`]).
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
//! # What it refuses
//! The simulator refuses what Discord is documented or known to refuse, in the same way as Discord,
//! and records a [violation](Observed::violations). Some libraries in wide use deviate from the
//! documentation. The simulator accepts what they send and records a
//! [warning](Observed::warnings). With [`strict`](Builder::strict) it also closes the gateway
//! connection in that case.
//!
//! One thread serves the gateway (`ws` or `wss`) and its HTTP API on one port. Everything that can
//! go wrong with a connection is a [`Fault`]. A fault can be [injected](Gateway::inject) at once,
//! after a delay, or at random. The program `gateway-sim` provides the same simulator to bots in
//! any language.
//!
//! # Limitations
//! - Voice and the `etf` encoding are not supported.
//! - Only the HTTP routes in [`Gateway::routes`] are built in. There are none for threads, channel
//!   webhooks, or changes to guilds, channels, roles and emoji. A test can add the routes that it
//!   needs with [`Gateway::on`].
//! - The bot has all permissions, unless [`Gateway::deny`] removes some.
//! - Each channel keeps 100 messages. The bot's own messages are kept the longest.
//! - Uploaded files are kept with their request, but cannot be downloaded.
//! - In `GUILD_CREATE`, the lists of voice states, threads, stages, events and sounds are empty.
//! - Discord's limits on embeds, components and command definitions are not enforced.

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
