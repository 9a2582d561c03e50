//! Histories: opens, closes, restarts, splits, reshards and stops, in any order, beside shards that
//! fail in any way.

#![allow(
    clippy::disallowed_methods,
    reason = "made-up instants count from some real one"
)]

use std::mem;
use std::panic::catch_unwind;
use std::sync::atomic::{AtomicU64, Ordering};

use fastrand::Rng;

use super::*;
use crate::environment;
use crate::protocol::CloseCode;

/// The number of histories, each with its own seed.
const HISTORIES: u64 = 100_000;

/// The number of actions in each history before nothing new happens.
const EVENTS: usize = 60;

/// After this number of steps without an end, the history hangs.
const MAX_STEPS: usize = 20_000;

/// A shard as the reconciler sees it.
#[expect(
    clippy::struct_excessive_bools,
    reason = "what has happened to it, in any combination"
)]
#[derive(Debug)]
struct Fake {
    stage: ShardState,
    /// Which set it belongs to.
    set: u64,
    began_with_session: bool,
    /// It has begun to identify or to resume.
    has_begun: bool,
    has_session: bool,
    is_resolving: bool,
    /// It was requested to stop while it resolved a host name.
    is_abandoned: bool,
    is_stalled: bool,
    /// It was requested to stop.
    stop: Option<StopReason>,
    /// Users see that it has stopped, but its thread has not ended.
    ending: Option<StopReason>,
    restarts: bool,
    has_read: Option<Instant>,
    is_probed: bool,
    delivered: u64,
    handled: u64,
}

impl Fake {
    fn runs(&self) -> bool {
        !matches!(self.stage, ShardState::Stopped(_))
    }

    /// Whether it may still receive events.
    fn is_live(&self) -> bool {
        self.runs() && !self.is_abandoned
    }
}

/// The facts that the reconciler queries from the shards.
#[derive(Debug, Default)]
struct Shards {
    by_run: BTreeMap<Run, Fake>,
    is_in_doubt: bool,
}

/// A manager without threads, and what it must have done.
struct World {
    random: Rng,
    now: Instant,
    reconciler: Reconciler,
    shards: Shards,
    /// A shard whose thread is being started.
    opening: Option<(Run, Fake)>,
    /// The number of the active set, that of the incoming one, and the last one given.
    active: u64,
    incoming: Option<u64>,
    sets: u64,
    /// Shards that may only be closed.
    outgoing: BTreeSet<Run>,
    asked: BTreeSet<OperationId>,
    finished: BTreeSet<OperationId>,
    questions: Vec<Question>,
    store: Option<u64>,
    stream_ended: bool,
    is_calm: bool,
    /// Whether what happens is printed.
    is_told: bool,
}

impl Facts for Shards {
    fn has_session(&self, run: Run) -> bool {
        self.by_run[&run].has_session
    }

    fn has_read(&self, run: Run, up_to: Instant) -> bool {
        let fake = &self.by_run[&run];
        !fake.has_session || fake.has_read.is_some_and(|at| at >= up_to)
    }

    fn stopped(&self, run: Run) -> Option<StopReason> {
        let fake = &self.by_run[&run];
        match fake.stage {
            ShardState::Stopped(reason) => Some(reason),
            _ => fake.ending,
        }
    }

    fn delivered(&self, run: Run) -> u64 {
        self.by_run[&run].delivered
    }

    fn has_handled(&self, run: Run, count: u64) -> bool {
        self.by_run[&run].handled >= count
    }

    fn is_all_handled(&self, run: Run) -> bool {
        let fake = &self.by_run[&run];
        fake.handled == fake.delivered
    }

    fn is_in_doubt(&self) -> bool {
        self.is_in_doubt
    }
}

const LIMIT: u32 = 2;

fn settings(random: &mut Rng) -> Settings {
    let mut timing = Timing::default();
    if random.bool() {
        timing.handlers_timeout = Duration::ZERO;
    }
    Settings {
        max_concurrency: NonZeroU32::new(LIMIT).unwrap(),
        timing,
        auto_split: random.bool().then_some(2),
        auto_reshard: random.bool().then(AutoReshard::default),
        explicit_total: random.bool().then_some(4),
        has_store: random.bool(),
    }
}

fn all(total: u32) -> Vec<ShardId> {
    let ids = (0..total).map(|number| ShardId::new(number, total).unwrap());
    ids.collect()
}

fn session(shard: ShardId) -> Session {
    Session::new("a".into(), 1, String::new(), shard, 1)
}

impl World {
    fn new(seed: u64) -> Self {
        let mut random = Rng::with_seed(seed);
        let now = Instant::now();
        let settings = settings(&mut random);
        let mut sessions: Vec<Session> = all(4).into_iter().map(session).collect();
        sessions.retain(|_| random.bool());
        let reconciler = Reconciler::new(now, settings, all(4), sessions);
        Self {
            random,
            now,
            reconciler,
            shards: Shards::default(),
            opening: None,
            active: 0,
            incoming: None,
            sets: 0,
            outgoing: BTreeSet::new(),
            asked: BTreeSet::new(),
            finished: BTreeSet::new(),
            questions: Vec::new(),
            store: None,
            stream_ended: false,
            is_calm: false,
            is_told: false,
        }
    }

    fn handle(&mut self, input: Input) {
        if self.is_told {
            println!("{input:?}");
        }
        self.reconciler.handle(self.now, input);
        self.check();
    }

    fn poll(&mut self) -> Output {
        self.reconciler.poll(self.now, &self.shards)
    }

    /// Checks what must hold at every moment.
    fn check(&self) {
        let live = || {
            let shards = self.shards.by_run.iter().filter(|(_, fake)| fake.is_live());
            shards.chain(self.opening.iter().map(|(run, fake)| (run, fake)))
        };
        for (run, fake) in live() {
            let mut others = live().filter(|(other, _)| *other != run);
            let twin = others
                .find(|(other, twin)| twin.set == fake.set && other.shard.overlaps(run.shard));
            assert!(twin.is_none(), "{run:?} runs beside {twin:?}");
        }
        let ahead = live().filter(|(_, fake)| !fake.began_with_session && !fake.has_begun);
        assert!(
            ahead.count() <= 2 * LIMIT as usize,
            "too many are under way"
        );
    }

    /// Carries out the reconciler's outputs until it waits. Returns until when it waits.
    fn settle(&mut self) -> Option<Output> {
        for _ in 0..MAX_STEPS {
            match self.poll() {
                Output::Wait(until) => return Some(Output::Wait(until)),
                Output::End => return None,
                output => self.carry_out(output),
            }
            if self.opening.is_some() && !self.is_calm && self.random.u8(..) < 60 {
                // Something happens while the thread is being started.
                return Some(Output::Wait(Some(self.now)));
            }
            self.finish_opening();
        }
        panic!("it never waits");
    }

    fn carry_out(&mut self, output: Output) {
        if self.is_told {
            println!("    {output:?}");
        }

        let is_old = |run: &Run| self.outgoing.contains(run);
        match output {
            Output::Open {
                run,
                previous,
                session,
                set,
            } => {
                assert!(!self.stream_ended, "{run:?} opens after the end");
                self.finish_opening();
                let previous = previous.map(|previous| &self.shards.by_run[&previous]);
                assert!(previous.is_none_or(|previous| !previous.is_live()));
                let goes_on = previous.is_some_and(|previous| previous.has_session);
                let set = match set {
                    Set::Active => self.active,
                    Set::Incoming => self.incoming.unwrap_or(u64::MAX),
                };
                let fake = Fake {
                    stage: ShardState::Waiting,
                    set,
                    began_with_session: session.is_some() || goes_on,
                    has_begun: false,
                    has_session: session.is_some() || goes_on,
                    is_resolving: false,
                    is_abandoned: false,
                    is_stalled: false,
                    stop: None,
                    ending: None,
                    restarts: false,
                    has_read: None,
                    is_probed: false,
                    delivered: 0,
                    handled: 0,
                };
                self.opening = Some((run, fake));
                self.check();
            }
            Output::Restart(run) => {
                assert!(!is_old(&run), "{run:?} restarts, which is to close");
                match self.shards.by_run.get_mut(&run) {
                    Some(fake) if fake.runs() && fake.stop.or(fake.ending).is_none() => {
                        fake.restarts = true;
                        self.handle(Input::Restarts(run));
                    }
                    _ => self.handle(Input::Failed(run, Why::Stopped)),
                }
            }
            Output::Close(run) => self.ask_to_stop(run, StopReason::Closed),
            Output::Leave(run) => self.ask_to_stop(run, StopReason::OwnershipLost),
            Output::Suspend(run) => {
                assert!(!is_old(&run), "{run:?} is suspended, which is to close");
                self.ask_to_stop(run, StopReason::Suspended);
            }
            Output::Probe(run) => {
                assert!(!is_old(&run), "{run:?} is asked, which is to close");
                self.shards.by_run.get_mut(&run).unwrap().is_probed = true;
            }
            Output::Retire(run) => {
                let fake = self.shards.by_run.remove(&run).expect("the run exists");
                assert!(!fake.is_live(), "{run:?} is forgotten while it runs");
                self.outgoing.remove(&run);
            }
            Output::AskGateway(question) => self.questions.push(question),
            Output::Store(store) => self.store = Some(store),
            Output::Replace { .. } => {
                assert_eq!(self.incoming, None);
                self.sets += 1;
                self.incoming = Some(self.sets);
            }
            Output::Abandon => {
                assert!(self.incoming.take().is_some());
                assert!(self.outgoing.is_empty(), "there is no way back");
            }
            Output::Commit { from, to } => {
                self.active = self.incoming.take().expect("there is a new set");
                assert!(
                    to.iter()
                        .all(|run| self.shards.by_run[run].set == self.active)
                );
                self.outgoing = from.into_iter().collect();
            }
            Output::HandOver { from, .. } => {
                assert!(!self.stream_ended, "the stream has ended");
                assert!(from.iter().all(|run| !self.shards.by_run[run].is_live()));
            }
            Output::Emit(..) => assert!(!self.stream_ended, "the stream has ended"),
            Output::Finish(id, _) => {
                assert!(self.asked.contains(&id), "{id:?} was not requested");
                assert!(self.finished.insert(id), "{id:?} is finished twice");
            }
            Output::EndStream => assert!(!mem::replace(&mut self.stream_ended, true)),
            Output::Log(note) => assert!(!note.to_string().is_empty()),
            Output::Wait(_) | Output::End => unreachable!("those are the caller's"),
        }
    }

    fn ask_to_stop(&mut self, run: Run, reason: StopReason) {
        let fake = self.shards.by_run.get_mut(&run).expect("the run exists");
        fake.stop.get_or_insert(reason);
        fake.is_abandoned |= fake.is_resolving;
        if fake.is_abandoned {
            self.handle(Input::Abandoned(run));
        }
    }

    fn finish_opening(&mut self) {
        let Some((run, fake)) = self.opening.take() else {
            return;
        };
        let why = match self.random.u8(..) {
            _ if self.is_calm => None,
            0..10 => Some(Why::Shortage),
            10..15 => Some(Why::Settings),
            _ => None,
        };
        match why {
            // Its reshard was cancelled meanwhile, or the manager stops.
            None if self.reconciler.stopping().is_some() || fake.set == u64::MAX => {
                self.handle(Input::Failed(run, Why::Stopped));
            }
            Some(why) => self.handle(Input::Failed(run, why)),
            None => {
                self.shards.by_run.insert(run, fake);
                self.handle(Input::Opened(run));
            }
        }
    }

    fn ask(&mut self, request: Request) {
        if self.is_told {
            println!("{request:?}");
        }
        if let Ok(id) = self.reconciler.ask(self.now, &self.shards, request) {
            assert!(self.asked.insert(id));
        }
        self.check();
    }

    fn random_shard(&mut self) -> ShardId {
        let total = [4, 4, 4, 8, 3][self.random.usize(..5)];
        ShardId::new(self.random.u32(..total), total).unwrap()
    }

    /// A user, the network, Discord or a handler does something.
    fn happen(&mut self) {
        match self.random.u8(..100) {
            0..4 => {
                let shard = self.random_shard();
                let session = self.random.bool().then(|| session(shard));
                self.ask(Request::Open(shard, session));
            }
            4..7 => {
                let shard = self.random_shard();
                self.ask(Request::Close(shard));
            }
            7..10 => {
                let shard = self.random_shard();
                self.ask(Request::Suspend(shard));
            }
            10..14 => {
                let shard = self.random_shard();
                self.ask(Request::Restart(shard));
            }
            14..16 => self.ask(Request::RestartAll { max_unavailable: 2 }),
            16..22 => {
                let total = [2, 3, 5, 8][self.random.usize(..4)];
                self.ask(Request::Reshard {
                    to: all(total),
                    max_concurrency: None,
                });
            }
            22..23 => {
                self.reconciler.cancel_reshard();
            }
            23..30 => self.answer(),
            30..35 => self.shards.is_in_doubt = self.random.bool(),
            35..40 => {
                if let Some(store) = self.store.take() {
                    self.handle(Input::Stored(store));
                }
            }
            40..42 => self.speak_of_the_past(),
            42..60 => self.now += Duration::from_millis(self.random.u64(..20_000)),
            _ => {
                let runs: Vec<Run> = self.shards.by_run.keys().copied().collect();
                if let Some(run) = self.random.choice(runs) {
                    self.advance(run);
                }
            }
        }
    }

    fn answer(&mut self) {
        let Some(question) = self.questions.pop() else {
            return;
        };
        let recommended = [4, 6][self.random.usize(..2)];
        let answer = Answer {
            shards: all(recommended),
            recommended,
            remaining: self.random.u32(..20),
            total: 1000,
            max_concurrency: NonZeroU32::new(LIMIT).unwrap(),
            fullest: self.random.usize(..3000),
        };

        let answer = Some(answer).filter(|_| self.is_calm || self.random.bool());
        // An automatic reshard is an operation that no user waits for.
        let before = self.reconciler.operations.last();
        self.handle(Input::Gateway(question, answer));
        let after = self.reconciler.operations.last();
        self.asked.extend((after != before).then_some(after));
    }

    /// Sends inputs of runs that are over, which must change nothing.
    fn speak_of_the_past(&mut self) {
        let run = Run {
            shard: self.random_shard(),
            number: self.random.u64(..5),
        };
        if self.shards.by_run.contains_key(&run)
            || self.opening.as_ref().is_some_and(|(o, _)| *o == run)
        {
            return;
        }
        let before = format!("{:?}", self.reconciler);

        for input in [
            Input::Changed(run, Change::ShardState(ShardState::Ready)),
            Input::Changed(
                run,
                Change::ShardState(ShardState::Stopped(StopReason::Closed)),
            ),
            Input::Changed(run, Change::MissedRestart),
            Input::Failed(run, Why::Settings),
            Input::Restarts(run),
            Input::Abandoned(run),
            Input::Opened(run),
        ] {
            self.handle(input);
        }
        assert_eq!(before, format!("{:?}", self.reconciler));
    }

    fn change(&mut self, run: Run, stage: ShardState) {
        let fake = self.shards.by_run.get_mut(&run).unwrap();
        fake.stage = stage;
        fake.has_begun |= matches!(stage, ShardState::Identifying | ShardState::Resuming);
        self.handle(Input::Changed(run, Change::ShardState(stage)));
    }

    fn stop(&mut self, run: Run, reason: StopReason) {
        let fake = self.shards.by_run.get_mut(&run).unwrap();
        fake.has_session &= matches!(reason, StopReason::Suspended | StopReason::Panicked);
        fake.is_resolving = false;
        if mem::take(&mut fake.restarts) {
            self.handle(Input::Changed(run, Change::MissedRestart));
        }
        self.change(run, ShardState::Stopped(reason));
    }

    /// Lets a shard make progress, or fail.
    fn advance(&mut self, run: Run) {
        let fake = self.shards.by_run.get_mut(&run).unwrap();
        if !fake.runs() {
            fake.handled = fake.delivered;
            return;
        }

        if let Some(reason) = fake.ending {
            return self.stop(run, reason);
        }

        if fake.is_resolving {
            fake.is_resolving = false;
            return;
        }

        if let Some(reason) = fake.stop {
            return self.begin_to_end(run, reason);
        }

        if mem::take(&mut fake.restarts) {
            return self.change(run, ShardState::Connecting);
        }

        if !self.is_calm && self.random.u8(..) < 30 {
            return self.fail(run);
        }

        let fake = self.shards.by_run.get_mut(&run).unwrap();
        match fake.stage {
            ShardState::Waiting => {
                fake.is_resolving = true;
                self.change(run, ShardState::Connecting);
            }
            ShardState::Connecting => self.change(run, ShardState::AwaitingHello),
            ShardState::AwaitingHello if fake.has_session => self.change(run, ShardState::Resuming),
            ShardState::AwaitingHello => self.change(run, ShardState::Queued),
            ShardState::Queued => self.change(run, ShardState::Identifying),
            ShardState::Resuming if !self.is_calm && self.random.bool() => {
                fake.is_stalled = !fake.is_stalled;
                let change = Change::Stalled(fake.is_stalled);
                self.handle(Input::Changed(run, change));
            }
            ShardState::Identifying | ShardState::Resuming => {
                fake.has_session = true;
                self.change(run, ShardState::Ready);
                self.handle(Input::Changed(run, Change::GuildsReady));
            }
            _ => {
                fake.delivered += u64::from(!self.is_calm);
                if self.is_calm || self.random.bool() {
                    fake.handled = fake.delivered;
                }
                if fake.is_probed || self.is_calm {
                    fake.has_read = Some(self.now);
                }
            }
        }
    }

    fn fail(&mut self, run: Run) {
        let codes = [4004, 4010, 4011, 4014];
        let reason = match self.random.u8(..20) {
            0 => StopReason::Discord(CloseCode(codes[self.random.usize(..4)])),
            1 => StopReason::Panicked,
            2 => StopReason::CircuitOpen,
            // By the user, who has the shard.
            3 => StopReason::Suspended,
            4 => StopReason::Closed,
            _ => {
                let fake = self.shards.by_run.get_mut(&run).unwrap();
                fake.has_session &= self.random.bool();
                return self.change(run, ShardState::Waiting);
            }
        };
        self.begin_to_end(run, reason);
    }

    /// Stops a shard, at once or in two steps.
    fn begin_to_end(&mut self, run: Run, reason: StopReason) {
        let fake = self.shards.by_run.get_mut(&run).unwrap();
        fake.ending = Some(reason);
        fake.is_resolving = false;
        if self.random.bool() {
            self.stop(run, reason);
        }
    }

    /// Lets nothing fail any more, so that everything in progress ends.
    fn come_to_rest(&mut self) {
        self.is_calm = true;
        self.shards.is_in_doubt = false;
        for _ in 0..MAX_STEPS {
            self.finish_opening();
            let Some(Output::Wait(until)) = self.settle() else {
                return;
            };
            self.answer();
            if let Some(store) = self.store.take() {
                self.handle(Input::Stored(store));
            }
            for run in self.shards.by_run.keys().copied().collect::<Vec<_>>() {
                if self.shards.by_run.contains_key(&run) {
                    self.advance(run);
                }
            }
            let is_done = self.reconciler.stopping.is_none()
                && self.asked == self.finished
                && self.reconciler.reshard.is_none()
                && self
                    .shards
                    .by_run
                    .values()
                    .all(|fake| fake.stop.is_none() || !fake.runs());
            if is_done {
                return;
            }
            let next = until.unwrap_or(self.now).max(self.now);
            self.now = next.min(self.now + Duration::from_secs(1)) + Duration::from_millis(1);
        }

        let unfinished: Vec<_> = self.asked.difference(&self.finished).collect();
        panic!(
            "it does not come to rest: {unfinished:?} {:?} {:#?}",
            self.reconciler, self.shards
        );
    }
}

fn history(seed: u64, is_told: bool) {
    let mut world = World::new(seed);
    world.is_told = is_told;
    let events = world.random.usize(..EVENTS);
    for _ in 0..events {
        if world.settle().is_none() {
            break;
        }
        world.happen();
    }

    if world.random.bool() {
        world.come_to_rest();
        world.is_calm = false;
    }

    let reasons = [StopReason::Closed, StopReason::Suspended];
    let reason = reasons[world.random.usize(..2)];
    world.handle(Input::Stop(reason));
    world.come_to_rest();
    assert_eq!(world.asked, world.finished, "every request is finished");
    assert!(world.stream_ended);
    assert!(world.shards.by_run.values().all(|fake| !fake.is_live()));
    assert!(matches!(world.poll(), Output::End));
}

/// Runs one history with its steps printed: that of the seed in `THREADCORD_HISTORY`.
#[test]
fn a_history() {
    let seed = environment::number("THREADCORD_HISTORY");
    history(seed.unwrap_or(HISTORIES), true);
}

#[test]
fn every_history_keeps_to_the_rules_and_ends() {
    let next = AtomicU64::new(0);
    let explore = || {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= HISTORIES {
                break;
            }
            let result = catch_unwind(|| history(seed, false));
            assert!(
                result.is_ok(),
                "the history of seed {seed} (`THREADCORD_HISTORY`)"
            );
        }
    };

    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(explore);
        }
    });
}
