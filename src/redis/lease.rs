//! Who owns a part of a bot's shards: the rules, without a server.
//!
//! A lease is JSON under one key. Its owner renews it every second; a process that waits for it
//! reads it several times a second, and takes it over once it has watched it for one TTL without a
//! renewal. Times are milliseconds on the server's clock.
#![deny(clippy::disallowed_methods)]

use serde::{Deserialize, Serialize};

use crate::limit::Now;

/// The version of what is stored.
const VERSION: u32 = 1;

/// A part's lease, as it is stored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Lease {
    threadcord: u32,
    /// Rises with each owner. A save with a lower one is refused.
    pub(super) token: u64,
    /// A name for one attempt of a process to own the part, with a random number.
    pub(super) owner: String,
    pub(super) renewed_at: u64,
    /// The owner has stopped and saved its sessions.
    pub(super) is_released: bool,
    /// Which server this was written on.
    server: String,
    /// Since when its owner has known that server.
    pub(super) server_since: u64,
}

/// What a process remembers that waits for a lease.
#[derive(Clone, Debug, Default)]
pub(super) struct Watch {
    last: Option<Look>,
    /// From when on it has looked, without a gap in which a renewal may have been lost.
    since: u64,
}

#[derive(Clone, Debug)]
struct Look {
    server: String,
    at: u64,
    /// Whether there was a lease.
    has_lease: bool,
}

/// What a process that waits does next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// It stores this lease, which is its own.
    Take(Lease),
    /// It has the lease already: only the reply was lost.
    Owned(Lease),
    /// It looks again. Without a renewal, the lease is free then.
    Wait { until: u64 },
}

/// What a renewal finds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Renewal {
    /// The lease is this process's own, and stored so.
    Confirmed(Lease),
    /// As far as this server knows, which has just taken another's place or lost its data. An owner
    /// that it does not know of will renew soon.
    InDoubt(Lease),
    /// Another process owns it.
    Lost(Lease),
    /// This process has released it.
    Released,
}

impl Lease {
    /// Reads what another process has written; what is wrong with it, if it cannot be used.
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

    /// How long ago it was renewed, in milliseconds.
    pub(super) fn age(&self, now: &Now) -> u64 {
        now.at.saturating_sub(self.renewed_at)
    }

    /// Whether it has no owner: the last one has stopped, on this server. Another may not know of
    /// a later owner.
    pub(super) fn is_free(&self, now: &Now) -> bool {
        self.is_released && self.server == now.clock
    }

    /// Renews one's own lease, which was stored last as `own`, where `stored` is there now.
    pub(super) fn renew(now: &Now, own: &Self, stored: Option<Self>, ttl: u64) -> Renewal {
        let is_same_server = match stored {
            Some(stored) if stored.token > own.token => return Renewal::Lost(stored),
            Some(stored) if stored.token == own.token && stored.owner != own.owner => {
                return Renewal::Lost(stored);
            }
            Some(stored) if stored.token == own.token && stored.is_released => {
                return Renewal::Released;
            }
            // One's own, or an older one of a server that has lost writes.
            Some(stored) => {
                stored.token == own.token
                    && own.server == now.clock
                    && stored.server == now.clock
                    && stored.renewed_at <= now.at
            }
            None => false,
        };
        // While it is in doubt, other owners must have been able to renew all the time.
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

    /// The same, once its owner has stopped.
    pub(super) fn released(self) -> Self {
        Self {
            is_released: true,
            ..self
        }
    }

    /// What an owner leaves that has stopped. Nothing if it is not the owner any more, or not for
    /// sure.
    pub(super) fn release(now: &Now, own: &Self, stored: Option<Self>, ttl: u64) -> Option<Self> {
        match Self::renew(now, own, stored, ttl) {
            Renewal::Confirmed(lease) => Some(lease.released()),
            Renewal::InDoubt(_) | Renewal::Lost(_) | Renewal::Released => None,
        }
    }
}

impl Watch {
    /// Looks at what is stored, as the process that calls itself `owner`.
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
            // Its previous owner, or this watch, has known the server for long enough.
            server_since: now.at.saturating_sub(ttl),
        })
    }

    /// When a lease is free that is not renewed until then. Its owner may have been unable to renew
    /// it for as long as this process was unable to look.
    fn free_at(&self, now: &Now, stored: Option<&Lease>, ttl: u64) -> u64 {
        let renewed_at = stored
            .filter(|lease| lease.server == now.clock && lease.renewed_at <= now.at)
            .map_or(0, |lease| lease.renewed_at);
        renewed_at.max(self.since).saturating_add(ttl)
    }

    /// Notes a look. After a gap, on another server, when the clock has been set back or the lease
    /// has been lost, what was seen before does not count.
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
