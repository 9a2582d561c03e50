//! How the manager ends, and when the session store is written.

use std::collections::BTreeSet;
use std::slice;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::{Hub, Phase, State};
use crate::clock;
use crate::protocol::StopReason;
use crate::shard::Shard;
use crate::shard_id::ShardId;

/// How often handlers are polled, since they do not notify when they are done.
const CHECK: Duration = Duration::from_millis(5);

/// What the end of a manager waits for next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::manager) enum Ending {
    /// The shards and the supervisor.
    Shards,
    /// The handlers. They must be polled, since they do not notify when they are done.
    Handlers,
    /// The last write of the session store.
    Store,
}

/// What the session writer does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::manager) enum Store {
    /// Waits until this instant, unless something happens before.
    Wait(Instant),
    Write {
        /// The last request that the write fulfils.
        request: u64,
        is_last: bool,
    },
}

impl Hub {
    /// What the end waits for next. Sets `deadline`, that of the handlers, at the first call that
    /// waits for them.
    pub(in crate::manager) fn poll_end(&self, deadline: &mut Option<Instant>) -> Ending {
        let delivering = {
            let state = self.state.lock();
            if state.phase < Phase::Stopped {
                return Ending::Shards;
            }
            let is_suspended = state.reconciler.stopping() == Some(StopReason::Suspended);
            is_suspended.then(|| state.shards.shards_of(&state.reconciler.delivering()))
        };
        if let Some(delivering) = delivering {
            let now = clock::now();
            let deadline =
                deadline.get_or_insert_with(|| now + self.config.timing.handlers_timeout);
            if now < *deadline && self.is_handling(&delivering) {
                return Ending::Handlers;
            }
        }

        self.set_phase(Phase::LastStore);
        Ending::Store
    }

    /// Waits until the session store may be written a last time.
    pub(in crate::manager) fn wait_end(&self) {
        let mut deadline = None;
        while self.poll_end(&mut deadline) != Ending::Store {
            thread::sleep(CHECK);
        }
    }

    /// Waits until handlers have finished the events of a shard, up to the handlers timeout.
    pub(in crate::manager) fn wait_for_handlers(&self, shard: &Shard) {
        let deadline = clock::now() + self.config.timing.handlers_timeout;
        while self.is_handling(slice::from_ref(shard)) && clock::now() < deadline {
            thread::sleep(CHECK);
        }
    }

    /// Whether handlers have events of these shards. Queued events do not count, since perhaps no
    /// handler will ever take them.
    pub(in crate::manager) fn is_handling(&self, shards: &[Shard]) -> bool {
        let ids: BTreeSet<ShardId> = shards.iter().map(Shard::id).collect();
        // In this order, so that an event that is taken between the two reads counts.
        let outstanding: usize = shards.iter().map(|shard| shard.outstanding().0).sum();
        outstanding > self.events.queued(&ids)
    }

    /// What to do with the session store; `written` is the last request that was fulfilled. The
    /// store is written on request, and at `due` at the latest.
    #[cfg(test)]
    pub(in crate::manager) fn poll_store(&self, written: u64, due: Instant) -> Store {
        self.state.lock().poll_store(written, due)
    }

    /// Waits until the store should be written. Returns the request, and whether it is the last.
    pub(in crate::manager) fn wait_for_store(&self, written: u64, due: Instant) -> (u64, bool) {
        let mut state = self.state.lock();
        loop {
            match state.poll_store(written, due) {
                Store::Wait(until) => {
                    self.changed.wait_until(&mut state, until);
                }
                Store::Write { request, is_last } => return (request, is_last),
            }
        }
    }

    /// Records that the manager was dropped: no call waits for its end any more.
    pub(in crate::manager) fn detach(&self) {
        self.state.lock().is_detached = true;
        self.notify();
    }

    /// Whether the calling thread is a shard's thread.
    pub(in crate::manager) fn is_shard_thread(&self) -> bool {
        let own = thread::current().id();
        let state = self.state.lock();
        let entries = state.shards.by_run.values().chain(&state.shards.retired);
        let mut threads = entries.filter_map(|entry| entry.thread.as_ref());
        threads.any(|thread| thread.thread().id() == own)
    }

    /// Waits until no shard runs. A thread that is resolving a host name ends by itself later.
    pub(in crate::manager) fn join_shards(&self) {
        let threads: Vec<JoinHandle<()>> = {
            let mut state = self.state.lock();
            while state.phase < Phase::Stopped {
                self.changed.wait(&mut state);
            }
            let shards = &mut state.shards;
            let entries = shards.by_run.values_mut().chain(&mut shards.retired);
            let stopped = entries.filter(|entry| !entry.shard.is_resolving());
            stopped.filter_map(|entry| entry.thread.take()).collect()
        };
        for thread in threads {
            // A shard's thread catches its panics and reports why it stopped.
            let _ = thread.join();
        }
    }

    /// Records that the manager has ended.
    pub(in crate::manager) fn set_closed(&self) {
        self.set_phase(Phase::Closed);
    }

    /// Waits until the manager has ended.
    pub(in crate::manager) fn wait_closed(&self) {
        let mut state = self.state.lock();
        while state.phase < Phase::Closed {
            self.changed.wait(&mut state);
        }
    }

    pub(super) fn set_phase(&self, phase: Phase) {
        {
            let mut state = self.state.lock();
            state.phase = state.phase.max(phase);
        }
        self.notify();
    }
}

impl State {
    fn poll_store(&self, written: u64, due: Instant) -> Store {
        let is_last = self.is_last_store();
        if is_last || self.store != written || clock::now() >= due {
            let request = self.store;
            return Store::Write { request, is_last };
        }
        Store::Wait(due)
    }

    fn is_last_store(&self) -> bool {
        self.phase >= Phase::LastStore || (self.is_detached && self.phase >= Phase::Stopped)
    }
}
