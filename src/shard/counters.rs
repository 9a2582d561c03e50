//! Counters of shards, over all their runs.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use serde::Serialize;

use crate::event::Times;
use crate::histogram::Histogram;
use crate::protocol::{Disconnect, EventName};
use crate::seconds;
use crate::shard_id::ShardId;

/// The name under which events that Discord does not document are counted.
const UNDOCUMENTED: &str = "UNDOCUMENTED";

/// Counters of a shard since the manager was started. They never decrease: they continue when the
/// shard is closed and opened again, and stay when a reshard replaces it.
///
/// It serialises with durations in seconds. Their names for Prometheus are listed at
/// [`ManagerStatus::prometheus`](crate::ManagerStatus::prometheus).
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[non_exhaustive]
pub struct ShardCounters {
    /// Events from Discord that were delivered, and chunks of members.
    pub events: u64,
    /// The same, by event name. Events that Discord does not document count as `UNDOCUMENTED`.
    pub events_by_name: BTreeMap<&'static str, u64>,
    /// Their bytes, inflated.
    pub bytes: u64,
    /// Events that the filter ([`ShardConfig::events`](crate::ShardConfig::events)) has dropped.
    pub filtered: u64,
    /// How often the shard stopped reading because events were not handled.
    pub stalls: u64,
    /// Total time of these stalls, not counting one that has not ended.
    #[serde(serialize_with = "seconds::serialize")]
    pub stalled_for: Duration,
    /// Connections started.
    pub connects: u64,
    /// Connections lost, by cause. A stop does not count.
    pub disconnects: BTreeMap<Disconnect, u64>,
    /// IDENTIFYs sent.
    pub identifies: u64,
    /// Sessions resumed.
    pub resumes: u64,
    /// Sessions lost by Discord's rules.
    pub sessions_lost: u64,
    /// Heartbeats sent.
    pub heartbeats: u64,
    /// Heartbeats without an ACK when the next one was due: the connection was dead, or the shard
    /// had stalled.
    pub missed_heartbeats: u64,
    /// Commands that the operating system has taken.
    pub commands_sent: u64,
    /// Commands and requests for members that were refused: too many were queued, or the shard had
    /// stopped.
    pub commands_refused: u64,
    /// How long the shard waited for its turn to identify, from HELLO to IDENTIFY.
    pub identify_wait: Histogram,
    /// How long events waited, from the socket to the handler or the caller that takes them. One
    /// event of each batch is measured, and counted once for each event since the last one
    /// measured. With [`Events::receiver`](crate::Events::receiver) this includes the time to
    /// handle them.
    pub event_wait: Histogram,
    /// How long events were handled: from the end of their wait until they were dropped or
    /// released. The same events are measured.
    pub event_handling: Histogram,
}

/// The counts of a shard while it runs.
#[derive(Debug)]
pub(crate) struct Counters {
    /// By name, in the order of [`EventName::index`]; the last is for all others.
    by_name: [AtomicU64; EventName::COUNT + 1],
    bytes: AtomicU64,
    filtered: AtomicU64,
    times: Arc<Times>,
    /// Counts that change less often than with each event.
    rest: Mutex<ShardCounters>,
}

impl Default for Counters {
    fn default() -> Self {
        Self {
            by_name: [const { AtomicU64::new(0) }; EventName::COUNT + 1],
            bytes: AtomicU64::new(0),
            filtered: AtomicU64::new(0),
            times: Arc::default(),
            rest: Mutex::default(),
        }
    }
}

impl Counters {
    /// An event is delivered.
    pub(super) fn count_event(&self, name: &EventName, bytes: usize) {
        let index = name.index().map_or(EventName::COUNT, usize::from);
        self.by_name[index].fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// The filter drops an event.
    pub(super) fn count_filtered(&self) {
        self.filtered.fetch_add(1, Ordering::Relaxed);
    }

    /// Something else has happened.
    pub(super) fn count(&self, count: impl FnOnce(&mut ShardCounters)) {
        count(&mut self.rest.lock());
    }

    /// The histograms of how long events wait and are handled.
    pub(super) fn times(&self) -> Arc<Times> {
        Arc::clone(&self.times)
    }

    pub(super) fn read(&self) -> ShardCounters {
        let counts = self
            .by_name
            .iter()
            .map(|count| count.load(Ordering::Relaxed));
        let by_name = EventName::names().chain([UNDOCUMENTED]).zip(counts);
        let events_by_name: BTreeMap<_, _> = by_name.filter(|(_, count)| *count > 0).collect();
        let (event_wait, event_handling) = self.times.read();
        ShardCounters {
            events: events_by_name.values().sum(),
            events_by_name,
            bytes: self.bytes.load(Ordering::Relaxed),
            filtered: self.filtered.load(Ordering::Relaxed),
            event_wait,
            event_handling,
            ..self.rest.lock().clone()
        }
    }
}

/// The counts of each shard that has run.
#[derive(Debug, Default)]
pub(crate) struct AllCounters(Mutex<BTreeMap<ShardId, Arc<Counters>>>);

impl AllCounters {
    /// The counters of a shard, which continue those of its earlier runs.
    pub(super) fn of(&self, shard: ShardId) -> Arc<Counters> {
        Arc::clone(self.0.lock().entry(shard).or_default())
    }

    pub(crate) fn read(&self) -> BTreeMap<ShardId, ShardCounters> {
        let all = self.0.lock().clone();
        let read = all
            .iter()
            .map(|(shard, counters)| (*shard, counters.read()));
        read.collect()
    }
}
