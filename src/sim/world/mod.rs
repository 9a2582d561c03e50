//! The behaviour of Discord's side, as a pure core: no socket, thread, lock or clock.
//!
//! Inputs are what clients do ([`connected`](World::connected), [`text`](World::text),
//! [`binary`](World::binary), [`closed`](World::closed), [`rest`](World::rest)) and what the test
//! requests. After each input, [`poll`](World::poll) returns what the server must do, until it
//! returns `None`. Then nothing happens until the world's [`deadline`](World::deadline).
#![deny(clippy::disallowed_methods)]

mod activity;
mod commands;
mod faults;
mod guilds;
mod records;
mod rest;
mod resumes;
mod roster;
mod sessions;

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::time::{Duration, Instant};

use fastrand::Rng;
use serde_json::Value;
use tungstenite::Message;

use super::fault::{Answer, Fault};
use super::observed::{Action, Dispatched, Observed};
use super::payloads::{self, Guild};
use super::settings::Settings;
use crate::shard_id::ShardId;
pub(crate) use rest::{Answered, Incoming, Manner, Reply};
pub(super) use rest::{is_pattern, names};
use sessions::Session;

const SEND_WINDOW: Duration = Duration::from_secs(60);
const SENDS: usize = 120;
const MAX_PAYLOAD: usize = 4096;
/// Older versions of the API are deprecated.
const OLDEST_SUPPORTED: u32 = 9;
/// How late a heartbeat may be in addition, to allow for a busy machine.
const HEARTBEAT_GRACE: Duration = Duration::from_secs(2);

/// The delay before a missing heartbeat is checked a second time.
const SECOND_LOOK: Duration = Duration::from_millis(250);

/// Something for the server to do with a connection.
#[derive(Debug, PartialEq)]
pub(crate) enum Order {
    /// Send a payload in the connection's compression.
    Send(usize, String),
    /// Send a message without the connection's compression.
    Message(usize, Message),
    /// Send bytes outside the websocket protocol.
    Bytes(usize, Vec<u8>),
    /// Compress each large payload by itself from now on (payload compression).
    CompressPayloads(usize),
    Close(usize, u16),
    /// End it without a close frame.
    Cut(usize),
    /// End it with a reset.
    Reset(usize),
    /// Stop reading and writing.
    Silence(usize),
    Delay {
        connection: usize,
        latency: Duration,
        jitter: Duration,
    },
    Drip {
        connection: usize,
        bytes_per_second: u32,
    },
}

pub(crate) struct World {
    settings: Settings,
    start: Instant,
    /// The time since the Unix epoch at the start.
    unix_start: Duration,
    url: String,
    pub(super) stopped: bool,
    pub(crate) observed: Observed,
    pub(crate) dispatches: Vec<Dispatched>,
    /// Sorted by id.
    guilds: Vec<Guild>,
    connections: HashMap<usize, Connection>,
    sessions: HashMap<String, Session>,
    /// The sessions of each shard, by total and number.
    homes: BTreeMap<(u32, u32), Vec<String>>,
    /// The last IDENTIFY of each key.
    keys: HashMap<u32, Instant>,
    starts_left: u32,
    reset_at: Instant,
    /// Whether Discord has reset the token, after too many IDENTIFYs.
    token_is_reset: bool,
    /// When all members of each guild were last requested.
    member_requests: HashMap<u64, Instant>,
    desk: rest::Desk,
    rosters: HashMap<u64, roster::Roster>,
    /// What the client has just sent, for [`Violation::sent`](super::Violation::sent).
    sent: String,
    /// The indexes of the records whose requests have been taken.
    taken: BTreeSet<usize>,
    ambushes: Vec<(Option<ShardId>, Fault)>,
    random_faults: Option<(f64, Vec<Fault>)>,
    timers: BTreeMap<(Instant, u64), Timer>,
    orders: VecDeque<Order>,
    next_id: u64,
    rng: Rng,
}

struct Connection {
    /// The version of the API.
    version: u32,
    shard: Option<ShardId>,
    session: Option<String>,
    standing: Standing,
    silent: bool,
    acknowledges: bool,
    last_heartbeat: Instant,
    sends: VecDeque<Instant>,
    presences: VecDeque<Instant>,
}

/// The state of a connection's client.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Standing {
    New,
    /// It has identified or resumed.
    Known,
    /// It was sent op 9, but may not have received it yet.
    Invalidated,
}

#[derive(Debug)]
enum Timer {
    Ready {
        connection: usize,
        start: sessions::Start,
    },
    GuildAvailable {
        session: String,
        guilds: VecDeque<Guild>,
    },
    /// Checks whether a client has sent its heartbeat. `late` marks the second check.
    Heartbeat {
        connection: usize,
        late: bool,
    },
    SessionEnd {
        session: String,
        absence: u64,
    },
    Replay {
        connection: usize,
        session: String,
        sequence: u64,
    },
    Traffic,
    Fault {
        target: super::fault::Target,
        fault: Fault,
    },
    RandomFault,
}

impl World {
    /// `unix` is the time since the Unix epoch.
    pub(super) fn new(now: Instant, unix: Duration, settings: Settings, url: String) -> Self {
        let mut world = Self {
            start: now,
            unix_start: unix,
            url,
            stopped: false,
            observed: Observed::default(),
            dispatches: Vec::new(),
            guilds: Vec::new(),
            connections: HashMap::new(),
            sessions: HashMap::new(),
            homes: BTreeMap::new(),
            keys: HashMap::new(),
            starts_left: settings.session_starts_left,
            reset_at: now + settings.reset_after,
            token_is_reset: false,
            member_requests: HashMap::new(),
            desk: rest::Desk::default(),
            rosters: HashMap::new(),
            sent: String::new(),
            taken: BTreeSet::new(),
            ambushes: Vec::new(),
            random_faults: None,
            timers: BTreeMap::new(),
            orders: VecDeque::new(),
            next_id: 1,
            rng: Rng::with_seed(settings.seed),
            settings,
        };

        world.set_activity(now, world.settings.activity);
        world
    }

    pub(super) fn url(&self) -> &str {
        &self.url
    }

    /// The next order; `None` until the next input or [`deadline`](Self::deadline).
    pub(crate) fn poll(&mut self, now: Instant) -> Option<Order> {
        while let Some(entry) = self.timers.first_entry()
            && entry.key().0 <= now
        {
            let ((due, _), timer) = entry.remove_entry();
            match timer {
                Timer::Ready { connection, start } => self.ready(now, connection, &start),
                Timer::GuildAvailable { session, guilds } => {
                    self.guilds_available(now, session, guilds);
                }
                Timer::Heartbeat { connection, late } => {
                    self.check_heartbeat(now, connection, late);
                }
                Timer::SessionEnd { session, absence } => {
                    if self
                        .sessions
                        .get(&session)
                        .is_some_and(|s| s.connection.is_none() && s.absences == absence)
                    {
                        self.lose_session(&session);
                    }
                }
                Timer::Replay {
                    connection,
                    session,
                    sequence,
                } => self.replay(now, connection, &session, sequence),
                Timer::Traffic => self.traffic(now, due),
                Timer::Fault { target, fault } => self.inject(now, target, fault),
                Timer::RandomFault => self.random_fault(now),
            }
        }
        self.orders.pop_front()
    }

    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.timers.first_key_value().map(|((at, _), _)| *at)
    }

    // What clients do.

    /// A connection was upgraded to a websocket.
    pub(crate) fn connected(&mut self, now: Instant, connection: usize, version: Option<&str>) {
        let given = version.unwrap_or("no version");
        self.sent = format!("v={given}");
        let version = version.map_or(Some(rest::DEFAULT_VERSION), |text| text.parse().ok());
        self.connections.insert(
            connection,
            Connection {
                version: version.unwrap_or(rest::DEFAULT_VERSION),
                shard: None,
                session: None,
                standing: Standing::New,
                silent: false,
                acknowledges: true,
                last_heartbeat: now,
                sends: VecDeque::new(),
                presences: VecDeque::new(),
            },
        );
        self.record(now, connection, Action::Connected);
        let (latency, jitter) = (self.settings.latency, self.settings.jitter);

        if !(latency + jitter).is_zero() {
            self.orders.push_back(Order::Delay {
                connection,
                latency,
                jitter,
            });
        }

        if !version.is_some_and(|version| rest::VERSIONS.contains(&version)) {
            return self.refuse(now, connection, 4012, "the API version must be 10 or 9");
        }

        if version < Some(OLDEST_SUPPORTED) {
            self.warn(now, connection, 4012, "the API version must be 10 or 9");
        }

        self.set_timer(
            now + self.longest_silence(),
            Timer::Heartbeat {
                connection,
                late: false,
            },
        );

        if let Some(answer) = self.ambush(now, None, |fault| match fault {
            Fault::Hello(answer) => Some(answer.clone()),
            _ => None,
        }) {
            return self.answer(now, connection, answer, None);
        }

        let interval = self.scaled(self.settings.heartbeat_interval);
        self.orders.push_back(Order::Send(
            connection,
            payloads::hello(interval.as_millis()).to_string(),
        ));
    }

    /// Handles a text message of a client.
    pub(crate) fn text(&mut self, now: Instant, connection: usize, text: &str) {
        self.sent = String::from("a payload that was not parsed");
        let window = self.scaled(SEND_WINDOW);
        let Some(client) = self.connections.get_mut(&connection) else {
            return;
        };

        if over(&mut client.sends, now, window, SENDS) {
            return self.refuse(now, connection, 4008, "at most 120 payloads per 60 s");
        }

        if text.len() > MAX_PAYLOAD {
            return self.refuse(
                now,
                connection,
                4002,
                &format!("at most 4096 bytes per payload, not {}", text.len()),
            );
        }

        let Ok(mut payload) = serde_json::from_str::<Value>(text) else {
            return self.refuse(now, connection, 4002, "a payload must be JSON");
        };
        let data = payload.get_mut("d").map(Value::take).unwrap_or_default();
        self.sent = records::shown(&payload["op"], &data);

        match payload["op"].as_u64() {
            Some(1) => self.heartbeat(now, connection, &data),
            Some(2) => self.identify(now, connection, data),
            Some(6) => self.resume(now, connection, &data),
            Some(op @ (3 | 4 | 8 | 31 | 43)) => self.command(now, connection, op, &data),
            Some(op) => {
                self.refuse(
                    now,
                    connection,
                    4001,
                    &format!("an opcode must be one that clients may send, not {op}"),
                );
            }
            None => self.refuse(now, connection, 4002, "a payload must have an `op`"),
        }
    }

    /// Handles a binary message of a client. Discord accepts JSON in both kinds of message.
    pub(super) fn binary(&mut self, now: Instant, connection: usize, bytes: &[u8]) {
        match std::str::from_utf8(bytes) {
            Ok(text) => self.text(now, connection, text),
            // Not UTF-8, so not JSON. This text is refused like other invalid JSON.
            Err(_) => self.text(now, connection, "\u{fffd}"),
        }
    }

    /// Handles the end of a connection; `code` is the client's close code.
    pub(crate) fn closed(&mut self, now: Instant, connection: usize, code: Option<u16>) {
        if !self.connections.contains_key(&connection) {
            return;
        }

        self.record(now, connection, Action::Closed(code));
        let Some(id) = self
            .connections
            .remove(&connection)
            .and_then(|client| client.session)
        else {
            return;
        };

        let Some(session) = self.sessions.get_mut(&id) else {
            return;
        };
        session.connection = None;
        session.absences += 1;
        let (absence, shard) = (session.absences, session.shard);
        self.update_live(shard);

        if matches!(code, Some(1000 | 1001)) {
            self.end_session(&id);
        } else {
            self.set_timer(
                now + self.scaled(sessions::LIFETIME),
                Timer::SessionEnd {
                    session: id,
                    absence,
                },
            );
        }
    }

    fn heartbeat(&mut self, now: Instant, connection: usize, data: &Value) {
        self.record(now, connection, Action::Heartbeat(data.as_u64()));
        // A connection has no sequence while its client may still be about to resume.
        let last = self.session_of(connection).map(|session| session.sequence);
        if last.is_some_and(|last| data.as_u64() > Some(last)) {
            let rule = "a heartbeat must have the last sequence received";
            self.violation(now, connection, rule, false);
        }

        let Some(client) = self.connections.get_mut(&connection) else {
            return;
        };
        client.last_heartbeat = now;

        if client.acknowledges {
            self.orders.push_back(Order::Send(
                connection,
                r#"{"op":11,"s":null,"t":null,"d":null}"#.into(),
            ));
        }
    }

    fn check_heartbeat(&mut self, now: Instant, connection: usize, late: bool) {
        let Some(client) = self.connections.get(&connection) else {
            return;
        };
        let due = client.last_heartbeat + self.longest_silence();

        if now < due {
            self.set_timer(
                due,
                Timer::Heartbeat {
                    connection,
                    late: false,
                },
            );
        } else if client.silent {
            // Nothing is read from it, so its heartbeats are unknown.
            self.orders.push_back(Order::Cut(connection));
        } else if !late {
            // If this machine was suspended or busy, the heartbeat may still be in the socket.
            self.set_timer(
                now + SECOND_LOOK,
                Timer::Heartbeat {
                    connection,
                    late: true,
                },
            );
        } else {
            self.lose_session_of(connection);
            self.sent = String::new();
            self.refuse(now, connection, 4009, "a heartbeat per interval");
        }
    }

    fn close(&mut self, now: Instant, connection: usize, code: u16) {
        self.orders.push_back(Order::Close(connection, code));
        self.closed(now, connection, None);
    }

    /// The session of a connection.
    fn session_of(&self, connection: usize) -> Option<&Session> {
        self.sessions
            .get(self.connections.get(&connection)?.session.as_ref()?)
    }

    fn shard_of(&self, connection: usize) -> Option<ShardId> {
        self.connections.get(&connection)?.shard
    }

    /// The connections whose client has named this shard, in order.
    fn connections_of(&self, shard: ShardId) -> Vec<usize> {
        let of_shard = self
            .connections
            .iter()
            .filter(|(_, client)| client.shard == Some(shard));
        let mut connections: Vec<_> = of_shard.map(|(id, _)| *id).collect();
        connections.sort_unstable();
        connections
    }

    // What the test does, outside the rules.

    pub(super) fn send_raw(&mut self, shard: ShardId, text: &str) {
        for connection in self.connections_of(shard) {
            self.orders
                .push_back(Order::Send(connection, text.to_owned()));
        }
    }

    pub(super) fn send_message(&mut self, shard: ShardId, message: &Message) {
        for connection in self.connections_of(shard) {
            self.orders
                .push_back(Order::Message(connection, message.clone()));
        }
    }

    // Time.

    fn unix(&self, now: Instant) -> Duration {
        self.unix_start + now.saturating_duration_since(self.start)
    }

    /// A new unique id for an object that is created now.
    fn snowflake(&mut self, now: Instant) -> u64 {
        self.next_id += 1;
        let milliseconds = u64::try_from(self.unix(now).as_millis()).unwrap_or(u64::MAX);
        (milliseconds.saturating_sub(payloads::EPOCH) << 22) | (self.next_id & 0x3f_ffff)
    }

    fn longest_silence(&self) -> Duration {
        self.scaled(self.settings.heartbeat_interval).mul_f64(1.25) + HEARTBEAT_GRACE
    }

    fn scaled(&self, duration: Duration) -> Duration {
        duration.mul_f64(self.settings.time_scale)
    }

    fn set_timer(&mut self, at: Instant, timer: Timer) {
        self.next_id += 1;
        self.timers.insert((at, self.next_id), timer);
    }
}

/// Counts a message, and returns whether there are now more than `limit` within the window.
fn over(sent: &mut VecDeque<Instant>, now: Instant, window: Duration, limit: usize) -> bool {
    while sent.front().is_some_and(|&at| at + window <= now) {
        sent.pop_front();
    }
    sent.push_back(now);
    sent.len() > limit
}

#[cfg(test)]
mod tests;
