//! Requests for the members of a guild, and their answers.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use serde::Deserialize;
use serde_json::Value;

use super::{A_YEAR, Shard};
use crate::error::{Error, MembersFailure};
use crate::event::{DecodeError, Dispatch, Id, Lease};
use crate::protocol::{CloseReason, Command, EventName, InvalidCommand, MemberQuery};

/// How long an answer may take if nobody says otherwise.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);

/// Members of a guild as they arrive: an iterator over parts of up to 1,000 members that blocks
/// until the next one is there. Discord sends them in order as a rule; each has its
/// [`index`](MembersChunk::index). It ends when all are there, or with an error.
///
/// It has a minute, unless [`timeout`](Self::timeout) says otherwise. Dropping it forgets the
/// request. Its parts are events of the shard that come here in place of the stream: they count as
/// outstanding until they are dropped, so that a guild of any size takes no more memory than the
/// shard's credit.
///
/// Who waits for it on the only thread that takes events from the stream keeps those waiting: with
/// many of them the shard [stalls](crate::EventKind::Stalled), and the members stay away until the
/// time is over.
#[derive(Debug)]
pub struct Members {
    shard: Shard,
    id: u32,
    guild_id: u64,
    replies: Receiver<Reply>,
    deadline: Instant,
    /// The parts that came.
    seen: HashSet<u32>,
    is_over: bool,
}

/// A part of the members of a guild.
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

/// What [`Members`] are told.
#[derive(Debug)]
pub(super) enum Reply {
    Chunk(MembersChunk),
    Failed(MembersFailure),
}

impl Members {
    pub(super) fn new(shard: Shard, request: &Request, replies: Receiver<Reply>) -> Self {
        Self {
            shard,
            id: request.id,
            guild_id: request.guild_id,
            replies,
            deadline: Instant::now() + PATIENCE,
            seen: HashSet::new(),
            is_over: false,
        }
    }

    /// How long it may take from now on until everything is there.
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
    /// [`Error::Members`] if not all arrive, or one cannot be read as a `T`.
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

    fn error(&self, failure: MembersFailure) -> Error {
        Error::Members {
            guild_id: self.guild_id,
            received: u32::try_from(self.seen.len()).unwrap_or(u32::MAX),
            failure,
        }
    }

    fn fail(&mut self, failure: MembersFailure) -> Error {
        self.is_over = true;
        // What still comes is not kept, even if this is.
        self.replies = crossbeam_channel::never();
        self.shard.forget_members(self.id);
        self.error(failure)
    }
}

impl Iterator for Members {
    type Item = Result<MembersChunk, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        while !self.is_over {
            match self.replies.recv_deadline(self.deadline) {
                // One that comes again is dropped.
                Ok(Reply::Chunk(chunk)) if !self.seen.insert(chunk.index) => drop(chunk),
                Ok(Reply::Chunk(chunk)) => {
                    self.is_over = self.seen.len() >= chunk.count as usize;
                    return Some(Ok(chunk));
                }
                Ok(Reply::Failed(failure)) => return Some(Err(self.fail(failure))),
                Err(RecvTimeoutError::Timeout) => {
                    return Some(Err(self.fail(MembersFailure::TimedOut)));
                }
                // The thread says why it forgets a request; one that panics says nothing.
                Err(RecvTimeoutError::Disconnected) => {
                    return Some(Err(
                        self.fail(MembersFailure::Stopped(CloseReason::Panicked))
                    ));
                }
            }
        }
        None
    }
}

impl Drop for Members {
    fn drop(&mut self) {
        // Also once all is there: it is the thread's to remember until then.
        self.shard.forget_members(self.id);
    }
}

impl MembersChunk {
    /// Which part it is, from 0.
    pub fn index(&self) -> u32 {
        self.index
    }

    /// How many parts there are.
    pub fn count(&self) -> u32 {
        self.count
    }

    /// The members, read as `T`s.
    pub fn members<'a, T: Deserialize<'a>>(&'a self) -> Result<Vec<T>, DecodeError> {
        #[derive(Deserialize)]
        struct Part<T> {
            members: Vec<T>,
        }
        Ok(self.dispatch.decode::<Part<T>>()?.members)
    }

    /// Their presences, if they were asked for, read as `T`s.
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

    /// The ids that were asked for and are no members.
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

    /// The event as a whole.
    pub fn dispatch(&self) -> &Dispatch {
        &self.dispatch
    }
}

/// A request on its way to the shard's thread.
pub(super) struct Request {
    pub(super) id: u32,
    pub(super) guild_id: u64,
    pub(super) query: MemberQuery,
    pub(super) command: Command,
    pub(super) replies: Sender<Reply>,
}

/// The requests that wait for their answers. The nonce of a request names the shard's run, the
/// request, and the attempt, so that the answers to two attempts are told apart.
#[derive(Debug)]
pub(super) struct Requests {
    run: u32,
    pending: HashMap<u32, Pending>,
    /// Whether there was any; before that no answer is looked at.
    any: bool,
}

#[derive(Debug)]
struct Pending {
    request: Box<Request>,
    attempt: u32,
    /// Its command has gone out.
    is_sent: bool,
    /// The attempt whose answer has begun to come.
    heard: Option<u32>,
}

/// What becomes of an answer.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Claim {
    /// It is no answer to a request of this shard's run.
    Not,
    /// Nobody waits for it any more.
    Forgotten,
    /// It is a part of the answer to a request.
    Part(Part),
}

/// Which request an answer is for, and which part of how many it is.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Part {
    id: u32,
    index: u32,
    count: u32,
    /// The nonce of a later attempt that is not needed, and may be waiting to be sent.
    pub(super) needless: Option<String>,
}

#[derive(Deserialize)]
struct Header {
    nonce: Option<String>,
    #[serde(default)]
    chunk_index: Value,
    #[serde(default)]
    chunk_count: Value,
}

/// As the machine reads it, which waits as long as this says.
#[derive(Deserialize)]
struct RateLimited {
    opcode: u64,
    #[serde(rename = "retry_after")]
    _retry_after: f64,
    meta: RateLimitedGuild,
}

#[derive(Deserialize)]
struct RateLimitedGuild {
    guild_id: String,
    nonce: Option<String>,
}

/// The nonce of an attempt; at most 32 bytes.
pub(super) fn nonce(run: u32, id: u32, attempt: u32) -> String {
    format!("{run:08x}.{id:x}.{attempt:x}")
}

impl Requests {
    pub(super) fn new(run: u32) -> Self {
        Self {
            run,
            pending: HashMap::new(),
            any: false,
        }
    }

    /// A request begins. Returns what is to be sent.
    pub(super) fn begin(&mut self, request: Box<Request>) -> Command {
        self.any = true;
        let command = request.command.clone();
        self.pending.insert(
            request.id,
            Pending {
                request,
                attempt: 0,
                is_sent: false,
                heard: None,
            },
        );
        command
    }

    /// Nobody waits for a request any more. Returns the nonce of its command, which may be waiting
    /// to be sent.
    pub(super) fn forget(&mut self, id: u32) -> Option<String> {
        let pending = self.pending.remove(&id)?;
        Some(nonce(self.run, id, pending.attempt))
    }

    /// A command went out, or did not after all.
    pub(super) fn note_sent(&mut self, command: &Command, is_sent: bool) {
        let Some((id, attempt)) = command.nonce().and_then(|nonce| self.parse(nonce)) else {
            return;
        };
        if let Some(pending) = self
            .pending
            .get_mut(&id)
            .filter(|pending| pending.attempt == attempt)
        {
            pending.is_sent = is_sent;
        }
    }

    /// Whether a command is that of a request of this run, which nobody else may send.
    pub(super) fn is_own(&self, command: &Command) -> bool {
        command
            .nonce()
            .is_some_and(|nonce| self.parse(nonce).is_some())
    }

    /// Whose answer an event is.
    pub(super) fn claim(&mut self, dispatch: &Dispatch) -> Claim {
        if !self.any || *dispatch.name() != EventName::GuildMembersChunk {
            return Claim::Not;
        }
        let Some(Header {
            nonce: Some(nonce),
            chunk_index,
            chunk_count,
        }) = dispatch.parse()
        else {
            return Claim::Not;
        };
        let Some((id, attempt)) = self.parse(&nonce) else {
            return Claim::Not;
        };
        // Of several attempts the one counts that is answered first.
        let is_heard = |pending: &&mut Pending| {
            pending
                .heard
                .map_or(attempt <= pending.attempt, |heard| heard == attempt)
        };
        let Some(pending) = self.pending.get_mut(&id).filter(is_heard) else {
            return Claim::Forgotten;
        };
        let number = |value: Value| value.as_u64().and_then(|number| u32::try_from(number).ok());
        match number(chunk_index).zip(number(chunk_count)) {
            Some((index, count)) if index < count => {
                let is_first = pending.heard.replace(attempt).is_none();
                let needless = (is_first && attempt < pending.attempt)
                    .then(|| self::nonce(self.run, id, pending.attempt));
                Claim::Part(Part {
                    id,
                    index,
                    count,
                    needless,
                })
            }
            _ => {
                self.fail(id, MembersFailure::Malformed);
                Claim::Forgotten
            }
        }
    }

    /// Hands a part to whoever waits for it.
    pub(super) fn answer(
        &self,
        Part {
            id, index, count, ..
        }: Part,
        dispatch: Dispatch,
        lease: Lease,
    ) {
        if let Some(pending) = self.pending.get(&id) {
            let chunk = MembersChunk {
                dispatch,
                index,
                count,
                _lease: lease,
            };
            // Nobody may wait any more: then this is dropped, which counts as handled.
            let _ = pending.request.replies.send(Reply::Chunk(chunk));
        }
    }

    /// Discord asks for a pause. Returns the command to send again, which waits for it.
    pub(super) fn rate_limited(&mut self, dispatch: &Dispatch) -> Option<Command> {
        if !self.any || *dispatch.name() != EventName::RateLimited {
            return None;
        }
        let limited: RateLimited = dispatch.parse()?;
        if limited.opcode != 8 || limited.meta.guild_id.parse::<u64>().is_err() {
            return None;
        }
        let (id, attempt) = self.parse(&limited.meta.nonce?)?;
        self.pending
            .get(&id)
            .filter(|pending| pending.attempt == attempt)?;
        self.repeat(id)
    }

    /// The session goes on after a gap: requests of which nothing has come back may not have got
    /// through. Returns what is to be sent again.
    pub(super) fn resumed(&mut self) -> Vec<Command> {
        let unheard = self
            .pending
            .iter()
            .filter(|(_, pending)| pending.is_sent && pending.heard.is_none());
        let ids: Vec<u32> = unheard.map(|(id, _)| *id).collect();
        ids.into_iter().filter_map(|id| self.repeat(id)).collect()
    }

    /// The session is over. What had begun to come back fails; the rest is to be sent again.
    pub(super) fn session_lost(&mut self) -> Vec<Command> {
        let heard = self
            .pending
            .iter()
            .filter(|(_, pending)| pending.heard.is_some());
        for id in heard.map(|(id, _)| *id).collect::<Vec<_>>() {
            self.fail(id, MembersFailure::SessionLost);
        }
        self.resumed()
    }

    /// No answer will come any more.
    pub(super) fn fail_all(&mut self, failure: MembersFailure) {
        for id in self.pending.keys().copied().collect::<Vec<_>>() {
            self.fail(id, failure);
        }
    }

    fn fail(&mut self, id: u32, failure: MembersFailure) {
        if let Some(pending) = self.pending.remove(&id) {
            pending.request.fail(failure);
        }
    }

    /// The command of a new attempt.
    fn repeat(&mut self, id: u32) -> Option<Command> {
        let pending = self.pending.get_mut(&id)?;
        pending.attempt += 1;
        pending.is_sent = false;
        let nonce = nonce(self.run, id, pending.attempt);
        let Request {
            guild_id, query, ..
        } = &*pending.request;
        // It was valid the first time, and differs in its nonce alone.
        Command::request_members(*guild_id, query, Some(&nonce)).ok()
    }

    /// The request and the attempt of a nonce, if it is one of this run's.
    fn parse(&self, nonce: &str) -> Option<(u32, u32)> {
        let mut parts = nonce.split('.');
        let mut hex = || u32::from_str_radix(parts.next()?, 16).ok();
        let (run, id, attempt) = (hex()?, hex()?, hex()?);
        (run == self.run).then_some((id, attempt))
    }
}

impl Request {
    pub(super) fn new(
        run: u32,
        id: u32,
        guild_id: u64,
        query: &MemberQuery,
        replies: Sender<Reply>,
    ) -> Result<Self, InvalidCommand> {
        let command = Command::request_members(guild_id, query, Some(&nonce(run, id, 0)))?;
        Ok(Self {
            id,
            guild_id,
            query: query.clone(),
            command,
            replies,
        })
    }

    /// No answer will come.
    pub(super) fn fail(&self, failure: MembersFailure) {
        // Nobody may wait any more.
        let _ = self.replies.send(Reply::Failed(failure));
    }
}

impl fmt::Debug for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Request")
            .field("guild_id", &self.guild_id)
            .field("query", &self.query)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const RUN: u32 = 0xabcd;

    fn requests(queries: &[MemberQuery]) -> (Requests, Vec<Receiver<Reply>>) {
        let mut requests = Requests::new(RUN);
        let receivers = queries.iter().zip(0..).map(|(query, id)| {
            let (sender, receiver) = crossbeam_channel::unbounded();
            let command =
                requests.begin(Box::new(Request::new(RUN, id, 5, query, sender).unwrap()));
            requests.note_sent(&command, true);
            receiver
        });
        let receivers = receivers.collect();
        (requests, receivers)
    }

    fn chunk(nonce: &str, index: i64) -> Dispatch {
        let data = json!({"nonce": nonce, "chunk_index": index, "chunk_count": 3, "members": []});
        event("GUILD_MEMBERS_CHUNK", &data)
    }

    fn event(name: &str, data: &Value) -> Dispatch {
        Dispatch::from_json(json!({"op": 0, "s": 1, "t": name, "d": data}).to_string()).unwrap()
    }

    fn part(id: u32, index: u32, needless: Option<&str>) -> Claim {
        Claim::Part(Part {
            id,
            index,
            count: 3,
            needless: needless.map(str::to_owned),
        })
    }

    fn failure(replies: &Receiver<Reply>) -> MembersFailure {
        match replies.try_recv() {
            Ok(Reply::Failed(failure)) => failure,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn nonces_are_told_apart_and_fit() {
        assert!(nonce(u32::MAX, u32::MAX, u32::MAX).len() <= 32);
        let (mut requests, _replies) = requests(&[MemberQuery::all(), MemberQuery::ids([1])]);
        assert_eq!(requests.claim(&chunk("0000abcd.1.0", 2)), part(1, 2, None));
        for foreign in ["mine", "0000abce.1.0", "0000abcd.1", "", "...."] {
            assert_eq!(requests.claim(&chunk(foreign, 0)), Claim::Not, "{foreign}");
        }
        assert_eq!(
            requests.claim(&event("MESSAGE_CREATE", &json!({"nonce": "0000abcd.1.0"}))),
            Claim::Not
        );
        assert_eq!(requests.forget(1).unwrap(), "0000abcd.1.0");
        assert_eq!(requests.claim(&chunk("0000abcd.1.0", 2)), Claim::Forgotten);
        assert_eq!(requests.forget(1), None);
    }

    #[test]
    fn an_answer_that_cannot_be_read_ends_the_request() {
        for index in [-1, 3] {
            let (mut requests, replies) = requests(&[MemberQuery::all()]);
            let claim = requests.claim(&chunk("0000abcd.0.0", index));
            assert_eq!(
                (claim, failure(&replies[0])),
                (Claim::Forgotten, MembersFailure::Malformed)
            );
        }
    }

    #[test]
    fn a_rate_limit_is_another_attempt() {
        let (mut requests, _replies) = requests(&[MemberQuery::all()]);
        let limited = |nonce: &str| {
            event(
                "RATE_LIMITED",
                &json!({"opcode": 8, "retry_after": 1.5, "meta": {"guild_id": "5", "nonce": nonce}}),
            )
        };
        assert_eq!(requests.rate_limited(&limited("other")), None);
        let again = requests.rate_limited(&limited("0000abcd.0.0")).unwrap();
        assert_eq!(again.nonce(), Some("0000abcd.0.1"));
        assert_eq!(
            requests.rate_limited(&limited("0000abcd.0.0")),
            None,
            "told twice"
        );
        assert_eq!(
            requests.claim(&chunk("0000abcd.0.2", 0)),
            Claim::Forgotten,
            "an attempt that nobody made"
        );
        assert_eq!(requests.claim(&chunk("0000abcd.0.1", 0)), part(0, 0, None));
    }

    #[test]
    fn after_a_gap_what_was_not_heard_is_asked_again() {
        let (mut requests, replies) = requests(&[
            MemberQuery::all(),
            MemberQuery::ids([1]),
            MemberQuery::ids([2]),
        ]);
        requests.claim(&chunk("0000abcd.1.0", 0));
        let unsent =
            Command::request_members(5, &MemberQuery::ids([2]), Some("0000abcd.2.0")).unwrap();
        requests.note_sent(&unsent, false);
        let again: Vec<_> = requests
            .resumed()
            .iter()
            .map(|command| command.nonce().unwrap().to_owned())
            .collect();
        assert_eq!(
            again,
            ["0000abcd.0.1"],
            "the second is coming, the third will be sent anyway"
        );
        assert_eq!(
            requests.claim(&chunk("0000abcd.0.0", 0)),
            part(0, 0, Some("0000abcd.0.1")),
            "it had got through"
        );
        assert_eq!(requests.claim(&chunk("0000abcd.0.1", 0)), Claim::Forgotten);
        assert_eq!(requests.session_lost().len(), 0);
        assert_eq!(failure(&replies[0]), MembersFailure::SessionLost);
        assert_eq!(failure(&replies[1]), MembersFailure::SessionLost);
        requests.fail_all(MembersFailure::TimedOut);
        assert_eq!(failure(&replies[2]), MembersFailure::TimedOut);
    }
}
