//! Handlers on several threads. The events of each shard, or of each key, stay in order.

use std::any::Any;
use std::hash::{BuildHasher, Hash, RandomState};
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::{io, thread};

use super::Events;
use super::lanes::{Lane, Lanes};
use crate::event::Event;
use crate::protocol::EventName;
use crate::rest::handle_events;
use crate::shard_id::ShardId;

/// Threads that pass the events of a stream to a handler, until the stream ends or they are
/// stopped.
///
/// A panic of the handler affects only its event: the panic is reported, and the event counts as
/// handled. While the workers run, events go into their lanes, and none is in the stream.
pub(crate) struct Workers<'a> {
    pub(crate) events: Events,
    /// One lane for each worker. Stopping the lanes stops the workers; events that they have not
    /// begun are put back into the stream.
    pub(crate) lanes: Arc<Lanes>,
    pub(crate) report: &'a (dyn Fn(Panicked) + Sync),
}

/// A panic of a handler, and the event that it was handling.
pub(crate) struct Panicked {
    pub(crate) at: Witness,
    pub(crate) message: String,
}

/// What is still known of an event after it has been moved into its handler.
pub(crate) struct Witness {
    pub(crate) shard: ShardId,
    /// The name and sequence, if it is one of Discord's events.
    pub(crate) dispatch: Option<(EventName, u64)>,
    /// The name of its kind.
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
    /// Runs `handler`. Each shard belongs to one worker. The calling thread is one of the workers.
    pub(crate) fn run(&self, handler: impl Fn(Event) + Sync) -> io::Result<()> {
        let lanes = self.lanes.all();
        let work = |number: usize| {
            while let Some(event) = self.next(&lanes[number]) {
                self.handle(event, &handler);
            }
        };
        self.events.divert(&self.lanes, lanes.len());
        let worked = on_threads(1..lanes.len(), || work(0), work, || self.lanes.stop());
        self.events.divert_back(Vec::new());
        worked.map(finish)
    }

    /// Runs `handler`. Each key belongs to one worker. The calling thread computes the keys: `key`
    /// is the user's code, which shards must not wait for.
    pub(crate) fn run_keyed<K: Hash>(
        &self,
        key: impl Fn(&Event) -> K,
        handler: impl Fn(Event) + Sync,
    ) -> io::Result<()> {
        let count = self.lanes.all().len();
        if count == 1 {
            return self.run(handler);
        }

        let hasher = RandomState::new();
        let place = |event: &Event| {
            let place = hasher.hash_one(key(event)) % count as u64;
            usize::try_from(place).unwrap_or_default()
        };
        let keyed: Vec<Lane<Numbered>> = (0..count).map(|_| Lane::default()).collect();
        let work = |number: usize| {
            while let Some((_, event)) = self.next(&keyed[number]) {
                self.handle(event, &handler);
            }
        };
        let end = || keyed.iter().for_each(Lane::end);
        let sort = || {
            self.sort(&keyed, &place);
            // The workers finish what is in their lanes, unless they were stopped.
            end();
        };
        let stop = || {
            self.lanes.stop();
            end();
        };
        self.events.divert(&self.lanes, 1);
        let worked = on_threads(0..count, sort, work, stop);

        let mut left: Vec<Numbered> = keyed.iter().flat_map(Lane::take).collect();
        left.sort_unstable_by_key(|(number, _)| *number);
        self.events
            .divert_back(left.into_iter().map(|(_, event)| event).collect());
        worked.map(finish)
    }

    /// Puts each event into the lane of its key.
    fn sort(&self, keyed: &[Lane<Numbered>], place: &impl Fn(&Event) -> usize) {
        let mut number = 0;
        while let Some(event) = self.next(&self.lanes.all()[0]) {
            number += 1;
            match catch_unwind(AssertUnwindSafe(|| place(&event))) {
                Ok(worker) => {
                    keyed[worker].put((number, event));
                    keyed[worker].announce();
                }
                // An event without a key belongs to no worker.
                Err(panic) => self.report(Witness::of(&event), &*panic),
            }
        }
    }

    /// The next event of a lane; `None` if the lane has ended or the workers are stopped.
    fn next<T>(&self, lane: &Lane<T>) -> Option<T> {
        lane.next(|| self.lanes.is_stopped())
    }

    fn handle(&self, event: Event, handler: &impl Fn(Event)) {
        event.take();
        let at = Witness::of(&event);
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| handle_events(|| handler(event)))) {
            self.report(at, &*panic);
        }
    }

    fn report(&self, at: Witness, panic: &(dyn Any + Send)) {
        let message = message(panic);
        (self.report)(Panicked { at, message });
    }
}

/// Runs `own` on this thread and `work` on others, one for each number, and waits for all of them.
/// If one of them panics or cannot be started, `stop` is called, which must make the others return.
/// (Panics of handlers are caught before. Those of a logger are not.)
fn on_threads(
    numbers: Range<usize>,
    own: impl Fn(),
    work: impl Fn(usize) + Sync,
    stop: impl Fn() + Sync,
) -> io::Result<thread::Result<()>> {
    let guarded = |work: &dyn Fn()| {
        let worked = catch_unwind(AssertUnwindSafe(work));
        if worked.is_err() {
            stop();
        }
        worked
    };
    thread::scope(|scope| {
        let mut others = Vec::new();
        for number in numbers {
            let (guarded, work) = (&guarded, &work);
            let thread = thread::Builder::new().name(format!("handler-{number}"));
            let thread = thread.spawn_scoped(scope, move || guarded(&|| work(number)));
            others.push(thread.inspect_err(|_| stop())?);
        }
        let own = guarded(&own);
        let others = others
            .into_iter()
            .map(|other| other.join().and_then(|worked| worked));
        Ok(others.fold(own, Result::and))
    })
}

/// An event and its position in the stream.
type Numbered = (u64, Event);

/// Resumes the panic of a thread, if one has panicked.
fn finish(worked: thread::Result<()>) {
    worked.unwrap_or_else(|panic| resume_unwind(panic));
}

/// The message of a panic.
fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "panic payload is not a string".into())
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::num::NonZeroUsize;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use parking_lot::Mutex;

    use super::*;
    use crate::delivery::{self, EventSender};
    use crate::event::EventKind;

    fn shard(number: u32) -> ShardId {
        ShardId::new(number, 8).unwrap()
    }

    /// A stream of numbered events, from eight shards in turn.
    fn stream(count: usize) -> (EventSender, Events) {
        let (sender, events) = delivery::channel();
        (0..count).for_each(|n| sender.put(numbered(n)));
        (sender, events)
    }

    fn numbered(n: usize) -> Event {
        let kind = EventKind::Stalled {
            events: n,
            bytes: 0,
        };
        Event::new(shard(u32::try_from(n % 8).unwrap()), kind)
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
    ) -> Workers<'a> {
        let count = NonZeroUsize::new(count).unwrap();
        Workers {
            events: events.clone(),
            lanes: Arc::new(Lanes::new(count, Arc::default())),
            report,
        }
    }

    #[test]
    fn shards_stay_in_order_and_panics_stay_alone() {
        let (_, events) = stream(2400);
        events.end();
        let seen: Mutex<HashMap<ShardId, Vec<usize>>> = Mutex::default();
        let panics: Mutex<Vec<String>> = Mutex::default();
        let report = |panicked: Panicked| {
            assert_eq!(
                (panicked.at.name(), panicked.at.shard),
                ("Stalled", shard(7))
            );
            panics.lock().push(panicked.message);
        };

        let workers = workers(&events, 3, &report);
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
        let (_, events) = stream(2400);
        events.end();
        let seen: Mutex<HashMap<usize, Vec<usize>>> = Mutex::default();
        let panics = AtomicUsize::new(0);
        let report = |_| {
            panics.fetch_add(1, Ordering::Relaxed);
        };
        let workers = workers(&events, 4, &report);
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
            let (sender, events) = stream(1000);
            let workers = workers(&events, count, &|_| {});
            let handled = Mutex::new(Vec::new());
            workers
                .run(|event| {
                    let mut handled = handled.lock();
                    handled.push(number(&event));
                    if handled.len() == 100 {
                        workers.lanes.stop();
                    }
                })
                .unwrap();
            // A later event stays behind those that were put back.
            sender.put(numbered(1000));
            let mut all = handled.into_inner();
            assert!(
                (100..=100 + count).contains(&all.len()),
                "{}: each finishes what it has",
                all.len()
            );
            let left: Vec<_> = std::iter::from_fn(|| events.try_recv().ok())
                .map(|event| number(&event))
                .collect();
            for shard in 0..8 {
                let of_shard = left.iter().filter(|number| *number % 8 == shard);
                assert!(of_shard.is_sorted(), "in the original order");
            }
            all.extend(left);
            all.sort_unstable();
            assert!(all.into_iter().eq(0..=1000));
        }
    }

    #[test]
    fn they_wait_and_are_woken_to_stop() {
        let (_inlet, events) = stream(0);
        let workers = workers(&events, 2, &|_| {});
        thread::scope(|scope| {
            let run = scope.spawn(|| workers.run(|_| {}));
            workers.lanes.stop();
            run.join().unwrap().unwrap();
        });
    }

    #[test]
    fn an_iterator_waits_while_a_handler_runs_and_goes_on_with_what_that_leaves() {
        let (sender, events) = stream(8);
        let workers = workers(&events, 2, &|_| {});
        let handled = AtomicUsize::new(0);
        thread::scope(|scope| {
            let mut waiting = events.clone();
            let run = scope.spawn(|| {
                let begun = |_| {
                    if handled.fetch_add(1, Ordering::SeqCst) == 99 {
                        workers.lanes.stop();
                    }
                };
                workers.run(begun)
            });
            // The handler may have started or not, so either may receive any of these events.
            let next = scope.spawn(move || waiting.next());
            for n in 8..400 {
                sender.put(numbered(n));
                sender.announce(shard(u32::try_from(n % 8).unwrap()));
            }
            run.join().unwrap().unwrap();
            assert!(next.join().unwrap().is_some());
        });
    }
}
