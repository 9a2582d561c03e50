//! Where events go while a handler runs. Each shard's events go to one of several lanes, and each
//! lane has one worker that empties it.

use std::collections::VecDeque;
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use parking_lot::{Condvar, Mutex};

use crate::clock;
use crate::event::Event;

/// A queue with a capacity beyond this frees its memory once it is empty.
const SPARE: usize = 1024;

/// The lanes of a handler, and whether the handler must stop.
#[derive(Debug)]
pub(crate) struct Lanes {
    all: Box<[Lane<Event>]>,
    is_stopped: AtomicBool,
    /// Once set, no event is begun at or after that instant.
    deadline: Arc<OnceLock<Instant>>,
}

impl Lanes {
    pub(crate) fn new(count: NonZeroUsize, deadline: Arc<OnceLock<Instant>>) -> Self {
        let lanes = (0..count.get()).map(|_| Lane::default());
        Self {
            all: lanes.collect(),
            is_stopped: AtomicBool::new(false),
            deadline,
        }
    }

    pub(super) fn all(&self) -> &[Lane<Event>] {
        &self.all
    }

    /// Stops the workers: they begin no further event and return. Wakes those that sleep.
    pub(crate) fn stop(&self) {
        self.is_stopped.store(true, Ordering::SeqCst);
        self.all.iter().for_each(Lane::wake);
    }

    /// How many events wait in each lane.
    #[cfg(test)]
    pub(crate) fn lengths(&self) -> Vec<usize> {
        self.all.iter().map(Lane::len).collect()
    }

    /// The next event of a lane, if there is one.
    #[cfg(test)]
    pub(crate) fn try_recv(&self, lane: usize) -> Option<Event> {
        self.all[lane].queue.lock().items.pop_front()
    }

    pub(crate) fn is_stopped(&self) -> bool {
        let is_late = |deadline: &Instant| clock::now() >= *deadline;
        self.is_stopped.load(Ordering::SeqCst) || self.deadline.get().is_some_and(is_late)
    }

    /// Marks the end of all lanes: no more events will be put in.
    pub(super) fn end(&self) {
        self.all.iter().for_each(Lane::end);
    }
}

/// A queue that one worker empties. A sleeping worker wakes up when what was [put](Self::put) in is
/// [announced](Self::announce), once for a batch.
#[derive(Debug)]
pub(crate) struct Lane<T> {
    queue: Mutex<Queue<T>>,
    announced: Condvar,
}

#[derive(Debug)]
struct Queue<T> {
    items: VecDeque<T>,
    has_ended: bool,
    /// Whether the worker sleeps.
    is_waiting: bool,
}

impl<T> Default for Lane<T> {
    fn default() -> Self {
        let queue = Queue {
            items: VecDeque::new(),
            has_ended: false,
            is_waiting: false,
        };
        Self {
            queue: Mutex::new(queue),
            announced: Condvar::new(),
        }
    }
}

impl<T> Lane<T> {
    pub(super) fn put(&self, item: T) {
        self.queue.lock().items.push_back(item);
    }

    /// Wakes the worker if it sleeps and there is something for it.
    pub(super) fn announce(&self) {
        let wakes = {
            let mut queue = self.queue.lock();
            !queue.items.is_empty() && std::mem::take(&mut queue.is_waiting)
        };
        if wakes {
            self.announced.notify_one();
        }
    }

    /// Marks the end of the lane: no more items will be put in.
    pub(super) fn end(&self) {
        self.queue.lock().has_ended = true;
        self.announced.notify_one();
    }

    /// Makes the worker check whether it must stop.
    fn wake(&self) {
        // The worker holds the lock from its check until it sleeps. Once this has had the lock, the
        // worker either sleeps or has yet to check.
        drop(self.queue.lock());
        self.announced.notify_one();
    }

    /// The next item; blocks until there is one. `None` if the lane has ended and is empty, or once
    /// `is_stopped` returns true.
    pub(super) fn next(&self, is_stopped: impl Fn() -> bool) -> Option<T> {
        let mut queue = self.queue.lock();
        loop {
            if is_stopped() {
                return None;
            }
            let item = queue.items.pop_front();
            if item.is_some() || queue.has_ended {
                return item;
            }
            if queue.items.capacity() > SPARE {
                queue.items = VecDeque::new();
            }
            queue.is_waiting = true;
            self.announced.wait(&mut queue);
            queue.is_waiting = false;
        }
    }

    /// Whether the worker has handled everything that was put in.
    pub(super) fn is_idle(&self) -> bool {
        let queue = self.queue.lock();
        queue.is_waiting && queue.items.is_empty()
    }

    /// Takes out all items that are left.
    pub(super) fn take(&self) -> VecDeque<T> {
        std::mem::take(&mut self.queue.lock().items)
    }

    pub(super) fn len(&self) -> usize {
        self.queue.lock().items.len()
    }

    /// How many of the items `is_counted` selects.
    pub(super) fn count_of(&self, is_counted: impl Fn(&T) -> bool) -> usize {
        let queue = self.queue.lock();
        queue.items.iter().filter(|item| is_counted(item)).count()
    }
}
