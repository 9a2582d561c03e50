#![doc = include_str!("../README.md")]
//!
//! # The layers
//!
//! ```text
//!   ShardManager ── opens, replaces, joins ──┐         for event in manager.events()
//!                                            │                    ▲
//!       your commands                        ▼                    │ crossbeam channel, bounded by credit
//!            └── Shard::send ──▶ [ shard: one thread each ] ── delivery ── event
//!                                    │              │
//!               limit: whose turn    │              └── protocol: what to say and when (pure)
//!               to identify (pure) ◀─┘
//!                                    └── transport: mio, native-tls, tungstenite, inflate
//! ```
//!
//! Whatever depends on time or on the order of inputs is a plain struct that takes `now` as an
//! argument: the protocol of a shard (`protocol::Machine`), the schedule behind [`limit::SessionLimit`], the limits behind
//! [`rest::Rest`], the credit behind
//! each [`Event`], the transition behind [`ShardManager`], the merge of two sets of shards. Every
//! thread is a short loop around one of them.
//!
//! # Log levels
//!
//! Through [`log`], never with the token. The targets are the modules, so that one can be turned up
//! or down by itself: `threadcord::shard`, `threadcord::manager`, `threadcord::protocol`,
//! `threadcord::limit`, ... A line about a shard begins with it, and has it as the field `shard`,
//! too; the id of its session, where one starts, goes on or is lost, is the field `session`; why a
//! connection or a shard has ended is the field `reason`.
//! - **error**: something that the user, Discord or this library did wrong: a fatal close code, a
//!   malformed payload, an open circuit, a reshard that is given up, a panic.
//! - **warn**: something was lost or runs short: a session, credit, IDENTIFYs, room in a shard; and
//!   why a connection failed.
//! - **info**: a shard is ready, has resumed, has lost its connection, has stopped; others have
//!   taken over; a REST request is rate limited or sent again.
//! - **debug**: each step of a connection; unknown opcodes.
//!
//! The libraries below log too. At trace level `tungstenite` shows the payloads, but not those with
//! the token; the HTTP client's `ureq_proto` shows whole requests, with placeholders for tokens.
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

/// What a bot can say over the gateway, besides [`Command`] itself.
pub mod command {
    #[doc(inline)]
    pub use crate::protocol::{
        Activity, ActivityKind, ChannelField, InvalidCommand, OnlineStatus, VoiceState,
    };
}

/// What a [`ManagerStatus`] consists of.
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
