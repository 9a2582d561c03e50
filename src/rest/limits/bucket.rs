//! One bucket: the requests that Discord counts together.

use std::time::{Duration, Instant};

use super::Answer;

/// After others were seen to use a limit, it is shared with them for this long.
pub(super) const SHARED_FOR: Duration = Duration::from_secs(60);

/// How many requests of a window are left to others with whom a bucket is shared.
const LEFT_TO_OTHERS: u32 = 2;

/// What is known of a bucket.
///
/// Several processes may use one token. They see each other by what Discord says is left of a
/// window. Then each sends one request at a time and leaves some to the others, so that hardly any
/// request is refused.
#[derive(Debug, Default)]
pub(super) struct Bucket {
    limit: Limit,
    window: Option<Window>,
    /// How long its windows are, as far as is known.
    length: Duration,
    in_flight: u32,
    paused_until: Option<Instant>,
    shared_until: Option<Instant>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Limit {
    /// The first answer tells.
    #[default]
    Unknown,
    /// Discord says nothing of a limit.
    Unlimited,
    /// The number of requests in a window.
    To(u32),
}

/// The time in which requests count together. It begins with a request.
#[derive(Clone, Copy, Debug)]
struct Window {
    began: Instant,
    /// When it ends; an answer tells.
    ends: Option<Instant>,
    /// How many requests count, those in flight included.
    used: u32,
}

/// Whether a bucket takes another request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Room {
    /// From then on, if all goes as it seems.
    At(Instant),
    /// An answer has to tell.
    Unknown,
}

impl Bucket {
    /// Whether the request with that many before it may go, or when.
    pub(super) fn room(&self, now: Instant, ahead: u32) -> Room {
        let start = self.paused_until.map_or(now, |until| until.max(now));
        let limit = match self.limit {
            // The answer to the one in flight tells, or those before it go first.
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
            // Those in flight tell when their window ends, or those before this one go first.
            None => Room::Unknown,
        }
    }

    /// A request is sent.
    pub(super) fn sent(&mut self, now: Instant) {
        let in_flight = self.in_flight;
        let mut window = self.open_window(now).unwrap_or(Window {
            began: now,
            ends: None,
            // They may reach Discord only now.
            used: in_flight,
        });
        window.used = window.used.saturating_add(1);
        self.window = Some(window);
        self.in_flight += 1;
    }

    /// A request is under way no more.
    pub(super) fn landed(&mut self) {
        self.in_flight = self.in_flight.saturating_sub(1);
    }

    /// Takes in what an answer to a request says, after it has [landed](Self::landed). Returns
    /// whether its limit is another than was known.
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
        // Open also if this answer is the last one that could tell when it ends.
        let open = self
            .window
            .filter(|window| window.ends.is_none_or(|ends| ends > now));
        let is_same = |window: &Window| window.ends.is_none_or(|known| ends <= known + slack);
        let (window, expected) = match open {
            // The answer is of a window before this one.
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
            // Discord has begun another window; those in flight may count in it.
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

    /// Sends no request before then.
    pub(super) fn pause(&mut self, until: Instant) {
        self.paused_until = self.paused_until.max(Some(until));
    }

    /// Whether something has to be remembered of it.
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

    /// The window, unless it is over then, or no answer will tell when it is.
    fn open_window(&self, then: Instant) -> Option<Window> {
        self.window.filter(|window| match window.ends {
            Some(ends) => ends > then,
            None => self.in_flight > 0,
        })
    }
}
