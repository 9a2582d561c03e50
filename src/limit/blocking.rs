//! An identify limiter made from a function that blocks.

use std::collections::{HashMap, VecDeque};
use std::num::NonZeroU32;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread;
use std::time::Instant;
use std::{fmt, io};

use parking_lot::{Condvar, Mutex};

use super::schedule::Limits;
use super::ticket::{Expiry, Granter, LimitError, Report, Ticket};
use super::{IdentifyLimiter, Wake};
use crate::shard_id::ShardId;

/// The stack size of the threads that call the blocking function.
const STACK_SIZE: usize = 256 * 1024;

/// A custom limiter made from a function that blocks until a shard may identify. The function can
/// wait for a lock in a database, a call to a service, or a file.
///
/// The function never runs on a shard's thread, so it may take as long as it needs. Each rate limit
/// key with waiting shards has one thread, which calls the function for one shard at a time, in the
/// order of the requests. While Discord changes the number of keys, two shards of a key at most are
/// served at a time.
///
/// The function returns a [`Guard`]. [`Guard::used`] is called when the IDENTIFY has been sent. If
/// the shard has left, the guard is dropped without that call. If the function fails or panics, the
/// shard requests again after a pause, which grows with each failure.
///
/// ```
/// use std::sync::atomic::{AtomicU32, Ordering};
/// use threadcord::ShardId;
/// use threadcord::limit::{Blocking, IdentifyLimiter};
///
/// let asked = AtomicU32::new(0);
/// let limiter = Blocking::new(move |shard: ShardId| {
///     // ... wait here for as long as it takes ...
///     println!("shard {shard} is the {}. to identify", asked.fetch_add(1, Ordering::Relaxed) + 1);
///     Ok::<(), std::io::Error>(())
/// });
/// let mut permit = limiter.request(ShardId::ONE, Box::new(|| {})).wait(None)?;
/// // ... send the IDENTIFY ...
/// permit.used();
/// # Ok::<(), threadcord::limit::LimitError>(())
/// ```
pub struct Blocking(Arc<Shared>);

/// The right to identify, which the function of a [`Blocking`] limiter returns. `()` is a guard
/// that does nothing.
pub trait Guard: Send {
    /// Is called when the IDENTIFY has been sent, or when the permit was returned with its [own
    /// window](super::Permit::exit_after). It may block: the next shard of the key waits meanwhile.
    fn used(&mut self) {}

    /// Until when the IDENTIFY may be sent. A shard that is too late requests again. The default,
    /// `None`, sets no limit.
    fn expiry(&self) -> Option<Expiry> {
        None
    }
}

impl Guard for () {}

type Enter = dyn Fn(ShardId) -> Result<Box<dyn Guard>, LimitError> + Send + Sync;

struct Shared {
    enter: Box<Enter>,
    state: Mutex<State>,
}

struct State {
    keys: NonZeroU32,
    /// The waiting shards of each key. Each key in this map has a thread.
    queues: HashMap<u32, VecDeque<Waiting>>,
    is_closed: bool,
}

struct Waiting {
    shard: ShardId,
    granter: Granter,
    slot: Arc<Slot>,
}

/// The state of a ticket or permit, for the thread that serves its key.
#[derive(Default)]
struct Slot {
    fate: Mutex<Fate>,
    changed: Condvar,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Fate {
    #[default]
    Held,
    Used,
    Left,
}

impl Blocking {
    /// Creates a limiter from the function `enter`. It has one rate limit key until
    /// [`update`](IdentifyLimiter::update) sets the number of keys.
    pub fn new<G, E>(enter: impl Fn(ShardId) -> Result<G, E> + Send + Sync + 'static) -> Self
    where
        G: Guard + 'static,
        E: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let enter = move |shard| match enter(shard) {
            Ok(guard) => Ok(Box::new(guard) as Box<dyn Guard>),
            Err(error) => Err(LimitError::failed(error)),
        };
        Self(Arc::new(Shared {
            enter: Box::new(enter),
            state: Mutex::new(State {
                keys: NonZeroU32::MIN,
                queues: HashMap::new(),
                is_closed: false,
            }),
        }))
    }
}

impl Blocking {
    /// The shards that wait, in order only within a key. The shards for which the function runs are
    /// not included.
    pub(super) fn waiting(&self) -> Vec<ShardId> {
        let state = self.0.state.lock();
        let waiting = state.queues.values().flatten();
        waiting.map(|waiting| waiting.shard).collect()
    }
}

impl IdentifyLimiter for Blocking {
    fn request(&self, shard: ShardId, wake: Wake) -> Ticket {
        let slot = Arc::<Slot>::default();
        let (ticket, granter) = Ticket::pair(wake, {
            let slot = Arc::clone(&slot);
            move |report| slot.report(report)
        });
        let waiting = Waiting {
            shard,
            granter: granter.clone(),
            slot,
        };

        let started = self.0.queue(waiting);
        if let Err(error) = started {
            granter.refuse(error);
        }
        ticket
    }

    fn update(&self, limits: Limits, _: Instant) {
        self.0.state.lock().keys = limits.max_concurrency;
    }
}

/// Refuses all shards that wait. Calls of the function that are running continue to their end.
impl Drop for Blocking {
    fn drop(&mut self) {
        let queues = {
            let mut state = self.0.state.lock();
            state.is_closed = true;
            let queues = state.queues.values_mut();
            queues.flat_map(std::mem::take).collect::<Vec<_>>()
        };
        for waiting in queues {
            waiting.refuse(LimitError::Closed);
        }
    }
}

impl fmt::Debug for Blocking {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.0.state.lock();
        let waiting: usize = state.queues.values().map(VecDeque::len).sum();
        f.debug_struct("Blocking")
            .field("keys", &state.keys)
            .field("waiting", &waiting)
            .finish_non_exhaustive()
    }
}

impl Shared {
    /// Queues a ticket, and starts the thread of its key if there is none.
    fn queue(self: &Arc<Self>, waiting: Waiting) -> Result<(), LimitError> {
        let key = {
            let mut state = self.state.lock();
            if state.is_closed {
                return Err(LimitError::Closed);
            }
            let key = waiting.shard.rate_limit_key(state.keys);
            if let Some(queue) = state.queues.get_mut(&key) {
                queue.push_back(waiting);
                return Ok(());
            }
            state.queues.insert(key, VecDeque::from([waiting]));
            key
        };

        let shared = Arc::clone(self);
        let spawned = thread::Builder::new()
            .name(format!("identify {key}"))
            .stack_size(STACK_SIZE)
            .spawn(move || shared.serve(key));
        spawned.map(drop).map_err(|error| {
            let queue = self.state.lock().queues.remove(&key);
            let refused = |error: &io::Error| LimitError::failed(error.to_string());
            for waiting in queue.into_iter().flatten() {
                waiting.refuse(refused(&error));
            }
            refused(&error)
        })
    }

    /// Serves the tickets of a key, one after the other, until the queue is empty.
    fn serve(&self, key: u32) {
        while let Some(waiting) = self.next(key) {
            let Waiting {
                shard,
                granter,
                slot,
            } = &waiting;
            if slot.fate() == Fate::Left {
                continue;
            }

            let entered = catch_unwind(AssertUnwindSafe(|| (self.enter)(*shard)));
            match entered {
                Ok(Ok(guard)) => {
                    let grant = || match guard.expiry() {
                        Some(expiry) => granter.grant_until(expiry),
                        None => granter.grant(),
                    };
                    if unharmed(grant).unwrap_or(true) {
                        slot.see_through(guard);
                    } else {
                        unharmed(|| drop(guard));
                    }
                }
                Ok(Err(error)) => waiting.refuse(error),
                Err(_) => waiting.refuse(LimitError::failed("the limiter's own function panicked")),
            }
        }
    }

    fn next(&self, key: u32) -> Option<Waiting> {
        let mut state = self.state.lock();
        let next = state.queues.get_mut(&key)?.pop_front();
        if next.is_none() {
            state.queues.remove(&key);
        }
        next
    }
}

impl Waiting {
    fn refuse(&self, error: LimitError) {
        unharmed(|| self.granter.refuse(error));
    }
}

impl Slot {
    fn report(&self, report: Report) {
        let fate = match report {
            Report::Left => Fate::Left,
            Report::Used | Report::ExitAfter(_) => Fate::Used,
        };
        {
            let mut known = self.fate.lock();
            // The permit reports `Left` when it is dropped, also after it was used.
            if *known != Fate::Used {
                *known = fate;
            }
        }
        self.changed.notify_one();
    }

    fn fate(&self) -> Fate {
        *self.fate.lock()
    }

    /// Waits until a permit is used or returned, calls [`Guard::used`] if it was used, and drops
    /// the guard.
    fn see_through(&self, mut guard: Box<dyn Guard>) {
        let fate = {
            let mut fate = self.fate.lock();
            while *fate == Fate::Held {
                self.changed.wait(&mut fate);
            }
            *fate
        };
        if fate == Fate::Used {
            unharmed(|| guard.used());
        }
        unharmed(|| drop(guard));
    }
}

/// Runs a user's code. Its panics must not end the thread, which serves other shards too.
fn unharmed<T>(code: impl FnOnce() -> T) -> Option<T> {
    let ran = catch_unwind(AssertUnwindSafe(code));
    ran.inspect_err(|_| log::error!("code of a custom identify limiter panicked"))
        .ok()
}
