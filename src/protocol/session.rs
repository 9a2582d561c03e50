//! What outlives a connection, and a process.

use serde::{Deserialize, Serialize};

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
            saved_at: 0,
        }
    }
}
