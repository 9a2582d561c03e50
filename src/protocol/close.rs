//! Why connections end, and what happens next.

use std::borrow::Cow;
use std::fmt;

use serde::{Serialize, Serializer};

/// What a shard may do after a close code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recovery {
    /// Reconnect and resume the session.
    Resume,
    /// Reconnect and start a new session.
    Identify,
    /// Do not reconnect: Discord would close the next connection with the same code.
    Stop,
}

/// The code of a close frame from Discord.
///
/// Source: [Discord, Gateway close event
/// codes](https://docs.discord.com/developers/topics/opcodes-and-status-codes#gateway-gateway-close-event-codes).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CloseCode(pub u16);

impl CloseCode {
    /// What a shard may do after this code. After a code that Discord does not document, it may
    /// resume.
    pub fn recovery(self) -> Recovery {
        match self.0 {
            4004 | 4010..=4014 => Recovery::Stop,
            4003 | 4007 | 4009 => Recovery::Identify,
            _ => Recovery::Resume,
        }
    }

    /// Whether the code says that the client made a mistake: a bug in this library, or a raw
    /// command that Discord does not accept.
    pub fn is_our_fault(self) -> bool {
        matches!(self.0, 4001..=4003 | 4005 | 4007 | 4008)
    }

    /// What the code means and, for a fatal code, how to fix the cause.
    pub fn explanation(self) -> &'static str {
        match self.0 {
            1000 => "closed normally",
            1001 => "the server is going away",
            4000 => "unknown error at Discord",
            4001 => "an unknown opcode or an invalid payload was sent",
            4002 => "a payload that Discord cannot read was sent",
            4003 => "a payload was sent before identifying",
            4004 => {
                "the token is not valid: copy the current one from the Bot page of the developer portal"
            }
            4005 => "identified twice on one connection",
            4007 => "the sequence to resume from is not valid",
            4008 => "too many payloads were sent",
            4009 => "the session timed out",
            4010 => {
                "the shard id is not valid: a large bot needs a multiple of the shard count that /gateway/bot recommends"
            }
            4011 => "the shard would hold too many guilds: use more shards",
            4012 => "the API version is not valid",
            4013 => "the intents are not valid",
            4014 => {
                "an intent is not allowed: switch on the privileged intents (GUILD_MEMBERS, GUILD_PRESENCES, \
                 MESSAGE_CONTENT) in the developer portal, or do not request them"
            }
            _ => "a code that Discord does not document",
        }
    }
}

impl fmt::Display for CloseCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.0, self.explanation())
    }
}

/// Why a shard lost a connection. The shard reconnects by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Disconnect {
    /// A restart was requested.
    Restarted,
    /// Discord sent a close frame with this code.
    Discord(CloseCode),
    /// The connection was cut, or closed without a code.
    ConnectionLost,
    /// The connection could not be opened in time, or was refused.
    ConnectFailed,
    /// HELLO did not arrive in time.
    HelloTimeout,
    /// Neither READY nor RESUMED arrived in time.
    ReadyTimeout,
    /// A heartbeat was not acknowledged: a zombied connection.
    Zombied,
    /// Discord requested a reconnect (op 7).
    ReconnectRequested,
    /// Discord declared the session invalid (op 9).
    InvalidSession {
        /// Whether Discord says that the session may still be resumed.
        resumable: bool,
    },
    /// A payload could not be read.
    Malformed,
}

/// Why a shard stopped. The shard does not reconnect by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum StopReason {
    /// A close was requested: the session has ended.
    Closed,
    /// A suspend was requested: the session can be resumed.
    Suspended,
    /// Discord sent a close frame with this code. A new connection would be closed with the same
    /// code.
    Discord(CloseCode),
    /// Too many sessions in a row ended early. The shard sends no more IDENTIFYs until it is
    /// restarted.
    CircuitOpen,
    /// The identify limiter was closed.
    LimiterClosed,
    /// Another process owns the session now, according to the session store. The connection was
    /// dropped without a close code, so that the session continues in the other process.
    OwnershipLost,
    /// The shard's thread panicked: a bug.
    Panicked,
}

impl Disconnect {
    /// A short label, such as `zombied` or `close_4009`, for places where a sentence does not fit.
    pub(crate) fn word(self) -> Cow<'static, str> {
        Cow::Borrowed(match self {
            Self::Discord(code) => return Cow::Owned(format!("close_{}", code.0)),
            Self::Restarted => "restarted",
            Self::ConnectionLost => "connection_lost",
            Self::ConnectFailed => "connect_failed",
            Self::HelloTimeout => "hello_timeout",
            Self::ReadyTimeout => "ready_timeout",
            Self::Zombied => "zombied",
            Self::ReconnectRequested => "reconnect_requested",
            Self::InvalidSession { resumable: true } => "invalid_session_resumable",
            Self::InvalidSession { resumable: false } => "invalid_session",
            Self::Malformed => "malformed",
        })
    }
}

impl StopReason {
    /// Whether the shard stopped because of a problem that only its owner can fix. `false` if the
    /// stop was requested: [`Closed`](Self::Closed) or [`Suspended`](Self::Suspended).
    pub fn is_fatal(self) -> bool {
        !matches!(self, Self::Closed | Self::Suspended)
    }
}

/// Serializes the [`Display`](fmt::Display) text.
impl Serialize for Disconnect {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Serializes the [`Display`](fmt::Display) text.
impl Serialize for StopReason {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl fmt::Display for Disconnect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Discord(code) => return write!(f, "Discord closed with {code}"),
            Self::Restarted => "restarted on request",
            Self::ConnectionLost => "the connection was cut",
            Self::ConnectFailed => "could not connect",
            Self::HelloTimeout => "no HELLO in time",
            Self::ReadyTimeout => "neither READY nor RESUMED in time",
            Self::Zombied => "a heartbeat was not acknowledged",
            Self::ReconnectRequested => "Discord asked to reconnect",
            Self::InvalidSession { resumable: true } => "invalid session, resumable",
            Self::InvalidSession { resumable: false } => "invalid session",
            Self::Malformed => "a payload could not be read",
        })
    }
}

impl fmt::Display for StopReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Discord(code) => return write!(f, "Discord closed with {code}"),
            Self::Closed => "closed on request",
            Self::Suspended => "suspended on request",
            Self::CircuitOpen => {
                "too many sessions in a row ended early; restart the shard once the cause is fixed"
            }
            Self::LimiterClosed => "the identify limiter is closed",
            Self::OwnershipLost => "another process has taken over the session",
            Self::Panicked => "the shard's thread panicked",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_documented_code() {
        let recovery = |code| CloseCode(code).recovery();
        for code in [1000, 1001, 1006, 4000, 4001, 4002, 4005, 4008, 4999] {
            assert_eq!(recovery(code), Recovery::Resume, "{code}");
        }
        for code in [4003, 4007, 4009] {
            assert_eq!(recovery(code), Recovery::Identify, "{code}");
        }
        for code in [4004, 4010, 4011, 4012, 4013, 4014] {
            assert_eq!(recovery(code), Recovery::Stop, "{code}");
        }
    }

    #[test]
    fn a_stop_that_was_requested_is_not_fatal() {
        assert!(!StopReason::Closed.is_fatal() && !StopReason::Suspended.is_fatal());
        let fatal = [
            StopReason::Discord(CloseCode(4014)),
            StopReason::CircuitOpen,
            StopReason::LimiterClosed,
            StopReason::Panicked,
        ];
        assert!(fatal.into_iter().all(StopReason::is_fatal));
    }

    #[test]
    fn fatal_codes_say_what_to_do() {
        assert!(CloseCode(4004).to_string().contains("token"));
        assert!(CloseCode(4014).to_string().contains("GUILD_MEMBERS"));
    }
}
