//! One bot in several processes on several machines, which share their state in Redis.
//!
//! - [`Redis::identify_limit`] is one identify limit for all processes. It can be used without
//!   parts.
//! - A [part](Redis::part) is a fixed share of the shards, which one process at a time owns. Its
//!   sessions are stored in Redis. When the owner stops, dies, or is cut off, a standby process
//!   that waits for the part takes it over and resumes its sessions. In a rolling deploy, start the
//!   new process first, and then stop the old one.
//!
//! # Who owns a part
//! The owner of a part holds a lease, which is valid for [`Timing::lease_ttl`] (10 s), and renews
//! it every second. If the owner is killed and a standby waits, the standby resumes the sessions
//! about one TTL later, from their last save, which is at most a second old. No event is lost, and
//! no IDENTIFY is spent; events that were handled since that save are redelivered.
//!
//! An owner that was stopped for longer than the TTL learns that it has lost the part when it runs
//! again. It drops its connections, and its manager ends with [`Error::OwnershipLost`]: restart the
//! process.
//!
//! If Redis is unreachable, or restarts without its data, no part changes its owner. If only the
//! owner cannot reach Redis, its shards run until another process has resumed its sessions.
//!
//! # Requirements for Redis
//! Redis 6.2 or Valkey, one server (not a cluster; behind a failover is fine). All keys start with
//! `threadcord:{<bot user id>}:`, are readable JSON, and never expire. No other program should
//! write them. This command creates a user with the necessary rights:
//!
//! ```text
//! ACL SETUSER bot on >password ~threadcord:* resetchannels -@all
//!     +get +set +time +info +evalsha +script|load
//! ```
//!
//! A URL that names a database (`/1`) also needs `+select`; one with `?protocol=resp3` also needs
//! `+hello`.
//!
//! Use `rediss://` (TLS, with a check of the certificate), or a network that only these processes
//! can reach. `maxmemory-policy noeviction` prevents the loss of keys when memory is short.
//!
//! All times are measured on the server's clock; the clocks of the other machines do not matter.
//! The server's clock should be slewed, not stepped: a clock that is set forward ends windows too
//! early. Behind a failover, set `min-replicas-to-write 1` and a `min-replicas-max-lag` of a few
//! seconds. Then a server that was replaced while it was cut off stops granting permits.
//!
//! # When Redis is unreachable
//! No shard identifies, but open connections continue. A call to Redis times out after 2 s, and a
//! connection attempt after 5 s. No shard thread ever waits for either, but [`Redis::open`], the
//! start of a manager and [`status`](crate::Handle::status) do. If a host name has several IP
//! addresses, one that drops packets can use up the 5 s: then give a single IP address.
//!
//! After Redis has restarted or lost its data, or another server has replaced it, no shard
//! identifies for one window plus the 2 s for which a permit is valid, or before Discord has
//! returned how many IDENTIFYs are left today.

mod connections;
mod document;
mod fleet;
mod keeper;
mod lease;
mod limit;
mod part;
mod sessions;

use std::fmt;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use self::connections::Connections;
use self::document::Document;
pub use self::fleet::{FleetStatus, PartStatus};
pub use self::limit::RedisLimit;
pub use self::part::{OwnedPart, Part};
use crate::error::Error;
use crate::timing::Timing;
use crate::token::Token;

/// The allowed values of [`Timing::lease_ttl`].
const LEASE_TTLS: RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_secs(3600);

/// The longest value that any time in [`Timing`] may have.
const MAX_DURATION: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// A Redis server that the processes of one bot share. Clones share their connections.
///
/// ```no_run
/// use threadcord::redis::Redis;
/// use threadcord::{Config, Intents, Plan, ShardManager, Token};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let token = Token::new(std::env::var("DISCORD_TOKEN")?)?;
/// let redis = Redis::open("rediss://redis.internal/", &token)?;
/// // The fourth of eight processes.
/// let config = Config::new(token, Intents::default())
///     .plan(Plan::bucket(3, 8))
///     .limiter(redis.identify_limit());
/// let manager = ShardManager::start(config)?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Redis {
    connections: Arc<Connections>,
    bot: u64,
    timing: Timing,
}

impl Redis {
    /// Connects to a server, such as `rediss://user:password@redis.internal:6380/`, and checks that
    /// it can be used.
    ///
    /// # Errors
    /// - [`Error::Setting`]: the URL is invalid or switches off the check of the certificate, the
    ///   token does not contain the bot's user id, or a time in [`Timing`] is out of range.
    /// - [`Error::Redis`]: the server does not answer in time (a connection may take 5 s), refuses
    ///   the login or a command, or holds data of another version of this library.
    pub fn open(url: &str, token: &Token) -> Result<Self, Error> {
        Self::open_with_timing(url, token, &Timing::default())
    }

    /// Like [`open`](Self::open), but with other times, for a simulator whose time runs faster. All
    /// processes must use the same times.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_with_timing(url: &str, token: &Token, timing: &Timing) -> Result<Self, Error> {
        let bot = token.user_id().ok_or_else(|| {
            let given = "one that does not start with a user id";
            Error::setting(
                "token",
                given,
                "a bot's token, whose user id names the keys in Redis",
            )
        })?;

        if !LEASE_TTLS.contains(&timing.lease_ttl) {
            let given = format!("{:?}", timing.lease_ttl);
            let allowed = "100 ms to 1 hour";
            return Err(Error::setting("timing.lease_ttl", given, allowed));
        }
        if timing.longest() > MAX_DURATION {
            let given = format!("set with a duration of {:?}", timing.longest());
            return Err(Error::setting("timing", given, "durations up to 7 days"));
        }

        let redis = Self {
            connections: Arc::new(Connections::new(url)?),
            bot,
            timing: timing.clone(),
        };
        redis.identify_limit().check().map_err(Error::Redis)?;
        Ok(redis)
    }

    /// Returns the identify limit that all processes on this server share, for
    /// [`Config::limiter`](crate::Config::limiter).
    pub fn identify_limit(&self) -> Arc<RedisLimit> {
        Arc::new(RedisLimit::new(self.document("limit"), &self.timing))
    }

    /// Returns a part of the bot's shards, for one process at a time.
    ///
    /// It has the shards whose number modulo `of` is `index`, like
    /// [`Plan::bucket`](crate::Plan::bucket). A second process that [acquires](Part::acquire) the
    /// same part waits until the first process has stopped or died, and resumes its sessions.
    ///
    /// ```no_run
    /// use std::time::Duration;
    ///
    /// use threadcord::redis::Redis;
    /// use threadcord::{Config, Intents, Plan, ShardManager, Token};
    ///
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let token = Token::new(std::env::var("DISCORD_TOKEN")?)?;
    /// let redis = Redis::open("rediss://redis.internal/", &token)?;
    /// // The fourth of eight processes, or its standby.
    /// let part = redis.part(3, 8).acquire(Duration::MAX)?;
    /// let config = Config::new(token, Intents::default())
    ///     .plan(Plan::bucket(3, 8))
    ///     .limiter(redis.identify_limit())
    ///     .session_store(part);
    /// let manager = ShardManager::start(config)?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn part(&self, index: u32, of: u32) -> Part {
        Part {
            redis: self.clone(),
            index,
            of,
        }
    }

    fn document(&self, name: &str) -> Document {
        let key = format!("threadcord:{{{}}}:{name}", self.bot);
        Document::new(Arc::clone(&self.connections), key)
    }
}

impl fmt::Debug for Redis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Redis")
            .field("bot", &self.bot)
            .finish_non_exhaustive()
    }
}
