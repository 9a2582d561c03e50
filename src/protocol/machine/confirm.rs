//! Before a RESUME: whether the session is still this process's own.

use std::time::{Duration, Instant};

use super::super::io::Output;
use super::super::session::Session;
use super::super::state::{Link, State};
use super::Machine;
use crate::log_shard::log_shard;

/// A session that lasts for so long, in multiples of [`Timing::confirm_timeout`](crate::Timing),
/// after it was resumed without an answer, may be resumed so again.
const UNHARMED: u32 = 2;

/// What is known of the answers.
#[derive(Debug)]
pub(super) struct Confirmation {
    /// When a session was resumed without an answer.
    unconfirmed_at: Option<Instant>,
    /// Whether the next one may be, too.
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
    /// A connection has ended. If that was soon after a RESUME without an answer, another process
    /// may have taken the session over: it is not taken back again without one.
    pub(super) fn handle_loss(&mut self, now: Instant, timeout: Duration) {
        if let Some(at) = self.unconfirmed_at.take() {
            self.may_do_without = now.saturating_duration_since(at) >= timeout * UNHARMED;
        }
    }
}

impl Machine {
    /// Resumes the session; with [`with_confirmation`](Self::with_confirmation), asks first.
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

    /// The session is this process's own.
    pub(super) fn confirm(&mut self, now: Instant) {
        self.retry.limiter_works();
        self.confirmation = self.confirmation.take().map(|_| Confirmation::default());
        self.resume_now(now);
    }

    /// No answer came: the store is probably away for every process.
    pub(super) fn resume_unconfirmed(&mut self, now: Instant) -> Output {
        log_shard!(
            warn,
            self.shard,
            "the session store does not say whether the session may be resumed; resuming"
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
