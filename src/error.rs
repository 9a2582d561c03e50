//! What can go wrong, graded by whose fault it is.

use std::fmt;
use std::io;
use std::time::Duration;

use crate::intents::UnknownIntents;
use crate::protocol::{
    Command, Disconnect, InvalidCommand, MembersFailure, Stage, StopReason, UnknownEventName,
    visible,
};
use crate::shard_id::{InvalidShardId, ShardId};
use crate::token::InvalidToken;

/// Why a session store does not work.
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
    /// A text that is no bot token.
    #[error(transparent)]
    Token(#[from] InvalidToken),
    /// Bits that stand for no intent.
    #[error(transparent)]
    Intents(#[from] UnknownIntents),
    /// A shard number that is not below its total.
    #[error(transparent)]
    ShardId(#[from] InvalidShardId),
    /// Something that cannot be sent.
    #[error(transparent)]
    Command(#[from] InvalidCommand),
    /// A name that no event of Discord has.
    #[error(transparent)]
    EventName(#[from] UnknownEventName),
    /// An identify limit grants no turn: a [`LimitError`](crate::limit::LimitError).
    #[error(transparent)]
    Limit(Box<dyn std::error::Error + Send + Sync>),
    /// A command that was not taken.
    #[error(transparent)]
    Unsent(#[from] SendError),
    /// Members that were asked for have not all arrived.
    #[error("members of guild {guild_id}: {failure}, after {received} chunks")]
    Members {
        /// The guild.
        guild_id: u64,
        /// How many parts (of up to 1,000 members) arrived.
        received: u32,
        /// What went wrong.
        failure: MembersFailure,
    },
    /// Another call of `run` hands the events to its handler.
    #[error("a handler is running already: `Handle::stop` ends it")]
    HandlerRunning,
    /// Discord does not accept the token (HTTP 401). Trying again gives the same answer.
    #[error(
        "Discord refused the token: copy the current one from the Bot page of the developer portal"
    )]
    Unauthorized,
    /// Discord answered a request with another status than success.
    #[error("{request} was answered with HTTP {status}: {body}")]
    Status {
        /// Method and path.
        request: String,
        /// The HTTP status.
        status: u16,
        /// The beginning of the body.
        body: String,
    },
    /// Discord asks to wait longer than a call may take.
    #[error("{request} is rate limited for {} s", retry_after.as_secs_f64())]
    RateLimited {
        /// Method and path.
        request: String,
        /// How long Discord asks to wait.
        retry_after: Duration,
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
    /// A request did not get through.
    #[error("{request} failed")]
    Http {
        /// Method and path.
        request: String,
        /// Why.
        source: Box<ureq::Error>,
    },
    /// TLS cannot be set up.
    #[error("TLS cannot be set up")]
    Tls(#[from] native_tls::Error),
    /// The operating system refused something.
    #[error("the operating system refused: {what}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// A shard stopped for good.
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
        stage.map_or("not open yet".into(), |stage| stage.to_string()),
        last_disconnect.map_or(String::new(), |reason| format!(", last disconnected because {reason}"))
    )]
    NotReady {
        /// How many were.
        ready: usize,
        /// Of how many.
        total: usize,
        /// The first that was not.
        shard: ShardId,
        /// Where it stands; `None` if it has not been opened.
        stage: Option<Stage>,
        /// Why it last lost a connection.
        last_disconnect: Option<Disconnect>,
    },
    /// A shard is to be opened that runs already.
    #[error("shard {shard} is open already: close it first, or restart it")]
    AlreadyOpen {
        /// The shard.
        shard: ShardId,
    },
    /// A shard that does not run was to be closed or restarted.
    #[error("shard {shard} is not open here")]
    NotOpen {
        /// The shard.
        shard: ShardId,
    },
    /// A shard is to be opened whose guilds another one has, since their totals differ.
    #[error(
        "shard {shard} would hear the guilds of shard {with}, which runs: use its total, or reshard"
    )]
    Overlaps {
        /// The shard.
        shard: ShardId,
        /// The one that runs.
        with: ShardId,
    },
    /// Shards are on their way; this cannot be done meanwhile.
    #[error("{running} is not done yet: wait for it, then try again")]
    Busy {
        /// What runs.
        running: &'static str,
    },
    /// Something takes longer than the caller waits; it goes on.
    #[error("not done in {}", .waiting_for.first().map_or("time".into(), |shard| format!("time, waiting for shard {shard}")))]
    TimedOut {
        /// The shards that it waits for.
        waiting_for: Vec<ShardId>,
    },
    /// A session that another bot has left.
    #[error("the session of shard {shard} belongs to another bot, with the user id {bot_user_id}")]
    ForeignSession {
        /// The session's shard.
        shard: ShardId,
        /// Its bot.
        bot_user_id: u64,
    },
    /// Fewer IDENTIFYs are left than are needed.
    #[error("{needed} shards are to identify, and {remaining} of {total} IDENTIFYs are left; there are more in {} s", reset_after.as_secs())]
    TooFewIdentifies {
        /// How many are needed.
        needed: usize,
        /// How many are left.
        remaining: u32,
        /// How many there are a day.
        total: u32,
        /// When there are more.
        reset_after: Duration,
    },
    /// A session store does not work.
    #[error("the session store cannot be {what}")]
    Store {
        /// What was tried.
        what: &'static str,
        /// Why it failed.
        source: StoreError,
    },
    /// A reshard was given up because it took longer than
    /// [`Timing::reshard_timeout`](crate::Timing::reshard_timeout) allows; the old shards go on.
    #[error("the reshard took too long")]
    ReshardTimeout,
    /// A reshard was given up because that was asked for; the old shards go on.
    #[error("the reshard was cancelled")]
    Cancelled,
    /// The manager is closed or gone.
    #[error("the shards are closed")]
    Closed,
}

/// A command that was not taken, with the command.
#[derive(Debug, thiserror::Error)]
#[error("{failure}")]
#[non_exhaustive]
pub struct SendError {
    /// The command, to be sent another time.
    pub command: Command,
    /// Why it was not taken.
    pub failure: SendFailure,
}

impl SendError {
    pub(crate) fn new(command: Command, failure: SendFailure) -> Self {
        Self { command, failure }
    }

    /// The command, to be sent another time.
    pub fn into_command(self) -> Command {
        self.command
    }
}

/// Why a command was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SendFailure {
    /// So many commands wait already
    /// ([`ShardConfig::max_waiting_commands`](crate::ShardConfig::max_waiting_commands)).
    #[error(
        "{waiting} commands of shard {shard} wait already: try later, or wait with `send_timeout`"
    )]
    Full {
        /// The shard.
        shard: ShardId,
        /// How many.
        waiting: usize,
    },
    /// As many waited for as long as the caller did.
    #[error("{waiting} commands of shard {shard} still wait: Discord takes 120 a minute")]
    TimedOut {
        /// The shard.
        shard: ShardId,
        /// How many.
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
    /// No shard that has been opened here has the guild.
    #[error("no shard that runs here has guild {guild_id}")]
    NoShard {
        /// The guild.
        guild_id: u64,
    },
}

/// Whose fault an error is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The caller's: mend the program or its configuration.
    Caller,
    /// Discord's: it sent what it should not.
    Discord,
    /// The network's or the machine's: trying again may help.
    Network,
}

impl Error {
    /// Whose fault it is.
    pub fn fault(&self) -> Fault {
        match self {
            Self::Status { status: 500.., .. } | Self::UnexpectedAnswer { .. } => Fault::Discord,
            Self::RateLimited { .. }
            | Self::Limit(_)
            | Self::Http { .. }
            | Self::Io { .. }
            | Self::NotReady { .. }
            | Self::Busy { .. }
            | Self::TimedOut { .. }
            | Self::ReshardTimeout
            | Self::Members { .. }
            | Self::TooFewIdentifies { .. }
            | Self::Unsent(SendError {
                failure: SendFailure::Full { .. } | SendFailure::TimedOut { .. },
                ..
            }) => Fault::Network,
            _ => Fault::Caller,
        }
    }

    /// Whether trying again gives the same answer.
    pub fn is_fatal(&self) -> bool {
        self.fault() == Fault::Caller
    }

    /// The error and its causes, in one line.
    pub fn report(&self) -> String {
        let causes = std::iter::successors(std::error::Error::source(self), |cause| cause.source());
        causes.fold(self.to_string(), |report, cause| {
            format!("{report}: {cause}")
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
        let (stage, last_disconnect) = (Some(Stage::Waiting), Some(Disconnect::Cut));
        let error = Error::NotReady {
            ready: 1,
            total: 4,
            shard: ShardId::ONE,
            stage,
            last_disconnect,
        };
        let text = "1 of 4 shards were ready in time; shard 0/1 is waiting, last disconnected because the connection was cut";
        assert_eq!(
            (error.fault(), error.to_string().as_str()),
            (Fault::Network, text)
        );
        let error = Error::Io {
            what: "a thread",
            source: io::Error::other("no memory"),
        };
        assert_eq!(
            error.report(),
            "the operating system refused: a thread: no memory"
        );
    }
}
