//! How much may be sent on one connection.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// The number of payloads that a shard may send on a connection per
/// [`send_window`](crate::Timing::send_window), including heartbeats.
///
/// Source: [Discord, Rate
/// limiting](https://docs.discord.com/developers/events/gateway#rate-limiting).
pub const SENDS_PER_WINDOW: usize = 120;

/// The number of presence updates (op 3) that a shard may send on a connection per
/// [`presence_window`](crate::Timing::presence_window).
pub const PRESENCES_PER_WINDOW: usize = 5;

/// The number of sends reserved for heartbeats that Discord requests (op 1).
const REQUESTED: usize = 3;

/// The recent sends of a sliding window, for a rate limit.
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

    /// When one more send fits under `limit`; `now` if it fits already.
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

/// The send rate limits of one connection. Each connection starts with a new budget.
#[derive(Debug)]
pub(crate) struct SendBudget {
    all: Window,
    presences: Window,
    /// The number of sends reserved for scheduled heartbeats.
    scheduled: usize,
}

impl SendBudget {
    /// Reserves sends for the heartbeats of a window: three that Discord requests, and the
    /// scheduled ones. Two extra scheduled ones are reserved, because the first may be early and
    /// one may be late.
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

    /// When a command may be sent; `now` if it may be sent already.
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

    /// Whether a heartbeat that Discord requested may be sent. It must leave room for the scheduled
    /// heartbeats and for an IDENTIFY.
    pub(crate) fn allows_requested_beat(&self, now: Instant) -> bool {
        self.all.free_at(now, SENDS_PER_WINDOW - 1 - self.scheduled) <= now
    }

    /// Counts a sent payload.
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
            "the rest is reserved for scheduled heartbeats and an IDENTIFY"
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
