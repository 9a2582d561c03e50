//! What handlers get of a manager.

use std::fmt;
use std::sync::Weak;

use super::Fleet;
use crate::protocol::CloseReason;
use crate::rest::Rest;
use crate::shard::Shard;
use crate::shard_id::ShardId;

/// A manager as its handlers see it: weak, cheap to clone, safe to keep anywhere.
///
/// It does not keep the manager alive. None of its methods blocks, but [`rest`](Self::rest)'s requests do.
#[derive(Clone)]
pub struct Handle {
    pub(super) fleet: Weak<Fleet>,
    pub(super) rest: Rest,
}

impl Handle {
    /// A shard, if it runs here.
    pub fn shard(&self, id: ShardId) -> Option<Shard> {
        self.fleet.upgrade()?.shard(id)
    }

    /// The shard that receives the events of a guild, if it runs here.
    pub fn shard_by_guild(&self, guild_id: u64) -> Option<Shard> {
        self.fleet.upgrade()?.shard_by_guild(guild_id)
    }

    /// Every shard that was opened, by number.
    pub fn shards(&self) -> Vec<Shard> {
        self.fleet.upgrade().map(|fleet| fleet.shards()).unwrap_or_default()
    }

    /// Discord's HTTP interface.
    pub fn rest(&self) -> &Rest {
        &self.rest
    }

    /// How many handlers have panicked.
    pub fn handler_panics(&self) -> u64 {
        self.fleet.upgrade().map_or(0, |fleet| fleet.handler_panics())
    }

    /// Asks every shard to end its session and stop. Does not wait for it; the stream of events ends when they have.
    pub fn close(&self) {
        if let Some(fleet) = self.fleet.upgrade() {
            fleet.stop(CloseReason::Requested);
        }
    }

    /// Asks every shard to stop so that its session can be resumed. Does not wait for it;
    /// [`ShardManager::suspend`](crate::ShardManager::suspend) gives the sessions.
    pub fn suspend(&self) {
        if let Some(fleet) = self.fleet.upgrade() {
            fleet.stop(CloseReason::Suspended);
        }
    }
}

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handle").field("shards", &self.shards().len()).finish_non_exhaustive()
    }
}
