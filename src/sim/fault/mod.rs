//! What can go wrong, and the words for it.

mod words;

use std::time::Duration;

use crate::shard_id::ShardId;

/// Something that goes wrong.
///
/// The first group strikes connections that are open; what is said of a shard there means its
/// connection at that moment. The second group waits for the next handshake of its kind and strikes
/// once. Each has a word that [`FromStr`](std::str::FromStr) reads and [`Display`](std::fmt::Display) writes; it stands in
/// brackets.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fault {
    /// Everything takes this long in each direction, and up to `jitter` longer. (`delay=40ms+20ms`)
    Delay {
        /// The least that it takes.
        latency: Duration,
        /// What may come on top.
        jitter: Duration,
    },
    /// What the gateway sends trickles. (`drip=20000`)
    Drip {
        /// Bytes a second.
        bytes_per_second: u32,
    },
    /// The connection ends without a close frame (FIN). (`cut`)
    Cut,
    /// The connection is reset (RST). (`reset`)
    Reset,
    /// The connection is half open: nothing comes any more, and nothing is read. (`silence`)
    Silence,
    /// The connection ends in the middle of a frame. (`cut-in-frame`)
    CutInFrame,
    /// A frame that websocket does not know. (`garbage`)
    Garbage,
    /// A message that no decompressor understands, nor anybody as text. (`corrupt`)
    Corrupt,
    /// A payload that is large when it is unpacked. (`bomb=67108865`)
    Bomb {
        /// Its bytes, unpacked.
        size: usize,
    },
    /// A frame that says it has a terabyte. (`oversized`)
    Oversized,
    /// Heartbeats of the connection are not acknowledged any more. (`no-ack`)
    NoAck,
    /// A request for a heartbeat, op 1. (`heartbeat-request`)
    HeartbeatRequest,
    /// A request to reconnect, op 7. (`reconnect`)
    Reconnect,
    /// An invalid session, op 9. (`invalid-session=true`, `invalid-session=false`)
    InvalidSession {
        /// Whether the client may resume it.
        resumable: bool,
    },
    /// A close with a code: 1000 to 1003, 1007 to 1014, or 3000 to 4999. (`close=4009`)
    Close(u16),
    /// The last event is sent again, with the same sequence. (`repeat`)
    Repeat,
    /// An older event is sent again after newer ones. (`out-of-order`)
    OutOfOrder,

    /// A TLS handshake that fails; nothing to a gateway without TLS. (`tls=expired`,
    /// `tls=wrong-name`, `tls=untrusted`, `tls=hang`)
    Tls(TlsFault),
    /// A websocket upgrade that fails. (`upgrade=refused`, `upgrade=503`, `upgrade=hang`)
    Upgrade(UpgradeFault),
    /// An answer in place of HELLO. (`hello=nothing`, `hello=reconnect`,
    /// `hello=invalid-session:false`, `hello=close:4000`, `hello=payload:TEXT`)
    Hello(Answer),
    /// An answer in place of READY. (`identify=…`, as for HELLO)
    Identify(Answer),
    /// An answer in place of the replay and RESUMED. (`resume=…`, as for HELLO)
    Resume(Answer),
    /// A replay that begins before what was asked for, and has each event twice. (`replay-twice`)
    ReplayTwice,
    /// The `resume_gateway_url` of the next session. (`resume-url=dead`, `resume-url=foreign`,
    /// `resume-url=URL`)
    ResumeUrl(ResumeUrl),
    /// An HTTP request that is not answered as it should be. (`rest=503`, `rest=429`,
    /// `rest=429:global`, `rest=429:shared`, `rest=html`, `rest=truncated`, `rest=slow:100`,
    /// `rest=redirect:URL`, `rest=reset`, `rest=reset-after`, `rest=hang`)
    Rest(RestFault),
}

/// What the gateway says in place of something else.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Answer {
    /// Nothing at all.
    Nothing,
    /// Op 7.
    Reconnect,
    /// Op 9.
    InvalidSession {
        /// Whether the client may resume it.
        resumable: bool,
    },
    /// A close with a code: 1000 to 1003, 1007 to 1014, or 3000 to 4999.
    Close(u16),
    /// This payload.
    Payload(String),
}

/// What is wrong with TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum TlsFault {
    /// The certificate has expired.
    Expired,
    /// The certificate is another host's.
    WrongName,
    /// The certificate's authority is not the one to trust.
    Untrusted,
    /// The handshake never ends.
    Hang,
}

/// How an upgrade fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum UpgradeFault {
    /// The connection is reset.
    Refused,
    /// It is answered with an HTTP status, from 400 to 599.
    Status(u16),
    /// It is never answered.
    Hang,
}

/// How an HTTP request fails.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RestFault {
    /// It is answered with a status, from 400 to 599, and an error of Discord's shape.
    Status(u16),
    /// It is answered with 429.
    Limited(Scope),
    /// It is answered with a page of HTML and the status 502.
    Html,
    /// It is carried out, and half of the answer comes.
    Truncated,
    /// It is carried out, and the answer trickles.
    Slow {
        /// Bytes a second.
        bytes_per_second: u32,
    },
    /// It is answered with 307, and this place.
    Redirect(String),
    /// The connection is reset, and the request is not carried out.
    Reset,
    /// The request is carried out, and the connection is reset.
    ResetAfter,
    /// It is never answered.
    Hang,
}

/// Whose requests a limit counts.
///
/// Source: [Discord, Rate limits](https://docs.discord.com/developers/topics/rate-limits).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Scope {
    /// This bot's, on one route.
    User,
    /// This bot's, on all routes.
    Global,
    /// Those of all bots, on one resource. They do not count as invalid requests.
    Shared,
}

/// The `resume_gateway_url` of the next session.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ResumeUrl {
    /// At a port of the gateway's host where nothing listens.
    Dead,
    /// At a host that is not Discord's.
    Foreign,
    /// Here.
    Url(String),
}

/// Whom a [`Fault`] strikes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Target {
    /// The connections of a shard; for faults that wait, its next handshake, where its shard is
    /// known by then (IDENTIFY, RESUME, and what follows them) and else the next of anybody.
    Shard(ShardId),
    /// Every connection, those too that have not said which shard they are.
    All,
    /// One connection, by chance.
    Any,
}

impl From<ShardId> for Target {
    fn from(shard: ShardId) -> Self {
        Self::Shard(shard)
    }
}

/// A word that names no fault.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown fault {given:?}; expected one of {allowed}")]
pub struct FaultError {
    given: String,
    allowed: String,
}
