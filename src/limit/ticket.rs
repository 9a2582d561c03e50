//! A place in the identify queue, and the right to identify: what a shard holds of a limiter.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use parking_lot::{Condvar, Mutex};

use crate::clock;
use crate::error::Error;

/// A place in a limiter's queue. It keeps its place while it lives; dropping it leaves the queue.
#[derive(Debug)]
pub struct Ticket(Option<Arc<Shared>>);

/// The right to send one IDENTIFY.
///
/// Dropped unused, it frees its slot at once. Once [used](Self::used) it stays spent, and dropping
/// it says that the session has started or that it never will (for limiters that count from READY).
#[derive(Debug)]
pub struct Permit {
    shared: Option<Arc<Shared>>,
    expiry: Option<Expiry>,
}

/// When a permit expires: some time after it was asked for, by whichever clock has gone on further,
/// the monotonic or that of the calendar. The first may stand still while the machine sleeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Expiry {
    start: Moment,
    valid_for: Duration,
}

/// A time on this process's clocks.
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
    /// The ticket or permit is gone: a place in the queue or an unused slot is free; a used slot is
    /// not affected.
    Left,
    /// The IDENTIFY was sent just now.
    Used,
    /// The slot is to be free again after this time, however long the limiter's own window is.
    ExitAfter(Duration),
}

/// Why a limiter grants nothing.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LimitError {
    /// The limiter is closed, for good: a shard that asks it stops.
    #[error("the identify limiter is closed")]
    Closed,
    /// The turn did not come in time; the place in the queue is given up.
    #[error("the turn to identify did not come in time")]
    TimedOut,
    /// The limiter failed, and may work again later: a shard asks again, after a pause that grows.
    #[error("the identify limiter failed")]
    Failed(#[source] Arc<dyn std::error::Error + Send + Sync>),
}

impl LimitError {
    /// A failure with its cause, which may be a text.
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

/// Two failures are equal only if they are one.
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
    /// A ticket and the limiter's end of it.
    ///
    /// `wake` is called when the ticket is granted or refused, on the limiter's thread: it must not
    /// block. `report` is called by the holder of the ticket, with no lock held.
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

    /// Whether the turn has come. A ticket gives one permit; after that it answers
    /// [`LimitError::Closed`].
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

    /// Blocks until the turn comes, at most until `deadline`. Nobody else is woken when it does.
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
    /// Whether it must not be used any more: the limiter may have granted the slot to another
    /// process. Look right before the IDENTIFY is sent, and ask for another permit if it is.
    pub fn is_expired(&self) -> bool {
        self.expiry.is_some_and(|expiry| expiry.is_over())
    }

    /// The IDENTIFY was sent just now: the window starts.
    pub fn used(&mut self) {
        self.report(Report::Used);
    }

    /// Sends the IDENTIFY: `send` runs, and the permit is [used](Self::used) when it returns or
    /// panics.
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

    /// Gives it back unused: the slot is free at once.
    pub fn exit(self) {
        drop(self);
    }

    /// Gives it back used; the slot is free again after `window` instead of the limiter's own.
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
    /// This long from now. A limiter that asks a server calls this before it asks.
    pub fn after(valid_for: Duration) -> Self {
        Self::counted_from(Moment::now(), valid_for)
    }

    /// This long from then.
    pub(super) fn counted_from(start: Moment, valid_for: Duration) -> Self {
        Self { start, valid_for }
    }

    /// Whether the time is over.
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

    /// How long ago it was, by whichever clock has gone on further.
    pub(crate) fn elapsed(&self) -> Duration {
        let elapsed = clock::now().saturating_duration_since(self.monotonic);
        let elapsed_wall = clock::wall().duration_since(self.wall);
        elapsed.max(elapsed_wall.unwrap_or_default())
    }
}

impl Granter {
    /// It is the ticket's turn. Returns `false` if nobody holds the ticket any more: the slot is
    /// then free.
    #[must_use = "a slot whose ticket is gone must be given to somebody else"]
    pub fn grant(&self) -> bool {
        self.settle(State::Granted(None))
    }

    /// As [`grant`](Self::grant), with a permit that expires.
    #[must_use = "a slot whose ticket is gone must be given to somebody else"]
    pub fn grant_until(&self, expiry: Expiry) -> bool {
        self.settle(State::Granted(Some(expiry)))
    }

    /// The ticket will never have its turn.
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
