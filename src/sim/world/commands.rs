//! Gateway commands of clients: presences, voice, members, sounds, channels.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{Action, Guild, Standing, World, over, payloads};
use crate::intents::Intents;

const PRESENCE_WINDOW: Duration = Duration::from_secs(20);
const PRESENCES: usize = 5;
/// All members of a guild can be requested once in this time.
const MEMBERS_WINDOW: Duration = Duration::from_secs(30);
const CHUNK: usize = 1000;
const MAX_NONCE: usize = 32;
/// The maximum number of members that a request may name by their ids, or that a prefix finds.
const MEMBERS: usize = 100;

/// What an op 8 requests.
struct MemberRequest {
    guild: Guild,
    query: Option<String>,
    user_ids: Vec<u64>,
    limit: usize,
    presences: bool,
    nonce: Option<String>,
}

impl World {
    pub(super) fn command(&mut self, now: Instant, connection: usize, op: u64, data: &Value) {
        let session = self
            .connections
            .get(&connection)
            .and_then(|client| client.session.clone());
        let Some(session) = session.filter(|session| self.sessions.contains_key(session)) else {
            if self
                .connections
                .get(&connection)
                .is_some_and(|client| client.standing == Standing::Invalidated)
            {
                // The client sent it before it learned that its session has ended.
                return self.record(
                    now,
                    connection,
                    Action::Command {
                        op,
                        data: data.clone(),
                    },
                );
            }
            return self.refuse(
                now,
                connection,
                4003,
                "a command is allowed only after READY",
            );
        };

        self.record(
            now,
            connection,
            Action::Command {
                op,
                data: data.clone(),
            },
        );
        let broken = match op {
            3 => self.presence(now, connection, data),
            4 => self.voice_state(&session, data),
            8 => self.members(now, connection, &session, data),
            31 => self.sounds(&session, data),
            _ => self.channels(&session, data),
        };
        if let Err((code, rule)) = broken {
            self.refuse(now, connection, code, rule);
        }
    }

    fn presence(
        &mut self,
        now: Instant,
        connection: usize,
        data: &Value,
    ) -> Result<(), (u16, &'static str)> {
        let window = self.scaled(PRESENCE_WINDOW);
        let Some(client) = self.connections.get_mut(&connection) else {
            return Ok(());
        };

        if over(&mut client.presences, now, window, PRESENCES) {
            return Err((4008, "at most 5 presences per 20 s"));
        }

        if data.get("since").is_none() {
            // Not documented, but observed from Discord.
            return Err((4001, "a presence must have since, which may be null"));
        }

        check_presence(data)?;
        if !is_presence(data) {
            self.warn(now, connection, 4002, PRESENCE);
        }
        Ok(())
    }

    fn voice_state(&mut self, session: &str, data: &Value) -> Result<(), (u16, &'static str)> {
        let channel = id(&data["channel_id"]);
        let is_whole = (channel.is_some() || data["channel_id"].is_null())
            && data["self_mute"].is_boolean()
            && data["self_deaf"].is_boolean();
        let guild = id(&data["guild_id"]).filter(|_| is_whole);
        let guild = guild.ok_or((
            4002,
            "a voice state must have guild_id, channel_id, self_mute and self_deaf",
        ))?;
        let Some(guild) = self
            .guild(guild)
            .filter(|guild| channel.is_none_or(|id| id == guild.voice_channel()))
        else {
            return Ok(());
        };

        let mut state = payloads::voice_state(guild, channel, payloads::BOT, session);
        state["self_mute"] = data["self_mute"].clone();
        state["self_deaf"] = data["self_deaf"].clone();
        self.dispatch_to_guild(Some(guild.id), "VOICE_STATE_UPDATE", &state);

        if channel.is_some() {
            let server = json!({"token": "simulated", "guild_id": guild.id.to_string(), "endpoint": "voice.invalid:443"});
            self.dispatch(session, "VOICE_SERVER_UPDATE", &server);
        }
        Ok(())
    }

    /// Answers op 8 with chunks, or with `RATE_LIMITED`.
    ///
    /// Source: [Discord, Request Guild
    /// Members](https://docs.discord.com/developers/events/gateway-events#request-guild-members).
    fn members(
        &mut self,
        now: Instant,
        connection: usize,
        session: &str,
        data: &Value,
    ) -> Result<(), (u16, &'static str)> {
        let Some(request) = self.member_request(data)? else {
            return Ok(());
        };
        let intents = self
            .sessions
            .get(session)
            .map_or(Intents::empty(), |session| session.intents);
        let is_whole = request.query.as_deref() == Some("") && request.limit == 0;

        if is_whole {
            // The documentation requires the intent, but does not say what happens without it.
            if !intents.contains(Intents::GUILD_MEMBERS) {
                let rule = "a request for all members needs the intent GUILD_MEMBERS";
                self.violation(now, connection, rule, false);
                return Ok(());
            }
            let next = self
                .member_requests
                .get(&request.guild.id)
                .map(|last| *last + self.scaled(MEMBERS_WINDOW));
            if let Some(next) = next.filter(|next| now < *next) {
                let rule = "all members of a guild once per 30 s";
                self.violation(now, connection, rule, true);
                let mut meta = json!({"guild_id": request.guild.id.to_string()});
                if let Some(nonce) = request.nonce {
                    meta["nonce"] = nonce.into();
                }
                let limited =
                    json!({"opcode": 8, "retry_after": (next - now).as_secs_f64(), "meta": meta});
                self.dispatch(session, "RATE_LIMITED", &limited);
                return Ok(());
            }
            self.member_requests.insert(request.guild.id, now);
        }

        self.chunks(session, &request, intents);
        Ok(())
    }

    /// Parses an op 8. `None` for a guild that the bot is not in; such a request gets no answer.
    fn member_request(&self, data: &Value) -> Result<Option<MemberRequest>, (u16, &'static str)> {
        let guild =
            id(&data["guild_id"]).ok_or((4002, "a member request must have one guild_id"))?;
        let query = data["query"].as_str().map(str::to_owned);
        let user_ids = match &data["user_ids"] {
            Value::Null => None,
            Value::Array(ids) => Some(ids.iter().filter_map(id).collect::<Vec<_>>()),
            one => Some(id(one).into_iter().collect()),
        };
        if query.is_some() == user_ids.is_some() {
            return Err((4002, "a member request must have either query or user_ids"));
        }

        let limit = data["limit"]
            .as_u64()
            .and_then(|limit| usize::try_from(limit).ok());
        if query.is_some() && limit.is_none() {
            return Err((4002, "a member request with query must have a limit"));
        }

        let user_ids = user_ids.unwrap_or_default();
        if user_ids.len() > MEMBERS {
            return Err((4002, "a member request may have at most 100 user_ids"));
        }

        let nonce = data["nonce"]
            .as_str()
            .filter(|nonce| nonce.len() <= MAX_NONCE)
            .map(str::to_owned);
        let presences = data["presences"] == true;
        let limit = limit.unwrap_or_default();
        Ok(self.guild(guild).map(|guild| MemberRequest {
            guild,
            query,
            user_ids,
            limit,
            presences,
            nonce,
        }))
    }

    fn chunks(&mut self, session: &str, request: &MemberRequest, intents: Intents) {
        let guild = request.guild;
        let most = if request.limit == 0 {
            MEMBERS
        } else {
            request.limit.min(MEMBERS)
        };

        let (found, not_found): (Vec<u64>, Vec<u64>) = match request.query.as_deref() {
            Some("") if request.limit == 0 => (self.member_ids(guild).collect(), Vec::new()),
            Some(prefix) => {
                let matching = self
                    .member_ids(guild)
                    .filter(|id| payloads::username(*id).starts_with(prefix));
                (matching.take(most).collect(), Vec::new())
            }
            None => request
                .user_ids
                .iter()
                .partition(|id| self.is_member(guild, **id)),
        };

        let mut chunks: Vec<&[u64]> = found.chunks(CHUNK).collect();
        if chunks.is_empty() {
            chunks.push(&[]);
        }

        let count = chunks.len();
        for (index, chunk) in chunks.into_iter().enumerate() {
            let mut data = json!({
                "guild_id": guild.id.to_string(),
                "members": chunk.iter().filter_map(|id| self.member(guild, *id)).collect::<Vec<_>>(),
                "chunk_index": index,
                "chunk_count": count,
            });
            if !not_found.is_empty() {
                data["not_found"] = not_found
                    .iter()
                    .map(u64::to_string)
                    .collect::<Vec<_>>()
                    .into();
            }
            if request.presences && intents.contains(Intents::GUILD_PRESENCES) {
                let presences = chunk
                    .iter()
                    .map(|id| payloads::presence(guild, *id, "online"));
                data["presences"] = presences.collect::<Vec<_>>().into();
            }
            if let Some(nonce) = &request.nonce {
                data["nonce"] = nonce.as_str().into();
            }
            self.dispatch(session, "GUILD_MEMBERS_CHUNK", &data);
        }
    }

    fn sounds(&mut self, session: &str, data: &Value) -> Result<(), (u16, &'static str)> {
        let guilds = data["guild_ids"]
            .as_array()
            .ok_or((4002, "a request for sounds must have guild_ids"))?;
        for guild in guilds
            .iter()
            .filter_map(id)
            .filter_map(|id| self.guild(id))
            .collect::<Vec<_>>()
        {
            let guild_id = guild.id.to_string();
            let sound = json!({
                "name": "tada", "sound_id": (guild.id + 5).to_string(), "volume": 1.0, "emoji_id": null,
                "emoji_name": "🎉", "guild_id": guild_id, "available": true,
            });
            let sounds = json!({"guild_id": guild_id, "soundboard_sounds": [sound]});
            self.dispatch(session, "SOUNDBOARD_SOUNDS", &sounds);
        }
        Ok(())
    }

    fn channels(&mut self, session: &str, data: &Value) -> Result<(), (u16, &'static str)> {
        let guild =
            id(&data["guild_id"]).ok_or((4002, "a request for channels must have a guild_id"))?;
        let Some(guild) = self.guild(guild) else {
            return Ok(());
        };
        let channel = json!({"id": guild.voice_channel().to_string(), "status": null, "voice_start_time": null});
        let info = json!({"guild_id": guild.id.to_string(), "channels": [channel]});
        self.dispatch(session, "CHANNEL_INFO", &info);
        Ok(())
    }
}

/// What Discord documents about a presence.
pub(super) const PRESENCE: &str =
    "a presence must have since (whole milliseconds or null), activities (array), status and afk";

/// Whether a presence is as documented.
pub(super) fn is_presence(data: &Value) -> bool {
    (data["since"].is_null() || data["since"].is_u64())
        && data["activities"].is_array()
        && (data["afk"].is_boolean() || data["afk"].is_null())
}

/// Whether Discord accepts a presence. Widely used clients send forms of `since` and `activities`
/// that are not documented.
pub(super) fn check_presence(data: &Value) -> Result<(), (u16, &'static str)> {
    let is_activity = |activity: &Value| activity["name"].is_string() && activity["type"].is_u64();
    let mut activities = data["activities"].as_array().into_iter().flatten();
    let status = data["status"].as_str();
    let is_status = matches!(
        status,
        Some("online" | "dnd" | "idle" | "invisible" | "offline")
    );
    if is_status && activities.all(is_activity) {
        Ok(())
    } else {
        Err((4002, PRESENCE))
    }
}

/// An id, as a string or as a number.
pub(super) fn id(value: &Value) -> Option<u64> {
    value
        .as_str()
        .map_or_else(|| value.as_u64(), |text| text.parse().ok())
}
