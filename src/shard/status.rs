//! What a shard is doing.

use std::time::{Duration, Instant};

use serde::Serialize;

use super::{Shard, ShardCounters, Shared};
use crate::clock;
use crate::protocol::{Disconnect, ShardState};
use crate::seconds;
use crate::shard_id::ShardId;

/// A shard at one moment. It serialises with durations in seconds.
///
/// Outstanding events carry over if the shard is opened again and continues its session. Totals
/// over all its runs are in [`ShardCounters`](crate::status::ShardCounters).
#[derive(Clone, Copy, Debug, Serialize)]
#[non_exhaustive]
pub struct ShardStatus {
    /// The shard.
    pub shard: ShardId,
    /// What it is doing.
    pub state: ShardState,
    /// How long it has been in this state.
    #[serde(serialize_with = "seconds::serialize")]
    pub time_in_state: Duration,
    /// Whether all guilds of its session have arrived, or the wait for the rest has timed out.
    pub guilds_ready: bool,
    /// The number of guilds of its session, including unavailable ones. `None` if the session was
    /// resumed when the shard was opened, since only READY lists the guilds.
    pub guilds: Option<usize>,
    /// Time since the last payload from Discord, heartbeat ACKs included; `None` before the first
    /// payload since it was opened. While it is connected and reads, this is less than two
    /// heartbeat intervals (of 41 s each, at present).
    #[serde(serialize_with = "seconds::serialize_option")]
    pub last_received: Option<Duration>,
    /// Time from the last acknowledged heartbeat until its ACK was read; `None` before the first
    /// ACK of a connection. A [stalled](Self::stalled_for) shard reads ACKs late.
    #[serde(serialize_with = "seconds::serialize_option")]
    pub latency: Option<Duration>,
    /// The last sequence of its session that was delivered.
    pub sequence: u64,
    /// Events that were delivered and have not been handled.
    pub outstanding_events: usize,
    /// The size of their payloads in bytes, uncompressed.
    pub outstanding_bytes: usize,
    /// How long it has not read because its events are not handled; `None` if it reads.
    #[serde(serialize_with = "seconds::serialize_option")]
    pub stalled_for: Option<Duration>,
    /// Commands that are queued.
    pub waiting_commands: usize,
    /// Why it last lost a connection; a stop does not count.
    pub last_disconnect: Option<Disconnect>,
}

/// What a shard's thread last reported about the shard.
#[derive(Clone, Copy, Debug)]
pub(super) struct Report {
    pub(super) stage: ShardState,
    pub(super) since: Instant,
    pub(super) guilds_ready: bool,
    pub(super) guilds: Option<usize>,
    pub(super) latency: Option<Duration>,
    pub(super) stalled_since: Option<Instant>,
    pub(super) heard_at: Option<Instant>,
    pub(super) last_disconnect: Option<Disconnect>,
}

impl Report {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            stage: ShardState::Waiting,
            since: now,
            guilds_ready: false,
            guilds: None,
            latency: None,
            stalled_since: None,
            heard_at: None,
            last_disconnect: None,
        }
    }

    /// The shard is in another stage. The guilds of a new session have not arrived.
    pub(super) fn enter(&mut self, stage: ShardState, now: Instant) {
        (self.stage, self.since) = (stage, now);
        self.guilds_ready &= stage != ShardState::Identifying;
    }
}

impl ShardStatus {
    /// Whether its session is live and the shard reads. This is briefly `false` whenever a
    /// connection is replaced, which Discord requests every few hours.
    pub fn is_healthy(&self) -> bool {
        self.state == ShardState::Ready && self.stalled_for.is_none()
    }
}

impl Shard {
    /// Returns the shard's current state. Does not block.
    pub fn status(&self) -> ShardStatus {
        let Shared {
            report,
            ledger,
            queue,
            ..
        } = &*self.0;
        let now = clock::now();
        let report = *report.lock();
        let (outstanding_events, outstanding_bytes) = ledger.outstanding();
        let ago = |since| now.saturating_duration_since(since);
        ShardStatus {
            shard: self.id(),
            state: report.stage,
            time_in_state: ago(report.since),
            guilds_ready: report.guilds_ready,
            guilds: report.guilds,
            last_received: report.heard_at.map(ago),
            latency: report.latency,
            sequence: ledger.delivered(),
            outstanding_events,
            outstanding_bytes,
            stalled_for: report.stalled_since.map(ago),
            waiting_commands: queue.waiting_commands(),
            last_disconnect: report.last_disconnect,
        }
    }

    /// Returns the shard's counters, over this run and earlier ones. Does not block.
    pub fn counters(&self) -> ShardCounters {
        self.0.counters.read()
    }
}
