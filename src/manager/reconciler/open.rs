//! How a shard opens, and what happens if it cannot.
#![deny(clippy::disallowed_methods)]

use std::time::{Duration, Instant};

use super::stop::how_to_stop;
use super::{Ending, Failure, Note, Output, Reconciler, Restart, Role, Set, Slot, Why};
use crate::protocol::{ShardState, StopReason};
use crate::shard::Run;
use crate::shard_id::ShardId;

/// The first pause after the operating system had no thread or descriptor left for a shard. It
/// doubles each time.
pub(super) const SHORTAGE_PAUSE: Duration = Duration::from_secs(1);

/// The longest such pause.
const MAX_SHORTAGE_PAUSE: Duration = Duration::from_secs(60);

/// A shard whose thread is being started.
#[derive(Clone, Copy, Debug)]
pub(super) struct Opening {
    pub(super) run: Run,
    /// The reshard that it is for.
    pub(super) reshard: Option<u64>,
    /// It was suspended meanwhile: its session is kept.
    pub(super) is_suspended: bool,
}

impl Reconciler {
    /// Queues a shard to be opened in its turn.
    pub(super) fn plan_to_open(&mut self, shard: ShardId) {
        let is_kept = |slot: &Slot| {
            let left_alone = [StopReason::Suspended, StopReason::Panicked];
            left_alone.map(ShardState::Stopped).contains(&slot.stage)
        };
        if self.sessions.contains_key(&shard) || self.slots.get(&shard).is_some_and(is_kept) {
            self.transition.resume([shard]);
        } else {
            self.transition.open([shard]);
        }
    }

    /// Has a shard's thread started.
    pub(super) fn begin_to_open(&mut self, shard: ShardId) {
        let reshard = self.reshard.as_ref();
        let reshard = reshard.filter(|reshard| reshard.to.contains(&shard));
        let number = reshard.map(|reshard| reshard.number);

        self.runs += 1;
        let run = Run {
            shard,
            number: self.runs,
        };
        let previous = self.slots.get(&shard).map(|slot| slot.run);
        let opening = Opening {
            run,
            reshard: number,
            is_suspended: false,
        };

        let set = number.map_or(Set::Active, |_| Set::Incoming);
        self.opening.insert(shard, opening);
        self.outputs.push_back(Output::Open {
            run,
            previous,
            session: self.sessions.get(&shard).cloned(),
            set,
        });
    }

    pub(super) fn handle_opened(&mut self, run: Run) {
        let shard = run.shard;
        let Some(opening) = self.take_opening(run) else {
            return;
        };
        self.shortage_pause = SHORTAGE_PAUSE;
        // From here on the shard owns the session.
        self.sessions.remove(&shard);
        let role = self.role_of(opening);
        self.retire(shard);

        let slot = Slot {
            run,
            stage: ShardState::Waiting,
            guilds_ready: false,
            role,
            ending: Ending::No,
            restart: Restart::No,
        };
        self.slots.insert(shard, slot);

        // Requests that came while it was being opened.
        match (self.stopping, role) {
            (Some(reason), role) => self.ask_to_stop(shard, how_to_stop(reason, role)),
            (None, Role::Active) if opening.is_suspended => {
                self.ask_to_stop(shard, Output::Suspend);
            }
            (None, Role::Discarded) => self.ask_to_stop(shard, Output::Close),
            _ => {}
        }
    }

    pub(super) fn handle_failure(&mut self, now: Instant, run: Run, why: Why) {
        let shard = run.shard;
        let opening = self.take_opening(run);
        let is_current = self.slots.get(&shard).is_some_and(|slot| slot.run == run);
        if (opening.is_none() && !is_current) || self.stopping.is_some() {
            return;
        }

        match why {
            _ if opening.is_some_and(|opening| self.is_unwanted(opening)) => {
                self.transition.handle_stop(shard);
                let closed = ShardState::Stopped(StopReason::Closed);
                self.operations.handle(shard, closed);
            }
            Why::Shortage => {
                let pause = self.shortage_pause;
                self.shortage_pause = (pause * 2).min(MAX_SHORTAGE_PAUSE);
                self.transition.put_back(shard, now + pause);
                self.outputs.push_back(Output::Log(Note::OpensLater(pause)));
            }
            Why::Stopped => match self.slots.get_mut(&shard) {
                Some(slot) if !slot.is_over() => slot.restart = Restart::Missed,
                Some(_) if self.wanted.contains(&shard) => self.open_again(shard),
                _ => self.transition.handle_stop(shard),
            },
            Why::Settings => {
                let failure = Failure::Settings { shard };
                self.transition.handle_stop(shard);
                self.forget_restarts(&[shard]);
                let reshard = self.reshard.as_ref();
                if reshard
                    .is_some_and(|reshard| !reshard.is_committed && reshard.to.contains(&shard))
                {
                    self.give_up_reshard(failure);
                }
                self.operations.fail(&[shard], failure);
            }
        }
    }

    /// Whether a shard whose thread could not be started is not needed any more.
    fn is_unwanted(&self, opening: Opening) -> bool {
        opening.is_suspended || self.role_of(opening) == Role::Discarded
    }

    /// The role of a shard whose thread was started.
    pub(super) fn role_of(&self, opening: Opening) -> Role {
        let reshard = self.reshard.as_ref().map(|reshard| reshard.number);
        match opening.reshard {
            Some(number) if Some(number) == reshard => Role::Incoming,
            None if opening.is_suspended || self.wanted.contains(&opening.run.shard) => {
                Role::Active
            }
            // Meanwhile the reshard that needed it was cancelled, or it was closed.
            _ => Role::Discarded,
        }
    }

    /// Opens a shard that stopped before it could restart.
    pub(super) fn open_again(&mut self, shard: ShardId) {
        self.transition.handle_stop(shard);
        if let Some(slot) = self.slots.get_mut(&shard) {
            slot.restart = Restart::No;
        }
        // For requests that wait until it is ready again: it has left the ready state.
        self.operations.handle(shard, ShardState::Waiting);
        self.plan_to_open(shard);
    }

    pub(super) fn take_opening(&mut self, run: Run) -> Option<Opening> {
        let opening = self.opening.get(&run.shard)?;
        (opening.run == run)
            .then(|| self.opening.remove(&run.shard))
            .flatten()
    }
}
