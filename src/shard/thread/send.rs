//! What the shard sends: connections, IDENTIFY and RESUME, commands.

use std::mem;
use std::sync::atomic::Ordering;

use super::Thread;
use crate::clock;
use crate::error::Error;
use crate::limit::LimitError;
use crate::log_shard::log_shard;
use crate::protocol::{Command, Endpoint, Input, Secret, ShardState, StopReason};
use crate::transport::{Connector, Transport};

impl<C: Connector> Thread<C> {
    pub(super) fn connect(&mut self, target: &Endpoint) {
        let (addresses, compression) = (&self.context.addresses, self.config.compression);
        let url = match target {
            Endpoint::Main => addresses.main(compression),
            Endpoint::Resume(url) => addresses.resume(url, compression).unwrap_or_else(|| {
                log_shard!(
                    warn,
                    self.shard(),
                    "the resume URL {url} is not trusted; using the gateway URL"
                );
                addresses.main(compression)
            }),
        };

        // The DNS lookup may take long.
        self.notify_of_events();
        log_shard!(
            debug,
            self.shard(),
            "connecting to {}",
            url.host().unwrap_or_default()
        );

        self.shared.resolving.store(true, Ordering::SeqCst);
        // An owner that requests a stop from here on sees that the shard may be resolving, and does
        // not wait for it.
        if self.shared.queue.has_stop() {
            self.shared.resolving.store(false, Ordering::SeqCst);
            return;
        }

        self.shared
            .counters
            .count(|counters| counters.connects += 1);
        self.queued_at = None;
        let deadline = clock::now() + self.context.timing.connect_timeout;
        self.try_transport(|transport| transport.connect(&url, deadline));
        self.shared.resolving.store(false, Ordering::SeqCst);
    }

    pub(super) fn request_permit(&mut self) {
        self.queued_at.get_or_insert_with(clock::now);
        let waker = self.shared.waker.clone();
        self.ticket = Some(
            self.context
                .limiter
                .request(self.shard(), Box::new(move || waker.wake())),
        );
    }

    /// Asks the session store whether this process may resume the session.
    pub(super) fn request_confirmation(&mut self) {
        let waker = self.shared.waker.clone();
        let store = self.context.store.as_ref();
        let ticket = store.and_then(|store| store.confirm(Box::new(move || waker.wake())));
        if ticket.is_none() {
            return self.handle(Input::Permit);
        }

        self.ticket = ticket;
    }

    /// Identifies or resumes, if there is a permit and it is still valid.
    pub(super) fn use_permit(&mut self) {
        match &self.permit {
            Some(permit) if permit.is_expired() => {
                log_shard!(
                    warn,
                    self.shard(),
                    "the permit expired before it could be used; requesting another"
                );
                self.permit = None;
                if self.machine.stage() == ShardState::Confirming {
                    self.request_confirmation();
                } else {
                    self.request_permit();
                }
            }
            Some(_) => {
                if self.machine.stage() == ShardState::Confirming {
                    // This permit only carries the store's confirmation.
                    self.permit = None;
                }
                self.handle(Input::Permit);
            }
            None => {}
        }
    }

    /// Handles a refusal of the limiter or the session store: stops the shard if it is final, else
    /// retries.
    pub(super) fn refuse_permit(&mut self, error: &LimitError) {
        if *error == LimitError::Closed && self.machine.stage() == ShardState::Confirming {
            return self.handle(Input::Stop(StopReason::OwnershipLost));
        }
        if *error == LimitError::Closed {
            log_shard!(error, self.shard(), "{error}");
            return self.handle(Input::Stop(StopReason::LimiterClosed));
        }

        let error = Error::from(error.clone());
        log_shard!(warn, self.shard(), "{}; retrying", error.report());
        self.handle(Input::NoPermit);
    }

    pub(super) fn resume(&mut self, secret: &Secret) {
        self.feed.begin(self.shard(), false);
        self.send_secret(secret);
    }

    pub(super) fn identify(&mut self, secret: &Secret) {
        // The machine identifies only after `Input::Permit`, and this thread passes that in only
        // while it holds this permit.
        let Some(mut permit) = self.permit.take() else {
            return;
        };

        let wait = self.queued_at.take().map(|since| clock::now() - since);
        self.shared.counters.count(|counters| {
            counters.identifies += 1;
            counters.identify_wait.record(wait.unwrap_or_default(), 1);
        });

        self.shared
            .intents
            .store(self.machine.intents().bits(), Ordering::Relaxed);
        self.feed.begin(self.shard(), true);
        permit.spend(|| self.send_secret(secret));
        // Kept until READY, for limiters that count from there.
        self.permit = Some(permit);
    }

    pub(super) fn send_secret(&mut self, secret: &Secret) {
        self.sent += 1;
        self.try_transport(|transport| transport.send_secret(secret.expose()));
    }

    pub(super) fn send(&mut self, json: String) {
        self.sent += 1;
        self.try_transport(|transport| transport.send(json));
    }

    pub(super) fn send_command(&mut self, command: Command) {
        let json = command.json().to_owned();
        self.forget_written();
        self.unwritten.push_back((self.sent + 1, command));
        self.send(json);
        self.forget_written();
    }

    /// Forgets the commands that the operating system has taken: they are not sent again.
    pub(super) fn forget_written(&mut self) {
        let written = self.transport.written();
        while self
            .unwritten
            .front()
            .is_some_and(|(sent, _)| *sent <= written)
        {
            self.unwritten.pop_front();
            self.shared
                .counters
                .count(|counters| counters.commands_sent += 1);
        }
    }

    pub(super) fn disconnect(&mut self, code: Option<u16>) {
        self.ticket = None;
        self.permit = None;

        // The peer's close frame may take long.
        self.notify_of_events();
        self.transport
            .disconnect(code, clock::now() + self.context.timing.close_timeout);

        self.forget_written();
        self.sent = 0;
        for (_, command) in mem::take(&mut self.unwritten).into_iter().rev() {
            self.handle(Input::Unsent(command));
        }
    }
}
