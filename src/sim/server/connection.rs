//! One connection: TLS, HTTP requests, and the websocket.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::time::{Duration, Instant};

use native_tls::{HandshakeError, MidHandshakeTlsStream, TlsAcceptor, TlsStream};
use tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};
use tungstenite::{Message, WebSocket};

use super::super::encoder::Encoder;
use super::super::time::{LONGEST, after};
use super::http::{Reader, Responder, Response, respond};
use super::wire::{Line, Stream};

/// The maximum number of bytes that a client may leave unread.
const LARGEST_BACKLOG: usize = 256 << 20;

/// The timeout for the client's answer to a close frame.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

pub(super) struct Connection {
    stage: Stage,
    encoder: Encoder,
    pub(super) unflushed: bool,
    /// The client's close code, once it has sent one.
    pub(super) closed_with: Option<u16>,
    /// The latency of messages, and the maximum random delay on top.
    delay: Option<(Duration, Duration)>,
    inbox: VecDeque<(Instant, News)>,
    outbox: VecDeque<(Instant, Outgoing)>,
    /// Bytes to send outside the websocket protocol. No valid frame can follow them.
    raw: Vec<u8>,
    /// When the timeout for the client's answer to a close frame ends.
    give_up: Option<Instant>,
}

enum Stage {
    Tls(MidHandshakeTlsStream<Line>),
    /// Reading requests, one after the other.
    Request(Stream, Reader),
    /// Writing an answer.
    Answer(Box<Answer>),
    Open(Box<WebSocket<Stream>>),
    /// Nothing is sent, and everything received is ignored.
    Mute(Stream),
    Gone,
}

struct Answer {
    stream: Stream,
    bytes: Vec<u8>,
    written: usize,
    /// The part of the next request that has already been read.
    reader: Reader,
    /// What follows the answer.
    then: Then,
}

/// The progress of writing an answer.
enum Written {
    All(Option<News>),
    /// The socket accepts no more bytes for now.
    Blocked,
}

pub(super) enum Then {
    Close,
    /// The next request.
    Request,
    Open {
        compress: Option<String>,
        version: Option<String>,
        tail: Vec<u8>,
    },
}

/// Something that a connection received.
pub(super) enum News {
    Opened { version: Option<String> },
    Text(String),
    Binary(Vec<u8>),
    Gone,
}

/// Something to do on a connection.
pub(super) enum Outgoing {
    Payload(String),
    Message(Message),
    Bytes(Vec<u8>),
    Close(u16),
    Cut,
    Reset,
    Silence,
}

impl Connection {
    pub(super) fn plain(line: Line) -> Self {
        Self::new(Stage::Request(Stream::Plain(line), Reader::default()))
    }

    pub(super) fn secure(acceptor: &TlsAcceptor, line: Line) -> Self {
        Self::new(shaken(acceptor.accept(line)))
    }

    /// Creates a connection that never sends anything.
    pub(super) fn mute(line: Line) -> Self {
        Self::new(Stage::Mute(Stream::Plain(line)))
    }

    fn new(stage: Stage) -> Self {
        Self {
            stage,
            encoder: Encoder::None,
            unflushed: false,
            closed_with: None,
            delay: None,
            inbox: VecDeque::new(),
            outbox: VecDeque::new(),
            raw: Vec::new(),
            give_up: None,
        }
    }

    pub(super) fn compress_payloads(&mut self) {
        if matches!(self.encoder, Encoder::None) {
            self.encoder = Encoder::Payload;
        }
    }

    pub(super) fn delay(&mut self, latency: Duration, jitter: Duration) {
        self.delay = Some((latency, jitter));
    }

    pub(super) fn drip(&mut self, bytes_per_second: u32) {
        if let Some(stream) = self.stream() {
            stream.drip(bytes_per_second);
        }
    }

    fn silence(&mut self) {
        self.stage = match std::mem::replace(&mut self.stage, Stage::Gone) {
            // tungstenite's buffered input is lost, which is fine: nothing reads it any more.
            Stage::Open(socket) => Stage::Mute(socket.into_inner()),
            other => other,
        };
    }

    /// Ends the connection without a close frame.
    fn end(&mut self, how: impl FnOnce(&mut Stream)) {
        self.flush();
        if let Some(stream) = self.stream() {
            how(stream);
        }
        self.stage = Stage::Gone;
    }

    fn stream(&mut self) -> Option<&mut Stream> {
        match &mut self.stage {
            Stage::Open(socket) => Some(socket.get_mut()),
            Stage::Answer(answer) => Some(&mut answer.stream),
            Stage::Request(stream, _) | Stage::Mute(stream) => Some(stream),
            Stage::Tls(_) | Stage::Gone => None,
        }
    }

    /// Sends something, now or after the connection's delay.
    pub(super) fn send(&mut self, now: Instant, outgoing: Outgoing) {
        match self.later(now, self.outbox.back().map(|(at, _)| *at)) {
            Some(at) => self.outbox.push_back((at, outgoing)),
            None => self.write(outgoing),
        }
    }

    /// Stores what the socket received if it is delayed; otherwise returns it.
    pub(super) fn receive(&mut self, now: Instant, news: News) -> Option<News> {
        let is_delayed = matches!(news, News::Text(_) | News::Binary(_));
        match self
            .later(now, self.inbox.back().map(|(at, _)| *at))
            .filter(|_| is_delayed)
        {
            Some(at) => {
                self.inbox.push_back((at, news));
                None
            }
            None => Some(news),
        }
    }

    /// When something sent now arrives, but not before `last`, to keep the order. `None` without a
    /// delay.
    fn later(&self, now: Instant, last: Option<Instant>) -> Option<Instant> {
        let (latency, jitter) = self.delay?;
        let at = after(
            now,
            latency.saturating_add(jitter.min(LONGEST).mul_f64(fastrand::f64())),
        );
        Some(last.map_or(at, |last| at.max(last)))
    }

    /// The next delayed input that is due.
    pub(super) fn delayed_news(&mut self, now: Instant) -> Option<News> {
        let (at, _) = self.inbox.front()?;
        if *at <= now {
            self.inbox.pop_front().map(|(_, news)| news)
        } else {
            None
        }
    }

    /// Takes all delayed input, due or not.
    pub(super) fn take_inbox(&mut self) -> impl Iterator<Item = News> + use<> {
        std::mem::take(&mut self.inbox)
            .into_iter()
            .map(|(_, news)| news)
    }

    /// Writes delayed output that is due, and output held back by the speed limit. Ends a
    /// connection whose client did not answer a close in time.
    pub(super) fn serve(&mut self, now: Instant) {
        if self.give_up.is_some_and(|at| at <= now) {
            self.stage = Stage::Gone;
        }
        while let Some((at, _)) = self.outbox.front()
            && *at <= now
            && let Some((_, outgoing)) = self.outbox.pop_front()
        {
            self.write(outgoing);
        }
        self.flush();
    }

    /// When the connection has something to do, independently of its socket.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let next_write = match &self.stage {
            Stage::Open(socket) if self.unflushed => socket.get_ref().next_write(),
            Stage::Answer(answer) => answer.stream.next_write(),
            _ => None,
        };
        let next = [
            next_write,
            self.give_up,
            self.inbox.front().map(|(at, _)| *at),
            self.outbox.front().map(|(at, _)| *at),
        ];
        next.into_iter().flatten().min()
    }

    fn write(&mut self, outgoing: Outgoing) {
        let Stage::Open(socket) = &mut self.stage else {
            return;
        };

        // Bytes that cannot be written now follow with the next flush. Reading reports errors.
        let written = match outgoing {
            Outgoing::Payload(payload) => socket.write(self.encoder.encode(&payload)),
            Outgoing::Message(message) => socket.write(message),
            Outgoing::Bytes(bytes) => {
                self.raw.extend(bytes);
                Ok(())
            }
            Outgoing::Close(code) => {
                self.give_up = Some(after(Instant::now(), CLOSE_TIMEOUT));
                socket.close(Some(CloseFrame {
                    code: code.into(),
                    reason: close_text(code).into(),
                }))
            }
            Outgoing::Cut => return self.end(Stream::cut),
            Outgoing::Reset => return self.end(Stream::reset),
            Outgoing::Silence => return self.silence(),
        };
        if matches!(written, Err(tungstenite::Error::WriteBufferFull(_))) {
            // The client does not read; Discord would not wait for it either.
            return self.end(Stream::reset);
        }
        self.unflushed = true;
    }

    pub(super) fn flush(&mut self) {
        let Stage::Open(socket) = &mut self.stage else {
            return;
        };
        self.unflushed = is_blocked(&socket.flush());
        while !self.unflushed && !self.raw.is_empty() {
            match socket.get_mut().write(&self.raw) {
                Ok(count @ 1..) => drop(self.raw.drain(..count)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.unflushed = true,
                Ok(_) | Err(_) => self.raw.clear(),
            }
        }
    }

    /// Returns the next input; `None` if the socket has no more for now.
    pub(super) fn step(&mut self, responder: &mut impl Responder) -> Option<News> {
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
                Stage::Request(stream, request) => {
                    if self.read_request(stream, request, responder) {
                        return None;
                    }
                }
                Stage::Answer(answer) => match self.write_answer(*answer) {
                    Written::All(news) => {
                        if news.is_some() {
                            return news;
                        }
                    }
                    Written::Blocked => return None,
                },
                Stage::Mute(mut stream) => match stream.read(&mut [0; 4096]) {
                    Ok(0) => {}
                    Ok(_) => self.stage = Stage::Mute(stream),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        self.stage = Stage::Mute(stream);
                        return None;
                    }
                    Err(_) => {}
                },
                Stage::Open(mut socket) => {
                    let message = socket.read();
                    self.stage = Stage::Open(socket);
                    match message {
                        Ok(Message::Text(text)) => {
                            return Some(News::Text(text.as_str().to_owned()));
                        }
                        Ok(Message::Binary(bytes)) => return Some(News::Binary(bytes.into())),
                        Ok(Message::Close(frame)) => {
                            self.closed_with = frame.map(|frame| frame.code.into());
                        }
                        Ok(_) => {}
                        Err(tungstenite::Error::Io(error))
                            if error.kind() == io::ErrorKind::WouldBlock =>
                        {
                            return None;
                        }
                        Err(_) => self.stage = Stage::Gone,
                    }
                }
            }
        }
    }

    /// Continues to write an answer.
    fn write_answer(&mut self, mut answer: Answer) -> Written {
        while answer.written < answer.bytes.len() {
            match answer.stream.write(&answer.bytes[answer.written..]) {
                Ok(count) => answer.written += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.stage = Stage::Answer(Box::new(answer));
                    return Written::Blocked;
                }
                Err(_) => return Written::All(None),
            }
        }
        Written::All(self.answered(answer.stream, answer.reader, answer.then))
    }

    /// Continues after an answer has been written.
    fn answered(&mut self, mut stream: Stream, reader: Reader, then: Then) -> Option<News> {
        match then {
            Then::Close => {
                stream.finish();
                None
            }
            Then::Request => {
                self.stage = Stage::Request(stream, reader);
                None
            }
            Then::Open {
                compress,
                version,
                tail,
            } => {
                self.encoder = Encoder::new(compress.as_deref()).unwrap_or(Encoder::None);
                let config = WebSocketConfig::default()
                    .read_buffer_size(4096)
                    .write_buffer_size(16 * 1024)
                    .max_write_buffer_size(LARGEST_BACKLOG);
                let socket =
                    WebSocket::from_partially_read(stream, tail, Role::Server, Some(config));
                self.stage = Stage::Open(Box::new(socket));
                Some(News::Opened { version })
            }
        }
    }

    /// Answers the next request if it is complete, and otherwise reads more. Returns whether it
    /// must wait for the socket.
    fn read_request(
        &mut self,
        mut stream: Stream,
        mut reader: Reader,
        responder: &mut impl Responder,
    ) -> bool {
        let (answer, then) = match respond(&mut reader, responder) {
            Err(_) => return false,
            Ok(Some(Response::Bytes(answer, then))) => (answer, then),
            Ok(Some(Response::Slow(answer, rate))) => {
                stream.drip(rate);
                (answer, Then::Close)
            }
            Ok(Some(Response::Hang)) => {
                self.stage = Stage::Mute(stream);
                return false;
            }
            Ok(Some(Response::Reset)) => {
                stream.reset();
                return false;
            }
            Ok(None) => return self.read_on(stream, reader),
        };

        self.stage = Stage::Answer(Box::new(Answer {
            stream,
            bytes: answer,
            written: 0,
            reader,
            then,
        }));
        false
    }

    fn read_on(&mut self, mut stream: Stream, mut reader: Reader) -> bool {
        let mut chunk = [0; 16 * 1024];
        let count = match stream.read(&mut chunk) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.stage = Stage::Request(stream, reader);
                return true;
            }
            Ok(0) | Err(_) => return false,
            Ok(count) => count,
        };
        reader.push(&chunk[..count]);
        self.stage = Stage::Request(stream, reader);
        false
    }
}

fn shaken(handshake: Result<TlsStream<Line>, HandshakeError<Line>>) -> Stage {
    match handshake {
        Ok(stream) => Stage::Request(Stream::Tls(stream), Reader::default()),
        Err(HandshakeError::WouldBlock(handshake)) => Stage::Tls(handshake),
        Err(HandshakeError::Failure(error)) => {
            log::debug!("a TLS handshake with the simulated gateway failed: {error}");
            Stage::Gone
        }
    }
}

fn is_blocked(result: &tungstenite::Result<()>) -> bool {
    matches!(result, Err(tungstenite::Error::Io(error)) if error.kind() == io::ErrorKind::WouldBlock)
}

/// The reason that Discord writes into a close frame.
///
/// Source: [Discord, Gateway close event
/// codes](https://docs.discord.com/developers/topics/opcodes-and-status-codes#gateway-gateway-close-event-codes).
fn close_text(code: u16) -> &'static str {
    match code {
        4000 => "Unknown error.",
        4001 => "Unknown opcode.",
        4002 => "Error while decoding payload.",
        4003 => "Not authenticated.",
        4004 => "Authentication failed.",
        4005 => "Already authenticated.",
        4007 => "Invalid seq.",
        4008 => "You are being rate limited.",
        4009 => "Session timed out.",
        4010 => "Invalid shard.",
        4011 => "Sharding required.",
        4012 => "Invalid API version.",
        4013 => "Invalid intent(s).",
        4014 => "Disallowed intent(s).",
        _ => "",
    }
}
