//! The thread that opens, restarts and closes shards in their turn.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::fleet::{After, CHECK, Fleet, Part, Slot, State};
use super::operation::Failure;
use super::transition::Step;
use crate::error::Error;
use crate::protocol::{CloseReason, Stage};
use crate::shard::{Context, Shard, Spawned};
use crate::shard_id::ShardId;
use crate::transport::Connector;

/// How long the conductor waits when the operating system has no thread or descriptor left; it
/// doubles.
const SHORTAGE_PAUSE: Duration = Duration::from_secs(1);

/// The longest such pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// Starts the thread; it ends when the fleet stops.
pub(super) fn start<C: Connector + 'static>(
    fleet: &Arc<Fleet>,
    context: Arc<Context<C>>,
) -> Result<JoinHandle<()>, Error> {
    let conductor = Conductor {
        fleet: Arc::clone(fleet),
        context,
        pause: SHORTAGE_PAUSE,
    };
    thread::Builder::new()
        .name("shard-conductor".into())
        .spawn(move || conductor.run())
        .map_err(|source| Error::Io {
            what: "a thread to open the shards",
            source,
        })
}

struct Conductor<C> {
    fleet: Arc<Fleet>,
    context: Arc<Context<C>>,
    pause: Duration,
}

impl<C: Connector + 'static> Conductor<C> {
    fn run(mut self) {
        let auto = self.fleet.config.auto_reshard;
        let mut next_check = auto.map(|auto| Instant::now() + auto.check_every);
        loop {
            let due = next_check.is_some_and(|at| at <= Instant::now());
            if let (true, Some(auto)) = (due, auto) {
                self.fleet.check_fullness(auto.threshold);
                next_check = Some(Instant::now() + auto.check_every);
            }
            match self.next_step(next_check) {
                None => return,
                Some(Step::Open(shard)) => self.open(shard),
                Some(Step::Restart(shard)) => self.restart(shard),
                Some(Step::Commit) => self.fleet.commit(),
                Some(Step::Close(shard)) => self.close(shard),
                Some(Step::HandOver) => self.fleet.hand_over(),
                Some(Step::Wait(_)) => {}
            }
        }
    }

    /// Blocks until there is something to do, or a check is due. `None`: the fleet is stopping.
    fn next_step(&self, next_check: Option<Instant>) -> Option<Step> {
        let mut state = self.fleet.state.lock();
        loop {
            if state.stopping.is_some() {
                return None;
            }
            let State {
                transition,
                shards,
                reshard,
                ..
            } = &mut *state;
            let has_caught_up = |shard, since: Instant| {
                let slot: Option<&Slot> = shards.get(&shard);
                // Discord promises no order between the connections of the two sets.
                let since = since + self.fleet.config.timing.session_skew;
                slot.is_none_or(|slot| !slot.runs() || slot.shard.has_caught_up(since))
            };
            let reshard = reshard.as_ref();
            let is_in_doubt = || reshard.is_some_and(|reshard| reshard.outlet.is_in_doubt());
            let step = transition.poll(Instant::now(), has_caught_up, is_in_doubt);
            let Step::Wait(until) = step else {
                return Some(step);
            };
            match until.into_iter().chain(next_check).min() {
                None => self.fleet.changed.wait(&mut state),
                Some(until) => {
                    if self.fleet.changed.wait_until(&mut state, until).timed_out() {
                        return Some(step);
                    }
                }
            }
        }
    }

    fn open(&mut self, id: ShardId) {
        self.wait_for_namesake(id);
        match self.spawn(id) {
            Ok(()) => self.pause = SHORTAGE_PAUSE,
            Err(Error::Io { what, source }) => {
                log::error!(
                    "shard {id} cannot be opened, again in {:?}: no {what}: {source}",
                    self.pause
                );
                let deadline = Instant::now() + self.pause;
                let mut state = self.fleet.state.lock();
                state.transition.put_back(id);
                while state.stopping.is_none()
                    && !self
                        .fleet
                        .changed
                        .wait_until(&mut state, deadline)
                        .timed_out()
                {}
                self.pause = (self.pause * 2).min(LONGEST_PAUSE);
            }
            Err(error) => self.give_up(id, &error),
        }
    }

    /// Waits until an earlier run of a shard has ended, which was closed.
    fn wait_for_namesake(&self, id: ShardId) {
        let mut state = self.fleet.state.lock();
        let runs = |slot: &Slot| slot.runs() && !slot.shard.is_resolving();
        while state.stopping.is_none() && state.shards.get(&id).is_some_and(runs) {
            self.fleet.changed.wait_for(&mut state, CHECK);
        }
        state.retire(id);
    }

    fn spawn(&self, id: ShardId) -> Result<(), Error> {
        let config = self.fleet.config_of(id)?;
        let (outlet, session, presence) = {
            let state = self.fleet.state.lock();
            let outlet = match &state.reshard {
                Some(reshard) if reshard.to.contains(&id) => Some(Arc::clone(&reshard.outlet)),
                _ => state.outlet.clone(),
            };
            let Some(outlet) = outlet else { return Ok(()) };
            (
                outlet,
                state.sessions.get(&id).cloned(),
                state.presence_of(id),
            )
        };
        let (way_out, given) = (Arc::clone(&outlet), presence.clone());
        let spawn = || {
            Shard::spawn(
                id,
                session,
                presence,
                config,
                Arc::clone(&self.context),
                outlet,
            )
        };
        let spawned = catch_unwind(AssertUnwindSafe(spawn))
            .unwrap_or_else(|_| Err(io::Error::other("it panicked")));
        let Spawned {
            shard,
            thread,
            start,
        } = spawned.map_err(|source| Error::Io {
            what: "thread or descriptor",
            source,
        })?;
        let mut state = self.fleet.state.lock();
        // From here on it is the shard that knows it.
        state.sessions.remove(&id);
        let is_current = state
            .outlet
            .as_ref()
            .is_none_or(|outlet| Arc::ptr_eq(outlet, &way_out));
        let part = match &state.reshard {
            Some(reshard) if state.has_way_back() && Arc::ptr_eq(&reshard.outlet, &way_out) => {
                Part::Incoming
            }
            _ if is_current && state.wanted.contains(&id) => Part::Running,
            _ => Part::Dismissed,
        };
        let stopping = state.stopping;
        if let Some(presence) = state
            .presence_of(id)
            .filter(|presence| given.as_ref() != Some(presence))
        {
            // It was set while the shard came into being. One that has stopped needs none.
            let _ = shard.send(presence);
        }
        let slot = Slot {
            shard: shard.clone(),
            stage: Stage::Waiting,
            guilds_in: false,
            thread: Some(thread),
            part,
        };
        state.shards.insert(id, slot);
        drop(state);
        // It was closed, or the fleet is stopping, while it came into being.
        match (stopping, part) {
            (Some(CloseReason::Suspended), Part::Running) => shard.suspend(),
            (Some(_), _) | (_, Part::Dismissed) => shard.close(),
            _ => {}
        }
        drop(start);
        Ok(())
    }

    /// A shard cannot be opened or restarted with the settings that the user gives it.
    fn give_up(&self, id: ShardId, error: &Error) {
        log::error!("shard {id} is not opened or restarted: {}", error.report());
        let failure = Failure::Settings { shard: id };
        let mut after = After::default();
        {
            let mut state = self.fleet.state.lock();
            state.transition.handle_stop(id);
            if state.has_way_back()
                && state
                    .reshard
                    .as_ref()
                    .is_some_and(|reshard| reshard.to.contains(&id))
            {
                after.close = state.dismiss(failure);
                self.fleet.handle_stops(&mut state, &mut after);
            }
            state.tell_operations(|operation| operation.give_up(&[id], failure));
            state.end_if_over();
        }
        self.fleet.changed.notify_all();
        after.carry_out();
    }

    fn restart(&self, id: ShardId) {
        let shard = self.fleet.shard(id).ok_or(Error::NotOpen { shard: id });
        let restarted = shard.and_then(|shard| shard.restart(self.fleet.config_of(id)?.identity()));
        if let Err(error) = restarted {
            self.give_up(id, &error);
        }
    }

    fn close(&self, id: ShardId) {
        let Some(shard) = self
            .fleet
            .state
            .lock()
            .shards
            .get(&id)
            .map(|slot| slot.shard.clone())
        else {
            return;
        };
        shard.close();
        if shard.is_resolving() {
            // It has no connection, and the look-up may take long: nothing more comes from it.
            self.fleet.state.lock().transition.handle_stop(id);
        }
    }
}
