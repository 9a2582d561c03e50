//! The connections (lines) between the shards and Discord: late, cut, half open, or too slow to
//! write to.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use fastrand::Rng;
use parking_lot::Mutex;
use serde_json::Value;

use crate::clock;
use crate::shard_id::ShardId;
use crate::sim::{Order, UpgradeFault, World};
use crate::transport::{self, Received, Settings, Transport, TransportError, Uri, Waker};

/// The latency of a message on a good connection, in milliseconds.
const USUAL: Range<u64> = 5..150;

/// The maximum latency of a message to Discord on a bad connection. Discord measures its windows
/// where messages arrive, so this must be less than the guard of the windows.
pub(super) const LATEST: Duration = Duration::from_secs(3);

/// All connections.
pub(super) struct Network {
    rng: Rng,
    lines: BTreeMap<usize, Line>,
    wires: BTreeMap<usize, WireState>,
    /// The number of connections and wires made so far.
    count: usize,
    /// Discord does not notify a connection that its session was resumed on another one. If the
    /// RESUME of an abandoned connection arrived after that of the next one, it would take its
    /// events away unnoticed. Such a RESUME is therefore lost with its connection.
    loses_late_resumes: bool,
}

/// A connection.
struct Line {
    to_discord: Way<ToDiscord>,
    to_client: Way<ToClient>,
    /// What the client has written, but its operating system has not taken before that instant.
    stuck: Option<(Instant, VecDeque<String>)>,
    /// How many messages the operating system has taken.
    written: u64,
    /// Whether Discord knows that it has ended.
    is_over: bool,
}

/// One direction of a connection.
struct Way<T> {
    delay: Duration,
    messages: VecDeque<(Instant, T)>,
    /// Whether messages are lost.
    is_dead: bool,
}

enum ToDiscord {
    Open,
    Text(String),
    Close(Option<u16>),
}

impl ToDiscord {
    fn is_resume(&self) -> bool {
        let Self::Text(text) = self else { return false };
        let payload: Value = serde_json::from_str(text).unwrap_or_default();
        payload["op"] == 6
    }
}

enum ToClient {
    Opened,
    Text(String),
    Closed(u16),
    /// The connection ended, or never began.
    Failed(TransportError),
}

/// The state of a transport that the scheduler needs.
struct WireState {
    line: Option<usize>,
    waker: Waker,
    /// Until then its thread waits for the answer to a close.
    closing_until: Option<Instant>,
}

impl<T> Way<T> {
    fn new(rng: &mut Rng) -> Self {
        Self {
            delay: Duration::from_millis(rng.u64(USUAL)),
            messages: VecDeque::new(),
            is_dead: false,
        }
    }

    fn send(&mut self, message: T) {
        if self.is_dead {
            return;
        }
        // Messages arrive in the order in which they were sent.
        let at = clock::now() + self.delay;
        let at = self.messages.back().map_or(at, |(last, _)| at.max(*last));
        self.messages.push_back((at, message));
    }

    fn next(&self) -> Option<Instant> {
        self.messages.front().map(|(at, _)| *at)
    }

    fn receive(&mut self) -> Option<T> {
        let is_due = self.next().is_some_and(|at| at <= clock::now());
        is_due
            .then(|| self.messages.pop_front())
            .flatten()
            .map(|(_, message)| message)
    }
}

impl Line {
    /// The operating system accepts a message.
    fn write(&mut self, text: String) {
        self.written += 1;
        self.to_discord.send(ToDiscord::Text(text));
    }

    /// The operating system accepts the messages that it had no room for until now.
    fn unstick(&mut self) {
        if let Some((_, texts)) = self.stuck.take_if(|(until, _)| *until <= clock::now()) {
            for text in texts {
                self.write(text);
            }
        }
    }

    fn fail(&mut self, kind: io::ErrorKind) {
        self.to_client
            .send(ToClient::Failed(io::Error::from(kind).into()));
        self.to_client.is_dead = true;
    }
}

impl Network {
    pub(super) fn new(rng: Rng, loses_late_resumes: bool) -> Arc<Mutex<Self>> {
        Arc::new(Mutex::new(Self {
            rng,
            lines: BTreeMap::new(),
            wires: BTreeMap::new(),
            count: 0,
            loses_late_resumes,
        }))
    }

    /// When the next message arrives at Discord, or a slow connection continues.
    pub(super) fn next(&self) -> Option<Instant> {
        let arrivals = self
            .lines
            .values()
            .filter_map(|line| line.to_discord.next());
        let unstuck = self
            .lines
            .values()
            .filter_map(|line| Some(line.stuck.as_ref()?.0));
        arrivals.chain(unstuck).min()
    }

    /// Delivers to Discord what has arrived by now, and sends its answers back.
    pub(super) fn carry(&mut self, world: &mut World) {
        let now = clock::now();
        let ids: Vec<usize> = self.lines.keys().copied().collect();
        for id in ids {
            while let Some(line) = self.lines.get_mut(&id) {
                line.unstick();
                match line.to_discord.receive() {
                    Some(ToDiscord::Open) => self.open(world, id),
                    Some(ToDiscord::Text(text)) => world.text(now, id, &text),
                    Some(ToDiscord::Close(code)) => {
                        world.closed(now, id, code);
                        self.lines.remove(&id);
                    }
                    None => break,
                }
            }
        }
        self.obey(world);
    }

    fn open(&mut self, world: &mut World, id: usize) {
        let Some(line) = self.lines.get_mut(&id) else {
            return;
        };
        match world.upgrade_fault(clock::now(), None) {
            None => {
                line.to_client.send(ToClient::Opened);
                world.connected(clock::now(), id, Some("10"));
            }
            Some(UpgradeFault::Refused) => line.fail(io::ErrorKind::ConnectionRefused),
            Some(UpgradeFault::Status(status)) => {
                line.to_client
                    .send(ToClient::Failed(TransportError::Status(status)));
            }
            Some(UpgradeFault::Hang) => {}
        }
    }

    /// Carries out the world's orders.
    pub(super) fn obey(&mut self, world: &mut World) {
        while let Some(order) = world.poll(clock::now()) {
            let (Order::Send(id, _)
            | Order::Message(id, _)
            | Order::Bytes(id, _)
            | Order::CompressPayloads(id)
            | Order::Close(id, _)
            | Order::Cut(id)
            | Order::Reset(id)
            | Order::Silence(id)
            | Order::Delay { connection: id, .. }
            | Order::Drip { connection: id, .. }) = order;
            let Some(line) = self.lines.get_mut(&id) else {
                continue;
            };
            match order {
                Order::Send(_, text) => line.to_client.send(ToClient::Text(text)),
                Order::Close(_, code) => {
                    line.to_client.send(ToClient::Closed(code));
                    line.to_client.is_dead = true;
                }
                Order::Cut(_) | Order::Reset(_) => {
                    let is_reset = matches!(order, Order::Reset(_));
                    if is_reset && self.rng.bool() {
                        // Unread messages are lost with the connection.
                        line.to_client.messages.clear();
                    }
                    line.fail(io::ErrorKind::ConnectionReset);
                    line.to_discord.is_dead = true;
                    line.to_discord.messages.clear();
                    line.is_over = true;
                    world.closed(clock::now(), id, None);
                }
                Order::Silence(_) => {
                    line.to_client.is_dead = true;
                    line.to_discord.is_dead = true;
                }
                Order::Delay { latency, .. } => {
                    line.to_client.delay = latency;
                    line.to_discord.delay = latency.min(LATEST);
                }
                Order::Message(..)
                | Order::Bytes(..)
                | Order::CompressPayloads(_)
                | Order::Drip { .. } => panic!("unexpected order: {order:?}"),
            }
        }
    }

    /// Makes all connections good.
    pub(super) fn mend(&mut self) {
        for line in self.lines.values_mut() {
            line.to_client.delay = Duration::from_millis(USUAL.start);
            line.to_discord.delay = Duration::from_millis(USUAL.start);
        }
    }

    /// Changes some connections: they get another latency, of up to `longest` to the client, become
    /// too slow to write to, or lose one direction.
    pub(super) fn change(&mut self, longest: Duration) {
        for line in self.lines.values_mut() {
            match self.rng.u32(..12) {
                0..4 => {
                    line.to_client.delay = Duration::from_millis(self.rng.u64(USUAL));
                    line.to_discord.delay = Duration::from_millis(self.rng.u64(USUAL));
                }
                4..6 => line.to_client.delay = longest.mul_f64(self.rng.f64()),
                6 => line.to_discord.delay = LATEST.mul_f64(self.rng.f64()),
                7 if line.stuck.is_none() => {
                    let until = clock::now() + LATEST.mul_f64(self.rng.f64()) / 4;
                    line.stuck = Some((until, VecDeque::new()));
                }
                8 if self.rng.u32(..8) == 0 => line.to_discord.is_dead = true,
                9 if self.rng.u32(..8) == 0 => line.to_client.is_dead = true,
                _ => {}
            }
        }
    }

    /// The last transport that was made.
    pub(super) fn last_wire(&self) -> usize {
        self.count
    }

    /// Whether a transport's waker was called.
    pub(super) fn is_woken(&self, wire: usize) -> bool {
        self.wires
            .get(&wire)
            .is_some_and(|wire| wire.waker.is_called())
    }

    /// When there is something to read.
    pub(super) fn next_arrival(&self, wire: usize) -> Option<Instant> {
        let line = self.wires.get(&wire)?.line?;
        self.lines.get(&line)?.to_client.next()
    }

    /// Until when a thread waits for the answer to a close.
    pub(super) fn closing_until(&self, wire: usize) -> Option<Instant> {
        self.wires.get(&wire)?.closing_until
    }
}

/// Makes transports over the network.
pub(super) struct Connector(pub(super) Arc<Mutex<Network>>);

impl transport::Connector for Connector {
    type Transport = Wire;

    fn transport(&self, _: ShardId, _: Settings) -> io::Result<Wire> {
        let waker = Waker::new(|| {});
        let mut network = self.0.lock();
        network.count += 1;
        let id = network.count;
        let state = WireState {
            line: None,
            waker: waker.clone(),
            closing_until: None,
        };

        network.wires.insert(id, state);
        Ok(Wire {
            id,
            network: Arc::clone(&self.0),
            waker,
            line: None,
            written: 0,
        })
    }
}

/// A shard's end of a connection.
pub(super) struct Wire {
    id: usize,
    network: Arc<Mutex<Network>>,
    waker: Waker,
    line: Option<usize>,
    /// Of the last connection.
    written: u64,
}

impl Wire {
    fn with<T>(&mut self, action: impl FnOnce(&mut Line) -> T) -> Option<T> {
        let mut network = self.network.lock();
        network.lines.get_mut(&self.line?).map(action)
    }

    fn set_line(&mut self, line: Option<usize>) {
        self.line = line;
        let mut network = self.network.lock();
        if let Some(state) = network.wires.get_mut(&self.id) {
            state.line = line;
        }
    }

    /// Ends the connection. Data that the operating system had not accepted is lost, unless it is
    /// sent with the close.
    fn leave(&mut self, code: Option<u16>, closing_until: Option<Instant>) {
        let (with_close, loses_resume) = {
            let mut network = self.network.lock();
            let with_close = code.is_some() && network.rng.bool();
            (with_close, network.loses_late_resumes)
        };

        let written = self.with(|line| {
            if let Some((_, texts)) = line.stuck.take().filter(|_| with_close) {
                for text in texts {
                    line.write(text);
                }
            }
            if loses_resume {
                line.to_discord
                    .messages
                    .retain(|(_, message)| !message.is_resume());
            }
            line.to_discord.send(ToDiscord::Close(code));
            line.written
        });
        self.written = written.unwrap_or(self.written);
        self.set_line(None);

        if let Some(state) = self.network.lock().wires.get_mut(&self.id) {
            state.closing_until = closing_until;
        }
    }
}

impl Transport for Wire {
    fn connect(&mut self, _: &Uri, _: Instant) -> Result<(), TransportError> {
        if self.line.is_some() {
            self.leave(None, None);
        }

        let id = {
            let network = &mut *self.network.lock();
            network.count += 1;
            let mut to_discord = Way::new(&mut network.rng);
            // The connection may be dead.
            to_discord.is_dead = network.rng.u32(..100) == 0;
            to_discord.send(ToDiscord::Open);
            let line = Line {
                to_discord,
                to_client: Way::new(&mut network.rng),
                stuck: None,
                written: 0,
                is_over: false,
            };
            network.lines.insert(network.count, line);
            network.count
        };

        self.set_line(Some(id));
        Ok(())
    }

    fn read(&mut self) -> Result<Received, TransportError> {
        match self.with(|line| line.to_client.receive()).flatten() {
            None => Ok(Received::Nothing),
            Some(ToClient::Opened) => Ok(Received::Opened),
            Some(ToClient::Text(text)) => Ok(Received::Payload(Bytes::from(text))),
            Some(ToClient::Closed(code)) => Ok(Received::Closed {
                code: Some(code),
                reason: String::new(),
            }),
            Some(ToClient::Failed(error)) => Err(error),
        }
    }

    fn send(&mut self, text: String) -> Result<(), TransportError> {
        self.with(|line| {
            line.unstick();
            if let Some((_, texts)) = &mut line.stuck {
                texts.push_back(text);
            } else {
                line.write(text);
            }
        });
        Ok(())
    }

    fn send_secret(&mut self, text: &str) -> Result<(), TransportError> {
        let text = text.to_owned();
        let is_sent = self.with(|line| {
            line.unstick();
            if line.stuck.is_some() {
                return false;
            }
            line.write(text);
            true
        });
        if is_sent == Some(false) {
            return Err(io::Error::from(io::ErrorKind::WouldBlock).into());
        }
        Ok(())
    }

    fn written(&self) -> u64 {
        let network = self.network.lock();
        let line = self.line.and_then(|line| network.lines.get(&line));
        line.map_or(self.written, |line| line.written)
    }

    /// Does not wait: the caller that steps the thread does.
    fn wait(&mut self, _: Option<Instant>, _: bool) -> Result<(), TransportError> {
        Ok(())
    }

    fn disconnect(&mut self, code: Option<u16>, deadline: Instant) {
        if self.line.is_some() {
            let patience = deadline.saturating_duration_since(clock::now());
            let patience = patience.mul_f64(self.network.lock().rng.f64());
            let until = code.map(|_| clock::now() + patience);
            self.leave(code, until);
        }
    }

    fn waker(&self) -> Waker {
        self.waker.clone()
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        if self.line.is_some() {
            self.leave(None, None);
        }
        let state = self.network.lock().wires.remove(&self.id);
        drop(state);
    }
}
