//! Records what clients did, and which rules they broke.

use std::time::Instant;

use serde_json::Value;

use super::super::observed::{Action, Observed, Record, Violation};
use super::super::request::Request;
use super::{World, rest};

/// How many bytes of a payload that breaks a rule are kept.
const MAX_SENT: usize = 400;

impl World {
    /// Records a violation, and closes the connection with Discord's code for it.
    pub(super) fn refuse(&mut self, now: Instant, connection: usize, code: u16, rule: &str) {
        self.violation(now, connection, format!("{code}: {rule}"), true);
        self.close(now, connection, code);
    }

    /// Records a warning: the client deviates from the documentation, but Discord accepts it. In
    /// strict mode this is a violation, and closes the connection with the matching code.
    pub(super) fn warn(&mut self, now: Instant, connection: usize, code: u16, rule: &str) {
        if self.settings.is_strict && self.connections.contains_key(&connection) {
            self.violation(now, connection, format!("{code}: {rule}"), false);
            return self.close(now, connection, code);
        }
        self.warn_only(now, connection, rule.to_owned(), false);
    }

    /// Records a warning. The connection stays open, also in strict mode.
    pub(super) fn warn_only(
        &mut self,
        now: Instant,
        connection: usize,
        rule: String,
        is_refused: bool,
    ) {
        let warning = self.breach(now, connection, rule, is_refused);
        self.observed.warnings.push(warning);
    }

    pub(super) fn violation(
        &mut self,
        now: Instant,
        connection: usize,
        rule: impl Into<String>,
        is_refused: bool,
    ) {
        let violation = self.breach(now, connection, rule.into(), is_refused);
        self.observed.violations.push(violation);
    }

    fn breach(&self, now: Instant, connection: usize, rule: String, is_refused: bool) -> Violation {
        Violation {
            at: now,
            shard: self.shard_of(connection),
            rule,
            sent: self.sent.clone(),
            is_refused,
        }
    }

    pub(super) fn record(&mut self, now: Instant, connection: usize, action: Action) {
        let shard = self.shard_of(connection);
        self.observed.records.push(Record {
            at: now,
            connection,
            shard,
            action,
        });
    }

    /// Returns what was observed since the last call, and discards what is no longer needed.
    pub(in crate::sim) fn drain(&mut self) -> Observed {
        self.taken.clear();
        let observed = &mut self.observed;
        let drained = Observed {
            records: std::mem::take(&mut observed.records),
            violations: std::mem::take(&mut observed.violations),
            warnings: std::mem::take(&mut observed.warnings),
            faults: std::mem::take(&mut observed.faults),
            lost: std::mem::take(&mut observed.lost),
            live: observed.live.clone(),
            sequences: observed.sequences.clone(),
            ..*observed
        };

        observed
            .sequences
            .retain(|session, _| self.sessions.contains_key(session));
        drained
    }

    /// Takes the first request of a route that was not taken before.
    pub(in crate::sim) fn take_request(&mut self, method: &str, pattern: &str) -> Option<Request> {
        let mut records = self.observed.records.iter().enumerate();
        let (at, request) = records.find_map(|(at, record)| {
            let Action::Request { request, .. } = &record.action else {
                return None;
            };
            let is_wanted = request.method == method && !self.taken.contains(&at);
            let parameters = rest::matches(pattern, &request.path).filter(|_| is_wanted)?;
            let mut request = Request::clone(request);
            request.parameters = parameters;
            Some((at, request))
        })?;
        self.taken.insert(at);
        Some(request)
    }

    /// The requests that have not been taken.
    pub(in crate::sim) fn untaken(&self) -> impl Iterator<Item = &Request> {
        let records = self.observed.records.iter().enumerate();
        records.filter_map(|(at, record)| match &record.action {
            Action::Request { request, .. } if !self.taken.contains(&at) => Some(&**request),
            _ => None,
        })
    }
}

/// A payload as it is shown in a violation: shortened, and without the token.
pub(super) fn shown(op: &Value, data: &Value) -> String {
    let mut data = data.clone();
    if let Some(data) = data.as_object_mut() {
        data.remove("token");
    }
    shortened(format!("op {op} {data}"))
}

pub(super) fn shortened(mut text: String) -> String {
    if text.len() > MAX_SENT {
        let boundary = (0..=MAX_SENT).rev().find(|at| text.is_char_boundary(*at));
        text.truncate(boundary.unwrap_or_default());
        text.push('…');
    }
    text
}
