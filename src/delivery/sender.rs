//! The sending side of the stream of events.

use std::sync::Arc;

use crossbeam_channel::{SendError, Sender};
use parking_lot::RwLock;

use super::Events;
use super::lanes::{Lane, Lanes};
use super::notify::Notify;
use crate::event::Event;
use crate::shard_id::ShardId;

/// Puts events into the stream, or into the lanes of a handler. Shards get clones.
#[derive(Clone, Debug)]
pub(crate) struct EventSender(Arc<Entry>);

/// The entry to the stream, and to the lanes of a handler.
///
/// Events are put in under a shared lock, and move from the stream to the lanes or back under an
/// exclusive one, so that no new event overtakes those that move. Sending never blocks on a full
/// channel, because the channel is unbounded.
#[derive(Debug)]
pub(super) struct Entry {
    way: RwLock<Way>,
    notify: Arc<Notify>,
}

/// Where events currently go.
#[derive(Debug)]
struct Way {
    /// Leads into the stream. `None` once the stream has ended: then nothing is put into lanes
    /// either.
    sender: Option<Sender<Event>>,
    /// While a handler runs, events go to it and not into the stream.
    handler: Option<Assigned>,
}

/// The lanes of a handler, and the lane of each shard.
#[derive(Debug)]
struct Assigned {
    lanes: Arc<Lanes>,
    /// How many of the lanes are used.
    count: usize,
    /// The lane of each shard, in the order of the shards.
    lane_of: Vec<(ShardId, usize)>,
}

impl EventSender {
    pub(super) fn new(entry: &Arc<Entry>) -> Self {
        Self(Arc::clone(entry))
    }

    /// Puts an event in. Sleeping consumers wake up when it is [announced](Self::announce).
    pub(super) fn put(&self, event: Event) {
        let Some(event) = self.0.way.read().put(event) else {
            return;
        };
        // It is the first event of its shard since the handler started, or the stream has ended.
        let refused = {
            let mut way = self.0.way.write();
            way.assign(event.shard());
            way.put(event)
        };
        if let Some(event) = refused {
            event.abandon();
        }
    }

    /// Wakes a consumer that waits for the events of a shard.
    pub(super) fn announce(&self, shard: ShardId) {
        let lanes = {
            let way = self.0.way.read();
            let handler = way.handler.as_ref();
            handler.map(|handler| (Arc::clone(&handler.lanes), handler.lane_of(shard)))
        };
        match lanes {
            None => self.0.notify.wake_one(),
            Some((lanes, Some(lane))) => lanes.all()[lane].announce(),
            // A shard without a lane has put in no event yet.
            Some((_, None)) => {}
        }
    }

    /// Wakes the consumers of all shards.
    pub(super) fn announce_all(&self) {
        let lanes = self.0.way.read().lanes();
        match lanes {
            None => self.0.notify.wake_one(),
            Some(lanes) => lanes.all().iter().for_each(Lane::announce),
        }
    }
}

impl Entry {
    pub(super) fn new(sender: Sender<Event>, notify: Arc<Notify>) -> Arc<Self> {
        let way = RwLock::new(Way {
            sender: Some(sender),
            handler: None,
        });
        Arc::new(Self { way, notify })
    }

    /// Ends the stream. Events that are already in it can still be taken.
    pub(super) fn end(&self) {
        let (sender, lanes) = {
            let mut way = self.way.write();
            (way.sender.take(), way.lanes())
        };
        drop(sender);
        if let Some(lanes) = lanes {
            lanes.end();
        }
        self.notify.wake_one();
    }

    /// Routes events to a handler, into the first `count` of its lanes: first those that are in the
    /// stream, then those that are put in later.
    pub(super) fn divert(&self, events: &Events, lanes: &Arc<Lanes>, count: usize) {
        let mut handler = Assigned {
            lanes: Arc::clone(lanes),
            count,
            lane_of: Vec::new(),
        };

        // The exclusive lock keeps new events from overtaking those that are moved.
        let mut way = self.way.write();
        while let Ok(event) = events.try_recv() {
            handler.assign(event.shard());
            let _ = handler.put(event);
        }

        way.handler = Some(handler);
        let has_ended = way.sender.is_none();
        drop(way);
        if has_ended {
            lanes.end();
        }
    }

    /// Routes events into the stream again: first those that were `taken` out of the lanes, then
    /// those left in the lanes, then those that are put in later.
    pub(super) fn divert_back(&self, events: &Events, mut taken: Vec<Event>) {
        let mut way = self.way.write();
        if let Some(handler) = way.handler.take() {
            taken.extend(handler.lanes.all().iter().flat_map(Lane::take));
        }
        events.put_back.put_back(taken);
        drop(way);
        self.notify.wake_one();
    }

    /// How many of the events in the stream and in the lanes `is_counted` selects.
    pub(super) fn count_of(&self, events: &Events, is_counted: impl Fn(&Event) -> bool) -> usize {
        // The exclusive lock keeps events from moving between the stream and the lanes.
        let way = self.way.write();
        // The events in a channel cannot be inspected, so they are moved out of it.
        events.put_back.append(events.receiver.try_iter());
        let in_lanes: usize = way.sum(|lane| lane.count_of(&is_counted));
        in_lanes + events.put_back.count_of(is_counted)
    }

    /// How many events wait in lanes.
    pub(super) fn len(&self) -> usize {
        self.way.read().sum(Lane::len)
    }
}

impl Way {
    /// Returns the event if its shard has no lane yet, or if the stream has ended.
    fn put(&self, event: Event) -> Option<Event> {
        match (&self.sender, &self.handler) {
            (None, _) => Some(event),
            (Some(_), Some(handler)) => handler.put(event),
            (Some(sender), None) => sender.send(event).err().map(SendError::into_inner),
        }
    }

    /// The lanes of the handler, if one runs.
    fn lanes(&self) -> Option<Arc<Lanes>> {
        let handler = self.handler.as_ref();
        handler.map(|handler| Arc::clone(&handler.lanes))
    }

    /// The sum of `number` over the lanes of the handler; 0 if none runs.
    fn sum(&self, number: impl Fn(&Lane<Event>) -> usize) -> usize {
        let lanes = self.handler.iter().flat_map(|handler| handler.lanes.all());
        lanes.map(number).sum()
    }

    fn assign(&mut self, shard: ShardId) {
        if let Some(handler) = &mut self.handler {
            handler.assign(shard);
        }
    }
}

impl Assigned {
    fn lane_of(&self, shard: ShardId) -> Option<usize> {
        self.place(shard).ok().map(|at| self.lane_of[at].1)
    }

    /// The index of the shard in `lane_of`, or the one at which to insert it.
    fn place(&self, shard: ShardId) -> Result<usize, usize> {
        self.lane_of
            .binary_search_by_key(&shard, |(shard, _)| *shard)
    }

    /// Gives a shard a lane, in turn rather than by its number: the numbers of a process's shards
    /// may have a common factor. A shard that was split from another one gets that shard's lane
    /// while the lane is busy, so that its events stay behind those that the other one delivered.
    fn assign(&mut self, shard: ShardId) {
        if let Err(at) = self.place(shard) {
            let busy = self.lane_before(shard);
            let busy = busy.filter(|lane| !self.lanes.all()[*lane].is_idle());
            let lane = busy.unwrap_or(self.lane_of.len() % self.count);
            self.lane_of.insert(at, (shard, lane));
        }
    }

    /// The lane of the shard that had all the guilds of this one before a split.
    fn lane_before(&self, shard: ShardId) -> Option<usize> {
        let had_all_guilds = |before: ShardId| {
            before.total() < shard.total()
                && shard.total().is_multiple_of(before.total())
                && shard.number() % before.total() == before.number()
        };
        let lanes = self.lane_of.iter();
        let before = lanes.filter(|(before, _)| had_all_guilds(*before));
        let last = before.max_by_key(|(before, _)| before.total());
        last.map(|(_, lane)| *lane)
    }

    /// Returns the event if its shard has no lane yet.
    fn put(&self, event: Event) -> Option<Event> {
        let Some(lane) = self.lane_of(event.shard()) else {
            return Some(event);
        };
        self.lanes.all()[lane].put(event);
        None
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroUsize;

    use super::*;
    use crate::delivery;
    use crate::event::EventKind;

    #[test]
    fn shards_take_turns_and_a_split_one_is_not_overtaken() {
        let (sender, events) = delivery::channel();
        let put = |number, total| {
            let shard = ShardId::new(number, total).unwrap();
            sender.put(Event::new(shard, EventKind::Resumed));
        };
        put(0, 3);
        put(1, 3);
        let lanes = Arc::new(Lanes::new(NonZeroUsize::new(2).unwrap(), Arc::default()));
        events.divert(&lanes, 2);
        put(2, 3);
        assert_eq!(lanes.lengths(), [2, 1]);
        // Shard 1 is now split in two. Their events stay behind those that it has delivered.
        put(1, 6);
        put(4, 6);
        assert_eq!((lanes.lengths(), events.len()), (vec![2, 3], 5));
    }
}
