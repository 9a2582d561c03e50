//! The states of a shard, each with exactly the data that is legal in it.

use std::time::Instant;

use serde::{Serialize, Serializer};

use super::close::StopReason;
use super::heartbeat::Heartbeat;
use super::send_budget::SendBudget;
use super::session::Session;

/// The state of a shard. The module documentation of [`protocol`](super) shows the transitions.
#[derive(Debug)]
pub(crate) enum State {
    Waiting {
        until: Instant,
        start: Start,
    },
    Connecting {
        deadline: Instant,
        start: Start,
    },
    AwaitingHello {
        deadline: Instant,
        start: Start,
    },
    Queued {
        link: Link,
        /// When to request a permit again, if the limiter has failed.
        ask_again: Option<Instant>,
    },
    Identifying {
        link: Link,
        deadline: Instant,
    },
    Confirming {
        link: Link,
        session: Session,
        /// When the session is resumed without the store's answer; `None` if it must wait for one.
        deadline: Option<Instant>,
        /// When to request confirmation again, if the store has failed.
        ask_again: Option<Instant>,
    },
    Resuming {
        link: Link,
        session: Session,
        deadline: Instant,
    },
    Ready {
        link: Link,
        session: Session,
        since: Instant,
    },
    Stopped {
        reason: StopReason,
        session: Option<Session>,
    },
}

/// How the next connection starts its session.
#[derive(Debug)]
pub(crate) enum Start {
    Identify,
    Resume {
        session: Session,
        /// The number of connections in a row that ended before HELLO.
        dead_connects: u32,
    },
}

/// The data of one connection, created again for the next.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) heartbeat: Heartbeat,
    pub(crate) budget: SendBudget,
}

impl State {
    pub(crate) fn link(&self) -> Option<&Link> {
        match self {
            Self::Queued { link, .. }
            | Self::Identifying { link, .. }
            | Self::Confirming { link, .. }
            | Self::Resuming { link, .. }
            | Self::Ready { link, .. } => Some(link),
            _ => None,
        }
    }

    pub(crate) fn link_mut(&mut self) -> Option<&mut Link> {
        match self {
            Self::Queued { link, .. }
            | Self::Identifying { link, .. }
            | Self::Confirming { link, .. }
            | Self::Resuming { link, .. }
            | Self::Ready { link, .. } => Some(link),
            _ => None,
        }
    }

    pub(crate) fn session(&self) -> Option<&Session> {
        match self {
            Self::Waiting {
                start: Start::Resume { session, .. },
                ..
            }
            | Self::Connecting {
                start: Start::Resume { session, .. },
                ..
            }
            | Self::AwaitingHello {
                start: Start::Resume { session, .. },
                ..
            }
            | Self::Confirming { session, .. }
            | Self::Resuming { session, .. }
            | Self::Ready { session, .. }
            | Self::Stopped {
                session: Some(session),
                ..
            } => Some(session),
            _ => None,
        }
    }

    /// How the next connection starts, given the state of this one.
    pub(crate) fn into_start(self) -> Start {
        match self {
            Self::Waiting { start, .. } => start,
            Self::Connecting { start, .. } | Self::AwaitingHello { start, .. } => match start {
                Start::Resume {
                    session,
                    dead_connects,
                } => Start::Resume {
                    session,
                    dead_connects: dead_connects.saturating_add(1),
                },
                Start::Identify => Start::Identify,
            },
            Self::Confirming { session, .. }
            | Self::Resuming { session, .. }
            | Self::Ready { session, .. }
            | Self::Stopped {
                session: Some(session),
                ..
            } => Start::Resume {
                session,
                dead_connects: 0,
            },
            Self::Queued { .. }
            | Self::Identifying { .. }
            | Self::Stopped { session: None, .. } => Start::Identify,
        }
    }

    /// Whether a connection is open or being opened.
    pub(crate) fn is_connected(&self) -> bool {
        !matches!(self, Self::Waiting { .. } | Self::Stopped { .. })
    }
}

/// The state of a shard, as its owner sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ShardState {
    /// Waiting before the next attempt to connect.
    Waiting,
    /// Opening a connection: TCP, TLS and the websocket upgrade.
    Connecting,
    /// Connected; HELLO has not arrived.
    AwaitingHello,
    /// Connected and heartbeating, waiting for a permit to identify.
    Queued,
    /// IDENTIFY is sent; READY has not arrived.
    Identifying,
    /// Connected and heartbeating; the session store is asked whether this process may resume the
    /// session.
    Confirming,
    /// RESUME is sent and Discord replays events; RESUMED has not arrived.
    Resuming,
    /// The session is live.
    Ready,
    /// The shard has stopped and does not reconnect by itself.
    Stopped(StopReason),
}

impl From<&State> for ShardState {
    fn from(state: &State) -> Self {
        match state {
            State::Waiting { .. } => Self::Waiting,
            State::Connecting { .. } => Self::Connecting,
            State::AwaitingHello { .. } => Self::AwaitingHello,
            State::Queued { .. } => Self::Queued,
            State::Identifying { .. } => Self::Identifying,
            State::Confirming { .. } => Self::Confirming,
            State::Resuming { .. } => Self::Resuming,
            State::Ready { .. } => Self::Ready,
            State::Stopped { reason, .. } => Self::Stopped(*reason),
        }
    }
}

/// Serializes the [`Display`](std::fmt::Display) text.
impl Serialize for ShardState {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl std::fmt::Display for ShardState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Waiting => "waiting",
            Self::Connecting => "connecting",
            Self::AwaitingHello => "awaiting hello",
            Self::Queued => "queued",
            Self::Identifying => "identifying",
            Self::Confirming => "confirming",
            Self::Resuming => "resuming",
            Self::Ready => "ready",
            Self::Stopped(reason) => return write!(f, "stopped: {reason}"),
        })
    }
}
