//! The state of an identify limit that several processes share: what they have used of it, and when
//! each rate limit key is free. It is stored as JSON in a file or in Redis.
#![deny(clippy::disallowed_methods)]

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::schedule::Limits;
use super::ticket::Moment;
use crate::timing::Timing;

/// The version of the stored JSON.
const VERSION: u32 = 1;

/// An answer from Discord is never older than this, in milliseconds (15 minutes).
const MAX_ANSWER_AGE: u64 = 15 * 60 * 1000;

/// IDENTIFYs of a day that processes on several machines never spend.
const KEPT_BACK: u32 = 10;

/// How much longer than Discord's the windows of processes on several machines are, in multiples of
/// [`Timing::guard`].
const GUARDS_BETWEEN_MACHINES: u32 = 5;

/// With [`Rules::asks_discord`], the limits are requested again after this time (5 minutes).
const ASK_EVERY: u64 = 5 * 60 * 1000;

/// They are also requested again after this many grants.
const GRANTS_PER_ANSWER: u32 = 100;

/// If fewer IDENTIFYs than this are left, [`GRANTS_PER_ANSWER_IF_FEW`] applies.
const FEW_LEFT: u32 = 200;
const GRANTS_PER_ANSWER_IF_FEW: u32 = 10;

/// How long a process may take to get Discord's limits before another one requests them (15 s).
const ASKING_TIME: u64 = 15 * 1000;

/// How long the other processes wait before they check again whether Discord has answered.
const ANSWER_PAUSE: u64 = 250;

/// Two answers are of the same day if their resets are less than this apart (1 minute).
const SAME_DAY: u64 = 60 * 1000;

/// What all processes together have used of the limit. All times are milliseconds on a clock that
/// the processes share.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Reservations {
    threadcord: u32,
    /// The name of the clock on which the times are measured.
    clock: String,
    /// IDENTIFYs a day.
    total: u32,
    /// IDENTIFYs left until the reset.
    remaining: u32,
    /// The reset: when `remaining` becomes `total` again. `None` until the first IDENTIFY of a day.
    reset_at: Option<u64>,
    /// The same in milliseconds since the Unix epoch, which is still valid when the clock changes.
    reset_at_wall: Option<u64>,
    max_concurrency: NonZeroU32,
    /// When each rate limit key is free.
    free_at: BTreeMap<u32, u64>,
    /// No key is free before then.
    all_free_at: u64,
    /// The grants of the last 15 minutes, which an answer from Discord may not count yet.
    granted: Vec<Grant>,
    /// The time of the last change. If the time is earlier now, the clock was set back.
    changed_at: u64,
    questions: Questions,
}

/// An IDENTIFY that was granted, and not returned unused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Grant {
    key: u32,
    at: u64,
}

/// When Discord's limits were requested, and when they are due again.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Questions {
    /// When Discord last answered. `None` if an answer is needed before the next grant.
    answered_at: Option<u64>,
    /// The number of grants since that answer.
    grants: u32,
    /// Until then, a process is requesting the limits, and no other one does.
    asking_until: u64,
}

/// The current time, on a clock that the processes share and on the system clock.
#[derive(Clone, Debug)]
pub(crate) struct Now {
    /// The name of the shared clock. Its times have no meaning on another clock.
    pub(crate) clock: String,
    /// The time on the shared clock, in milliseconds.
    pub(crate) at: u64,
    /// The system clock, in milliseconds since the Unix epoch.
    pub(crate) wall: u64,
    /// This process's own clocks, read just before the shared clock.
    pub(crate) moment: Moment,
}

/// Why stored reservations cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ReadError {
    #[error("{0}")]
    Damaged(String),
    #[error("it has version {0}, not {VERSION}: all processes need the same version")]
    OtherVersion(u32),
}

/// The rules of a shared limit: windows, validity and the length of a day. Times are in
/// milliseconds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rules {
    /// How long a grant may be used.
    pub(crate) validity: u64,
    /// How long an IDENTIFY occupies its key.
    pub(crate) window: u64,
    /// How much longer than Discord's the window is.
    guard: u64,
    /// IDENTIFYs of a day that are never granted.
    kept_back: u32,
    /// Whether Discord's limits are requested regularly, and a new day begins only with an answer.
    asks_discord: bool,
    /// The length of a day.
    reset_every: u64,
    /// How much later than announced a day is assumed to begin.
    reset_guard: u64,
}

/// The outcome of a shard's attempt to take its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Turn {
    /// The shard may identify now.
    Now,
    /// The key is taken. The shard must try again at this time.
    NotBefore(u64),
    /// No IDENTIFY is left today. There are more at this time, a margin after the reset.
    Spent(u64),
    /// This process must request Discord's limits first. If `is_needed`, no shard may identify
    /// before the answer.
    Ask { is_needed: bool },
}

impl Rules {
    /// The rules for processes on one machine.
    pub(crate) fn new(timing: &Timing) -> Self {
        Self {
            validity: millis(timing.permit_validity),
            window: millis(timing.identify_window + timing.guard),
            guard: millis(timing.guard),
            kept_back: 0,
            asks_discord: false,
            reset_every: millis(timing.identify_reset),
            reset_guard: millis(timing.reset_guard),
        }
    }

    /// The rules for processes on several machines: messages take longer, and stored data can be
    /// lost.
    #[cfg_attr(
        not(any(test, feature = "redis")),
        expect(dead_code, reason = "only for Redis")
    )]
    pub(crate) fn strict(timing: &Timing) -> Self {
        let guard = timing.guard * GUARDS_BETWEEN_MACHINES;
        Self {
            window: millis(timing.identify_window + guard),
            guard: millis(guard),
            kept_back: KEPT_BACK,
            asks_discord: true,
            ..Self::new(timing)
        }
    }

    /// When a key that was taken at `taken` is free again, if its owner reports nothing.
    fn free_again(self, taken: u64) -> u64 {
        taken
            .saturating_add(self.validity)
            .saturating_add(self.window)
    }
}

impl Reservations {
    /// Creates the reservations of a bot of which only these limits are known.
    pub(crate) fn new(now: &Now, limits: Limits) -> Self {
        Self {
            threadcord: VERSION,
            clock: now.clock.clone(),
            total: limits.total,
            remaining: limits.remaining,
            reset_at: None,
            reset_at_wall: None,
            max_concurrency: limits.max_concurrency,
            free_at: BTreeMap::new(),
            all_free_at: 0,
            granted: Vec::new(),
            changed_at: now.at,
            questions: Questions::default(),
        }
    }

    /// Reads the JSON that a process has written.
    pub(crate) fn read(text: &[u8]) -> Result<Self, ReadError> {
        #[derive(Deserialize)]
        struct Version {
            threadcord: u32,
        }

        let damaged = |error: serde_json::Error| ReadError::Damaged(error.to_string());
        let Version { threadcord } = serde_json::from_slice(text).map_err(damaged)?;
        if threadcord != VERSION {
            return Err(ReadError::OtherVersion(threadcord));
        }
        serde_json::from_slice(text).map_err(damaged)
    }

    pub(crate) fn max_concurrency(&self) -> NonZeroU32 {
        self.max_concurrency
    }

    pub(crate) fn total(&self) -> u32 {
        self.total
    }

    pub(crate) fn remaining(&self) -> u32 {
        self.remaining
    }

    /// The time until the reset; `None` until the first IDENTIFY of a day.
    pub(crate) fn reset_after(&self, now: &Now) -> Option<Duration> {
        let reset_at = self.reset_at?;
        Some(Duration::from_millis(reset_at.saturating_sub(now.at)))
    }

    /// Takes a key if it is free, for the validity of a permit and one window.
    pub(crate) fn take(&mut self, now: &Now, key: u32, rules: Rules) -> Turn {
        self.advance(now, rules);
        // First of all, because an answer from Discord may not count IDENTIFYs that are not sent
        // yet.
        if self.all_free_at > now.at {
            return Turn::NotBefore(self.all_free_at);
        }
        if rules.asks_discord
            && let Some(turn) = self.ask(now)
        {
            return turn;
        }

        let free_at = self.free_at.get(&key).copied().unwrap_or_default();
        if free_at > now.at {
            return Turn::NotBefore(free_at);
        }
        if self.remaining <= rules.kept_back.min(self.total / 10) {
            let reset_at = self.reset_at.unwrap_or(now.at);
            return Turn::Spent(reset_at.saturating_add(rules.reset_guard));
        }

        self.changed_at = now.at;
        self.free_at.insert(key, rules.free_again(now.at));
        self.remaining -= 1;
        self.granted.push(Grant { key, at: now.at });
        self.questions.grants = self.questions.grants.saturating_add(1);
        if self.reset_at.is_none() {
            self.reset_in(now, rules.reset_every);
        }
        Turn::Now
    }

    /// Checks whether this process must first request Discord's limits, or wait for the answer that
    /// another process has requested.
    fn ask(&mut self, now: &Now) -> Option<Turn> {
        let Questions {
            answered_at,
            grants,
            asking_until,
        } = &mut self.questions;
        let most = if self.remaining < FEW_LEFT {
            GRANTS_PER_ANSWER_IF_FEW
        } else {
            GRANTS_PER_ANSWER
        };
        let is_fresh = |at: u64| now.at < at.saturating_add(ASK_EVERY) && *grants < most;
        if answered_at.is_some_and(is_fresh) {
            return None;
        }

        let is_needed = answered_at.is_none();
        if now.at < *asking_until {
            return is_needed.then(|| Turn::NotBefore(now.at.saturating_add(ANSWER_PAUSE)));
        }
        *asking_until = now.at.saturating_add(ASKING_TIME);
        self.changed_at = now.at;
        Some(Turn::Ask { is_needed })
    }

    /// Reports that the grant of `taken` was used just now: the window starts now.
    pub(crate) fn used(&mut self, now: &Now, key: u32, taken: u64, rules: Rules) {
        self.advance(now, rules);
        self.changed_at = now.at;
        let until = now.at.saturating_add(rules.window);
        let free_at = self.free_at.entry(key).or_default();
        if *free_at == rules.free_again(taken) {
            *free_at = until;
        } else {
            // The report is too late: another process may have taken the key meanwhile.
            *free_at = (*free_at).max(until);
        }
    }

    /// Returns the unused grant of `taken`: its key is free again.
    pub(crate) fn give_back(&mut self, now: &Now, key: u32, taken: u64, rules: Rules) {
        self.advance(now, rules);
        let grant = Grant { key, at: taken };
        let Some(position) = self.granted.iter().position(|other| *other == grant) else {
            return;
        };
        self.granted.remove(position);
        self.changed_at = now.at;
        self.remaining = self.remaining.saturating_add(1).min(self.total);
        if self.free_at.get(&key) == Some(&rules.free_again(taken)) {
            self.free_at.remove(&key);
        }
    }

    /// Takes all keys, because it is not known which of them other processes have taken recently.
    pub(crate) fn occupy(&mut self, now: &Now, rules: Rules) {
        self.all_free_at = self.all_free_at.max(rules.free_again(now.at));
    }

    /// Takes the limits that Discord returned for a request that was sent at `asked`.
    pub(crate) fn update(&mut self, now: &Now, asked: u64, limits: Limits, rules: Rules) {
        self.advance(now, rules);
        self.changed_at = now.at;
        if limits.max_concurrency != self.max_concurrency {
            // No new key is free before all old keys are.
            let latest = self.free_at.values().max().copied().unwrap_or_default();
            self.all_free_at = self.all_free_at.max(latest);
            self.free_at.clear();
            self.max_concurrency = limits.max_concurrency;
        }

        let unknown = self
            .granted
            .iter()
            .filter(|grant| grant.at >= asked)
            .count();
        let unknown = u32::try_from(unknown).unwrap_or(u32::MAX);
        let left = limits.remaining.saturating_sub(unknown);
        let reset_in = millis(limits.reset_after).saturating_sub(now.at.saturating_sub(asked));
        let reset_at = now.at.saturating_add(reset_in);
        let is_same_day = self
            .reset_at
            .is_some_and(|known| known.abs_diff(reset_at) < SAME_DAY);
        self.total = limits.total;
        // IDENTIFYs that were granted before the request may have been sent after it.
        self.remaining = if is_same_day {
            left.min(self.remaining)
        } else {
            left
        };
        if limits.remaining < limits.total || unknown > 0 {
            self.reset_in(now, reset_in);
        } else {
            (self.reset_at, self.reset_at_wall) = (None, None);
        }
        self.questions = Questions {
            answered_at: Some(now.at),
            ..Questions::default()
        };
    }

    fn reset_in(&mut self, now: &Now, wait: u64) {
        self.reset_at = Some(now.at.saturating_add(wait));
        self.reset_at_wall = Some(now.wall.saturating_add(wait));
    }

    /// Applies the passing of time: a reset, a clock that has changed or was set back.
    pub(crate) fn advance(&mut self, now: &Now, rules: Rules) {
        let was_set_back = now.at.saturating_add(rules.guard) < self.changed_at;
        if self.clock != now.clock || was_set_back {
            // The machine or the server has restarted or was replaced, or the clock was set back.
            // Only the reset is also known on another clock.
            self.clock.clone_from(&now.clock);
            self.free_at.clear();
            self.granted.clear();
            self.all_free_at = rules.free_again(now.at);
            self.changed_at = now.at;
            if let Some(wall) = self.reset_at_wall {
                self.reset_in(now, wall.saturating_sub(now.wall));
            }
            self.questions = Questions::default();
        }

        if let Some(reset_at) = self.reset_at
            && now.at >= reset_at.saturating_add(rules.reset_guard)
        {
            // Grants after the announced reset count for the new day.
            let new = self.granted.iter().filter(|grant| grant.at >= reset_at);
            let new = new.count();
            let new = u32::try_from(new).unwrap_or(u32::MAX);
            self.remaining = self.total.saturating_sub(new);
            let next = reset_at.saturating_add(rules.reset_every);
            self.questions = Questions::default();
            (self.reset_at, self.reset_at_wall) = (None, None);
            if new > 0 && next > now.at {
                self.reset_in(now, next - now.at);
            }
        }
        self.granted
            .retain(|grant| grant.at.saturating_add(MAX_ANSWER_AGE) > now.at);
    }
}

pub(crate) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: u64 = 1_000_000;
    const WALL: u64 = 1_700_000_000_000;
    const HOUR: u64 = 3_600_000;

    fn at(after: u64) -> Now {
        Now {
            clock: "one".into(),
            at: START + after,
            wall: WALL + after,
            moment: Moment::now(),
        }
    }

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

    fn with(max_concurrency: u32, remaining: u32) -> Reservations {
        let mut all = Reservations::new(&at(0), Limits::default());
        all.update(&at(0), START, limits(max_concurrency, remaining), rules());
        all
    }

    #[test]
    fn each_key_is_taken_once_a_window() {
        let mut all = with(2, 900);
        let window = rules().window;
        assert_eq!(window, 5100);
        let mut take = |after, key| all.take(&at(after), key, rules());
        assert_eq!(take(0, 0), Turn::Now);
        assert_eq!(take(10, 1), Turn::Now);
        // While it is not known when, or whether, they were used.
        let unknown = Turn::NotBefore(START + 2000 + window);
        assert_eq!(take(20, 0), unknown);
        assert_eq!(take(1999 + window, 0), unknown);
        assert_eq!(take(2000 + window, 0), Turn::Now);
        assert_eq!(all.remaining(), 897);

        // The window counts from the IDENTIFY.
        let taken = START + 2000 + window;
        all.used(&at(3000 + window), 0, taken, rules());
        let free = Turn::NotBefore(START + 3000 + 2 * window);
        assert_eq!(all.take(&at(2 * window), 0, rules()), free);
        // A use that is reported too late counts as well.
        all.used(&at(3500 + window), 0, START, rules());
        let free = Turn::NotBefore(START + 3500 + 2 * window);
        assert_eq!(all.take(&at(2 * window), 0, rules()), free);

        // New keys are free when all of the old ones are.
        let now = 2 * window;
        all.update(&at(now), START + now, limits(16, 897), rules());
        assert_eq!(all.take(&at(now), 9, rules()), free);
    }

    #[test]
    fn what_is_not_used_is_given_back() {
        let mut all = with(1, 900);
        assert_eq!(all.take(&at(0), 0, rules()), Turn::Now);
        all.give_back(&at(10), 0, START, rules());
        assert_eq!(all.remaining(), 900);
        assert_eq!(all.take(&at(20), 0, rules()), Turn::Now);
        // A grant that is returned twice frees no other grant.
        all.give_back(&at(30), 0, START, rules());
        assert_eq!(all.remaining(), 899);
        assert!(matches!(all.take(&at(40), 0, rules()), Turn::NotBefore(_)));
    }

    #[test]
    fn nobody_identifies_when_the_day_is_spent() {
        let mut all = with(1, 1);
        assert_eq!(all.take(&at(0), 0, rules()), Turn::Now);
        let reset = HOUR + 30_000;
        let spent = Turn::Spent(START + reset);
        assert_eq!(all.take(&at(8_000), 0, rules()), spent);
        assert_eq!(all.take(&at(reset - 1), 0, rules()), spent);
        assert_eq!(all.take(&at(reset), 0, rules()), Turn::Now);
        assert_eq!(all.remaining(), 999);
        let day = Duration::from_secs(24 * 60 * 60);
        assert_eq!(all.reset_after(&at(reset)), Some(day));
    }

    #[test]
    fn an_answer_does_not_know_of_what_came_after_the_question() {
        let mut all = with(2, 500);
        all.take(&at(0), 0, rules());
        all.take(&at(20), 1, rules());
        all.update(&at(30), START + 10, limits(2, 499), rules());
        assert_eq!(all.remaining(), 498, "the second came after the question");
        all.update(&at(900), START + 900, limits(2, 500), rules());
        assert_eq!(all.remaining(), 498, "one may still be on its way");
        all.update(&at(40 * HOUR), START + 40 * HOUR, limits(2, 1000), rules());
        assert_eq!((all.remaining(), all.reset_after(&at(0))), (1000, None));
    }

    #[test]
    fn what_came_after_the_reset_counts_for_the_new_day() {
        let mut all = with(16, 100);
        for (key, after) in [(0, HOUR - 5), (1, HOUR + 5), (2, HOUR + 10)] {
            assert_eq!(all.take(&at(after), key, rules()), Turn::Now);
        }
        assert_eq!(all.take(&at(HOUR + 30_000), 3, rules()), Turn::Now);
        assert_eq!(all.remaining(), 1000 - 3);
        // After a long pause, the next IDENTIFY begins a day.
        assert_eq!(all.take(&at(100 * HOUR), 0, rules()), Turn::Now);
        let day = Duration::from_secs(24 * 60 * 60);
        assert_eq!(all.reset_after(&at(100 * HOUR)), Some(day));
    }

    #[test]
    fn a_restart_of_the_machine_takes_all_keys_and_keeps_the_day() {
        let mut all = with(1, 700);
        assert_eq!(all.take(&at(0), 0, rules()), Turn::Now);
        let now = Now {
            clock: "two".into(),
            at: 500,
            wall: WALL + 60_000,
            ..at(0)
        };
        // What was granted just before the restart may not be used yet.
        let free = Turn::NotBefore(rules().free_again(500));
        assert_eq!(all.take(&now, 0, rules()), free);
        assert_eq!(all.remaining(), 699);
        assert_eq!(all.reset_after(&now), Some(Duration::from_secs(3600 - 60)));
    }

    #[test]
    fn a_clock_that_is_set_back_takes_all_keys() {
        let mut all = with(1, 700);
        assert_eq!(all.take(&at(HOUR / 2), 0, rules()), Turn::Now);
        let free = Turn::NotBefore(rules().free_again(START));
        assert_eq!(all.take(&at(0), 0, rules()), free);
        let free = rules().free_again(0);
        assert_eq!(all.take(&at(free), 0, rules()), Turn::Now);
    }

    const ASK_NOW: Turn = Turn::Ask { is_needed: true };

    fn strict() -> Rules {
        Rules::strict(&Timing::default())
    }

    #[test]
    fn one_process_asks_discord_and_the_others_wait() {
        let mut all = Reservations::new(&at(0), Limits::default());
        assert_eq!(all.take(&at(0), 0, strict()), ASK_NOW);
        let wait = Turn::NotBefore(START + 1 + ANSWER_PAUSE);
        assert_eq!(all.take(&at(1), 0, strict()), wait);
        // The process that should have asked has died.
        assert_eq!(all.take(&at(ASKING_TIME), 0, strict()), ASK_NOW);

        let asked = START + ASKING_TIME;
        all.update(&at(ASKING_TIME), asked, limits(1, 900), strict());
        assert_eq!(all.take(&at(ASKING_TIME), 0, strict()), Turn::Now);
        // Later, one process asks while the others continue to identify.
        let later = ASKING_TIME + ASK_EVERY;
        assert_eq!(
            all.take(&at(later), 0, strict()),
            Turn::Ask { is_needed: false }
        );
        assert_eq!(all.take(&at(later), 0, strict()), Turn::Now);
    }

    #[test]
    fn discord_is_asked_after_so_many_grants_and_more_often_when_few_are_left() {
        for (left, most) in [(900, GRANTS_PER_ANSWER), (150, GRANTS_PER_ANSWER_IF_FEW)] {
            let mut all = with(16, left);
            let grants = (0..).take_while(|n| all.take(&at(0), *n, strict()) == Turn::Now);
            assert_eq!(grants.count(), most as usize, "with {left} left");
        }
    }

    #[test]
    fn ten_are_kept_back_and_only_discord_begins_a_day() {
        let mut all = with(16, 12);
        let spent = Turn::Spent(START + HOUR + 30_000);
        let turns: Vec<_> = (0..3).map(|n| all.take(&at(0), n, strict())).collect();
        assert_eq!(turns, [Turn::Now, Turn::Now, spent]);
        assert_eq!(all.take(&at(ASK_EVERY - 1), 3, strict()), spent);
        let reset = HOUR + 30_000;
        assert_eq!(all.take(&at(reset), 3, strict()), ASK_NOW);
        all.update(&at(reset), START + reset, limits(16, 1000), strict());
        assert_eq!(all.take(&at(reset), 3, strict()), Turn::Now);

        // Another server, which may have lost data, also needs an answer first.
        let now = Now {
            clock: "two".into(),
            ..at(reset + 1)
        };
        let free = strict().free_again(now.at);
        assert_eq!(all.take(&now, 4, strict()), Turn::NotBefore(free));
        let now = Now { at: free, ..now };
        assert_eq!(all.take(&now, 4, strict()), ASK_NOW);
    }

    #[test]
    fn what_is_given_back_twice_counts_once() {
        let mut all = with(2, 900);
        for key in [0, 1] {
            assert_eq!(all.take(&at(0), key, rules()), Turn::Now);
        }
        for _ in 0..2 {
            all.give_back(&at(10), 0, START, rules());
            assert_eq!(all.remaining(), 899, "key 1 was granted at the same time");
        }
    }

    #[test]
    fn one_who_is_refused_changes_nothing() {
        let mut all = with(1, 900);
        assert_eq!(all.take(&at(0), 0, rules()), Turn::Now);
        let before = all.clone();
        assert!(matches!(all.take(&at(10), 0, rules()), Turn::NotBefore(_)));
        assert_eq!(all, before);
    }

    #[test]
    fn what_is_written_is_read_and_nothing_else() {
        let mut all = with(4, 700);
        all.take(&at(0), 3, rules());
        let text = serde_json::to_vec(&all).unwrap();
        assert_eq!(Reservations::read(&text).unwrap(), all);
        let other = String::from_utf8(text).unwrap();
        let other = other.replace("\"threadcord\":1", "\"threadcord\":2");
        let error = Reservations::read(other.as_bytes()).unwrap_err();
        assert_eq!(error, ReadError::OtherVersion(2));

        for text in ["", "{}", "null", "<html>", "{\"threadcord\":1}"] {
            let error = Reservations::read(text.as_bytes()).unwrap_err();
            assert!(matches!(error, ReadError::Damaged(_)), "{text}: {error}");
        }

        // Absurd times neither overflow nor grant anything.
        let mut hostile = all.clone();
        hostile.reset_at = Some(u64::MAX);
        let late = Grant {
            key: 0,
            at: u64::MAX,
        };
        hostile.granted = vec![late; 3];
        hostile.free_at.insert(0, u64::MAX);
        hostile.update(&at(0), u64::MAX, limits(4, 700), rules());
        assert!(matches!(
            hostile.take(&at(0), 0, rules()),
            Turn::NotBefore(_)
        ));
    }
}
