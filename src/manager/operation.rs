//! Something that takes a while, and whether it is done.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use crate::error::Error;
use crate::protocol::{CloseReason, Stage};
use crate::shard_id::ShardId;

/// Something that a manager was asked for and that takes a while: opening, closing or restarting
/// shards, a reshard. It goes on whether or not anybody waits for it.
#[derive(Clone)]
pub struct Operation(Arc<Shared>);

struct Shared {
    progress: Mutex<Progress>,
    changed: Condvar,
}

#[derive(Debug)]
struct Progress {
    waiting_for: BTreeMap<ShardId, Goal>,
    outcome: Option<Result<(), Failure>>,
}

impl fmt::Debug for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let progress = self.0.progress.lock();
        f.debug_struct("Operation")
            .field("waiting_for", &progress.waiting_for.keys())
            .field("outcome", &progress.outcome)
            .finish()
    }
}

/// What a shard is waited for to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Goal {
    Ready,
    /// Ready, after it has left; `true` once it has.
    ReadyAgain(bool),
    Stopped,
    /// Nothing that it does by itself.
    HandOver,
}

/// Why something did not come about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    Stopped {
        shard: ShardId,
        reason: CloseReason,
    },
    /// Its settings cannot be used.
    Settings {
        shard: ShardId,
    },
    Cancelled,
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
            Failure::Closed => Self::Closed,
        }
    }
}

impl Operation {
    pub(super) fn new(goals: impl IntoIterator<Item = (ShardId, Goal)>) -> Self {
        let waiting_for: BTreeMap<_, _> = goals.into_iter().collect();
        let outcome = waiting_for.is_empty().then_some(Ok(()));
        Self(Arc::new(Shared {
            progress: Mutex::new(Progress {
                waiting_for,
                outcome,
            }),
            changed: Condvar::new(),
        }))
    }

    /// Blocks until it is done or has failed, for at most `timeout`. Do not call it on a shard's
    /// own thread (from [`Config::on_close`](crate::Config::on_close)): that thread has to run for
    /// it.
    ///
    /// # Errors
    /// [`Error::Stopped`] if a shard stopped on the way, [`Error::Closed`] if the manager did,
    /// [`Error::Cancelled`] after [`Handle::cancel_reshard`](crate::Handle::cancel_reshard),
    /// [`Error::TimedOut`] if it takes longer; it goes on then.
    pub fn wait(&self, timeout: Duration) -> Result<(), Error> {
        let deadline = Instant::now().checked_add(timeout);
        let mut progress = self.0.progress.lock();
        loop {
            if let Some(outcome) = progress.outcome {
                return Ok(outcome?);
            }
            match deadline {
                None => self.0.changed.wait(&mut progress),
                Some(deadline) => {
                    if self
                        .0
                        .changed
                        .wait_until(&mut progress, deadline)
                        .timed_out()
                        && progress.outcome.is_none()
                    {
                        let waiting_for = progress.waiting_for.keys().copied().collect();
                        return Err(Error::TimedOut { waiting_for });
                    }
                }
            }
        }
    }

    /// Whether it is done or has failed. Does not block.
    pub fn is_over(&self) -> bool {
        self.0.progress.lock().outcome.is_some()
    }

    /// A shard stands somewhere else.
    pub(super) fn handle(&self, shard: ShardId, stage: Stage) {
        let mut progress = self.0.progress.lock();
        let Some(goal) = progress.waiting_for.get_mut(&shard) else {
            return;
        };
        match (*goal, stage) {
            (Goal::Ready | Goal::ReadyAgain(true), Stage::Ready)
            | (Goal::Stopped, Stage::Stopped(_)) => {
                progress.waiting_for.remove(&shard);
            }
            (Goal::Ready | Goal::ReadyAgain(_), Stage::Stopped(reason)) => {
                drop(progress);
                return self.finish(Err(Failure::Stopped { shard, reason }));
            }
            (Goal::ReadyAgain(_), stage) if stage != Stage::Ready => *goal = Goal::ReadyAgain(true),
            _ => {}
        }
        if progress.waiting_for.is_empty() {
            drop(progress);
            self.finish(Ok(()));
        }
    }

    /// These shards will not come to what they are waited for.
    pub(super) fn give_up(&self, shards: &[ShardId], failure: Failure) {
        if shards
            .iter()
            .any(|shard| self.0.progress.lock().waiting_for.contains_key(shard))
        {
            self.finish(Err(failure));
        }
    }

    /// These shards take the place of one.
    pub(super) fn replace(&self, shard: ShardId, by: &[ShardId]) {
        let mut progress = self.0.progress.lock();
        if let Some(Goal::Ready | Goal::ReadyAgain(_)) = progress.waiting_for.get(&shard) {
            progress.waiting_for.remove(&shard);
            progress
                .waiting_for
                .extend(by.iter().map(|shard| (*shard, Goal::Ready)));
        }
    }

    /// The first outcome counts.
    pub(super) fn finish(&self, outcome: Result<(), Failure>) {
        self.0.progress.lock().outcome.get_or_insert(outcome);
        self.0.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Duration = Duration::ZERO;

    fn shard(number: u32) -> ShardId {
        ShardId::new(number, 4).unwrap()
    }

    #[test]
    fn it_waits_for_every_shard() {
        let operation = Operation::new([
            (shard(0), Goal::Ready),
            (shard(1), Goal::Stopped),
            (shard(2), Goal::ReadyAgain(false)),
        ]);
        operation.handle(shard(0), Stage::Ready);
        operation.handle(shard(1), Stage::Stopped(CloseReason::Requested));
        operation.handle(shard(2), Stage::Ready);
        let error = operation.wait(SOON).unwrap_err().to_string();
        assert_eq!(error, "not done in time, waiting for shard 2/4");
        operation.handle(shard(2), Stage::Connecting);
        operation.handle(shard(2), Stage::Ready);
        operation.wait(SOON).unwrap();
        operation.finish(Err(Failure::Closed));
        operation.wait(SOON).unwrap();
        assert!(Operation::new([]).is_over());
    }

    #[test]
    fn a_shard_that_stops_fails_it_unless_others_take_its_place() {
        let operation = Operation::new([(shard(0), Goal::Ready)]);
        let by = [ShardId::new(0, 8).unwrap(), ShardId::new(4, 8).unwrap()];
        operation.replace(shard(0), &by);
        operation.handle(shard(0), Stage::Stopped(CloseReason::Cut));
        operation.handle(by[0], Stage::Ready);
        assert!(!operation.is_over());
        operation.handle(by[1], Stage::Stopped(CloseReason::CircuitOpen));
        assert!(
            operation
                .wait(SOON)
                .unwrap_err()
                .to_string()
                .contains("shard 4/8 stopped")
        );
    }
}
