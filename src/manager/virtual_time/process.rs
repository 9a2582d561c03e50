//! A process with a manager: what its threads do, one step at a time.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, TryRecvError};
use parking_lot::Mutex;

use super::super::count::Question;
use super::super::hub::{Ending, Hub, Store};
use super::super::reconciler::Output;
use super::super::session_writer::SessionWriter;
use super::super::supervisor::{self, Crew, Supervisor};
use super::super::{assemble, prepare, start};
use super::network::{Connector, Network};
use crate::clock;
use crate::config::Config;
use crate::delivery::Events;
use crate::error::Error;
use crate::limit::{Limits, SessionLimit};
use crate::protocol::StopReason;
use crate::rest::GatewayBot;
use crate::shard::{Pause, Run, Spawned, Step, Thread};
use crate::transport::WebSocketConnector;

/// One of a process's threads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Actor {
    Shard(Run),
    Supervisor,
    SessionWriter,
    /// The release thread of the identify limit.
    Limiter,
    /// The thread that queries Discord for the number of shards.
    Question,
    /// The thread that has requested the end.
    End,
}

pub(super) struct Process {
    pub(super) hub: Arc<Hub>,
    pub(super) events: Events,
    crew: Shards,
    limiter: Arc<SessionLimit>,
    supervisor: Supervisor<Connector, Shards>,
    /// What the supervisor waits for, and how often it had been woken by then.
    waits: Option<(u64, Option<Instant>)>,
    is_supervisor_over: bool,
    /// The shards that are about to take over.
    pub(super) committed: Option<Vec<Run>>,
    /// Whether a set has taken over while some events of the old set were not handled.
    pub(super) has_overtaken: bool,
    writer: SessionWriter,
    is_writer_over: bool,
    /// The deadline of the handlers, once that is known.
    handlers_until: Option<Instant>,
    /// What the end waits for, once there is one.
    ending: Option<Ending>,
    /// When the end checks the handlers again.
    looks_at: Instant,
    /// Threads that the operating system does not schedule, each until an instant.
    starved: Vec<(Actor, Instant)>,
}

/// The threads of the shards, and the requests to Discord.
#[derive(Clone)]
struct Shards {
    network: Arc<Mutex<Network>>,
    threads: Arc<Mutex<Vec<ShardThread>>>,
    questions: Arc<Mutex<Vec<Question>>>,
}

struct ShardThread {
    run: Run,
    /// Its transport.
    wire: usize,
    /// Disconnected once the thread may start.
    start: Receiver<()>,
    /// Taken out during a step.
    thread: Option<Box<Thread<Connector>>>,
    /// What it waits for; nothing before its first step.
    pause: Option<Pause>,
}

impl Crew<Connector> for Shards {
    fn run(&self, thread: Box<Thread<Connector>>) -> io::Result<Spawned> {
        let (sender, start): (Sender<()>, _) = crossbeam_channel::bounded(0);
        self.threads.lock().push(ShardThread {
            run: thread.id(),
            wire: self.network.lock().last_wire(),
            start,
            thread: Some(thread),
            pause: None,
        });
        Ok(Spawned {
            thread: None,
            start: sender,
        })
    }

    fn ask(&self, _: &Arc<Hub>, question: Question) {
        self.questions.lock().push(question);
    }
}

impl ShardThread {
    /// When it continues by itself.
    fn wakes_at(&self, network: &Network) -> Option<Instant> {
        if self.start.try_recv() == Err(TryRecvError::Empty) {
            return None;
        }

        let Some(pause) = &self.pause else {
            return Some(clock::now());
        };
        let woken = network.is_woken(self.wire).then(clock::now);
        let arrival = network.next_arrival(self.wire);
        let arrival = arrival.filter(|_| pause.is_reading);
        let wakes_at = [woken, arrival, pause.until].into_iter().flatten().min();

        // It waits for the answer to a close before it does anything else.
        wakes_at.max(
            network
                .closing_until(self.wire)
                .filter(|_| wakes_at.is_some()),
        )
    }
}

impl Process {
    /// A process that has just started.
    pub(super) fn start(
        config: Config,
        gateway: &GatewayBot,
        network: &Arc<Mutex<Network>>,
    ) -> Result<Self, Error> {
        let rest = config.rest()?;
        // Nothing connects with it, so that it reads no certificates.
        let websockets = WebSocketConnector::with_settings(None, rest.dialer())?;
        let mut prepared = prepare::with_gateway(config, rest, websockets, Some(gateway))?;
        let limits: Limits = start::limits(&gateway.session_start_limit);
        let limiter = start::own_limit(&prepared.config, limits, &prepared.identified);
        let limiter = Arc::new(limiter);
        prepared.limiter = Arc::<SessionLimit>::clone(&limiter);
        let store = prepared.config.session_store.clone();
        let store = store.expect("the program has a store");
        let (hub, context) = assemble(prepared, |_| Connector(Arc::clone(network)));
        let crew = Shards {
            network: Arc::clone(network),
            threads: Arc::default(),
            questions: Arc::default(),
        };

        Ok(Self {
            events: hub.events(),
            limiter,
            supervisor: Supervisor::new(Arc::clone(&hub), context, crew.clone()),
            crew,
            waits: None,
            is_supervisor_over: false,
            committed: None,
            has_overtaken: false,
            writer: SessionWriter::new(Arc::clone(&hub), store),
            is_writer_over: false,
            handlers_until: None,
            ending: None,
            looks_at: clock::now(),
            starved: Vec::new(),
            hub,
        })
    }

    /// Every thread that waits only for a time, and that time.
    pub(super) fn actors(&self) -> Vec<(Actor, Instant)> {
        let now = clock::now();
        let network = self.crew.network.lock();
        let threads = self.crew.threads.lock();
        let mut actors: Vec<(Actor, Instant)> = threads
            .iter()
            .filter_map(|thread| Some((Actor::Shard(thread.run), thread.wakes_at(&network)?)))
            .collect();
        let supervisor = match self.waits {
            Some((changes, until)) if changes == self.hub.changes() => until,
            _ => Some(now),
        };
        let supervisor = supervisor.filter(|_| !self.is_supervisor_over);
        actors.extend(supervisor.map(|at| (Actor::Supervisor, at)));

        if !self.is_writer_over {
            let at = match self.writer.poll() {
                Store::Wait(until) => until,
                Store::Write { .. } => now,
            };
            actors.push((Actor::SessionWriter, at));
        }

        actors.extend(self.limiter.wakes_at().map(|at| (Actor::Limiter, at)));
        if !self.crew.questions.lock().is_empty() {
            actors.push((Actor::Question, now));
        }

        // The supervisor and the shards wake it.
        match self.ending {
            Some(Ending::Shards) if self.is_supervisor_over && threads.is_empty() => {
                actors.push((Actor::End, now));
            }
            Some(Ending::Handlers) => actors.push((Actor::End, self.looks_at)),
            _ => {}
        }

        for (actor, at) in &mut actors {
            let starved = self.starved.iter().find(|(starved, _)| starved == actor);
            *at = starved.map_or(*at, |(_, until)| (*at).max(*until));
        }
        actors
    }

    /// Keeps a thread from being scheduled until then.
    pub(super) fn starve(&mut self, actor: Actor, until: Instant) {
        self.starved.retain(|(_, until)| *until > clock::now());
        self.starved.push((actor, until));
    }

    /// Runs a thread until it waits, or does something that other threads may see.
    pub(super) fn step(&mut self, actor: Actor, gateway: impl FnOnce() -> GatewayBot) {
        match actor {
            Actor::Shard(run) => self.step_shard(run),
            Actor::Supervisor => {
                let changes = self.hub.changes();
                match self.hub.poll() {
                    Output::Wait(until) => self.waits = Some((changes, until)),
                    output => {
                        self.waits = None;
                        match &output {
                            Output::Commit { to, .. } => self.committed = Some(to.clone()),
                            Output::HandOver { from, .. } => {
                                let shards = from.iter().filter_map(|run| self.hub.shard_of(*run));
                                let mut unhandled = shards.map(|shard| shard.outstanding().0);
                                self.has_overtaken |= unhandled.any(|events| events > 0);
                            }
                            _ => {}
                        }
                        self.is_supervisor_over = !self.supervisor.act(output);
                    }
                }
            }
            Actor::SessionWriter => {
                if let Store::Write { request, is_last } = self.writer.poll() {
                    self.writer.write(request, is_last);
                    self.is_writer_over = is_last;
                }
            }
            Actor::Limiter => self.limiter.release(),
            Actor::Question => {
                let question = self.crew.questions.lock().pop();
                if let Some(question) = question {
                    supervisor::answer(&self.hub, question, Ok(gateway()));
                }
            }
            Actor::End => {
                self.ending = Some(self.hub.poll_end(&mut self.handlers_until));
                self.looks_at = clock::now() + Duration::from_millis(5);
            }
        }
    }

    fn step_shard(&mut self, run: Run) {
        let thread = {
            let mut threads = self.crew.threads.lock();
            let place = threads.iter_mut().find(|thread| thread.run == run);
            place.and_then(|place| place.thread.take())
        };
        let Some(mut thread) = thread else { return };
        let step = thread.step();
        if let Step::Stop(reason) = step {
            thread.end(reason);
            drop(thread);
            return self.crew.threads.lock().retain(|thread| thread.run != run);
        }

        let mut threads = self.crew.threads.lock();
        if let Some(place) = threads.iter_mut().find(|thread| thread.run == run)
            && let Step::Wait(pause) = step
        {
            (place.thread, place.pause) = (Some(thread), Some(pause));
        }
    }

    /// Begins to end the process.
    pub(super) fn stop(&mut self, reason: StopReason) {
        self.hub.stop(reason);
        self.ending.get_or_insert(Ending::Shards);
    }

    /// Whether all threads have ended.
    pub(super) fn is_over(&self) -> bool {
        self.is_supervisor_over && self.is_writer_over && self.crew.threads.lock().is_empty()
    }
}
