//! Knows which threads run handlers, which must not block for long.

use std::cell::Cell;
use std::time::Duration;

/// How long a call may take by default.
const TIMEOUT: Duration = Duration::from_secs(30);

/// The default on a thread that runs a handler: the next events wait until the handler returns.
const HANDLER_TIMEOUT: Duration = Duration::from_secs(10);

thread_local! {
    static HANDLES_EVENTS: Cell<bool> = const { Cell::new(false) };
}

/// Runs `handle`. During that, this thread counts as one that runs a handler.
pub(crate) fn handle_events<T>(handle: impl FnOnce() -> T) -> T {
    /// Restores the previous value, also after a panic.
    struct Reset(bool);

    impl Drop for Reset {
        fn drop(&mut self) {
            HANDLES_EVENTS.set(self.0);
        }
    }

    let _reset = Reset(HANDLES_EVENTS.replace(true));
    handle()
}

/// How long a call on this thread may take if it sets no timeout.
pub(super) fn default_timeout() -> Duration {
    if HANDLES_EVENTS.get() {
        HANDLER_TIMEOUT
    } else {
        TIMEOUT
    }
}
