//! Outbound payloads: the commands and their JSON.

mod identity;
mod members;
mod presence;

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

pub use identity::{Identity, Secret};
pub use members::MemberQuery;
pub use presence::{Activity, ActivityKind, OnlineStatus, Presence};

/// The largest payload that Discord accepts, in bytes of JSON. Discord closes the connection with
/// 4002 if a payload is larger.
///
/// Source: [Discord, Sending
/// events](https://docs.discord.com/developers/events/gateway#sending-events).
pub const MAX_PAYLOAD: usize = 4096;

/// The largest presence, in bytes of JSON. This limit is the library's own: the latest presence is
/// part of the next IDENTIFY, and the other fields of the IDENTIFY need the rest of
/// [`MAX_PAYLOAD`].
pub const MAX_PRESENCE: usize = 3072;

const PRESENCE_UPDATE: u64 = 3;
const VOICE_STATE_UPDATE: u64 = 4;
const REQUEST_GUILD_MEMBERS: u64 = 8;
const REQUEST_SOUNDBOARD_SOUNDS: u64 = 31;
const REQUEST_CHANNEL_INFO: u64 = 43;

/// A payload to send to Discord on a shard's connection.
///
/// It is checked when it is built. If Discord would refuse or ignore the payload, or close the
/// connection because of it, building it fails with [`InvalidCommand`], which says what is wrong.
///
/// ```
/// # use threadcord::command::{OnlineStatus, VoiceState};
/// # use threadcord::{Command, Presence};
/// let presence = Command::presence(&Presence::new(OnlineStatus::Idle))?;
/// let join = Command::voice_state(&VoiceState::join(41, 42).self_deaf(true))?;
/// let other = Command::raw(&serde_json::json!({"op": 31, "d": {"guild_ids": ["41"]}}))?;
/// # Ok::<(), threadcord::command::InvalidCommand>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Command {
    op: u64,
    json: String,
    members: Option<MemberScope>,
    nonce: Option<Box<str>>,
}

/// Which members a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct MemberScope {
    pub(crate) guild: u64,
    /// Whether it asks for all members of the guild. Discord has a separate limit for such
    /// requests.
    pub(crate) all: bool,
}

impl Command {
    /// Sets the bot's presence: its status and activities. Up to 3,072 bytes of JSON
    /// ([`MAX_PRESENCE`]).
    ///
    /// At most 5 are sent per 20 s. Only the latest presence is queued, and later IDENTIFYs contain
    /// it too.
    ///
    /// Source: [Discord, Update
    /// Presence](https://docs.discord.com/developers/events/gateway-events#update-presence).
    pub fn presence(presence: &Presence) -> Result<Self, InvalidCommand> {
        Self::raw(&json!({"op": PRESENCE_UPDATE, "d": presence}))
    }

    /// Joins a voice channel, moves to another, or leaves it. This library does not handle the
    /// voice connection itself.
    ///
    /// Source: [Discord, Update Voice
    /// State](https://docs.discord.com/developers/events/gateway-events#update-voice-state).
    pub fn voice_state(state: &VoiceState) -> Result<Self, InvalidCommand> {
        let VoiceState {
            guild_id,
            channel_id,
            self_mute,
            self_deaf,
        } = *state;
        let ids = [("guild_id", Some(guild_id)), ("channel_id", channel_id)];
        if let Some((field, _)) = ids.into_iter().find(|(_, id)| *id == Some(0)) {
            return Err(InvalidCommand::field(field, 0, "an id other than 0"));
        }

        let channel_id = channel_id.map(|id| id.to_string());
        let data = json!({
            "guild_id": guild_id.to_string(),
            "channel_id": channel_id,
            "self_mute": self_mute,
            "self_deaf": self_deaf,
        });
        Self::raw(&json!({"op": VOICE_STATE_UPDATE, "d": data}))
    }

    /// Requests members of a guild. Discord answers with `GUILD_MEMBERS_CHUNK` events, which
    /// contain the nonce, if there is one (up to 32 bytes).
    /// [`Shard::request_members`](crate::Shard::request_members) collects the chunks for you.
    ///
    /// Source: [Discord, Request Guild
    /// Members](https://docs.discord.com/developers/events/gateway-events#request-guild-members).
    pub fn request_members(
        guild_id: u64,
        query: &MemberQuery,
        nonce: Option<&str>,
    ) -> Result<Self, InvalidCommand> {
        Self::raw(&json!({"op": REQUEST_GUILD_MEMBERS, "d": query.data(guild_id, nonce)?}))
    }

    /// Requests the soundboard sounds of guilds. Discord answers with one `SOUNDBOARD_SOUNDS` event
    /// for each guild.
    ///
    /// Source: [Discord, Request Soundboard
    /// Sounds](https://docs.discord.com/developers/events/gateway-events#request-soundboard-sounds).
    pub fn soundboard_sounds(guild_ids: &[u64]) -> Result<Self, InvalidCommand> {
        if guild_ids.is_empty() {
            return Err(InvalidCommand::field(
                "guild_ids",
                "empty",
                "at least one guild",
            ));
        }
        if guild_ids.contains(&0) {
            return Err(InvalidCommand::field("guild_ids", 0, "ids other than 0"));
        }

        let guild_ids: Vec<String> = guild_ids.iter().map(u64::to_string).collect();
        Self::raw(&json!({"op": REQUEST_SOUNDBOARD_SOUNDS, "d": {"guild_ids": guild_ids}}))
    }

    /// Requests the fields of a guild's voice channels that change often. Discord answers with a
    /// `CHANNEL_INFO` event.
    ///
    /// Source: [Discord, Request Channel
    /// Info](https://docs.discord.com/developers/events/gateway-events#request-channel-info).
    pub fn channel_info(guild_id: u64, fields: &[ChannelField]) -> Result<Self, InvalidCommand> {
        if guild_id == 0 {
            return Err(InvalidCommand::field("guild_id", 0, "an id other than 0"));
        }
        if fields.is_empty() {
            return Err(InvalidCommand::field(
                "fields",
                "empty",
                "at least one of `status` and `voice_start_time`",
            ));
        }
        Self::raw(
            &json!({"op": REQUEST_CHANNEL_INFO, "d": {"guild_id": guild_id.to_string(), "fields": fields}}),
        )
    }

    /// Makes a command from a raw payload: a JSON object with an `op`.
    ///
    /// # Errors
    /// - The payload is not an object, has no `op`, or is larger than [`MAX_PAYLOAD`].
    /// - The `op` is 1 (heartbeat), 2 (IDENTIFY) or 6 (RESUME): the library sends these itself.
    /// - Discord would not answer, or would close the connection: the presence is invalid or larger
    ///   than [`MAX_PRESENCE`], or a request for members has both or neither of `query` and
    ///   `user_ids`, a `query` without a `limit`, more than 100 ids, or a nonce of more than 32
    ///   bytes.
    pub fn raw(payload: &Value) -> Result<Self, InvalidCommand> {
        let object = payload.as_object().ok_or(InvalidCommand::NotAnObject)?;
        let op = object
            .get("op")
            .and_then(Value::as_u64)
            .ok_or(InvalidCommand::NoOpcode)?;
        if matches!(op, 1 | 2 | 6) {
            return Err(InvalidCommand::Reserved(op));
        }

        let data = &payload["d"];
        let (mut members, mut nonce) = (None, None);
        match op {
            PRESENCE_UPDATE => check_presence(data)?,
            REQUEST_GUILD_MEMBERS => {
                members::check(data)?;
                let all = data["query"] == "" && data["limit"] == 0;
                members = id(&data["guild_id"]).map(|guild| MemberScope { guild, all });
                nonce = data["nonce"].as_str().map(Box::from);
            }
            _ => {}
        }

        let json = payload.to_string();
        if json.len() > MAX_PAYLOAD {
            return Err(InvalidCommand::TooLarge {
                bytes: json.len(),
                allowed: MAX_PAYLOAD,
            });
        }
        Ok(Self {
            op,
            json,
            members,
            nonce,
        })
    }

    /// The opcode.
    pub fn op(&self) -> u64 {
        self.op
    }

    /// The whole payload as JSON.
    pub fn json(&self) -> &str {
        &self.json
    }

    /// The `d` of the payload.
    pub(crate) fn data(&self) -> Value {
        let payload: Value = serde_json::from_str(&self.json).unwrap_or_default();
        payload["d"].clone()
    }

    /// The `guild_id` in its data, if there is one.
    pub(crate) fn guild_id(&self) -> Option<u64> {
        id(&self.data()["guild_id"])
    }

    /// Which members it asks for, if it is a request for members.
    pub(crate) fn members(&self) -> Option<MemberScope> {
        self.members
    }

    /// The nonce, if it is a request for members that has one.
    pub(crate) fn nonce(&self) -> Option<&str> {
        self.nonce.as_deref()
    }

    pub(crate) fn is_presence(&self) -> bool {
        self.op == PRESENCE_UPDATE
    }
}

/// The voice state of the bot in a guild: its channel, and whether it is muted or deafened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct VoiceState {
    /// The guild.
    pub guild_id: u64,
    /// The voice channel to be in; `None` to leave.
    pub channel_id: Option<u64>,
    /// Whether the bot mutes itself.
    pub self_mute: bool,
    /// Whether the bot deafens itself.
    pub self_deaf: bool,
}

impl VoiceState {
    /// Joins a channel, neither muted nor deafened.
    pub fn join(guild_id: u64, channel_id: u64) -> Self {
        Self {
            guild_id,
            channel_id: Some(channel_id),
            self_mute: false,
            self_deaf: false,
        }
    }

    /// Leaves the voice channels of a guild.
    pub fn leave(guild_id: u64) -> Self {
        Self {
            guild_id,
            channel_id: None,
            self_mute: false,
            self_deaf: false,
        }
    }

    /// Sets [`self_mute`](Self::self_mute).
    pub fn self_mute(self, self_mute: bool) -> Self {
        Self { self_mute, ..self }
    }

    /// Sets [`self_deaf`](Self::self_deaf).
    pub fn self_deaf(self, self_deaf: bool) -> Self {
        Self { self_deaf, ..self }
    }
}

/// A field of a voice channel that changes often and that Discord sends on request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ChannelField {
    /// The status text of the channel.
    Status,
    /// When the current call began.
    VoiceStartTime,
}

/// Why a command is invalid.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidCommand {
    /// The payload is not a JSON object.
    #[error("the payload is not a JSON object")]
    NotAnObject,
    /// The payload has no `op`, or its `op` is not a non-negative integer.
    #[error("the payload has no integer `op`")]
    NoOpcode,
    /// The opcode is reserved: the library sends these payloads itself.
    #[error("op {0} is reserved: the library sends ops 1, 2 and 6 itself")]
    Reserved(u64),
    /// A field has a value that Discord would refuse or ignore.
    #[error("`{field}` is {given}; allowed: {allowed}")]
    Field {
        /// The field of the payload's `d`.
        field: String,
        /// The given value.
        given: String,
        /// The allowed values, or how to fix the field.
        allowed: &'static str,
    },
    /// A request for members has both or neither of `query` and `user_ids`. Discord answers only a
    /// request with exactly one of them.
    #[error("a member request needs exactly one of `query` and `user_ids`")]
    QueryOrUserIds,
    /// The payload, or a presence, is too large.
    #[error("the payload has {bytes} bytes; at most {allowed} are allowed")]
    TooLarge {
        /// Its size in bytes.
        bytes: usize,
        /// The maximum size in bytes: [`MAX_PAYLOAD`], or [`MAX_PRESENCE`] for a presence.
        allowed: usize,
    },
}

impl InvalidCommand {
    pub(crate) fn field(
        field: impl Into<String>,
        given: impl fmt::Display,
        allowed: &'static str,
    ) -> Self {
        Self::Field {
            field: field.into(),
            given: visible(given),
            allowed,
        }
    }
}

/// The given value as it appears in an error. An empty string becomes `""`, because it would be
/// invisible.
pub(crate) fn visible(given: impl fmt::Display) -> String {
    let given = given.to_string();
    if given.is_empty() {
        "\"\"".into()
    } else {
        given
    }
}

fn check_presence(data: &Value) -> Result<(), InvalidCommand> {
    if !data["activities"].is_array() {
        return Err(InvalidCommand::field(
            "activities",
            &data["activities"],
            "an array (empty for no activities)",
        ));
    }

    // Discord closes the connection with 4001 if one is missing.
    for field in ["since", "status", "afk"] {
        if data.get(field).is_none() {
            let allowed = "all of since (null unless the bot is idle), activities, status and afk";
            return Err(InvalidCommand::field(field, "missing", allowed));
        }
    }

    let presence = Presence::deserialize(data).map_err(|error| {
        InvalidCommand::field(
            "d",
            format!("not a valid presence ({error})"),
            "a presence as Discord documents it",
        )
    })?;
    presence.check()?;
    let bytes = data.to_string().len();
    if bytes > MAX_PRESENCE {
        Err(InvalidCommand::TooLarge {
            bytes,
            allowed: MAX_PRESENCE,
        })
    } else {
        Ok(())
    }
}

/// An id in JSON: a string or a number.
fn id(value: &Value) -> Option<u64> {
    value
        .as_str()
        .map_or_else(|| value.as_u64(), |id| id.parse().ok())
}

/// The JSON of a heartbeat with the last sequence.
pub(crate) fn heartbeat(sequence: Option<u64>) -> String {
    json!({"op": 1, "d": sequence}).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent(command: Result<Command, InvalidCommand>) -> Value {
        serde_json::from_str(command.unwrap().json()).unwrap()
    }

    fn refused(command: Result<Command, InvalidCommand>) -> String {
        command.expect_err("refused").to_string()
    }

    #[test]
    fn raw_commands_are_checked() {
        let raw = |value: Value| Command::raw(&value);
        assert_eq!(raw(json!([1])), Err(InvalidCommand::NotAnObject));
        assert_eq!(raw(json!({"d": 1})), Err(InvalidCommand::NoOpcode));
        assert_eq!(raw(json!({"op": "3"})), Err(InvalidCommand::NoOpcode));
        for op in [1, 2, 6] {
            assert_eq!(raw(json!({"op": op})), Err(InvalidCommand::Reserved(op)));
        }
        let envelope = json!({"op": 31, "d": ""}).to_string().len();
        assert!(raw(json!({"op": 31, "d": "x".repeat(MAX_PAYLOAD - envelope)})).is_ok());
        assert!(
            refused(raw(
                json!({"op": 31, "d": "x".repeat(MAX_PAYLOAD - envelope + 1)})
            ))
            .contains("4097")
        );
    }

    #[test]
    fn what_discord_would_ignore_or_punish_is_refused() {
        let members = |data: Value| Command::raw(&json!({"op": 8, "d": data}));
        let whole =
            members(json!({"guild_id": "1", "query": "", "limit": 0, "nonce": "n".repeat(32)}))
                .unwrap();
        assert_eq!(
            whole.members(),
            Some(MemberScope {
                guild: 1,
                all: true
            })
        );
        assert_eq!(whole.nonce().map(str::len), Some(32));
        let some = members(json!({"guild_id": "1", "user_ids": vec!["1"; 100]})).unwrap();
        assert_eq!(
            (some.members(), some.guild_id()),
            (
                Some(MemberScope {
                    guild: 1,
                    all: false
                }),
                Some(1)
            )
        );
        let both = members(json!({"guild_id": "1", "query": "", "user_ids": ["1"]}));
        assert_eq!(both, Err(InvalidCommand::QueryOrUserIds));
        assert_eq!(
            members(json!({"guild_id": "1"})),
            Err(InvalidCommand::QueryOrUserIds)
        );
        assert!(refused(members(json!({"guild_id": "1", "query": "x"}))).contains("`limit`"));
        assert!(
            refused(members(
                json!({"guild_id": "1", "user_ids": vec!["1"; 101]})
            ))
            .contains("101")
        );
        let presence = |data: Value| Command::raw(&json!({"op": 3, "d": data}));

        for activities in [Value::Null, json!({})] {
            let data =
                json!({"since": null, "activities": activities, "status": "idle", "afk": false});
            assert!(refused(presence(data)).contains("empty for no activities"));
        }

        let wrong = json!({"since": null, "activities": [{"type": 9, "name": "x"}], "status": "away", "afk": false});
        assert!(refused(presence(wrong)).contains("0 to 5"));
        let status = json!({"since": null, "activities": [], "status": "away", "afk": false});
        assert!(
            refused(presence(status)).contains("dnd"),
            "the error lists the allowed values"
        );
    }

    #[test]
    fn presences_leave_room_in_an_identify() {
        let many = |count| {
            let presence = Presence::new(OnlineStatus::Online);
            Command::presence(&(0..count).fold(presence, |all, _| {
                all.activity(Activity::playing("x".repeat(100)))
            }))
        };
        assert!(many(20).is_ok());
        assert_eq!(
            many(30),
            Err(InvalidCommand::TooLarge {
                bytes: 3689,
                allowed: MAX_PRESENCE
            })
        );
    }

    #[test]
    fn the_wire_format() {
        let join = sent(Command::voice_state(
            &VoiceState::join(1, 2).self_mute(true),
        ));
        let data =
            json!({"guild_id": "1", "channel_id": "2", "self_mute": true, "self_deaf": false});
        assert_eq!(join, json!({"op": 4, "d": data}));
        assert_eq!(
            sent(Command::voice_state(&VoiceState::leave(1)))["d"]["channel_id"],
            Value::Null
        );
        let sounds = json!({"op": 31, "d": {"guild_ids": ["1", "2"]}});
        assert_eq!(sent(Command::soundboard_sounds(&[1, 2])), sounds);
        let info =
            json!({"op": 43, "d": {"guild_id": "1", "fields": ["status", "voice_start_time"]}});
        assert_eq!(
            sent(Command::channel_info(
                1,
                &[ChannelField::Status, ChannelField::VoiceStartTime]
            )),
            info
        );
        let members = sent(Command::request_members(
            1,
            &MemberQuery::ids([2]),
            Some("n"),
        ));
        assert_eq!(
            (&members["op"], &members["d"]["nonce"]),
            (&json!(8), &json!("n"))
        );
        assert_eq!(heartbeat(None), r#"{"d":null,"op":1}"#);
    }

    #[test]
    fn typed_commands_name_what_is_wrong() {
        assert!(
            refused(Command::voice_state(&VoiceState::join(1, 0))).contains("`channel_id` is 0")
        );
        assert!(refused(Command::voice_state(&VoiceState::leave(0))).contains("`guild_id`"));
        assert!(refused(Command::soundboard_sounds(&[])).contains("`guild_ids` is empty"));
        assert!(refused(Command::soundboard_sounds(&[u64::MAX; 200])).contains("at most 4096"));
        assert!(refused(Command::channel_info(1, &[])).contains("`fields` is empty"));
        assert!(
            refused(Command::channel_info(0, &[ChannelField::Status])).contains("`guild_id` is 0")
        );
        assert!(
            refused(Command::request_members(0, &MemberQuery::all(), None))
                .contains("`guild_id` is 0")
        );
    }
}
