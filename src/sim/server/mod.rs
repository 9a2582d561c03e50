//! The thread that serves a [`World`]: one poll for all connections, websocket and HTTP on one
//! port.

mod connection;
mod http;
mod wire;

use std::collections::HashMap;
use std::io;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mio::net::TcpListener;
use mio::{Events, Interest, Poll, Token};
use parking_lot::Mutex;

use self::connection::{Connection, News, Outgoing};
use self::http::Responder;
use self::wire::Line;
use super::certificate::Certificates;
use super::fault::{TlsFault, UpgradeFault};
use super::request::{Handler, Request, Response};
use super::shared::Shared;
use super::world::{Incoming, Order, Reply, World};

const LISTENER: Token = Token(0);
pub(super) const WAKE: Token = Token(1);

/// The token of the first connection.
const FIRST_CONNECTION: usize = 2;

/// The pause after a failed accept, for example without free file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

pub(super) struct Server {
    poll: Poll,
    listener: TcpListener,
    certificates: Option<Certificates>,
    shared: Arc<Shared>,
    connections: HashMap<usize, Connection>,
    next: usize,
    /// When to accept again after a failure.
    accept_again: Option<Instant>,
}

/// Answers the requests of one connection.
struct Desk<'a> {
    world: &'a Mutex<World>,
    connection: usize,
}

impl Responder for Desk<'_> {
    fn upgrade(&mut self, compress: Option<&str>) -> Option<UpgradeFault> {
        self.world.lock().upgrade_fault(Instant::now(), compress)
    }

    fn rest(&mut self, request: &Incoming<'_>) -> Reply {
        let reply = {
            let mut world = self.world.lock();
            world.rest(Instant::now(), self.connection, request)
        };
        let Reply::Ask(handler, admitted) = reply else {
            return reply;
        };
        let response = ask(&handler, &admitted.request);
        let mut world = self.world.lock();
        world.handled(Instant::now(), *admitted, response)
    }
}

/// Calls a handler of the test, which may panic.
fn ask(handler: &Handler, request: &Request) -> Response {
    let answer = std::panic::catch_unwind(AssertUnwindSafe(|| handler(request)));
    answer.unwrap_or_else(|_| {
        log::error!(
            "the handler of {} {} panicked",
            request.method,
            request.path
        );
        Response::error(500, 0, "500: Internal Server Error")
    })
}

impl Server {
    pub(super) fn new(
        poll: Poll,
        mut listener: TcpListener,
        certificates: Option<Certificates>,
        shared: Arc<Shared>,
    ) -> io::Result<Self> {
        poll.registry()
            .register(&mut listener, LISTENER, Interest::READABLE)?;
        Ok(Self {
            poll,
            listener,
            certificates,
            shared,
            connections: HashMap::new(),
            next: FIRST_CONNECTION,
            accept_again: None,
        })
    }

    pub(super) fn run(mut self) {
        let mut events = Events::with_capacity(1024);
        loop {
            self.serve_delayed();
            let Some((orders, deadline)) = self.ask() else {
                return;
            };
            self.shared.changed.notify_all();
            // After its orders the world may have more to do. The sockets are served in between.
            let at_once = (!orders.is_empty()).then(Instant::now);
            self.carry_out(orders);
            let delayed = self
                .connections
                .values()
                .filter_map(Connection::deadline)
                .min();
            let deadline = deadline
                .into_iter()
                .chain(delayed)
                .chain(at_once)
                .chain(self.accept_again)
                .min();
            let timeout =
                deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            if let Err(error) = self.poll.poll(&mut events, timeout)
                && error.kind() != io::ErrorKind::Interrupted
            {
                log::error!("the simulated gateway stops: {error}");
                return;
            }
            for event in &events {
                match event.token() {
                    LISTENER => self.accept(),
                    WAKE => {}
                    Token(connection) => self.drive(connection),
                }
            }
            if self.accept_again.is_some_and(|at| at <= Instant::now()) {
                self.accept();
            }
        }
    }

    /// Takes the world's orders, and its deadline. `None` if the gateway has stopped.
    fn ask(&self) -> Option<(Vec<Order>, Option<Instant>)> {
        let mut world = self.shared.world.lock();
        if world.stopped {
            return None;
        }
        let (now, mut orders) = (Instant::now(), Vec::new());
        while let Some(order) = world.poll(now) {
            orders.push(order);
        }
        Some((orders, world.deadline()))
    }

    fn accept(&mut self) {
        self.accept_again = None;
        loop {
            let mut tcp = match self.listener.accept() {
                Ok((tcp, _)) => tcp,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) => {
                    // The poll does not report pending connections again, so a timer retries.
                    log::warn!("the simulated gateway cannot accept a connection: {error}");
                    self.accept_again = Some(Instant::now() + ACCEPT_PAUSE);
                    return;
                }
            };
            let id = self.next;
            self.next += 1;
            let both = Interest::READABLE | Interest::WRITABLE;
            // If this fails, the connection is dropped, which the client sees as a cut.
            if tcp.set_nodelay(true).is_err()
                || self
                    .poll
                    .registry()
                    .register(&mut tcp, Token(id), both)
                    .is_err()
            {
                continue;
            }
            let line = Line::new(tcp);
            let connection = match &self.certificates {
                None => Connection::plain(line),
                Some(certificates) => match self.shared.world.lock().tls_fault(Instant::now()) {
                    None => Connection::secure(&certificates.acceptor, line),
                    Some(TlsFault::Hang) => Connection::mute(line),
                    Some(TlsFault::Expired) => Connection::secure(&certificates.expired, line),
                    Some(TlsFault::WrongName) => Connection::secure(&certificates.wrong_name, line),
                    Some(TlsFault::Untrusted) => Connection::secure(&certificates.untrusted, line),
                },
            };
            self.connections.insert(id, connection);
            self.drive(id);
        }
    }

    /// Drives a connection until its socket would block.
    fn drive(&mut self, id: usize) {
        while let Some(connection) = self.connections.get_mut(&id) {
            let Some(news) = connection.step(&mut Desk {
                world: &self.shared.world,
                connection: id,
            }) else {
                return;
            };
            if let Some(news) = connection.receive(Instant::now(), news) {
                self.tell(id, news);
            }
        }
    }

    /// Passes to the world what a connection received.
    fn tell(&mut self, id: usize, news: News) {
        if matches!(news, News::Gone) {
            // Delayed messages were sent before the end.
            let inbox = self.connections.get_mut(&id).map(Connection::take_inbox);
            inbox
                .into_iter()
                .flatten()
                .for_each(|news| self.tell(id, news));
        }

        let now = Instant::now();
        let mut world = self.shared.world.lock();
        match news {
            News::Opened { version } => world.connected(now, id, version.as_deref()),
            News::Text(text) => world.text(now, id, &text),
            News::Binary(bytes) => world.binary(now, id, &bytes),
            News::Gone => {
                let code = self
                    .connections
                    .remove(&id)
                    .and_then(|connection| connection.closed_with);
                world.closed(now, id, code);
            }
        }
    }

    /// Passes on the delayed messages that are due.
    fn serve_delayed(&mut self) {
        let now = Instant::now();
        let due = |(id, connection): (&usize, &Connection)| {
            connection
                .deadline()
                .is_some_and(|deadline| deadline <= now)
                .then_some(*id)
        };

        let due: Vec<usize> = self.connections.iter().filter_map(due).collect();
        for id in due {
            while let Some(news) = self
                .connections
                .get_mut(&id)
                .and_then(|connection| connection.delayed_news(now))
            {
                self.tell(id, news);
            }
            self.with(id, |connection| connection.serve(now));
            self.drive(id);
        }
    }

    fn carry_out(&mut self, orders: Vec<Order>) {
        let now = Instant::now();
        for order in orders {
            match order {
                Order::Send(id, payload) => self.send(now, id, Outgoing::Payload(payload)),
                Order::Message(id, message) => self.send(now, id, Outgoing::Message(message)),
                Order::Bytes(id, bytes) => self.send(now, id, Outgoing::Bytes(bytes)),
                Order::Close(id, code) => {
                    self.send(now, id, Outgoing::Close(code));
                    self.drive(id);
                }
                Order::Cut(id) => {
                    self.send(now, id, Outgoing::Cut);
                    self.drive(id);
                }
                Order::Reset(id) => {
                    self.send(now, id, Outgoing::Reset);
                    self.drive(id);
                }
                Order::CompressPayloads(id) => self.with(id, Connection::compress_payloads),
                Order::Silence(id) => self.send(now, id, Outgoing::Silence),
                Order::Delay {
                    connection,
                    latency,
                    jitter,
                } => self.with(connection, |c| c.delay(latency, jitter)),
                Order::Drip {
                    connection,
                    bytes_per_second,
                } => self.with(connection, |c| c.drip(bytes_per_second)),
            }
        }

        // All orders are written first and flushed here, so that a burst needs few system calls.
        for connection in self
            .connections
            .values_mut()
            .filter(|connection| connection.unflushed)
        {
            connection.flush();
        }
    }

    fn send(&mut self, now: Instant, id: usize, outgoing: Outgoing) {
        self.with(id, |connection| connection.send(now, outgoing));
    }

    /// Runs `action` on a connection, unless it has ended.
    fn with(&mut self, id: usize, action: impl FnOnce(&mut Connection)) {
        if let Some(connection) = self.connections.get_mut(&id) {
            action(connection);
        }
    }
}
