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
    /// A request under an id that no other request to the same machine has.
    ///
    /// # Errors
    /// If Discord would not answer it: see [`Command::request_members`].
    pub fn new(id: u32, guild_id: u64, query: &MemberQuery) -> Result<Self, InvalidCommand> {
        Command::request_members(guild_id, query, None)?;
        Ok(Self {
            id,
            guild_id,
            query: query.clone(),
        })
    }

    /// Its id.
    pub fn id(&self) -> u32 {
        self.id
    }

    /// The guild whose members it asks for.
    pub fn guild_id(&self) -> u64 {
        self.guild_id
    }
}

/// Which request a `GUILD_MEMBERS_CHUNK` answers, and which of its chunks it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChunkOf {
    /// The id of the request.
    pub request: u32,
    /// The number of the chunk, from 0.
    pub index: u32,
    /// How many chunks there are.
    pub count: u32,
}

/// Why not all members arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MembersFailure {
    /// The deadline has passed.
    #[error("timed out")]
    TimedOut,
    /// The session ended while they were arriving.
    #[error("the session was lost: ask again")]
    SessionLost,
    /// The shard has stopped.
    #[error("the shard stopped: {0}")]
    Stopped(StopReason),
    /// A chunk cannot be read.
    #[error("malformed member chunk")]
    Malformed,
}

/// The requests that are not over.
///
/// The nonce of a command names the shard's run, the request and the attempt, so that the answers
/// to two attempts can be told apart.
#[derive(Debug)]
pub(super) struct MemberRequests {
    run: u32,
    pending: BTreeMap<u32, Pending>,
    /// Whether there has been any request. Until then no chunk is looked into.
    has_begun: bool,
}

#[derive(Debug)]
struct Pending {
    request: MemberRequest,
    /// The latest attempt, from 0.
    attempt: u32,
    /// The command of the latest attempt has been sent.
    is_sent: bool,
    /// The attempt whose answer has begun to arrive.
    answered: Option<u32>,
}

/// Whose answer an event is.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Claim {
    /// It is no answer to a request of this run.
    None,
    /// It answers a request that is over, or an attempt that another one has overtaken.
    Unwanted,
    /// It answers this request, and cannot be read. The request is over.
    Malformed(u32),
    /// It answers a request.
    Chunk {
        chunk: ChunkOf,
        /// The nonce of a later attempt, which is not needed and may be waiting to be sent.
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
    /// `run` is a random number.
    pub(super) fn new(run: u32) -> Self {
        Self {
            run,
            pending: BTreeMap::new(),
            has_begun: false,
        }
    }

    /// A request begins. Returns its command.
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

    /// A request was cancelled. Returns the nonce of its command, which may be waiting
    /// to be sent.
    pub(super) fn cancel(&mut self, id: u32) -> Option<String> {
        let pending = self.pending.remove(&id)?;
        Some(nonce(self.run, id, pending.attempt))
    }

    /// A command is being sent.
    pub(super) fn note_sent(&mut self, command: &Command) {
        if let Some((id, attempt)) = self.parse(command)
            && let Some(pending) = self.latest(id, attempt)
        {
            pending.is_sent = true;
        }
    }

    /// A command was not sent after all. Returns whether to send it again: a request that is over
    /// or has a later attempt needs no more than that.
    pub(super) fn note_unsent(&mut self, command: &Command) -> bool {
        let Some((id, attempt)) = self.parse(command) else {
            return true;
        };
        let pending = self.latest(id, attempt);
        pending.map(|pending| pending.is_sent = false).is_some()
    }

    /// Whether a command belongs to a request of this run, so that no other run may send it.
    pub(super) fn is_own(&self, command: &Command) -> bool {
        self.parse(command).is_some()
    }

    /// Whose answer an event is.
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

        // The attempt that is answered first is the one that counts.
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

    /// Discord answered the command with this nonce with `RATE_LIMITED`. Returns the command of
    /// another attempt.
    pub(super) fn rate_limited(&mut self, nonce: &str) -> Option<Command> {
        let (id, attempt) = self.parse_nonce(nonce)?;
        let run = self.run;
        self.latest(id, attempt)?.repeat(run)
    }

    /// A session is live, after a connection that may not have carried everything. Returns the
    /// commands of other attempts for requests of which nothing has arrived.
    pub(super) fn live(&mut self) -> Vec<Command> {
        let run = self.run;
        self.pending
            .values_mut()
            .filter(|pending| pending.is_sent && pending.answered.is_none())
            .filter_map(|pending| pending.repeat(run))
            .collect()
    }

    /// The session is over. Returns the requests that end with it, because a part of their answer
    /// has arrived.
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

    /// The request, if this is its latest attempt.
    fn latest(&mut self, id: u32, attempt: u32) -> Option<&mut Pending> {
        let pending = self.pending.get_mut(&id)?;
        (pending.attempt == attempt).then_some(pending)
    }

    fn parse(&self, command: &Command) -> Option<(u32, u32)> {
        self.parse_nonce(command.nonce()?)
    }

    /// The request and the attempt that a nonce of this run names.
    fn parse_nonce(&self, nonce: &str) -> Option<(u32, u32)> {
        let mut parts = nonce.split('.');
        let mut hex = || u32::from_str_radix(parts.next()?, 16).ok();
        let (run, id, attempt) = (hex()?, hex()?, hex()?);
        (run == self.run).then_some((id, attempt))
    }
}

impl Pending {
    /// The command of another attempt.
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
        // The request was checked when it was made, and the nonce is always short enough.
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
        assert_eq!(requests.rate_limited("0000abcd.0.0"), None, "said twice");
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
        assert!(requests.note_unsent(&unsent), "it is sent again as it is");
        assert_eq!(
            nonces(&requests.live()),
            ["0000abcd.0.1"],
            "the second is arriving, the third was not sent"
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
