//! What a shard gets from a limiter: a place in the identify queue, then the right to identify.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use parking_lot::{Condvar, Mutex};

use crate::clock;
use crate::error::Error;

/// A place in a limiter's queue. Dropping the ticket leaves the queue.
#[derive(Debug)]
pub struct Ticket(Option<Arc<Shared>>);

/// The right to send one IDENTIFY.
///
/// Dropping an unused permit frees its slot at once. A permit that was [used](Self::used) stays
/// spent. Dropping it then reports that the session has started or that it never will, for limiters
/// that count from READY.
#[derive(Debug)]
pub struct Permit {
    shared: Option<Arc<Shared>>,
    expiry: Option<Expiry>,
}

/// When a permit expires: a fixed time after it was requested.
///
/// The time is measured on the monotonic clock and on the system clock, and the longer one counts:
/// the monotonic clock may stop while the machine sleeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Expiry {
    start: Moment,
    valid_for: Duration,
}

/// A point in time on both of this process's clocks, the monotonic clock and the system clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Moment {
    monotonic: Instant,
    wall: SystemTime,
}

/// The limiter's end of a [`Ticket`].
#[derive(Clone, Debug)]
pub struct Granter(Arc<Shared>);

/// What a limiter learns from the holder of a ticket or permit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Report {
    /// The ticket or permit was dropped. This frees a place in the queue or an unused slot; it does
    /// not affect a used slot.
    Left,
    /// The IDENTIFY was sent just now.
    Used,
    /// The IDENTIFY was sent. The slot becomes free again after this time, instead of the limiter's
    /// own window.
    ExitAfter(Duration),
}

/// Why a limiter did not grant a ticket.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LimitError {
    /// The limiter is closed permanently: a shard that requests a permit from it stops.
    #[error("the identify limiter is closed")]
    Closed,
    /// The permit did not arrive in time. The ticket has left the queue.
    #[error("timed out waiting for a permit to identify")]
    TimedOut,
    /// The limiter failed, but may work again later: a shard requests again after a pause, which
    /// grows with each failure.
    #[error("the identify limiter failed")]
    Failed(#[source] Arc<dyn std::error::Error + Send + Sync>),
}

impl LimitError {
    /// Creates a [`Failed`](Self::Failed) from its cause, which may be a string.
    ///
    /// ```
    /// use threadcord::limit::LimitError;
    ///
    /// let failed = LimitError::failed("no answer from the queue");
    /// assert!(matches!(failed, LimitError::Failed(_)));
    /// ```
    pub fn failed(cause: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Failed(cause.into().into())
    }
}

impl From<LimitError> for Error {
    fn from(error: LimitError) -> Self {
        Self::Limit(Box::new(error))
    }
}

/// Two failures are equal only if they share one cause, not if their causes are alike.
impl PartialEq for LimitError {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Closed, Self::Closed) | (Self::TimedOut, Self::TimedOut) => true,
            (Self::Failed(cause), Self::Failed(other)) => Arc::ptr_eq(cause, other),
            _ => false,
        }
    }
}

impl Eq for LimitError {}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    wake: Box<dyn Fn() + Send + Sync>,
    report: Box<dyn Fn(Report) + Send + Sync>,
}

#[derive(Debug, PartialEq, Eq)]
enum State {
    Waiting,
    Granted(Option<Expiry>),
    Refused(LimitError),
    Left,
}

impl Ticket {
    /// Creates a ticket and the limiter's end of it.
    ///
    /// `wake` is called on the limiter's thread when the ticket is granted or refused. It must not
    /// block. `report` is called by the holder of the ticket or permit, with no lock held.
    pub fn pair(
        wake: impl Fn() + Send + Sync + 'static,
        report: impl Fn(Report) + Send + Sync + 'static,
    ) -> (Self, Granter) {
        let shared = Arc::new(Shared {
            state: Mutex::new(State::Waiting),
            changed: Condvar::new(),
            wake: Box::new(wake),
            report: Box::new(report),
        });
        (Self(Some(Arc::clone(&shared))), Granter(shared))
    }

    /// Returns the permit if the turn has come, and `None` if it has not; never blocks.
    ///
    /// # Errors
    /// The error with which the limiter refused the ticket. [`LimitError::Closed`] if this ticket
    /// has already given its permit.
    pub fn poll(&mut self) -> Result<Option<Permit>, LimitError> {
        let Some(shared) = &self.0 else {
            return Err(LimitError::Closed);
        };
        let expiry = match &*shared.state.lock() {
            State::Waiting => return Ok(None),
            State::Refused(error) => return Err(error.clone()),
            State::Granted(expiry) => *expiry,
            State::Left => None,
        };
        Ok(Some(Permit {
            shared: self.0.take(),
            expiry,
        }))
    }

    /// Blocks until the turn comes, at most until `deadline` (`None`: without a limit).
    ///
    /// When the turn comes, only this thread wakes.
    ///
    /// # Errors
    /// [`LimitError::TimedOut`] after `deadline`, or the error with which the limiter refused the
    /// ticket.
    pub fn wait(mut self, deadline: Option<Instant>) -> Result<Permit, LimitError> {
        loop {
            if let Some(permit) = self.poll()? {
                return Ok(permit);
            }
            let Some(shared) = &self.0 else {
                return Err(LimitError::Closed);
            };

            let mut state = shared.state.lock();
            if *state != State::Waiting {
                continue;
            }
            match deadline {
                None => shared.changed.wait(&mut state),
                Some(deadline) => {
                    if shared.changed.wait_until(&mut state, deadline).timed_out()
                        && *state == State::Waiting
                    {
                        return Err(LimitError::TimedOut);
                    }
                }
            }
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let Some(shared) = self.0.take() else { return };
        *shared.state.lock() = State::Left;
        (shared.report)(Report::Left);
    }
}

impl Permit {
    /// Whether the permit must not be used any more, because the limiter may have granted the slot
    /// to another process. Check this right before you send the IDENTIFY, and request another
    /// permit if it has expired.
    pub fn is_expired(&self) -> bool {
        self.expiry.is_some_and(|expiry| expiry.is_over())
    }

    /// Reports that the IDENTIFY was sent just now: the window starts.
    pub fn used(&mut self) {
        self.report(Report::Used);
    }

    /// Runs `send`, which sends the IDENTIFY, and reports the permit as [used](Self::used) when
    /// `send` returns or panics.
    pub fn spend<R>(&mut self, send: impl FnOnce() -> R) -> R {
        struct Spent<'a>(&'a mut Permit);
        impl Drop for Spent<'_> {
            fn drop(&mut self) {
                self.0.used();
            }
        }
        let _spent = Spent(self);
        send()
    }

    /// Returns the permit unused: the slot is free at once.
    pub fn exit(self) {
        drop(self);
    }

    /// Returns the permit as used. The slot is free again after `window`, instead of the limiter's
    /// own window.
    pub fn exit_after(mut self, window: Duration) {
        self.report(Report::ExitAfter(window));
        self.shared = None;
    }

    fn report(&mut self, report: Report) {
        if let Some(shared) = &self.shared {
            (shared.report)(report);
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.report(Report::Left);
    }
}

impl Expiry {
    /// Expires `valid_for` from now. A limiter that requests permits from a server must call this
    /// before it sends the request.
    pub fn after(valid_for: Duration) -> Self {
        Self::counted_from(Moment::now(), valid_for)
    }

    /// Expires `valid_for` after `start`.
    pub(super) fn counted_from(start: Moment, valid_for: Duration) -> Self {
        Self { start, valid_for }
    }

    /// Whether the permit has expired.
    pub fn is_over(&self) -> bool {
        self.start.elapsed() >= self.valid_for
    }
}

impl Moment {
    pub(crate) fn now() -> Self {
        Self {
            monotonic: clock::now(),
            wall: clock::wall(),
        }
    }

    /// How long ago this was, on the clock that has advanced further.
    pub(crate) fn elapsed(&self) -> Duration {
        let elapsed = clock::now().saturating_duration_since(self.monotonic);
        let elapsed_wall = clock::wall().duration_since(self.wall);
        elapsed.max(elapsed_wall.unwrap_or_default())
    }
}

impl Granter {
    /// Grants the ticket and wakes its holder. Returns `false` if the ticket was dropped, granted
    /// or refused before: the slot is then free for another ticket.
    #[must_use = "a slot whose ticket is gone must be granted to another ticket"]
    pub fn grant(&self) -> bool {
        self.settle(State::Granted(None))
    }

    /// As [`grant`](Self::grant), with a permit that expires.
    #[must_use = "a slot whose ticket is gone must be granted to another ticket"]
    pub fn grant_until(&self, expiry: Expiry) -> bool {
        self.settle(State::Granted(Some(expiry)))
    }

    /// Refuses the ticket: its turn will never come.
    pub fn refuse(&self, error: LimitError) {
        self.settle(State::Refused(error));
    }

    fn settle(&self, outcome: State) -> bool {
        {
            let mut state = self.0.state.lock();
            if *state != State::Waiting {
                return false;
            }
            *state = outcome;
        }
        self.0.changed.notify_one();
        (self.0.wake)();
        true
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.state.lock().fmt(f)
    }
}
