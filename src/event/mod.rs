//! What the user receives.

mod credit;
mod lease;

use std::time::Duration;

use serde::de::DeserializeOwned;

pub(crate) use credit::Credit;
pub(crate) use lease::{Lease, Ledger, Room};

use crate::protocol::{CloseReason, Notice, Payload, Session};
use crate::shard_id::ShardId;

/// Something that came from a shard.
///
/// An event of Discord holds credit of its shard until it is dropped or [released](Self::release); until then it counts
/// as not handled, and comes again if the process ends and starts again from the shard's session. A program that keeps
/// events for long should take what it needs out of them.
#[derive(Debug)]
pub struct Event {
    shard: ShardId,
    kind: EventKind,
    lease: Option<Lease>,
}

/// What came.
#[derive(Debug)]
#[non_exhaustive]
pub enum EventKind {
    /// An event of Discord.
    Dispatch(Dispatch),
    /// The shard opens a connection.
    Connecting {
        /// Whether to resume a session, else to start one.
        resuming: bool,
    },
    /// A new session has started; READY follows as a dispatch.
    Ready,
    /// Every guild that READY named has arrived as a `GUILD_CREATE`, or was waited for in vain; once for each session.
    GuildsReady {
        /// Guilds of the session, those included that are unavailable.
        guilds: usize,
        /// Those that did not arrive in time ([`Timing::guilds_timeout`](crate::Timing::guilds_timeout)).
        missing: usize,
    },
    /// The session goes on; everything missed has been delivered.
    Resumed,
    /// Discord ended the session. What it sent after `sequence` of this session is lost.
    SessionLost(Session),
    /// The connection is gone; the shard will try again.
    Disconnected {
        /// Why.
        reason: CloseReason,
        /// How long the shard waits before it connects again.
        retry_in: Duration,
        /// Whether it will resume, else identify.
        resumable: bool,
    },
    /// The shard has stopped reading until events that it delivered are handled.
    Stalled {
        /// Events that are outstanding.
        events: usize,
        /// Their size in bytes.
        bytes: usize,
    },
    /// The shard has stopped; nothing of it follows, unless it is opened again by hand.
    Closed(CloseReason),
    /// The shard held more guilds than Discord allows (4011) and has stopped; these take its place.
    Split {
        /// The shards that open now.
        into: Vec<ShardId>,
    },
    /// New shards have taken over from old ones; see [`ShardManager::reshard`](crate::ShardManager::reshard).
    Resharded {
        /// Those that ran until now; nothing of them follows but that they are closed.
        from: Vec<ShardId>,
        /// Those that run from now on. They are ready, and their guilds are in.
        to: Vec<ShardId>,
    },
}

impl Event {
    pub(crate) fn dispatch_of(shard: ShardId, payload: Payload, lease: Lease) -> Self {
        Self { shard, kind: EventKind::Dispatch(Dispatch(payload)), lease: Some(lease) }
    }

    pub(crate) fn of_shard(shard: ShardId, kind: EventKind) -> Self {
        Self { shard, kind, lease: None }
    }

    /// The shard that it came from.
    pub fn shard(&self) -> ShardId {
        self.shard
    }

    /// What came.
    pub fn kind(&self) -> &EventKind {
        &self.kind
    }

    /// The event of Discord, if it is one.
    pub fn dispatch(&self) -> Option<&Dispatch> {
        match &self.kind {
            EventKind::Dispatch(dispatch) => Some(dispatch),
            _ => None,
        }
    }

    /// A word for it: the name of Discord's event (`READY`), or that of the [`EventKind`] (`Ready`), which comes just
    /// before it.
    pub fn name(&self) -> &str {
        match &self.kind {
            EventKind::Dispatch(dispatch) => dispatch.name(),
            EventKind::Connecting { .. } => "Connecting",
            EventKind::Ready => "Ready",
            EventKind::GuildsReady { .. } => "GuildsReady",
            EventKind::Resumed => "Resumed",
            EventKind::SessionLost(_) => "SessionLost",
            EventKind::Disconnected { .. } => "Disconnected",
            EventKind::Stalled { .. } => "Stalled",
            EventKind::Closed(_) => "Closed",
            EventKind::Split { .. } => "Split",
            EventKind::Resharded { .. } => "Resharded",
        }
    }

    /// Counts it as handled and gives its credit back, before it is dropped.
    pub fn release(&mut self) {
        self.lease = None;
    }
}

impl From<Notice> for EventKind {
    fn from(notice: Notice) -> Self {
        match notice {
            Notice::Connecting { resuming } => Self::Connecting { resuming },
            Notice::Ready(_) => Self::Ready,
            Notice::Resumed => Self::Resumed,
            Notice::SessionLost(session) => Self::SessionLost(session),
            Notice::Disconnected { reason, retry_in, resumable } => Self::Disconnected { reason, retry_in, resumable },
        }
    }
}

/// An event of Discord: its name, its sequence, and its data as Discord sent it.
#[derive(Debug)]
pub struct Dispatch(Payload);

impl Dispatch {
    /// Its name, for example `MESSAGE_CREATE`.
    pub fn name(&self) -> &str {
        self.0.name().unwrap_or_default()
    }

    /// Its sequence within the session. `RESUMED` alone may have that of the event before it.
    pub fn sequence(&self) -> u64 {
        self.0.sequence().unwrap_or_default()
    }

    /// The JSON of its data.
    pub fn data(&self) -> &[u8] {
        self.0.data()
    }

    /// Reads its data as a `T`.
    pub fn decode<T: DeserializeOwned>(&self) -> Result<T, DecodeError> {
        serde_json::from_slice(self.data()).map_err(|source| DecodeError {
            event: self.name().to_owned(),
            sequence: self.sequence(),
            source,
        })
    }
}

/// The data of an event is not what the program takes it for.
#[derive(Debug, thiserror::Error)]
#[error("{event} (sequence {sequence}) does not decode")]
pub struct DecodeError {
    /// The event's name.
    pub event: String,
    /// Its sequence.
    pub sequence: u64,
    /// What does not fit, and where.
    pub source: serde_json::Error,
}
