//! What the other side of the wire does: Discord's rules, without socket, thread, lock or clock.
#![deny(clippy::disallowed_methods)]

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::{Duration, Instant};

use fastrand::Rng;
use serde::Deserialize;
use serde_json::{Value, json};
use tungstenite::Message;

use super::{Action, EmitError, Observed, Record, Settings, Violation, payloads};
use crate::intents::Intents;
use crate::shard_id::ShardId;

const IDENTIFY_WINDOW: Duration = Duration::from_secs(5);
const SEND_WINDOW: Duration = Duration::from_secs(60);
const PRESENCE_WINDOW: Duration = Duration::from_secs(20);
const SENDS: usize = 120;
const PRESENCES: usize = 5;
const MAX_PAYLOAD: usize = 4096;
/// How long a session waits for its client.
const SESSION_LIFETIME: Duration = Duration::from_secs(180);
/// What a heartbeat may be late on a machine that does other things too.
const HEARTBEAT_GRACE: Duration = Duration::from_secs(2);
/// Events that a session keeps for replay.
const REPLAY: usize = 100_000;

/// Something for the server to do.
#[derive(Debug, PartialEq)]
pub(super) enum Order {
    Send(usize, String),
    SendMessage(usize, Message),
    /// From here on large payloads are compressed one by one.
    CompressPayloads(usize),
    Close(usize, u16),
    Cut(usize),
}

pub(super) struct World {
    settings: Settings,
    url: String,
    pub(super) resume_url: String,
    pub(super) acknowledge: bool,
    pub(super) greeting: Option<String>,
    pub(super) answers: VecDeque<String>,
    pub(super) stopped: bool,
    pub(super) observed: Observed,
    guilds: BTreeMap<u64, Guild>,
    /// The guild of each channel.
    channels: HashMap<u64, u64>,
    connections: HashMap<usize, Connection>,
    sessions: HashMap<String, Session>,
    /// The last IDENTIFY of each key.
    keys: HashMap<u32, Instant>,
    starts_left: u32,
    reset_at: Instant,
    timers: BTreeMap<(Instant, u64), Timer>,
    orders: VecDeque<Order>,
    next_id: u64,
    rng: Rng,
}

struct Guild {
    channel: u64,
    members: Vec<u64>,
}

struct Connection {
    shard: Option<ShardId>,
    session: Option<String>,
    identified: bool,
    last_heartbeat: Instant,
    sends: VecDeque<Instant>,
    presences: VecDeque<Instant>,
}

struct Session {
    shard: ShardId,
    intents: Intents,
    sequence: u64,
    replay: VecDeque<(u64, String)>,
    connection: Option<usize>,
    /// Counts the times that it lost its client, so that an old timer does not end it.
    absences: u64,
}

#[derive(Debug)]
enum Timer {
    Ready { connection: usize, shard: ShardId, intents: Intents },
    Heartbeat(usize),
    SessionEnd { session: String, absence: u64 },
    Traffic,
}

#[derive(Deserialize)]
struct Identify {
    token: String,
    intents: u64,
    #[serde(default)]
    compress: bool,
    shard: Option<(u32, u32)>,
}

#[derive(Deserialize)]
struct Resume {
    token: String,
    session_id: String,
    seq: u64,
}

impl World {
    pub(super) fn new(now: Instant, settings: Settings, url: String) -> Self {
        let mut world = Self {
            resume_url: url.clone(),
            url,
            acknowledge: true,
            greeting: None,
            answers: VecDeque::new(),
            stopped: false,
            observed: Observed::default(),
            guilds: BTreeMap::new(),
            channels: HashMap::new(),
            connections: HashMap::new(),
            sessions: HashMap::new(),
            keys: HashMap::new(),
            starts_left: settings.session_starts_left,
            reset_at: now + settings.reset_after,
            timers: BTreeMap::new(),
            orders: VecDeque::new(),
            next_id: 1,
            rng: Rng::with_seed(settings.seed),
            settings,
        };
        if world.settings.activity > 0.0 {
            world.set_timer(now, Timer::Traffic);
        }
        world
    }

    pub(super) fn url(&self) -> &str {
        &self.url
    }

    pub(super) fn add_guilds(&mut self, count: u32) {
        for n in 0..count {
            let id = payloads::guild_id(n);
            let members = (0..3).map(|member| id + 1000 + member).collect();
            self.guilds.insert(id, Guild { channel: id + 1, members });
            self.channels.insert(id + 1, id);
        }
    }

    pub(super) fn guild_ids(&self) -> Vec<u64> {
        self.guilds.keys().copied().collect()
    }

    pub(super) fn channel_of(&self, guild_id: u64) -> Option<u64> {
        self.guilds.get(&guild_id).map(|guild| guild.channel)
    }

    /// What to do next; `None` until the next input or [`deadline`](Self::deadline).
    pub(super) fn poll(&mut self, now: Instant) -> Option<Order> {
        while let Some(entry) = self.timers.first_entry()
            && entry.key().0 <= now
        {
            match entry.remove() {
                Timer::Ready { connection, shard, intents } => self.ready(connection, shard, intents),
                Timer::Heartbeat(connection) => self.check_heartbeat(now, connection),
                Timer::SessionEnd { session, absence } => {
                    if self.sessions.get(&session).is_some_and(|s| s.connection.is_none() && s.absences == absence) {
                        self.sessions.remove(&session);
                    }
                }
                Timer::Traffic => self.traffic(now),
            }
        }
        self.orders.pop_front()
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        self.timers.first_key_value().map(|((at, _), _)| *at)
    }

    // What clients do.

    pub(super) fn connected(&mut self, now: Instant, connection: usize, version: Option<&str>) {
        self.connections.insert(
            connection,
            Connection {
                shard: None,
                session: None,
                identified: false,
                last_heartbeat: now,
                sends: VecDeque::new(),
                presences: VecDeque::new(),
            },
        );
        self.record(now, connection, Action::Connected);
        if version != Some("10") {
            return self.refuse(now, connection, 4012, "the API version is 10");
        }
        let interval = self.scaled(self.settings.heartbeat_interval);
        let hello = payloads::hello(interval.as_millis()).to_string();
        self.orders.push_back(Order::Send(connection, self.greeting.clone().unwrap_or(hello)));
        self.set_timer(now + self.longest_silence(), Timer::Heartbeat(connection));
    }

    pub(super) fn text(&mut self, now: Instant, connection: usize, text: &str) {
        if !self.within_limits(now, connection, text) {
            return;
        }
        let Ok(payload) = serde_json::from_str::<Value>(text) else {
            return self.refuse(now, connection, 4002, "payloads are JSON");
        };
        let (op, data) = (payload["op"].as_u64(), &payload["d"]);
        match op {
            Some(1) => {
                self.record(now, connection, Action::Heartbeat(data.as_u64()));
                if self.last_sequence(connection).is_some_and(|last| data.as_u64() > Some(last)) {
                    let rule = format!("a heartbeat has the last sequence received, not {data}");
                    self.violation(now, connection, rule);
                }
                if let Some(connection) = self.connections.get_mut(&connection) {
                    connection.last_heartbeat = now;
                }
                if self.acknowledge {
                    self.orders.push_back(Order::Send(connection, r#"{"op":11,"s":null,"t":null,"d":null}"#.into()));
                }
            }
            Some(2) => self.identify(now, connection, data),
            Some(6) => self.resume(now, connection, data),
            Some(3 | 4 | 8 | 31 | 43) => {
                let session = self.connections.get(&connection).is_some_and(|c| c.session.is_some());
                if session {
                    self.record(now, connection, Action::Command(payload));
                } else {
                    self.refuse(now, connection, 4003, "commands come after READY");
                }
            }
            Some(_) => self.refuse(now, connection, 4001, "opcodes are those that Discord documents"),
            None => self.refuse(now, connection, 4002, "payloads have an `op`"),
        }
    }

    pub(super) fn binary(&mut self, now: Instant, connection: usize) {
        self.refuse(now, connection, 4002, "payloads are text messages");
    }

    /// The connection is gone; `code` is the client's.
    pub(super) fn closed(&mut self, now: Instant, connection: usize, code: Option<u16>) {
        if !self.connections.contains_key(&connection) {
            return;
        }
        self.record(now, connection, Action::Closed(code));
        let Some(session) = self.disconnect(connection) else { return };
        if matches!(code, Some(1000 | 1001)) {
            self.sessions.remove(&session);
        } else if let Some(state) = self.sessions.get(&session) {
            let absence = state.absences;
            self.set_timer(now + self.scaled(SESSION_LIFETIME), Timer::SessionEnd { session, absence });
        }
    }

    pub(super) fn rest(
        &mut self,
        now: Instant,
        method: &str,
        path: &str,
        token: Option<&str>,
        body: &str,
    ) -> (u16, Value) {
        let Some(path) = path.strip_prefix("/api/v10") else {
            return (404, json!({"message": "404: Not Found", "code": 0}));
        };
        if (method, path) == ("GET", "/gateway") {
            return (200, json!({"url": self.url}));
        }
        if token.and_then(|token| token.strip_prefix("Bot ")) != Some(&self.settings.token) {
            return (401, json!({"message": "401: Unauthorized", "code": 0}));
        }
        self.new_day(now);
        match (method, path.split('/').skip(1).collect::<Vec<_>>().as_slice()) {
            ("GET", ["gateway", "bot"]) => (200, self.gateway_bot(now)),
            ("GET", ["oauth2", "applications", "@me"]) => (
                200,
                json!({
                    "id": payloads::BOT.to_string(),
                    "name": "simulated application",
                    "bot": payloads::user(payloads::BOT, true),
                    "approximate_guild_count": self.guilds.len(),
                }),
            ),
            ("GET", ["users", "@me"]) => (200, payloads::user(payloads::BOT, true)),
            ("POST", ["channels", channel, "messages"]) => self.post_message(channel, body),
            _ => (404, json!({"message": "404: Not Found", "code": 0})),
        }
    }

    // What the owner does.

    pub(super) fn emit(&mut self, guild_id: Option<u64>, name: &str, data: &Value) -> Result<(), EmitError> {
        if !data.is_object() {
            return Err(EmitError::NotAnObject(name.to_owned()));
        }
        if let Some(guild_id) = guild_id.filter(|id| !self.guilds.contains_key(id)) {
            return Err(EmitError::UnknownGuild(guild_id));
        }
        self.dispatch_to_guild(guild_id, name, data);
        Ok(())
    }

    pub(super) fn chat(&mut self, channel_id: u64, text: &str) -> Result<u64, EmitError> {
        let guild_id = *self.channels.get(&channel_id).ok_or(EmitError::UnknownChannel(channel_id))?;
        let author = self.guilds[&guild_id].members.first().copied().unwrap_or(payloads::BOT);
        Ok(self.post(guild_id, channel_id, &payloads::user(author, false), text)["id"]
            .as_str()
            .and_then(|id| id.parse().ok())
            .unwrap_or_default())
    }

    pub(super) fn reconnect(&mut self, shard: ShardId) {
        self.send_raw(shard, r#"{"op":7,"s":null,"t":null,"d":null}"#);
    }

    pub(super) fn invalidate(&mut self, shard: ShardId, resumable: bool) {
        self.send_raw(shard, &invalid_session(resumable));
        if !resumable {
            for session in self.sessions_of(shard) {
                self.sessions.remove(&session);
                self.observed.sessions_lost += 1;
            }
        }
    }

    pub(super) fn cut(&mut self, shard: ShardId) {
        for connection in self.connections_of(shard) {
            self.orders.push_back(Order::Cut(connection));
        }
    }

    pub(super) fn cut_all(&mut self) {
        self.orders.extend(self.connections.keys().map(|connection| Order::Cut(*connection)));
    }

    pub(super) fn close(&mut self, now: Instant, shard: ShardId, code: u16) {
        for connection in self.connections_of(shard) {
            self.orders.push_back(Order::Close(connection, code));
            if matches!(code, 4003 | 4007 | 4009) {
                for session in self.sessions_of(shard) {
                    self.sessions.remove(&session);
                    self.observed.sessions_lost += 1;
                }
            }
            self.closed(now, connection, None);
        }
    }

    pub(super) fn send_raw(&mut self, shard: ShardId, text: &str) {
        for connection in self.connections_of(shard) {
            self.orders.push_back(Order::Send(connection, text.to_owned()));
        }
    }

    /// Sends a message past the compression.
    pub(super) fn send_message(&mut self, shard: ShardId, message: &Message) {
        for connection in self.connections_of(shard) {
            self.orders.push_back(Order::SendMessage(connection, message.clone()));
        }
    }

    // The rules.

    fn within_limits(&mut self, now: Instant, connection: usize, text: &str) -> bool {
        let (window, presence_window) = (self.scaled(SEND_WINDOW), self.scaled(PRESENCE_WINDOW));
        let Some(client) = self.connections.get_mut(&connection) else { return false };
        let over = |sent: &mut VecDeque<Instant>, window, limit| {
            while sent.front().is_some_and(|&at| at + window <= now) {
                sent.pop_front();
            }
            sent.push_back(now);
            sent.len() > limit
        };
        if over(&mut client.sends, window, SENDS) {
            self.refuse(now, connection, 4008, "at most 120 payloads per 60 s");
            return false;
        }
        if text.starts_with(r#"{"op":3,"#) || text.ends_with(r#","op":3}"#) {
            let Some(client) = self.connections.get_mut(&connection) else { return false };
            if over(&mut client.presences, presence_window, PRESENCES) {
                self.refuse(now, connection, 4008, "at most 5 presences per 20 s");
                return false;
            }
        }
        if text.len() > MAX_PAYLOAD {
            self.refuse(now, connection, 4002, "at most 4096 bytes per payload");
            return false;
        }
        true
    }

    fn identify(&mut self, now: Instant, connection: usize, data: &Value) {
        let Ok(identify) = Identify::deserialize(data) else {
            return self.refuse(now, connection, 4002, "IDENTIFY has token, intents and properties");
        };
        let Some(client) = self.connections.get_mut(&connection) else { return };
        let (number, total) = identify.shard.unwrap_or((0, 1));
        let shard = ShardId::new(number, total);
        let again = std::mem::replace(&mut client.identified, true);
        client.shard = shard.ok();
        self.record(now, connection, Action::Identify);
        if again {
            return self.refuse(now, connection, 4005, "a connection identifies once");
        }
        if identify.token != self.settings.token {
            return self.refuse(now, connection, 4004, "the token is the bot's");
        }
        let Ok(shard) = shard else {
            return self.refuse(now, connection, 4010, "shard numbers are below their total");
        };
        let Some(intents) = Intents::from_bits(identify.intents) else {
            return self.refuse(now, connection, 4013, "intents are those that Discord documents");
        };
        if !self.settings.allowed_intents.contains(intents) {
            return self.refuse(now, connection, 4014, "intents are those that the bot may use");
        }
        if self.guilds_of(shard).len() > self.settings.guilds_per_shard {
            return self.refuse(now, connection, 4011, "a shard holds no more guilds than it may");
        }
        self.new_day(now);
        if self.starts_left == 0 {
            return self.refuse(now, connection, 4004, "no IDENTIFY with nothing remaining: the token is reset");
        }
        self.starts_left -= 1;
        let key = number % self.settings.max_concurrency.max(1);
        let last = self.keys.insert(key, now);
        if let Some(last) = last
            && now < last + self.scaled(IDENTIFY_WINDOW)
        {
            let rule = format!("one IDENTIFY per key and 5 s: key {key} after {:?}", now - last);
            self.violation(now, connection, rule);
            self.orders.push_back(Order::Send(connection, invalid_session(false)));
            return;
        }
        if let Some(answer) = self.answers.pop_front() {
            self.orders.push_back(Order::Send(connection, answer));
            return;
        }
        if identify.compress {
            self.orders.push_back(Order::CompressPayloads(connection));
        }
        self.set_timer(now + self.settings.ready_delay, Timer::Ready { connection, shard, intents });
    }

    fn ready(&mut self, connection: usize, shard: ShardId, intents: Intents) {
        let Some(client) = self.connections.get_mut(&connection) else { return };
        let id = format!("{:032x}", self.rng.u128(..));
        client.session = Some(id.clone());
        let session =
            Session { shard, intents, sequence: 0, replay: VecDeque::new(), connection: Some(connection), absences: 0 };
        self.sessions.insert(id.clone(), session);
        self.observed.live.insert(shard, connection);
        let guilds = if intents.contains(Intents::GUILDS) { self.guilds_of(shard) } else { Vec::new() };
        let ready = payloads::ready(shard, &id, &self.resume_url, &guilds);
        self.dispatch(&id, "READY", &ready);
        for guild_id in guilds {
            let guild = &self.guilds[&guild_id];
            let data = payloads::guild(guild_id, guild.channel, &guild.members);
            self.dispatch(&id, "GUILD_CREATE", &data);
        }
    }

    fn resume(&mut self, now: Instant, connection: usize, data: &Value) {
        let Ok(resume) = Resume::deserialize(data) else {
            return self.refuse(now, connection, 4002, "RESUME has token, session_id and seq");
        };
        let shard = self.sessions.get(&resume.session_id).map(|session| session.shard);
        let Some(client) = self.connections.get_mut(&connection) else { return };
        client.shard = shard;
        let again = std::mem::replace(&mut client.identified, true);
        let action = Action::Resume { session: resume.session_id.clone(), sequence: resume.seq };
        self.record(now, connection, action);
        if again {
            return self.refuse(now, connection, 4005, "a connection identifies once");
        }
        if resume.token != self.settings.token {
            return self.refuse(now, connection, 4004, "the token is the bot's");
        }
        if let Some(answer) = self.answers.pop_front() {
            self.orders.push_back(Order::Send(connection, answer));
            return;
        }
        let Some(session) = self.sessions.get_mut(&resume.session_id) else {
            self.orders.push_back(Order::Send(connection, invalid_session(false)));
            return;
        };
        if resume.seq > session.sequence {
            self.sessions.remove(&resume.session_id);
            return self.refuse(now, connection, 4007, "a session resumes from a sequence that it was given");
        }
        // The client is quicker than the news of its old connection's end.
        let old = session.connection.replace(connection);
        let missed = session.replay.iter().filter(|(sequence, _)| *sequence > resume.seq);
        let missed: Vec<String> = missed.map(|(_, payload)| payload.clone()).collect();
        let (shard, sequence) = (session.shard, session.sequence);
        if let Some(old) = old.and_then(|old| self.connections.get_mut(&old)) {
            old.session = None;
        }
        if let Some(client) = self.connections.get_mut(&connection) {
            client.session = Some(resume.session_id);
        }
        self.observed.live.insert(shard, connection);
        self.orders.extend(missed.into_iter().map(|payload| Order::Send(connection, payload)));
        let resumed = json!({"t": "RESUMED", "s": sequence, "op": 0, "d": {"_trace": ["sim"]}}).to_string();
        self.orders.push_back(Order::Send(connection, resumed));
    }

    fn check_heartbeat(&mut self, now: Instant, connection: usize) {
        let Some(client) = self.connections.get(&connection) else { return };
        let due = client.last_heartbeat + self.longest_silence();
        if now >= due {
            self.refuse(now, connection, 4009, "a heartbeat per interval");
        } else {
            self.set_timer(due, Timer::Heartbeat(connection));
        }
    }

    /// A rule is broken: the connection is closed with Discord's code for it.
    fn refuse(&mut self, now: Instant, connection: usize, code: u16, rule: &str) {
        self.violation(now, connection, format!("{code}: {rule}"));
        self.orders.push_back(Order::Close(connection, code));
        self.closed(now, connection, None);
    }

    fn violation(&mut self, now: Instant, connection: usize, rule: String) {
        let shard = self.connections.get(&connection).and_then(|connection| connection.shard);
        self.observed.violations.push(Violation { at: now, shard, rule });
    }

    fn record(&mut self, now: Instant, connection: usize, action: Action) {
        let shard = self.connections.get(&connection).and_then(|connection| connection.shard);
        self.observed.records.push(Record { at: now, connection, shard, action });
    }

    /// Forgets a connection; returns its session, which now waits for its client.
    fn disconnect(&mut self, connection: usize) -> Option<String> {
        let client = self.connections.remove(&connection)?;
        self.observed.live.retain(|_, live| *live != connection);
        let id = client.session?;
        let session = self.sessions.get_mut(&id)?;
        session.connection = None;
        session.absences += 1;
        Some(id)
    }

    // The guilds.

    fn traffic(&mut self, now: Instant) {
        self.set_timer(now + Duration::from_secs_f64(1.0 / self.settings.activity), Timer::Traffic);
        let Some(at) = self.rng.usize(..).checked_rem(self.guilds.len()) else { return };
        let Some((&guild_id, guild)) = self.guilds.iter().nth(at) else { return };
        let (channel, member) = (guild.channel, guild.members[self.rng.usize(..guild.members.len())]);
        match self.rng.u32(..10) {
            0..4 => {
                let text = ["hello", "anyone here?", "🦀 is the best", "ok", "see you \"tomorrow\"\n…maybe"];
                let text = text[self.rng.usize(..text.len())];
                self.post(guild_id, channel, &payloads::user(member, false), text);
            }
            4..8 => {
                self.dispatch_to_guild(Some(guild_id), "TYPING_START", &payloads::typing(guild_id, channel, member));
            }
            _ => {
                let data = payloads::reaction(guild_id, channel, member + 7, member);
                self.dispatch_to_guild(Some(guild_id), "MESSAGE_REACTION_ADD", &data);
            }
        }
    }

    fn post_message(&mut self, channel: &str, body: &str) -> (u16, Value) {
        let channel_id: Option<u64> = channel.parse().ok();
        let Some((channel_id, guild_id)) = channel_id.and_then(|id| Some((id, *self.channels.get(&id)?))) else {
            return (404, json!({"message": "Unknown Channel", "code": 10003}));
        };
        let content =
            serde_json::from_str::<Value>(body).ok().and_then(|body| Some(body["content"].as_str()?.to_owned()));
        match content.filter(|content| !content.is_empty()) {
            Some(content) => (200, self.post(guild_id, channel_id, &payloads::user(payloads::BOT, true), &content)),
            None => (400, json!({"message": "Cannot send an empty message", "code": 50006})),
        }
    }

    fn post(&mut self, guild_id: u64, channel_id: u64, author: &Value, text: &str) -> Value {
        self.next_id += 1;
        let message = payloads::message(guild_id + (self.next_id << 22), guild_id, channel_id, author, text);
        self.dispatch_to_guild(Some(guild_id), "MESSAGE_CREATE", &message);
        message
    }

    fn dispatch_to_guild(&mut self, guild_id: Option<u64>, name: &str, data: &Value) {
        let wanted = intents_of(name, guild_id.is_some());
        let sessions: Vec<String> = self
            .sessions
            .iter()
            .filter(|(_, session)| {
                let home = guild_id.map_or(0, |id| (id >> 22) % u64::from(session.shard.total()));
                u64::from(session.shard.number()) == home && (wanted.is_empty() || session.intents.intersects(wanted))
            })
            .map(|(id, _)| id.clone())
            .collect();
        for id in sessions {
            let sees_text = self.sessions[&id].intents.contains(Intents::MESSAGE_CONTENT);
            if name == "MESSAGE_CREATE" && !sees_text && data["author"]["bot"] != true {
                let mut blank = data.clone();
                blank["content"] = "".into();
                self.dispatch(&id, name, &blank);
            } else {
                self.dispatch(&id, name, data);
            }
        }
    }

    fn dispatch(&mut self, session_id: &str, name: &str, data: &Value) {
        let Some(session) = self.sessions.get_mut(session_id) else { return };
        session.sequence += 1;
        self.observed.sequences.insert(session_id.to_owned(), session.sequence);
        // In the order in which Discord writes the fields.
        let payload = format!(r#"{{"t":"{name}","s":{},"op":0,"d":{data}}}"#, session.sequence);
        if session.replay.len() == REPLAY {
            session.replay.pop_front();
        }
        session.replay.push_back((session.sequence, payload.clone()));
        if let Some(connection) = session.connection {
            self.orders.push_back(Order::Send(connection, payload));
        }
    }

    // Helpers.

    fn gateway_bot(&self, now: Instant) -> Value {
        let reset_after = self.reset_at.saturating_duration_since(now);
        json!({
            "url": self.url,
            "shards": self.settings.shards,
            "session_start_limit": {
                "total": self.settings.session_starts,
                "remaining": self.starts_left,
                "reset_after": u64::try_from(reset_after.as_millis()).unwrap_or(u64::MAX),
                "max_concurrency": self.settings.max_concurrency,
            },
        })
    }

    fn new_day(&mut self, now: Instant) {
        if now >= self.reset_at {
            self.starts_left = self.settings.session_starts;
            self.reset_at = now + Duration::from_secs(24 * 60 * 60);
        }
    }

    fn guilds_of(&self, shard: ShardId) -> Vec<u64> {
        let home = |id: &u64| (id >> 22) % u64::from(shard.total()) == u64::from(shard.number());
        self.guilds.keys().copied().filter(home).collect()
    }

    fn connections_of(&self, shard: ShardId) -> Vec<usize> {
        self.connections.iter().filter(|(_, client)| client.shard == Some(shard)).map(|(id, _)| *id).collect()
    }

    fn sessions_of(&self, shard: ShardId) -> Vec<String> {
        self.sessions.iter().filter(|(_, session)| session.shard == shard).map(|(id, _)| id.clone()).collect()
    }

    /// The last sequence that a connection's session was given; `None` while it has none, though its client may be about
    /// to resume one.
    fn last_sequence(&self, connection: usize) -> Option<u64> {
        let session = self.connections.get(&connection)?.session.as_ref()?;
        self.sessions.get(session).map(|session| session.sequence)
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

fn invalid_session(resumable: bool) -> String {
    format!(r#"{{"op":9,"s":null,"t":null,"d":{resumable}}}"#)
}

/// The intents of which one must be there for an event to be sent; none for an event that everybody gets.
///
/// Source: [Discord, List of intents](https://docs.discord.com/developers/events/gateway#list-of-intents).
fn intents_of(name: &str, in_guild: bool) -> Intents {
    match (name, in_guild) {
        (
            "GUILD_CREATE" | "GUILD_UPDATE" | "GUILD_DELETE" | "CHANNEL_CREATE" | "CHANNEL_UPDATE" | "THREAD_CREATE",
            _,
        ) => Intents::GUILDS,
        ("GUILD_MEMBER_ADD" | "GUILD_MEMBER_UPDATE" | "GUILD_MEMBER_REMOVE", _) => Intents::GUILD_MEMBERS,
        ("PRESENCE_UPDATE", _) => Intents::GUILD_PRESENCES,
        ("VOICE_STATE_UPDATE", _) => Intents::GUILD_VOICE_STATES,
        ("MESSAGE_CREATE" | "MESSAGE_UPDATE" | "MESSAGE_DELETE", true) => Intents::GUILD_MESSAGES,
        ("MESSAGE_CREATE" | "MESSAGE_UPDATE" | "MESSAGE_DELETE", false) => Intents::DIRECT_MESSAGES,
        ("MESSAGE_REACTION_ADD" | "MESSAGE_REACTION_REMOVE", true) => Intents::GUILD_MESSAGE_REACTIONS,
        ("MESSAGE_REACTION_ADD" | "MESSAGE_REACTION_REMOVE", false) => Intents::DIRECT_MESSAGE_REACTIONS,
        ("TYPING_START", true) => Intents::GUILD_MESSAGE_TYPING,
        ("TYPING_START", false) => Intents::DIRECT_MESSAGE_TYPING,
        _ => Intents::empty(),
    }
}
