//! The errors of this crate, and whose fault each one is.

mod status;

use std::fmt;
use std::io;
use std::time::Duration;

pub use self::status::{FieldError, StatusError};
pub use crate::dial::{ProxyError, ProxyFailure};
pub use crate::intents::UnknownIntents;
pub use crate::protocol::{MalformedPayload, MembersFailure, UnknownEventName};
pub use crate::shard_id::InvalidShardId;
pub use crate::token::InvalidToken;

use crate::protocol::{Command, Disconnect, InvalidCommand, ShardState, StopReason, visible};
use crate::shard_id::ShardId;

/// Why a session store failed.
pub type StoreError = Box<dyn std::error::Error + Send + Sync>;

/// An error of this crate. The source chain carries the details.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A setting has a value that is not allowed.
    #[error("`{setting}` is {given}; allowed: {allowed}")]
    Setting {
        /// The setting's name.
        setting: &'static str,
        /// What was given.
        given: String,
        /// What is allowed, and what to do.
        allowed: String,
    },
    /// A string that is not a bot token.
    #[error(transparent)]
    Token(#[from] InvalidToken),
    /// Bits that are not those of an intent.
    #[error(transparent)]
    Intents(#[from] UnknownIntents),
    /// A shard number that is not below its total.
    #[error(transparent)]
    ShardId(#[from] InvalidShardId),
    /// A command that is invalid and cannot be sent.
    #[error(transparent)]
    Command(#[from] InvalidCommand),
    /// A name that is not the name of a Discord event.
    #[error(transparent)]
    EventName(#[from] UnknownEventName),
    /// An identify limiter grants no permit: a [`LimitError`](crate::limit::LimitError).
    #[error(transparent)]
    Limit(Box<dyn std::error::Error + Send + Sync>),
    /// A command that was not queued.
    #[error(transparent)]
    Unsent(#[from] SendError),
    /// Not all requested members have arrived.
    #[error("members of guild {guild_id}: {failure}, after {received} chunks")]
    Members {
        /// The guild.
        guild_id: u64,
        /// How many chunks (of up to 1,000 members each) arrived.
        received: u32,
        /// What went wrong.
        failure: MembersFailure,
    },
    /// Another call of `run` is delivering the events to its handler.
    #[error("a handler is running already: `Handle::stop` ends it")]
    HandlerRunning,
    /// Discord does not accept the token (HTTP 401). A retry gives the same answer.
    #[error(
        "Discord refused the token: copy the current one from the Bot page of the developer portal"
    )]
    Unauthorized,
    /// Discord answered a REST request with a status other than success.
    #[error(transparent)]
    Status(Box<StatusError>),
    /// A rate limit would delay a REST request beyond its timeout. The request was not sent, or
    /// Discord answered it with a 429. Retry after `retry_after`.
    #[error("{request} is rate limited{}{}", shown_wait(*retry_after), text.as_deref().map_or(String::new(), |text| format!(": {text}")))]
    RateLimited {
        /// Method and path, without secrets.
        request: String,
        /// The minimum time to wait; zero if it is unknown until earlier requests are answered.
        retry_after: Duration,
        /// Details, if any: Discord's answer if it blocks this machine's IP address, or how many
        /// times in a row the request was rate limited.
        text: Option<String>,
    },
    /// There were too many invalid REST requests (answered with 401, 403 or 429) within 10 minutes,
    /// and Discord is about to block this IP address. No request is sent until there are fewer.
    /// Find out why they are refused.
    #[error(
        "{request} was not sent: {count} requests in the last 10 minutes got a 401, 403 or 429; \
         Discord blocks this IP address at 10,000; find out why they fail, and retry in {} s",
        retry_after.as_secs()
    )]
    TooManyInvalidRequests {
        /// Method and path, without secrets.
        request: String,
        /// How many requests Discord refused.
        count: u32,
        /// How long until requests are sent again.
        retry_after: Duration,
    },
    /// An interaction was answered too late, or was answered already.
    #[error(
        "the interaction (read {} s ago) could not be answered: send one initial response (`reply` or \
         `defer`) within 3 s after Discord sent it, and edits or follow-ups within 15 minutes",
        age.as_secs_f32()
    )]
    Interaction {
        /// How long ago [`Interaction::from`](crate::Interaction::from) read it. Before that, it
        /// may have waited behind other events.
        age: Duration,
        /// What Discord answered.
        source: Box<StatusError>,
    },
    /// An answer that is not what Discord documents, for example HTML in place of JSON.
    #[error("{request} was answered with something unexpected: {body}")]
    UnexpectedAnswer {
        /// Method and path.
        request: String,
        /// The beginning of the body.
        body: String,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// A REST request failed, for example because Discord could not be reached or did not answer in
    /// time.
    #[error("{request} failed")]
    Http {
        /// Method and path.
        request: String,
        /// Why.
        source: Box<ureq::Error>,
    },
    /// The proxy did not open a connection.
    #[error(transparent)]
    Proxy(#[from] ProxyError),
    /// TLS cannot be set up.
    #[error("TLS cannot be set up")]
    Tls(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The operating system could not provide something, for example a thread.
    #[error("the operating system could not provide {what}")]
    Io {
        /// What it could not provide.
        what: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// A shard stopped permanently.
    #[error("shard {shard} stopped: {reason}")]
    Stopped {
        /// The shard.
        shard: ShardId,
        /// Why it stopped.
        reason: StopReason,
    },
    /// Not every shard was ready in time.
    #[error(
        "{ready} of {total} shards were ready in time; shard {shard} is {}{}",
        state.map_or("not open yet".into(), |stage| stage.to_string()),
        last_disconnect.map_or(String::new(), |reason| format!(", last disconnect: {reason}"))
    )]
    NotReady {
        /// How many shards were ready.
        ready: usize,
        /// How many shards there are.
        total: usize,
        /// The first shard that was not ready.
        shard: ShardId,
        /// Its state; `None` if it has not been opened.
        state: Option<ShardState>,
        /// Why it last lost a connection.
        last_disconnect: Option<Disconnect>,
    },
    /// The shard to open is already running.
    #[error("shard {shard} is open already: close it first, or restart it")]
    AlreadyOpen {
        /// The shard.
        shard: ShardId,
    },
    /// The shard to close, suspend or restart is not running.
    #[error("shard {shard} is not open here")]
    NotOpen {
        /// The shard.
        shard: ShardId,
    },
    /// The shard to open has a different total than a running shard, and shares guilds with it.
    #[error("shard {shard} overlaps running shard {with}: use the same total, or reshard")]
    Overlaps {
        /// The shard.
        shard: ShardId,
        /// The running shard.
        with: ShardId,
    },
    /// The call conflicts with something that is in progress, for example a reshard.
    #[error("busy: {running} is in progress; wait for it, then try again")]
    Busy {
        /// What is in progress.
        running: &'static str,
    },
    /// An operation takes longer than the caller waits. It continues.
    #[error("not finished in {}", .waiting_for.first().map_or("time".into(), |shard| format!("time, waiting for shard {shard}")))]
    TimedOut {
        /// The shards that the operation waits for.
        waiting_for: Vec<ShardId>,
    },
    /// A session that belongs to another bot.
    #[error("the session of shard {shard} belongs to another bot, with the user id {bot_user_id}")]
    ForeignSession {
        /// The session's shard.
        shard: ShardId,
        /// The user id of that bot.
        bot_user_id: u64,
    },
    /// Fewer IDENTIFYs are left than are needed.
    #[error(
        "{needed} shards must identify, but only {remaining} of {total} IDENTIFYs are left; the \
         limit resets in {} s",
        reset_after.as_secs()
    )]
    SessionStartLimit {
        /// How many are needed.
        needed: usize,
        /// How many are left.
        remaining: u32,
        /// How many there are per day.
        total: u32,
        /// How long until the limit resets.
        reset_after: Duration,
    },
    /// A session store failed.
    #[error("the session store cannot be {what}")]
    Store {
        /// What could not be done: `read` or `written`.
        what: &'static str,
        /// Why it failed.
        source: StoreError,
    },
    /// The session store reports that another process has taken over the sessions. The shards have
    /// stopped, and their sessions continue in that process.
    #[error("another process has taken over the sessions")]
    OwnershipLost,
    /// Redis cannot be used: it does not answer, refuses the login, denies a permission, or holds
    /// data that another version has written.
    #[error("Redis cannot be used")]
    Redis(#[source] StoreError),
    /// A part of the shards is not free: another process owns it, or may own it. See
    /// [`redis::Part::acquire`](crate::redis::Part::acquire).
    #[error("part {part} of {of} is not free: {why}")]
    PartNotFree {
        /// The part.
        part: u32,
        /// The number of parts.
        of: u32,
        /// Which process owns it, or may own it, and when the part may become free.
        why: String,
    },
    /// A reshard was cancelled because it took longer than
    /// [`Timing::reshard_timeout`](crate::Timing::reshard_timeout) allows. The old shards keep
    /// running.
    #[error("the reshard took too long")]
    ReshardTimeout,
    /// A reshard was cancelled at the caller's request. The old shards keep running.
    #[error("the reshard was cancelled")]
    Cancelled,
    /// The manager is closed or dropped. Its pending operations end with this error, and so do REST
    /// calls that would have to wait.
    #[error("the manager is closed")]
    Closed,
}

/// Returned if a command was not queued; contains the command.
#[derive(Debug, thiserror::Error)]
#[error("{failure}")]
#[non_exhaustive]
pub struct SendError {
    /// The command, so that it can be sent later.
    pub command: Command,
    /// Why it was not queued.
    pub failure: SendFailure,
}

impl SendError {
    pub(crate) fn new(command: Command, failure: SendFailure) -> Self {
        Self { command, failure }
    }

    /// Returns the command, so that it can be sent later.
    pub fn into_command(self) -> Command {
        self.command
    }
}

/// Why a command was not queued.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SendFailure {
    /// The shard's queue is full
    /// ([`ShardConfig::max_waiting_commands`](crate::ShardConfig::max_waiting_commands)).
    #[error(
        "{waiting} commands of shard {shard} are queued already: retry later, or use `send_timeout`"
    )]
    Full {
        /// The shard.
        shard: ShardId,
        /// How many commands are queued.
        waiting: usize,
    },
    /// The shard's queue stayed full for as long as the caller waited.
    #[error("{waiting} commands of shard {shard} are still queued: Discord accepts 120 a minute")]
    TimedOut {
        /// The shard.
        shard: ShardId,
        /// How many commands are queued.
        waiting: usize,
    },
    /// The shard has stopped.
    #[error("shard {shard} stopped: {reason}")]
    Stopped {
        /// The shard.
        shard: ShardId,
        /// Why.
        reason: StopReason,
    },
    /// No shard that is open here has the guild.
    #[error("no shard that is open here has guild {guild_id}")]
    NoShard {
        /// The guild.
        guild_id: u64,
    },
}

/// Whose fault an error is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// The caller's: fix the program or its configuration.
    Caller,
    /// Discord's: it answered with a server error or with invalid data.
    Discord,
    /// A passing condition of the network, the machine or the manager, such as a lost connection or a
    /// reshard in progress: a retry may help.
    Transient,
}

impl From<native_tls::Error> for Error {
    fn from(error: native_tls::Error) -> Self {
        Self::Tls(Box::new(error))
    }
}

impl Error {
    /// Returns whose fault the error is.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Status(error) if error.status >= 500 => ErrorKind::Discord,
            Self::UnexpectedAnswer { .. } => ErrorKind::Discord,
            Self::Proxy(error) => match error.failure {
                ProxyFailure::Credentials(_) => ErrorKind::Caller,
                _ => ErrorKind::Transient,
            },
            Self::RateLimited { .. }
            | Self::TooManyInvalidRequests { .. }
            | Self::Limit(_)
            | Self::Http { .. }
            | Self::Io { .. }
            | Self::Redis(_)
            | Self::PartNotFree { .. }
            | Self::Store { .. }
            | Self::NotReady { .. }
            | Self::Busy { .. }
            | Self::TimedOut { .. }
            | Self::ReshardTimeout
            | Self::Members { .. }
            | Self::SessionStartLimit { .. }
            | Self::Unsent(SendError {
                failure: SendFailure::Full { .. } | SendFailure::TimedOut { .. },
                ..
            }) => ErrorKind::Transient,
            _ => ErrorKind::Caller,
        }
    }

    /// Whether a retry would fail again: the error is the [caller's](ErrorKind::Caller) fault.
    pub fn is_fatal(&self) -> bool {
        self.kind() == ErrorKind::Caller
    }

    /// Returns Discord's answer, if it refused a REST request.
    pub fn status(&self) -> Option<&StatusError> {
        match self {
            Self::Status(error) | Self::Interaction { source: error, .. } => Some(error),
            _ => None,
        }
    }

    /// Returns Discord's code for why it refused a REST request, for example 50007 for a user who
    /// accepts no direct messages.
    ///
    /// Source: [Discord, JSON error
    /// codes](https://docs.discord.com/developers/topics/opcodes-and-status-codes#json-json-error-codes).
    pub fn code(&self) -> Option<u64> {
        self.status()?.code
    }

    /// Whether the message does not exist, for example because it was deleted (10008).
    pub fn is_unknown_message(&self) -> bool {
        self.code() == Some(10008)
    }

    /// Whether the channel does not exist (10003).
    pub fn is_unknown_channel(&self) -> bool {
        self.code() == Some(10003)
    }

    /// Whether the user is not a member of the guild (10007).
    pub fn is_unknown_member(&self) -> bool {
        self.code() == Some(10007)
    }

    /// Whether the interaction has expired, or its first answer came later than 3 s (10062).
    pub fn is_unknown_interaction(&self) -> bool {
        self.code() == Some(10062)
    }

    /// Whether the interaction has been answered already (40060).
    pub fn is_already_answered(&self) -> bool {
        self.code() == Some(40060)
    }

    /// Whether the bot lacks a permission (50013) or access to the resource (50001).
    pub fn is_missing_permissions(&self) -> bool {
        matches!(self.code(), Some(50001 | 50013))
    }

    /// Whether the user accepts no direct messages from the bot (50007).
    pub fn is_closed_to_messages(&self) -> bool {
        self.code() == Some(50007)
    }

    /// Returns the error and its causes in one line. A cause that only repeats the text before it
    /// is omitted.
    pub fn report(&self) -> String {
        let causes = std::iter::successors(std::error::Error::source(self), |cause| cause.source());
        causes.fold(self.to_string(), |report, cause| {
            let cause = cause.to_string();
            if report.ends_with(&cause) {
                report
            } else {
                format!("{report}: {cause}")
            }
        })
    }

    pub(crate) fn setting(
        setting: &'static str,
        given: impl fmt::Display,
        allowed: impl Into<String>,
    ) -> Self {
        Self::Setting {
            setting,
            given: visible(given),
            allowed: allowed.into(),
        }
    }
}

/// How long a rate limit lasts, for the error text; zero means that this is unknown.
fn shown_wait(wait: Duration) -> String {
    if wait.is_zero() {
        " and its permit did not arrive in time".into()
    } else {
        format!(" for {:.3} s", wait.as_secs_f64())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_name_the_value_and_whose_fault_it_is() {
        let error = Error::setting("rest_url", "", "a url");
        assert_eq!(error.to_string(), "`rest_url` is \"\"; allowed: a url");
        let error = Error::setting("large_threshold", 20, "50 to 250");
        assert_eq!(
            error.to_string(),
            "`large_threshold` is 20; allowed: 50 to 250"
        );
        assert!(error.is_fatal());
        let (stage, last_disconnect) =
            (Some(ShardState::Waiting), Some(Disconnect::ConnectionLost));
        let error = Error::NotReady {
            ready: 1,
            total: 4,
            shard: ShardId::ONE,
            state: stage,
            last_disconnect,
        };

        let text = "1 of 4 shards were ready in time; shard 0/1 is waiting, last disconnect: the connection was cut";
        assert_eq!(
            (error.kind(), error.to_string().as_str()),
            (ErrorKind::Transient, text)
        );
        let error = Error::Io {
            what: "a thread",
            source: io::Error::other("no memory"),
        };
        assert_eq!(
            error.report(),
            "the operating system could not provide a thread: no memory"
        );
    }
}
