//! The thread that writes the session store.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::hub::Hub;
#[cfg(test)]
use super::hub::Store;
use super::reconciler::Input;
use crate::clock;
use crate::error::{Error, StoreError};
use crate::protocol::StopReason;
use crate::store::{OwnershipLost, Saved, SessionStore};

/// The range of the interval between two writes of the store.
const MIN_INTERVAL: Duration = Duration::from_millis(1);
const MAX_INTERVAL: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// Starts the thread. It writes the sessions every few seconds, when the manager requests it, and a
/// last time when the manager has ended. A slow store delays only that end.
pub(super) fn start(hub: &Arc<Hub>, store: Arc<dyn SessionStore>) -> Result<JoinHandle<()>, Error> {
    let writer = SessionWriter::new(Arc::clone(hub), store);
    thread::Builder::new()
        .name("session-store".into())
        .spawn(move || writer.run())
        .map_err(|source| Error::Io {
            what: "a thread for the session store",
            source,
        })
}

pub(super) struct SessionWriter {
    hub: Arc<Hub>,
    store: Arc<dyn SessionStore>,
    /// The last request that was fulfilled.
    written: u64,
    interval: Duration,
    /// When the store is written even without a request.
    due: Instant,
    is_failing: bool,
}

impl SessionWriter {
    pub(super) fn new(hub: Arc<Hub>, store: Arc<dyn SessionStore>) -> Self {
        let interval = store.save_interval();
        let interval = interval.unwrap_or(hub.config.timing.store_interval);
        let interval = interval.clamp(MIN_INTERVAL, MAX_INTERVAL);
        Self {
            interval,
            due: clock::now() + interval,
            hub,
            store,
            written: 0,
            is_failing: false,
        }
    }

    fn run(mut self) {
        loop {
            let (request, is_last) = self.hub.wait_for_store(self.written, self.due);
            self.write(request, is_last);
            if is_last {
                // If it panics, the store is not released, and the next process must wait until
                // that ownership expires.
                let _ = catch_unwind(AssertUnwindSafe(|| self.store.release()));
                return;
            }
        }
    }

    /// What to do next.
    #[cfg(test)]
    pub(super) fn poll(&self) -> Store {
        self.hub.poll_store(self.written, self.due)
    }

    /// Writes the store, which fulfils the requests up to this one.
    pub(super) fn write(&mut self, request: u64, is_last: bool) {
        // Set before the sessions are read: a later request may not be part of this write.
        self.written = request;
        if self.hub.stopping() != Some(StopReason::OwnershipLost) {
            let result = save(&*self.store, &self.hub.saved());
            self.handle(request, &result, is_last);
        }
        self.due = clock::now() + self.interval;
    }

    fn handle(&mut self, request: u64, result: &Result<(), StoreError>, is_last: bool) {
        if let Err(error) = result
            && error.is::<OwnershipLost>()
        {
            let said = || log::error!("{error}; dropping this process's connections");
            // A logger that panics must not keep the shards from stopping.
            let _ = catch_unwind(AssertUnwindSafe(said));
            return self.hub.stop(StopReason::OwnershipLost);
        }
        if result.is_ok() {
            self.hub.handle(Input::Stored(request));
        }
        if self.is_failing != result.is_err() || (is_last && result.is_err()) {
            self.is_failing = result.is_err();
            report(result, is_last);
        }
    }
}

fn report(result: &Result<(), StoreError>, is_last: bool) {
    // A logger that panics must not keep the sessions from being written.
    let _ = catch_unwind(AssertUnwindSafe(|| match result {
        Ok(()) => log::info!("the session store can be written again"),
        Err(error) if is_last => log::error!("failed to write the session store: {error}"),
        Err(error) => log::error!("failed to write the session store, will retry: {error}"),
    }));
}

/// Writes the store. A panic becomes an ordinary error.
fn save(store: &dyn SessionStore, saved: &Saved) -> Result<(), StoreError> {
    catch_unwind(AssertUnwindSafe(|| store.save(saved)))
        .unwrap_or_else(|_| Err("it panicked".into()))
}
