//! The answer to a request for a permit to identify.

use std::time::Instant;

use super::super::io::Output;
use super::super::state::State;
use super::Machine;

impl Machine {
    /// Identifies, because a permit has been granted.
    pub(super) fn identify(&mut self, now: Instant) {
        self.change_state(|machine, state| {
            let State::Queued { mut link, .. } = state else {
                return state;
            };
            machine.retry.limiter_works();
            link.budget.record(now, false);
            let presence = machine.outgoing.identify_with();
            let secret = machine.identity.identify(machine.shard, presence);
            machine.outbox.push_back(Output::Identify(secret));
            State::Identifying {
                link,
                deadline: now + machine.timing.answer_timeout,
            }
        });
    }

    /// Schedules the next request after a pause.
    pub(super) fn handle_no_permit(&mut self, now: Instant) {
        let (State::Queued { ask_again, .. } | State::Confirming { ask_again, .. }) =
            &mut self.state
        else {
            return;
        };
        let pause = self.retry.limiter_pause(&self.timing, self.rng.f64());
        *ask_again = Some(now + pause);
    }
}
