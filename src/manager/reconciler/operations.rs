//! The requests that users wait for: which shards each still needs, and how it ended.
#![deny(clippy::disallowed_methods)]

use std::collections::BTreeMap;

use crate::error::Error;
use crate::protocol::{ShardState, StopReason};
use crate::shard_id::ShardId;

/// Names one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(in crate::manager) struct OperationId(u64);

/// What a request waits for a shard to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Goal {
    Ready,
    /// Ready again after a restart; `true` once it has left the ready state.
    ReadyAgain(bool),
    Stopped,
    /// The hand-over of a reshard, which no state of the shard completes.
    HandOver,
}

/// Why a request failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::manager) enum Failure {
    Stopped {
        shard: ShardId,
        reason: StopReason,
    },
    /// A shard's settings are invalid.
    Settings {
        shard: ShardId,
    },
    /// The user cancelled it.
    Cancelled,
    /// A reshard has taken too long.
    ReshardTimeout,
    /// The manager is closed.
    Closed,
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Stopped { shard, reason } => Self::Stopped { shard, reason },
            Failure::Settings { shard } => Self::setting(
                "for_shard",
                format!("one that fails for shard {shard}"),
                "one that works every time",
            ),
            Failure::Cancelled => Self::Cancelled,
            Failure::ReshardTimeout => Self::ReshardTimeout,
            Failure::Closed => Self::Closed,
        }
    }
}

/// The requests that are not finished.
#[derive(Debug, Default)]
pub(super) struct Operations {
    last: u64,
    pending: BTreeMap<OperationId, BTreeMap<ShardId, Goal>>,
    finished: Vec<(OperationId, Result<(), Failure>)>,
}

impl Operations {
    /// Begins a request that is finished once each of these shards has reached its goal.
    pub(super) fn begin(
        &mut self,
        goals: impl IntoIterator<Item = (ShardId, Goal)>,
    ) -> OperationId {
        self.last += 1;
        let id = OperationId(self.last);
        let goals: BTreeMap<_, _> = goals.into_iter().collect();
        if goals.is_empty() {
            self.finished.push((id, Ok(())));
        } else {
            self.pending.insert(id, goals);
        }
        id
    }

    /// The last request that began.
    #[cfg(test)]
    pub(super) fn last(&self) -> OperationId {
        OperationId(self.last)
    }

    /// The next request that has ended, and how. Each is returned once.
    pub(super) fn next_finished(&mut self) -> Option<(OperationId, Result<(), Failure>)> {
        self.finished.pop()
    }

    /// The shards that a request waits for.
    pub(super) fn waiting_for(&self, id: OperationId) -> Vec<ShardId> {
        let goals = self.pending.get(&id);
        goals
            .map(|goals| goals.keys().copied().collect())
            .unwrap_or_default()
    }

    /// Handles the new state of a shard.
    pub(super) fn handle(&mut self, shard: ShardId, stage: ShardState) {
        self.finish_where(|goals| {
            let goal = goals.get_mut(&shard)?;
            match (*goal, stage) {
                (Goal::Ready | Goal::ReadyAgain(true), ShardState::Ready)
                | (Goal::Stopped, ShardState::Stopped(_)) => {
                    goals.remove(&shard);
                }
                (Goal::Ready | Goal::ReadyAgain(_), ShardState::Stopped(reason)) => {
                    return Some(Err(Failure::Stopped { shard, reason }));
                }
                (Goal::ReadyAgain(_), stage) if stage != ShardState::Ready => {
                    *goal = Goal::ReadyAgain(true);
                }
                _ => {}
            }
            goals.is_empty().then_some(Ok(()))
        });
    }

    /// Fails the requests that wait for these shards, which will not reach their goals.
    pub(super) fn fail(&mut self, shards: &[ShardId], failure: Failure) {
        self.finish_where(|goals| {
            let is_meant = shards.iter().any(|shard| goals.contains_key(shard));
            is_meant.then_some(Err(failure))
        });
    }

    /// Fails all requests.
    pub(super) fn fail_all(&mut self, failure: Failure) {
        self.finish_where(|_| Some(Err(failure)));
    }

    /// Makes requests that wait for a shard wait for these shards instead.
    pub(super) fn replace(&mut self, shard: ShardId, by: &[ShardId]) {
        for goals in self.pending.values_mut() {
            if let Some(Goal::Ready | Goal::ReadyAgain(_)) = goals.get(&shard) {
                goals.remove(&shard);
                goals.extend(by.iter().map(|shard| (*shard, Goal::Ready)));
            }
        }
    }

    /// Ends a request, whatever it still waits for.
    pub(super) fn finish(&mut self, id: OperationId, outcome: Result<(), Failure>) {
        if self.pending.remove(&id).is_some() {
            self.finished.push((id, outcome));
        }
    }

    fn finish_where(
        &mut self,
        mut outcome: impl FnMut(&mut BTreeMap<ShardId, Goal>) -> Option<Result<(), Failure>>,
    ) {
        let finished = &mut self.finished;
        self.pending.retain(|id, goals| {
            let outcome = outcome(goals);
            finished.extend(outcome.map(|outcome| (*id, outcome)));
            outcome.is_none()
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shard(number: u32) -> ShardId {
        ShardId::new(number, 4).unwrap()
    }

    #[test]
    fn a_request_waits_for_every_shard() {
        let mut operations = Operations::default();
        let id = operations.begin([
            (shard(0), Goal::Ready),
            (shard(1), Goal::Stopped),
            (shard(2), Goal::ReadyAgain(false)),
        ]);
        operations.handle(shard(0), ShardState::Ready);
        operations.handle(shard(1), ShardState::Stopped(StopReason::Closed));
        operations.handle(shard(2), ShardState::Ready);
        assert_eq!(operations.waiting_for(id), [shard(2)]);
        assert_eq!(operations.next_finished(), None);

        operations.handle(shard(2), ShardState::Connecting);
        operations.handle(shard(2), ShardState::Ready);
        assert_eq!(operations.next_finished(), Some((id, Ok(()))));
        operations.fail_all(Failure::Closed);
        assert_eq!(operations.next_finished(), None, "it finishes once");

        let nothing = operations.begin([]);
        assert_eq!(operations.next_finished(), Some((nothing, Ok(()))));
    }

    #[test]
    fn a_shard_that_stops_fails_it_unless_others_take_its_place() {
        let mut operations = Operations::default();
        let id = operations.begin([(shard(0), Goal::Ready)]);
        let by = [ShardId::new(0, 8).unwrap(), ShardId::new(4, 8).unwrap()];
        operations.replace(shard(0), &by);
        operations.handle(shard(0), ShardState::Stopped(StopReason::Closed));
        operations.handle(by[0], ShardState::Ready);
        assert_eq!(operations.next_finished(), None);

        let reason = StopReason::CircuitOpen;
        operations.handle(by[1], ShardState::Stopped(reason));
        let failure = Failure::Stopped {
            shard: by[1],
            reason,
        };
        assert_eq!(operations.next_finished(), Some((id, Err(failure))));
    }
}
