//! Many shards, one process.

mod fleet;
mod handle;
mod transition;

use std::num::{NonZeroU32, NonZeroUsize};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use native_tls::{Certificate, TlsConnector};

use self::fleet::Fleet;
pub use self::handle::Handle;
use crate::config::{Config, Plan};
use crate::delivery::{self, Events};
use crate::error::Error;
use crate::event::Event;
use crate::limit::{IdentifyLimiter, Limits, SessionLimit};
use crate::protocol::{CloseReason, Session};
use crate::rest::{GatewayBot, Rest, SessionStartLimit};
use crate::shard::{Addresses, Context, Shard};
use crate::shard_id::ShardId;
use crate::transport::WebSocketConnector;

/// Threads that a shard costs.
const THREADS_PER_SHARD: u64 = 1;

/// Descriptors that a shard costs: its socket, its poll and its waker.
const DESCRIPTORS_PER_SHARD: u64 = 3;

/// A bot's shards in this process, each on its own thread. It owns them: dropping it closes them and waits for them.
///
/// ```no_run
/// use threadcord::{Config, Intents, ShardManager, Token};
///
/// let token = Token::new(std::env::var("DISCORD_TOKEN")?)?;
/// let manager = ShardManager::start(Config::new(token, Intents::default()))?;
/// for event in manager.events() {
///     if let Some(dispatch) = event.dispatch() {
///         println!("{} {}", event.shard(), dispatch.name());
///     }
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct ShardManager {
    fleet: Arc<Fleet>,
    handle: Handle,
    opener: parking_lot::Mutex<Option<JoinHandle<()>>>,
}

impl ShardManager {
    /// Checks the configuration, asks Discord what it does not say, and starts the shards, a few at a time as their turn
    /// to identify comes. Returns as soon as the first are on their way; [`wait_ready`](Self::wait_ready) waits for all.
    ///
    /// It blocks for up to one request of [`Rest`]. Nothing is started if it fails.
    pub fn start(config: Config) -> Result<Self, Error> {
        config.validate()?;
        let rest = Rest::new(config.token.clone(), &config.rest_url, config.root_certificates.as_deref())?;
        let (tls, gateway) = thread::scope(|scope| {
            // Reading the system's certificates takes as long as asking Discord: both at once.
            let tls = scope.spawn(|| tls_connector(config.root_certificates.as_deref()));
            let gateway = ask_discord(&config, &rest);
            (tls.join(), gateway)
        });
        let tls = tls.unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        let gateway = gateway?;
        let url = config.gateway_url.clone().or_else(|| gateway.as_ref().map(|gateway| gateway.url.clone()));
        let url = url.unwrap_or_default();
        config.validate_gateway(&url)?;
        let addresses = Addresses::new(&url, config.resume_hosts.clone(), config.compression)?;
        let shards = config.plan.shards(gateway.as_ref().map_or(0, |gateway| gateway.shards.get()))?;
        let sessions = matching_sessions(&config.sessions, &shards);
        warn_of_shortage(&shards, sessions.len(), gateway.as_ref());
        let limits = gateway.as_ref().map(|gateway| limits(&gateway.session_start_limit));
        let limiter = limiter(&config, limits);
        let max_concurrency = limits.map_or(NonZeroU32::MIN, |limits| limits.max_concurrency);

        let (sender, events) = delivery::channel();
        let connector = WebSocketConnector::new(tls, config.compression, config.max_payload);
        let fleet = Fleet::new(shards, max_concurrency, sender, events);
        let observer = Arc::downgrade(&fleet);
        let context = Arc::new(Context {
            config,
            connector,
            addresses,
            limiter,
            on_stage: Box::new(move |shard, stage| {
                if let Some(fleet) = observer.upgrade() {
                    fleet.handle_stage(shard, stage);
                }
            }),
        });
        let handle = Handle { fleet: Arc::downgrade(&fleet), rest };
        let opener = fleet::open(&fleet, context, sessions)?;
        Ok(Self { fleet, handle, opener: parking_lot::Mutex::new(Some(opener)) })
    }

    /// Every event of every shard. Calls share one stream.
    pub fn events(&self) -> Events {
        self.fleet.events()
    }

    /// Hands every event to `handler` on `workers` threads, until all shards have stopped. Each shard belongs to one
    /// worker, so that its events stay in order while shards run in parallel. With one worker the handler runs on the
    /// calling thread.
    ///
    /// A handler that panics is logged and counted, and its worker goes on. It may call anything of its [`Handle`];
    /// to end the loop, [`Handle::close`] or [`Handle::suspend`].
    ///
    /// # Errors
    /// [`Error::Stopped`] if a shard stopped because of something that only you can mend, for example an intent that is
    /// not allowed.
    pub fn run(&self, workers: usize, handler: impl Fn(&Handle, Event) + Sync) -> Result<(), Error> {
        let count = NonZeroUsize::new(workers).ok_or_else(|| Error::setting("workers", workers, "at least 1"))?;
        delivery::run(self.events(), count, self.fleet.panics(), |event| handler(&self.handle, event))
            .map_err(|source| Error::Io { what: "a thread for a handler", source })?;
        self.fleet.fatal_stop()
    }

    /// What handlers get: weak and cheap to clone.
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// A shard, if it runs here and has been opened.
    pub fn shard(&self, id: ShardId) -> Option<Shard> {
        self.fleet.shard(id)
    }

    /// The shard that receives the events of a guild, if it runs here and has been opened.
    pub fn shard_by_guild(&self, guild_id: u64) -> Option<Shard> {
        self.fleet.shard_by_guild(guild_id)
    }

    /// Every shard that was opened, by number.
    pub fn shards(&self) -> Vec<Shard> {
        self.fleet.shards()
    }

    /// Blocks until every shard of the plan is ready at once.
    ///
    /// # Errors
    /// [`Error::Stopped`] as soon as a shard has stopped for good, [`Error::NotReady`] after `timeout`.
    pub fn wait_ready(&self, timeout: Duration) -> Result<(), Error> {
        self.fleet.wait_ready(Instant::now().checked_add(timeout))
    }

    /// Ends every session, so that the bot goes offline, and waits until all threads have ended, up to the close time-out
    /// (2 s). A thread that is looking a host's name up, which nothing can interrupt, ends by itself later. Calling it
    /// twice does no harm; the first of `close` and `suspend` counts.
    pub fn close(&self) {
        self.stop(CloseReason::Requested);
    }

    /// Stops every shard so that its session can be resumed, waits as [`close`](Self::close) does, and returns the
    /// sessions. [`Config::sessions`] starts with them again: no IDENTIFY is spent and no event is missed, provided it
    /// happens within a few minutes. Events that were delivered but not handled come again: those that are held, and those
    /// that nobody has taken from the stream.
    ///
    /// ```
    /// # use threadcord::{Config, Intents, ShardManager, Token, sim};
    /// # let gateway = sim::Gateway::builder().start()?;
    /// # let config = Config::new(Token::new(gateway.token())?, Intents::default()).rest_url(gateway.rest_url());
    /// # let manager = ShardManager::start(config.clone())?;
    /// # manager.wait_ready(std::time::Duration::from_secs(60))?;
    /// let sessions = manager.suspend();
    /// let stored = serde_json::to_string(&sessions)?;
    /// // ... later, perhaps in another process ...
    /// let manager = ShardManager::start(config.sessions(serde_json::from_str(&stored)?))?;
    /// # manager.wait_ready(std::time::Duration::from_secs(60))?;
    /// # assert_eq!(manager.shards()[0].status().identifies, 0);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn suspend(&self) -> Vec<Session> {
        self.stop(CloseReason::Suspended);
        self.shards().iter().filter_map(Shard::session).collect()
    }

    fn stop(&self, reason: CloseReason) {
        self.fleet.stop(reason);
        let opener = self.opener.lock().take();
        opener.into_iter().for_each(fleet::join);
        self.fleet.join();
    }
}

impl Drop for ShardManager {
    fn drop(&mut self) {
        self.close();
    }
}

/// What `/gateway/bot` says; `None` if the configuration says it all, as for a gateway proxy.
fn ask_discord(config: &Config, rest: &Rest) -> Result<Option<GatewayBot>, Error> {
    match (&config.gateway_url, &config.plan, &config.limiter) {
        (Some(_), Plan::Total(_) | Plan::Ids { .. }, Some(_)) => Ok(None),
        _ => rest.gateway_bot().map(Some),
    }
}

fn tls_connector(root_certificates: Option<&str>) -> Result<TlsConnector, Error> {
    let mut builder = TlsConnector::builder();
    if let Some(pem) = root_certificates {
        builder.disable_built_in_roots(true);
        for certificate in Certificate::stack_from_pem(pem.as_bytes())? {
            builder.add_root_certificate(certificate);
        }
    }
    Ok(builder.build()?)
}

fn limits(limit: &SessionStartLimit) -> Limits {
    Limits {
        total: limit.total,
        remaining: limit.remaining,
        reset_after: Duration::from_millis(limit.reset_after),
        max_concurrency: limit.max_concurrency,
    }
}

fn limiter(config: &Config, limits: Option<Limits>) -> Arc<dyn IdentifyLimiter> {
    match (&config.limiter, limits) {
        (Some(limiter), Some(limits)) => {
            limiter.update(limits);
            Arc::clone(limiter)
        }
        // Discord was not asked: the limiter knows better.
        (Some(limiter), None) => Arc::clone(limiter),
        (None, limits) => {
            Arc::new(SessionLimit::with_timing(limits.unwrap_or_default(), &config.timing, config.release_after))
        }
    }
}

/// The sessions that belong to shards of the plan.
fn matching_sessions(sessions: &[Session], shards: &[ShardId]) -> Vec<Session> {
    let (matching, others): (Vec<_>, Vec<_>) =
        sessions.iter().cloned().partition(|session| shards.contains(&session.shard));
    for session in others {
        log::warn!("a stored session of shard {} is not used: that shard is not in the plan", session.shard);
    }
    matching
}

/// Says up front what will run short: IDENTIFYs, threads, descriptors.
fn warn_of_shortage(shards: &[ShardId], resuming: usize, gateway: Option<&GatewayBot>) {
    if let Some(limit) = gateway.map(|gateway| &gateway.session_start_limit) {
        let needed = shards.len().saturating_sub(resuming);
        if needed > limit.remaining as usize {
            log::warn!(
                "{needed} shards are to identify, and {} of {} IDENTIFYs are left; the others wait {} s for the reset",
                limit.remaining,
                limit.total,
                limit.reset_after / 1000,
            );
        }
    }
    #[cfg(unix)]
    for (resource, what, each) in [
        (rlimit::Resource::NOFILE, "descriptors", DESCRIPTORS_PER_SHARD),
        (rlimit::Resource::NPROC, "threads", THREADS_PER_SHARD),
    ] {
        let needed = shards.len() as u64 * each;
        if let Ok((allowed, _)) = resource.get()
            && needed > allowed
        {
            log::warn!("{} shards need {needed} {what}; this process may have {allowed} (see `ulimit`)", shards.len());
        }
    }
}
