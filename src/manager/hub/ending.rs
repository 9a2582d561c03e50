//! How the manager ends, and what is stored until then.

use std::collections::BTreeSet;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::{Hub, Phase, State};
use crate::shard::Shard;
use crate::shard_id::ShardId;

/// How often handlers are looked at, which tell nobody when they are done.
const CHECK: Duration = Duration::from_millis(5);

impl Hub {
    /// Waits until handlers have finished what these shards delivered, but not for what is queued,
    /// which nobody may take, and not for longer than until `deadline`.
    pub(in crate::manager) fn wait_for_handlers(&self, shards: &[Shard], deadline: Instant) {
        let ids: BTreeSet<ShardId> = shards.iter().map(Shard::id).collect();
        let is_held = || {
            // In this order: what is taken meanwhile must count.
            let outstanding: usize = shards.iter().map(|shard| shard.outstanding().0).sum();
            outstanding > self.events.queued(&ids)
        };
        while is_held() && Instant::now() < deadline {
            thread::sleep(CHECK);
        }
    }

    /// The shards whose handlers are waited for when the manager is suspended.
    pub(in crate::manager) fn delivering(&self) -> Vec<Shard> {
        let state = self.state.lock();
        state.shards.shards_of(&state.reconciler.delivering())
    }

    /// Blocks until a write of the store is requested, but no longer than the usual interval. Returns
    /// the number of the last request, and whether it is the last time.
    pub(in crate::manager) fn wait_for_store(&self, written: u64) -> (u64, bool) {
        let deadline = Instant::now() + self.config.timing.store_interval;
        let mut state = self.state.lock();
        while !state.is_last_store() && state.store == written {
            if self.changed.wait_until(&mut state, deadline).timed_out() {
                break;
            }
        }
        (state.store, state.is_last_store())
    }

    /// The session store is written a last time.
    pub(in crate::manager) fn finish_store(&self) {
        self.set_phase(Phase::LastStore);
    }

    /// The manager was dropped: no call waits for its end any more.
    pub(in crate::manager) fn detach(&self) {
        self.state.lock().is_detached = true;
        self.changed.notify_all();
    }

    /// Whether the calling thread is that of a shard.
    pub(in crate::manager) fn is_shard_thread(&self) -> bool {
        let own = thread::current().id();
        let state = self.state.lock();
        let entries = state.shards.by_run.values().chain(&state.shards.retired);
        let mut threads = entries.filter_map(|entry| entry.thread.as_ref());
        threads.any(|thread| thread.thread().id() == own)
    }

    /// Waits until no shard runs. A thread that is looking a host up ends by itself later.
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
            // A shard's thread catches its panics, and tells why it stopped.
            let _ = thread.join();
        }
    }

    /// The manager has ended.
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
        self.changed.notify_all();
    }
}

impl State {
    fn is_last_store(&self) -> bool {
        self.phase >= Phase::LastStore || (self.is_detached && self.phase >= Phase::Stopped)
    }
}
