//! The fan-in: merges the events of all shards into one stream.

mod feed;
mod lanes;
mod merge;
mod notify;
mod put_back;
mod sender;
mod workers;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, TryRecvError};

pub(crate) use self::feed::Feed;
pub(crate) use self::lanes::Lanes;
use self::notify::Notify;
use self::put_back::PutBack;
use self::sender::{Entry, EventSender};
pub(crate) use self::workers::{Panicked, Workers};
use crate::event::Event;
use crate::shard_id::ShardId;

/// A blocking iterator over the events of all shards. Each shard's events stay in order.
///
/// Clones share the stream: each event goes to one of them. Several threads with a clone each are a
/// thread pool for handlers that block, for example on a REST response. An event goes to any free
/// thread, so the order is lost. ([`run`](crate::ShardManager::run) keeps the order, but handles
/// each shard on one thread.)
///
/// ```no_run
/// # fn pool(manager: &threadcord::ShardManager, handle: fn(threadcord::Event)) {
/// std::thread::scope(|scope| {
///     for _ in 0..16 {
///         scope.spawn(|| manager.events().for_each(handle));
///     }
/// });
/// # }
/// ```
///
/// While [`run`](crate::ShardManager::run) has a handler, events go to that handler, and threads
/// that wait here keep waiting. When the handler is [stopped](crate::Handle::stop), its remaining
/// events are delivered here first.
///
/// The stream ends when the manager is closed or suspended, or when the last shard has stopped
/// because of an error, such as an invalid token. The channel behind it is unbounded, but the
/// outstanding limits of the shards bound its length: a shard whose events are not taken stops
/// reading and logs this. The manager keeps the stream: dropping an `Events` loses no event, and
/// the next `Events` continues where the last one stopped.
#[derive(Clone, Debug)]
pub struct Events {
    receiver: Receiver<Event>,
    notify: Arc<Notify>,
    /// The events that a stopped handler had not begun; older than those in the channel.
    put_back: Arc<PutBack>,
    entry: Arc<Entry>,
}

/// Creates the fan-in channel. Shards get clones of its sender.
pub(crate) fn channel() -> (EventSender, Events) {
    let (sender, receiver) = crossbeam_channel::unbounded();
    let notify = Arc::new(Notify::default());
    let entry = Entry::new(sender, Arc::clone(&notify));
    let sender = EventSender::new(&entry);
    let events = Events {
        receiver,
        notify,
        put_back: Arc::default(),
        entry,
    };
    (sender, events)
}

impl Events {
    /// The channel itself, for a `crossbeam_channel::select!` together with the program's own
    /// channels. Each event must be dropped or released, as with the iterator.
    ///
    /// Events that [`run`](crate::ShardManager::run) had taken when it was
    /// [stopped](crate::Handle::stop) are no longer in the channel: take them with
    /// [`try_recv`](Self::try_recv) first.
    pub fn receiver(&self) -> &Receiver<Event> {
        &self.receiver
    }

    /// Takes the next event, if there is one. Never blocks.
    pub fn try_recv(&self) -> Result<Event, TryRecvError> {
        let next = self
            .put_back
            .pop()
            .map_or_else(|| self.receiver.try_recv(), Ok);
        next.inspect(Event::take)
    }

    /// Takes the next event, if it arrives in time.
    pub fn recv_timeout(&self, timeout: Duration) -> Result<Event, RecvTimeoutError> {
        // A timeout beyond the range of the clock means no timeout.
        let next = self.wait(Instant::now().checked_add(timeout));
        next.unwrap_or(Err(TryRecvError::Empty))
            .map_err(|error| match error {
                TryRecvError::Empty => RecvTimeoutError::Timeout,
                TryRecvError::Disconnected => RecvTimeoutError::Disconnected,
            })
    }

    /// Waits for the next event, or for the end of the stream. `None` if neither comes before the
    /// deadline.
    fn wait(&self, deadline: Option<Instant>) -> Option<Result<Event, TryRecvError>> {
        let look =
            || Some(self.try_recv()).filter(|next| !matches!(next, Err(TryRecvError::Empty)));
        let next = look().or_else(|| {
            let next = self.notify.wait(deadline, look);
            if next.as_ref().is_some_and(Result::is_err) || self.is_there_more() {
                // The next waiting thread has an event, or the end, to take as well.
                self.notify.wake_one();
            }
            next
        });
        // An event that was put back while the stream ended still comes before the end.
        match next {
            Some(Err(error)) => Some(self.put_back.pop().ok_or(error).inspect(Event::take)),
            next => next,
        }
    }

    /// Ends the stream. Events that are already in it can still be taken.
    pub(crate) fn end(&self) {
        self.entry.end();
    }

    /// Routes events to a handler, into the first `count` of its lanes.
    pub(crate) fn divert(&self, lanes: &Arc<Lanes>, count: usize) {
        self.entry.divert(self, lanes, count);
    }

    /// Routes events into the stream again. First come the events that the handler's threads had
    /// `taken` from its lanes but not begun, then those left in the lanes.
    pub(crate) fn divert_back(&self, taken: Vec<Event>) {
        self.entry.divert_back(self, taken);
    }

    /// Drops all events in the stream. Returns how many of them came from Discord.
    pub(crate) fn discard(&self) -> usize {
        let mut count = 0;
        while let Ok(event) = self.try_recv() {
            count += usize::from(event.dispatch().is_some());
        }
        count
    }

    /// How many events of these shards hold credit and have not been taken.
    pub(crate) fn queued(&self, shards: &BTreeSet<ShardId>) -> usize {
        self.entry.count_of(self, |event| {
            event.has_credit() && shards.contains(&event.shard())
        })
    }

    fn is_there_more(&self) -> bool {
        self.put_back.len() > 0 || !self.receiver.is_empty()
    }

    /// How many events have not been taken and not been begun by a handler.
    pub(crate) fn len(&self) -> usize {
        self.put_back.len() + self.receiver.len() + self.entry.len()
    }
}

impl Iterator for Events {
    type Item = Event;

    fn next(&mut self) -> Option<Event> {
        // Usually an event is available. This path moves it as rarely as possible, because an event
        // is large enough that each move costs noticeable time.
        self.try_recv().ok().or_else(|| self.wait(None)?.ok())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::EventKind;

    #[test]
    fn clones_share_the_stream_and_it_ends_with_the_shards() {
        let (sender, events) = channel();
        for _ in 0..3 {
            sender.put(Event::new(ShardId::ONE, EventKind::Resumed));
        }
        assert!(events.clone().next().is_some());
        assert!(events.try_recv().is_ok());
        events.end();
        assert_eq!(events.count(), 1);
    }

    #[test]
    fn what_is_put_back_wakes_those_who_wait() {
        let (_sender, events) = channel();
        let (woken, wakes) = crossbeam_channel::unbounded();
        for _ in 0..3 {
            let (mut events, woken) = (events.clone(), woken.clone());
            std::thread::spawn(move || woken.send(events.next().is_some()));
        }
        while events.notify.waiting() < 3 {
            std::thread::yield_now();
        }
        let event = || Event::new(ShardId::ONE, EventKind::Resumed);
        events.divert_back((0..3).map(|_| event()).collect());
        for _ in 0..3 {
            let is_there = wakes.recv_timeout(Duration::from_secs(60));
            assert_eq!(is_there, Ok(true));
        }
    }
}
