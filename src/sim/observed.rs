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
    /// What differs from Discord's documentation but is accepted, and requests over a limit, which
    /// were answered with 429; in order.
    pub warnings: Vec<Violation>,
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
        /// The request.
        request: Box<Request>,
        /// The status that it was answered with.
        status: u16,
        /// The body that it was answered with.
        answer: Value,
    },
}

/// A rule that a client broke, or kept less strictly than Discord documents it.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Violation {
    /// When.
    pub at: Instant,
    /// The shard, once it is known.
    pub shard: Option<ShardId>,
    /// Which rule, in words: what Discord documents. It begins with the close code, if Discord
    /// closes the connection, or with the HTTP status, if it answers with one.
    pub rule: String,
    /// What the client sent, shortened and without its token; empty if it sent nothing.
    pub sent: String,
    /// Whether Discord is documented or known to refuse it. A client that Discord lets pass is
    /// warned.
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
    /// There is no such message in the channel.
    #[error("there is no message {0} in the channel")]
    UnknownMessage(u64),
    /// There is no such user there.
    #[error("there is no user {0} in the channel")]
    UnknownUser(u64),
    /// There is no such role in the guild.
    #[error("there is no role {0} in the guild")]
    UnknownRole(u64),
    /// A reaction is with a character, or with an emoji of a guild as `name:id`.
    #[error("{0:?} is no emoji: allowed are a character, or name:id of one of a guild")]
    UnknownEmoji(String),
    /// No message in the channel has such a component that is enabled, and no modal is open.
    #[error(
        "no message in the channel has a component {0:?} that is enabled, and no such modal is open"
    )]
    UnknownComponent(String),
    /// A command or a menu has no such option, or that is no value for it.
    #[error("{of:?} has no option {given}, or its value is not valid")]
    UnknownOption {
        /// The command, or the menu.
        of: String,
        /// What was given.
        given: String,
    },
    /// A command has an option that is required.
    #[error("{of:?} requires the option {missing:?}")]
    MissingOption {
        /// The command.
        of: String,
        /// The option.
        missing: String,
    },
    /// An event's data is an object.
    #[error("the data of {0} is not a JSON object")]
    NotAnObject(String),
    /// An event's name is in capitals.
    #[error("{0:?} is not the name of an event: allowed are A to Z, 0 to 9 and _")]
    NotAName(String),
}
