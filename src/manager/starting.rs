//! A manager that starts on a thread of its own.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::thread;

use crossbeam_channel::{Receiver, Sender};

use super::ShardManager;
use crate::config::Config;
use crate::error::Error;

/// A manager on its way, from [`ShardManager::start_in_background`]. Dropping it gives the start up:
/// a manager that comes nevertheless is closed.
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
    /// Dropped with it, which the thread notices.
    _cancel: Sender<()>,
}

impl Starting {
    pub(super) fn new(config: Config) -> Result<Self, Error> {
        config.validate()?;

        let (cancel, cancelled) = crossbeam_channel::bounded(0);
        // Without room: if nobody wants the manager any more, that thread still has it.
        let (report, started) = crossbeam_channel::bounded(0);
        thread::Builder::new()
            .name("shard-start".into())
            .spawn(move || {
                let start = || ShardManager::start_until(config, |connector| connector, &cancelled);
                let started = catch_unwind(AssertUnwindSafe(start));
                // Nobody may wait any more: then the manager is dropped, which closes it.
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

    /// The manager, or why it could not start, once that is known; `None` until then, and after it
    /// was returned. Does not block.
    ///
    /// # Panics
    /// If the start has, because a session store or a limiter did.
    pub fn poll(&mut self) -> Option<Result<ShardManager, Error>> {
        let started = self.started.try_recv().ok()?;
        Some(started.unwrap_or_else(|panic| resume_unwind(panic)))
    }

    /// The manager; blocks until it has started, or could not.
    ///
    /// # Errors
    /// As [`ShardManager::start`]; [`Error::Closed`] if [`poll`](Self::poll) has returned it.
    ///
    /// # Panics
    /// As [`poll`](Self::poll).
    pub fn wait(self) -> Result<ShardManager, Error> {
        let started = self.started.recv().unwrap_or(Ok(Err(Error::Closed)));
        started.unwrap_or_else(|panic| resume_unwind(panic))
    }
}
