//! How sessions start and end, and how events are sent to them.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use serde::Deserialize;
use serde_json::Value;

use super::{
    Action, Answer, Dispatched, Fault, Guild, Order, Standing, Timer, World, commands, payloads,
};
use crate::intents::Intents;
use crate::shard_id::ShardId;

/// How long a session without a client can be resumed.
pub(super) const LIFETIME: Duration = Duration::from_secs(180);
const IDENTIFY_WINDOW: Duration = Duration::from_secs(5);
/// The first version of the API whose IDENTIFY needs intents.
const NEEDS_INTENTS: u32 = 8;
/// The first bit that was never an intent.
const NO_INTENT: u64 = 1 << 26;
/// The maximum number of bytes of events that a session keeps for replay.
const REPLAY: usize = 8 << 20;

pub(super) struct Session {
    pub(super) shard: ShardId,
    pub(super) intents: Intents,
    pub(super) large_threshold: usize,
    pub(super) sequence: u64,
    pub(super) replay: VecDeque<(u64, String)>,
    replay_bytes: usize,
    pub(super) connection: Option<usize>,
    /// How many times it lost its client. A timer with an older count does not end the session.
    pub(super) absences: u64,
}

/// What an IDENTIFY requested.
#[derive(Debug)]
pub(super) struct Start {
    shard: ShardId,
    intents: Intents,
    large_threshold: usize,
}

#[derive(Deserialize)]
struct Identify {
    token: String,
    /// Versions before 8 need none.
    intents: Option<u64>,
    compress: Option<bool>,
    shard: Option<(u32, u32)>,
    large_threshold: Option<u64>,
    presence: Option<Value>,
    properties: Option<serde_json::Map<String, Value>>,
}

impl World {
    pub(super) fn identify(&mut self, now: Instant, connection: usize, mut data: Value) {
        let identify = Identify::deserialize(&data);
        if let Some(fields) = data.as_object_mut() {
            fields.remove("token");
        }

        let Ok(identify) = identify else {
            self.record(now, connection, Action::Identify(data));
            return self.refuse(
                now,
                connection,
                4002,
                "IDENTIFY must have token, intents, properties and shard as documented",
            );
        };

        let (number, total) = identify.shard.unwrap_or((0, 1));
        let shard = ShardId::new(number, total).ok();
        let action = Action::Identify(data);
        if !self.authenticate(now, connection, shard, &identify.token, action) {
            return;
        }

        let start = match self.identity(connection, &identify, shard) {
            Ok(start) => start,
            Err((code, rule)) => return self.refuse(now, connection, code, rule),
        };
        self.accept(now, connection, &identify, start);
    }

    /// Records an IDENTIFY or a RESUME. Returns whether it may continue: it is the first of its
    /// connection, and has the bot's token.
    pub(super) fn authenticate(
        &mut self,
        now: Instant,
        connection: usize,
        shard: Option<ShardId>,
        token: &str,
        action: Action,
    ) -> bool {
        let Some(client) = self.connections.get_mut(&connection) else {
            return false;
        };
        client.shard = shard;
        let again = std::mem::replace(&mut client.standing, Standing::Known) == Standing::Known;
        self.record(now, connection, action);

        if again {
            let rule = "a connection may identify or resume only once";
            self.refuse(now, connection, 4005, rule);
            return false;
        }
        if !self.is_token(token) {
            self.refuse(now, connection, 4004, "the token must be the bot's");
            return false;
        }
        true
    }

    /// Starts a session for a valid IDENTIFY, unless the limits or a fault prevent it.
    fn accept(&mut self, now: Instant, connection: usize, identify: &Identify, start: Start) {
        for (code, rule) in doubts(identify) {
            self.warn(now, connection, code, rule);
        }

        if !self.connections.contains_key(&connection) {
            return;
        }
        if !self.spend_start(now, connection, start.shard.number()) {
            return;
        }

        let answer = self.ambush(now, Some(start.shard), |fault| match fault {
            Fault::Identify(answer) => Some(answer.clone()),
            _ => None,
        });
        if let Some(answer) = answer {
            return self.answer(now, connection, answer, None);
        }

        if identify.compress == Some(true) {
            self.orders.push_back(Order::CompressPayloads(connection));
        }

        self.set_timer(
            now + self.settings.ready_delay,
            Timer::Ready { connection, start },
        );
    }

    /// What an IDENTIFY requests, or the close code and the rule that it breaks.
    fn identity(
        &self,
        connection: usize,
        identify: &Identify,
        shard: Option<ShardId>,
    ) -> Result<Start, (u16, &'static str)> {
        let shard = shard.ok_or((4010, "a shard number must be below the total"))?;
        if shard.total() % self.settings.shard_multiple != 0 {
            return Err((
                4010,
                "the shard count of a large bot must be a multiple of the required number",
            ));
        }

        let version = self
            .connections
            .get(&connection)
            .map(|client| client.version);
        let intents = match identify.intents {
            Some(bits) if bits < NO_INTENT => Intents::from_bits_truncate(bits),
            None if version < Some(NEEDS_INTENTS) => Intents::default(),
            _ => return Err((4013, "intents must be ones that Discord documents")),
        };
        if !self.settings.allowed_intents.contains(intents) {
            return Err((4014, "intents must be ones that the bot may use"));
        }

        if self.guilds_of(shard).count() > self.settings.guilds_per_shard {
            return Err((4011, "a shard must not have more guilds than the limit"));
        }

        let large_threshold = identify.large_threshold.unwrap_or(50);
        if !(50..=250).contains(&large_threshold) {
            return Err((4002, "large_threshold must be from 50 to 250"));
        }

        if let Some(presence) = &identify.presence {
            commands::check_presence(presence)?;
        }

        Ok(Start {
            shard,
            intents,
            large_threshold: usize::try_from(large_threshold).unwrap_or(50),
        })
    }

    /// Counts an IDENTIFY against the daily limit and its key's window. Returns whether it may
    /// proceed.
    fn spend_start(&mut self, now: Instant, connection: usize, number: u32) -> bool {
        self.new_day(now);
        if self.starts_left == 0 {
            let rule = "no IDENTIFY without remaining session starts: the token is reset";
            self.violation(now, connection, rule, true);
            self.token_is_reset = true;
            for id in self.sessions.keys().cloned().collect::<Vec<_>>() {
                self.lose_session(&id);
            }
            for connection in self.connections.keys().copied().collect::<Vec<_>>() {
                self.close(now, connection, 4004);
            }
            return false;
        }

        self.starts_left -= 1;
        let key = number % self.settings.max_concurrency;
        let last = self.keys.insert(key, now);
        if let Some(last) = last
            && now < last + self.scaled(IDENTIFY_WINDOW)
        {
            let rule = format!(
                "one IDENTIFY per key and 5 s: key {key} after {:?}",
                now - last
            );
            self.violation(now, connection, rule, true);
            self.invalidate(connection, false);
            return false;
        }
        true
    }

    pub(super) fn ready(&mut self, now: Instant, connection: usize, start: &Start) {
        let Start {
            shard,
            intents,
            large_threshold,
        } = *start;
        let Some(client) = self.connections.get_mut(&connection) else {
            return;
        };
        let id = format!("{:032x}", self.rng.u128(..));
        client.session = Some(id.clone());
        let version = client.version;
        let session = Session {
            shard,
            intents,
            large_threshold,
            sequence: 0,
            replay: VecDeque::new(),
            replay_bytes: 0,
            connection: Some(connection),
            absences: 0,
        };

        self.sessions.insert(id.clone(), session);
        self.homes
            .entry((shard.total(), shard.number()))
            .or_default()
            .push(id.clone());
        self.observed.started += 1;
        self.update_live(shard);
        let mut guilds: VecDeque<Guild> = self.guilds_of(shard).collect();
        let resume_url = self.resume_url(now, shard);
        self.dispatch(
            &id,
            "READY",
            &payloads::ready(version, shard, &id, &resume_url, guilds.make_contiguous()),
        );

        if intents.contains(Intents::GUILDS) {
            self.guilds_available(now, id, guilds);
        }
    }

    /// Makes the guilds of a new session available one after the other.
    pub(super) fn guilds_available(
        &mut self,
        now: Instant,
        session: String,
        mut guilds: VecDeque<Guild>,
    ) {
        while let Some(guild) = guilds.pop_front() {
            let Some(state) = self.sessions.get(&session) else {
                return;
            };
            let (intents, threshold) = (state.intents, state.large_threshold);
            let data = self.guild_create(guild, intents, threshold);
            self.dispatch(&session, "GUILD_CREATE", &data);
            if !self.settings.guild_delay.is_zero() && !guilds.is_empty() {
                return self.set_timer(
                    now + self.settings.guild_delay,
                    Timer::GuildAvailable { session, guilds },
                );
            }
        }
    }

    /// Sends an [`Answer`] in place of the regular one. `session` is the one that the client
    /// requested.
    pub(super) fn answer(
        &mut self,
        now: Instant,
        connection: usize,
        answer: Answer,
        session: Option<&str>,
    ) {
        match answer {
            Answer::Nothing => {}
            Answer::Reconnect => self
                .orders
                .push_back(Order::Send(connection, super::faults::RECONNECT.into())),
            Answer::InvalidSession { resumable } => {
                if let Some(session) = session.filter(|_| !resumable) {
                    self.lose_session(session);
                }
                self.invalidate(connection, resumable);
            }
            Answer::Close(code) => {
                if let Some(session) = session.filter(|_| ends_session(code)) {
                    self.lose_session(session);
                }
                self.close(now, connection, code);
            }
            Answer::Payload(payload) => self.orders.push_back(Order::Send(connection, payload)),
        }
    }

    /// Sends an event to a session.
    pub(super) fn dispatch(&mut self, id: &str, name: &str, data: &Value) {
        let Some(session) = self.sessions.get_mut(id) else {
            return;
        };
        session.sequence += 1;
        let sequence = session.sequence;
        self.observed.events += 1;
        let data = data.to_string();

        // The fields are in Discord's order.
        let payload = format!(r#"{{"t":"{name}","s":{sequence},"op":0,"d":{data}}}"#);
        session.replay_bytes += payload.len();
        session.replay.push_back((sequence, payload.clone()));
        while (session.replay_bytes > REPLAY || session.replay.len() > self.settings.replay_events)
            && let Some((_, oldest)) = session.replay.pop_front()
        {
            session.replay_bytes -= oldest.len();
        }

        if let Some(connection) = session.connection {
            self.orders.push_back(Order::Send(connection, payload));
        }

        match self.observed.sequences.get_mut(id) {
            Some(last) => *last = sequence,
            None => drop(self.observed.sequences.insert(id.to_owned(), sequence)),
        }

        if self.settings.keep_dispatches {
            let (session, name) = (id.to_owned(), name.to_owned());
            let digest = super::super::observed::digest(data.as_bytes());
            self.dispatches.push(Dispatched {
                session,
                sequence,
                name,
                digest,
            });
        }
    }

    /// Ends a session although its client wanted to continue.
    pub(super) fn lose_session(&mut self, id: &str) {
        if self.end_session(id) {
            self.observed.lost.insert(id.to_owned());
        }
    }

    /// Ends a session. Returns whether it existed.
    pub(super) fn end_session(&mut self, id: &str) -> bool {
        let Some(session) = self.sessions.remove(id) else {
            return false;
        };
        let home = (session.shard.total(), session.shard.number());

        if let Some(sessions) = self.homes.get_mut(&home) {
            sessions.retain(|other| other != id);
            if sessions.is_empty() {
                self.homes.remove(&home);
            }
        }

        let client = session
            .connection
            .and_then(|at| self.connections.get_mut(&at));
        if let Some(client) = client {
            // The client may not know this yet.
            client.standing = Standing::Invalidated;
        }

        self.update_live(session.shard);
        true
    }

    /// Updates the live connection of a shard: with several sessions, the latest one's.
    pub(super) fn update_live(&mut self, shard: ShardId) {
        let sessions = self.homes.get(&(shard.total(), shard.number()));
        let mut connections = sessions
            .into_iter()
            .flatten()
            .filter_map(|id| self.sessions.get(id)?.connection);
        match connections.next_back() {
            Some(connection) => drop(self.observed.live.insert(shard, connection)),
            None => drop(self.observed.live.remove(&shard)),
        }
    }

    /// Sends op 9, after which a client may identify or resume on the same connection.
    pub(super) fn invalidate(&mut self, connection: usize, resumable: bool) {
        if let Some(client) = self.connections.get_mut(&connection) {
            client.standing = Standing::Invalidated;
        }
        let payload = format!(r#"{{"op":9,"s":null,"t":null,"d":{resumable}}}"#);
        self.orders.push_back(Order::Send(connection, payload));
    }

    /// Whether this is the bot's token, with or without the prefix `Bot `: Discord accepts both.
    pub(super) fn is_token(&self, token: &str) -> bool {
        !self.token_is_reset && token.strip_prefix("Bot ").unwrap_or(token) == self.settings.token
    }

    pub(super) fn new_day(&mut self, now: Instant) {
        if now >= self.reset_at {
            self.starts_left = self.settings.session_starts;
            self.reset_at = now + Duration::from_secs(24 * 60 * 60);
        }
    }
}

/// The rules from which an IDENTIFY deviates although Discord accepts it, with the matching close
/// codes.
fn doubts(identify: &Identify) -> impl Iterator<Item = (u16, &'static str)> {
    let bits = identify.intents.unwrap_or_default();
    let has_unknown_intents = Intents::from_bits(bits).is_none();
    let intents = (4013, "intents must be ones that Discord documents");

    let properties = identify.properties.as_ref();
    let has = |name: &&str| properties.is_some_and(|properties| properties.contains_key(*name));
    let lacks_properties = !["os", "browser", "device"].iter().all(has);
    let properties = (4002, "properties must have os, browser and device");

    let presence = identify.presence.as_ref();
    let has_odd_presence = presence.is_some_and(|presence| !commands::is_presence(presence));
    let presence = (4002, commands::PRESENCE);
    let doubts = [
        has_unknown_intents.then_some(intents),
        lacks_properties.then_some(properties),
        has_odd_presence.then_some(presence),
    ];
    doubts.into_iter().flatten()
}

/// Whether the session ends when the gateway closes with this code.
pub(super) fn ends_session(code: u16) -> bool {
    matches!(code, 1000 | 1001 | 4003 | 4004 | 4007 | 4009 | 4010..=4014)
}
