//! The bytes of a connection, with or without TLS, at the speed of a bad line.

use std::io::{self, Read, Write};
use std::time::{Duration, Instant};

use mio::net::TcpStream;
use native_tls::TlsStream;

/// A line that drips may send this much of a second's bytes at once.
const DRIP: Duration = Duration::from_millis(50);

/// A TCP stream that may be slow.
#[derive(Debug)]
pub(super) struct Line {
    tcp: TcpStream,
    drip: Option<Drip>,
}

#[derive(Debug)]
struct Drip {
    bytes_per_second: u32,
    /// What may be written now.
    allowance: usize,
    since: Instant,
}

impl Line {
    pub(super) fn new(tcp: TcpStream) -> Self {
        Self { tcp, drip: None }
    }

    /// When more may be written, if the line was too slow for the last write.
    fn next_write(&self) -> Option<Instant> {
        self.drip
            .as_ref()
            .filter(|drip| drip.allowance == 0)
            .map(|drip| drip.since + DRIP)
    }
}

impl Drip {
    fn refill(&mut self, now: Instant) {
        if now >= self.since + DRIP {
            self.since = now;
            let bytes = DRIP.as_secs_f64() * f64::from(self.bytes_per_second);
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "a twentieth of a u32"
            )]
            let bytes = bytes as usize;
            self.allowance = bytes.max(1);
        }
    }
}

impl Read for Line {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.tcp.read(buffer)
    }
}

impl Write for Line {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let Some(drip) = &mut self.drip else {
            return self.tcp.write(buffer);
        };
        drip.refill(Instant::now());
        if drip.allowance == 0 && !buffer.is_empty() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let count = self
            .tcp
            .write(&buffer[..buffer.len().min(drip.allowance)])?;
        drip.allowance -= count;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.tcp.flush()
    }
}

/// A connection with or without TLS.
pub(super) enum Stream {
    Plain(Line),
    Tls(TlsStream<Line>),
}

impl Stream {
    fn line(&mut self) -> &mut Line {
        match self {
            Self::Plain(line) => line,
            Self::Tls(stream) => stream.get_mut(),
        }
    }

    pub(super) fn drip(&mut self, bytes_per_second: u32) {
        self.line().drip = Some(Drip {
            bytes_per_second,
            allowance: 0,
            since: Instant::now(),
        });
    }

    pub(super) fn next_write(&self) -> Option<Instant> {
        match self {
            Self::Plain(line) => line.next_write(),
            Self::Tls(stream) => stream.get_ref().next_write(),
        }
    }

    /// Nothing more will be written.
    pub(super) fn finish(&mut self) {
        // The answer is out; a client that is gone does not need the end of it.
        let _ = match self {
            Self::Plain(line) => line.tcp.shutdown(std::net::Shutdown::Write),
            Self::Tls(stream) => stream.shutdown(),
        };
    }

    /// Ends the connection: the other side sees FIN, though what it sent last may lie here unread.
    pub(super) fn cut(&mut self) {
        // One that is gone already is as good.
        let _ = self.line().tcp.shutdown(std::net::Shutdown::Both);
    }

    /// Lets the connection end with RST when it is dropped.
    pub(super) fn reset(&mut self) {
        // Where that cannot be, it ends with FIN: gone all the same.
        let _ = socket2::SockRef::from(&self.line().tcp).set_linger(Some(Duration::ZERO));
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(line) => line.read(buffer),
            Self::Tls(stream) => stream.read(buffer),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(line) => line.write(buffer),
            Self::Tls(stream) => stream.write(buffer),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(line) => line.flush(),
            Self::Tls(stream) => stream.flush(),
        }
    }
}
