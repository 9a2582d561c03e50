//! The fan-in: every shard's events in one place.

mod merge;
mod outlet;
mod workers;

use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, TryRecvError};

pub(crate) use outlet::{Origin, Outlet};
pub(crate) use workers::run;

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
}

/// The fan-in channel: shards get clones of the sender.
pub(crate) fn channel() -> (Sender<Event>, Events) {
    let (sender, receiver) = crossbeam_channel::unbounded();
    (sender, Events { receiver })
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

    #[test]
    fn clones_share_the_stream_and_it_ends_with_the_shards() {
        let (sender, events) = channel();
        for _ in 0..3 {
            sender.send(Event::of_shard(ShardId::ONE, EventKind::Resumed)).unwrap();
        }
        assert!(events.clone().next().is_some());
        assert!(events.try_next().is_ok());
        drop(sender);
        assert_eq!(events.count(), 1);
    }
}
