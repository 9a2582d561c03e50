//! The clock of the code around the pure state machines, which themselves take the time as an
//! argument.
//!
//! A test can set the time for its own thread. There it stays the same until it is set again.

use std::time::{Instant, SystemTime};

/// The monotonic time.
pub(crate) fn now() -> Instant {
    #[cfg(test)]
    if let Some((now, _)) = set::get() {
        return now;
    }
    Instant::now()
}

/// The wall-clock time, which may be set back.
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

    /// Whether the time was set for the calling thread.
    pub(crate) fn is_set() -> bool {
        get().is_some()
    }

    /// Sets the time for the calling thread.
    pub(crate) fn set(now: Instant, wall: SystemTime) {
        TIME.set(Some((now, wall)));
    }
}
