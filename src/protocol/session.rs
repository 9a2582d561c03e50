//! A gateway session, which outlives a connection and can outlive a process.

use serde::{Deserialize, Serialize};

use crate::intents::Intents;
use crate::shard_id::ShardId;

/// A gateway session: all that is needed to resume it.
///
/// Store it (it implements serde's traits) and start a shard with it within a few minutes. The
/// shard then resumes the session: this costs no IDENTIFY, and Discord replays the events after
/// `sequence`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Session {
    /// The session id that Discord sent in READY.
    pub id: String,
    /// The sequence to resume from: Discord replays the events after it.
    pub sequence: u64,
    /// The `resume_gateway_url` from READY; empty if there was none, and then the session is
    /// resumed at the main URL.
    pub resume_url: String,
    /// The shard that the session belongs to. A shard with another id or another total does not use
    /// it.
    pub shard: ShardId,
    /// The user id of the bot that the session belongs to; 0 if READY did not contain it.
    pub bot_user_id: u64,
    /// The intents that the session was started with. They apply until the session ends, so a shard
    /// with other intents starts a new session. `None` if they are not known: an older version of
    /// this library stored the session.
    #[serde(default)]
    pub intents: Option<Intents>,
    /// When this copy was taken from the shard, in seconds since the Unix epoch; 0 in a session
    /// that [`Session::new`] made.
    pub saved_at: u64,
}

impl Session {
    /// Creates a session from the data of READY, with unknown intents and a `saved_at` of 0.
    pub fn new(
        id: String,
        sequence: u64,
        resume_url: String,
        shard: ShardId,
        bot_user_id: u64,
    ) -> Self {
        Self {
            id,
            sequence,
            resume_url,
            shard,
            bot_user_id,
            intents: None,
            saved_at: 0,
        }
    }

    /// Sets the intents that the session was started with.
    #[must_use]
    pub fn with_intents(self, intents: Intents) -> Self {
        Self {
            intents: Some(intents),
            ..self
        }
    }

    /// Whether a shard with this id and these intents can resume the session.
    pub(crate) fn fits(&self, shard: ShardId, intents: Intents) -> bool {
        self.shard == shard && self.intents.is_none_or(|own| own == intents)
    }

    /// The log text for a session that [does not fit](Self::fits) the shard.
    pub(crate) fn misfit(&self, intents: Intents) -> String {
        match self.intents {
            Some(own) if own != intents => format!(
                "the session was started with intents {own:?}, not {intents:?}; starting a new one"
            ),
            _ => format!(
                "the session belongs to shard {}; starting a new one",
                self.shard
            ),
        }
    }
}
