//! The rules and limits of a world.

use std::io;
use std::time::Duration;

use super::fault::Answer;
use super::traffic::Mix;
use crate::intents::Intents;

/// The maximum of every configured rate, in events a second.
pub(super) const MAX_ACTIVE: f64 = 1_000_000.0;

/// The rules and limits of a world.
#[derive(Clone, Debug)]
pub(super) struct Settings {
    pub(super) token: String,
    pub(super) shards: u32,
    pub(super) shard_multiple: u32,
    pub(super) max_concurrency: u32,
    pub(super) session_starts: u32,
    pub(super) session_starts_left: u32,
    pub(super) reset_after: Duration,
    pub(super) time_scale: f64,
    pub(super) heartbeat_interval: Duration,
    pub(super) ready_delay: Duration,
    pub(super) guild_delay: Duration,
    pub(super) latency: Duration,
    pub(super) jitter: Duration,
    pub(super) allowed_intents: Intents,
    pub(super) guilds_per_shard: usize,
    pub(super) members: u32,
    pub(super) activity: f64,
    pub(super) mix: Mix,
    pub(super) offer: Offer,
    pub(super) keep_dispatches: bool,
    pub(super) replay_events: usize,
    pub(super) replay_delay: Duration,
    pub(super) on_takeover: Answer,
    /// The number of requests that a route accepts in a window, and that window before scaling.
    pub(super) rest_limit: (u32, Duration),
    pub(super) global_rest_limit: u32,
    pub(super) is_strict: bool,
    pub(super) seed: u64,
}

/// Which transport compressions a gateway offers. A client that requests another one is answered
/// with HTTP 400.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Offer {
    /// Every compression that Discord offers, and uncompressed connections.
    #[default]
    Any,
    /// Only uncompressed connections.
    Plain,
    /// Only `zlib-stream`.
    ZlibStream,
    /// Only `zstd-stream`.
    ZstdStream,
}

impl Offer {
    pub(super) fn has(self, compress: Option<&str>) -> bool {
        let asked = match compress {
            None => Self::Plain,
            Some("zlib-stream") => Self::ZlibStream,
            Some("zstd-stream") => Self::ZstdStream,
            Some(_) => return false,
        };
        self == Self::Any || self == asked
    }
}

/// Why a gateway did not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// A setting is out of its range.
    #[error("`{setting}` is {given}; allowed: {allowed}")]
    Setting {
        /// The name of the setting.
        setting: &'static str,
        /// The given value.
        given: String,
        /// The allowed values.
        allowed: String,
    },
    /// The port is already in use.
    #[error("port {0} is in use: choose another, or 0 for any free port")]
    PortInUse(u16),
    /// The operating system reported an error.
    #[error("the simulated gateway cannot start: {0}")]
    Io(#[from] io::Error),
}
