//! Many shards, one process.
//!
//! Every decision is the [`reconciler`]'s: what runs, what is wanted, what follows when a shard
//! stops. The [`hub`] keeps it and the shards under one lock. The [`supervisor`], a thread, does
//! what it decides, and the [`session_writer`], another, writes the session store. The shards' own
//! threads tell the hub what has changed.

mod count;
mod handle;
mod handlers;
mod hub;
mod operation;
mod prepare;
mod presences;
mod prometheus;
mod reconciler;
mod requests;
mod session_writer;
mod start;
mod starting;
mod status;
mod supervisor;
#[cfg(all(test, feature = "sim"))]
mod virtual_time;

use std::hash::Hash;
use std::sync::Arc;
use std::thread::{self, JoinHandle, ThreadId};
use std::time::Duration;

use crossbeam_channel::Receiver;
use parking_lot::Mutex;

pub use self::handle::Handle;
use self::hub::Hub;
pub use self::operation::Operation;
use self::prepare::Prepared;
use self::reconciler::{Reconciler, Settings};
pub use self::requests::SuspendedShard;
pub use self::starting::Starting;
pub use self::status::ManagerStatus;
use crate::clock;
use crate::config::Config;
use crate::delivery::{self, Events, Feed};
use crate::error::Error;
use crate::event::Event;
use crate::protocol::{Session, StopReason};
use crate::shard::Context;
use crate::shard_id::ShardId;
use crate::transport::{Connector, WebSocketConnector};

/// A bot's shards in this process, each on its own thread. It owns them: dropping it closes them
/// and waits for them.
///
/// It starts and stops the shards, waits for them, and delivers events. What runs is looked at and
/// changed through its [`handle`](Self::handle).
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
    hub: Arc<Hub>,
    handle: Handle,
    /// Until they are joined.
    threads: Mutex<Option<Threads>>,
    /// The manager's own threads.
    own: Vec<ThreadId>,
}

/// The manager's own threads.
#[derive(Debug)]
struct Threads {
    supervisor: JoinHandle<()>,
    session_writer: Option<JoinHandle<()>>,
}

impl ShardManager {
    /// Checks the configuration, queries `/gateway/bot` for what that leaves open, then starts shards
    /// as the identify limit permits. Returns once startup is under way;
    /// [`wait_ready`](Self::wait_ready) waits for all shards.
    ///
    /// It blocks for up to two requests of [`Rest`](crate::rest::Rest), for as long as
    /// [`Config::retry_start_for`] says while Discord cannot be reached, and for the session store.
    /// Nothing is started if it fails.
    pub fn start(config: Config) -> Result<Self, Error> {
        Self::start_with(config, |connector| connector)
    }

    /// As [`start`](Self::start), with transports of your own: `connector` is given the one that
    /// makes websockets, to use it or not. [`Config::proxy`] leads the shards' connections through a
    /// proxy only if it is used.
    pub fn start_with<C: Connector + 'static>(
        config: Config,
        connector: impl FnOnce(WebSocketConnector) -> C,
    ) -> Result<Self, Error> {
        // Nothing comes, and the other end is never dropped.
        Self::start_until(config, connector, &crossbeam_channel::never())
    }

    /// As [`start`](Self::start), on a thread of its own: for a program whose thread must not block,
    /// such as one that draws frames.
    ///
    /// # Errors
    /// [`Error::Setting`] and the like for what can be checked without Discord;
    /// [`Error::Io`] if there is no thread left. [`Starting`] tells the rest.
    pub fn start_in_background(config: Config) -> Result<Starting, Error> {
        Starting::new(config)
    }

    fn start_until<C: Connector + 'static>(
        config: Config,
        connector: impl FnOnce(WebSocketConnector) -> C,
        cancelled: &Receiver<()>,
    ) -> Result<Self, Error> {
        let prepared = prepare::prepare(config, cancelled)?;
        let rest = prepared.rest.clone();
        let (hub, context) = assemble(prepared, connector);
        let threads = start::threads(&hub, context)?;
        let own = threads.session_writer.iter().chain([&threads.supervisor]);
        Ok(Self {
            handle: Handle {
                hub: Arc::downgrade(&hub),
                rest,
            },
            own: own.map(|thread| thread.thread().id()).collect(),
            threads: Mutex::new(Some(threads)),
            hub,
        })
    }

    /// Every event of every shard. Calls share one stream.
    pub fn events(&self) -> Events {
        self.hub.events()
    }

    /// Hands every event to `handler` on `workers` threads, until all shards have stopped or
    /// [`Handle::stop`] is called. Each shard belongs to one worker, so that its events stay in
    /// order while shards run in parallel. The calling thread is one of the workers.
    ///
    /// What the stream holds is handled first. Meanwhile [`events`](Self::events) gives nothing. After
    /// [`Handle::stop`] each worker finishes the event that it has, and the rest is in the stream
    /// again, in order: for the next `run`, or for `events`. After [`close`](Self::close), queued
    /// events are handled for up to [`Timing::handlers_timeout`](crate::Timing::handlers_timeout);
    /// after [`suspend`](Self::suspend), none is begun.
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
        self.hub.run(workers, |workers| {
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
        self.hub.run(workers, |workers| {
            workers.run_keyed(key, |event| handler(&self.handle, event))
        })
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
    /// [`Error::Stopped`], with the shard and the reason; [`Error::OwnershipLost`].
    pub fn check(&self) -> Result<(), Error> {
        self.hub.check()
    }

    /// The handle: everything that can be asked of a manager without owning it, such as its shards,
    /// their status and [`reshard`](Handle::reshard). Handlers get it too. A clone can be kept
    /// anywhere.
    pub fn handle(&self) -> &Handle {
        &self.handle
    }

    /// Blocks until all shards are ready at the same time.
    ///
    /// A session that is resumed is ready once all that it missed has been replayed. If that is
    /// more than its shard's credit, another thread must take the events meanwhile.
    ///
    /// # Errors
    /// [`Error::Stopped`] as soon as a shard has stopped for good, [`Error::NotReady`] after
    /// `timeout`.
    pub fn wait_ready(&self, timeout: Duration) -> Result<(), Error> {
        self.hub
            .wait_ready(clock::now().checked_add(timeout), false)
    }

    /// As [`wait_ready`](Self::wait_ready), until also every guild that READY named has arrived or
    /// was given up ([`Timing::guilds_timeout`](crate::Timing::guilds_timeout)). Another thread must
    /// take the events meanwhile: guilds arrive as events, and a shard that may have no more of
    /// them outstanding stops reading.
    pub fn wait_guilds(&self, timeout: Duration) -> Result<(), Error> {
        self.hub.wait_ready(clock::now().checked_add(timeout), true)
    }

    /// Stops one shard so that its session can be resumed, waits for its handlers
    /// ([`Timing::handlers_timeout`](crate::Timing::handlers_timeout), 5 s), and returns its session
    /// and the commands that it had not sent. [`Handle::resume_shard`] goes on with it,
    /// here or in another process: nothing is missed, provided it happens within a few minutes.
    /// Events that were delivered and are not handled by then come again.
    ///
    /// It blocks until the shard has stopped, up to the close time-out (2 s), and then for the
    /// handlers. Called from a handler, it always waits the full time.
    ///
    /// # Errors
    /// [`Error::NotOpen`]; [`Error::Busy`] during a reshard, and on the thread of a shard or of the
    /// manager (in a hook, a store or a logger), for which it would wait; [`Error::Closed`].
    pub fn suspend_shard(&self, id: ShardId) -> Result<SuspendedShard, Error> {
        if self.is_own_thread() {
            return Err(Error::Busy {
                running: "a callback on this thread, which cannot wait for itself,",
            });
        }
        self.hub.suspend_shard(id)
    }

    /// Ends every session, so that the bot goes offline, and waits until all threads have ended, up
    /// to the close time-out (2 s) and for as long as the session store takes. A thread that is
    /// looking a host's name up, which nothing can interrupt, ends by itself later, and so does one
    /// that asks Discord for the number of shards. Calling it twice does no harm; the first of
    /// `close` and `suspend` counts. On the thread of a shard or of the manager (in a hook, a store
    /// or a logger) it asks for the end and does not wait.
    pub fn close(&self) {
        self.end(StopReason::Closed);
    }

    /// Stops every shard so that its session can be resumed, waits as [`close`](Self::close) does,
    /// then for the handlers to finish what they have
    /// ([`Timing::handlers_timeout`](crate::Timing::handlers_timeout), 5 s), and returns the
    /// sessions. A manager that starts with them, for example through a
    /// [`MemoryStore`](crate::store::MemoryStore), resumes: no IDENTIFY is spent and no event is
    /// missed, provided it happens within a few minutes. Events that were delivered and are not
    /// handled by then come again: those that are held, and those that nobody has taken from the
    /// stream.
    ///
    /// Calling this from a handler, or on the thread that consumes events, always waits for the full
    /// `handlers_timeout`: set that to zero, or use [`Handle::request_suspend`].
    /// On a thread where [`close`](Self::close) does not wait, this does not wait either,
    /// and the returned sessions may be older.
    ///
    /// ```
    /// # use threadcord::{Config, Intents, ShardManager, Token, sim};
    /// # let gateway = sim::Gateway::builder().start()?;
    /// # let config = Config::new(Token::new(gateway.token())?, Intents::default()).rest_url(gateway.rest_url());
    /// # let manager = ShardManager::start(config.clone())?;
    /// # manager.wait_ready(std::time::Duration::from_secs(60))?;
    /// use threadcord::store::MemoryStore;
    ///
    /// let sessions = manager.suspend();
    /// let stored = serde_json::to_string(&sessions)?;
    /// // ... later, perhaps in another process ...
    /// let sessions = serde_json::from_str(&stored)?;
    /// let manager = ShardManager::start(config.session_store(MemoryStore::new(sessions)))?;
    /// # manager.wait_ready(std::time::Duration::from_secs(60))?;
    /// # assert_eq!(manager.handle().shards()[0].counters().identifies, 0);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn suspend(&self) -> Vec<Session> {
        self.end(StopReason::Suspended);
        self.hub.saved().sessions
    }

    fn end(&self, reason: StopReason) {
        self.hub.stop(reason);
        if self.is_own_thread() {
            return;
        }
        self.hub.join_shards();
        let Some(threads) = self.threads.lock().take() else {
            return self.hub.wait_closed();
        };
        let _ = threads.supervisor.join();
        self.hub.wait_end();
        if let Some(writer) = threads.session_writer {
            let _ = writer.join();
        }
        self.hub.set_closed();
    }

    /// Whether this is called on a thread that the end waits for: from a hook, a store, a limiter, a
    /// transport or a logger.
    fn is_own_thread(&self) -> bool {
        self.own.contains(&thread::current().id()) || self.hub.is_shard_thread()
    }
}

/// The manager's state, and what its shards share; nothing runs yet.
fn assemble<C: Connector>(
    prepared: Prepared,
    connector: impl FnOnce(WebSocketConnector) -> C,
) -> (Arc<Hub>, Arc<Context<C>>) {
    let Prepared {
        config,
        addresses,
        rest,
        websockets,
        limiter,
        max_concurrency,
        session_starts,
        shards,
        sessions,
        identified,
    } = prepared;

    let (sender, events) = delivery::channel();
    let settings = Settings {
        max_concurrency,
        timing: config.timing.clone(),
        auto_split: config.auto_split,
        auto_reshard: config.auto_reshard,
        explicit_total: config.plan.explicit_total(),
        has_store: config.session_store.is_some(),
    };
    let (token, timing, on_close, store) = (
        config.token.clone(),
        config.timing.clone(),
        config.on_close.clone(),
        config.session_store.clone(),
    );
    let hub = Hub::new(
        config,
        rest,
        Arc::clone(&limiter),
        Reconciler::new(clock::now(), settings, shards, sessions),
        identified,
        (Feed::new(sender), events),
    );
    let observer = Arc::downgrade(&hub);
    let context = Arc::new(Context {
        connector: connector(websockets),
        addresses,
        token,
        timing,
        on_close,
        limiter,
        store,
        session_starts,
        counters: Arc::clone(&hub.counters),
        observer: Box::new(move |run, change| {
            if let Some(hub) = observer.upgrade() {
                hub.handle_change(run, change);
            }
        }),
    });
    (hub, context)
}

impl Drop for ShardManager {
    fn drop(&mut self) {
        self.close();
        self.hub.detach();
    }
}
