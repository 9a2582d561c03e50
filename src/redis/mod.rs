//! Several processes on several machines, one bot: what they share lies in Redis.
//!
//! [`Redis::identify_limit`] is one identify limit for all of them, and works alone. A
//! [part](Redis::part) is a fixed share of the shards, which one process at a time owns: its
//! sessions are kept here, and a process that waits for it goes on with them when the owner stops,
//! dies, or is cut off. So a rolling deploy starts the new process first, and then stops the old
//! one.
//!
//! # Who owns a part
//! Its owner renews a lease every second, which is good for [`Timing::lease_ttl`] (10 s). With a
//! process that waits, the sessions of an owner that was killed are resumed about one TTL later,
//! from their last save, at most a second old: no event is lost, no IDENTIFY is spent, and what was
//! handled since that save comes again. An owner that was stopped for longer than the TTL is told
//! when it goes on, drops its connections, and its manager ends with
//! [`Error::OwnershipLost`]: start the process anew.
//!
//! While Redis is away, or starts anew without its data, no part changes its owner. One that is cut
//! off from Redis alone goes on until another process has resumed its sessions.
//!
//! # What Redis needs
//! Redis 6.2 or Valkey, one server (not a cluster; behind a failover is fine). All keys start with
//! `threadcord:{<bot user id>}:`, are readable JSON, and never expire. Nobody else should write
//! them:
//!
//! ```text
//! ACL SETUSER bot on >password ~threadcord:* resetchannels -@all
//!     +get +set +time +info +evalsha +script|load
//! ```
//!
//! A url that names a database (`/1`) needs `+select`, one with `?protocol=resp3` needs `+hello`.
//!
//! Use `rediss://` (TLS, whose certificate is checked), or a network that only these processes
//! reach. `maxmemory-policy noeviction` keeps the keys where memory runs short.
//!
//! Times are those of the server; the clocks of the other machines do not matter. Its clock should
//! be slewed, not stepped: a clock that is set forward ends windows too early. Behind a failover,
//! set `min-replicas-to-write 1` and a `min-replicas-max-lag` of a few seconds, so that a server
//! that was replaced while it was cut off does not go on granting.
//!
//! # When Redis is away
//! No shard identifies, and connections go on. A call takes 2 s at most, a connection 5 s to be
//! made, and no thread of a shard ever waits for either; [`Redis::open`], the start of a manager
//! and [`status`](crate::Handle::status) do. When Redis has lost what it held, or another server
//! has taken its place, no shard identifies for one window and the 2 s that a permit is valid, nor
//! before Discord has said what is left of the day. Where a host name has several addresses, one
//! that drops packets can use up the 5 s: name a single address then.

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

/// How long a lease may last.
const LEASE_TTLS: RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_secs(3600);

/// The longest time of any kind.
const MAX_DURATION: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// A Redis server that the processes of a bot share. Clones share their connections.
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
    /// [`Error::Setting`] for a url that is none, or that switches the check of the certificate
    /// off, and for a token that names no bot; [`Error::Redis`] if the server does not answer
    /// within 5 s, refuses the login, lacks a right, or holds what another version of this library
    /// has written.
    pub fn open(url: &str, token: &Token) -> Result<Self, Error> {
        Self::open_with_timing(url, token, &Timing::default())
    }

    /// As [`open`](Self::open), with other windows, for a simulator whose time runs faster. All
    /// processes need the same.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_with_timing(url: &str, token: &Token, timing: &Timing) -> Result<Self, Error> {
        let bot = token.user_id().ok_or_else(|| {
            let given = "one that does not begin with a user id";
            Error::setting(
                "token",
                given,
                "a bot's token, whose keys are named after its id",
            )
        })?;
        if !LEASE_TTLS.contains(&timing.lease_ttl) || timing.longest() > MAX_DURATION {
            let given = format!(
                "{:?}, with {:?} at most",
                timing.lease_ttl,
                timing.longest()
            );
            let allowed = format!("{LEASE_TTLS:?}, and none above {MAX_DURATION:?}");
            return Err(Error::setting("timing.lease_ttl", given, allowed));
        }
        let redis = Self {
            connections: Arc::new(Connections::new(url)?),
            bot,
            timing: timing.clone(),
        };
        redis.identify_limit().check().map_err(Error::Redis)?;
        Ok(redis)
    }

    /// The identify limit of all processes that use this server, for
    /// [`Config::limiter`](crate::Config::limiter).
    pub fn identify_limit(&self) -> Arc<RedisLimit> {
        Arc::new(RedisLimit::new(self.document("limit"), &self.timing))
    }

    /// A part of the bot's shards, for one process at a time: those whose number leaves `index`
    /// when divided by `of`, as [`Plan::bucket`](crate::Plan::bucket) has them.
    ///
    /// A second process that [acquires](Part::acquire) the same part waits until the first has
    /// stopped or died, and goes on with its sessions.
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
