//! The thread that renews a lease.

use std::mem;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::document::Document;
use super::lease::{Lease, Renewal};
use crate::clock;
use crate::error::{Error, StoreError};
use crate::limit::{Granter, LimitError, Ticket, Wake, millis};
use crate::store::OwnershipLost;

/// How many times a lease is renewed per TTL.
const RENEWALS_PER_TTL: u32 = 10;

/// A lease that this process owns or has owned, and the thread that renews it.
pub(super) struct Keeper {
    document: Document,
    ttl: Duration,
    state: Mutex<State>,
    /// Wakes the thread when a ticket must be answered or the lease is no longer kept.
    changed: Condvar,
}

struct State {
    /// The lease as this process last stored it.
    own: Lease,
    condition: Condition,
    /// The tickets that the next renewal answers.
    waiting: Vec<Granter>,
}

/// Whether this process keeps its lease, or how it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Condition {
    Kept,
    Lost,
    Released,
}

impl Keeper {
    /// Starts a thread that renews the lease until this process loses or releases it.
    pub(super) fn start(document: Document, own: Lease, ttl: Duration) -> Result<Arc<Self>, Error> {
        let keeper = Arc::new(Self {
            document,
            ttl,
            state: Mutex::new(State {
                own,
                condition: Condition::Kept,
                waiting: Vec::new(),
            }),
            changed: Condvar::new(),
        });

        let of_thread = Arc::clone(&keeper);
        let thread = thread::Builder::new().name("redis-lease".into());
        let spawned = thread.spawn(move || {
            // A logger that panics must not end the renewals.
            while catch_unwind(AssertUnwindSafe(|| of_thread.run())).is_err() {}
        });
        if let Err(source) = spawned {
            keeper.release();
            return Err(Error::Io {
                what: "a thread that renews a lease",
                source,
            });
        }
        Ok(keeper)
    }

    /// Requests a confirmation that this process still owns the lease. A renewal that starts after
    /// this call answers the ticket.
    pub(super) fn confirm(&self, wake: Wake) -> Ticket {
        let (ticket, granter) = Ticket::pair(wake, |_| {});

        let is_kept = {
            let mut state = self.state.lock();
            let is_kept = state.condition == Condition::Kept;
            if is_kept {
                state.waiting.push(granter.clone());
            }
            is_kept
        };
        if is_kept {
            self.changed.notify_all();
        } else {
            granter.refuse(LimitError::Closed);
        }
        ticket
    }

    /// Whether the lease may be used, as far as this process knows.
    pub(super) fn check(&self) -> Result<(), StoreError> {
        match self.state.lock().condition {
            Condition::Kept => Ok(()),
            Condition::Lost => Err(Box::new(OwnershipLost)),
            Condition::Released => Err("the part was released: acquire it again".into()),
        }
    }

    /// Since when this process has renewed the lease on its server. The value changes after the
    /// server has lost its data or another server has replaced it.
    pub(super) fn server_since(&self) -> u64 {
        self.state.lock().own.server_since
    }

    /// Notes that another process owns the lease.
    pub(super) fn lose(&self) {
        self.end(Condition::Lost);
    }

    /// Releases the lease for the next process. If Redis is unreachable, that process has to wait
    /// for one TTL.
    pub(super) fn release(&self) {
        if !self.end(Condition::Released) {
            return;
        }

        let own = self.state.lock().own.clone();
        let ttl = millis(self.ttl);
        let released = self.document.change(|now, text| {
            let stored = self.document.usable(Lease::read(text))?;
            match Lease::release(now, &own, stored, ttl) {
                Some(lease) => Ok((serde_json::to_string(&lease)?, true)),
                None => Ok((text.to_owned(), false)),
            }
        });

        let (key, ttl) = (&self.document, self.ttl);
        match released {
            Ok(true) => log::info!("{key} is released"),
            Ok(false) => log::warn!("{key} is not released, because another process may own it"),
            Err(error) => {
                log::warn!("failed to release {key}, so the next owner must wait {ttl:?}: {error}");
            }
        }
    }

    /// Stops keeping the lease. Returns whether it was kept until now.
    fn end(&self, condition: Condition) -> bool {
        let waiting = {
            let mut state = self.state.lock();
            if state.condition != Condition::Kept {
                return false;
            }
            state.condition = condition;
            mem::take(&mut state.waiting)
        };
        self.changed.notify_all();
        for granter in waiting {
            granter.refuse(LimitError::Closed);
        }
        true
    }

    /// The thread: renews the lease when that is due or requested, and answers the tickets.
    fn run(&self) {
        let mut due = clock::now() + self.ttl / RENEWALS_PER_TTL;
        let mut is_failing = false;
        while let Some((own, waiting)) = self.next(due) {
            due = clock::now() + self.ttl / RENEWALS_PER_TTL;

            let was_failing = is_failing;
            let (failure, note) = self.handle(self.renew(&own));
            is_failing = note.is_some();

            for granter in waiting {
                match &failure {
                    // A shard that has left needs no answer.
                    None => drop(granter.grant()),
                    Some(failure) => granter.refuse(failure.clone()),
                }
            }
            let is_over = failure == Some(LimitError::Closed);
            // Logged last: a logger that panics must not hold back the answers.
            if let Some(note) = note.filter(|_| is_over || !was_failing) {
                log::error!("{}: {note}", self.document);
            }
        }
    }

    /// Waits until a renewal is due or requested. `None` if the lease is no longer kept.
    fn next(&self, due: Instant) -> Option<(Lease, Vec<Granter>)> {
        let mut state = self.state.lock();
        while state.condition == Condition::Kept && state.waiting.is_empty() {
            if self.changed.wait_until(&mut state, due).timed_out() {
                break;
            }
        }
        let is_kept = state.condition == Condition::Kept;
        is_kept.then(|| (state.own.clone(), mem::take(&mut state.waiting)))
    }

    fn renew(&self, own: &Lease) -> Result<Renewal, StoreError> {
        let ttl = millis(self.ttl);
        self.document.change(|now, text| {
            let stored = self.document.usable(Lease::read(text))?;
            let renewal = Lease::renew(now, own, stored, ttl);
            let text = match &renewal {
                Renewal::Lost(_) | Renewal::Released => text.to_owned(),
                Renewal::Confirmed(lease) | Renewal::InDoubt(lease) => {
                    serde_json::to_string(lease)?
                }
            };
            Ok((text, renewal))
        })
    }

    /// Applies the outcome of a renewal. Returns the error for the waiting tickets and a log note.
    fn handle(&self, renewed: Result<Renewal, StoreError>) -> (Option<LimitError>, Option<String>) {
        match renewed {
            Ok(Renewal::Confirmed(lease)) => {
                self.state.lock().own = lease;
                (None, None)
            }
            Ok(Renewal::InDoubt(lease)) => {
                self.state.lock().own = lease;
                let why = "this Redis server may not know of another owner yet";
                (Some(LimitError::failed(why)), None)
            }
            Ok(Renewal::Lost(lease)) => {
                self.lose();
                let note = format!("the part now belongs to {}", lease.owner);
                (Some(LimitError::Closed), Some(note))
            }
            Ok(Renewal::Released) => (Some(LimitError::Closed), None),
            Err(error) => {
                let note = format!("failed to renew the lease, will retry: {error}");
                (Some(LimitError::failed(error)), Some(note))
            }
        }
    }
}
