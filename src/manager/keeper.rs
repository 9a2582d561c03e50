//! The thread that writes the session store.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Instant;

use super::fleet::Fleet;
use crate::error::{Error, StoreError};
use crate::store::{Saved, SessionStore};

/// Starts the thread, which writes the sessions every few seconds until the fleet stops. A store
/// that is slow holds up nothing else, but the end of the manager.
pub(super) fn start(
    fleet: &Arc<Fleet>,
    store: Arc<dyn SessionStore>,
) -> Result<JoinHandle<()>, Error> {
    let fleet = Arc::clone(fleet);
    thread::Builder::new()
        .name("session-store".into())
        .spawn(move || keep(&fleet, &*store))
        .map_err(|source| Error::Io {
            what: "a thread for the session store",
            source,
        })
}

fn keep(fleet: &Fleet, store: &dyn SessionStore) {
    let mut is_failing = false;
    while let Some(wanted) = wait(fleet) {
        let saved = save(store, &fleet.saved());
        // What was wanted since then is not in it.
        fleet.state.lock().store_written = wanted;
        fleet.changed.notify_all();
        match saved {
            Err(error) if !is_failing => {
                log::error!("the session store cannot be written, it is tried again: {error}");
            }
            Ok(()) if is_failing => log::info!("the session store is written again"),
            _ => continue,
        }
        is_failing = !is_failing;
    }
}

/// Writes the store; what it panics with is an error like any other.
pub(super) fn save(store: &dyn SessionStore, saved: &Saved) -> Result<(), StoreError> {
    catch_unwind(AssertUnwindSafe(|| store.save(saved)))
        .unwrap_or_else(|_| Err("it panicked".into()))
}

/// Waits until the store should be written. Returns how many writes were requested so far, or
/// `None` if the fleet is stopping.
fn wait(fleet: &Fleet) -> Option<u64> {
    let deadline = Instant::now() + fleet.config.timing.store_interval;
    let mut state = fleet.state.lock();
    while state.stopping.is_none() && state.store_wanted == state.store_written {
        if fleet.changed.wait_until(&mut state, deadline).timed_out() {
            break;
        }
    }
    state.stopping.is_none().then_some(state.store_wanted)
}
