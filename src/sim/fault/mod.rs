//! The faults that can be injected, and their text form.

mod words;

use std::time::Duration;

use crate::shard_id::ShardId;

/// A fault that can be injected.
///
/// The first group strikes connections that are open. A shard then means its connections at that
/// moment. The second group ([`Tls`](Self::Tls) and those after it) waits for the next handshake of
/// its kind and strikes once.
///
/// Each fault has a text form, shown in brackets. [`FromStr`](std::str::FromStr) parses it and
/// [`Display`](std::fmt::Display) writes it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fault {
    /// Every message is delayed in each direction by `latency` and a random part of `jitter`.
    /// (`delay=40ms+20ms`)
    Delay {
        /// The minimum delay.
        latency: Duration,
        /// The maximum random delay on top.
        jitter: Duration,
    },
    /// The gateway sends slowly. (`drip=20000`)
    Drip {
        /// Bytes a second.
        bytes_per_second: u32,
    },
    /// The connection ends without a close frame (FIN). (`cut`)
    Cut,
    /// The connection is reset (RST). (`reset`)
    Reset,
    /// The connection is half open: the gateway no longer sends or reads anything. (`silence`)
    Silence,
    /// The connection ends in the middle of a frame. (`cut-in-frame`)
    CutInFrame,
    /// A frame that is not valid in the websocket protocol. (`garbage`)
    Garbage,
    /// A message that cannot be decompressed and is not valid text. (`corrupt`)
    Corrupt,
    /// A payload that is large after decompression. (`bomb=67108865`)
    Bomb {
        /// The number of bytes after decompression.
        size: usize,
    },
    /// A frame whose header announces a terabyte. (`oversized`)
    Oversized,
    /// Heartbeats on the connection are no longer acknowledged. (`no-ack`)
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

    /// A TLS handshake that fails. No effect on a gateway without TLS. (`tls=expired`,
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
    /// A replay that begins before the requested sequence and has each event twice.
    /// (`replay-twice`)
    ReplayTwice,
    /// The `resume_gateway_url` of the next session. (`resume-url=dead`, `resume-url=foreign`,
    /// `resume-url=URL`)
    ResumeUrl(ResumeUrl),
    /// An HTTP request that is answered wrongly or not at all. (`rest=503`, `rest=429`,
    /// `rest=429:global`, `rest=429:shared`, `rest=html`, `rest=truncated`, `rest=slow:100`,
    /// `rest=redirect:URL`, `rest=reset`, `rest=reset-after`, `rest=hang`)
    Rest(RestFault),
}

/// What the gateway sends in place of its regular answer.
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
    /// The certificate is for another host.
    WrongName,
    /// The certificate is from an authority that clients do not trust.
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
    /// It is answered with a status, from 400 to 599, and an error in Discord's format.
    Status(u16),
    /// It is answered with 429.
    Limited(Scope),
    /// It is answered with a page of HTML and the status 502.
    Html,
    /// It is carried out, but only half of the answer is sent.
    Truncated,
    /// It is carried out, but the answer is sent slowly.
    Slow {
        /// Bytes a second.
        bytes_per_second: u32,
    },
    /// It is answered with 307 and this `Location`.
    Redirect(String),
    /// The request is not carried out, and the connection is reset.
    Reset,
    /// The request is carried out, and the connection is reset.
    ResetAfter,
    /// It is never answered.
    Hang,
}

/// Which requests a rate limit counts.
///
/// Source: [Discord, Rate limits](https://docs.discord.com/developers/topics/rate-limits).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Scope {
    /// Those of this bot on one route.
    User,
    /// Those of this bot on all routes.
    Global,
    /// Those of all bots, on one resource. They do not count as invalid requests.
    Shared,
}

/// The `resume_gateway_url` of the next session.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ResumeUrl {
    /// A URL with a port of the gateway's host on which nothing listens.
    Dead,
    /// A URL with a host that does not belong to Discord.
    Foreign,
    /// This URL.
    Url(String),
}

/// Which connections a [`Fault`] strikes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Target {
    /// The connections of a shard.
    ///
    /// A fault that waits for a handshake strikes the shard's next handshake if the shard is known
    /// at that point (from IDENTIFY or RESUME on), and otherwise the next handshake of any client.
    Shard(ShardId),
    /// Every connection, including those whose shard is not known yet.
    All,
    /// One connection at random.
    Any,
}

impl From<ShardId> for Target {
    fn from(shard: ShardId) -> Self {
        Self::Shard(shard)
    }
}

/// A text that is not a fault, or not an answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown fault {given:?}; expected one of {allowed}")]
pub struct FaultError {
    given: String,
    allowed: String,
}
