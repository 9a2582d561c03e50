//! Outbound payloads, to JSON.

use std::fmt;

use serde::Serialize;
use serde_json::{Value, json};

use super::session::Session;
use crate::intents::Intents;
use crate::shard_id::ShardId;
use crate::token::Token;

/// The greatest size of a payload to Discord, in bytes of JSON; above it Discord closes with 4002.
///
/// Source: [Discord, Sending events](https://docs.discord.com/developers/events/gateway#sending-events).
pub const MAX_PAYLOAD: usize = 4096;

/// Opcode of a presence update.
const PRESENCE_UPDATE: u64 = 3;

/// Opcode of a request for the members of a guild.
const REQUEST_GUILD_MEMBERS: u64 = 8;

/// How many members may be asked for by their ids.
///
/// Source: [Discord, Request Guild Members](https://docs.discord.com/developers/events/gateway-events#request-guild-members).
const MAX_USER_IDS: usize = 100;

/// The longest nonce, in bytes; Discord ignores a longer one, and answers that nobody can tell apart come back.
///
/// Source: as above.
const MAX_NONCE: usize = 32;

/// Something to say to Discord on a shard's connection, checked when it is built.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Command {
    op: u64,
    json: String,
}

impl Command {
    /// A payload as it goes over the wire: an object with an `op`.
    ///
    /// Heartbeats (1), IDENTIFY (2) and RESUME (6) are the library's own and refused; and so is what Discord would answer with
    /// a close or not at all: a presence whose `activities` are not an array, a request for members with both or neither of
    /// `query` and `user_ids`, with over 100 ids, or with a nonce of over 32 bytes.
    pub fn raw(payload: &Value) -> Result<Self, InvalidCommand> {
        let object = payload.as_object().ok_or(InvalidCommand::NotAnObject)?;
        let op = object.get("op").and_then(Value::as_u64).ok_or(InvalidCommand::NoOpcode)?;
        if matches!(op, 1 | 2 | 6) {
            return Err(InvalidCommand::Reserved(op));
        }
        let data = &payload["d"];
        match op {
            PRESENCE_UPDATE if !data["activities"].is_array() => return Err(InvalidCommand::Activities),
            REQUEST_GUILD_MEMBERS => check_member_request(data)?,
            _ => {}
        }
        let json = payload.to_string();
        if json.len() > MAX_PAYLOAD {
            return Err(InvalidCommand::TooLarge(json.len()));
        }
        Ok(Self { op, json })
    }

    /// The payload.
    pub fn json(&self) -> &str {
        &self.json
    }

    /// The guild that it names, if it names one.
    pub(crate) fn guild_id(&self) -> Option<u64> {
        let payload: Value = serde_json::from_str(&self.json).ok()?;
        let guild = &payload["d"]["guild_id"];
        guild.as_str().map_or(guild.as_u64(), |id| id.parse().ok())
    }

    /// Whether it counts against the limit of presence updates.
    pub(crate) fn is_presence(&self) -> bool {
        self.op == PRESENCE_UPDATE
    }
}

fn check_member_request(data: &Value) -> Result<(), InvalidCommand> {
    if data["query"].is_null() == data["user_ids"].is_null() {
        return Err(InvalidCommand::QueryOrUserIds);
    }
    match data["user_ids"].as_array().map(Vec::len) {
        Some(count) if count > MAX_USER_IDS => return Err(InvalidCommand::TooManyUserIds(count)),
        _ => {}
    }
    match data["nonce"].as_str().map(str::len) {
        Some(length) if length > MAX_NONCE => Err(InvalidCommand::NonceTooLong(length)),
        _ => Ok(()),
    }
}

/// Why something cannot be sent.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidCommand {
    /// The payload is some other JSON value.
    #[error("the payload is not a JSON object")]
    NotAnObject,
    /// The payload does not say what it is.
    #[error("the payload has no `op`, or it is not a whole number")]
    NoOpcode,
    /// The library sends these itself.
    #[error("op {0} is sent by the library itself: 1, 2 and 6 are refused")]
    Reserved(u64),
    /// Discord would close the connection.
    #[error("the `activities` of a presence are not an array: give an empty one for none")]
    Activities,
    /// Discord answers one kind of question at a time.
    #[error("a request for members has one of `query` and `user_ids`")]
    QueryOrUserIds,
    /// Discord tells of so many members at once, and no more.
    #[error("a request for members has {0} `user_ids`, allowed are 100: ask several times")]
    TooManyUserIds(usize),
    /// Discord would ignore it.
    #[error("the nonce has {0} bytes, allowed are 32")]
    NonceTooLong(usize),
    /// Discord would close the connection.
    #[error("the payload has {0} bytes, allowed are 4096")]
    TooLarge(usize),
}

/// What IDENTIFY says about a bot.
///
/// Source: [Discord, Identify](https://docs.discord.com/developers/events/gateway-events#identify).
#[derive(Clone, Debug)]
pub struct Identity {
    /// The bot's token.
    pub token: Token,
    /// What it wants to hear about.
    pub intents: Intents,
    /// The name of the library that Discord is told.
    pub library: String,
    /// From how many members on a guild's offline members are left out (50 to 250).
    pub large_threshold: u16,
    /// Whether Discord shall compress each payload by itself.
    pub compress: bool,
    /// The presence to start with: the `d` of a presence update.
    pub presence: Option<Value>,
}

impl Identity {
    /// The IDENTIFY of a shard.
    pub fn identify(&self, shard: ShardId) -> Secret {
        #[derive(Serialize)]
        struct Data<'a> {
            token: &'a str,
            properties: Value,
            intents: u64,
            compress: bool,
            large_threshold: u16,
            shard: ShardId,
            #[serde(skip_serializing_if = "Option::is_none")]
            presence: Option<&'a Value>,
        }
        let data = Data {
            token: self.token.expose(),
            properties: json!({"os": std::env::consts::OS, "browser": self.library, "device": self.library}),
            intents: self.intents.bits(),
            compress: self.compress,
            large_threshold: self.large_threshold,
            shard,
            presence: self.presence.as_ref(),
        };
        Secret(json!({"op": 2, "d": data}).to_string())
    }

    /// The RESUME of a session.
    pub fn resume(&self, session: &Session) -> Secret {
        let token = self.token.expose();
        Secret(json!({"op": 6, "d": {"token": token, "session_id": session.id, "seq": session.sequence}}).to_string())
    }
}

/// A payload with the token in it. `Debug` does not show it.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// The payload. Keep it out of logs.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// A heartbeat with the last sequence.
pub(crate) fn heartbeat(sequence: Option<u64>) -> String {
    json!({"op": 1, "d": sequence}).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

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
        let error = raw(json!({"op": 31, "d": "x".repeat(MAX_PAYLOAD - envelope + 1)})).unwrap_err();
        assert!(error.to_string().contains("4097"), "{error}");
    }

    #[test]
    fn what_discord_would_ignore_or_punish_is_refused() {
        let members = |data: Value| Command::raw(&json!({"op": 8, "d": data}));
        assert!(members(json!({"guild_id": "1", "query": "", "limit": 0, "nonce": "n".repeat(32)})).is_ok());
        assert!(members(json!({"guild_id": "1", "user_ids": vec!["1"; 100]})).is_ok());
        let long = members(json!({"guild_id": "1", "query": "", "limit": 0, "nonce": "ü".repeat(17)}));
        assert_eq!(long, Err(InvalidCommand::NonceTooLong(34)), "bytes, not characters");
        let both = members(json!({"guild_id": "1", "query": "", "user_ids": ["1"]}));
        assert_eq!(both, Err(InvalidCommand::QueryOrUserIds));
        assert_eq!(members(json!({"guild_id": "1"})), Err(InvalidCommand::QueryOrUserIds));
        let many = members(json!({"guild_id": "1", "user_ids": vec!["1"; 101]}));
        assert_eq!(many, Err(InvalidCommand::TooManyUserIds(101)));
        for activities in [Value::Null, json!({})] {
            let presence =
                json!({"op": 3, "d": {"since": null, "activities": activities, "status": "idle", "afk": false}});
            assert_eq!(Command::raw(&presence), Err(InvalidCommand::Activities));
        }
    }

    #[test]
    fn the_wire_format() {
        let identity = Identity {
            token: Token::new("a.b.c").unwrap(),
            intents: Intents::GUILDS,
            library: "threadcord".into(),
            large_threshold: 50,
            compress: false,
            presence: None,
        };
        let shard = ShardId::new(1, 2).unwrap();
        let identify: Value = serde_json::from_str(identity.identify(shard).expose()).unwrap();
        assert_eq!(identify["d"]["shard"], json!([1, 2]));
        assert_eq!(identify["d"]["token"], "a.b.c");
        assert!(identify["d"].get("presence").is_none());
        let session = Session::new("s".into(), 9, String::new(), shard, 0);
        let resume: Value = serde_json::from_str(identity.resume(&session).expose()).unwrap();
        assert!(!format!("{:?} {identity:?}", identity.resume(&session)).contains("a.b.c"));
        assert_eq!(resume, json!({"op": 6, "d": {"token": "a.b.c", "session_id": "s", "seq": 9}}));
        assert_eq!(heartbeat(None), r#"{"d":null,"op":1}"#);
    }
}
