//! Reports about the shard: to its owner, handles, hooks, the log and the stream.
//!
//! `notify` calls the owner, `emit` writes to the stream, and `publish` updates what handles read.

use std::mem;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;
use std::time::{Duration, UNIX_EPOCH};

use super::{Thread, guarded};
use crate::clock;
use crate::config::{CloseCause, ConnectionClosed};
use crate::event::{Event, EventKind};
use crate::log_shard::log_shard;
use crate::protocol::{Input, MembersFailure, Notice, Session, ShardState, StopReason};
use crate::shard::queue::Message;
use crate::shard::{Change, members};
use crate::transport::{Connector, Transport};

/// How often a shard probes how far it has read, in multiples of the skew between sessions. It
/// probes only while its events are compared with those of another set. Each probe is a heartbeat,
/// one of the 120 payloads that it may send in a minute.
const SKEWS_PER_PROBE: u32 = 2;

impl<C: Connector> Thread<C> {
    pub(super) fn report(&mut self, notice: Notice) {
        log_shard!(debug, self.shard(), "{notice:?}");
        let kind = match notice {
            Notice::Connecting { resuming } => EventKind::Connecting { resuming },
            Notice::Ready(session) => self.begin_session(session),
            Notice::Resumed => self.resume_session(),
            Notice::SessionLost(session) => self.lose_session(session),
            Notice::Disconnected {
                reason,
                retry_in,
                resumable,
            } => {
                self.shared.report.lock().last_disconnect = Some(reason);
                self.shared
                    .counters
                    .count(|counters| *counters.disconnects.entry(reason).or_default() += 1);
                let cause = self.cause.take();

                let shown = cause.as_deref().map(|cause| format!(" ({cause})"));
                log_shard!(
                    info,
                    self.shard(),
                    { reason = reason },
                    "{reason}{}; reconnecting {}",
                    shown.unwrap_or_default(),
                    if retry_in.is_zero() {
                        "now".to_owned()
                    } else {
                        format!("in {retry_in:.1?}")
                    }
                );
                self.call_on_close(CloseCause::Disconnected(reason));

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

    fn begin_session(&mut self, session: Session) -> EventKind {
        self.permit = None;
        // READY itself, which follows as an event, has not been handled.
        let mark = session.sequence.saturating_sub(1);
        log_shard!(info, self.shard(), { session = session.id }, "ready");
        self.shared.ledger.begin(session, mark);
        self.feed.ready(self.now, self.shard());
        EventKind::SessionStarted
    }

    fn resume_session(&mut self) -> EventKind {
        self.shared.counters.count(|counters| counters.resumes += 1);
        self.feed.ready(self.now, self.shard());
        self.guilds.resumed(clock::now());
        let session = self.machine.session().map_or("", |session| &session.id);
        log_shard!(info, self.shard(), { session = session }, "resumed");

        if self.guilds.deadline().is_none() {
            // The guilds had arrived before, perhaps in an earlier process.
            self.notify_guilds_ready();
        }
        EventKind::Resumed
    }

    pub(super) fn notify_guilds_ready(&self) {
        self.shared.report.lock().guilds_ready = true;
        self.notify(Change::GuildsReady);
    }

    fn lose_session(&mut self, session: Session) -> EventKind {
        self.shared.ledger.end();
        self.shared
            .counters
            .count(|counters| counters.sessions_lost += 1);

        log_shard!(
            warn,
            self.shard(),
            { session = session.id },
            "session lost at sequence {}",
            session.sequence
        );

        // Without a payload in this process, the time when the session was saved is used.
        let saved_at = || UNIX_EPOCH.checked_add(Duration::from_secs(session.saved_at));
        let missed_since = self.heard_at.or_else(saved_at).unwrap_or(UNIX_EPOCH);
        EventKind::SessionLost {
            session,
            missed_since,
        }
    }

    /// Calls the user's callback. A panic in it must not end the shard.
    pub(super) fn call_on_close(&self, cause: CloseCause) {
        let Some(on_close) = &self.context.on_close else {
            return;
        };

        let closed = ConnectionClosed {
            shard: self.shard(),
            cause,
        };
        if catch_unwind(AssertUnwindSafe(|| on_close(closed))).is_err() {
            log_shard!(error, self.shard(), "the on_close callback panicked");
        }
    }

    pub(super) fn report_stall(&mut self) {
        self.notify_of_events();
        let (events, bytes) = self.shared.ledger.outstanding();
        log_shard!(
            warn,
            self.shard(),
            "stalled: {events} events ({bytes} bytes) are not handled yet"
        );

        self.shared.report.lock().stalled_since = Some(self.now);
        self.shared.counters.count(|counters| counters.stalls += 1);
        self.notify(Change::Stalled(true));
        self.emit(EventKind::Stalled { events, bytes });
    }

    pub(super) fn report_stall_ended(&mut self, stalled_for: Duration) {
        log_shard!(
            info,
            self.shard(),
            "reading resumed after {stalled_for:.1?}"
        );

        self.shared.report.lock().stalled_since = None;
        self.shared
            .counters
            .count(|counters| counters.stalled_for += stalled_for);
        self.notify(Change::Stalled(false));
        self.emit(EventKind::StallEnded { stalled_for });
    }

    /// Notifies the shard's owner.
    pub(super) fn notify(&self, change: Change) {
        (self.context.observer)(self.shared.run, change);
    }

    pub(super) fn emit(&self, kind: EventKind) {
        self.feed.put(self.now, Event::new(self.shard(), kind));
        self.feed.announce(self.shard());
    }

    /// Publishes how far the session has been read. A new probe may be requested then.
    pub(super) fn publish_progress(&mut self) {
        let read_up_to = self.machine.read_up_to();
        if self.read_up_to != read_up_to {
            self.read_up_to = read_up_to;
            *self.shared.read_up_to.lock() = read_up_to;
            self.shared.probes.store(false, Ordering::Release);
            let skew = self.context.timing.session_skew;
            if let Some(at) = read_up_to.and_then(|at| at.checked_sub(skew)) {
                self.feed.has_read(self.shard(), at);
            }
        }
    }

    /// Sends a probe if one is due.
    pub(super) fn probe_if_due(&mut self) {
        if self.feed.is_merging()
            && self.machine.stage() == ShardState::Ready
            && self.now >= self.probe_at
        {
            self.probe_at = self.now + self.context.timing.session_skew * SKEWS_PER_PROBE;
            self.handle(Input::Probe);
        }
    }

    /// Publishes the shard's state, after everything that led to it has been done.
    pub(super) fn publish(&mut self) {
        if mem::take(&mut self.has_heard) {
            self.shared.report.lock().heard_at = Some(self.now);
        }

        self.count_beats();
        if !self.unwritten.is_empty() {
            self.forget_written();
        }

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
            // The ACK of a probe is lost with its connection, so a new one may be requested.
            self.shared.probes.store(false, Ordering::Release);
            self.shared.report.lock().enter(stage, clock::now());
            self.notify(Change::ShardState(stage));
        }
    }

    fn count_beats(&mut self) {
        let beats = self.machine.beats();
        if self.beats != beats {
            let before = mem::replace(&mut self.beats, beats);
            self.shared.counters.count(|counters| {
                counters.heartbeats += beats.sent - before.sent;
                counters.missed_heartbeats += beats.missed - before.missed;
            });
        }
    }

    /// Ends a stopped shard: it accepts nothing more, and reports the reason.
    #[cold]
    pub(super) fn close(&mut self, reason: StopReason) {
        // Each call to other code is guarded separately: after a panic the others still run.
        guarded(|| self.notify_of_events());
        if reason == StopReason::Panicked {
            guarded(|| {
                log_shard!(error, self.shard(), "the thread panicked; this is a bug");
            });
            guarded(|| self.transport.disconnect(None, clock::now()));
        }

        // After these two, the shard's next run can resume the session.
        if !matches!(reason, StopReason::Suspended | StopReason::Panicked) {
            self.shared.ledger.end();
        }

        let stalled_since = {
            let mut report = self.shared.report.lock();
            report.enter(ShardState::Stopped(reason), clock::now());
            report.latency = None;
            report.stalled_since.take()
        };
        let stalled_for = stalled_since.map(|since| clock::now().saturating_duration_since(since));
        self.shared
            .counters
            .count(|counters| counters.stalled_for += stalled_for.unwrap_or_default());

        self.count_beats();
        self.close_queue(reason);

        let cause = self.cause.take().map(|cause| format!(" ({cause})"));
        guarded(|| {
            log_shard!(
                info,
                self.shard(),
                { reason = reason },
                "stopped: {reason}{}",
                cause.unwrap_or_default()
            );
        });
        guarded(|| self.call_on_close(CloseCause::Stopped(reason)));
        guarded(|| self.emit(EventKind::Stopped(reason)));
        guarded(|| self.feed.end(self.shard()));

        let (ticket, permit) = (self.ticket.take(), self.permit.take());
        guarded(|| drop(ticket));
        guarded(|| drop(permit));

        // Handles and events that outlive the shard must not keep its file descriptor open.
        self.shared.waker.close();
    }

    /// Closes the queue. Unsent commands are kept for `Shard::take_unsent`.
    fn close_queue(&mut self, reason: StopReason) {
        self.members.fail_all(MembersFailure::Stopped(reason));
        let mut missed_restart = self.missed_restart;
        let mut queued = Vec::new();

        for message in self.shared.queue.close() {
            match message {
                Message::Command(command) => queued.push(command),
                Message::RequestMembers(request) => {
                    members::fail(&request.replies, MembersFailure::Stopped(reason));
                }
                Message::Restart(_) => missed_restart = true,
                Message::ForgetMembers(_) | Message::Probe | Message::Stop(_) => {}
            }
        }

        if missed_restart {
            self.notify(Change::MissedRestart);
        }
        let unsent = self.machine.take_commands().into_iter().chain(queued);
        self.shared.unsent.lock().extend(unsent);
    }
}
