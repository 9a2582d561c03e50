//! Events that were taken from the stream but not handled.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;

use crate::event::Event;

/// The events that stopped handlers had not begun, in the order in which they arrived.
#[derive(Debug, Default)]
pub(super) struct PutBack {
    /// The number of events. It is almost always zero: a thread that reads zero takes no lock.
    count: AtomicUsize,
    events: Mutex<VecDeque<Event>>,
}

impl PutBack {
    pub(super) fn len(&self) -> usize {
        self.count.load(Ordering::Acquire)
    }

    pub(super) fn pop(&self) -> Option<Event> {
        if self.len() == 0 {
            return None;
        }
        let mut events = self.events.lock();
        let event = events.pop_front();
        self.count.store(events.len(), Ordering::Release);
        event
    }

    /// Puts events back, in front of those that are already here.
    pub(super) fn put_back(&self, older: Vec<Event>) {
        let mut events = self.events.lock();
        older
            .into_iter()
            .rev()
            .for_each(|event| events.push_front(event));
        self.count.store(events.len(), Ordering::Release);
    }

    /// Adds newer events at the end.
    pub(super) fn append(&self, younger: impl Iterator<Item = Event>) {
        let mut events = self.events.lock();
        events.extend(younger);
        self.count.store(events.len(), Ordering::Release);
    }

    /// How many of the events `is_counted` selects.
    pub(super) fn count_of(&self, is_counted: impl Fn(&Event) -> bool) -> usize {
        self.events
            .lock()
            .iter()
            .filter(|event| is_counted(event))
            .count()
    }
}
