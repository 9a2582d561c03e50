//! The identify limit of one process: a schedule under a lock, and a thread that grants when a
//! window ends.

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

/// Discord's identify limit for the shards of one process.
///
/// There are `max_concurrency` rate limit keys. Each key allows one IDENTIFY per window, first
/// come, first served. The limit never grants more IDENTIFYs a day than Discord allows.
///
/// Shards use it through [`IdentifyLimiter`]. Programs that send their own IDENTIFYs can use it
/// directly. A used permit blocks its key until the window ends, even after it is dropped. An
/// unused permit frees its key at once.
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
/// One thread serves all windows. It starts when a caller first has to wait for a window, and ends
/// when the limit is dropped or [closed](Self::close).
pub struct SessionLimit {
    shared: Arc<Shared>,
}

/// The stack size of the release thread, which calls wakers and loggers.
const STACK_SIZE: usize = 128 * 1024;

struct Shared {
    state: Mutex<State>,
    /// Wakes the release thread when its wake-up time has changed or the limit is closed.
    retimed: Condvar,
    /// The stack size of the release thread.
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
    /// Creates a limit with Discord's window of 5 s, which starts at the IDENTIFY.
    pub fn new(limits: Limits) -> Self {
        Self::with_timing(limits, &Timing::default(), ReleaseAfter::Identify)
    }

    /// Like [`new`](Self::new), for a bot that has not identified today (1000 IDENTIFYs are left)
    /// and may start `max_concurrency` sessions at once.
    pub fn with_max_concurrency(max_concurrency: NonZeroU32) -> Self {
        Self::new(Limits {
            max_concurrency,
            ..Limits::default()
        })
    }

    /// Creates a limit with other windows, or with the older rule that a window starts at READY.
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
    /// [`LimitError::Closed`] if the limit is closed, before or during the wait;
    /// [`LimitError::Failed`] if the thread that would end the wait cannot be started.
    pub fn enter(&self, shard: ShardId) -> Result<Permit, LimitError> {
        self.ticket(shard, || {}).wait(None)
    }

    /// Like [`enter`](Self::enter), but blocks for at most `timeout`.
    ///
    /// # Errors
    /// [`LimitError::TimedOut`] after `timeout`; otherwise as for [`enter`](Self::enter).
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use threadcord::{ShardId, limit::{LimitError, Limits, SessionLimit}};
    /// let limit = SessionLimit::new(Limits { remaining: 0, reset_after: Duration::from_secs(3600), ..Limits::default() });
    /// let refused = limit.enter_timeout(ShardId::ONE, Duration::from_millis(10));
    /// assert_eq!(refused.unwrap_err(), LimitError::TimedOut);
    /// ```
    pub fn enter_timeout(&self, shard: ShardId, timeout: Duration) -> Result<Permit, LimitError> {
        // If the timeout is too long for the clock, there is no deadline.
        let deadline = clock::now().checked_add(timeout);
        self.ticket(shard, || {}).wait(deadline)
    }

    /// Returns a permit if it is the shard's turn right now, else `None`; never blocks or queues.
    ///
    /// # Errors
    /// As for [`enter`](Self::enter).
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use threadcord::{ShardId, limit::{Limits, SessionLimit}};
    /// let limit = SessionLimit::new(Limits::default());
    /// let permit = limit.try_enter(ShardId::ONE)?.expect("no other shard holds the key");
    /// permit.exit(); // unused: the next shard may enter at once
    /// let permit = limit.try_enter(ShardId::ONE)?.expect("the first permit was returned");
    /// permit.exit_after(Duration::from_millis(20)); // used, with the caller's own window
    /// assert!(limit.try_enter(ShardId::ONE)?.is_none());
    /// assert!(limit.enter_timeout(ShardId::ONE, Duration::from_secs(5)).is_ok());
    /// # Ok::<(), threadcord::limit::LimitError>(())
    /// ```
    pub fn try_enter(&self, shard: ShardId) -> Result<Option<Permit>, LimitError> {
        self.ticket(shard, || {}).poll()
    }

    /// Takes new limits from `/gateway/bot`. The request was sent at `asked_at`; IDENTIFYs spent
    /// since then are subtracted.
    pub fn update(&self, limits: Limits, asked_at: Instant) {
        self.shared
            .change(|now, state| state.schedule.update(now, asked_at, limits));
    }

    /// Records that another process identified `ago` ago, with rate limit key `key` of `keys`.
    /// The key's window starts then.
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

    /// The number of requests that wait for their turn.
    pub fn waiting(&self) -> usize {
        self.shared.state.lock().schedule.waiting()
    }

    /// Returns what is left of the limit, and which shards wait.
    pub fn status(&self) -> LimitStatus {
        self.shared.state.lock().schedule.status(clock::now())
    }

    /// Refuses all waiting and all later requests with [`LimitError::Closed`].
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
            // The only foreign code on the thread is wakers, whose panics are logged already.
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

        // Dropped outside the lock: the drop of its waker may run any code.
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

    /// Applies `change`, grants what can then be granted, and sets when the release thread wakes.
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
            log::error!("failed to start the identify limiter's thread: {error}");
            // Without the thread, nothing would wake these waiters. Shards request again after a
            // pause, and then the thread may start.
            let error = LimitError::failed(error);
            for granter in waiting {
                unharmed(|| granter.refuse(error.clone()));
            }
        }
        self.grant(granted);
        result
    }

    /// Grants tickets with no lock held. If a ticket has left meanwhile, its slot is free for the
    /// next one.
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
        // A test that sets the time calls `SessionLimit::release` instead.
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

    /// The release thread: grants tickets when their windows end.
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

/// Calls a waker, which is a user's code. Its panic is logged, and must not end the thread, because
/// all waiting shards depend on it.
fn unharmed<R>(wake: impl FnOnce() -> R) -> Option<R> {
    let woken = catch_unwind(AssertUnwindSafe(wake));
    if woken.is_err() {
        log::error!("a callback that waits for a permit to identify panicked");
    }
    woken.ok()
}

impl State {
    /// Removes all waiting tickets from the queue, and returns their granters.
    fn take_waiting(&mut self, now: Instant) -> Vec<Granter> {
        let waiting: Vec<_> = self.waiting.drain().collect();
        let leave = |(id, granter)| {
            self.schedule.leave(now, id);
            granter
        };
        waiting.into_iter().map(leave).collect()
    }

    /// Collects the tickets that are granted at `now`. Returns when the passing of time may allow
    /// the next grant.
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

        let mut permit = broken.wait(None).expect("it is granted anyway");
        permit.used();
        wakes
            .recv_timeout(Duration::from_secs(60))
            .expect("the release thread still runs");
        assert!(next.poll().unwrap().is_some());
    }

    #[test]
    fn without_a_thread_those_who_wait_are_refused_and_may_ask_again() {
        let mut limit = quick();
        // More memory than there is, so the thread cannot start.
        Arc::get_mut(&mut limit.shared).unwrap().stack_size = usize::MAX / 4;
        limit.enter(ShardId::ONE).unwrap().used();
        let refused = limit.enter(ShardId::ONE).unwrap_err();
        assert!(matches!(refused, LimitError::Failed(_)), "{refused:?}");
        assert_eq!(limit.waiting(), 0);

        Arc::get_mut(&mut limit.shared).unwrap().stack_size = STACK_SIZE;
        limit.enter(ShardId::ONE).unwrap().used();
    }
}
