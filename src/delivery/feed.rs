//! The path of a shard set's events into the stream.

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

/// Puts the events of a set of shards into the stream. A set that replaces another set shares a
/// [`Merge`] with it. For all other sets, an event only costs a check of a flag.
#[derive(Debug)]
pub(crate) struct Feed {
    sender: EventSender,
    is_merging: AtomicBool,
    merging: Mutex<Neighbours>,
}

/// The merges of a set: with the set that it replaces, and with the set that replaces it.
#[derive(Clone, Debug, Default)]
struct Neighbours {
    before: Option<Merging>,
    after: Option<Merging>,
}

/// What happens to an event of a set that replaces another one, until it has taken over.
enum Place {
    /// Every session of the guild receives it: it is compared with the events of the other set, by
    /// lane and digest.
    Shared(Lane, Digest),
    /// Only this session has it, because it answers a command or reports the session's loss: it is
    /// held.
    Held,
    /// It reports how a session or a connection begins or ends, or another shard of its set has it
    /// too: it is not delivered.
    Dropped,
}

/// Identifies the copy that was delivered; `None` if that holds no credit.
type Witness = Option<Arc<Twin>>;

/// The merge of two sets, of which one replaces the other.
#[derive(Clone, Debug)]
struct Merging {
    merge: Arc<Pair>,
    /// The first shard of each set.
    firsts: [ShardId; 2],
    hasher: RandomState,
}

/// The events of two sets. Events that are still held when both sets are gone were never delivered,
/// so they do not count as handled.
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

    /// Creates a feed for the shards `new`, which will replace this feed's shards `old`. From now
    /// on, the events of this feed are recorded, and those of the new one are held.
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

    /// Cancels the replacement of this set by another one.
    pub(crate) fn stay(&self) {
        self.change(|neighbours| neighbours.after = None);
    }

    /// Whether the set's events are compared with those of another set.
    pub(crate) fn is_merging(&self) -> bool {
        self.is_merging.load(Ordering::Acquire)
    }

    /// Records that a shard of this set is about to start a session, or to resume one.
    pub(crate) fn begin(&self, shard: ShardId, is_new_session: bool) {
        self.note_progress(|merge| merge.begin(shard, is_new_session));
    }

    /// Records that the session of a shard of this set is live.
    pub(crate) fn ready(&self, now: Instant, shard: ShardId) {
        self.note_progress(|merge| merge.ready(now, shard));
    }

    /// Records that a shard of this set has read everything that was sent to any session before
    /// `up_to`.
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

    /// Whether an event might be delivered twice if this set took over now.
    pub(crate) fn is_in_doubt(&self) -> bool {
        let before = self.merging.lock().before.clone();
        before.is_some_and(|merging| merging.merge.lock().is_in_doubt())
    }

    /// Records that a shard of this set has stopped.
    pub(crate) fn end(&self, shard: ShardId) {
        self.note_progress(|merge| merge.end(shard));
    }

    /// Wakes a consumer of the events that a shard has [put](Self::put) in.
    pub(crate) fn announce(&self, shard: ShardId) {
        self.sender.announce(shard);
    }

    /// Puts in an event, from Discord or about the shard. A sleeping consumer wakes up when it is
    /// [announced](Self::announce).
    pub(crate) fn put(&self, now: Instant, event: Event) {
        if self.is_merging() {
            self.merge(now, event, false);
        } else {
            self.sender.put(event);
        }
    }

    /// As [`put`](Self::put), for the arrival of a guild that READY listed. If this set replaces
    /// another one and has not taken over, the event is not delivered: the other set has the guild
    /// already.
    pub(crate) fn put_arrival(&self, now: Instant, event: Event) {
        if self.is_merging() {
            self.merge(now, event, true);
        } else {
            self.sender.put(event);
        }
    }

    /// Delivers an event that does not come from a shard's thread. It is delivered at once, whether
    /// or not a set is replacing another one.
    pub(crate) fn deliver(&self, event: Event) {
        let shard = event.shard();
        self.sender.put(event);
        self.announce(shard);
    }

    /// Takes over from the set that this one replaces, which has ended. Delivers `first`, then the
    /// held events; later events are delivered as they arrive.
    pub(crate) fn take_over(&self, now: Instant, first: Event) {
        self.sender.put(first);
        let before = self.merging.lock().before.clone();
        if let Some(merging) = before {
            // While this loop delivers held events, more may be held. Later ones must not overtake
            // them.
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

    /// Compares an event with those of the neighbouring sets, and delivers it unless it is held or
    /// dropped.
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

    /// Updates the merge with the set that this one replaces. Removes the merge once it is over.
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
    /// Records an event of the old set that is about to be delivered. If the new set has a
    /// duplicate, the event takes over the duplicate's lease, now or later.
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

    /// Takes an event of the new set. Returns it if it must be delivered now.
    fn new_event(&self, now: Instant, event: Event, is_arrival: bool) -> Option<Event> {
        let place = self.place(&event);
        let verdict = {
            let mut merge = self.merge.lock();
            match place {
                Place::Shared(lane, digest) if merge.is_live() || !is_arrival => {
                    merge.new_event(now, lane, digest, event)
                }
                _ if merge.is_live() => Verdict::Deliver(event),
                // The old set does not have it.
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

    /// What happens to an event, by its kind and name.
    fn place(&self, event: &Event) -> Place {
        let Some(dispatch) = event.dispatch() else {
            return match event.kind() {
                // What the session lost stays lost after the take-over: the user must learn of it.
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
            // Discord sends it to every session. Only the events of the two first shards are
            // compared.
            EventName::UserUpdate if !self.firsts.contains(&event.shard()) => Place::Dropped,
            // An event whose guild is not found shares the lane of events without a guild.
            name => {
                let digest = self.hasher.hash_one((name, dispatch.data()));
                Place::Shared(dispatch.guild_id(), digest)
            }
        }
    }
}

/// Makes the duplicate count as handled once the delivered copy has been handled.
fn settle_with(delivered: Witness, duplicate: Event) {
    if let (Some(delivered), Some(lease)) = (delivered, duplicate.into_lease()) {
        delivered.carry(lease);
    }
}

#[cfg(test)]
mod tests;
