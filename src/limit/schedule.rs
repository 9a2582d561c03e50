//! The order of IDENTIFYs within one process: whose turn it is, and when.
#![deny(clippy::disallowed_methods)]

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::num::NonZeroU32;
use std::time::{Duration, Instant};

use super::{LimitStatus, ReleaseAfter};
use crate::shard_id::ShardId;

/// The longest wait. It keeps an instant from overflowing, whatever a server or a caller requests.
const MAX_WAIT: Duration = Duration::from_secs(400 * 24 * 60 * 60);

/// An answer from Discord is never older than this.
const MAX_QUESTION: Duration = Duration::from_secs(15 * 60);

/// The order of IDENTIFYs: one per key and window, first come, first served within a key, never
/// above the daily total.
///
/// A ticket is *queued* until it is granted, then *held* until it is used or leaves. After the use,
/// its key *cools down* for a window, which starts at once or when the ticket leaves
/// ([`ReleaseAfter`]).
#[derive(Debug)]
pub(crate) struct Schedule {
    rules: Rules,
    limits: Limits,
    /// When `limits.remaining` becomes `limits.total` again; `None` until the first IDENTIFY of a
    /// day.
    reset_at: Option<Instant>,
    keys: BTreeMap<u32, Key>,
    /// The times of recent IDENTIFYs, which an answer from Discord may not count yet.
    spent: VecDeque<Instant>,
    /// No key is granted before this instant: windows that began before the number of keys changed
    /// last until then.
    all_cool_at: Option<Instant>,
    tickets: HashMap<TicketId, Ticket>,
    /// The number of granted tickets that may still be used. Each reserves one of
    /// `limits.remaining`.
    held: u32,
    next_id: u64,
}

/// The rules of a schedule, in addition to Discord's limits.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rules {
    /// The time between two IDENTIFYs of a key.
    pub(crate) window: Duration,
    /// When that window starts.
    pub(crate) release_after: ReleaseAfter,
    /// The length of a day.
    pub(crate) reset_every: Duration,
    /// How much later than announced a day is assumed to begin.
    pub(crate) reset_guard: Duration,
}

/// Discord's limits for a bot's IDENTIFYs.
///
/// Source: [Discord, Session start limit
/// object](https://docs.discord.com/developers/events/gateway#session-start-limit-object).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// IDENTIFYs a day.
    pub total: u32,
    /// IDENTIFYs left until the reset.
    pub remaining: u32,
    /// The time from now to the reset; zero if no IDENTIFY has been sent since the last reset.
    pub reset_after: Duration,
    /// How many shards may identify at once: the number of rate limit keys.
    pub max_concurrency: NonZeroU32,
}

impl Default for Limits {
    /// The limits of a bot of ordinary size that has not identified today: 1000 IDENTIFYs a day,
    /// one at a time.
    fn default() -> Self {
        Self {
            total: 1000,
            remaining: 1000,
            reset_after: Duration::ZERO,
            max_concurrency: NonZeroU32::MIN,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct TicketId(u64);

#[derive(Debug)]
struct Ticket {
    shard: ShardId,
    state: TicketState,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum TicketState {
    Queued,
    Held,
    Used,
}

/// A rate limit key: the shards that share one window.
#[derive(Debug, Default)]
struct Key {
    /// Queued tickets, in the order of their requests.
    queue: VecDeque<TicketId>,
    /// The number of tickets that occupy the key: at most one, except for a while after the number
    /// of keys has changed.
    held: u32,
    /// No grant before this instant.
    cool_at: Option<Instant>,
}

/// What the caller must do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Turn {
    /// Grant this ticket.
    Grant(TicketId),
    /// Wait until this instant or until the schedule changes. `None`: only a change ends the wait.
    Wait(Option<Instant>),
}

impl Schedule {
    pub(crate) fn new(now: Instant, limits: Limits, rules: Rules) -> Self {
        let mut schedule = Self {
            rules,
            limits,
            reset_at: None,
            keys: BTreeMap::new(),
            spent: VecDeque::new(),
            all_cool_at: None,
            tickets: HashMap::new(),
            held: 0,
            next_id: 0,
        };
        schedule.update(now, now, limits);
        schedule
    }

    /// Takes new limits from Discord, requested at `asked_at`. The queue stays, but a new number of
    /// keys sorts it again.
    pub(crate) fn update(&mut self, now: Instant, asked_at: Instant, limits: Limits) {
        let rekey = limits.max_concurrency != self.limits.max_concurrency;
        let (own, own_reset_at) = (self.limits.remaining, self.reset_at);
        self.limits = limits;
        self.reset_at = (!limits.reset_after.is_zero()).then(|| {
            later(
                now,
                limits.reset_after.saturating_add(self.rules.reset_guard),
            )
        });
        if self.reset_at.is_none() && limits.remaining == 0 {
            // The reset is now.
            self.limits.remaining = limits.total;
        }

        // The answer may not count IDENTIFYs that were sent after the request, and one IDENTIFY too
        // many costs the token.
        let unknown = self.spent.iter().filter(|at| **at >= asked_at).count();
        let unknown = u32::try_from(unknown).unwrap_or(u32::MAX);
        self.limits.remaining = self.limits.remaining.saturating_sub(unknown);
        if unknown > 0 && self.reset_at.is_none() {
            self.reset_at = own_reset_at;
        }
        if let (Some(before), Some(after)) = (own_reset_at, self.reset_at)
            && now < before
            && after.max(before) - after.min(before) <= self.rules.reset_guard
        {
            // On the same day there cannot be more left than before.
            self.limits.remaining = own.min(self.limits.remaining);
        }

        if rekey {
            self.rekey();
        }
    }

    /// Notes that another process identified with key `number` of `keys` at `at`, before this
    /// schedule began.
    pub(crate) fn note(&mut self, number: u32, keys: NonZeroU32, at: Instant) {
        let cool_at = Some(later(at, self.rules.window));
        if keys == self.limits.max_concurrency {
            let key = self.keys.entry(number).or_default();
            key.cool_at = key.cool_at.max(cool_at);
        } else {
            // It is not known which of the present keys it was.
            self.all_cool_at = self.all_cool_at.max(cool_at);
        }
    }

    /// Queues a shard that wants to identify.
    pub(crate) fn request(&mut self, shard: ShardId) -> TicketId {
        let id = TicketId(self.next_id);
        self.next_id += 1;
        self.tickets.insert(
            id,
            Ticket {
                shard,
                state: TicketState::Queued,
            },
        );
        self.key(shard).queue.push_back(id);
        id
    }

    /// Removes a ticket: it leaves the queue, or frees its slot if it was not used.
    pub(crate) fn leave(&mut self, now: Instant, id: TicketId) {
        let Some(ticket) = self.tickets.remove(&id) else {
            return;
        };
        match ticket.state {
            TicketState::Queued => self.unqueue(ticket.shard, id),
            TicketState::Held => {
                self.held = self.held.saturating_sub(1);
                self.free_key(ticket.shard);
            }
            TicketState::Used if self.rules.release_after == ReleaseAfter::Ready => {
                self.free_key(ticket.shard);
                self.cool_down(now, ticket.shard, self.rules.window);
            }
            TicketState::Used => {}
        }
    }

    /// Reports that the ticket's IDENTIFY was sent: one less is left today.
    pub(crate) fn used(&mut self, now: Instant, id: TicketId) {
        if let Some(shard) = self.spend(now, id)
            && self.rules.release_after == ReleaseAfter::Identify
        {
            self.free_key(shard);
            self.cool_down(now, shard, self.rules.window);
        }
    }

    /// Reports that the ticket's IDENTIFY was sent, and frees its key after `window` instead of the
    /// window of the rules. If the ticket was used before, its own window stays.
    pub(crate) fn exit_after(&mut self, now: Instant, id: TicketId, window: Duration) {
        if let Some(shard) = self.spend(now, id) {
            self.tickets.remove(&id);
            self.free_key(shard);
            self.cool_down(now, shard, window);
        } else {
            self.leave(now, id);
        }
    }

    /// Counts a held ticket against the day; `None` if it is not held.
    fn spend(&mut self, now: Instant, id: TicketId) -> Option<ShardId> {
        let ticket = self
            .tickets
            .get_mut(&id)
            .filter(|ticket| ticket.state == TicketState::Held)?;
        ticket.state = TicketState::Used;
        self.held = self.held.saturating_sub(1);
        self.limits.remaining = self.limits.remaining.saturating_sub(1);

        self.spent.push_back(now);
        while self
            .spent
            .front()
            .is_some_and(|at| *at + MAX_QUESTION < now)
        {
            self.spent.pop_front();
        }

        self.reset_at.get_or_insert(later(
            now,
            self.rules
                .reset_every
                .saturating_add(self.rules.reset_guard),
        ));
        Some(ticket.shard)
    }

    /// Returns whose turn it is, or how long to wait.
    pub(crate) fn poll(&mut self, now: Instant) -> Turn {
        if self.reset_at.is_some_and(|reset| now >= reset) {
            self.limits.remaining = self.limits.total;
            self.reset_at = None;
        }

        let exhausted = self.limits.remaining <= self.held;
        let mut wait: Option<Instant> = None;
        for key in self.keys.values_mut() {
            if key.held > 0 || key.queue.is_empty() {
                continue;
            }
            let at = if exhausted {
                self.reset_at
            } else {
                key.cool_at.max(self.all_cool_at)
            };
            match at {
                Some(at) if at > now => wait = Some(wait.map_or(at, |wait| wait.min(at))),
                // Nothing is left and no reset is known: a held ticket must be used or leave first.
                _ if exhausted => {}
                _ => {
                    let Some(id) = key.queue.pop_front() else {
                        continue;
                    };
                    key.held += 1;
                    self.held += 1;
                    return self.grant(id);
                }
            }
        }
        Turn::Wait(wait)
    }

    /// The number of IDENTIFYs left today, including those reserved by held tickets.
    pub(crate) fn remaining(&mut self, now: Instant) -> u32 {
        if self.reset_at.is_some_and(|reset| now >= reset) {
            self.limits.total
        } else {
            self.limits.remaining
        }
    }

    /// Returns what is left of the limit, and which shards wait, in the order of their requests.
    pub(crate) fn status(&mut self, now: Instant) -> LimitStatus {
        let remaining = self.remaining(now);
        let reset_after = self
            .reset_at
            .map(|reset| reset.saturating_duration_since(now + self.rules.reset_guard));

        let mut queued: Vec<_> = self
            .tickets
            .iter()
            .filter(|(_, ticket)| ticket.state == TicketState::Queued)
            .collect();
        queued.sort_unstable_by_key(|(id, _)| id.0);

        LimitStatus {
            waiting: queued.into_iter().map(|(_, ticket)| ticket.shard).collect(),
            ..LimitStatus::new(
                remaining,
                self.limits.total,
                reset_after,
                self.limits.max_concurrency,
            )
        }
    }

    /// The number of tickets that wait for their turn.
    pub(crate) fn waiting(&self) -> usize {
        self.tickets
            .values()
            .filter(|ticket| ticket.state == TicketState::Queued)
            .count()
    }

    fn grant(&mut self, id: TicketId) -> Turn {
        if let Some(ticket) = self.tickets.get_mut(&id) {
            ticket.state = TicketState::Held;
        }
        Turn::Grant(id)
    }

    fn key(&mut self, shard: ShardId) -> &mut Key {
        let number = shard.rate_limit_key(self.limits.max_concurrency);
        self.keys.entry(number).or_default()
    }

    fn free_key(&mut self, shard: ShardId) {
        let key = self.key(shard);
        key.held = key.held.saturating_sub(1);
    }

    fn cool_down(&mut self, now: Instant, shard: ShardId, window: Duration) {
        let key = self.key(shard);
        key.cool_at = key.cool_at.max(Some(later(now, window)));
    }

    /// Removes a ticket from its queue, which is sorted by ticket number.
    fn unqueue(&mut self, shard: ShardId, id: TicketId) {
        let queue = &mut self.key(shard).queue;
        if let Ok(at) = queue.binary_search_by_key(&id.0, |other| other.0) {
            queue.remove(at);
        }
    }

    /// Sorts all tickets by the new number of keys. It is not known which new keys an old key's
    /// window applies to, so all new keys cool down until the last old window ends.
    fn rekey(&mut self) {
        self.all_cool_at = self
            .keys
            .values()
            .filter_map(|key| key.cool_at)
            .max()
            .max(self.all_cool_at);

        self.keys.clear();
        let mut tickets: Vec<_> = self
            .tickets
            .iter()
            .map(|(id, ticket)| (*id, ticket.shard, ticket.state))
            .collect();
        tickets.sort_unstable_by_key(|(id, ..)| id.0);

        for (id, shard, state) in tickets {
            match state {
                TicketState::Queued => self.key(shard).queue.push_back(id),
                TicketState::Used if self.rules.release_after == ReleaseAfter::Identify => {}
                TicketState::Held | TicketState::Used => self.key(shard).held += 1,
            }
        }
    }
}

fn later(now: Instant, wait: Duration) -> Instant {
    now + wait.min(MAX_WAIT)
}

#[cfg(test)]
mod tests;
