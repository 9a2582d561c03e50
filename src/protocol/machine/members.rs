//! Requests for members: which events answer them, and when they are sent again.

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

    /// Hands an event to the user, or to the request for members that it answers.
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

    /// Discord wants a pause before it tells of a guild's members again.
    ///
    /// Source: [Discord, Rate
    /// Limited](https://docs.discord.com/developers/events/gateway-events#rate-limited).
    pub(super) fn handle_rate_limited(&mut self, now: Instant, payload: &Payload) {
        // What cannot be read is still an event for the user.
        let limited: Option<RateLimited> = payload.parse().ok();
        let Some(limited) = limited.as_ref().and_then(RateLimited::members) else {
            return;
        };
        let pause = limited.pause.min(MAX_INTERVAL) + self.timing.guard;
        self.outgoing.pause_members(now, limited.guild, pause);

        // The same request once more, which waits for the pause.
        let nonce = limited.nonce;
        let command = nonce.and_then(|nonce| self.requests.rate_limited(nonce));
        self.push_commands(command);
    }

    /// A command that was to be sent was not.
    pub(super) fn handle_unsent(&mut self, command: Command) {
        if self.requests.note_unsent(&command) {
            self.outgoing.put_back(command);
        } else {
            self.outgoing.forget(&command);
        }
    }

    /// Requests for members that the last connection may not have carried.
    pub(super) fn repeat_requests(&mut self) {
        let commands = self.requests.live();
        self.push_commands(commands);
    }

    fn push_commands(&mut self, commands: impl IntoIterator<Item = Command>) {
        for command in commands {
            self.outgoing.push(command);
        }
    }

    /// A session is over, and with it the requests whose answers had begun to arrive.
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
