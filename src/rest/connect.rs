//! Makes the HTTP client's connections in the same way as those of the shards.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ureq::config::Config;
use ureq::http::Uri;
use ureq::http::uri::Scheme;
use ureq::unversioned::resolver::{DefaultResolver, ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{
    Buffers, ConnectionDetails, Connector, LazyBuffers, NextTimeout, Transport,
};
use ureq::{Error, Timeout};

use crate::dial::{DialError, Dialer};
use crate::hosts::host_and_port;

/// The longest that connecting may take, even if the call has more time.
const MAX_CONNECT: Duration = Duration::from_secs(60);

/// Resolves the host to connect to: the proxy if there is one, which resolves the target itself.
pub(super) struct Names {
    pub(super) dialer: Arc<Dialer>,
    pub(super) system: DefaultResolver,
}

impl Resolver for Names {
    fn resolve(
        &self,
        uri: &Uri,
        config: &Config,
        timeout: NextTimeout,
    ) -> Result<ResolvedSocketAddrs, Error> {
        let (host, port) = host_and_port(uri);
        let (host, port) = self.dialer.route(host, port);
        let there = Uri::builder()
            .scheme(Scheme::HTTP)
            .authority(format!("{host}:{port}"))
            .path_and_query("/")
            .build()?;

        let resolved = self.system.resolve(&there, config, timeout);
        resolved.map_err(|error| match error {
            Error::Io(error) => {
                let (host, port) = host_and_port(uri);
                let unreachable = self.dialer.unreachable(host, port, error);
                unreachable.map_or_else(Error::Io, |error| Error::Other(Box::new(error)))
            }
            error => error,
        })
    }
}

impl fmt::Debug for Names {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Names(..)")
    }
}

/// Opens TCP connections.
#[derive(Debug)]
pub(super) struct Tcp(pub(super) Arc<Dialer>);

impl Connector for Tcp {
    type Out = Connection;

    fn connect(
        &self,
        details: &ConnectionDetails<'_>,
        _: Option<()>,
    ) -> Result<Option<Connection>, Error> {
        let (host, port) = host_and_port(details.uri);
        let timeout = left(details.timeout)?.unwrap_or(Duration::MAX);
        let deadline = Instant::now() + timeout.min(MAX_CONNECT);

        let addresses = details.addrs.iter().copied().collect();
        let stream = self.0.connect(host, port, addresses, deadline);
        let (stream, address) = stream.map_err(|error| match error {
            DialError::Io(error) if error.kind() == io::ErrorKind::TimedOut => {
                Error::Timeout(if timeout > MAX_CONNECT {
                    Timeout::Connect
                } else {
                    details.timeout.reason
                })
            }
            DialError::Io(error) | DialError::Resolve(error) => Error::Io(error),
            DialError::Proxy(error) => Error::Other(Box::new(error)),
        })?;

        let config = details.config;
        Ok(Some(Connection {
            stream,
            route: Route {
                dialer: Arc::clone(&self.0),
                host: host.to_owned(),
                port,
                address,
                has_answered: false,
            },
            buffers: LazyBuffers::new(config.input_buffer_size(), config.output_buffer_size()),
        }))
    }
}

/// A TCP connection of the HTTP client.
pub(super) struct Connection {
    stream: TcpStream,
    route: Route,
    buffers: LazyBuffers,
}

/// The host and the IP address of a connection. If the connection ends without an answer, the IP
/// address counts as failed.
struct Route {
    dialer: Arc<Dialer>,
    host: String,
    port: u16,
    address: SocketAddr,
    has_answered: bool,
}

impl Route {
    fn note_answer(&mut self) {
        if !self.has_answered {
            self.has_answered = true;
            self.remember();
        }
    }

    fn remember(&self) {
        self.dialer
            .remember(&self.host, self.port, self.address, self.has_answered);
    }
}

impl Drop for Route {
    fn drop(&mut self) {
        if !self.has_answered {
            self.remember();
        }
    }
}

impl Transport for Connection {
    fn buffers(&mut self) -> &mut dyn Buffers {
        &mut self.buffers
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), Error> {
        let timeout = timeout.for_write();
        let deadline = left(timeout)?.map(|left| Instant::now() + left);
        let mut output = &self.buffers.output()[..amount];
        while !output.is_empty() {
            self.stream.set_write_timeout(until(deadline, timeout)?)?;
            match self.stream.write(output) {
                Ok(0) => return Err(io::Error::from(io::ErrorKind::WriteZero).into()),
                Ok(count) => output = &output[count..],
                // A signal interrupted the call.
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(or_timeout(error, timeout)),
            }
        }
        Ok(())
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, Error> {
        let timeout = timeout.for_read();
        let deadline = left(timeout)?.map(|left| Instant::now() + left);
        loop {
            self.stream.set_read_timeout(until(deadline, timeout)?)?;
            match self.stream.read(self.buffers.input_append_buf()) {
                Ok(count) => {
                    self.buffers.input_appended(count);
                    if count > 0 {
                        self.route.note_answer();
                    }
                    return Ok(count > 0);
                }
                // A signal interrupted the call.
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(or_timeout(error, timeout)),
            }
        }
    }

    /// Whether an idle connection can be used again. If there is something to read, it cannot: no
    /// request is in flight, so the peer has closed the connection or sent unexpected data.
    fn is_open(&mut self) -> bool {
        let is_blocked = |error: io::Error| error.kind() == io::ErrorKind::WouldBlock;
        self.stream.set_nonblocking(true).is_ok()
            && self.stream.peek(&mut [0]).is_err_and(is_blocked)
            && self.stream.set_nonblocking(false).is_ok()
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Connection(..)")
    }
}

/// The time that is left; `None` if it is not limited. No time left is an error.
fn left(timeout: NextTimeout) -> Result<Option<Duration>, Error> {
    if timeout.after.is_zero() {
        return Err(Error::Timeout(timeout.reason));
    }
    Ok(timeout.not_zero().map(|after| *after))
}

/// How long a system call may take; `None` if it is not limited. No time left is an error.
fn until(deadline: Option<Instant>, timeout: NextTimeout) -> Result<Option<Duration>, Error> {
    let left = deadline.map(|at| at.saturating_duration_since(Instant::now()));
    match left {
        Some(Duration::ZERO) => Err(Error::Timeout(timeout.reason)),
        left => Ok(left),
    }
}

/// Converts an I/O error. Unix reports a timeout as `WouldBlock`.
fn or_timeout(error: io::Error, timeout: NextTimeout) -> Error {
    match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Error::Timeout(timeout.reason),
        _ => Error::Io(error),
    }
}
