//! The byte stream of a connection, with or without TLS, at a limited speed if requested.

use std::io::{self, Read, Write};
use std::time::{Duration, Instant};

use mio::net::TcpStream;
use native_tls::TlsStream;

/// The interval of a slow connection: it may write the bytes of one interval at once.
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
    /// The number of bytes that may be written now.
    allowance: usize,
    since: Instant,
}

impl Line {
    pub(super) fn new(tcp: TcpStream) -> Self {
        Self { tcp, drip: None }
    }

    /// When more may be written, if the speed limit is used up.
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

    /// Shuts the writing side down.
    pub(super) fn finish(&mut self) {
        // An error is harmless: the answer is written, or the client is gone.
        let _ = match self {
            Self::Plain(line) => line.tcp.shutdown(std::net::Shutdown::Write),
            Self::Tls(stream) => stream.shutdown(),
        };
    }

    /// Shuts both sides down. The client sees FIN, even if its last bytes are still unread here.
    pub(super) fn cut(&mut self) {
        // An error is harmless: the connection has already ended.
        let _ = self.line().tcp.shutdown(std::net::Shutdown::Both);
    }

    /// Makes the connection end with RST when it is dropped.
    pub(super) fn reset(&mut self) {
        // On an error the connection ends with FIN instead.
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
