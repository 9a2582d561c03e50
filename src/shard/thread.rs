//! The loop of a shard's thread: it does what the machine asks for, and waits in one place.

use std::collections::VecDeque;
use std::mem;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::guilds::{self, AllIn, Guild, Guilds};
use super::members::{Claim, Requests};
use super::queue::Order;
use super::{Change, Context, Shard, Shared, Status};
use crate::config::Config;
use crate::delivery::Outlet;
use crate::error::{Error, MembersFailure};
use crate::event::{Dispatch, Event, EventKind, Room};
use crate::intents::Intents;
use crate::limit::{LimitError, Permit, Ticket};
use crate::protocol::{
    CloseReason, Command, EventName, Input, Machine, Notice, Output, Payload, Secret, Stage,
    Target, Timer,
};
use crate::transport::{Compression, Connector, Received, Transport, TransportError};

/// So many messages are read before the clock is, and before others learn where the shard stands.
const READS_AT_ONCE: u32 = 32;

/// After so many bytes a shard wakes whoever waits for events and lets them run, who may be waiting
/// for its core: as much as fits into the cache of a core, so that memory which is freed meanwhile
/// is used again while it is warm.
const RUN_AHEAD: usize = 256 << 10;

/// How long nothing comes before a shard gives memory back that it needs under load.
const REST_AFTER: Duration = Duration::from_secs(2);

/// How often, in multiples of the skew between sessions, a shard makes sure how far it has read
/// while its events are compared with those of another set: each time costs one of the 120 payloads
/// a minute.
const SKEWS_PER_PROBE: u32 = 2;

/// Runs a shard until it stops, and tells everyone why it did.
pub(super) fn run<C: Connector>(mut thread: Box<Thread<'_, C>>) {
    let reason = catch_unwind(AssertUnwindSafe(|| thread.run())).unwrap_or(CloseReason::Panicked);
    thread.close(reason);
}

/// What the thread of a shard has.
pub(super) struct Thread<'a, C: Connector> {
    machine: Box<Machine>,
    transport: Box<C::Transport>,
    shared: Arc<Shared>,
    config: &'a Config,
    context: &'a Context<C>,
    outlet: &'a Outlet,
    guilds: Guilds,
    /// Requests for members whose answers have not come.
    requests: Requests,
    /// When something last happened.
    now: Instant,
    /// When the thread last waited, by the clock that does not stand still while the machine
    /// sleeps.
    wall: SystemTime,
    /// When a payload last came of a session that was live: what is replayed, or said on the way
    /// there, is no news of now.
    heard_at: Option<SystemTime>,
    stalled_since: Option<Instant>,
    /// How many commands wait in the machine, and whether a presence does, as far as others know.
    queued: Option<(usize, bool)>,
    /// How far the session has been read, as far as others know.
    read_up_to: Option<Instant>,
    /// When a heartbeat may be sent again to learn that, while two sets are compared.
    probe_at: Instant,
    /// What the owner was last told.
    stage: Option<Stage>,
    /// The last read found nothing; the next thing to do is to wait.
    dry: bool,
    /// How many messages may be read before anything else is looked at: the clock, orders, what is
    /// due.
    reads_left: u32,
    /// Nothing has come since memory was given back.
    is_rested: bool,
    /// Events delivered, and their bytes.
    delivered: (u64, u64),
    /// Whoever waits for events has not been told of the last ones.
    is_untold: bool,
    /// Bytes read since others were last let run.
    run_ahead: usize,
    ticket: Option<Ticket>,
    permit: Option<Permit>,
    /// How many messages were sent on this connection.
    sent: u64,
    /// Commands that the operating system has not taken as a whole, each with how many messages
    /// were sent with it.
    unwritten: VecDeque<(u64, Command)>,
    /// What the peer or the system says about the end of the connection.
    cause: Option<String>,
}

impl<'a, C: Connector> Thread<'a, C> {
    /// Boxed, and not inlined, so that it never lies on the thread's stack: what that touches once
    /// stays.
    #[inline(never)]
    pub(super) fn new(
        machine: Box<Machine>,
        transport: Box<C::Transport>,
        shared: Arc<Shared>,
        config: &'a Config,
        context: &'a Context<C>,
        outlet: &'a Outlet,
    ) -> Box<Self> {
        Box::new(Self {
            machine,
            transport,
            requests: Requests::new(shared.run),
            shared,
            config,
            context,
            outlet,
            guilds: Guilds::new(config.timing.guilds_timeout),
            now: Instant::now(),
            wall: SystemTime::now(),
            heard_at: None,
            stalled_since: None,
            queued: None,
            read_up_to: None,
            probe_at: Instant::now(),
            stage: None,
            dry: false,
            reads_left: 0,
            is_rested: false,
            delivered: (0, 0),
            is_untold: false,
            run_ahead: 0,
            ticket: None,
            permit: None,
            sent: 0,
            unwritten: VecDeque::new(),
            cause: None,
        })
    }

    fn run(&mut self) -> CloseReason {
        loop {
            if self.shared.waker.take() {
                self.take_orders();
            }
            match self.machine.poll(self.now) {
                Output::Wait(until) => self.wait(until),
                Output::Stop(reason) => return reason,
                output => self.act(output),
            }
        }
    }

    /// Does what the machine asks for at once.
    fn act(&mut self, output: Output) {
        match output {
            Output::Connect(target) => self.connect(&target),
            Output::RequestPermit => self.request_permit(),
            Output::Identify(secret) => self.identify(&secret),
            Output::Resume(secret) => {
                self.outlet.begin(self.shared.id, false);
                self.send_secret(&secret);
            }
            Output::Send(json) => self.send(json),
            Output::SendCommand(command) => self.send_command(command),
            Output::Deliver(payload) => self.deliver(payload),
            Output::Report(notice) => self.report(notice),
            Output::Disconnect(code) => self.disconnect(code),
            // Those come when nothing else does, and are `run`'s.
            Output::Wait(_) | Output::Stop(_) => {}
        }
    }

    fn handle(&mut self, input: Input) {
        self.dry = false;
        self.look_around();
        self.machine.handle(self.now, input);
    }

    /// Looks at the clock, and at everything else before the next message.
    fn look_around(&mut self) {
        self.now = Instant::now();
        self.reads_left = 0;
    }

    /// What other threads want: commands, a stop, a permit. (Returned credit needs no more than the
    /// wake-up.)
    fn take_orders(&mut self) {
        self.dry = false;
        for order in self.shared.queue.take() {
            match order {
                Order::Command(command) => self.handle(Input::Command(command)),
                Order::RequestMembers(request) => {
                    let command = self.requests.begin(request);
                    self.handle(Input::Command(command));
                }
                Order::ForgetMembers(id) => {
                    if let Some(nonce) = self.requests.forget(id) {
                        self.handle(Input::Withdrawn(nonce.into()));
                    }
                }
                Order::Probe => self.handle(Input::Probe),
                Order::Restart(mut identity) => {
                    // The transport stays as it is.
                    identity.compress = self.config.compression == Compression::Payload;
                    self.handle(Input::Restart(identity));
                }
                Order::Stop(reason) => self.handle(Input::Stop(reason)),
            }
        }
        // What was taken counts as waiting; some of it may have been withdrawn or replaced.
        self.queued = None;
        match self.ticket.as_mut().map(Ticket::poll) {
            None | Some(Ok(None)) => {}
            Some(Ok(Some(permit))) => {
                self.ticket = None;
                self.permit = Some(permit);
                // The socket's latest news, so that no permit is spent on a connection that is
                // known to be dead.
                self.check(|transport| transport.wait(Some(Instant::now()), true));
            }
            Some(Err(error)) => {
                self.ticket = None;
                self.refuse_permit(&error);
            }
        }
    }

    fn connect(&mut self, target: &Target) {
        let (addresses, compression) = (&self.context.addresses, self.config.compression);
        let url = match target {
            Target::Main => addresses.main(compression),
            Target::Resume(url) => addresses.resume(url, compression).unwrap_or_else(|| {
                log::warn!(
                    "shard {}: the resume url {url} is not trusted; the gateway's is used",
                    self.shared.id
                );
                addresses.main(compression)
            }),
        };
        // The look-up of the host may take long.
        self.tell_of_events();
        log::debug!(
            "shard {}: connecting to {}",
            self.shared.id,
            url.host_str().unwrap_or_default()
        );
        self.shared.status.lock().connects += 1;
        self.shared.resolving.store(true, Ordering::Release);
        let deadline = Instant::now() + self.config.timing.connect_timeout;
        self.check(|transport| transport.connect(&url, deadline));
        self.shared.resolving.store(false, Ordering::Release);
    }

    fn request_permit(&mut self) {
        let waker = self.shared.waker.clone();
        self.ticket = Some(
            self.context
                .limiter
                .request(self.shared.id, Box::new(move || waker.wake())),
        );
    }

    /// The limiter has none to give: for good, or for now.
    fn refuse_permit(&mut self, error: &LimitError) {
        if *error == LimitError::Closed {
            log::error!("shard {}: {error}", self.shared.id);
            return self.handle(Input::Stop(CloseReason::LimiterClosed));
        }
        let error = Error::from(error.clone());
        log::warn!("shard {}: {}; retrying", self.shared.id, error.report());
        self.handle(Input::NoPermit);
    }

    fn identify(&mut self, secret: &Secret) {
        // The machine asks only after a permit was handed in, and this thread hands in none but
        // this one.
        let Some(mut permit) = self.permit.take() else {
            return;
        };
        self.shared.status.lock().identifies += 1;
        self.shared
            .intents
            .store(self.machine.intents().bits(), Ordering::Relaxed);
        self.outlet.begin(self.shared.id, true);
        permit.spend(|| self.send_secret(secret));
        // A limiter that counts from READY wants it back then.
        self.permit = Some(permit);
    }

    fn send_secret(&mut self, secret: &Secret) {
        self.sent += 1;
        self.check(|transport| transport.send_secret(secret.expose()));
    }

    fn send(&mut self, json: String) {
        self.sent += 1;
        self.check(|transport| transport.send(json));
    }

    fn send_command(&mut self, command: Command) {
        let json = command.json().to_owned();
        self.requests.note_sent(&command, true);
        self.forget_written();
        self.unwritten.push_back((self.sent + 1, command));
        self.send(json);
        self.forget_written();
    }

    /// What the operating system has taken is not sent again.
    fn forget_written(&mut self) {
        let written = self.transport.written();
        while self
            .unwritten
            .front()
            .is_some_and(|(sent, _)| *sent <= written)
        {
            self.unwritten.pop_front();
        }
    }

    fn deliver(&mut self, payload: Payload) {
        // The machine asks for events alone.
        let Some(dispatch) = Dispatch::new(payload) else {
            return;
        };
        self.is_rested = false;
        let is_arrival = self.note_guild(&dispatch);
        if let Some(command) = self.requests.rate_limited(&dispatch) {
            self.handle(Input::Command(command));
        }
        let claim = self.requests.claim(&dispatch);
        let is_wanted = match claim {
            Claim::Not => self.config.events.passes(dispatch.name()),
            Claim::Part(_) => true,
            Claim::Forgotten => false,
        };
        if !is_wanted {
            self.shared.filtered.fetch_add(1, Ordering::Relaxed);
            return self.shared.ledger.skip(dispatch.sequence());
        }
        // Nobody else writes these.
        let size = dispatch.size();
        self.delivered = (self.delivered.0 + 1, self.delivered.1 + size as u64);
        self.shared
            .events
            .store(self.delivered.0, Ordering::Relaxed);
        self.shared.bytes.store(self.delivered.1, Ordering::Relaxed);
        let (lease, has_room) = self.shared.ledger.lease(dispatch.sequence(), size);
        if !has_room {
            self.reads_left = 0;
        }
        if let Claim::Part(mut part) = claim {
            if let Some(nonce) = part.needless.take() {
                self.handle(Input::Withdrawn(nonce.into()));
            }
            return self.requests.answer(part, dispatch, lease);
        }
        let event = Event::dispatch_of(self.shared.id, dispatch, lease);
        if is_arrival {
            self.outlet.put_arrival(self.now, event);
        } else {
            self.outlet.put(self.now, event);
        }
        self.is_untold = true;
    }

    /// Wakes whoever waits for events, if there are any.
    fn tell_of_events(&mut self) {
        if mem::take(&mut self.is_untold) {
            self.outlet.ring();
        }
    }

    /// Keeps track of the session's guilds. Returns whether this is the arrival of one that READY
    /// named.
    fn note_guild(&mut self, dispatch: &Dispatch) -> bool {
        let is_arrival = match dispatch.name() {
            EventName::Ready => {
                let arrive = self.machine.intents().contains(Intents::GUILDS);
                let ready: Option<guilds::Ready<'_>> = dispatch.parse();
                let is_readable = ready.is_some();
                let ready = ready.unwrap_or_default();
                let unread = self.guilds.ready(self.now, &ready, arrive);
                if unread > 0 || !is_readable {
                    let shard = self.shared.id;
                    log::warn!("shard {shard}: READY has guilds that cannot be read");
                }
                false
            }
            EventName::GuildCreate => {
                let is_available = || {
                    dispatch
                        .parse()
                        .is_none_or(|guild: Guild| guild.is_available())
                };
                self.guilds
                    .create(self.now, dispatch.guild_id(), is_available)
            }
            EventName::GuildDelete => {
                if let Some(guild) = dispatch.parse() {
                    self.guilds.delete(&guild);
                }
                false
            }
            _ => return false,
        };
        self.shared.status.lock().guilds = self.guilds.count();
        is_arrival
    }

    /// Says when all guilds are in.
    fn poll_guilds(&mut self) {
        if self.guilds.deadline().is_none() || self.machine.stage() != Stage::Ready {
            return;
        }
        if let Some(AllIn { guilds, missing }) = self.guilds.poll(Instant::now()) {
            log::info!(
                "shard {}: {} of {guilds} guilds are available",
                self.shared.id,
                guilds - missing
            );
            self.emit(EventKind::GuildsReady { guilds, missing });
            self.tell(Change::GuildsIn);
        }
    }

    fn report(&mut self, notice: Notice) {
        log::debug!("shard {}: {notice:?}", self.shared.id);
        let kind = match notice {
            Notice::Connecting { resuming } => EventKind::Connecting { resuming },
            Notice::Ready(session) => {
                self.permit = None;
                // READY itself, which follows as an event, has not been handled.
                let mark = session.sequence.saturating_sub(1);
                self.shared.ledger.begin(session, mark);
                self.outlet.ready(self.now, self.shared.id);
                log::info!("shard {}: ready", self.shared.id);
                EventKind::Ready
            }
            Notice::Resumed => {
                self.shared.status.lock().resumes += 1;
                self.outlet.ready(self.now, self.shared.id);
                self.guilds.resumed(Instant::now());
                log::info!("shard {}: resumed", self.shared.id);
                if self.guilds.deadline().is_none() {
                    // They had arrived before, perhaps in an earlier process.
                    self.tell(Change::GuildsIn);
                }
                let again = self.requests.resumed();
                self.send_again(again);
                EventKind::Resumed
            }
            Notice::SessionLost(session) => {
                self.shared.ledger.end();
                self.shared.status.lock().sessions_lost += 1;
                log::warn!(
                    "shard {}: session lost at sequence {}",
                    self.shared.id,
                    session.sequence
                );
                let again = self.requests.session_lost();
                self.send_again(again);
                // A session of an earlier process was heard of when it was saved.
                let saved_at = || UNIX_EPOCH.checked_add(Duration::from_secs(session.saved_at));
                let heard_at = self.heard_at.or_else(saved_at);
                let missed_since = heard_at.unwrap_or(UNIX_EPOCH);
                EventKind::SessionLost {
                    session,
                    missed_since,
                }
            }
            Notice::Disconnected {
                reason,
                retry_in,
                resumable,
            } => {
                self.shared.status.lock().last_disconnect = Some(reason);
                let cause = self.cause.take();
                let told = cause.as_deref().map(|cause| format!(" ({cause})"));
                log::info!(
                    "shard {}: {reason}{}; next connection in {retry_in:?}",
                    self.shared.id,
                    told.unwrap_or_default()
                );
                self.call_on_close(reason, true);
                EventKind::Disconnected {
                    reason,
                    cause,
                    retry_in,
                    resumable,
                }
            }
        };
        self.emit(kind);
    }

    /// Requests for members that may not have got through.
    fn send_again(&mut self, commands: Vec<Command>) {
        for command in commands {
            self.handle(Input::Command(command));
        }
    }

    /// Tells the user's callback. What it panics with must not end the shard.
    fn call_on_close(&self, reason: CloseReason, comes_back: bool) {
        let Some(on_close) = &self.config.on_close else {
            return;
        };
        if catch_unwind(AssertUnwindSafe(|| {
            on_close(self.shared.id, reason, comes_back);
        }))
        .is_err()
        {
            log::error!(
                "shard {}: the callback for closed connections panicked",
                self.shared.id
            );
        }
    }

    fn disconnect(&mut self, code: Option<u16>) {
        self.ticket = None;
        self.permit = None;
        // The peer's answer may take long.
        self.tell_of_events();
        self.transport
            .disconnect(code, Instant::now() + self.config.timing.close_timeout);
        self.forget_written();
        self.sent = 0;
        for (_, command) in mem::take(&mut self.unwritten).into_iter().rev() {
            self.requests.note_sent(&command, false);
            self.handle(Input::Unsent(command));
        }
    }

    /// Reads while there is something to read and credit to deliver it; else blocks, here and
    /// nowhere else.
    fn wait(&mut self, until: Option<(Instant, Timer)>) {
        (self.now, self.wall) = (Instant::now(), SystemTime::now());
        self.poll_guilds();
        self.publish_progress();
        self.publish();
        let guilds = self
            .guilds
            .deadline()
            .filter(|_| self.machine.stage() == Stage::Ready);
        let is_compared = self.outlet.is_merging() && self.machine.stage() == Stage::Ready;
        let probe = is_compared.then_some(self.probe_at);
        let until = until.map(|(at, _)| at);
        let until = until.into_iter().chain(guilds).chain(probe).min();
        let room = self.room();
        self.report_stall(room);
        if room != Room::Free {
            self.tell_of_events();
        }
        if room == Room::StalledNow {
            // What is to be said of it has been said; the machine may have something to do before
            // the wait.
        } else if room == Room::Stalled {
            self.handle(Input::Stalled);
            self.check(|transport| transport.wait(until, false));
            self.handle(Input::Stalled);
        } else if self.dry {
            self.dry = false;
            self.shared.status.lock().latency = self.machine.latency();
            self.wait_for_more(until);
        } else {
            self.receive();
        }
    }

    /// Reads several messages, as long as they are events that are to be delivered.
    fn receive(&mut self) {
        self.reads_left = READS_AT_ONCE;
        while self.reads_left > 0 && self.run_ahead <= RUN_AHEAD {
            self.reads_left -= 1;
            self.receive_one();
            while let Some(output) = self.machine.poll_at_once() {
                self.act(output);
            }
        }
        if self.run_ahead > RUN_AHEAD {
            self.run_ahead = 0;
            if self.is_untold {
                self.tell_of_events();
                std::thread::yield_now();
            }
        }
    }

    fn wait_for_more(&mut self, until: Option<Instant>) {
        let is_live = self.machine.stage() == Stage::Ready;
        let rest_at = (is_live && !self.is_rested).then(|| self.now + REST_AFTER);
        self.check(|transport| transport.wait(until.into_iter().chain(rest_at).min(), true));
        self.look_around();
        if rest_at.is_some_and(|at| self.now >= at) {
            self.is_rested = true;
            self.transport.rest();
            self.shared.ledger.rest();
        }
    }

    fn receive_one(&mut self) {
        match self.transport.read() {
            Ok(Received::Payload(bytes)) => {
                let is_live = self.machine.stage() == Stage::Ready;
                self.run_ahead += bytes.len();
                self.machine.handle(self.now, Input::Payload(bytes));
                if is_live {
                    self.heard_at = Some(self.wall);
                }
            }
            Ok(Received::Partial) => {}
            Ok(Received::Opened) => self.handle(Input::Connected),
            Ok(Received::Closed { code, reason }) => {
                self.cause = Some(reason).filter(|reason| !reason.is_empty());
                self.handle(Input::Closed(code));
            }
            Ok(Received::Nothing) => {
                self.tell_of_events();
                self.handle(Input::Drained);
                self.dry = true;
                if self.permit.is_some() && self.machine.stage() == Stage::Queued {
                    self.handle(Input::Permit);
                }
            }
            Err(error) => self.fail(&error),
        }
    }

    /// Whether the shard may read. Handshakes bring no events, so they go on.
    fn room(&self) -> Room {
        match self.machine.stage() {
            Stage::Ready | Stage::Resuming => self.shared.ledger.check(),
            _ => Room::Free,
        }
    }

    /// Says that the shard has stalled, and for how long it had.
    fn report_stall(&mut self, room: Room) {
        match self.stalled_since {
            None if room == Room::StalledNow => {
                let (events, bytes) = self.shared.ledger.outstanding();
                log::warn!(
                    "shard {}: stalled, {events} events of {bytes} bytes are not handled",
                    self.shared.id
                );
                self.set_stalled(Some(Instant::now()));
                self.emit(EventKind::Stalled { events, bytes });
            }
            Some(since) if !self.shared.ledger.is_stalled() => {
                let stalled_for = since.elapsed();
                log::info!(
                    "shard {}: reads again, after {stalled_for:.1?}",
                    self.shared.id
                );
                self.set_stalled(None);
                self.emit(EventKind::Unstalled { stalled_for });
            }
            _ => {}
        }
    }

    fn set_stalled(&mut self, since: Option<Instant>) {
        self.stalled_since = since;
        self.shared.status.lock().stalled_since = since;
    }

    /// Tells the shard's owner.
    fn tell(&self, change: Change) {
        (self.context.observer)(&Shard(Arc::clone(&self.shared)), change);
    }

    fn emit(&self, kind: EventKind) {
        self.outlet.put(self.now, Event::new(self.shared.id, kind));
        self.outlet.ring();
    }

    /// Does something with the transport; what fails there ends the connection.
    fn check(&mut self, action: impl FnOnce(&mut C::Transport) -> Result<(), TransportError>) {
        if let Err(error) = action(&mut self.transport) {
            self.fail(&error);
        }
    }

    fn fail(&mut self, error: &TransportError) {
        let reason = match self.machine.stage() {
            Stage::Connecting => CloseReason::ConnectFailed,
            _ if error.is_malformed() => CloseReason::Malformed,
            _ => CloseReason::Cut,
        };
        let cause = error.report();
        log::warn!("shard {}: {cause}", self.shared.id);
        self.cause = Some(cause);
        self.handle(Input::Failed(reason));
    }

    /// Says how far the session has been read. With a connection its heartbeats are gone, and with
    /// them the answer that somebody may be waiting for.
    fn publish_progress(&mut self) {
        let read_up_to = self.machine.read_up_to();
        if self.read_up_to != read_up_to {
            self.read_up_to = read_up_to;
            *self.shared.read_up_to.lock() = read_up_to;
            self.shared.probes.store(false, Ordering::Release);
            let skew = self.config.timing.session_skew;
            if let Some(at) = read_up_to.and_then(|at| at.checked_sub(skew)) {
                self.outlet.has_read(self.shared.id, at);
            }
        }
        if self.outlet.is_merging()
            && self.machine.stage() == Stage::Ready
            && self.now >= self.probe_at
        {
            self.probe_at = self.now + self.config.timing.session_skew * SKEWS_PER_PROBE;
            self.handle(Input::Probe);
        }
    }

    /// Tells where the shard stands, once all that led there has been done.
    fn publish(&mut self) {
        let stage = self.machine.stage();
        let queued = (
            self.machine.queued_commands(),
            self.machine.has_queued_presence(),
        );
        if self.queued != Some(queued) {
            self.queued = Some(queued);
            self.shared.queue.set_in_machine(queued.0, queued.1);
        }
        if self.stage != Some(stage) {
            self.stage = Some(stage);
            // Only a session that is live is asked how far it has been read.
            self.shared.probes.store(false, Ordering::Release);
            {
                let mut status = self.shared.status.lock();
                *status = Status {
                    stage,
                    since: Instant::now(),
                    ..*status
                };
            }
            self.tell(Change::Stage(stage));
        }
    }

    /// The shard has stopped: nothing is accepted any more, and everyone learns why.
    #[cold]
    fn close(&mut self, reason: CloseReason) {
        self.tell_of_events();
        if reason == CloseReason::Panicked {
            log::error!(
                "shard {}: the thread panicked; this is a bug",
                self.shared.id
            );
            self.transport.disconnect(None, Instant::now());
        }
        if reason != CloseReason::Suspended {
            self.shared.ledger.end();
        }
        let stage = Stage::Stopped(reason);
        {
            let mut status = self.shared.status.lock();
            *status = Status {
                stage,
                since: Instant::now(),
                latency: None,
                stalled_since: None,
                ..*status
            };
        }
        self.requests.fail_all(MembersFailure::Stopped(reason));
        let queued = self
            .shared
            .queue
            .close()
            .into_iter()
            .filter_map(|order| match order {
                Order::Command(command) => Some(command),
                Order::RequestMembers(request) => {
                    request.fail(MembersFailure::Stopped(reason));
                    None
                }
                Order::ForgetMembers(_) | Order::Probe | Order::Restart(_) | Order::Stop(_) => None,
            });
        let unsent = self.machine.take_commands().into_iter().chain(queued);
        let unsent = unsent.filter(|command| !self.requests.is_own(command));
        self.shared.unsent.lock().extend(unsent);
        let cause = self.cause.take().map(|cause| format!(" ({cause})"));
        log::info!(
            "shard {}: stopped: {reason}{}",
            self.shared.id,
            cause.unwrap_or_default()
        );
        self.call_on_close(reason, false);
        self.emit(EventKind::Closed(reason));
        self.outlet.end(self.shared.id);
        drop(self.ticket.take());
        drop(self.permit.take());
        // Handles and events that outlive the shard keep no descriptor of its.
        self.shared.waker.close();
        self.tell(Change::Stage(stage));
    }
}
