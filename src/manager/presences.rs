//! Which presence a shard starts with.

use std::collections::BTreeMap;

use crate::protocol::Command;
use crate::shard::Shard;
use crate::shard_id::ShardId;

/// The presences that were set by commands, for shards that open later.
#[derive(Debug, Default)]
pub(super) struct Presences {
    /// The one that all shards were given last.
    all: Option<Command>,
    /// Those of shards that are gone, if they were set later.
    gone: BTreeMap<ShardId, Command>,
}

impl Presences {
    /// Every shard was given this one.
    pub(super) fn set_all(&mut self, presence: Command) {
        self.gone.clear();
        self.all = Some(presence);
    }

    /// A shard is gone.
    pub(super) fn keep(&mut self, shard: &Shard) {
        let presence = shard.last_presence();
        self.gone
            .extend(presence.map(|presence| (shard.id(), presence)));
    }

    /// The presence that was set last for the guilds of a shard that opens: that of a shard that
    /// has some of them, of one that had, or of all.
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
