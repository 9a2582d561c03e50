//! The inputs and outputs of a shard's [`Machine`](super::Machine), between it and the thread that
//! drives it.

use std::time::{Duration, Instant};

use bytes::Bytes;

use super::close::{Disconnect, StopReason};
use super::command::{Command, Identity, Secret};
use super::member_requests::{ChunkOf, MemberRequest, MembersFailure};
use super::payload::Payload;
use super::session::Session;

/// Something that happened to a shard.
#[derive(Debug)]
pub enum Input {
    /// The requested connection is open.
    Connected,
    /// A payload arrived.
    Payload(Bytes),
    /// The socket has nothing left to read. Only this input makes the machine check whether HELLO,
    /// READY, RESUMED or an ACK is missing.
    Drained,
    /// The shard has paused reading, because events that it delivered have not been handled yet.
    /// This extends the deadlines for an ACK and for RESUMED.
    Stalled,
    /// The peer sent a close frame, with or without a code.
    Closed(Option<u16>),
    /// The connection failed or can no longer be used.
    Failed(Disconnect),
    /// The shard may identify now, or, after [`Output::RequestConfirmation`], resume.
    Permit,
    /// The limiter or the session store failed. The machine requests again after a pause.
    NoPermit,
    /// The user sends a command.
    Command(Command),
    /// A command from [`Output::SendCommand`] was not sent before the connection ended.
    Unsent(Command),
    /// The user requests members of a guild.
    RequestMembers(MemberRequest),
    /// The request for members with this id was cancelled.
    CancelMembers(u32),
    /// The owner checks whether the connection is alive: the machine sends a heartbeat at once if
    /// the session is live, and otherwise ignores this.
    Probe,
    /// The shard must reconnect at once and resume its session. This identity replaces the old one,
    /// and counted failures are reset. With other intents the session cannot be resumed, and a new
    /// one is started.
    Restart(Box<Identity>),
    /// The shard must stop permanently.
    Stop(StopReason),
}

/// What the caller must do next.
#[derive(Debug, PartialEq, Eq)]
pub enum Output {
    /// Open a connection.
    Connect(Endpoint),
    /// Join the identify queue; answer with [`Input::Permit`] or [`Input::NoPermit`].
    RequestPermit,
    /// Ask the session store whether this process may resume the session; answer with
    /// [`Input::Permit`] or [`Input::NoPermit`].
    RequestConfirmation,
    /// Send a heartbeat.
    Send(String),
    /// Send this RESUME.
    Resume(Secret),
    /// Send this IDENTIFY, which uses the permit.
    Identify(Secret),
    /// Send a command; return it as [`Input::Unsent`] if the connection ends before it is sent.
    SendCommand(Command),
    /// Deliver an event to the user.
    Deliver(Payload),
    /// Deliver a `GUILD_MEMBERS_CHUNK` to the request that it answers.
    DeliverMembers(ChunkOf, Payload),
    /// The request for members with this id has failed.
    FailMembers(u32, MembersFailure),
    /// Count the event with this sequence as handled, without delivering it: it is a member chunk
    /// that cannot be read, or that no open request needs.
    Skip(u64),
    /// Report to the user what happened to the shard.
    Report(Notice),
    /// Close the connection with this code; without a code, drop it at once.
    Disconnect(Option<u16>),
    /// Do nothing until this instant or the next input, whichever comes first.
    Wait(Option<(Instant, Timer)>),
    /// The shard has stopped; there is nothing more to do.
    Stop(StopReason),
}

/// Where to connect to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// The URL from `/gateway/bot`.
    Main,
    /// The session's [`resume_url`](Session::resume_url).
    Resume(String),
}

/// What happened to a shard, in terms of its session.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Notice {
    /// A connection is being opened.
    Connecting {
        /// Whether to resume a session; `false` to start a new one.
        resuming: bool,
    },
    /// A new session has started.
    Ready(Session),
    /// The session was resumed, and Discord has replayed the missed events.
    Resumed,
    /// The session is over. Events after its last sequence are lost.
    SessionLost(Session),
    /// The connection was lost; the shard will reconnect.
    Disconnected {
        /// Why it was lost.
        reason: Disconnect,
        /// How long the shard waits before it reconnects.
        retry_in: Duration,
        /// Whether the shard will then resume its session; `false` if it will identify.
        resumable: bool,
    },
}

/// Why a shard wakes up without an input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Timer {
    /// The pause before the next connection is over.
    Reconnect,
    /// Opening the connection has taken too long.
    Connect,
    /// HELLO has taken too long.
    Hello,
    /// A heartbeat is due.
    Heartbeat,
    /// READY or RESUMED has taken too long.
    Answer,
    /// The pause after a failure of the limiter or the session store is over; the machine requests
    /// again.
    Limiter,
    /// The session store has taken too long: the session is resumed without its answer.
    Confirmation,
    /// A rate limit allows the next command.
    SendBudget,
}
