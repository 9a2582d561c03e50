//! Where the shards of a set put their events.

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use parking_lot::{Mutex, MutexGuard};

use super::merge::{Digest, Lane, Merge, Verdict};
use super::sender::EventSender;
use crate::event::{Event, EventKind, Twin};
use crate::protocol::EventName;
use crate::shard_id::ShardId;

/// The way of a set of shards into the stream of events. A set that replaces another, and one that
/// is replaced, share a [`Merge`] with the other; for all others an event costs one look at a flag.
#[derive(Debug)]
pub(crate) struct Feed {
    sender: EventSender,
    is_merging: AtomicBool,
    merging: Mutex<Neighbours>,
}

/// The sets that a set is merged with: the one that it replaces, and the one that replaces it.
#[derive(Clone, Debug, Default)]
struct Neighbours {
    before: Option<Merging>,
    after: Option<Merging>,
}

/// What becomes of an event of a set that replaces another, until it has taken over.
enum Place {
    /// Every session of the guild gets it: it is compared with those of the other set, by lane and
    /// digest.
    Shared(Lane, Digest),
    /// The session alone has it, because of a command or of what it has lost: it is held.
    Held,
    /// It says how a session or a connection begins or ends, or another shard of its set has it too:
    /// it is not delivered.
    Dropped,
}

/// Names the copy that was delivered; `None` if it holds no credit.
type Witness = Option<Arc<Twin>>;

/// A pair of sets of which one replaces the other.
#[derive(Clone, Debug)]
struct Merging {
    merge: Arc<Pair>,
    /// The first shard of each set.
    firsts: [ShardId; 2],
    hasher: RandomState,
}

/// The events of two sets. What is still held when both are gone was never delivered: it has not
/// been handled.
#[derive(Debug)]
struct Pair(Mutex<Merge<Event, Witness>>);

impl Pair {
    fn lock(&self) -> MutexGuard<'_, Merge<Event, Witness>> {
        self.0.lock()
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        let held = self.0.get_mut().take_held();
        held.into_iter().for_each(Event::abandon);
    }
}

impl Feed {
    pub(crate) fn new(sender: EventSender) -> Arc<Self> {
        Arc::new(Self {
            sender,
            is_merging: AtomicBool::new(false),
            merging: Mutex::default(),
        })
    }

    /// An feed for the shards `new`, which will replace the shards `old` of this one. From now on
    /// this one's events are noted, and the new one's held.
    pub(crate) fn successor(&self, old: &[ShardId], new: &[ShardId]) -> Arc<Self> {
        let firsts = [old, new].map(|set| set.iter().min().copied());
        let merging = Merging {
            merge: Arc::new(Pair(Mutex::new(Merge::new(new)))),
            firsts: firsts.map(|first| first.unwrap_or(ShardId::ONE)),
            hasher: RandomState::new(),
        };
        self.change(|neighbours| neighbours.after = Some(merging.clone()));
        let successor = Self::new(self.sender.clone());
        successor.change(|neighbours| neighbours.before = Some(merging));
        successor
    }

    /// No other set replaces this one after all.
    pub(crate) fn stay(&self) {
        self.change(|neighbours| neighbours.after = None);
    }

    /// Whether the set's events are compared with those of another set.
    pub(crate) fn is_merging(&self) -> bool {
        self.is_merging.load(Ordering::Acquire)
    }

    /// A shard of this set is about to start a session, or to resume one.
    pub(crate) fn begin(&self, shard: ShardId, is_new_session: bool) {
        self.note_progress(|merge| merge.begin(shard, is_new_session));
    }

    /// The session of a shard of this set is live.
    pub(crate) fn ready(&self, now: Instant, shard: ShardId) {
        self.note_progress(|merge| merge.ready(now, shard));
    }

    /// A shard of this set has read whatever was sent to any session before that instant.
    pub(crate) fn has_read(&self, shard: ShardId, up_to: Instant) {
        self.note_progress(|merge| merge.new_has_read(shard, up_to));
        if !self.is_merging() {
            return;
        }
        let after = self.merging.lock().after.clone();
        if let Some(merging) = after {
            let sure = merging.merge.lock().old_has_read(shard, up_to);
            for (duplicate, delivered) in sure {
                settle_with(delivered, duplicate);
            }
        }
    }

    /// Whether this set would repeat an event if it took over now, for all that is known.
    pub(crate) fn is_in_doubt(&self) -> bool {
        let before = self.merging.lock().before.clone();
        before.is_some_and(|merging| merging.merge.lock().is_in_doubt())
    }

    /// A shard of this set has stopped.
    pub(crate) fn end(&self, shard: ShardId) {
        self.note_progress(|merge| merge.end(shard));
    }

    /// Wakes a consumer of the events that a shard has [put](Self::put) in.
    pub(crate) fn announce(&self, shard: ShardId) {
        self.sender.announce(shard);
    }

    /// An event of Discord, or of the shard. A consumer that sleeps wakes up when it is
    /// [announced](Self::announce).
    pub(crate) fn put(&self, now: Instant, event: Event) {
        if self.is_merging() {
            self.merge(now, event, false);
        } else {
            self.sender.put(event);
        }
    }

    /// As [`put`](Self::put), for the arrival of a guild that READY named: of a set that replaces
    /// another it is not delivered, since the other one has the guild already.
    pub(crate) fn put_arrival(&self, now: Instant, event: Event) {
        if self.is_merging() {
            self.merge(now, event, true);
        } else {
            self.sender.put(event);
        }
    }

    /// Something that is no shard's to tell: it is delivered at once, whoever takes over from whom.
    pub(crate) fn deliver(&self, event: Event) {
        let shard = event.shard();
        self.sender.put(event);
        self.announce(shard);
    }

    /// The set that this one replaces has ended: `first` is delivered, then what was held, then
    /// everything as it comes.
    pub(crate) fn take_over(&self, now: Instant, first: Event) {
        self.sender.put(first);
        let before = self.merging.lock().before.clone();
        if let Some(merging) = before {
            // While this puts in what was held, more may be held, which must not be overtaken.
            loop {
                let held = merging.merge.lock().hand_over(now);
                if held.is_empty() {
                    break;
                }
                for event in held {
                    self.sender.put(event);
                }
            }
        }
        self.sender.announce_all();
    }

    /// Holds an event against those of the other sets.
    fn merge(&self, now: Instant, event: Event, is_arrival: bool) {
        let Neighbours { before, after } = self.merging.lock().clone();
        let event = match before {
            None => Some(event),
            Some(merging) => merging.new_event(now, event, is_arrival),
        };
        let Some(mut event) = event else { return };
        if let Some(merging) = after {
            merging.note(now, &mut event);
        }
        self.sender.put(event);
    }

    /// Tells the merge with the set that this one replaces, until that is over.
    fn note_progress(&self, note: impl FnOnce(&mut Merge<Event, Witness>)) {
        if !self.is_merging() {
            return;
        }
        let Some(merging) = self.merging.lock().before.clone() else {
            return;
        };
        let is_over = {
            let mut merge = merging.merge.lock();
            note(&mut merge);
            merge.is_over()
        };
        if is_over {
            self.change(|neighbours| neighbours.before = None);
        }
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
    /// An event of the old set, which is about to be delivered. If the new set has it too, it
    /// carries that one's lease, now or later.
    fn note(&self, now: Instant, event: &mut Event) {
        let Place::Shared(lane, digest) = self.place(event) else {
            return;
        };
        let twin = event.twin();
        let witness = twin.clone();
        let mut merge = self.merge.lock();
        let duplicate = merge.old(now, event.shard(), lane, digest, || witness);
        drop(merge);
        if let Some(duplicate) = duplicate {
            settle_with(twin, duplicate);
        }
    }

    /// An event of the new set. Returns it if it is to be delivered now.
    fn new_event(&self, now: Instant, event: Event, is_arrival: bool) -> Option<Event> {
        let place = self.place(&event);
        let verdict = {
            let mut merge = self.merge.lock();
            match place {
                Place::Shared(lane, digest) if merge.is_live() || !is_arrival => {
                    merge.new_event(now, lane, digest, event)
                }
                _ if merge.is_live() => Verdict::Deliver(event),
                // Nobody else has it.
                Place::Held => {
                    merge.hold_notice(event);
                    Verdict::Held
                }
                Place::Shared(..) | Place::Dropped => return None,
            }
        };

        match verdict {
            Verdict::Deliver(event) => Some(event),
            Verdict::Held => None,
            Verdict::Duplicate(duplicate, twin) => {
                settle_with(twin, duplicate);
                None
            }
        }
    }

    /// What becomes of an event, by its kind and name.
    fn place(&self, event: &Event) -> Place {
        let Some(dispatch) = event.dispatch() else {
            return match event.kind() {
                // What was lost stays lost.
                EventKind::SessionLost { .. } => Place::Held,
                _ => Place::Dropped,
            };
        };

        match dispatch.name() {
            EventName::Ready | EventName::Resumed => Place::Dropped,
            // Answers to commands.
            EventName::ChannelInfo
            | EventName::GuildMembersChunk
            | EventName::RateLimited
            | EventName::SoundboardSounds => Place::Held,
            // Discord sends it to every session: those of the two first shards are compared.
            EventName::UserUpdate if !self.firsts.contains(&event.shard()) => Place::Dropped,
            // What names its guild in an unknown way shares the lane of what has none.
            name => {
                let digest = self.hasher.hash_one((name, dispatch.data()));
                Place::Shared(dispatch.guild_id(), digest)
            }
        }
    }
}

/// The duplicate counts as handled once the delivered copy has been.
fn settle_with(delivered: Witness, duplicate: Event) {
    if let (Some(delivered), Some(lease)) = (delivered, duplicate.into_lease()) {
        delivered.carry(lease);
    }
}

#[cfg(test)]
mod tests;
