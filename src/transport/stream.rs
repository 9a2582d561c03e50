//! The bytes below the websocket: read in large pieces, with or without TLS, and counted.

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
    Plain(Buffered<TcpStream>),
    Tls(TlsStream<Buffered<TcpStream>>),
}

impl Stream {
    /// See [`Buffered::shrink`].
    pub(super) fn shrink(&mut self) {
        match self {
            Self::Plain(stream) => stream.shrink(),
            Self::Tls(stream) => stream.get_mut().shrink(),
        }
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

/// A stream that is read in large pieces and handed on in small ones, through a buffer that grows while more comes than it holds.
///
/// It always asks once more, until the system says `WouldBlock`. A read that filled no buffer would tell as much, but only as long as no
/// edge has come since, and a shard without credit waits between the two.
pub(super) struct Buffered<S> {
    stream: S,
    buffer: Box<[u8]>,
    /// What of the buffer has come and has not been handed on.
    start: usize,
    end: usize,
}

impl<S> Buffered<S> {
    pub(super) fn new(stream: S) -> Self {
        Self { stream, buffer: vec![0; SMALL].into(), start: 0, end: 0 }
    }

    /// What is below.
    #[cfg(test)]
    pub(super) fn get_mut(&mut self) -> &mut S {
        &mut self.stream
    }

    /// Has a small buffer again, if nothing is in it.
    fn shrink(&mut self) {
        if self.start == self.end && self.buffer.len() > SMALL {
            self.buffer = vec![0; SMALL].into();
        }
    }
}

impl<S: Read> Read for Buffered<S> {
    fn read(&mut self, output: &mut [u8]) -> io::Result<usize> {
        if self.start == self.end {
            if self.end == self.buffer.len() && self.end < LARGE {
                // It was full: more has come than it holds.
                self.buffer = vec![0; LARGE].into();
            }
            (self.start, self.end) = (0, 0);
            self.end = self.stream.read(&mut self.buffer)?;
        }
        let length = output.len().min(self.end - self.start);
        output[..length].copy_from_slice(&self.buffer[self.start..][..length]);
        self.start += length;
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

/// A stream that counts what it hands on, so that its owner can tell whether the websocket above holds a part of a frame.
pub(super) struct Counted<S> {
    stream: S,
    /// How much of the end of the head has been handed on, or all of it.
    head: usize,
    /// Bytes handed on after the head.
    handed_on: u64,
}

impl<S> Counted<S> {
    pub(super) fn new(stream: S) -> Self {
        Self { stream, head: 0, handed_on: 0 }
    }

    /// What is below.
    pub(super) fn get_mut(&mut self) -> &mut S {
        &mut self.stream
    }

    /// Bytes handed on after the head of the answer to the upgrade.
    pub(super) fn handed_on(&self) -> u64 {
        self.handed_on
    }

    /// Looks for the end of the head. Returns how much of this lies behind it.
    fn behind_head(&mut self, mut bytes: &[u8]) -> usize {
        while self.head < END_OF_HEAD.len()
            && let [byte, rest @ ..] = bytes
        {
            // The byte that does not fit may be the first of a new end.
            self.head = if *byte == END_OF_HEAD[self.head] { self.head + 1 } else { usize::from(*byte == b'\r') };
            bytes = rest;
        }
        bytes.len()
    }
}

impl<S: Read> Read for Counted<S> {
    fn read(&mut self, output: &mut [u8]) -> io::Result<usize> {
        let length = self.stream.read(output)?;
        self.handed_on += self.behind_head(&output[..length]) as u64;
        Ok(length)
    }
}

impl<S: Write> Write for Counted<S> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        self.stream.write(buffer)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}
