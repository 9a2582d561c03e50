//! The byte streams below the websocket: with or without TLS, read in large pieces, and followed
//! frame by frame.

use std::io::{self, Read, Write};

use mio::net::TcpStream;
use native_tls::TlsStream;

use super::pages::Pages;

/// The buffer size of a TLS connection as long as little arrives. It needs a buffer because TLS
/// reads a record's header apart from its content.
pub(super) const SMALL: usize = 4 << 10;

/// After this number of consecutive reads that filled the whole buffer, a connection gets a large
/// buffer.
const ENOUGH: u32 = 4;

/// The size of the large buffer: about one system call for thirty events, and small enough for a
/// second-level cache.
const LARGE: usize = 64 << 10;

/// The end of an HTTP response head.
const END_OF_HEAD: &[u8] = b"\r\n\r\n";

/// A connection with or without TLS.
pub(super) enum Stream {
    Plain(Buffered<TcpStream>),
    Tls(TlsStream<Buffered<TcpStream>>),
}

impl Stream {
    /// The buffered stream below TLS, if there is TLS.
    pub(super) fn buffered(&mut self) -> &mut Buffered<TcpStream> {
        match self {
            Self::Plain(stream) => stream,
            Self::Tls(stream) => stream.get_mut(),
        }
    }
}

/// A stream whose sending side may end before its receiving side.
pub(super) trait Line: Read + Write {
    /// Whether a write has failed. What is written after that is dropped.
    fn has_write_failed(&self) -> bool;
}

impl Line for Stream {
    fn has_write_failed(&self) -> bool {
        match self {
            Self::Plain(stream) => stream.has_write_failed(),
            Self::Tls(stream) => stream.get_ref().has_write_failed(),
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

/// A stream that is read in large pieces and delivers small ones. Its buffer grows if more arrives
/// than fits into it.
///
/// When a write fails, only the sending side has ended: what the peer sent before, and why it
/// closed, can still be read. The layers above would stop at an error, so writes then succeed and
/// their bytes are dropped. The layers above continue to read until the peer's side ends as well.
///
/// Once it [trusts edges](Self::trust_edges), it makes no further system call after a read that
/// left room in the buffer. That read has taken all there was, and an edge will report more.
pub(super) struct Buffered<S> {
    stream: S,
    /// The buffer as long as little arrives. If it has no bytes, the stream is read directly into
    /// the reader's buffer.
    small: Box<[u8]>,
    /// The buffer while much arrives.
    large: Option<Pages>,
    /// The bytes of the buffer from `start` to `end` have arrived and have not been delivered.
    start: usize,
    end: usize,
    /// The number of consecutive reads that filled the whole buffer.
    filled: u32,
    trusts_edges: bool,
    /// Whether all that has arrived since the last edge is read.
    is_drained: bool,
    has_write_failed: bool,
}

impl<S> Buffered<S> {
    pub(super) fn new(stream: S, small: usize) -> Self {
        Self {
            stream,
            small: vec![0; small].into(),
            large: None,
            start: 0,
            end: 0,
            filled: 0,
            trusts_edges: false,
            is_drained: false,
            has_write_failed: false,
        }
    }

    /// Trusts edges from now on: the owner calls [`edge_came`](Self::edge_came) for each of them.
    /// Only on Linux and Android; other systems do not guarantee what this relies on.
    ///
    /// Source: [epoll(7)](https://man7.org/linux/man-pages/man7/epoll.7.html), Questions and
    /// answers, on when a stream socket is drained.
    pub(super) fn trust_edges(&mut self) {
        self.trusts_edges = cfg!(any(target_os = "linux", target_os = "android"));
    }

    /// Notes that an edge has come. The edge that reports the peer's end may report data as well,
    /// and no other edge follows it. So after that edge, each read calls the system.
    pub(super) fn edge_came(&mut self, has_ended: bool) {
        self.is_drained = false;
        self.trusts_edges &= !has_ended;
    }

    /// The stream below.
    #[cfg(test)]
    pub(super) fn get_mut(&mut self) -> &mut S {
        &mut self.stream
    }

    /// Returns to the small buffer, if the buffer is empty.
    pub(super) fn shrink(&mut self) {
        if self.start == self.end {
            self.large = None;
        }
    }
}

impl<S: Read> Read for Buffered<S> {
    fn read(&mut self, output: &mut [u8]) -> io::Result<usize> {
        if self.start == self.end {
            if self.is_drained {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            (self.start, self.end) = (0, 0);
            if self.filled >= ENOUGH && self.large.is_none() {
                self.large = Pages::new(LARGE);
            }
            let buffer = match &mut self.large {
                Some(large) => large.all(),
                None => &mut self.small,
            };

            let is_direct = buffer.is_empty();
            let into = if is_direct { &mut *output } else { buffer };
            let length = self.stream.read(into).inspect_err(|_| self.filled = 0)?;
            let is_full = length == into.len();
            self.filled = if is_full {
                self.filled.saturating_add(1)
            } else {
                0
            };
            self.is_drained = self.trusts_edges && !is_full && length > 0;
            if is_direct {
                return Ok(length);
            }
            self.end = length;
        }

        let buffer = match &self.large {
            Some(large) => large.as_ref(),
            None => &self.small,
        };
        let length = output.len().min(self.end - self.start);
        output[..length].copy_from_slice(&buffer[self.start..][..length]);
        self.start += length;
        Ok(length)
    }
}

impl<S: Read + Write> Line for Buffered<S> {
    fn has_write_failed(&self) -> bool {
        self.has_write_failed
    }
}

impl<S: Write> Buffered<S> {
    /// The result of a write; `dropped` if the write has failed because the sending side has ended.
    fn or_dropped<T>(&mut self, written: io::Result<T>, dropped: T) -> io::Result<T> {
        match written {
            Err(error)
                if !matches!(
                    error.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
                ) =>
            {
                log::debug!("sending failed: {error}; only reading continues");
                self.has_write_failed = true;
                Ok(dropped)
            }
            written => written,
        }
    }
}

impl<S: Write> Write for Buffered<S> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        if self.has_write_failed {
            return Ok(buffer.len());
        }
        let written = self.stream.write(buffer);
        self.or_dropped(written, buffer.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.has_write_failed {
            return Ok(());
        }
        let flushed = self.stream.flush();
        self.or_dropped(flushed, ())
    }
}

/// A stream that follows the messages in both directions. So its owner knows which messages the
/// peer can have received, and whether the websocket above holds a part of one.
pub(super) struct Followed<S> {
    stream: S,
    incoming: Messages,
    outgoing: Messages,
}

impl<S> Followed<S> {
    pub(super) fn new(stream: S) -> Self {
        Self {
            stream,
            incoming: Messages::default(),
            outgoing: Messages::default(),
        }
    }

    /// The stream below.
    pub(super) fn get_mut(&mut self) -> &mut S {
        &mut self.stream
    }

    /// The number of messages that were written completely. Control frames (pongs, closes) do not
    /// count.
    pub(super) fn written(&self) -> u64 {
        self.outgoing.count
    }

    /// Whether what was read so far ends with a whole message.
    pub(super) fn is_between_messages(&self) -> bool {
        self.incoming.is_between()
    }
}

impl<S: Line> Followed<S> {
    pub(super) fn has_write_failed(&self) -> bool {
        self.stream.has_write_failed()
    }
}

impl<S: Read> Read for Followed<S> {
    fn read(&mut self, output: &mut [u8]) -> io::Result<usize> {
        let length = self.stream.read(output)?;
        self.incoming.follow(&output[..length]);
        Ok(length)
    }
}

impl<S: Line> Write for Followed<S> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let length = self.stream.write(buffer)?;
        if !self.stream.has_write_failed() {
            self.outgoing.follow(&buffer[..length]);
        }
        Ok(length)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

/// Follows the websocket messages in one direction of a connection, after the head of the HTTP
/// upgrade.
///
/// Source: [RFC 6455, Base Framing
/// Protocol](https://datatracker.ietf.org/doc/html/rfc6455#section-5.2).
#[derive(Default)]
struct Messages {
    /// How many bytes of [`END_OF_HEAD`] have passed; all of them once the head has ended.
    head: usize,
    /// The part that has passed of the current frame's header.
    header: Vec<u8>,
    /// The number of bytes of the frame's payload that have not passed.
    left: u64,
    /// Whether a message has begun and its last frame has not passed.
    is_unfinished: bool,
    /// The number of messages that have passed.
    count: u64,
}

impl Messages {
    fn is_between(&self) -> bool {
        self.header.is_empty() && !self.is_unfinished
    }

    /// Follows bytes that pass.
    fn follow(&mut self, bytes: &[u8]) {
        let mut bytes = self.behind_head(bytes);
        while !bytes.is_empty() {
            if self.left > 0 {
                let passed = bytes
                    .len()
                    .min(usize::try_from(self.left).unwrap_or(usize::MAX));
                self.left -= passed as u64;
                bytes = &bytes[passed..];
            } else {
                self.header.push(bytes[0]);
                bytes = &bytes[1..];
                let Some(length) = payload_length(&self.header) else {
                    continue;
                };
                self.left = length;
            }
            if self.left == 0 {
                self.end_frame();
            }
        }
    }

    fn end_frame(&mut self) {
        let first = self.header[0];
        self.header.clear();
        let (is_last, is_control) = (first & 0x80 != 0, first & 0x08 != 0);
        // Control frames may come between the frames of a message.
        if !is_control {
            self.is_unfinished = !is_last;
            self.count += u64::from(is_last);
        }
    }

    /// Looks for the end of the head. Returns the bytes after it.
    fn behind_head<'a>(&mut self, mut bytes: &'a [u8]) -> &'a [u8] {
        while self.head < END_OF_HEAD.len()
            && let [byte, rest @ ..] = bytes
        {
            // A byte that does not match may be the first byte of the end itself.
            self.head = if *byte == END_OF_HEAD[self.head] {
                self.head + 1
            } else {
                usize::from(*byte == b'\r')
            };
            bytes = rest;
        }
        bytes
    }
}

/// The length of a frame's payload; `None` until the header is complete.
fn payload_length(header: &[u8]) -> Option<u64> {
    let [_, second, rest @ ..] = header else {
        return None;
    };

    let extended = match second & 0x7f {
        126 => 2,
        127 => 8,
        _ => 0,
    };
    let mask = if second & 0x80 == 0 { 0 } else { 4 };
    if rest.len() < extended + mask {
        return None;
    }

    let length = |bytes: &[u8]| {
        bytes
            .iter()
            .fold(0, |length, byte| length << 8 | u64::from(*byte))
    };
    Some(match extended {
        0 => u64::from(second & 0x7f),
        _ => length(&rest[..extended]),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Delivers its bytes in pieces of random size, and sometimes returns `WouldBlock`.
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
            if rng.bool() {
                stream.trust_edges();
            }
            let (mut came, mut has_grown) = (Vec::new(), false);
            while came.len() < sent.len() {
                let mut output = vec![0; rng.usize(1..8000)];
                if let Ok(length) = stream.read(&mut output) {
                    came.extend_from_slice(&output[..length]);
                } else {
                    stream.shrink();
                    stream.edge_came(false);
                }
                has_grown |= stream.large.is_some();
            }
            assert!(came == sent, "seed {seed}");
            stream.shrink();
            assert!(has_grown && stream.large.is_none(), "seed {seed}");
        }
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn after_a_read_that_left_room_the_next_one_waits_for_an_edge() {
        /// Counts how many times it is read.
        struct Counted(u32);

        impl Read for Counted {
            fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
                self.0 += 1;
                Ok(buffer.len().min(3))
            }
        }

        let mut stream = Buffered::new(Counted(0), 0);
        stream.trust_edges();
        let mut read = |length| match stream.read(&mut vec![0; length]) {
            Ok(length) => Some(length),
            Err(error) => {
                assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
                None
            }
        };
        assert_eq!([read(2), read(3)], [Some(2), Some(3)], "there may be more");
        assert_eq!([read(4), read(4), read(4)], [Some(3), None, None]);
        stream.edge_came(false);
        let mut read = |length| stream.read(&mut vec![0; length]).ok();
        assert_eq!([read(4), read(4)], [Some(3), None]);
        stream.edge_came(true);
        let mut read = |length| stream.read(&mut vec![0; length]).ok();
        assert_eq!([read(4), read(4)], [Some(3), Some(3)], "until the end");
        assert_eq!(stream.stream.0, 6);
    }

    #[test]
    fn messages_are_followed_however_they_are_cut() {
        use tungstenite::protocol::frame::Frame;
        use tungstenite::protocol::frame::coding::{Data, OpCode};

        let mut bytes = b"GET / HTTP/1.1\r\nhost: x\r\n\r\r\n\r\n".to_vec();
        let (mut ends, mut begins) = (vec![], bytes.len());
        let mut frame = |opcode, length: usize, is_last: bool, is_masked: bool| {
            let mut frame = Frame::message(vec![b'x'; length], opcode, is_last);
            frame.header_mut().mask = is_masked.then_some([1, 2, 3, 4]);
            frame.format(&mut bytes).unwrap();
            if is_last {
                ends.push(bytes.len());
            }
        };
        let (text, more) = (OpCode::Data(Data::Text), OpCode::Data(Data::Continue));
        for length in [0, 1, 125, 126, 65_535, 65_536, 100_000] {
            frame(text, length, true, false);
            frame(text, length, true, true);
        }
        frame(text, 40_000, false, true);
        frame(more, 0, false, false);
        Frame::ping(vec![b'x'; 5]).format(&mut bytes).unwrap();
        let mut frame = |opcode, length: usize, is_last: bool| {
            let frame = Frame::message(vec![b'x'; length], opcode, is_last);
            frame.format(&mut bytes).unwrap();
        };
        frame(more, 40_000, true);
        ends.push(bytes.len());

        let mut rng = fastrand::Rng::with_seed(1);
        for longest in [1, 3, 1000, 100_000] {
            let (mut messages, mut at) = (Messages::default(), 0);
            while at < bytes.len() {
                let length = rng.usize(1..=longest).min(bytes.len() - at);
                messages.follow(&bytes[at..at + length]);
                at += length;
                let passed = ends.iter().filter(|end| **end <= at).count();
                assert_eq!(messages.count, passed as u64, "at {at}");
                let is_between = at == begins || ends.contains(&at);
                assert!(!is_between || messages.is_between(), "at {at}");
                if at > begins && !messages.is_between() {
                    assert!(!ends.contains(&at));
                }
            }
            assert!(messages.is_between());
        }
        begins += 1;
        let mut messages = Messages::default();
        messages.follow(&bytes[..begins]);
        assert!(!messages.is_between(), "a frame has begun");
    }

    /// Accepts this number of bytes, then fails forever.
    struct Failing(usize);

    impl Read for Failing {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(io::ErrorKind::WouldBlock.into())
        }
    }

    impl Write for Failing {
        fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
            if self.0 == 0 {
                return Err(io::ErrorKind::BrokenPipe.into());
            }
            let length = buffer.len().min(self.0);
            self.0 -= length;
            Ok(length)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn what_is_dropped_after_a_write_error_does_not_count_as_written() {
        let mut stream = Followed::new(Buffered::new(Failing(4 + 7 + 3), 0));
        stream.write_all(b"\r\n\r\n").unwrap();
        // A frame with one masked byte has 7 bytes.
        let frame = [0x81, 0x81, 1, 2, 3, 4, 5];
        for written in [1, 1, 1] {
            stream.write_all(&frame).unwrap();
            assert_eq!(stream.written(), written);
        }
        assert!(stream.has_write_failed());
    }
}
