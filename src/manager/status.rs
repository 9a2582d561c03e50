//! A snapshot of a manager, and how it prints.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde::{Serialize, Serializer};

use super::hub::Hub;
use super::reconciler::Role;
use crate::limit::LimitStatus;
use crate::protocol::ShardState;
use crate::rest::RestCounters;
use crate::shard::{Shard, ShardCounters, ShardStatus};
use crate::shard_id::ShardId;

/// A snapshot of a manager. It prints as a table, and serialises with durations in seconds.
///
/// ```
/// # use threadcord::{Config, Intents, ShardManager, Token, sim};
/// # let gateway = sim::Gateway::builder().start()?;
/// # let config = Config::new(Token::new(gateway.token())?, Intents::default()).rest_url(gateway.rest_url());
/// # let manager = ShardManager::start(config)?;
/// println!("{}", manager.handle().status());
/// println!("{}", serde_json::to_string(&manager.handle().status())?);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, Default, Serialize)]
#[non_exhaustive]
pub struct ManagerStatus {
    /// The shards that run or have stopped, by number. While a reshard closes the old shards, both
    /// sets.
    pub shards: Vec<ShardStatus>,
    /// The new shards of a reshard, until the old ones begin to close. Their events are held.
    pub incoming: Vec<ShardStatus>,
    /// Shards that should run and have not been opened yet.
    pub unopened: Vec<ShardId>,
    /// The counters of each shard since the manager was started, including shards that a reshard
    /// has replaced.
    #[serde(serialize_with = "by_text")]
    pub counters: BTreeMap<ShardId, ShardCounters>,
    /// The requests of [`Handle::rest`](crate::Handle::rest) and its clones.
    pub rest: RestCounters,
    /// The IDENTIFYs that are left and the shards that wait for one, as far as the limiter knows.
    pub limit: Option<LimitStatus>,
    /// Events in the stream that have not been taken.
    pub queued_events: usize,
    /// Handlers that have panicked.
    pub handler_panics: u64,
}

impl Hub {
    pub(super) fn status(&self) -> ManagerStatus {
        let (shards, unopened) = self.look(|slot, shard| {
            let is_shown = slot.role != Role::Discarded;
            is_shown.then(|| (slot.role, shard.clone()))
        });
        let shards = shards.into_iter();
        let (incoming, shards): (Vec<_>, Vec<_>) =
            shards.partition(|(role, _)| *role == Role::Incoming);
        let status_of = |shards: &[(Role, Shard)]| {
            let statuses = shards.iter().map(|(_, shard)| shard.status());
            statuses.collect()
        };
        ManagerStatus {
            shards: status_of(&shards),
            incoming: status_of(&incoming),
            unopened,
            counters: self.counters.read(),
            rest: self.rest.counters(),
            limit: self.limiter.status(),
            queued_events: self.events().len(),
            handler_panics: self.handlers.panics(),
        }
    }
}

impl ManagerStatus {
    /// Whether every shard that should run is [healthy](ShardStatus::is_healthy). Shards that were
    /// closed or suspended on request do not count.
    ///
    /// This is `false` for a moment while a shard reconnects. For a probe that restarts the
    /// process, use [`ShardManager::check`](crate::ShardManager::check) instead.
    pub fn is_healthy(&self) -> bool {
        let is_stopped = |shard: &ShardStatus| match shard.state {
            ShardState::Stopped(reason) => !reason.is_fatal(),
            _ => false,
        };
        let mut shards = self.shards.iter().filter(|shard| !is_stopped(shard));
        self.unopened.is_empty() && shards.all(ShardStatus::is_healthy)
    }
}

/// Serialises with string keys such as `3/16`, as JSON requires.
fn by_text<S: Serializer>(
    counters: &BTreeMap<ShardId, ShardCounters>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.collect_map(
        counters
            .iter()
            .map(|(shard, counters)| (shard.to_string(), counters)),
    )
}

/// The headings of the table's columns; all except the last are right-aligned.
const HEADS: [&str; 12] = [
    "shard",
    "guilds",
    "latency",
    "sequence",
    "events",
    "MB",
    "queued",
    "identifies",
    "resumes",
    "connects",
    "for",
    "state",
];

impl fmt::Display for ManagerStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let none = ShardCounters::default();
        let row = |shard: &ShardStatus, note| {
            let counters = self.counters.get(&shard.shard);
            row(shard, counters.unwrap_or(&none), note)
        };
        let rows: Vec<[String; 12]> = self
            .shards
            .iter()
            .map(|shard| row(shard, ""))
            .chain(
                self.incoming
                    .iter()
                    .map(|shard| row(shard, " (to replace others)")),
            )
            .collect();

        let mut widths = HEADS.map(str::len);
        for row in &rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = cell.len().max(*width);
            }
        }
        // The last column is not padded.
        widths[HEADS.len() - 1] = 0;
        write_row(f, &widths, HEADS)?;
        for row in &rows {
            write_row(f, &widths, row.each_ref().map(String::as_str))?;
        }

        let ready = self
            .shards
            .iter()
            .filter(|shard| shard.state == ShardState::Ready);
        write!(
            f,
            "{} of {} shards ready, {} events in the stream",
            ready.count(),
            self.shards.len() + self.unopened.len(),
            self.queued_events
        )?;
        if !self.incoming.is_empty() {
            write!(f, ", {} shards about to replace them", self.incoming.len())?;
        }
        if self.handler_panics > 0 {
            write!(f, ", {} handler panics", self.handler_panics)?;
        }
        self.limit
            .as_ref()
            .map_or(Ok(()), |limit| write_limit(f, limit))
    }
}

fn write_limit(f: &mut fmt::Formatter<'_>, limit: &LimitStatus) -> fmt::Result {
    write!(f, "\n{} of {} IDENTIFYs left", limit.remaining, limit.total)?;
    if let Some(reset_after) = limit.reset_after {
        write!(f, ", resets in {}", span(reset_after))?;
    }
    if let [first, ..] = limit.waiting[..] {
        let count = limit.waiting.len();
        write!(f, "; {count} wait for a turn, first shard {first}")?;
    }
    Ok(())
}

fn row(shard: &ShardStatus, counters: &ShardCounters, note: &str) -> [String; 12] {
    let mut state = shard.state.to_string();
    if shard.state == ShardState::Ready && !shard.guilds_ready {
        state.push_str(", guilds arriving");
    }

    state.push_str(note);
    if let Some(reason) = shard.last_disconnect {
        state = format!("{state}; last: {reason}");
    }

    [
        shard.shard.to_string(),
        shard.guilds.map_or("-".into(), |guilds| guilds.to_string()),
        shard.latency.map_or("-".into(), |latency| {
            format!("{:.0} ms", latency.as_secs_f64() * 1e3)
        }),
        shard.sequence.to_string(),
        counters.events.to_string(),
        // Rounded down to 0.1 MB; the exact number is in the field.
        format!(
            "{}.{}",
            counters.bytes / 1_000_000,
            counters.bytes / 100_000 % 10
        ),
        shard.outstanding_events.to_string(),
        counters.identifies.to_string(),
        counters.resumes.to_string(),
        counters.connects.to_string(),
        span(shard.time_in_state),
        state,
    ]
}

fn write_row(f: &mut fmt::Formatter<'_>, widths: &[usize; 12], cells: [&str; 12]) -> fmt::Result {
    for (width, cell) in widths.iter().zip(cells).take(HEADS.len() - 1) {
        write!(f, "{cell:>width$}  ")?;
    }
    writeln!(f, "{}", cells[HEADS.len() - 1])
}

/// Formats a duration in one coarse unit: `7 s`, `12 min`, `5 h`, `3 d`.
fn span(duration: Duration) -> String {
    match duration.as_secs() {
        seconds @ ..120 => format!("{seconds} s"),
        seconds @ ..7200 => format!("{} min", seconds / 60),
        seconds @ ..172_800 => format!("{} h", seconds / 3600),
        seconds => format!("{} d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use super::*;
    use crate::protocol::Disconnect;

    fn counters() -> ShardCounters {
        let mut counters = ShardCounters::default();
        (counters.events, counters.bytes) = (78, 1_250_000);
        (counters.identifies, counters.resumes, counters.connects) = (1, 2, 3);
        counters
    }

    fn shard(number: u32, state: ShardState) -> ShardStatus {
        ShardStatus {
            shard: ShardId::new(number, 2).unwrap(),
            state,
            time_in_state: Duration::from_secs(600),
            guilds_ready: true,
            guilds: Some(1200),
            last_received: Some(Duration::from_secs(1)),
            latency: Some(Duration::from_millis(41)),
            sequence: 77,
            outstanding_events: 3,
            outstanding_bytes: 900,
            stalled_for: None,
            waiting_commands: 0,
            last_disconnect: None,
        }
    }

    #[test]
    fn it_prints_as_a_table_and_serialises() {
        let last_disconnect = Some(Disconnect::ConnectionLost);
        let waiting = ShardStatus {
            latency: None,
            guilds: None,
            last_disconnect,
            ..shard(1, ShardState::Queued)
        };
        let mut limit =
            LimitStatus::new(998, 1000, Some(Duration::from_secs(5000)), NonZeroU32::MIN);
        limit.waiting.push(ShardId::new(1, 2).unwrap());
        let status = ManagerStatus {
            shards: vec![shard(0, ShardState::Ready), waiting],
            incoming: vec![shard(0, ShardState::Queued)],
            unopened: Vec::new(),
            counters: [0, 1]
                .map(|n| (shard(n, ShardState::Ready).shard, counters()))
                .into(),
            rest: RestCounters::default(),
            limit: Some(limit),
            queued_events: 5,
            handler_panics: 0,
        };
        let expected = "\
shard  guilds  latency  sequence  events   MB  queued  identifies  resumes  connects     for  state
  0/2    1200    41 ms        77      78  1.2       3           1        2         3  10 min  ready
  1/2       -        -        77      78  1.2       3           1        2         3  10 min  queued; last: the connection was cut
  0/2    1200    41 ms        77      78  1.2       3           1        2         3  10 min  queued (to replace others)
1 of 2 shards ready, 5 events in the stream, 1 shards about to replace them
998 of 1000 IDENTIFYs left, resets in 83 min; 1 wait for a turn, first shard 1/2";
        assert_eq!(status.to_string(), expected);
        let json = serde_json::to_value(&status).unwrap();
        assert_eq!(
            (&json["shards"][0]["latency"], &json["shards"][1]["state"]),
            (&0.041.into(), &"queued".into())
        );
    }
}
