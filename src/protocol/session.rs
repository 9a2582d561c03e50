//! What outlives a connection, and a process.

use serde::{Deserialize, Serialize};

use crate::intents::Intents;
use crate::shard_id::ShardId;

/// A session with Discord, enough to resume it.
///
/// Store it (it is serde) and start with it again within a few minutes: the shard then resumes, no
/// IDENTIFY is spent, and Discord replays what came after `sequence`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Session {
    /// Discord's name for the session.
    pub id: String,
    /// The sequence to resume from.
    pub sequence: u64,
    /// Where Discord wants it resumed.
    pub resume_url: String,
    /// The shard that it belongs to; a session of another shard or total is not used.
    pub shard: ShardId,
    /// The bot that it belongs to.
    pub bot_user_id: u64,
    /// What it was started to hear about. Discord goes by these until the session ends, so that a
    /// shard with other intents starts a new one. `None` if that is not known, for a session that
    /// an older version of this library stored.
    #[serde(default)]
    pub intents: Option<Intents>,
    /// When it was taken, in seconds since the Unix epoch; 0 while it is in use.
    pub saved_at: u64,
}

impl Session {
    /// A session as READY describes it.
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

    /// With the intents that it was started with.
    #[must_use]
    pub fn with_intents(self, intents: Intents) -> Self {
        Self {
            intents: Some(intents),
            ..self
        }
    }

    /// Whether a shard that wants to hear about `intents` can resume it.
    pub(crate) fn fits(&self, shard: ShardId, intents: Intents) -> bool {
        self.shard == shard && self.intents.is_none_or(|own| own == intents)
    }

    /// Why it is not resumed by a shard that it does not fit.
    pub(crate) fn misfit(&self, intents: Intents) -> String {
        match self.intents {
            Some(own) if own != intents => format!(
                "the session was started with the intents {own:?}, not {intents:?}: a new one is \
                 started"
            ),
            _ => format!("the session of shard {} is not used", self.shard),
        }
    }
}
