//! What the owner of a fleet can ask for while it runs.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Instant;

use super::fleet::{After, Fleet, Part, Reshard, Slot, State, list};
use super::operation::{Failure, Goal, Operation};
use super::{count, start};
use crate::config::{Plan, is_foreign};
use crate::error::{Error, SendError, SendFailure};
use crate::event::{Event, EventKind};
use crate::protocol::{CloseReason, Command, Presence, Session, Stage};
use crate::shard::Shard;
use crate::shard_id::ShardId;

impl Fleet {
    pub(super) fn open(
        &self,
        shard: ShardId,
        session: Option<Session>,
    ) -> Result<Operation, Error> {
        if let Some(foreign) = session
            .as_ref()
            .filter(|session| is_foreign(session, self.config.token.user_id()))
        {
            return Err(Error::ForeignSession {
                shard,
                bot_user_id: foreign.bot_user_id,
            });
        }
        self.config_of(shard)?;
        self.ask(|state| {
            state.check_free()?;
            let runs = state.shards.get(&shard).is_some_and(Slot::runs)
                || state.transition.is_opening(shard);
            if runs || state.wanted.contains(&shard) {
                return Err(Error::AlreadyOpen { shard });
            }
            if let Some(with) = state.wanted.iter().find(|other| shard.overlaps(**other)) {
                return Err(Error::Overlaps { shard, with: *with });
            }
            state.wanted.insert(shard);
            state
                .sessions
                .extend(session.map(|session| (shard, session)));
            state.transition.open([shard]);
            Ok(Operation::new([(shard, Goal::Ready)]))
        })
    }

    pub(super) fn close_shard(&self, shard: ShardId) -> Result<Operation, Error> {
        let mut running = None;
        let operation = self.ask(|state| {
            state.check_free()?;
            if !state.wanted.remove(&shard) {
                return Err(Error::NotOpen { shard });
            }
            state.sessions.remove(&shard);
            let was_waiting = state.transition.forget(shard);
            let slot = state.shards.get(&shard);
            running = slot
                .filter(|slot| slot.runs())
                .map(|slot| slot.shard.clone());
            let is_stopped =
                slot.is_none_or(|slot| !slot.runs()) && !state.transition.is_opening(shard);
            if was_waiting || is_stopped {
                let closed = Stage::Stopped(CloseReason::Requested);
                state.tell_operations(|operation| operation.handle(shard, closed));
                return Ok(Operation::new([]));
            }
            Ok(Operation::new([(shard, Goal::Stopped)]))
        })?;
        if let Some(shard) = running {
            shard.close();
        }
        Ok(operation)
    }

    pub(super) fn restart(&self, shard: ShardId) -> Result<Operation, Error> {
        self.restart_some(1, |state| {
            if state.wanted.contains(&shard)
                || state
                    .shards
                    .get(&shard)
                    .is_some_and(|slot| slot.part == Part::Running)
            {
                return Ok(vec![shard]);
            }
            Err(Error::NotOpen { shard })
        })
    }

    pub(super) fn restart_all(&self, most_away: usize) -> Result<Operation, Error> {
        if most_away == 0 {
            return Err(Error::setting("most_away", most_away, "at least 1"));
        }
        self.restart_some(most_away, |state| {
            Ok(state.wanted.iter().copied().collect())
        })
    }

    /// Restarts those that run, and opens those that have stopped; those that are on their way go
    /// on.
    fn restart_some(
        &self,
        most_away: usize,
        which: impl Fn(&State) -> Result<Vec<ShardId>, Error>,
    ) -> Result<Operation, Error> {
        let checked = which(&self.state.lock())?;
        checked
            .iter()
            .try_for_each(|shard| self.config_of(*shard).map(drop))?;
        self.ask(|state| {
            state.check_free()?;
            let shards = which(state)?;
            if let Some((shard, with)) = state.overlap(&shards) {
                return Err(Error::Overlaps { shard, with });
            }
            let mut goals = Vec::new();
            for shard in shards {
                match state.shards.get(&shard) {
                    Some(slot) if slot.runs() && !state.wanted.contains(&shard) => {
                        return Err(Error::Busy {
                            running: "the close of this shard",
                        });
                    }
                    Some(slot) if slot.runs() => {
                        goals.push((shard, Goal::ReadyAgain(slot.stage != Stage::Ready)));
                        state.transition.restart([shard], most_away);
                    }
                    _ => {
                        goals.push((shard, Goal::Ready));
                        state.wanted.insert(shard);
                        state.transition.open([shard]);
                    }
                }
            }
            Ok(Operation::new(goals))
        })
    }

    /// Gives up a reshard, unless the new shards are about to take over. Returns whether there was
    /// one.
    pub(super) fn cancel_reshard(self: &Arc<Self>) -> bool {
        let mut after = After::default();
        {
            let mut state = self.state.lock();
            if !state.has_way_back() {
                return false;
            }
            log::info!("the reshard is given up, and the old shards go on: that was asked for");
            after.close = state.dismiss(Failure::Cancelled);
            self.handle_stops(&mut state, &mut after);
        }
        self.changed.notify_all();
        after.carry_out();
        true
    }

    pub(super) fn reshard(self: &Arc<Self>, plan: &Plan) -> Result<Operation, Error> {
        plan.validate()?;
        self.check_idle()?;
        let gateway = start::ask_discord(&self.config, plan, &self.rest)?;
        let plan = count::rounded(plan, gateway.as_ref(), || count::is_large(&self.rest));
        let to = plan.shards(gateway.as_ref().map_or(0, |gateway| gateway.shards.get()))?;
        let max_concurrency = gateway.as_ref().map(|gateway| {
            self.limiter.update(
                start::limits(&gateway.session_start_limit),
                gateway.asked_at,
            );
            gateway.session_start_limit.max_concurrency
        });
        start::check_identifies(to.len(), gateway.as_ref(), self.config.shortage)?;
        to.iter()
            .try_for_each(|shard| self.config_of(*shard).map(drop))?;
        self.ask(|state| {
            state.check_idle()?;
            if let Some(shard) = to
                .iter()
                .find(|shard| state.shards.get(shard).is_some_and(Slot::runs))
            {
                return Err(Error::AlreadyOpen { shard: *shard });
            }
            if let Some(max_concurrency) = max_concurrency {
                state.transition.set_max_concurrency(max_concurrency);
            }
            let overlap = self.config.timing.reshard_overlap;
            let old: Vec<ShardId> = state
                .running()
                .filter(|(_, slot)| slot.runs())
                .map(|(id, _)| *id)
                .collect();
            let outlet = state
                .outlet
                .as_ref()
                .ok_or(Error::Closed)?
                .successor(&old, &to);
            // What stopped earlier under one of the new ids makes room.
            for shard in &to {
                state.retire(*shard);
            }
            state.transition.replace(old, &to, overlap);
            let operation = Operation::new(to.iter().map(|shard| (*shard, Goal::HandOver)));
            state.reshard = Some(Reshard {
                to: to.clone(),
                outlet,
                operation: operation.clone(),
                is_committed: false,
            });
            Ok(operation)
        })
    }

    /// Sends a command to the shard that has a guild.
    pub(super) fn send_to_guild(&self, guild_id: u64, command: Command) -> Result<(), SendError> {
        match self.shard_by_guild(guild_id) {
            Some(shard) => shard.send(command),
            None => Err(SendError::new(command, SendFailure::NoShard { guild_id })),
        }
    }

    /// Gives every shard a presence, those too that will open.
    pub(super) fn broadcast(&self, presence: &Presence) -> Result<(), Error> {
        let command = Command::presence(presence)?;
        let mut state = self.state.lock();
        if state.stopping.is_some() {
            return Err(Error::Closed);
        }
        for slot in state.shards.values() {
            // One that has stopped gets it when it opens again.
            slot.shard.remember_presence(&command);
            let _ = slot.shard.send(command.clone());
        }
        state.presences.clear();
        state.presence = Some(command);
        Ok(())
    }

    /// Changes what is wanted, unless the fleet is stopping, and has the conductor look.
    pub(super) fn ask(
        &self,
        change: impl FnOnce(&mut State) -> Result<Operation, Error>,
    ) -> Result<Operation, Error> {
        let operation = {
            let mut state = self.state.lock();
            if state.stopping.is_some() || state.outlet.is_none() {
                return Err(Error::Closed);
            }
            let operation = change(&mut state)?;
            state.operations.push(operation.clone());
            operation
        };
        self.changed.notify_all();
        Ok(operation)
    }

    fn check_idle(&self) -> Result<(), Error> {
        let state = self.state.lock();
        if state.stopping.is_some() {
            Err(Error::Closed)
        } else {
            state.check_idle()
        }
    }

    /// The old set is going to close. From here on the new one is that which is looked up, stored
    /// and suspended, but its events are held until the old one has stopped.
    pub(super) fn commit(&self) {
        let deadline = Instant::now() + self.config.timing.handlers_timeout;
        let mut state = self.state.lock();
        let Some(Reshard {
            to,
            outlet,
            is_committed,
            ..
        }) = &mut state.reshard
        else {
            return;
        };
        *is_committed = true;
        let (to, outlet) = (to.clone(), Arc::clone(outlet));
        for slot in state.shards.values_mut() {
            slot.part = match slot.part {
                Part::Incoming => Part::Running,
                Part::Running => Part::Leaving,
                part => part,
            };
        }
        for id in &to {
            let Some(slot) = state.shards.get(id) else {
                continue;
            };
            let mut leaving = state
                .shards
                .values()
                .filter(|old| old.part == Part::Leaving && old.shard.id().overlaps(*id));
            let presence = leaving.find_map(|old| old.shard.last_presence());
            if let Some(presence) =
                presence.filter(|presence| slot.shard.last_presence().as_ref() != Some(presence))
            {
                // It was set while the new shard was on its way. One that has stopped needs none.
                let _ = slot.shard.send(presence);
            }
        }
        state.wanted = to.into_iter().collect();
        state.outlet = Some(outlet);
        // The sessions of the old set are about to end: those of the new one are to be stored
        // before that.
        state.store_wanted += 1;
        let wanted = state.store_wanted;
        self.changed.notify_all();
        while self.config.session_store.is_some()
            && state.store_written < wanted
            && state.stopping.is_none()
        {
            if self.changed.wait_until(&mut state, deadline).timed_out() {
                break;
            }
        }
    }

    /// The old set has stopped: its handlers finish, then the new one takes over.
    pub(super) fn hand_over(self: &Arc<Self>) {
        let leaving: Vec<Shard> = {
            let state = self.state.lock();
            let leaving = state
                .shards
                .values()
                .filter(|slot| slot.part == Part::Leaving);
            leaving.map(|slot| slot.shard.clone()).collect()
        };
        let deadline = Instant::now() + self.config.timing.handlers_timeout;
        // So that a guild's events stay in order even if another worker gets those of its new
        // shard.
        self.wait_handled(&leaving, deadline, |state| state.stopping.is_some());
        let from: Vec<ShardId> = leaving.iter().map(Shard::id).collect();
        let mut after = After::default();
        let (to, outlet, operation) = {
            let mut state = self.state.lock();
            if state.stopping.is_some() {
                // What is held comes again: nobody has handled it.
                return;
            }
            let Some(Reshard {
                to,
                outlet,
                operation,
                ..
            }) = state.reshard.take()
            else {
                return;
            };
            state.transition.handed_over();
            for shard in &from {
                state.retire(*shard);
            }
            self.handle_stops(&mut state, &mut after);
            state.end_if_over();
            (to, outlet, operation)
        };
        self.changed.notify_all();
        log::info!("{} have taken over from {}", list(&to), list(&from));
        outlet.take_over(
            Instant::now(),
            Event::new(to[0], EventKind::Resharded { from, to }),
        );
        operation.finish(Ok(()));
        after.carry_out();
        for command in leaving.iter().flat_map(Shard::take_unsent) {
            let home = command
                .guild_id()
                .and_then(|guild| self.shard_by_guild(guild));
            match home.map(|shard| shard.hand_over(command)) {
                Some(Ok(())) => {}
                Some(Err(failure)) => {
                    log::warn!("a command that an old shard had not sent is dropped: {failure}");
                }
                None => log::warn!(
                    "a command that an old shard had not sent is dropped: it names no guild of the new shards"
                ),
            }
        }
    }
}

impl State {
    /// Whether single shards may be changed.
    fn check_free(&self) -> Result<(), Error> {
        if self.reshard.is_some() {
            return Err(Error::Busy {
                running: "a reshard",
            });
        }
        if self
            .shards
            .values()
            .any(|slot| slot.part == Part::Dismissed)
        {
            return Err(Error::Busy {
                running: "the end of shards that are not needed any more",
            });
        }
        Ok(())
    }

    /// Whether all shards may be replaced.
    fn check_idle(&self) -> Result<(), Error> {
        self.check_free()?;
        if self.transition.is_done() && !self.is_asking {
            Ok(())
        } else {
            Err(Error::Busy {
                running: "a start, a split, a restart or a question to Discord",
            })
        }
    }

    /// A shard of these, and a wanted one whose guilds it shares.
    fn overlap(&self, shards: &[ShardId]) -> Option<(ShardId, ShardId)> {
        let new: HashSet<&ShardId> = shards
            .iter()
            .filter(|shard| !self.wanted.contains(shard))
            .collect();
        new.into_iter().find_map(|shard| {
            let other = self.wanted.iter().find(|other| shard.overlaps(**other))?;
            Some((*shard, *other))
        })
    }
}
