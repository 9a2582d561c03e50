//! What the gateway says and wants to hear, without socket, thread, lock, clock or ambient random
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
//!             └───────────────────────────────  Ready  ◀────────────────────┘ ◀───┘ (or an unasked READY)
//!
//!          every state ──Stop, or a fatal close code──▶ Stopped
//! ```
//!
//! - **Waiting**: no connection; the pause before the next one runs.
//! - **Connecting**: TCP, TLS and the websocket upgrade, under one deadline.
//! - **`AwaitingHello`**: connected; Discord has not given a heartbeat interval.
//! - **Queued**: heartbeating, waiting for a turn to identify.
//! - **Identifying**: IDENTIFY is sent; READY or op 9 will follow.
//! - **Confirming**: heartbeating before RESUME, if a session store is to say first whether the session
//!   is still this process's own; not drawn above.
//! - **Resuming**: RESUME is sent; events are replayed until RESUMED, or op 9 follows.
//! - **Ready**: a live session.
//! - **Stopped**: for good, with a reason; it stays so and repeats it.
//!
//! A loss is anything that ends a connection: a close frame, a cut, op 7, op 9, a time-out, a
//! missing ACK, a payload that cannot be read. The session stays with the shard unless Discord's
//! rules end it (op 9 `false`, close codes 4003, 4007, 4009), or until it brings nothing but
//! payloads that cannot be read; its end is reported.
//!
//! # The contract
//!
//! 1. Whatever happens goes in through [`Machine::handle`].
//! 2. Then [`Machine::poll`] is asked, and what it says is done, until it says [`Output::Wait`] or
//!    [`Output::Stop`]. Whoever has several payloads at hand may ask [`Machine::poll_at_once`]
//!    between them.
//! 3. On `Wait`, the socket is read, also if the instant given is over. A payload is the next
//!    input. If there is none, that is an input too ([`Input::Drained`]): only then is it judged
//!    whether HELLO, READY, RESUMED or an ACK is missing, so that a process that was frozen finds
//!    what came meanwhile. Only then may the caller block, until the instant given. A caller that
//!    does not read, because it has no room, says so before and after it blocks
//!    ([`Input::Stalled`]).
//! 4. After [`Output::Disconnect`], nothing of that connection may be handed in any more.
//!
//! Instants only ever move forward. No input makes the machine panic or spin.
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

/// What Discord wants every client to call itself.
///
/// Source: [Discord, User Agent](https://docs.discord.com/developers/reference#user-agent).
pub(crate) const USER_AGENT: &str = concat!(
    "DiscordBot (",
    env!("CARGO_PKG_REPOSITORY"),
    ", ",
    env!("CARGO_PKG_VERSION"),
    ")"
);
