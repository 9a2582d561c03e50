//! How connections end, and what happens next.

use std::time::{Duration, Instant};

use super::super::close::{Disconnect, Recovery, StopReason};
use super::super::command::Identity;
use super::super::io::{Notice, Output};
use super::super::retry::Ended;
use super::super::state::{Start, State};
use super::{Machine, NORMAL, RESUMABLE};
use crate::log_shard::log_shard;

impl Machine {
    /// Ends the connection, which was lost or must be dropped. Reports the loss, and decides when
    /// to reconnect and whether to resume.
    pub(super) fn lose(&mut self, now: Instant, reason: Disconnect) {
        if !self.state.is_connected() {
            return;
        }

        let confirm_timeout = self.timing.confirm_timeout;
        if let Some(confirmation) = &mut self.confirmation {
            confirmation.handle_loss(now, confirm_timeout);
        }
        let recovery = self.recovery(reason);
        if let (Disconnect::Discord(code), Recovery::Stop) = (reason, recovery) {
            return self.stop(StopReason::Discord(code));
        }

        self.outbox.push_back(Output::Disconnect(match reason {
            Disconnect::Malformed
            | Disconnect::ReconnectRequested
            | Disconnect::InvalidSession { .. } => Some(RESUMABLE),
            _ => None,
        }));

        let ended = Ended {
            reason,
            recovery,
            ready_since: match self.state {
                State::Ready { since, .. } => Some(since),
                _ => None,
            },
            was_identifying: matches!(self.state, State::Identifying { .. }),
        };

        let retry_in = self.retry.pause(now, &self.timing, self.rng.f64(), ended);
        if let Some(count) = self.retry.circuit_opened_by() {
            return self.open_circuit(count);
        }

        self.change_state(|machine, state| {
            let mut start = state.into_start();
            if let (Start::Resume { session, .. }, Recovery::Identify) = (&start, recovery) {
                machine.lose_session(session.clone());
                start = Start::Identify;
            }
            let resumable = matches!(start, Start::Resume { .. });
            machine
                .outbox
                .push_back(Output::Report(Notice::Disconnected {
                    reason,
                    retry_in,
                    resumable,
                }));
            State::Waiting {
                until: now + retry_in,
                start,
            }
        });
    }

    /// What the shard may do after the loss of a connection. Logs the losses that the owner must
    /// know about.
    fn recovery(&mut self, reason: Disconnect) -> Recovery {
        let recovery = match reason {
            Disconnect::Discord(code) => code.recovery(),
            Disconnect::InvalidSession { resumable: false } => Recovery::Identify,
            Disconnect::Malformed if self.is_stuck() => Recovery::Identify,
            _ => Recovery::Resume,
        };

        match (reason, &self.state) {
            (Disconnect::Discord(code), _) if code.is_our_fault() || recovery == Recovery::Stop => {
                log_shard!(error, self.shard, { reason = reason }, "{reason}");
            }
            (Disconnect::InvalidSession { .. }, State::Identifying { .. }) => {
                log_shard!(
                    warn,
                    self.shard,
                    "Discord refused the IDENTIFY (op 9); it still counts toward the daily total"
                );
            }
            _ => {}
        }
        recovery
    }

    /// Counts an unreadable payload. Returns whether the session will never get past it.
    fn is_stuck(&mut self) -> bool {
        let sequence = self.session().map_or(0, |session| session.sequence);
        self.retry.is_stuck(sequence)
    }

    /// Stops the shard, so that it wastes no more IDENTIFYs.
    fn open_circuit(&mut self, count: usize) {
        log_shard!(
            error,
            self.shard,
            "{count} sessions in a row ended early; the shard stops until it is restarted"
        );
        if let Some(session) = self.session().cloned() {
            self.lose_session(session);
        }
        self.change_state(|_, _| State::Stopped {
            reason: StopReason::CircuitOpen,
            session: None,
        });
    }

    /// Reconnects at once, and resumes if there is a session that the new intents fit.
    pub(super) fn restart(&mut self, now: Instant, identity: Identity) {
        if matches!(self.state, State::Stopped { .. }) {
            return;
        }
        self.identity = identity;
        self.retry.reset();
        self.drop_unsent_starts();

        // A session cannot change its intents. With other intents, the old session is ended.
        let intents = self.identity.intents;
        let misfit = self.session().cloned();
        let misfit = misfit.filter(|session| !session.fits(self.shard, intents));
        let was_connected = self.state.is_connected();
        if was_connected {
            let code = if misfit.is_some() { NORMAL } else { RESUMABLE };
            self.outbox.push_back(Output::Disconnect(Some(code)));
        }
        if let Some(session) = &misfit {
            log_shard!(warn, self.shard, "{}", session.misfit(intents));
            self.lose_session(session.clone());
        }

        self.change_state(|machine, state| {
            let start = match misfit {
                Some(_) => Start::Identify,
                None => state.into_start(),
            };
            if was_connected {
                let notice = Notice::Disconnected {
                    reason: Disconnect::Restarted,
                    retry_in: Duration::ZERO,
                    resumable: matches!(start, Start::Resume { .. }),
                };
                machine.outbox.push_back(Output::Report(notice));
            }
            State::Waiting { until: now, start }
        });
    }

    /// Removes queued outputs that would start a connection or a session, because the connection is
    /// about to be closed.
    fn drop_unsent_starts(&mut self) {
        self.outbox.retain(|output| {
            !matches!(
                output,
                Output::Connect(_)
                    | Output::Identify(_)
                    | Output::RequestPermit
                    | Output::RequestConfirmation
            )
        });
    }

    /// Stops permanently. Only [`StopReason::Suspended`] keeps the session.
    pub(super) fn stop(&mut self, reason: StopReason) {
        if matches!(self.state, State::Stopped { .. }) {
            return;
        }

        let keeps = reason == StopReason::Suspended;
        self.drop_unsent_starts();
        if self.state.is_connected() {
            self.outbox.push_back(Output::Disconnect(match reason {
                StopReason::Discord(_) | StopReason::OwnershipLost => None,
                _ if keeps => Some(RESUMABLE),
                _ => Some(NORMAL),
            }));
        }

        self.change_state(|_, state| {
            let session = match state.into_start() {
                Start::Resume { session, .. } if keeps => Some(session),
                _ => None,
            };
            State::Stopped { reason, session }
        });
    }
}
