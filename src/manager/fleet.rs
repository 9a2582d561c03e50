//! The shards that run, shared by the manager, its handles and its opener thread.

use std::collections::BTreeMap;
use std::fmt;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam_channel::Sender;
use parking_lot::{Condvar, Mutex};

use super::transition::{Step, Transition};
use crate::delivery::Events;
use crate::error::Error;
use crate::event::Event;
use crate::protocol::{CloseReason, Session, Stage};
use crate::shard::{Context, Shard};
use crate::shard_id::ShardId;
use crate::transport::Connector;

/// How long the opener waits when the operating system has no thread or descriptor left; it doubles.
const SHORTAGE_PAUSE: Duration = Duration::from_secs(1);

/// The longest such pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// How often a `close` looks whether a shard has begun to look a host up, of which nothing tells.
const RESOLVING_CHECK: Duration = Duration::from_millis(20);

/// The shards of a manager.
pub(crate) struct Fleet {
    plan: Vec<ShardId>,
    events: Events,
    state: Mutex<State>,
    /// A shard stands somewhere else, or the fleet is to stop.
    changed: Condvar,
    panics: AtomicU64,
}

struct State {
    shards: BTreeMap<ShardId, Slot>,
    transition: Transition,
    /// Where the shards get theirs from; gone when no shard will open any more, so that the stream can end.
    sender: Option<Sender<Event>>,
    stopping: Option<CloseReason>,
}

struct Slot {
    shard: Shard,
    stage: Stage,
    thread: Option<JoinHandle<()>>,
}

impl Fleet {
    /// A fleet of `plan`, none of which is open yet.
    pub(super) fn new(
        plan: Vec<ShardId>,
        max_concurrency: NonZeroU32,
        sender: Sender<Event>,
        events: Events,
    ) -> Arc<Self> {
        let transition = Transition::new(plan.iter().copied(), max_concurrency);
        let state = State { shards: BTreeMap::new(), transition, sender: Some(sender), stopping: None };
        Arc::new(Self { plan, events, state: Mutex::new(state), changed: Condvar::new(), panics: AtomicU64::new(0) })
    }

    pub(super) fn events(&self) -> Events {
        self.events.clone()
    }

    pub(super) fn panics(&self) -> &AtomicU64 {
        &self.panics
    }

    pub(super) fn handler_panics(&self) -> u64 {
        self.panics.load(std::sync::atomic::Ordering::Relaxed)
    }

    pub(super) fn shard(&self, id: ShardId) -> Option<Shard> {
        self.state.lock().shards.get(&id).map(|slot| slot.shard.clone())
    }

    pub(super) fn shard_by_guild(&self, guild_id: u64) -> Option<Shard> {
        let total = self.plan.first()?.total();
        self.shard(ShardId::for_guild(guild_id, total)?)
    }

    pub(super) fn shards(&self) -> Vec<Shard> {
        self.state.lock().shards.values().map(|slot| slot.shard.clone()).collect()
    }

    /// A shard tells where it stands, on its own thread.
    pub(super) fn handle_stage(&self, shard: ShardId, stage: Stage) {
        let was_opening = {
            let mut state = self.state.lock();
            if let Some(slot) = state.shards.get_mut(&shard) {
                slot.stage = stage;
            }
            state.transition.handle(shard, stage);
            // A wrong token, intent, version or count is wrong for every shard.
            matches!(stage, Stage::Stopped(CloseReason::Discord(_))) && state.sender.take().is_some()
        };
        self.changed.notify_all();
        if was_opening {
            log::error!("no more shards are opened: shard {shard} {stage}");
        }
    }

    /// Asks every shard to stop, and opens no more. The first reason counts.
    pub(super) fn stop(&self, reason: CloseReason) {
        let (shards, reason) = {
            let mut state = self.state.lock();
            state.sender = None;
            let reason = *state.stopping.get_or_insert(reason);
            (state.shards.values().map(|slot| slot.shard.clone()).collect::<Vec<_>>(), reason)
        };
        self.changed.notify_all();
        for shard in shards {
            ask_to_stop(&shard, reason);
        }
    }

    /// Waits until every shard has stopped, but never for the calling thread, and not for a thread that is looking a host
    /// up: that one ends by itself.
    pub(super) fn join(&self) {
        let own = thread::current().id();
        let mut state = self.state.lock();
        let runs = |slot: &Slot| {
            let is_own = slot.thread.as_ref().is_some_and(|thread| thread.thread().id() == own);
            !is_own && !matches!(slot.stage, Stage::Stopped(_)) && !slot.shard.is_resolving()
        };
        while state.shards.values().any(runs) {
            self.changed.wait_for(&mut state, RESOLVING_CHECK);
        }
        let stopped = state.shards.values_mut().filter(|slot| matches!(slot.stage, Stage::Stopped(_)));
        let threads: Vec<_> = stopped.filter_map(|slot| slot.thread.take()).collect();
        drop(state);
        threads.into_iter().for_each(join);
    }

    pub(super) fn wait_ready(&self, deadline: Option<Instant>) -> Result<(), Error> {
        let mut state = self.state.lock();
        loop {
            let mut ready = 0;
            for (shard, slot) in &state.shards {
                match slot.stage {
                    Stage::Stopped(reason) => return Err(Error::Stopped { shard: *shard, reason }),
                    Stage::Ready => ready += 1,
                    _ => {}
                }
            }
            if state.stopping.is_some() {
                return Err(Error::Closed);
            }
            if ready == self.plan.len() {
                return Ok(());
            }
            let Some(deadline) = deadline else {
                self.changed.wait(&mut state);
                continue;
            };
            if self.changed.wait_until(&mut state, deadline).timed_out() {
                return Err(self.not_ready(&state, ready));
            }
        }
    }

    /// Why the fleet is not ready, by the first shard that is not.
    fn not_ready(&self, state: &State, ready: usize) -> Error {
        let slot = |shard: &ShardId| state.shards.get(shard);
        let is_ready = |shard: &&ShardId| slot(shard).is_some_and(|slot| slot.stage == Stage::Ready);
        let shard = self.plan.iter().find(|shard| !is_ready(shard)).copied().unwrap_or(ShardId::ONE);
        Error::NotReady {
            ready,
            total: self.plan.len(),
            shard,
            stage: slot(&shard).map(|slot| slot.stage),
            last_disconnect: slot(&shard).and_then(|slot| slot.shard.status().last_disconnect),
        }
    }

    /// The first shard that has stopped because of something that its owner must mend.
    pub(super) fn fatal_stop(&self) -> Result<(), Error> {
        let state = self.state.lock();
        for (shard, slot) in &state.shards {
            if let Stage::Stopped(reason) = slot.stage
                && reason.is_fatal()
            {
                return Err(Error::Stopped { shard: *shard, reason });
            }
        }
        Ok(())
    }

    /// Opens every shard in its turn; blocks until all are open or the fleet stops.
    fn open_all<C: Connector + 'static>(&self, context: &Arc<Context<C>>, sessions: &[Session]) {
        let mut pause = SHORTAGE_PAUSE;
        while let Some((id, sender)) = self.next_to_open() {
            let session = sessions.iter().find(|session| session.shard == id).cloned();
            match Shard::spawn(id, session, Arc::clone(context), sender) {
                Ok((shard, thread)) => {
                    self.opened(&shard, thread);
                    pause = SHORTAGE_PAUSE;
                }
                Err(error) => {
                    log::error!("shard {id} cannot be opened, again in {pause:?}: {error}");
                    let deadline = Instant::now() + pause;
                    let mut state = self.state.lock();
                    state.transition.put_back(id);
                    while state.stopping.is_none() && !self.changed.wait_until(&mut state, deadline).timed_out() {}
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
            }
        }
        // No more shards will open: the stream ends with those that run.
        self.state.lock().sender = None;
    }

    /// Blocks until a shard may open; `None` if all are open or the fleet is stopping.
    fn next_to_open(&self) -> Option<(ShardId, Sender<Event>)> {
        let mut state = self.state.lock();
        loop {
            let sender = state.sender.clone()?;
            match state.transition.poll() {
                Step::Open(id) => return Some((id, sender)),
                Step::Done => return None,
                Step::Wait => self.changed.wait(&mut state),
            }
        }
    }

    /// A shard's thread has started.
    fn opened(&self, shard: &Shard, thread: JoinHandle<()>) {
        let stopping = {
            let mut state = self.state.lock();
            // What it has told before it had a slot stands in its status.
            let stage = shard.status().stage;
            state.shards.insert(shard.id(), Slot { shard: shard.clone(), stage, thread: Some(thread) });
            state.stopping
        };
        self.changed.notify_all();
        if let Some(reason) = stopping {
            ask_to_stop(shard, reason);
        }
    }
}

impl fmt::Debug for Fleet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fleet").field("plan", &self.plan.len()).finish_non_exhaustive()
    }
}

/// Starts the thread that opens the shards in turn; it ends when all are open.
pub(super) fn open<C: Connector + 'static>(
    fleet: &Arc<Fleet>,
    context: Arc<Context<C>>,
    sessions: Vec<Session>,
) -> Result<JoinHandle<()>, Error> {
    let fleet = Arc::clone(fleet);
    thread::Builder::new()
        .name("shard-opener".into())
        .spawn(move || fleet.open_all(&context, &sessions))
        .map_err(|source| Error::Io { what: "a thread to open the shards", source })
}

fn ask_to_stop(shard: &Shard, reason: CloseReason) {
    if reason == CloseReason::Suspended {
        shard.suspend();
    } else {
        shard.close();
    }
}

/// Waits for a thread's end, unless it is the one that asks.
pub(super) fn join(thread: JoinHandle<()>) {
    if thread.thread().id() != thread::current().id() {
        // A shard's thread catches its own panics; the opener has nothing that panics.
        let _ = thread.join();
    }
}
