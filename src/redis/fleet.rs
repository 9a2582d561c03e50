//! What all processes of a bot must agree on: the number of parts and the number of shards.

use std::thread;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Redis;
use super::document::Document;
use super::lease::{Lease, Step, Watch};
use super::part::{self, LOOKS_PER_TTL};
use crate::error::{Error, StoreError};
use crate::limit::{IdentifyLimiter, LimitStatus, millis};
use crate::seconds;

/// The version of the stored JSON.
const VERSION: u32 = 1;

/// The state of a bot's processes, as [`Redis::status`] returns it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct FleetStatus {
    /// The total number of shards of the bot; `None` until the first manager has started.
    pub total: Option<u32>,
    /// The parts of the bot's shards; empty before a process has acquired the first one.
    pub parts: Vec<PartStatus>,
    /// What is left of the identify limit; `None` if nothing is stored yet or it cannot be read.
    pub limit: Option<LimitStatus>,
}

/// Which process owns a part.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct PartStatus {
    /// The part's index, from 0.
    pub index: u32,
    /// The owner, as `host:process id:random number`; `None` if the part was released or never
    /// acquired.
    pub owner: Option<String>,
    /// How long ago the owner renewed its lease: less than 2 s while the owner is alive.
    #[serde(serialize_with = "seconds::serialize_option")]
    pub renewed_ago: Option<Duration>,
}

/// The stored document.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Fleet {
    threadcord: u32,
    parts: u32,
    total: Option<u32>,
}

impl Fleet {
    fn read(text: &str) -> Result<Option<Self>, String> {
        if text.is_empty() {
            return Ok(None);
        }
        let fleet: Self = serde_json::from_str(text).map_err(|error| error.to_string())?;
        match fleet {
            Self { parts: 0, .. } => Err("it has no parts".into()),
            Self {
                threadcord: VERSION,
                ..
            } => Ok(Some(fleet)),
            Self { threadcord, .. } => Err(format!("it has version {threadcord}, not {VERSION}")),
        }
    }
}

impl Redis {
    /// Returns which process owns which part, how long ago it renewed its lease, and what is left
    /// of the identify limit.
    ///
    /// This makes one call to Redis per part, and two others.
    ///
    /// # Errors
    /// [`Error::Redis`] if Redis is unreachable, or holds data of another version of this library.
    pub fn status(&self) -> Result<FleetStatus, Error> {
        let fleet = self.fleet().map_err(Error::Redis)?;
        let parts = fleet.map_or(0, |fleet| fleet.parts);
        let parts = (0..parts).map(|index| self.part_status(index, parts));
        Ok(FleetStatus {
            total: fleet.and_then(|fleet| fleet.total),
            parts: parts.collect::<Result<_, _>>().map_err(Error::Redis)?,
            limit: self.identify_limit().status(),
        })
    }

    /// Stores the total number of shards of the bot. Each process uses this number when it starts
    /// next, if its plan sets none.
    ///
    /// Stop all processes first. This call blocks for one TTL (10 s) unless all parts were
    /// released: it watches the other leases for renewals.
    ///
    /// # Errors
    /// [`Error::Setting`] if `total` is 0; [`Error::Redis`] if a process owns a part, if no process
    /// has ever acquired one, or if Redis cannot be used.
    pub fn set_total(&self, total: u32) -> Result<(), Error> {
        if total == 0 {
            return Err(Error::setting("total", total, "at least 1 shard"));
        }
        self.set_fleet(|fleet| Fleet {
            total: Some(total),
            ..fleet
        })
    }

    /// Stores into how many parts the bot's shards are divided. The sessions of the old parts are
    /// no longer used: all shards identify.
    ///
    /// Stop all processes first. This call blocks for one TTL (10 s) unless all parts were
    /// released: it watches the other leases for renewals.
    ///
    /// # Errors
    /// As for [`set_total`](Self::set_total).
    pub fn set_parts(&self, parts: u32) -> Result<(), Error> {
        if parts == 0 {
            return Err(Error::setting("parts", parts, "at least 1 part"));
        }
        self.set_fleet(|fleet| Fleet { parts, ..fleet })
    }

    /// Stores the number of parts if no process has done so, and fails if another number is stored.
    pub(super) fn enter_parts(&self, parts: u32) -> Result<(), Error> {
        let new = Fleet {
            threadcord: VERSION,
            parts,
            total: None,
        };
        let fleet = self.change_fleet(|fleet| Ok(fleet.unwrap_or(new)))?;
        if fleet.parts == parts {
            return Ok(());
        }

        let given = format!("one of {parts} parts");
        let allowed = format!(
            "one of {} parts, as in the other processes (`Redis::set_parts` changes the number)",
            fleet.parts
        );
        Err(Error::setting("part", given, allowed))
    }

    /// Returns the stored total number of shards. If there is none, stores and returns `total`.
    pub(super) fn enter_total(&self, parts: u32, total: u32) -> Result<u32, Error> {
        let fleet = self.change_fleet(|fleet| {
            let fleet = fleet.unwrap_or(Fleet {
                threadcord: VERSION,
                parts,
                total: None,
            });
            Ok(Fleet {
                total: fleet.total.or(Some(total)),
                ..fleet
            })
        })?;
        Ok(fleet.total.unwrap_or(total))
    }

    fn fleet(&self) -> Result<Option<Fleet>, StoreError> {
        let document = self.document("fleet");
        let (_, text) = document.read()?;
        Ok(document.usable(Fleet::read(&text))?)
    }

    fn change_fleet(
        &self,
        mut change: impl FnMut(Option<Fleet>) -> Result<Fleet, StoreError>,
    ) -> Result<Fleet, Error> {
        let document = self.document("fleet");
        let changed = document.change(|_, text| {
            let fleet = document.usable(Fleet::read(text))?;
            let fleet = change(fleet)?;
            Ok((serde_json::to_string(&fleet)?, fleet))
        });
        changed.map_err(Error::Redis)
    }

    fn set_fleet(&self, change: impl Fn(Fleet) -> Fleet) -> Result<(), Error> {
        let known = self.fleet().map_err(Error::Redis)?;
        let Some(known) = known else {
            return Err(Error::Redis("no process has acquired a part yet".into()));
        };
        self.lock_out(known.parts).map_err(Error::Redis)?;
        let changed = self.change_fleet(|fleet| {
            let fleet = fleet.filter(|fleet| *fleet == known);
            Ok(change(
                fleet.ok_or("another process has just changed the fleet")?,
            ))
        });
        changed.map(drop)
    }

    /// Waits until it is certain that no process owns a part, then raises the tokens. So a process
    /// that was stopped all this time has lost its part when it runs again.
    fn lock_out(&self, parts: u32) -> Result<(), StoreError> {
        let (name, ttl) = (part::name(), self.timing.lease_ttl);
        let mut watched: Vec<_> = (0..parts)
            .map(|index| (self.lease(index, parts), Watch::default(), None))
            .collect();

        loop {
            let mut free = Vec::new();
            for (document, watch, first) in &mut watched {
                let (now, text) = document.read()?;
                let stored = document.usable(Lease::read(&text))?;
                if let Some(lease) = &stored
                    && !lease.is_released
                    && *first.get_or_insert_with(|| stored.clone()) != stored
                {
                    return Err(document.owned_by(&lease.owner));
                }
                if let Step::Take(lease) = watch.look(&now, stored.as_ref(), &name, millis(ttl)) {
                    free.push((text, lease));
                }
            }

            if free.len() == watched.len() {
                let documents = watched.iter().map(|(document, ..)| document);
                return documents
                    .zip(free)
                    .try_for_each(|(document, (text, lease))| {
                        let released = lease.released();
                        document.change(|_, now| {
                            if now == text {
                                Ok((serde_json::to_string(&released)?, ()))
                            } else {
                                Err(document.owned_by("a process that has just started"))
                            }
                        })
                    });
            }
            thread::sleep(ttl / LOOKS_PER_TTL);
        }
    }

    fn part_status(&self, index: u32, of: u32) -> Result<PartStatus, StoreError> {
        let document = self.lease(index, of);
        let (now, text) = document.read()?;
        let lease = document.usable(Lease::read(&text))?;
        let lease = lease.filter(|lease| !lease.is_released);
        Ok(PartStatus {
            index,
            renewed_ago: lease
                .as_ref()
                .map(|lease| Duration::from_millis(lease.age(&now))),
            owner: lease.map(|lease| lease.owner),
        })
    }

    /// The document with the lease of a part.
    pub(super) fn lease(&self, index: u32, of: u32) -> Document {
        self.document(&format!("part:{index}/{of}"))
    }
}
