//! Who of several processes identifies when: what a limit file holds.
#![deny(clippy::disallowed_methods)]

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::schedule::Limits;
use crate::timing::Timing;

/// The version of the files.
const VERSION: u32 = 1;

/// An answer from Discord is never older than this.
const LONGEST_QUESTION: u64 = 15 * 60 * 1000;

/// What all processes together have reserved. Times are milliseconds since the Unix epoch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Reservations {
    threadcord: u32,
    /// IDENTIFYs a day, and those left of them.
    total: u32,
    remaining: u32,
    /// When there are `total` again; `None` until the first IDENTIFY of a day.
    reset_at: Option<u64>,
    max_concurrency: NonZeroU32,
    /// When each rate limit key is free.
    free_at: BTreeMap<u32, u64>,
    /// The reservations of the last 15 minutes, of which an answer of Discord's may not know.
    reserved: Vec<u64>,
    /// When this was written.
    written_at: u64,
}

/// How long a reservation lasts, and a day.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rules {
    pub(super) window: u64,
    /// By how much the window is longer than Discord's.
    pub(super) guard: Duration,
    reset_every: u64,
    /// How much later than announced a day is taken to begin.
    reset_guard: u64,
}

/// What a shard gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reserved {
    /// It may identify then.
    At(u64),
    /// Nothing is left of the day: ask again then.
    NotBefore(u64),
}

impl Rules {
    pub(super) fn new(timing: &Timing) -> Self {
        Self {
            window: millis(timing.identify_window + timing.guard),
            guard: timing.guard,
            reset_every: millis(timing.identify_reset),
            reset_guard: millis(timing.reset_guard),
        }
    }
}

impl Reservations {
    /// Those of a bot that has not identified today.
    pub(super) fn new(now: u64) -> Self {
        let Limits {
            total,
            max_concurrency,
            ..
        } = Limits::default();
        Self {
            threadcord: VERSION,
            total,
            remaining: total,
            reset_at: None,
            max_concurrency,
            free_at: BTreeMap::new(),
            reserved: Vec::new(),
            written_at: now,
        }
    }

    /// Reads what another process has written; what is wrong with it, if it cannot be used.
    pub(super) fn read(text: &[u8]) -> Result<Self, String> {
        let read: Self = serde_json::from_slice(text).map_err(|error| error.to_string())?;
        if read.threadcord == VERSION {
            Ok(read)
        } else {
            Err(format!("it has version {}, not {VERSION}", read.threadcord))
        }
    }

    pub(super) fn max_concurrency(&self) -> NonZeroU32 {
        self.max_concurrency
    }

    pub(super) fn total(&self) -> u32 {
        self.total
    }

    pub(super) fn remaining(&self) -> u32 {
        self.remaining
    }

    /// How long until there are more.
    pub(super) fn reset_after(&self, now: u64) -> Option<Duration> {
        let reset_at = self.reset_at?;
        Some(Duration::from_millis(reset_at.saturating_sub(now)))
    }

    /// Reserves the next IDENTIFY of a key.
    pub(super) fn reserve(&mut self, now: u64, key: u32, rules: Rules) -> Reserved {
        self.advance(now, rules);
        if self.remaining == 0 {
            let reset_at = self.reset_at.unwrap_or(now);
            return Reserved::NotBefore(reset_at.saturating_add(rules.reset_guard));
        }

        let at = self.free_at.get(&key).map_or(now, |free| now.max(*free));
        self.free_at.insert(key, at.saturating_add(rules.window));
        self.remaining -= 1;
        self.reset_at
            .get_or_insert(at.saturating_add(rules.reset_every));
        self.reserved.push(at);
        Reserved::At(at)
    }

    /// An IDENTIFY was sent now, later than it was reserved for.
    pub(super) fn used(&mut self, now: u64, key: u32, rules: Rules) {
        self.advance(now, rules);
        let free = self.free_at.entry(key).or_default();
        *free = (*free).max(now.saturating_add(rules.window));
    }

    /// Takes what Discord said when it was asked at `asked`.
    pub(super) fn update(&mut self, now: u64, asked: u64, limits: Limits, rules: Rules) {
        self.advance(now, rules);
        if limits.max_concurrency != self.max_concurrency {
            // Of the new keys none is free before all the old ones.
            let latest = self.free_at.values().max().copied();
            self.free_at.clear();
            if let Some(latest) = latest {
                self.free_at = (0..limits.max_concurrency.get())
                    .map(|key| (key, latest))
                    .collect();
            }
            self.max_concurrency = limits.max_concurrency;
        }

        let unknown = self.reserved.iter().filter(|at| **at >= asked).count();
        let unknown = u32::try_from(unknown).unwrap_or(u32::MAX);
        self.total = limits.total;
        self.remaining = limits.remaining.saturating_sub(unknown);
        let is_fresh = limits.remaining == limits.total && unknown == 0;
        let reset_at = asked.saturating_add(millis(limits.reset_after));
        self.reset_at = (!is_fresh).then_some(reset_at);
    }

    /// Lets the time pass.
    fn advance(&mut self, now: u64, rules: Rules) {
        // The clock was set back: what was reserved is as far away as it was.
        let back = self.written_at.saturating_sub(now);
        if back > 0 {
            let times = self
                .free_at
                .values_mut()
                .chain(&mut self.reserved)
                .chain(&mut self.reset_at);
            times.for_each(|time| *time = time.saturating_sub(back));
        }
        self.written_at = now;

        if let Some(reset_at) = self.reset_at
            && now >= reset_at.saturating_add(rules.reset_guard)
        {
            // Some may have been reserved for the new day already.
            let new = self.reserved.iter().filter(|at| **at >= reset_at).count();
            self.remaining = self
                .total
                .saturating_sub(u32::try_from(new).unwrap_or(u32::MAX));
            self.reset_at = (new > 0).then(|| reset_at.saturating_add(rules.reset_every));
        }
        self.reserved
            .retain(|at| at.saturating_add(LONGEST_QUESTION) > now);
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_700_000_000_000;
    const DAY: u64 = 24 * 60 * 60 * 1000;

    fn rules() -> Rules {
        Rules::new(&Timing::default())
    }

    fn limits(max_concurrency: u32, remaining: u32) -> Limits {
        Limits {
            total: 1000,
            remaining,
            reset_after: Duration::from_secs(3600),
            max_concurrency: NonZeroU32::new(max_concurrency).unwrap(),
        }
    }

    #[test]
    fn each_key_has_one_reservation_a_window() {
        let mut all = Reservations::new(NOW);
        all.update(NOW, NOW, limits(2, 900), rules());
        let window = rules().window;
        assert_eq!(window, 5100);
        assert_eq!(all.reserve(NOW, 0, rules()), Reserved::At(NOW));
        assert_eq!(all.reserve(NOW + 10, 1, rules()), Reserved::At(NOW + 10));
        assert_eq!(
            all.reserve(NOW + 20, 0, rules()),
            Reserved::At(NOW + window)
        );
        assert_eq!(
            all.reserve(NOW + 30, 0, rules()),
            Reserved::At(NOW + 2 * window)
        );
        let late = NOW + 4 * window;
        all.used(late, 0, rules());
        assert_eq!(all.reserve(late, 0, rules()), Reserved::At(late + window));
        assert_eq!(all.remaining(), 895);

        // Other keys begin when all of the old ones are free.
        all.update(late, late, limits(16, 895), rules());
        assert_eq!(
            all.reserve(late, 9, rules()),
            Reserved::At(late + 2 * window)
        );
    }

    #[test]
    fn nobody_identifies_when_the_day_is_spent() {
        let mut all = Reservations::new(NOW);
        all.update(NOW, NOW, limits(1, 1), rules());
        assert_eq!(all.reserve(NOW, 0, rules()), Reserved::At(NOW));
        let reset = NOW + 3_600_000 + 30_000;
        assert_eq!(all.reserve(NOW, 0, rules()), Reserved::NotBefore(reset));
        assert_eq!(
            all.reserve(reset - 1, 0, rules()),
            Reserved::NotBefore(reset)
        );
        assert_eq!(all.reserve(reset, 0, rules()), Reserved::At(reset));
        assert_eq!(all.remaining(), 999);
        assert_eq!(
            all.reset_after(reset),
            Some(Duration::from_secs(24 * 60 * 60))
        );
    }

    #[test]
    fn an_answer_does_not_know_of_what_was_reserved_since() {
        let mut all = Reservations::new(NOW);
        all.update(NOW, NOW, limits(1, 500), rules());
        all.reserve(NOW, 0, rules());
        all.reserve(NOW, 0, rules());
        all.update(NOW + 20, NOW + 10, limits(1, 499), rules());
        assert_eq!(all.remaining(), 498, "the second is yet to be sent");
        all.update(NOW + 900, NOW, limits(1, 500), rules());
        assert_eq!(all.remaining(), 498, "nothing is given back");
    }

    #[test]
    fn what_was_reserved_for_the_new_day_counts_there() {
        let mut all = Reservations::new(NOW);
        all.update(NOW, NOW - 3_590_000, limits(1, 100), rules());
        for _ in 0..10 {
            all.reserve(NOW, 0, rules());
        }
        // Reserved for 0, 5.1, 10.2, ... s; the day ended after 10 s.
        all.reserve(NOW + 10_000 + 30_000, 0, rules());
        assert_eq!(all.remaining(), 1000 - 8 - 1);
        assert_eq!(
            all.reset_after(NOW + 10_000),
            Some(Duration::from_millis(DAY))
        );
    }

    #[test]
    fn a_clock_that_is_set_back_delays_nobody() {
        let mut all = Reservations::new(NOW);
        assert_eq!(all.reserve(NOW, 0, rules()), Reserved::At(NOW));
        let back = NOW - 3_600_000;
        assert_eq!(
            all.reserve(back, 0, rules()),
            Reserved::At(back + rules().window)
        );
    }

    #[test]
    fn what_is_written_is_read_and_nothing_else() {
        let mut all = Reservations::new(NOW);
        all.reserve(NOW, 3, rules());
        let text = serde_json::to_vec(&all).unwrap();
        assert_eq!(Reservations::read(&text).unwrap(), all);
        let other = String::from_utf8(text)
            .unwrap()
            .replace("\"threadcord\":1", "\"threadcord\":2");
        assert!(
            Reservations::read(other.as_bytes())
                .unwrap_err()
                .contains("version 2")
        );
        for text in ["", "{}", "null", "<html>"] {
            assert!(Reservations::read(text.as_bytes()).is_err(), "{text}");
        }
    }
}
