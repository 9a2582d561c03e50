//! The events that the user receives.

mod credit;
mod dispatch;
mod filter;
mod lease;
#[cfg(feature = "model")]
mod typed;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

pub(crate) use credit::Credit;
pub(crate) use dispatch::Id;
pub use dispatch::{DecodeError, Dispatch};
pub use filter::EventFilter;
pub(crate) use lease::{Lease, Ledger, Room, Times, Twin};

use crate::protocol::{Disconnect, Session, StopReason};
use crate::shard_id::ShardId;

/// The word for [`EventKind::HandlerPanicked`].
pub(crate) const HANDLER_PANICKED: &str = "HandlerPanicked";

/// An event of a shard: one that Discord sent, or a change in the state of the shard.
///
/// An event from Discord counts towards its shard's outstanding limit until it is dropped or
/// [released](Self::release). Until then it counts as not handled, and is redelivered if the
/// process restarts and resumes the shard's session.
///
/// Events may be handled in any order, on any thread. An event that is kept, in a cache or by
/// [`std::mem::forget`], stays unhandled: it and all later events are redelivered after a restart,
/// and enough such events [stall](EventKind::Stalled) the shard permanently. To keep an event's
/// content, copy it out, or [release](Self::release) the event; a released event still uses its
/// memory (see [`Dispatch`]).
#[derive(Debug)]
pub struct Event {
    shard: ShardId,
    kind: EventKind,
    lease: Option<Lease>,
}

/// The kind of an [`Event`], with its content.
#[derive(Debug)]
#[non_exhaustive]
pub enum EventKind {
    /// An event from Discord.
    Dispatch(Dispatch),
    /// The shard is opening a connection.
    Connecting {
        /// Whether it will resume a session; otherwise it starts a new one.
        resuming: bool,
    },
    /// A new session has started; READY follows as a dispatch.
    SessionStarted,
    /// Every guild that READY listed has become available or timed out. Sent once for each session.
    GuildsReady {
        /// The number of guilds in the session, including unavailable ones.
        guilds: usize,
        /// The number of guilds that did not arrive in time
        /// ([`Timing::guilds_timeout`](crate::Timing::guilds_timeout)).
        missing: usize,
    },
    /// The session was resumed; all missed events have been delivered.
    Resumed,
    /// The session is lost, and so are the events that Discord sent after its `sequence`:
    /// everything from `missed_since` until the next session's `READY`. For example, Discord ended
    /// the session, the intents have changed, the circuit breaker has stopped the shard, or the
    /// shard had stopped and others replaced it.
    SessionLost {
        /// The lost session, with the last sequence received.
        session: Session,
        /// When the shard last received something in it.
        missed_since: SystemTime,
    },
    /// The connection is lost; the shard will reconnect.
    Disconnected {
        /// Why the connection was lost.
        reason: Disconnect,
        /// Details, if there are any: what failed (the name does not resolve, the connection is
        /// refused, TLS), or the text of Discord's close frame.
        cause: Option<String>,
        /// How long the shard waits before it connects again.
        retry_in: Duration,
        /// Whether it will resume the session; otherwise it identifies.
        resumable: bool,
    },
    /// The shard has stopped reading until events that it delivered are handled; it still sends
    /// heartbeats. [`ShardStatus::stalled_for`](crate::ShardStatus::stalled_for) says for how long.
    Stalled {
        /// The number of outstanding events.
        events: usize,
        /// The size of their payloads in bytes, uncompressed.
        bytes: usize,
    },
    /// The shard has resumed reading after a stall.
    StallEnded {
        /// How long the stall lasted.
        stalled_for: Duration,
    },
    /// The shard has stopped. No event of Discord follows until it is opened again;
    /// [`Split`](Self::Split) and [`SessionLost`](Self::SessionLost) may follow if other shards
    /// replace it. With [`StopReason::CircuitOpen`](crate::StopReason::CircuitOpen), too many of
    /// its sessions ended early; [`Handle::restart_shard`](crate::Handle::restart_shard) makes it
    /// retry.
    Stopped(StopReason),
    /// A handler panicked while handling an event of this shard. That event counts as handled, and
    /// the next one follows. `HandlerPanicked` counts as outstanding like Discord's events. A panic
    /// while handling `HandlerPanicked` itself is only logged and counted.
    HandlerPanicked {
        /// The [`name`](Event::name) of the event.
        event: String,
        /// Its sequence, if it was one of Discord's.
        sequence: Option<u64>,
        /// The panic's message, or `panic payload is not a string`.
        message: String,
    },
    /// The shard had more guilds than Discord allows (close code 4011) and has stopped. New shards
    /// replace it.
    Split {
        /// The new shards, which are opening now.
        into: Vec<ShardId>,
    },
    /// New shards have taken over from old ones; see
    /// [`Handle::reshard`](crate::Handle::reshard).
    Resharded {
        /// The old shards. After this event, they only report that they are closed.
        from: Vec<ShardId>,
        /// The new shards. They are ready, and their guilds are available.
        to: Vec<ShardId>,
    },
}

impl Event {
    pub(crate) fn dispatch_of(shard: ShardId, dispatch: Dispatch, lease: Lease) -> Self {
        Self {
            shard,
            kind: EventKind::Dispatch(dispatch),
            lease: Some(lease),
        }
    }

    /// Creates an event that does not come from a shard and is not counted as outstanding; for
    /// tests of handlers.
    ///
    /// ```
    /// # use threadcord::{Dispatch, Event, EventKind, ShardId};
    /// let dispatch = Dispatch::from_json(r#"{"op":0,"s":2,"t":"TYPING_START","d":{"guild_id":"41"}}"#)?;
    /// let event = Event::new(ShardId::ONE, EventKind::Dispatch(dispatch));
    /// assert_eq!(event.name(), "TYPING_START");
    /// # Ok::<(), threadcord::protocol::MalformedPayload>(())
    /// ```
    pub fn new(shard: ShardId, kind: EventKind) -> Self {
        Self {
            shard,
            kind,
            lease: None,
        }
    }

    /// Attaches a lease of credit to the event.
    pub(crate) fn with_lease(self, lease: Option<Lease>) -> Self {
        Self { lease, ..self }
    }

    /// The place for the lease of a duplicate; `None` if the event holds no credit.
    pub(crate) fn twin(&mut self) -> Option<Arc<Twin>> {
        self.lease.as_mut().map(Lease::twin)
    }

    /// Records that the handler or the caller has taken the event.
    pub(crate) fn take(&self) {
        if let Some(lease) = &self.lease {
            lease.take();
        }
    }

    /// Whether the event holds credit.
    pub(crate) fn has_credit(&self) -> bool {
        self.lease.is_some()
    }

    /// Takes the event's credit and drops the event.
    pub(crate) fn into_lease(self) -> Option<Lease> {
        self.lease
    }

    /// Drops an event that will not be handled: its credit is returned, and the event is
    /// redelivered when its session is resumed.
    pub(crate) fn abandon(self) {
        if let Some(lease) = self.lease {
            lease.abandon();
        }
    }

    /// The shard that the event came from.
    pub fn shard(&self) -> ShardId {
        self.shard
    }

    /// The event's kind and content.
    pub fn kind(&self) -> &EventKind {
        &self.kind
    }

    /// The event as Discord sent it; `None` if it is not from Discord.
    pub fn dispatch(&self) -> Option<&Dispatch> {
        match &self.kind {
            EventKind::Dispatch(dispatch) => Some(dispatch),
            _ => None,
        }
    }

    /// The event's name: that of Discord's event (`READY`), or of the [`EventKind`] variant
    /// (`SessionStarted`, which comes just before `READY`).
    pub fn name(&self) -> &str {
        self.dispatch()
            .map_or(self.kind.word(), |dispatch| dispatch.name().as_str())
    }

    /// Counts the event as handled before it is dropped: it is no longer outstanding.
    pub fn release(&mut self) {
        self.lease = None;
    }
}

impl EventKind {
    /// The name of the variant.
    pub(crate) fn word(&self) -> &'static str {
        match self {
            Self::Dispatch(_) => "Dispatch",
            Self::Connecting { .. } => "Connecting",
            Self::SessionStarted => "SessionStarted",
            Self::GuildsReady { .. } => "GuildsReady",
            Self::Resumed => "Resumed",
            Self::SessionLost { .. } => "SessionLost",
            Self::Disconnected { .. } => "Disconnected",
            Self::Stalled { .. } => "Stalled",
            Self::StallEnded { .. } => "StallEnded",
            Self::Stopped(_) => "Stopped",
            Self::HandlerPanicked { .. } => HANDLER_PANICKED,
            Self::Split { .. } => "Split",
            Self::Resharded { .. } => "Resharded",
        }
    }
}
