//! The time, as the shells of the pure cores take it.
//!
//! A test can set it for its own thread, where it then stands still until it is set again.

use std::time::{Instant, SystemTime};

/// The time that only goes on.
pub(crate) fn now() -> Instant {
    #[cfg(test)]
    if let Some((now, _)) = set::get() {
        return now;
    }
    Instant::now()
}

/// The time of the calendar.
pub(crate) fn wall() -> SystemTime {
    #[cfg(test)]
    if let Some((_, wall)) = set::get() {
        return wall;
    }
    SystemTime::now()
}

#[cfg(test)]
pub(crate) use set::{is_set, set};

#[cfg(test)]
mod set {
    use std::cell::Cell;
    use std::time::{Instant, SystemTime};

    thread_local! {
        static TIME: Cell<Option<(Instant, SystemTime)>> = const { Cell::new(None) };
    }

    pub(super) fn get() -> Option<(Instant, SystemTime)> {
        TIME.get()
    }

    /// Whether the calling thread has a time of its own.
    pub(crate) fn is_set() -> bool {
        get().is_some()
    }

    /// From now on this is the time on the calling thread.
    pub(crate) fn set(now: Instant, wall: SystemTime) {
        TIME.set(Some((now, wall)));
    }
}
