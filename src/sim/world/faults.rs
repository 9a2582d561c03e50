//! What goes wrong: now, at the next handshake, and by chance.

use std::time::{Duration, Instant};

use tungstenite::Message;

use super::super::fault::{ResumeUrl, Target, TlsFault, UpgradeFault};
use super::super::observed::Strike;
use super::super::time::after;
use super::{Fault, Order, Timer, World, sessions};
use crate::shard_id::ShardId;

pub(super) const RECONNECT: &str = r#"{"op":7,"s":null,"t":null,"d":null}"#;

/// How far back an event is that comes again after newer ones.
const LATE: usize = 4;

/// Between two faults by chance, in seconds; time has to pass.
const MIN_WAIT: f64 = 1e-6;
const MAX_WAIT: f64 = 86_400.0;

/// The most that a bomb unpacks to: 1 GiB.
const LARGEST_BOMB: usize = 1 << 30;

impl World {
    /// Lets a fault happen: now, or at the next handshake of its kind.
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

    /// From now on faults of these happen by chance; with a rate of 0 no more, and those that wait
    /// are forgotten.
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
        // One of a kind may wait, so that a client which seldom does a handshake is not met by all
        // of them in a row.
        if !self.ambushes.iter().any(|(_, waiting)| *waiting == fault) {
            self.inject(now, Target::Any, fault);
        }
        self.wait_for_chance(now);
    }

    fn wait_for_chance(&mut self, now: Instant) {
        let Some((per_second, _)) = self.random_faults else {
            return;
        };
        // Independent of each other, as accidents are.
        let wait = -(1.0 - self.rng.f64()).ln() / per_second;
        self.set_timer(
            now + Duration::from_secs_f64(wait.clamp(MIN_WAIT, MAX_WAIT)),
            Timer::RandomFault,
        );
    }

    /// The first fault that waits for this, and for this shard.
    pub(super) fn ambush<T>(
        &mut self,
        now: Instant,
        shard: Option<ShardId>,
        wanted: impl Fn(&Fault) -> Option<T>,
    ) -> Option<T> {
        let matches = |(target, fault): &(Option<ShardId>, Fault)| {
            // Where the shard is not known yet, the fault cannot be kept for one.
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

    /// What is wrong with the next upgrade, which asks for a compression.
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

    /// Where the next session of a shard is to be resumed.
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
            // Port 1 is nobody's.
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

    /// What befalls the line itself; whether the fault is of that kind.
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

    /// What comes over the line that nobody expects; whether the fault is of that kind.
    fn strike_bytes(&mut self, connection: usize, fault: &Fault) -> bool {
        match fault {
            Fault::CutInFrame => {
                // A text of 4096 bytes, and the first of them.
                let mut bytes = vec![0x81, 0x7e, 0x10, 0x00];
                bytes.extend([b'{'; 100]);
                self.order(Order::Bytes(connection, bytes)) && self.order(Order::Cut(connection))
            }
            // An opcode that is reserved.
            Fault::Garbage => self.order(Order::Bytes(connection, b"\x83\x05gibbe".to_vec())),
            // To zlib and zstd alike a block of the type that there is not; and no UTF-8.
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

    /// What the gateway does; whether the fault is of that kind, and could happen.
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

    /// Sends an event of the connection's session again, counted from the last.
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
