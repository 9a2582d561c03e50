//! The fan-in: every shard's events in one place.

mod leftovers;
mod merge;
mod outlet;
mod workers;

use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, TryRecvError};

use self::leftovers::Leftovers;
pub(crate) use self::outlet::{Origin, Outlet};
pub(crate) use self::workers::{Panicked, Workers};
use crate::event::Event;

/// Every event of every shard, in the order of each shard. An iterator that blocks; clones share the stream, so that
/// each event goes to one of them.
///
/// It ends when the manager is closed or suspended, or when the last shard has stopped because of something that only its
/// owner can mend. The channel behind it is unbounded; what bounds it is each shard's credit: a
/// shard whose events nobody takes stops reading, and says so in the log. The manager keeps the stream: dropping an
/// `Events` loses nothing, and the next one goes on where it stopped.
#[derive(Clone, Debug)]
pub struct Events {
    receiver: Receiver<Event>,
    /// What a handler that was stopped had not come to; older than what is in the channel.
    leftovers: Arc<Leftovers>,
}

/// The fan-in channel: shards get clones of the sender.
pub(crate) fn channel() -> (Sender<Event>, Events) {
    let (sender, receiver) = crossbeam_channel::unbounded();
    (sender, Events { receiver, leftovers: Arc::default() })
}

impl Events {
    /// The channel itself, for `crossbeam_channel::select!` beside the program's own. Whoever receives from it owes the same as
    /// with the iterator: to drop or release each event.
    ///
    /// What [`run`](crate::ShardManager::run) had taken from it when it was [stopped](crate::ShardManager::stop) is not in there
    /// any more: take that with [`try_next`](Self::try_next) first.
    pub fn receiver(&self) -> &Receiver<Event> {
        &self.receiver
    }

    /// The next event, if one is there. Never blocks.
    pub fn try_next(&self) -> Result<Event, TryRecvError> {
        self.leftovers.pop().map_or_else(|| self.receiver.try_recv(), Ok)
    }

    /// The next event, if it comes in time.
    pub fn next_timeout(&self, timeout: Duration) -> Result<Event, RecvTimeoutError> {
        self.leftovers.pop().map_or_else(|| self.receiver.recv_timeout(timeout), Ok)
    }

    /// How many are there that nobody has taken.
    pub(crate) fn len(&self) -> usize {
        self.leftovers.len() + self.receiver.len()
    }
}

impl Iterator for Events {
    type Item = Event;

    fn next(&mut self) -> Option<Event> {
        // What is put back while this waits comes before the end, too.
        self.leftovers.pop().or_else(|| self.receiver.recv().ok()).or_else(|| self.leftovers.pop())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::EventKind;
    use crate::shard_id::ShardId;

    #[test]
    fn clones_share_the_stream_and_it_ends_with_the_shards() {
        let (sender, events) = channel();
        for _ in 0..3 {
            sender.send(Event::new(ShardId::ONE, EventKind::Resumed)).unwrap();
        }
        assert!(events.clone().next().is_some());
        assert!(events.try_next().is_ok());
        drop(sender);
        assert_eq!(events.count(), 1);
    }
}
