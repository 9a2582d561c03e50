//! The data that the machine parses from Discord's payloads.

use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use super::payload::MalformedPayload;
use super::session::Session;
use crate::shard_id::ShardId;
use crate::timing;

/// The data of op 10.
#[derive(Deserialize)]
pub(super) struct Hello {
    /// In milliseconds.
    pub(super) heartbeat_interval: u64,
}

/// The fields of READY that a session needs. Only `session_id` is required: a missing or wrongly
/// typed other field must not end the connection.
#[derive(Deserialize)]
pub(super) struct Ready<'a> {
    session_id: String,
    #[serde(borrow)]
    resume_gateway_url: Option<&'a RawValue>,
    #[serde(borrow)]
    user: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct User {
    id: String,
}

impl Ready<'_> {
    /// Creates the session, which starts at this sequence.
    pub(super) fn session(
        self,
        sequence: u64,
        shard: ShardId,
    ) -> Result<Session, MalformedPayload> {
        if self.session_id.is_empty() {
            return Err(MalformedPayload::SessionId);
        }
        let resume_url = lenient(self.resume_gateway_url).unwrap_or_default();
        let user: Option<User> = lenient(self.user);
        let bot_user_id = user.and_then(|user| user.id.parse().ok()).unwrap_or(0);
        Ok(Session::new(
            self.session_id,
            sequence,
            resume_url,
            shard,
            bot_user_id,
        ))
    }
}

/// The data of `RATE_LIMITED`.
#[derive(Deserialize)]
pub(super) struct RateLimited {
    /// The opcode of the rate-limited request.
    opcode: u64,
    /// In seconds.
    retry_after: f64,
    meta: RateLimitedGuild,
}

#[derive(Deserialize)]
struct RateLimitedGuild {
    guild_id: String,
    #[serde(default)]
    nonce: Value,
}

/// The data of a `RATE_LIMITED` for a request for members.
pub(super) struct MembersLimited<'a> {
    pub(super) guild: u64,
    /// How long requests for members of this guild must wait.
    pub(super) pause: Duration,
    pub(super) nonce: Option<&'a str>,
}

impl RateLimited {
    /// The data, if the rate limit is about a request for members.
    pub(super) fn members(&self) -> Option<MembersLimited<'_>> {
        let guild = self.meta.guild_id.parse().ok()?;
        (self.opcode == 8).then(|| MembersLimited {
            guild,
            pause: timing::from_secs(self.retry_after),
            nonce: self.meta.nonce.as_str(),
        })
    }
}

/// The value of a field, if it has the expected type.
fn lenient<'a, T: Deserialize<'a>>(field: Option<&'a RawValue>) -> Option<T> {
    serde_json::from_str(field?.get()).ok()
}
