//! The handler of `run`: whether it runs, how it is stopped, and its panics.

use std::io;
use std::num::NonZeroUsize;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use parking_lot::Mutex;

use super::hub::Hub;
use crate::clock;
use crate::delivery::{Lanes, Panicked, Workers};
use crate::error::Error;
use crate::event::{Event, EventKind, HANDLER_PANICKED};
use crate::log_shard::log_shard;
use crate::protocol::StopReason;

/// Whether a handler runs, and how many times handlers have panicked.
#[derive(Default)]
pub(super) struct Handlers {
    state: Mutex<HandlerRun>,
    panics: AtomicU64,
}

#[derive(Default)]
struct HandlerRun {
    runs: bool,
    /// The lanes of the running handler; `None` once it was stopped.
    lanes: Option<Arc<Lanes>>,
    /// Set once the manager is closed: the handler may begin queued events until this instant.
    deadline: Arc<OnceLock<Instant>>,
}

impl Handlers {
    /// Stops the handler. Returns whether one was running.
    pub(super) fn stop(&self) -> bool {
        let lanes = self.state.lock().lanes.take();
        lanes.inspect(|lanes| lanes.stop()).is_some()
    }

    /// Sets the instant after which no event is begun. Only the first call has an effect.
    pub(super) fn end_at(&self, deadline: Instant) {
        self.state.lock().deadline.get_or_init(|| deadline);
    }

    /// How many times handlers have panicked.
    pub(super) fn panics(&self) -> u64 {
        self.panics.load(Ordering::Relaxed)
    }
}

impl Hub {
    /// Delivers events to a handler through `run`, until the stream ends or it is stopped.
    pub(super) fn run(
        &self,
        count: usize,
        run: impl FnOnce(Workers<'_>) -> io::Result<()>,
    ) -> Result<(), Error> {
        let count = NonZeroUsize::new(count)
            .ok_or_else(|| Error::setting("workers", count, "at least 1"))?;
        let (lanes, deadline) = {
            let mut handler = self.handlers.state.lock();
            if handler.runs {
                return Err(Error::HandlerRunning);
            }
            let deadline = Arc::clone(&handler.deadline);
            let lanes = Arc::new(Lanes::new(count, Arc::clone(&deadline)));
            (handler.runs, handler.lanes) = (true, Some(Arc::clone(&lanes)));
            (lanes, deadline)
        };
        let report = |panicked| self.report_panic(panicked);
        let workers = Workers {
            events: self.events(),
            lanes,
            report: &report,
        };

        // The workers catch the handler's panics. Any other panic is caught here, so that the
        // handler does not count as running forever.
        let ran = catch_unwind(AssertUnwindSafe(|| run(workers)));
        {
            let mut handler = self.handlers.state.lock();
            (handler.runs, handler.lanes) = (false, None);
        }

        let deadline = deadline.get();
        let is_late = deadline.is_some_and(|deadline| clock::now() >= *deadline);
        match self.stopping() {
            Some(StopReason::Closed) if is_late => self.discard_queued(),
            // The new owner of the shards receives these events, too.
            Some(StopReason::OwnershipLost) => {
                self.events().discard();
            }
            _ => {}
        }
        ran.unwrap_or_else(|panic| resume_unwind(panic))
            .map_err(|source| Error::Io {
                what: "a thread for a handler",
                source,
            })?;
        self.check()
    }

    fn discard_queued(&self) {
        let dropped = self.events().discard();
        if dropped > 0 {
            log::warn!(
                "{dropped} queued events were dropped: no handler had begun them within {:?} of the \
                 close",
                self.config.timing.handlers_timeout
            );
        }
    }

    fn report_panic(&self, Panicked { at, message }: Panicked) {
        self.handlers.panics.fetch_add(1, Ordering::Relaxed);
        log_shard!(
            error,
            at.shard,
            "the handler panicked at {}: {message}",
            at.name()
        );

        // A handler that panics at this event itself would receive it again and again.
        if at.kind == HANDLER_PANICKED {
            return;
        }

        let Some((feed, shard)) = self.feed_and_shard(at.shard) else {
            return;
        };
        let event = at.name().to_owned();
        let kind = EventKind::HandlerPanicked {
            event,
            sequence: at.dispatch.map(|(_, sequence)| sequence),
            message,
        };

        // It counts as outstanding, so that these events do not pile up if the handler always
        // panics or is stuck.
        let lease = shard.map(|shard| shard.hold());
        feed.deliver(Event::new(at.shard, kind).with_lease(lease));
    }
}
