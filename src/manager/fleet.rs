//! The shards that run, shared by the manager, its handles and its threads.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::convert::Infallible;
use std::num::NonZeroUsize;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use std::{fmt, io};

use crossbeam_channel::Sender;
use parking_lot::{Condvar, Mutex};

use super::operation::{Failure, Operation};
use super::transition::Transition;
use crate::config::Config;
use crate::delivery::{Events, Outlet, Panicked, Workers};
use crate::error::Error;
use crate::event::{Event, EventKind, HANDLER_PANICKED};
use crate::limit::IdentifyLimiter;
use crate::protocol::{CloseCode, CloseReason, Command, Session, Stage};
use crate::rest::Rest;
use crate::shard::{Change, Shard};
use crate::shard_id::ShardId;
use crate::store::{Identified, Saved};

/// How often something is looked for of which nothing tells: that a shard looks a host up, that
/// handlers are done.
pub(super) const CHECK: Duration = Duration::from_millis(5);

/// The close code of a shard that does not go with the bot's size.
pub(super) const INVALID_SHARD: CloseReason = CloseReason::Discord(CloseCode(4010));

/// The close code of a shard that would hold too many guilds.
const SHARDING_REQUIRED: CloseReason = CloseReason::Discord(CloseCode(4011));

/// The shards of a manager.
pub(crate) struct Fleet {
    pub(super) config: Arc<Config>,
    /// The gateway's url.
    gateway: String,
    pub(super) rest: Rest,
    pub(super) limiter: Arc<dyn IdentifyLimiter>,
    events: Events,
    pub(super) state: Mutex<State>,
    /// A shard stands somewhere else, there is something to do, or the fleet is to stop.
    pub(super) changed: Condvar,
    panics: AtomicU64,
    handler: Mutex<HandlerRun>,
}

/// Whether events are handed to a handler.
#[derive(Default)]
struct HandlerRun {
    runs: bool,
    /// Dropping it stops the handler.
    stop: Option<Sender<Infallible>>,
    /// Set once the manager is closed: until then the handler may go on with what is queued.
    deadline: Arc<OnceLock<Instant>>,
}

pub(super) struct State {
    pub(super) shards: BTreeMap<ShardId, Slot>,
    /// Those that are to run; while others are to replace them, those that run until then.
    pub(super) wanted: BTreeSet<ShardId>,
    pub(super) transition: Transition,
    pub(super) operations: Vec<Operation>,
    /// Where the shards put their events; gone when there will be none any more, so that the stream
    /// can end.
    pub(super) outlet: Option<Arc<Outlet>>,
    pub(super) reshard: Option<Reshard>,
    /// The sessions of shards that will open.
    pub(super) sessions: HashMap<ShardId, Session>,
    /// When each rate limit key last identified.
    identified: BTreeMap<u32, Identified>,
    /// The presence that all shards were given last, for those that open later.
    pub(super) presence: Option<Command>,
    /// The presences that shards had which are gone.
    pub(super) presences: BTreeMap<ShardId, Command>,
    /// The threads of shards that have been replaced.
    pub(super) retired: Vec<(Shard, JoinHandle<()>)>,
    pub(super) stopping: Option<CloseReason>,
    /// How often the session store was to be written before its time, and how many of those have
    /// been served.
    pub(super) store_wanted: u64,
    pub(super) store_written: u64,
    /// Discord is being asked for a number of shards that it takes; until then nothing runs.
    pub(super) is_asking: bool,
    /// Discord is being asked whether the shards are too few.
    pub(super) is_checking: bool,
}

pub(super) struct Slot {
    pub(super) shard: Shard,
    pub(super) stage: Stage,
    pub(super) guilds_in: bool,
    pub(super) thread: Option<JoinHandle<()>>,
    pub(super) part: Part,
}

/// The part that a shard plays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// It is to run.
    Running,
    /// It will replace others.
    Incoming,
    /// Others are about to take over from it.
    Leaving,
    /// It is not needed any more: it was to replace others, or was closed while it came into being.
    Dismissed,
}

/// One set of shards is being replaced by another.
pub(super) struct Reshard {
    pub(super) to: Vec<ShardId>,
    pub(super) outlet: Arc<Outlet>,
    pub(super) operation: Operation,
    /// The old set closes: there is no way back.
    pub(super) is_committed: bool,
}

/// What is to be done once the lock is given back.
#[derive(Default)]
pub(super) struct After {
    pub(super) close: Vec<Shard>,
    tell: Vec<(Arc<Outlet>, Event)>,
}

impl After {
    pub(super) fn carry_out(self) {
        self.close.iter().for_each(Shard::close);
        for (outlet, event) in self.tell {
            outlet.tell(event);
        }
    }
}

impl Slot {
    pub(super) fn runs(&self) -> bool {
        !matches!(self.stage, Stage::Stopped(_))
    }

    fn is_ready(&self, with_guilds: bool) -> bool {
        self.stage == Stage::Ready && (self.guilds_in || !with_guilds)
    }
}

impl State {
    /// The shards that are to run, and those that have been closed by hand.
    pub(super) fn running(&self) -> impl Iterator<Item = (&ShardId, &Slot)> {
        self.shards
            .iter()
            .filter(|(_, slot)| slot.part == Part::Running)
    }

    /// Takes a shard out. Its thread ends by itself, and is joined when the manager stops.
    pub(super) fn retire(&mut self, shard: ShardId) {
        let Some(Slot { shard, thread, .. }) = self.shards.remove(&shard) else {
            return;
        };
        self.presences
            .extend(shard.last_presence().map(|presence| (shard.id(), presence)));
        if let Some(thread) = thread {
            // Nobody can ask it to later.
            shard.close();
            self.retired.retain(|(_, thread)| !thread.is_finished());
            self.retired.push((shard, thread));
        }
    }

    /// The presence that was set last for the guilds of a shard that opens: that of a shard that
    /// has some of them, of one that had, or of all.
    pub(super) fn presence_of(&self, id: ShardId) -> Option<Command> {
        let mut now = self
            .shards
            .values()
            .map(|slot| &slot.shard)
            .filter(|shard| shard.id().overlaps(id));
        let before = || {
            self.presences
                .iter()
                .find(|(other, _)| other.overlaps(id))
                .map(|(_, presence)| presence.clone())
        };
        let exact = || self.presences.get(&id).cloned();
        now.find_map(Shard::last_presence)
            .or_else(exact)
            .or_else(before)
            .or_else(|| self.presence.clone())
    }

    pub(super) fn tell_operations(&mut self, tell: impl Fn(&Operation)) {
        self.operations.iter().for_each(tell);
        self.operations.retain(|operation| !operation.is_over());
    }

    /// Whether others are to replace the shards, and that can still be given up.
    pub(super) fn has_way_back(&self) -> bool {
        self.reshard
            .as_ref()
            .is_some_and(|reshard| !reshard.is_committed)
    }

    /// Gives the shards up that were to replace others. Returns those that are to close.
    pub(super) fn dismiss(&mut self, failure: Failure) -> Vec<Shard> {
        let Some(reshard) = self.reshard.take() else {
            return Vec::new();
        };
        reshard.operation.finish(Err(failure));
        self.operations.retain(|operation| !operation.is_over());
        self.transition.clear();
        if let Some(outlet) = &self.outlet {
            outlet.stay();
        }
        let mut dismissed = Vec::new();
        for id in reshard.to {
            match self.shards.get_mut(&id) {
                Some(slot) if slot.runs() => {
                    slot.part = Part::Dismissed;
                    dismissed.push(slot.shard.clone());
                }
                _ => self.retire(id),
            }
        }
        dismissed
    }

    /// Ends the stream if no shard runs or will, and one of them cannot be helped from here.
    pub(super) fn end_if_over(&mut self) {
        let is_lost = |shard: &ShardId| match self.shards.get(shard).map(|slot| slot.stage) {
            Some(Stage::Stopped(reason)) => reason.is_fatal() && reason != CloseReason::CircuitOpen,
            _ => false,
        };
        if !self.is_asking
            && self.transition.is_done()
            && !self.shards.values().any(Slot::runs)
            && self.wanted.iter().any(is_lost)
        {
            self.outlet = None;
        }
    }
}

impl Fleet {
    pub(super) fn new(
        config: Arc<Config>,
        gateway: String,
        rest: Rest,
        limiter: Arc<dyn IdentifyLimiter>,
        transition: Transition,
        outlet: Arc<Outlet>,
        events: Events,
    ) -> Arc<Self> {
        let state = State {
            shards: BTreeMap::new(),
            wanted: BTreeSet::new(),
            transition,
            operations: Vec::new(),
            outlet: Some(outlet),
            reshard: None,
            sessions: HashMap::new(),
            identified: BTreeMap::new(),
            presence: None,
            presences: BTreeMap::new(),
            retired: Vec::new(),
            stopping: None,
            store_wanted: 0,
            store_written: 0,
            is_asking: false,
            is_checking: false,
        };
        let (state, changed, panics) = (Mutex::new(state), Condvar::new(), AtomicU64::new(0));
        Arc::new(Self {
            config,
            gateway,
            rest,
            limiter,
            events,
            state,
            changed,
            panics,
            handler: Mutex::default(),
        })
    }

    /// These shards are to run, some with a session.
    pub(super) fn begin(
        &self,
        shards: Vec<ShardId>,
        sessions: Vec<Session>,
        identified: Vec<Identified>,
    ) {
        let mut state = self.state.lock();
        state.wanted = shards.iter().copied().collect();
        state.sessions = sessions
            .into_iter()
            .map(|session| (session.shard, session))
            .collect();
        state.identified = identified
            .into_iter()
            .map(|last| (last.key, last))
            .collect();
        state.transition.open(shards);
    }

    /// The settings of one shard, checked.
    pub(super) fn config_of(&self, shard: ShardId) -> Result<Arc<Config>, Error> {
        self.config.of_shard(shard, &self.gateway)
    }

    pub(super) fn events(&self) -> Events {
        self.events.clone()
    }

    /// Hands events to a handler, by `run`, until there are none any more or it is stopped.
    pub(super) fn run(
        &self,
        count: usize,
        run: impl FnOnce(Workers<'_>) -> io::Result<()>,
    ) -> Result<(), Error> {
        let count = NonZeroUsize::new(count)
            .ok_or_else(|| Error::setting("workers", count, "at least 1"))?;
        let (running, stop) = crossbeam_channel::bounded(0);
        let deadline = {
            let mut handler = self.handler.lock();
            if handler.runs {
                return Err(Error::HandlerRunning);
            }
            (handler.runs, handler.stop) = (true, Some(running));
            Arc::clone(&handler.deadline)
        };
        let report = |panicked| self.report_panic(panicked);
        let workers = Workers {
            events: self.events(),
            count,
            stop,
            deadline,
            report: &report,
        };
        // The handler's panics are caught; what is left is not, and must not leave it running for
        // ever.
        let ran = catch_unwind(AssertUnwindSafe(|| run(workers)));
        {
            let mut handler = self.handler.lock();
            (handler.runs, handler.stop) = (false, None);
        }
        let deadline = self.handler.lock().deadline.get().copied();
        let is_late = deadline.is_some_and(|deadline| Instant::now() >= deadline);
        if is_late && self.stopping() == Some(CloseReason::Requested) {
            let dropped = self.events().discard();
            if dropped > 0 {
                log::warn!(
                    "{dropped} queued events were dropped: no handler had begun them within {:?} of \
                     the close",
                    self.config.timing.handlers_timeout
                );
            }
        }
        ran.unwrap_or_else(|panic| resume_unwind(panic))
            .map_err(|source| Error::Io {
                what: "a thread for a handler",
                source,
            })?;
        self.fatal_stop()
    }

    /// Stops the handler. Returns whether one was running.
    pub(super) fn stop_handler(&self) -> bool {
        self.handler.lock().stop.take().is_some()
    }

    fn report_panic(&self, Panicked { at, message }: Panicked) {
        self.panics.fetch_add(1, Ordering::Relaxed);
        log::error!(
            "shard {}: the handler panicked at {}: {message}",
            at.shard,
            at.name()
        );
        // A handler that panics at this very event would be told of it for ever.
        if at.kind == HANDLER_PANICKED {
            return;
        }
        let (outlet, shard) = {
            let state = self.state.lock();
            (
                state.outlet.clone(),
                state.shards.get(&at.shard).map(|slot| slot.shard.clone()),
            )
        };
        if let Some(outlet) = outlet {
            let (event, sequence) = (
                at.name().to_owned(),
                at.dispatch.map(|(_, sequence)| sequence),
            );
            let kind = EventKind::HandlerPanicked {
                event,
                sequence,
                message,
            };
            // With credit, so that a handler that always panics, and one that is stuck, do not pile
            // them up.
            let lease = shard.map(|shard| shard.hold());
            outlet.tell(Event::new(at.shard, kind).with_lease(lease));
        }
    }

    pub(super) fn handler_panics(&self) -> u64 {
        self.panics.load(Ordering::Relaxed)
    }

    pub(super) fn shard(&self, id: ShardId) -> Option<Shard> {
        let state = self.state.lock();
        let slot = state
            .shards
            .get(&id)
            .filter(|slot| slot.part == Part::Running)?;
        Some(slot.shard.clone())
    }

    pub(super) fn shard_by_guild(&self, guild_id: u64) -> Option<Shard> {
        let state = self.state.lock();
        // After a split the totals differ; still no two shards have the same guild.
        let totals: BTreeSet<u32> = state.wanted.iter().map(|shard| shard.total()).collect();
        let ids = totals
            .into_iter()
            .filter_map(|total| ShardId::for_guild(guild_id, total));
        let slots = ids
            .filter(|id| state.wanted.contains(id))
            .filter_map(|id| state.shards.get(&id));
        slots.map(|slot| slot.shard.clone()).next()
    }

    pub(super) fn shards(&self) -> Vec<Shard> {
        self.state
            .lock()
            .running()
            .map(|(_, slot)| slot.shard.clone())
            .collect()
    }

    /// A shard tells what has changed, on its own thread.
    pub(super) fn handle(self: &Arc<Self>, shard: &Shard, change: Change) {
        let id = shard.id();
        let mut after = After::default();
        {
            let mut state = self.state.lock();
            let Some(slot) = state
                .shards
                .get_mut(&id)
                .filter(|slot| slot.shard.is(shard))
            else {
                // It has been replaced: what becomes of it concerns nobody but those who join its
                // thread.
                return;
            };
            match change {
                Change::GuildsIn => slot.guilds_in = true,
                Change::Stage(stage) => {
                    slot.stage = stage;
                    slot.guilds_in &= stage != Stage::Identifying;
                }
            }
            let was_away = state.transition.is_away(id);
            state.transition.handle(id, change);
            if change == Change::Stage(Stage::Identifying) {
                // A process that starts again within seconds must know.
                let last = Identified::now(id, state.transition.max_concurrency());
                state.identified.insert(last.key, last);
                state.store_wanted += 1;
            }
            if let Change::Stage(stage) = change {
                if let Stage::Stopped(reason) = stage {
                    if was_away && reason.is_fatal() {
                        // What stopped this one may stop the others.
                        let given_up = state.transition.give_up_restarts();
                        let failure = Failure::Stopped { shard: id, reason };
                        state.tell_operations(|operation| operation.give_up(&given_up, failure));
                    }
                    self.handle_stop(&mut state, id, reason, &mut after);
                }
                state.tell_operations(|operation| operation.handle(id, stage));
                state.end_if_over();
            }
        }
        self.changed.notify_all();
        after.carry_out();
    }

    /// What follows from a shard's end.
    pub(super) fn handle_stop(
        self: &Arc<Self>,
        state: &mut State,
        shard: ShardId,
        reason: CloseReason,
        after: &mut After,
    ) {
        let part = state.shards.get(&shard).map(|slot| slot.part);
        if part == Some(Part::Dismissed) {
            state.retire(shard);
        }
        if state.stopping.is_some() {
            return;
        }
        if part == Some(Part::Incoming) {
            log::error!(
                "the reshard is given up, and the old shards go on: shard {shard} stopped: {reason}"
            );
            after.close = state.dismiss(Failure::Stopped { shard, reason });
            return self.handle_stops(state, after);
        }
        if part != Some(Part::Running) || !state.wanted.contains(&shard) {
            return;
        }
        match reason {
            SHARDING_REQUIRED if state.has_way_back() => {
                log::warn!(
                    "shard {shard} holds too many guilds; the reshard that is under way replaces it"
                );
                return;
            }
            SHARDING_REQUIRED if self.split(state, shard, after) => return,
            INVALID_SHARD if self.ask_for_multiple(state, shard) => return,
            _ => {}
        }
        // A wrong token, intent, version or count is wrong for every shard.
        if matches!(reason, CloseReason::Discord(_))
            && state.transition.is_opening_any()
            && state.reshard.is_none()
        {
            log::error!("no more shards are opened: shard {shard} stopped: {reason}");
            state.transition.clear();
            state.tell_operations(|operation| {
                operation.finish(Err(Failure::Stopped { shard, reason }));
            });
        }
    }

    /// What follows from the ends of shards that nothing followed from while they were being
    /// replaced, or were to replace.
    pub(super) fn handle_stops(self: &Arc<Self>, state: &mut State, after: &mut After) {
        let stopped = state.running().filter_map(|(id, slot)| match slot.stage {
            Stage::Stopped(reason) if reason.is_fatal() => Some((*id, reason)),
            _ => None,
        });
        for (id, reason) in stopped.collect::<Vec<_>>() {
            self.handle_stop(state, id, reason, after);
        }
    }

    /// Lets several shards take the place of one that is too full, if the user wants that and it
    /// can be done.
    fn split(&self, state: &mut State, shard: ShardId, after: &mut After) -> bool {
        let into = self.config.auto_split.and_then(|count| shard.split(count));
        let (Some(into), Some(outlet)) = (into, state.outlet.clone()) else {
            return false;
        };
        log::warn!(
            "shard {shard} holds too many guilds: {} take its place",
            list(&into)
        );
        state.retire(shard);
        state.wanted.remove(&shard);
        state.wanted.extend(&into);
        state.transition.open(into.iter().copied());
        state.tell_operations(|operation| operation.replace(shard, &into));
        after
            .tell
            .push((outlet, Event::new(shard, EventKind::Split { into })));
        true
    }

    /// Asks every shard to stop, and opens no more. The first reason counts.
    pub(super) fn stop(&self, reason: CloseReason) {
        let (shards, reason) = {
            let mut state = self.state.lock();
            state.outlet = None;
            let reason = *state.stopping.get_or_insert(reason);
            if state.has_way_back() {
                state.dismiss(Failure::Closed);
            }
            state.tell_operations(|operation| operation.finish(Err(Failure::Closed)));
            let shards = state
                .shards
                .values()
                .map(|slot| (slot.shard.clone(), slot.part));
            (shards.collect::<Vec<_>>(), reason)
        };
        self.changed.notify_all();
        if reason == CloseReason::Suspended {
            // Events that no worker has begun are redelivered to the next process, also those of a
            // handler that starts only now.
            self.handler.lock().deadline.get_or_init(Instant::now);
            self.stop_handler();
        } else {
            let deadline = Instant::now() + self.config.timing.handlers_timeout;
            self.handler.lock().deadline.get_or_init(|| deadline);
        }
        for (shard, part) in shards {
            if reason == CloseReason::Suspended && part == Part::Running {
                shard.suspend();
            } else {
                shard.close();
            }
        }
    }

    /// Why the fleet is stopping, if it is.
    pub(super) fn stopping(&self) -> Option<CloseReason> {
        self.state.lock().stopping
    }

    /// Waits until every shard has stopped, but never for the calling thread, and not for a thread
    /// that is looking a host up: that one ends by itself.
    pub(super) fn join(&self) {
        let own = thread::current().id();
        let mut state = self.state.lock();
        let runs = |slot: &Slot| {
            let is_own = slot
                .thread
                .as_ref()
                .is_some_and(|thread| thread.thread().id() == own);
            !is_own && slot.runs() && !slot.shard.is_resolving()
        };
        while state.shards.values().any(runs) {
            self.changed.wait_for(&mut state, CHECK);
        }
        let stopped = state.shards.values_mut().filter(|slot| !slot.runs());
        let mut threads: Vec<_> = stopped.filter_map(|slot| slot.thread.take()).collect();
        threads.extend(
            state
                .retired
                .drain(..)
                .filter(|(shard, _)| !shard.is_resolving())
                .map(|(_, thread)| thread),
        );
        drop(state);
        threads.into_iter().for_each(join);
    }

    /// Waits until the handlers have finished all that these shards delivered, but no longer than
    /// until `deadline`.
    pub(super) fn wait_handled(
        &self,
        shards: &[Shard],
        deadline: Instant,
        is_over: impl Fn(&State) -> bool,
    ) {
        let mut state = self.state.lock();
        while shards.iter().any(|shard| shard.outstanding().0 > 0)
            && Instant::now() < deadline
            && !is_over(&state)
        {
            self.changed.wait_for(&mut state, CHECK);
        }
    }

    /// As [`wait_handled`](Self::wait_handled), but not for what is queued, which nobody may take.
    pub(super) fn wait_for_handlers(&self, shards: &[Shard], deadline: Instant) {
        let ids: BTreeSet<ShardId> = shards.iter().map(Shard::id).collect();
        let is_held = || {
            // In this order: what is taken meanwhile must count.
            let outstanding: usize = shards.iter().map(|shard| shard.outstanding().0).sum();
            outstanding > self.events.queued(&ids)
        };
        while is_held() && Instant::now() < deadline {
            thread::sleep(CHECK);
        }
    }

    /// The shards whose handlers are waited for when the fleet is suspended: those that have
    /// delivered anything.
    pub(super) fn delivering(&self) -> Vec<Shard> {
        let state = self.state.lock();
        let part = if state.reshard.is_some() {
            Part::Leaving
        } else {
            Part::Running
        };
        state
            .shards
            .values()
            .filter(|slot| slot.part == part)
            .map(|slot| slot.shard.clone())
            .collect()
    }

    /// What the next process needs.
    pub(super) fn saved(&self) -> Saved {
        Saved {
            sessions: self.sessions(),
            identified: self.state.lock().identified.values().cloned().collect(),
        }
    }

    /// The sessions at their low-water marks, of the shards that run and of those that will.
    pub(super) fn sessions(&self) -> Vec<Session> {
        let state = self.state.lock();
        let running = state.running().filter_map(|(_, slot)| slot.shard.session());
        let mut sessions: Vec<Session> = running.chain(state.sessions.values().cloned()).collect();
        sessions.sort_unstable_by_key(|session| session.shard);
        sessions
    }

    /// Blocks until every shard is ready at once, and its guilds are in, if they are asked for.
    pub(super) fn wait_ready(
        &self,
        deadline: Option<Instant>,
        with_guilds: bool,
    ) -> Result<(), Error> {
        let mut state = self.state.lock();
        loop {
            let mut ready = 0;
            for id in &state.wanted {
                let Some(slot) = state.shards.get(id) else {
                    continue;
                };
                if let Stage::Stopped(reason) = slot.stage
                    && !state.is_asking
                {
                    return Err(Error::Stopped { shard: *id, reason });
                }
                ready += usize::from(slot.is_ready(with_guilds));
            }
            if state.stopping.is_some() {
                return Err(Error::Closed);
            }
            if ready == state.wanted.len() {
                return Ok(());
            }
            let Some(deadline) = deadline else {
                self.changed.wait(&mut state);
                continue;
            };
            if self.changed.wait_until(&mut state, deadline).timed_out() {
                return Err(not_ready(&state, ready, with_guilds));
            }
        }
    }

    /// The first shard that has stopped because of something that its owner must mend.
    pub(super) fn fatal_stop(&self) -> Result<(), Error> {
        let state = self.state.lock();
        for shard in &state.wanted {
            if let Some(Stage::Stopped(reason)) = state.shards.get(shard).map(|slot| slot.stage)
                && reason.is_fatal()
            {
                return Err(Error::Stopped {
                    shard: *shard,
                    reason,
                });
            }
        }
        Ok(())
    }
}

/// Why the fleet is not ready, by the first shard that is not.
fn not_ready(state: &State, ready: usize, with_guilds: bool) -> Error {
    let slot = |shard: &ShardId| state.shards.get(shard);
    let is_ready = |shard: &&ShardId| slot(shard).is_some_and(|slot| slot.is_ready(with_guilds));
    let shard = state
        .wanted
        .iter()
        .find(|shard| !is_ready(shard))
        .copied()
        .unwrap_or(ShardId::ONE);
    Error::NotReady {
        ready,
        total: state.wanted.len(),
        shard,
        stage: slot(&shard).map(|slot| slot.stage),
        last_disconnect: slot(&shard).and_then(|slot| slot.shard.status().last_disconnect),
    }
}

impl fmt::Debug for Fleet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fleet")
            .field("wanted", &self.state.lock().wanted.len())
            .finish_non_exhaustive()
    }
}

/// Shards in words.
pub(super) fn list(shards: &[ShardId]) -> String {
    match shards {
        [first, .., last] if shards.len() > 8 => {
            format!("{} shards from {first} to {last}", shards.len())
        }
        _ => shards
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
            .join(", "),
    }
}

/// Waits for a thread's end, unless it is the one that asks.
pub(super) fn join(thread: JoinHandle<()>) {
    if thread.thread().id() != thread::current().id() {
        // The threads of a manager catch their own panics, or have nothing that panics.
        let _ = thread.join();
    }
}
