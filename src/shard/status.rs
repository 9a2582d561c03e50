//! What a shard is doing, and what it has been through.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use serde::{Serialize, Serializer};

use super::{Shard, Shared};
use crate::clock;
use crate::limit::maybe_seconds;
use crate::protocol::{Disconnect, Stage};
use crate::shard_id::ShardId;

/// A shard at one moment. It serialises with durations in seconds.
///
/// Counters start at 0 each time the shard is opened. What is outstanding carries over if it goes on
/// with its session.
#[derive(Clone, Copy, Debug, Serialize)]
#[non_exhaustive]
pub struct ShardStatus {
    /// Which one.
    pub shard: ShardId,
    /// What it is doing.
    pub stage: Stage,
    /// For how long already.
    #[serde(serialize_with = "seconds")]
    pub time_in_stage: Duration,
    /// Whether the guilds of its session have arrived or were given up.
    pub guilds_in: bool,
    /// Guilds of its session, those included that are unavailable; `None` if it was resumed when
    /// the shard was opened, since only READY tells.
    pub guilds: Option<usize>,
    /// From the last heartbeat that was acknowledged to the moment when its ACK was read; `None`
    /// before the first one of a connection. A shard that has [stalled](Self::stalled_for) reads
    /// ACKs late.
    #[serde(serialize_with = "maybe_seconds")]
    pub latency: Option<Duration>,
    /// The last sequence of its session that was delivered.
    pub sequence: u64,
    /// Events of Discord delivered.
    pub events: u64,
    /// Their bytes, inflated.
    pub bytes: u64,
    /// Events that were delivered and have not been handled.
    pub outstanding_events: usize,
    /// Their bytes, inflated.
    pub outstanding_bytes: usize,
    /// Events that the filter ([`ShardConfig::events`](crate::ShardConfig::events)) has dropped.
    pub filtered: u64,
    /// For how long it has not read because events are not handled; `None` if it reads.
    #[serde(serialize_with = "maybe_seconds")]
    pub stalled_for: Option<Duration>,
    /// Commands that wait to be sent.
    pub waiting_commands: usize,
    /// Connections started.
    pub connects: u64,
    /// IDENTIFYs sent.
    pub identifies: u64,
    /// Sessions resumed.
    pub resumes: u64,
    /// Sessions lost by Discord's rules.
    pub sessions_lost: u64,
    /// Why it last lost a connection; a stop does not count.
    pub last_disconnect: Option<Disconnect>,
}

/// What the thread of a shard has said about it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Report {
    pub(super) stage: Stage,
    pub(super) since: Instant,
    pub(super) guilds_in: bool,
    pub(super) guilds: Option<usize>,
    pub(super) latency: Option<Duration>,
    pub(super) stalled_since: Option<Instant>,
    pub(super) connects: u64,
    pub(super) identifies: u64,
    pub(super) resumes: u64,
    pub(super) sessions_lost: u64,
    pub(super) last_disconnect: Option<Disconnect>,
}

impl Report {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            stage: Stage::Waiting,
            since: now,
            guilds_in: false,
            guilds: None,
            latency: None,
            stalled_since: None,
            connects: 0,
            identifies: 0,
            resumes: 0,
            sessions_lost: 0,
            last_disconnect: None,
        }
    }

    /// The shard is in another stage. The guilds of a new session have not arrived.
    pub(super) fn enter(&mut self, stage: Stage, now: Instant) {
        (self.stage, self.since) = (stage, now);
        self.guilds_in &= stage != Stage::Identifying;
    }
}

impl Shard {
    /// What it is doing, and what it has been through. Does not block.
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
            stage: report.stage,
            time_in_stage: ago(report.since),
            guilds_in: report.guilds_in,
            guilds: report.guilds,
            latency: report.latency,
            sequence: ledger.delivered(),
            events: self.0.events.load(Ordering::Relaxed),
            bytes: self.0.bytes.load(Ordering::Relaxed),
            outstanding_events,
            outstanding_bytes,
            filtered: self.0.filtered.load(Ordering::Relaxed),
            stalled_for: report.stalled_since.map(ago),
            waiting_commands: queue.waiting_commands(),
            connects: report.connects,
            identifies: report.identifies,
            resumes: report.resumes,
            sessions_lost: report.sessions_lost,
            last_disconnect: report.last_disconnect,
        }
    }
}

fn seconds<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(duration.as_secs_f64())
}
