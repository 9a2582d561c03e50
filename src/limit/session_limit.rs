//! The limit of one process: a schedule under a lock, and a thread that grants when a window ends.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::num::NonZeroU32;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Weak};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::schedule::{Limits, Rules, Schedule, TicketId, Turn};
use super::ticket::{Granter, LimitError, Permit, Report, Ticket};
use super::{IdentifyLimiter, LimitStatus, ReleaseAfter, Wake};
use crate::clock;
use crate::shard_id::ShardId;
use crate::timing::Timing;

/// Discord's identify limit for the shards of one process: `max_concurrency` keys, one IDENTIFY per
/// key and window, first come first served within a key, and no more a day than Discord allows.
///
/// Shards use it through [`IdentifyLimiter`]. It also works by itself, for programs that send their
/// own IDENTIFYs: unlike a semaphore, what is given back frees its slot at once only if it was not
/// used.
///
/// ```
/// use threadcord::ShardId;
/// use threadcord::limit::{Limits, SessionLimit};
///
/// let limit = SessionLimit::new(Limits::default());
/// let mut permit = limit.enter(ShardId::ONE)?;
/// // ... send the IDENTIFY ...
/// permit.used();
/// drop(permit);
/// assert!(limit.try_enter(ShardId::ONE)?.is_none(), "the window has begun");
/// # Ok::<(), threadcord::limit::LimitError>(())
/// ```
///
/// One thread serves all windows. It is started when a caller first has to wait for one, and ends
/// with the limit.
pub struct SessionLimit {
    shared: Arc<Shared>,
}

/// Of the release thread, which calls wakers and loggers.
const STACK_SIZE: usize = 128 * 1024;

struct Shared {
    state: Mutex<State>,
    /// Wakes the release thread: its next instant has changed, or the limit is closed.
    retimed: Condvar,
    /// Of the release thread.
    stack_size: usize,
}

struct State {
    schedule: Schedule,
    waiting: HashMap<TicketId, Granter>,
    closed: bool,
    thread: Option<JoinHandle<()>>,
    /// When the release thread wakes by itself.
    wakes_at: Option<Instant>,
}

impl SessionLimit {
    /// A limit with Discord's window of 5 s that counts from the IDENTIFY.
    pub fn new(limits: Limits) -> Self {
        Self::with_timing(limits, &Timing::default(), ReleaseAfter::Identify)
    }

    /// As [`new`](Self::new), for a bot that has not identified today and may start
    /// `max_concurrency` sessions at once.
    pub fn with_max_concurrency(max_concurrency: NonZeroU32) -> Self {
        Self::new(Limits {
            max_concurrency,
            ..Limits::default()
        })
    }

    /// A limit with other windows, or with the older rule that a window counts from READY.
    pub fn with_timing(limits: Limits, timing: &Timing, release_after: ReleaseAfter) -> Self {
        let rules = Rules {
            window: timing.identify_window.saturating_add(timing.guard),
            release_after,
            reset_every: timing.identify_reset,
            reset_guard: timing.reset_guard,
        };
        let state = State {
            schedule: Schedule::new(clock::now(), limits, rules),
            waiting: HashMap::new(),
            closed: false,
            thread: None,
            wakes_at: None,
        };
        Self {
            shared: Arc::new(Shared {
                state: Mutex::new(state),
                retimed: Condvar::new(),
                stack_size: STACK_SIZE,
            }),
        }
    }

    /// Blocks until it is the shard's turn.
    ///
    /// # Errors
    /// [`LimitError::Closed`] if the limit is or gets closed.
    pub fn enter(&self, shard: ShardId) -> Result<Permit, LimitError> {
        self.ticket(shard, || {}).wait(None)
    }

    /// As [`enter`](Self::enter), for at most `timeout`.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use threadcord::{ShardId, limit::{LimitError, Limits, SessionLimit}};
    /// let limit = SessionLimit::new(Limits { remaining: 0, reset_after: Duration::from_secs(3600), ..Limits::default() });
    /// let refused = limit.enter_timeout(ShardId::ONE, Duration::from_millis(10));
    /// assert_eq!(refused.unwrap_err(), LimitError::TimedOut);
    /// ```
    pub fn enter_timeout(&self, shard: ShardId, timeout: Duration) -> Result<Permit, LimitError> {
        // A time-out too long for the clock is no time-out.
        let deadline = clock::now().checked_add(timeout);
        self.ticket(shard, || {}).wait(deadline)
    }

    /// A permit if it is the shard's turn right now; it does not wait in the queue.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use threadcord::{ShardId, limit::{Limits, SessionLimit}};
    /// let limit = SessionLimit::new(Limits::default());
    /// let permit = limit.try_enter(ShardId::ONE)?.expect("nobody else is here");
    /// permit.exit(); // unused: the next one may enter at once
    /// let permit = limit.try_enter(ShardId::ONE)?.expect("it was given back");
    /// permit.exit_after(Duration::from_millis(20)); // used, with a window of the caller's own
    /// assert!(limit.try_enter(ShardId::ONE)?.is_none());
    /// assert!(limit.enter_timeout(ShardId::ONE, Duration::from_secs(5)).is_ok());
    /// # Ok::<(), threadcord::limit::LimitError>(())
    /// ```
    pub fn try_enter(&self, shard: ShardId) -> Result<Option<Permit>, LimitError> {
        self.ticket(shard, || {}).poll()
    }

    /// Takes new values of `/gateway/bot`, which was asked at `asked_at`; what was spent since then
    /// is subtracted.
    pub fn update(&self, limits: Limits, asked_at: Instant) {
        self.shared
            .change(|now, state| state.schedule.update(now, asked_at, limits));
    }

    /// Another process identified with key `key` of `keys` so long `ago`: its window counts from
    /// then.
    pub(crate) fn note(&self, key: u32, keys: NonZeroU32, ago: Duration) {
        if let Some(at) = clock::now().checked_sub(ago) {
            self.shared
                .change(|_, state| state.schedule.note(key, keys, at));
        }
    }

    /// IDENTIFYs left until the reset.
    pub fn remaining(&self) -> u32 {
        self.shared.state.lock().schedule.remaining(clock::now())
    }

    /// How many wait for their turn.
    pub fn waiting(&self) -> usize {
        self.shared.state.lock().schedule.waiting()
    }

    /// What is left, and who waits.
    pub fn status(&self) -> LimitStatus {
        self.shared.state.lock().schedule.status(clock::now())
    }

    /// Refuses everyone who waits and everyone who comes, with [`LimitError::Closed`].
    pub fn close(&self) {
        let waiting = {
            let mut state = self.shared.state.lock();
            state.closed = true;
            std::mem::take(&mut state.waiting)
        };
        self.shared.retimed.notify_one();
        for granter in waiting.into_values() {
            unharmed(|| granter.refuse(LimitError::Closed));
        }
    }

    /// Does what the release thread would have done by now.
    #[cfg(test)]
    pub(crate) fn release(&self) {
        self.shared.change(|_, state| state.wakes_at = None);
    }

    /// When the release thread would wake by itself.
    #[cfg(test)]
    pub(crate) fn wakes_at(&self) -> Option<Instant> {
        self.shared.state.lock().wakes_at
    }

    fn ticket(&self, shard: ShardId, wake: impl Fn() + Send + Sync + 'static) -> Ticket {
        let id = Arc::new(std::sync::OnceLock::new());
        let (ticket, granter) = Ticket::pair(wake, {
            let (shared, id) = (Arc::downgrade(&self.shared), Arc::clone(&id));
            move |report| Shared::report(&shared, id.get(), report)
        });
        let entered = self.shared.change(|_, state| {
            if !state.closed {
                let new = state.schedule.request(shard);
                id.get_or_init(|| new);
                state.waiting.insert(new, granter.clone());
            }
            !state.closed
        });
        if !entered {
            granter.refuse(LimitError::Closed);
        }
        ticket
    }
}

impl IdentifyLimiter for SessionLimit {
    fn request(&self, shard: ShardId, wake: Wake) -> Ticket {
        self.ticket(shard, wake)
    }

    fn update(&self, limits: Limits, asked_at: Instant) {
        self.update(limits, asked_at);
    }

    fn status(&self) -> Option<LimitStatus> {
        Some(self.status())
    }
}

impl Drop for SessionLimit {
    fn drop(&mut self) {
        self.close();
        let thread = self.shared.state.lock().thread.take();
        if let Some(thread) = thread
            && thread.thread().id() != thread::current().id()
        {
            // It runs nobody's code but wakers; one that panics has nothing more to say.
            let _ = thread.join();
        }
    }
}

impl fmt::Debug for SessionLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SessionLimit")
            .field("schedule", &self.shared.state.lock().schedule)
            .finish()
    }
}

impl Shared {
    fn report(shared: &Weak<Self>, id: Option<&TicketId>, report: Report) {
        let (Some(shared), Some(&id)) = (shared.upgrade(), id) else {
            return;
        };
        // Dropped out of the lock: its waker may hold anything.
        let _left = shared.change(|now, state| match report {
            Report::Used => {
                state.schedule.used(now, id);
                None
            }
            Report::ExitAfter(window) => {
                state.schedule.exit_after(now, id, window);
                None
            }
            Report::Left => {
                state.schedule.leave(now, id);
                state.waiting.remove(&id)
            }
        });
    }

    /// Changes something, grants what can then be granted, and sets the release thread's alarm.
    fn change<R>(self: &Arc<Self>, change: impl FnOnce(Instant, &mut State) -> R) -> R {
        let mut granted = Vec::new();
        let mut refused = None;
        let result = {
            let mut state = self.state.lock();
            let now = clock::now();
            let result = change(now, &mut state);
            let wait = state.poll(now, &mut granted);
            if let Some(at) = wait
                && state.wakes_at.is_none_or(|wakes_at| at < wakes_at)
            {
                match self.start_thread(&mut state) {
                    Ok(()) => state.wakes_at = Some(at),
                    Err(error) => refused = Some((error, state.take_waiting(now))),
                }
                self.retimed.notify_one();
            }
            result
        };

        if let Some((error, waiting)) = refused {
            log::error!("failed to start the identify limit's release thread: {error}");
            // Nobody would ever wake them. Shards ask again, and then there may be a thread.
            let error = LimitError::failed(error);
            for granter in waiting {
                unharmed(|| granter.refuse(error.clone()));
            }
        }
        self.grant(granted);
        result
    }

    /// Grants with no lock held; a ticket that has left meanwhile frees its slot for the next.
    fn grant(self: &Arc<Self>, granted: Vec<(TicketId, Granter)>) {
        for (id, granter) in granted {
            if unharmed(|| granter.grant()) == Some(false) {
                self.change(|now, state| state.schedule.leave(now, id));
            }
        }
    }

    fn start_thread(self: &Arc<Self>, state: &mut State) -> io::Result<()> {
        if state.thread.is_some() || state.closed {
            return Ok(());
        }
        // Where a test sets the time, it releases as well.
        #[cfg(test)]
        if clock::is_set() {
            return Ok(());
        }
        let shared = Arc::clone(self);
        let thread = thread::Builder::new()
            .name("session-limit".into())
            .stack_size(self.stack_size);
        state.thread = Some(thread.spawn(move || shared.release())?);
        Ok(())
    }

    /// The release thread: grants whatever the passing of time allows.
    fn release(self: &Arc<Self>) {
        let mut granted = Vec::new();
        let mut state = self.state.lock();
        while !state.closed {
            state.wakes_at = state.poll(clock::now(), &mut granted);
            if granted.is_empty() {
                match state.wakes_at {
                    Some(at) => {
                        self.retimed.wait_until(&mut state, at);
                    }
                    None => self.retimed.wait(&mut state),
                }
            } else {
                parking_lot::MutexGuard::unlocked(&mut state, || {
                    self.grant(std::mem::take(&mut granted));
                });
            }
        }
    }
}

/// Calls a waker, which is foreign: what it panics with is its own matter, and must not end the
/// thread that everyone waits for.
fn unharmed<R>(wake: impl FnOnce() -> R) -> Option<R> {
    let woken = catch_unwind(AssertUnwindSafe(wake));
    if woken.is_err() {
        log::error!("the waker of an identify ticket panicked");
    }
    woken.ok()
}

impl State {
    /// Everyone who waits leaves the queue.
    fn take_waiting(&mut self, now: Instant) -> Vec<Granter> {
        let waiting: Vec<_> = self.waiting.drain().collect();
        let leave = |(id, granter)| {
            self.schedule.leave(now, id);
            granter
        };
        waiting.into_iter().map(leave).collect()
    }

    /// Collects what is granted at `now`; returns when time alone changes something.
    fn poll(&mut self, now: Instant, granted: &mut Vec<(TicketId, Granter)>) -> Option<Instant> {
        loop {
            match self.schedule.poll(now) {
                Turn::Wait(at) => return at,
                Turn::Grant(id) => match self.waiting.remove(&id) {
                    Some(granter) => granted.push((id, granter)),
                    None => self.schedule.leave(now, id),
                },
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    fn quick() -> SessionLimit {
        let mut timing = Timing::scaled(0.01);
        timing.guard = Duration::ZERO;
        SessionLimit::with_timing(Limits::default(), &timing, ReleaseAfter::Identify)
    }

    #[test]
    fn a_waker_that_panics_harms_nobody_else() {
        let limit = quick();
        limit.enter(ShardId::ONE).unwrap().used();
        let broken = limit.request(ShardId::ONE, Box::new(|| panic!("a broken waker")));
        let (woken, wakes) = mpsc::channel();
        let mut next = limit.request(
            ShardId::ONE,
            Box::new(move || {
                let _ = woken.send(());
            }),
        );
        let mut permit = broken.wait(None).expect("it is granted all the same");
        permit.used();
        wakes
            .recv_timeout(Duration::from_secs(60))
            .expect("the release thread goes on");
        assert!(next.poll().unwrap().is_some());
    }

    #[test]
    fn without_a_thread_those_who_wait_are_refused_and_may_ask_again() {
        let mut limit = quick();
        // More than there is.
        Arc::get_mut(&mut limit.shared).unwrap().stack_size = usize::MAX / 4;
        limit.enter(ShardId::ONE).unwrap().used();
        let refused = limit.enter(ShardId::ONE).unwrap_err();
        assert!(matches!(refused, LimitError::Failed(_)), "{refused:?}");
        assert_eq!(limit.waiting(), 0);

        Arc::get_mut(&mut limit.shared).unwrap().stack_size = STACK_SIZE;
        limit.enter(ShardId::ONE).unwrap().used();
    }
}
