//! Read access to the shards for other modules.
#![deny(clippy::disallowed_methods)]

use std::collections::BTreeSet;
use std::num::NonZeroU32;

use super::{OperationId, Reconciler, Restart, Role, Slot};
use crate::error::Error;
use crate::protocol::{Session, ShardState, StopReason};
use crate::shard::Run;
use crate::shard_id::ShardId;

/// Whether every shard that should run is ready.
#[derive(Debug)]
pub(in crate::manager) enum Readiness {
    Ready,
    /// The number of ready shards, the number of shards, and the first shard that is not ready,
    /// with its run if it has one.
    NotReady {
        ready: usize,
        total: usize,
        shard: ShardId,
        run: Option<Run>,
        stage: Option<ShardState>,
    },
}

impl Reconciler {
    /// The run of a shard whose events are delivered.
    pub(in crate::manager) fn active(&self, shard: ShardId) -> Option<Run> {
        let slot = self.slots.get(&shard);
        let slot = slot.filter(|slot| slot.role == Role::Active)?;
        Some(slot.run)
    }

    /// The shards that should run, and those that were closed on request.
    pub(in crate::manager) fn all_active(&self) -> impl Iterator<Item = &Slot> {
        self.with_role(Role::Active)
    }

    pub(super) fn with_role(&self, role: Role) -> impl Iterator<Item = &Slot> {
        self.slots.values().filter(move |slot| slot.role == role)
    }

    /// The newest run of every shard, whatever it is for.
    pub(in crate::manager) fn all(&self) -> impl Iterator<Item = &Slot> {
        self.slots.values()
    }

    /// The newest run of a shard.
    pub(in crate::manager) fn newest(&self, shard: ShardId) -> Option<Run> {
        self.slots.get(&shard).map(|slot| slot.run)
    }

    /// Whether a run is over and its shard does not begin another one.
    pub(in crate::manager) fn is_stopped(&self, run: Run) -> bool {
        let slot = self.slots.get(&run.shard).filter(|slot| slot.run == run);
        slot.is_some_and(Slot::is_over) && !self.transition.is_opening(run.shard)
    }

    /// The shard that delivers the events of a guild.
    pub(in crate::manager) fn by_guild(&self, guild_id: u64) -> Option<Run> {
        // After a split the totals differ; still no two shards have the same guild.
        let totals: BTreeSet<u32> = self.wanted.iter().map(|shard| shard.total()).collect();
        let ids = totals
            .into_iter()
            .filter_map(|total| ShardId::for_guild(guild_id, total));
        let mut wanted = ids.filter(|id| self.wanted.contains(id));
        wanted.find_map(|id| self.newest(id))
    }

    /// The shards that should run.
    pub(in crate::manager) fn wanted(&self) -> Vec<ShardId> {
        self.wanted.iter().copied().collect()
    }

    /// Shards that should run and have not been opened.
    pub(in crate::manager) fn unopened(&self) -> Vec<ShardId> {
        let wanted = self.wanted.iter();
        let unopened = wanted.filter(|shard| !self.slots.contains_key(shard));
        unopened.copied().collect()
    }

    /// The sessions of shards that have not been opened.
    pub(in crate::manager) fn unopened_sessions(&self) -> impl Iterator<Item = &Session> {
        self.sessions.values()
    }

    /// The runs whose delivered events handlers may still have.
    pub(in crate::manager) fn delivering(&self) -> Vec<Run> {
        let outgoing = self.with_role(Role::Outgoing).map(|slot| slot.run);
        let outgoing: Vec<Run> = outgoing.collect();
        if outgoing.is_empty() {
            self.all_active().map(|slot| slot.run).collect()
        } else {
            outgoing
        }
    }

    /// The shards that a request waits for.
    pub(in crate::manager) fn waiting_for(&self, operation: OperationId) -> Vec<ShardId> {
        self.operations.waiting_for(operation)
    }

    /// How many shards may identify at once.
    pub(in crate::manager) fn max_concurrency(&self) -> NonZeroU32 {
        self.transition.max_concurrency()
    }

    /// Why the manager stops, if it does.
    pub(in crate::manager) fn stopping(&self) -> Option<StopReason> {
        self.stopping
    }

    /// Whether all shards are ready at once, and with `with_guilds`, their guilds have arrived.
    ///
    /// # Errors
    /// [`Error::Stopped`] if one has stopped; [`Error::Closed`].
    pub(in crate::manager) fn readiness(&self, with_guilds: bool) -> Result<Readiness, Error> {
        let mut ready = 0;
        let mut first = None;
        for shard in &self.wanted {
            let slot = self.slots.get(shard);
            if let Some(ShardState::Stopped(reason)) = slot.map(|slot| slot.stage)
                && !self.is_asking
                && !self.transition.is_opening(*shard)
            {
                return Err(Error::Stopped {
                    shard: *shard,
                    reason,
                });
            }
            if slot.is_some_and(|slot| slot.is_ready(with_guilds)) {
                ready += 1;
            } else {
                first.get_or_insert((*shard, slot));
            }
        }

        if self.stopping.is_some() {
            return Err(Error::Closed);
        }

        Ok(match first {
            None => Readiness::Ready,
            Some((shard, slot)) => Readiness::NotReady {
                ready,
                total: self.wanted.len(),
                shard,
                run: slot.map(|slot| slot.run),
                stage: slot.map(|slot| slot.stage),
            },
        })
    }

    /// Fails with the first shard that has stopped because of something that only the user can fix.
    ///
    /// # Errors
    /// [`Error::Stopped`]; [`Error::OwnershipLost`].
    pub(in crate::manager) fn check(&self) -> Result<(), Error> {
        for shard in &self.wanted {
            if let Some(ShardState::Stopped(reason)) = self.slots.get(shard).map(|slot| slot.stage)
                && reason.is_fatal()
            {
                if reason == StopReason::OwnershipLost {
                    return Err(Error::OwnershipLost);
                }
                return Err(Error::Stopped {
                    shard: *shard,
                    reason,
                });
            }
        }
        Ok(())
    }

    /// Checks that all shards may be replaced now.
    ///
    /// # Errors
    /// [`Error::Busy`]; [`Error::Closed`].
    pub(in crate::manager) fn check_idle(&self) -> Result<(), Error> {
        if self.stopping.is_some() {
            return Err(Error::Closed);
        }
        self.check_free()?;
        let opens_later = |slot: &Slot| slot.restart != Restart::No && !slot.is_over();
        let is_done = self.transition.is_done() && !self.slots.values().any(opens_later);
        if is_done && !self.is_asking {
            Ok(())
        } else {
            Err(Error::Busy {
                running: "a start, split, restart or shard-count query",
            })
        }
    }

    /// Checks that single shards may be changed now.
    pub(super) fn check_free(&self) -> Result<(), Error> {
        if self.reshard.is_some() {
            return Err(Error::Busy {
                running: "a reshard",
            });
        }
        if self.with_role(Role::Discarded).next().is_some() {
            return Err(Error::Busy {
                running: "the end of shards that are not needed any more",
            });
        }
        Ok(())
    }

    /// A shard that should run and shares guilds with one of `shards`, but is not one of them.
    pub(super) fn overlapping(&self, shards: &[ShardId]) -> Option<ShardId> {
        let new = shards.iter().filter(|shard| !self.wanted.contains(shard));
        let mut with = new.filter_map(|shard| {
            let mut wanted = self.wanted.iter();
            wanted.find(|other| shard.overlaps(**other))
        });
        with.next().copied()
    }
}
