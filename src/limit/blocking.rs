//! A limiter over a function that blocks.

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

/// Of the threads that block.
const STACK_SIZE: usize = 256 * 1024;

/// A limiter of your own, over a function that blocks until a shard may identify: a lock in a
/// database, a call of a service, a file.
///
/// The function runs on a thread for each rate limit key that is waited for, never on a shard's, so
/// it may take as long as it likes. It is called for one shard of a key at a time, in the order in
/// which they asked (but while Discord changes the number of keys, for two at most). It returns a
/// [`Guard`], whose `used` is called when the IDENTIFY has been sent; it is dropped without that
/// if the shard has left. If it fails or panics, the shard asks again later, after a pause that
/// grows.
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

/// The right to identify, as a [`Blocking`] limiter's function gives it. `()` is one that does
/// nothing.
pub trait Guard: Send {
    /// The IDENTIFY has been sent, or the permit was left with a [window of its
    /// own](super::Permit::exit_after). It may block; the next shard of the key waits meanwhile.
    fn used(&mut self) {}

    /// Until when the IDENTIFY may be sent; a shard that is too late asks again. The default is for
    /// as long as it takes.
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
    /// Who waits, by key. A key that is here has a thread.
    queues: HashMap<u32, VecDeque<Waiting>>,
    is_closed: bool,
}

struct Waiting {
    shard: ShardId,
    granter: Granter,
    slot: Arc<Slot>,
}

/// What has become of a ticket.
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
    /// A limiter over this function, with one rate limit key until it
    /// [learns](IdentifyLimiter::update) of more.
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
    /// Who waits, in no order across keys; the shard that the function runs for is not among them.
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

/// Refuses all that wait; what the function does at the moment goes on to its end.
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

    /// Serves the tickets of a key, one after the other, until there are none.
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
                Err(_) => waiting.refuse(LimitError::failed("the limiter's function panicked")),
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
            // One that was used stays so.
            if *known != Fate::Used {
                *known = fate;
            }
        }
        self.changed.notify_one();
    }

    fn fate(&self) -> Fate {
        *self.fate.lock()
    }

    /// Waits until a permit is used or given back, and tells its guard.
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

/// Runs foreign code, whose panics must not end the thread that serves others.
fn unharmed<T>(code: impl FnOnce() -> T) -> Option<T> {
    let ran = catch_unwind(AssertUnwindSafe(code));
    ran.inspect_err(|_| log::error!("an identify limiter's own code panicked"))
        .ok()
}
