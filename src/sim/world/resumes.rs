//! How sessions are resumed.

use std::time::Instant;

use serde::Deserialize;
use serde_json::{Value, json};

use super::{Action, Fault, Order, Standing, Timer, World};

#[derive(Deserialize)]
struct Resume {
    token: String,
    session_id: String,
    seq: u64,
}

impl World {
    pub(super) fn resume(&mut self, now: Instant, connection: usize, data: &Value) {
        let Ok(resume) = Resume::deserialize(data) else {
            return self.refuse(
                now,
                connection,
                4002,
                "RESUME must have token, session_id and seq",
            );
        };

        let id = resume.session_id;
        let shard = self.sessions.get(&id).map(|session| session.shard);
        let action = Action::Resume {
            session: id.clone(),
            sequence: resume.seq,
        };
        if !self.authenticate(now, connection, shard, &resume.token, action) {
            return;
        }

        let answer = self.ambush(now, shard, |fault| match fault {
            Fault::Resume(answer) => Some(answer.clone()),
            _ => None,
        });
        if let Some(answer) = answer {
            return self.answer(now, connection, answer, Some(&id));
        }
        self.resume_from(now, connection, &id, resume.seq);
    }

    /// Replays a session from a sequence, if all later events are still stored.
    fn resume_from(&mut self, now: Instant, connection: usize, id: &str, sequence: u64) {
        match self.sessions.get(id) {
            Some(session) if sequence > session.sequence => {
                self.lose_session(id);
                self.refuse(
                    now,
                    connection,
                    4007,
                    "a session must resume from a sequence that was sent to it",
                );
            }
            // Some of the missed events are no longer stored.
            Some(session)
                if sequence < session.sequence
                    && session
                        .replay
                        .front()
                        .is_none_or(|(first, _)| *first > sequence + 1) =>
            {
                self.lose_session(id);
                self.invalidate(connection, false);
            }
            Some(_) if self.settings.replay_delay.is_zero() => {
                self.replay(now, connection, id, sequence);
            }
            Some(_) => {
                self.set_timer(
                    now + self.settings.replay_delay,
                    Timer::Replay {
                        connection,
                        session: id.to_owned(),
                        sequence,
                    },
                );
            }
            None => self.invalidate(connection, false),
        }
    }

    pub(super) fn replay(&mut self, now: Instant, connection: usize, id: &str, sequence: u64) {
        if !self.connections.contains_key(&connection) {
            return;
        }

        if !self.sessions.contains_key(id) {
            return self.invalidate(connection, false);
        }

        let shard = self.sessions.get(id).map(|session| session.shard);
        let twice = self
            .ambush(now, shard, |fault| {
                (*fault == Fault::ReplayTwice).then_some(())
            })
            .is_some();
        let Some(session) = self.sessions.get_mut(id) else {
            return;
        };

        // The client may resume before the end of its old connection is known here.
        let old = session.connection.replace(connection);
        let from = if twice {
            sequence.saturating_sub(5)
        } else {
            sequence
        };

        let missed = session
            .replay
            .iter()
            .filter(|(sequence, _)| *sequence > from);

        for (_, payload) in missed {
            for _ in 0..=usize::from(twice) {
                self.orders
                    .push_back(Order::Send(connection, payload.clone()));
            }
        }

        let resumed =
            json!({"t": "RESUMED", "s": session.sequence, "op": 0, "d": {"_trace": ["sim"]}})
                .to_string();
        self.orders.push_back(Order::Send(connection, resumed));
        let shard = session.shard;
        self.update_live(shard);

        if let Some(old) = old.filter(|old| *old != connection) {
            self.take_over(now, old);
        }
        if let Some(client) = self.connections.get_mut(&connection) {
            client.session = Some(id.to_owned());
        }
    }

    /// Takes the session from the connection that had it.
    fn take_over(&mut self, now: Instant, old: usize) {
        let Some(client) = self.connections.get_mut(&old) else {
            return;
        };
        client.session = None;
        // Messages of its client may still arrive.
        client.standing = Standing::Invalidated;
        self.answer(now, old, self.settings.on_takeover.clone(), None);
    }
}
