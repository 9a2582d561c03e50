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
use crate::delivery::{Events, Source};
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

/// The shards of a manager.
pub(crate) struct Fleet {
    plan: Vec<ShardId>,
    source: Source,
    state: Mutex<State>,
    /// A shard stands somewhere else, or the fleet is to stop.
    changed: Condvar,
    panics: AtomicU64,
}

struct State {
    shards: BTreeMap<ShardId, Slot>,
    transition: Transition,
    /// Where the fleet gets its shards' senders; gone when no shard will open any more, so that the stream can end.
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
        source: Source,
    ) -> Arc<Self> {
        let transition = Transition::new(plan.iter().copied(), max_concurrency);
        let state = State { shards: BTreeMap::new(), transition, sender: Some(sender), stopping: None };
        Arc::new(Self { plan, source, state: Mutex::new(state), changed: Condvar::new(), panics: AtomicU64::new(0) })
    }

    pub(super) fn events(&self) -> Events {
        self.source.events()
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
        let mut state = self.state.lock();
        if let Some(slot) = state.shards.get_mut(&shard) {
            slot.stage = stage;
        }
        state.transition.handle(shard, stage);
        if let Stage::Stopped(reason @ CloseReason::Discord(_)) = stage
            && state.sender.take().is_some()
        {
            // A wrong token, intent, version or count is wrong for every shard.
            log::error!("no more shards are opened: {reason}");
        }
        drop(state);
        self.changed.notify_all();
    }

    /// Asks every shard to stop, and opens no more. The first reason counts.
    pub(super) fn stop(&self, reason: CloseReason) {
        let shards = {
            let mut state = self.state.lock();
            state.stopping.get_or_insert(reason);
            state.sender = None;
            state.shards.values().map(|slot| slot.shard.clone()).collect::<Vec<_>>()
        };
        self.changed.notify_all();
        for shard in shards {
            ask_to_stop(&shard, reason);
        }
    }

    /// Waits for every shard's thread, but never for its own.
    pub(super) fn join(&self) {
        let threads: Vec<_> = self.state.lock().shards.values_mut().filter_map(|slot| slot.thread.take()).collect();
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
                return Err(Error::NotReady { ready, total: self.plan.len() });
            }
        }
    }

    /// Opens every shard in its turn; blocks until all are open or the fleet stops.
    fn open_all<C: Connector + 'static>(&self, context: &Arc<Context<C>>, sessions: &[Session]) {
        let mut pause = SHORTAGE_PAUSE;
        let mut state = self.state.lock();
        // Without a sender the fleet is stopping.
        while let Some(sender) = state.sender.clone() {
            match state.transition.poll() {
                Step::Done => break,
                Step::Wait => self.changed.wait(&mut state),
                Step::Open(id) => {
                    let session = sessions.iter().find(|session| session.shard == id).cloned();
                    // The shard's first report waits for this lock, so it finds its slot.
                    match Shard::spawn(id, session, Arc::clone(context), sender) {
                        Ok((shard, thread)) => {
                            state.shards.insert(id, Slot { shard, stage: Stage::Waiting, thread: Some(thread) });
                            pause = SHORTAGE_PAUSE;
                        }
                        Err(error) => {
                            log::error!("shard {id} cannot be opened, again in {pause:?}: {error}");
                            state.transition.put_back(id);
                            let deadline = Instant::now() + pause;
                            while state.stopping.is_none() && !self.changed.wait_until(&mut state, deadline).timed_out()
                            {
                            }
                            pause = (pause * 2).min(LONGEST_PAUSE);
                        }
                    }
                }
            }
        }
        // No more shards will open: the stream ends with those that run.
        state.sender = None;
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
