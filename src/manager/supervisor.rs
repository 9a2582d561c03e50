//! The thread that carries out the decisions of the [reconciler](super::reconciler).

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Weak};
use std::thread::{self, JoinHandle};
use std::time::SystemTime;

use super::count::{self, Answer, Question};
use super::hub::Hub;
use super::reconciler::{Input, Output, Set, Why};
use super::start;
use crate::clock;
use crate::config::{Plan, ShardConfig};
use crate::error::Error;
use crate::event::{Event, EventKind};
use crate::log_shard::log_shard;
use crate::protocol::{Command, Session, StopReason};
use crate::rest::GatewayBot;
use crate::shard::{Context, Run, Shard, Spawned, Thread};
use crate::shard_id::ShardId;
use crate::transport::Connector;

/// Starts the supervisor thread. It ends once the manager stops and no shard runs.
pub(super) fn start<C: Connector + 'static>(
    hub: &Arc<Hub>,
    context: Arc<Context<C>>,
) -> Result<JoinHandle<()>, Error> {
    let supervisor = Supervisor::new(Arc::clone(hub), context, Threads);
    thread::Builder::new()
        .name("shard-supervisor".into())
        .spawn(move || supervisor.run())
        .map_err(|source| Error::Io {
            what: "a thread to open the shards",
            source,
        })
}

/// Runs the work that the supervisor does not do on its own thread. Tests replace it.
pub(super) trait Crew<C: Connector> {
    /// Creates a shard's thread, which begins to run once [`Spawned::start`] is dropped.
    fn run(&self, thread: Box<Thread<C>>) -> io::Result<Spawned>;

    /// Queries Discord for the number of shards; the result goes to [`answer`]. Does not wait.
    fn ask(&self, hub: &Arc<Hub>, question: Question);
}

/// Threads of the operating system.
struct Threads;

impl<C: Connector + 'static> Crew<C> for Threads {
    fn run(&self, thread: Box<Thread<C>>) -> io::Result<Spawned> {
        thread.spawn()
    }

    /// On a separate thread that is not joined, since a request can take long.
    fn ask(&self, hub: &Arc<Hub>, question: Question) {
        let weak = Arc::downgrade(hub);
        let asks = move || {
            let Some(rest) = weak.upgrade().map(|hub| hub.rest.clone()) else {
                return;
            };
            let gateway = rest.gateway_bot();
            if let Some(hub) = Weak::upgrade(&weak) {
                answer(&hub, question, gateway);
            }
        };

        let thread = thread::Builder::new()
            .name("shard-count".into())
            .spawn(asks);
        if let Err(error) = thread {
            hub.handle(Input::Gateway(question, None));
            log::error!("failed to start a thread to query the number of shards: {error}");
        }
    }
}

pub(super) struct Supervisor<C, W> {
    hub: Arc<Hub>,
    context: Arc<Context<C>>,
    crew: W,
}

impl<C: Connector + 'static, W: Crew<C>> Supervisor<C, W> {
    pub(super) fn new(hub: Arc<Hub>, context: Arc<Context<C>>, crew: W) -> Self {
        Self { hub, context, crew }
    }

    fn run(self) {
        while self.act(self.hub.next_output()) {}
    }

    /// Carries out one output of the reconciler. Returns `false` after the last one.
    pub(super) fn act(&self, output: Output) -> bool {
        if matches!(output, Output::End) {
            self.hub.set_stopped();
            return false;
        }
        // A logger or a transport that panics must not leave the shards without a supervisor.
        let _ = catch_unwind(AssertUnwindSafe(|| self.carry_out(output)));
        true
    }

    fn carry_out(&self, output: Output) {
        match output {
            Output::Open {
                run,
                previous,
                session,
                set,
            } => self.open(run, previous, session, set),
            Output::Restart(run) => self.restart(run),
            Output::Close(run) => self.stop(run, StopReason::Closed),
            Output::Suspend(run) => self.stop(run, StopReason::Suspended),
            Output::Leave(run) => self.stop(run, StopReason::OwnershipLost),
            Output::Probe(run) => self.with(run, Shard::probe),
            Output::Retire(run) => self.retire(run),
            Output::AskGateway(question) => self.crew.ask(&self.hub, question),
            Output::Store(store) => self.hub.set_store(store),
            Output::Replace { old, new } => {
                if let Some(feed) = self.hub.feed() {
                    self.hub.set_incoming(feed.successor(&old, &new));
                }
            }
            Output::Abandon => {
                let (feed, incoming) = (self.hub.feed(), self.hub.take_incoming());
                if let Some(feed) = feed {
                    feed.stay();
                }
                drop(incoming);
            }
            Output::Commit { from, to } => {
                drop(self.hub.make_incoming_active());
                self.pass_presences_on(&from, &to);
            }
            Output::HandOver { from, to } => self.hand_over(&from, to),
            Output::Emit(shard, kind) => self.emit(shard, kind),
            Output::Finish(operation, outcome) => self.hub.finish(operation, outcome),
            Output::EndStream => self.hub.end_stream(),
            Output::Log(note) => log::log!(note.level(), "{note}"),
            // `act` and the hub handle these two.
            Output::Wait(_) | Output::End => {}
        }
    }

    /// Calls `action` with a run's shard, if the run exists. A stopped shard ignores requests.
    fn with(&self, run: Run, action: impl FnOnce(&Shard)) {
        if let Some(shard) = self.hub.shard_of(run) {
            action(&shard);
        }
    }

    fn stop(&self, run: Run, reason: StopReason) {
        let Some(shard) = self.hub.shard_of(run) else {
            return;
        };
        match reason {
            StopReason::Suspended => shard.request_suspend(),
            StopReason::OwnershipLost => shard.request_leave(),
            _ => shard.request_close(),
        }
        // In this order: if the shard is still resolving after the request, it will see the request
        // before it does anything else.
        if shard.is_resolving() {
            shard.abandon(reason == StopReason::Suspended);
            self.hub.handle(Input::Abandoned(run));
        }
    }

    fn emit(&self, shard: ShardId, kind: EventKind) {
        if let Some(feed) = self.hub.feed() {
            feed.deliver(Event::new(shard, kind));
        }
    }

    fn open(&self, run: Run, previous: Option<Run>, session: Option<Session>, set: Set) {
        let opened = self.hub.config.of_shard(run.shard).map(|config| {
            catch_unwind(AssertUnwindSafe(|| {
                self.spawn(run, previous, session, set, config)
            }))
            .unwrap_or_else(|_| Err(io::Error::other("it panicked")))
        });
        let shard = run.shard;
        let why = match opened {
            Ok(Ok(())) => return,
            Ok(Err(error)) => {
                self.hub.handle(Input::Failed(run, Why::Shortage));
                log::error!(
                    shard:% = shard;
                    "failed to open shard {shard}: no thread or descriptor: {error}"
                );
                return;
            }
            Err(error) => error,
        };

        self.hub.handle(Input::Failed(run, Why::Settings));
        log::error!(shard:% = shard; "failed to open shard {shard}: {}", why.report());
    }

    fn spawn(
        &self,
        run: Run,
        previous: Option<Run>,
        session: Option<Session>,
        set: Set,
        config: ShardConfig,
    ) -> io::Result<()> {
        let given = session.as_ref().map(|session| session.id.clone());
        let Some((feed, beginning)) = self.hub.beginning(run, previous, session, set) else {
            // The manager is stopping.
            self.hub.handle(Input::Failed(run, Why::Stopped));
            return Ok(());
        };
        let presence = beginning.presence.clone();
        let goes_on = beginning.previous.as_ref().is_some_and(|previous| {
            let session = previous.session();
            given.is_none() || session.is_some_and(|session| Some(session.id) == given)
        });
        let prepared = Shard::prepare(run, beginning, config, Arc::clone(&self.context), feed)?;
        let (shard, Spawned { thread, start }) = prepared.spawn(|thread| self.crew.run(thread))?;

        let wanted = self
            .hub
            .insert(&shard, thread, previous.filter(|_| goes_on));
        if let Some(wanted) = wanted.filter(|wanted| presence.as_ref() != Some(wanted)) {
            // The presence was set while the shard was being created. A stopped shard needs none.
            shard.send_presence(wanted);
        }
        drop(start);
        Ok(())
    }

    fn restart(&self, run: Run) {
        let Some(shard) = self.hub.shard_of(run) else {
            return self.hub.handle(Input::Failed(run, Why::Stopped));
        };
        match self.hub.config.of_shard(run.shard) {
            Ok(config) => {
                let input = match shard.restart(config.identity(&self.hub.config.token)) {
                    Ok(()) => Input::Restarts(run),
                    Err(_) => Input::Failed(run, Why::Stopped),
                };
                self.hub.handle(input);
            }
            Err(error) => {
                self.hub.handle(Input::Failed(run, Why::Settings));
                let (shard, error) = (run.shard, error.report());
                log::error!(shard:% = shard; "failed to restart shard {shard}: {error}");
            }
        }
    }

    fn retire(&self, run: Run) {
        let Some((shard, lost)) = self.hub.retire(run) else {
            return;
        };

        // The run is forgotten, so nothing can close the shard later.
        shard.request_close();
        let Some(session) = lost else { return };
        shard.count_session_lost();
        let sequence = session.sequence;
        let missed_since = clock::wall().checked_sub(shard.status().time_in_state);
        let kind = EventKind::SessionLost {
            session,
            missed_since: missed_since.unwrap_or(SystemTime::UNIX_EPOCH),
        };
        self.emit(run.shard, kind);
        log_shard!(
            warn,
            run.shard,
            "session lost at sequence {sequence}: the stopped shard was replaced"
        );
    }

    /// Passes on presences that were set on the old shards while the new ones were starting.
    fn pass_presences_on(&self, from: &[Run], to: &[Run]) {
        let (from, to) = (self.hub.shards_of(from), self.hub.shards_of(to));
        for new in to {
            let mut old = from.iter().filter(|old| old.id().overlaps(new.id()));
            let presence = old.find_map(Shard::last_presence);
            if presence.is_some() && new.last_presence() != presence {
                // A stopped shard needs none.
                if let Some(presence) = presence {
                    new.send_presence(presence);
                }
            }
        }
    }

    fn hand_over(&self, from: &[Run], to: Vec<ShardId>) {
        let old = self.hub.shards_of(from);
        if let (Some(feed), Some(first)) = (self.hub.take_incoming(), to.first().copied()) {
            let from = old.iter().map(Shard::id).collect();
            let event = Event::new(first, EventKind::Resharded { from, to });
            feed.take_over(clock::now(), event);
        }
        for command in old.iter().flat_map(Shard::take_unsent) {
            self.pass_on(command);
        }
    }

    /// Queues an unsent command of an old shard at the new shard of its guild.
    fn pass_on(&self, command: Command) {
        let guild = command.guild_id();
        let home = guild.and_then(|guild| self.hub.shard_by_guild(guild));
        let Some(home) = home else {
            return log::warn!(
                "dropped an unsent command of an old shard: no new shard has its guild"
            );
        };
        if let Err(failure) = home.hand_over(command) {
            log::warn!("dropped an unsent command of an old shard: {failure}");
        }
    }
}

/// Reports the response of `/gateway/bot` to the reconciler.
pub(super) fn answer(hub: &Hub, question: Question, gateway: Result<GatewayBot, Error>) {
    let answer = catch_unwind(AssertUnwindSafe(|| {
        gateway.and_then(|gateway| answer_of(hub, question, &gateway))
    }));
    let (answer, error) = match answer {
        Ok(Ok(answer)) => (Some(answer), None),
        Ok(Err(error)) => (None, Some(error.report())),
        Err(_) => (None, Some("a limiter or `for_shard` panicked".to_owned())),
    };
    hub.handle(Input::Gateway(question, answer));
    if let Some(error) = error {
        log::error!("failed to find a new shard count, keeping the current one: {error}");
    }
}

/// Turns the response of `/gateway/bot` into the answer to a question.
fn answer_of(hub: &Hub, question: Question, gateway: &GatewayBot) -> Result<Answer, Error> {
    let limit = &gateway.session_start_limit;
    hub.limiter.update(start::limits(limit), gateway.asked_at);

    let recommended = gateway.shards.get();
    let plan = match question {
        Question::Fullness => Plan::Total(recommended),
        // Discord has refused the total, so the bot is large, whatever its guild count says.
        Question::Total(_) => count::rounded(&hub.config.plan, Some(gateway), || true),
    };

    let shards = plan.shards(recommended)?;
    start::check_agreed(&hub.config, &shards)?;
    shards
        .iter()
        .try_for_each(|shard| hub.config.of_shard(*shard).map(drop))?;

    let guilds = hub.shards().into_iter();
    let fullest = guilds.filter_map(|shard| shard.status().guilds).max();
    Ok(Answer {
        shards,
        recommended,
        remaining: limit.remaining,
        total: limit.total,
        max_concurrency: limit.max_concurrency,
        fullest: fullest.unwrap_or(0),
    })
}
