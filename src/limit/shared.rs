//! An identify limit that several processes share, in a [`Storage`] such as a file or Redis.

use std::fmt;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::blocking::{Blocking, Guard};
use super::reservations::{Now, ReadError, Reservations, Rules, Turn, millis};
use super::schedule::Limits;
use super::ticket::{Expiry, Ticket};
use super::{AskLimits, IdentifyLimiter, LimitStatus, Wake};
use crate::clock;
use crate::error::{Error, StoreError};
use crate::shard_id::ShardId;

/// The longest pause before a waiting shard reads the stored reservations again.
const MAX_PAUSE: Duration = Duration::from_secs(60);

/// A place for the reservations, which all processes can read and change.
pub(crate) trait Storage: Send + Sync + 'static {
    /// The rules for all processes that share this storage.
    fn rules(&self) -> Rules;

    /// Changes the stored reservations in one step: no other process can change them meanwhile.
    /// `change` may run several times; the result of its last run counts.
    ///
    /// Damaged reservations are replaced if `said` has Discord's limits; else they are an error.
    fn change<T>(
        &self,
        said: Option<Limits>,
        change: impl FnMut(&Now, &mut Reservations) -> T,
    ) -> Result<T, StoreError>;

    /// Reads the stored reservations; `None` if nothing is stored.
    fn read(&self) -> Result<Option<(Now, Reservations)>, StoreError>;
}

/// Reads stored reservations; errors and log lines call them `name`.
///
/// If they are damaged and `may_replace` is set, this logs a warning and returns `None`. Data of
/// another version is always an error, so it is never replaced.
pub(crate) fn read_stored(
    text: &[u8],
    name: &impl fmt::Display,
    may_replace: bool,
) -> Result<Option<Reservations>, StoreError> {
    match Reservations::read(text) {
        Ok(reservations) => Ok(Some(reservations)),
        Err(error @ ReadError::Damaged(_)) if may_replace => {
            log::warn!("{name} is damaged and will be replaced with Discord's limits: {error}");
            Ok(None)
        }
        Err(error) => Err(format!("{name} cannot be used: {error}").into()),
    }
}

/// A limiter that uses reservations in a storage.
#[derive(Debug)]
pub(crate) struct SharedLimit<S> {
    core: Arc<Core<S>>,
    blocking: Blocking,
}

struct Core<S> {
    storage: S,
    /// Functions that request Discord's limits, the oldest first. The managers of some may have
    /// ended.
    sources: Mutex<Vec<AskLimits>>,
}

/// A rate limit key that this process has taken.
struct Taken<S: Storage> {
    core: Arc<Core<S>>,
    key: u32,
    at: u64,
    expiry: Expiry,
    is_used: bool,
}

impl<S: Storage> SharedLimit<S> {
    pub(crate) fn new(storage: S) -> Self {
        let core = Arc::new(Core {
            storage,
            sources: Mutex::default(),
        });
        let of_shards = Arc::clone(&core);
        Self {
            core,
            blocking: Blocking::new(move |shard| Core::enter(&of_shards, shard)),
        }
    }

    pub(crate) fn storage(&self) -> &S {
        &self.core.storage
    }
}

impl<S: Storage> IdentifyLimiter for SharedLimit<S> {
    fn request(&self, shard: ShardId, wake: Wake) -> Ticket {
        self.blocking.request(shard, wake)
    }

    fn update(&self, limits: Limits, asked_at: Instant) {
        self.blocking.update(limits, asked_at);
        if let Err(error) = self.core.update(limits, asked_at) {
            log::error!("failed to write the identify limit: {error}");
        }
    }

    fn ask_with(&self, ask: AskLimits) {
        self.core.sources.lock().push(ask);
    }

    fn status(&self) -> Option<LimitStatus> {
        let storage = &self.core.storage;
        let (now, mut reservations) = storage.read().ok()??;
        reservations.advance(&now, storage.rules());
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

impl<S: Storage> Core<S> {
    /// Blocks until the shard may identify, and takes its key.
    fn enter(core: &Arc<Self>, shard: ShardId) -> Result<Taken<S>, StoreError> {
        let rules = core.storage.rules();
        let validity = Duration::from_millis(rules.validity);
        loop {
            let (turn, key, at, moment) = core.storage.change(None, |now, reservations| {
                let key = shard.rate_limit_key(reservations.max_concurrency());
                let turn = reservations.take(now, key, rules);
                (turn, key, now.at, now.moment)
            })?;

            match turn {
                Turn::Now => {
                    return Ok(Taken {
                        core: Arc::clone(core),
                        key,
                        at,
                        expiry: Expiry::counted_from(moment, validity),
                        is_used: false,
                    });
                }
                Turn::NotBefore(until) => {
                    // If the process that has taken the key identifies at once, the key is free
                    // one validity earlier. So the first look is then.
                    let sooner = until.saturating_sub(rules.validity);
                    let until = if sooner > at { sooner } else { until };
                    let pause = Duration::from_millis(until.saturating_sub(at));
                    thread::sleep(pause.min(MAX_PAUSE));
                }
                Turn::Spent(until) => {
                    let wait = until.saturating_sub(at) / 1000;
                    let why = format!("no IDENTIFY is left today; the next one in {wait} s");
                    return Err(why.into());
                }
                Turn::Ask { is_needed } => match core.ask() {
                    Ok(()) => {}
                    Err(error) if is_needed => return Err(error),
                    Err(error) => {
                        log::warn!("failed to request Discord's identify limit: {error}");
                    }
                },
            }
        }
    }

    fn update(&self, limits: Limits, asked_at: Instant) -> Result<(), StoreError> {
        self.storage.change(Some(limits), |now, reservations| {
            let ago = millis(clock::now().saturating_duration_since(asked_at));
            let asked = now.at.saturating_sub(ago);
            reservations.update(now, asked, limits, self.storage.rules());
        })
    }

    /// Requests Discord's limits, and stores them.
    fn ask(&self) -> Result<(), StoreError> {
        loop {
            // The oldest first, so that the functions of ended managers are removed.
            let Some(ask) = self.sources.lock().first().cloned() else {
                return Err(
                    "Discord's limits are not known, and no manager runs to request them".into(),
                );
            };

            let asked_at = clock::now();
            match ask() {
                Ok(limits) => return self.update(limits, asked_at),
                // The manager of this function has ended; another one may run.
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
        let Self { core, key, at, .. } = self;
        self.is_used = true;
        let used = core.storage.change(None, |now, reservations| {
            reservations.used(now, *key, *at, core.storage.rules());
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
        let Self { core, key, at, .. } = self;
        let given_back = core.storage.change(None, |now, reservations| {
            reservations.give_back(now, *key, *at, core.storage.rules());
        });
        if let Err(error) = given_back {
            log::warn!("failed to return an unused permit to identify: {error}");
        }
    }
}

impl<S: fmt::Debug> fmt::Debug for Core<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.storage.fmt(f)
    }
}
