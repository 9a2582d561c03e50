//! Guilds, their members, roles and bans.

use serde_json::{Value, json};

use super::super::super::permissions::{ALL, MANAGE_NICKNAMES, MANAGE_ROLES, MODERATE_MEMBERS};
use super::super::super::request::Response;
use super::super::{Guild, World, payloads};
use super::Call;
use super::answers::{
    MISSING_PERMISSIONS, Outcome, Refusal, UNKNOWN_BAN, UNKNOWN_GUILD, UNKNOWN_MEMBER,
    UNKNOWN_ROLE, UNKNOWN_USER, invalid_form, required,
};

/// The maximum number of members or bans in one response.
const MEMBERS: usize = 1000;

impl World {
    pub(super) fn get_user(&mut self, call: &Call<'_>) -> Outcome {
        let id = call.id(0);
        let is_member = |guild: &Guild| self.is_member(*guild, id);
        let is_known = [payloads::BOT, payloads::FRIEND].contains(&id);
        if !is_known && !self.guilds.iter().any(is_member) {
            return Err(UNKNOWN_USER);
        }
        let user = payloads::user(id, id == payloads::BOT);
        Ok(Response::json(200, user))
    }

    fn guild_of(&self, call: &Call<'_>) -> Result<Guild, Refusal> {
        self.guild(call.id(0)).ok_or(UNKNOWN_GUILD)
    }

    pub(super) fn own_guilds(&mut self, call: &Call<'_>) -> Outcome {
        let limit = call.limit(200, 200)?;
        let after = call.request.bound("after").unwrap_or(0);
        let before = call.request.bound("before").unwrap_or(u64::MAX);
        let partial = |guild: &Guild| {
            let object = payloads::guild_object(*guild);
            json!({
                "id": object["id"],
                "name": object["name"],
                "icon": null,
                "banner": null,
                "owner": false,
                "permissions": ALL.to_string(),
                "features": [],
            })
        };

        let guilds = self.guilds.iter();
        let guilds = guilds.filter(|guild| guild.id > after && guild.id < before);
        let guilds = guilds.take(limit).map(partial);
        Ok(Response::json(200, guilds.collect()))
    }

    pub(super) fn get_guild(&mut self, call: &Call<'_>) -> Outcome {
        let guild = self.guild_of(call)?;
        let mut object = payloads::guild_object(guild);
        if call.request.flag("with_counts") {
            let count = self.member_count(guild);
            object["approximate_member_count"] = count.into();
            object["approximate_presence_count"] = count.into();
        }
        Ok(Response::json(200, object))
    }

    pub(super) fn list_channels(&mut self, call: &Call<'_>) -> Outcome {
        let guild = self.guild_of(call)?;
        let channels = json!([
            payloads::text_channel(guild),
            payloads::voice_channel(guild)
        ]);
        Ok(Response::json(200, channels))
    }

    pub(super) fn list_roles(&mut self, call: &Call<'_>) -> Outcome {
        let guild = self.guild_of(call)?;
        let roles = payloads::guild_object(guild)["roles"].take();
        Ok(Response::json(200, roles))
    }

    pub(super) fn list_members(&mut self, call: &Call<'_>) -> Outcome {
        let guild = self.guild_of(call)?;
        let limit = call.limit(1, MEMBERS)?;
        let after = call.request.bound("after").unwrap_or(0);
        let ids = self.member_ids(guild).filter(|id| *id > after);
        let members = ids.take(limit).filter_map(|id| self.member(guild, id));
        Ok(Response::json(200, members.collect()))
    }

    pub(super) fn search_members(&mut self, call: &Call<'_>) -> Outcome {
        let guild = self.guild_of(call)?;
        let limit = call.limit(1, MEMBERS)?;
        let prefix = call.request.query.get("query");
        let prefix = prefix.ok_or_else(|| required("query"))?;
        let members = self
            .member_ids(guild)
            .filter_map(|id| self.member(guild, id));
        let is_wanted = |member: &Value| {
            let names = [&member["user"]["username"], &member["nick"]];
            let mut names = names.into_iter().filter_map(Value::as_str);
            names.any(|name| name.starts_with(prefix.as_str()))
        };
        let members = members.filter(is_wanted).take(limit).collect();
        Ok(Response::json(200, members))
    }

    pub(super) fn get_member(&mut self, call: &Call<'_>) -> Outcome {
        let guild = self.guild_of(call)?;
        let member = self.member(guild, call.id(1)).ok_or(UNKNOWN_MEMBER)?;
        Ok(Response::json(200, member))
    }

    pub(super) fn edit_member(&mut self, call: &Call<'_>) -> Outcome {
        let guild = self.guild_of(call)?;
        let is_own = call.request.parameters[1] == "@me";
        let id = if is_own { payloads::BOT } else { call.id(1) };
        let before = self.member(guild, id).ok_or(UNKNOWN_MEMBER)?;

        let mut changes = Vec::new();
        for (field, permission) in [
            ("nick", MANAGE_NICKNAMES),
            ("roles", MANAGE_ROLES),
            ("communication_disabled_until", MODERATE_MEMBERS),
            ("mute", 0),
            ("deaf", 0),
        ] {
            // On its own member, the bot can change only the nickname.
            let is_allowed = !is_own || field == "nick";
            let Some(given) = call.json().get(field).filter(|_| is_allowed) else {
                continue;
            };
            if !is_own && self.lacks(guild.id, permission) {
                return Err(MISSING_PERMISSIONS);
            }
            let new = member_field(guild, field, given)?;
            if before[field] != new {
                changes.push((field, new));
            }
        }

        let member = self.change_member(guild, id, |member| {
            for (field, new) in &changes {
                member[*field] = new.clone();
            }
        });
        let entries = changes.iter().map(
            |(field, new)| json!({"key": field, "old_value": before[*field], "new_value": new}),
        );
        let extra = json!({"changes": entries.collect::<Vec<_>>()});
        self.audit(call, guild, (24, id), extra);
        Ok(Response::json(200, member.unwrap_or_default()))
    }

    pub(super) fn kick_member(&mut self, call: &Call<'_>) -> Outcome {
        let guild = self.guild_of(call)?;
        let id = call.id(1);
        if !self.is_member(guild, id) {
            return Err(UNKNOWN_MEMBER);
        }
        if id == payloads::BOT || id == guild.member(0) {
            // The owner of a guild cannot be kicked.
            return Err(MISSING_PERMISSIONS);
        }
        self.leave(guild, id);
        self.audit(call, guild, (20, id), Value::Null);
        Ok(Response::no_content())
    }

    pub(super) fn add_role(&mut self, call: &Call<'_>) -> Outcome {
        self.change_role(call, true)
    }

    pub(super) fn remove_role(&mut self, call: &Call<'_>) -> Outcome {
        self.change_role(call, false)
    }

    fn change_role(&mut self, call: &Call<'_>, is_added: bool) -> Outcome {
        let guild = self.guild_of(call)?;
        let (id, role) = (call.id(1), call.id(2));
        let member = self.member(guild, id).ok_or(UNKNOWN_MEMBER)?;
        known_role(guild, role)?;
        let role = Value::from(role.to_string());
        let roles = member["roles"].as_array().cloned().unwrap_or_default();
        if roles.contains(&role) == is_added {
            return Ok(Response::no_content());
        }

        self.change_member(guild, id, |member| {
            if let Some(roles) = member["roles"].as_array_mut() {
                roles.retain(|other| *other != role);
                roles.extend(is_added.then(|| role.clone()));
            }
        });
        let key = if is_added { "$add" } else { "$remove" };
        let change = json!({"key": key, "new_value": [{"id": role}]});
        self.audit(call, guild, (25, id), json!({"changes": [change]}));
        Ok(Response::no_content())
    }

    pub(super) fn list_bans(&mut self, call: &Call<'_>) -> Outcome {
        let guild = self.guild_of(call)?;
        let limit = call.limit(MEMBERS, MEMBERS)?;
        let after = call.request.bound("after").unwrap_or(0);
        let before = call.request.bound("before").unwrap_or(u64::MAX);
        let bans = self
            .bans(guild)
            .filter(|(id, _)| *id > after && *id < before);
        let bans = bans.take(limit).map(|(_, ban)| ban);
        Ok(Response::json(200, bans.collect()))
    }

    pub(super) fn get_ban(&mut self, call: &Call<'_>) -> Outcome {
        let guild = self.guild_of(call)?;
        let mut bans = self.bans(guild);
        let found = bans.find(|(id, _)| *id == call.id(1));
        let (_, ban) = found.ok_or(UNKNOWN_BAN)?;
        Ok(Response::json(200, ban))
    }

    pub(super) fn ban(&mut self, call: &Call<'_>) -> Outcome {
        let guild = self.guild_of(call)?;
        let id = call.id(1);
        if id == 0 {
            return Err(UNKNOWN_USER);
        }
        if id == payloads::BOT || id == guild.member(0) {
            return Err(MISSING_PERMISSIONS);
        }
        self.add_ban(guild, id, call.request.reason());
        self.audit(call, guild, (22, id), Value::Null);
        Ok(Response::no_content())
    }

    pub(super) fn unban(&mut self, call: &Call<'_>) -> Outcome {
        let guild = self.guild_of(call)?;
        if !self.remove_ban(guild, call.id(1)) {
            return Err(UNKNOWN_BAN);
        }
        self.audit(call, guild, (23, call.id(1)), Value::Null);
        Ok(Response::no_content())
    }

    /// Adds an action of the bot to the audit log, with its type and its target.
    ///
    /// Source: [Discord, Audit log
    /// events](https://docs.discord.com/developers/resources/audit-log#audit-log-entry-object-audit-log-events).
    pub(super) fn audit(
        &mut self,
        call: &Call<'_>,
        guild: Guild,
        (kind, target): (u32, u64),
        extra: Value,
    ) {
        let mut data = json!({
            "guild_id": guild.id.to_string(),
            "id": self.snowflake(call.now).to_string(),
            "user_id": payloads::BOT.to_string(),
            "target_id": target.to_string(),
            "action_type": kind,
        });
        if let Some(reason) = call.request.reason() {
            data["reason"] = reason.into();
        }
        payloads::extend(&mut data, extra);
        self.dispatch_to_guild(Some(guild.id), "GUILD_AUDIT_LOG_ENTRY_CREATE", &data);
    }
}

/// Converts a given field of a member to the form in which Discord stores it.
fn member_field(guild: Guild, field: &str, given: &Value) -> Result<Value, Refusal> {
    let wrong = || invalid_form(field, "BASE_TYPE_CONVERT", "Could not interpret value.");
    match (field, given) {
        ("nick", Value::String(nick)) if nick.is_empty() => Ok(Value::Null),
        ("nick" | "communication_disabled_until", Value::String(_) | Value::Null)
        | ("mute" | "deaf", Value::Bool(_)) => Ok(given.clone()),
        ("roles", Value::Null) => Ok(json!([])),
        ("roles", Value::Array(roles)) => {
            let ids = roles.iter().map(super::messages::id);
            let ids = ids.map(|role| known_role(guild, role).map(|()| role.to_string()));
            Ok(ids.collect::<Result<Vec<_>, _>>()?.into())
        }
        _ => Err(wrong()),
    }
}

fn known_role(guild: Guild, role: u64) -> Result<(), Refusal> {
    let is_known = [guild.role(), guild.id].contains(&role);
    is_known.then_some(()).ok_or(UNKNOWN_ROLE)
}
