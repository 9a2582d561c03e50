//! A manager that starts in the background, on a separate thread.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::thread;

use crossbeam_channel::{Receiver, Sender};

use super::ShardManager;
use crate::config::Config;
use crate::error::Error;

/// A manager that is starting, from [`ShardManager::start_in_background`]. Dropping it cancels the
/// start; if the manager starts anyway, it is closed.
///
/// ```
/// # use threadcord::{Config, Intents, ShardManager, Token, sim};
/// # let gateway = sim::Gateway::builder().start()?;
/// # let config = Config::new(Token::new(gateway.token())?, Intents::default()).rest_url(gateway.rest_url());
/// let mut starting = ShardManager::start_in_background(config)?;
/// let manager = loop {
///     // ... draw a frame ...
///     if let Some(started) = starting.poll() {
///         break started?;
///     }
/// };
/// # manager.close();
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Starting {
    started: Receiver<thread::Result<Result<ShardManager, Error>>>,
    /// Dropped together with `Starting`; the thread notices that and cancels the start.
    _cancel: Sender<()>,
}

impl Starting {
    pub(super) fn new(config: Config) -> Result<Self, Error> {
        config.validate()?;

        let (cancel, cancelled) = crossbeam_channel::bounded(0);
        // Capacity 0: if `Starting` was dropped, the manager stays with the thread, which closes
        // it.
        let (report, started) = crossbeam_channel::bounded(0);
        thread::Builder::new()
            .name("shard-start".into())
            .spawn(move || {
                let start = || ShardManager::start_until(config, |connector| connector, &cancelled);
                let started = catch_unwind(AssertUnwindSafe(start));
                // Fails if `Starting` was dropped. That drops the manager, which closes it.
                let _ = report.send(started);
            })
            .map_err(|source| Error::Io {
                what: "a thread to start on",
                source,
            })?;

        Ok(Self {
            started,
            _cancel: cancel,
        })
    }

    /// Returns the manager or the error once the start is over; `None` before that, and after the
    /// result has been returned. Does not block.
    ///
    /// # Panics
    /// If the start panicked, because a session store or a limiter did.
    pub fn poll(&mut self) -> Option<Result<ShardManager, Error>> {
        let started = self.started.try_recv().ok()?;
        Some(started.unwrap_or_else(|panic| resume_unwind(panic)))
    }

    /// Blocks until the manager has started or failed to start, and returns it or the error.
    ///
    /// # Errors
    /// As [`ShardManager::start`]; [`Error::Closed`] if [`poll`](Self::poll) has returned the
    /// result already.
    ///
    /// # Panics
    /// As [`poll`](Self::poll).
    pub fn wait(self) -> Result<ShardManager, Error> {
        let started = self.started.recv().unwrap_or(Ok(Err(Error::Closed)));
        started.unwrap_or_else(|panic| resume_unwind(panic))
    }
}
