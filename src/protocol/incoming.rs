//! What the machine reads of Discord's payloads.

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

/// What a session needs of READY. Only its id must be there: a server that sends the others in
/// another type must not end the connection.
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
    /// The session that starts at this sequence.
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
    /// Of the request.
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

/// What `RATE_LIMITED` says about a request for members.
pub(super) struct MembersLimited<'a> {
    pub(super) guild: u64,
    /// How long requests for this guild must wait.
    pub(super) pause: Duration,
    pub(super) nonce: Option<&'a str>,
}

impl RateLimited {
    /// `None` if it is about another kind of command.
    pub(super) fn members(&self) -> Option<MembersLimited<'_>> {
        let guild = self.meta.guild_id.parse().ok()?;
        (self.opcode == 8).then(|| MembersLimited {
            guild,
            pause: timing::from_secs(self.retry_after),
            nonce: self.meta.nonce.as_str(),
        })
    }
}

/// What a field holds, if it is of the expected type.
fn lenient<'a, T: Deserialize<'a>>(field: Option<&'a RawValue>) -> Option<T> {
    serde_json::from_str(field?.get()).ok()
}
