//! Decides when a shard reads, waits, and lets other threads run.
#![deny(clippy::disallowed_methods)]

use std::mem;
use std::time::{Duration, Instant};

use crate::event::Room;

/// How many messages are read before the clock is read and the shard's state is published.
const READS_AT_ONCE: u32 = 32;

/// After this many bytes a shard wakes the threads that wait for events and yields its core to
/// them. This much fits into a core's cache, so memory that they free is reused while it is still
/// cached.
const RUN_AHEAD: usize = 256 << 10;

/// How long a shard must receive no event before it frees the memory that it needs only under load.
const SHRINK_AFTER: Duration = Duration::from_secs(2);

/// How a shard shares its time between reading, its events' consumers, and waiting.
#[derive(Debug, Default)]
pub(super) struct Pace {
    /// The last read found nothing, so the shard will wait next.
    is_drained: bool,
    /// How many messages may be read before the shard checks anything else: the clock, requests,
    /// and timers that are due.
    reads_left: u32,
    /// The threads that wait for events have not been notified of the latest events.
    has_unannounced: bool,
    /// Bytes read since the shard last let other threads run.
    run_ahead: usize,
    /// Memory was freed, and no event has arrived since.
    is_shrunk: bool,
    stalled_since: Option<Instant>,
}

/// What a shard does when its machine has nothing to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    /// Report that the shard has stalled.
    ReportStall,
    /// Report that the shard reads again, after a stall of this duration.
    ReportStallEnded(Duration),
    /// Wait, without reading, until credit is returned.
    WaitForCredit,
    /// Wait until there is something to read, and free memory at `shrink_at`.
    Wait { shrink_at: Option<Instant> },
    /// Read while [`may_read`](Pace::may_read).
    Read,
}

impl Pace {
    /// Returns what to do next. `room` says whether more events may be read, `is_live` whether
    /// events may arrive at any time, and `is_stalled` whether credit is still missing, even while
    /// no event may arrive.
    pub(super) fn turn(
        &mut self,
        now: Instant,
        room: Room,
        is_live: bool,
        is_stalled: impl FnOnce() -> bool,
    ) -> Turn {
        match (room, self.stalled_since) {
            (Room::StalledNow, None) => {
                self.stalled_since = Some(now);
                Turn::ReportStall
            }
            (Room::StalledNow | Room::Stalled, _) => Turn::WaitForCredit,
            (Room::Free, Some(since)) if !is_stalled() => {
                self.stalled_since = None;
                Turn::ReportStallEnded(now.saturating_duration_since(since))
            }
            (Room::Free, _) if mem::take(&mut self.is_drained) => {
                let shrinks = is_live && !self.is_shrunk;
                Turn::Wait {
                    shrink_at: shrinks.then(|| now + SHRINK_AFTER),
                }
            }
            (Room::Free, _) => {
                self.reads_left = READS_AT_ONCE;
                Turn::Read
            }
        }
    }

    /// Whether another message may be read at once. If so, it is counted as read.
    pub(super) fn may_read(&mut self) -> bool {
        if self.reads_left == 0 || self.run_ahead > RUN_AHEAD {
            return false;
        }
        self.reads_left -= 1;
        true
    }

    /// Records that a message was read.
    pub(super) fn has_read(&mut self, bytes: usize) {
        self.run_ahead += bytes;
    }

    /// Records that there was nothing to read.
    pub(super) fn has_drained(&mut self) {
        self.is_drained = true;
    }

    /// Whether other threads must be notified and allowed to run before the shard reads more.
    pub(super) fn lets_others_run(&mut self) -> bool {
        let is_ahead = self.run_ahead > RUN_AHEAD;
        if is_ahead {
            self.run_ahead = 0;
        }
        is_ahead && self.has_unannounced
    }

    /// Records that an event has arrived.
    pub(super) fn has_received(&mut self) {
        self.is_shrunk = false;
    }

    /// Whether the next event is the first one of which other threads have not been notified.
    pub(super) fn begins_batch(&self) -> bool {
        !self.has_unannounced
    }

    /// Records that an event was put into the stream.
    pub(super) fn has_delivered(&mut self) {
        self.has_unannounced = true;
    }

    /// Makes the shard check everything else before it reads the next message.
    pub(super) fn tick(&mut self) {
        self.reads_left = 0;
    }

    /// Records that there may be something to read, whatever the last read found.
    pub(super) fn may_have_more(&mut self) {
        self.is_drained = false;
    }

    /// Whether waiting threads must be notified of events. Call it before anything that may take
    /// long.
    pub(super) fn take_unannounced(&mut self) -> bool {
        mem::take(&mut self.has_unannounced)
    }

    /// Whether it is time to free memory.
    pub(super) fn shrinks(&mut self, now: Instant, at: Option<Instant>) -> bool {
        let is_due = at.is_some_and(|at| now >= at);
        self.is_shrunk |= is_due;
        is_due
    }
}

#[cfg(test)]
mod tests {
    #![allow(
        clippy::disallowed_methods,
        reason = "the test's instants are offsets from a real one"
    )]

    use super::*;

    #[test]
    fn a_stall_is_reported_once_and_ended_once() {
        let now = Instant::now();
        let mut pace = Pace::default();
        assert_eq!(
            pace.turn(now, Room::StalledNow, true, || false),
            Turn::ReportStall
        );
        assert_eq!(
            pace.turn(now, Room::Stalled, true, || false),
            Turn::WaitForCredit
        );
        let later = now + Duration::from_secs(3);
        let ended = Turn::ReportStallEnded(later - now);
        assert_eq!(pace.turn(later, Room::Free, true, || false), ended);
        assert_eq!(pace.turn(later, Room::Free, true, || false), Turn::Read);
    }

    #[test]
    fn it_reads_until_it_is_drained_and_looks_around_in_between() {
        let now = Instant::now();
        let mut pace = Pace::default();
        assert_eq!(pace.turn(now, Room::Free, true, || false), Turn::Read);
        let read = |pace: &mut Pace| std::iter::from_fn(|| pace.may_read().then_some(())).count();
        assert_eq!(read(&mut pace), READS_AT_ONCE as usize);
        assert_eq!(pace.turn(now, Room::Free, true, || false), Turn::Read);
        assert!(pace.may_read());
        pace.tick();
        assert!(!pace.may_read());

        pace.turn(now, Room::Free, true, || false);
        pace.has_drained();
        let shrink_at = Some(now + SHRINK_AFTER);
        assert_eq!(
            pace.turn(now, Room::Free, true, || false),
            Turn::Wait { shrink_at }
        );
        assert_eq!(
            pace.turn(now, Room::Free, true, || false),
            Turn::Read,
            "it reads after a wait"
        );
        pace.has_drained();
        pace.may_have_more();
        assert_eq!(pace.turn(now, Room::Free, true, || false), Turn::Read);
    }

    #[test]
    fn others_run_after_each_quarter_of_a_mebibyte_with_events() {
        let mut pace = Pace::default();
        pace.turn(Instant::now(), Room::Free, true, || false);
        pace.has_delivered();
        pace.has_read(RUN_AHEAD);
        assert!(pace.may_read() && !pace.lets_others_run());
        pace.has_read(1);
        assert!(!pace.may_read() && pace.lets_others_run());
        assert!(pace.may_read() && pace.take_unannounced() && !pace.take_unannounced());
        pace.has_read(RUN_AHEAD + 1);
        assert!(!pace.lets_others_run(), "no events to notify them of");
    }

    #[test]
    fn memory_is_given_back_once_after_the_last_event() {
        let now = Instant::now();
        let mut pace = Pace::default();
        pace.has_drained();
        let Turn::Wait { shrink_at } = pace.turn(now, Room::Free, true, || false) else {
            panic!("it does not wait")
        };
        assert!(!pace.shrinks(now, shrink_at));
        assert!(pace.shrinks(now + SHRINK_AFTER, shrink_at));
        pace.has_drained();
        let never = Turn::Wait { shrink_at: None };
        assert_eq!(pace.turn(now, Room::Free, true, || false), never);
        pace.has_received();
        pace.has_drained();
        assert_eq!(
            pace.turn(now, Room::Free, false, || false),
            never,
            "the session is not live"
        );
    }
}
