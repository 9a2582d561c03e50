//! IDENTIFY and RESUME: the payloads that contain the token.

use std::fmt;

use serde::Serialize;
use serde_json::{Value, json};

use super::{Command, Presence};
use crate::intents::Intents;
use crate::protocol::Session;
use crate::shard_id::ShardId;
use crate::token::Token;

/// The data that a bot sends in IDENTIFY.
///
/// Source: [Discord, Identify](https://docs.discord.com/developers/events/gateway-events#identify).
#[derive(Clone, Debug)]
pub struct Identity {
    /// The bot's token.
    pub token: Token,
    /// The intents: which events Discord sends.
    pub intents: Intents,
    /// The library name that Discord sees: the `browser` and `device` properties.
    pub library: String,
    /// The number of members from which Discord leaves a guild's offline members out (50 to 250).
    pub large_threshold: u16,
    /// Whether Discord should compress each payload separately.
    pub compress: bool,
    /// The initial presence.
    pub presence: Option<Presence>,
}

impl Identity {
    /// The IDENTIFY payload of a shard. `presence`, if given, replaces the presence of the
    /// identity: it is the one that a command has set since.
    pub fn identify(&self, shard: ShardId, presence: Option<&Command>) -> Secret {
        #[derive(Serialize)]
        struct Data<'a> {
            token: &'a str,
            properties: Value,
            intents: u64,
            compress: bool,
            large_threshold: u16,
            shard: ShardId,
            #[serde(skip_serializing_if = "Option::is_none")]
            presence: Option<Value>,
        }

        let data = Data {
            token: self.token.expose(),
            properties: json!({"os": std::env::consts::OS, "browser": self.library, "device": self.library}),
            intents: self.intents.bits(),
            compress: self.compress,
            large_threshold: self.large_threshold,
            shard,
            presence: presence
                .map(Command::data)
                .or_else(|| self.presence.as_ref().map(|presence| json!(presence))),
        };
        Secret(json!({"op": 2, "d": data}).to_string())
    }

    /// The RESUME payload of a session.
    pub fn resume(&self, session: &Session) -> Secret {
        let token = self.token.expose();
        Secret(json!({"op": 6, "d": {"token": token, "session_id": session.id, "seq": session.sequence}}).to_string())
    }
}

/// A payload that contains the token. Its `Debug` output does not show the payload.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// The payload as JSON. Keep it out of logs.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::OnlineStatus;

    #[test]
    fn the_wire_format() {
        let mut identity = Identity {
            token: Token::new("a.b.c").unwrap(),
            intents: Intents::GUILDS,
            library: "threadcord".into(),
            large_threshold: 50,
            compress: false,
            presence: None,
        };

        let shard = ShardId::new(1, 2).unwrap();
        let identify = |identity: &Identity, presence: Option<&Command>| -> Value {
            serde_json::from_str(identity.identify(shard, presence).expose()).unwrap()
        };
        let plain = identify(&identity, None);
        assert_eq!(plain["d"]["shard"], json!([1, 2]));
        assert_eq!(plain["d"]["token"], "a.b.c");
        assert!(plain["d"].get("presence").is_none());
        identity.presence = Some(Presence::new(OnlineStatus::Idle));
        assert_eq!(identify(&identity, None)["d"]["presence"]["status"], "idle");
        let later = Command::presence(&Presence::new(OnlineStatus::DoNotDisturb)).unwrap();
        assert_eq!(
            identify(&identity, Some(&later))["d"]["presence"]["status"],
            "dnd",
            "the latest presence counts"
        );
        let session = Session::new("s".into(), 9, String::new(), shard, 0);
        let resume: Value = serde_json::from_str(identity.resume(&session).expose()).unwrap();
        assert!(!format!("{:?} {identity:?}", identity.resume(&session)).contains("a.b.c"));
        assert_eq!(
            resume,
            json!({"op": 6, "d": {"token": "a.b.c", "session_id": "s", "seq": 9}})
        );
    }
}
