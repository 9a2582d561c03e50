//! The loop of a shard's thread: it carries out the machine's outputs, and waits in one place.
//!
//! The work between two waits is a [step](Thread::step), which never blocks except for a DNS
//! lookup.

mod deliver;
mod report;
mod send;

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use super::guilds::Guilds;
use super::members::{Request, Waiting};
use super::pace::{Pace, Turn};
use super::queue::Message;
use super::{Change, Context, Run, Shared};
use crate::clock;
use crate::config::ShardConfig;
use crate::delivery::Feed;
use crate::event::Room;
use crate::limit::{Permit, Ticket};
use crate::log_shard::log_shard;
use crate::protocol::{
    Beats, Command, Disconnect, Input, Machine, Output, ShardState, StopReason, Timer,
};
use crate::shard_id::ShardId;
use crate::transport::{Compression, Connector, Received, Transport, TransportError};

/// Calls code outside the shard. If it panics, the shard still continues.
fn guarded(action: impl FnOnce()) {
    // The panic itself has been reported by the panic hook.
    let _ = catch_unwind(AssertUnwindSafe(action));
}

/// The state of a shard's thread.
pub(crate) struct Thread<C: Connector> {
    // What it works with.
    machine: Box<Machine>,
    transport: Box<C::Transport>,
    shared: Arc<Shared>,
    config: ShardConfig,
    context: Arc<Context<C>>,
    feed: Arc<Feed>,
    guilds: Guilds,
    /// Requests for members that are not over.
    members: Waiting,
    /// When to read, to yield and to wait.
    pace: Pace,

    // Time.
    /// When something last happened.
    now: Instant,
    /// When the thread last waited, by the wall clock, which also advances while the machine sleeps.
    wall: SystemTime,
    /// When the last payload of a live session arrived. Replayed events and handshakes do not count,
    /// since they say nothing about the present.
    heard_at: Option<SystemTime>,

    // Waiting.
    /// The current wait.
    pause: Option<Pause>,
    /// Since when it waits for a permit to identify.
    queued_at: Option<Instant>,
    /// The place in the limiter's queue.
    ticket: Option<Ticket>,
    /// The permit for the next IDENTIFY.
    permit: Option<Permit>,

    // The current connection.
    /// How many messages were sent on it.
    sent: u64,
    /// Commands that the operating system has not taken completely, each with the number of messages
    /// that were sent with it.
    unwritten: VecDeque<(u64, Command)>,
    /// What the peer or the system says about its end.
    cause: Option<String>,

    // What was last published.
    /// The state that was reported to the owner.
    stage: Option<ShardState>,
    /// How many commands wait in the machine, and whether a presence does.
    queued: Option<(usize, bool)>,
    /// How far the session has been read.
    read_up_to: Option<Instant>,
    /// When the next probe may be sent, while two sets are compared.
    probe_at: Instant,
    /// A payload has arrived that is not published yet.
    has_heard: bool,
    /// The heartbeats that are counted.
    beats: Beats,

    // The end.
    /// A restart was requested after it had stopped.
    missed_restart: bool,
}

/// What the thread does after a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// It waits.
    Wait(Pause),
    /// It ends.
    Stop(StopReason),
}

/// What the thread waits for, besides its waker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Pause {
    pub(crate) until: Option<Instant>,
    /// Whether it also waits for something to read. A stalled shard does not.
    pub(crate) is_reading: bool,
    /// When the memory that only a busy connection needs is given back.
    shrink_at: Option<Instant>,
}

impl<C: Connector> Thread<C> {
    /// It is boxed, so that it never lies on the new thread's stack: stack memory that was touched
    /// once is not given back.
    pub(super) fn new(
        machine: Machine,
        transport: C::Transport,
        shared: Arc<Shared>,
        config: ShardConfig,
        context: Arc<Context<C>>,
        feed: Arc<Feed>,
    ) -> Box<Self> {
        Box::new(Self {
            machine: Box::new(machine),
            transport: Box::new(transport),
            shared,
            guilds: Guilds::new(context.timing.guilds_timeout),
            config,
            context,
            feed,
            members: Waiting::default(),
            pace: Pace::default(),
            now: clock::now(),
            wall: clock::wall(),
            heard_at: None,
            pause: None,
            queued_at: None,
            ticket: None,
            permit: None,
            sent: 0,
            unwritten: VecDeque::new(),
            cause: None,
            stage: None,
            queued: None,
            read_up_to: None,
            probe_at: clock::now(),
            has_heard: false,
            beats: Beats::default(),
            missed_restart: false,
        })
    }

    /// Which run it is.
    pub(crate) fn id(&self) -> Run {
        self.shared.run
    }

    /// Which shard it runs.
    pub(super) fn shard(&self) -> ShardId {
        self.shared.run.shard
    }

    /// The size of its stack in bytes.
    pub(super) fn stack_size(&self) -> usize {
        self.config.stack_size
    }

    /// Runs the shard until it stops, and reports the reason.
    pub(crate) fn run(mut self: Box<Self>) {
        let steps = AssertUnwindSafe(|| {
            loop {
                match self.step() {
                    Step::Wait(pause) => {
                        self.try_transport(|transport| {
                            transport.wait(pause.until, pause.is_reading)
                        });
                    }
                    Step::Stop(reason) => return reason,
                }
            }
        });

        let reason = catch_unwind(steps).unwrap_or(StopReason::Panicked);
        self.end(reason);
    }

    /// Does everything that is due before the next wait.
    pub(crate) fn step(&mut self) -> Step {
        if let Some(pause) = self.pause.take() {
            self.finish_wait(pause);
        }

        loop {
            if self.shared.waker.take() {
                self.take_messages();
            }

            match self.machine.poll(self.now) {
                Output::Wait(until) => {
                    self.pause = self.pause_or_read(until);
                    if let Some(pause) = self.pause {
                        return Step::Wait(pause);
                    }
                }
                Output::Stop(reason) => return Step::Stop(reason),
                output => self.act(output),
            }
        }
    }

    /// The shard has stopped.
    pub(crate) fn end(&mut self, reason: StopReason) {
        guarded(|| self.close(reason));
        self.notify(Change::ShardState(ShardState::Stopped(reason)));
    }

    /// Carries out an output of the machine.
    fn act(&mut self, output: Output) {
        match output {
            Output::Connect(target) => self.connect(&target),
            Output::RequestPermit => self.request_permit(),
            Output::RequestConfirmation => self.request_confirmation(),
            Output::Identify(secret) => self.identify(&secret),
            Output::Resume(secret) => self.resume(&secret),
            Output::Send(json) => self.send(json),
            Output::SendCommand(command) => self.send_command(command),
            Output::Deliver(payload) => self.deliver(payload),
            Output::DeliverMembers(chunk, payload) => self.deliver_members(chunk, payload),
            Output::FailMembers(request, failure) => self.members.fail(request, failure),
            Output::Skip(sequence) => self.skip(sequence),
            Output::Report(notice) => self.report(notice),
            Output::Disconnect(code) => self.disconnect(code),
            // `poll` returns these when nothing else is left; `step` handles them.
            Output::Wait(_) | Output::Stop(_) => {}
        }
    }

    fn handle(&mut self, input: Input) {
        self.pace.may_have_more();
        self.tick();
        self.machine.handle(self.now, input);
    }

    /// Looks at the clock, and at everything else before the next message.
    fn tick(&mut self) {
        self.now = clock::now();
        self.pace.tick();
    }

    /// Handles what other threads sent: commands, a stop, a permit. (Returned credit needs only the
    /// wake-up.)
    fn take_messages(&mut self) {
        self.pace.may_have_more();
        for message in self.shared.queue.take() {
            match message {
                Message::Command(command) => self.handle(Input::Command(command)),
                Message::RequestMembers(request) => {
                    let Request { request, replies } = *request;
                    self.members.insert(request.id(), replies);
                    self.handle(Input::RequestMembers(request));
                }
                Message::ForgetMembers(id) => {
                    self.members.remove(id);
                    self.handle(Input::CancelMembers(id));
                }
                Message::Probe => self.handle(Input::Probe),
                // The machine has stopped and is only closing the connection.
                Message::Restart(_) if matches!(self.machine.stage(), ShardState::Stopped(_)) => {
                    self.missed_restart = true;
                }
                Message::Restart(mut identity) => {
                    // The transport stays as it is.
                    identity.compress = self.config.compression == Compression::Payload;
                    self.handle(Input::Restart(identity));
                }
                Message::Stop(reason) => self.handle(Input::Stop(reason)),
            }
        }

        // What was taken counts as waiting; some of it may have been withdrawn or replaced.
        self.queued = None;

        match self.ticket.as_mut().map(Ticket::poll) {
            None | Some(Ok(None)) => {}
            Some(Ok(Some(permit))) => {
                self.ticket = None;
                self.permit = Some(permit);
                // Reads the socket's latest state, so that no permit is spent on a dead connection.
                self.try_transport(|transport| transport.wait(Some(clock::now()), true));
            }
            Some(Err(error)) => {
                self.ticket = None;
                self.refuse_permit(&error);
            }
        }
    }

    /// Reads while there is something to read and room to deliver it; else returns what to wait for.
    fn pause_or_read(&mut self, until: Option<(Instant, Timer)>) -> Option<Pause> {
        (self.now, self.wall) = (clock::now(), clock::wall());
        self.poll_guilds();
        self.publish_progress();
        self.probe_if_due();
        self.publish();

        let until = self.next_deadline(until.map(|(at, _)| at));
        let (room, stage) = (self.room(), self.machine.stage());
        let ledger = &self.shared.ledger;
        let is_live = stage == ShardState::Ready;
        let turn = self
            .pace
            .turn(self.now, room, is_live, || ledger.is_stalled());

        match turn {
            // The machine may have something to do before the wait.
            Turn::ReportStall => self.report_stall(),
            Turn::ReportStallEnded(stalled_for) => self.report_stall_ended(stalled_for),
            Turn::WaitForCredit => {
                self.notify_of_events();
                self.handle(Input::Stalled);
                return Some(Pause {
                    until,
                    is_reading: false,
                    shrink_at: None,
                });
            }
            Turn::Wait { shrink_at } => {
                self.shared.report.lock().latency = self.machine.latency();
                return Some(Pause {
                    until: until.into_iter().chain(shrink_at).min(),
                    is_reading: true,
                    shrink_at,
                });
            }
            Turn::Read => self.receive(),
        }

        None
    }

    /// The earliest moment at which something is due: a timer, the guilds, or a probe.
    fn next_deadline(&self, timer: Option<Instant>) -> Option<Instant> {
        let is_live = self.machine.stage() == ShardState::Ready;
        let guilds = self.guilds.deadline().filter(|_| is_live);
        let probe = (is_live && self.feed.is_merging()).then_some(self.probe_at);

        timer.into_iter().chain(guilds).chain(probe).min()
    }

    /// Handles the end of a wait, and gives back memory that an idle connection does not need.
    fn finish_wait(&mut self, pause: Pause) {
        if !pause.is_reading {
            return self.handle(Input::Stalled);
        }

        self.tick();
        if self.pace.shrinks(self.now, pause.shrink_at) {
            self.transport.shrink();
            self.shared.ledger.shrink();
        }
    }

    /// Reads several messages, as long as they are events to deliver.
    fn receive(&mut self) {
        while self.pace.may_read() {
            self.receive_one();
            while let Some(output) = self.machine.poll_at_once() {
                self.act(output);
            }
        }

        if self.pace.lets_others_run() {
            self.notify_of_events();
            std::thread::yield_now();
        }
    }

    fn receive_one(&mut self) {
        match self.transport.read() {
            Ok(Received::Payload(bytes)) => {
                self.has_heard = true;
                let is_live = self.machine.stage() == ShardState::Ready;
                self.pace.has_read(bytes.len());
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
                self.notify_of_events();
                self.handle(Input::Drained);
                self.pace.has_drained();

                if matches!(
                    self.machine.stage(),
                    ShardState::Queued | ShardState::Confirming
                ) {
                    self.use_permit();
                }
            }
            Err(error) => self.fail(&error),
        }
    }

    /// Whether the shard may read. Handshakes bring no events, so they continue without room.
    fn room(&self) -> Room {
        match self.machine.stage() {
            ShardState::Ready | ShardState::Resuming => self.shared.ledger.check(),
            _ => Room::Free,
        }
    }

    /// Does something with the transport. An error ends the connection.
    fn try_transport(
        &mut self,
        action: impl FnOnce(&mut C::Transport) -> Result<(), TransportError>,
    ) {
        if let Err(error) = action(&mut self.transport) {
            self.fail(&error);
        }
    }

    fn fail(&mut self, error: &TransportError) {
        let reason = match self.machine.stage() {
            ShardState::Connecting => Disconnect::ConnectFailed,
            _ if error.is_malformed() => Disconnect::Malformed,
            _ => Disconnect::ConnectionLost,
        };

        let cause = error.report();
        log_shard!(warn, self.shard(), "{cause}");
        self.cause = Some(cause);
        self.handle(Input::Failed(reason));
    }
}
