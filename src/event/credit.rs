//! Credit: how much a shard may still deliver, and which of its events have been handled.
#![deny(clippy::disallowed_methods)]

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::protocol::Session;

/// The outstanding events of one shard, and the low-water mark of its session.
///
/// An event is outstanding from its delivery until its lease is returned. The shard's credit is
/// its outstanding limit (`max_events` and `max_bytes`), of which each outstanding event takes a
/// part. The mark is the highest sequence up to which all events of the session have been handled,
/// in whatever order that happened.
#[derive(Debug)]
pub(crate) struct Credit {
    max_events: usize,
    max_bytes: usize,
    events: usize,
    bytes: usize,
    stalled: bool,
    session: Option<Session>,
    /// Counts sessions, so that a lease of an old session does not move the mark of a new one.
    epoch: u64,
    /// The last sequence delivered.
    delivered: u64,
    /// The events delivered since the oldest outstanding event, which is at the front.
    open: VecDeque<Open>,
    /// How many events of `open` have been handled.
    handled: usize,
    /// The serial of the last event delivered.
    next: u64,
    /// The event whose times are measured.
    sample: Option<Sample>,
    /// The serial of the last event that was chosen to be measured.
    last_sample: u64,
}

/// An event that is not handled within this time is no longer measured, if later events have been
/// handled: the user may keep it forever.
const SAMPLE_LASTS: Duration = Duration::from_secs(60);

/// An event that is measured. It represents itself and the unmeasured events before it.
#[derive(Clone, Copy, Debug)]
struct Sample {
    serial: u64,
    delivered_at: Instant,
    taken_at: Option<Instant>,
    /// The number of events that it represents.
    weight: u64,
    /// A later event has been handled.
    is_overtaken: bool,
}

/// How long an event waited, and how long its handling took.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Measured {
    /// From its delivery until it was taken.
    pub(super) wait: Duration,
    /// From then until it was handled; `None` if it is not known when it was taken.
    pub(super) handling: Option<Duration>,
    /// The number of events that this one represents.
    pub(super) weight: u64,
}

/// An event that was delivered and belongs to the current session.
#[derive(Clone, Copy, Debug)]
struct Open {
    serial: u64,
    /// The last sequence delivered before it.
    before: u64,
    is_handled: bool,
}

/// Identifies one delivered event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Receipt {
    epoch: u64,
    serial: u64,
    /// `u32` suffices: a payload is much smaller than 4 GiB.
    bytes: u32,
    is_sample: bool,
}

/// The epoch of a receipt that moves no session's mark.
const NO_SESSION: u64 = u64::MAX;

impl Receipt {
    /// The same credit, but returning it does not move a session's mark.
    pub(crate) fn without_session(self) -> Self {
        Self {
            epoch: NO_SESSION,
            ..self
        }
    }

    /// Whether the event's times are measured.
    pub(super) fn is_sample(self) -> bool {
        self.is_sample
    }
}

impl Credit {
    pub(crate) fn new(max_events: usize, max_bytes: usize) -> Self {
        Self {
            max_events,
            max_bytes,
            events: 0,
            bytes: 0,
            stalled: false,
            session: None,
            epoch: 0,
            delivered: 0,
            open: VecDeque::new(),
            handled: 0,
            next: 0,
            sample: None,
            last_sample: 0,
        }
    }

    /// Starts a session whose events up to the sequence `mark` have all been handled.
    pub(crate) fn begin(&mut self, session: Session, mark: u64) {
        self.end();
        self.session = Some(session);
        self.delivered = mark;
    }

    /// Ends the session. From now on, leases of its events only return credit.
    pub(crate) fn end(&mut self) {
        self.session = None;
        self.epoch += 1;
        self.open.clear();
        self.handled = 0;
        self.sample = None;
    }

    /// Continues the session with another run of its shard, with these limits. Returns the session
    /// at the last sequence delivered. Outstanding events stay outstanding.
    pub(crate) fn resume(&mut self, max_events: usize, max_bytes: usize) -> Option<Session> {
        let session = self.session.clone()?;
        self.max_events = max_events;
        self.max_bytes = max_bytes;
        // The new run finds out for itself that it is stalled, and reports it.
        self.stalled = false;
        Some(Session {
            sequence: self.delivered,
            ..session
        })
    }

    /// The session, at its low-water mark.
    pub(crate) fn session(&self) -> Option<Session> {
        let session = self.session.clone()?;
        let sequence = self.open.front().map_or(self.delivered, |open| open.before);
        Some(Session {
            sequence,
            ..session
        })
    }

    /// The last sequence delivered.
    pub(crate) fn delivered(&self) -> u64 {
        self.delivered
    }

    /// How many events were delivered, in this session and those before.
    pub(crate) fn deliveries(&self) -> u64 {
        self.next
    }

    /// Whether each of the first `count` [deliveries](Self::deliveries) has been handled or belongs
    /// to a session that is over.
    pub(crate) fn has_handled(&self, count: u64) -> bool {
        // The front of `open` is the oldest event that has not been handled.
        self.open.front().is_none_or(|open| open.serial > count)
    }

    /// Whether another event may be delivered. If none is outstanding, one fits whatever its size.
    pub(crate) fn has_room(&self) -> bool {
        self.events == 0 || (self.events < self.max_events && self.bytes < self.max_bytes)
    }

    /// The numbers of outstanding events and bytes.
    pub(crate) fn outstanding(&self) -> (usize, usize) {
        (self.events, self.bytes)
    }

    /// Counts an event that is delivered to the user. `batch` is the time if the event is the first
    /// of a batch: only such an event may be measured.
    pub(crate) fn deliver(
        &mut self,
        sequence: u64,
        bytes: usize,
        batch: Option<Instant>,
    ) -> Receipt {
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        self.events += 1;
        self.bytes += bytes as usize;
        self.next += 1;
        self.open.push_back(Open {
            serial: self.next,
            before: self.delivered,
            is_handled: false,
        });
        self.delivered = self.delivered.max(sequence);
        Receipt {
            epoch: self.epoch,
            serial: self.next,
            bytes,
            is_sample: batch.is_some_and(|now| self.begin_sample(now)),
        }
    }

    /// Starts to measure the newest event, unless another one is being measured. Returns whether it
    /// is measured.
    fn begin_sample(&mut self, now: Instant) -> bool {
        if let Some(sample) = &self.sample {
            let age = now.saturating_duration_since(sample.delivered_at);
            let is_kept = age >= SAMPLE_LASTS && sample.is_overtaken;
            if !is_kept {
                return false;
            }
        }

        self.sample = Some(Sample {
            serial: self.next,
            delivered_at: now,
            taken_at: None,
            weight: self.next - self.last_sample,
            is_overtaken: false,
        });
        self.last_sample = self.next;
        true
    }

    /// Records when the handler or the caller took an event, if that event is measured.
    pub(crate) fn take(&mut self, receipt: Receipt, now: Instant) {
        let sample = self.sample.as_mut();
        if let Some(sample) = sample.filter(|sample| sample.serial == receipt.serial) {
            sample.taken_at = Some(now);
        }
    }

    /// Ends the measurement of an event that was handled or abandoned. `None` if it was abandoned,
    /// or was no longer measured.
    pub(crate) fn measure(&mut self, receipt: Receipt, now: Instant) -> Option<Measured> {
        let sample = self
            .sample
            .take_if(|sample| sample.serial == receipt.serial)?;
        let taken_at = sample.taken_at.unwrap_or(now);
        let handling = sample.taken_at.map(|at| now.saturating_duration_since(at));
        (receipt.epoch != NO_SESSION).then(|| Measured {
            wait: taken_at.saturating_duration_since(sample.delivered_at),
            handling,
            weight: sample.weight,
        })
    }

    /// Counts an event as handled that is not delivered to the user. It takes no credit.
    pub(crate) fn skip(&mut self, sequence: u64) {
        self.delivered = self.delivered.max(sequence);
    }

    /// Takes credit for something that is not an event of the session.
    pub(crate) fn hold(&mut self) -> Receipt {
        self.events += 1;
        Receipt {
            epoch: NO_SESSION,
            serial: 0,
            bytes: 0,
            is_sample: false,
        }
    }

    /// Takes back the credit of an event that was handled. Returns whether a stalled shard may
    /// continue.
    pub(crate) fn settle(&mut self, receipt: Receipt) -> bool {
        self.events -= 1;
        self.bytes -= receipt.bytes as usize;
        if receipt.epoch == self.epoch {
            self.handle(receipt.serial);
        }
        let goes_on =
            self.stalled && self.events <= self.max_events / 2 && self.bytes <= self.max_bytes / 2;
        self.stalled &= !goes_on;
        goes_on
    }

    /// Marks an event as handled. Usually that is the oldest one. An event that the user keeps
    /// forever must not make `open` longer than twice the credit.
    fn handle(&mut self, serial: u64) {
        if self
            .open
            .front()
            .is_some_and(|oldest| oldest.serial == serial)
        {
            self.open.pop_front();
            while self.open.front().is_some_and(|oldest| oldest.is_handled) {
                self.open.pop_front();
                self.handled -= 1;
            }
        } else if let Ok(at) = self.open.binary_search_by_key(&serial, |open| open.serial) {
            self.open[at].is_handled = true;
            self.handled += 1;
            if let Some(sample) = &mut self.sample {
                sample.is_overtaken |= serial > sample.serial;
            }
        }

        if self.handled > self.open.len() / 2 {
            self.open.retain(|open| !open.is_handled);
            self.handled = 0;
        }
    }

    /// Stalls the shard if it has no room. It continues once no more than half of each limit is
    /// outstanding, so that a slow handler does not make it stall at every event. Returns whether
    /// it has stalled just now.
    pub(crate) fn stall(&mut self) -> bool {
        let begins = !self.stalled && !self.has_room();
        self.stalled |= begins;
        begins
    }

    pub(crate) fn is_stalled(&self) -> bool {
        self.stalled
    }

    /// Frees memory that only a busy shard needs.
    pub(crate) fn shrink(&mut self) {
        self.open.shrink_to_fit();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shard_id::ShardId;

    #[test]
    #[allow(
        clippy::disallowed_methods,
        reason = "the test's instants are offsets from a real one"
    )]
    fn one_event_of_a_batch_is_measured_for_those_before_it() {
        let mut credit = begun(100, 1000);
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let seconds = Duration::from_secs;
        let settle = |credit: &mut Credit, receipt, now| {
            let measured = credit.measure(receipt, now);
            credit.settle(receipt);
            measured
        };

        let first = credit.deliver(1, 10, Some(at(0)));
        let others = [2, 3].map(|sequence| credit.deliver(sequence, 10, Some(at(1))));
        assert!(first.is_sample() && !others.iter().any(|other| other.is_sample()));
        credit.take(first, at(5));
        let measured = settle(&mut credit, first, at(7)).unwrap();
        let (wait, handling) = (seconds(5), Some(seconds(2)));
        assert_eq!((measured.wait, measured.handling), (wait, handling));
        assert_eq!(measured.weight, 1);

        // It was never taken, so only its wait is known.
        let second = credit.deliver(4, 10, Some(at(10)));
        let measured = settle(&mut credit, second, at(11)).unwrap();
        assert_eq!((measured.wait, measured.handling), (seconds(1), None));
        assert_eq!(measured.weight, 3);
        for other in others {
            credit.settle(other);
        }

        // An event that is kept forever does not prevent later ones from being measured.
        let kept = credit.deliver(5, 10, Some(at(20)));
        assert!(!credit.deliver(6, 10, Some(at(100))).is_sample());
        let later = credit.deliver(7, 10, None);
        credit.settle(later);
        let next = credit.deliver(8, 10, Some(at(101)));
        assert!(next.is_sample());
        assert_eq!(settle(&mut credit, kept, at(102)), None);

        let abandoned = next.without_session();
        assert_eq!(settle(&mut credit, abandoned, at(103)), None);
        assert!(credit.deliver(9, 10, Some(at(104))).is_sample());
    }

    #[test]
    fn another_run_goes_on_where_the_last_one_was() {
        let mut credit = begun(2, 1000);
        let receipts = [1, 2].map(|sequence| credit.deliver(sequence, 10, None));
        assert!(credit.stall());
        assert_eq!(credit.resume(9, 1000).unwrap().sequence, 2);
        assert!(credit.has_room() && !credit.is_stalled());
        assert_eq!((mark(&credit), credit.outstanding().0), (0, 2));
        credit.deliver(3, 10, None);
        assert_eq!(credit.deliveries(), 3);
        assert!(credit.has_handled(0) && !credit.has_handled(1));
        credit.settle(receipts[0]);
        assert!(credit.has_handled(1) && !credit.has_handled(2));
        credit.settle(receipts[1]);
        assert!(credit.has_handled(2) && mark(&credit) == 2);
        credit.end();
        assert!(credit.resume(9, 1000).is_none());
    }

    fn begun(max_events: usize, max_bytes: usize) -> Credit {
        let mut credit = Credit::new(max_events, max_bytes);
        credit.begin(
            Session::new("a".into(), 1, String::new(), ShardId::ONE, 1),
            0,
        );
        credit
    }

    fn mark(credit: &Credit) -> u64 {
        credit.session().unwrap().sequence
    }

    #[test]
    fn the_mark_waits_for_the_slowest() {
        let mut credit = begun(10, 1000);
        let receipts = [1, 2, 4].map(|sequence| credit.deliver(sequence, 10, None));
        credit.settle(receipts[2]);
        credit.settle(receipts[1]);
        assert_eq!(mark(&credit), 0);
        credit.settle(receipts[0]);
        assert_eq!(mark(&credit), 4);
        assert_eq!(credit.outstanding(), (0, 0));
    }

    #[test]
    fn what_is_skipped_counts_as_handled() {
        let mut credit = begun(10, 1000);
        credit.skip(1);
        let receipt = credit.deliver(2, 10, None);
        credit.skip(3);
        assert_eq!(
            (mark(&credit), credit.delivered(), credit.outstanding()),
            (1, 3, (1, 10))
        );
        credit.settle(receipt);
        assert_eq!(mark(&credit), 3);
    }

    #[test]
    fn an_event_that_is_kept_costs_itself_alone() {
        let mut credit = begun(10, 1000);
        credit.deliver(1, 10, None);
        for sequence in 2..10_000 {
            let receipt = credit.deliver(sequence, 10, None);
            credit.settle(receipt);
            assert!(credit.open.len() <= 2);
        }
        assert_eq!(mark(&credit), 0);
    }

    #[test]
    fn a_lease_of_an_old_session_moves_no_mark() {
        let mut credit = begun(10, 1000);
        let old = credit.deliver(50, 10, None);
        credit.begin(
            Session::new("b".into(), 1, String::new(), ShardId::ONE, 1),
            0,
        );
        let new = credit.deliver(1, 10, None);
        credit.settle(old);
        assert_eq!(mark(&credit), 0);
        credit.settle(new);
        assert_eq!((mark(&credit), credit.outstanding()), (1, (0, 0)));
    }

    #[test]
    fn it_stalls_when_full_and_goes_on_at_half() {
        let mut credit = begun(4, 1000);
        let receipts: Vec<_> = (1..=4)
            .map(|sequence| credit.deliver(sequence, 10, None))
            .collect();
        assert!(!credit.has_room() && credit.stall() && !credit.stall());
        assert!(!credit.settle(receipts[0]));
        assert!(credit.is_stalled());
        assert!(credit.settle(receipts[1]));
        assert!(!credit.is_stalled() && !credit.settle(receipts[2]));
    }

    #[test]
    fn one_event_always_fits() {
        let mut credit = begun(10, 100);
        assert!(credit.has_room());
        let huge = credit.deliver(1, 5000, None);
        assert!(credit.stall());
        assert!(credit.settle(huge));
        assert!(credit.has_room());
    }
}
