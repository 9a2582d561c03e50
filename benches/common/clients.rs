//! The least that a client of the gateway does, for comparison.

use std::io::{Read, Write};
use std::net::TcpStream;

use flate2::{Decompress, FlushDecompress};
use tungstenite::{Message, WebSocket};
use zstd_safe::{DCtx, InBuffer, OutBuffer};

/// A client that has a thread for each shard and handles events on it.
pub(crate) trait Client {
    /// Sends a text message.
    fn send(&mut self, text: &str);
    /// Takes events, and passes each payload to a closure.
    fn take(&mut self, count: usize, see: impl FnMut(&[u8]));
}

/// A decompressor that reuses one buffer.
enum Inflater {
    Plain,
    Zlib(Decompress, Vec<u8>),
    Zstd(DCtx<'static>, Vec<u8>),
}

impl Inflater {
    /// The buffer's capacity in bytes: larger than any event.
    const ROOM: usize = 1 << 20;

    fn new(compression: &str) -> Self {
        let buffer = Vec::with_capacity(Self::ROOM);
        match compression {
            "zlib" => Self::Zlib(Decompress::new(true), buffer),
            "zstd" => Self::Zstd(DCtx::create(), buffer),
            _ => Self::Plain,
        }
    }

    fn inflate<'a>(&'a mut self, message: &'a [u8]) -> &'a [u8] {
        match self {
            Self::Plain => message,
            Self::Zlib(context, buffer) => {
                buffer.clear();
                context
                    .decompress_vec(message, buffer, FlushDecompress::Sync)
                    .expect("zlib");
                buffer
            }
            Self::Zstd(context, buffer) => {
                buffer.clear();
                let (mut input, mut output) =
                    (InBuffer::around(message), OutBuffer::around(buffer));
                while input.pos() < message.len() {
                    context
                        .decompress_stream(&mut output, &mut input)
                        .expect("zstd");
                }
                buffer
            }
        }
    }
}

/// A blocking socket, hand-written frame parsing and the decompressor: the minimum for any client.
pub(crate) struct Floor {
    stream: TcpStream,
    inflater: Inflater,
    buffer: Vec<u8>,
    /// The range of the buffer that was received and is not yet parsed.
    start: usize,
    end: usize,
}

impl Floor {
    pub(crate) fn connect(url: &str, query: &str, compression: &str) -> Self {
        let host = url.strip_prefix("ws://").expect("no TLS");
        let mut stream = TcpStream::connect(host).expect("it connects");
        stream.set_nodelay(true).expect("a socket");
        write!(
            stream,
            "GET /?{query} HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        )
        .expect("the request is sent");

        let mut answer = Vec::new();
        let mut byte = [0];
        while !answer.ends_with(b"\r\n\r\n") {
            stream.read_exact(&mut byte).expect("an answer");
            answer.push(byte[0]);
        }

        Self {
            stream,
            inflater: Inflater::new(compression),
            buffer: vec![0; 128 << 10],
            start: 0,
            end: 0,
        }
    }

    /// The header of the next frame, if it is here: where its payload begins and how long it is.
    fn header(&self) -> Option<(usize, usize)> {
        let have = &self.buffer[self.start..self.end];
        let (skip, length) = match *have.get(1)? {
            126 => (
                4,
                usize::from(u16::from_be_bytes(have.get(2..4)?.try_into().ok()?)),
            ),
            127 => (
                10,
                usize::try_from(u64::from_be_bytes(have.get(2..10)?.try_into().ok()?)).ok()?,
            ),
            short => (2, usize::from(short)),
        };
        Some((self.start + skip, length))
    }
}

impl Client for Floor {
    fn send(&mut self, text: &str) {
        // The mask is zero, so that the payload stays as it is.
        let length = u8::try_from(text.len())
            .ok()
            .filter(|length| *length < 126)
            .expect("a short text");
        let frame = [&[0x81, 0x80 | length, 0, 0, 0, 0], text.as_bytes()].concat();
        self.stream.write_all(&frame).expect("the frame is sent");
    }

    fn take(&mut self, mut count: usize, mut see: impl FnMut(&[u8])) {
        while count > 0 {
            let header = self.header();
            if let Some((at, length)) = header
                && at + length <= self.end
            {
                see(self.inflater.inflate(&self.buffer[at..at + length]));
                self.start = at + length;
                count -= 1;
                continue;
            }
            self.buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
            let needed = header.map_or(0, |(_, length)| length + 16);
            if self.buffer.len() < needed {
                self.buffer.resize(needed, 0);
            }
            self.end += self
                .stream
                .read(&mut self.buffer[self.end..])
                .expect("more bytes arrive");
        }
    }
}

/// Plain tungstenite on a blocking socket.
pub(crate) struct Bare {
    socket: WebSocket<TcpStream>,
    inflater: Inflater,
}

impl Bare {
    pub(crate) fn connect(url: &str, query: &str, compression: &str) -> Self {
        let host = url.strip_prefix("ws://").expect("no TLS");
        let stream = TcpStream::connect(host).expect("it connects");
        stream.set_nodelay(true).expect("a socket");
        let (socket, _) =
            tungstenite::client(format!("{url}/?{query}"), stream).expect("a websocket");
        Self {
            socket,
            inflater: Inflater::new(compression),
        }
    }
}

impl Client for Bare {
    fn send(&mut self, text: &str) {
        self.socket
            .send(Message::text(text))
            .expect("the message is sent");
    }

    fn take(&mut self, count: usize, mut see: impl FnMut(&[u8])) {
        for _ in 0..count {
            match self.socket.read().expect("a message") {
                Message::Text(text) => see(text.as_bytes()),
                Message::Binary(bytes) => see(self.inflater.inflate(&bytes)),
                other => panic!("{other:?}"),
            }
        }
    }
}
