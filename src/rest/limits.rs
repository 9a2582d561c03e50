//! Decides when a REST request may be sent.
//!
//! Discord counts requests in windows, both for all routes together and for each *bucket*. The
//! headers of each answer report which bucket a route belongs to, how many requests the bucket
//! takes, and when its window ends. So the first request to a bucket is sent alone, and the others
//! follow as its answer allows.
//!
//! Source: [Discord, Rate limits](https://docs.discord.com/developers/topics/rate-limits).
#![deny(clippy::disallowed_methods)]

mod answer;
mod bucket;
mod global;
mod invalid;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

pub(super) use self::answer::{Answer, Limited};
use self::bucket::{Bucket, Room};
use self::global::Global;
use self::invalid::InvalidRequests;
use super::route::Route;

/// The most buckets and the most bucket names that are kept. Beyond that, buckets without a ticket
/// are dropped, and all names are forgotten.
const MAX_KEPT: usize = 10_000;

/// The queue of requests. Within a bucket they are sent in the order of arrival.
///
/// Each request has a ticket, which is in one of three states:
///
/// ```text
///   request ──▶ Waiting ── granted ──▶ Sent ── answered, failed ──▶ Answered ──▶ leave
///                  ▲                                                   │
///                  └──── requeue: before all that came after it ───────┘
/// ```
#[derive(Debug)]
pub(super) struct RateLimits {
    global: Global,
    buckets: HashMap<Key, Bucket>,
    /// Discord's name for the bucket of each route, by the route's template.
    names: HashMap<Arc<str>, Arc<str>>,
    /// In the order of arrival.
    tickets: BTreeMap<TicketId, Ticket>,
    next_id: TicketId,
    /// Until when this machine's IP address is blocked, and the text of the answer that said so.
    blocked: Option<(Instant, String)>,
    invalid: InvalidRequests,
    is_closed: bool,
    /// Tickets that must be polled again.
    woken: Vec<TicketId>,
}

pub(super) type TicketId = u64;

/// Identifies a bucket: by Discord's name for it (the route's template until that is known) and by
/// the major parameter, which has a separate limit.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key {
    name: Arc<str>,
    major: Arc<str>,
}

#[derive(Debug)]
struct Ticket {
    route: Route,
    key: Key,
    /// The request fails if it would have to wait for longer.
    deadline: Instant,
    state: State,
    /// When its caller polls again without being woken.
    wakes_at: Option<Instant>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Waiting,
    Sent(Instant),
    Answered,
}

/// What the caller of a ticket should do.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Turn {
    /// Send its request.
    Go,
    /// Poll again at this time, or when it is woken.
    Wait(Option<Instant>),
    /// Fail: the wait would exceed the deadline. `retry_after` is zero if it is not known.
    Limited {
        retry_after: Duration,
        text: Option<String>,
    },
    /// Fail: Discord has refused too many requests.
    TooManyInvalidRequests { count: u32, retry_after: Duration },
    /// Fail: the limits are closed.
    Closed,
}

impl RateLimits {
    /// Creates an empty queue with a global rate limit of `limit` requests in each `window`.
    pub(super) fn new(limit: u32, window: Duration) -> Self {
        Self {
            global: Global::new(limit, window),
            buckets: HashMap::new(),
            names: HashMap::new(),
            tickets: BTreeMap::new(),
            next_id: 0,
            blocked: None,
            invalid: InvalidRequests::default(),
            is_closed: false,
            woken: Vec::new(),
        }
    }

    /// Queues a request, which fails if it would have to wait beyond `deadline`.
    pub(super) fn request(&mut self, route: Route, deadline: Instant) -> TicketId {
        let id = self.next_id;
        self.next_id += 1;
        let key = self.key_of(&route);
        let ticket = Ticket {
            route,
            key,
            deadline,
            state: State::Waiting,
            wakes_at: None,
        };
        self.tickets.insert(id, ticket);
        id
    }

    /// Returns what the caller of a ticket should do now. From [`Turn::Go`] on its request counts.
    pub(super) fn poll(&mut self, now: Instant, id: TicketId) -> Turn {
        self.grant(now);
        let waiting = match self.tickets.get(&id) {
            Some(Ticket {
                state: State::Sent(_),
                ..
            }) => return Turn::Go,
            Some(ticket) if ticket.state == State::Waiting && !self.is_closed => ticket,
            _ => return Turn::Closed,
        };

        if let Some((count, retry_after)) = self.invalid.too_many(now) {
            return Turn::TooManyInvalidRequests { count, retry_after };
        }
        let turn = self.expected(now, id, waiting);
        if now >= waiting.deadline || turn > waiting.deadline {
            return Turn::Limited {
                retry_after: turn - now,
                text: self.blocked(now).map(|(_, text)| text.clone()),
            };
        }
        Turn::Wait(waiting.wakes_at)
    }

    /// Updates the limits from the answer to a request.
    pub(super) fn answered(&mut self, now: Instant, id: TicketId, answer: &Answer) {
        self.invalid.count(now, answer);
        if self.invalid.too_many(now).is_some() {
            self.wake(|_| true);
        }
        if let Some(name) = &answer.bucket {
            self.join(id, name);
        }
        if let Some(sent) = self.end_of_flight(now, id) {
            self.learn(now, id, sent, answer);
        }
    }

    /// Notes that no answer came: whether Discord has counted the request is not known.
    pub(super) fn failed(&mut self, now: Instant, id: TicketId) {
        self.end_of_flight(now, id);
        self.grant(now);
    }

    /// Makes a ticket wait again, for another attempt.
    pub(super) fn requeue(&mut self, id: TicketId) {
        if let Some(ticket) = self.tickets.get_mut(&id) {
            ticket.state = State::Waiting;
            ticket.wakes_at = None;
        }
    }

    /// Removes a ticket, whatever its state.
    pub(super) fn leave(&mut self, now: Instant, id: TicketId) {
        self.end_of_flight(now, id);
        self.tickets.remove(&id);
        self.forget(now);
        self.grant(now);
    }

    /// Closes the limits. From now on no request waits: it is sent at once, or fails.
    pub(super) fn close(&mut self) {
        self.is_closed = true;
        // A ticket in the state `Answered` may be in a pause between two attempts, which must end.
        let idle = self.tickets.iter();
        let idle = idle.filter(|(_, ticket)| !matches!(ticket.state, State::Sent(_)));
        self.woken.extend(idle.map(|(id, _)| *id));
    }

    pub(super) fn is_closed(&self) -> bool {
        self.is_closed
    }

    /// Takes the tickets that must be polled again: they may go, or their wait has changed.
    pub(super) fn take_woken(&mut self) -> Vec<TicketId> {
        std::mem::take(&mut self.woken)
    }

    /// Gives their turn to all tickets that can go now, the oldest first. Only two kinds of the
    /// others get a time at which to poll again: the first of each bucket, and the first of those
    /// that the global rate limit holds back. The rest are woken by the one before them.
    fn grant(&mut self, now: Instant) {
        let waiting = self.tickets.iter();
        let waiting = waiting.filter(|(_, ticket)| ticket.state == State::Waiting);
        let waiting: Vec<TicketId> = waiting.map(|(id, _)| *id).collect();
        let blocked_until = self.blocked(now).map(|(until, _)| *until);
        if let Some(until) =
            blocked_until.or_else(|| self.invalid.too_many(now).map(|(_, wait)| now + wait))
        {
            for (at, id) in waiting.into_iter().enumerate() {
                // Polling the first one wakes the others.
                self.wakes_at(id, (at == 0).then_some(until));
            }
            return;
        }

        let mut full = HashSet::new();
        let mut is_global_full = false;
        for id in waiting {
            let ticket = &self.tickets[&id];
            if full.contains(&ticket.key) {
                // A requeued ticket may have come back to the front: this one is no longer first.
                self.wakes_at(id, None);
                continue;
            }
            let room = self
                .buckets
                .get(&ticket.key)
                .map_or(Room::At(now), |bucket| bucket.room(now, 0));
            let of_all = if ticket.route.is_exempt {
                Room::At(now)
            } else {
                self.global.room(now)
            };
            let wakes_at = match (room, of_all) {
                (Room::At(turn), _) if turn > now => Some(turn),
                (Room::At(_), Room::At(turn)) if turn <= now => {
                    self.go(now, id);
                    continue;
                }
                // Polling the first one wakes the others.
                (Room::At(_), Room::At(turn)) => {
                    (!std::mem::replace(&mut is_global_full, true)).then_some(turn)
                }
                (Room::Unknown, _) | (_, Room::Unknown) => None,
            };
            full.insert(ticket.key.clone());
            self.wakes_at(id, wakes_at);
        }
    }

    fn go(&mut self, now: Instant, id: TicketId) {
        let Some(ticket) = self.tickets.get_mut(&id) else {
            return;
        };
        ticket.state = State::Sent(now);
        let bucket = self.buckets.entry(ticket.key.clone()).or_default();
        bucket.sent(now);
        if !ticket.route.is_exempt {
            self.global.sent(now, id);
        }
        self.woken.push(id);
    }

    /// Sets when a ticket must be polled again. It is woken if that is sooner than before.
    fn wakes_at(&mut self, id: TicketId, at: Option<Instant>) {
        let Some(ticket) = self.tickets.get_mut(&id) else {
            return;
        };
        let is_sooner = match (at, ticket.wakes_at) {
            (Some(at), Some(known)) => at < known,
            (at, None) => at.is_some(),
            (None, Some(_)) => false,
        };
        ticket.wakes_at = at;
        if is_sooner {
            self.woken.push(id);
        }
    }

    /// The earliest time at which a ticket may go, as far as it is known.
    fn expected(&self, now: Instant, id: TicketId, ticket: &Ticket) -> Instant {
        let ahead = self.tickets.range(..id).map(|(_, ticket)| ticket);
        let ahead = ahead.filter(|other| other.state == State::Waiting && other.key == ticket.key);
        let ahead = u32::try_from(ahead.count()).unwrap_or(u32::MAX);
        let room = self
            .buckets
            .get(&ticket.key)
            .map(|bucket| bucket.room(now, ahead));
        let of_all = (!ticket.route.is_exempt).then(|| self.global.room(now));
        let of_address = self.blocked(now).map(|(until, _)| Room::At(*until));
        let rooms = [room, of_all, of_address].into_iter().flatten();
        rooms.fold(now, |turn, room| match room {
            Room::At(other) => turn.max(other),
            Room::Unknown => turn,
        })
    }

    fn blocked(&self, now: Instant) -> Option<&(Instant, String)> {
        self.blocked.as_ref().filter(|(until, _)| *until > now)
    }

    /// Notes that a request is no longer in flight. Returns when it was sent; `None` if it was not
    /// in flight.
    fn end_of_flight(&mut self, now: Instant, id: TicketId) -> Option<Instant> {
        let ticket = self.tickets.get_mut(&id)?;
        let State::Sent(sent) = ticket.state else {
            return None;
        };
        ticket.state = State::Answered;
        if let Some(bucket) = self.buckets.get_mut(&ticket.key) {
            bucket.landed();
        }
        if !ticket.route.is_exempt {
            self.global.landed(now, id);
        }
        Some(sent)
    }

    /// Updates the bucket from an answer, and holds requests back if the answer is a 429.
    fn learn(&mut self, now: Instant, id: TicketId, sent: Instant, answer: &Answer) {
        let Some(Ticket { key, route, .. }) = self.tickets.get(&id) else {
            return;
        };
        let (key, is_exempt) = (key.clone(), route.is_exempt);
        let bucket = self.buckets.entry(key.clone()).or_default();
        let mut is_news = bucket.learn(now, sent, answer);

        match &answer.limited {
            None => (),
            Some(Limited::Global(wait)) if !is_exempt => {
                self.global.pause(now, now + *wait);
                self.wake(|ticket| !ticket.route.is_exempt);
            }
            Some(Limited::Bucket(wait) | Limited::Global(wait)) => {
                bucket.pause(now + *wait);
                is_news = true;
            }
            Some(Limited::Blocked(wait, text)) => {
                let until = now + *wait;
                if self.blocked(now).is_none_or(|(other, _)| *other < until) {
                    self.blocked = Some((until, text.clone()));
                }
                self.wake(|_| true);
            }
        }

        if is_news {
            // The new wait may exceed the deadlines of some.
            self.wake(|ticket| ticket.key == key);
        }
        self.grant(now);
    }

    /// Assigns the route of a ticket to the bucket of that name, together with the route's requests
    /// that wait or are in flight.
    fn join(&mut self, id: TicketId, name: &Arc<str>) {
        let Some(Ticket { route, key, .. }) = self.tickets.get(&id) else {
            return;
        };
        if key.name == *name {
            return;
        }

        let template = Arc::clone(&route.template);
        for ticket in self
            .tickets
            .values_mut()
            .filter(|ticket| ticket.route.template == template)
        {
            if let State::Sent(sent) = ticket.state {
                if let Some(bucket) = self.buckets.get_mut(&ticket.key) {
                    bucket.landed();
                }
                ticket.key.name = Arc::clone(name);
                self.buckets
                    .entry(ticket.key.clone())
                    .or_default()
                    .sent(sent);
            }
            ticket.key.name = Arc::clone(name);
        }
        if self.names.len() >= MAX_KEPT {
            self.names.clear();
        }
        self.names.insert(template, Arc::clone(name));
    }

    fn key_of(&self, route: &Route) -> Key {
        let name = self.names.get(&route.template).unwrap_or(&route.template);
        Key {
            name: Arc::clone(name),
            major: Arc::clone(&route.major),
        }
    }

    fn wake(&mut self, which: impl Fn(&Ticket) -> bool) {
        let waiting = self.tickets.iter();
        let woken = waiting.filter(|(_, ticket)| ticket.state == State::Waiting && which(ticket));
        self.woken.extend(woken.map(|(id, _)| *id));
    }

    /// Forgets buckets that have no ticket, if there are too many: first those that hold no state,
    /// then the others.
    fn forget(&mut self, now: Instant) {
        if self.buckets.len() <= MAX_KEPT {
            return;
        }
        let used: HashSet<&Key> = self.tickets.values().map(|ticket| &ticket.key).collect();
        self.buckets
            .retain(|key, bucket| used.contains(key) || bucket.counts(now));
        if self.buckets.len() > MAX_KEPT {
            self.buckets.retain(|key, _| used.contains(key));
        }
    }
}
