//! The settings of a [`ShardManager`](crate::ShardManager).

mod plan;
mod shard;
mod validate;

use std::fmt;
use std::num::NonZeroU32;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

pub use plan::Plan;
pub use shard::ShardConfig;

use crate::error::Error;
use crate::event::EventFilter;
use crate::intents::Intents;
use crate::limit::{IdentifyLimiter, ReleaseAfter};
use crate::protocol::{Disconnect, Presence, Session, StopReason};
use crate::rest::Rest;
use crate::shard_id::ShardId;
use crate::store::SessionStore;
use crate::timing::Timing;
use crate::token::Token;
use crate::transport::Compression;

/// The settings of a [`ShardManager`](crate::ShardManager). Only the token and the intents are
/// required.
///
/// ```
/// # use threadcord::{Config, Intents, Plan, Token};
/// let config = Config::new(Token::new("aaa.bbb.ccc")?, Intents::GUILDS | Intents::GUILD_MESSAGES)
///     .plan(Plan::Total(4))
///     .large_threshold(250);
/// # Ok::<(), threadcord::error::InvalidToken>(())
/// ```
#[derive(Clone)]
#[non_exhaustive]
pub struct Config {
    /// The bot's token.
    pub token: Token,
    /// Which shards to run. Default: as many as Discord recommends.
    pub plan: Plan,
    /// The settings of each shard.
    pub shard: ShardConfig,
    /// Changes the settings of single shards, for example the presence. It is called twice whenever
    /// a shard is opened or restarted, once to check the settings and once to use them. It may be
    /// called on any thread, and must not block. Default: none.
    pub for_shard: Option<ShardHook>,
    /// Stores the sessions for the next process. It is loaded at the start. It is written every few
    /// seconds, when a shard identifies, is ready or stops, and when the manager is suspended.
    /// Use a [`FileStore`](crate::store::FileStore), or a
    /// [`MemoryStore`](crate::store::MemoryStore) for sessions that the program stores itself.
    /// Default: none.
    pub session_store: Option<Arc<dyn SessionStore>>,
    /// How many shards replace a shard that has more guilds than Discord allows (close code 4011),
    /// from 2 to 1,000. With `k`, shard `[i, n]` becomes `[i + j*n, k*n]` for each `j` below `k`.
    /// Default: none; the shard stops.
    pub auto_split: Option<u32>,
    /// Whether to reshard automatically when the shards become too full. This requires a plan with
    /// all shards. Default: no.
    pub auto_reshard: Option<AutoReshard>,
    /// What to do if fewer IDENTIFYs are left today than are needed. Default:
    /// [`SessionStartPolicy::Warn`].
    pub session_start_policy: SessionStartPolicy,
    /// How long [`ShardManager::start`](crate::ShardManager::start) retries its query to Discord
    /// while Discord cannot be reached or answers with a server error. The pauses between the
    /// attempts grow, up to 30 s. Set it if the program may start before its network is up. Up to
    /// 7 days. Default: zero, no retry.
    pub retry_start_for: Duration,
    /// Called on the shard's thread when its connection has ended or it has stopped; only once if
    /// both happen together. It must not block. The event stream reports the same as
    /// [`EventKind::Disconnected`](crate::EventKind::Disconnected) and
    /// [`EventKind::Stopped`](crate::EventKind::Stopped). Default: none.
    pub on_close: Option<CloseHook>,
    /// The URL of the gateway, `wss://...`. Default: the URL that `/gateway/bot` returns.
    ///
    /// Even if it is set, `/gateway/bot` is queried, unless there is a `limiter` and the `plan`
    /// sets the total number of shards.
    pub gateway_url: Option<String>,
    /// The base of the HTTP API. Default: `https://discord.com/api/v10`.
    pub rest_url: String,
    /// The global rate limit: how many REST requests are sent per second, to all routes together.
    /// Large bots may ask Discord for a higher limit. Processes with the same token share the
    /// limit. Default: 50.
    ///
    /// Source: [Discord, Global rate
    /// limit](https://docs.discord.com/developers/topics/rate-limits#global-rate-limit).
    pub rest_rate_limit: NonZeroU32,
    /// More hosts, besides those of the gateway and of Discord, on which sessions may be resumed.
    /// The token is sent to them. Default: none.
    pub resume_hosts: Vec<String>,
    /// Whether `http://` and `ws://` are allowed for hosts other than this machine, for example for
    /// a gateway proxy in a private network. The token is sent to them unencrypted. Default: no.
    pub allow_plaintext: bool,
    /// The root certificates to trust instead of the system's, as PEM, for websocket and HTTP
    /// connections. Default: none.
    pub root_certificates: Option<String>,
    /// The URL of an HTTP proxy for all connections to the gateway and to REST, for example
    /// `http://user:password@proxy.example:3128`. The proxy is asked to connect (`CONNECT`) to
    /// Discord's hosts by name, and cannot read the encrypted traffic. Default: none; environment
    /// variables are ignored.
    ///
    /// With a proxy, unencrypted URLs are refused. If the proxy refuses the login, the start fails
    /// with [`Error::Proxy`]. After any other failure of the proxy, the start is retried for
    /// [`retry_start_for`](Self::retry_start_for), then fails with the same error. A running shard
    /// retries, as after any failed connection.
    pub proxy: Option<String>,
    /// Decides when each shard may identify. Default: each manager has its own
    /// [`SessionLimit`](crate::limit::SessionLimit), with the values that Discord returns. Managers
    /// of the same bot must share a limiter if they run in one process at the same time, or within
    /// 5 s of each other.
    pub limiter: Option<Arc<dyn IdentifyLimiter>>,
    /// When the default limiter's window starts. Default: at the IDENTIFY.
    pub release_after: ReleaseAfter,
    /// Timeouts, pauses and rate limit windows. Default: [`Timing::default`].
    pub timing: Timing,
}

impl Config {
    /// Creates the default settings for a bot.
    pub fn new(token: Token, intents: Intents) -> Self {
        Self {
            token,
            plan: Plan::Recommended,
            shard: ShardConfig::new(intents),
            for_shard: None,
            session_store: None,
            auto_split: None,
            auto_reshard: None,
            session_start_policy: SessionStartPolicy::default(),
            retry_start_for: Duration::ZERO,
            on_close: None,
            gateway_url: None,
            rest_url: "https://discord.com/api/v10".into(),
            rest_rate_limit: NonZeroU32::new(50).unwrap_or(NonZeroU32::MIN),
            resume_hosts: Vec::new(),
            allow_plaintext: false,
            root_certificates: None,
            proxy: None,
            limiter: None,
            release_after: ReleaseAfter::default(),
            timing: Timing::default(),
        }
    }

    /// Sets [`plan`](Self::plan).
    pub fn plan(self, plan: Plan) -> Self {
        Self { plan, ..self }
    }

    /// Sets [`session_store`](Self::session_store).
    pub fn session_store(self, store: impl SessionStore + 'static) -> Self {
        Self {
            session_store: Some(Arc::new(store)),
            ..self
        }
    }

    /// Sets [`auto_split`](Self::auto_split).
    pub fn auto_split(self, count: u32) -> Self {
        Self {
            auto_split: Some(count),
            ..self
        }
    }

    /// Sets [`auto_reshard`](Self::auto_reshard). Discord is queried every `check_every` (1 minute
    /// to 7 days). The shards are replaced if the fullest one has more than `threshold` of the
    /// guilds that Discord allows (above 0, up to 1).
    pub fn auto_reshard(self, check_every: Duration, threshold: f64) -> Self {
        Self {
            auto_reshard: Some(AutoReshard {
                check_every,
                threshold,
            }),
            ..self
        }
    }

    /// Sets [`max_short_sessions`](ShardConfig::max_short_sessions) of each shard.
    pub fn max_short_sessions(mut self, max_short_sessions: Option<NonZeroU32>) -> Self {
        self.shard.max_short_sessions = max_short_sessions;
        self
    }

    /// Sets [`session_start_policy`](Self::session_start_policy).
    pub fn session_start_policy(self, session_start_policy: SessionStartPolicy) -> Self {
        Self {
            session_start_policy,
            ..self
        }
    }

    /// Sets [`for_shard`](Self::for_shard).
    pub fn for_shard(
        self,
        change: impl Fn(ShardId, &mut ShardConfig) + Send + Sync + 'static,
    ) -> Self {
        Self {
            for_shard: Some(Arc::new(change)),
            ..self
        }
    }

    /// Sets [`retry_start_for`](Self::retry_start_for).
    pub fn retry_start_for(self, retry_start_for: Duration) -> Self {
        Self {
            retry_start_for,
            ..self
        }
    }

    /// Sets [`on_close`](Self::on_close).
    pub fn on_close(self, on_close: impl Fn(ConnectionClosed) + Send + Sync + 'static) -> Self {
        Self {
            on_close: Some(Arc::new(on_close)),
            ..self
        }
    }

    /// Sets [`compression`](ShardConfig::compression) of each shard.
    pub fn compression(mut self, compression: Compression) -> Self {
        self.shard.compression = compression;
        self
    }

    /// Sets [`large_threshold`](ShardConfig::large_threshold) of each shard.
    pub fn large_threshold(mut self, large_threshold: u16) -> Self {
        self.shard.large_threshold = large_threshold;
        self
    }

    /// Sets [`presence`](ShardConfig::presence) of each shard.
    pub fn presence(mut self, presence: Presence) -> Self {
        self.shard.presence = Some(presence);
        self
    }

    /// Sets [`events`](ShardConfig::events) of each shard.
    pub fn events(mut self, events: EventFilter) -> Self {
        self.shard.events = events;
        self
    }

    /// Sets [`gateway_url`](Self::gateway_url).
    pub fn gateway_url(self, url: impl Into<String>) -> Self {
        Self {
            gateway_url: Some(url.into()),
            ..self
        }
    }

    /// Sets [`rest_url`](Self::rest_url).
    pub fn rest_url(self, url: impl Into<String>) -> Self {
        Self {
            rest_url: url.into(),
            ..self
        }
    }

    /// Sets [`rest_rate_limit`](Self::rest_rate_limit).
    pub fn rest_rate_limit(self, requests: NonZeroU32) -> Self {
        Self {
            rest_rate_limit: requests,
            ..self
        }
    }

    /// Sets [`resume_hosts`](Self::resume_hosts).
    pub fn resume_hosts(self, resume_hosts: Vec<String>) -> Self {
        Self {
            resume_hosts,
            ..self
        }
    }

    /// Sets [`allow_plaintext`](Self::allow_plaintext).
    pub fn allow_plaintext(self, allow_plaintext: bool) -> Self {
        Self {
            allow_plaintext,
            ..self
        }
    }

    /// Sets [`root_certificates`](Self::root_certificates).
    pub fn root_certificates(self, pem: impl Into<String>) -> Self {
        Self {
            root_certificates: Some(pem.into()),
            ..self
        }
    }

    /// Sets [`proxy`](Self::proxy).
    pub fn proxy(self, url: impl Into<String>) -> Self {
        Self {
            proxy: Some(url.into()),
            ..self
        }
    }

    /// Sets [`limiter`](Self::limiter).
    pub fn limiter(self, limiter: Arc<dyn IdentifyLimiter>) -> Self {
        Self {
            limiter: Some(limiter),
            ..self
        }
    }

    /// Sets [`release_after`](Self::release_after).
    pub fn release_after(self, release_after: ReleaseAfter) -> Self {
        Self {
            release_after,
            ..self
        }
    }

    /// Sets [`max_outstanding_events`](ShardConfig::max_outstanding_events) of each shard.
    pub fn max_outstanding_events(mut self, max_outstanding_events: usize) -> Self {
        self.shard.max_outstanding_events = max_outstanding_events;
        self
    }

    /// Sets [`max_outstanding_bytes`](ShardConfig::max_outstanding_bytes) of each shard.
    pub fn max_outstanding_bytes(mut self, max_outstanding_bytes: usize) -> Self {
        self.shard.max_outstanding_bytes = max_outstanding_bytes;
        self
    }

    /// Sets [`max_waiting_commands`](ShardConfig::max_waiting_commands) of each shard.
    pub fn max_waiting_commands(mut self, max_waiting_commands: usize) -> Self {
        self.shard.max_waiting_commands = max_waiting_commands;
        self
    }

    /// Sets [`max_payload`](ShardConfig::max_payload) of each shard.
    pub fn max_payload(mut self, max_payload: usize) -> Self {
        self.shard.max_payload = max_payload;
        self
    }

    /// Sets [`stack_size`](ShardConfig::stack_size) of each shard.
    pub fn stack_size(mut self, stack_size: usize) -> Self {
        self.shard.stack_size = stack_size;
        self
    }

    /// Sets [`timing`](Self::timing).
    pub fn timing(self, timing: Timing) -> Self {
        Self { timing, ..self }
    }

    /// Returns the settings of one shard, after checking them.
    pub(crate) fn of_shard(&self, shard: ShardId) -> Result<ShardConfig, Error> {
        let mut config = self.shard.clone();
        let Some(change) = &self.for_shard else {
            return Ok(config);
        };

        catch_unwind(AssertUnwindSafe(|| change(shard, &mut config))).map_err(|_| {
            Error::setting(
                "for_shard",
                format!("a function that panicked for shard {shard}"),
                "a function that does not panic",
            )
        })?;
        config.validate(&self.token)?;
        Ok(config)
    }
}

impl Config {
    /// Creates the REST client with these settings.
    pub(crate) fn rest(&self) -> Result<Rest, Error> {
        let rest = Rest::builder(self.token.clone())
            .base_url(&self.rest_url)
            .allow_plaintext(self.allow_plaintext)
            .rate_limit(self.rest_rate_limit, self.timing.rest_window);
        let rest = match &self.root_certificates {
            Some(pem) => rest.root_certificates(pem),
            None => rest,
        };
        match &self.proxy {
            Some(url) => rest.proxy(url).build(),
            None => rest.build(),
        }
    }
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config")
            .field("plan", &self.plan)
            .field("shard", &self.shard)
            .field("gateway_url", &self.gateway_url)
            .field("rest_url", &self.rest_url)
            .finish_non_exhaustive()
    }
}

/// Changes the settings of one shard.
pub type ShardHook = Arc<dyn Fn(ShardId, &mut ShardConfig) + Send + Sync>;

/// Called when a shard's connection has ended, or the shard has stopped.
pub type CloseHook = Arc<dyn Fn(ConnectionClosed) + Send + Sync>;

/// The argument of [`Config::on_close`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ConnectionClosed {
    /// The shard.
    pub shard: ShardId,
    /// Why the connection ended, and whether the shard reconnects.
    pub cause: CloseCause,
}

/// Why a shard's connection has ended, and whether the shard reconnects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CloseCause {
    /// The connection has ended. The shard reconnects by itself.
    Disconnected(Disconnect),
    /// The shard has stopped. It may have had no connection.
    Stopped(StopReason),
}

impl ConnectionClosed {
    /// Whether the shard reconnects by itself.
    pub fn will_reconnect(&self) -> bool {
        matches!(self.cause, CloseCause::Disconnected(_))
    }
}

/// For example `shard 0/1: the connection was cut`.
impl fmt::Display for ConnectionClosed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.cause {
            CloseCause::Disconnected(reason) => write!(f, "shard {}: {reason}", self.shard),
            CloseCause::Stopped(reason) => write!(f, "shard {} stopped: {reason}", self.shard),
        }
    }
}

/// When to reshard automatically.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AutoReshard {
    /// How often Discord is queried.
    pub check_every: Duration,
    /// The share of Discord's 2,500 guilds per shard that the largest shard may have. Above this,
    /// the shards are replaced by as many as Discord recommends. 0.8 means 80 %.
    pub threshold: f64,
}

/// Queries Discord every 8 hours, and reshards above 80 %.
impl Default for AutoReshard {
    fn default() -> Self {
        Self {
            check_every: Duration::from_secs(8 * 60 * 60),
            threshold: 0.8,
        }
    }
}

/// What to do if fewer IDENTIFYs are left today than are needed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SessionStartPolicy {
    /// Log a warning, and let the remaining shards wait for the reset.
    #[default]
    Warn,
    /// Fail with [`Error::SessionStartLimit`].
    Refuse,
}

/// Whether a session is known to belong to another bot.
pub(crate) fn is_foreign(session: &Session, bot_user_id: Option<u64>) -> bool {
    session.bot_user_id != 0 && bot_user_id.is_some_and(|bot| bot != session.bot_user_id)
}
