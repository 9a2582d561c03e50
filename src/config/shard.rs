//! The settings of single shards.

use std::num::NonZeroU32;

use crate::event::EventFilter;
use crate::intents::Intents;
use crate::protocol::{Identity, Presence};
use crate::token::Token;
use crate::transport::Compression;

/// The settings of a shard. They are part of [`Config`](crate::Config), and
/// [`Config::for_shard`](crate::Config::for_shard) can change them for single shards.
///
/// A restart applies changed `intents`, `large_threshold` and `presence`; the others apply when the
/// shard is next opened. A presence that was set by a command takes precedence.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct ShardConfig {
    /// The gateway intents.
    pub intents: Intents,
    /// How Discord compresses what it sends. Default: [`Compression::ZstdStream`].
    pub compression: Compression,
    /// The number of members above which Discord omits a guild's offline members, 50 to 250.
    /// Default: 50.
    pub large_threshold: u16,
    /// The initial presence, until a command sets another. Default: Discord's, online without an
    /// activity.
    pub presence: Option<Presence>,
    /// Which events are delivered. Default: all.
    pub events: EventFilter,
    /// After how many sessions in a row that ended early, within 10 minutes
    /// ([`Timing::circuit_window`](crate::Timing::circuit_window)), the shard stops with
    /// [`StopReason::CircuitOpen`](crate::StopReason::CircuitOpen), to save IDENTIFYs. Restart it
    /// to retry. With `None` it retries forever, with increasing pauses. Default: 5.
    pub max_short_sessions: Option<NonZeroU32>,
    /// How many events of a shard may be queued or being handled before it stops reading, at least
    /// 1. Default: 1,024.
    pub max_outstanding_events: usize,
    /// How many bytes of uncompressed payloads may be outstanding before the shard stops reading,
    /// at least 1; one event always fits. Small events share blocks of 16 KiB, so a single small
    /// event may keep a whole block in memory. Default: 1 MiB.
    pub max_outstanding_bytes: usize,
    /// How many commands of a shard may wait to be sent, at least 1. Presences do not count: only
    /// the latest one is queued. Default: 1,024.
    pub max_waiting_commands: usize,
    /// The largest payload in bytes, uncompressed; a larger one ends the connection. 64 KiB to 1
    /// GiB. Default: 64 MiB.
    pub max_payload: usize,
    /// The stack of a shard's thread in bytes, 64 KiB to 1 GiB. Default: 256 KiB.
    pub stack_size: usize,
}

impl ShardConfig {
    pub(super) fn new(intents: Intents) -> Self {
        Self {
            intents,
            compression: Compression::default(),
            large_threshold: 50,
            presence: None,
            events: EventFilter::ALL,
            max_short_sessions: NonZeroU32::new(5),
            max_outstanding_events: 1024,
            max_outstanding_bytes: 1 << 20,
            max_waiting_commands: 1024,
            max_payload: 64 << 20,
            stack_size: 256 << 10,
        }
    }

    /// What IDENTIFY sends about the bot.
    pub(crate) fn identity(&self, token: &Token) -> Identity {
        Identity {
            token: token.clone(),
            intents: self.intents,
            library: "threadcord".into(),
            large_threshold: self.large_threshold,
            compress: self.compression == Compression::Payload,
            presence: self.presence.clone(),
        }
    }
}
