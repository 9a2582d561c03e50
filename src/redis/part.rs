//! A part of a bot's shards, owned by one process at a time.

use std::fmt;
use std::process;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use super::Redis;
use super::document::{Document, Unusable};
use super::keeper::Keeper;
use super::lease::{Lease, Step, Watch};
use super::sessions::{Save, Sessions};
use crate::clock;
use crate::error::{Error, StoreError};
use crate::limit::{Ticket, Wake, millis};
use crate::shard_id::ShardId;
use crate::store::{OwnershipLost, Saved, SessionStore};

/// How many times per TTL a waiting process looks at a lease.
pub(super) const LOOKS_PER_TTL: u32 = 40;

/// How often the sessions of a part are saved.
const SAVE_INTERVAL: Duration = Duration::from_secs(1);

/// A part of a bot's shards: those whose number modulo `of` is `index`. Get it from
/// [`Redis::part`].
#[derive(Clone, Debug)]
pub struct Part {
    pub(super) redis: Redis,
    pub(super) index: u32,
    pub(super) of: u32,
}

/// A part that this process owns. It is the session store of the manager that runs the part.
///
/// A thread renews the lease every second ([`Timing::lease_ttl`](crate::Timing::lease_ttl) / 10).
/// The sessions are saved once a second if they have changed.
///
/// When the manager ends or this is dropped, the part is released, and the next process takes it
/// over at once. The release may take some seconds while Redis is unreachable. If the manager does
/// not start, a clone of its configuration still owns the part until the clone is dropped.
///
/// If this process was stopped or cut off for longer than the TTL, another process may have taken
/// the part over. Then nothing more is saved, and the manager ends with [`Error::OwnershipLost`].
pub struct OwnedPart {
    part: Part,
    keeper: Arc<Keeper>,
    sessions: Sessions,
    /// The total number of shards of all processes; 0 until it is known.
    total: AtomicU32,
}

impl Part {
    /// Blocks until no other process owns the part, at most for `timeout`, and takes the ownership.
    ///
    /// A released part is free at once. If the owner has died, the part is free when its lease has
    /// not been renewed for one TTL ([`Timing::lease_ttl`](crate::Timing::lease_ttl), 10 s). A
    /// process that starts to wait later counts the TTL from its first look at the lease. The very
    /// first process of a bot also waits for one TTL, because Redis may have lost the data about an
    /// owner. While Redis fails, this retries.
    ///
    /// # Errors
    /// - [`Error::Setting`]: there is no such part, or the bot's shards are divided into another
    ///   number of parts.
    /// - [`Error::PartNotFree`]: another process still owns the part, or may own it, after `timeout`.
    /// - [`Error::Redis`]: Redis holds data that this version cannot read, or cannot be used after
    ///   `timeout`.
    pub fn acquire(&self, timeout: Duration) -> Result<OwnedPart, Error> {
        let Self { redis, index, of } = self;
        if index >= of {
            let given = format!("part {index} of {of}");
            let allowed = "parts 0 to the number of parts minus 1";
            return Err(Error::setting("part", given, allowed));
        }

        let ttl = redis.timing.lease_ttl;
        let deadline = clock::now().checked_add(timeout);
        let mut candidate = Candidate {
            lease: redis.lease(*index, *of),
            watch: Watch::default(),
            name: name(),
            ttl: millis(ttl),
        };
        let mut told = None;
        loop {
            let looked = redis.enter_parts(*of).and_then(|()| candidate.look());
            let is_owned = looked.is_ok();
            let wait = match looked {
                Ok(Look::Owned(own)) => return self.own(candidate.lease, own),
                Ok(Look::Waits(why)) => Error::PartNotFree {
                    part: *index,
                    of: *of,
                    why,
                },
                Err(Error::Redis(error)) if !error.is::<Unusable>() => Error::Redis(error),
                Err(error) => return Err(error),
            };

            if deadline.is_some_and(|deadline| clock::now() >= deadline) {
                return Err(wait);
            }
            // Logged again only when the reason changes between a lease that is held and an error
            // of Redis, which an operator may have to fix.
            if told != Some(is_owned) {
                told = Some(is_owned);
                let why = match &wait {
                    Error::PartNotFree { why, .. } => why.clone(),
                    error => error.report(),
                };
                log::warn!("waiting for part {index} of {of}: {why}");
            }
            thread::sleep(ttl / LOOKS_PER_TTL);
        }
    }

    fn own(&self, lease: Document, own: Lease) -> Result<OwnedPart, Error> {
        let Self { redis, index, of } = self;
        log::info!("this process owns part {index} of {of}, as {}", own.owner);
        let sessions = redis.document(&format!("sessions:{index}/{of}"));
        let sessions = Sessions::new(sessions, redis.lease(*index, *of), own.token);
        Ok(OwnedPart {
            part: self.clone(),
            keeper: Keeper::start(lease, own, redis.timing.lease_ttl)?,
            sessions,
            total: AtomicU32::new(0),
        })
    }
}

/// A process that wants to own a part.
struct Candidate {
    lease: Document,
    watch: Watch,
    name: String,
    ttl: u64,
}

/// What a candidate finds.
enum Look {
    Owned(Lease),
    /// It must wait, for this reason.
    Waits(String),
}

impl Candidate {
    fn look(&mut self) -> Result<Look, Error> {
        let Self {
            lease,
            watch,
            name,
            ttl,
        } = self;
        let looked = lease.change(|now, text| {
            let stored = lease.usable(Lease::read(text))?;
            match watch.look(now, stored.as_ref(), name, *ttl) {
                Step::Take(own) => Ok((serde_json::to_string(&own)?, Look::Owned(own))),
                Step::Owned(own) => Ok((text.to_owned(), Look::Owned(own))),
                Step::Wait { until } => {
                    let owner = stored.map_or("a process that Redis may not know".into(), |own| {
                        format!("{}, renewed {} ms ago", own.owner, own.age(now))
                    });
                    let left = until.saturating_sub(now.at);
                    let why = format!("it belongs to {owner}; free in {left} ms unless renewed");
                    Ok((text.to_owned(), Look::Waits(why)))
                }
            }
        });
        looked.map_err(Error::Redis)
    }
}

impl SessionStore for OwnedPart {
    fn load(&self) -> Result<Saved, StoreError> {
        self.keeper.check()?;
        self.sessions.load()
    }

    fn save(&self, saved: &Saved) -> Result<(), StoreError> {
        self.keeper.check()?;
        let server_since = self.keeper.server_since();
        let total = self.total.load(Ordering::Relaxed);
        if total > 0 && !self.sessions.is_saved_on(server_since) {
            // The server may have lost the total, and the next process to start could store
            // another one.
            let stored = self.part.redis.enter_total(self.part.of, total)?;
            if stored != total {
                let why = format!(
                    "this process runs a part of {total} shards, but others a part of {stored}: \
                     stop all processes, and start them again"
                );
                return Err(why.into());
            }
        }

        match self.sessions.save(saved, server_since)? {
            Save::Done => Ok(()),
            Save::Refused => {
                self.keeper.lose();
                Err(Box::new(OwnershipLost))
            }
        }
    }

    fn save_interval(&self) -> Option<Duration> {
        Some(SAVE_INTERVAL)
    }

    fn confirm(&self, wake: Wake) -> Option<Ticket> {
        Some(self.keeper.confirm(wake))
    }

    fn agree_on_shards(&self, shards: &[ShardId]) -> Result<Option<u32>, Error> {
        let Part { redis, index, of } = &self.part;
        let is_foreign = |shard: &&ShardId| shard.number() % of != *index;
        if let Some(foreign) = shards.iter().find(is_foreign) {
            let given = format!("one with shard {foreign}");
            let allowed =
                format!("the shards of part {index} of {of}: `Plan::bucket({index}, {of})`");
            return Err(Error::setting("plan", given, allowed));
        }
        let total = shards.first().map_or(1, |shard| shard.total());
        let total = redis.enter_total(*of, total)?;
        self.total.store(total, Ordering::Relaxed);
        Ok(Some(total))
    }

    fn release(&self) {
        self.keeper.release();
    }
}

impl Drop for OwnedPart {
    fn drop(&mut self) {
        self.keeper.release();
    }
}

impl fmt::Debug for OwnedPart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Part { index, of, .. } = self.part;
        write!(f, "OwnedPart({index} of {of})")
    }
}

/// A name for an attempt of this process to own a part, by which operators can find the process.
/// It ends with a random number, which differs for each attempt.
pub(super) fn name() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname");
    let host = host.or_else(|_| std::env::var("COMPUTERNAME"));
    let host = host.unwrap_or_else(|_| "host".into());
    format!(
        "{}:{}:{:08x}",
        host.trim(),
        process::id(),
        fastrand::u32(..)
    )
}
