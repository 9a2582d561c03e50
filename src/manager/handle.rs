//! The cloneable handle of a manager, for everything that does not need ownership.

use std::fmt;
use std::sync::{Arc, Weak};

use super::hub::Hub;
use super::reconciler::Request;
use super::{ManagerStatus, Operation};
use crate::config::Plan;
use crate::error::{Error, SendError, SendFailure};
use crate::protocol::{Command, Presence, Session, StopReason};
use crate::rest::Rest;
use crate::shard::Shard;
use crate::shard_id::ShardId;

/// Inspects and controls a manager without owning it. Handlers receive one. It is cheap to clone,
/// and can be kept anywhere.
///
/// It does not keep the manager alive. Once the manager is dropped there are no shards, the status
/// is empty, and operations fail with [`Error::Closed`]. Its methods may be called from handlers.
/// They do not block, with these exceptions: [`reshard`](Self::reshard); REST requests;
/// [`status`](Self::status) with a limiter in a file or in Redis; [`open_shard`](Self::open_shard)
/// and [`resume_shard`](Self::resume_shard) with a session store that is shared over a network.
/// Long-running work returns an [`Operation`] to wait for.
#[derive(Clone)]
pub struct Handle {
    pub(super) hub: Weak<Hub>,
    pub(super) rest: Rest,
}

impl Handle {
    /// The shard with this id, if it runs in this process and has been opened. During a reshard,
    /// the old shards are found until they begin to close, and the new ones from then on.
    pub fn shard(&self, id: ShardId) -> Option<Shard> {
        self.hub.upgrade()?.shard(id)
    }

    /// The shard that delivers the events of a guild, if it runs in this process and has been
    /// opened.
    pub fn shard_by_guild(&self, guild_id: u64) -> Option<Shard> {
        self.hub.upgrade()?.shard_by_guild(guild_id)
    }

    /// All opened shards whose events are delivered, sorted by number.
    pub fn shards(&self) -> Vec<Shard> {
        self.hub
            .upgrade()
            .map(|hub| hub.shards())
            .unwrap_or_default()
    }

    /// The client of Discord's HTTP API.
    pub fn rest(&self) -> &Rest {
        &self.rest
    }

    /// A snapshot of the shards, the identify limit and the stream; empty once the manager is
    /// dropped.
    pub fn status(&self) -> ManagerStatus {
        let hub = self.hub.upgrade();
        hub.map(|hub| hub.status()).unwrap_or_default()
    }

    /// Opens one more shard: one that was closed, one that has stopped, or one that another process
    /// ran. A shard that stopped with a session, because it was suspended or its thread panicked,
    /// resumes it. The operation is done when the shard is ready.
    ///
    /// # Errors
    /// [`Error::AlreadyOpen`]; [`Error::Overlaps`] with a shard of another total; [`Error::Busy`]
    /// during a reshard; [`Error::Closed`].
    pub fn open_shard(&self, id: ShardId) -> Result<Operation, Error> {
        self.hub()?.open(id, None)
    }

    /// As [`open_shard`](Self::open_shard), with a session to resume, for example from another
    /// process, or from this shard before it stopped. If Discord refuses the session, the shard
    /// identifies.
    ///
    /// # Errors
    /// Those of [`open_shard`](Self::open_shard), and [`Error::ForeignSession`] if the session is
    /// another bot's.
    pub fn resume_shard(&self, session: Session) -> Result<Operation, Error> {
        self.hub()?.open(session.shard, Some(session))
    }

    /// Ends the session of one shard and stops it. The operation is done when the connection is
    /// closed.
    ///
    /// # Errors
    /// [`Error::NotOpen`]; [`Error::Busy`] during a reshard; [`Error::Closed`].
    pub fn close_shard(&self, id: ShardId) -> Result<Operation, Error> {
        self.hub()?.ask(Request::Close(id))
    }

    /// Reconnects one shard. If it has a session it resumes and misses no event. Its failure counts
    /// are reset, and [`Config::for_shard`](crate::Config::for_shard) is called again. A shard that
    /// has stopped, for example with [`StopReason::CircuitOpen`], is opened as by
    /// [`open_shard`](Self::open_shard). The operation is done when the shard is ready.
    ///
    /// # Errors
    /// [`Error::NotOpen`]; [`Error::Busy`] during a reshard; [`Error::Closed`].
    pub fn restart_shard(&self, id: ShardId) -> Result<Operation, Error> {
        self.hub()?.restart(id)
    }

    /// Restarts every shard as [`restart_shard`](Self::restart_shard) does:
    /// at most `max_unavailable` at once, and one at a time per rate limit key. The operation is
    /// done when all are ready again.
    ///
    /// # Errors
    /// [`Error::Setting`] if `max_unavailable` is 0; [`Error::Busy`] during a reshard;
    /// [`Error::Closed`].
    pub fn restart_all(&self, max_unavailable: usize) -> Result<Operation, Error> {
        self.hub()?.restart_all(max_unavailable)
    }

    /// Replaces all shards by those of another plan, without a gap in the delivered events.
    ///
    /// 1. The new shards start beside the old ones, as the identify limit allows. Their events are
    ///    held back.
    /// 2. When all are ready and their guilds are available, both sets run for
    ///    [`Timing::reshard_overlap`](crate::Timing::reshard_overlap), and until the old shards
    ///    have caught up. New shards that lag get up to the same time again.
    /// 3. Handlers finish the events that only the old shards received, the old shards close, and
    ///    handlers finish the remaining events. Each of the two waits for handlers takes up to
    ///    [`Timing::handlers_timeout`](crate::Timing::handlers_timeout).
    /// 4. [`EventKind::Resharded`](crate::EventKind::Resharded) is delivered. All later events are
    ///    those of the new shards, beginning with those that the old ones had not delivered.
    ///
    /// READY and the arrival of guilds are not delivered again. Two events count as the same if
    /// their name and data are equal; equal events of a guild are delivered as often as Discord
    /// sent them. An event is delivered twice, the second time late, only if a new shard is
    /// disconnected or behind for longer than the times above, or if the process ends before that
    /// shard has caught up.
    ///
    /// Events that an old shard misses because it has no session are not lost: they are delivered
    /// late, when the new shards take over. Held events count as outstanding, so a new shard may
    /// stall while the old ones are slow; that loses nothing. Lookups find the old shards until
    /// they begin to close, then the new ones.
    ///
    /// The operation is done when the new shards have taken over. If one of them stops before the
    /// old ones close, or [`Timing::reshard_timeout`](crate::Timing::reshard_timeout) has passed,
    /// the reshard is cancelled and the old shards continue unchanged.
    ///
    /// It blocks for up to two REST requests; for none if `gateway_url` and `limiter` are set and
    /// the plan sets the total number of shards.
    ///
    /// # Errors
    /// [`Error::Busy`] while another reshard, a start, split or restart is in progress;
    /// [`Error::AlreadyOpen`] if a new shard has the number and total of one that runs;
    /// [`Error::SessionStartLimit`] if too few IDENTIFYs are left and the policy is
    /// `SessionStartPolicy::Refuse`; the errors of [`Rest`]; [`Error::Closed`].
    pub fn reshard(&self, plan: &Plan) -> Result<Operation, Error> {
        self.hub()?.reshard(plan)
    }

    /// Cancels a reshard: the new shards are closed, and the old ones continue. Returns whether one
    /// was cancelled; once its old shards are closing, a reshard can no longer be cancelled.
    pub fn cancel_reshard(&self) -> bool {
        self.hub.upgrade().is_some_and(|hub| hub.cancel_reshard())
    }

    /// Queues a command at the shard that has a guild; see [`Shard::send`].
    ///
    /// # Errors
    /// Those of [`Shard::send`], and [`SendFailure::NoShard`] if no shard here has the guild. The
    /// error returns the command.
    pub fn send_to_guild(&self, guild_id: u64, command: Command) -> Result<(), SendError> {
        match self.hub.upgrade() {
            Some(hub) => hub.send_to_guild(guild_id, command),
            None => Err(SendError::new(command, SendFailure::NoShard { guild_id })),
        }
    }

    /// Sets the presence of every shard, including shards that open later.
    ///
    /// # Errors
    /// [`Error::Command`] if Discord would not accept it; [`Error::Closed`].
    pub fn broadcast(&self, presence: &Presence) -> Result<(), Error> {
        self.hub()?.broadcast(presence)
    }

    /// Stops [`ShardManager::run`](crate::ShardManager::run) and
    /// [`run_keyed`](crate::ShardManager::run_keyed), also from inside a handler: each worker
    /// finishes its current event, then the call returns. The shards keep running. Does not wait.
    /// Unhandled events come first in [`events`](crate::ShardManager::events) or in the next `run`.
    /// Returns whether a handler was running.
    pub fn stop(&self) -> bool {
        self.hub.upgrade().is_some_and(|hub| hub.handlers.stop())
    }

    /// Requests every shard to end its session and stop, and returns at once. The stream of events
    /// ends when all have stopped; [`ShardManager::close`](crate::ShardManager::close) waits for
    /// it.
    pub fn request_close(&self) {
        if let Some(hub) = self.hub.upgrade() {
            hub.stop(StopReason::Closed);
        }
    }

    /// Requests every shard to stop so that its session can be resumed, and returns at once.
    /// [`ShardManager::suspend`](crate::ShardManager::suspend) waits for it, and returns the
    /// sessions.
    pub fn request_suspend(&self) {
        if let Some(hub) = self.hub.upgrade() {
            hub.stop(StopReason::Suspended);
        }
    }

    fn hub(&self) -> Result<Arc<Hub>, Error> {
        self.hub.upgrade().ok_or(Error::Closed)
    }
}

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handle")
            .field("shards", &self.shards().len())
            .finish_non_exhaustive()
    }
}
