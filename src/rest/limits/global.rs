//! The limit of all routes together.

use std::time::{Duration, Instant};

use super::TicketId;
use super::bucket::{Room, SHARED_FOR};

/// A bounded number of requests in any window, wherever in it Discord begins to count.
///
/// A request counts from when it is sent until a window after its answer: by then Discord has
/// counted it.
///
/// If Discord still refuses one, other processes use the limit, too. Then this one halves
/// its part, again and again if need be, until nothing has been refused for a while.
#[derive(Debug)]
pub(super) struct Global {
    limit: usize,
    window: Duration,
    /// What this process takes of it, and until when.
    part: Option<(usize, Instant)>,
    counted: Vec<Counted>,
    paused_until: Option<Instant>,
}

#[derive(Debug)]
struct Counted {
    id: TicketId,
    sent: Instant,
    /// `None` while the request is under way.
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

    /// Whether another request may go out, or when.
    pub(super) fn room(&self, now: Instant) -> Room {
        let start = self.paused_until.map_or(now, |until| until.max(now));
        let part = self.part(now);
        let counted = self.counted.iter();
        let counted: Vec<_> = counted.map(|counted| counted.until).collect();
        let Some(free) = free_at(now, counted, part) else {
            return Room::Unknown;
        };

        // A third of it at a time: if others use it too, no more than that are refused before this
        // one knows. Those that take long do not hold up the others.
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

    /// A request is sent.
    pub(super) fn sent(&mut self, now: Instant, id: TicketId) {
        self.counted
            .retain(|counted| counted.until.is_none_or(|until| until > now));
        self.counted.push(Counted {
            id,
            sent: now,
            until: None,
        });
    }

    /// A request is under way no more.
    pub(super) fn landed(&mut self, now: Instant, id: TicketId) {
        let mut counted = self.counted.iter_mut();
        let of_request = counted.find(|counted| counted.id == id && counted.until.is_none());
        if let Some(counted) = of_request {
            counted.until = Some(now + self.window);
        }
    }

    /// Discord has refused a request: none is sent before then.
    pub(super) fn pause(&mut self, now: Instant, until: Instant) {
        // Those that were under way with it are of the same window.
        if self.paused_until.is_none_or(|paused| paused <= now) {
            self.part = Some(((self.part(now) / 2).max(1), now + SHARED_FOR));
        }
        self.paused_until = self.paused_until.max(Some(until));
    }
}

/// When fewer than `most` remain of those that end then; `None` if that is not known.
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
