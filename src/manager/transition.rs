//! Which shards open next.
#![deny(clippy::disallowed_methods)]

use std::collections::{HashMap, VecDeque};
use std::num::NonZeroU32;

use crate::protocol::Stage;
use crate::shard_id::ShardId;

/// How many windows' worth of shards may be on their way.
const AHEAD: usize = 2;

/// The way from the shards that run to those that shall run.
///
/// Shards open in the order given. No more are on their way at once than could identify soon: a crowd of connections
/// that wait for their turn costs threads, descriptors and Discord's patience. And a shard opens only when the one
/// before it of its rate limit key has taken its place in the queue (or has failed once), so that they identify in order.
#[derive(Debug)]
pub(crate) struct Transition {
    open: VecDeque<ShardId>,
    /// Opened, but neither identified nor resumed yet; `true` once it has asked for its turn.
    under_way: HashMap<ShardId, bool>,
    max_concurrency: NonZeroU32,
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
    /// Opens `shards`, of which `max_concurrency` may identify at once.
    pub(crate) fn new(shards: impl IntoIterator<Item = ShardId>, max_concurrency: NonZeroU32) -> Self {
        Self { open: shards.into_iter().collect(), under_way: HashMap::new(), max_concurrency }
    }

    /// What to do next.
    pub(crate) fn poll(&mut self) -> Step {
        let Some(&shard) = self.open.front() else { return Step::Done };
        let key = |shard: ShardId| shard.rate_limit_key(self.max_concurrency);
        let crowded = self.under_way.len() >= AHEAD * self.max_concurrency.get() as usize;
        if crowded || self.under_way.iter().any(|(other, asked)| !asked && key(*other) == key(shard)) {
            return Step::Wait;
        }
        self.open.pop_front();
        self.under_way.insert(shard, false);
        Step::Open(shard)
    }

    /// A shard stands somewhere else now.
    pub(crate) fn handle(&mut self, shard: ShardId, stage: Stage) {
        match stage {
            Stage::Identifying | Stage::Resuming | Stage::Ready | Stage::Stopped(_) => {
                self.under_way.remove(&shard);
            }
            Stage::Queued | Stage::Waiting => {
                if let Some(asked) = self.under_way.get_mut(&shard) {
                    *asked = true;
                }
            }
            Stage::Connecting | Stage::AwaitingHello => {}
        }
    }

    /// A shard could not be opened for now; it is next again.
    pub(crate) fn put_back(&mut self, shard: ShardId) {
        if self.under_way.remove(&shard).is_some() {
            self.open.push_front(shard);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shard(number: u32) -> ShardId {
        ShardId::new(number, 9).unwrap()
    }

    fn transition(shards: u32, max_concurrency: u32) -> Transition {
        Transition::new((0..shards).map(shard), NonZeroU32::new(max_concurrency).unwrap())
    }

    /// Opens what may be opened.
    fn opened(transition: &mut Transition) -> Vec<u32> {
        let mut opened = Vec::new();
        while let Step::Open(shard) = transition.poll() {
            opened.push(shard.number());
        }
        opened
    }

    #[test]
    fn two_windows_at_a_time() {
        let mut transition = transition(9, 2);
        assert_eq!(opened(&mut transition), [0, 1]);
        transition.handle(shard(0), Stage::Queued);
        transition.handle(shard(1), Stage::Queued);
        assert_eq!(opened(&mut transition), [2, 3]);
        transition.handle(shard(2), Stage::Queued);
        transition.handle(shard(3), Stage::Queued);
        assert_eq!(transition.poll(), Step::Wait, "four are on their way");
        transition.handle(shard(0), Stage::Identifying);
        transition.handle(shard(0), Stage::Ready);
        assert_eq!(opened(&mut transition), [4]);
        transition.handle(shard(1), Stage::Resuming);
        assert_eq!(opened(&mut transition), [5]);
        transition.put_back(shard(5));
        assert_eq!(opened(&mut transition), [5]);
        for number in 2..9 {
            transition.handle(shard(number), Stage::Ready);
            opened(&mut transition);
        }
        assert_eq!(transition.poll(), Step::Done);
    }

    #[test]
    fn nobody_overtakes_within_a_key_and_nobody_holds_it_back_for_good() {
        let mut transition = transition(4, 2);
        assert_eq!(opened(&mut transition), [0, 1]);
        transition.handle(shard(1), Stage::Queued);
        assert_eq!(transition.poll(), Step::Wait, "shard 0 has not asked for its turn");
        transition.handle(shard(0), Stage::Connecting);
        assert_eq!(transition.poll(), Step::Wait);
        transition.handle(shard(0), Stage::Waiting);
        assert_eq!(opened(&mut transition), [2, 3], "it cannot connect: it holds nobody back");
    }
}
