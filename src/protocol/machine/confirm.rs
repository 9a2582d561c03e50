//! The confirmation before a RESUME that this process still owns the session.

use std::time::{Duration, Instant};

use super::super::io::Output;
use super::super::session::Session;
use super::super::state::{Link, State};
use super::Machine;
use crate::log_shard::log_shard;

/// How long a connection must last after a RESUME without the store's answer, in multiples of
/// [`Timing::confirm_timeout`](crate::Timing::confirm_timeout), before the session may be resumed
/// without an answer again.
const UNHARMED: u32 = 2;

/// Whether a session may be resumed without the store's answer.
#[derive(Debug)]
pub(super) struct Confirmation {
    /// When the session was resumed without an answer on this connection.
    unconfirmed_at: Option<Instant>,
    /// Whether the next RESUME may be sent without an answer.
    may_do_without: bool,
}

impl Default for Confirmation {
    fn default() -> Self {
        Self {
            unconfirmed_at: None,
            may_do_without: true,
        }
    }
}

impl Confirmation {
    /// Handles the end of a connection. If that was soon after a RESUME without an answer, another
    /// process may have taken over the session. The next RESUME then needs an answer, so that this
    /// process does not take the session back.
    pub(super) fn handle_loss(&mut self, now: Instant, timeout: Duration) {
        if let Some(at) = self.unconfirmed_at.take() {
            self.may_do_without = now.saturating_duration_since(at) >= timeout * UNHARMED;
        }
    }
}

impl Machine {
    /// Resumes the session, or asks for confirmation first, depending on
    /// [`with_confirmation`](Self::with_confirmation).
    pub(super) fn confirm_or_resume(
        &mut self,
        now: Instant,
        link: Link,
        session: Session,
    ) -> State {
        let Some(confirmation) = &self.confirmation else {
            return self.resume(now, link, session);
        };
        let may_do_without = confirmation.may_do_without;
        self.outbox.push_back(Output::RequestConfirmation);
        State::Confirming {
            link,
            session,
            deadline: may_do_without.then(|| now + self.timing.confirm_timeout),
            ask_again: None,
        }
    }

    fn resume(&mut self, now: Instant, mut link: Link, session: Session) -> State {
        link.budget.record(now, false);
        let secret = self.identity.resume(&session);
        self.outbox.push_back(Output::Resume(secret));
        State::Resuming {
            link,
            session,
            deadline: now + self.timing.answer_timeout,
        }
    }

    /// Resumes the session, because the store has confirmed that this process owns it.
    pub(super) fn confirm(&mut self, now: Instant) {
        self.retry.limiter_works();
        self.confirmation = self.confirmation.take().map(|_| Confirmation::default());
        self.resume_now(now);
    }

    /// Resumes the session without the store's answer: the store is probably unavailable to every
    /// process.
    pub(super) fn resume_unconfirmed(&mut self, now: Instant) -> Output {
        log_shard!(
            warn,
            self.shard,
            "no answer from the session store; resuming the session without confirmation"
        );
        if let Some(confirmation) = &mut self.confirmation {
            confirmation.unconfirmed_at = Some(now);
        }
        self.resume_now(now);
        self.poll(now)
    }

    fn resume_now(&mut self, now: Instant) {
        self.change_state(|machine, state| match state {
            State::Confirming { link, session, .. } => machine.resume(now, link, session),
            other => other,
        });
    }
}
