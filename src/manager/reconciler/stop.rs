//! What happens when a shard stops, or all of them.
#![deny(clippy::disallowed_methods)]

use std::time::Instant;

use super::super::count::{Answer, Question};
use super::{Failure, Note, Output, Reconciler, Role, Slot};
use crate::error::Error;
use crate::event::EventKind;
use crate::protocol::{CloseCode, ShardState, StopReason};
use crate::shard::Run;
use crate::shard_id::ShardId;

/// The close code of a shard whose number or total Discord does not accept.
const INVALID_SHARD: StopReason = StopReason::Discord(CloseCode(4010));

/// The close code of a shard that would hold too many guilds.
const SHARDING_REQUIRED: StopReason = StopReason::Discord(CloseCode(4011));

/// How a shard stops when all do.
pub(super) fn how_to_stop(reason: StopReason, role: Role) -> fn(Run) -> Output {
    match (reason, role) {
        (StopReason::Suspended, Role::Active) => Output::Suspend,
        (StopReason::OwnershipLost, Role::Active) => Output::Leave,
        _ => Output::Close,
    }
}

impl Reconciler {
    /// A shard has stopped by itself or on request; `was_away` if it was being restarted.
    pub(super) fn handle_stop(&mut self, shard: ShardId, reason: StopReason, was_away: bool) {
        if was_away && reason.is_fatal() {
            // The other shards may stop for the same reason.
            let given_up = self.transition.give_up_restarts();
            self.forget_restarts(&given_up);
            let failure = Failure::Stopped { shard, reason };
            self.operations.fail(&given_up, failure);
        }
        self.follow_stop(shard, reason);
        self.operations.handle(shard, ShardState::Stopped(reason));
    }

    /// Handles the shards that stopped during a reshard which is now over.
    pub(super) fn follow_stops(&mut self) {
        let stopped = self.all_active().filter_map(|slot| match slot.stage {
            ShardState::Stopped(reason) if reason.is_fatal() => Some((slot.run.shard, reason)),
            _ => None,
        });
        for (shard, reason) in stopped.collect::<Vec<_>>() {
            self.follow_stop(shard, reason);
        }
    }

    fn follow_stop(&mut self, shard: ShardId, reason: StopReason) {
        let role = self.slots.get(&shard).map(|slot| slot.role);
        if role == Some(Role::Discarded) {
            self.retire(shard);
        }
        if self.stopping.is_some() {
            return;
        }
        if role == Some(Role::Incoming) {
            self.give_up_reshard(Failure::Stopped { shard, reason });
            return;
        }
        if role != Some(Role::Active) || !self.wanted.contains(&shard) {
            return;
        }

        let replaces = self.has_way_back();
        match reason {
            SHARDING_REQUIRED if replaces => {
                let note = Note::FullDuringReshard(shard);
                self.outputs.push_back(Output::Log(note));
                return;
            }
            SHARDING_REQUIRED if self.split(shard) => return,
            INVALID_SHARD if self.ask_for_total(shard) => return,
            _ => {}
        }
        // A wrong token, intent, version or count is wrong for every shard.
        let is_of_all = matches!(reason, StopReason::Discord(_));
        if is_of_all && self.transition.has_queue() && self.reshard.is_none() {
            let note = Note::NoMoreOpened { shard, reason };
            self.outputs.push_back(Output::Log(note));
            self.clear_transition();
            self.operations.fail_all(Failure::Stopped { shard, reason });
        }
    }

    /// Replaces a shard that is too full by several, if the user has enabled that.
    fn split(&mut self, shard: ShardId) -> bool {
        let into = self.settings.auto_split;
        let Some(into) = into.and_then(|count| shard.split(count)) else {
            return false;
        };
        self.retire(shard);
        self.wanted.remove(&shard);
        self.wanted.extend(&into);
        self.transition.open(into.iter().copied());
        self.operations.replace(shard, &into);

        let note = Note::Split {
            shard,
            into: into.clone(),
        };
        self.outputs.push_back(Output::Log(note));
        let split = Output::Emit(shard, EventKind::Split { into });
        self.outputs.push_back(split);
        true
    }

    /// After Discord has refused a shard, queries which totals it accepts, if that can help.
    /// Returns whether it does.
    fn ask_for_total(&mut self, shard: ShardId) -> bool {
        let is_explicit = self.settings.explicit_total == Some(shard.total());
        let is_explicit = is_explicit && self.reshard.is_none();
        if !is_explicit || self.is_asking {
            return is_explicit;
        }
        self.clear_transition();
        self.operations.fail_all(Failure::Stopped {
            shard,
            reason: INVALID_SHARD,
        });
        self.is_asking = true;
        self.outputs
            .push_back(Output::AskGateway(Question::Total(shard)));
        true
    }

    /// Handles Discord's answer about the number of shards; `None` if the query failed.
    pub(super) fn handle_answer(
        &mut self,
        now: Instant,
        question: Question,
        answer: Option<Answer>,
    ) {
        match question {
            Question::Total(_) => self.is_asking = false,
            Question::Fullness => self.is_checking = false,
        }
        if self.stopping.is_none()
            && let Some(answer) = answer
        {
            match question {
                Question::Total(shard) => self.start_anew(shard, answer.shards),
                Question::Fullness => self.reshard_if_full(now, answer),
            }
        }
    }

    /// Starts again with a total that Discord accepts.
    fn start_anew(&mut self, refused: ShardId, to: Vec<ShardId>) {
        if to.iter().any(|shard| shard.total() == refused.total()) {
            // Discord refuses its own recommendation: there is nothing left to try.
            let error = Error::Stopped {
                shard: refused,
                reason: INVALID_SHARD,
            };
            self.outputs
                .push_back(Output::Log(Note::NotResharded(error)));
            return;
        }

        let note = Note::TotalRefused {
            total: refused.total(),
            to: to.clone(),
        };
        self.outputs.push_back(Output::Log(note));

        self.clear_transition();
        self.operations.fail_all(Failure::Stopped {
            shard: refused,
            reason: INVALID_SHARD,
        });

        self.discard(|_| true);
        self.wanted = to.iter().copied().collect();
        self.transition.open(to);
    }

    fn reshard_if_full(&mut self, now: Instant, answer: Answer) {
        let Some(auto) = self.settings.auto_reshard else {
            return;
        };

        let total = self.wanted.iter().map(|shard| shard.total()).min();
        let total = total.unwrap_or(1);
        let (fullness, recommended) = (answer.fullness(total), answer.recommended);

        let note = if fullness <= auto.threshold || recommended <= total {
            Note::Fullness {
                fullness,
                recommended,
            }
        } else if answer.remaining < recommended.saturating_mul(2) {
            // There must be enough for the new shards, and again for all of them in case this
            // process ends.
            Note::SessionStartLimit {
                fullness,
                recommended,
                remaining: answer.remaining,
                total: answer.total,
            }
        } else {
            let max_concurrency = Some(answer.max_concurrency);
            let checked = self.check_running().and_then(|()| self.check_idle());
            match checked.and_then(|()| self.reshard(now, answer.shards, max_concurrency)) {
                Ok(_) => Note::TooFull {
                    fullness,
                    recommended,
                },
                Err(error) => Note::NotResharded(error),
            }
        };

        self.outputs.push_back(Output::Log(note));
    }

    /// Stops every shard, and opens no more. The first reason is kept.
    pub(super) fn stop(&mut self, reason: StopReason) {
        if self.stopping.is_some() {
            return;
        }

        self.stopping = Some(reason);
        self.operations.fail_all(Failure::Closed);
        if self.has_way_back() {
            self.drop_reshard();
        }
        self.clear_transition();

        let slots = self.slots.values().map(|slot| (slot.run.shard, slot.role));
        for (shard, role) in slots.collect::<Vec<_>>() {
            self.ask_to_stop(shard, how_to_stop(reason, role));
        }
    }

    /// Ends the stream if no shard runs or will, and one has stopped for a reason that only the
    /// user can fix.
    pub(super) fn end_if_over(&mut self) {
        let is_lost = |shard: &ShardId| match self.slots.get(shard).map(|slot| slot.stage) {
            Some(ShardState::Stopped(reason)) => {
                reason.is_fatal() && reason != StopReason::CircuitOpen
            }
            _ => false,
        };

        if !self.stream_ended
            && !self.is_asking
            && self.transition.is_done()
            && self.opening.is_empty()
            && !self.slots.values().any(Slot::runs)
            && self.wanted.iter().any(is_lost)
        {
            self.stream_ended = true;
            self.outputs.push_back(Output::EndStream);
        }
    }

    /// Cancels everything that would still be opened, restarted or replaced.
    pub(super) fn clear_transition(&mut self) {
        let given_up = self.transition.clear();
        self.forget_restarts(&given_up);
    }

    /// Closes shards that are not needed any more.
    pub(super) fn discard(&mut self, which: impl Fn(&Slot) -> bool) {
        let slots = self.slots.values().filter(|slot| which(slot));
        for shard in slots.map(|slot| slot.run.shard).collect::<Vec<_>>() {
            match self.slots.get_mut(&shard) {
                Some(slot) if !slot.is_over() => {
                    slot.role = Role::Discarded;
                    self.ask_to_stop(shard, Output::Close);
                }
                _ => self.retire(shard),
            }
        }
    }
}
