//! The thread that opens, restarts and closes shards in their turn.

use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::fleet::{Fleet, Part, Slot};
use super::transition::Step;
use crate::error::Error;
use crate::protocol::Stage;
use crate::shard::{Context, Shard, Spawned};
use crate::shard_id::ShardId;
use crate::transport::Connector;

/// How long the conductor waits when the operating system has no thread or descriptor left; it doubles.
const SHORTAGE_PAUSE: Duration = Duration::from_secs(1);

/// The longest such pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// Starts the thread; it ends when the fleet stops.
pub(super) fn start<C: Connector + 'static>(
    fleet: &Arc<Fleet>,
    context: Arc<Context<C>>,
) -> Result<JoinHandle<()>, Error> {
    let conductor = Conductor { fleet: Arc::clone(fleet), context, pause: SHORTAGE_PAUSE };
    thread::Builder::new()
        .name("shard-conductor".into())
        .spawn(move || conductor.run())
        .map_err(|source| Error::Io { what: "a thread to open the shards", source })
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
            let step = state.transition.poll(Instant::now());
            let Step::Wait(until) = step else { return Some(step) };
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
        match self.spawn(id) {
            Ok(None) => {}
            Ok(Some(spawned)) => {
                self.pause = SHORTAGE_PAUSE;
                let mut state = self.fleet.state.lock();
                state.retire(id);
                let part = match &state.reshard {
                    _ if state.stopping.is_some() => Part::Dismissed,
                    Some(reshard) if reshard.to.contains(&id) => Part::Incoming,
                    _ if state.wanted.contains(&id) => Part::Running,
                    _ => Part::Dismissed,
                };
                let Spawned { shard, thread, start } = spawned;
                if part == Part::Dismissed {
                    // It was closed, or the fleet is stopping, while it came into being.
                    shard.close();
                }
                let slot = Slot { shard, stage: Stage::Waiting, guilds_in: false, thread: Some(thread), part };
                state.shards.insert(id, slot);
                drop(state);
                drop(start);
            }
            Err(error) => {
                log::error!("shard {id} cannot be opened, again in {:?}: {}", self.pause, error.report());
                let deadline = Instant::now() + self.pause;
                let mut state = self.fleet.state.lock();
                state.transition.put_back(id);
                while state.stopping.is_none() && !self.fleet.changed.wait_until(&mut state, deadline).timed_out() {}
                self.pause = (self.pause * 2).min(LONGEST_PAUSE);
            }
        }
    }

    /// Makes a shard whose thread waits for its `start` to be dropped; `None` if there is no more need of it.
    fn spawn(&self, id: ShardId) -> Result<Option<Spawned>, Error> {
        let config = self.fleet.config.of_shard(id)?;
        let (outlet, session) = {
            let state = self.fleet.state.lock();
            let outlet = match &state.reshard {
                Some(reshard) if reshard.to.contains(&id) => Some(Arc::clone(&reshard.outlet)),
                _ => state.outlet.clone(),
            };
            let Some(outlet) = outlet else { return Ok(None) };
            (outlet, state.sessions.get(&id).cloned())
        };
        let spawned = Shard::spawn(id, session, config, Arc::clone(&self.context), outlet)
            .map_err(|source| Error::Io { what: "a thread or descriptor for a shard", source })?;
        self.fleet.state.lock().sessions.remove(&id);
        Ok(Some(spawned))
    }

    fn restart(&self, id: ShardId) {
        let shard = self.fleet.shard(id).ok_or(Error::NotOpen { shard: id });
        let restarted = shard.and_then(|shard| shard.restart(self.fleet.config.of_shard(id)?.identity()));
        if let Err(error) = restarted {
            log::error!("shard {id} is not restarted: {}", error.report());
            self.fleet.state.lock().transition.handle_stop(id);
        }
    }

    fn close(&self, id: ShardId) {
        let Some(shard) = self.fleet.shard(id) else { return };
        shard.close();
        if shard.is_resolving() {
            // It has no connection, and the look-up may take long: nothing more comes from it.
            self.fleet.state.lock().transition.handle_stop(id);
        }
    }
}
