//! What the user receives.

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

/// Something that came from a shard.
///
/// An event of Discord holds credit of its shard until it is dropped or [released](Self::release);
/// until then it counts as not handled, and comes again if the process ends and starts again from
/// the shard's session.
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
    SessionStarted,
    /// Every guild that READY named has become available, or timed out; once for each session.
    GuildsReady {
        /// Guilds of the session, those included that are unavailable.
        guilds: usize,
        /// Those that did not arrive in time
        /// ([`Timing::guilds_timeout`](crate::Timing::guilds_timeout)).
        missing: usize,
    },
    /// The session goes on; everything missed has been delivered.
    Resumed,
    /// The session is lost, and with it what Discord sent after its `sequence`: whatever happened
    /// from `missed_since` until the next session's `READY`. Discord ended it, or the shard had
    /// stopped and was replaced by others.
    SessionLost {
        /// The session, at the last sequence that came.
        session: Session,
        /// When something was last heard of it.
        missed_since: SystemTime,
    },
    /// The connection is gone; the shard will try again.
    Disconnected {
        /// Why.
        reason: Disconnect,
        /// More about it, if there is more: what failed (the name does not resolve, the connection
        /// is refused, TLS), or the text of Discord's close frame.
        cause: Option<String>,
        /// How long the shard waits before it connects again.
        retry_in: Duration,
        /// Whether it will resume, else identify.
        resumable: bool,
    },
    /// The shard has stopped reading until events that it delivered are handled; it goes on
    /// heartbeating. For how long already,
    /// [`ShardStatus::stalled_for`](crate::ShardStatus::stalled_for) tells while it lasts.
    Stalled {
        /// Events that are outstanding.
        events: usize,
        /// The size of their payloads in bytes, uncompressed.
        bytes: usize,
    },
    /// The shard reads again.
    StallEnded {
        /// For how long it did not.
        stalled_for: Duration,
    },
    /// The shard has stopped; nothing of it follows, unless it is opened again by hand. With
    /// [`StopReason::CircuitOpen`](crate::StopReason::CircuitOpen) its sessions never lasted, and
    /// a restart has it try again.
    Stopped(StopReason),
    /// A handler panicked while handling an event of this shard. That event counts as handled, and
    /// the next one follows. `HandlerPanicked` counts as outstanding like Discord's events. A panic
    /// while handling `HandlerPanicked` itself is only logged and counted.
    HandlerPanicked {
        /// The [`name`](Event::name) of the event.
        event: String,
        /// Its sequence, if it was one of Discord's.
        sequence: Option<u64>,
        /// What the handler panicked with, if that is a text.
        message: String,
    },
    /// The shard held more guilds than Discord allows (4011) and has stopped; these take its place.
    Split {
        /// The shards that open now.
        into: Vec<ShardId>,
    },
    /// New shards have taken over from old ones; see
    /// [`Handle::reshard`](crate::Handle::reshard).
    Resharded {
        /// Those that ran until now; nothing of them follows but that they are closed.
        from: Vec<ShardId>,
        /// Those that run from now on. They are ready, and their guilds are in.
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

    /// An event that comes from no shard and holds no credit; for tests of handlers.
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

    /// Has it hold credit.
    pub(crate) fn with_lease(self, lease: Option<Lease>) -> Self {
        Self { lease, ..self }
    }

    /// The place for the lease of a duplicate, if it holds credit.
    pub(crate) fn twin(&mut self) -> Option<Arc<Twin>> {
        self.lease.as_mut().map(Lease::twin)
    }

    /// Its handler, or the caller, has it now.
    pub(crate) fn take(&self) {
        if let Some(lease) = &self.lease {
            lease.take();
        }
    }

    /// Whether it holds credit.
    pub(crate) fn has_credit(&self) -> bool {
        self.lease.is_some()
    }

    /// What it holds, without the event.
    pub(crate) fn into_lease(self) -> Option<Lease> {
        self.lease
    }

    /// Drops an event that will not be handled: its credit comes back, and the event itself when its
    /// session is resumed.
    pub(crate) fn abandon(self) {
        if let Some(lease) = self.lease {
            lease.abandon();
        }
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

    /// A word for it: the name of Discord's event (`READY`), or that of the [`EventKind`]
    /// (`SessionStarted`), which comes just before it.
    pub fn name(&self) -> &str {
        self.dispatch()
            .map_or(self.kind.word(), |dispatch| dispatch.name().as_str())
    }

    /// Counts it as handled and gives its credit back, before it is dropped.
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
