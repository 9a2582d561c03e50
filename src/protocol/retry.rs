//! When a shard connects again, and when it gives up.

use std::collections::VecDeque;
use std::num::NonZeroU32;
use std::time::{Duration, Instant};

use super::allowance::{DEFAULT_SESSION_STARTS, IdentifyAllowance};
use super::backoff;
use super::close::{Disconnect, Recovery};
use crate::shard_id::ShardId;
use crate::timing::Timing;

/// Connections in a row that may end at the same event because it cannot be read. Discord replays
/// it each time, so that the session would never get past it.
pub(super) const MAX_UNREADABLE: u32 = 5;

/// What has gone wrong with a shard's connections and sessions, and what follows from it.
#[derive(Debug)]
pub(crate) struct Retry {
    /// Connections in a row that were not ready for long.
    failures: u32,
    /// How often in a row the limiter has failed.
    limiter_failures: u32,
    /// IDENTIFYs, or RESUMEs that will cost one, in a row that led to no lasting session.
    wasted_identifies: u32,
    allowance: IdentifyAllowance,
    /// When sessions ended that never lasted, in a row and within the circuit breaker's window.
    short_sessions: VecDeque<Instant>,
    /// The circuit breaker opens after this many of them.
    max_short_sessions: Option<NonZeroU32>,
    /// The last sequence before a payload that could not be read, and how often in a row it was
    /// that one.
    unreadable: (u64, u32),
}

/// How a connection ended.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ended {
    pub(crate) reason: Disconnect,
    pub(crate) recovery: Recovery,
    /// Since when its session was live, if it was.
    pub(crate) ready_since: Option<Instant>,
    /// An IDENTIFY had been sent and was not answered.
    pub(crate) was_identifying: bool,
}

impl Retry {
    /// For a shard of a bot that may start as many sessions a day as Discord allows by default.
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

    /// Sets how many sessions the bot may start in a day, over all its shards.
    pub(crate) fn set_session_starts(&mut self, now: Instant, shard: ShardId, total: u32) {
        self.allowance = IdentifyAllowance::new(now, shard, total);
    }

    /// Sets how many sessions in a row that never lasted, within [`Timing::circuit_window`],
    /// [open the circuit](Self::circuit_opened_by).
    pub(crate) fn set_max_short_sessions(&mut self, max: Option<NonZeroU32>) {
        self.max_short_sessions = max;
    }

    /// The user wants a fresh start.
    pub(crate) fn reset(&mut self) {
        self.forget_failures();
        self.unreadable = (0, 0);
    }

    /// Counts a connection that has ended. Returns how long to stay away. `jitter` is a random
    /// number from 0 to 1.
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

        // Discord may ask for that at any time: it is no failure, and the session is waiting.
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

        // Discord asks for a random pause after op 9.
        if is_invalid {
            let (min, max) = (timing.invalid_session_min, timing.invalid_session_max);
            pause += min + max.saturating_sub(min).mul_f64(jitter);
        }
        pause
    }

    /// How many sessions in a row never lasted, if they have opened the circuit: another IDENTIFY
    /// would be wasted.
    pub(crate) fn circuit_opened_by(&self) -> Option<usize> {
        let count = self.short_sessions.len();
        self.max_short_sessions
            .is_some_and(|max| count >= max.get() as usize)
            .then_some(count)
    }

    /// Counts a payload after this sequence that cannot be read. Returns whether the session will
    /// never get past it.
    pub(crate) fn is_stuck(&mut self, sequence: u64) -> bool {
        let (last, count) = self.unreadable;
        let count = if sequence == last { count + 1 } else { 1 };
        self.unreadable = (sequence, count);
        count >= MAX_UNREADABLE
    }

    /// The limiter has failed. Returns how long to wait before it is asked again.
    pub(crate) fn limiter_pause(&mut self, timing: &Timing, jitter: f64) -> Duration {
        self.limiter_failures = self.limiter_failures.saturating_add(1);
        let (base, cap) = (timing.backoff_base, timing.backoff_cap);
        backoff::delay(base, cap, self.limiter_failures, jitter)
    }

    /// The limiter works.
    pub(crate) fn limiter_works(&mut self) {
        self.limiter_failures = 0;
    }

    fn back_off(&mut self, timing: &Timing, jitter: f64, ended: Ended) -> Duration {
        let is_our_fault = matches!(ended.reason, Disconnect::Discord(code) if code.is_our_fault());
        // Where a session was live, Discord works and the session waits.
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

    /// An IDENTIFY was wasted, or may be, of which there are few a day: the pauses grow long, and
    /// however long the sessions between them last, a shard wastes no more than its share.
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

    /// The pauses, in seconds, after connections in a row that end for the same reason, `lasts`
    /// seconds after their session was live, or before it was.
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
        assert_eq!(cut(Some(1)), [0, 1, 2, 4, 5, 5, 5, 5], "a session waits");
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
