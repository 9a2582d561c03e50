//! The state of one bucket: the requests that Discord counts together.

use std::time::{Duration, Instant};

use super::Answer;

/// How long a limit counts as shared after another process was seen to use it.
pub(super) const SHARED_FOR: Duration = Duration::from_secs(60);

/// The number of requests in each window of a shared bucket that are left to other processes.
const LEFT_TO_OTHERS: u32 = 2;

/// What is known of a bucket.
///
/// Several processes may use one token. A process notices the others when Discord reports fewer
/// remaining requests than it expects. It then sends one request at a time and leaves some of each
/// window to the others, so that Discord refuses hardly any request.
#[derive(Debug, Default)]
pub(super) struct Bucket {
    limit: Limit,
    window: Option<Window>,
    /// The length of its windows, as far as it is known.
    length: Duration,
    in_flight: u32,
    paused_until: Option<Instant>,
    shared_until: Option<Instant>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Limit {
    /// No answer has arrived yet; the first one reports the limit.
    #[default]
    Unknown,
    /// Discord's answers report no limit.
    Unlimited,
    /// The number of requests in a window.
    To(u32),
}

/// A period in which requests count together. It begins with a request.
#[derive(Clone, Copy, Debug)]
struct Window {
    began: Instant,
    /// When it ends; `None` until an answer reports it.
    ends: Option<Instant>,
    /// The number of requests that count in it, including those in flight.
    used: u32,
}

/// When a bucket accepts another request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Room {
    /// From this time on, as far as is known now.
    At(Instant),
    /// Unknown until an answer reports it.
    Unknown,
}

impl Bucket {
    /// When a request may be sent that has `ahead` requests before it in the queue.
    pub(super) fn room(&self, now: Instant, ahead: u32) -> Room {
        let start = self.paused_until.map_or(now, |until| until.max(now));
        let limit = match self.limit {
            // The answer to the request in flight will report it; requests ahead are sent first.
            Limit::Unknown if self.in_flight > 0 || ahead > 0 => return Room::Unknown,
            Limit::Unknown | Limit::Unlimited => return Room::At(start),
            Limit::To(limit) => limit,
        };

        let is_shared = self.is_shared(now);
        if is_shared && self.in_flight > 0 {
            return Room::Unknown;
        }
        let kept_back = if is_shared {
            LEFT_TO_OTHERS.min(limit - 1)
        } else {
            0
        };
        let each = limit - kept_back;
        let window = self.open_window(start);
        let used = window.map_or(self.in_flight, |window| window.used);
        let free = each.saturating_sub(used);
        if ahead < free {
            return Room::At(start);
        }
        match window.and_then(|window| window.ends) {
            Some(ends) => Room::At(ends + self.length.saturating_mul((ahead - free) / each)),
            // An answer to a request in flight will report when the window ends.
            None => Room::Unknown,
        }
    }

    /// Counts a request that is sent now.
    pub(super) fn sent(&mut self, now: Instant) {
        let in_flight = self.in_flight;
        let mut window = self.open_window(now).unwrap_or(Window {
            began: now,
            ends: None,
            // Requests in flight may reach Discord only now, and then count in this window.
            used: in_flight,
        });
        window.used = window.used.saturating_add(1);
        self.window = Some(window);
        self.in_flight += 1;
    }

    /// Notes that a request is no longer in flight.
    pub(super) fn landed(&mut self) {
        self.in_flight = self.in_flight.saturating_sub(1);
    }

    /// Updates the bucket from the answer to a request that has [landed](Self::landed). Returns
    /// whether the limit has changed, or the window has become more than twice as long.
    pub(super) fn learn(&mut self, now: Instant, sent: Instant, answer: &Answer) -> bool {
        let before = (self.limit, self.length);
        let Some(count) = answer.count else {
            if self.limit == Limit::Unknown && answer.is_success() {
                self.limit = Limit::Unlimited;
            }
            return self.limit != before.0;
        };

        self.limit = Limit::To(count.limit);
        let used = count.limit.saturating_sub(count.remaining);
        let ends = now + count.reset_after;
        let slack = self.length.max(count.reset_after) / 2;
        // Not `open_window`: it would drop a window whose end only this answer can report.
        let open = self
            .window
            .filter(|window| window.ends.is_none_or(|ends| ends > now));
        let is_same = |window: &Window| window.ends.is_none_or(|known| ends <= known + slack);
        let (window, expected) = match open {
            // The answer belongs to the window before this one.
            Some(window) if is_same(&window) && sent < window.began => {
                return self.limit != before.0;
            }
            Some(window) if is_same(&window) => {
                let is_first = window.ends.is_none();
                self.length = if is_first {
                    count.reset_after
                } else {
                    self.length.max(count.reset_after)
                };
                let same = Window {
                    ends: Some(window.ends.map_or(ends, |known| known.min(ends))),
                    used: window.used.max(used),
                    ..window
                };
                (same, window.used)
            }
            // Discord has begun another window, in which the requests in flight may count.
            _ => {
                self.length = count.reset_after;
                let another = Window {
                    began: sent,
                    ends: Some(ends),
                    used: used.saturating_add(self.in_flight),
                };
                (another, self.in_flight + 1)
            }
        };
        self.window = Some(window);
        if used > expected {
            self.shared_until = Some(now + SHARED_FOR);
        }
        self.limit != before.0 || self.length > before.1 * 2
    }

    /// Holds all requests back until then.
    pub(super) fn pause(&mut self, until: Instant) {
        self.paused_until = self.paused_until.max(Some(until));
    }

    /// Whether the bucket holds state that must not be forgotten yet.
    pub(super) fn counts(&self, now: Instant) -> bool {
        self.in_flight > 0
            || self
                .open_window(now)
                .is_some_and(|window| window.ends.is_some())
            || self.paused_until.is_some_and(|until| until > now)
    }

    fn is_shared(&self, now: Instant) -> bool {
        self.shared_until.is_some_and(|until| until > now)
    }

    /// The window that is open at `then`. `None` if it has ended, or if no request is in flight
    /// whose answer would report its end.
    fn open_window(&self, then: Instant) -> Option<Window> {
        self.window.filter(|window| match window.ends {
            Some(ends) => ends > then,
            None => self.in_flight > 0,
        })
    }
}
