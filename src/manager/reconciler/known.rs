//! What a transition must know about shards, taken from their newest runs.
#![deny(clippy::disallowed_methods)]

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use super::open::Opening;
use super::reshard::Reshard;
use super::transition::Progress;
use super::{Facts, Role, Slot};
use crate::protocol::Session;
use crate::shard::Run;
use crate::shard_id::ShardId;

/// Answers the transition's questions about shards from their newest runs.
pub(super) struct Known<'a, F> {
    pub(super) slots: &'a BTreeMap<ShardId, Slot>,
    pub(super) opening: &'a BTreeMap<ShardId, Opening>,
    pub(super) reshard: Option<&'a Reshard>,
    pub(super) sessions: &'a HashMap<ShardId, Session>,
    pub(super) facts: &'a F,
    pub(super) skew: Duration,
    pub(super) now: Instant,
    /// Runs that may not have read far enough, and should be probed.
    pub(super) behind: RefCell<Vec<Run>>,
}

impl<F: Facts> Progress for Known<'_, F> {
    fn may_open(&self, shard: ShardId) -> bool {
        let reshard = self.reshard;
        let reshard = reshard.filter(|reshard| reshard.to.contains(&shard));
        let number = reshard.map(|reshard| reshard.number);
        let is_in_the_way = |slot: &Slot| {
            let is_of_old_set = number.is_some() && slot.role == Role::Active;
            !slot.is_over() && !is_of_old_set && slot.run.shard.overlaps(shard)
        };
        let opens = |other: &Opening| other.reshard == number && other.run.shard.overlaps(shard);
        !self.opening.values().any(opens) && !self.slots.values().any(is_in_the_way)
    }

    fn has_session(&self, shard: ShardId) -> bool {
        let previous = self.slots.get(&shard);
        self.sessions.contains_key(&shard)
            || previous.is_some_and(|slot| self.facts.has_session(slot.run))
    }

    fn has_read(&self, shard: ShardId, up_to: Instant) -> bool {
        let Some(slot) = self.slots.get(&shard).filter(|slot| slot.runs()) else {
            return true;
        };
        // Discord promises no order between the connections of the two sets.
        let up_to = up_to + self.skew;
        let has_read = self.facts.has_read(slot.run, up_to);
        if !has_read && self.now >= up_to {
            self.behind.borrow_mut().push(slot.run);
        }
        has_read
    }

    fn delivered(&self, shard: ShardId) -> u64 {
        let slot = self.slots.get(&shard);
        slot.map_or(0, |slot| self.facts.delivered(slot.run))
    }

    fn has_handled(&self, shard: ShardId, count: u64) -> bool {
        let slot = self.slots.get(&shard);
        slot.is_none_or(|slot| self.facts.has_handled(slot.run, count))
    }

    fn is_in_doubt(&self) -> bool {
        self.facts.is_in_doubt()
    }
}
