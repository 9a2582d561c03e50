//! Bytes to whole text payloads and back.
//!
//! [`Transport`] is the seam between a shard's thread and the network; [`WebSocketConnector`] is
//! what stands behind it.

mod inflate;
mod pages;
mod stream;
mod websocket;

use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

pub use bytes::Bytes;
pub use http::Uri;
pub use inflate::{Compression, InflateError, Inflater};
use parking_lot::Mutex;
pub use websocket::{WebSocketConnector, WebSocketTransport};

use crate::dial::{DialError, ProxyError};
use crate::shard_id::ShardId;

/// Makes transports, one for each shard; holds what they share. [`ShardManager::start_with`] takes
/// one of your own: for a proxy, for a record of what goes over the wire, for a network of a test.
///
/// [`ShardManager::start_with`]: crate::ShardManager::start_with
pub trait Connector: Send + Sync {
    /// What it makes.
    type Transport: Transport + 'static;

    /// A transport without a connection. An error is tried again later, with a pause.
    fn transport(&self, shard: ShardId, settings: Settings) -> io::Result<Self::Transport>;
}

/// What a shard wants of its transport.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Settings {
    /// How what comes in is compressed.
    pub compression: Compression,
    /// The largest payload in bytes, inflated.
    pub max_payload: usize,
}

impl Settings {
    /// All of them.
    pub fn new(compression: Compression, max_payload: usize) -> Self {
        Self {
            compression,
            max_payload,
        }
    }
}

/// The connection of one shard, or the lack of one. Everything happens on the shard's thread, and
/// only [`wait`](Self::wait) blocks (and the look-up of a host's name in
/// [`connect`](Self::connect)).
///
/// The order of calls:
/// 1. [`connect`](Self::connect) starts a connection and drops the one before.
/// 2. [`read`](Self::read) drives it: it says [`Received::Opened`] once, then gives payloads, until
///    it says [`Received::Nothing`]. After that the caller may wait.
/// 3. [`send`](Self::send) is legal from `Opened` on. What the network does not take at once is
///    sent while the caller reads or waits; [`written`](Self::written) tells how much. Where nothing
///    can be sent any more, that is no error: reading goes on until the peer has closed.
/// 4. After [`Received::Closed`] or an error, or whenever the caller wants,
///    [`disconnect`](Self::disconnect) ends it.
pub trait Transport: Send {
    /// Starts a connection that has until `deadline` to open; the caller keeps the deadline.
    fn connect(&mut self, url: &Uri, deadline: Instant) -> Result<(), TransportError>;

    /// What came next. Never blocks.
    fn read(&mut self) -> Result<Received, TransportError>;

    /// Sends a text message. Never blocks.
    fn send(&mut self, text: String) -> Result<(), TransportError>;

    /// Sends a text message that no layer below may log. Never blocks; it fails where it would.
    fn send_secret(&mut self, text: &str) -> Result<(), TransportError>;

    /// How many of the messages that were sent on this connection the operating system has taken as
    /// a whole, secret ones included. After [`disconnect`](Self::disconnect) it tells that of the
    /// connection which has ended, until the next one is started.
    fn written(&self) -> u64;

    /// Blocks until there may be something to read (if `reading`), until the waker is called, or
    /// until an instant.
    fn wait(&mut self, until: Option<Instant>, reading: bool) -> Result<(), TransportError>;

    /// Ends the connection: with a close frame, whose answer may take until `deadline`, or at once.
    fn disconnect(&mut self, code: Option<u16>, deadline: Instant);

    /// Called when the connection has been idle for a while; may release buffers. Does nothing by
    /// default.
    fn shrink(&mut self) {}

    /// Wakes this transport's [`wait`](Self::wait) from any thread.
    fn waker(&self) -> Waker;
}

/// What [`Transport::read`] gives.
#[derive(Debug, PartialEq, Eq)]
pub enum Received {
    /// The connection is open.
    Opened,
    /// A whole payload, uncompressed.
    Payload(Bytes),
    /// Something that is no payload, or only a part of one: read again.
    Partial,
    /// The peer closed, with or without a code and a reason.
    Closed {
        /// Its code.
        code: Option<u16>,
        /// What it says for people; empty if nothing.
        reason: String,
    },
    /// Nothing is left to read for now.
    Nothing,
}

/// Wakes a shard's thread. Cheap to clone and to call; calls before the thread looks count as one.
#[derive(Clone)]
pub struct Waker(Arc<WakerState>);

struct WakerState {
    called: AtomicBool,
    /// Gone once the thread has ended.
    notify: Mutex<Option<Notify>>,
}

type Notify = Arc<dyn Fn() + Send + Sync>;

impl Waker {
    /// A waker that calls `notify` when it is first called, and again once that was
    /// [taken](Self::take).
    pub fn new(notify: impl Fn() + Send + Sync + 'static) -> Self {
        Self(Arc::new(WakerState {
            called: AtomicBool::new(false),
            notify: Mutex::new(Some(Arc::new(notify))),
        }))
    }

    /// Wakes the thread.
    pub fn wake(&self) {
        if self.0.called.swap(true, Ordering::AcqRel) {
            return;
        }
        let notify = self.0.notify.lock().clone();
        if let Some(notify) = notify {
            notify();
        }
    }

    /// The thread has ended: a waker that is left keeps nothing else of it.
    pub(crate) fn close(&self) {
        let notify = self.0.notify.lock().take();
        drop(notify);
    }

    /// Whether it was called since this was last asked.
    pub fn take(&self) -> bool {
        // The plain load keeps the usual answer, no, free of a write to a shared cache line.
        self.is_called() && self.0.called.swap(false, Ordering::AcqRel)
    }

    /// Whether it was called, without taking that.
    pub fn is_called(&self) -> bool {
        self.0.called.load(Ordering::Acquire)
    }
}

impl fmt::Debug for Waker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Waker").field(&self.is_called()).finish()
    }
}

/// What ends a connection from below.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TransportError {
    /// The host's name does not resolve.
    #[error("the host {host} does not resolve")]
    Resolve {
        /// The host.
        host: String,
        /// Why.
        source: io::Error,
    },
    /// The proxy opens no connection.
    #[error(transparent)]
    Proxy(#[from] ProxyError),
    /// The connection failed or was cut.
    #[error("the connection failed: {0}")]
    Io(#[from] io::Error),
    /// The TLS handshake failed.
    #[error("the TLS handshake failed: {0}")]
    Tls(Box<dyn std::error::Error + Send + Sync>),
    /// The server did not upgrade to a websocket, but answered with this HTTP status.
    #[error("the server answered the websocket upgrade with HTTP {0}")]
    Status(u16),
    /// The peer broke the websocket protocol, or sent a message over the limit.
    #[error("websocket: {0}")]
    WebSocket(Box<dyn std::error::Error + Send + Sync>),
    /// A message could not be inflated.
    #[error(transparent)]
    Inflate(#[from] InflateError),
}

impl TransportError {
    /// The error and its causes, in one line.
    pub fn report(&self) -> String {
        let mut report = self.to_string();
        let mut error: &dyn std::error::Error = self;
        while let Some(source) = error.source() {
            // Some say what their source says.
            let text = source.to_string();
            if !report.contains(&text) {
                report = format!("{report}: {text}");
            }
            error = source;
        }
        report
    }

    /// Why a connection to a host is not made.
    fn of_dial(host: &str, error: DialError) -> Self {
        match error {
            DialError::Resolve(source) => Self::Resolve {
                host: host.to_owned(),
                source,
            },
            DialError::Io(error) => Self::Io(error),
            DialError::Proxy(error) => Self::Proxy(error),
        }
    }

    /// Whether the peer sent something malformed, as opposed to a connection that failed.
    pub fn is_malformed(&self) -> bool {
        matches!(self, Self::WebSocket(_) | Self::Inflate(_))
    }
}

impl From<native_tls::Error> for TransportError {
    fn from(error: native_tls::Error) -> Self {
        Self::Tls(Box::new(error))
    }
}

impl From<tungstenite::Error> for TransportError {
    fn from(error: tungstenite::Error) -> Self {
        use tungstenite::error::ProtocolError::{
            HandshakeIncomplete, ResetWithoutClosingHandshake,
        };
        match error {
            tungstenite::Error::Io(error) => Self::Io(error),
            tungstenite::Error::Http(response) => Self::Status(response.status().as_u16()),
            tungstenite::Error::Protocol(HandshakeIncomplete | ResetWithoutClosingHandshake) => {
                Self::Io(io::ErrorKind::ConnectionReset.into())
            }
            tungstenite::Error::ConnectionClosed | tungstenite::Error::AlreadyClosed => {
                Self::Io(io::ErrorKind::NotConnected.into())
            }
            other => Self::WebSocket(Box::new(other)),
        }
    }
}

#[cfg(test)]
mod tests {
    mod fuzz;

    use std::sync::atomic::AtomicU32;

    use super::*;

    #[test]
    fn calls_before_a_look_count_as_one() {
        let count = Arc::new(AtomicU32::new(0));
        let counter = Arc::clone(&count);
        let waker = Waker::new(move || {
            counter.fetch_add(1, Ordering::SeqCst);
        });
        waker.wake();
        waker.clone().wake();
        assert_eq!(count.load(Ordering::SeqCst), 1);
        assert!(waker.take() && !waker.take());
        waker.wake();
        assert_eq!(count.load(Ordering::SeqCst), 2);
    }
}
