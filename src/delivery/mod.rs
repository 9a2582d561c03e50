//! The fan-in: every shard's events in one place.

mod workers;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, TryRecvError};
use parking_lot::Mutex;

pub(crate) use workers::run;

use crate::event::Event;

/// Every event of every shard, in the order of each shard. An iterator that blocks; clones share the stream, so that
/// each event goes to one of them.
///
/// It ends when every shard has stopped. The channel behind it is unbounded; what bounds it is each shard's credit: a
/// shard whose events nobody takes stops reading. When the last `Events` is dropped (and with it every clone of its
/// [`receiver`](Self::receiver)), the shards stop at their next event and keep their sessions; events that nobody took
/// count as not handled. So keep one while the shards run.
#[derive(Clone, Debug)]
pub struct Events {
    receiver: Receiver<Event>,
    _reader: Arc<Reader>,
}

/// The shards' end of the stream.
#[derive(Clone, Debug)]
pub(crate) struct Outlet {
    sender: Sender<Event>,
    abandoned: Arc<AtomicBool>,
}

/// What the manager keeps to make more [`Events`].
#[derive(Debug)]
pub(crate) struct Source {
    spare: Arc<Mutex<Option<Receiver<Event>>>>,
    reader: Mutex<Weak<Reader>>,
    abandoned: Arc<AtomicBool>,
}

/// Shared by all [`Events`]; with the last of them goes the manager's spare receiver, so that shards see that nobody
/// receives any more.
#[derive(Debug)]
struct Reader {
    spare: Arc<Mutex<Option<Receiver<Event>>>>,
    abandoned: Arc<AtomicBool>,
}

/// The fan-in channel: shards get clones of the outlet.
pub(crate) fn channel() -> (Outlet, Source) {
    let (sender, receiver) = crossbeam_channel::unbounded();
    let abandoned = Arc::new(AtomicBool::new(false));
    let outlet = Outlet { sender, abandoned: Arc::clone(&abandoned) };
    (outlet, Source { spare: Arc::new(Mutex::new(Some(receiver))), reader: Mutex::new(Weak::new()), abandoned })
}

impl Outlet {
    /// Sends an event. Returns whether anybody is left to receive it.
    pub(crate) fn send(&self, event: Event) -> bool {
        self.sender.send(event).is_ok()
    }

    /// Becomes true when the last [`Events`] is gone, before the events in the channel are dropped: these have not been
    /// handled.
    pub(crate) fn abandoned(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.abandoned)
    }
}

impl Source {
    /// The stream. If there was one and it was dropped, this one has ended.
    pub(crate) fn events(&self) -> Events {
        let mut reader = self.reader.lock();
        let shared = reader.upgrade().unwrap_or_else(|| {
            Arc::new(Reader { spare: Arc::clone(&self.spare), abandoned: Arc::clone(&self.abandoned) })
        });
        *reader = Arc::downgrade(&shared);
        let receiver = self.spare.lock().clone().unwrap_or_else(|| crossbeam_channel::bounded(0).1);
        Events { receiver, _reader: shared }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.abandoned.store(true, Ordering::Release);
        // Dropped outside the lock: events may be in it, and their leases wake shards.
        let spare = self.spare.lock().take();
        drop(spare);
    }
}

impl Events {
    /// The channel itself, for `crossbeam_channel::select!`. Whoever receives from it owes the same as with the
    /// iterator: to drop or release each event.
    pub fn receiver(&self) -> &Receiver<Event> {
        &self.receiver
    }

    /// The next event, if one is there.
    pub fn try_next(&self) -> Result<Event, TryRecvError> {
        self.receiver.try_recv()
    }

    /// The next event, if it comes in time.
    pub fn next_timeout(&self, timeout: Duration) -> Result<Event, RecvTimeoutError> {
        self.receiver.recv_timeout(timeout)
    }
}

impl Iterator for Events {
    type Item = Event;

    fn next(&mut self) -> Option<Event> {
        self.receiver.recv().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::EventKind;
    use crate::shard_id::ShardId;

    fn event() -> Event {
        Event::of_shard(ShardId::ONE, EventKind::Resumed)
    }

    #[test]
    fn shards_see_when_the_last_reader_is_gone() {
        let (outlet, source) = channel();
        assert!(outlet.send(event()));
        let (a, b) = (source.events(), source.events());
        drop(a);
        assert!(outlet.send(event()));
        let receiver = b.receiver().clone();
        drop(b);
        assert!(outlet.send(event()), "a bare receiver counts");
        drop(receiver);
        assert!(!outlet.send(event()));
        assert_eq!(source.events().count(), 0, "a stream after that has ended");
    }

    #[test]
    fn the_stream_ends_with_the_shards() {
        let (outlet, source) = channel();
        assert!(outlet.send(event()));
        drop(outlet);
        assert_eq!(source.events().count(), 1);
    }
}
