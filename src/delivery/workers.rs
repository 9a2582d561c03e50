//! Handlers on several threads, each shard's events in order.

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::{io, thread};

use super::Events;
use crate::event::Event;

/// Hands every event to `handler`, until the stream ends. Each shard belongs to one of `workers` threads.
///
/// A handler that panics loses its event alone: the panic is logged and counted in `panics`, the event counts as
/// handled. The caller's thread sorts events to the workers; they wait in channels that the shards' credit bounds.
pub(crate) fn run(
    events: Events,
    workers: NonZeroUsize,
    panics: &AtomicU64,
    handler: impl Fn(Event) + Sync,
) -> io::Result<()> {
    let handle = |event: Event| {
        let (shard, name) = (event.shard(), event.name().to_owned());
        if catch_unwind(AssertUnwindSafe(|| handler(event))).is_err() {
            panics.fetch_add(1, Ordering::Relaxed);
            log::error!("shard {shard}: the handler panicked at {name}");
        }
    };
    if workers.get() == 1 {
        events.for_each(handle);
        return Ok(());
    }
    thread::scope(|scope| {
        let mut channels = Vec::new();
        for number in 0..workers.get() {
            let (sender, receiver) = crossbeam_channel::unbounded::<Event>();
            let handle = &handle;
            let worker = thread::Builder::new().name(format!("handler-{number}"));
            worker.spawn_scoped(scope, move || receiver.into_iter().for_each(handle))?;
            channels.push(sender);
        }
        // By turns: the numbers of a process's shards may all be multiples of something.
        let mut worker_of = HashMap::new();
        for event in events {
            let next = worker_of.len() % channels.len();
            let worker = *worker_of.entry(event.shard()).or_insert(next);
            // A worker ends only when its sender is dropped.
            let _ = channels[worker].send(event);
        }
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use parking_lot::Mutex;

    use super::*;
    use crate::delivery;
    use crate::event::EventKind;
    use crate::shard_id::ShardId;

    #[test]
    fn shards_stay_in_order_and_panics_stay_alone() {
        let (sender, events) = delivery::channel();
        for number_of_event in 0..300 {
            for number in 0..8 {
                let shard = ShardId::new(number, 8).unwrap();
                let kind = EventKind::Stalled { events: number_of_event, bytes: 0 };
                sender.send(Event::of_shard(shard, kind)).unwrap();
            }
        }
        drop(sender);
        let seen: Mutex<HashMap<u32, Vec<usize>>> = Mutex::default();
        let panics = AtomicU64::new(0);
        run(events, NonZeroUsize::new(3).unwrap(), &panics, |event| {
            let EventKind::Stalled { events, .. } = event.kind() else { return };
            seen.lock().entry(event.shard().number()).or_default().push(*events);
            assert!(events % 100 != 7, "an event that the handler cannot stand");
        })
        .unwrap();
        assert_eq!(panics.load(Ordering::Relaxed), 3 * 8);
        for events in seen.into_inner().into_values() {
            assert!(events.into_iter().eq(0..300));
        }
    }
}
