//! Messages that the bot and users write, edit and delete.

use std::time::Instant;

use serde_json::{Value, json};

use super::super::super::permissions::{ATTACH_FILES, MANAGE_MESSAGES};
use super::super::super::request::{File, Response};
use super::super::{Action, World, commands, payloads};
use super::answers::{
    EMPTY_MESSAGE, MISSING_PERMISSIONS, NOT_IN_DIRECT_CHANNELS, NOT_THE_AUTHOR, Outcome, Refusal,
    UNKNOWN_MESSAGE, WRONG_COUNT, invalid_form,
};
use super::channels::Place;
use super::reactions::Reaction;
use super::{Call, Desk};

/// The number of messages that each channel keeps.
const MESSAGES: usize = 100;
const MAX_TEXT: usize = 2000;

/// Flags of messages.
pub(super) const EPHEMERAL: u64 = 1 << 6;
pub(super) const LOADING: u64 = 1 << 7;
/// The flags that the bot may set: no embeds, no notification, components version 2.
pub(super) const SETTABLE: u64 = 1 << 2 | 1 << 12 | 1 << 15;

/// Types of messages.
const REPLY: u64 = 19;

/// A message that a channel keeps.
#[derive(Clone)]
pub(in crate::sim::world) struct Message {
    pub(super) json: Value,
    pub(in crate::sim::world) reactions: Vec<Reaction>,
}

/// A message that the bot writes, and its channel.
pub(super) struct Draft<'a> {
    pub(super) channel: u64,
    pub(super) body: &'a Value,
    pub(super) files: &'a [File],
    /// The additional fields of an answer to an interaction.
    pub(super) extra: Value,
}

impl Message {
    pub(in crate::sim::world) fn id(&self) -> u64 {
        id(&self.json["id"])
    }

    pub(in crate::sim::world) fn author(&self) -> u64 {
        id(&self.json["author"]["id"])
    }

    fn flags(&self) -> u64 {
        self.json["flags"].as_u64().unwrap_or_default()
    }

    /// Whether only the user whose interaction it answers can see it.
    pub(super) fn is_ephemeral(&self) -> bool {
        self.flags() & EPHEMERAL != 0
    }

    pub(super) fn is_loading(&self) -> bool {
        self.flags() & LOADING != 0
    }

    /// The message as the HTTP API returns it.
    pub(super) fn shown(&self) -> Value {
        let mut json = self.json.clone();
        if !self.reactions.is_empty() {
            json["reactions"] = self.reactions.iter().map(Reaction::shown).collect();
        }
        json
    }
}

impl Desk {
    fn keep(&mut self, channel: u64, message: Message) {
        let messages = self.messages.entry(channel).or_default();
        if messages.len() == MESSAGES {
            // The bot may still edit its own messages, so others' are removed first.
            let is_others = |message: &Message| message.author() != payloads::BOT;
            let oldest = messages.iter().position(is_others).unwrap_or(0);
            messages.remove(oldest);
        }
        messages.push_back(message);
    }

    pub(in crate::sim::world) fn messages(
        &self,
        channel: u64,
    ) -> impl DoubleEndedIterator<Item = &Message> {
        self.messages.get(&channel).into_iter().flatten()
    }

    pub(in crate::sim::world) fn message(
        &mut self,
        channel: u64,
        id: u64,
    ) -> Result<&mut Message, Refusal> {
        let messages = self.messages.get_mut(&channel);
        let mut messages = messages.into_iter().flatten();
        let message = messages.find(|message| message.id() == id);
        message.ok_or(UNKNOWN_MESSAGE)
    }

    pub(super) fn take_message(&mut self, channel: u64, id: u64) -> Option<Message> {
        let messages = self.messages.get_mut(&channel)?;
        let at = messages.iter().position(|message| message.id() == id)?;
        messages.remove(at)
    }
}

impl World {
    pub(super) fn list_messages(&mut self, call: &Call<'_>) -> Outcome {
        let (channel, _) = self.place_of(call)?;
        let limit = call.limit(50, 100)?;
        let bound = |name: &str| call.request.bound(name);
        let (before, after) = (bound("before"), bound("after"));
        let (first, last) = (after.unwrap_or(0), before.unwrap_or(u64::MAX));
        let shown = self.desk.messages(channel).filter(|message| {
            message.id() > first && message.id() < last && !message.is_ephemeral()
        });

        let mut shown: Vec<&Message> = shown.collect();
        if let Some(around) = bound("around") {
            let newer = shown.partition_point(|message| message.id() < around);
            shown.drain(..newer.saturating_sub(limit / 2));
            shown.truncate(limit);
        }

        if after.is_some() {
            shown.truncate(limit);
        }

        let newest = shown.into_iter().rev().take(limit);
        Ok(Response::json(200, newest.map(Message::shown).collect()))
    }

    pub(super) fn get_message(&mut self, call: &Call<'_>) -> Outcome {
        let (channel, _) = self.place_of(call)?;
        let message = self.desk.message(channel, call.id(1))?;
        Ok(Response::json(200, message.shown()))
    }

    pub(super) fn create_message(&mut self, call: &Call<'_>) -> Outcome {
        let (channel, _) = self.place_of(call)?;
        let draft = Draft {
            channel,
            body: call.json(),
            files: &call.request.files,
            extra: Value::Null,
        };
        let message = self.write(call, draft)?;
        Ok(Response::json(200, message))
    }

    /// Writes a message of the bot. Returns it as the HTTP API shows it.
    pub(super) fn write(&mut self, call: &Call<'_>, draft: Draft<'_>) -> Result<Value, Refusal> {
        let Draft {
            channel,
            body,
            files,
            extra,
        } = draft;
        let place = self.place(channel).ok_or(super::answers::UNKNOWN_CHANNEL)?;
        let is_loading = extra["flags"].as_u64().unwrap_or_default() & LOADING != 0;
        let text = text_of(body)?.unwrap_or_default();
        if !is_loading && !has_content(body, text, files) {
            return Err(EMPTY_MESSAGE);
        }
        if let Some(guild) = place.guild()
            && !files.is_empty()
            && self.lacks(guild.id, ATTACH_FILES)
        {
            return Err(MISSING_PERMISSIONS);
        }

        let id = self.snowflake(call.now);
        let unix = self.unix(call.now);
        let mut message = payloads::message(id, unix, channel, payloads::BOT, text);
        message["channel_type"] = u8::from(place.guild().is_none()).into();
        for field in ["embeds", "components", "nonce", "tts", "poll"] {
            if !body[field].is_null() {
                message[field] = body[field].clone();
            }
        }
        let flags = body["flags"].as_u64().unwrap_or_default();
        message["flags"] = (flags & SETTABLE).into();
        message["attachments"] = self.attachments(call.now, channel, body, files).into();
        message["mentions"] = self.mentions(text);
        self.refer(channel, body, &mut message)?;
        payloads::extend(&mut message, extra);
        if !is_loading {
            self.record_post(call, channel, text);
        }
        self.publish(channel, message.clone());
        Ok(message)
    }

    /// Makes a message a reply, if its body has a message reference.
    fn refer(&mut self, channel: u64, body: &Value, message: &mut Value) -> Result<(), Refusal> {
        let reference = &body["message_reference"];
        if reference.is_null() {
            return Ok(());
        }
        let place = self.place(channel);
        let Ok(referenced) = self.desk.message(channel, id(&reference["message_id"])) else {
            if reference["fail_if_not_exists"] == false {
                return Ok(());
            }
            let field = "message_reference";
            return Err(invalid_form(
                field,
                "REPLIES_UNKNOWN_MESSAGE",
                "Unknown message",
            ));
        };

        let mut referenced = referenced.shown();
        if let Some(object) = referenced.as_object_mut() {
            object.remove("referenced_message");
        }
        message["type"] = REPLY.into();
        message["message_reference"] = json!({
            "type": 0,
            "message_id": referenced["id"],
            "channel_id": channel.to_string(),
        });
        if let Some(guild) = place.and_then(Place::guild) {
            message["message_reference"]["guild_id"] = guild.id.to_string().into();
        }
        if body["allowed_mentions"]["replied_user"] != false
            && let Some(mentions) = message["mentions"].as_array_mut()
            && !mentions.contains(&referenced["author"])
        {
            mentions.push(referenced["author"].clone());
        }
        message["referenced_message"] = referenced;
        Ok(())
    }

    /// The users that a text mentions.
    fn mentions(&self, text: &str) -> Value {
        let ids = text.split("<@").skip(1).filter_map(|behind| {
            let (id, _) = behind.trim_start_matches('!').split_once('>')?;
            id.parse::<u64>().ok()
        });
        let users = ids.filter(|id| {
            *id == payloads::FRIEND || self.guilds.iter().any(|guild| self.is_member(*guild, *id))
        });
        users
            .map(|id| payloads::user(id, id == payloads::BOT))
            .collect()
    }

    /// Writes a message of a user. Returns its id.
    pub(in crate::sim::world) fn post(
        &mut self,
        now: Instant,
        channel: u64,
        author: u64,
        text: &str,
    ) -> u64 {
        let id = self.snowflake(now);
        let mut message = payloads::message(id, self.unix(now), channel, author, text);
        message["mentions"] = self.mentions(text);
        self.publish(channel, message);
        id
    }

    /// Keeps a message, and announces it.
    fn publish(&mut self, channel: u64, json: Value) {
        let message = Message {
            json,
            reactions: Vec::new(),
        };
        self.announce_message(channel, "MESSAGE_CREATE", &message);
        self.desk.keep(channel, message);
    }

    /// Sends an event about a message, unless it is ephemeral.
    fn announce_message(&mut self, channel: u64, name: &str, message: &Message) {
        let Some(place) = self.place(channel) else {
            return;
        };
        if message.is_ephemeral() {
            return;
        }

        let mut json = message.shown();
        if let Place::Guild(guild) = place {
            json["guild_id"] = guild.id.to_string().into();
            // An author who has left the guild is no longer a member.
            if let Some(mut member) = self.member(guild, message.author()) {
                if let Some(member) = member.as_object_mut() {
                    member.remove("user");
                }
                json["member"] = member;
            }
        }
        self.announce(place, name, &json);
    }

    /// Sends an event about a channel to the sessions of its shard.
    pub(in crate::sim::world) fn announce(&mut self, place: Place, name: &str, data: &Value) {
        let guild = place.guild().map(|guild| guild.id);
        self.dispatch_to_guild(guild, name, data);
    }

    pub(super) fn edit_message(&mut self, call: &Call<'_>) -> Outcome {
        let (channel, _) = self.place_of(call)?;
        let message = self.desk.message(channel, call.id(1))?;
        if message.author() != payloads::BOT {
            return Err(NOT_THE_AUTHOR);
        }
        let files = &call.request.files;
        let message = self.amend(call, (channel, call.id(1)), call.json(), files)?;
        Ok(Response::json(200, message))
    }

    /// Edits a message of the bot. Returns it as the HTTP API then shows it.
    pub(super) fn amend(
        &mut self,
        call: &Call<'_>,
        (channel, id): (u64, u64),
        body: &Value,
        files: &[File],
    ) -> Result<Value, Refusal> {
        // Null removes the text.
        let has_text = body.get("content").is_some();
        let text = has_text.then(|| text_of(body)).transpose()?;
        let text = text.map(|text| text.unwrap_or_default().to_owned());
        let edited_at = payloads::timestamp(self.unix(call.now));
        let mentions = text.as_deref().map(|text| self.mentions(text));
        let new_files = self.attachments(call.now, channel, body, files);
        let mut message = self.desk.message(channel, id)?.clone();
        let was_loading = message.is_loading();
        let kept_flags = message.flags() & EPHEMERAL;

        let json = &mut message.json;
        for field in ["embeds", "components"] {
            if let Some(given) = body.get(field) {
                json[field] = if given.is_null() {
                    json!([])
                } else {
                    given.clone()
                };
            }
        }
        if let Some(flags) = body["flags"].as_u64() {
            json["flags"] = (flags & SETTABLE | kept_flags).into();
        } else if was_loading {
            json["flags"] = kept_flags.into();
        }
        if let (Some(text), Some(mentions)) = (&text, mentions) {
            json["content"] = text.as_str().into();
            json["mentions"] = mentions;
        }
        keep_attachments(json, &body["attachments"], new_files);
        if !was_loading {
            json["edited_timestamp"] = edited_at.into();
        }
        let content = json["content"].as_str().unwrap_or_default();
        let has_attachments = json["attachments"] != json!([]);
        if !has_attachments && !has_content(json, content, &[]) {
            return Err(EMPTY_MESSAGE);
        }

        *self.desk.message(channel, id)? = message.clone();
        if was_loading {
            self.record_post(call, channel, text.as_deref().unwrap_or_default());
        }
        self.announce_message(channel, "MESSAGE_UPDATE", &message);
        Ok(message.shown())
    }

    /// Edits a message of a user.
    pub(in crate::sim::world) fn rewrite(
        &mut self,
        now: Instant,
        channel: u64,
        id: u64,
        text: &str,
    ) {
        let edited_at = payloads::timestamp(self.unix(now));
        let Ok(message) = self.desk.message(channel, id) else {
            return;
        };
        message.json["content"] = text.into();
        message.json["edited_timestamp"] = edited_at.into();
        let message = message.clone();
        self.announce_message(channel, "MESSAGE_UPDATE", &message);
    }

    pub(super) fn delete_message(&mut self, call: &Call<'_>) -> Outcome {
        let (channel, place) = self.place_of(call)?;
        let author = self.desk.message(channel, call.id(1))?.author();
        if author != payloads::BOT {
            let guild = place.guild().ok_or(NOT_IN_DIRECT_CHANNELS)?;
            if self.lacks(guild.id, MANAGE_MESSAGES) {
                return Err(MISSING_PERMISSIONS);
            }
            let options = json!({"channel_id": channel.to_string(), "count": "1"});
            self.audit(call, guild, (72, author), json!({"options": options}));
        }
        self.drop_message(channel, call.id(1));
        Ok(Response::no_content())
    }

    /// Removes a message, and announces that.
    pub(in crate::sim::world) fn drop_message(&mut self, channel: u64, id: u64) {
        let (Some(message), Some(place)) =
            (self.desk.take_message(channel, id), self.place(channel))
        else {
            return;
        };
        if message.is_ephemeral() {
            return;
        }
        let mut data = json!({"id": id.to_string(), "channel_id": channel.to_string()});
        if let Place::Guild(guild) = place {
            data["guild_id"] = guild.id.to_string().into();
        }
        self.announce(place, "MESSAGE_DELETE", &data);
    }

    pub(super) fn bulk_delete(&mut self, call: &Call<'_>) -> Outcome {
        let (channel, place) = self.place_of(call)?;
        let guild = place.guild().ok_or(NOT_IN_DIRECT_CHANNELS)?;
        let given = call.json()["messages"].as_array();
        let ids: Vec<u64> = given.into_iter().flatten().map(id).collect();
        if !(2..=100).contains(&ids.len()) {
            return Err(WRONG_COUNT);
        }

        let gone = ids.into_iter();
        let gone = gone.filter(|id| self.desk.take_message(channel, *id).is_some());
        let gone: Vec<String> = gone
            .collect::<Vec<_>>()
            .iter()
            .map(u64::to_string)
            .collect();
        if gone.is_empty() {
            return Ok(Response::no_content());
        }
        let options = json!({"count": gone.len().to_string()});
        self.audit(call, guild, (73, channel), json!({"options": options}));
        let data = json!({
            "ids": gone,
            "channel_id": channel.to_string(),
            "guild_id": guild.id.to_string(),
        });
        self.announce(place, "MESSAGE_DELETE_BULK", &data);
        Ok(Response::no_content())
    }

    /// Makes attachments of files; the body may describe each.
    fn attachments(
        &mut self,
        now: Instant,
        channel: u64,
        body: &Value,
        files: &[File],
    ) -> Vec<Value> {
        let attachment = |file: &File| {
            let number = file
                .field
                .trim_start_matches("files[")
                .trim_end_matches(']');
            let described = body["attachments"].as_array().into_iter().flatten();
            let mut described = described.filter(|given| id(&given["id"]).to_string() == number);
            let id = self.snowflake(now);
            let name = &file.name;
            let url = format!("https://cdn.discordapp.com/attachments/{channel}/{id}/{name}");
            let mut attachment = json!({
                "id": id.to_string(),
                "filename": name,
                "size": file.bytes.len(),
                "url": url,
                "proxy_url": url,
            });
            if let Some(content_type) = &file.content_type {
                attachment["content_type"] = content_type.as_str().into();
            }
            if let Some(description) = described.next().and_then(|given| given.get("description")) {
                attachment["description"] = description.clone();
            }
            attachment
        };
        files.iter().map(attachment).collect()
    }

    fn record_post(&mut self, call: &Call<'_>, channel: u64, text: &str) {
        let text = text.to_owned();
        let action = Action::Post { channel, text };
        self.record(call.now, call.connection, action);
    }
}

/// An id in a body, as a string or as a number; 0, which no object has, if it is invalid.
pub(super) fn id(value: &Value) -> u64 {
    commands::id(value).unwrap_or_default()
}

/// The text of a message's body, if it has one.
fn text_of(body: &Value) -> Result<Option<&str>, Refusal> {
    let text = match &body["content"] {
        Value::Null => return Ok(None),
        Value::String(text) => text,
        _ => {
            let message = "Could not interpret value as string.";
            return Err(invalid_form("content", "STRING_TYPE_CONVERT", message));
        }
    };
    if text.chars().count() > MAX_TEXT {
        let message = "Must be 2000 or fewer in length.";
        return Err(invalid_form("content", "BASE_TYPE_BAD_LENGTH", message));
    }
    Ok(Some(text))
}

fn has_content(body: &Value, text: &str, files: &[File]) -> bool {
    let has = |field: &str| body[field].as_array().is_some_and(|list| !list.is_empty());
    !text.is_empty()
        || !files.is_empty()
        || ["embeds", "components", "sticker_ids"].into_iter().any(has)
        || body["poll"].is_object()
}

/// Keeps the attachments of a message whose ids are in `list`, and adds new ones. An edit without
/// a list keeps all.
fn keep_attachments(message: &mut Value, list: &Value, new: Vec<Value>) {
    let named = list.as_array();
    let stays = |old: &&Value| {
        named.is_none_or(|named| named.iter().any(|named| id(&named["id"]) == id(&old["id"])))
    };
    let old = message["attachments"].as_array().into_iter().flatten();
    let mut kept: Vec<Value> = old.filter(stays).cloned().collect();
    kept.extend(new);
    message["attachments"] = kept.into();
}
