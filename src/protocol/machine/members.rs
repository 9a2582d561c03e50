//! Requests for members: which events answer them, and when they are retried.

use std::time::Instant;

use super::super::command::Command;
use super::super::incoming::RateLimited;
use super::super::io::{Notice, Output};
use super::super::member_requests::{Claim, MemberRequest, MembersFailure};
use super::super::payload::Payload;
use super::super::session::Session;
use super::{MAX_INTERVAL, Machine};

impl Machine {
    pub(super) fn request_members(&mut self, request: MemberRequest) {
        let command = self.requests.begin(request);
        self.push_commands(command);
    }

    pub(super) fn cancel_members(&mut self, id: u32) {
        if let Some(nonce) = self.requests.cancel(id) {
            self.outgoing.cancel(&nonce);
        }
    }

    /// Delivers an event to the user, or to the request for members that it answers.
    pub(super) fn deliver(&mut self, sequence: u64, payload: Payload) {
        let output = match self.requests.claim(&payload) {
            Claim::None => Output::Deliver(payload),
            Claim::Unwanted => Output::Skip(sequence),
            Claim::Malformed(request) => {
                self.fail_members(request, MembersFailure::Malformed);
                Output::Skip(sequence)
            }
            Claim::Chunk { chunk, needless } => {
                if let Some(nonce) = needless {
                    self.outgoing.cancel(&nonce);
                }
                Output::DeliverMembers(chunk, payload)
            }
        };
        self.outbox.push_back(output);
    }

    /// Handles `RATE_LIMITED`: Discord requires a pause before the next request for members of a
    /// guild.
    ///
    /// Source: [Discord, Rate
    /// Limited](https://docs.discord.com/developers/events/gateway-events#rate-limited).
    pub(super) fn handle_rate_limited(&mut self, now: Instant, payload: &Payload) {
        // If it cannot be read, there is nothing to do here; the user still receives the event.
        let limited: Option<RateLimited> = payload.parse().ok();
        let Some(limited) = limited.as_ref().and_then(RateLimited::members) else {
            return;
        };
        let pause = limited.pause.min(MAX_INTERVAL) + self.timing.guard;
        self.outgoing.pause_members(now, limited.guild, pause);

        // Retry the request; the new command waits for the pause.
        let nonce = limited.nonce;
        let command = nonce.and_then(|nonce| self.requests.rate_limited(nonce));
        self.push_commands(command);
    }

    /// Handles a command that was not sent before the connection ended.
    pub(super) fn handle_unsent(&mut self, command: Command) {
        if self.requests.note_unsent(&command) {
            self.outgoing.put_back(command);
        } else {
            self.outgoing.forget(&command);
        }
    }

    /// Retries the requests for members that the last connection may have lost.
    pub(super) fn repeat_requests(&mut self) {
        let commands = self.requests.live();
        self.push_commands(commands);
    }

    fn push_commands(&mut self, commands: impl IntoIterator<Item = Command>) {
        for command in commands {
            self.outgoing.push(command);
        }
    }

    /// Reports a session as lost, and fails the requests whose answers had begun to arrive.
    pub(super) fn lose_session(&mut self, session: Session) {
        for request in self.requests.session_lost() {
            self.fail_members(request, MembersFailure::SessionLost);
        }
        self.outbox
            .push_back(Output::Report(Notice::SessionLost(session)));
    }

    fn fail_members(&mut self, request: u32, failure: MembersFailure) {
        self.outbox.push_back(Output::FailMembers(request, failure));
    }
}
