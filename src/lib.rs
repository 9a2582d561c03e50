#![doc = include_str!("../README.md")]
//!
//! # The layers
//!
//! ```text
//!   ShardManager ── opens, replaces, joins ──┐         for event in manager.events()
//!                                            │                    ▲ crossbeam channel,
//!       your commands                        ▼                    │ limited outstanding events
//!            └── Shard::send ──▶ [ shard: one thread each ] ── delivery ── event
//!                                    │              │
//!               limit: when to       │              └── protocol: what to send and when (pure)
//!               identify (pure)    ◀─┘
//!                                    └── transport: mio, native-tls, tungstenite, inflate
//! ```
//!
//! All logic that depends on time or on the order of inputs is in plain structs, which take `now`
//! as an argument and do no I/O ("pure"):
//! - the protocol of a shard (`protocol::Machine`),
//! - the schedule behind [`limit::SessionLimit`],
//! - the rate limits behind [`rest::Rest`],
//! - the limit on outstanding events behind each [`Event`],
//! - the transition between sets of shards behind [`ShardManager`],
//! - the merge of the events of two sets of shards.
//!
//! Every thread is a short loop around one of them.
//!
//! # Log levels
//!
//! The library logs through [`log`], and never logs the token. The targets are the modules, so that
//! each has its own level: `threadcord::shard`, `threadcord::manager`, `threadcord::protocol`,
//! `threadcord::limit`, ...
//!
//! A line about a shard begins with the shard, and has these structured fields:
//! - `shard`: the shard.
//! - `session`: the id of its session, where a session starts, continues or is lost.
//! - `reason`: why a connection or a shard has ended.
//!
//! The levels are:
//! - **error**: something that the user, Discord or this library did wrong: a fatal close code, a
//!   malformed payload, an open circuit, a failed reshard, a panic.
//! - **warn**: something was lost or is running out: a session, the limit on outstanding events,
//!   IDENTIFYs, room in a shard; and why a connection failed.
//! - **info**: a shard is ready, has resumed, has lost its connection or has stopped; new shards
//!   have taken over; a REST request is rate limited or retried.
//! - **debug**: each step of a connection; unknown opcodes.
//!
//! The libraries below log too. At trace level, `tungstenite` logs the payloads, except those with
//! the token, and the HTTP client's `ureq_proto` logs whole requests, with placeholders for tokens.
#![forbid(unsafe_code)]
#![recursion_limit = "256"]
#![cfg_attr(docsrs, feature(doc_cfg))]

mod clock;
pub mod config;
mod delivery;
mod dial;
#[cfg(test)]
mod environment;
pub mod error;
mod event;
pub mod guide;
mod histogram;
mod hosts;
mod intents;
mod interaction;
mod json;
pub mod limit;
mod log_shard;
mod manager;
#[doc(hidden)]
pub mod protocol;
#[cfg(feature = "redis")]
pub mod redis;
pub mod rest;
mod seconds;
mod shard;
mod shard_id;
#[cfg(feature = "sim")]
pub mod sim;
pub mod store;
mod timing;
mod token;
pub mod transport;

/// The types of the commands that a bot can send over the gateway, besides [`Command`] itself.
pub mod command {
    #[doc(inline)]
    pub use crate::protocol::{
        Activity, ActivityKind, ChannelField, InvalidCommand, OnlineStatus, VoiceState,
    };
}

/// The parts of a [`ManagerStatus`].
pub mod status {
    #[doc(inline)]
    pub use crate::histogram::Histogram;
    #[doc(inline)]
    pub use crate::shard::ShardCounters;
}

#[doc(inline)]
pub use config::{Config, Plan, ShardConfig};
pub use delivery::Events;
#[doc(inline)]
pub use error::Error;
pub use event::{DecodeError, Dispatch, Event, EventFilter, EventKind};
pub use intents::Intents;
pub use interaction::Interaction;
pub use manager::{Handle, ManagerStatus, Operation, ShardManager, Starting, SuspendedShard};
#[doc(inline)]
pub use protocol::{
    CloseCode, Command, Disconnect, EventName, MemberQuery, Presence, Session, ShardState,
    StopReason,
};
pub use shard::{Members, MembersChunk, Shard, ShardStatus};
pub use shard_id::ShardId;
pub use timing::Timing;
pub use token::Token;
#[doc(inline)]
pub use transport::Compression;
