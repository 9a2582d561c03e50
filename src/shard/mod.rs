//! A shard: its handle, and the thread that runs it.

mod address;
mod counters;
mod guilds;
mod members;
mod pace;
mod queue;
mod spawn;
mod status;
mod thread;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use parking_lot::Mutex;

pub(crate) use address::Addresses;
pub use counters::ShardCounters;
pub(crate) use counters::{AllCounters, Counters};
pub use members::{Members, MembersChunk};
pub(crate) use spawn::{Beginning, Spawned};
pub(crate) use thread::Thread;
#[cfg(test)]
pub(crate) use thread::{Pause, Step};

use self::members::Request;
use self::queue::{Message, Queue, Refusal};
use self::status::Report;
pub use self::status::ShardStatus;
use crate::clock;
use crate::config::CloseHook;
use crate::error::{Error, SendError, SendFailure};
use crate::event::{Lease, Ledger};
use crate::intents::Intents;
use crate::limit::IdentifyLimiter;
use crate::protocol::{
    Command, Identity, InvalidCommand, MemberQuery, MemberRequest, Session, ShardState, StopReason,
};
use crate::shard_id::ShardId;
use crate::store::SessionStore;
use crate::timing::Timing;
use crate::token::Token;
use crate::transport::Waker;

/// The longest wait: a timeout too large for an `Instant` is cut to this.
const A_YEAR: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// A handle to a running shard. Cheap to clone; it does not keep the shard alive.
#[derive(Clone, Debug)]
pub struct Shard(Arc<Shared>);

/// What the threads of a manager's shards share.
pub(crate) struct Context<C> {
    pub(crate) connector: C,
    pub(crate) addresses: Addresses,
    pub(crate) token: Token,
    pub(crate) timing: Timing,
    pub(crate) on_close: Option<CloseHook>,
    pub(crate) limiter: Arc<dyn IdentifyLimiter>,
    /// The store that confirms that this process may resume a session.
    pub(crate) store: Option<Arc<dyn SessionStore>>,
    /// Sessions that the bot may start in a day, over all its shards.
    pub(crate) session_starts: u32,
    pub(crate) counters: Arc<AllCounters>,
    pub(crate) observer: Observer,
}

/// Receives a shard's changes, on the shard's thread.
pub(crate) type Observer = Box<dyn Fn(Run, Change) + Send + Sync>;

/// One run of a shard, from the start of its thread to the end. A shard that is opened again is
/// another run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Run {
    pub(crate) shard: ShardId,
    /// Different for each run of a manager.
    pub(crate) number: u64,
}

/// A change that is reported to the owner of a shard at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// The shard has entered this state.
    ShardState(ShardState),
    /// All guilds of its session have arrived, or the wait for the rest has timed out.
    GuildsReady,
    /// Whether the shard has stopped reading until its events are handled.
    Stalled(bool),
    /// The shard is stopping and will not carry out a restart that was requested.
    MissedRestart,
}

/// What the handle and the thread share.
struct Shared {
    run: Run,
    /// The intents of the session, as bits.
    intents: AtomicU64,
    waker: Waker,
    queue: Queue,
    /// The number of requests for members so far, which is the id of the next one.
    requests: AtomicU32,
    /// The thread may be in a DNS lookup, which nothing can interrupt.
    resolving: AtomicBool,
    report: Mutex<Report>,
    /// Everything that Discord had sent to the session by this instant has been read.
    read_up_to: Mutex<Option<Instant>>,
    /// A probe heartbeat has been requested, and its ACK has not been read.
    probes: AtomicBool,
    counters: Arc<Counters>,
    /// Commands that had not been sent when the shard stopped.
    unsent: Mutex<Vec<Command>>,
    ledger: Arc<Ledger>,
}

impl Shard {
    /// The shard's id.
    pub fn id(&self) -> ShardId {
        self.0.run.shard
    }

    /// The run of the shard that this is.
    pub(crate) fn run(&self) -> Run {
        self.0.run
    }

    /// Time from the last acknowledged heartbeat to its ACK; `None` before the first ACK of a
    /// connection.
    pub fn latency(&self) -> Option<Duration> {
        self.0.report.lock().latency
    }

    /// The session, at the sequence up to which all events are handled. `None` before the first
    /// READY, and once the session has ended.
    pub fn session(&self) -> Option<Session> {
        let saved_at = clock::wall()
            .duration_since(SystemTime::UNIX_EPOCH)
            .map_or(0, |since| since.as_secs());
        self.0.ledger.session().map(|session| Session {
            saved_at,
            ..session
        })
    }

    /// Events that were delivered and have not been handled: their number and their bytes.
    pub(crate) fn outstanding(&self) -> (usize, usize) {
        self.0.ledger.outstanding()
    }

    /// Queues a command; never blocks.
    ///
    /// It is sent once the shard is ready and Discord's rate limits allow: 120 payloads per 60 s,
    /// heartbeats included. Presences and requests for all members have separate limits.
    /// Heartbeats, IDENTIFY and RESUME are sent first. Commands not sent before a disconnect are
    /// sent on the next connection. Commands that were already written to the socket may be lost.
    /// Commands that are queued when the shard stops are sent if it is opened again.
    ///
    /// # Errors
    /// Returns the command if
    /// [`ShardConfig::max_waiting_commands`](crate::ShardConfig::max_waiting_commands) are queued
    /// already, or if the shard has stopped. A presence is never refused because the queue is full:
    /// only the latest is queued.
    ///
    /// Source: [Discord, Rate
    /// limiting](https://docs.discord.com/developers/events/gateway#rate-limiting).
    pub fn send(&self, command: Command) -> Result<(), SendError> {
        self.send_until(command, None)
    }

    /// As [`send`](Self::send), but waits up to `timeout` for room in the queue.
    ///
    /// # Errors
    /// Returns the command if there is no room in time, or if the shard stops.
    pub fn send_timeout(&self, command: Command, timeout: Duration) -> Result<(), SendError> {
        let now = clock::now();
        self.send_until(
            command,
            Some(now.checked_add(timeout).unwrap_or(now + A_YEAR)),
        )
    }

    /// Requests members of a guild of this shard. Does not block; taking from the returned
    /// [`Members`] does.
    ///
    /// Several requests may run at once. Discord allows one request for all members of a guild per
    /// 30 s: a second one is queued. A request that Discord answers with `RATE_LIMITED`, for
    /// example because another process has sent one, is retried. After a disconnect or a lost
    /// session, a request that has received nothing is sent again; if chunks had arrived, a lost
    /// session ends it with an error. The `GUILD_MEMBERS_CHUNK`s that answer the request are not in
    /// the stream of events.
    ///
    /// ```
    /// # use threadcord::{Config, Intents, MemberQuery, ShardManager, Token, sim};
    /// # let gateway = sim::Gateway::builder().guilds(1).start()?;
    /// # let config = Config::new(Token::new(gateway.token())?, Intents::all()).rest_url(gateway.rest_url());
    /// # let manager = ShardManager::start(config)?;
    /// # manager.wait_ready(std::time::Duration::from_secs(60))?;
    /// # let guild = gateway.guild_ids()[0];
    /// let shard = manager.handle().shard_by_guild(guild).unwrap();
    /// for chunk in shard.request_members(guild, &MemberQuery::all())? {
    ///     for member in chunk?.members::<serde_json::Value>()? {
    ///         println!("{}", member["user"]["username"]);
    ///     }
    /// }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Command`] if the request is not allowed, or needs an intent that the shard does not
    /// have; [`Error::Unsent`] as [`send`](Self::send).
    ///
    /// Source: [Discord, Request Guild
    /// Members](https://docs.discord.com/developers/events/gateway-events#request-guild-members).
    pub fn request_members(&self, guild_id: u64, query: &MemberQuery) -> Result<Members, Error> {
        let intents = Intents::from_bits_truncate(self.0.intents.load(Ordering::Relaxed));
        let missing = query.needs().difference(intents);
        if !missing.is_empty() {
            let given = format!("a request that needs the intents {missing:?}");
            return Err(InvalidCommand::field(
                "query",
                given,
                "a request that needs only the intents of the shard; add them in `Config::new`",
            )
            .into());
        }

        let (sender, replies) = crossbeam_channel::unbounded();
        let id = self.0.requests.fetch_add(1, Ordering::Relaxed);
        let request = Request {
            request: MemberRequest::new(id, guild_id, query)?,
            replies: sender,
        };
        let members = Members::new(self.clone(), &request, replies);

        if let Err(refusal) = self.0.queue.request(Box::new(request)) {
            // The chunks that answer this command would be events of the stream.
            let command = Command::request_members(guild_id, query, None)?;
            return Err(self.refuse(command, refusal).into());
        }
        self.0.waker.wake();
        Ok(members)
    }

    /// Requests that the shard end its session and stop; does not wait for it. Once the shard has
    /// stopped, the bot is offline in its guilds.
    pub fn request_close(&self) {
        // A shard that has stopped already needs no request.
        let _ = self.post(Message::Stop(StopReason::Closed));
    }

    /// Requests that the shard stop so that its session can be resumed; does not wait for it.
    pub fn request_suspend(&self) {
        let _ = self.post(Message::Stop(StopReason::Suspended));
    }

    /// Requests that the shard drop its connection, because another process has taken over its
    /// session.
    pub(crate) fn request_leave(&self) {
        let _ = self.post(Message::Stop(StopReason::OwnershipLost));
    }

    /// Requests that the shard reconnect and resume, and forget its earlier failures.
    pub(crate) fn restart(&self, identity: Identity) -> Result<(), Error> {
        self.post(Message::Restart(Box::new(identity)))
            .map_err(|failure| match failure {
                SendFailure::Stopped { shard, reason } => Error::Stopped { shard, reason },
                _ => Error::Closed,
            })
    }

    /// As [`send`](Self::send), for a presence that the next run starts with as well. A stopped
    /// shard ignores it, and it is not counted as refused.
    pub(crate) fn send_presence(&self, command: Command) {
        if self.0.queue.send(command, None).is_ok() {
            self.0.waker.wake();
        }
    }

    /// As [`send`](Self::send), for a command that another shard had queued: there is always room.
    pub(crate) fn hand_over(&self, command: Command) -> Result<(), SendFailure> {
        self.0
            .queue
            .hand_over(command)
            .map_err(|refusal| self.failure(refusal))?;
        self.0.waker.wake();
        Ok(())
    }

    /// Takes credit for an event that does not come from Discord.
    pub(crate) fn hold(&self) -> Lease {
        self.0.ledger.hold()
    }

    /// The presence that was requested last.
    pub(crate) fn last_presence(&self) -> Option<Command> {
        self.0.queue.last_presence()
    }

    /// Records a presence as the last one requested, for the case that the shard is opened again.
    pub(crate) fn remember_presence(&self, presence: &Command) {
        self.0.queue.set_last_presence(Some(presence.clone()));
    }

    /// Cancels a request for members.
    fn forget_members(&self, id: u32) {
        // A shard that has stopped has forgotten the request.
        let _ = self.post(Message::ForgetMembers(id));
    }

    /// Takes the commands that had not been sent when the shard stopped.
    pub(crate) fn take_unsent(&self) -> Vec<Command> {
        std::mem::take(&mut *self.0.unsent.lock())
    }

    /// Whether everything that Discord sent to the shard before `up_to` has been delivered, or
    /// never will be: Discord has acknowledged a heartbeat that was sent since then, or there is no
    /// session. A [probe](Self::probe) makes the shard send such a heartbeat.
    pub(crate) fn has_read(&self, up_to: Instant) -> bool {
        let has_read = self.0.read_up_to.lock().is_some_and(|at| at >= up_to);
        has_read || self.0.ledger.session().is_none()
    }

    /// Requests a heartbeat, unless a probe is already in progress.
    pub(crate) fn probe(&self) {
        if !self.0.probes.swap(true, Ordering::AcqRel) {
            // The caller does not wait for a shard that has stopped.
            let _ = self.post(Message::Probe);
        }
    }

    /// The number of events that the shard has delivered.
    pub(crate) fn delivered(&self) -> u64 {
        self.0.ledger.deliveries()
    }

    /// Whether the first `count` events that the shard delivered have been handled.
    pub(crate) fn has_handled(&self, count: u64) -> bool {
        self.0.ledger.has_handled(count)
    }

    /// Takes the session out of a stopped shard, at the sequence up to which all events are
    /// handled.
    pub(crate) fn take_session(&self) -> Option<Session> {
        let session = self.session();
        self.0.ledger.end();
        session
    }

    /// Whether the thread may be in a DNS lookup.
    pub(crate) fn is_resolving(&self) -> bool {
        self.0.resolving.load(Ordering::SeqCst)
    }

    /// Abandons a shard that was requested to stop during a DNS lookup: its owner does not wait for
    /// it, and another run may take its place before its thread has ended.
    pub(crate) fn abandon(&self, keeps_session: bool) {
        let commands = self.0.queue.abandon();
        self.0.unsent.lock().extend(commands);
        if !keeps_session {
            self.0.ledger.end();
        }
    }

    fn send_until(&self, command: Command, deadline: Option<Instant>) -> Result<(), SendError> {
        self.0
            .queue
            .send(command, deadline)
            .map_err(|(command, refusal)| self.refuse(command, refusal))?;
        self.0.waker.wake();
        Ok(())
    }

    /// Counts a session that was lost after the shard had stopped.
    pub(crate) fn count_session_lost(&self) {
        self.0
            .counters
            .count(|counters| counters.sessions_lost += 1);
    }

    fn refuse(&self, command: Command, refusal: Refusal) -> SendError {
        self.0
            .counters
            .count(|counters| counters.commands_refused += 1);
        SendError::new(command, self.failure(refusal))
    }

    /// Sends a message to the thread. Fails if the thread has stopped.
    fn post(&self, message: Message) -> Result<(), SendFailure> {
        self.0
            .queue
            .push(message)
            .map_err(|refusal| self.failure(refusal))?;
        self.0.waker.wake();
        Ok(())
    }

    fn failure(&self, refusal: Refusal) -> SendFailure {
        let shard = self.id();
        match refusal {
            Refusal::Full(waiting) => SendFailure::Full { shard, waiting },
            Refusal::TimedOut(waiting) => SendFailure::TimedOut { shard, waiting },
            Refusal::Closed => match self.0.report.lock().stage {
                ShardState::Stopped(reason) => SendFailure::Stopped { shard, reason },
                // The thread has closed its queue but not yet published the reason.
                _ => SendFailure::Stopped {
                    shard,
                    reason: StopReason::Closed,
                },
            },
        }
    }
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let report = *self.report.lock();
        f.debug_struct("Shared")
            .field("run", &self.run)
            .field("report", &report)
            .finish_non_exhaustive()
    }
}
