//! Who may identify, and when.
//!
//! Discord allows one IDENTIFY per rate limit key and 5 s, and so many a day; whoever goes over the
//! day's total loses every session and the token. [`SessionLimit`] keeps both for one process, and
//! [`FileLimit`] for all processes of one machine; with the feature `redis`, `redis::RedisLimit`
//! does for those of several. [`Blocking`] makes a limiter of a function that blocks, and
//! [`IdentifyLimiter`] is the trait behind them; [`Unlimited`] is for a gateway proxy that keeps
//! the limit itself.

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

/// Called when a ticket is granted or refused. It must not block.
pub type Wake = Box<dyn Fn() + Send + Sync>;

/// Asks Discord for its limits (`/gateway/bot`), and blocks meanwhile.
pub type AskLimits = Arc<dyn Fn() -> Result<Limits, Error> + Send + Sync>;

/// Decides who may identify, and when.
///
/// An implementation makes a [`Ticket::pair`], gives away the ticket and keeps the [`Granter`]. It
/// must
/// - never block in `request`: a shard calls it on its own thread, between heartbeats;
/// - grant a ticket at most once, and refuse it if it never will;
/// - serve the shards of a key in the order they asked;
/// - refuse a ticket with [`LimitError::Failed`] where it cannot tell for now, so that the shard
///   asks again later, and with [`LimitError::Closed`] only when there is no use in asking;
/// - act on each [`Report`]: [`Report::Left`] for an unused permit frees its slot at once.
///
/// With the feature `sim`, the module `limit::contract` checks an implementation for all of this.
pub trait IdentifyLimiter: Send + Sync {
    /// A shard wants to identify.
    fn request(&self, shard: ShardId, wake: Wake) -> Ticket;

    /// Discord says what its limits are, as `/gateway/bot` gives them. The request was
    /// sent at `asked_at`, so the limits may not count later IDENTIFYs. The default does nothing.
    fn update(&self, limits: Limits, asked_at: Instant) {
        let _ = (limits, asked_at);
    }

    /// How Discord can be asked again. A manager calls this when it starts; a limiter that several
    /// processes share may need to, since each knows only of its own IDENTIFYs. Once the manager
    /// has ended, `ask` fails with [`Error::Closed`]. It must not be called in `request`. The
    /// default does nothing.
    fn ask_with(&self, ask: AskLimits) {
        let _ = ask;
    }

    /// What is left and who waits, as far as the limiter knows, for
    /// [`ManagerStatus`](crate::ManagerStatus). The default knows nothing.
    fn status(&self) -> Option<LimitStatus> {
        None
    }
}

/// What is left of a limit, and who waits for it.
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
    /// How many may identify at once.
    pub max_concurrency: NonZeroU32,
    /// Who waits for a turn, in the order in which they came.
    pub waiting: Vec<ShardId>,
}

impl LimitStatus {
    /// With nobody waiting.
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

/// Grants everything at once: for gateway proxies that keep the limit themselves.
#[derive(Clone, Copy, Debug, Default)]
pub struct Unlimited;

impl IdentifyLimiter for Unlimited {
    fn request(&self, _shard: ShardId, wake: Wake) -> Ticket {
        let (ticket, granter) = Ticket::pair(wake, |_| {});
        // The ticket is in hand: nobody can have left.
        let _ = granter.grant();
        ticket
    }
}

/// From when a window counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ReleaseAfter {
    /// From the IDENTIFY, as Discord counts: a fleet starts at the rate that Discord allows.
    #[default]
    Identify,
    /// From READY, or from the failure to get there, as older libraries count: slower by every
    /// READY's delay.
    Ready,
}
