//! The manager's state under its lock: the [reconciler](super::reconciler), and the shards that it
//! decides about.
//!
//! Under the lock, no user code runs, nothing waits, and nothing is logged: the
//! [supervisor](super::supervisor) carries the reconciler's decisions out.

mod ending;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::sync::Arc;
#[cfg(test)]
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Instant;

use parking_lot::{Condvar, Mutex};

#[cfg(test)]
pub(super) use self::ending::{Ending, Store};
use super::handlers::Handlers;
use super::operation::Operation;
use super::presences::Presences;
use super::reconciler::{
    Facts, Failure, Input, OperationId, Output, Readiness, Reconciler, Request, Set, Slot,
};
use crate::clock;
use crate::config::Config;
use crate::delivery::{Events, Feed};
use crate::error::{Error, SendError, SendFailure};
use crate::limit::IdentifyLimiter;
use crate::protocol::{Command, Presence, Session, ShardState, StopReason};
use crate::rest::Rest;
use crate::shard::{AllCounters, Beginning, Change, Run, Shard};
use crate::shard_id::ShardId;
use crate::store::{Identified, Saved};

/// What the manager, its handles and its threads share.
pub(crate) struct Hub {
    pub(super) config: Arc<Config>,
    pub(super) rest: Rest,
    pub(super) limiter: Arc<dyn IdentifyLimiter>,
    events: Events,
    pub(super) handlers: Handlers,
    pub(super) counters: Arc<AllCounters>,
    state: Mutex<State>,
    /// Notified whenever something has changed.
    changed: Condvar,
    /// How often.
    #[cfg(test)]
    changes: AtomicU64,
}

pub(super) struct State {
    pub(super) reconciler: Reconciler,
    shards: Shards,
    operations: HashMap<OperationId, Operation>,
    presences: Presences,
    /// When each rate limit key last identified.
    identified: BTreeMap<u32, Identified>,
    /// The last requested write of the session store.
    store: u64,
    /// Why the manager stops, if it does. Set before the reconciler is requested to stop.
    stopping: Option<StopReason>,
    phase: Phase,
    /// The manager was dropped, perhaps on one of its own threads: no call waits for its end.
    is_detached: bool,
}

/// How far the manager's end has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    /// The supervisor has something to do, or will have.
    Supervised,
    /// No shard runs any more.
    Stopped,
    /// The session store must be written a last time.
    LastStore,
    /// All threads have ended.
    Closed,
}

/// The shards by run, and where they put their events.
struct Shards {
    by_run: BTreeMap<Run, Entry>,
    /// The threads of shards that were replaced.
    retired: Vec<Entry>,
    /// Gone when there will be no more events but those of shards that run.
    feed: Option<Arc<Feed>>,
    /// The feed of a set that will replace the active one, or has just done so.
    incoming: Option<Arc<Feed>>,
}

struct Entry {
    shard: Shard,
    /// `None` once it is being joined.
    thread: Option<JoinHandle<()>>,
    /// Another run continues its session.
    is_continued: bool,
}

impl Facts for Shards {
    fn has_session(&self, run: Run) -> bool {
        self.get(run).is_some_and(|shard| shard.session().is_some())
    }

    fn has_read(&self, run: Run, up_to: Instant) -> bool {
        self.get(run).is_none_or(|shard| shard.has_read(up_to))
    }

    fn stopped(&self, run: Run) -> Option<StopReason> {
        match self.get(run)?.status().state {
            ShardState::Stopped(reason) => Some(reason),
            _ => None,
        }
    }

    fn delivered(&self, run: Run) -> u64 {
        self.get(run).map_or(0, Shard::delivered)
    }

    fn has_handled(&self, run: Run, count: u64) -> bool {
        self.get(run).is_none_or(|shard| shard.has_handled(count))
    }

    fn is_all_handled(&self, run: Run) -> bool {
        self.get(run).is_none_or(|shard| shard.outstanding().0 == 0)
    }

    fn is_in_doubt(&self) -> bool {
        let incoming = self.incoming.as_ref();
        incoming.is_some_and(|feed| feed.is_in_doubt())
    }
}

impl Shards {
    fn get(&self, run: Run) -> Option<&Shard> {
        self.by_run.get(&run).map(|entry| &entry.shard)
    }

    fn shards_of(&self, runs: &[Run]) -> Vec<Shard> {
        let shards = runs.iter().filter_map(|run| self.get(*run));
        shards.cloned().collect()
    }
}

impl Hub {
    pub(super) fn new(
        config: Arc<Config>,
        rest: Rest,
        limiter: Arc<dyn IdentifyLimiter>,
        reconciler: Reconciler,
        identified: Vec<Identified>,
        (feed, events): (Arc<Feed>, Events),
    ) -> Arc<Self> {
        let identified = identified.into_iter().map(|last| (last.key, last));
        let state = State {
            reconciler,
            shards: Shards {
                by_run: BTreeMap::new(),
                retired: Vec::new(),
                feed: Some(feed),
                incoming: None,
            },
            operations: HashMap::new(),
            presences: Presences::default(),
            identified: identified.collect(),
            store: 0,
            stopping: None,
            phase: Phase::Supervised,
            is_detached: false,
        };

        Arc::new(Self {
            config,
            rest,
            limiter,
            events,
            handlers: Handlers::default(),
            counters: Arc::default(),
            state: Mutex::new(state),
            changed: Condvar::new(),
            #[cfg(test)]
            changes: AtomicU64::new(0),
        })
    }

    /// Wakes the threads that wait for a change.
    fn notify(&self) {
        #[cfg(test)]
        self.changes.fetch_add(1, Ordering::Relaxed);
        self.changed.notify_all();
    }

    /// How often waiting threads were woken.
    #[cfg(test)]
    pub(super) fn changes(&self) -> u64 {
        self.changes.load(Ordering::Relaxed)
    }

    pub(super) fn events(&self) -> Events {
        self.events.clone()
    }

    /// Begins a user's request.
    pub(super) fn ask(self: &Arc<Self>, request: Request) -> Result<Operation, Error> {
        let operation = {
            let mut state = self.state.lock();
            let id = {
                let State {
                    reconciler, shards, ..
                } = &mut *state;
                reconciler.ask(clock::now(), shards, request)?
            };
            let operation = Operation::new(self, id);
            state.operations.insert(id, operation.clone());
            operation
        };
        self.notify();
        Ok(operation)
    }

    /// Cancels a reshard. Returns whether one was cancelled.
    pub(super) fn cancel_reshard(&self) -> bool {
        let is_cancelled = self.state.lock().reconciler.cancel_reshard();
        self.notify();
        is_cancelled
    }

    /// Reports an input to the reconciler.
    pub(super) fn handle(&self, input: Input) {
        self.state.lock().reconciler.handle(clock::now(), input);
        self.notify();
    }

    /// Handles a change that a shard reports on its own thread.
    pub(super) fn handle_change(&self, run: Run, change: Change) {
        {
            let mut state = self.state.lock();
            if change == Change::ShardState(ShardState::Identifying) {
                let keys = state.reconciler.max_concurrency();
                let last = Identified::now(run.shard, keys);
                state.identified.insert(last.key, last);
            }
            let input = Input::Changed(run, change);
            state.reconciler.handle(clock::now(), input);
        }
        self.notify();
        if change == Change::ShardState(ShardState::Stopped(StopReason::OwnershipLost)) {
            self.stop(StopReason::OwnershipLost);
        }
    }

    /// The reconciler's next output; blocks until there is one.
    pub(super) fn next_output(&self) -> Output {
        let mut state = self.state.lock();
        loop {
            match state.poll() {
                Output::Wait(None) => self.changed.wait(&mut state),
                Output::Wait(Some(until)) => {
                    self.changed.wait_until(&mut state, until);
                }
                output => return output,
            }
        }
    }

    /// As [`next_output`](Self::next_output), without the wait.
    #[cfg(test)]
    pub(super) fn poll(&self) -> Output {
        self.state.lock().poll()
    }

    /// Stops every shard. The first reason is kept. Does not wait.
    pub(super) fn stop(&self, reason: StopReason) {
        // Set before any handler ends: after `run` returns, the program often calls `close`, whose
        // reason must not be the first.
        let reason = *self.state.lock().stopping.get_or_insert(reason);
        // Before any shard stops, so that no handler begins another event once a shard has stopped.
        if matches!(reason, StopReason::Suspended | StopReason::OwnershipLost) {
            // Events that no worker has begun are redelivered to the next process, also those of a
            // handler that starts only now.
            self.handlers.end_at(clock::now());
            self.handlers.stop();
        } else {
            let timeout = self.config.timing.handlers_timeout;
            self.handlers.end_at(clock::now() + timeout);
        }
        self.rest.close();
        self.handle(Input::Stop(reason));
    }

    /// Why the manager stops, if it does.
    pub(super) fn stopping(&self) -> Option<StopReason> {
        self.state.lock().stopping
    }

    /// The first shard that has stopped because of something that only the user can fix.
    pub(super) fn check(&self) -> Result<(), Error> {
        let state = self.state.lock();
        if state.stopping == Some(StopReason::OwnershipLost) {
            return Err(Error::OwnershipLost);
        }
        state.reconciler.check()
    }

    /// Whether a reshard could begin now.
    pub(super) fn check_idle(&self) -> Result<(), Error> {
        self.state.lock().reconciler.check_idle()
    }

    /// The shards that should run.
    pub(super) fn wanted(&self) -> Vec<ShardId> {
        self.state.lock().reconciler.wanted()
    }

    /// The shards that a request waits for.
    pub(super) fn waiting_for(&self, operation: OperationId) -> Vec<ShardId> {
        self.state.lock().reconciler.waiting_for(operation)
    }

    pub(super) fn shard(&self, id: ShardId) -> Option<Shard> {
        let state = self.state.lock();
        let run = state.reconciler.active(id)?;
        state.shards.get(run).cloned()
    }

    pub(super) fn shard_by_guild(&self, guild_id: u64) -> Option<Shard> {
        let state = self.state.lock();
        let run = state.reconciler.by_guild(guild_id)?;
        state.shards.get(run).cloned()
    }

    pub(super) fn shards(&self) -> Vec<Shard> {
        let state = self.state.lock();
        let runs = state.reconciler.all_active().map(|slot| slot.run);
        runs.filter_map(|run| state.shards.get(run).cloned())
            .collect()
    }

    /// Maps every opened shard with `at`, and lists the shards that have not been opened.
    pub(super) fn look<T>(
        &self,
        at: impl Fn(&Slot, &Shard) -> Option<T>,
    ) -> (Vec<T>, Vec<ShardId>) {
        let state = self.state.lock();
        let slots = state.reconciler.all();
        let looked_at = slots.filter_map(|slot| at(slot, state.shards.get(slot.run)?));
        (looked_at.collect(), state.reconciler.unopened())
    }

    /// The session of a shard that has not been opened.
    pub(super) fn unopened_session(&self, id: ShardId) -> Option<Session> {
        let state = self.state.lock();
        let mut sessions = state.reconciler.unopened_sessions();
        sessions.find(|session| session.shard == id).cloned()
    }

    /// Takes the session of a stopped run, unless another run continues it.
    pub(super) fn take_session(&self, run: Run) -> Option<Session> {
        let state = self.state.lock();
        let is_free = state.reconciler.is_stopped(run);
        let entry = state.shards.by_run.get(&run);
        let entry = entry.filter(|entry| is_free && !entry.is_continued)?;
        entry.shard.take_session()
    }

    /// Where the events of a shard go, and its newest run.
    pub(super) fn feed_and_shard(&self, id: ShardId) -> Option<(Arc<Feed>, Option<Shard>)> {
        let state = self.state.lock();
        let feed = state.shards.feed.clone()?;
        let run = state.reconciler.newest(id);
        Some((feed, run.and_then(|run| state.shards.get(run).cloned())))
    }

    /// Queues a command at the shard that has a guild.
    pub(super) fn send_to_guild(&self, guild_id: u64, command: Command) -> Result<(), SendError> {
        match self.shard_by_guild(guild_id) {
            Some(shard) => shard.send(command),
            None => Err(SendError::new(command, SendFailure::NoShard { guild_id })),
        }
    }

    /// Sets the presence of every shard, including shards that open later.
    pub(super) fn broadcast(&self, presence: &Presence) -> Result<(), Error> {
        let command = Command::presence(presence)?;
        let shards: Vec<Shard> = {
            let mut state = self.state.lock();
            if state.reconciler.stopping().is_some() {
                return Err(Error::Closed);
            }
            state.presences.set_all(command.clone());
            let entries = state.shards.by_run.values();
            // A stopped shard receives it when it opens again.
            entries
                .inspect(|entry| entry.shard.remember_presence(&command))
                .map(|entry| entry.shard.clone())
                .collect()
        };
        for shard in shards {
            shard.send_presence(command.clone());
        }
        Ok(())
    }

    /// Blocks until all shards are ready at once, and if requested, their guilds have arrived.
    pub(super) fn wait_ready(
        &self,
        deadline: Option<Instant>,
        with_guilds: bool,
    ) -> Result<(), Error> {
        let mut state = self.state.lock();
        loop {
            let readiness = state.reconciler.readiness(with_guilds)?;
            let Readiness::NotReady {
                ready,
                total,
                shard,
                run,
                stage,
            } = readiness
            else {
                return Ok(());
            };

            match deadline {
                None => self.changed.wait(&mut state),
                Some(deadline) if clock::now() >= deadline => {
                    let run = run.and_then(|run| state.shards.get(run));
                    return Err(Error::NotReady {
                        ready,
                        total,
                        shard,
                        state: stage,
                        last_disconnect: run.and_then(|shard| shard.status().last_disconnect),
                    });
                }
                Some(deadline) => {
                    self.changed.wait_until(&mut state, deadline);
                }
            }
        }
    }

    /// What the next process needs: the sessions of the shards that run and of those that will,
    /// each at its low-water mark (the sequence up to which all events are handled).
    pub(super) fn saved(&self) -> Saved {
        let state = self.state.lock();
        let identified = state.identified.values().cloned().collect();
        let mut sessions: Vec<Session> = Vec::new();
        let has_ended = |reason| matches!(reason, StopReason::Closed | StopReason::OwnershipLost);

        if !state.reconciler.stopping().is_some_and(has_ended) {
            let active = state.reconciler.all_active();
            sessions.extend(state.reconciler.unopened_sessions().cloned());
            // A shard that will open with a session does not need its previous one.
            let given: HashSet<ShardId> = sessions.iter().map(|session| session.shard).collect();
            let active = active.filter(|slot| !given.contains(&slot.run.shard));
            sessions.extend(active.filter_map(|slot| state.shards.get(slot.run)?.session()));
            sessions.sort_unstable_by_key(|session| session.shard);
        }

        Saved {
            sessions,
            identified,
        }
    }
}

/// The supervisor's access to the state.
impl Hub {
    /// Where a run puts its events, and where it begins. `None` if the stream has ended.
    pub(super) fn beginning(
        &self,
        run: Run,
        previous: Option<Run>,
        session: Option<Session>,
        set: Set,
    ) -> Option<(Arc<Feed>, Beginning)> {
        let state = self.state.lock();
        if state.reconciler.stopping().is_some() {
            return None;
        }
        let feed = match set {
            Set::Active => state.shards.feed.clone()?,
            Set::Incoming => state.shards.incoming.clone()?,
        };
        let beginning = Beginning {
            session,
            presence: state.presence_of(run.shard),
            previous: previous.and_then(|previous| state.shards.get(previous).cloned()),
        };
        Some((feed, beginning))
    }

    /// Adds a run whose thread exists. Returns the presence that it should have.
    pub(super) fn insert(
        &self,
        shard: &Shard,
        thread: Option<JoinHandle<()>>,
        continued: Option<Run>,
    ) -> Option<Command> {
        let mut state = self.state.lock();
        let previous = continued.and_then(|run| state.shards.by_run.get_mut(&run));
        if let Some(previous) = previous {
            previous.is_continued = true;
        }

        let entry = Entry {
            shard: shard.clone(),
            thread,
            is_continued: false,
        };

        let run = shard.run();
        // Read before the shard itself is added.
        let presence = state.presence_of(run.shard);
        state.shards.by_run.insert(run, entry);
        let input = Input::Opened(run);
        state.reconciler.handle(clock::now(), input);
        presence
    }

    /// The shard of a run.
    pub(super) fn shard_of(&self, run: Run) -> Option<Shard> {
        self.state.lock().shards.get(run).cloned()
    }

    pub(super) fn shards_of(&self, runs: &[Run]) -> Vec<Shard> {
        self.state.lock().shards.shards_of(runs)
    }

    /// Removes a run. Returns its shard, and its session if that is lost with it.
    pub(super) fn retire(&self, run: Run) -> Option<(Shard, Option<Session>)> {
        let mut state = self.state.lock();
        let entry = state.shards.by_run.remove(&run)?;
        state.presences.keep(&entry.shard);
        let shard = entry.shard.clone();
        let lost = (!entry.is_continued).then(|| shard.session()).flatten();
        let retired = &mut state.shards.retired;
        let is_finished = |entry: &Entry| entry.thread.as_ref().is_none_or(JoinHandle::is_finished);
        let finished: Vec<Entry> = retired.extract_if(.., |entry| is_finished(entry)).collect();
        retired.push(entry);
        drop(state);
        drop(finished);
        Some((shard, lost))
    }

    /// The feed for events that do not come from a shard.
    pub(super) fn feed(&self) -> Option<Arc<Feed>> {
        self.state.lock().shards.feed.clone()
    }

    /// Sets the feed of the set that will replace the active one.
    pub(super) fn set_incoming(&self, incoming: Arc<Feed>) {
        self.state.lock().shards.incoming = Some(incoming);
    }

    /// Takes the feed of the set that would replace the active one, or has replaced it.
    pub(super) fn take_incoming(&self) -> Option<Arc<Feed>> {
        self.state.lock().shards.incoming.take()
    }

    /// Makes the new set the active one. Returns the old set's feed.
    pub(super) fn make_incoming_active(&self) -> Option<Arc<Feed>> {
        let shards = &mut self.state.lock().shards;
        let incoming = shards.incoming.clone();
        std::mem::replace(&mut shards.feed, incoming)
    }

    /// Ends the stream: no shard runs, or will. A thread that is resolving a host name may still
    /// have a feed, but events that it puts there are dropped.
    pub(super) fn end_stream(&self) {
        drop(self.take_outlets());
        self.events.end();
        if self.stopping() == Some(StopReason::OwnershipLost) {
            // The new owner of the shards receives these events, too.
            self.events.discard();
        }
    }

    fn take_outlets(&self) -> [Option<Arc<Feed>>; 2] {
        let shards = &mut self.state.lock().shards;
        [shards.feed.take(), shards.incoming.take()]
    }

    /// Finishes the operation of a request that has ended.
    pub(super) fn finish(&self, id: OperationId, outcome: Result<(), Failure>) {
        let operation = self.state.lock().operations.remove(&id);
        if let Some(operation) = operation {
            operation.finish(outcome);
        }
    }

    /// Requests a write of the session store, with the number of the request.
    pub(super) fn set_store(&self, store: u64) {
        self.state.lock().store = store;
        self.notify();
    }

    /// Records that no shard runs, or will.
    pub(super) fn set_stopped(&self) {
        self.set_phase(Phase::Stopped);
    }
}

impl State {
    fn poll(&mut self) -> Output {
        self.reconciler.poll(clock::now(), &self.shards)
    }

    fn presence_of(&self, shard: ShardId) -> Option<Command> {
        let entries = self.shards.by_run.values();
        let shards = entries.map(|entry| &entry.shard);
        self.presences.of(shard, shards)
    }
}

impl fmt::Debug for Hub {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shards = self.state.lock().shards.by_run.len();
        f.debug_struct("Hub")
            .field("shards", &shards)
            .finish_non_exhaustive()
    }
}
