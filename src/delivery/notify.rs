//! Wakes threads that wait for events, once for many events.

use std::sync::atomic::{AtomicUsize, Ordering, fence};
use std::time::Instant;

use parking_lot::{Condvar, Mutex};

/// What threads that wait for events sleep on.
///
/// The channel would wake them as well, but at each event, and it has them spin before they sleep,
/// which costs more than all else that an event does if events come one at a time.
#[derive(Debug, Default)]
pub(super) struct Notify {
    waiting: AtomicUsize,
    lock: Mutex<()>,
    notified: Condvar,
}

impl Notify {
    /// Wakes one waiting thread, if there is one. A thread that leaves something for others wakes the
    /// next one.
    pub(super) fn wake_one(&self) {
        // Either this sees who waits, or they see what was put into the channel before this.
        fence(Ordering::SeqCst);
        if self.waiting.load(Ordering::Relaxed) > 0 {
            // A thread that holds the lock has looked before this, and sleeps by now or has not slept
            // at all.
            drop(self.lock.lock());
            self.notified.notify_one();
        }
    }

    /// How many sleep, or are about to.
    #[cfg(test)]
    pub(super) fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    /// Sleeps until there is something, at most until `deadline`.
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
