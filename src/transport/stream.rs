//! The bytes below the websocket: with or without TLS, through a buffer that grows while more comes than it holds.

use std::io::{self, Read, Write};

use mio::net::TcpStream;
use native_tls::TlsStream;

/// What a connection has as long as little comes.
const SMALL: usize = 4 << 10;

/// What it has once that was too small: a system call in thirty events then, and as much as a second-level cache likes.
const LARGE: usize = 64 << 10;

/// The end of an HTTP answer's head.
const END_OF_HEAD: &[u8] = b"\r\n\r\n";

/// A connection with or without TLS.
pub(super) enum Stream {
    Plain(TcpStream),
    Tls(TlsStream<TcpStream>),
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

/// A stream that is read in large pieces and handed on in small ones. It counts what it hands on, so that its owner can tell
/// whether the websocket above holds a part of a frame.
pub(super) struct Buffered<S> {
    stream: S,
    buffer: Box<[u8]>,
    /// What of the buffer has come and has not been handed on.
    start: usize,
    end: usize,
    /// How much of the end of the head has been handed on, or all of it.
    head: usize,
    /// Bytes handed on after the head.
    handed_on: u64,
}

impl<S> Buffered<S> {
    pub(super) fn new(stream: S) -> Self {
        Self { stream, buffer: vec![0; SMALL].into(), start: 0, end: 0, head: 0, handed_on: 0 }
    }

    /// Bytes handed on after the head of the answer to the upgrade.
    pub(super) fn handed_on(&self) -> u64 {
        self.handed_on
    }

    /// What is below.
    #[cfg(test)]
    pub(super) fn get_mut(&mut self) -> &mut S {
        &mut self.stream
    }

    /// Whether everything that has come was handed on.
    pub(super) fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// Has a small buffer again, if nothing is in it.
    pub(super) fn shrink(&mut self) {
        if self.is_empty() && self.buffer.len() > SMALL {
            self.buffer = vec![0; SMALL].into();
        }
    }

    /// Counts what is handed on.
    fn count(&mut self, bytes: &[u8]) {
        let mut bytes = bytes;
        while self.head < END_OF_HEAD.len()
            && let [byte, rest @ ..] = bytes
        {
            // The byte that does not fit may be the first of a new end.
            self.head = if *byte == END_OF_HEAD[self.head] { self.head + 1 } else { usize::from(*byte == b'\r') };
            bytes = rest;
        }
        self.handed_on += bytes.len() as u64;
    }
}

impl<S: Read> Read for Buffered<S> {
    fn read(&mut self, output: &mut [u8]) -> io::Result<usize> {
        if self.is_empty() {
            if self.end == self.buffer.len() && self.end < LARGE {
                // It was full: more has come than it holds.
                self.buffer = vec![0; LARGE].into();
            }
            (self.start, self.end) = (0, 0);
            self.end = self.stream.read(&mut self.buffer)?;
        }
        let length = output.len().min(self.end - self.start);
        let (start, end) = (self.start, self.start + length);
        output[..length].copy_from_slice(&self.buffer[start..end]);
        self.start = end;
        if self.head < END_OF_HEAD.len() {
            self.count(&output[..length]);
        } else {
            self.handed_on += length as u64;
        }
        Ok(length)
    }
}

impl<S: Write> Write for Buffered<S> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        self.stream.write(buffer)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}
