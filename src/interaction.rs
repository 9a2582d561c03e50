//! Answers to interactions: commands, buttons, menus, modals.

use std::fmt;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::clock;
use crate::error::{Error, StatusError};
use crate::event::Dispatch;
use crate::protocol::EventName;
use crate::rest::{Request, Rest, not_json};

/// Codes with which Discord refuses an answer because the interaction has expired or has been
/// answered: unknown webhook, unknown interaction, already acknowledged, invalid webhook token.
const NOT_OPEN: [u64; 4] = [10015, 10062, 40060, 50027];

/// An interaction of a user with the bot, which the bot must answer.
///
/// Discord requires exactly one initial response within 3 s: either [`reply`](Self::reply), or
/// [`defer`](Self::defer) and later the real answer with [`edit_original`](Self::edit_original).
/// More messages can [follow up](Self::follow_up) for 15 minutes. The 3 s include the time that the
/// interaction waits behind other events, and the time that the bot needs before its first answer;
/// see [the guide on answering](crate::guide::answering).
///
/// The user's input is in the event: decode it into your own type.
///
/// ```no_run
/// # fn f(handle: &threadcord::Handle, event: &threadcord::Event) -> Result<(), threadcord::Error> {
/// use serde_json::json;
/// use threadcord::Interaction;
///
/// if let Some(interaction) = event.dispatch().and_then(Interaction::from) {
///     interaction.reply(handle.rest(), &json!({"content": "hello to you"}))?;
/// }
/// # Ok(())
/// # }
/// ```
///
/// Source: [Discord, Receiving and responding to
/// interactions](https://docs.discord.com/developers/interactions/receiving-and-responding).
#[derive(Clone)]
pub struct Interaction {
    id: String,
    application_id: String,
    token: String,
    kind: u8,
    name: Option<String>,
    since: Instant,
}

impl Interaction {
    /// Decodes an `INTERACTION_CREATE`. Returns `None` for any other event, and for one that cannot
    /// be decoded, which is logged.
    pub fn from(dispatch: &Dispatch) -> Option<Self> {
        #[derive(Deserialize)]
        struct Data {
            name: Option<String>,
            custom_id: Option<String>,
        }
        #[derive(Deserialize)]
        struct Event {
            id: String,
            application_id: String,
            token: String,
            #[serde(rename = "type")]
            kind: u8,
            data: Option<Data>,
        }
        if *dispatch.name() != EventName::InteractionCreate {
            return None;
        }

        let event = dispatch.decode::<Event>().inspect_err(|error| {
            log::error!("failed to decode an interaction: {error}");
        });
        let Event {
            id,
            application_id,
            token,
            kind,
            data,
        } = event.ok()?;
        Some(Self {
            id,
            application_id,
            token,
            kind,
            name: data.and_then(|data| data.name.or(data.custom_id)),
            since: clock::now(),
        })
    }

    /// The id of the interaction.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The type of the interaction: 2 is a command, 3 a component, 4 an autocomplete, 5 a modal.
    ///
    /// Source: [Discord, Interaction
    /// type](https://docs.discord.com/developers/interactions/receiving-and-responding#interaction-object-interaction-type).
    pub fn kind(&self) -> u8 {
        self.kind
    }

    /// The name of the command, or the `custom_id` of the component or modal.
    pub fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    /// Answers with a message, which has the fields of a webhook message.
    pub fn reply(&self, rest: &Rest, message: &(impl Serialize + ?Sized)) -> Result<(), Error> {
        self.respond(rest, 4, message)
    }

    /// Tells Discord that the message will come later. The user sees that the bot is thinking, for
    /// up to 15 minutes. Send the message with [`edit_original`](Self::edit_original).
    pub fn defer(&self, rest: &Rest) -> Result<(), Error> {
        self.respond(rest, 5, &json!({}))
    }

    /// Answers a component by changing its message.
    pub fn update(&self, rest: &Rest, message: &(impl Serialize + ?Sized)) -> Result<(), Error> {
        self.respond(rest, 7, message)
    }

    /// Answers an autocomplete with up to 25 choices, each with a `name` and a `value`.
    pub fn autocomplete(
        &self,
        rest: &Rest,
        choices: &(impl Serialize + ?Sized),
    ) -> Result<(), Error> {
        self.respond(rest, 8, &json!({"choices": value_of(choices)?}))
    }

    /// Answers with a modal, which has a `custom_id`, a `title` and `components`.
    pub fn modal(&self, rest: &Rest, modal: &(impl Serialize + ?Sized)) -> Result<(), Error> {
        self.respond(rest, 9, modal)
    }

    /// Answers with a callback of any type and its data, for types without a separate method.
    ///
    /// # Errors
    /// [`Error::Interaction`] if the interaction has expired or has been answered, and the errors
    /// of [`Request::send`](crate::rest::Request::send).
    ///
    /// Source: [Discord, Interaction callback
    /// type](https://docs.discord.com/developers/interactions/receiving-and-responding#interaction-response-object-interaction-callback-type).
    pub fn respond(
        &self,
        rest: &Rest,
        kind: u8,
        data: &(impl Serialize + ?Sized),
    ) -> Result<(), Error> {
        let body = json!({"type": kind, "data": value_of(data)?});
        self.send(rest.post(&self.callback_path()).json(&body))
            .map(drop)
    }

    /// Changes the first answer, within 15 minutes. After [`defer`](Self::defer) this sends the
    /// message. Returns the message.
    pub fn edit_original(
        &self,
        rest: &Rest,
        message: &(impl Serialize + ?Sized),
    ) -> Result<Value, Error> {
        self.send(rest.patch(&self.original_path()).json(message))
    }

    /// Deletes the first answer, within 15 minutes.
    pub fn delete_original(&self, rest: &Rest) -> Result<(), Error> {
        self.send(rest.delete(&self.original_path())).map(drop)
    }

    /// Sends another message, after the first answer and within 15 minutes. Returns the message.
    pub fn follow_up(
        &self,
        rest: &Rest,
        message: &(impl Serialize + ?Sized),
    ) -> Result<Value, Error> {
        let request = rest.post(&self.follow_up_path()).query("wait", true);
        self.send(request.json(message))
    }

    /// The path to send the first answer to, for a [request](Rest::post) with files. Like the other
    /// paths, it contains the interaction's secret token.
    pub fn callback_path(&self) -> String {
        format!("/interactions/{}/{}/callback", self.id, self.token)
    }

    /// The path of the first answer, for a [request](Rest::patch) with files.
    pub fn original_path(&self) -> String {
        format!("{}/messages/@original", self.follow_up_path())
    }

    /// The path to send other messages to, for a [request](Rest::post) with files.
    pub fn follow_up_path(&self) -> String {
        format!("/webhooks/{}/{}", self.application_id, self.token)
    }

    fn send(&self, request: Request<'_>) -> Result<Value, Error> {
        let is_not_open =
            |error: &StatusError| error.code.is_some_and(|code| NOT_OPEN.contains(&code));
        match request.send() {
            Ok(answer) => answer.json(),
            Err(Error::Status(source)) if is_not_open(&source) => Err(Error::Interaction {
                age: self.age(),
                source,
            }),
            Err(error) => Err(error),
        }
    }

    fn age(&self) -> Duration {
        clock::now().saturating_duration_since(self.since)
    }
}

fn value_of(data: &(impl Serialize + ?Sized)) -> Result<Value, Error> {
    serde_json::to_value(data).map_err(|error| not_json(&error))
}

/// Omits the token, because anyone who has it can answer.
impl fmt::Debug for Interaction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Interaction")
            .field("id", &self.id)
            .field("kind", &self.kind)
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}
