//! User requests that concern single shards.
#![deny(clippy::disallowed_methods)]

use super::{Ending, Facts, Goal, OperationId, Output, Reconciler, Restart, Role};
use crate::error::Error;
use crate::protocol::{Session, ShardState, StopReason};
use crate::shard_id::ShardId;

impl Reconciler {
    pub(super) fn open(
        &mut self,
        facts: &impl Facts,
        shard: ShardId,
        session: Option<Session>,
    ) -> Result<OperationId, Error> {
        self.check_free()?;
        let running = self.slots.get(&shard).filter(|slot| !slot.is_over());
        let stopped = running
            .filter(|slot| slot.restart != Restart::Missed)
            .and_then(|slot| facts.stopped(slot.run));
        if let Some(StopReason::Discord(_)) = stopped {
            // What follows from such a stop comes first: a split, or the end of other shards.
            return Err(Error::Busy {
                running: "the stop of this shard",
            });
        }
        if stopped.is_none() && (self.transition.is_opening(shard) || running.is_some()) {
            return Err(if self.wanted.contains(&shard) {
                Error::AlreadyOpen { shard }
            } else {
                Error::Busy {
                    running: "the close of this shard",
                }
            });
        }
        if let Some(with) = self.overlapping(&[shard]) {
            return Err(Error::Overlaps { shard, with });
        }

        self.wanted.insert(shard);
        self.sessions
            .extend(session.map(|session| (shard, session)));
        match stopped {
            Some(reason) => self.open_once_ended(shard, reason),
            None => self.plan_to_open(shard),
        }
        Ok(self.operations.begin([(shard, Goal::Ready)]))
    }

    /// Opens a shard again once its thread has ended, which is about to happen. Operations that wait
    /// for its stop are done.
    fn open_once_ended(&mut self, shard: ShardId, reason: StopReason) {
        self.operations.handle(shard, ShardState::Stopped(reason));
        if let Some(slot) = self.slots.get_mut(&shard) {
            slot.ending = Ending::No;
            slot.restart = Restart::Missed;
        }
    }

    pub(super) fn close(
        &mut self,
        shard: ShardId,
        keeps_session: bool,
    ) -> Result<OperationId, Error> {
        self.check_free()?;
        if !self.wanted.remove(&shard) {
            return Err(Error::NotOpen { shard });
        }

        self.sessions.remove(&shard);
        let was_waiting = self.transition.forget(shard);
        let runs = self.slots.get(&shard).is_some_and(|slot| !slot.is_over());
        let is_opening = self.transition.is_opening(shard);
        if was_waiting || (!runs && !is_opening) {
            // A request that waits for it to be ready fails.
            let closed = ShardState::Stopped(StopReason::Closed);
            self.operations.handle(shard, closed);
            return Ok(self.operations.begin([]));
        }

        let operation = self.operations.begin([(shard, Goal::Stopped)]);
        if let Some(opening) = self.opening.get_mut(&shard) {
            opening.is_suspended = keeps_session;
        }

        let how = if keeps_session {
            Output::Suspend
        } else {
            Output::Close
        };
        self.ask_to_stop(shard, how);
        Ok(operation)
    }

    /// Restarts the shards that run, and opens those that have stopped. Shards that are opening or
    /// restarting already are left as they are.
    pub(super) fn restart(
        &mut self,
        shards: impl IntoIterator<Item = ShardId>,
        max_unavailable: usize,
    ) -> Result<OperationId, Error> {
        self.check_free()?;
        let shards: Vec<ShardId> = shards.into_iter().collect();
        for shard in &shards {
            let slot = self.slots.get(shard);
            let is_wanted = self.wanted.contains(shard);
            if !is_wanted && slot.is_none_or(|slot| slot.role != Role::Active) {
                return Err(Error::NotOpen { shard: *shard });
            }
            let is_opening = self.transition.is_opening(*shard);
            if !is_wanted && (is_opening || slot.is_some_and(|slot| !slot.is_over())) {
                return Err(Error::Busy {
                    running: "the close of this shard",
                });
            }
            if let Some(with) = self.overlapping(&[*shard]).filter(|_| !is_wanted) {
                return Err(Error::Overlaps {
                    shard: *shard,
                    with,
                });
            }
        }

        let mut goals = Vec::new();
        for shard in shards {
            let slot = self.slots.get_mut(&shard);
            if let Some(slot) = slot.filter(|slot| !slot.is_over()) {
                slot.restart = Restart::Requested;
                goals.push((shard, Goal::ReadyAgain(slot.stage != ShardState::Ready)));
                self.transition.restart([shard], max_unavailable);
            } else {
                goals.push((shard, Goal::Ready));
                self.wanted.insert(shard);
                self.plan_to_open(shard);
            }
        }
        Ok(self.operations.begin(goals))
    }
}
