//! The websocket transport: TCP, native-tls and tungstenite, non-blocking, with one mio poll for
//! each shard.

use std::io::{self, Read, Write};
use std::mem;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use http::{HeaderValue, Uri};
use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};
use native_tls::{
    Certificate, HandshakeError as TlsHandshakeError, MidHandshakeTlsStream, TlsConnector,
    TlsStream,
};
use tungstenite::client::IntoClientRequest;
use tungstenite::handshake::client::{ClientHandshake, Response};
use tungstenite::handshake::{HandshakeError, MidHandshake};
use tungstenite::protocol::frame::Frame;
use tungstenite::protocol::frame::coding::{Data, OpCode};
use tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};
use tungstenite::{Message, WebSocket};

use super::inflate::Inflater;
use super::stream::{Buffered, Followed, Line, SMALL, Stream};
use super::{Connector, Received, Settings, Transport, TransportError, Waker};
use crate::dial::{Dial, Dialer};
use crate::hosts::{host, host_and_port, is_encrypted};
use crate::protocol::USER_AGENT;
use crate::shard_id::ShardId;

const SOCKET: Token = Token(0);
const WAKE: Token = Token(1);
/// All sockets that are connecting, until one of them is connected.
const DIAL: Token = Token(2);

/// The size of tungstenite's read buffer. tungstenite allocates it for each connection and clears
/// as much before each read. Large messages grow it. It does not affect the number of system calls:
/// once much arrives, [`Buffered`] reads into its own, larger buffer below.
const READ_BUFFER: usize = 4 * 1024;

/// Room for the bytes of a frame around a payload, and for what compression adds to data that it
/// cannot shrink.
const FRAME_SLACK: usize = 64 * 1024;

/// Makes websocket transports, which share TLS settings and certificates.
#[derive(Clone)]
pub struct WebSocketConnector {
    tls: Arc<Tls>,
    dialer: Arc<Dialer>,
}

/// The TLS settings. They are created on demand, because only `wss` needs them and reading the
/// system's certificates takes 60 ms and 6 MB.
struct Tls {
    /// The certificates to trust in place of the system's; the system's if `None`.
    root_certificates: Option<Vec<Certificate>>,
    connector: OnceLock<TlsConnector>,
}

impl WebSocketConnector {
    /// Creates a connector that trusts these root certificates (PEM), or the system's if `None`,
    /// and connects by `dialer`. The system's certificates are read by
    /// [`read_certificates`](Self::read_certificates), or when the first connection needs them.
    pub(crate) fn with_settings(
        pem: Option<&str>,
        dialer: Arc<Dialer>,
    ) -> native_tls::Result<Self> {
        let stack = pem.map(|pem| Certificate::stack_from_pem(pem.as_bytes()));
        let tls = Tls {
            root_certificates: stack.transpose()?,
            connector: OnceLock::new(),
        };
        Ok(Self {
            tls: Arc::new(tls),
            dialer,
        })
    }

    /// Reads the certificates now, so that the first connection need not wait for that.
    pub(crate) fn read_certificates(&self) -> native_tls::Result<()> {
        self.tls.connector().map(drop)
    }
}

impl Tls {
    fn connector(&self) -> native_tls::Result<&TlsConnector> {
        if let Some(connector) = self.connector.get() {
            return Ok(connector);
        }
        let mut builder = TlsConnector::builder();
        if let Some(certificates) = &self.root_certificates {
            builder.disable_built_in_roots(true);
            for certificate in certificates {
                builder.add_root_certificate(certificate.clone());
            }
        }
        let connector = builder.build()?;
        Ok(self.connector.get_or_init(|| connector))
    }
}

impl Connector for WebSocketConnector {
    type Transport = WebSocketTransport;

    fn transport(&self, _shard: ShardId, settings: Settings) -> io::Result<WebSocketTransport> {
        let poll = Poll::new()?;
        let wake = mio::Waker::new(poll.registry(), WAKE)?;
        let waker = Waker::new(move || {
            if let Err(error) = wake.wake() {
                log::error!("cannot wake a shard's thread: {error}");
            }
        });

        Ok(WebSocketTransport {
            tls: Arc::clone(&self.tls),
            dialer: Arc::clone(&self.dialer),
            settings,
            poll,
            events: Events::with_capacity(4),
            waker,
            link: Link::None,
            maybe_ready: false,
            has_ended: false,
            flushed: true,
            written: 0,
            opening: None,
        })
    }
}

/// The websocket of one shard.
pub struct WebSocketTransport {
    tls: Arc<Tls>,
    dialer: Arc<Dialer>,
    settings: Settings,
    poll: Poll,
    events: Events,
    waker: Waker,
    link: Link,
    /// Whether there may be something to read: the socket has not returned `WouldBlock` since the
    /// last edge. mio reports only edges.
    maybe_ready: bool,
    /// Whether an edge has reported that the peer or the connection has ended.
    has_ended: bool,
    flushed: bool,
    /// The number of messages that the system had accepted on the last connection when it ended.
    written: u64,
    opening: Option<Opening>,
}

type Upgrade = ClientHandshake<Followed<Stream>>;

/// The stage of the connection.
enum Link {
    None,
    Dial(Box<Dial>),
    Tls(MidHandshakeTlsStream<Buffered<TcpStream>>),
    Upgrade(Box<MidHandshake<Upgrade>>),
    Open(Box<Socket<Followed<Stream>>>),
}

/// An open websocket, with the decompressor of its messages.
pub(super) struct Socket<S> {
    websocket: WebSocket<S>,
    inflater: Inflater,
}

/// A connection that is being opened.
struct Opening {
    url: Uri,
    /// The IP address that it connects to, once that is known.
    address: Option<SocketAddr>,
    /// When opening it times out.
    deadline: Instant,
    has_failed: bool,
}

impl Transport for WebSocketTransport {
    fn connect(&mut self, url: &Uri, deadline: Instant) -> Result<(), TransportError> {
        self.link = Link::None;
        self.flushed = true;
        self.written = 0;
        self.has_ended = false;

        let opening = Opening {
            url: url.clone(),
            address: None,
            deadline,
            has_failed: false,
        };
        let (host, port) = host_and_port(&opening.url);
        let failed = |error| TransportError::of_dial(host, error);
        let addresses = self.dialer.resolve(host, port).map_err(failed)?;
        let dial = self.dialer.dial(host, port, addresses, deadline);
        self.link = Link::Dial(Box::new(dial));
        self.opening = Some(opening);
        self.maybe_ready = true;
        Ok(())
    }

    fn read(&mut self) -> Result<Received, TransportError> {
        let received = self.read_or_open();
        if received.is_err()
            && let Some(opening) = &mut self.opening
        {
            opening.has_failed = true;
        }
        received
    }

    fn send(&mut self, text: String) -> Result<(), TransportError> {
        let Link::Open(socket) = &mut self.link else {
            return Err(io::Error::from(io::ErrorKind::NotConnected).into());
        };
        self.flushed = false;
        not_blocked(socket.websocket.write(Message::text(text)))?;
        self.flush()
    }

    fn send_secret(&mut self, text: &str) -> Result<(), TransportError> {
        self.flush()?;
        let Link::Open(socket) = &mut self.link else {
            return Err(io::Error::from(io::ErrorKind::NotConnected).into());
        };
        if !self.flushed {
            return Err(io::Error::from(io::ErrorKind::WouldBlock).into());
        }
        if socket.websocket.get_ref().has_write_failed() {
            return Err(io::Error::from(io::ErrorKind::BrokenPipe).into());
        }

        // tungstenite logs each frame that it sends, at trace level. So it only formats this one.
        let mut frame = Frame::message(text.to_owned(), OpCode::Data(Data::Text), true);
        frame.header_mut().mask = Some(fastrand::u32(..).to_ne_bytes());
        let mut bytes = Vec::with_capacity(frame.len());
        frame.format(&mut bytes)?;

        // A new connection has room for one such payload. If this one has not, it fails.
        let stream = socket.websocket.get_mut();
        stream.write_all(&bytes)?;
        Ok(stream.flush()?)
    }

    fn written(&self) -> u64 {
        match &self.link {
            Link::Open(socket) => socket.websocket.get_ref().written(),
            _ => self.written,
        }
    }

    fn wait(&mut self, until: Option<Instant>, reading: bool) -> Result<(), TransportError> {
        let has_more = reading && self.maybe_ready && !matches!(self.link, Link::None);
        // The socket is polled even if there is no time to wait: a thread that is woken often must
        // not miss its events.
        let at_once = (has_more || self.waker.is_called()).then(Instant::now);
        let dial_at = match &self.link {
            Link::Dial(dial) => dial.wait_until(Instant::now()),
            _ => None,
        };
        self.poll(until.into_iter().chain(dial_at).chain(at_once).min())?;
        self.flush()
    }

    fn disconnect(&mut self, code: Option<u16>, deadline: Instant) {
        if let (Link::Open(socket), Some(code)) = (&mut self.link, code)
            && !socket.websocket.get_ref().has_write_failed()
        {
            let frame = CloseFrame {
                code: code.into(),
                reason: "".into(),
            };
            self.flushed = matches!(not_blocked(socket.websocket.close(Some(frame))), Ok(true));
            self.discard(deadline);
        }

        // What was still in a buffer may have been sent with the close frame.
        self.written = self.written();
        self.link = Link::None;
        self.end_opening(false);
        self.flushed = true;
    }

    fn shrink(&mut self) {
        if self.flushed
            && let Link::Open(mut socket) = mem::replace(&mut self.link, Link::None)
        {
            socket.websocket.get_mut().get_mut().buffered().shrink();
            *socket = socket.shrink(self.settings.max_payload);
            self.link = Link::Open(socket);
        }
    }

    fn waker(&self) -> Waker {
        self.waker.clone()
    }
}

impl WebSocketTransport {
    fn poll(&mut self, until: Option<Instant>) -> Result<(), TransportError> {
        let timeout = until.map(|until| until.saturating_duration_since(Instant::now()));
        match self.poll.poll(&mut self.events, timeout) {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error.into()),
            _ => {}
        }

        for event in &self.events {
            if event.token() == DIAL {
                self.maybe_ready = true;
            } else if event.token() == SOCKET {
                self.maybe_ready = true;
                self.has_ended |= event.is_read_closed() || event.is_error();
                if let Link::Open(socket) = &mut self.link {
                    let stream = socket.websocket.get_mut().get_mut().buffered();
                    stream.edge_came(self.has_ended);
                }
            }
        }
        Ok(())
    }

    /// Reads and discards what still arrives, until the peer closes. Discord redelivers it. This
    /// reads below tungstenite, which must not be read again after it has found an invalid frame.
    fn discard(&mut self, deadline: Instant) {
        // On the heap: stack memory, once used, would stay with the shard's thread.
        let mut buffer = vec![0; 4096];
        while Instant::now() < deadline && self.flush().is_ok() {
            let Link::Open(socket) = &mut self.link else {
                return;
            };
            match socket.websocket.get_mut().read(&mut buffer) {
                Ok(0) => return,
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if self.poll(Some(deadline)).is_err() {
                        return;
                    }
                }
                Err(_) => return,
            }
        }
    }

    fn read_or_open(&mut self) -> Result<Received, TransportError> {
        self.flush()?;
        self.maybe_ready |= self.is_dial_due();

        while self.maybe_ready {
            if let Link::Open(socket) = &mut self.link {
                let received = socket.read();
                match received {
                    Ok(Received::Nothing) => self.maybe_ready = false,
                    // The answer to a ping may wait to be flushed.
                    Ok(Received::Partial) => self.flushed = false,
                    _ => {}
                }
                return received;
            }
            if matches!(self.link, Link::None) {
                return Ok(Received::Nothing);
            }
            if self.shake_hands()? {
                self.end_opening(true);
                return Ok(Received::Opened);
            }
        }
        Ok(Received::Nothing)
    }

    /// Whether it is time to try the next IP address of the host.
    fn is_dial_due(&self) -> bool {
        match &self.link {
            Link::Dial(dial) => {
                let now = Instant::now();
                dial.wait_until(now).is_some_and(|at| now >= at)
            }
            _ => false,
        }
    }

    /// Ends opening the connection: it is open, has failed, or is no longer wanted. Remembers
    /// whether its IP address has worked or failed, for the next connection to that host.
    fn end_opening(&mut self, is_open: bool) {
        if let Some(opening) = self.opening.take()
            && let Some(address) = opening.address
            && (is_open || opening.has_failed || Instant::now() >= opening.deadline)
        {
            let (host, port) = host_and_port(&opening.url);
            self.dialer.remember(host, port, address, is_open);
        }
    }

    /// Takes the next step of the handshakes that is possible without blocking. Returns whether the
    /// websocket is open.
    #[cold]
    fn shake_hands(&mut self) -> Result<bool, TransportError> {
        match mem::replace(&mut self.link, Link::None) {
            Link::Dial(dial) => self.dial(dial),
            Link::Tls(handshake) => self.secured(handshake.handshake()),
            Link::Upgrade(handshake) => self.upgraded(handshake.handshake()),
            other @ (Link::None | Link::Open(_)) => {
                self.link = other;
                Ok(false)
            }
        }
    }

    fn dial(&mut self, mut dial: Box<Dial>) -> Result<bool, TransportError> {
        let Some(opening) = &mut self.opening else {
            return Ok(false);
        };
        let polled = dial.poll(self.poll.registry(), DIAL, Instant::now());
        opening.address = dial.address();
        let failed = |error| TransportError::of_dial(host_and_port(&opening.url).0, error);
        let Some((mut stream, address)) = polled.map_err(failed)? else {
            self.maybe_ready = false;
            self.link = Link::Dial(dial);
            return Ok(false);
        };

        opening.address = Some(address);
        let both = Interest::READABLE | Interest::WRITABLE;
        // A reregistration reports the current readiness again, so no edge so far is lost.
        self.poll.registry().reregister(&mut stream, SOCKET, both)?;
        if is_encrypted(&opening.url) {
            let stream = Buffered::new(stream, SMALL);
            let handshake = self.tls.connector()?.connect(host(&opening.url), stream);
            self.secured(handshake)
        } else {
            self.upgrade(Stream::Plain(Buffered::new(stream, 0)))
        }
    }

    fn secured(
        &mut self,
        handshake: Result<TlsStream<Buffered<TcpStream>>, TlsHandshakeError<Buffered<TcpStream>>>,
    ) -> Result<bool, TransportError> {
        match handshake {
            Ok(stream) => self.upgrade(Stream::Tls(stream)),
            Err(TlsHandshakeError::WouldBlock(handshake)) => {
                self.maybe_ready = false;
                self.link = Link::Tls(handshake);
                Ok(false)
            }
            Err(TlsHandshakeError::Failure(error)) => Err(error.into()),
        }
    }

    fn upgrade(&mut self, stream: Stream) -> Result<bool, TransportError> {
        let Some(opening) = &self.opening else {
            return Ok(false);
        };
        let mut request = opening.url.clone().into_client_request()?;
        let agent = HeaderValue::from_static(USER_AGENT);
        request.headers_mut().insert("user-agent", agent);
        let handshake = ClientHandshake::start(
            Followed::new(stream),
            request,
            Some(settings(self.settings.max_payload)),
        )?;
        self.upgraded(handshake.handshake())
    }

    fn upgraded(
        &mut self,
        handshake: Result<(WebSocket<Followed<Stream>>, Response), HandshakeError<Upgrade>>,
    ) -> Result<bool, TransportError> {
        match handshake {
            Ok((mut websocket, _)) => {
                if !self.has_ended {
                    websocket.get_mut().get_mut().buffered().trust_edges();
                }
                let inflater = Inflater::new(self.settings.compression, self.settings.max_payload);
                self.link = Link::Open(Box::new(Socket::new(websocket, inflater)));
                Ok(true)
            }
            Err(HandshakeError::Interrupted(handshake)) => {
                self.maybe_ready = false;
                self.link = Link::Upgrade(Box::new(handshake));
                Ok(false)
            }
            Err(HandshakeError::Failure(error)) => Err(error.into()),
        }
    }

    fn flush(&mut self) -> Result<(), TransportError> {
        if !self.flushed
            && let Link::Open(socket) = &mut self.link
        {
            self.flushed = not_blocked(socket.websocket.flush())?;
        }
        Ok(())
    }
}

impl<S: Read + Write> Socket<S> {
    pub(super) fn new(websocket: WebSocket<S>, inflater: Inflater) -> Self {
        Self {
            websocket,
            inflater,
        }
    }

    /// Returns what has arrived next.
    pub(super) fn read(&mut self) -> Result<Received, TransportError> {
        match self.websocket.read() {
            Ok(Message::Text(text)) => Ok(Received::Payload(self.inflater.text(text.as_bytes()))),
            Ok(Message::Binary(bytes)) => Ok(self
                .inflater
                .binary(&bytes)?
                .map_or(Received::Partial, Received::Payload)),
            Ok(Message::Close(frame)) => Ok(match frame {
                Some(frame) => Received::Closed {
                    code: Some(frame.code.into()),
                    reason: frame.reason.as_str().to_owned(),
                },
                None => Received::Closed {
                    code: None,
                    reason: String::new(),
                },
            }),
            // tungstenite answers pings itself.
            Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_)) => Ok(Received::Partial),
            Err(error) if is_blocked(&error) => Ok(Received::Nothing),
            Err(error) => Err(error.into()),
        }
    }
}

impl<S: Line> Socket<Followed<S>> {
    /// Releases the memory that large messages, or many at once, have taken. tungstenite releases
    /// its buffers only with the websocket. So the connection gets a new websocket, unless the old
    /// one holds a part of a message. Nothing must be left to read.
    fn shrink(mut self, max_payload: usize) -> Self {
        self.inflater.shrink();
        if !self.websocket.get_ref().is_between_messages() || !self.websocket.can_write() {
            return self;
        }
        let stream = self.websocket.into_inner();
        let websocket =
            WebSocket::from_raw_socket(stream, Role::Client, Some(settings(max_payload)));
        Self { websocket, ..self }
    }
}

/// The settings of a websocket whose payloads have at most `max_payload` bytes.
pub(super) fn settings(max_payload: usize) -> WebSocketConfig {
    // A compressed message is hardly ever larger than its payload, so one limit serves for both.
    let largest = Some(max_payload.saturating_add(FRAME_SLACK));
    WebSocketConfig::default()
        .read_buffer_size(READ_BUFFER)
        .write_buffer_size(0)
        .max_message_size(largest)
        .max_frame_size(largest)
}

fn is_blocked(error: &tungstenite::Error) -> bool {
    matches!(error, tungstenite::Error::Io(error) if error.kind() == io::ErrorKind::WouldBlock)
}

/// Returns whether a write was completed. That it would block is not an error.
fn not_blocked(result: tungstenite::Result<()>) -> Result<bool, TransportError> {
    match result {
        Ok(()) => Ok(true),
        Err(error) if is_blocked(&error) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use super::*;
    use crate::transport::Compression;

    const MAX: usize = 1 << 20;

    /// A peer whose bytes the test adds as it goes.
    #[derive(Default)]
    struct Peer(VecDeque<u8>);

    impl Read for Peer {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            if self.0.is_empty() {
                Err(io::ErrorKind::WouldBlock.into())
            } else {
                self.0.read(buffer)
            }
        }
    }

    impl Write for Peer {
        fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
            Ok(buffer.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn frame(text: &str) -> Vec<u8> {
        let mut bytes = Vec::new();
        Frame::message(text.to_owned(), OpCode::Data(Data::Text), true)
            .format(&mut bytes)
            .unwrap();
        bytes
    }

    /// A socket whose peer has answered the upgrade.
    fn opened() -> Socket<Followed<Buffered<Peer>>> {
        let mut stream = Followed::new(Buffered::new(Peer::default(), 0));
        let head = b"HTTP/1.1 101 Switching\r\n\r\r\n\r\n";
        stream.get_mut().get_mut().0.extend(head);
        // Byte by byte, so that the end of the head is split.
        for _ in 0..head.len() {
            stream.read_exact(&mut [0]).unwrap();
        }
        assert!(stream.is_between_messages());
        let websocket = WebSocket::from_raw_socket(stream, Role::Client, Some(settings(MAX)));
        Socket::new(websocket, Inflater::new(Compression::None, MAX))
    }

    fn say(socket: &mut Socket<Followed<Buffered<Peer>>>, bytes: &[u8]) {
        socket
            .websocket
            .get_mut()
            .get_mut()
            .get_mut()
            .0
            .extend(bytes);
    }

    fn text(socket: &mut Socket<Followed<Buffered<Peer>>>) -> Option<String> {
        match socket.read().unwrap() {
            Received::Payload(bytes) => Some(String::from_utf8(bytes.into()).unwrap()),
            Received::Nothing => None,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_shrink_loses_nothing_wherever_the_stream_stands() {
        let texts = ["x".repeat(100_000), "y".repeat(200), "z".into()];
        let bytes: Vec<u8> = texts.iter().flat_map(|text| frame(text)).collect();
        for cut in [
            0,
            1,
            2,
            9,
            10,
            11,
            5000,
            100_010,
            100_011,
            100_013,
            100_014,
            100_100,
            bytes.len() - 1,
            bytes.len(),
        ] {
            let mut socket = opened();
            let mut read = Vec::new();
            for part in [&bytes[..cut], &bytes[cut..]] {
                say(&mut socket, part);
                while let Some(text) = text(&mut socket) {
                    read.push(text);
                }
                socket = socket.shrink(MAX);
            }
            assert!(read == texts, "cut at {cut}");
        }
    }

    #[test]
    fn a_shrink_after_a_message_in_several_frames_loses_nothing() {
        // Two frames with headers of 4 bytes each. In one frame, the message would have a header of
        // 10 bytes: 2 more than arrived, which is as much as arrives of the next message.
        let half = "x".repeat(40_000);
        let mut bytes = Vec::new();
        Frame::message(half.clone(), OpCode::Data(Data::Text), false)
            .format(&mut bytes)
            .unwrap();
        let between = bytes.len();
        Frame::message(half, OpCode::Data(Data::Continue), true)
            .format(&mut bytes)
            .unwrap();
        let end = bytes.len();
        bytes.extend(frame(&"y".repeat(200)));

        for cut in [between, end, end + 1, end + 2, end + 3] {
            let mut socket = opened();
            let mut read = Vec::new();
            for part in [&bytes[..cut], &bytes[cut..]] {
                say(&mut socket, part);
                while let Some(text) = text(&mut socket) {
                    read.push(text.len());
                }
                socket = socket.shrink(MAX);
            }
            assert_eq!(read, [80_000, 200], "cut at {cut}");
        }
    }
}
