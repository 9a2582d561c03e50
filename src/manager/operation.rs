//! Long-running requests, and whether they are done.

use std::fmt;
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use super::hub::Hub;
use super::reconciler::{Failure, OperationId};
use crate::clock;
use crate::error::Error;
use crate::shard_id::ShardId;

/// A long-running request to a manager: opening, closing or restarting shards, a reshard. It
/// proceeds whether or not it is awaited.
#[derive(Clone)]
pub struct Operation(Arc<Shared>);

struct Shared {
    id: OperationId,
    hub: Weak<Hub>,
    outcome: Mutex<Option<Result<(), Failure>>>,
    changed: Condvar,
}

impl fmt::Debug for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let outcome = *self.0.outcome.lock();
        f.debug_struct("Operation")
            .field("waiting_for", &self.waiting_for())
            .field("outcome", &outcome)
            .finish()
    }
}

impl Operation {
    pub(super) fn new(hub: &Arc<Hub>, id: OperationId) -> Self {
        Self(Arc::new(Shared {
            id,
            hub: Arc::downgrade(hub),
            outcome: Mutex::default(),
            changed: Condvar::new(),
        }))
    }

    /// Blocks until it is done or has failed, for at most `timeout`. Do not call it on a shard's
    /// own thread (from [`Config::on_close`](crate::Config::on_close)): the operation may need that
    /// thread to run.
    ///
    /// # Errors
    /// [`Error::Stopped`] if a shard stopped before it was done; [`Error::Closed`] if the manager
    /// stopped; [`Error::Cancelled`] after
    /// [`Handle::cancel_reshard`](crate::Handle::cancel_reshard); [`Error::ReshardTimeout`] if a
    /// reshard took too long; [`Error::TimedOut`] after `timeout`, in which case the operation
    /// continues.
    pub fn wait(&self, timeout: Duration) -> Result<(), Error> {
        let deadline = clock::now().checked_add(timeout);
        let mut outcome = self.0.outcome.lock();
        loop {
            if let Some(outcome) = *outcome {
                return Ok(outcome?);
            }
            match deadline {
                None => self.0.changed.wait(&mut outcome),
                Some(deadline) if clock::now() >= deadline => {
                    drop(outcome);
                    let waiting_for = self.waiting_for();
                    return Err(Error::TimedOut { waiting_for });
                }
                Some(deadline) => {
                    self.0.changed.wait_until(&mut outcome, deadline);
                }
            }
        }
    }

    /// Whether it is done or has failed. Does not block.
    pub fn is_over(&self) -> bool {
        self.0.outcome.lock().is_some()
    }

    pub(super) fn finish(&self, outcome: Result<(), Failure>) {
        *self.0.outcome.lock() = Some(outcome);
        self.0.changed.notify_all();
    }

    fn waiting_for(&self) -> Vec<ShardId> {
        let hub = self.0.hub.upgrade();
        hub.map(|hub| hub.waiting_for(self.0.id))
            .unwrap_or_default()
    }
}
