//! The thread that serves a [`World`]: one poll for all connections, websocket and HTTP on one port.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::sync::Arc;
use std::time::Instant;

use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token};
use native_tls::{HandshakeError, MidHandshakeTlsStream, TlsAcceptor, TlsStream};
use parking_lot::Mutex;
use tungstenite::handshake::derive_accept_key;
use tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};
use tungstenite::{Message, WebSocket};
use url::Url;

use super::Shared;
use super::encoder::Encoder;
use super::world::{Order, World};

const LISTENER: Token = Token(0);
pub(super) const WAKE: Token = Token(1);

/// The tokens of connections count from here.
const FIRST_CONNECTION: usize = 2;

/// The longest request head and body.
const LONGEST_REQUEST: usize = 1 << 20;

pub(super) struct Server {
    poll: Poll,
    listener: TcpListener,
    acceptor: Option<TlsAcceptor>,
    shared: Arc<Shared>,
    connections: HashMap<usize, Connection>,
    next: usize,
}

struct Connection {
    stage: Stage,
    encoder: Encoder,
    unflushed: bool,
    /// The client's close code, once it has sent one.
    closed_with: Option<u16>,
}

enum Stage {
    Tls(MidHandshakeTlsStream<TcpStream>),
    /// Reading the head of a request, and its body.
    Request(Stream, Vec<u8>),
    /// Writing an answer; then the connection is what `then` says.
    Answer {
        stream: Stream,
        answer: Vec<u8>,
        written: usize,
        then: Then,
    },
    Open(Box<WebSocket<Stream>>),
    Gone,
}

enum Then {
    Close,
    Open { compress: Option<String>, version: Option<String>, tail: Vec<u8> },
}

/// What a connection's socket brought.
enum News {
    Opened { version: Option<String> },
    Text(String),
    Binary,
    Gone,
}

impl Server {
    pub(super) fn new(
        poll: Poll,
        mut listener: TcpListener,
        acceptor: Option<TlsAcceptor>,
        shared: Arc<Shared>,
    ) -> io::Result<Self> {
        poll.registry().register(&mut listener, LISTENER, Interest::READABLE)?;
        Ok(Self { poll, listener, acceptor, shared, connections: HashMap::new(), next: FIRST_CONNECTION })
    }

    pub(super) fn run(mut self) {
        let mut events = Events::with_capacity(1024);
        loop {
            let deadline = {
                let mut world = self.shared.world.lock();
                if world.stopped {
                    return;
                }
                let mut orders = Vec::new();
                while let Some(order) = world.poll(Instant::now()) {
                    orders.push(order);
                }
                let deadline = world.deadline();
                drop(world);
                self.shared.changed.notify_all();
                if !orders.is_empty() {
                    self.carry_out(orders);
                    continue;
                }
                deadline
            };
            let timeout = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            if let Err(error) = self.poll.poll(&mut events, timeout)
                && error.kind() != io::ErrorKind::Interrupted
            {
                log::error!("the simulated gateway stops: {error}");
                return;
            }
            for event in &events {
                match event.token() {
                    LISTENER => self.accept(),
                    WAKE => {}
                    Token(connection) => self.drive(connection),
                }
            }
        }
    }

    fn accept(&mut self) {
        loop {
            let mut stream = match self.listener.accept() {
                Ok((stream, _)) => stream,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) => return log::warn!("the simulated gateway cannot accept: {error}"),
            };
            let id = self.next;
            self.next += 1;
            let both = Interest::READABLE | Interest::WRITABLE;
            // A connection that cannot be set up is as good as one that was cut.
            if stream.set_nodelay(true).is_err() || self.poll.registry().register(&mut stream, Token(id), both).is_err()
            {
                continue;
            }
            let stage = match &self.acceptor {
                None => Stage::Request(Stream::Plain(stream), Vec::new()),
                Some(acceptor) => shaken(acceptor.accept(stream)),
            };
            let connection = Connection { stage, encoder: Encoder::None, unflushed: false, closed_with: None };
            self.connections.insert(id, connection);
            self.drive(id);
        }
    }

    /// Takes a connection as far as its socket goes.
    fn drive(&mut self, id: usize) {
        while let Some(connection) = self.connections.get_mut(&id) {
            let Some(news) = connection.step(&self.shared.world) else { return };
            let now = Instant::now();
            let mut world = self.shared.world.lock();
            match news {
                News::Opened { version } => world.connected(now, id, version.as_deref()),
                News::Text(text) => world.text(now, id, &text),
                News::Binary => world.binary(now, id),
                News::Gone => {
                    world.closed(now, id, connection.closed_with);
                    drop(world);
                    self.connections.remove(&id);
                }
            }
        }
    }

    fn carry_out(&mut self, orders: Vec<Order>) {
        for order in orders {
            match order {
                Order::Send(id, payload) => {
                    if let Some(connection) = self.connections.get_mut(&id) {
                        let message = connection.encoder.encode(&payload);
                        connection.write(message);
                    }
                }
                Order::SendMessage(id, message) => {
                    if let Some(connection) = self.connections.get_mut(&id) {
                        connection.write(message);
                    }
                }
                Order::CompressPayloads(id) => {
                    if let Some(connection) = self.connections.get_mut(&id)
                        && matches!(connection.encoder, Encoder::None)
                    {
                        connection.encoder = Encoder::Payload;
                    }
                }
                Order::Close(id, code) => {
                    if let Some(Stage::Open(socket)) = self.connections.get_mut(&id).map(|c| &mut c.stage) {
                        let frame = CloseFrame { code: code.into(), reason: "".into() };
                        let _ = socket.close(Some(frame));
                    }
                    self.drive(id);
                }
                Order::Cut(id) => {
                    self.connections.remove(&id);
                    self.shared.world.lock().closed(Instant::now(), id, None);
                }
            }
        }
        // Written first and flushed after, so that a burst is few system calls.
        let unflushed: Vec<usize> = self.connections.iter().filter(|(_, c)| c.unflushed).map(|(id, _)| *id).collect();
        for id in unflushed {
            if let Some(connection) = self.connections.get_mut(&id) {
                connection.flush();
            }
        }
    }
}

impl Connection {
    fn write(&mut self, message: Message) {
        if let Stage::Open(socket) = &mut self.stage {
            // What does not go out now goes out with the next flush; what cannot is seen when reading.
            let _ = socket.write(message);
            self.unflushed = true;
        }
    }

    fn flush(&mut self) {
        if let Stage::Open(socket) = &mut self.stage {
            self.unflushed = matches!(socket.flush(), Err(tungstenite::Error::Io(error)) if error.kind() == io::ErrorKind::WouldBlock);
        }
    }

    /// The next thing that happened; `None` if the socket has nothing more for now.
    fn step(&mut self, world: &Mutex<World>) -> Option<News> {
        self.flush();
        loop {
            match std::mem::replace(&mut self.stage, Stage::Gone) {
                Stage::Gone => return Some(News::Gone),
                Stage::Tls(handshake) => {
                    self.stage = shaken(handshake.handshake());
                    if matches!(self.stage, Stage::Tls(_)) {
                        return None;
                    }
                }
                Stage::Request(mut stream, mut request) => {
                    let mut chunk = [0; 8192];
                    match stream.read(&mut chunk) {
                        Ok(0) => {}
                        Ok(count) => {
                            request.extend_from_slice(&chunk[..count]);
                            match answer(&request, world) {
                                Ok(Some((answer, then))) => {
                                    self.stage = Stage::Answer { stream, answer, written: 0, then };
                                }
                                Ok(None) if request.len() < LONGEST_REQUEST => {
                                    self.stage = Stage::Request(stream, request);
                                }
                                Ok(None) | Err(Unreadable) => {}
                            }
                        }
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                            self.stage = Stage::Request(stream, request);
                            return None;
                        }
                        Err(_) => {}
                    }
                }
                Stage::Answer { mut stream, answer, mut written, then } => match stream.write(&answer[written..]) {
                    Ok(count) => {
                        written += count;
                        if written < answer.len() {
                            self.stage = Stage::Answer { stream, answer, written, then };
                        } else if let Then::Open { compress, version, tail } = then {
                            self.encoder = Encoder::new(compress.as_deref()).unwrap_or(Encoder::None);
                            let config = WebSocketConfig::default().read_buffer_size(4096).write_buffer_size(16 * 1024);
                            let socket = WebSocket::from_partially_read(stream, tail, Role::Server, Some(config));
                            self.stage = Stage::Open(Box::new(socket));
                            return Some(News::Opened { version });
                        } else {
                            stream.finish();
                        }
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        self.stage = Stage::Answer { stream, answer, written, then };
                        return None;
                    }
                    Err(_) => {}
                },
                Stage::Open(mut socket) => {
                    let message = socket.read();
                    self.stage = Stage::Open(socket);
                    match message {
                        Ok(Message::Text(text)) => return Some(News::Text(text.as_str().to_owned())),
                        Ok(Message::Binary(_)) => return Some(News::Binary),
                        Ok(Message::Close(frame)) => self.closed_with = frame.map(|frame| frame.code.into()),
                        Ok(_) => {}
                        Err(tungstenite::Error::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => return None,
                        Err(_) => self.stage = Stage::Gone,
                    }
                }
            }
        }
    }
}

fn shaken(handshake: Result<TlsStream<TcpStream>, HandshakeError<TcpStream>>) -> Stage {
    match handshake {
        Ok(stream) => Stage::Request(Stream::Tls(stream), Vec::new()),
        Err(HandshakeError::WouldBlock(handshake)) => Stage::Tls(handshake),
        Err(HandshakeError::Failure(error)) => {
            log::debug!("a TLS handshake with the simulated gateway failed: {error}");
            Stage::Gone
        }
    }
}

/// A request that is not HTTP.
struct Unreadable;

/// The answer to a request: an upgrade, or what the world says; `None` if the request is not complete.
fn answer(request: &[u8], world: &Mutex<World>) -> Result<Option<(Vec<u8>, Then)>, Unreadable> {
    let mut headers = [httparse::EMPTY_HEADER; 64];
    let mut head = httparse::Request::new(&mut headers);
    let httparse::Status::Complete(length) = head.parse(request).map_err(|_| Unreadable)? else { return Ok(None) };
    let header = |name: &str| {
        let header = head.headers.iter().find(|header| header.name.eq_ignore_ascii_case(name));
        header.and_then(|header| std::str::from_utf8(header.value).ok())
    };
    let (method, target) = (head.method.unwrap_or_default(), head.path.unwrap_or_default());
    let url = Url::parse("ws://host/").and_then(|base| base.join(target)).map_err(|_| Unreadable)?;
    if let Some(key) = header("sec-websocket-key") {
        let parameter = |name| url.query_pairs().find(|(key, _)| key == name).map(|(_, value)| value.into_owned());
        let answer = format!(
            "HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\n\
             sec-websocket-accept: {}\r\n\r\n",
            derive_accept_key(key.as_bytes()),
        );
        let then = Then::Open {
            compress: parameter("compress"),
            version: parameter("v"),
            tail: request.get(length..).unwrap_or_default().to_vec(),
        };
        return Ok(Some((answer.into_bytes(), then)));
    }
    let body_length = header("content-length").map_or(Ok(0), str::parse::<usize>).map_err(|_| Unreadable)?;
    let Some(body) = request.get(length..length.saturating_add(body_length)) else { return Ok(None) };
    let body = String::from_utf8_lossy(body);
    let (status, json) = world.lock().rest(Instant::now(), method, url.path(), header("authorization"), &body);
    let json = json.to_string();
    let answer = format!(
        "HTTP/1.1 {status} Simulated\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\
         connection: close\r\n\r\n{json}",
        json.len(),
    );
    Ok(Some((answer.into_bytes(), Then::Close)))
}

/// A connection with or without TLS.
enum Stream {
    Plain(TcpStream),
    Tls(TlsStream<TcpStream>),
}

impl Stream {
    /// Nothing more will be written.
    fn finish(&mut self) {
        // The answer is out; a client that is gone does not need the end of it.
        let _ = match self {
            Self::Plain(stream) => stream.shutdown(std::net::Shutdown::Write),
            Self::Tls(stream) => stream.shutdown(),
        };
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(stream) => stream.read(buffer),
            Self::Tls(stream) => stream.read(buffer),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(stream) => stream.write(buffer),
            Self::Tls(stream) => stream.write(buffer),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(stream) => stream.flush(),
            Self::Tls(stream) => stream.flush(),
        }
    }
}
