//! The presence that a shard starts with.

use std::collections::BTreeMap;

use crate::protocol::Command;
use crate::shard::Shard;
use crate::shard_id::ShardId;

/// The presences that were set by commands, for shards that open later.
#[derive(Debug, Default)]
pub(super) struct Presences {
    /// The last presence that was set for all shards.
    all: Option<Command>,
    /// Presences of shards that are gone, if they were set after `all`.
    gone: BTreeMap<ShardId, Command>,
}

impl Presences {
    /// Records that every shard was given this presence.
    pub(super) fn set_all(&mut self, presence: Command) {
        self.gone.clear();
        self.all = Some(presence);
    }

    /// Keeps the presence of a shard that is gone.
    pub(super) fn keep(&mut self, shard: &Shard) {
        let presence = shard.last_presence();
        self.gone
            .extend(presence.map(|presence| (shard.id(), presence)));
    }

    /// The presence for a shard that opens: that of a running shard with some of its guilds, else
    /// that of a former shard with some of them, else the one that was set for all.
    pub(super) fn of<'a>(
        &self,
        id: ShardId,
        mut shards: impl Iterator<Item = &'a Shard>,
    ) -> Option<Command> {
        shards
            .find_map(|shard| {
                let is_of_these = shard.id().overlaps(id);
                is_of_these.then(|| shard.last_presence()).flatten()
            })
            .or_else(|| self.gone.get(&id).cloned())
            .or_else(|| {
                let mut gone = self.gone.iter();
                let (_, presence) = gone.find(|(other, _)| other.overlaps(id))?;
                Some(presence.clone())
            })
            .or_else(|| self.all.clone())
    }
}
