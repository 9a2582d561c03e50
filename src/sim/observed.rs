//! What clients did, and which rules they broke.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Instant;

use serde_json::Value;

use super::fault::Fault;
use super::request::Request;
use crate::shard_id::ShardId;

/// What clients did, and which rules they broke.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Observed {
    /// What clients did, in order.
    pub records: Vec<Record>,
    /// The rules that clients broke, in order.
    pub violations: Vec<Violation>,
    /// What was accepted although it deviates from Discord's documentation, and requests over a
    /// rate limit, which were answered with 429. In order.
    pub warnings: Vec<Violation>,
    /// The faults that struck, in order.
    pub faults: Vec<Strike>,
    /// The shards with a live session (after READY or RESUMED), each with its connection.
    pub live: BTreeMap<ShardId, usize>,
    /// How many events were sent to sessions, in total.
    pub events: u64,
    /// How many sessions have started.
    pub started: u64,
    /// The last sequence that was sent to each session, including sessions that have ended.
    pub sequences: BTreeMap<String, u64>,
    /// The sessions that the gateway ended although their client wanted to continue.
    pub lost: BTreeSet<String>,
}

impl Observed {
    /// The IDENTIFYs of a shard, in order: the time, and the data without the token.
    pub fn identifies(&self, shard: ShardId) -> impl Iterator<Item = (Instant, &Value)> {
        self.of(shard).filter_map(|record| match &record.action {
            Action::Identify(data) => Some((record.at, data)),
            _ => None,
        })
    }

    /// The commands of a shard with an opcode, in order: the time, and the data.
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

    /// How many records have an action for which `wanted` is true.
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
    /// The number of the connection, counted since the start.
    pub connection: usize,
    /// The shard, once it is known.
    pub shard: Option<ShardId>,
    /// What the client did.
    pub action: Action,
}

/// What a client can do.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Action {
    /// It connected: the websocket is open.
    Connected,
    /// It identified with this data, without the token.
    Identify(Value),
    /// It resumed a session from a sequence.
    Resume {
        /// The session.
        session: String,
        /// The last sequence that the client has received.
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
    /// The connection ended. It has a code if the client closed it with one, and none if the
    /// connection was cut or the gateway closed it.
    Closed(Option<u16>),
    /// It posted a message, or answered an interaction with one.
    Post {
        /// The channel.
        channel: u64,
        /// The text.
        text: String,
    },
    /// It called the HTTP API.
    Request {
        /// The request.
        request: Box<Request>,
        /// The status of the answer.
        status: u16,
        /// The body of the answer.
        answer: Value,
    },
}

/// A rule that a client broke, or a deviation from Discord's documentation.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Violation {
    /// When.
    pub at: Instant,
    /// The shard, once it is known.
    pub shard: Option<ShardId>,
    /// The rule, in words, as Discord documents it. It begins with the close code if Discord closes
    /// the connection, or with the HTTP status if Discord answers a request with one.
    pub rule: String,
    /// What the client sent, shortened and without its token; empty if it sent nothing.
    pub sent: String,
    /// Whether Discord is documented or known to refuse it. Otherwise it is only a
    /// [warning](Observed::warnings).
    pub is_refused: bool,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.rule)?;
        if !self.sent.is_empty() {
            write!(f, "; sent: {}", self.sent)?;
        }
        if !self.is_refused {
            write!(f, " (Discord is not known to refuse it)")?;
        }
        Ok(())
    }
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

/// An event that was sent to a session.
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

/// Hashes an event's data. Equal bytes give the same hash within a process.
pub fn digest(data: &[u8]) -> u64 {
    use std::hash::{DefaultHasher, Hasher};
    let mut hasher = DefaultHasher::new();
    hasher.write(data);
    hasher.finish()
}

/// Why the gateway cannot do what a test requested.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EmitError {
    /// There is no such guild.
    #[error("there is no guild {0}")]
    UnknownGuild(u64),
    /// There is no such channel.
    #[error("there is no channel {0}")]
    UnknownChannel(u64),
    /// There is no such message in the channel.
    #[error("there is no message {0} in the channel")]
    UnknownMessage(u64),
    /// There is no such user in the channel.
    #[error("there is no user {0} in the channel")]
    UnknownUser(u64),
    /// There is no such role in the guild.
    #[error("there is no role {0} in the guild")]
    UnknownRole(u64),
    /// A reaction needs a character, or a guild's emoji as `name:id`.
    #[error("{0:?} is not an emoji: allowed are a character, or name:id for an emoji of a guild")]
    UnknownEmoji(String),
    /// No message in the channel has such a component that is enabled, and no modal is open.
    #[error("no message in the channel has an enabled component {0:?}, and no such modal is open")]
    UnknownComponent(String),
    /// A command or a menu has no such option, or the value is not valid for it.
    #[error("{of:?} has no option {given}, or its value is not valid")]
    UnknownOption {
        /// The command, or the menu.
        of: String,
        /// The given option.
        given: String,
    },
    /// A required option of a command is missing.
    #[error("{of:?} requires the option {missing:?}")]
    MissingOption {
        /// The command.
        of: String,
        /// The missing option.
        missing: String,
    },
    /// The data of an event must be a JSON object.
    #[error("the data of {0} is not a JSON object")]
    NotAnObject(String),
    /// The name of an event may only have A to Z, 0 to 9 and `_`.
    #[error("{0:?} is not the name of an event: allowed are A to Z, 0 to 9 and _")]
    NotAName(String),
}
