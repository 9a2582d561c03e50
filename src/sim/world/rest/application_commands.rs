//! The bot's application commands, and their options in interactions.

use std::time::Instant;

use serde_json::{Map, Value, json};

use super::super::super::observed::EmitError;
use super::super::super::permissions::ALL;
use super::super::super::request::Response;
use super::super::{World, payloads};
use super::Call;
use super::answers::{Outcome, UNKNOWN_COMMAND, required};
use super::channels::Place;

/// Types of options.
const SUBCOMMAND: u64 = 1;
const GROUP: u64 = 2;
const STRING: u64 = 3;
const INTEGER: u64 = 4;
const BOOLEAN: u64 = 5;
const USER: u64 = 6;
const CHANNEL: u64 = 7;
const ROLE: u64 = 8;
const MENTIONABLE: u64 = 9;
const NUMBER: u64 = 10;
const ATTACHMENT: u64 = 11;

/// The defaults of a command's fields.
///
/// Source: [Discord, Application
/// command](https://docs.discord.com/developers/interactions/application-commands#application-command-object).
fn defaults() -> Value {
    json!({
        "type": 1,
        "description": "",
        "options": [],
        "default_member_permissions": null,
        "dm_permission": true,
        "nsfw": false,
        "integration_types": [0],
        "contexts": null,
        "name_localizations": null,
        "description_localizations": null,
    })
}

/// The options of a command: as registered, and as the user gave them.
struct Options<'a> {
    command: &'a str,
    place: Place,
    /// Null if the command is not registered.
    known: &'a Value,
    focused: Option<&'a str>,
}

// The commands of all guilds are kept together.
impl World {
    pub(super) fn list_commands(&self, call: &Call<'_>) -> Value {
        let guild = guild_of(call);
        let commands = self.desk.commands.iter();
        let listed = commands.filter(|command| command["guild_id"] == guild);
        listed.cloned().collect()
    }

    /// Makes a command of a body: adds the default fields and an id. If there is a command of the
    /// same name and type, the new one replaces it and keeps its id.
    fn registered(&mut self, call: &Call<'_>, body: &Value) -> Value {
        let mut command = defaults();
        change(&mut command, body);
        command["application_id"] = payloads::BOT.to_string().into();
        let guild = guild_of(call);
        if !guild.is_null() {
            command["guild_id"] = guild;
        }
        let version = self.snowflake(call.now).to_string();
        let mut commands = self.desk.commands.iter();
        let old = commands.find(|old| is_same(old, &command));
        let id = old.map_or_else(|| version.as_str().into(), |old| old["id"].clone());
        payloads::extend(&mut command, json!({"id": id, "version": version}));
        command
    }

    pub(super) fn create_command(&mut self, call: &Call<'_>) -> Outcome {
        let body = call.json();
        if !body["name"].is_string() {
            return Err(required("name"));
        }
        let command = self.registered(call, body);
        let before = self.desk.commands.len();
        self.desk.commands.retain(|old| !is_same(old, &command));
        let status = if self.desk.commands.len() < before {
            200
        } else {
            201
        };
        self.desk.commands.push(command.clone());
        Ok(Response::json(status, command))
    }

    pub(super) fn overwrite_commands(&mut self, call: &Call<'_>) -> Outcome {
        let list = call.json().as_array().ok_or_else(|| required("name"))?;
        if !list.iter().all(|command| command["name"].is_string()) {
            return Err(required("name"));
        }
        let new: Vec<Value> = list
            .iter()
            .map(|body| self.registered(call, body))
            .collect();
        let guild = guild_of(call);
        let commands = &mut self.desk.commands;
        commands.retain(|old| old["guild_id"] != guild);
        commands.extend(new.iter().cloned());
        Ok(Response::json(200, new.into()))
    }

    fn command_of(&mut self, call: &Call<'_>) -> Option<&mut Value> {
        let id = call.request.parameters.last();
        let mut commands = self.desk.commands.iter_mut();
        commands.find(|command| command["id"].as_str() == id.map(String::as_str))
    }

    pub(super) fn get_command(&mut self, call: &Call<'_>) -> Outcome {
        let command = self.command_of(call).ok_or(UNKNOWN_COMMAND)?;
        Ok(Response::json(200, command.clone()))
    }

    pub(super) fn edit_command(&mut self, call: &Call<'_>) -> Outcome {
        let version = self.snowflake(call.now).to_string();
        let command = self.command_of(call).ok_or(UNKNOWN_COMMAND)?;
        change(command, call.json());
        command["version"] = version.into();
        Ok(Response::json(200, command.clone()))
    }

    pub(super) fn delete_command(&mut self, call: &Call<'_>) -> Outcome {
        let id = self.command_of(call).ok_or(UNKNOWN_COMMAND)?["id"].clone();
        self.desk.commands.retain(|command| command["id"] != id);
        Ok(Response::no_content())
    }

    /// The command with this name and type; a guild command takes precedence over a global one.
    fn command_named(&self, name: &str, kind: u64, place: Place) -> Value {
        let guild = place
            .guild()
            .map_or(Value::Null, |guild| guild.id.to_string().into());
        let commands = self.desk.commands.iter();
        let named = commands.filter(|command| {
            command["name"] == name
                && command["type"] == kind
                && (command["guild_id"].is_null() || command["guild_id"] == guild)
        });
        let found = named.max_by_key(|command| !command["guild_id"].is_null());
        found.cloned().unwrap_or_default()
    }

    /// The interaction data of a slash command that a user runs or is typing.
    pub(super) fn command_data(
        &mut self,
        now: Instant,
        place: Place,
        name: &str,
        options: &Value,
        focused: Option<&str>,
    ) -> Result<Value, EmitError> {
        let command = self.command_named(name, 1, place);
        let mut data = head(&command, name, 1);
        let mut resolved = Map::new();
        let wanted = Options {
            command: name,
            place,
            known: &command["options"],
            focused,
        };

        let options = self.options(now, &wanted, options, &mut resolved)?;
        if !options.is_empty() {
            data["options"] = options.into();
        }

        if !resolved.is_empty() {
            data["resolved"] = resolved.into();
        }
        Ok(data)
    }

    /// The interaction data of a user command or a message command.
    pub(super) fn menu_data(&self, place: Place, name: &str, kind: u64, target: u64) -> Value {
        let command = self.command_named(name, kind, place);
        let mut data = head(&command, name, kind);
        data["target_id"] = target.to_string().into();
        data
    }

    /// The options of a command, in the form of interaction data.
    fn options(
        &mut self,
        now: Instant,
        wanted: &Options<'_>,
        given: &Value,
        resolved: &mut Map<String, Value>,
    ) -> Result<Vec<Value>, EmitError> {
        let given = match given {
            Value::Null => &Map::new(),
            Value::Object(given) => given,
            other => return Err(wanted.wrong(&other.to_string())),
        };
        wanted.check_required(given)?;
        let known = wanted.known.as_array();
        let mut options = Vec::new();
        for (name, value) in given {
            let known = known.map(|known| known.iter().find(|option| option["name"] == **name));
            let option = match known {
                None => &Value::Null,
                Some(None) => return Err(wanted.wrong(name)),
                Some(Some(option)) => option,
            };
            let kind = option["type"].as_u64().unwrap_or_else(|| inferred(value));
            if !is_of(kind, value) && wanted.focused != Some(name) {
                return Err(wanted.wrong(&format!("{name}: {value}")));
            }

            let mut answer = json!({"name": name, "type": kind});
            if matches!(kind, SUBCOMMAND | GROUP) {
                let nested = Options {
                    known: &option["options"],
                    ..*wanted
                };
                answer["options"] = self.options(now, &nested, value, resolved)?.into();
            } else if kind == ATTACHMENT {
                answer["value"] = self.resolve_file(now, value, resolved);
            } else {
                let text = value.as_str().unwrap_or_default();
                if wanted.focused.is_none() {
                    self.resolve(wanted.place, kind, text, resolved)?;
                }
                answer["value"] = value.clone();
            }
            if wanted.focused == Some(name) {
                answer["focused"] = true.into();
            }
            options.push(answer);
        }
        Ok(options)
    }

    /// Adds the object of an option's id to the resolved data, if the option's type has ids.
    pub(super) fn resolve(
        &self,
        place: Place,
        kind: u64,
        text: &str,
        resolved: &mut Map<String, Value>,
    ) -> Result<(), EmitError> {
        let id = text.parse().unwrap_or_default();
        let guild = place.guild();
        let role = guild.filter(|guild| guild.role() == id);
        match (kind, role) {
            (USER, _) | (MENTIONABLE, None) => self.resolve_user(place, id, resolved)?,
            (ROLE | MENTIONABLE, Some(guild)) => {
                add(resolved, "roles", id, payloads::role(guild));
            }
            (ROLE, None) => return Err(EmitError::UnknownRole(id)),
            (CHANNEL, _) => {
                let channel = match guild {
                    Some(guild) if guild.channel() == id => payloads::text_channel(guild),
                    Some(guild) if guild.voice_channel() == id => payloads::voice_channel(guild),
                    _ => return Err(EmitError::UnknownChannel(id)),
                };
                add(resolved, "channels", id, channel);
            }
            _ => {}
        }
        Ok(())
    }

    pub(super) fn resolve_user(
        &self,
        place: Place,
        id: u64,
        resolved: &mut Map<String, Value>,
    ) -> Result<(), EmitError> {
        let mut member = match place {
            Place::Guild(guild) => self.member(guild, id).ok_or(EmitError::UnknownUser(id))?,
            Place::Direct(with) if with == id || id == payloads::BOT => Value::Null,
            Place::Direct(_) => return Err(EmitError::UnknownUser(id)),
        };
        if let Some(member) = member.as_object_mut() {
            member.remove("user");
            member.insert("permissions".to_owned(), ALL.to_string().into());
        }

        if !member.is_null() {
            add(resolved, "members", id, member);
        }

        add(
            resolved,
            "users",
            id,
            payloads::user(id, id == payloads::BOT),
        );
        Ok(())
    }

    /// Makes an attachment for a file name, and returns the attachment's id.
    fn resolve_file(
        &mut self,
        now: Instant,
        name: &Value,
        resolved: &mut Map<String, Value>,
    ) -> Value {
        let id = self.snowflake(now);
        let name = name.as_str().unwrap_or_default();
        let url = format!("https://cdn.discordapp.com/ephemeral-attachments/{id}/{name}");
        let attachment = json!({
            "id": id.to_string(),
            "filename": name,
            "size": 0,
            "url": url,
            "proxy_url": url,
            "ephemeral": true,
        });
        add(resolved, "attachments", id, attachment);
        id.to_string().into()
    }
}

impl Options<'_> {
    /// Returns an error if a required option is missing.
    fn check_required(&self, given: &Map<String, Value>) -> Result<(), EmitError> {
        let known = self.known.as_array().into_iter().flatten();
        let mut required = known.filter(|option| option["required"] == true);
        let missing = required.find_map(|option| {
            let name = option["name"].as_str()?;
            (!given.contains_key(name)).then_some(name)
        });
        match missing {
            Some(missing) if self.focused.is_none() => Err(EmitError::MissingOption {
                of: self.command.to_owned(),
                missing: missing.to_owned(),
            }),
            _ => Ok(()),
        }
    }

    fn wrong(&self, given: &str) -> EmitError {
        EmitError::UnknownOption {
            of: self.command.to_owned(),
            given: given.to_owned(),
        }
    }
}

/// Whether a new command replaces an old one: they have the same name, type and guild.
fn is_same(old: &Value, new: &Value) -> bool {
    let fields = ["name", "type", "guild_id"];
    fields.iter().all(|field| old[*field] == new[*field])
}

/// Sets the fields of a command that are in `body`, except ids and the version.
fn change(command: &mut Value, body: &Value) {
    for (field, value) in body.as_object().into_iter().flatten() {
        let is_own = ["id", "application_id", "guild_id", "version"].contains(&field.as_str());
        if !is_own && !value.is_null() {
            command[field] = value.clone();
        }
    }
}

/// The guild id in the path of a command route; null for global commands.
fn guild_of(call: &Call<'_>) -> Value {
    if call.request.path.contains("/guilds/") {
        call.request.parameters[1].as_str().into()
    } else {
        Value::Null
    }
}

/// The common fields of the interaction data of a command. A command that is not registered gets
/// an id that no other object has.
fn head(command: &Value, name: &str, kind: u64) -> Value {
    let id = match &command["id"] {
        Value::Null => (payloads::BOT + 1).to_string().into(),
        id => id.clone(),
    };
    let mut head = json!({"id": id, "name": name, "type": kind});
    if !command["guild_id"].is_null() {
        head["guild_id"] = command["guild_id"].clone();
    }
    head
}

fn add(resolved: &mut Map<String, Value>, kind: &str, id: u64, value: Value) {
    let of_kind = resolved.entry(kind).or_insert_with(|| json!({}));
    of_kind[id.to_string()] = value;
}

/// Infers the type of an option that the command does not define.
fn inferred(value: &Value) -> u64 {
    match value {
        Value::Bool(_) => BOOLEAN,
        Value::Number(number) if number.is_f64() => NUMBER,
        Value::Number(_) => INTEGER,
        Value::Object(options) if options.values().any(Value::is_object) => GROUP,
        Value::Object(_) => SUBCOMMAND,
        _ => STRING,
    }
}

fn is_of(kind: u64, value: &Value) -> bool {
    match kind {
        SUBCOMMAND | GROUP => value.is_object() || value.is_null(),
        INTEGER => value.is_i64(),
        BOOLEAN => value.is_boolean(),
        NUMBER => value.is_number(),
        _ => value.is_string(),
    }
}
