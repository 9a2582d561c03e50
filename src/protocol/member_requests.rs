//! Requests for members of guilds, from the command to the last chunk.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

use super::close::StopReason;
use super::command::{Command, InvalidCommand, MemberQuery};
use super::event_name::EventName;
use super::payload::Payload;

/// A request for members whose chunks are collected for its caller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberRequest {
    id: u32,
    guild_id: u64,
    query: MemberQuery,
}

impl MemberRequest {
    /// Creates a request. No other request to the same machine may have the same `id`.
    ///
    /// # Errors
    /// If the command is invalid: for example an id is 0, or the query breaks a limit of
    /// [`MemberQuery`].
    pub fn new(id: u32, guild_id: u64, query: &MemberQuery) -> Result<Self, InvalidCommand> {
        Command::request_members(guild_id, query, None)?;
        Ok(Self {
            id,
            guild_id,
            query: query.clone(),
        })
    }

    /// The id of the request.
    pub fn id(&self) -> u32 {
        self.id
    }

    /// The guild whose members are requested.
    pub fn guild_id(&self) -> u64 {
        self.guild_id
    }
}

/// Which request a `GUILD_MEMBERS_CHUNK` answers, and which of its chunks it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChunkOf {
    /// The id of the request.
    pub request: u32,
    /// The index of the chunk, from 0.
    pub index: u32,
    /// The total number of chunks.
    pub count: u32,
}

/// Why a request for members failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MembersFailure {
    /// The deadline has passed.
    #[error("timed out")]
    TimedOut,
    /// The session ended after some of the members had arrived.
    #[error("the session was lost; request the members again")]
    SessionLost,
    /// The shard has stopped.
    #[error("the shard stopped: {0}")]
    Stopped(StopReason),
    /// A chunk cannot be read.
    #[error("malformed member chunk")]
    Malformed,
}

/// The open requests.
///
/// The nonce of a command contains the shard's run, the request and the attempt, so that the
/// answers to two attempts can be told apart.
#[derive(Debug)]
pub(super) struct MemberRequests {
    run: u32,
    pending: BTreeMap<u32, Pending>,
    /// Whether there has been any request. Until then no chunk is parsed.
    has_begun: bool,
}

#[derive(Debug)]
struct Pending {
    request: MemberRequest,
    /// The latest attempt, from 0.
    attempt: u32,
    /// Whether the command of the latest attempt has been sent.
    is_sent: bool,
    /// The attempt whose answer has begun to arrive.
    answered: Option<u32>,
}

/// Which request an event answers.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Claim {
    /// It does not answer a request of this run.
    None,
    /// It answers a request that is over, or an attempt that does not count because another one was
    /// answered first.
    Unwanted,
    /// It answers this request, but cannot be read. The request is over.
    Malformed(u32),
    /// It answers a request.
    Chunk {
        chunk: ChunkOf,
        /// The nonce of a later attempt that is no longer needed. Its command may still be queued.
        needless: Option<String>,
    },
}

#[derive(Deserialize)]
struct ChunkHeader {
    nonce: Option<String>,
    #[serde(default)]
    chunk_index: Value,
    #[serde(default)]
    chunk_count: Value,
}

impl ChunkHeader {
    fn index_and_count(&self) -> Option<(u32, u32)> {
        let number = |value: &Value| u32::try_from(value.as_u64()?).ok();
        let (index, count) = (number(&self.chunk_index)?, number(&self.chunk_count)?);
        (index < count).then_some((index, count))
    }
}

impl MemberRequests {
    /// `run` is a random number, which identifies the shard's run in nonces.
    pub(super) fn new(run: u32) -> Self {
        Self {
            run,
            pending: BTreeMap::new(),
            has_begun: false,
        }
    }

    /// Begins a request. Returns its command.
    pub(super) fn begin(&mut self, request: MemberRequest) -> Option<Command> {
        self.has_begun = true;
        let id = request.id;
        let pending = Pending {
            request,
            attempt: 0,
            is_sent: false,
            answered: None,
        };
        let command = pending.command(self.run);
        self.pending.insert(id, pending);
        command
    }

    /// Cancels a request. Returns the nonce of its latest command, which may still be queued.
    pub(super) fn cancel(&mut self, id: u32) -> Option<String> {
        let pending = self.pending.remove(&id)?;
        Some(nonce(self.run, id, pending.attempt))
    }

    /// Notes that a command is being sent.
    pub(super) fn note_sent(&mut self, command: &Command) {
        if let Some((id, attempt)) = self.parse(command)
            && let Some(pending) = self.latest(id, attempt)
        {
            pending.is_sent = true;
        }
    }

    /// Notes that a command was not sent after all. Returns whether to send it again: not if its
    /// request is over or has a later attempt.
    pub(super) fn note_unsent(&mut self, command: &Command) -> bool {
        let Some((id, attempt)) = self.parse(command) else {
            return true;
        };
        let pending = self.latest(id, attempt);
        pending.map(|pending| pending.is_sent = false).is_some()
    }

    /// Whether a command belongs to a request of this run. No other run may send such a command.
    pub(super) fn is_own(&self, command: &Command) -> bool {
        self.parse(command).is_some()
    }

    /// Finds the request that an event answers.
    pub(super) fn claim(&mut self, payload: &Payload) -> Claim {
        if !self.has_begun || payload.name() != Some(&EventName::GuildMembersChunk) {
            return Claim::None;
        }
        let Ok(header) = payload.parse::<ChunkHeader>() else {
            return Claim::None;
        };
        let nonce = header.nonce.as_deref();
        let Some((id, attempt)) = nonce.and_then(|nonce| self.parse_nonce(nonce)) else {
            return Claim::None;
        };

        // Only the attempt that is answered first counts.
        let counts = |pending: &&mut Pending| match pending.answered {
            Some(answered) => answered == attempt,
            None => attempt <= pending.attempt,
        };
        let Some(pending) = self.pending.get_mut(&id).filter(counts) else {
            return Claim::Unwanted;
        };
        let Some((index, count)) = header.index_and_count() else {
            self.pending.remove(&id);
            return Claim::Malformed(id);
        };

        let is_first = pending.answered.replace(attempt).is_none();
        let overtaken = (is_first && attempt < pending.attempt).then_some(pending.attempt);
        Claim::Chunk {
            chunk: ChunkOf {
                request: id,
                index,
                count,
            },
            needless: overtaken.map(|later| self::nonce(self.run, id, later)),
        }
    }

    /// Discord answered the command that has this nonce with `RATE_LIMITED`. Returns the command of
    /// a new attempt.
    pub(super) fn rate_limited(&mut self, nonce: &str) -> Option<Command> {
        let (id, attempt) = self.parse_nonce(nonce)?;
        let run = self.run;
        self.latest(id, attempt)?.repeat(run)
    }

    /// A session has become live on a new connection. The old connection may have lost commands, so
    /// this returns the commands of new attempts, for each sent request whose answer has not begun
    /// to arrive.
    pub(super) fn live(&mut self) -> Vec<Command> {
        let run = self.run;
        self.pending
            .values_mut()
            .filter(|pending| pending.is_sent && pending.answered.is_none())
            .filter_map(|pending| pending.repeat(run))
            .collect()
    }

    /// The session is over. Removes and returns the requests that fail with it: those whose answer
    /// has begun to arrive.
    pub(super) fn session_lost(&mut self) -> Vec<u32> {
        let mut over = Vec::new();
        self.pending.retain(|id, pending| {
            if pending.answered.is_some() {
                over.push(*id);
            }
            pending.answered.is_none()
        });
        over
    }

    /// The request, if `attempt` is its latest attempt.
    fn latest(&mut self, id: u32, attempt: u32) -> Option<&mut Pending> {
        let pending = self.pending.get_mut(&id)?;
        (pending.attempt == attempt).then_some(pending)
    }

    fn parse(&self, command: &Command) -> Option<(u32, u32)> {
        self.parse_nonce(command.nonce()?)
    }

    /// The request and the attempt in a nonce of this run.
    fn parse_nonce(&self, nonce: &str) -> Option<(u32, u32)> {
        let mut parts = nonce.split('.');
        let mut hex = || u32::from_str_radix(parts.next()?, 16).ok();
        let (run, id, attempt) = (hex()?, hex()?, hex()?);
        (run == self.run).then_some((id, attempt))
    }
}

impl Pending {
    /// Begins a new attempt and returns its command.
    fn repeat(&mut self, run: u32) -> Option<Command> {
        self.attempt += 1;
        self.is_sent = false;
        self.command(run)
    }

    /// The command of the latest attempt.
    fn command(&self, run: u32) -> Option<Command> {
        let MemberRequest {
            id,
            guild_id,
            query,
        } = &self.request;
        let nonce = nonce(run, *id, self.attempt);
        // Never `None`: `MemberRequest::new` checked the request, and the nonce is short enough.
        Command::request_members(*guild_id, query, Some(&nonce)).ok()
    }
}

/// The nonce of an attempt, at most 32 bytes.
fn nonce(run: u32, id: u32, attempt: u32) -> String {
    format!("{run:08x}.{id:x}.{attempt:x}")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const RUN: u32 = 0xabcd;

    /// Requests whose commands have been sent.
    fn requests(count: u32) -> MemberRequests {
        let mut requests = MemberRequests::new(RUN);
        for id in 0..count {
            let request = MemberRequest::new(id, 5, &MemberQuery::ids([1])).unwrap();
            let command = requests.begin(request).unwrap();
            requests.note_sent(&command);
        }
        requests
    }

    fn payload(name: &str, data: &Value) -> Payload {
        let json = json!({"op": 0, "s": 1, "t": name, "d": data});
        Payload::read(json.to_string().into()).unwrap()
    }

    fn chunk(nonce: &str, index: i64) -> Payload {
        let data = json!({"nonce": nonce, "chunk_index": index, "chunk_count": 3, "members": []});
        payload("GUILD_MEMBERS_CHUNK", &data)
    }

    fn claim(request: u32, index: u32, needless: Option<&str>) -> Claim {
        Claim::Chunk {
            chunk: ChunkOf {
                request,
                index,
                count: 3,
            },
            needless: needless.map(str::to_owned),
        }
    }

    fn nonces(commands: &[Command]) -> Vec<&str> {
        let nonces = commands.iter().map(|command| command.nonce().unwrap());
        nonces.collect()
    }

    #[test]
    fn nonces_are_told_apart_and_fit() {
        assert!(nonce(u32::MAX, u32::MAX, u32::MAX).len() <= 32);
        let mut requests = requests(2);
        assert_eq!(requests.claim(&chunk("0000abcd.1.0", 2)), claim(1, 2, None));
        for foreign in ["mine", "0000abce.1.0", "0000abcd.1", "", "...."] {
            assert_eq!(
                requests.claim(&chunk(foreign, 0)),
                Claim::None,
                "{foreign:?}"
            );
        }
        let message = payload("MESSAGE_CREATE", &json!({"nonce": "0000abcd.1.0"}));
        assert_eq!(requests.claim(&message), Claim::None);

        assert_eq!(requests.cancel(1).unwrap(), "0000abcd.1.0");
        assert_eq!(requests.claim(&chunk("0000abcd.1.0", 2)), Claim::Unwanted);
        assert_eq!(requests.cancel(1), None);
    }

    #[test]
    fn a_malformed_chunk_ends_the_request() {
        for index in [-1, 3] {
            let mut requests = requests(1);
            let first = requests.claim(&chunk("0000abcd.0.0", index));
            assert_eq!(first, Claim::Malformed(0));
            let next = requests.claim(&chunk("0000abcd.0.0", 0));
            assert_eq!(next, Claim::Unwanted);
        }
    }

    #[test]
    fn a_rate_limit_causes_one_more_attempt() {
        let mut requests = requests(1);
        assert_eq!(requests.rate_limited("other"), None);
        let again = requests.rate_limited("0000abcd.0.0").unwrap();
        assert_eq!(again.nonce(), Some("0000abcd.0.1"));
        assert_eq!(
            requests.rate_limited("0000abcd.0.0"),
            None,
            "the same rate limit twice"
        );
        let unmade = requests.claim(&chunk("0000abcd.0.2", 0));
        assert_eq!(unmade, Claim::Unwanted, "no such attempt was made");
        assert_eq!(requests.claim(&chunk("0000abcd.0.1", 0)), claim(0, 0, None));
    }

    #[test]
    fn what_has_no_answer_is_repeated_once_a_session_is_live() {
        let mut requests = requests(3);
        requests.claim(&chunk("0000abcd.1.0", 0));
        let query = MemberQuery::ids([2]);
        let unsent = Command::request_members(5, &query, Some("0000abcd.2.0")).unwrap();
        assert!(requests.note_unsent(&unsent), "it is sent again unchanged");
        assert_eq!(
            nonces(&requests.live()),
            ["0000abcd.0.1"],
            "the second is being answered, the third was not sent"
        );

        // The first attempt had arrived at Discord after all.
        let needless = Some("0000abcd.0.1");
        assert_eq!(
            requests.claim(&chunk("0000abcd.0.0", 0)),
            claim(0, 0, needless)
        );
        assert_eq!(requests.claim(&chunk("0000abcd.0.1", 0)), Claim::Unwanted);
        assert_eq!(requests.session_lost(), [0, 1]);
        assert_eq!(requests.live(), []);
    }

    #[test]
    fn an_unsent_command_is_sent_again_only_while_it_is_the_latest_attempt() {
        let mut requests = requests(2);
        let unsent = |nonce| Command::request_members(5, &MemberQuery::ids([1]), Some(nonce));
        requests.rate_limited("0000abcd.0.0").unwrap();
        assert!(!requests.note_unsent(&unsent("0000abcd.0.0").unwrap()));
        assert!(requests.note_unsent(&unsent("0000abcd.0.1").unwrap()));
        requests.cancel(1);
        assert!(!requests.note_unsent(&unsent("0000abcd.1.0").unwrap()));
        assert!(requests.note_unsent(&unsent("the user's").unwrap()));
    }
}
