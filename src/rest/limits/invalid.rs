//! Counts invalid requests: Discord's name for requests that it answers with 401, 403 or 429.
//! After too many of them, it blocks the sender's IP address.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::{Answer, Limited};

/// At this number of invalid requests in 10 minutes, no more requests are sent. Discord blocks an
/// IP address at 10,000; the difference is left to other programs behind the same IP address.
///
/// Source: [Discord, Invalid request
/// limit](https://docs.discord.com/developers/topics/rate-limits#invalid-request-limit-aka-cloudflare-bans).
pub(super) const MAX_INVALID: u32 = 8_000;

const WINDOW: Duration = Duration::from_secs(600);

/// The resolution of the count: requests within this time share one entry.
const STEP: Duration = Duration::from_secs(1);

/// The invalid requests of the last 10 minutes.
#[derive(Debug, Default)]
pub(super) struct InvalidRequests {
    /// When each [`STEP`] began, and the number of invalid requests in it.
    counts: VecDeque<(Instant, u32)>,
    total: u32,
}

impl InvalidRequests {
    /// Counts an answer if its request was invalid. A 429 with the scope `shared` does not count,
    /// nor does one that reports a block of the IP address.
    pub(super) fn count(&mut self, now: Instant, answer: &Answer) {
        let counts = match answer.status {
            401 | 403 => true,
            429 => !answer.is_shared,
            _ => false,
        };
        if !counts || matches!(answer.limited, Some(Limited::Blocked(..))) {
            return;
        }
        self.drop_old(now);
        self.total = self.total.saturating_add(1);
        match self.counts.back_mut() {
            Some((since, count)) if now < *since + STEP => *count += 1,
            _ => self.counts.push_back((now, 1)),
        }
    }

    /// If there are too many: their number, and for how long no request may be sent.
    pub(super) fn too_many(&mut self, now: Instant) -> Option<(u32, Duration)> {
        self.drop_old(now);
        if self.total < MAX_INVALID {
            return None;
        }
        let mut left = self.total;
        let enough = self.counts.iter().find(|(_, count)| {
            left -= count;
            left < MAX_INVALID
        });
        let (since, _) = enough?;
        Some((self.total, *since + STEP + WINDOW - now))
    }

    fn drop_old(&mut self, now: Instant) {
        while let Some((since, count)) = self.counts.front().copied() {
            if now < since + STEP + WINDOW {
                break;
            }
            self.total -= count;
            self.counts.pop_front();
        }
    }
}
