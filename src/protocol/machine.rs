//! What a shard says and when: the one match on inputs and on opcodes.

use std::collections::VecDeque;
use std::mem;
use std::num::NonZeroU32;
use std::time::{Duration, Instant};

use bytes::Bytes;
use fastrand::Rng;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::allowance::{DEFAULT_SESSION_STARTS, IdentifyAllowance};
use super::backoff;
use super::close::{CloseCode, CloseReason, Recovery};
use super::command::{self, Command, Identity, Secret};
use super::event_name::EventName;
use super::heartbeat::{Beat, Heartbeat};
use super::member_windows::MemberWindows;
use super::payload::{MalformedPayload, Payload};
use super::send_budget::SendBudget;
use super::session::Session;
use super::state::{Link, Stage, Start, State};
use super::timing::{self, Timing};
use crate::intents::Intents;
use crate::shard_id::ShardId;

/// Connections to a session's own url that may come to nothing before the main one is tried.
const DEAD_CONNECTS: u32 = 3;

/// With more, heartbeats alone would break the send limit.
const MOST_BEATS_PER_WINDOW: u32 = 60;

/// With a shorter one, which the window of a simulator may allow, a shard would do nothing else.
const SHORTEST_INTERVAL: Duration = Duration::from_millis(1);

/// With a longer heartbeat interval no dead connection would be noticed.
const LONGEST_INTERVAL: Duration = Duration::from_secs(60 * 60);

/// Connections in a row that may end at the same event because it cannot be read. Discord replays
/// it each time, so that the session would never get past it.
const UNREADABLE: u32 = 5;

/// The close code for a connection whose session is to be resumed.
const RESUMABLE: u16 = 4000;

/// The close code that ends a session.
const NORMAL: u16 = 1000;

/// Something that happened to a shard.
#[derive(Debug)]
pub enum Input {
    /// The connection asked for is open.
    Connected,
    /// A payload came.
    Payload(Bytes),
    /// Nothing is left to read. Only then is it judged whether something is missing: HELLO, READY,
    /// RESUMED, an ACK.
    Drained,
    /// The shard does not read for now, because what it delivered has not been handled.
    Stalled,
    /// The peer sent a close frame, with or without a code.
    Closed(Option<u16>),
    /// The connection failed, or cannot be used any more.
    Failed(CloseReason),
    /// It is this shard's turn to identify.
    Permit,
    /// The limiter failed; it may work again later.
    NoPermit,
    /// The user wants to say something.
    Command(Command),
    /// A command was asked to be sent, but the connection did not carry it.
    Unsent(Command),
    /// Nobody waits for the answer to the request for members with this nonce any more.
    Withdrawn(Box<str>),
    /// The owner wants to know whether the connection is alive: a heartbeat is due, if the session
    /// is.
    Probe,
    /// The shard is to connect anew and resume, with this identity if it ever identifies again.
    /// What went wrong before is forgotten.
    Restart(Box<Identity>),
    /// The shard is to stop for good.
    Stop(CloseReason),
}

/// Something that the machine asks for.
#[derive(Debug, PartialEq, Eq)]
pub enum Output {
    /// Open a connection.
    Connect(Target),
    /// Take a place in the identify queue; answer with [`Input::Permit`].
    RequestPermit,
    /// Send a heartbeat.
    Send(String),
    /// Send this RESUME.
    Resume(Secret),
    /// Spend the permit on this IDENTIFY.
    Identify(Secret),
    /// Send a command; give it back as [`Input::Unsent`] if the connection ends first.
    SendCommand(Command),
    /// Hand an event to the user.
    Deliver(Payload),
    /// Tell the user what happened to the shard.
    Report(Notice),
    /// Close the connection with a code, or drop it at once.
    Disconnect(Option<u16>),
    /// Nothing to do before that instant, or before the next input.
    Wait(Option<(Instant, Timer)>),
    /// Nothing to do ever again.
    Stop(CloseReason),
}

/// Where to connect to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// The url that `/gateway/bot` gave.
    Main,
    /// The session's own url.
    Resume(String),
}

/// What happened to a shard, in terms of its session.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Notice {
    /// A connection is being opened.
    Connecting {
        /// Whether to resume a session, else to start one.
        resuming: bool,
    },
    /// A new session has started.
    Ready(Session),
    /// The session goes on; what was missed has been replayed.
    Resumed,
    /// The session is over, and what came after its last sequence is lost.
    SessionLost(Session),
    /// The connection is gone; the shard will try again.
    Disconnected {
        /// Why.
        reason: CloseReason,
        /// How long the shard waits before it connects again.
        retry_in: Duration,
        /// Whether it will resume, else identify.
        resumable: bool,
    },
}

/// Why a shard wakes by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Timer {
    /// The pause before the next connection is over.
    Reconnect,
    /// The connection takes too long.
    Connect,
    /// HELLO takes too long.
    Hello,
    /// A heartbeat is due.
    Heartbeat,
    /// READY or RESUMED takes too long.
    Answer,
    /// The limiter may be asked again.
    Limiter,
    /// A command may go out again.
    SendBudget,
}

/// The protocol of one shard, without socket, thread, clock or lock.
#[derive(Debug)]
pub struct Machine {
    shard: ShardId,
    identity: Identity,
    timing: Timing,
    rng: Rng,
    state: State,
    outbox: VecDeque<Output>,
    /// What waits to be sent, but for presences.
    commands: VecDeque<Command>,
    /// The presence that waits to be sent: of several the newest.
    next_presence: Option<Command>,
    /// The presence that was asked for last, for the next IDENTIFY.
    last_presence: Option<Command>,
    members: MemberWindows,
    /// How often in a row the limiter has failed.
    limiter_failures: u32,
    /// Connections in a row that were not ready for long.
    failures: u32,
    /// IDENTIFYs, or RESUMEs that will cost one, in a row that led to no lasting session.
    barren: u32,
    /// What may be wasted in a day.
    waste: IdentifyAllowance,
    /// When sessions in a row ended that never lasted, within the circuit breaker's window.
    short_sessions: VecDeque<Instant>,
    /// With so many of them the shard stops.
    most_short_sessions: Option<NonZeroU32>,
    /// Where the session stood when a payload could not be read, and how often in a row that was
    /// there.
    unreadable: (u64, u32),
}

impl Machine {
    /// A shard that connects at once. It resumes `session` if that belongs to it and was started
    /// with the same intents; else it reports it as lost.
    pub fn new(
        now: Instant,
        shard: ShardId,
        identity: Identity,
        timing: Timing,
        session: Option<Session>,
        seed: u64,
    ) -> Self {
        let mut outbox = VecDeque::new();
        let start = match session {
            Some(session) if !session.fits(shard, identity.intents) => {
                log::warn!("shard {shard}: {}", session.misfit(identity.intents));
                outbox.push_back(Output::Report(Notice::SessionLost(session)));
                Start::Identify
            }
            Some(session) => Start::Resume {
                session,
                dead_connects: 0,
            },
            None => Start::Identify,
        };
        Self {
            shard,
            identity,
            timing,
            rng: Rng::with_seed(seed),
            state: State::Waiting { until: now, start },
            outbox,
            commands: VecDeque::new(),
            next_presence: None,
            last_presence: None,
            members: MemberWindows::default(),
            limiter_failures: 0,
            failures: 0,
            barren: 0,
            waste: IdentifyAllowance::new(now, shard, DEFAULT_SESSION_STARTS),
            short_sessions: VecDeque::new(),
            most_short_sessions: None,
            unreadable: (0, 0),
        }
    }

    /// With a circuit breaker: so many sessions in a row that never lasted, within
    /// [`Timing::circuit_window`], and the shard stops with [`CloseReason::CircuitOpen`].
    #[must_use]
    pub fn with_most_short_sessions(self, most: Option<NonZeroU32>) -> Self {
        Self {
            most_short_sessions: most,
            ..self
        }
    }

    /// With the number of sessions that the bot may start in a day, over all its shards.
    #[must_use]
    pub fn with_session_starts(self, now: Instant, total: u32) -> Self {
        Self {
            waste: IdentifyAllowance::new(now, self.shard, total),
            ..self
        }
    }

    /// Takes in what happened.
    pub fn handle(&mut self, now: Instant, input: Input) {
        match input {
            Input::Connected => self.handle_connected(now),
            Input::Payload(bytes) => match self.handle_payload(now, bytes) {
                Ok(()) => {}
                Err(malformed) => {
                    log::error!("shard {}: {malformed}", self.shard);
                    self.lose(now, CloseReason::Malformed);
                }
            },
            Input::Drained => {
                if let Some(reason) = self.missing(now) {
                    self.lose(now, reason);
                }
            }
            Input::Stalled => self.excuse(now),
            Input::Closed(code) => {
                self.lose(
                    now,
                    code.map_or(CloseReason::Cut, |code| {
                        CloseReason::Discord(CloseCode(code))
                    }),
                );
            }
            Input::Failed(reason) => self.lose(now, reason),
            Input::Permit => self.identify(now),
            Input::NoPermit => self.handle_no_permit(now),
            Input::Command(command) if command.is_presence() => {
                self.last_presence = Some(command.clone());
                self.next_presence = Some(command);
            }
            Input::Command(command) => self.commands.push_back(command),
            // A newer one may wait already.
            Input::Unsent(command) if command.is_presence() => {
                self.next_presence.get_or_insert(command);
            }
            Input::Unsent(command) => {
                self.members.forget(&command);
                self.commands.push_front(command);
            }
            Input::Withdrawn(nonce) => self
                .commands
                .retain(|command| command.nonce() != Some(&*nonce)),
            Input::Probe => {
                if let State::Ready { link, .. } = &mut self.state {
                    link.heartbeat.request();
                }
            }
            Input::Restart(identity) => self.restart(now, *identity),
            Input::Stop(reason) => self.stop(reason),
        }
    }

    /// What is to be done next. Ask until it says [`Output::Wait`] or [`Output::Stop`].
    pub fn poll(&mut self, now: Instant) -> Output {
        if let Some(output) = self.poll_at_once() {
            return output;
        }
        match &self.state {
            State::Waiting { until, .. } if now >= *until => self.connect(now),
            State::Waiting { until, .. } => Output::Wait(Some((*until, Timer::Reconnect))),
            State::Connecting { deadline, .. } => Output::Wait(Some((*deadline, Timer::Connect))),
            State::AwaitingHello { deadline, .. } => Output::Wait(Some((*deadline, Timer::Hello))),
            State::Queued { .. }
            | State::Identifying { .. }
            | State::Resuming { .. }
            | State::Ready { .. } => self.poll_link(now),
            State::Stopped { reason, .. } => Output::Stop(*reason),
        }
    }

    /// What was asked for by what came in, without a look at the time: for whoever reads several
    /// payloads before it asks what is [due](Self::poll).
    pub fn poll_at_once(&mut self) -> Option<Output> {
        self.outbox.pop_front()
    }

    /// Where the shard stands.
    pub fn stage(&self) -> Stage {
        Stage::from(&self.state)
    }

    /// What it wants to hear about when it identifies.
    pub fn intents(&self) -> Intents {
        self.identity.intents
    }

    /// The session that is live or will be resumed, with the last sequence received.
    pub fn session(&self) -> Option<&Session> {
        self.state.session()
    }

    /// From the last acknowledged heartbeat of this connection to the moment when its ACK was read.
    pub fn latency(&self) -> Option<Duration> {
        self.state.link()?.heartbeat.latency()
    }

    /// Everything that Discord had sent this session by that instant has been read. `None` if no
    /// heartbeat of this connection proves it yet.
    pub fn read_up_to(&self) -> Option<Instant> {
        self.state.link()?.heartbeat.read_up_to()
    }

    /// With a presence in place of that of the identity, as if a command had set it: it goes into
    /// the next IDENTIFY, or is sent once a session is resumed.
    #[must_use]
    pub fn with_presence(self, presence: Option<Command>) -> Self {
        let presence = presence.filter(Command::is_presence);
        // A session that is resumed may have another.
        Self {
            next_presence: presence.clone(),
            last_presence: presence,
            ..self
        }
    }

    /// Commands that wait to be sent, but for a presence.
    pub fn queued_commands(&self) -> usize {
        self.commands.len()
    }

    /// Whether a presence waits to be sent.
    pub fn has_queued_presence(&self) -> bool {
        self.next_presence.is_some()
    }

    /// Takes the commands that wait to be sent, but for a presence.
    pub fn take_commands(&mut self) -> VecDeque<Command> {
        mem::take(&mut self.commands)
    }

    /// What should have come by now, as long as the peer had nothing more to read.
    fn missing(&self, now: Instant) -> Option<CloseReason> {
        let is_late = |deadline: &Instant| now >= *deadline;
        match &self.state {
            State::Connecting { deadline, .. } if is_late(deadline) => {
                Some(CloseReason::ConnectFailed)
            }
            State::AwaitingHello { deadline, .. } if is_late(deadline) => {
                Some(CloseReason::HelloTimeout)
            }
            State::Identifying { deadline, .. } | State::Resuming { deadline, .. }
                if is_late(deadline) =>
            {
                Some(CloseReason::AnswerTimeout)
            }
            state => state
                .link()
                .is_some_and(|link| link.heartbeat.is_zombied(now))
                .then_some(CloseReason::Zombied),
        }
    }

    /// What has not been read is not late.
    fn excuse(&mut self, now: Instant) {
        if let Some(link) = self.state.link_mut() {
            link.heartbeat.excuse(now);
        }
        if let State::Resuming { deadline, .. } = &mut self.state {
            *deadline = now + self.timing.answer_timeout;
        }
    }

    fn handle_connected(&mut self, now: Instant) {
        self.change_state(|machine, state| match state {
            State::Connecting { start, .. } => State::AwaitingHello {
                deadline: now + machine.timing.hello_timeout,
                start,
            },
            other => other,
        });
    }

    fn handle_payload(&mut self, now: Instant, bytes: Bytes) -> Result<(), MalformedPayload> {
        let payload = Payload::read(bytes)?;
        match payload.op() {
            0 => self.handle_dispatch(now, payload)?,
            1 => {
                if let Some(link) = self.state.link_mut() {
                    link.heartbeat.request();
                }
            }
            7 => self.lose(now, CloseReason::ReconnectRequested),
            9 => {
                let resumable = payload.parse::<Option<bool>>()?.unwrap_or(false);
                self.lose(now, CloseReason::InvalidSession { resumable });
            }
            10 => self.handle_hello(now, &payload.parse()?)?,
            11 => {
                let is_live = matches!(self.state, State::Ready { .. });
                if let Some(link) = self.state.link_mut() {
                    link.heartbeat.acknowledge(now, is_live);
                }
            }
            op => log::debug!("shard {}: unknown opcode {op} ignored", self.shard),
        }
        Ok(())
    }

    fn handle_hello(&mut self, now: Instant, hello: &Hello) -> Result<(), MalformedPayload> {
        let interval = Duration::from_millis(hello.heartbeat_interval);
        let shortest = (self.timing.send_window / MOST_BEATS_PER_WINDOW).max(SHORTEST_INTERVAL);
        let allowed = shortest..=LONGEST_INTERVAL;
        if !allowed.contains(&interval) {
            return Err(MalformedPayload::HeartbeatInterval(
                hello.heartbeat_interval,
            ));
        }
        self.change_state(|machine, state| {
            let State::AwaitingHello { start, .. } = state else {
                return state;
            };
            let mut link = Link {
                heartbeat: Heartbeat::new(now, interval, machine.rng.f64()),
                budget: SendBudget::new(
                    machine.timing.send_window + machine.timing.guard,
                    machine.timing.presence_window + machine.timing.guard,
                    interval,
                ),
            };
            match start {
                Start::Identify => {
                    machine.outbox.push_back(Output::RequestPermit);
                    State::Queued {
                        link,
                        ask_again: None,
                    }
                }
                Start::Resume { session, .. } => {
                    link.budget.record(now, false);
                    machine
                        .outbox
                        .push_back(Output::Resume(machine.identity.resume(&session)));
                    State::Resuming {
                        link,
                        session,
                        deadline: now + machine.timing.answer_timeout,
                    }
                }
            }
        });
        Ok(())
    }

    fn identify(&mut self, now: Instant) {
        self.change_state(|machine, state| {
            let State::Queued { mut link, .. } = state else {
                return state;
            };
            machine.limiter_failures = 0;
            link.budget.record(now, false);
            // It carries the presence that was asked for last, so that this need not wait any more.
            machine.next_presence = None;
            let secret = machine
                .identity
                .identify(machine.shard, machine.last_presence.as_ref());
            machine.outbox.push_back(Output::Identify(secret));
            State::Identifying {
                link,
                deadline: now + machine.timing.answer_timeout,
            }
        });
    }

    /// Asks again after a pause.
    fn handle_no_permit(&mut self, now: Instant) {
        let State::Queued { ask_again, .. } = &mut self.state else {
            return;
        };
        self.limiter_failures = self.limiter_failures.saturating_add(1);
        let pause = backoff::delay(
            self.timing.backoff_base,
            self.timing.backoff_cap,
            self.limiter_failures,
            self.rng.f64(),
        );
        *ask_again = Some(now + pause);
    }

    fn handle_dispatch(&mut self, now: Instant, payload: Payload) -> Result<(), MalformedPayload> {
        match payload.name() {
            Some(EventName::Ready) => return self.handle_ready(now, payload),
            Some(EventName::Resumed) => self.handle_resumed(now),
            Some(EventName::RateLimited) => self.handle_rate_limited(now, &payload),
            _ => {}
        }
        self.handle_event(now, payload);
        Ok(())
    }

    /// An event of the session that is live or being resumed.
    fn handle_event(&mut self, now: Instant, payload: Payload) {
        let (State::Resuming { session, .. } | State::Ready { session, .. }) = &mut self.state
        else {
            let name = payload.name().map_or("", EventName::as_str);
            log::warn!("shard {}: {name} outside a session ignored", self.shard);
            return;
        };
        let sequence = payload.sequence().unwrap_or(0);
        if sequence <= session.sequence && payload.name() != Some(&EventName::Resumed) {
            log::debug!(
                "shard {}: sequence {sequence} came again and is dropped",
                self.shard
            );
            return;
        }
        session.sequence = session.sequence.max(sequence);
        if let State::Resuming { deadline, .. } = &mut self.state {
            *deadline = now + self.timing.answer_timeout;
        }
        self.outbox.push_back(Output::Deliver(payload));
    }

    fn handle_ready(&mut self, now: Instant, payload: Payload) -> Result<(), MalformedPayload> {
        let ready: Ready<'_> = payload.parse()?;
        if ready.session_id.is_empty() {
            return Err(MalformedPayload::SessionId);
        }
        let session = Session::new(
            ready.session_id,
            payload.sequence().unwrap_or(0),
            lenient(ready.resume_gateway_url).unwrap_or_default(),
            self.shard,
            lenient(ready.user)
                .and_then(|user: User| user.id.parse().ok())
                .unwrap_or(0),
        )
        .with_intents(self.identity.intents);
        if self.session().is_some_and(|old| old.id == session.id) {
            // The first event of this very session, in a replay or again: an event like any other.
            self.handle_event(now, payload);
            return Ok(());
        }
        self.change_state(|machine, state| {
            let link = match state {
                State::Identifying { link, .. } => link,
                // Nobody asked for it, but the session that it names is the one that lives now.
                State::Resuming {
                    link, session: old, ..
                }
                | State::Ready {
                    link, session: old, ..
                } => {
                    machine
                        .outbox
                        .push_back(Output::Report(Notice::SessionLost(old)));
                    link
                }
                other => return other,
            };
            machine
                .outbox
                .push_back(Output::Report(Notice::Ready(session.clone())));
            machine.outbox.push_back(Output::Deliver(payload));
            State::Ready {
                link,
                session,
                since: now,
            }
        });
        Ok(())
    }

    fn handle_resumed(&mut self, now: Instant) {
        self.change_state(|machine, state| match state {
            State::Resuming { link, session, .. } => {
                machine.outbox.push_back(Output::Report(Notice::Resumed));
                State::Ready {
                    link,
                    session,
                    since: now,
                }
            }
            other => other,
        });
    }

    /// Discord wants a pause before it tells of a guild's members again.
    ///
    /// Source: [Discord, Rate
    /// Limited](https://docs.discord.com/developers/events/gateway-events#rate-limited).
    fn handle_rate_limited(&mut self, now: Instant, payload: &Payload) {
        // What cannot be read is still an event for the user.
        let Ok(RateLimited {
            opcode: 8,
            retry_after,
            meta,
        }) = payload.parse()
        else {
            return;
        };
        let Ok(guild) = meta.guild_id.parse() else {
            return;
        };
        let retry_after = timing::from_secs(retry_after).min(LONGEST_INTERVAL);
        self.members
            .limit(now, guild, retry_after + self.timing.guard);
    }

    fn connect(&mut self, now: Instant) -> Output {
        let mut target = Target::Main;
        self.change_state(|machine, state| {
            let start = state.into_start();
            match &start {
                Start::Resume {
                    session,
                    dead_connects,
                } if *dead_connects < DEAD_CONNECTS && !session.resume_url.is_empty() => {
                    target = Target::Resume(session.resume_url.clone());
                }
                _ => {}
            }
            State::Connecting {
                deadline: now + machine.timing.connect_timeout,
                start,
            }
        });
        self.outbox.push_back(Output::Connect(target));
        Output::Report(Notice::Connecting {
            resuming: self.session().is_some(),
        })
    }

    /// What a connection with HELLO behind it asks for: heartbeats first, then commands.
    fn poll_link(&mut self, now: Instant) -> Output {
        let sequence = self.session().map(|session| session.sequence);
        let Some(link) = self.state.link_mut() else {
            return Output::Wait(None);
        };
        match link.heartbeat.poll(now) {
            Some(Beat::Requested) if !link.budget.allows_requested_beat(now) => {
                link.heartbeat.refuse_request();
            }
            Some(beat) => {
                link.heartbeat.sent(now, beat);
                link.budget.record(now, false);
                return Output::Send(command::heartbeat(sequence));
            }
            None => {}
        }
        let mut wait = (link.heartbeat.next(), Timer::Heartbeat);
        match &mut self.state {
            State::Queued { ask_again, .. } => {
                if let Some(at) = *ask_again {
                    if now >= at {
                        *ask_again = None;
                        return Output::RequestPermit;
                    }
                    wait = wait.min_by_instant((at, Timer::Limiter));
                }
            }
            State::Identifying { deadline, .. } | State::Resuming { deadline, .. } => {
                wait = wait.min_by_instant((*deadline, Timer::Answer));
            }
            State::Ready { .. } => match self.poll_commands(now) {
                Ok(command) => return Output::SendCommand(command),
                Err(Some(free_at)) => wait = wait.min_by_instant((free_at, Timer::SendBudget)),
                Err(None) => {}
            },
            _ => {}
        }
        Output::Wait(Some(wait))
    }

    /// The next command that may go out; else when one may.
    fn poll_commands(&mut self, now: Instant) -> Result<Command, Option<Instant>> {
        let Some(link) = self.state.link_mut() else {
            return Err(None);
        };
        let presence_at = self
            .next_presence
            .as_ref()
            .map(|_| link.budget.command_at(now, true));
        if presence_at.is_some_and(|at| at <= now)
            && let Some(presence) = self.next_presence.take()
        {
            link.budget.record(now, true);
            return Ok(presence);
        }
        let budget_at = link.budget.command_at(now, false);
        if budget_at > now && !self.commands.is_empty() {
            return Err(Some(presence_at.map_or(budget_at, |at| at.min(budget_at))));
        }
        let free_at = |command: &Command| budget_at.max(self.members.free_at(now, command));
        if let Some(at) = self
            .commands
            .iter()
            .position(|command| free_at(command) <= now)
            && let Some(command) = self.commands.remove(at)
        {
            link.budget.record(now, false);
            self.members.record(
                now,
                &command,
                self.timing.members_window + self.timing.guard,
            );
            return Ok(command);
        }
        Err(self.commands.iter().map(free_at).chain(presence_at).min())
    }

    /// The connection is gone or given up: says so, and decides when to come back and with which
    /// session.
    fn lose(&mut self, now: Instant, reason: CloseReason) {
        if !self.state.is_connected() {
            return;
        }
        let recovery = match reason {
            CloseReason::Discord(code) => code.recovery(),
            CloseReason::InvalidSession { resumable: false } => Recovery::Identify,
            CloseReason::Malformed if self.is_stuck() => Recovery::Identify,
            _ => Recovery::Resume,
        };
        if let CloseReason::Discord(code) = reason
            && (code.is_our_fault() || recovery == Recovery::Stop)
        {
            log::error!("shard {}: {reason}", self.shard);
        }
        if recovery == Recovery::Stop {
            return self.stop(reason);
        }
        if matches!(
            (&self.state, reason),
            (
                State::Identifying { .. },
                CloseReason::InvalidSession { .. }
            )
        ) {
            log::warn!(
                "shard {}: the IDENTIFY was refused (op 9); it counts all the same",
                self.shard
            );
        }
        self.outbox.push_back(Output::Disconnect(match reason {
            CloseReason::Malformed
            | CloseReason::ReconnectRequested
            | CloseReason::InvalidSession { .. } => Some(RESUMABLE),
            _ => None,
        }));
        let retry_in = self.pause(now, reason, recovery);
        if self
            .most_short_sessions
            .is_some_and(|most| self.short_sessions.len() >= most.get() as usize)
        {
            return self.open_circuit();
        }
        self.change_state(|machine, state| {
            let mut start = state.into_start();
            if let (Start::Resume { session, .. }, Recovery::Identify) = (&start, recovery) {
                machine
                    .outbox
                    .push_back(Output::Report(Notice::SessionLost(session.clone())));
                start = Start::Identify;
            }
            let resumable = matches!(start, Start::Resume { .. });
            machine
                .outbox
                .push_back(Output::Report(Notice::Disconnected {
                    reason,
                    retry_in,
                    resumable,
                }));
            State::Waiting {
                until: now + retry_in,
                start,
            }
        });
    }

    /// Counts a payload that cannot be read; whether the session will never get past it.
    fn is_stuck(&mut self) -> bool {
        let sequence = self.session().map_or(0, |session| session.sequence);
        let (last, count) = self.unreadable;
        self.unreadable = (sequence, if sequence == last { count + 1 } else { 1 });
        self.unreadable.1 >= UNREADABLE
    }

    /// How long to stay away. Only a connection that was ready for a while makes the failures
    /// before it forgotten.
    fn pause(&mut self, now: Instant, reason: CloseReason, recovery: Recovery) -> Duration {
        let ready_since = match self.state {
            State::Ready { since, .. } => Some(since),
            _ => None,
        };
        let lasted = ready_since.is_some_and(|since| now >= since + self.timing.stable_after);
        if lasted {
            self.forget_failures();
        }

        // Discord may ask for that at any time: it is no failure, and the session is waiting.
        if reason == CloseReason::ReconnectRequested && ready_since.is_some() {
            return Duration::ZERO;
        }

        let jitter = self.rng.f64();
        let is_our_fault = matches!(reason, CloseReason::Discord(code) if code.is_our_fault());
        let cap = if ready_since.is_some() && !is_our_fault {
            self.timing.backoff_cap_ready
        } else {
            self.timing.backoff_cap
        };
        let base = self.timing.backoff_base;
        let mut pause = backoff::delay(base, cap.max(base), self.failures, jitter);
        self.failures = self.failures.saturating_add(1);

        let is_invalid = matches!(reason, CloseReason::InvalidSession { .. });
        if is_invalid
            || recovery == Recovery::Identify
            || matches!(self.state, State::Identifying { .. })
        {
            let is_wasted =
                recovery == Recovery::Identify || matches!(self.state, State::Identifying { .. });
            pause = pause.max(self.pause_of_waste(now, jitter, is_wasted));
            if !lasted {
                self.short_sessions.push_back(now);
            }
            let window = self.timing.circuit_window;
            self.short_sessions
                .retain(|at| now.saturating_duration_since(*at) <= window);
        }
        if is_invalid {
            let (min, max) = (
                self.timing.invalid_session_min,
                self.timing.invalid_session_max,
            );
            pause += min + max.saturating_sub(min).mul_f64(jitter);
        }
        pause
    }

    /// An IDENTIFY was wasted, or may be, of which there are few a day: the pauses grow long, and
    /// however long the sessions between them last, a shard wastes no more than its share.
    fn pause_of_waste(&mut self, now: Instant, jitter: f64, is_wasted: bool) -> Duration {
        let (base, cap) = (
            self.timing.invalid_session_max,
            self.timing.invalid_session_cap,
        );
        let pause = backoff::delay(base, cap, self.barren, jitter);
        self.barren = self.barren.saturating_add(1);
        if is_wasted {
            pause.max(self.waste.spend(now, self.timing.identify_reset))
        } else {
            pause
        }
    }

    fn forget_failures(&mut self) {
        self.failures = 0;
        self.barren = 0;
        self.short_sessions.clear();
    }

    /// Stops, so that no more IDENTIFYs are spent in vain.
    fn open_circuit(&mut self) {
        let most = self.short_sessions.len();
        log::error!(
            "shard {}: {most} sessions in a row never lasted; it stops until it is restarted",
            self.shard
        );
        if let Some(session) = self.session().cloned() {
            self.outbox
                .push_back(Output::Report(Notice::SessionLost(session)));
        }
        self.change_state(|_, _| State::Stopped {
            reason: CloseReason::CircuitOpen,
            session: None,
        });
    }

    /// Connects anew at once, and resumes if there is a session.
    fn restart(&mut self, now: Instant, identity: Identity) {
        if matches!(self.state, State::Stopped { .. }) {
            return;
        }
        self.identity = identity;
        self.forget_failures();
        self.unreadable = (0, 0);
        self.drop_unsent_starts();

        // With other intents only a new session will do, and nobody needs the old one any more.
        let intents = self.identity.intents;
        let misfit = self.session().cloned();
        let misfit = misfit.filter(|session| !session.fits(self.shard, intents));
        let was_connected = self.state.is_connected();
        if was_connected {
            let code = if misfit.is_some() { NORMAL } else { RESUMABLE };
            self.outbox.push_back(Output::Disconnect(Some(code)));
        }
        if let Some(session) = &misfit {
            log::warn!("shard {}: {}", self.shard, session.misfit(intents));
            self.outbox
                .push_back(Output::Report(Notice::SessionLost(session.clone())));
        }

        self.change_state(|machine, state| {
            let start = match misfit {
                Some(_) => Start::Identify,
                None => state.into_start(),
            };
            if was_connected {
                let notice = Notice::Disconnected {
                    reason: CloseReason::Restarted,
                    retry_in: Duration::ZERO,
                    resumable: matches!(start, Start::Resume { .. }),
                };
                machine.outbox.push_back(Output::Report(notice));
            }
            State::Waiting { until: now, start }
        });
    }

    /// What has not been sent must not be sent only to be closed upon.
    fn drop_unsent_starts(&mut self) {
        self.outbox.retain(|output| {
            !matches!(
                output,
                Output::Connect(_) | Output::Identify(_) | Output::RequestPermit
            )
        });
    }

    /// Stops for good. Only `suspend` leaves a session behind.
    fn stop(&mut self, reason: CloseReason) {
        if matches!(self.state, State::Stopped { .. }) {
            return;
        }
        let keeps = reason == CloseReason::Suspended;
        self.drop_unsent_starts();
        if self.state.is_connected() {
            self.outbox.push_back(Output::Disconnect(match reason {
                CloseReason::Discord(_) => None,
                _ if keeps => Some(RESUMABLE),
                _ => Some(NORMAL),
            }));
        }
        self.change_state(|_, state| {
            let session = match state.into_start() {
                Start::Resume { session, .. } if keeps => Some(session),
                _ => None,
            };
            State::Stopped { reason, session }
        });
    }

    /// Replaces the state by what `next` makes of it.
    fn change_state(&mut self, next: impl FnOnce(&mut Self, State) -> State) {
        let empty = State::Stopped {
            reason: CloseReason::Panicked,
            session: None,
        };
        let state = mem::replace(&mut self.state, empty);
        self.state = next(self, state);
    }
}

/// What a field holds, if it is of the expected type.
fn lenient<'a, T: Deserialize<'a>>(field: Option<&'a RawValue>) -> Option<T> {
    serde_json::from_str(field?.get()).ok()
}

/// The earlier of two deadlines, with its reason.
trait MinByInstant {
    fn min_by_instant(self, other: Self) -> Self;
}

impl MinByInstant for (Instant, Timer) {
    fn min_by_instant(self, other: Self) -> Self {
        if other.0 < self.0 { other } else { self }
    }
}

#[derive(Deserialize)]
struct Hello {
    heartbeat_interval: u64,
}

/// What a session needs of READY. Only its id must be there: a server that sends the others in
/// another type must not end the connection.
#[derive(Deserialize)]
struct Ready<'a> {
    session_id: String,
    #[serde(borrow)]
    resume_gateway_url: Option<&'a RawValue>,
    #[serde(borrow)]
    user: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct User {
    id: String,
}

#[derive(Deserialize)]
struct RateLimited {
    opcode: u64,
    /// In seconds.
    retry_after: f64,
    meta: RateLimitedGuild,
}

#[derive(Deserialize)]
struct RateLimitedGuild {
    guild_id: String,
}

#[cfg(test)]
mod tests;
