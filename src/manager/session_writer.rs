//! The thread that writes the session store.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use super::hub::Hub;
use super::reconciler::Input;
use crate::error::{Error, StoreError};
use crate::store::{Saved, SessionStore};

/// Starts the thread, which writes the sessions every few seconds, when the manager asks for it, and
/// a last time when the manager has ended. A store that is slow holds up nothing else but that end.
pub(super) fn start(hub: &Arc<Hub>, store: Arc<dyn SessionStore>) -> Result<JoinHandle<()>, Error> {
    let hub = Arc::clone(hub);
    thread::Builder::new()
        .name("session-store".into())
        .spawn(move || write(&hub, &*store))
        .map_err(|source| Error::Io {
            what: "a thread for the session store",
            source,
        })
}

fn write(hub: &Hub, store: &dyn SessionStore) {
    let (mut written, mut is_failing) = (0, false);
    loop {
        let (wanted, is_last) = hub.wait_for_store(written);
        let result = save(store, &hub.saved());
        // What was wanted since then is not in it.
        written = wanted;
        if result.is_ok() {
            hub.handle(Input::Stored(wanted));
        }
        if is_failing != result.is_err() || (is_last && result.is_err()) {
            is_failing = result.is_err();
            report(&result, is_last);
        }
        if is_last {
            return;
        }
    }
}

fn report(result: &Result<(), StoreError>, is_last: bool) {
    // A logger that panics must not keep the sessions from being written.
    let _ = catch_unwind(AssertUnwindSafe(|| match result {
        Ok(()) => log::info!("the session store is written again"),
        Err(error) if is_last => log::error!("failed to write the session store: {error}"),
        Err(error) => log::error!("failed to write the session store, will retry: {error}"),
    }));
}

/// Writes the store; what it panics with is an error like any other.
fn save(store: &dyn SessionStore, saved: &Saved) -> Result<(), StoreError> {
    catch_unwind(AssertUnwindSafe(|| store.save(saved)))
        .unwrap_or_else(|_| Err("it panicked".into()))
}
