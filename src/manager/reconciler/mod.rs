//! Makes every decision of the manager: which shards run, which should run, and what to do next.
//!
//! The [reconciler](Reconciler) receives what happens as [`Input`]. It holds no thread, socket,
//! lock or clock, and writes no log. [`poll`](Reconciler::poll) returns its decisions in order, and
//! the [supervisor](super::supervisor) carries them out.
#![deny(clippy::disallowed_methods)]

mod known;
mod look_up;
mod note;
mod open;
mod operations;
mod request;
mod reshard;
mod stop;
mod transition;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::mem;
use std::num::NonZeroU32;
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use self::known::Known;
pub(super) use self::look_up::Readiness;
pub(super) use self::note::Note;
use self::open::{Opening, SHORTAGE_PAUSE};
pub(super) use self::operations::{Failure, OperationId};
use self::operations::{Goal, Operations};
use self::reshard::Reshard;
use self::transition::{PROGRESS_CHECK, Step, Transition};
use super::count::{Answer, Question};
use crate::config::AutoReshard;
use crate::error::Error;
use crate::event::EventKind;
use crate::protocol::{Session, ShardState, StopReason};
use crate::shard::{Change, Run};
use crate::shard_id::ShardId;
use crate::timing::Timing;

/// The settings of the reconciler.
#[derive(Debug)]
pub(super) struct Settings {
    pub(super) max_concurrency: NonZeroU32,
    pub(super) timing: Timing,
    pub(super) auto_split: Option<u32>,
    pub(super) auto_reshard: Option<AutoReshard>,
    /// The total number of shards, if the user has set it.
    pub(super) explicit_total: Option<u32>,
    /// Whether sessions are stored.
    pub(super) has_store: bool,
}

/// A user's request.
#[derive(Debug)]
pub(super) enum Request {
    Open(ShardId, Option<Session>),
    Close(ShardId),
    Suspend(ShardId),
    Restart(ShardId),
    RestartAll {
        max_unavailable: usize,
    },
    Reshard {
        to: Vec<ShardId>,
        /// What Discord says now.
        max_concurrency: Option<NonZeroU32>,
    },
}

/// An event that the reconciler must know of.
#[derive(Debug)]
pub(super) enum Input {
    /// A shard's thread exists, and will start once this has been handled.
    Opened(Run),
    /// A shard could not be opened or restarted.
    Failed(Run, Why),
    /// A shard has received the request to restart.
    Restarts(Run),
    /// Something has changed at a shard.
    Changed(Run, Change),
    /// A shard that was requested to stop is resolving a host name.
    Abandoned(Run),
    /// The session store holds everything that this [`Output::Store`] requested.
    Stored(u64),
    /// Discord's answer about the number of shards; `None` if the query failed.
    Gateway(Question, Option<Answer>),
    /// The manager is closed or suspended.
    Stop(StopReason),
}

/// Why a shard could not be opened or restarted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Why {
    /// The operating system has no thread or descriptor left.
    Shortage,
    /// Its settings are invalid.
    Settings,
    /// It had stopped before it could restart.
    Stopped,
}

/// Which set of shards one belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Set {
    Active,
    /// The set that will replace the active one.
    Incoming,
}

/// The next thing to do.
#[derive(Debug)]
pub(super) enum Output {
    /// Start a shard's thread. Without a session, it continues where `previous` has stopped.
    Open {
        run: Run,
        previous: Option<Run>,
        session: Option<Session>,
        set: Set,
    },
    /// Have a shard reconnect.
    Restart(Run),
    /// End a shard's session, and stop it.
    Close(Run),
    /// Stop a shard so that its session can be resumed.
    Suspend(Run),
    /// Have a shard drop its connection: another process has taken its session over.
    Leave(Run),
    /// Have a shard find out how far it has read.
    Probe(Run),
    /// Forget a run that is no longer needed.
    Retire(Run),
    /// Query Discord for the number of shards, and report the answer as [`Input::Gateway`].
    AskGateway(Question),
    /// Write the session store, and report when it holds the current state, as [`Input::Stored`].
    Store(u64),
    /// Hold the events of a new set from now on, and compare them with those of the old set.
    Replace {
        old: Vec<ShardId>,
        new: Vec<ShardId>,
    },
    /// Discard the new set: it is not needed after all.
    Abandon,
    /// The old set is about to close, and its commands are for the new one.
    Commit { from: Vec<Run>, to: Vec<Run> },
    /// The old set has stopped: deliver what the new one holds, and pass its commands on.
    HandOver { from: Vec<Run>, to: Vec<ShardId> },
    /// Put an event into the stream.
    Emit(ShardId, EventKind),
    /// A request has ended.
    Finish(OperationId, Result<(), Failure>),
    /// End the stream: no event follows except those of shards that run.
    EndStream,
    /// Write a line into the log.
    Log(Note),
    /// Wait until that instant, or until something happens.
    Wait(Option<Instant>),
    /// Stop: nothing runs, or will.
    End,
}

/// What only the shards know. Called under the manager's lock, so it must not call user code.
pub(super) trait Facts {
    /// Whether a shard, also one that has stopped, has a session that can be resumed.
    fn has_session(&self, run: Run) -> bool;

    /// Whether a shard has read all that was sent to any session before an instant, or never will.
    fn has_read(&self, run: Run, up_to: Instant) -> bool;

    /// Why a shard has stopped, if it has. Users see that before its thread has ended, and so before
    /// the reconciler knows.
    fn stopped(&self, run: Run) -> Option<StopReason>;

    /// How many events a shard has delivered.
    fn delivered(&self, run: Run) -> u64;

    /// Whether the first `count` events that a shard delivered have been handled.
    fn has_handled(&self, run: Run, count: u64) -> bool;

    /// Whether all events that a shard delivered have been handled.
    fn is_all_handled(&self, run: Run) -> bool;

    /// Whether an event would be delivered twice if the new set took over now.
    fn is_in_doubt(&self) -> bool;
}

/// The newest run of a shard.
#[derive(Debug)]
pub(super) struct Slot {
    pub(super) run: Run,
    pub(super) stage: ShardState,
    pub(super) guilds_ready: bool,
    pub(super) role: Role,
    ending: Ending,
    restart: Restart,
}

/// Whether a requested restart has not reached the shard. If it stops then, it is opened again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Restart {
    No,
    Requested,
    /// The shard has received the request, but will stop before it can restart.
    Missed,
}

/// Whether a shard was requested to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    No,
    Asked,
    /// It was, while it resolved a host name, which cannot be interrupted. It will not connect any
    /// more, and no request waits for it.
    Abandoned,
}

/// What a shard is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// It should run.
    Active,
    /// It will replace others.
    Incoming,
    /// Others are about to take over from it.
    Outgoing,
    /// It is not needed any more, and is closing.
    Discarded,
}

/// The decisions of a manager.
#[derive(Debug)]
pub(super) struct Reconciler {
    settings: Settings,
    slots: BTreeMap<ShardId, Slot>,
    opening: BTreeMap<ShardId, Opening>,
    /// The shards that should run; during a reshard, the old set.
    wanted: BTreeSet<ShardId>,
    transition: Transition,
    operations: Operations,
    reshard: Option<Reshard>,
    /// The sessions of shards that will open.
    sessions: HashMap<ShardId, Session>,
    outputs: VecDeque<Output>,
    stopping: Option<StopReason>,
    stream_ended: bool,
    /// The number of requested writes of the store, and the last one that it holds.
    stores: u64,
    stored: u64,
    /// Discord is being queried for a number of shards that it accepts; until then nothing runs.
    is_asking: bool,
    /// Discord is being queried to see whether the shards are too full.
    is_checking: bool,
    next_check: Option<Instant>,
    /// When shards that lag may be probed again for how far they have read.
    next_probe: Option<Instant>,
    shortage_pause: Duration,
    runs: u64,
    reshards: u64,
}

impl Slot {
    pub(super) fn runs(&self) -> bool {
        !matches!(self.stage, ShardState::Stopped(_))
    }

    /// Whether the run reports nothing more, even if its thread has not ended.
    fn is_over(&self) -> bool {
        !self.runs() || self.ending == Ending::Abandoned
    }

    fn is_ready(&self, with_guilds: bool) -> bool {
        self.stage == ShardState::Ready && (self.guilds_ready || !with_guilds)
    }
}

impl Reconciler {
    /// Begins with the shards that should run, some with a session.
    pub(super) fn new(
        now: Instant,
        settings: Settings,
        shards: Vec<ShardId>,
        sessions: Vec<Session>,
    ) -> Self {
        let sessions = sessions.into_iter();
        let sessions = sessions.map(|session| (session.shard, session)).collect();
        let next_check = settings.auto_reshard.map(|auto| now + auto.check_every);
        let mut reconciler = Self {
            transition: Transition::new(settings.max_concurrency),
            settings,
            slots: BTreeMap::new(),
            opening: BTreeMap::new(),
            wanted: shards.iter().copied().collect(),
            operations: Operations::default(),
            reshard: None,
            sessions,
            outputs: VecDeque::new(),
            stopping: None,
            stream_ended: false,
            stores: 0,
            stored: 0,
            is_asking: false,
            is_checking: false,
            next_check,
            next_probe: None,
            shortage_pause: SHORTAGE_PAUSE,
            runs: 0,
            reshards: 0,
        };

        for shard in shards {
            reconciler.plan_to_open(shard);
        }
        reconciler
    }

    /// Begins a user's request, if that is possible now.
    pub(super) fn ask(
        &mut self,
        now: Instant,
        facts: &impl Facts,
        request: Request,
    ) -> Result<OperationId, Error> {
        self.check_running()?;
        match request {
            Request::Open(shard, session) => self.open(facts, shard, session),
            Request::Close(shard) => self.close(shard, false),
            Request::Suspend(shard) => self.close(shard, true),
            Request::Restart(shard) => self.restart([shard], 1),
            Request::RestartAll { max_unavailable } => {
                self.restart(self.wanted.clone(), max_unavailable)
            }
            Request::Reshard {
                to,
                max_concurrency,
            } => self.reshard(now, to, max_concurrency),
        }
    }

    fn check_running(&self) -> Result<(), Error> {
        if self.stopping.is_some() || self.stream_ended {
            return Err(Error::Closed);
        }
        Ok(())
    }

    /// Handles an input.
    pub(super) fn handle(&mut self, now: Instant, input: Input) {
        match input {
            Input::Opened(run) => self.handle_opened(run),
            Input::Failed(run, why) => self.handle_failure(now, run, why),
            Input::Restarts(run) => self.handle_restarts(run),
            Input::Changed(run, change) => self.handle_change(run, change),
            Input::Abandoned(run) => self.abandon(run),
            Input::Stored(store) => self.stored = self.stored.max(store),
            Input::Gateway(question, answer) => self.handle_answer(now, question, answer),
            Input::Stop(reason) => self.stop(reason),
        }
    }

    /// Returns what to do next.
    pub(super) fn poll(&mut self, now: Instant, facts: &impl Facts) -> Output {
        if let Some(output) = self.next_output() {
            return output;
        }
        if self.stopping.is_some() {
            let is_over = self.opening.is_empty() && self.slots.values().all(Slot::is_over);
            return match is_over {
                false => Output::Wait(None),
                true if !mem::replace(&mut self.stream_ended, true) => Output::EndStream,
                true => Output::End,
            };
        }

        // Only after everything else: an earlier request keeps the stream open.
        self.end_if_over();
        self.check_timers(now);
        loop {
            let step = self.follow_transition(now, facts);
            if let Some(output) = self.next_output() {
                return output;
            }
            if let ControlFlow::Break(until) = step {
                let timers = [until, self.next_check, self.reshard_deadline()];
                return Output::Wait(timers.into_iter().flatten().min());
            }
        }
    }

    fn next_output(&mut self) -> Option<Output> {
        self.outputs.pop_front().or_else(|| {
            let (id, outcome) = self.operations.next_finished()?;
            Some(Output::Finish(id, outcome))
        })
    }

    fn check_timers(&mut self, now: Instant) {
        if let (Some(auto), Some(at)) = (self.settings.auto_reshard, self.next_check)
            && now >= at
        {
            self.next_check = Some(now + auto.check_every);
            if !self.is_asking && !self.is_checking && !self.stream_ended {
                self.is_checking = true;
                self.outputs
                    .push_back(Output::AskGateway(Question::Fullness));
            }
        }
        if self.reshard_deadline().is_some_and(|at| now >= at) {
            self.give_up_reshard(Failure::ReshardTimeout);
        }
    }

    /// Takes the transition's next step. If there is none now, breaks with when to look again.
    fn follow_transition(
        &mut self,
        now: Instant,
        facts: &impl Facts,
    ) -> ControlFlow<Option<Instant>> {
        if let Some(until) = self.waits_for_store(now) {
            return ControlFlow::Break(Some(until));
        }

        let known = Known {
            slots: &self.slots,
            opening: &self.opening,
            reshard: self.reshard.as_ref(),
            sessions: &self.sessions,
            facts,
            skew: self.settings.timing.session_skew,
            now,
            behind: RefCell::default(),
        };
        let step = self.transition.poll(now, &known);
        let behind = known.behind.into_inner();

        if !behind.is_empty() && self.next_probe.is_none_or(|at| now >= at) {
            self.next_probe = Some(now + PROGRESS_CHECK);
            self.outputs.extend(behind.into_iter().map(Output::Probe));
        }

        match step {
            Step::Open(shard) => self.begin_to_open(shard),
            Step::Restart(shard) => match self.slots.get(&shard).filter(|slot| !slot.is_over()) {
                Some(slot) => self.outputs.push_back(Output::Restart(slot.run)),
                None => self.open_again(shard),
            },
            Step::Commit => self.commit(now),
            Step::Close(shard) => self.ask_to_stop(shard, Output::Close),
            Step::HandOver => {
                if let Some(until) = self.hand_over(now, facts) {
                    return ControlFlow::Break(Some(until));
                }
            }
            Step::Wait(until) => return ControlFlow::Break(until),
        }
        ControlFlow::Continue(())
    }

    fn handle_change(&mut self, run: Run, change: Change) {
        let shard = run.shard;
        let Some(slot) = self.slots.get_mut(&shard).filter(|slot| slot.run == run) else {
            // The run has been replaced; only the end of its thread matters, for joining it.
            return;
        };

        if slot.ending == Ending::Abandoned {
            if let Change::ShardState(stage @ ShardState::Stopped(_)) = change {
                slot.stage = stage;
            }
            return;
        }

        match change {
            Change::GuildsReady => slot.guilds_ready = true,
            Change::Stalled(_) => {}
            Change::MissedRestart => slot.restart = Restart::Missed,
            Change::ShardState(stage) => {
                slot.stage = stage;
                slot.guilds_ready &= stage != ShardState::Identifying;
            }
        }

        let opens_again = slot.restart != Restart::No
            && slot.ending == Ending::No
            && self.wanted.contains(&shard);
        let was_away = self.transition.is_away(shard);
        self.transition.handle(shard, change);

        match change {
            Change::ShardState(ShardState::Stopped(_)) if opens_again => self.open_again(shard),
            Change::ShardState(ShardState::Stopped(reason)) => {
                self.handle_stop(shard, reason, was_away);
                self.store();
            }
            Change::ShardState(stage) => {
                self.operations.handle(shard, stage);
                // If the process restarts within seconds, the next one must know of an IDENTIFY; if
                // it is killed, the next one must know of the session.
                if matches!(stage, ShardState::Identifying | ShardState::Ready) {
                    self.store();
                }
            }
            _ => {}
        }
    }

    fn handle_restarts(&mut self, run: Run) {
        if let Some(slot) = self.slots.get_mut(&run.shard)
            && slot.run == run
            && slot.restart == Restart::Requested
        {
            slot.restart = Restart::No;
        }
    }

    /// Forgets requested restarts that will not happen.
    fn forget_restarts(&mut self, shards: &[ShardId]) {
        for shard in shards {
            if let Some(slot) = self.slots.get_mut(shard) {
                slot.restart = Restart::No;
            }
        }
    }

    fn ask_to_stop(&mut self, shard: ShardId, how: fn(Run) -> Output) {
        let Some(slot) = self.slots.get_mut(&shard).filter(|slot| !slot.is_over()) else {
            return;
        };
        slot.ending = Ending::Asked;
        self.outputs.push_back(how(slot.run));
    }

    /// Stops waiting for a stopping shard that resolves a host name: that may take long, and the
    /// shard reports nothing more.
    fn abandon(&mut self, run: Run) {
        let shard = run.shard;
        let slot = self.slots.get_mut(&shard);
        // One that was opened again meanwhile has stopped already, and ends by itself.
        let is_asked = |slot: &&mut Slot| slot.run == run && slot.ending == Ending::Asked;
        let Some(slot) = slot.filter(is_asked).filter(|slot| !slot.is_over()) else {
            return;
        };
        slot.ending = Ending::Abandoned;
        self.transition.handle_stop(shard);
        let stopped = ShardState::Stopped(StopReason::Closed);
        self.operations.handle(shard, stopped);
        let role = self.slots.get(&shard).map(|slot| slot.role);
        if role == Some(Role::Discarded) {
            self.retire(shard);
        }
    }

    /// Retires a run that has stopped, or will as soon as it can, so that another can open.
    fn retire(&mut self, shard: ShardId) {
        if let Some(slot) = self.slots.remove(&shard) {
            self.outputs.push_back(Output::Retire(slot.run));
        }
    }

    /// Requests a write of the session store. Returns the number of the request.
    fn store(&mut self) -> u64 {
        self.stores += 1;
        if self.settings.has_store {
            self.outputs.push_back(Output::Store(self.stores));
        }
        self.stores
    }
}

#[cfg(test)]
mod tests;
