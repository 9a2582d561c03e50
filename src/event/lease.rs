//! The credit of a shard, shared by its thread and by every event that it has delivered.

use std::sync::Arc;
use std::time::Instant;
use std::{fmt, mem};

use parking_lot::Mutex;

use super::credit::{Credit, Measured, Receipt};
use crate::clock;
use crate::histogram::Histogram;
use crate::protocol::Session;

/// A shard's [`Credit`] under a lock. It wakes a stalled shard when enough credit is returned.
pub(crate) struct Ledger {
    credit: Mutex<Credit>,
    times: Arc<Times>,
    /// Wakes the current run of the shard, which continues when credit is returned.
    wake: Mutex<Wake>,
}

type Wake = Arc<dyn Fn() + Send + Sync>;

impl Ledger {
    pub(crate) fn new(
        credit: Credit,
        times: Arc<Times>,
        wake: impl Fn() + Send + Sync + 'static,
    ) -> Arc<Self> {
        Arc::new(Self {
            credit: Mutex::new(credit),
            times,
            wake: Mutex::new(Arc::new(wake)),
        })
    }

    /// See [`Credit::begin`].
    pub(crate) fn begin(&self, session: Session, mark: u64) {
        self.credit.lock().begin(session, mark);
    }

    /// See [`Credit::resume`]. From now on, `wake` is called to wake the shard.
    pub(crate) fn resume(
        &self,
        max_events: usize,
        max_bytes: usize,
        wake: impl Fn() + Send + Sync + 'static,
    ) -> Option<Session> {
        let session = self.credit.lock().resume(max_events, max_bytes)?;
        let before = mem::replace(&mut *self.wake.lock(), Arc::new(wake));
        // It may hold the last reference to the old run, so it is not dropped under the lock.
        drop(before);
        Some(session)
    }

    /// See [`Credit::deliveries`].
    pub(crate) fn deliveries(&self) -> u64 {
        self.credit.lock().deliveries()
    }

    /// See [`Credit::has_handled`].
    pub(crate) fn has_handled(&self, count: u64) -> bool {
        self.credit.lock().has_handled(count)
    }

    /// See [`Credit::end`].
    pub(crate) fn end(&self) {
        self.credit.lock().end();
    }

    /// See [`Credit::session`].
    pub(crate) fn session(&self) -> Option<Session> {
        self.credit.lock().session()
    }

    /// The last sequence delivered.
    pub(crate) fn delivered(&self) -> u64 {
        self.credit.lock().delivered()
    }

    /// The numbers of outstanding events and bytes.
    pub(crate) fn outstanding(&self) -> (usize, usize) {
        self.credit.lock().outstanding()
    }

    /// Whether the shard may continue to read, and whether it has stalled just now. Stalls it if it
    /// has no room.
    pub(crate) fn check(&self) -> Room {
        let mut credit = self.credit.lock();
        match (credit.stall(), credit.is_stalled()) {
            (true, _) => Room::StalledNow,
            (false, true) => Room::Stalled,
            (false, false) => Room::Free,
        }
    }

    /// See [`Credit::is_stalled`].
    pub(crate) fn is_stalled(&self) -> bool {
        self.credit.lock().is_stalled()
    }

    /// See [`Credit::hold`].
    pub(crate) fn hold(self: &Arc<Self>) -> Lease {
        let receipt = self.credit.lock().hold();
        Lease::new(self, receipt)
    }

    /// See [`Credit::skip`].
    pub(crate) fn skip(&self, sequence: u64) {
        self.credit.lock().skip(sequence);
    }

    /// Leases credit to an event. `batch` is the time if the event is the first of a batch. Also
    /// returns whether another event may follow.
    pub(crate) fn lease(
        self: &Arc<Self>,
        sequence: u64,
        bytes: usize,
        batch: Option<Instant>,
    ) -> (Lease, bool) {
        let mut credit = self.credit.lock();
        let receipt = credit.deliver(sequence, bytes, batch);
        let has_room = credit.has_room();
        drop(credit);
        (Lease::new(self, receipt), has_room)
    }

    /// See [`Credit::shrink`].
    pub(crate) fn shrink(&self) {
        self.credit.lock().shrink();
    }
}

/// How long events waited to be taken, and how long their handling took.
#[derive(Debug, Default)]
pub(crate) struct Times(Mutex<(Histogram, Histogram)>);

impl Times {
    fn record(&self, measured: Measured) {
        let mut times = self.0.lock();
        times.0.record(measured.wait, measured.weight);
        if let Some(handling) = measured.handling {
            times.1.record(handling, measured.weight);
        }
    }

    pub(crate) fn read(&self) -> (Histogram, Histogram) {
        self.0.lock().clone()
    }
}

/// Whether a shard may deliver more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Room {
    Free,
    StalledNow,
    Stalled,
}

/// Credit held by one event; dropping it counts the event as handled.
pub(crate) struct Lease {
    ledger: Arc<Ledger>,
    receipt: Receipt,
    /// Keeps the lease of a duplicate, if another session may have received one.
    twin: Option<Arc<Twin>>,
}

impl Lease {
    fn new(ledger: &Arc<Ledger>, receipt: Receipt) -> Self {
        Self {
            ledger: Arc::clone(ledger),
            receipt,
            twin: None,
        }
    }

    /// The handler or the caller has taken the event.
    pub(super) fn take(&self) {
        if self.receipt.is_sample() {
            let now = clock::now();
            self.ledger.credit.lock().take(self.receipt, now);
        }
    }

    /// Records the times of an event that has been handled or abandoned.
    #[cold]
    fn measure(&self) {
        let now = clock::now();
        let measured = self.ledger.credit.lock().measure(self.receipt, now);
        if let Some(measured) = measured {
            self.ledger.times.record(measured);
        }
    }

    /// Returns the credit without counting the event as handled: it is redelivered when its session
    /// is resumed from the mark.
    pub(crate) fn abandon(mut self) {
        self.receipt = self.receipt.without_session();
    }

    /// The place for the lease of a duplicate, which is settled together with this one.
    pub(crate) fn twin(&mut self) -> Arc<Twin> {
        Arc::clone(self.twin.get_or_insert_default())
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if self.receipt.is_sample() {
            self.measure();
        }
        let goes_on = self.ledger.credit.lock().settle(self.receipt);
        if goes_on {
            let wake = Arc::clone(&self.ledger.wake.lock());
            wake();
        }
        if let Some(twin) = &self.twin {
            drop(twin.handle());
        }
    }
}

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Lease(..)")
    }
}

/// Ties the lease of a duplicate, which no handler will ever receive, to the copy that was
/// delivered: once that copy has been handled, the event counts as handled in both sessions.
#[derive(Debug, Default)]
pub(crate) struct Twin(Mutex<Duplicate>);

#[derive(Debug, Default)]
enum Duplicate {
    /// The duplicate has not arrived, and may never arrive.
    #[default]
    Absent,
    /// The duplicate arrived before the delivered copy was handled.
    Outstanding(Lease),
    /// The delivered copy has been handled.
    Handled,
}

impl Twin {
    /// Takes the lease of a duplicate. It is settled together with the delivered copy, or at once
    /// if that copy has been handled.
    pub(crate) fn carry(&self, lease: Lease) {
        let settled = {
            let mut duplicate = self.0.lock();
            if matches!(*duplicate, Duplicate::Handled) {
                Some(lease)
            } else {
                *duplicate = Duplicate::Outstanding(lease);
                None
            }
        };
        // Dropping it may wake its shard, so it is not dropped under the lock.
        drop(settled);
    }

    /// Records that the delivered copy has been handled. Returns the lease of the duplicate, if it
    /// has arrived. Dropping that lease settles it.
    fn handle(&self) -> Option<Lease> {
        match mem::replace(&mut *self.0.lock(), Duplicate::Handled) {
            Duplicate::Outstanding(lease) => Some(lease),
            Duplicate::Absent | Duplicate::Handled => None,
        }
    }
}
