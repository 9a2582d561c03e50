//! Requests for the members of a guild, and their answers.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, TryRecvError};
use serde::Deserialize;

use super::{A_YEAR, Shard};
use crate::error::Error;
use crate::event::{DecodeError, Dispatch, Id, Lease};
use crate::protocol::{ChunkOf, MemberRequest, MembersFailure, StopReason};

/// How long a request may take by default.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);

/// Members of a guild as they arrive: an iterator over chunks of up to 1,000 members that blocks
/// until the next chunk arrives. Discord usually sends them in order; each has its
/// [`index`](MembersChunk::index). The iterator ends when all chunks have arrived, or with an
/// error.
///
/// The request times out after a minute, unless [`timeout`](Self::timeout) sets another time.
/// Dropping `Members` cancels the request. Chunks are events of the shard that are delivered here
/// instead of in the stream. They count as outstanding until they are dropped, so a guild of any
/// size takes no more memory than the shard's outstanding limit.
///
/// Do not wait on it from the only thread that consumes events: once the outstanding limit is
/// reached, the shard [stalls](crate::EventKind::Stalled) and the request times out.
#[derive(Debug)]
pub struct Members {
    shard: Shard,
    id: u32,
    guild_id: u64,
    replies: Receiver<Reply>,
    deadline: Instant,
    /// The indices of the chunks that have arrived.
    seen: HashSet<u32>,
    is_over: bool,
}

/// One chunk of the members of a guild.
///
/// Source: [Discord, Guild Members
/// Chunk](https://docs.discord.com/developers/events/gateway-events#guild-members-chunk).
#[derive(Debug)]
pub struct MembersChunk {
    dispatch: Dispatch,
    index: u32,
    count: u32,
    /// It counts as outstanding until it is dropped.
    _lease: Lease,
}

/// What the shard's thread sends to a [`Members`].
#[derive(Debug)]
pub(super) enum Reply {
    Chunk(MembersChunk),
    Failed(MembersFailure),
}

impl Members {
    pub(super) fn new(shard: Shard, request: &Request, replies: Receiver<Reply>) -> Self {
        Self {
            shard,
            id: request.request.id(),
            guild_id: request.request.guild_id(),
            replies,
            deadline: Instant::now() + PATIENCE,
            seen: HashSet::new(),
            is_over: false,
        }
    }

    /// Sets how long it may take, from now, until all chunks have arrived.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        let now = Instant::now();
        self.deadline = now.checked_add(timeout).unwrap_or(now + A_YEAR);
        self
    }

    /// The guild.
    pub fn guild_id(&self) -> u64 {
        self.guild_id
    }

    /// Waits for all members and reads them as `T`s.
    ///
    /// # Errors
    /// [`Error::Members`] if not all members arrive, or if one cannot be read as a `T`.
    pub fn read_all<T: for<'a> Deserialize<'a>>(mut self) -> Result<Vec<T>, Error> {
        let mut parts = BTreeMap::new();
        while let Some(chunk) = self.next() {
            let chunk = chunk?;
            let read = chunk.members::<T>();
            let members = read.map_err(|_| self.error(MembersFailure::Malformed))?;
            parts.insert(chunk.index, members);
        }
        Ok(parts.into_values().flatten().collect())
    }

    /// Takes the next chunk, or the error that ended the request, if either has arrived; never
    /// blocks. For loops that must not wait, such as a GUI's.
    ///
    /// # Errors
    /// `Empty` if nothing has arrived since the last call, `Disconnected` once everything was
    /// taken.
    pub fn try_recv(&mut self) -> Result<Result<MembersChunk, Error>, TryRecvError> {
        self.receive(Instant::now()).map_err(|error| match error {
            RecvTimeoutError::Timeout => TryRecvError::Empty,
            RecvTimeoutError::Disconnected => TryRecvError::Disconnected,
        })
    }

    /// As [`try_recv`](Self::try_recv), but waits up to `timeout`.
    ///
    /// # Errors
    /// `Timeout` if nothing arrives in time, `Disconnected` once everything was taken.
    pub fn recv_timeout(
        &mut self,
        timeout: Duration,
    ) -> Result<Result<MembersChunk, Error>, RecvTimeoutError> {
        let until = Instant::now().checked_add(timeout).unwrap_or(self.deadline);
        self.receive(until)
    }

    /// Takes the next chunk, or the error that ends the request.
    fn receive(&mut self, until: Instant) -> Result<Result<MembersChunk, Error>, RecvTimeoutError> {
        let until = until.min(self.deadline);
        while !self.is_over {
            match self.replies.recv_deadline(until) {
                // A duplicate is dropped.
                Ok(Reply::Chunk(chunk)) if !self.seen.insert(chunk.index) => drop(chunk),
                Ok(Reply::Chunk(chunk)) => {
                    self.is_over = self.seen.len() >= chunk.count as usize;
                    return Ok(Ok(chunk));
                }
                Ok(Reply::Failed(failure)) => return Ok(Err(self.fail(failure))),
                Err(RecvTimeoutError::Timeout) if until < self.deadline => {
                    return Err(RecvTimeoutError::Timeout);
                }
                Err(RecvTimeoutError::Timeout) => {
                    return Ok(Err(self.fail(MembersFailure::TimedOut)));
                }
                // The thread reports why it ends a request, except when it panics.
                Err(RecvTimeoutError::Disconnected) => {
                    let failure = MembersFailure::Stopped(StopReason::Panicked);
                    return Ok(Err(self.fail(failure)));
                }
            }
        }
        Err(RecvTimeoutError::Disconnected)
    }

    fn error(&self, failure: MembersFailure) -> Error {
        Error::Members {
            guild_id: self.guild_id,
            received: u32::try_from(self.seen.len()).unwrap_or(u32::MAX),
            failure,
        }
    }

    fn fail(&mut self, failure: MembersFailure) -> Error {
        self.is_over = true;
        // Later chunks are dropped, even if this `Members` is kept.
        self.replies = crossbeam_channel::never();
        self.shard.forget_members(self.id);
        self.error(failure)
    }
}

impl Iterator for Members {
    type Item = Result<MembersChunk, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        self.receive(self.deadline).ok()
    }
}

impl Drop for Members {
    fn drop(&mut self) {
        // Also when all chunks have arrived: the thread remembers the request until this message.
        self.shard.forget_members(self.id);
    }
}

impl MembersChunk {
    /// The index of this chunk, from 0.
    pub fn index(&self) -> u32 {
        self.index
    }

    /// The number of chunks that answer the request.
    pub fn count(&self) -> u32 {
        self.count
    }

    /// Reads the members as `T`s.
    pub fn members<'a, T: Deserialize<'a>>(&'a self) -> Result<Vec<T>, DecodeError> {
        #[derive(Deserialize)]
        struct Part<T> {
            members: Vec<T>,
        }
        Ok(self.dispatch.decode::<Part<T>>()?.members)
    }

    /// Reads the members' presences, if they were requested, as `T`s.
    pub fn presences<'a, T: Deserialize<'a>>(&'a self) -> Result<Vec<T>, DecodeError> {
        #[derive(Deserialize)]
        struct Part<T> {
            presences: Option<Vec<T>>,
        }
        Ok(self
            .dispatch
            .decode::<Part<T>>()?
            .presences
            .unwrap_or_default())
    }

    /// The ids that were requested but are not members of the guild.
    pub fn not_found(&self) -> Result<Vec<u64>, DecodeError> {
        #[derive(Deserialize)]
        struct Part {
            not_found: Option<Vec<Id>>,
        }
        let ids = self
            .dispatch
            .decode::<Part>()?
            .not_found
            .unwrap_or_default();
        Ok(ids.into_iter().map(|id| id.0).collect())
    }

    /// The whole event.
    pub fn dispatch(&self) -> &Dispatch {
        &self.dispatch
    }
}

/// A request on its way to the shard's thread.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) request: MemberRequest,
    pub(super) replies: Sender<Reply>,
}

/// The receivers of the requests that have not ended, by request id.
#[derive(Debug, Default)]
pub(super) struct Waiting(HashMap<u32, Sender<Reply>>);

impl Waiting {
    pub(super) fn insert(&mut self, id: u32, replies: Sender<Reply>) {
        self.0.insert(id, replies);
    }

    pub(super) fn remove(&mut self, id: u32) {
        self.0.remove(&id);
    }

    /// Sends a chunk to the receiver of its request.
    pub(super) fn answer(&self, chunk: ChunkOf, dispatch: Dispatch, lease: Lease) {
        if let Some(replies) = self.0.get(&chunk.request) {
            let chunk = MembersChunk {
                dispatch,
                index: chunk.index,
                count: chunk.count,
                _lease: lease,
            };
            // The receiver may be gone: then the chunk is dropped, which counts as handled.
            let _ = replies.send(Reply::Chunk(chunk));
        }
    }

    pub(super) fn fail(&mut self, id: u32, failure: MembersFailure) {
        if let Some(replies) = self.0.remove(&id) {
            fail(&replies, failure);
        }
    }

    pub(super) fn fail_all(&mut self, failure: MembersFailure) {
        for (_, replies) in self.0.drain() {
            fail(&replies, failure);
        }
    }
}

/// Reports that a request has failed.
pub(super) fn fail(replies: &Sender<Reply>, failure: MembersFailure) {
    // The receiver may be gone.
    let _ = replies.send(Reply::Failed(failure));
}
