//! What clients did, and which rules they broke.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use serde_json::Value;

use super::fault::Fault;
use crate::shard_id::ShardId;

/// What clients did, and which rules they broke.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Observed {
    /// What clients did, in order.
    pub records: Vec<Record>,
    /// The rules that clients broke, in order.
    pub violations: Vec<Violation>,
    /// The faults that struck, in order.
    pub faults: Vec<Strike>,
    /// Shards whose session is live, with their connections: past READY or RESUMED.
    pub live: BTreeMap<ShardId, usize>,
    /// How many events sessions were given, in all.
    pub events: u64,
    /// How many sessions have started.
    pub started: u64,
    /// The last sequence that each session was given, those included that are over.
    pub sequences: BTreeMap<String, u64>,
    /// The sessions that the gateway ended while their client wanted to go on.
    pub lost: BTreeSet<String>,
}

impl Observed {
    /// The IDENTIFYs of a shard, in order: when, and their data without the token.
    pub fn identifies(&self, shard: ShardId) -> impl Iterator<Item = (Instant, &Value)> {
        self.of(shard).filter_map(|record| match &record.action {
            Action::Identify(data) => Some((record.at, data)),
            _ => None,
        })
    }

    /// The commands of a shard with an opcode, in order: when, and their data.
    pub fn commands(&self, shard: ShardId, opcode: u64) -> impl Iterator<Item = (Instant, &Value)> {
        self.of(shard)
            .filter_map(move |record| match &record.action {
                Action::Command { op, data } if *op == opcode => Some((record.at, data)),
                _ => None,
            })
    }

    /// The texts that the bot posted in a channel, in order.
    pub fn posts(&self, channel_id: u64) -> impl Iterator<Item = &str> {
        self.records
            .iter()
            .filter_map(move |record| match &record.action {
                Action::Post { channel, text } if *channel == channel_id => Some(text.as_str()),
                _ => None,
            })
    }

    /// How many records have an action like this.
    pub fn count(&self, wanted: impl Fn(&Action) -> bool) -> usize {
        self.records
            .iter()
            .filter(|record| wanted(&record.action))
            .count()
    }

    fn of(&self, shard: ShardId) -> impl Iterator<Item = &Record> {
        self.records
            .iter()
            .filter(move |record| record.shard == Some(shard))
    }
}

/// Something that a client did.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Record {
    /// When.
    pub at: Instant,
    /// Which of the connections since the start.
    pub connection: usize,
    /// The shard, once it is known.
    pub shard: Option<ShardId>,
    /// What.
    pub action: Action,
}

/// What a client can do.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Action {
    /// It connected: the websocket is open.
    Connected,
    /// It identified, with this data; the token is left out.
    Identify(Value),
    /// It resumed a session from a sequence.
    Resume {
        /// The session.
        session: String,
        /// The last sequence that it has seen.
        sequence: u64,
    },
    /// It sent a heartbeat with its last sequence.
    Heartbeat(Option<u64>),
    /// It sent something else.
    Command {
        /// The opcode.
        op: u64,
        /// The payload's `d`.
        data: Value,
    },
    /// The connection is over: the client closed it with a code, or it was cut, or the gateway
    /// closed it.
    Closed(Option<u16>),
    /// It posted a message, or answered an interaction with one.
    Post {
        /// The channel.
        channel: u64,
        /// The text.
        text: String,
    },
    /// It called the HTTP interface.
    Request {
        /// The method.
        method: String,
        /// The path, below `/api/v10`.
        path: String,
        /// The status that it was answered with.
        status: u16,
    },
}

/// A rule that a client broke.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Violation {
    /// When.
    pub at: Instant,
    /// The shard, once it is known.
    pub shard: Option<ShardId>,
    /// Which rule, in words.
    pub rule: String,
}

/// A fault that struck.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Strike {
    /// When.
    pub at: Instant,
    /// The shard, once it is known.
    pub shard: Option<ShardId>,
    /// Which fault.
    pub fault: Fault,
}

/// An event that a session was given.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Dispatched {
    /// The session.
    pub session: String,
    /// The event's sequence.
    pub sequence: u64,
    /// The event's name.
    pub name: String,
    /// The [`digest`] of the event's data.
    pub digest: u64,
}

/// A short stand-in for an event's data, the same for the same bytes in the same process.
pub fn digest(data: &[u8]) -> u64 {
    use std::hash::{DefaultHasher, Hasher};
    let mut hasher = DefaultHasher::new();
    hasher.write(data);
    hasher.finish()
}

/// Why the world cannot do what it was asked for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EmitError {
    /// There is no such guild.
    #[error("there is no guild {0}")]
    UnknownGuild(u64),
    /// There is no such channel.
    #[error("there is no channel {0}")]
    UnknownChannel(u64),
    /// An event's data is an object.
    #[error("the data of {0} is not a JSON object")]
    NotAnObject(String),
    /// An event's name is in capitals.
    #[error("{0:?} is not the name of an event: allowed are A to Z, 0 to 9 and _")]
    NotAName(String),
}
