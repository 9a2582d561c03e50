//! Handlers on several threads, each shard's events in order, or those of each key.

use std::any::Any;
use std::collections::HashMap;
use std::convert::Infallible;
use std::hash::{BuildHasher, Hash, RandomState};
use std::num::NonZeroUsize;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Arc, OnceLock};
use std::time::Instant;
use std::{io, thread};

use crossbeam_channel::{Receiver, Sender, TryRecvError, select};

use super::Events;
use crate::event::Event;
use crate::protocol::EventName;
use crate::shard_id::ShardId;

/// Threads that hand the events of a stream to a handler, until it ends or they are to stop.
///
/// A handler that panics loses its event alone: that is reported, and the event counts as handled.
/// The caller's thread sorts events to the workers; they wait in channels that the shards' credit
/// bounds.
pub(crate) struct Workers<'a> {
    pub(crate) events: Events,
    pub(crate) count: NonZeroUsize,
    /// They stop once its other end is dropped. What they have not come to is put back.
    pub(crate) stop: Receiver<Infallible>,
    /// Once it is set, they stop at that instant.
    pub(crate) deadline: Arc<OnceLock<Instant>>,
    pub(crate) report: &'a (dyn Fn(Panicked) + Sync),
}

/// A handler that panicked, and at what.
pub(crate) struct Panicked {
    pub(crate) at: Witness,
    pub(crate) message: String,
}

/// What is known of an event once its handler has it.
pub(crate) struct Witness {
    pub(crate) shard: ShardId,
    /// If it is one of Discord's: its name and sequence.
    pub(crate) dispatch: Option<(EventName, u64)>,
    /// Else its kind.
    pub(crate) kind: &'static str,
}

impl Witness {
    fn of(event: &Event) -> Self {
        let dispatch = event
            .dispatch()
            .map(|dispatch| (dispatch.name().clone(), dispatch.sequence()));
        Self {
            shard: event.shard(),
            dispatch,
            kind: event.kind().word(),
        }
    }

    /// The event's name.
    pub(crate) fn name(&self) -> &str {
        self.dispatch
            .as_ref()
            .map_or(self.kind, |(name, _)| name.as_str())
    }
}

impl Workers<'_> {
    /// Each shard belongs to one worker.
    pub(crate) fn run(self, handler: impl Fn(Event) + Sync) -> io::Result<()> {
        let count = self.count.get();
        // By turns: the numbers of a process's shards may all be multiples of something.
        let mut worker_of = HashMap::new();
        let place = |event: &Event| {
            let next = worker_of.len() % count;
            *worker_of.entry(event.shard()).or_insert(next)
        };
        self.run_placed(place, handler)
    }

    /// Each key belongs to one worker.
    pub(crate) fn run_keyed<K: Hash>(
        self,
        key: impl Fn(&Event) -> K,
        handler: impl Fn(Event) + Sync,
    ) -> io::Result<()> {
        let (hasher, count) = (RandomState::new(), self.count.get() as u64);
        let place = |event: &Event| {
            usize::try_from(hasher.hash_one(key(event)) % count).unwrap_or_default()
        };
        self.run_placed(place, handler)
    }

    fn run_placed(
        self,
        mut place: impl FnMut(&Event) -> usize,
        handler: impl Fn(Event) + Sync,
    ) -> io::Result<()> {
        if self.count.get() == 1 {
            while let Some(event) = self.next() {
                self.handle(event, &handler);
            }
            return Ok(());
        }
        let mut left = thread::scope(|scope| {
            let (mut channels, mut workers) = (Vec::new(), Vec::new());
            for number in 0..self.count.get() {
                let (sender, receiver) = crossbeam_channel::unbounded();
                let (this, handler) = (&self, &handler);
                let worker = thread::Builder::new().name(format!("handler-{number}"));
                workers.push(worker.spawn_scoped(scope, move || this.work(receiver, handler))?);
                channels.push(sender);
            }
            let left = self.sort(&channels, &mut place);
            drop(channels);
            // Their handlers' panics are caught; what is left, a logger's for example, is the
            // caller's.
            let join = |worker: thread::ScopedJoinHandle<'_, Vec<Numbered>>| {
                worker.join().unwrap_or_else(|panic| resume_unwind(panic))
            };
            Ok::<_, io::Error>(
                left.into_iter()
                    .chain(workers.into_iter().flat_map(join))
                    .collect::<Vec<_>>(),
            )
        })?;
        left.sort_unstable_by_key(|(number, _)| *number);
        self.events
            .put_back(left.into_iter().map(|(_, event)| event).collect());
        Ok(())
    }

    /// Hands each event to its worker. Returns one that it had taken when all were stopped.
    fn sort(
        &self,
        channels: &[Sender<Numbered>],
        place: &mut impl FnMut(&Event) -> usize,
    ) -> Option<Numbered> {
        let mut number = 0;
        while let Some(event) = self.next() {
            number += 1;
            match catch_unwind(AssertUnwindSafe(|| place(&event))) {
                // A worker ends before its channel only if it has panicked itself.
                Ok(worker) => {
                    if let Err(unsent) = channels[worker].send((number, event)) {
                        return Some(unsent.into_inner());
                    }
                }
                // Without a key it has no worker.
                Err(panic) => (self.report)(Panicked {
                    at: Witness::of(&event),
                    message: message(&*panic),
                }),
            }
        }
        None
    }

    /// Handles what comes. Returns what is left when it is stopped.
    fn work(&self, receiver: Receiver<Numbered>, handler: &impl Fn(Event)) -> Vec<Numbered> {
        for (number, event) in &receiver {
            if self.is_stopped() {
                return std::iter::once((number, event)).chain(receiver).collect();
            }
            self.handle(event, handler);
        }
        Vec::new()
    }

    fn handle(&self, event: Event, handler: &impl Fn(Event)) {
        let at = Witness::of(&event);
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| handler(event))) {
            (self.report)(Panicked {
                at,
                message: message(&*panic),
            });
        }
    }

    /// The next event; `None` if there is none any more, or all are to stop.
    fn next(&self) -> Option<Event> {
        if self.is_stopped() {
            return None;
        }
        match self.events.try_next() {
            Ok(event) => Some(event),
            Err(TryRecvError::Disconnected) => None,
            Err(TryRecvError::Empty) => select! {
                recv(self.events.receiver()) -> event => event.ok(),
                recv(self.stop) -> _ => None,
            },
        }
    }

    fn is_stopped(&self) -> bool {
        let is_late = |at: &Instant| Instant::now() >= *at;
        self.deadline.get().is_some_and(is_late)
            || self.stop.try_recv() == Err(TryRecvError::Disconnected)
    }
}

/// An event and its position in the stream.
type Numbered = (u64, Event);

/// What somebody panicked with.
fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "no text".into())
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use parking_lot::Mutex;

    use super::*;
    use crate::delivery::{self, Inlet};
    use crate::event::EventKind;

    fn shard(number: u32) -> ShardId {
        ShardId::new(number, 8).unwrap()
    }

    /// A stream of numbered events of eight shards, by turns.
    fn stream(count: usize) -> (Inlet, Events) {
        let (sender, events) = delivery::channel();
        for n in 0..count {
            let kind = EventKind::Stalled {
                events: n,
                bytes: 0,
            };
            sender.put(Event::new(shard(u32::try_from(n % 8).unwrap()), kind));
        }
        (sender, events)
    }

    fn number(event: &Event) -> usize {
        match event.kind() {
            EventKind::Stalled { events, .. } => *events,
            other => panic!("{other:?}"),
        }
    }

    fn workers<'a>(
        events: &Events,
        count: usize,
        report: &'a (dyn Fn(Panicked) + Sync),
    ) -> (Workers<'a>, Sender<Infallible>) {
        let (running, stop) = crossbeam_channel::bounded(0);
        let count = NonZeroUsize::new(count).unwrap();
        (
            Workers {
                events: events.clone(),
                count,
                stop,
                deadline: Arc::default(),
                report,
            },
            running,
        )
    }

    #[test]
    fn shards_stay_in_order_and_panics_stay_alone() {
        let (sender, events) = stream(2400);
        drop(sender);
        let seen: Mutex<HashMap<ShardId, Vec<usize>>> = Mutex::default();
        let panics: Mutex<Vec<String>> = Mutex::default();
        let report = |panicked: Panicked| {
            assert_eq!(
                (panicked.at.name(), panicked.at.shard),
                ("Stalled", shard(7))
            );
            panics.lock().push(panicked.message);
        };
        let (workers, _running) = workers(&events, 3, &report);
        workers
            .run(|event| {
                seen.lock()
                    .entry(event.shard())
                    .or_default()
                    .push(number(&event));
                assert!(
                    number(&event) % 800 != 7,
                    "an event that the handler cannot stand"
                );
            })
            .unwrap();
        assert_eq!(
            panics.into_inner(),
            ["an event that the handler cannot stand"; 3]
        );
        for (shard, numbers) in seen.into_inner() {
            assert!(
                numbers
                    .into_iter()
                    .eq((0..2400).filter(|n| n % 8 == shard.number() as usize))
            );
        }
    }

    #[test]
    fn keys_stay_in_order_and_one_that_panics_loses_its_event_alone() {
        let (sender, events) = stream(2400);
        drop(sender);
        let seen: Mutex<HashMap<usize, Vec<usize>>> = Mutex::default();
        let panics = AtomicUsize::new(0);
        let report = |_| {
            panics.fetch_add(1, Ordering::Relaxed);
        };
        let (workers, _running) = workers(&events, 4, &report);
        let key = |event: &Event| {
            assert!(number(event) != 1000, "an event without a key");
            number(event) % 5
        };
        workers
            .run_keyed(key, |event| {
                seen.lock()
                    .entry(number(&event) % 5)
                    .or_default()
                    .push(number(&event));
            })
            .unwrap();
        assert_eq!(panics.into_inner(), 1);
        for (key, numbers) in seen.into_inner() {
            assert!(
                numbers
                    .into_iter()
                    .eq((0..2400).filter(|n| n % 5 == key && *n != 1000))
            );
        }
    }

    #[test]
    fn what_was_not_handled_when_they_stop_is_put_back_in_order() {
        for count in [1, 4] {
            let (_sender, events) = stream(1000);
            let (workers, running) = workers(&events, count, &|_| {});
            let (running, handled) = (Mutex::new(Some(running)), Mutex::new(Vec::new()));
            workers
                .run(|event| {
                    let mut handled = handled.lock();
                    handled.push(number(&event));
                    if handled.len() == 100 {
                        running.lock().take();
                    }
                })
                .unwrap();
            let mut all = handled.into_inner();
            assert!(
                (100..=100 + count).contains(&all.len()),
                "{}: each finishes what it has",
                all.len()
            );
            let left: Vec<_> = std::iter::from_fn(|| events.try_next().ok())
                .map(|event| number(&event))
                .collect();
            assert!(left.is_sorted(), "in the order in which it came");
            all.extend(left);
            all.sort_unstable();
            assert!(all.into_iter().eq(0..1000));
        }
    }

    #[test]
    fn they_wait_and_are_woken_to_stop() {
        let (_sender, events) = stream(0);
        let (workers, running) = workers(&events, 2, &|_| {});
        thread::scope(|scope| {
            let run = scope.spawn(|| workers.run(|_| {}));
            drop(running);
            run.join().unwrap().unwrap();
        });
    }
}
