//! The gateway protocol as a state machine, without a socket, thread, lock, clock or global random
//! source.
//!
//! # The states
//!
//! ```text
//!             ┌──────────────────── any loss: Disconnect ───────────────────┐
//!             ▼                                                             │
//!          Waiting ──pause over──▶ Connecting ──Connected──▶ AwaitingHello ─┤
//!             ▲                                                 │     │     │
//!             │                            HELLO, no session ───┘     └─── HELLO, a session
//!             │                                   ▼                         ▼
//!             ├────────────────────────────── Queued                    Resuming ─┐
//!             │                                   │ Permit                  │     │
//!             │                                   ▼                         │     │
//!             ├───────────────────────────── Identifying                    │     │
//!             │                                   │ READY                   │ RESUMED
//!             │                                   ▼                         │     │
//!             └───────────────────────────────  Ready  ◀────────────────────┘ ◀───┘ (or an unexpected READY)
//!
//!          every state ──Stop, or a fatal close code──▶ Stopped
//! ```
//!
//! - **Waiting**: no connection; the shard pauses before it opens the next one.
//! - **Connecting**: TCP, TLS and the websocket upgrade, under one deadline.
//! - **`AwaitingHello`**: connected; HELLO, with the heartbeat interval, has not arrived.
//! - **Queued**: heartbeating, waiting for a permit to identify.
//! - **Identifying**: IDENTIFY is sent; READY or op 9 will follow.
//! - **Confirming**: heartbeating before RESUME, while a session store is asked whether this
//!   process still owns the session. Only with [`Machine::with_confirmation`]; not drawn above.
//! - **Resuming**: RESUME is sent; Discord replays events until it sends RESUMED, or refuses with
//!   op 9.
//! - **Ready**: a live session.
//! - **Stopped**: the final state, with a reason. Every further poll returns that reason.
//!
//! A loss is anything that ends a connection: a close frame, a cut, op 7, op 9, a timeout, a
//! missing ACK, or a payload that cannot be read. The shard keeps its session after a loss, except
//! in two cases: Discord ended the session (op 9 `false`, close codes 4003, 4007, 4009), or five
//! connections in a row ended at the same payload, which cannot be read. The end of a session is
//! reported as [`Notice::SessionLost`].
//!
//! # The contract
//!
//! The caller drives the machine like this:
//!
//! 1. It passes everything that happens to [`Machine::handle`].
//! 2. It then calls [`Machine::poll`] and carries out each output, until the output is
//!    [`Output::Wait`] or [`Output::Stop`]. A caller that has several payloads to pass in may call
//!    [`Machine::poll_at_once`] between them.
//! 3. On `Wait`, it reads the socket, even if the instant in `Wait` has passed. A payload is the
//!    next input. If there is none, the next input is [`Input::Drained`]. Only that input makes the
//!    machine check whether HELLO, READY, RESUMED or an ACK is missing, so a process that was
//!    frozen first reads what arrived meanwhile. After `Drained`, the caller may block until the
//!    instant in `Wait`. A caller that does not read, because it has no room for events, passes in
//!    [`Input::Stalled`] before and after it blocks.
//! 4. After [`Output::Disconnect`], it passes in nothing more from that connection.
//!
//! Instants must never go backwards. No input makes the machine panic or spin.
#![deny(clippy::disallowed_methods)]

mod allowance;
mod backoff;
mod close;
mod command;
mod event_name;
mod heartbeat;
mod incoming;
mod io;
mod machine;
mod member_requests;
mod member_windows;
mod outgoing;
mod payload;
mod retry;
mod send_budget;
mod session;
mod state;

pub use close::{CloseCode, Disconnect, Recovery, StopReason};
pub(crate) use command::visible;
pub use command::{
    Activity, ActivityKind, ChannelField, Command, Identity, InvalidCommand, MAX_PAYLOAD,
    MAX_PRESENCE, MemberQuery, OnlineStatus, Presence, Secret, VoiceState,
};
pub use event_name::{EventName, UnknownEventName};
pub use heartbeat::Beats;
pub use io::{Endpoint, Input, Notice, Output, Timer};
pub use machine::Machine;
pub use member_requests::{ChunkOf, MemberRequest, MembersFailure};
pub use payload::{MalformedPayload, Payload};
pub use send_budget::{PRESENCES_PER_WINDOW, SENDS_PER_WINDOW};
pub use session::Session;
pub use state::ShardState;

/// The user agent that this library sends, in the format that Discord requires.
///
/// Source: [Discord, User Agent](https://docs.discord.com/developers/reference#user-agent).
pub(crate) const USER_AGENT: &str = concat!(
    "DiscordBot (",
    env!("CARGO_PKG_REPOSITORY"),
    ", ",
    env!("CARGO_PKG_VERSION"),
    ")"
);
