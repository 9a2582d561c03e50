//! Which shards open next.
#![deny(clippy::disallowed_methods)]

use std::collections::{HashSet, VecDeque};

use crate::protocol::Stage;
use crate::shard_id::ShardId;

/// The way from the shards that run to those that shall run.
///
/// Shards open in the order given. No more are on their way at once than could identify soon: a crowd of connections
/// that wait for their turn costs threads, descriptors and Discord's patience.
#[derive(Debug)]
pub(crate) struct Transition {
    open: VecDeque<ShardId>,
    /// Opened, but neither identified nor resumed yet.
    under_way: HashSet<ShardId>,
    ahead: usize,
}

/// What a transition asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Open this shard.
    Open(ShardId),
    /// Nothing before a shard gets somewhere.
    Wait,
    /// Everything is open.
    Done,
}

impl Transition {
    /// Opens `shards`, `ahead` at a time.
    pub(crate) fn new(shards: impl IntoIterator<Item = ShardId>, ahead: usize) -> Self {
        Self { open: shards.into_iter().collect(), under_way: HashSet::new(), ahead: ahead.max(1) }
    }

    /// What to do next.
    pub(crate) fn poll(&mut self) -> Step {
        if self.under_way.len() >= self.ahead && !self.open.is_empty() {
            return Step::Wait;
        }
        match self.open.pop_front() {
            Some(shard) => {
                self.under_way.insert(shard);
                Step::Open(shard)
            }
            None => Step::Done,
        }
    }

    /// A shard stands somewhere else now.
    pub(crate) fn handle(&mut self, shard: ShardId, stage: Stage) {
        if matches!(stage, Stage::Identifying | Stage::Resuming | Stage::Ready | Stage::Stopped(_)) {
            self.under_way.remove(&shard);
        }
    }

    /// A shard could not be opened for now; it is next again.
    pub(crate) fn put_back(&mut self, shard: ShardId) {
        if self.under_way.remove(&shard) {
            self.open.push_front(shard);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shard(number: u32) -> ShardId {
        ShardId::new(number, 5).unwrap()
    }

    #[test]
    fn a_few_at_a_time_in_order() {
        let mut transition = Transition::new((0..5).map(shard), 2);
        assert_eq!(transition.poll(), Step::Open(shard(0)));
        assert_eq!(transition.poll(), Step::Open(shard(1)));
        assert_eq!(transition.poll(), Step::Wait);
        transition.handle(shard(1), Stage::Queued);
        assert_eq!(transition.poll(), Step::Wait);
        transition.handle(shard(1), Stage::Identifying);
        transition.handle(shard(1), Stage::Ready);
        assert_eq!(transition.poll(), Step::Open(shard(2)));
        assert_eq!(transition.poll(), Step::Wait);
        transition.put_back(shard(2));
        assert_eq!(transition.poll(), Step::Open(shard(2)));
        transition.handle(shard(0), Stage::Resuming);
        transition.handle(shard(2), Stage::Identifying);
        assert_eq!(transition.poll(), Step::Open(shard(3)));
        assert_eq!(transition.poll(), Step::Open(shard(4)));
        assert_eq!(transition.poll(), Step::Done);
    }
}
