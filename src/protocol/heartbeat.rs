//! When to send heartbeats, and what a missing ACK means.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// The heartbeats of one connection.
#[derive(Debug)]
pub(crate) struct Heartbeat {
    interval: Duration,
    next: Instant,
    /// Discord (op 1) or the shard's owner has requested a heartbeat outside the schedule.
    requested: bool,
    /// When each unacknowledged heartbeat was sent, oldest first: Discord acknowledges them in
    /// order.
    in_flight: VecDeque<Instant>,
    /// When the first heartbeat since the last ACK was sent. Used only to detect a zombied
    /// connection; a stall moves it forward.
    unanswered: Option<Instant>,
    latency: Option<Duration>,
    /// See [`read_up_to`](Self::read_up_to).
    read_up_to: Option<Instant>,
}

impl Heartbeat {
    /// Schedules the first heartbeat after `jitter` (0 to 1) of the interval.
    pub(crate) fn new(now: Instant, interval: Duration, jitter: f64) -> Self {
        let next = now + interval.mul_f64(jitter.clamp(0.0, 1.0));
        Self {
            interval,
            next,
            requested: false,
            in_flight: VecDeque::new(),
            unanswered: None,
            latency: None,
            read_up_to: None,
        }
    }

    /// When the next scheduled heartbeat is due.
    pub(crate) fn next(&self) -> Instant {
        self.next
    }

    /// Requests a heartbeat at once, outside the schedule.
    pub(crate) fn request(&mut self) {
        self.requested = true;
    }

    /// Whether a heartbeat must be sent now, and why.
    pub(crate) fn poll(&self, now: Instant) -> Option<Beat> {
        if now >= self.next {
            Some(Beat::Scheduled)
        } else if self.requested {
            Some(Beat::Requested)
        } else {
            None
        }
    }

    /// Whether this is a scheduled heartbeat, and an earlier one has no ACK.
    pub(crate) fn is_missed(&self, beat: Beat) -> bool {
        beat == Beat::Scheduled && self.unanswered.is_some()
    }

    /// Records a sent heartbeat. A requested one does not change the schedule. Heartbeats that were
    /// due during a long sleep are not sent later.
    pub(crate) fn sent(&mut self, now: Instant, beat: Beat) {
        self.requested = false;
        self.in_flight.push_back(now);
        self.unanswered.get_or_insert(now);
        if beat == Beat::Scheduled {
            self.next = (self.next + self.interval).max(now + self.interval / 2);
        }
    }

    /// Drops a requested heartbeat, because the send budget is used up.
    pub(crate) fn refuse_request(&mut self) {
        self.requested = false;
    }

    /// Records an ACK, which acknowledges the oldest heartbeat in flight. An ACK without a
    /// heartbeat in flight is ignored.
    ///
    /// Only the ACKs of a live session advance [`read_up_to`](Self::read_up_to): before RESUMED,
    /// Discord may acknowledge heartbeats ahead of the replay.
    pub(crate) fn acknowledge(&mut self, now: Instant, is_live: bool) {
        let Some(sent) = self.in_flight.pop_front() else {
            return;
        };

        self.unanswered = None;
        self.latency = Some(now.saturating_duration_since(sent));
        if is_live {
            self.read_up_to = Some(sent);
        }
    }

    /// Restarts the wait for an ACK, because the shard has not read for a while: an ACK that it has
    /// not read does not mean that the connection is dead.
    pub(crate) fn extend_ack_deadline(&mut self, now: Instant) {
        if let Some(sent) = &mut self.unanswered {
            *sent = now;
        }
    }

    /// Whether the connection is zombied: an interval has passed without an ACK.
    ///
    /// Call it only when the socket has nothing left to read at `now`. An ACK that lies unread in
    /// the socket, because the shard has stalled, is not missing.
    pub(crate) fn is_zombied(&self, now: Instant) -> bool {
        self.unanswered
            .is_some_and(|sent| now >= sent + self.interval)
    }

    /// When the last acknowledged heartbeat was sent. Everything that Discord had sent to this
    /// session before it received that heartbeat has been read.
    pub(crate) fn read_up_to(&self) -> Option<Instant> {
        self.read_up_to
    }

    /// The time from the last acknowledged heartbeat to the moment when its ACK was read. A stalled
    /// shard reads the ACK late.
    pub(crate) fn latency(&self) -> Option<Duration> {
        self.latency
    }
}

/// Counts the heartbeats of a shard, over all its connections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Beats {
    /// The number of heartbeats sent.
    pub sent: u64,
    /// The number of heartbeats that had no ACK when the next scheduled one was due.
    pub missed: u64,
}

/// Why a heartbeat is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Beat {
    Scheduled,
    Requested,
}

#[cfg(test)]
mod tests {
    #![allow(
        clippy::disallowed_methods,
        reason = "made-up instants count from some real one"
    )]

    use super::*;

    const INTERVAL: Duration = Duration::from_secs(40);

    fn beating(now: Instant) -> Heartbeat {
        Heartbeat::new(now, INTERVAL, 0.5)
    }

    #[test]
    fn the_first_one_is_jittered_and_the_rest_is_regular() {
        let start = Instant::now();
        let mut heart = beating(start);
        assert_eq!(heart.poll(start + INTERVAL.mul_f64(0.49)), None);
        let first = start + INTERVAL / 2;
        assert_eq!(heart.poll(first), Some(Beat::Scheduled));
        heart.sent(first, Beat::Scheduled);
        assert_eq!(heart.next(), first + INTERVAL);
    }

    #[test]
    fn a_requested_one_moves_nothing_and_makes_no_zombie() {
        let start = Instant::now();
        let mut heart = beating(start);
        heart.request();
        assert_eq!(heart.poll(start), Some(Beat::Requested));
        heart.sent(start, Beat::Requested);
        assert_eq!(heart.next(), start + INTERVAL / 2);
        assert!(!heart.is_zombied(start + INTERVAL / 2));
    }

    #[test]
    fn silence_for_an_interval_is_a_zombie() {
        let start = Instant::now();
        let mut heart = beating(start);
        let first = heart.next();
        heart.sent(first, Beat::Scheduled);
        heart.sent(first + INTERVAL, Beat::Scheduled);
        assert!(!heart.is_zombied(first + INTERVAL.mul_f64(0.99)));
        assert!(heart.is_zombied(first + INTERVAL));
        heart.acknowledge(first + INTERVAL, true);
        assert!(!heart.is_zombied(first + 2 * INTERVAL));
        assert_eq!(heart.latency(), Some(INTERVAL));
    }

    #[test]
    fn an_unasked_ack_is_ignored() {
        let start = Instant::now();
        let mut heart = beating(start);
        heart.acknowledge(start, true);
        assert_eq!(heart.latency(), None);
    }

    #[test]
    fn an_ack_that_is_read_late_proves_no_more_than_when_its_heartbeat_was_sent() {
        let start = Instant::now();
        let mut heart = beating(start);
        let sent = [1, 2, 3].map(|n| start + n * INTERVAL);
        for at in sent {
            heart.sent(at, Beat::Scheduled);
        }

        // A stalled shard reads the three ACKs at once, with events between them.
        let late = start + 4 * INTERVAL;
        for at in sent {
            heart.acknowledge(late, true);
            assert_eq!(heart.read_up_to(), Some(at));
            assert_eq!(heart.latency(), Some(late - at));
        }
        heart.acknowledge(late, true);
        assert_eq!(
            heart.read_up_to(),
            Some(sent[2]),
            "no heartbeat asked for it"
        );
    }

    #[test]
    fn an_ack_before_the_session_is_live_proves_nothing() {
        let start = Instant::now();
        let mut heart = beating(start);
        heart.sent(start, Beat::Requested);
        heart.acknowledge(start + INTERVAL / 4, false);
        assert_eq!(heart.read_up_to(), None, "the replay may follow it");
        assert_eq!(heart.latency(), Some(INTERVAL / 4));
    }

    #[test]
    fn any_ack_since_the_last_heartbeat_shows_that_the_connection_lives() {
        let start = Instant::now();
        let mut heart = beating(start);
        heart.sent(start, Beat::Requested);
        heart.sent(start + INTERVAL / 2, Beat::Scheduled);
        heart.acknowledge(start + INTERVAL / 2, true);
        assert!(!heart.is_zombied(start + 2 * INTERVAL));
    }

    #[test]
    fn a_sleeping_machine_beats_once_when_it_wakes() {
        let start = Instant::now();
        let mut heart = beating(start);
        let woken = start + 100 * INTERVAL;
        heart.sent(woken, Beat::Scheduled);
        assert_eq!(heart.poll(woken), None);
    }
}
