//! One set of shards replaces another.
#![deny(clippy::disallowed_methods)]

use std::num::NonZeroU32;
use std::time::{Duration, Instant};

use super::transition::{HandoverLimits, PROGRESS_CHECK};
use super::{Facts, Failure, Goal, Note, OperationId, Output, Reconciler, Role};
use crate::error::Error;
use crate::shard::Run;
use crate::shard_id::ShardId;

/// One set of shards is being replaced by another.
#[derive(Debug)]
pub(super) struct Reshard {
    pub(super) number: u64,
    pub(super) to: Vec<ShardId>,
    operation: OperationId,
    /// When it is cancelled.
    deadline: Instant,
    /// The old set is closing, so the reshard can no longer be cancelled.
    pub(super) is_committed: bool,
    /// The old set does not close before the store holds the new set's sessions or this instant is
    /// reached.
    store: Option<(u64, Instant)>,
    /// Until when handlers are waited for; set once the old set has stopped.
    handlers_until: Option<Instant>,
}

impl Reconciler {
    pub(super) fn reshard(
        &mut self,
        now: Instant,
        to: Vec<ShardId>,
        max_concurrency: Option<NonZeroU32>,
    ) -> Result<OperationId, Error> {
        self.check_idle()?;
        let runs = |shard: &&ShardId| {
            let slot = self.slots.get(*shard);
            slot.is_some_and(|slot| !slot.is_over())
        };
        if let Some(shard) = to.iter().find(runs) {
            return Err(Error::AlreadyOpen { shard: *shard });
        }
        if let Some(max_concurrency) = max_concurrency {
            self.transition.set_max_concurrency(max_concurrency);
        }

        let old = self.all_active().filter(|slot| !slot.is_over());
        let old: Vec<ShardId> = old.map(|slot| slot.run.shard).collect();
        self.outputs.push_back(Output::Replace {
            old: old.clone(),
            new: to.clone(),
        });
        // Earlier, stopped runs of the new ids make room.
        for shard in &to {
            self.retire(*shard);
        }
        let timing = &self.settings.timing;
        let limits = HandoverLimits {
            overlap: timing.reshard_overlap,
            handlers: timing.handlers_timeout,
        };
        self.transition.replace(old, &to, limits);
        let goals = to.iter().map(|shard| (*shard, Goal::HandOver));
        let operation = self.operations.begin(goals);
        self.reshards += 1;
        self.reshard = Some(Reshard {
            number: self.reshards,
            deadline: now + self.time_for(to.len()),
            to,
            operation,
            is_committed: false,
            store: None,
            handlers_until: None,
        });
        Ok(operation)
    }

    /// How long a reshard may take: the time that this number of shards needs under the identify
    /// limit, plus the user's timeout.
    fn time_for(&self, shards: usize) -> Duration {
        let timing = &self.settings.timing;
        let at_once = self.transition.max_concurrency().get() as usize;
        let windows = u32::try_from(shards.div_ceil(at_once)).unwrap_or(u32::MAX);
        let identifies = (timing.identify_window + timing.guard).saturating_mul(windows);
        identifies.saturating_add(timing.reshard_timeout)
    }

    /// When the reshard is cancelled, if there is one that can be cancelled.
    pub(super) fn reshard_deadline(&self) -> Option<Instant> {
        let reshard = self.reshard.as_ref();
        let reshard = reshard.filter(|reshard| !reshard.is_committed)?;
        Some(reshard.deadline)
    }

    /// Whether a reshard is in progress that can still be cancelled.
    pub(super) fn has_way_back(&self) -> bool {
        self.reshard_deadline().is_some()
    }

    /// Cancels a reshard at the user's request. Returns whether one was cancelled.
    pub(in crate::manager) fn cancel_reshard(&mut self) -> bool {
        let is_cancelled = self.has_way_back() && self.stopping.is_none();
        if is_cancelled {
            self.give_up_reshard(Failure::Cancelled);
        }
        is_cancelled
    }

    /// Ends a reshard with a failure: the old shards continue, the new ones close.
    pub(super) fn give_up_reshard(&mut self, failure: Failure) {
        let Some(operation) = self.drop_reshard() else {
            return;
        };
        let note = Note::ReshardGivenUp(failure);
        self.outputs.push_back(Output::Log(note));
        self.operations.finish(operation, Err(failure));
        self.follow_stops();
    }

    pub(super) fn drop_reshard(&mut self) -> Option<OperationId> {
        let reshard = self.reshard.take()?;
        self.clear_transition();
        self.outputs.push_back(Output::Abandon);
        self.discard(|slot| slot.role == Role::Incoming);
        Some(reshard.operation)
    }

    /// Begins to close the old set. From here on lookups, the store and suspension use the new set,
    /// but its events are held until the old set has stopped.
    pub(super) fn commit(&mut self, now: Instant) {
        // The old set's sessions are about to end, so the new set's are stored first.
        let deadline = now + self.settings.timing.handlers_timeout;
        let Some(reshard) = &mut self.reshard else {
            return;
        };
        reshard.is_committed = true;
        self.wanted = reshard.to.iter().copied().collect();

        for slot in self.slots.values_mut() {
            slot.role = match slot.role {
                Role::Incoming => Role::Active,
                Role::Active => Role::Outgoing,
                role => role,
            };
        }

        let runs = |role| self.with_role(role).map(|slot| slot.run).collect();
        let (from, to) = (runs(Role::Outgoing), runs(Role::Active));
        self.outputs.push_back(Output::Commit { from, to });

        let store = self.store();
        if let Some(reshard) = self.reshard.as_mut().filter(|_| self.settings.has_store) {
            reshard.store = Some((store, deadline));
        }
    }

    /// Until when the old set must not close, because the store does not hold the new set's
    /// sessions yet.
    pub(super) fn waits_for_store(&self, now: Instant) -> Option<Instant> {
        let (store, until) = self.reshard.as_ref()?.store?;
        (self.stored < store && now < until).then_some(until)
    }

    /// After the old set has stopped, waits for its handlers, then lets the new set take over. The
    /// wait keeps a guild's events in order even if another worker receives those of the new shard.
    /// Returns when to check again.
    pub(super) fn hand_over(&mut self, now: Instant, facts: &impl Facts) -> Option<Instant> {
        let timeout = self.settings.timing.handlers_timeout;
        let reshard = self.reshard.as_mut()?;
        let until = *reshard.handlers_until.get_or_insert(now + timeout);
        let outgoing = self.with_role(Role::Outgoing).map(|slot| slot.run);
        let outgoing: Vec<Run> = outgoing.collect();
        let is_handled = outgoing.iter().all(|run| facts.is_all_handled(*run));
        if !is_handled && now < until {
            return Some(until.min(now + PROGRESS_CHECK));
        }

        let reshard = self.reshard.take()?;
        if !is_handled && !timeout.is_zero() {
            let note = Note::HandlersNotDone(timeout);
            self.outputs.push_back(Output::Log(note));
        }
        let note = Note::HandedOver {
            from: outgoing.iter().map(|run| run.shard).collect(),
            to: reshard.to.clone(),
        };
        self.outputs.push_back(Output::Log(note));
        self.transition.handed_over();
        self.operations.finish(reshard.operation, Ok(()));
        self.outputs.push_back(Output::HandOver {
            from: outgoing.clone(),
            to: reshard.to,
        });
        for run in outgoing {
            self.retire(run.shard);
        }
        self.follow_stops();
        None
    }
}
