//! A fleet at one moment, to look at.

use std::fmt;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::hub::Hub;
use super::reconciler::Role;
use crate::clock;
use crate::limit::{LimitStatus, maybe_seconds};
use crate::protocol::{Disconnect, Stage};
use crate::shard::Shard;
use crate::shard_id::ShardId;

/// A fleet at one moment. It prints as a table, and serialises with durations in seconds.
///
/// ```
/// # use threadcord::{Config, Intents, ShardManager, Token, sim};
/// # let gateway = sim::Gateway::builder().start()?;
/// # let config = Config::new(Token::new(gateway.token())?, Intents::default()).rest_url(gateway.rest_url());
/// # let manager = ShardManager::start(config)?;
/// println!("{}", manager.status());
/// println!("{}", serde_json::to_string(&manager.status())?);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct FleetStatus {
    /// The shards, by number; while others replace them, those too.
    pub shards: Vec<ShardStatus>,
    /// Shards that are to run and have not been opened.
    pub unopened: Vec<ShardId>,
    /// What is left of the identify limit, and who waits for it, as far as the limiter knows.
    pub limit: Option<LimitStatus>,
    /// Events in the stream that nobody has taken.
    pub queued_events: usize,
    /// Handlers that have panicked.
    pub handler_panics: u64,
}

/// A shard at one moment.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct ShardStatus {
    /// Which one.
    pub shard: ShardId,
    /// Where it stands.
    pub stage: Stage,
    /// For how long.
    #[serde(serialize_with = "seconds")]
    pub since: Duration,
    /// Whether it will replace others, so that its events are not delivered yet.
    pub is_incoming: bool,
    /// Whether the guilds of its session have arrived or were given up.
    pub guilds_in: bool,
    /// Guilds of its session; `None` if it was resumed from an earlier process.
    pub guilds: Option<usize>,
    /// From the last heartbeat to its ACK.
    #[serde(serialize_with = "maybe_seconds")]
    pub latency: Option<Duration>,
    /// The last sequence delivered.
    pub sequence: u64,
    /// Events of Discord delivered.
    pub events: u64,
    /// Their bytes, inflated.
    pub bytes: u64,
    /// Events that were delivered and have not been handled.
    pub outstanding_events: usize,
    /// Their bytes.
    pub outstanding_bytes: usize,
    /// Events that the filter has dropped.
    pub filtered: u64,
    /// For how long it has not read because events are not handled.
    #[serde(serialize_with = "maybe_seconds")]
    pub stalled: Option<Duration>,
    /// Commands that wait to be sent.
    pub waiting_commands: usize,
    /// IDENTIFYs sent.
    pub identifies: u64,
    /// Sessions resumed.
    pub resumes: u64,
    /// Connections after the first.
    pub reconnects: u64,
    /// Sessions lost by Discord's rules.
    pub sessions_lost: u64,
    /// Why the last connection ended.
    pub last_disconnect: Option<Disconnect>,
}

impl Hub {
    pub(super) fn status(&self) -> FleetStatus {
        let now = clock::now();
        let (shards, unopened) = self.look(|slot, shard| {
            let is_shown = slot.role != Role::Discarded;
            is_shown.then(|| (shard.clone(), slot.role, slot.guilds_in))
        });
        let shards = shards
            .into_iter()
            .map(|(shard, role, guilds_in)| status_of(&shard, role, guilds_in, now));
        FleetStatus {
            shards: shards.collect(),
            unopened,
            limit: self.limiter.status(),
            queued_events: self.events().len(),
            handler_panics: self.handlers.panics(),
        }
    }
}

fn status_of(shard: &Shard, role: Role, guilds_in: bool, now: Instant) -> ShardStatus {
    let status = shard.status();
    let (outstanding_events, outstanding_bytes) = shard.outstanding();
    let ago = |since| now.saturating_duration_since(since);
    ShardStatus {
        shard: shard.id(),
        stage: status.stage,
        since: ago(status.since),
        is_incoming: role == Role::Incoming,
        guilds_in,
        guilds: status.guilds,
        latency: status.latency,
        sequence: status.sequence,
        events: status.events,
        bytes: status.bytes,
        outstanding_events,
        outstanding_bytes,
        filtered: status.filtered,
        stalled: status.stalled_since.map(ago),
        waiting_commands: status.waiting_commands,
        identifies: status.identifies,
        resumes: status.resumes,
        reconnects: status.connects.saturating_sub(1),
        sessions_lost: status.sessions_lost,
        last_disconnect: status.last_disconnect,
    }
}

/// The heads of the table's columns; all but the last are right-aligned.
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
    "reconnects",
    "for",
    "state",
];

impl fmt::Display for FleetStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rows: Vec<[String; 12]> = self.shards.iter().map(row).collect();
        let mut widths = HEADS.map(str::len);
        for row in &rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = cell.len().max(*width);
            }
        }
        // The last column ends the line, and is not padded.
        widths[HEADS.len() - 1] = 0;
        write_row(f, &widths, HEADS)?;
        for row in &rows {
            write_row(f, &widths, row.each_ref().map(String::as_str))?;
        }
        let count =
            |is: fn(&ShardStatus) -> bool| self.shards.iter().filter(|shard| is(shard)).count();
        let ready = count(|shard| shard.stage == Stage::Ready && !shard.is_incoming);
        let incoming = count(|shard| shard.is_incoming);
        let running = self.shards.len() + self.unopened.len() - incoming;
        write!(
            f,
            "{ready} of {running} shards ready, {} events in the stream",
            self.queued_events
        )?;
        if incoming > 0 {
            write!(f, ", {incoming} shards about to replace them")?;
        }
        if self.handler_panics > 0 {
            write!(f, ", {} panics of handlers", self.handler_panics)?;
        }
        let Some(limit) = &self.limit else {
            return Ok(());
        };
        write!(f, "\n{} of {} IDENTIFYs left", limit.remaining, limit.total)?;
        if let Some(reset_after) = limit.reset_after {
            write!(f, ", all of them again in {}", span(reset_after))?;
        }
        if let [first, ..] = limit.waiting[..] {
            write!(
                f,
                "; {} wait for a turn, first shard {first}",
                limit.waiting.len()
            )?;
        }
        Ok(())
    }
}

fn row(shard: &ShardStatus) -> [String; 12] {
    let mut state = shard.stage.to_string();
    if shard.stage == Stage::Ready && !shard.guilds_in {
        state.push_str(", guilds arrive");
    }
    if shard.is_incoming {
        state.push_str(" (to replace others)");
    }
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
        shard.events.to_string(),
        // Enough for a glance; the figure itself is in the field.
        format!("{}.{}", shard.bytes / 1_000_000, shard.bytes / 100_000 % 10),
        shard.outstanding_events.to_string(),
        shard.identifies.to_string(),
        shard.resumes.to_string(),
        shard.reconnects.to_string(),
        span(shard.since),
        state,
    ]
}

fn write_row(f: &mut fmt::Formatter<'_>, widths: &[usize; 12], cells: [&str; 12]) -> fmt::Result {
    for (width, cell) in widths.iter().zip(cells).take(HEADS.len() - 1) {
        write!(f, "{cell:>width$}  ")?;
    }
    writeln!(f, "{}", cells[HEADS.len() - 1])
}

/// A duration for a glance: `7 s`, `12 min`, `5 h`, `3 d`.
fn span(duration: Duration) -> String {
    match duration.as_secs() {
        seconds @ ..120 => format!("{seconds} s"),
        seconds @ ..7200 => format!("{} min", seconds / 60),
        seconds @ ..172_800 => format!("{} h", seconds / 3600),
        seconds => format!("{} d", seconds / 86_400),
    }
}

fn seconds<S: serde::Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(duration.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use super::*;

    fn shard(number: u32, stage: Stage) -> ShardStatus {
        ShardStatus {
            shard: ShardId::new(number, 2).unwrap(),
            stage,
            since: Duration::from_secs(600),
            is_incoming: false,
            guilds_in: true,
            guilds: Some(1200),
            latency: Some(Duration::from_millis(41)),
            sequence: 77,
            events: 78,
            bytes: 1_250_000,
            outstanding_events: 3,
            outstanding_bytes: 900,
            filtered: 0,
            stalled: None,
            waiting_commands: 0,
            identifies: 1,
            resumes: 2,
            reconnects: 3,
            sessions_lost: 0,
            last_disconnect: None,
        }
    }

    #[test]
    fn it_prints_as_a_table_and_serialises() {
        let last_disconnect = Some(Disconnect::Cut);
        let waiting = ShardStatus {
            latency: None,
            guilds: None,
            last_disconnect,
            ..shard(1, Stage::Queued)
        };
        let mut limit =
            LimitStatus::new(998, 1000, Some(Duration::from_secs(5000)), NonZeroU32::MIN);
        limit.waiting.push(ShardId::new(1, 2).unwrap());
        let status = FleetStatus {
            shards: vec![shard(0, Stage::Ready), waiting],
            unopened: Vec::new(),
            limit: Some(limit),
            queued_events: 5,
            handler_panics: 0,
        };
        let expected = "\
shard  guilds  latency  sequence  events   MB  queued  identifies  resumes  reconnects     for  state
  0/2    1200    41 ms        77      78  1.2       3           1        2           3  10 min  ready
  1/2       -        -        77      78  1.2       3           1        2           3  10 min  queued; last: the connection was cut
1 of 2 shards ready, 5 events in the stream
998 of 1000 IDENTIFYs left, all of them again in 83 min; 1 wait for a turn, first shard 1/2";
        assert_eq!(status.to_string(), expected);
        let json = serde_json::to_value(&status).unwrap();
        assert_eq!(
            (&json["shards"][0]["latency"], &json["shards"][1]["stage"]),
            (&0.041.into(), &"queued".into())
        );
    }
}
