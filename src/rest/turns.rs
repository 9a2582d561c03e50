//! The queue of requests. Each caller waits on its own Condvar.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::limits::{Answer, RateLimits, TicketId, Turn};
use super::route::Route;
use crate::clock;

/// The rate limits of a bot, shared by all clones and threads.
pub(super) struct Turns {
    state: Mutex<State>,
}

struct State {
    limits: RateLimits,
    callers: HashMap<TicketId, Caller>,
}

struct Caller {
    condvar: Arc<Condvar>,
    /// Whether it has been woken and has not yet noticed.
    is_woken: bool,
}

/// A place in the queue, for one call and all its attempts.
pub(super) struct Place<'a> {
    turns: &'a Turns,
    id: TicketId,
    condvar: Arc<Condvar>,
}

/// Why a request is not sent.
#[derive(Debug, PartialEq)]
pub(super) enum Held {
    Limited {
        retry_after: Duration,
        text: Option<String>,
    },
    TooManyInvalidRequests {
        count: u32,
        retry_after: Duration,
    },
    Closed,
}

impl Turns {
    pub(super) fn new(limit: u32, window: Duration) -> Self {
        Self {
            state: Mutex::new(State {
                limits: RateLimits::new(limit, window),
                callers: HashMap::new(),
            }),
        }
    }

    /// Queues a call that may wait until `deadline`.
    pub(super) fn queue(&self, route: Route, deadline: Instant) -> Place<'_> {
        let condvar = Arc::new(Condvar::new());
        let mut state = self.state.lock();
        let id = state.limits.request(route, deadline);
        let caller = Caller {
            condvar: Arc::clone(&condvar),
            is_woken: false,
        };
        state.callers.insert(id, caller);
        Place {
            turns: self,
            id,
            condvar,
        }
    }

    /// Ends all waits for a turn and all pauses, now and in the future.
    pub(super) fn close(&self) {
        self.change(|state| state.limits.close());
    }

    /// Changes the state, and wakes the callers that the change concerns.
    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.state.lock();
        let changed = change(&mut state);
        let woken = state.take_woken();
        drop(state);
        for condvar in woken {
            condvar.notify_one();
        }
        changed
    }
}

impl State {
    fn take_woken(&mut self) -> Vec<Arc<Condvar>> {
        let mut condvars = Vec::new();
        for id in self.limits.take_woken() {
            if let Some(caller) = self.callers.get_mut(&id) {
                caller.is_woken = true;
                condvars.push(Arc::clone(&caller.condvar));
            }
        }
        condvars
    }

    /// Whether a caller was woken since the last call of this.
    fn was_woken(&mut self, id: TicketId) -> bool {
        let caller = self.callers.get_mut(&id);
        caller.is_some_and(|caller| std::mem::take(&mut caller.is_woken))
    }
}

impl Place<'_> {
    /// Blocks until it is this call's turn.
    pub(super) fn wait(&self, deadline: Instant) -> Result<(), Held> {
        loop {
            let turn = self
                .turns
                .change(|state| state.limits.poll(clock::now(), self.id));
            let until = match turn {
                Turn::Go => return Ok(()),
                Turn::Wait(until) => until.map_or(deadline, |until| until.min(deadline)),
                Turn::Limited { retry_after, text } => {
                    return Err(Held::Limited { retry_after, text });
                }
                Turn::TooManyInvalidRequests { count, retry_after } => {
                    return Err(Held::TooManyInvalidRequests { count, retry_after });
                }
                Turn::Closed => return Err(Held::Closed),
            };

            let mut state = self.turns.state.lock();
            // Another thread may have woken it since it polled; that wakeup must not be lost.
            if !state.was_woken(self.id) {
                self.condvar.wait_until(&mut state, until);
            }
        }
    }

    /// Blocks for a pause between two attempts. Returns `false` if the limits were closed.
    pub(super) fn pause(&self, pause: Duration) -> bool {
        let until = clock::now() + pause;
        let mut state = self.turns.state.lock();
        while !state.limits.is_closed() && clock::now() < until {
            self.condvar.wait_until(&mut state, until);
        }
        !state.limits.is_closed()
    }

    /// Updates the limits from an answer.
    pub(super) fn answered(&self, answer: &Answer) {
        self.turns
            .change(|state| state.limits.answered(clock::now(), self.id, answer));
    }

    /// Notes that no answer came.
    pub(super) fn failed(&self) {
        self.turns
            .change(|state| state.limits.failed(clock::now(), self.id));
    }

    /// Queues the call for another attempt, ahead of all that came later. The next
    /// [`wait`](Self::wait) waits for it.
    pub(super) fn again(&self) {
        self.turns.change(|state| state.limits.requeue(self.id));
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.turns.change(|state| {
            state.callers.remove(&self.id);
            state.limits.leave(clock::now(), self.id);
        });
    }
}
