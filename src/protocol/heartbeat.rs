//! When to beat, and what a missing answer means.

use std::time::{Duration, Instant};

/// The heartbeats of one connection.
#[derive(Debug)]
pub(crate) struct Heartbeat {
    interval: Duration,
    next: Instant,
    /// Discord asked for one (op 1), or this shard's owner, outside the schedule.
    requested: bool,
    /// When the oldest heartbeat was sent that no ACK has followed.
    unanswered: Option<Instant>,
    latency: Option<Duration>,
    /// When the last ACK came.
    acknowledged: Option<Instant>,
}

impl Heartbeat {
    /// The first beat comes after `jitter` (0 to 1) of the interval.
    pub(crate) fn new(now: Instant, interval: Duration, jitter: f64) -> Self {
        let next = now + interval.mul_f64(jitter.clamp(0.0, 1.0));
        Self {
            interval,
            next,
            requested: false,
            unanswered: None,
            latency: None,
            acknowledged: None,
        }
    }

    /// When the next one is due on the schedule.
    pub(crate) fn next(&self) -> Instant {
        self.next
    }

    /// A heartbeat is to be sent at once.
    pub(crate) fn request(&mut self) {
        self.requested = true;
    }

    /// Whether one is to be sent now, and whether the schedule says so (else Discord asked).
    pub(crate) fn poll(&self, now: Instant) -> Option<Beat> {
        if now >= self.next {
            Some(Beat::Scheduled)
        } else if self.requested {
            Some(Beat::Requested)
        } else {
            None
        }
    }

    /// One was sent. A requested one leaves the schedule as it is; after a long sleep no beats are
    /// made up for.
    pub(crate) fn sent(&mut self, now: Instant, beat: Beat) {
        self.requested = false;
        self.unanswered.get_or_insert(now);
        if beat == Beat::Scheduled {
            self.next = (self.next + self.interval).max(now + self.interval / 2);
        }
    }

    /// A requested beat is not sent after all, because the budget is spent.
    pub(crate) fn refuse_request(&mut self) {
        self.requested = false;
    }

    /// An ACK came; one that nothing asked for is ignored.
    pub(crate) fn acknowledge(&mut self, now: Instant) {
        if let Some(sent) = self.unanswered.take() {
            self.latency = Some(now.saturating_duration_since(sent));
            self.acknowledged = Some(now);
        }
    }

    /// The shard has not read for a while: the ACK has its whole time again from now on.
    pub(crate) fn excuse(&mut self, now: Instant) {
        if let Some(sent) = &mut self.unanswered {
            *sent = now;
        }
    }

    /// Whether the connection is dead, given that at `now` the socket was read dry.
    ///
    /// It is judged only then: an ACK that lies unread in the socket, because the shard has
    /// stalled, is not missing.
    pub(crate) fn is_zombied(&self, now: Instant) -> bool {
        self.unanswered
            .is_some_and(|sent| now >= sent + self.interval)
    }

    /// When the last ACK came: what the peer had sent by then has been read.
    pub(crate) fn acknowledged(&self) -> Option<Instant> {
        self.acknowledged
    }

    /// From the last answered heartbeat to its ACK.
    pub(crate) fn latency(&self) -> Option<Duration> {
        self.latency
    }
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
        heart.acknowledge(first + INTERVAL);
        assert!(!heart.is_zombied(first + 2 * INTERVAL));
        assert_eq!(heart.latency(), Some(INTERVAL));
    }

    #[test]
    fn an_unasked_ack_is_ignored() {
        let start = Instant::now();
        let mut heart = beating(start);
        heart.acknowledge(start);
        assert_eq!(heart.latency(), None);
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
