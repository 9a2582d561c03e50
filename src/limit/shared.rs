//! A limit that several processes share, wherever it is kept.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::blocking::{Blocking, Guard};
use super::reservations::{Now, Reservations, Rules, Turn, millis};
use super::schedule::Limits;
use super::ticket::{Expiry, Ticket};
use super::{AskLimits, IdentifyLimiter, LimitStatus, Wake};
use crate::clock;
use crate::error::{Error, StoreError};
use crate::shard_id::ShardId;

/// The longest wait before another look at what is stored.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// Managers whose way to ask Discord is kept: of those that share the limit in one process, some may
/// have ended.
const MOST_SOURCES: usize = 8;

/// Where reservations are kept, for all processes to read and change.
pub(crate) trait Storage: Send + Sync + 'static {
    /// Changes what is stored, while no other process does. `change` may run several times; what it
    /// says last counts. If what is stored cannot be read, it is replaced by what follows from
    /// `anew`; without that it is an error.
    fn change<T>(
        &self,
        anew: Option<Limits>,
        change: impl FnMut(&Now, &mut Reservations) -> T,
    ) -> Result<T, StoreError>;

    /// What is stored, if anything is.
    fn read(&self) -> Result<Option<(Now, Reservations)>, StoreError>;
}

/// A limiter over reservations that are kept somewhere.
#[derive(Debug)]
pub(crate) struct SharedLimit<S> {
    shared: Arc<Shared<S>>,
    blocking: Blocking,
}

struct Shared<S> {
    storage: S,
    rules: Rules,
    /// How Discord is asked, the newest way last.
    sources: Mutex<Vec<AskLimits>>,
}

/// A key that is taken.
struct Taken<S: Storage> {
    shared: Arc<Shared<S>>,
    key: u32,
    at: u64,
    expiry: Expiry,
    is_used: bool,
}

impl<S: Storage> SharedLimit<S> {
    pub(crate) fn new(storage: S, rules: Rules) -> Self {
        let shared = Arc::new(Shared {
            storage,
            rules,
            sources: Mutex::default(),
        });
        let of_shards = Arc::clone(&shared);
        Self {
            shared,
            blocking: Blocking::new(move |shard| Shared::enter(&of_shards, shard)),
        }
    }

    pub(crate) fn storage(&self) -> &S {
        &self.shared.storage
    }
}

impl<S: Storage> IdentifyLimiter for SharedLimit<S> {
    fn request(&self, shard: ShardId, wake: Wake) -> Ticket {
        self.blocking.request(shard, wake)
    }

    fn update(&self, limits: Limits, asked_at: Instant) {
        self.blocking.update(limits, asked_at);
        if let Err(error) = self.shared.update(limits, asked_at) {
            log::error!("failed to write the identify limit: {error}");
        }
    }

    fn ask_with(&self, ask: AskLimits) {
        let mut sources = self.shared.sources.lock();
        if sources.len() == MOST_SOURCES {
            sources.remove(0);
        }
        sources.push(ask);
    }

    fn status(&self) -> Option<LimitStatus> {
        let (now, mut reservations) = self.shared.storage.read().ok()??;
        reservations.advance(&now, self.shared.rules);
        let mut status = LimitStatus::new(
            reservations.remaining(),
            reservations.total(),
            reservations.reset_after(&now),
            reservations.max_concurrency(),
        );
        status.waiting = self.blocking.waiting();
        Some(status)
    }
}

impl<S: Storage> Shared<S> {
    /// Blocks until a shard may identify.
    fn enter(shared: &Arc<Self>, shard: ShardId) -> Result<Taken<S>, StoreError> {
        let rules = shared.rules;
        loop {
            let expiry = Expiry::after(Duration::from_millis(rules.validity));
            let (turn, key, at) = shared.storage.change(None, |now, reservations| {
                let key = shard.rate_limit_key(reservations.max_concurrency());
                (reservations.take(now, key, rules), key, now.at)
            })?;

            match turn {
                Turn::Now => {
                    return Ok(Taken {
                        shared: Arc::clone(shared),
                        key,
                        at,
                        expiry,
                        is_used: false,
                    });
                }
                Turn::NotBefore(until) => {
                    let pause = Duration::from_millis(until.saturating_sub(at));
                    thread::sleep(pause.min(LONGEST_PAUSE));
                }
                Turn::Spent(until) => {
                    let wait = until.saturating_sub(at) / 1000;
                    let why = format!("no IDENTIFY is left today; there are more in {wait} s");
                    return Err(why.into());
                }
                Turn::Ask { is_needed } => match shared.ask() {
                    Ok(()) => {}
                    Err(error) if is_needed => return Err(error),
                    Err(error) => {
                        log::warn!("Discord was not asked for its identify limit: {error}");
                    }
                },
            }
        }
    }

    fn update(&self, limits: Limits, asked_at: Instant) -> Result<(), StoreError> {
        let ago = millis(clock::now().saturating_duration_since(asked_at));
        self.storage.change(Some(limits), |now, reservations| {
            let asked = now.at.saturating_sub(ago);
            reservations.update(now, asked, limits, self.rules);
        })
    }

    /// Asks Discord for its limits, and stores them.
    fn ask(&self) -> Result<(), StoreError> {
        loop {
            let Some(ask) = self.sources.lock().last().cloned() else {
                return Err(
                    "Discord's limits are not known here, and no manager asks for them".into(),
                );
            };
            let asked_at = clock::now();
            match ask() {
                Ok(limits) => return self.update(limits, asked_at),
                // That manager has ended; another one may run.
                Err(Error::Closed) => self
                    .sources
                    .lock()
                    .retain(|other| !Arc::ptr_eq(other, &ask)),
                Err(error) => return Err(Box::new(error)),
            }
        }
    }
}

impl<S: Storage> Guard for Taken<S> {
    fn used(&mut self) {
        let Self {
            shared, key, at, ..
        } = self;
        self.is_used = true;
        let used = shared.storage.change(None, |now, reservations| {
            reservations.used(now, *key, *at, shared.rules);
        });
        if let Err(error) = used {
            log::error!("failed to write the identify limit: {error}");
        }
    }

    fn expiry(&self) -> Option<Expiry> {
        Some(self.expiry)
    }
}

impl<S: Storage> Drop for Taken<S> {
    fn drop(&mut self) {
        if self.is_used {
            return;
        }
        let Self {
            shared, key, at, ..
        } = self;
        let given_back = shared.storage.change(None, |now, reservations| {
            reservations.give_back(now, *key, *at, shared.rules);
        });
        if let Err(error) = given_back {
            log::warn!("failed to give back a turn to identify: {error}");
        }
    }
}

impl<S: std::fmt::Debug> std::fmt::Debug for Shared<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.storage.fmt(f)
    }
}
