//! One shard, one thread.

mod address;
mod guilds;
mod thread;

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use crossbeam_channel::Sender;
use parking_lot::Mutex;
use serde_json::Value;

pub(crate) use address::Addresses;

use crate::config::Config;
use crate::delivery::Outlet;
use crate::error::Error;
use crate::event::{Credit, Ledger};
use crate::limit::IdentifyLimiter;
use crate::protocol::{CloseReason, Command, Identity, Machine, Session, Stage};
use crate::shard_id::ShardId;
use crate::transport::{Connector, Settings, Transport, Waker};

/// A running shard. Cheap to clone; it does not keep the shard alive.
#[derive(Clone, Debug)]
pub struct Shard(Arc<Shared>);

/// Where a shard stands, and what it has been through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Status {
    /// Where it stands.
    pub stage: Stage,
    /// Since when it stands there.
    pub since: Instant,
    /// Guilds of its session, those included that are unavailable; `None` if it was resumed from an earlier process,
    /// since only READY tells.
    pub guilds: Option<usize>,
    /// The last sequence of its session that was delivered.
    pub sequence: u64,
    /// From the last heartbeat to its ACK; `None` before the first one of a connection.
    pub latency: Option<Duration>,
    /// Events of Discord delivered.
    pub events: u64,
    /// Their bytes, inflated.
    pub bytes: u64,
    /// Commands that wait to be sent.
    pub waiting_commands: usize,
    /// Connections started.
    pub connects: u64,
    /// IDENTIFYs sent.
    pub identifies: u64,
    /// Sessions resumed.
    pub resumes: u64,
    /// Sessions lost by Discord's rules.
    pub sessions_lost: u64,
    /// Why the last connection ended.
    pub last_disconnect: Option<CloseReason>,
}

/// What the threads of a manager's shards have in common.
pub(crate) struct Context<C> {
    pub(crate) connector: C,
    pub(crate) addresses: Addresses,
    pub(crate) limiter: Arc<dyn IdentifyLimiter>,
    pub(crate) observer: Observer,
}

/// Hears of a shard's changes, on the shard's thread.
pub(crate) type Observer = Box<dyn Fn(&Shard, Change) + Send + Sync>;

/// Something that the owner of a shard wants to know at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// It stands somewhere else.
    Stage(Stage),
    /// All guilds of its session have arrived or were given up.
    GuildsIn,
}

/// A shard whose thread waits for `start` to be dropped.
pub(crate) struct Spawned {
    pub(crate) shard: Shard,
    pub(crate) thread: JoinHandle<()>,
    pub(crate) start: Sender<()>,
}

/// What the handle and the thread share.
struct Shared {
    id: ShardId,
    waker: Waker,
    orders: Mutex<VecDeque<Order>>,
    closed: AtomicBool,
    /// The thread may be looking a host up, which nothing can interrupt.
    resolving: AtomicBool,
    status: Mutex<Status>,
    /// When the last ACK of the connection came.
    acknowledged: Mutex<Option<Instant>>,
    /// A heartbeat is on its way for whoever waits for an ACK.
    probes: AtomicBool,
    /// Counted apart from the status, because they change with each event.
    events: AtomicU64,
    bytes: AtomicU64,
    waiting_commands: AtomicUsize,
    /// What had not been sent when it stopped.
    unsent: Mutex<Vec<Command>>,
    ledger: Arc<Ledger>,
}

/// Something that a handle wants of the thread.
#[derive(Debug)]
enum Order {
    Command(Command),
    Probe,
    Restart(Box<Identity>),
    Stop(CloseReason),
}

impl Shard {
    /// Starts the thread of a shard, which waits for its owner to be ready. Fails if the operating system has no thread or
    /// descriptor left.
    pub(crate) fn spawn<C: Connector + 'static>(
        id: ShardId,
        session: Option<Session>,
        config: Arc<Config>,
        context: Arc<Context<C>>,
        outlet: Arc<Outlet>,
    ) -> io::Result<Spawned> {
        let transport = context.connector.transport(id, Settings::new(config.compression, config.max_payload))?;
        let waker = transport.waker();
        let on_credit = waker.clone();
        let ledger = Ledger::new(Credit::new(config.max_outstanding_events, config.max_outstanding_bytes), move || {
            on_credit.wake();
        });
        let shared = Arc::new(Shared {
            id,
            waker,
            orders: Mutex::default(),
            closed: AtomicBool::new(false),
            resolving: AtomicBool::new(false),
            status: Mutex::new(Status::new(Instant::now())),
            acknowledged: Mutex::default(),
            probes: AtomicBool::new(false),
            events: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            waiting_commands: AtomicUsize::new(0),
            unsent: Mutex::default(),
            ledger,
        });
        let machine =
            Machine::new(Instant::now(), id, config.identity(), config.timing.clone(), session, fastrand::u64(..))
                .with_most_short_sessions(config.most_short_sessions);
        let builder = std::thread::Builder::new().name(format!("shard-{id}")).stack_size(config.stack_size);
        if let Some(session) = machine.session() {
            shared.ledger.begin(session.clone(), session.sequence);
        }
        let shard = Self(Arc::clone(&shared));
        let (start, started) = crossbeam_channel::bounded::<()>(0);
        let thread = builder.spawn(move || {
            // Nobody sends: it ends when the other side is dropped.
            let _ = started.recv();
            thread::run(machine, transport, shared, &config, &context, &outlet);
        })?;
        Ok(Spawned { shard, thread, start })
    }

    /// Which one it is.
    pub fn id(&self) -> ShardId {
        self.0.id
    }

    /// Where it stands, and what it has been through.
    pub fn status(&self) -> Status {
        Status {
            sequence: self.0.ledger.delivered(),
            events: self.0.events.load(Ordering::Relaxed),
            bytes: self.0.bytes.load(Ordering::Relaxed),
            waiting_commands: self.0.waiting_commands.load(Ordering::Relaxed),
            ..*self.0.status.lock()
        }
    }

    /// From the last heartbeat to its ACK; `None` before the first one of a connection.
    pub fn latency(&self) -> Option<Duration> {
        self.0.status.lock().latency
    }

    /// The session, at its low-water mark: the sequence up to which every event has been handled. `None` before the
    /// first READY, and once the session has ended.
    pub fn session(&self) -> Option<Session> {
        let saved_at = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
        self.0.ledger.session().map(|session| Session { saved_at, ..session })
    }

    /// Events that were delivered and have not been handled: how many, and their bytes.
    pub fn outstanding(&self) -> (usize, usize) {
        self.0.ledger.outstanding()
    }

    /// Says something to Discord: an object with an `op`, as it goes over the wire.
    ///
    /// It waits for the shard to be ready and for Discord's limit (120 payloads per 60 s). What a connection did not carry
    /// when it was cut goes out on the next; what the operating system had taken by then may be lost, and what waits when
    /// the shard stops is. 1, 2 and 6 are the library's own and refused.
    pub fn send(&self, payload: &Value) -> Result<(), Error> {
        self.send_command(Command::raw(payload)?)
    }

    /// Ends the session and stops the shard: the bot goes offline. Does not wait for it.
    pub fn close(&self) {
        // One that has stopped already is what was asked for.
        let _ = self.order(Order::Stop(CloseReason::Requested));
    }

    /// Stops the shard so that its session can be resumed. Does not wait for it.
    pub fn suspend(&self) {
        let _ = self.order(Order::Stop(CloseReason::Suspended));
    }

    /// Has it connect anew and resume; what went wrong before is forgotten.
    pub(crate) fn restart(&self, identity: Identity) -> Result<(), Error> {
        self.order(Order::Restart(Box::new(identity)))
    }

    /// Gives it something to send that was checked before.
    pub(crate) fn send_command(&self, command: Command) -> Result<(), Error> {
        self.order(Order::Command(command))
    }

    /// What had not been sent when it stopped.
    pub(crate) fn take_unsent(&self) -> Vec<Command> {
        std::mem::take(&mut *self.0.unsent.lock())
    }

    /// Whether all that was sent to it before an instant has been delivered, or never will be: Discord has acknowledged a
    /// heartbeat since then, or there is no session. Ask again if not; it sends a heartbeat meanwhile.
    pub(crate) fn has_caught_up(&self, since: Instant) -> bool {
        if self.0.acknowledged.lock().is_some_and(|at| at >= since) || self.0.ledger.session().is_none() {
            return true;
        }
        if !self.0.probes.swap(true, Ordering::AcqRel) {
            // One that has stopped is not waited for.
            let _ = self.order(Order::Probe);
        }
        false
    }

    /// Whether both are the same run of a shard: one that was closed and opened again is another.
    pub(crate) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// Whether the thread may be looking a host up.
    pub(crate) fn is_resolving(&self) -> bool {
        self.0.resolving.load(Ordering::Acquire)
    }

    fn order(&self, order: Order) -> Result<(), Error> {
        let shared = &self.0;
        {
            // Under the lock that the thread takes before it closes the queue: what is accepted is seen.
            let mut orders = shared.orders.lock();
            if shared.closed.load(Ordering::Acquire) {
                let reason = match shared.status.lock().stage {
                    Stage::Stopped(reason) => reason,
                    _ => CloseReason::Requested,
                };
                return Err(Error::Stopped { shard: shared.id, reason });
            }
            orders.push_back(order);
        }
        shared.waker.wake();
        Ok(())
    }
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("id", &self.id).field("status", &*self.status.lock()).finish_non_exhaustive()
    }
}

impl Status {
    fn new(now: Instant) -> Self {
        Self {
            stage: Stage::Waiting,
            since: now,
            guilds: None,
            sequence: 0,
            latency: None,
            events: 0,
            bytes: 0,
            waiting_commands: 0,
            connects: 0,
            identifies: 0,
            resumes: 0,
            sessions_lost: 0,
            last_disconnect: None,
        }
    }
}
