//! Identify limiters: which shard may send an IDENTIFY, and when.
//!
//! Discord allows one IDENTIFY per rate limit key every 5 s, and a limited number a day. A bot that
//! exceeds the daily number loses every session and its token.
//!
//! - [`SessionLimit`] keeps both limits for one process.
//! - [`FileLimit`] keeps them for all processes on one machine.
//! - `redis::RedisLimit` (feature `redis`) keeps them for processes on several machines.
//! - [`Blocking`] turns a function that blocks into a limiter.
//! - [`Unlimited`] is for a gateway proxy that keeps the limit itself.
//!
//! All of them implement the trait [`IdentifyLimiter`].

mod blocking;
#[cfg(any(test, feature = "sim"))]
pub mod contract;
mod file_limit;
mod reservations;
mod schedule;
mod session_limit;
mod shared;
mod ticket;

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::{Duration, Instant};

pub use blocking::{Blocking, Guard};
pub use file_limit::FileLimit;
pub use schedule::Limits;
use serde::Serialize;
pub use session_limit::SessionLimit;
pub use ticket::{Expiry, Granter, LimitError, Permit, Report, Ticket};

use crate::error::Error;
use crate::seconds;
use crate::shard_id::ShardId;

#[cfg(feature = "redis")]
pub(crate) use self::reservations::{Now, Reservations, Rules, millis};
#[cfg(feature = "redis")]
pub(crate) use self::shared::{SharedLimit, Storage, read_stored};
#[cfg(feature = "redis")]
pub(crate) use self::ticket::Moment;

/// Is called when a ticket is granted or refused. It must not block.
pub type Wake = Box<dyn Fn() + Send + Sync>;

/// Requests Discord's limits (`/gateway/bot`). It blocks until Discord has answered.
pub type AskLimits = Arc<dyn Fn() -> Result<Limits, Error> + Send + Sync>;

/// Decides which shard may identify, and when.
///
/// An implementation creates a [`Ticket::pair`], returns the ticket and keeps the [`Granter`]. It
/// must
/// - never block in `request`: a shard calls it on its own thread, between heartbeats;
/// - grant a ticket at most once, and refuse a ticket that it will never grant;
/// - serve the shards of a key in the order of their requests;
/// - refuse a ticket with [`LimitError::Failed`] if it cannot decide at the moment (the shard
///   requests again later), and with [`LimitError::Closed`] only if no later request can succeed;
/// - act on each [`Report`]: [`Report::Left`] for an unused permit frees its slot at once.
///
/// With the feature `sim`, the module `limit::contract` has checks for an implementation's tests.
pub trait IdentifyLimiter: Send + Sync {
    /// Queues a shard that wants to identify. The limiter calls `wake` when it grants or refuses
    /// the ticket.
    fn request(&self, shard: ShardId, wake: Wake) -> Ticket;

    /// Takes the limits that Discord returned from `/gateway/bot`. The request was sent at
    /// `asked_at`, so the limits may not count later IDENTIFYs. The default does nothing.
    fn update(&self, limits: Limits, asked_at: Instant) {
        let _ = (limits, asked_at);
    }

    /// Takes a function that requests Discord's limits again. A manager calls this when it starts.
    ///
    /// A limiter that several processes share may need `ask`, because each process knows only its
    /// own IDENTIFYs. `ask` must not be called in `request`, and fails with [`Error::Closed`] once
    /// the manager has ended. The default does nothing.
    fn ask_with(&self, ask: AskLimits) {
        let _ = ask;
    }

    /// Returns what is left of the limit and which shards wait, for
    /// [`ManagerStatus`](crate::ManagerStatus). `None`, the default, means that it is not known.
    fn status(&self) -> Option<LimitStatus> {
        None
    }
}

/// What is left of an identify limit, and which shards wait for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct LimitStatus {
    /// IDENTIFYs left until the reset.
    pub remaining: u32,
    /// IDENTIFYs a day.
    pub total: u32,
    /// Time until the reset; `None` if no IDENTIFY was spent since the last reset.
    #[serde(serialize_with = "seconds::serialize_option")]
    pub reset_after: Option<Duration>,
    /// How many shards may identify at once: the number of rate limit keys.
    pub max_concurrency: NonZeroU32,
    /// The shards that wait for their turn. With [`SessionLimit`], in the order of their requests;
    /// with other limiters, only the shards of one rate limit key are in that order, and the shard
    /// whose turn is next may be missing.
    pub waiting: Vec<ShardId>,
}

impl LimitStatus {
    /// Creates a status in which no shard waits.
    pub fn new(
        remaining: u32,
        total: u32,
        reset_after: Option<Duration>,
        max_concurrency: NonZeroU32,
    ) -> Self {
        Self {
            remaining,
            total,
            reset_after,
            max_concurrency,
            waiting: Vec::new(),
        }
    }
}

/// Grants every request at once: for gateway proxies that keep the limit themselves.
#[derive(Clone, Copy, Debug, Default)]
pub struct Unlimited;

impl IdentifyLimiter for Unlimited {
    fn request(&self, _shard: ShardId, wake: Wake) -> Ticket {
        let (ticket, granter) = Ticket::pair(wake, |_| {});
        // The ticket is still held here, so it cannot have left.
        let _ = granter.grant();
        ticket
    }
}

/// When the window of a rate limit key starts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ReleaseAfter {
    /// At the IDENTIFY, as Discord counts: a fleet starts at the rate that Discord allows.
    #[default]
    Identify,
    /// At READY, or when the attempt to get READY fails, as older libraries count. This adds the
    /// delay of each READY to the start.
    Ready,
}
