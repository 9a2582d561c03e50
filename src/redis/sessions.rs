//! The sessions of a part, which only its owner saves.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::document::Document;
use crate::clock;
use crate::error::StoreError;
use crate::protocol::Session;
use crate::store::{self, MAX_AGE, Saved};

/// Sessions that have not moved are saved again after this time, so that they do not seem old.
const REFRESH: Duration = Duration::from_secs(30);

pub(super) struct Sessions {
    lease: Document,
    document: Document,
    token: u64,
    last: Mutex<Option<Last>>,
}

/// What was saved last.
struct Last {
    saved: Saved,
    at: Instant,
    /// Since when the server was known.
    server_since: u64,
}

/// What has become of a save.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Save {
    Done,
    /// A later owner has the lease.
    Refused,
}

impl Sessions {
    /// Those under `document`, for the owner whose token is in `lease`.
    pub(super) fn new(document: Document, lease: Document, token: u64) -> Self {
        Self {
            lease,
            document,
            token,
            last: Mutex::default(),
        }
    }

    pub(super) fn load(&self) -> Result<Saved, StoreError> {
        let (now, text) = self.document.read()?;
        if text.is_empty() {
            return Ok(Saved::default());
        }
        match store::decode(text.as_bytes()) {
            Ok(mut saved) => {
                let server = now.at / 1000;
                let local = store::since_epoch().as_secs();
                shift(&mut saved, server, local);
                store::remove_old(&mut saved, local, MAX_AGE, &self.document);
                Ok(saved)
            }
            Err(why) => {
                log::warn!(
                    "{} holds no sessions that can be used: {why}",
                    self.document
                );
                Ok(Saved::default())
            }
        }
    }

    /// Whether something was saved on this server, and should still be there.
    pub(super) fn is_saved_on(&self, server_since: u64) -> bool {
        let last = self.last.lock();
        last.as_ref()
            .is_some_and(|last| last.server_since == server_since)
    }

    pub(super) fn save(&self, saved: &Saved, server_since: u64) -> Result<Save, StoreError> {
        let now = clock::now();
        let is_known = |last: &Last| {
            let is_recent = now.saturating_duration_since(last.at) < REFRESH;
            is_recent && last.server_since == server_since && is_same(&last.saved, saved)
        };
        if self.last.lock().as_ref().is_some_and(is_known) {
            return Ok(Save::Done);
        }

        // The next process may have another clock: the times are those of the server.
        let (server, _) = self.lease.read()?;
        let mut stored = saved.clone();
        shift(
            &mut stored,
            store::since_epoch().as_secs(),
            server.at / 1000,
        );
        let text = store::encode(&stored)?;
        match self.document.set_with(&self.lease, self.token, &text)? {
            Some(token) if token == self.token => {
                *self.last.lock() = Some(Last {
                    saved: saved.clone(),
                    at: now,
                    server_since,
                });
                Ok(Save::Done)
            }
            Some(token) if token > self.token => Ok(Save::Refused),
            // The next renewal writes the lease again.
            _ => Err(format!("Redis has lost {}", self.lease).into()),
        }
    }
}

/// Puts the times of sessions, which are those of one clock, on another one.
fn shift(saved: &mut Saved, from: u64, to: u64) {
    for session in &mut saved.sessions {
        session.saved_at = session.saved_at.saturating_add(to).saturating_sub(from);
    }
}

/// Whether both have the same sessions, apart from `saved_at`.
fn is_same(a: &Saved, b: &Saved) -> bool {
    let is_same = |(a, b): (&Session, &Session)| {
        let b = Session {
            saved_at: a.saved_at,
            ..b.clone()
        };
        *a == b
    };
    a.identified == b.identified
        && a.sessions.len() == b.sessions.len()
        && a.sessions.iter().zip(&b.sessions).all(is_same)
}
