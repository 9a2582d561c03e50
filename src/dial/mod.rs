//! Opens TCP connections, to the first of a host's IP addresses that answers, and through a proxy.

mod proxy;
mod race;

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream as BlockingStream, ToSocketAddrs};
use std::time::Instant;

use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Registry, Token};
use parking_lot::Mutex;

pub(crate) use self::proxy::Proxy;
use self::proxy::Tunnel;
pub use self::proxy::{ProxyError, ProxyFailure};
use self::race::Race;
use crate::clock;

/// The most hosts that are remembered. Usually there are two. The limit keeps a peer that names
/// more and more hosts from using more and more memory.
const MAX_HOSTS: usize = 64;

/// The most attempts that run at once. One more cancels the oldest. Each takes a descriptor, and
/// many shards may connect at once.
const MAX_RUNNING: usize = 3;

/// The buffer size for a proxy's answer, in bytes.
const ANSWER: usize = 1024;

/// The share of the time for a connection within which a proxy must answer. The rest is for the
/// handshakes that follow.
const PROXY_SHARE: f64 = 0.75;

/// Opens the connections of a client, and remembers which IP addresses have worked.
#[derive(Debug, Default)]
pub(crate) struct Dialer {
    proxy: Option<Proxy>,
    /// The outcome of the last connection to each host and port.
    outcomes: Mutex<HashMap<String, Outcome>>,
}

#[derive(Clone, Copy, Debug)]
struct Outcome {
    address: SocketAddr,
    has_worked: bool,
}

/// Why a connection cannot be opened.
#[derive(Debug)]
pub(crate) enum DialError {
    /// The host's name does not resolve.
    Resolve(io::Error),
    Io(io::Error),
    Proxy(ProxyError),
}

impl From<io::Error> for DialError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<ProxyError> for DialError {
    fn from(error: ProxyError) -> Self {
        Self::Proxy(error)
    }
}

impl Dialer {
    pub(crate) fn new(proxy: Option<Proxy>) -> Self {
        Self {
            proxy,
            outcomes: Mutex::default(),
        }
    }

    /// Returns the host and port whose IP addresses to connect to, in order to reach a host and
    /// port: the same, or those of the proxy, which resolves the target itself.
    pub(crate) fn route<'a>(&'a self, host: &'a str, port: u16) -> (&'a str, u16) {
        self.proxy
            .as_ref()
            .map_or((host, port), Proxy::host_and_port)
    }

    /// Resolves the IP addresses of a host's [route](Self::route). Blocks, and cannot be
    /// interrupted.
    pub(crate) fn resolve(&self, host: &str, port: u16) -> Result<Vec<SocketAddr>, DialError> {
        let (name, port_there) = self.route(host, port);
        let name = name.trim_start_matches('[').trim_end_matches(']');
        let resolved = (name, port_there)
            .to_socket_addrs()
            .map(Iterator::collect::<Vec<_>>);
        let resolved = resolved.and_then(|addresses| match addresses[..] {
            [] => Err(io::ErrorKind::NotFound.into()),
            _ => Ok(addresses),
        });
        resolved.map_err(|error| {
            let unreachable = self.unreachable(host, port, error);
            unreachable.map_or_else(DialError::Resolve, DialError::Proxy)
        })
    }

    /// Begins to connect to a host and port. `addresses` are those of its [route](Self::route).
    pub(crate) fn dial(
        &self,
        host: &str,
        port: u16,
        addresses: Vec<SocketAddr>,
        deadline: Instant,
    ) -> Dial {
        let target = target(host, port);
        let outcome = self.outcomes.lock().get(&target).copied();
        let [first, last] = [true, false].map(|has_worked| {
            let outcome = outcome.filter(|outcome| outcome.has_worked == has_worked);
            outcome.map(|outcome| outcome.address)
        });

        let answer_by = clock::now();
        let answer_by = answer_by
            + deadline
                .saturating_duration_since(answer_by)
                .mul_f64(PROXY_SHARE);
        Dial {
            proxy: self.proxy.clone(),
            race: Race::new(addresses, first, last),
            running: Vec::new(),
            last_error: None,
            tunnel: None,
            target,
            answer_by,
        }
    }

    /// Wraps the error of a connection that failed before it reached the proxy. Returns the error
    /// unchanged, as `Err`, if there is no proxy.
    pub(crate) fn unreachable(
        &self,
        host: &str,
        port: u16,
        error: io::Error,
    ) -> Result<ProxyError, io::Error> {
        match &self.proxy {
            Some(proxy) => Ok(proxy.unreachable(&target(host, port), error)),
            None => Err(error),
        }
    }

    /// Remembers whether a connection to this IP address could be used. Call it once more is known
    /// than that TCP has connected. The next connection to the host tries the IP address first if
    /// it has worked, and last if it has failed.
    pub(crate) fn remember(&self, host: &str, port: u16, address: SocketAddr, has_worked: bool) {
        let outcome = Outcome {
            address,
            has_worked,
        };
        let mut outcomes = self.outcomes.lock();
        if outcomes.len() >= MAX_HOSTS {
            outcomes.clear();
        }
        outcomes.insert(target(host, port), outcome);
    }

    /// Connects, and blocks until the connection is open or has failed.
    pub(crate) fn connect(
        &self,
        host: &str,
        port: u16,
        addresses: Vec<SocketAddr>,
        deadline: Instant,
    ) -> Result<(BlockingStream, SocketAddr), DialError> {
        let mut poll = Poll::new()?;
        let mut events = Events::with_capacity(4);
        let mut dial = self.dial(host, port, addresses, deadline);

        loop {
            let now = clock::now();
            let polled = dial.poll(poll.registry(), Token(0), now);
            let polled = polled.inspect_err(|_| {
                if let Some(address) = dial.address() {
                    self.remember(host, port, address, false);
                }
            })?;
            if let Some((stream, address)) = polled {
                let stream = BlockingStream::from(stream);
                stream.set_nonblocking(false)?;
                return Ok((stream, address));
            }

            if now >= deadline {
                return Err(io::Error::from(io::ErrorKind::TimedOut).into());
            }
            let until = dial.wait_until(now).map_or(deadline, |at| at.min(deadline));
            match poll.poll(&mut events, Some(until.saturating_duration_since(now))) {
                Err(error) if error.kind() != io::ErrorKind::Interrupted => {
                    return Err(error.into());
                }
                _ => {}
            }
        }
    }
}

/// A connection that is being opened.
pub(crate) struct Dial {
    proxy: Option<Proxy>,
    race: Race,
    running: Vec<(TcpStream, SocketAddr)>,
    /// Why the last attempt failed.
    last_error: Option<io::Error>,
    /// The connection to the proxy.
    tunnel: Option<(TcpStream, SocketAddr, Tunnel)>,
    /// The host and port to connect to.
    target: String,
    /// The time by which a proxy must have answered.
    answer_by: Instant,
}

impl Dial {
    /// Continues as far as is possible without blocking. Call it after each edge of a socket with
    /// this token, and at the time of [`wait_until`](Self::wait_until). Returns the connection once
    /// it is open.
    pub(crate) fn poll(
        &mut self,
        registry: &Registry,
        token: Token,
        now: Instant,
    ) -> Result<Option<(TcpStream, SocketAddr)>, DialError> {
        if self.tunnel.is_none() {
            let Some((stream, address)) = self.race(registry, token, now)? else {
                return Ok(None);
            };
            stream.set_nodelay(true)?;
            let Some(proxy) = &self.proxy else {
                return Ok(Some((stream, address)));
            };
            self.tunnel = Some((stream, address, proxy.tunnel(&self.target)));
        }

        let Some((stream, _, tunnel)) = &mut self.tunnel else {
            return Ok(None);
        };
        if dig(stream, tunnel)? {
            return Ok(self
                .tunnel
                .take()
                .map(|(stream, address, _)| (stream, address)));
        }
        if now >= self.answer_by {
            return Err(tunnel.fail(ProxyFailure::TimedOut).into());
        }
        Ok(None)
    }

    /// The IP address of the proxy, from when it is connected until the tunnel through it is open.
    pub(crate) fn address(&self) -> Option<SocketAddr> {
        self.tunnel.as_ref().map(|(_, address, _)| *address)
    }

    /// When to call [`poll`](Self::poll) even without an edge. `None` if only an edge matters.
    pub(crate) fn wait_until(&self, now: Instant) -> Option<Instant> {
        if self.proxy.is_some() {
            let next_at = self.race.next_at(now).filter(|_| self.tunnel.is_none());
            return Some(next_at.map_or(self.answer_by, |at| at.min(self.answer_by)));
        }
        self.race.next_at(now)
    }

    /// Returns the first of the attempts that connects, and starts those that are due.
    fn race(
        &mut self,
        registry: &Registry,
        token: Token,
        now: Instant,
    ) -> Result<Option<(TcpStream, SocketAddr)>, DialError> {
        let mut index = 0;
        while let Some((stream, _)) = self.running.get(index) {
            match is_connected(stream) {
                Ok(true) => {
                    let winner = self.running.swap_remove(index);
                    // Drops, and so closes, the other attempts.
                    self.running.clear();
                    return Ok(Some(winner));
                }
                Ok(false) => index += 1,
                Err(error) => {
                    self.running.swap_remove(index);
                    self.last_error = Some(error);
                    self.race.failed();
                }
            }
        }

        while let Some(address) = self.race.next(now) {
            match connect(address, registry, token) {
                Ok(stream) => {
                    if self.running.len() >= MAX_RUNNING {
                        self.running.remove(0);
                    }
                    self.running.push((stream, address));
                }
                Err(error) => {
                    self.last_error = Some(error);
                    self.race.failed();
                }
            }
        }

        let is_late = self.proxy.is_some() && now >= self.answer_by;
        if self.running.is_empty() || is_late {
            let error = self.last_error.take();
            let error = error.unwrap_or_else(|| io::ErrorKind::TimedOut.into());
            return Err(match &self.proxy {
                Some(proxy) => proxy.unreachable(&self.target, error).into(),
                None => error.into(),
            });
        }
        Ok(None)
    }
}

fn connect(address: SocketAddr, registry: &Registry, token: Token) -> io::Result<TcpStream> {
    let mut stream = TcpStream::connect(address)?;
    let both = Interest::READABLE | Interest::WRITABLE;
    registry.register(&mut stream, token, both)?;
    Ok(stream)
}

/// Whether a connection is open. `false` if it is still connecting; an error if it has failed.
fn is_connected(stream: &TcpStream) -> io::Result<bool> {
    if let Some(error) = stream.take_error()? {
        return Err(error);
    }
    match stream.peer_addr() {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotConnected => Ok(false),
        Err(error) => Err(error),
    }
}

/// Sends the request to a proxy, and reads its answer. Returns whether the tunnel is open.
fn dig(stream: &mut TcpStream, tunnel: &mut Tunnel) -> Result<bool, ProxyError> {
    while !tunnel.unsent().is_empty() {
        match stream.write(tunnel.unsent()) {
            Ok(count) => tunnel.sent(count),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return Err(tunnel.fail(ProxyFailure::Closed)),
        }
    }

    let mut answer = [0; ANSWER];
    loop {
        match stream.read(&mut answer) {
            Ok(count) if tunnel.receive(&answer[..count])? => return Ok(true),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return Err(tunnel.fail(ProxyFailure::Closed)),
        }
    }
}

fn target(host: &str, port: u16) -> String {
    format!("{host}:{port}")
}

#[cfg(test)]
mod tests;
