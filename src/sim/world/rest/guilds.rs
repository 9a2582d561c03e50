//! Guilds, their members, roles and bans.

use serde_json::{Value, json};

use super::super::super::permissions::{ALL, MANAGE_NICKNAMES, MANAGE_ROLES, MODERATE_MEMBERS};
use super::super::super::request::Response;
use super::super::{Guild, World, payloads};
use super::Call;
use super::answers::{
    MISSING_PERMISSIONS, Outcome, Refusal, UNKNOWN_BAN, UNKNOWN_GUILD, UNKNOWN_MEMBER,
    UNKNOWN_ROLE, invalid_form, required,
};

/// Members that one answer lists at most.
const MEMBERS: usize = 1000;

impl World {
    fn guild_of(&self, call: &Call<'_>) -> Result<Guild, Refusal> {
        self.guild(call.id(0)).ok_or(UNKNOWN_GUILD)
    }

    pub(super) fn own_guilds(&self) -> Value {
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
        self.guilds.iter().take(200).map(partial).collect()
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
        let limit = limit_of(call, 1)?;
        let after = call.request.query.get("after");
        let after = after.and_then(|id| id.parse().ok()).unwrap_or(0);
        let ids = self.member_ids(guild).filter(|id| *id > after);
        let members = ids.take(limit).filter_map(|id| self.member(guild, id));
        Ok(Response::json(200, members.collect()))
    }

    pub(super) fn search_members(&mut self, call: &Call<'_>) -> Outcome {
        let guild = self.guild_of(call)?;
        let limit = limit_of(call, 1)?;
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
        let body = call.json();
        let needed = [
            ("nick", MANAGE_NICKNAMES),
            ("roles", MANAGE_ROLES),
            ("communication_disabled_until", MODERATE_MEMBERS),
        ];
        let lacks = |(field, permission): (&str, u64)| {
            body.get(field).is_some() && self.lacks(guild.id, permission)
        };
        if !is_own && needed.into_iter().any(lacks) {
            return Err(MISSING_PERMISSIONS);
        }
        let roles = body["roles"].as_array().into_iter().flatten();
        for role in roles {
            known_role(guild, super::messages::id(role))?;
        }

        let fields = needed.map(|(field, _)| field).into_iter();
        let fields = fields.chain(["mute", "deaf", "flags"]);
        let changes = fields.filter_map(|field| Some((field, body.get(field)?)));
        let changes: Vec<_> = changes
            .filter(|(field, new)| before[*field] != **new)
            .collect();
        let member = self.change_member(guild, id, |member| {
            for (field, new) in &changes {
                member[*field] = (*new).clone();
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
            // Nobody kicks the owner.
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
        let limit = limit_of(call, MEMBERS)?;
        let bans = self.bans(guild).take(limit).map(|(_, ban)| ban);
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

    /// Enters something that the bot did into the audit log: what kind of action, and to whom.
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

fn known_role(guild: Guild, role: u64) -> Result<(), Refusal> {
    let is_known = [guild.role(), guild.id].contains(&role);
    is_known.then_some(()).ok_or(UNKNOWN_ROLE)
}

/// The parameter `limit`, from 1 to 1000.
fn limit_of(call: &Call<'_>, default: usize) -> Result<usize, Refusal> {
    let limit = call.request.query.get("limit");
    let limit = limit.map_or(Some(default), |limit| limit.parse().ok());
    limit
        .filter(|limit| (1..=MEMBERS).contains(limit))
        .ok_or_else(|| {
            let message = "int value should be between 1 and 1000.";
            invalid_form("limit", "NUMBER_TYPE_RANGE", message)
        })
}
