//! Interactions of users, and the bot's answers.
//!
//! Source: [Discord, Receiving and responding to
//! interactions](https://docs.discord.com/developers/interactions/receiving-and-responding).

use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};

use super::super::super::interaction::{self, Deed};
use super::super::super::observed::EmitError;
use super::super::super::permissions::ALL;
use super::super::super::request::Response;
use super::super::{World, payloads};
use super::Call;
use super::answers::{
    ALREADY_ANSWERED, Outcome, Refusal, UNKNOWN_INTERACTION, UNKNOWN_MESSAGE, UNKNOWN_WEBHOOK,
    WEBHOOK_EXPIRED, invalid_form, required,
};
use super::channels::Place;
use super::messages::{Draft, EPHEMERAL, LOADING, Message, SETTABLE};

/// The times in which an interaction may be answered, and an answer followed up. They are not
/// scaled, because it is the bot's own code that needs this time.
const CALLBACK: Duration = Duration::from_secs(3);
const FOLLOW_UP: Duration = Duration::from_secs(15 * 60);

/// The maximum number of choices of an autocompletion.
const CHOICES: usize = 25;

/// Types of interactions.
const COMMAND: u64 = 2;
const COMPONENT: u64 = 3;
const AUTOCOMPLETE: u64 = 4;
const SUBMIT: u64 = 5;

/// An interaction that the bot may answer, or has answered.
pub(super) struct Interaction {
    token: String,
    kind: u64,
    /// The type of the command, if the interaction is one.
    command_kind: u64,
    channel: u64,
    user: u64,
    since: Instant,
    /// The message whose component was used.
    source: Option<u64>,
    is_answered: bool,
    /// The message that the answer created or changed.
    original: Option<u64>,
    /// The modal that the answer opened.
    modal: Option<Value>,
}

/// The content of a new interaction.
struct About {
    kind: u64,
    command_kind: u64,
    data: Value,
    source: Option<u64>,
}

impl World {
    /// Lets a user interact with the bot. Returns the id of the interaction.
    pub(in crate::sim) fn interact(
        &mut self,
        now: Instant,
        interaction: &interaction::Interaction,
    ) -> Result<u64, EmitError> {
        let channel = interaction.channel;
        let place = self
            .place(channel)
            .ok_or(EmitError::UnknownChannel(channel))?;
        let user = interaction.user.unwrap_or(match place {
            Place::Guild(guild) => guild.member(0),
            Place::Direct(with) => with,
        });
        let is_there = match place {
            Place::Guild(guild) => self.is_member(guild, user) && user != payloads::BOT,
            Place::Direct(with) => user == with,
        };
        if !is_there {
            return Err(EmitError::UnknownUser(user));
        }
        let about = self.about(now, channel, place, &interaction.deed)?;

        let id = self.snowflake(now);
        let token = format!("{:032x}", self.rng.u128(..));
        let mut data = payloads::interaction(id, &token, channel, place.guild());
        data["type"] = about.kind.into();
        data["data"] = about.data;
        payloads::extend(&mut data, self.used_by(place, user));
        if let Some(source) = about.source
            && let Ok(message) = self.desk.message(channel, source)
        {
            data["message"] = message.shown();
        }

        let pending = Interaction {
            token,
            kind: about.kind,
            command_kind: about.command_kind,
            channel,
            user,
            since: now,
            source: about.source,
            is_answered: false,
            original: None,
            modal: None,
        };
        let interactions = &mut self.desk.interactions;
        interactions.retain(|_, interaction| now < interaction.since + FOLLOW_UP);
        interactions.insert(id, pending);
        self.announce(place, "INTERACTION_CREATE", &data);
        Ok(id)
    }

    /// The fields for the user of an interaction, and the bot's permissions in the channel.
    fn used_by(&self, place: Place, user: u64) -> Value {
        let Place::Guild(guild) = place else {
            return json!({"user": payloads::user(user, false)});
        };
        let denied = self.desk.denied.get(&guild.id).copied();
        let permissions = ALL & !denied.unwrap_or_default();
        let mut member = self.member(guild, user).unwrap_or_default();
        member["permissions"] = ALL.to_string().into();
        json!({"app_permissions": permissions.to_string(), "member": member})
    }

    /// Builds the content of an interaction from what the user does.
    fn about(
        &mut self,
        now: Instant,
        channel: u64,
        place: Place,
        deed: &Deed,
    ) -> Result<About, EmitError> {
        let (kind, command_kind, data, source) = match deed {
            Deed::Command {
                name,
                options,
                focused,
            } => {
                let focused = focused.as_deref();
                let data = self.command_data(now, place, name, options, focused)?;
                let kind = focused.map_or(COMMAND, |_| AUTOCOMPLETE);
                (kind, 1, data, None)
            }
            Deed::UserCommand { name, user } => {
                let mut data = self.menu_data(place, name, 2, *user);
                let mut resolved = Map::new();
                self.resolve_user(place, *user, &mut resolved)?;
                data["resolved"] = resolved.into();
                (COMMAND, 2, data, None)
            }
            Deed::MessageCommand { name, message } => {
                let mut data = self.menu_data(place, name, 3, *message);
                let found = self.desk.message(channel, *message);
                let found = found.map_err(|_| EmitError::UnknownMessage(*message))?;
                data["resolved"] = json!({"messages": {message.to_string(): found.shown()}});
                (COMMAND, 3, data, None)
            }
            Deed::Component { custom_id, values } => {
                let (message, component) = self.component(channel, custom_id)?;
                let data = self.component_data(place, &component, values)?;
                (COMPONENT, 0, data, Some(message))
            }
            Deed::Modal { custom_id, fields } => {
                let (source, modal) = self.modal(channel, custom_id)?;
                let components = filled(&modal["components"], fields);
                let data = json!({"custom_id": custom_id, "components": components});
                (SUBMIT, 0, data, source)
            }
        };
        Ok(About {
            kind,
            command_kind,
            data,
            source,
        })
    }

    /// The latest component with this id, and its message.
    fn component(&self, channel: u64, custom_id: &str) -> Result<(u64, Value), EmitError> {
        let mut messages = self.desk.messages(channel).rev();
        let found = messages.find_map(|message| {
            let component = find(&message.json["components"], custom_id)?;
            Some((message.id(), component.clone()))
        });
        let found = found.filter(|(_, component)| component["disabled"] != true);
        found.ok_or_else(|| EmitError::UnknownComponent(custom_id.to_owned()))
    }

    fn component_data(
        &self,
        place: Place,
        component: &Value,
        values: &[String],
    ) -> Result<Value, EmitError> {
        let mut data = json!({
            "id": component.get("id").unwrap_or(&json!(1)),
            "custom_id": component["custom_id"],
            "component_type": component["type"],
        });
        let kind = component["type"].as_u64().unwrap_or_default();
        if kind == 2 {
            return Ok(data);
        }

        let options = component["options"].as_array().into_iter().flatten();
        let known: Vec<_> = options.map(|option| &option["value"]).collect();
        let is_known = |value: &&String| known.iter().any(|known| **known == **value);
        if kind == 3
            && let Some(value) = values.iter().find(|value| !is_known(value))
        {
            let component = component["custom_id"].as_str().unwrap_or_default();
            return Err(EmitError::UnknownOption {
                of: component.to_owned(),
                given: value.clone(),
            });
        }
        data["values"] = values.into();
        let mut resolved = Map::new();
        for value in values {
            // Select menus of users, roles, mentionables and channels become the option types of
            // the same objects.
            let kind = match kind {
                5 => 6,
                6 => 8,
                7 => 9,
                8 => 7,
                _ => continue,
            };
            self.resolve(place, kind, value, &mut resolved)?;
        }
        if !resolved.is_empty() {
            data["resolved"] = resolved.into();
        }
        Ok(data)
    }

    /// The latest modal with this id, and the message that it was opened from.
    fn modal(&self, channel: u64, custom_id: &str) -> Result<(Option<u64>, Value), EmitError> {
        let interactions = self.desk.interactions.iter();
        let open = interactions.filter_map(|(id, interaction)| {
            let modal = interaction.modal.as_ref()?;
            let is_wanted = interaction.channel == channel && modal["custom_id"] == custom_id;
            is_wanted.then_some((id, interaction.source, modal))
        });
        let (_, source, modal) = open
            .max_by_key(|(id, ..)| **id)
            .ok_or_else(|| EmitError::UnknownComponent(custom_id.to_owned()))?;
        Ok((source, modal.clone()))
    }

    pub(super) fn callback(&mut self, call: &Call<'_>) -> Outcome {
        let id = call.id(0);
        let token = &call.request.parameters[1];
        let interaction = self.desk.interactions.get(&id);
        let interaction = interaction.filter(|interaction| {
            interaction.token == *token && call.now < interaction.since + CALLBACK
        });
        let interaction = interaction.ok_or(UNKNOWN_INTERACTION)?;
        if interaction.is_answered {
            return Err(ALREADY_ANSWERED);
        }
        let body = call.json();
        let kind = body["type"].as_u64().unwrap_or_default();
        check_kind(interaction, kind)?;

        let (interaction_kind, source) = (interaction.kind, interaction.source);
        let (mut original, mut modal) = (source, None);
        match kind {
            4 | 5 => {
                let message = self.answer_with_message(call, id, kind == 5)?;
                original = Some(super::messages::id(&message["id"]));
            }
            7 => {
                let source = (
                    self.desk.interactions[&id].channel,
                    source.unwrap_or_default(),
                );
                self.amend(call, source, &body["data"], &call.request.files)?;
            }
            8 => check_choices(&body["data"])?,
            9 => {
                check_modal(&body["data"])?;
                modal = Some(body["data"].clone());
            }
            _ => {}
        }

        if let Some(interaction) = self.desk.interactions.get_mut(&id) {
            interaction.is_answered = true;
            interaction.original = original;
            interaction.modal = modal;
        }
        if !call.request.flag("with_response") {
            return Ok(Response::no_content());
        }
        self.describe_answer(id, interaction_kind, kind)
    }

    /// Answers an interaction with a message, or defers the message.
    fn answer_with_message(
        &mut self,
        call: &Call<'_>,
        id: u64,
        is_deferred: bool,
    ) -> Result<Value, Refusal> {
        let body = &call.json()["data"];
        let interaction = &self.desk.interactions[&id];
        let channel = interaction.channel;
        let mut extra = self.answer_fields(id);
        let flags = body["flags"].as_u64().unwrap_or_default();
        let flags = if is_deferred {
            flags & EPHEMERAL | LOADING
        } else {
            flags & (SETTABLE | EPHEMERAL)
        };

        extra["flags"] = flags.into();
        let draft = Draft {
            channel,
            body,
            files: &call.request.files,
            extra,
        };
        self.write(call, draft)
    }

    /// The additional fields of a message that answers an interaction.
    fn answer_fields(&self, id: u64) -> Value {
        let interaction = &self.desk.interactions[&id];
        let mut fields = json!({
            "webhook_id": payloads::BOT.to_string(),
            "application_id": payloads::BOT.to_string(),
            "interaction_metadata": {
                "id": id.to_string(),
                "type": interaction.kind,
                "user": payloads::user(interaction.user, false),
                "authorizing_integration_owners": {},
            },
        });

        match interaction.command_kind {
            1 => fields["type"] = 20.into(),
            2 | 3 => fields["type"] = 23.into(),
            _ => {}
        }
        fields
    }

    /// The response to a callback that requests one.
    fn describe_answer(&mut self, id: u64, interaction_kind: u64, kind: u64) -> Outcome {
        let interaction = &self.desk.interactions[&id];
        let (channel, original) = (interaction.channel, interaction.original);
        let mut answer = json!({
            "interaction": {"id": id.to_string(), "type": interaction_kind},
            "resource": {"type": kind},
        });

        if let Some(original) = original.filter(|_| matches!(kind, 4 | 5 | 7)) {
            let message = self.desk.message(channel, original)?;
            let fields = json!({
                "response_message_id": original.to_string(),
                "response_message_loading": message.is_loading(),
                "response_message_ephemeral": message.is_ephemeral(),
            });
            answer["resource"]["message"] = message.shown();
            payloads::extend(&mut answer["interaction"], fields);
        }
        Ok(Response::json(200, answer))
    }

    /// The interaction with the token in the path, if it may still be followed up.
    fn followed(&self, call: &Call<'_>) -> Result<u64, Refusal> {
        let token = &call.request.parameters[1];
        let mut interactions = self.desk.interactions.iter();
        let found = interactions.find(|(_, interaction)| interaction.token == *token);
        let (id, interaction) = found.ok_or(UNKNOWN_WEBHOOK)?;
        if call.now >= interaction.since + FOLLOW_UP {
            return Err(WEBHOOK_EXPIRED);
        }
        if !interaction.is_answered {
            return Err(UNKNOWN_WEBHOOK);
        }
        Ok(*id)
    }

    pub(super) fn follow_up(&mut self, call: &Call<'_>) -> Outcome {
        let id = self.followed(call)?;
        let interaction = &self.desk.interactions[&id];
        let channel = interaction.channel;
        let (body, files) = (call.json(), &call.request.files);

        // The first follow-up fills a deferred answer.
        if let Some(original) = interaction.original
            && let Ok(message) = self.desk.message(channel, original)
            && message.is_loading()
        {
            let message = self.amend(call, (channel, original), body, files)?;
            return Ok(Response::json(200, message));
        }
        let mut extra = self.answer_fields(id);
        extra["type"] = 0.into();
        let flags = body["flags"].as_u64().unwrap_or_default();
        extra["flags"] = (flags & (SETTABLE | EPHEMERAL)).into();
        let draft = Draft {
            channel,
            body,
            files,
            extra,
        };

        let message = self.write(call, draft)?;
        Ok(Response::json(200, message))
    }

    /// The channel and the id of the message in a webhook's path.
    fn webhook_message(&self, call: &Call<'_>) -> Result<(u64, u64), Refusal> {
        let id = self.followed(call)?;
        let interaction = &self.desk.interactions[&id];
        let message = match call.request.parameters[2].as_str() {
            "@original" => interaction.original,
            _ => Some(call.id(2)),
        };
        let message = message.ok_or(UNKNOWN_MESSAGE)?;
        let channel = interaction.channel;
        let is_own = |kept: &Message| !kept.json["webhook_id"].is_null();
        let mut messages = self
            .desk
            .messages(channel)
            .filter(|kept| kept.id() == message);
        let is_its_own = interaction.original == Some(message) || messages.any(is_own);

        if !is_its_own {
            return Err(UNKNOWN_MESSAGE);
        }
        Ok((channel, message))
    }

    pub(super) fn get_webhook_message(&mut self, call: &Call<'_>) -> Outcome {
        let (channel, id) = self.webhook_message(call)?;
        let message = self.desk.message(channel, id)?;
        Ok(Response::json(200, message.shown()))
    }

    pub(super) fn edit_webhook_message(&mut self, call: &Call<'_>) -> Outcome {
        let place = self.webhook_message(call)?;
        let message = self.amend(call, place, call.json(), &call.request.files)?;
        Ok(Response::json(200, message))
    }

    pub(super) fn delete_webhook_message(&mut self, call: &Call<'_>) -> Outcome {
        let (channel, id) = self.webhook_message(call)?;
        self.desk.message(channel, id)?;
        self.drop_message(channel, id);
        Ok(Response::no_content())
    }
}

/// Checks that an interaction may be answered with a callback of this type.
fn check_kind(interaction: &Interaction, kind: u64) -> Result<(), Refusal> {
    let has_source = interaction.source.is_some();
    let allowed = match interaction.kind {
        COMMAND => matches!(kind, 4 | 5 | 9 | 10 | 12),
        COMPONENT => matches!(kind, 4..=7 | 9 | 10 | 12),
        AUTOCOMPLETE => kind == 8,
        _ => matches!(kind, 4 | 5 | 10 | 12) || has_source && matches!(kind, 6 | 7),
    };
    allowed.then_some(()).ok_or_else(|| {
        let message = "Value must be one that answers this type of interaction.";
        invalid_form("type", "BASE_TYPE_CHOICES", message)
    })
}

fn check_choices(data: &Value) -> Result<(), Refusal> {
    let choices = data["choices"]
        .as_array()
        .ok_or_else(|| required("choices"))?;
    if choices.len() > CHOICES {
        let message = "Must be 25 or fewer in length.";
        return Err(invalid_form("choices", "BASE_TYPE_BAD_LENGTH", message));
    }
    Ok(())
}

fn check_modal(data: &Value) -> Result<(), Refusal> {
    for field in ["custom_id", "title"] {
        if !data[field].is_string() {
            return Err(required(field));
        }
    }
    let components = data["components"].as_array().map_or(0, Vec::len);
    if !(1..=5).contains(&components) {
        let message = "Must be between 1 and 5 in length.";
        return Err(invalid_form("components", "BASE_TYPE_BAD_LENGTH", message));
    }
    Ok(())
}

/// Finds the component with this id, also in nested components.
fn find<'a>(components: &'a Value, custom_id: &str) -> Option<&'a Value> {
    match components {
        Value::Array(list) => list.iter().find_map(|component| find(component, custom_id)),
        Value::Object(component) if components["custom_id"] == custom_id => {
            component.contains_key("type").then_some(components)
        }
        Value::Object(component) => {
            let nested = ["components", "component", "accessory"];
            nested
                .iter()
                .find_map(|field| find(component.get(*field)?, custom_id))
        }
        _ => None,
    }
}

/// The components of a modal with the entered values, as Discord sends them.
fn filled(components: &Value, fields: &Value) -> Value {
    match components {
        Value::Array(list) => list
            .iter()
            .map(|component| filled(component, fields))
            .collect(),
        Value::Object(component) => {
            let mut answer = json!({
                "id": component.get("id").unwrap_or(&json!(1)),
                "type": component.get("type"),
            });
            for nested in ["components", "component"] {
                if let Some(nested_in) = component.get(nested) {
                    answer[nested] = filled(nested_in, fields);
                }
            }
            if let Some(custom_id) = component.get("custom_id").and_then(Value::as_str) {
                answer["custom_id"] = custom_id.into();
                let entered = fields.get(custom_id).cloned();
                match entered {
                    Some(values @ Value::Array(_)) => answer["values"] = values,
                    entered => answer["value"] = entered.unwrap_or_else(|| "".into()),
                }
            }
            answer
        }
        other => other.clone(),
    }
}
