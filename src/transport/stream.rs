//! The bytes below the websocket: read in large pieces, with or without TLS, and counted.

use std::io::{self, Read, Write};

use mio::net::TcpStream;
use native_tls::TlsStream;

/// What a connection with TLS has as long as little comes: a record's header is read apart from its
/// content.
pub(super) const SMALL: usize = 4 << 10;

/// After so many reads in a row that filled all there was, a connection has a large buffer.
const ENOUGH: u32 = 4;

/// Its size: a system call in thirty events then, and as much as a second-level cache likes.
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

/// A stream that is read in large pieces and handed on in small ones, through a buffer that grows
/// once more comes than fits into what there is.
///
/// It always asks once more, until the system says `WouldBlock`. A read that filled no buffer would
/// tell as much, but only as long as no edge has come since, and a shard without credit waits
/// between the two.
pub(super) struct Buffered<S> {
    stream: S,
    buffer: Box<[u8]>,
    /// How large it is as long as little comes; without one, the stream is read into what the
    /// reader has.
    small: usize,
    /// What of the buffer has come and has not been handed on.
    start: usize,
    end: usize,
    /// How many of the last reads filled all that there was.
    filled: u32,
}

impl<S> Buffered<S> {
    pub(super) fn new(stream: S, small: usize) -> Self {
        Self {
            stream,
            buffer: vec![0; small].into(),
            small,
            start: 0,
            end: 0,
            filled: 0,
        }
    }

    /// What is below.
    #[cfg(test)]
    pub(super) fn get_mut(&mut self) -> &mut S {
        &mut self.stream
    }

    /// Has a small buffer again, if nothing is in it.
    fn shrink(&mut self) {
        if self.start == self.end && self.buffer.len() > self.small {
            self.buffer = vec![0; self.small].into();
        }
    }
}

impl<S: Read> Read for Buffered<S> {
    fn read(&mut self, output: &mut [u8]) -> io::Result<usize> {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
            if self.filled >= ENOUGH && self.buffer.len() < LARGE {
                self.buffer = vec![0; LARGE].into();
            }
            let into = if self.buffer.is_empty() {
                &mut *output
            } else {
                &mut self.buffer
            };
            let length = self.stream.read(into).inspect_err(|_| self.filled = 0)?;
            self.filled = if length == into.len() {
                self.filled.saturating_add(1)
            } else {
                0
            };
            if self.buffer.is_empty() {
                return Ok(length);
            }
            self.end = length;
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

/// A stream that counts what it hands on, so that its owner can tell whether the websocket above
/// holds a part of a frame.
pub(super) struct Counted<S> {
    stream: S,
    /// How much of the end of the head has been handed on, or all of it.
    head: usize,
    /// Bytes handed on after the head.
    handed_on: u64,
}

impl<S> Counted<S> {
    pub(super) fn new(stream: S) -> Self {
        Self {
            stream,
            head: 0,
            handed_on: 0,
        }
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
            self.head = if *byte == END_OF_HEAD[self.head] {
                self.head + 1
            } else {
                usize::from(*byte == b'\r')
            };
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives what it has in pieces of any size, and says now and then that there is nothing.
    struct Pieces(Vec<u8>, fastrand::Rng);

    impl Read for Pieces {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            if self.1.u8(..8) == 0 {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            let most = if self.1.bool() {
                usize::MAX
            } else {
                self.1.usize(1..9000)
            };
            let length = most.min(buffer.len()).min(self.0.len());
            buffer[..length].copy_from_slice(&self.0[..length]);
            self.0.drain(..length);
            Ok(length)
        }
    }

    #[test]
    fn nothing_is_lost_while_the_buffer_grows_and_shrinks() {
        for (seed, small) in (0..100).flat_map(|seed| [(seed, 0), (seed, SMALL)]) {
            let mut rng = fastrand::Rng::with_seed(seed);
            let sent: Vec<u8> = (0..300_000_u32)
                .map(|n| n.to_le_bytes()[n as usize % 3])
                .collect();
            let mut stream = Buffered::new(Pieces(sent.clone(), rng.fork()), small);
            let (mut came, mut largest) = (Vec::new(), 0);
            while came.len() < sent.len() {
                let mut output = vec![0; rng.usize(1..8000)];
                match stream.read(&mut output) {
                    Ok(length) => came.extend_from_slice(&output[..length]),
                    Err(_) => stream.shrink(),
                }
                largest = largest.max(stream.buffer.len());
            }
            assert!(came == sent, "seed {seed}");
            stream.shrink();
            assert_eq!(
                (largest, stream.buffer.len()),
                (LARGE, small),
                "seed {seed}"
            );
        }
    }
}
