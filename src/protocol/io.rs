//! The contract between a shard's machine and the thread that drives it.

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
    Failed(Disconnect),
    /// It is this shard's turn to identify, or it may resume.
    Permit,
    /// The limiter or the session store failed; it may work again later.
    NoPermit,
    /// The user wants to say something.
    Command(Command),
    /// A command was asked to be sent, but the connection did not carry it.
    Unsent(Command),
    /// The user wants members of a guild.
    RequestMembers(MemberRequest),
    /// The request for members with this id was cancelled.
    CancelMembers(u32),
    /// The owner wants to know whether the connection is alive: a heartbeat is due, if the session
    /// is.
    Probe,
    /// The shard is to connect anew and resume, with this identity if it ever identifies again.
    /// What went wrong before is forgotten.
    Restart(Box<Identity>),
    /// The shard is to stop for good.
    Stop(StopReason),
}

/// Something that the machine asks for.
#[derive(Debug, PartialEq, Eq)]
pub enum Output {
    /// Open a connection.
    Connect(Endpoint),
    /// Take a place in the identify queue; answer with [`Input::Permit`].
    RequestPermit,
    /// Ask the session store whether this process may resume the session; answer with
    /// [`Input::Permit`].
    RequestConfirmation,
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
    /// Hand a `GUILD_MEMBERS_CHUNK` to the request that it answers.
    DeliverMembers(ChunkOf, Payload),
    /// The request for members with this id has failed.
    FailMembers(u32, MembersFailure),
    /// An event of this sequence came that nobody wants: it answers a request for members that is
    /// over.
    Skip(u64),
    /// Tell the user what happened to the shard.
    Report(Notice),
    /// Close the connection with a code, or drop it at once.
    Disconnect(Option<u16>),
    /// Nothing to do before that instant, or before the next input.
    Wait(Option<(Instant, Timer)>),
    /// Nothing to do ever again.
    Stop(StopReason),
}

/// Where to connect to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
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
        reason: Disconnect,
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
    /// The limiter or the session store may be asked again.
    Limiter,
    /// The session store takes too long: the session is resumed without its answer.
    Confirmation,
    /// A command may go out again.
    SendBudget,
}
