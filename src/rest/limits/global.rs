//! The global rate limit, which all routes share.

use std::time::{Duration, Instant};

use super::TicketId;
use super::bucket::{Room, SHARED_FOR};

/// Bounds the number of requests in any window, no matter when Discord's own window begins.
///
/// A request counts from when it is sent until one window after its answer: Discord has counted it
/// by the time it answers.
///
/// If Discord refuses a request anyway, other processes use the limit as well. This process then
/// halves its share of the limit. It halves it again after each further refusal, and uses the whole
/// limit again once nothing has been refused for [`SHARED_FOR`].
#[derive(Debug)]
pub(super) struct Global {
    limit: usize,
    window: Duration,
    /// This process's share of the limit, and until when it applies; the whole limit if `None`.
    part: Option<(usize, Instant)>,
    counted: Vec<Counted>,
    paused_until: Option<Instant>,
}

#[derive(Debug)]
struct Counted {
    id: TicketId,
    sent: Instant,
    /// Until when it counts; `None` while the request is in flight.
    until: Option<Instant>,
}

impl Global {
    pub(super) fn new(limit: u32, window: Duration) -> Self {
        Self {
            limit: limit as usize,
            window,
            part: None,
            counted: Vec::new(),
            paused_until: None,
        }
    }

    /// When another request may be sent.
    pub(super) fn room(&self, now: Instant) -> Room {
        let start = self.paused_until.map_or(now, |until| until.max(now));
        let part = self.part(now);
        let counted = self.counted.iter();
        let counted: Vec<_> = counted.map(|counted| counted.until).collect();
        let Some(free) = free_at(now, counted, part) else {
            return Room::Unknown;
        };

        // At most a third of the share is in flight at a time. If other processes use the limit
        // too, no more requests than that are refused before this process notices. A request that
        // is in flight for longer than a window does not hold up the others.
        let young = self
            .counted
            .iter()
            .filter(|counted| counted.until.is_none());
        let young = young
            .map(|counted| Some(counted.sent + self.window))
            .collect();
        let turn = free_at(now, young, part.div_ceil(3)).unwrap_or(free);
        Room::At(turn.max(free).max(start))
    }

    fn part(&self, now: Instant) -> usize {
        let part = self.part.filter(|(_, until)| *until > now);
        part.map_or(self.limit, |(part, _)| part)
    }

    /// Counts a request that is sent now.
    pub(super) fn sent(&mut self, now: Instant, id: TicketId) {
        self.counted
            .retain(|counted| counted.until.is_none_or(|until| until > now));
        self.counted.push(Counted {
            id,
            sent: now,
            until: None,
        });
    }

    /// Notes that a request is no longer in flight.
    pub(super) fn landed(&mut self, now: Instant, id: TicketId) {
        let mut counted = self.counted.iter_mut();
        let of_request = counted.find(|counted| counted.id == id && counted.until.is_none());
        if let Some(counted) = of_request {
            counted.until = Some(now + self.window);
        }
    }

    /// Holds all requests back until then, because Discord has refused one.
    pub(super) fn pause(&mut self, now: Instant, until: Instant) {
        // Refusals during the pause belong to the same window, so they halve the share only once.
        if self.paused_until.is_none_or(|paused| paused <= now) {
            self.part = Some(((self.part(now) / 2).max(1), now + SHARED_FOR));
        }
        self.paused_until = self.paused_until.max(Some(until));
    }
}

/// When fewer than `most` of these periods are still open; `None` if that is not known. `ends`
/// holds the end of each, or `None` where it is unknown.
fn free_at(now: Instant, ends: Vec<Option<Instant>>, most: usize) -> Option<Instant> {
    let open = ends.into_iter();
    let open: Vec<_> = open.filter(|end| end.is_none_or(|end| end > now)).collect();
    if open.len() < most {
        return Some(now);
    }
    let (count, mut known) = (open.len(), open.into_iter().flatten().collect::<Vec<_>>());
    known.sort_unstable();
    known.get(count - most).copied()
}
