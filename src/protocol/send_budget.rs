//! How much may be sent on one connection.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Payloads that a connection may carry per [`send_window`](crate::Timing::send_window), heartbeats
/// included.
///
/// Source: [Discord, Rate
/// limiting](https://docs.discord.com/developers/events/gateway#rate-limiting).
pub const SENDS_PER_WINDOW: usize = 120;

/// Presence updates (op 3) that a connection may carry per
/// [`presence_window`](crate::Timing::presence_window).
pub const PRESENCES_PER_WINDOW: usize = 5;

/// Places kept for heartbeats that Discord asks for (op 1).
const REQUESTED: usize = 3;

/// So many events in any window of a length.
#[derive(Debug)]
struct Window {
    length: Duration,
    sent: VecDeque<Instant>,
}

impl Window {
    fn new(length: Duration) -> Self {
        Self {
            length,
            sent: VecDeque::new(),
        }
    }

    /// When one more fits under `limit`; now, if it does already.
    fn free_at(&self, now: Instant, limit: usize) -> Instant {
        match self.sent.len().checked_sub(limit) {
            Some(over) => self
                .sent
                .get(over)
                .map_or(now, |&sent| (sent + self.length).max(now)),
            None => now,
        }
    }

    fn record(&mut self, now: Instant) {
        while self
            .sent
            .front()
            .is_some_and(|&sent| sent + self.length <= now)
        {
            self.sent.pop_front();
        }
        self.sent.push_back(now);
    }
}

/// What one connection may still send. Each connection starts with a fresh one.
#[derive(Debug)]
pub(crate) struct SendBudget {
    all: Window,
    presences: Window,
    /// Places that only the heartbeats of the schedule may take.
    scheduled: usize,
}

impl SendBudget {
    /// Keeps places for the heartbeats of a window: those of the schedule, of which the first may
    /// come early and one may be late, and three that Discord asks for.
    pub(crate) fn new(
        send_window: Duration,
        presence_window: Duration,
        heartbeat_interval: Duration,
    ) -> Self {
        let beats = send_window
            .as_nanos()
            .div_ceil(heartbeat_interval.as_nanos().max(1));
        let scheduled = usize::try_from(beats)
            .unwrap_or(usize::MAX)
            .saturating_add(2);
        let scheduled = scheduled.min(SENDS_PER_WINDOW - REQUESTED - 1);
        Self {
            all: Window::new(send_window),
            presences: Window::new(presence_window),
            scheduled,
        }
    }

    /// When a command may go out; now, if it may already.
    pub(crate) fn command_at(&self, now: Instant, is_presence: bool) -> Instant {
        let any = self
            .all
            .free_at(now, SENDS_PER_WINDOW - REQUESTED - self.scheduled);
        if is_presence {
            any.max(self.presences.free_at(now, PRESENCES_PER_WINDOW))
        } else {
            any
        }
    }

    /// Whether a heartbeat that Discord asked for may go out, leaving places for the schedule and
    /// for an IDENTIFY.
    pub(crate) fn allows_requested_beat(&self, now: Instant) -> bool {
        self.all.free_at(now, SENDS_PER_WINDOW - 1 - self.scheduled) <= now
    }

    /// Something was sent.
    pub(crate) fn record(&mut self, now: Instant, is_presence: bool) {
        self.all.record(now);
        if is_presence {
            self.presences.record(now);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(
        clippy::disallowed_methods,
        reason = "made-up instants count from some real one"
    )]

    use super::*;

    const WINDOW: Duration = Duration::from_secs(60);

    fn budget() -> SendBudget {
        SendBudget::new(WINDOW, Duration::from_secs(20), Duration::from_secs(41))
    }

    #[test]
    fn commands_leave_places_for_heartbeats() {
        let start = Instant::now();
        let mut budget = budget();
        let mut sent = 0;
        while budget.command_at(start, false) <= start {
            budget.record(start, false);
            sent += 1;
        }
        assert_eq!(sent, SENDS_PER_WINDOW - REQUESTED - budget.scheduled);
        assert_eq!(budget.command_at(start, false), start + WINDOW);
        while budget.allows_requested_beat(start) {
            budget.record(start, false);
            sent += 1;
        }
        assert_eq!(
            sent,
            SENDS_PER_WINDOW - 1 - budget.scheduled,
            "the rest is the schedule's and the IDENTIFY's"
        );
    }

    #[test]
    fn presences_have_a_window_of_their_own() {
        let start = Instant::now();
        let mut budget = budget();
        for n in 0..5 {
            budget.record(start + Duration::from_secs(n), true);
        }
        let now = start + Duration::from_secs(6);
        assert_eq!(
            budget.command_at(now, true),
            start + Duration::from_secs(20)
        );
        assert_eq!(budget.command_at(now, false), now);
    }
}
