//! What a user can choose.

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

/// Settings of a [`ShardManager`](crate::ShardManager). Only the token and the intents are needed.
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
    /// Changes the settings of single shards, for example the presence. It is called whenever a
    /// shard is opened or restarted (once to check what it does, and once to use it), on any
    /// thread, and must not block. Default: none.
    pub for_shard: Option<ShardHook>,
    /// Keeps the sessions for the next process: loaded at the start, written every few seconds, when
    /// a shard identifies, is ready or stops, and when the manager is suspended.
    /// [`FileStore`](crate::store::FileStore) is one, and [`MemoryStore`](crate::store::MemoryStore)
    /// holds sessions that the program has kept itself. Default: none.
    pub session_store: Option<Arc<dyn SessionStore>>,
    /// How many shards take the place of one that holds more guilds than Discord allows (close code
    /// 4011), 2 or more: shard `[i, n]` becomes `[i + j*n, k*n]` for each `j` below `k`. Default:
    /// none, the shard stops.
    pub auto_split: Option<u32>,
    /// Whether to reshard when the shards grow full. Needs a plan with all shards. Default: no.
    pub auto_reshard: Option<AutoReshard>,
    /// What to do if fewer IDENTIFYs are left today than are needed. Default: [`SessionStartPolicy::Warn`].
    pub session_start_policy: SessionStartPolicy,
    /// How long [`ShardManager::start`](crate::ShardManager::start) asks Discord again, with growing
    /// pauses of up to 30 s, while it cannot be reached or answers with a server error: for a
    /// program that starts before its network does. Default: not at all.
    pub retry_start_for: Duration,
    /// Called when a shard's connection has ended or the shard has stopped, once for both, on the
    /// shard's thread. It must not block. Default: none; the stream has the same as
    /// [`EventKind::Disconnected`](crate::EventKind::Disconnected) and
    /// [`EventKind::Stopped`](crate::EventKind::Stopped).
    pub on_close: Option<CloseHook>,
    /// The gateway to connect to, `wss://...`. Default: what `/gateway/bot` says, which is asked
    /// all the same unless `plan` and `limiter` leave nothing to ask.
    pub gateway_url: Option<String>,
    /// The base of the HTTP API. Default: `https://discord.com/api/v10`.
    pub rest_url: String,
    /// How many REST requests of all routes together go out in a second. Large bots may ask Discord
    /// for more; processes with the same token share it. Default: 50.
    ///
    /// Source: [Discord, Global rate
    /// limit](https://docs.discord.com/developers/topics/rate-limits#global-rate-limit).
    pub rest_rate_limit: NonZeroU32,
    /// Hosts, besides the gateway's own and Discord's, that a session may name to be resumed on.
    /// The token goes there. Default: none.
    pub resume_hosts: Vec<String>,
    /// Whether `http://` and `ws://` are allowed for other hosts than this machine, as for a gateway
    /// proxy in a private network: the token goes there in the clear. Default: no.
    pub allow_plaintext: bool,
    /// Certificates to trust in place of the system's, as PEM, for websocket and HTTP alike.
    /// Default: none.
    pub root_certificates: Option<String>,
    /// An HTTP proxy through which all connections go, the gateway's and those of REST, such as
    /// `http://user:password@proxy.example:3128`. It is asked to connect (`CONNECT`) to Discord's
    /// hosts by their names, and sees nothing of what is said to them. Default: none; no variable of
    /// the environment is looked at.
    ///
    /// URLs without encryption are refused together with one. What the proxy refuses is an
    /// [`Error::Proxy`] at the start; shards try again, as after any failed connection.
    pub proxy: Option<String>,
    /// Decides who may identify. Default: a [`SessionLimit`](crate::limit::SessionLimit) of the
    /// manager's own, with Discord's values. Managers of one bot that run in one process, at once
    /// or within 5 s, must share one.
    pub limiter: Option<Arc<dyn IdentifyLimiter>>,
    /// From when the default limiter's window counts. Default: from the IDENTIFY.
    pub release_after: ReleaseAfter,
    /// Time-outs, pauses and rate limit windows. Default: [`Timing::default`].
    pub timing: Timing,
}

impl Config {
    /// The default settings for a bot.
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

    /// Sets [`auto_reshard`](Self::auto_reshard): asks Discord every `check_every` (a minute to 7
    /// days), and reshards where the fullest shard holds more than `threshold` of what it may
    /// (above 0, to 1).
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

    /// The settings of one shard, checked.
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
    /// The HTTP interface with these settings.
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

/// What [`Config::on_close`] is called with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ConnectionClosed {
    /// The shard.
    pub shard: ShardId,
    /// Why, and whether the shard connects again.
    pub cause: CloseCause,
}

/// Why a shard's connection has ended, and whether the shard connects again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CloseCause {
    /// The shard connects again by itself.
    Disconnected(Disconnect),
    /// The shard has stopped. It may have had no connection.
    Stopped(StopReason),
}

impl ConnectionClosed {
    /// Whether the shard connects again by itself.
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

/// When to reshard without being asked.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AutoReshard {
    /// How often Discord is asked.
    pub check_every: Duration,
    /// How full the shards may be before they are replaced by as many as Discord recommends: 0.8 is
    /// 80 %.
    pub threshold: f64,
}

/// Asks every 8 hours and reshards above 80 %.
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
    /// Refuse with [`Error::SessionStartLimit`].
    Refuse,
}

/// Whether a session belongs to another bot, as far as that is known.
pub(crate) fn is_foreign(session: &Session, bot_user_id: Option<u64>) -> bool {
    session.bot_user_id != 0 && bot_user_id.is_some_and(|bot| bot != session.bot_user_id)
}
