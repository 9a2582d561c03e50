//! Where the shards of a set put their events.

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::Inlet;
use super::merge::{Digest, Lane, Merge};
use crate::event::Event;
use crate::protocol::EventName;

/// The way of a set of shards into the stream of events. A set that replaces another, and one that
/// is replaced, share a [`Merge`] with the other; for all others an event costs one look at a flag.
#[derive(Debug)]
pub(crate) struct Outlet {
    inlet: Inlet,
    is_merging: AtomicBool,
    merging: Mutex<Neighbours>,
}

/// What is known of an event besides itself.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Origin {
    /// It is the arrival of a guild that READY named, which a set that replaces another does not
    /// tell.
    pub(crate) is_arrival: bool,
    /// What was sent to any session before this instant has been read here, or never will be.
    pub(crate) read_up_to: Option<Instant>,
}

/// The sets that a set is merged with: the one that it replaces, and the one that replaces it.
#[derive(Clone, Debug, Default)]
struct Neighbours {
    before: Option<Merging>,
    after: Option<Merging>,
}

#[derive(Clone, Debug)]
struct Merging {
    merge: Arc<Mutex<Merge<Event>>>,
    hasher: RandomState,
}

impl Outlet {
    pub(crate) fn new(inlet: Inlet) -> Arc<Self> {
        Arc::new(Self {
            inlet,
            is_merging: AtomicBool::new(false),
            merging: Mutex::default(),
        })
    }

    /// An outlet for the set that will replace this one. From now on this one's events are noted,
    /// and the new one's held.
    pub(crate) fn successor(&self, overlap: Duration) -> Arc<Self> {
        let merging = Merging {
            merge: Arc::new(Mutex::new(Merge::new(overlap))),
            hasher: RandomState::new(),
        };
        self.change(|neighbours| neighbours.after = Some(merging.clone()));
        let successor = Self::new(self.inlet.clone());
        successor.change(|neighbours| neighbours.before = Some(merging));
        successor
    }

    /// No other set replaces this one after all.
    pub(crate) fn stay(&self) {
        self.change(|neighbours| neighbours.after = None);
    }

    /// An event of Discord, or of the shard.
    pub(crate) fn send(&self, event: Event, origin: Origin) {
        self.put(event, origin);
        self.ring();
    }

    /// Wakes whoever waits for what was [put](Self::put).
    pub(crate) fn ring(&self) {
        self.inlet.ring();
    }

    /// As [`send`](Self::send), but whoever sleeps is not woken: there is more to come.
    pub(crate) fn put(&self, event: Event, origin: Origin) {
        if !self.is_merging.load(Ordering::Acquire) {
            return self.inlet.put(event);
        }
        let Neighbours { before, after } = self.merging.lock().clone();
        let event = match before {
            None => Some(event),
            Some(merging) => {
                let (event, is_over) = merging.new_event(event, origin);
                if is_over {
                    self.change(|neighbours| neighbours.before = None);
                }
                event
            }
        };
        let Some(event) = event else { return };
        if let Some(merging) = after {
            merging.note(&event);
        }
        self.inlet.put(event);
    }

    /// Something that is no shard's to tell: it is delivered at once, whoever takes over from whom.
    pub(crate) fn tell(&self, event: Event) {
        self.inlet.put(event);
        self.ring();
    }

    /// The set that this one replaces has ended: `first` is delivered, then what was held, then
    /// everything as it comes.
    pub(crate) fn take_over(&self, first: Event) {
        let before = self.merging.lock().before.clone();
        let Some(merging) = before else {
            return self.tell(first);
        };
        // The channel is unbounded: sending does not block, and a shard's next event cannot
        // overtake what was held.
        let mut merge = merging.merge.lock();
        self.inlet.put(first);
        merge
            .hand_over(Instant::now())
            .for_each(|event| self.inlet.put(event));
        self.ring();
    }

    fn change(&self, change: impl FnOnce(&mut Neighbours)) {
        let mut neighbours = self.merging.lock();
        change(&mut neighbours);
        self.is_merging.store(
            neighbours.before.is_some() || neighbours.after.is_some(),
            Ordering::Release,
        );
    }
}

impl Merging {
    fn note(&self, event: &Event) {
        if let Some((lane, digest)) = self.place(event) {
            let twin = self.merge.lock().old(Instant::now(), lane, digest);
            drop(twin);
        }
    }

    /// Returns the event if it is to be delivered now, and whether nothing is left to be merged.
    fn new_event(&self, event: Event, origin: Origin) -> (Option<Event>, bool) {
        let (place, now) = (self.place(&event), Instant::now());
        let mut merge = self.merge.lock();
        let event = match place {
            Some((lane, digest)) if merge.is_live() || !origin.is_arrival => {
                merge.new_event(now, origin.read_up_to, lane, digest, event)
            }
            // What happens to a shard, and how its session begins, nobody hears before it takes
            // over.
            _ => merge.is_live().then_some(event),
        };
        (event, merge.is_over(now))
    }

    /// The guild and the digest of an event; `None` for what belongs to one session alone.
    fn place(&self, event: &Event) -> Option<(Lane, Digest)> {
        let is_own = |name: &EventName| matches!(name, EventName::Ready | EventName::Resumed);
        let dispatch = event
            .dispatch()
            .filter(|dispatch| !is_own(dispatch.name()))?;
        // What names its guild in an unknown way shares the lane of what has none.
        let lane = self.hasher.hash_one(dispatch.guild_id());
        Some((
            lane,
            self.hasher.hash_one((dispatch.name(), dispatch.data())),
        ))
    }
}
