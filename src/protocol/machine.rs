//! The state machine of a shard. All inputs and all opcodes are matched here.

mod confirm;
mod ending;
mod members;
mod permit;

use std::collections::VecDeque;
use std::mem;
use std::num::NonZeroU32;
use std::time::{Duration, Instant};

use bytes::Bytes;
use fastrand::Rng;

use self::confirm::Confirmation;
use super::close::{CloseCode, Disconnect, StopReason};
use super::command::{self, Command, Identity};
use super::event_name::EventName;
use super::heartbeat::{Beat, Beats, Heartbeat};
use super::incoming::{Hello, Ready};
use super::io::{Endpoint, Input, Notice, Output, Timer};
use super::member_requests::MemberRequests;
use super::outgoing::Outgoing;
use super::payload::{MalformedPayload, Payload};
use super::retry::Retry;
use super::send_budget::SendBudget;
use super::session::Session;
use super::state::{Link, ShardState, Start, State};
use crate::intents::Intents;
use crate::log_shard::log_shard;
use crate::shard_id::ShardId;
use crate::timing::Timing;

/// The number of connections in a row to a session's resume URL that may end before HELLO; the next
/// one uses the main URL.
const DEAD_CONNECTS: u32 = 3;

/// The largest number of scheduled heartbeats per send window. With many more, heartbeats alone
/// would use up the send limit.
const MAX_BEATS_PER_WINDOW: u32 = 60;

/// The shortest heartbeat interval. A simulator's short send window may allow a shorter one, but a
/// shard would then do nothing but send heartbeats.
const MIN_INTERVAL: Duration = Duration::from_millis(1);

/// The longest heartbeat interval. With a longer one, a dead connection would go unnoticed. Also
/// the longest pause that `RATE_LIMITED` can cause.
const MAX_INTERVAL: Duration = Duration::from_secs(60 * 60);

/// The close code for a connection whose session will be resumed.
const RESUMABLE: u16 = 4000;

/// The close code that ends a session.
const NORMAL: u16 = 1000;

/// The gateway protocol of one shard, without a socket, thread, clock or lock. The [module
/// documentation](super) describes its states and how to drive it.
#[derive(Debug)]
pub struct Machine {
    shard: ShardId,
    identity: Identity,
    timing: Timing,
    rng: Rng,
    state: State,
    outbox: VecDeque<Output>,
    outgoing: Outgoing,
    requests: MemberRequests,
    retry: Retry,
    beats: Beats,
    /// The confirmation before a RESUME; `None` if the shard resumes without one.
    confirmation: Option<Confirmation>,
}

impl Machine {
    /// Creates a machine that connects at once.
    ///
    /// It resumes `session` if the session belongs to this shard, and its intents are the same or
    /// not known. Otherwise it reports the session as lost. `seed` seeds the random numbers for
    /// jitter and for the nonces of requests for members.
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
                log_shard!(warn, shard, "{}", session.misfit(identity.intents));
                outbox.push_back(Output::Report(Notice::SessionLost(session)));
                Start::Identify
            }
            Some(session) => Start::Resume {
                session,
                dead_connects: 0,
            },
            None => Start::Identify,
        };

        let mut rng = Rng::with_seed(seed);
        Self {
            shard,
            identity,
            timing,
            requests: MemberRequests::new(rng.u32(..)),
            rng,
            state: State::Waiting { until: now, start },
            outbox,
            outgoing: Outgoing::default(),
            retry: Retry::new(now, shard),
            beats: Beats::default(),
            confirmation: None,
        }
    }

    /// Sets the circuit breaker: the shard stops with [`StopReason::CircuitOpen`] once this many
    /// sessions in a row have ended early, within [`Timing::circuit_window`]. Default: `None`, no
    /// circuit breaker.
    #[must_use]
    pub fn with_max_short_sessions(mut self, most: Option<NonZeroU32>) -> Self {
        self.retry.set_max_short_sessions(most);
        self
    }

    /// Sets the number of sessions that the bot may start in a day, over all its shards. Default:
    /// 1000.
    #[must_use]
    pub fn with_session_starts(mut self, now: Instant, total: u32) -> Self {
        self.retry.set_session_starts(now, self.shard, total);
        self
    }

    /// Sets whether the machine asks before each RESUME whether this process still owns the session
    /// ([`Output::RequestConfirmation`]). Default: `false`.
    #[must_use]
    pub fn with_confirmation(mut self, asks: bool) -> Self {
        self.confirmation = asks.then(Confirmation::default);
        self
    }

    /// Passes in an input: something that happened to the shard.
    pub fn handle(&mut self, now: Instant, input: Input) {
        match input {
            Input::Connected => self.handle_connected(now),
            Input::Payload(bytes) => match self.handle_payload(now, bytes) {
                Ok(()) => {}
                Err(malformed) => {
                    log_shard!(error, self.shard, "{malformed}");
                    self.lose(now, Disconnect::Malformed);
                }
            },
            Input::Drained => {
                if let Some(reason) = self.missing(now) {
                    self.lose(now, reason);
                }
            }
            Input::Stalled => self.extend_deadlines(now),
            Input::Closed(code) => {
                self.lose(
                    now,
                    code.map_or(Disconnect::ConnectionLost, |code| {
                        Disconnect::Discord(CloseCode(code))
                    }),
                );
            }
            Input::Failed(reason) => self.lose(now, reason),
            Input::Permit if matches!(self.state, State::Confirming { .. }) => self.confirm(now),
            Input::Permit => self.identify(now),
            Input::NoPermit => self.handle_no_permit(now),
            Input::Command(command) => self.outgoing.push(command),
            Input::Unsent(command) => self.handle_unsent(command),
            Input::RequestMembers(request) => self.request_members(request),
            Input::CancelMembers(id) => self.cancel_members(id),
            Input::Probe => {
                if let State::Ready { link, .. } = &mut self.state {
                    link.heartbeat.request();
                }
            }
            Input::Restart(identity) => self.restart(now, *identity),
            Input::Stop(reason) => self.stop(reason),
        }
    }

    /// Returns what the caller must do next. Call it until it returns [`Output::Wait`] or
    /// [`Output::Stop`].
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
            | State::Confirming { .. }
            | State::Resuming { .. }
            | State::Ready { .. } => self.poll_link(now),
            State::Stopped { reason, .. } => Output::Stop(*reason),
        }
    }

    /// Returns the next queued output, and ignores timers. With it, a caller can process several
    /// payloads before it calls [`poll`](Self::poll).
    pub fn poll_at_once(&mut self) -> Option<Output> {
        self.outbox.pop_front()
    }

    /// The state of the shard.
    pub fn stage(&self) -> ShardState {
        ShardState::from(&self.state)
    }

    /// The intents that the shard identifies with.
    pub fn intents(&self) -> Intents {
        self.identity.intents
    }

    /// The session that is live or will be resumed, with the last sequence received.
    pub fn session(&self) -> Option<&Session> {
        self.state.session()
    }

    /// The time from the last acknowledged heartbeat of this connection to the moment when its ACK
    /// was read. `None` before the first ACK.
    pub fn latency(&self) -> Option<Duration> {
        self.state.link()?.heartbeat.latency()
    }

    /// The heartbeat counts so far.
    pub fn beats(&self) -> Beats {
        self.beats
    }

    /// The instant up to which everything that Discord sent to this session has been read. `None`
    /// until an acknowledged heartbeat of this connection proves it.
    pub fn read_up_to(&self) -> Option<Instant> {
        self.state.link()?.heartbeat.read_up_to()
    }

    /// Sets a presence that replaces the identity's presence, as if a command had set it. The next
    /// IDENTIFY contains it, or it is sent once a session is resumed. A command that is not a
    /// presence counts as `None`.
    #[must_use]
    pub fn with_presence(mut self, presence: Option<Command>) -> Self {
        // A resumed session may show another presence, so this one is queued too.
        self.outgoing
            .set_presence(presence.filter(Command::is_presence));
        self
    }

    /// The number of queued commands, without a presence.
    pub fn queued_commands(&self) -> usize {
        self.outgoing.len()
    }

    /// Whether a presence is queued.
    pub fn has_queued_presence(&self) -> bool {
        self.outgoing.has_presence()
    }

    /// Takes the queued commands, except a presence and the commands of requests for members:
    /// another machine could not match the answers to the requests.
    pub fn take_commands(&mut self) -> VecDeque<Command> {
        let mut commands = self.outgoing.take();
        commands.retain(|command| !self.requests.is_own(command));
        commands
    }

    /// Why the connection must end, if something has not arrived in time. Call it only when the
    /// socket has nothing left to read.
    fn missing(&self, now: Instant) -> Option<Disconnect> {
        let is_late = |deadline: &Instant| now >= *deadline;
        match &self.state {
            State::Connecting { deadline, .. } if is_late(deadline) => {
                Some(Disconnect::ConnectFailed)
            }
            State::AwaitingHello { deadline, .. } if is_late(deadline) => {
                Some(Disconnect::HelloTimeout)
            }
            State::Identifying { deadline, .. } | State::Resuming { deadline, .. }
                if is_late(deadline) =>
            {
                Some(Disconnect::ReadyTimeout)
            }
            state => state
                .link()
                .is_some_and(|link| link.heartbeat.is_zombied(now))
                .then_some(Disconnect::Zombied),
        }
    }

    /// Restarts the waits for an ACK and for RESUMED: they may have arrived but not been read.
    fn extend_deadlines(&mut self, now: Instant) {
        if let Some(link) = self.state.link_mut() {
            link.heartbeat.extend_ack_deadline(now);
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
            7 => self.lose(now, Disconnect::ReconnectRequested),
            9 => {
                let resumable = payload.parse::<Option<bool>>()?.unwrap_or(false);
                self.lose(now, Disconnect::InvalidSession { resumable });
            }
            10 => self.handle_hello(now, &payload.parse()?)?,
            11 => {
                let is_live = matches!(self.state, State::Ready { .. });
                if let Some(link) = self.state.link_mut() {
                    link.heartbeat.acknowledge(now, is_live);
                }
            }
            op => {
                log_shard!(debug, self.shard, "ignored unknown opcode {op}");
            }
        }
        Ok(())
    }

    fn handle_hello(&mut self, now: Instant, hello: &Hello) -> Result<(), MalformedPayload> {
        let interval = Duration::from_millis(hello.heartbeat_interval);
        let shortest = (self.timing.send_window / MAX_BEATS_PER_WINDOW).max(MIN_INTERVAL);
        let allowed = shortest..=MAX_INTERVAL;
        if !allowed.contains(&interval) {
            return Err(MalformedPayload::HeartbeatInterval(
                hello.heartbeat_interval,
            ));
        }

        self.change_state(|machine, state| {
            let State::AwaitingHello { start, .. } = state else {
                return state;
            };
            let link = Link {
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
                Start::Resume { session, .. } => machine.confirm_or_resume(now, link, session),
            }
        });
        Ok(())
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

    /// Handles an event of the session that is live or being resumed.
    fn handle_event(&mut self, now: Instant, payload: Payload) {
        let (State::Resuming { session, .. } | State::Ready { session, .. }) = &mut self.state
        else {
            let name = payload.name().map_or("", EventName::as_str);
            log_shard!(warn, self.shard, "ignored {name}: no session is live");
            return;
        };

        let sequence = payload.sequence().unwrap_or(0);
        if sequence <= session.sequence && payload.name() != Some(&EventName::Resumed) {
            log_shard!(
                debug,
                self.shard,
                "dropped a redelivered event, sequence {sequence}"
            );
            return;
        }

        session.sequence = session.sequence.max(sequence);
        if let State::Resuming { deadline, .. } = &mut self.state {
            *deadline = now + self.timing.answer_timeout;
        }
        self.deliver(sequence, payload);
    }

    fn handle_ready(&mut self, now: Instant, payload: Payload) -> Result<(), MalformedPayload> {
        let ready: Ready<'_> = payload.parse()?;
        let session = ready
            .session(payload.sequence().unwrap_or(0), self.shard)?
            .with_intents(self.identity.intents);

        if self.session().is_some_and(|old| old.id == session.id) {
            // The READY of the current session, replayed or redelivered: handled like any event.
            self.handle_event(now, payload);
            return Ok(());
        }

        self.change_state(|machine, state| {
            let link = match state {
                State::Identifying { link, .. } => link,
                // The shard did not identify, but the session in this READY is the live one now.
                State::Resuming {
                    link, session: old, ..
                }
                | State::Ready {
                    link, session: old, ..
                } => {
                    machine.lose_session(old);
                    link
                }
                other => return other,
            };

            machine
                .outbox
                .push_back(Output::Report(Notice::Ready(session.clone())));
            machine.outbox.push_back(Output::Deliver(payload));
            machine.repeat_requests();
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
                machine.repeat_requests();
                State::Ready {
                    link,
                    session,
                    since: now,
                }
            }
            other => other,
        });
    }

    fn connect(&mut self, now: Instant) -> Output {
        let mut target = Endpoint::Main;
        self.change_state(|machine, state| {
            let start = state.into_start();
            match &start {
                Start::Resume {
                    session,
                    dead_connects,
                } if *dead_connects < DEAD_CONNECTS && !session.resume_url.is_empty() => {
                    target = Endpoint::Resume(session.resume_url.clone());
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

    /// Returns what a connection that has received HELLO needs: heartbeats first, then commands.
    fn poll_link(&mut self, now: Instant) -> Output {
        if let Some(heartbeat) = self.poll_heartbeat(now) {
            return heartbeat;
        }
        let Some(link) = self.state.link() else {
            return Output::Wait(None);
        };

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
            State::Confirming {
                deadline,
                ask_again,
                ..
            } => {
                if deadline.is_some_and(|deadline| now >= deadline) {
                    return self.resume_unconfirmed(now);
                }
                if ask_again.take_if(|at| now >= *at).is_some() {
                    return Output::RequestConfirmation;
                }
                for (at, timer) in [
                    (*deadline, Timer::Confirmation),
                    (*ask_again, Timer::Limiter),
                ] {
                    wait = at.map_or(wait, |at| wait.min_by_instant((at, timer)));
                }
            }
            State::Identifying { deadline, .. } | State::Resuming { deadline, .. } => {
                wait = wait.min_by_instant((*deadline, Timer::Answer));
            }
            State::Ready { link, .. } => {
                let members_window = self.timing.members_window + self.timing.guard;
                match self.outgoing.poll(now, &mut link.budget, members_window) {
                    Ok(command) => {
                        self.requests.note_sent(&command);
                        return Output::SendCommand(command);
                    }
                    Err(Some(free_at)) => wait = wait.min_by_instant((free_at, Timer::SendBudget)),
                    Err(None) => {}
                }
            }
            _ => {}
        }
        Output::Wait(Some(wait))
    }

    /// Returns the heartbeat that is due, if there is one.
    fn poll_heartbeat(&mut self, now: Instant) -> Option<Output> {
        let sequence = self.session().map(|session| session.sequence);
        let link = self.state.link_mut()?;
        let beat = link.heartbeat.poll(now)?;
        if beat == Beat::Requested && !link.budget.allows_requested_beat(now) {
            link.heartbeat.refuse_request();
            return None;
        }

        self.beats.sent += 1;
        self.beats.missed += u64::from(link.heartbeat.is_missed(beat));
        link.heartbeat.sent(now, beat);
        link.budget.record(now, false);
        Some(Output::Send(command::heartbeat(sequence)))
    }

    /// Replaces the state with the result of `next`.
    fn change_state(&mut self, next: impl FnOnce(&mut Self, State) -> State) {
        // Stays in place only if `next` panics.
        let empty = State::Stopped {
            reason: StopReason::Panicked,
            session: None,
        };
        let state = mem::replace(&mut self.state, empty);
        self.state = next(self, state);
    }
}

/// Picks the earlier of two deadlines, with its reason.
trait MinByInstant {
    fn min_by_instant(self, other: Self) -> Self;
}

impl MinByInstant for (Instant, Timer) {
    fn min_by_instant(self, other: Self) -> Self {
        if other.0 < self.0 { other } else { self }
    }
}

#[cfg(test)]
mod tests;
