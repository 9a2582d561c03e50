//! Connections that carry whole text payloads.
//!
//! [`Transport`] is the interface between a shard's thread and the network. [`WebSocketConnector`]
//! makes the usual implementation, [`WebSocketTransport`].

mod inflate;
mod pages;
mod stream;
mod websocket;

use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

#[doc(no_inline)]
pub use bytes::Bytes;
#[doc(no_inline)]
pub use http::Uri;
pub use inflate::{Compression, InflateError, Inflater};
use parking_lot::Mutex;
pub use websocket::{WebSocketConnector, WebSocketTransport};

use crate::dial::{DialError, ProxyError};
use crate::shard_id::ShardId;

/// Makes the transport of each shard, and holds what the transports share.
///
/// Implement it for [`ShardManager::start_with`], for example to connect through a proxy, to record
/// what is sent and received, or to simulate a network in a test.
///
/// [`ShardManager::start_with`]: crate::ShardManager::start_with
pub trait Connector: Send + Sync {
    /// The transport that it makes.
    type Transport: Transport + 'static;

    /// Makes a transport without a connection. After an error it is called again, after a pause.
    fn transport(&self, shard: ShardId, settings: Settings) -> io::Result<Self::Transport>;
}

/// What a shard requires of its transport.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Settings {
    /// How Discord compresses what it sends.
    pub compression: Compression,
    /// The size limit of a payload in bytes, after decompression.
    pub max_payload: usize,
}

impl Settings {
    /// Creates settings with these values.
    pub fn new(compression: Compression, max_payload: usize) -> Self {
        Self {
            compression,
            max_payload,
        }
    }
}

/// The connection of one shard; at times there is none.
///
/// All calls come from the shard's thread. These can block: [`wait`](Self::wait),
/// [`disconnect`](Self::disconnect) with a close code, and the lookup of the host name in
/// [`connect`](Self::connect).
///
/// The order of calls:
/// 1. [`connect`](Self::connect) starts a connection and drops the previous one.
/// 2. [`read`](Self::read) drives the connection. It returns [`Received::Opened`] once, then
///    payloads. After [`Received::Nothing`] the caller may wait.
/// 3. [`send`](Self::send) is allowed from `Opened` on. What the network does not accept at once is
///    sent while the caller reads or waits; [`written`](Self::written) reports how much was sent.
///    It is no error if nothing can be sent any more: reading continues until the peer has closed.
/// 4. [`disconnect`](Self::disconnect) ends the connection: after [`Received::Closed`], after an
///    error, or at any other time.
pub trait Transport: Send {
    /// Starts a connection, which has until `deadline` to open. The caller enforces the deadline.
    fn connect(&mut self, url: &Uri, deadline: Instant) -> Result<(), TransportError>;

    /// Returns what has arrived next. Never blocks.
    fn read(&mut self) -> Result<Received, TransportError>;

    /// Sends a text message. Never blocks.
    fn send(&mut self, text: String) -> Result<(), TransportError>;

    /// Sends a text message that no layer below may log. Never blocks: it fails if it would have
    /// to.
    fn send_secret(&mut self, text: &str) -> Result<(), TransportError>;

    /// The number of messages on this connection that the operating system has accepted completely,
    /// including secret ones. After [`disconnect`](Self::disconnect) it is the number of the
    /// connection that has ended, until the next one is started.
    fn written(&self) -> u64;

    /// Blocks until there may be something to read (if `reading`), until the waker is called, or
    /// until the instant `until`, whichever comes first.
    fn wait(&mut self, until: Option<Instant>, reading: bool) -> Result<(), TransportError>;

    /// Ends the connection. With a `code` it sends a close frame and waits for the peer's answer,
    /// until `deadline` at most. Without one it ends the connection at once.
    fn disconnect(&mut self, code: Option<u16>, deadline: Instant);

    /// Releases buffers, if it can. Called when the connection has been idle for a while. Does
    /// nothing by default.
    fn shrink(&mut self) {}

    /// Returns a waker, which ends [`wait`](Self::wait) from any thread.
    fn waker(&self) -> Waker;
}

/// What [`Transport::read`] returns.
#[derive(Debug, PartialEq, Eq)]
pub enum Received {
    /// The connection is open.
    Opened,
    /// A whole payload, decompressed.
    Payload(Bytes),
    /// A message that is not a payload, or only a part of one. Read again.
    Partial,
    /// The peer closed the connection, with or without a code and a reason.
    Closed {
        /// The close code.
        code: Option<u16>,
        /// The reason as text; empty if there is none.
        reason: String,
    },
    /// Nothing is left to read for now.
    Nothing,
}

/// Wakes a shard's thread. Cheap to clone and to call. Several calls before the thread notices
/// count as one.
#[derive(Clone)]
pub struct Waker(Arc<WakerState>);

struct WakerState {
    called: AtomicBool,
    /// `None` once the thread has ended.
    notify: Mutex<Option<Notify>>,
}

type Notify = Arc<dyn Fn() + Send + Sync>;

impl Waker {
    /// Creates a waker. Its first [`wake`](Self::wake) calls `notify`, and so does the first one
    /// after each [`take`](Self::take) that returned `true`.
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

    /// Drops `notify`, because the thread has ended. Wakers that are still held then keep nothing
    /// else of the thread alive.
    pub(crate) fn close(&self) {
        let notify = self.0.notify.lock().take();
        drop(notify);
    }

    /// Whether it was called since the last `take`, and resets that.
    pub fn take(&self) -> bool {
        // The answer is usually no. The load first avoids a write to a shared cache line then.
        self.is_called() && self.0.called.swap(false, Ordering::AcqRel)
    }

    /// Whether it was called since the last [`take`](Self::take), without resetting that.
    pub fn is_called(&self) -> bool {
        self.0.called.load(Ordering::Acquire)
    }
}

impl fmt::Debug for Waker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Waker").field(&self.is_called()).finish()
    }
}

/// Why a connection fails.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TransportError {
    /// The host's name does not resolve.
    #[error("the host {host} does not resolve")]
    Resolve {
        /// The host.
        host: String,
        /// The resolver's error.
        source: io::Error,
    },
    /// The proxy did not open the connection.
    #[error(transparent)]
    Proxy(#[from] ProxyError),
    /// The connection could not be opened, or was lost.
    #[error("the connection failed: {0}")]
    Io(#[from] io::Error),
    /// The TLS handshake failed.
    #[error("the TLS handshake failed: {0}")]
    Tls(Box<dyn std::error::Error + Send + Sync>),
    /// The server answered the websocket upgrade with this HTTP status instead of accepting it.
    #[error("the server answered the websocket upgrade with HTTP {0}")]
    Status(u16),
    /// The peer violated the websocket protocol, or sent a message that exceeds the size limit.
    #[error("websocket: {0}")]
    WebSocket(Box<dyn std::error::Error + Send + Sync>),
    /// A message could not be decompressed.
    #[error(transparent)]
    Inflate(#[from] InflateError),
}

impl TransportError {
    /// Returns the error and its causes in one line.
    pub fn report(&self) -> String {
        let mut report = self.to_string();
        let mut error: &dyn std::error::Error = self;
        while let Some(source) = error.source() {
            // Some errors already contain the text of their source.
            let text = source.to_string();
            if !report.contains(&text) {
                report = format!("{report}: {text}");
            }
            error = source;
        }
        report
    }

    /// Converts the error of a connection to a host.
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

    /// Whether the peer sent something malformed. Otherwise the connection failed.
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
