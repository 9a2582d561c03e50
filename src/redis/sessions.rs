//! The stored sessions of a part, which only its owner may save.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::document::Document;
use crate::clock;
use crate::error::StoreError;
use crate::protocol::Session;
use crate::store::{self, MAX_AGE, Saved};

/// Unchanged sessions are saved again after this time, so that they do not seem old.
const REFRESH: Duration = Duration::from_secs(30);

/// The sessions of a part, for its owner.
pub(super) struct Sessions {
    lease: Document,
    document: Document,
    token: u64,
    last: Mutex<Option<Last>>,
}

/// The last successful save.
struct Last {
    saved: Saved,
    at: Instant,
    /// [`Lease::server_since`](super::lease::Lease::server_since) at that time.
    server_since: u64,
}

/// The outcome of a save.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Save {
    Done,
    /// A later owner has the lease.
    Refused,
}

impl Sessions {
    /// The sessions under `document`, for an owner with this `token`. They are saved only while
    /// `lease` has that token.
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
                log::warn!("{} holds no usable sessions: {why}", self.document);
                Ok(Saved::default())
            }
        }
    }

    /// Whether the last save was made on the same server, so that it should still be there.
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

        // The process that loads them may have another clock, so the server's clock is used.
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
            // There is no lease, or an older one: the next renewal writes it again.
            _ => Err(format!("Redis has lost {}", self.lease).into()),
        }
    }
}

/// Converts the times of sessions from one clock, which is at `from`, to another, which is at `to`.
fn shift(saved: &mut Saved, from: u64, to: u64) {
    for session in &mut saved.sessions {
        session.saved_at = session.saved_at.saturating_add(to).saturating_sub(from);
    }
}

/// Whether both have the same sessions, except for `saved_at`.
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
