//! When a shard reconnects, and when it gives up.

use std::collections::VecDeque;
use std::num::NonZeroU32;
use std::time::{Duration, Instant};

use super::allowance::{DEFAULT_SESSION_STARTS, IdentifyAllowance};
use super::backoff;
use super::close::{Disconnect, Recovery};
use crate::shard_id::ShardId;
use crate::timing::Timing;

/// The number of connections in a row that may end at the same unreadable payload. Discord replays
/// the event each time, so the session would never get past it.
pub(super) const MAX_UNREADABLE: u32 = 5;

/// Counts the failures of a shard's connections and sessions, and derives the pauses from them.
#[derive(Debug)]
pub(crate) struct Retry {
    /// The number of lost connections, counted from the last one that stayed ready for
    /// [`Timing::stable_after`].
    failures: u32,
    /// How often in a row the limiter or the session store has failed.
    limiter_failures: u32,
    /// The number of losses that cost an IDENTIFY or may cost one (op 9), in a row without a
    /// lasting session between them.
    wasted_identifies: u32,
    allowance: IdentifyAllowance,
    /// The end times of sessions that ended early, in a row and within [`Timing::circuit_window`].
    short_sessions: VecDeque<Instant>,
    /// The circuit breaker opens after this many short sessions; `None` for no circuit breaker.
    max_short_sessions: Option<NonZeroU32>,
    /// The last sequence before an unreadable payload, and how often in a row a payload after that
    /// sequence was unreadable.
    unreadable: (u64, u32),
}

/// How a connection ended.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ended {
    pub(crate) reason: Disconnect,
    pub(crate) recovery: Recovery,
    /// When its session became live, if it did.
    pub(crate) ready_since: Option<Instant>,
    /// Whether an IDENTIFY had been sent and was not answered by READY.
    pub(crate) was_identifying: bool,
}

impl Retry {
    /// Creates the counts of a shard whose bot may start [`DEFAULT_SESSION_STARTS`] sessions a day.
    pub(crate) fn new(now: Instant, shard: ShardId) -> Self {
        Self {
            failures: 0,
            limiter_failures: 0,
            wasted_identifies: 0,
            allowance: IdentifyAllowance::new(now, shard, DEFAULT_SESSION_STARTS),
            short_sessions: VecDeque::new(),
            max_short_sessions: None,
            unreadable: (0, 0),
        }
    }

    /// Sets the number of sessions that the bot may start in a day, over all its shards.
    pub(crate) fn set_session_starts(&mut self, now: Instant, shard: ShardId, total: u32) {
        self.allowance = IdentifyAllowance::new(now, shard, total);
    }

    /// Sets how many sessions in a row must end early, within [`Timing::circuit_window`], to [open
    /// the circuit](Self::circuit_opened_by).
    pub(crate) fn set_max_short_sessions(&mut self, max: Option<NonZeroU32>) {
        self.max_short_sessions = max;
    }

    /// Forgets all failed connections and sessions, because the user restarts the shard.
    pub(crate) fn reset(&mut self) {
        self.forget_failures();
        self.unreadable = (0, 0);
    }

    /// Counts a connection that has ended. Returns the pause before the next one. `jitter` is a
    /// random number from 0 to 1.
    pub(crate) fn pause(
        &mut self,
        now: Instant,
        timing: &Timing,
        jitter: f64,
        ended: Ended,
    ) -> Duration {
        let is_lasting = |since| now >= since + timing.stable_after;
        let lasted = ended.ready_since.is_some_and(is_lasting);
        if lasted {
            self.forget_failures();
        }

        // Discord may request a reconnect at any time. It is not a failure, and the session can be
        // resumed at once.
        if ended.reason == Disconnect::ReconnectRequested && ended.ready_since.is_some() {
            return Duration::ZERO;
        }

        let mut pause = self.back_off(timing, jitter, ended);

        let is_invalid = matches!(ended.reason, Disconnect::InvalidSession { .. });
        let is_wasted = ended.recovery == Recovery::Identify || ended.was_identifying;
        if is_invalid || is_wasted {
            pause = pause.max(self.pause_after_waste(now, timing, jitter, is_wasted));
            if !lasted {
                self.short_sessions.push_back(now);
            }
            let is_recent =
                |at: &Instant| now.saturating_duration_since(*at) <= timing.circuit_window;
            self.short_sessions.retain(is_recent);
        }

        // Discord requires a random pause after op 9.
        if is_invalid {
            let (min, max) = (timing.invalid_session_min, timing.invalid_session_max);
            pause += min + max.saturating_sub(min).mul_f64(jitter);
        }
        pause
    }

    /// The number of sessions in a row that ended early, if it is large enough to open the circuit:
    /// another IDENTIFY would be wasted.
    pub(crate) fn circuit_opened_by(&self) -> Option<usize> {
        let count = self.short_sessions.len();
        self.max_short_sessions
            .is_some_and(|max| count >= max.get() as usize)
            .then_some(count)
    }

    /// Counts an unreadable payload after this sequence. Returns whether the session will never get
    /// past it.
    pub(crate) fn is_stuck(&mut self, sequence: u64) -> bool {
        let (last, count) = self.unreadable;
        let count = if sequence == last { count + 1 } else { 1 };
        self.unreadable = (sequence, count);
        count >= MAX_UNREADABLE
    }

    /// Counts a failure of the limiter or the session store. Returns how long to wait before the
    /// next request.
    pub(crate) fn limiter_pause(&mut self, timing: &Timing, jitter: f64) -> Duration {
        self.limiter_failures = self.limiter_failures.saturating_add(1);
        let (base, cap) = (timing.backoff_base, timing.backoff_cap);
        backoff::delay(base, cap, self.limiter_failures, jitter)
    }

    /// Resets the count of [`limiter_pause`](Self::limiter_pause), after an answer.
    pub(crate) fn limiter_works(&mut self) {
        self.limiter_failures = 0;
    }

    fn back_off(&mut self, timing: &Timing, jitter: f64, ended: Ended) -> Duration {
        let is_our_fault = matches!(ended.reason, Disconnect::Discord(code) if code.is_our_fault());
        // If a session was live, Discord is available and the session can be resumed: a long pause
        // would only delay its events.
        let cap = if ended.ready_since.is_some() && !is_our_fault {
            timing.backoff_cap_ready
        } else {
            timing.backoff_cap
        };
        let base = timing.backoff_base;
        let pause = backoff::delay(base, cap.max(base), self.failures, jitter);
        self.failures = self.failures.saturating_add(1);
        pause
    }

    /// The pause after a loss that cost an IDENTIFY, or may cost one.
    ///
    /// Discord allows few IDENTIFYs a day. So the pauses grow long, and a shard never spends more
    /// than its [share](IdentifyAllowance) on lost sessions, however long the sessions last.
    fn pause_after_waste(
        &mut self,
        now: Instant,
        timing: &Timing,
        jitter: f64,
        is_wasted: bool,
    ) -> Duration {
        let (base, cap) = (timing.invalid_session_max, timing.invalid_session_cap);
        let pause = backoff::delay(base, cap, self.wasted_identifies, jitter);
        self.wasted_identifies = self.wasted_identifies.saturating_add(1);
        if is_wasted {
            pause.max(self.allowance.spend(now, timing.identify_reset))
        } else {
            pause
        }
    }

    fn forget_failures(&mut self) {
        self.failures = 0;
        self.wasted_identifies = 0;
        self.short_sessions.clear();
    }
}

#[cfg(test)]
mod tests {
    #![allow(
        clippy::disallowed_methods,
        reason = "made-up instants count from some real one"
    )]

    use super::*;
    use crate::protocol::CloseCode;

    /// The pauses, in seconds, after connections in a row that end for the same reason: `lasts`
    /// seconds after their session became live, or before that if `lasts` is `None`.
    fn pauses(lasts: Option<u64>, reason: Disconnect, recovery: Recovery) -> Vec<u64> {
        let (mut now, timing) = (Instant::now(), Timing::default());
        let mut retry = Retry::new(now, ShardId::ONE);
        let mut pauses = Vec::new();
        for _ in 0..8 {
            let ready_since = lasts.map(|seconds| {
                let since = now;
                now += Duration::from_secs(seconds);
                since
            });
            let ended = Ended {
                reason,
                recovery,
                ready_since,
                was_identifying: false,
            };
            let pause = retry.pause(now, &timing, 0.0, ended);
            now += pause;
            pauses.push(pause.as_secs());
        }
        pauses
    }

    #[test]
    fn the_pauses_grow_until_a_session_lasts() {
        let cut = |lasts| pauses(lasts, Disconnect::ConnectionLost, Recovery::Resume);
        assert_eq!(cut(None), [0, 1, 2, 4, 8, 16, 32, 60]);
        assert_eq!(
            cut(Some(1)),
            [0, 1, 2, 4, 5, 5, 5, 5],
            "the session can be resumed"
        );
        assert_eq!(cut(Some(60)), [0; 8]);
        let our_fault = Disconnect::Discord(CloseCode(4008));
        let often = pauses(Some(1), our_fault, Recovery::Resume);
        assert_eq!(often, [0, 1, 2, 4, 8, 16, 32, 60], "it would happen again");
        let asked = pauses(Some(1), Disconnect::ReconnectRequested, Recovery::Resume);
        assert_eq!(asked, [0; 8]);
    }

    #[test]
    fn a_limiter_is_asked_again_at_once_when_it_has_worked() {
        let (now, timing) = (Instant::now(), Timing::default());
        let mut retry = Retry::new(now, ShardId::ONE);
        let pause = |retry: &mut Retry| retry.limiter_pause(&timing, 0.0).as_secs();
        assert_eq!([1, 2, 4].map(|_| pause(&mut retry)), [1, 2, 4]);
        retry.limiter_works();
        assert_eq!(pause(&mut retry), 1);
    }

    #[test]
    fn the_circuit_opens_after_sessions_that_never_lasted() {
        let (mut now, timing) = (Instant::now(), Timing::default());
        let mut retry = Retry::new(now, ShardId::ONE);
        retry.set_max_short_sessions(NonZeroU32::new(3));
        let lost = Ended {
            reason: Disconnect::InvalidSession { resumable: false },
            recovery: Recovery::Identify,
            ready_since: None,
            was_identifying: true,
        };

        for count in 1..=3 {
            assert_eq!(retry.circuit_opened_by(), None);
            now += retry.pause(now, &timing, 0.0, lost);
            assert_eq!(retry.circuit_opened_by().is_some(), count == 3);
        }

        retry.reset();
        assert_eq!(retry.circuit_opened_by(), None);
    }

    #[test]
    fn a_session_is_stuck_when_the_same_payload_cannot_be_read_again_and_again() {
        let mut retry = Retry::new(Instant::now(), ShardId::ONE);
        assert!(![1, 2, 2, 2, 2].iter().any(|at| retry.is_stuck(*at)));
        assert!(retry.is_stuck(2));
        assert!(!retry.is_stuck(3));
    }
}
