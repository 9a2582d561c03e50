//! The thread that writes the session store.

use std::sync::Arc;
use std::thread::{self, JoinHandle};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};

use super::fleet::Fleet;
use crate::error::Error;
use crate::store::SessionStore;

/// Writes the sessions every few seconds, until it is dropped. A store that is slow or hangs holds up nothing else.
#[derive(Debug)]
pub(super) struct Keeper {
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Keeper {
    pub(super) fn start(fleet: &Arc<Fleet>, store: Arc<dyn SessionStore>) -> Result<Self, Error> {
        let (stop, stopped) = crossbeam_channel::bounded(0);
        let fleet = Arc::clone(fleet);
        let thread = thread::Builder::new()
            .name("session-store".into())
            .spawn(move || keep(&fleet, &*store, &stopped))
            .map_err(|source| Error::Io { what: "a thread for the session store", source })?;
        Ok(Self { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        drop(self.stop.take());
        self.thread.take().into_iter().for_each(super::fleet::join);
    }
}

fn keep(fleet: &Fleet, store: &dyn SessionStore, stopped: &Receiver<()>) {
    let mut is_failing = false;
    loop {
        match stopped.recv_timeout(fleet.config.timing.store_interval) {
            Err(RecvTimeoutError::Timeout) => {}
            Ok(()) | Err(RecvTimeoutError::Disconnected) => return,
        }
        match store.save(&fleet.sessions()) {
            Err(error) if !is_failing => log::error!("the session store cannot be written, it is tried again: {error}"),
            Ok(()) if is_failing => log::info!("the session store is written again"),
            _ => continue,
        }
        is_failing = !is_failing;
    }
}
