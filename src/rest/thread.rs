//! Which threads run handlers: those must not block for long.

use std::cell::Cell;
use std::time::Duration;

/// How long a call may take by default.
const TIMEOUT: Duration = Duration::from_secs(30);

/// The same on a thread that runs a handler, where the events behind it wait meanwhile.
const HANDLER_TIMEOUT: Duration = Duration::from_secs(10);

thread_local! {
    static HANDLES_EVENTS: Cell<bool> = const { Cell::new(false) };
}

/// Runs something that handles events on this thread.
pub(crate) fn handle_events<T>(handle: impl FnOnce() -> T) -> T {
    /// Sets it back, also after a panic.
    struct Reset(bool);

    impl Drop for Reset {
        fn drop(&mut self) {
            HANDLES_EVENTS.set(self.0);
        }
    }

    let _reset = Reset(HANDLES_EVENTS.replace(true));
    handle()
}

/// How long a call on this thread may take, if it does not say.
pub(super) fn default_timeout() -> Duration {
    if HANDLES_EVENTS.get() {
        HANDLER_TIMEOUT
    } else {
        TIMEOUT
    }
}
