//! Wakes threads that wait for events, once for a batch of events.

use std::sync::atomic::{AtomicUsize, Ordering, fence};
use std::time::Instant;

use parking_lot::{Condvar, Mutex};

/// The condition variable on which threads sleep that wait for events.
///
/// The channel could wake them too, but it does so at each event, and it makes them spin before
/// they sleep. If events come one at a time, that spinning costs more than everything else about
/// an event.
#[derive(Debug, Default)]
pub(super) struct Notify {
    waiting: AtomicUsize,
    lock: Mutex<()>,
    notified: Condvar,
}

impl Notify {
    /// Wakes one waiting thread, if there is one. A woken thread that leaves events for others must
    /// wake the next thread.
    pub(super) fn wake_one(&self) {
        // Either this thread sees the waiting ones, or they see what was put into the channel
        // before this call.
        fence(Ordering::SeqCst);
        if self.waiting.load(Ordering::Relaxed) > 0 {
            // Waits for a thread that is between its look and its sleep, and would miss the
            // notification: it holds the lock until it sleeps.
            drop(self.lock.lock());
            self.notified.notify_one();
        }
    }

    /// How many threads sleep, or are about to.
    #[cfg(test)]
    pub(super) fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    /// Sleeps until `look` finds something, but not past `deadline`.
    pub(super) fn wait<T>(
        &self,
        deadline: Option<Instant>,
        mut look: impl FnMut() -> Option<T>,
    ) -> Option<T> {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        let mut guard = self.lock.lock();
        let found = loop {
            let found = look();
            let is_late = deadline.is_some_and(|deadline| Instant::now() >= deadline);
            match deadline {
                _ if found.is_some() || is_late => break found,
                None => self.notified.wait(&mut guard),
                Some(deadline) => drop(self.notified.wait_until(&mut guard, deadline)),
            }
        };
        drop(guard);
        self.waiting.fetch_sub(1, Ordering::Relaxed);
        found
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::thread;
    use std::time::Duration;

    use super::*;

    #[test]
    fn whoever_waits_wakes_up_and_nobody_waits_too_long() {
        let notify = Arc::new(Notify::default());
        let (sender, receiver) = crossbeam_channel::unbounded();
        let waiters: Vec<_> = (0..4)
            .map(|_| {
                let (notify, receiver) = (Arc::clone(&notify), receiver.clone());
                thread::spawn(move || {
                    let mut taken = 0;
                    while let Some(n) = notify.wait(None, || receiver.try_recv().ok()) {
                        notify.wake_one();
                        if n == 0 {
                            break;
                        }
                        taken += 1;
                    }
                    taken
                })
            })
            .collect();

        for n in (1..=10_000).chain([0; 4]) {
            sender.send(n).unwrap();
            if n % 7 == 0 {
                notify.wake_one();
            }
        }

        assert_eq!(
            waiters
                .into_iter()
                .map(|waiter| waiter.join().unwrap())
                .sum::<u32>(),
            10_000
        );
        let soon = Instant::now() + Duration::from_millis(10);
        assert_eq!(notify.wait(Some(soon), || None::<()>), None);
    }
}
