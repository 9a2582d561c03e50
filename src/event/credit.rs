//! What a shard may still deliver, and what has been handled.
#![deny(clippy::disallowed_methods)]

use std::collections::VecDeque;

use crate::protocol::Session;

/// The outstanding events of one shard, and the low-water mark of its session.
///
/// An event is outstanding from its delivery until its lease is given back. The mark is the highest sequence below
/// which every event of the session has been handled, in whatever order that happened.
#[derive(Debug)]
pub(crate) struct Credit {
    max_events: usize,
    max_bytes: usize,
    events: usize,
    bytes: usize,
    stalled: bool,
    session: Option<Session>,
    /// Counts sessions, so that a lease of an old one moves no mark of the new one.
    epoch: u64,
    mark: u64,
    /// What was delivered above the mark, in order: its sequence, and whether it has been handled.
    open: VecDeque<(u64, bool)>,
    /// The serial number of the first entry of `open`.
    first: u64,
}

/// Names one delivered event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Receipt {
    epoch: u64,
    serial: u64,
    bytes: usize,
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
            mark: 0,
            open: VecDeque::new(),
            first: 0,
        }
    }

    /// A session starts of which all up to `mark` has been handled.
    pub(crate) fn begin(&mut self, session: Session, mark: u64) {
        self.end();
        self.session = Some(session);
        self.mark = mark;
    }

    /// The session is over; leases of its events only give credit back from now on.
    pub(crate) fn end(&mut self) {
        self.session = None;
        self.epoch += 1;
        self.open.clear();
        self.first = 0;
    }

    /// The session, at its low-water mark.
    pub(crate) fn session(&self) -> Option<Session> {
        let session = self.session.clone()?;
        Some(Session { sequence: self.mark, ..session })
    }

    /// Whether another event may be delivered. One always fits.
    pub(crate) fn has_room(&self) -> bool {
        self.events == 0 || (self.events < self.max_events && self.bytes < self.max_bytes)
    }

    /// What is outstanding: events and bytes.
    pub(crate) fn outstanding(&self) -> (usize, usize) {
        (self.events, self.bytes)
    }

    /// An event goes to the user.
    pub(crate) fn deliver(&mut self, sequence: u64, bytes: usize) -> Receipt {
        self.events += 1;
        self.bytes += bytes;
        let serial = self.first + self.open.len() as u64;
        self.open.push_back((sequence, false));
        Receipt { epoch: self.epoch, serial, bytes }
    }

    /// An event was handled. Returns whether a stalled shard may go on.
    pub(crate) fn settle(&mut self, receipt: Receipt) -> bool {
        self.events -= 1;
        self.bytes -= receipt.bytes;
        if receipt.epoch == self.epoch {
            let at = usize::try_from(receipt.serial - self.first).unwrap_or(usize::MAX);
            if let Some((_, handled)) = self.open.get_mut(at) {
                *handled = true;
            }
            while let Some(&(sequence, true)) = self.open.front() {
                self.open.pop_front();
                self.first += 1;
                self.mark = self.mark.max(sequence);
            }
        }
        let goes_on = self.stalled && self.events <= self.max_events / 2 && self.bytes <= self.max_bytes / 2;
        self.stalled &= !goes_on;
        goes_on
    }

    /// Stalls the shard if it has no room; it goes on when half of the credit is back, so that a slow handler does not
    /// make it stall at every event. Returns whether it has stalled just now.
    pub(crate) fn stall(&mut self) -> bool {
        let begins = !self.stalled && !self.has_room();
        self.stalled |= begins;
        begins
    }

    pub(crate) fn is_stalled(&self) -> bool {
        self.stalled
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shard_id::ShardId;

    fn begun(max_events: usize, max_bytes: usize) -> Credit {
        let mut credit = Credit::new(max_events, max_bytes);
        credit.begin(Session::new("a".into(), 1, String::new(), ShardId::ONE, 1), 0);
        credit
    }

    fn mark(credit: &Credit) -> u64 {
        credit.session().unwrap().sequence
    }

    #[test]
    fn the_mark_waits_for_the_slowest() {
        let mut credit = begun(10, 1000);
        let receipts = [1, 2, 4].map(|sequence| credit.deliver(sequence, 10));
        credit.settle(receipts[2]);
        credit.settle(receipts[1]);
        assert_eq!(mark(&credit), 0);
        credit.settle(receipts[0]);
        assert_eq!(mark(&credit), 4);
        assert_eq!(credit.outstanding(), (0, 0));
    }

    #[test]
    fn a_lease_of_an_old_session_moves_no_mark() {
        let mut credit = begun(10, 1000);
        let old = credit.deliver(50, 10);
        credit.begin(Session::new("b".into(), 1, String::new(), ShardId::ONE, 1), 0);
        let new = credit.deliver(1, 10);
        credit.settle(old);
        assert_eq!(mark(&credit), 0);
        credit.settle(new);
        assert_eq!((mark(&credit), credit.outstanding()), (1, (0, 0)));
    }

    #[test]
    fn it_stalls_when_full_and_goes_on_at_half() {
        let mut credit = begun(4, 1000);
        let receipts: Vec<_> = (1..=4).map(|sequence| credit.deliver(sequence, 10)).collect();
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
        let huge = credit.deliver(1, 5000);
        assert!(credit.stall());
        assert!(credit.settle(huge));
        assert!(credit.has_room());
    }
}
