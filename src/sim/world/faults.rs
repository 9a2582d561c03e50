//! Injects faults: at once, at the next handshake, or at random.

use std::time::{Duration, Instant};

use tungstenite::Message;

use super::super::fault::{ResumeUrl, Target, TlsFault, UpgradeFault};
use super::super::observed::Strike;
use super::super::time::after;
use super::{Fault, Order, Timer, World, sessions};
use crate::shard_id::ShardId;

pub(super) const RECONNECT: &str = r#"{"op":7,"s":null,"t":null,"d":null}"#;

/// How many events before the last one [`Fault::OutOfOrder`] sends again.
const LATE: usize = 4;

/// The minimum time between two random faults, in seconds. It must be above 0.
const MIN_WAIT: f64 = 1e-6;
const MAX_WAIT: f64 = 86_400.0;

/// The maximum size of a bomb after decompression: 1 GiB.
const LARGEST_BOMB: usize = 1 << 30;

impl World {
    /// Injects a fault: at once, or at the next handshake of its kind.
    pub(crate) fn inject(&mut self, now: Instant, target: Target, fault: Fault) {
        let shard = match target {
            Target::Shard(shard) => Some(shard),
            Target::All | Target::Any => None,
        };

        if matches!(fault, Fault::Tls(_)) && !self.url.starts_with("wss") {
            return;
        }

        if fault.waits() {
            return self.ambushes.push((shard, fault));
        }

        let mut connections = match target {
            Target::Shard(shard) => self.connections_of(shard),
            Target::All | Target::Any => self.connections.keys().copied().collect(),
        };
        connections.sort_unstable();

        if target == Target::Any {
            let at = self.rng.usize(..connections.len().max(1));
            connections = connections.get(at).copied().into_iter().collect();
        }

        for connection in connections {
            self.strike(now, connection, &fault);
        }
    }

    pub(in crate::sim) fn inject_after(
        &mut self,
        now: Instant,
        delay: Duration,
        target: Target,
        fault: Fault,
    ) {
        self.set_timer(after(now, delay), Timer::Fault { target, fault });
    }

    /// Injects these faults at random. A rate of 0 stops this and discards all waiting faults.
    pub(crate) fn set_random_faults(&mut self, now: Instant, per_second: f64, faults: Vec<Fault>) {
        self.timers
            .retain(|_, timer| !matches!(timer, Timer::RandomFault));
        self.random_faults =
            (per_second > 0.0 && !faults.is_empty()).then_some((per_second, faults));
        if self.random_faults.is_some() {
            self.wait_for_chance(now);
        } else {
            self.ambushes.clear();
        }
    }

    pub(super) fn random_fault(&mut self, now: Instant) {
        let Some((_, faults)) = &self.random_faults else {
            return;
        };
        let fault = faults[self.rng.usize(..faults.len())].clone();
        // Equal faults do not pile up, so that a client with few handshakes does not meet many of
        // them in a row.
        if !self.ambushes.iter().any(|(_, waiting)| *waiting == fault) {
            self.inject(now, Target::Any, fault);
        }
        self.wait_for_chance(now);
    }

    fn wait_for_chance(&mut self, now: Instant) {
        let Some((per_second, _)) = self.random_faults else {
            return;
        };
        // An exponential distribution: the faults are independent of each other.
        let wait = -(1.0 - self.rng.f64()).ln() / per_second;
        self.set_timer(
            now + Duration::from_secs_f64(wait.clamp(MIN_WAIT, MAX_WAIT)),
            Timer::RandomFault,
        );
    }

    /// Takes the first waiting fault that is `wanted` and is for this shard.
    pub(super) fn ambush<T>(
        &mut self,
        now: Instant,
        shard: Option<ShardId>,
        wanted: impl Fn(&Fault) -> Option<T>,
    ) -> Option<T> {
        let matches = |(target, fault): &(Option<ShardId>, Fault)| {
            // While the shard is unknown, a fault for any shard strikes.
            (target.is_none() || shard.is_none() || *target == shard)
                .then(|| wanted(fault))
                .flatten()
        };

        let (at, found) = self
            .ambushes
            .iter()
            .enumerate()
            .find_map(|(at, ambush)| Some((at, matches(ambush)?)))?;
        let (_, fault) = self.ambushes.remove(at);
        self.observed.faults.push(Strike {
            at: now,
            shard,
            fault,
        });
        Some(found)
    }

    pub(in crate::sim) fn tls_fault(&mut self, now: Instant) -> Option<TlsFault> {
        self.ambush(now, None, |fault| match fault {
            Fault::Tls(fault) => Some(*fault),
            _ => None,
        })
    }

    /// How the next upgrade fails, if it does. `compress` is the compression that it requests.
    pub(crate) fn upgrade_fault(
        &mut self,
        now: Instant,
        compress: Option<&str>,
    ) -> Option<UpgradeFault> {
        if !self.settings.offer.has(compress) {
            return Some(UpgradeFault::Status(400));
        }
        self.ambush(now, None, |fault| match fault {
            Fault::Upgrade(fault) => Some(*fault),
            _ => None,
        })
    }

    /// The `resume_gateway_url` for the next session of a shard.
    pub(super) fn resume_url(&mut self, now: Instant, shard: ShardId) -> String {
        let fault = self.ambush(now, Some(shard), |fault| match fault {
            Fault::ResumeUrl(fault) => Some(fault.clone()),
            _ => None,
        });
        let scheme = if self.url.starts_with("wss") {
            "wss"
        } else {
            "ws"
        };

        match fault {
            None => self.url.clone(),
            // Nothing listens on port 1.
            Some(ResumeUrl::Dead) => format!("{scheme}://127.0.0.1:1"),
            Some(ResumeUrl::Foreign) => format!("{scheme}://gateway.invalid"),
            Some(ResumeUrl::Url(url)) => url,
        }
    }

    fn strike(&mut self, now: Instant, connection: usize, fault: &Fault) {
        let shard = self.shard_of(connection);
        let struck = self.strike_line(connection, fault)
            || self.strike_bytes(connection, fault)
            || self.strike_session(now, connection, fault);
        if struck {
            self.observed.faults.push(Strike {
                at: now,
                shard,
                fault: fault.clone(),
            });
        }
    }

    /// Applies a fault of the connection itself. Returns whether it is of that kind.
    fn strike_line(&mut self, connection: usize, fault: &Fault) -> bool {
        match fault {
            Fault::Delay { latency, jitter } => self.order(Order::Delay {
                connection,
                latency: *latency,
                jitter: *jitter,
            }),
            Fault::Drip { bytes_per_second } => self.order(Order::Drip {
                connection,
                bytes_per_second: *bytes_per_second,
            }),
            Fault::Cut => self.order(Order::Cut(connection)),
            Fault::Reset => self.order(Order::Reset(connection)),
            Fault::Silence => {
                if let Some(client) = self.connections.get_mut(&connection) {
                    client.silent = true;
                }
                self.order(Order::Silence(connection))
            }
            _ => false,
        }
    }

    /// Sends bytes that no client expects. Returns whether the fault is of that kind.
    fn strike_bytes(&mut self, connection: usize, fault: &Fault) -> bool {
        match fault {
            Fault::CutInFrame => {
                // The header of a text frame of 4096 bytes, and the first 100 of them.
                let mut bytes = vec![0x81, 0x7e, 0x10, 0x00];
                bytes.extend([b'{'; 100]);
                self.order(Order::Bytes(connection, bytes)) && self.order(Order::Cut(connection))
            }
            // A reserved opcode.
            Fault::Garbage => self.order(Order::Bytes(connection, b"\x83\x05gibbe".to_vec())),
            // An invalid block type in both zlib and zstd, and invalid UTF-8.
            Fault::Corrupt => {
                let bytes = b"\xff\xff\xff\xff\x00\x00\xff\xff".to_vec();
                self.order(Order::Message(connection, Message::binary(bytes)))
            }
            Fault::Bomb { size } => {
                let payload = format!(
                    r#"{{"op":11,"d":"{}"}}"#,
                    "0".repeat((*size).min(LARGEST_BOMB))
                );
                self.order(Order::Send(connection, payload))
            }
            Fault::Oversized => {
                let mut bytes = vec![0x82, 0x7f];
                bytes.extend((1_u64 << 40).to_be_bytes());
                self.order(Order::Bytes(connection, bytes))
            }
            _ => false,
        }
    }

    /// Applies a fault of the gateway. Returns whether it is of that kind and was possible.
    fn strike_session(&mut self, now: Instant, connection: usize, fault: &Fault) -> bool {
        match fault {
            Fault::NoAck => self.connections.get_mut(&connection).is_some_and(|client| {
                client.acknowledges = false;
                true
            }),
            Fault::HeartbeatRequest => self.order(Order::Send(
                connection,
                r#"{"op":1,"s":null,"t":null,"d":null}"#.into(),
            )),
            Fault::Reconnect => self.order(Order::Send(connection, RECONNECT.into())),
            Fault::InvalidSession { resumable } => {
                if !resumable {
                    self.lose_session_of(connection);
                }
                self.invalidate(connection, *resumable);
                true
            }
            Fault::Close(code) => {
                if sessions::ends_session(*code) {
                    self.lose_session_of(connection);
                }
                self.close(now, connection, *code);
                true
            }
            Fault::Repeat => self.send_again(connection, 0),
            Fault::OutOfOrder => self.send_again(connection, LATE),
            _ => false,
        }
    }

    fn order(&mut self, order: Order) -> bool {
        self.orders.push_back(order);
        true
    }

    /// Sends an event of the connection's session again: the one `back` events before the last.
    fn send_again(&mut self, connection: usize, back: usize) -> bool {
        let replay = self.session_of(connection).map(|session| &session.replay);
        let Some((_, payload)) = replay.and_then(|replay| replay.iter().rev().nth(back)) else {
            return false;
        };
        self.orders
            .push_back(Order::Send(connection, payload.clone()));
        true
    }

    pub(super) fn lose_session_of(&mut self, connection: usize) {
        let session = self
            .connections
            .get(&connection)
            .and_then(|client| client.session.clone());
        if let Some(session) = session {
            self.lose_session(&session);
        }
    }
}
