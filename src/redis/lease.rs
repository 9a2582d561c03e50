//! The rules that decide who owns a part of a bot's shards. This module does no I/O.
//!
//! A lease is JSON under one key. Its owner renews it every second. A process that waits for the
//! lease reads it several times a second, and takes it over once it has watched it for one TTL
//! without a renewal. All times are milliseconds on the server's clock.
#![deny(clippy::disallowed_methods)]

use serde::{Deserialize, Serialize};

use crate::limit::Now;

/// The version of the stored JSON.
const VERSION: u32 = 1;

/// A part's lease, as it is stored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Lease {
    threadcord: u32,
    /// Rises with each owner. A save with a lower token is refused.
    pub(super) token: u64,
    /// The name of one attempt by a process to own the part, with a random number.
    pub(super) owner: String,
    /// When its owner took or last renewed it.
    pub(super) renewed_at: u64,
    /// Whether the owner has stopped and saved its sessions.
    pub(super) is_released: bool,
    /// The server on which this was written ([`Now::clock`]).
    server: String,
    /// Since when its owner has renewed it on that server without interruption.
    pub(super) server_since: u64,
}

/// What a process that waits for a lease remembers.
#[derive(Clone, Debug, Default)]
pub(super) struct Watch {
    last: Option<Look>,
    /// The start of the present watch, which has no gap in which a renewal may have been missed.
    since: u64,
}

/// One look at a lease.
#[derive(Clone, Debug)]
struct Look {
    server: String,
    at: u64,
    /// Whether a lease was stored.
    has_lease: bool,
}

/// What a process that waits for a lease must do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Store this lease, which makes it the owner.
    Take(Lease),
    /// Nothing: it already owns this lease, and only the reply was lost.
    Owned(Lease),
    /// Look again. Without a renewal, the lease is free at `until`.
    Wait { until: u64 },
}

/// The outcome of a renewal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Renewal {
    /// This process owns the lease; the renewed lease must be stored.
    Confirmed(Lease),
    /// This process seems to own the lease. But the server has just replaced another one or lost
    /// its data, so it may not know of a later owner, which will renew soon. The lease must be
    /// stored.
    InDoubt(Lease),
    /// Another process owns the lease.
    Lost(Lease),
    /// This process has released the lease.
    Released,
}

impl Lease {
    /// Reads a stored lease; `None` if the text is empty.
    ///
    /// # Errors
    /// Why the text cannot be used.
    pub(super) fn read(text: &str) -> Result<Option<Self>, String> {
        if text.is_empty() {
            return Ok(None);
        }
        let lease: Self = serde_json::from_str(text).map_err(|error| error.to_string())?;
        if lease.threadcord == VERSION {
            Ok(Some(lease))
        } else {
            Err(format!(
                "it has version {}, not {VERSION}: all processes need the same version",
                lease.threadcord
            ))
        }
    }

    /// How long ago the lease was renewed, in milliseconds.
    pub(super) fn age(&self, now: &Now) -> u64 {
        now.at.saturating_sub(self.renewed_at)
    }

    /// Whether the lease has no owner, because the last one released it on this server. Another
    /// server may not know a later owner.
    pub(super) fn is_free(&self, now: &Now) -> bool {
        self.is_released && self.server == now.clock
    }

    /// Renews the lease of this process, which it last stored as `own`. `stored` is what the server
    /// has now.
    pub(super) fn renew(now: &Now, own: &Self, stored: Option<Self>, ttl: u64) -> Renewal {
        let is_same_server = match stored {
            Some(stored) if stored.token > own.token => return Renewal::Lost(stored),
            Some(stored) if stored.token == own.token && stored.owner != own.owner => {
                return Renewal::Lost(stored);
            }
            Some(stored) if stored.token == own.token && stored.is_released => {
                return Renewal::Released;
            }
            // The own lease, or an older one on a server that has lost writes.
            Some(stored) => {
                stored.token == own.token
                    && own.server == now.clock
                    && stored.server == now.clock
                    && stored.renewed_at <= now.at
            }
            None => false,
        };

        // The time in doubt counts only if another owner was able to renew throughout it.
        let was_in_doubt = own.renewed_at.saturating_sub(own.server_since) < ttl / 2;
        let was_away = now.at.saturating_sub(own.renewed_at) > 3 * ttl / 10;
        let is_same_server = is_same_server && !(was_in_doubt && was_away);

        let server_since = if is_same_server {
            own.server_since
        } else {
            now.at
        };
        let renewed = Self {
            renewed_at: now.at,
            server: now.clock.clone(),
            server_since,
            ..own.clone()
        };

        if now.at.saturating_sub(server_since) < ttl / 2 {
            Renewal::InDoubt(renewed)
        } else {
            Renewal::Confirmed(renewed)
        }
    }

    /// Returns this lease, marked as released.
    pub(super) fn released(self) -> Self {
        Self {
            is_released: true,
            ..self
        }
    }

    /// Returns the released lease that an owner stores when it stops. `None` if it is no longer the
    /// owner, or if that is in doubt.
    pub(super) fn release(now: &Now, own: &Self, stored: Option<Self>, ttl: u64) -> Option<Self> {
        match Self::renew(now, own, stored, ttl) {
            Renewal::Confirmed(lease) => Some(lease.released()),
            Renewal::InDoubt(_) | Renewal::Lost(_) | Renewal::Released => None,
        }
    }
}

impl Watch {
    /// Looks at the stored lease, for the process with the name `owner`.
    pub(super) fn look(
        &mut self,
        now: &Now,
        stored: Option<&Lease>,
        owner: &str,
        ttl: u64,
    ) -> Step {
        self.pass(now, stored.is_some(), ttl);
        if let Some(own) = stored.filter(|lease| lease.owner == owner) {
            return Step::Owned(own.clone());
        }
        let is_free = stored.is_some_and(|lease| lease.is_free(now));
        let until = self.free_at(now, stored, ttl);
        if !is_free && now.at < until {
            return Step::Wait { until };
        }

        let previous = stored.map_or(0, |lease| lease.token);
        Step::Take(Lease {
            threadcord: VERSION,
            token: now.at.max(previous.saturating_add(1)),
            owner: owner.to_owned(),
            renewed_at: now.at,
            is_released: false,
            server: now.clock.clone(),
            // A full TTL back, so that it is not in doubt: the previous owner released it on this
            // server, or this process has watched this server for one TTL.
            server_since: now.at.saturating_sub(ttl),
        })
    }

    /// When the lease is free if it is not renewed until then. The TTL counts from the start of the
    /// watch at the earliest: while this process was unable to look, the owner may have been unable
    /// to renew.
    fn free_at(&self, now: &Now, stored: Option<&Lease>, ttl: u64) -> u64 {
        let renewed_at = stored
            .filter(|lease| lease.server == now.clock && lease.renewed_at <= now.at)
            .map_or(0, |lease| lease.renewed_at);
        renewed_at.max(self.since).saturating_add(ttl)
    }

    /// Notes a look. The watch starts again after a gap, on another server, when the clock was set
    /// back, or when the lease has disappeared.
    fn pass(&mut self, now: &Now, has_lease: bool, ttl: u64) {
        let is_continued = self.last.as_ref().is_some_and(|last| {
            let gap = now.at.checked_sub(last.at);
            let is_lost = last.has_lease && !has_lease;
            last.server == now.clock && gap.is_some_and(|gap| gap <= ttl / 2) && !is_lost
        });
        if !is_continued {
            self.since = now.at;
        }
        self.last = Some(Look {
            server: now.clock.clone(),
            at: now.at,
            has_lease,
        });
    }
}

#[cfg(test)]
mod tests;
