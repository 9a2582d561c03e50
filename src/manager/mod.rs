//! Runs many shards in one process.
//!
//! The [`reconciler`] makes every decision: which shards should run, which do run, and what happens
//! when one stops. The [`hub`] keeps the reconciler and the shards under one lock. The
//! [`supervisor`] thread carries the decisions out, and the [`session_writer`] thread writes the
//! session store. The shards' own threads notify the hub of changes.

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

/// Owns a bot's shards in this process, each on its own thread. Dropping it closes them and waits
/// for them.
///
/// It starts and stops the shards, waits for them, and delivers events. Use its
/// [`handle`](Self::handle) to inspect and change which shards run.
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
    /// `None` once they are being joined.
    threads: Mutex<Option<Threads>>,
    /// The ids of the manager's own threads.
    own: Vec<ThreadId>,
}

/// The manager's own threads.
#[derive(Debug)]
struct Threads {
    supervisor: JoinHandle<()>,
    session_writer: Option<JoinHandle<()>>,
}

impl ShardManager {
    /// Checks the configuration, queries `/gateway/bot` for the settings that the configuration
    /// does not contain, then starts shards as the identify limit permits. Returns once startup is
    /// in progress; [`wait_ready`](Self::wait_ready) waits for all shards.
    ///
    /// It blocks for up to two requests of [`Rest`](crate::rest::Rest) and for the session store.
    /// While Discord cannot be reached, it retries for up to [`Config::retry_start_for`]. If it
    /// fails, nothing is started.
    ///
    /// # Errors
    /// - [`Error::Setting`] and similar errors for a configuration that is not allowed.
    /// - [`Error::Unauthorized`] if Discord refuses the token, and the other errors of
    ///   [`Rest`](crate::rest::Rest).
    /// - [`Error::Store`] if the session store cannot be read.
    /// - [`Error::SessionStartLimit`] if too few IDENTIFYs are left and
    ///   [`Config::session_start_policy`] refuses that.
    /// - [`Error::Io`] if no thread can be started.
    pub fn start(config: Config) -> Result<Self, Error> {
        Self::start_with(config, |connector| connector)
    }

    /// As [`start`](Self::start), with your own transports: `connector` receives the default
    /// connector, which opens websockets, and may use it. [`Config::proxy`] applies to the shards'
    /// connections only if your connector uses the default one.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub fn start_with<C: Connector + 'static>(
        config: Config,
        connector: impl FnOnce(WebSocketConnector) -> C,
    ) -> Result<Self, Error> {
        // Never cancelled: the sending end of this channel is never dropped.
        Self::start_until(config, connector, &crossbeam_channel::never())
    }

    /// As [`start`](Self::start), on a separate thread: for a program whose thread must not block,
    /// such as one that draws frames.
    ///
    /// # Errors
    /// [`Error::Setting`] and similar errors for what can be checked without Discord; [`Error::Io`]
    /// if no thread can be started. [`Starting`] reports all other errors.
    pub fn start_in_background(config: Config) -> Result<Starting, Error> {
        Starting::new(config)
    }

    /// Everything that does not need ownership of the manager, such as its shards, their status and
    /// [`reshard`](Handle::reshard). Handlers receive it too. A clone can be kept anywhere.
    pub fn handle(&self) -> &Handle {
        &self.handle
    }

    /// The events of all shards. All calls share one stream.
    pub fn events(&self) -> Events {
        self.hub.events()
    }

    /// Calls `handler` with every event on `workers` threads, until all shards have stopped or
    /// [`Handle::stop`] is called. Each shard belongs to one worker, so its events stay in order
    /// while shards run in parallel. The calling thread is one of the workers.
    ///
    /// Events that are already in the stream are handled first. During the call,
    /// [`events`](Self::events) yields nothing. After [`Handle::stop`] each worker finishes its
    /// current event; the other events return to the stream, in order, for the next `run` or for
    /// `events`. After [`close`](Self::close), queued events are handled for up to
    /// [`Timing::handlers_timeout`](crate::Timing::handlers_timeout). After
    /// [`suspend`](Self::suspend), no further event is begun.
    ///
    /// If a handler panics, the panic is logged, counted and reported as
    /// [`EventKind::HandlerPanicked`](crate::EventKind::HandlerPanicked). The event counts as
    /// handled, and the worker continues. A handler may call any method of its [`Handle`]. A
    /// handler that blocks delays no heartbeat. The shards of its worker stop reading when they
    /// reach their limit of outstanding events, and continue afterwards.
    ///
    /// # Errors
    /// [`Error::Setting`] for 0 workers. [`Error::HandlerRunning`] while another call of `run` or
    /// [`run_keyed`](Self::run_keyed) is in progress. [`Error::Io`] if no thread can be started.
    /// The errors of [`check`](Self::check) if a shard stopped without a request, for example
    /// because an intent is not allowed.
    pub fn run(
        &self,
        workers: usize,
        handler: impl Fn(&Handle, Event) + Sync,
    ) -> Result<(), Error> {
        self.hub.run(workers, |workers| {
            workers.run(|event| handler(&self.handle, event))
        })
    }

    /// As [`run`](Self::run), ordered by a key that you choose: events with the same key, for
    /// example of the same guild, go to one worker, in order. A panic of `key` is treated like a
    /// panic of the handler.
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

    /// Returns an error if a shard has stopped although it was not requested to, for example
    /// because of an invalid token, too many short sessions or a panic: that of the first such
    /// shard. `Ok` after [`close`](Self::close) and [`suspend`](Self::suspend), and while every
    /// shard runs. Does not block.
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

    /// Blocks until all shards are ready at the same time.
    ///
    /// A resumed session is ready once all events that it missed have been replayed. If there are
    /// more of them than the shard's limit of outstanding events, another thread must take events
    /// meanwhile.
    ///
    /// # Errors
    /// [`Error::Stopped`] as soon as a shard has stopped for good. [`Error::NotReady`] after
    /// `timeout`.
    pub fn wait_ready(&self, timeout: Duration) -> Result<(), Error> {
        self.hub
            .wait_ready(clock::now().checked_add(timeout), false)
    }

    /// As [`wait_ready`](Self::wait_ready), and waits until every guild that READY named has
    /// arrived, or no further one has arrived for
    /// [`Timing::guilds_timeout`](crate::Timing::guilds_timeout). Another thread must take events
    /// meanwhile: guilds arrive as events, and a shard stops reading at its limit of outstanding
    /// events.
    ///
    /// # Errors
    /// As [`wait_ready`](Self::wait_ready).
    pub fn wait_guilds(&self, timeout: Duration) -> Result<(), Error> {
        self.hub.wait_ready(clock::now().checked_add(timeout), true)
    }

    /// Stops one shard so that its session can be resumed, waits for its handlers
    /// ([`Timing::handlers_timeout`](crate::Timing::handlers_timeout), 5 s), and returns its
    /// session and its unsent commands. [`Handle::resume_shard`] continues the session, here or in
    /// another process: no event is missed if that happens within a few minutes. Events that were
    /// delivered but not handled in time are redelivered.
    ///
    /// It blocks until the shard has stopped, up to the close timeout (2 s), and then for the
    /// handlers. Called from a handler, it always waits for the full handlers timeout.
    ///
    /// # Errors
    /// [`Error::NotOpen`] if the shard is not open. [`Error::Busy`] during a reshard, and on a
    /// thread of a shard or of the manager (in a hook, a store or a logger), which would wait for
    /// itself. [`Error::Closed`] after the manager has been closed or suspended.
    pub fn suspend_shard(&self, id: ShardId) -> Result<SuspendedShard, Error> {
        if self.is_own_thread() {
            return Err(Error::Busy {
                running: "a callback of the manager on this thread",
            });
        }

        self.hub.suspend_shard(id)
    }

    /// Ends every session, so that the bot goes offline, and waits until all threads have ended: up
    /// to the close timeout (2 s), plus the time that the session store takes.
    ///
    /// It does not wait for a thread that is resolving a host name, which cannot be interrupted,
    /// nor for one that queries the number of shards from Discord; both end by themselves later.
    /// Calling it twice does no harm; the first of `close` and `suspend` counts. On a thread of a
    /// shard or of the manager (in a hook, a store or a logger) it requests the close and does not
    /// wait.
    pub fn close(&self) {
        self.end(StopReason::Closed);
    }

    /// Stops every shard so that its session can be resumed, and returns the sessions. It waits as
    /// [`close`](Self::close) does, then for the handlers to finish their current events
    /// ([`Timing::handlers_timeout`](crate::Timing::handlers_timeout), 5 s).
    ///
    /// A manager that starts with these sessions, for example through a
    /// [`MemoryStore`](crate::store::MemoryStore), resumes them: no IDENTIFY is spent and no event
    /// is missed, if it starts within a few minutes. Delivered events that are not handled in time
    /// are redelivered: those that the program holds, and those still in the stream.
    ///
    /// Calling this from a handler, or on the thread that consumes events, always waits for the
    /// full `handlers_timeout`: set that to zero, or use [`Handle::request_suspend`]. On a thread
    /// where [`close`](Self::close) does not wait, this does not wait either. The returned sessions
    /// are then those of the moment of the call: events handled later may be redelivered.
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

    /// As [`start_with`](Self::start_with), but fails once the other end of `cancelled` is dropped.
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

    fn end(&self, reason: StopReason) {
        self.hub.stop(reason);
        // A thread cannot wait for itself, or for one that waits for it.
        if self.is_own_thread() {
            return;
        }

        self.hub.join_shards();
        // The first call joins the threads. Any other waits until that is done.
        let Some(threads) = self.threads.lock().take() else {
            return self.hub.wait_closed();
        };

        // The panic hook has reported a panic already.
        let _ = threads.supervisor.join();
        self.hub.wait_end();
        // The session store is written a last time after the handlers.
        if let Some(writer) = threads.session_writer {
            let _ = writer.join();
        }

        self.hub.set_closed();
    }

    /// Whether the calling thread is one that [`end`](Self::end) waits for: the call then comes
    /// from a hook, a store, a limiter, a transport or a logger.
    fn is_own_thread(&self) -> bool {
        self.own.contains(&thread::current().id()) || self.hub.is_shard_thread()
    }
}

impl Drop for ShardManager {
    fn drop(&mut self) {
        self.close();
        self.hub.detach();
    }
}

/// Builds the manager's state and the context that its shards share. Starts nothing.
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
    let (token, timing) = (config.token.clone(), config.timing.clone());
    let (on_close, store) = (config.on_close.clone(), config.session_store.clone());
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
