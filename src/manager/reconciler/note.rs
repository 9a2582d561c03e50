//! The log lines of the manager.

use std::fmt;
use std::time::Duration;

use log::Level;

use super::Failure;
use crate::error::Error;
use crate::protocol::StopReason;
use crate::shard_id::ShardId;

/// A line for the log.
#[derive(Debug)]
pub(in crate::manager) enum Note {
    /// The operating system has no thread or descriptor left.
    OpensLater(Duration),
    /// A shard holds more guilds than Discord allows, and others take its place.
    Split { shard: ShardId, into: Vec<ShardId> },
    /// A shard holds more guilds than Discord allows, during a reshard.
    FullDuringReshard(ShardId),
    /// What stopped a shard would stop the others.
    NoMoreOpened { shard: ShardId, reason: StopReason },
    /// Discord requires another number of shards.
    TotalRefused { total: u32, to: Vec<ShardId> },
    /// A reshard was cancelled or failed.
    ReshardGivenUp(Failure),
    /// The new shards deliver.
    HandedOver {
        from: Vec<ShardId>,
        to: Vec<ShardId>,
    },
    /// The new shards deliver although handlers still have events of the old ones.
    HandlersNotDone(Duration),
    /// How full the shards are.
    Fullness { fullness: f64, recommended: u32 },
    /// The shards are too full, and others replace them.
    TooFull { fullness: f64, recommended: u32 },
    /// The shards are too full, but too few IDENTIFYs are left to replace them.
    SessionStartLimit {
        fullness: f64,
        recommended: u32,
        remaining: u32,
        total: u32,
    },
    /// The shards are too full, but cannot be replaced now.
    NotResharded(Error),
}

impl Note {
    pub(in crate::manager) fn level(&self) -> Level {
        match self {
            Self::ReshardGivenUp(Failure::Cancelled)
            | Self::HandedOver { .. }
            | Self::TooFull { .. } => Level::Info,
            Self::Fullness { .. } => Level::Debug,
            Self::ReshardGivenUp(_)
            | Self::OpensLater(_)
            | Self::NoMoreOpened { .. }
            | Self::NotResharded(_) => Level::Error,
            _ => Level::Warn,
        }
    }
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OpensLater(pause) => write!(f, "retrying to open shards in {pause:?}"),
            Self::Split { shard, into } => {
                let into = list(into);
                write!(
                    f,
                    "shard {shard} holds too many guilds: {into} take its place"
                )
            }
            Self::FullDuringReshard(shard) => write!(
                f,
                "shard {shard} holds too many guilds; the reshard in progress replaces it"
            ),
            Self::NoMoreOpened { shard, reason } => {
                write!(
                    f,
                    "no more shards are opened: shard {shard} stopped: {reason}"
                )
            }
            Self::TotalRefused { total, to } => {
                let to = list(to);
                write!(
                    f,
                    "Discord does not accept a total of {total} shards: opening {to} instead"
                )
            }
            Self::ReshardGivenUp(Failure::Cancelled) => {
                f.write_str("reshard cancelled on request; the old shards keep running")
            }
            Self::ReshardGivenUp(failure) => {
                let error = Error::from(*failure);
                write!(f, "reshard failed; the old shards keep running: {error}")
            }
            Self::HandedOver { from, to } => {
                write!(f, "{} have taken over from {}", list(to), list(from))
            }
            Self::HandlersNotDone(timeout) => write!(
                f,
                "handlers still have events of the old shards after {timeout:?}: events of a guild \
                 may now be handled out of order"
            ),
            Self::Fullness { fullness, .. }
            | Self::TooFull { fullness, .. }
            | Self::SessionStartLimit { fullness, .. } => {
                write!(f, "the shards are {:.0} % full", fullness * 100.0)?;
                self.write_consequence(f)
            }
            Self::NotResharded(error) => {
                write!(f, "keeping the current shard count: {}", error.report())
            }
        }
    }
}

impl Note {
    /// Writes what happens because of how full the shards are.
    fn write_consequence(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fullness { recommended, .. } => {
                write!(f, "; Discord recommends {recommended}")
            }
            Self::TooFull { recommended, .. } => write!(f, ": {recommended} replace them"),
            Self::SessionStartLimit {
                recommended,
                remaining,
                total,
                ..
            } => write!(
                f,
                ", but {remaining} of {total} IDENTIFYs are left, too few for {recommended} shards \
                 and their restart"
            ),
            _ => Ok(()),
        }
    }
}

/// Formats a list of shards; more than 8 are shortened to a range.
fn list(shards: &[ShardId]) -> String {
    match shards {
        [first, .., last] if shards.len() > 8 => {
            format!("{} shards from {first} to {last}", shards.len())
        }
        _ => {
            let shards: Vec<String> = shards.iter().map(ToString::to_string).collect();
            shards.join(", ")
        }
    }
}
