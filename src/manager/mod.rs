//! Many shards, one process.
//!
//! What is to run, what does, and what follows when a shard stops is in `fleet`; what users ask for
//! while it runs in `operations`. Both only note what is wanted: `transition` decides which shard
//! opens, restarts or closes next, and the `conductor`, a thread, does it. `keeper` is the thread
//! that writes the session store.

mod conductor;
mod count;
mod fleet;
mod handle;
mod keeper;
mod operation;
mod operations;
mod start;
mod status;
mod transition;

use std::hash::Hash;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use self::fleet::Fleet;
pub use self::handle::Handle;
pub use self::operation::Operation;
pub use self::status::{FleetStatus, ShardStatus};
use self::transition::Transition;
use crate::config::{Config, Plan};
use crate::delivery::{self, Events, Outlet};
use crate::error::{Error, SendError};
use crate::event::Event;
use crate::limit::Limits;
use crate::protocol::{CloseReason, Command, Presence, Session};
use crate::rest::Rest;
use crate::shard::{Addresses, Context, Shard};
use crate::shard_id::ShardId;
use crate::transport::{Connector, WebSocketConnector};

/// A bot's shards in this process, each on its own thread. It owns them: dropping it closes them
/// and waits for them.
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
    conductor: Mutex<Option<JoinHandle<()>>>,
    keeper: Mutex<Option<JoinHandle<()>>>,
}

impl ShardManager {
    /// Checks the configuration, asks Discord what it does not say, and starts the shards, a few at
    /// a time as their turn to identify comes. Returns as soon as the first are on their way;
    /// [`wait_ready`](Self::wait_ready) waits for all.
    ///
    /// It blocks for up to two requests of [`Rest`], and for the session store. Nothing is started
    /// if it fails.
    pub fn start(config: Config) -> Result<Self, Error> {
        Self::start_with(config, |connector| connector)
    }

    /// As [`start`](Self::start), with transports of your own: `connector` is given the one that
    /// makes websockets, to use it or not.
    pub fn start_with<C: Connector + 'static>(
        config: Config,
        connector: impl FnOnce(WebSocketConnector) -> C,
    ) -> Result<Self, Error> {
        config.validate()?;
        let rest = Rest::new(
            config.token.clone(),
            &config.rest_url,
            config.root_certificates.as_deref(),
        )?;
        let (tls, gateway) = thread::scope(|scope| {
            // Reading the system's certificates takes as long as asking Discord: both at once.
            let tls = scope.spawn(|| start::tls_connector(config.root_certificates.as_deref()));
            let gateway = start::ask_discord(&config, &config.plan, &rest);
            (tls.join(), gateway)
        });
        let tls = tls.unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        let gateway = gateway?;
        let url = config
            .gateway_url
            .clone()
            .or_else(|| gateway.as_ref().map(|gateway| gateway.url.clone()));
        let url = url.unwrap_or_default();
        config.validate_gateway(&url)?;
        let addresses = Addresses::new(&url, config.resume_hosts.clone())?;
        let plan = count::rounded(&config.plan, gateway.as_ref(), || count::is_large(&rest));
        let saved = start::saved(&config)?;
        let shards = plan.shards_with(
            gateway.as_ref().map_or(0, |gateway| gateway.shards.get()),
            &saved.sessions,
        )?;
        let config = Arc::new(Config {
            sessions: Vec::new(),
            ..config
        });
        shards
            .iter()
            .try_for_each(|shard| config.of_shard(*shard, &url).map(drop))?;
        let identified = saved.identified.clone();
        let sessions = start::matching(saved, &shards, &config)?;
        let resumes = |session: &&Session| {
            let config = config.of_shard(session.shard, &url);
            config.is_ok_and(|config| session.fits(session.shard, config.intents))
        };
        start::check_identifies(
            shards.len() - sessions.iter().filter(resumes).count(),
            gateway.as_ref(),
            config.shortage,
        )?;
        start::warn_of_resources(shards.len());
        let limit = gateway.as_ref().map(|gateway| &gateway.session_start_limit);
        let max_concurrency = limit.map_or(NonZeroU32::MIN, |limit| limit.max_concurrency);
        let session_starts = limit.map_or(Limits::default().total, |limit| limit.total);
        start::warn_of_others(&config, max_concurrency);
        let limiter = start::limiter(&config, gateway.as_ref(), &identified);

        let (inlet, events) = delivery::channel();
        let (outlet, transition) = (Outlet::new(inlet), Transition::new(max_concurrency));
        let store = config.session_store.clone();
        let fleet = Fleet::new(
            config,
            url,
            rest.clone(),
            Arc::clone(&limiter),
            transition,
            outlet,
            events,
        );
        fleet.begin(shards, sessions, identified);
        let observer = Arc::downgrade(&fleet);
        let context = Arc::new(Context {
            connector: connector(WebSocketConnector::new(tls)),
            addresses,
            limiter,
            session_starts,
            observer: Box::new(move |shard, change| {
                if let Some(fleet) = observer.upgrade() {
                    fleet.handle(shard, change);
                }
            }),
        });
        let keeper = store
            .map(|store| keeper::start(&fleet, store))
            .transpose()?;
        // The keeper ends with the fleet.
        let conductor = conductor::start(&fleet, context)
            .inspect_err(|_| fleet.stop(CloseReason::Requested))?;
        let handle = Handle {
            fleet: Arc::downgrade(&fleet),
            rest,
        };
        Ok(Self {
            fleet,
            handle,
            conductor: Mutex::new(Some(conductor)),
            keeper: Mutex::new(keeper),
        })
    }

    /// Every event of every shard. Calls share one stream.
    pub fn events(&self) -> Events {
        self.fleet.events()
    }

    /// Hands every event to `handler` on `workers` threads, until all shards have stopped or
    /// [`stop`](Self::stop) is called. Each shard belongs to one worker, so that its events stay in
    /// order while shards run in parallel. With one worker the handler runs on the calling thread.
    ///
    /// A handler that panics is logged and counted,
    /// [`EventKind::HandlerPanicked`](crate::EventKind::HandlerPanicked) says so, its event counts
    /// as handled, and its worker goes on. A handler may call anything of its [`Handle`]. One that
    /// blocks delays no heartbeat; the shards whose events its worker has stop reading when their
    /// credit is used up, and go on afterwards.
    ///
    /// # Errors
    /// [`Error::Setting`] for 0 workers; [`Error::HandlerRunning`] while another call hands the
    /// events to its handler; [`Error::Stopped`] if a shard stopped because of something that only
    /// you can mend, for example an intent that is not allowed.
    pub fn run(
        &self,
        workers: usize,
        handler: impl Fn(&Handle, Event) + Sync,
    ) -> Result<(), Error> {
        self.fleet.run(workers, |workers| {
            workers.run(|event| handler(&self.handle, event))
        })
    }

    /// As [`run`](Self::run), with an order of your own: events with the same key, for example of
    /// the same guild, go to one worker, in order. A `key` that panics is treated as a handler that
    /// does.
    ///
    /// ```no_run
    /// # use threadcord::{Config, Dispatch, Error, Intents, ShardManager, Token};
    /// # fn run(manager: &ShardManager) -> Result<(), Error> {
    /// let guild = |event: &threadcord::Event| event.dispatch().and_then(Dispatch::guild_id);
    /// manager.run_keyed(8, guild, |_, event| println!("{}", event.name()))
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub fn run_keyed<K: Hash>(
        &self,
        workers: usize,
        key: impl Fn(&Event) -> K,
        handler: impl Fn(&Handle, Event) + Sync,
    ) -> Result<(), Error> {
        self.fleet.run(workers, |workers| {
            workers.run_keyed(key, |event| handler(&self.handle, event))
        })
    }

    /// Stops [`run`](Self::run) and [`run_keyed`](Self::run_keyed): each worker finishes the event
    /// that it has, and they return. The shards go on. Does not wait; once they have returned, what
    /// was not handled is the beginning of what [`events`](Self::events) or the next `run` gives.
    /// Returns whether a handler was running.
    pub fn stop(&self) -> bool {
        self.fleet.stop_handler()
    }

    /// Why the stream of events ended: the first shard that stopped because of something that only
    /// you can mend. `Ok` after [`close`](Self::close) and [`suspend`](Self::suspend), and while
    /// every shard runs. Does not block.
    ///
    /// ```no_run
    /// # fn bot(manager: threadcord::ShardManager) -> Result<(), threadcord::Error> {
    /// for event in manager.events() {
    ///     println!("{}", event.name());
    /// }
    /// manager.check() // for example: the token is not valid
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::Stopped`], with the shard and the reason.
    pub fn check(&self) -> Result<(), Error> {
        self.fleet.fatal_stop()
    }

    /// Sends a command to the shard that has a guild; see [`Shard::send`].
    ///
    /// # Errors
    /// As there, and [`SendFailure::NoShard`](crate::SendFailure::NoShard); with the command.
    pub fn send_to_guild(&self, guild_id: u64, command: Command) -> Result<(), SendError> {
        self.fleet.send_to_guild(guild_id, command)
    }

    /// Gives every shard this presence, those too that open later. Does not block.
    ///
    /// # Errors
    /// [`Error::Command`] if Discord would not take it; [`Error::Closed`].
    pub fn broadcast(&self, presence: &Presence) -> Result<(), Error> {
        self.fleet.broadcast(presence)
    }

    /// What handlers get: weak and cheap to clone.
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// A shard, if it runs here and has been opened. While others replace it, it is found until
    /// they take over, and they from then on. Does not block.
    pub fn shard(&self, id: ShardId) -> Option<Shard> {
        self.fleet.shard(id)
    }

    /// The shard that delivers the events of a guild, if it runs here and has been opened. Does not
    /// block.
    pub fn shard_by_guild(&self, guild_id: u64) -> Option<Shard> {
        self.fleet.shard_by_guild(guild_id)
    }

    /// Every shard that was opened and whose events are delivered, by number. Does not block.
    pub fn shards(&self) -> Vec<Shard> {
        self.fleet.shards()
    }

    /// The whole fleet at this moment. Does not block.
    pub fn status(&self) -> FleetStatus {
        self.fleet.status()
    }

    /// Blocks until every shard that is to run is ready at once.
    ///
    /// A session that is resumed is ready once all that it missed has been replayed. If that is
    /// more than its shard's credit, somebody must take the events meanwhile.
    ///
    /// # Errors
    /// [`Error::Stopped`] as soon as a shard has stopped for good, [`Error::NotReady`] after
    /// `timeout`.
    pub fn wait_ready(&self, timeout: Duration) -> Result<(), Error> {
        self.fleet
            .wait_ready(Instant::now().checked_add(timeout), false)
    }

    /// As [`wait_ready`](Self::wait_ready), until also every guild that READY named has arrived or
    /// was given up ([`Timing::guilds_timeout`](crate::Timing::guilds_timeout)). Somebody has to
    /// take the events meanwhile: guilds arrive as events, and a shard that may have no more of
    /// them outstanding stops reading.
    pub fn wait_guilds(&self, timeout: Duration) -> Result<(), Error> {
        self.fleet
            .wait_ready(Instant::now().checked_add(timeout), true)
    }

    /// Opens one more shard; see [`Handle::open_shard`].
    pub fn open_shard(&self, id: ShardId) -> Result<Operation, Error> {
        self.fleet.open(id, None)
    }

    /// Opens one more shard with a session; see [`Handle::resume_shard`].
    pub fn resume_shard(&self, session: Session) -> Result<Operation, Error> {
        self.fleet.open(session.shard, Some(session))
    }

    /// Closes one shard; see [`Handle::close_shard`].
    pub fn close_shard(&self, id: ShardId) -> Result<Operation, Error> {
        self.fleet.close_shard(id)
    }

    /// Gives a reshard up; see [`Handle::cancel_reshard`].
    pub fn cancel_reshard(&self) -> bool {
        self.fleet.cancel_reshard()
    }

    /// Restarts one shard; see [`Handle::restart_shard`].
    pub fn restart_shard(&self, id: ShardId) -> Result<Operation, Error> {
        self.fleet.restart(id)
    }

    /// Restarts every shard in turn; see [`Handle::restart_all`].
    pub fn restart_all(&self, most_away: usize) -> Result<Operation, Error> {
        self.fleet.restart_all(most_away)
    }

    /// Replaces the shards by others without a gap; see [`Handle::reshard`].
    pub fn reshard(&self, plan: &Plan) -> Result<Operation, Error> {
        self.fleet.reshard(plan)
    }

    /// Ends every session, so that the bot goes offline, and waits until all threads have ended, up
    /// to the close time-out (2 s) and for as long as the session store takes. A thread that is
    /// looking a host's name up, which nothing can interrupt, ends by itself later, and so does one
    /// that asks Discord for the number of shards. Calling it twice does no harm; the first of
    /// `close` and `suspend` counts.
    pub fn close(&self) {
        self.end(CloseReason::Requested);
    }

    /// Stops every shard so that its session can be resumed, waits as [`close`](Self::close) does,
    /// then for the handlers to finish what they have
    /// ([`Timing::handlers_timeout`](crate::Timing::handlers_timeout), 5 s), and returns the
    /// sessions. [`Config::sessions`] starts with them again: no IDENTIFY is spent and no event is
    /// missed, provided it happens within a few minutes. Events that were delivered and are not
    /// handled by then come again: those that are held, and those that nobody has taken from the
    /// stream.
    ///
    /// A program that takes its events on the thread that calls this, or that calls it from a
    /// handler, waits in vain for itself: it should set that time to zero, or use
    /// [`Handle::suspend`].
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
        self.end(CloseReason::Suspended);
        self.fleet.sessions()
    }

    fn end(&self, reason: CloseReason) {
        self.fleet.stop(reason);
        let conductor = self.conductor.lock().take();
        let is_first = conductor.is_some();
        conductor.into_iter().for_each(fleet::join);
        self.fleet.join();
        if !is_first {
            return;
        }
        let is_suspended = self.fleet.stopping() == Some(CloseReason::Suspended);
        if is_suspended {
            let deadline = Instant::now() + self.fleet.config.timing.handlers_timeout;
            let delivering = self.fleet.delivering();
            self.fleet.wait_for_handlers(&delivering, deadline);
        }
        let keeper = self.keeper.lock().take();
        keeper.into_iter().for_each(fleet::join);
        let mut saved = self.fleet.saved();
        if !is_suspended {
            saved.sessions.clear();
        }
        if let Some(store) = &self.fleet.config.session_store
            && let Err(error) = keeper::save(&**store, &saved)
        {
            log::error!("failed to write the session store: {error}");
        }
    }
}

impl Drop for ShardManager {
    fn drop(&mut self) {
        self.close();
    }
}
