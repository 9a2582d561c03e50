#![allow(
    clippy::disallowed_methods,
    reason = "made-up instants count from some real one, and seeds from chance"
)]

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::ops::Range;

use fastrand::Rng;
use ureq::http::Method;

use super::answer::Count;
use super::invalid::MAX_INVALID;
use super::*;
use crate::environment;

const SECOND: Duration = Duration::from_secs(1);
/// The timeout of calls that must never time out.
const PATIENCE: Duration = Duration::from_secs(1_000_000);

fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn post(path: &str) -> Route {
    Route::new(&Method::POST, path)
}

fn answer(status: u16, count: Option<Count>) -> Answer {
    Answer {
        status,
        bucket: count.map(|_| "bucket".into()),
        count,
        ..Answer::default()
    }
}

fn left(limit: u32, remaining: u32, reset_after: Duration) -> Answer {
    let count = Count {
        limit,
        remaining,
        reset_after,
    };
    answer(200, Some(count))
}

fn limited(limited: Limited) -> Answer {
    Answer {
        limited: Some(limited),
        ..answer(429, None)
    }
}

/// Queues `count` requests to one channel, which may wait for a minute.
fn queue(limits: &mut RateLimits, now: Instant, count: usize) -> Vec<TicketId> {
    let queued =
        (0..count).map(|_| limits.request(post("/channels/1/messages"), now + 60 * SECOND));
    queued.collect()
}

fn going(limits: &mut RateLimits, now: Instant, ids: &[TicketId]) -> Vec<TicketId> {
    let ids = ids.iter().copied();
    ids.filter(|id| limits.poll(now, *id) == Turn::Go).collect()
}

#[test]
fn the_first_goes_alone_and_the_others_as_its_answer_allows() {
    let now = Instant::now();
    let mut limits = RateLimits::new(50, SECOND);
    let ids = queue(&mut limits, now, 8);
    assert_eq!(going(&mut limits, now, &ids), ids[..1]);
    limits.answered(now, ids[0], &left(3, 2, 5 * SECOND));
    assert_eq!(going(&mut limits, now, &ids[1..]), ids[1..3]);
    assert_eq!(limits.poll(now, ids[3]), Turn::Wait(Some(now + 5 * SECOND)));
    assert_eq!(
        limits.poll(now, ids[4]),
        Turn::Wait(None),
        "the one before it wakes it"
    );

    let next = now + 5 * SECOND;
    limits.answered(now, ids[1], &left(3, 1, 5 * SECOND));
    limits.answered(now, ids[2], &left(3, 0, 5 * SECOND));
    limits.take_woken();
    assert_eq!(limits.poll(next, ids[3]), Turn::Go);
    assert_eq!(
        limits.take_woken(),
        ids[3..6],
        "it lets those behind it go, too"
    );
}

#[test]
fn one_that_leaves_hands_its_place_on() {
    let now = Instant::now();
    let mut limits = RateLimits::new(50, SECOND);
    let ids = queue(&mut limits, now, 3);
    assert_eq!(going(&mut limits, now, &ids), ids[..1]);
    limits.answered(now, ids[0], &left(1, 0, 5 * SECOND));
    let ends = now + 5 * SECOND;
    assert_eq!(limits.poll(now, ids[1]), Turn::Wait(Some(ends)));
    assert_eq!(limits.poll(now, ids[2]), Turn::Wait(None));
    limits.take_woken();
    limits.leave(now, ids[1]);
    assert_eq!(limits.take_woken(), ids[2..]);
    assert_eq!(limits.poll(now, ids[2]), Turn::Wait(Some(ends)));
}

#[test]
fn what_is_under_way_when_a_window_begins_may_count_in_it() {
    let now = Instant::now();
    let mut limits = RateLimits::new(50, SECOND);
    let ids = queue(&mut limits, now, 6);
    assert_eq!(going(&mut limits, now, &ids), ids[..1]);
    limits.answered(now, ids[0], &left(3, 2, 5 * SECOND));
    assert_eq!(going(&mut limits, now, &ids[1..]), ids[1..3]);
    // The first of the two reached Discord in its next window; the second one may as well.
    let soon = now + millis(4_990);
    limits.answered(soon, ids[1], &left(3, 2, 5 * SECOND));
    assert_eq!(going(&mut limits, soon, &ids[3..]), ids[3..4]);
}

#[test]
fn a_late_answer_says_nothing_of_the_next_window() {
    let now = Instant::now();
    let mut limits = RateLimits::new(50, SECOND);
    let first = queue(&mut limits, now, 1)[0];
    assert_eq!(limits.poll(now, first), Turn::Go);
    limits.answered(now, first, &left(3, 2, 5 * SECOND));
    let late = queue(&mut limits, now, 1)[0];
    assert_eq!(limits.poll(now + millis(4_900), late), Turn::Go);

    let next = now + 5 * SECOND;
    let ids = queue(&mut limits, next, 3);
    assert_eq!(
        going(&mut limits, next, &ids),
        ids[..2],
        "the late one may count"
    );
    limits.answered(next + millis(500), late, &left(3, 1, millis(100)));
    let after = next + millis(700);
    assert!(going(&mut limits, after, &ids[2..]).is_empty());
}

#[test]
fn the_last_answer_of_a_window_keeps_its_count() {
    let now = Instant::now();
    let mut limits = RateLimits::new(50, SECOND);
    let first = queue(&mut limits, now, 1)[0];
    assert_eq!(limits.poll(now, first), Turn::Go);
    limits.answered(now, first, &left(3, 2, 5 * SECOND));
    let early = queue(&mut limits, now, 1)[0];
    assert_eq!(limits.poll(now + millis(4_990), early), Turn::Go);

    let next = now + 5 * SECOND;
    let ids = queue(&mut limits, next, 1);
    assert_eq!(going(&mut limits, next, &ids), ids);
    // Both count in one window of Discord's, the second before the first.
    limits.answered(next + millis(100), early, &left(3, 1, 5 * SECOND));
    limits.answered(next + millis(500), ids[0], &left(3, 2, 5 * SECOND));
    let after = next + millis(600);
    let more = queue(&mut limits, after, 2);
    assert_eq!(going(&mut limits, after, &more), more[..1]);
}

#[test]
fn routes_of_one_bucket_share_what_is_left() {
    let now = Instant::now();
    let mut limits = RateLimits::new(50, SECOND);
    let deadline = now + 60 * SECOND;
    let first = limits.request(post("/channels/1/messages"), deadline);
    let second = limits.request(
        Route::new(&Method::PATCH, "/channels/1/messages/5"),
        deadline,
    );
    let elsewhere = limits.request(post("/channels/2/messages"), deadline);
    assert_eq!(
        going(&mut limits, now, &[first, second, elsewhere]).len(),
        3
    );
    limits.answered(now, first, &left(2, 1, SECOND));
    limits.answered(now, second, &left(2, 0, SECOND));
    let more = queue(&mut limits, now, 1);
    assert_eq!(limits.poll(now, more[0]), Turn::Wait(Some(now + SECOND)));
    let other = limits.request(post("/channels/3/messages"), deadline);
    assert_eq!(
        limits.poll(now, other),
        Turn::Go,
        "each channel has a separate limit"
    );
}

#[test]
fn a_call_fails_at_once_if_it_would_wait_for_too_long() {
    let now = Instant::now();
    let mut limits = RateLimits::new(50, SECOND);
    let ids = queue(&mut limits, now, 2);
    assert_eq!(limits.poll(now, ids[0]), Turn::Go);
    limits.answered(now, ids[0], &left(1, 0, 5 * SECOND));
    let with = |limits: &mut RateLimits, timeout| {
        let id = limits.request(post("/channels/1/messages"), now + timeout);
        let turn = limits.poll(now, id);
        limits.leave(now, id);
        turn
    };
    let retry_after = |seconds: u32| Turn::Limited {
        retry_after: seconds * SECOND,
        text: None,
    };
    // One request is ahead of it.
    assert_eq!(with(&mut limits, 9 * SECOND), retry_after(10));
    assert_eq!(with(&mut limits, 10 * SECOND), Turn::Wait(None));

    // A rate limit that arrives while they wait ends the wait at once.
    limits.take_woken();
    let other = limits.request(post("/users/@me/channels"), now + 60 * SECOND);
    assert_eq!(limits.poll(now, other), Turn::Go);
    limits.answered(now, other, &limited(Limited::Global(3600 * SECOND)));
    assert!(limits.take_woken().contains(&ids[1]));
    assert_eq!(limits.poll(now, ids[1]), retry_after(3600));
}

#[test]
fn the_limit_of_all_routes_does_not_hold_answers_to_interactions() {
    let now = Instant::now();
    let mut limits = RateLimits::new(2, SECOND);
    let deadline = now + 60 * SECOND;
    let mut request = |path: &str| limits.request(post(path), deadline);
    let ids = [
        request("/channels/1/x"),
        request("/channels/2/x"),
        request("/channels/3/x"),
        request("/channels/4/x"),
    ];
    let interaction = request("/interactions/5/token/callback");
    // At most a third of the limit is in flight at a time.
    assert_eq!(going(&mut limits, now, &ids), ids[..1]);
    assert_eq!(limits.poll(now, interaction), Turn::Go);
    limits.answered(now + millis(10), ids[0], &answer(200, None));
    assert!(limits.take_woken().contains(&ids[1]));
    limits.answered(now + millis(20), ids[1], &answer(200, None));
    let first = now + millis(10) + SECOND;
    assert_eq!(
        limits.poll(now + millis(20), ids[2]),
        Turn::Wait(Some(first))
    );
    assert_eq!(limits.poll(now + millis(20), ids[3]), Turn::Wait(None));
    limits.take_woken();
    assert_eq!(limits.poll(first, ids[2]), Turn::Go);
    assert_eq!(
        limits.poll(first, ids[3]),
        Turn::Wait(Some(first + SECOND)),
        "or when the answer comes"
    );
    limits.answered(first, ids[2], &answer(200, None));
    assert!(
        limits.take_woken().contains(&ids[3]),
        "it is now the first that waits"
    );
    let second = now + millis(20) + SECOND;
    assert_eq!(limits.poll(first, ids[3]), Turn::Wait(Some(second)));

    // If other processes use the limit too, this one takes half of it for a while.
    assert_eq!(limits.poll(second, ids[3]), Turn::Go);
    limits.answered(second, ids[3], &limited(Limited::Global(SECOND)));
    let more = [6, 7].map(|n| limits.request(post(&format!("/channels/{n}/x")), deadline));
    let next = second + SECOND;
    assert_eq!(going(&mut limits, next, &more), more[..1]);
    limits.answered(next, more[0], &answer(200, None));
    assert_eq!(limits.poll(next, more[1]), Turn::Wait(Some(next + SECOND)));
}

#[test]
fn a_block_of_the_address_holds_everything_and_shows_its_text() {
    let now = Instant::now();
    let mut limits = RateLimits::new(50, SECOND);
    let ids = queue(&mut limits, now, 1);
    assert_eq!(limits.poll(now, ids[0]), Turn::Go);
    let text = "error code: 1015".to_owned();
    limits.answered(
        now,
        ids[0],
        &limited(Limited::Blocked(300 * SECOND, text.clone())),
    );
    let interaction = limits.request(post("/interactions/5/token/callback"), now + 60 * SECOND);
    let refusal = Turn::Limited {
        retry_after: 300 * SECOND,
        text: Some(text),
    };
    assert_eq!(limits.poll(now, interaction), refusal);
    let patient = limits.request(post("/channels/1/messages"), now + 600 * SECOND);
    let until = now + 300 * SECOND;
    limits.leave(now, interaction);
    assert_eq!(limits.poll(now, patient), Turn::Wait(Some(until)));
    assert_eq!(limits.poll(until, patient), Turn::Go);
}

#[test]
fn nothing_is_sent_after_too_many_refusals_until_they_are_old() {
    let now = Instant::now();
    let mut limits = RateLimits::new(100_000, SECOND);
    for n in 0..MAX_INVALID {
        let at = now + millis(u64::from(n));
        let id = queue(&mut limits, at, 1)[0];
        assert_eq!(limits.poll(at, id), Turn::Go, "{n}");
        let status = if n % 2 == 0 { 403 } else { 401 };
        limits.answered(at, id, &answer(status, None));
        limits.leave(at, id);
    }
    let at = now + 8 * SECOND;
    let id = queue(&mut limits, at, 1)[0];
    let Turn::TooManyInvalidRequests { count, retry_after } = limits.poll(at, id) else {
        panic!("too many")
    };
    assert_eq!((count, retry_after), (MAX_INVALID, 593 * SECOND));
    limits.leave(at, id);
    let later = at + retry_after;
    let id = queue(&mut limits, later, 1)[0];
    assert_eq!(limits.poll(later, id), Turn::Go);

    // Refusals with the scope `shared`, which others caused too, do not count.
    let mut shared = limited(Limited::Bucket(millis(1)));
    shared.is_shared = true;
    let mut invalid = InvalidRequests::default();
    (0..2 * MAX_INVALID).for_each(|_| invalid.count(now, &shared));
    assert_eq!(invalid.too_many(now), None);
}

#[test]
fn what_is_kept_is_bounded() {
    let now = Instant::now();
    let mut limits = RateLimits::new(u32::MAX, SECOND);
    for n in 0..3 * MAX_KEPT {
        // Bucket names and times as a hostile server may choose them.
        let id = limits.request(post(&format!("/channels/{n}/x{n}")), now + SECOND);
        assert_eq!(limits.poll(now, id), Turn::Go);
        let mut answer = left(1, 0, 86_400 * SECOND);
        answer.bucket = Some(format!("bucket {n}").into());
        limits.answered(now, id, &answer);
        limits.leave(now, id);
        limits.global = Global::new(u32::MAX, SECOND);
    }
    assert!(limits.buckets.len() <= MAX_KEPT + 1 && limits.names.len() <= MAX_KEPT);
    assert!(limits.tickets.is_empty());
}

#[test]
fn a_close_ends_all_that_wait() {
    let now = Instant::now();
    let mut limits = RateLimits::new(50, SECOND);
    let ids = queue(&mut limits, now, 3);
    assert_eq!(going(&mut limits, now, &ids), ids[..1]);
    limits.take_woken();
    limits.close();
    assert_eq!(limits.take_woken(), ids[1..]);
    assert_eq!(limits.poll(now, ids[1]), Turn::Closed);
    limits.answered(now, ids[0], &left(5, 4, SECOND));
    let elsewhere = limits.request(post("/channels/2/messages"), now + SECOND);
    assert_eq!(limits.poll(now, elsewhere), Turn::Go, "it need not wait");
}

/// A simulation of Discord's rate limits.
struct Server {
    limit: u32,
    window: Duration,
    global: (u32, Duration),
    /// The number of buckets that all routes share.
    buckets: u64,
    /// When the window of each bucket ends, and the number of requests that count in it.
    windows: HashMap<(u64, Arc<str>), (Instant, u32)>,
    of_all: Option<(Instant, u32)>,
    answers: u32,
    refusals: u32,
    /// How many of a thousand requests get an answer by [`odd`].
    odd: u32,
}

impl Server {
    fn answer(&mut self, now: Instant, route: &Route) -> Answer {
        self.answers += 1;
        let (limit, window) = self.global;
        if !route.is_exempt {
            let open = self.of_all.filter(|(ends, _)| *ends > now);
            let (ends, used) = open.unwrap_or((now + window, 0));
            if used == limit {
                self.refusals += 1;
                return limited(Limited::Global(ends - now));
            }
            self.of_all = Some((ends, used + 1));
        }

        let number = route.template.bytes().map(u64::from).sum::<u64>() % self.buckets;
        let key = (number, Arc::clone(&route.major));
        let open = self
            .windows
            .get(&key)
            .filter(|(ends, _)| *ends > now)
            .copied();
        let (ends, used) = open.unwrap_or((now + self.window, 0));
        let is_full = used == self.limit;
        let used = used + u32::from(!is_full);
        self.windows.insert(key, (ends, used));
        let mut answer = left(self.limit, self.limit - used, ends - now);
        answer.bucket = Some(format!("bucket {number}").into());
        if is_full {
            self.refusals += 1;
            answer.status = 429;
            answer.limited = Some(Limited::Bucket(ends - now));
        }
        answer
    }
}

/// An answer that a hostile or failing server may give.
fn odd(rng: &mut Rng, route: &Route) -> Answer {
    let wait = millis(rng.u64(1..30_000));
    let mut answer = match rng.u8(0..7) {
        0 => limited(Limited::Global(wait)),
        1 => limited(Limited::Bucket(wait)),
        2 => limited(Limited::Blocked(wait, "blocked".into())),
        3 => answer(502, None),
        4 => answer(200, None),
        5 => left(u32::MAX, 0, wait),
        _ => left(rng.u32(1..9), rng.u32(0..20), wait),
    };
    if answer.bucket.is_some() {
        answer.bucket = Some(format!("odd {}", route.template.len() % 3).into());
    }
    answer
}

/// A thread that sends one request after the other.
struct Caller {
    process: usize,
    jobs: Vec<(Route, Duration)>,
    /// The call in progress.
    call: Option<Call>,
}

struct Call {
    id: TicketId,
    route: Route,
    deadline: Instant,
    /// When it polls again; `None` while its request is in flight.
    asks_at: Option<Instant>,
}

enum Event {
    Begins(usize),
    Arrives(usize),
    Answered(usize, Answer),
    Lost(usize),
}

/// Processes with callers, and a network between them and the server.
struct History {
    rng: Rng,
    now: Instant,
    server: Server,
    processes: Vec<RateLimits>,
    callers: Vec<Caller>,
    events: BinaryHeap<Reverse<(Instant, u64)>>,
    what: HashMap<u64, Event>,
    number: u64,
    /// The latencies of requests and of answers, in milliseconds.
    delays: (Range<u64>, Range<u64>),
    /// When each ticket of a process began to wait.
    since: HashMap<(usize, TicketId), Instant>,
    /// The longest pause of a caller between two calls, in milliseconds.
    pause: u64,
    /// How many of a thousand requests get no answer.
    lost: u32,
    done: u32,
    gave_up: u32,
}

impl History {
    fn new(seed: u64, processes: usize) -> Self {
        let mut rng = Rng::with_seed(seed);
        let now = Instant::now();
        let window = rng.u64(1_000..6_000);
        let (limit, of_all) = (rng.u32(1..8), rng.u32(3..60));
        let server = Server {
            limit,
            window: millis(window),
            global: (of_all, SECOND),
            buckets: rng.u64(1..4),
            windows: HashMap::new(),
            of_all: None,
            answers: 0,
            refusals: 0,
            odd: 0,
        };

        let out = rng.u64(1..150);
        let back = rng.u64(1..window / 3);
        Self {
            now,
            server,
            processes: (0..processes)
                .map(|_| RateLimits::new(of_all, SECOND))
                .collect(),
            callers: Vec::new(),
            events: BinaryHeap::new(),
            what: HashMap::new(),
            number: 0,
            delays: (0..out, 0..back),
            since: HashMap::new(),
            pause: 0,
            lost: 0,
            done: 0,
            gave_up: 0,
            rng,
        }
    }

    /// Adds callers with jobs on a few routes; `patience` gives the timeout of each call.
    fn fill(&mut self, callers: usize, jobs: usize, patience: impl Fn(&mut Rng) -> Duration) {
        // Often all of them use one channel.
        let majors = if self.rng.bool() {
            1
        } else {
            self.rng.u64(1..6)
        };
        for caller in 0..callers {
            let rng = &mut self.rng;
            let mut job = || {
                let major = rng.u64(0..majors);
                let path = match rng.u8(0..8) {
                    0 => format!("/guilds/{major}/bans"),
                    1 => format!("/channels/{major}/messages/5"),
                    2 => format!("/interactions/{}/token/callback", rng.u64(..)),
                    3 => "/users/@me".to_owned(),
                    _ => format!("/channels/{major}/messages"),
                };
                (post(&path), patience(rng))
            };
            let jobs = (0..jobs).map(|_| job()).collect();
            self.callers.push(Caller {
                process: caller % self.processes.len(),
                jobs,
                call: None,
            });
        }
    }

    fn schedule(&mut self, at: Instant, event: Event) {
        self.number += 1;
        self.what.insert(self.number, event);
        self.events.push(Reverse((at, self.number)));
    }

    /// Runs until every caller is done.
    fn run(&mut self) {
        for caller in 0..self.callers.len() {
            self.next_job(caller);
        }

        for _ in 0..1_000_000 {
            self.wake();
            let asks = self
                .callers
                .iter()
                .filter_map(|caller| caller.call.as_ref()?.asks_at);
            let asks = asks.min();
            let event = self.events.peek().map(|Reverse((at, _))| *at);
            let Some(next) = asks.into_iter().chain(event).min() else {
                assert!(
                    self.callers.iter().all(|caller| caller.call.is_none()),
                    "a caller waits forever"
                );
                return;
            };
            self.now = next;
            if event == Some(next) {
                self.event();
                continue;
            }
            let is_due = |caller: &Caller| {
                caller
                    .call
                    .as_ref()
                    .is_some_and(|call| call.asks_at == Some(next))
            };
            let due = self.callers.iter().position(is_due).unwrap();
            self.ask(due);
        }
        panic!("it never ends");
    }

    fn event(&mut self) {
        let Some(Reverse((_, number))) = self.events.pop() else {
            return;
        };
        match self.what.remove(&number).unwrap() {
            Event::Begins(caller) => self.next_job(caller),
            Event::Arrives(caller) => {
                let route = self.callers[caller].call.as_ref().unwrap().route.clone();
                let answer = if self.rng.u32(0..1000) < self.server.odd {
                    odd(&mut self.rng, &route)
                } else {
                    self.server.answer(self.now, &route)
                };
                let back = self.now + millis(self.rng.u64(self.delays.1.clone()));
                let is_lost = self.rng.u32(0..1000) < self.lost;
                let event = if is_lost {
                    Event::Lost(caller)
                } else {
                    Event::Answered(caller, answer)
                };
                self.schedule(back, event);
            }
            Event::Answered(caller, answer) => {
                let id = self.callers[caller].call.as_ref().unwrap().id;
                let limits = &mut self.processes[self.callers[caller].process];
                limits.answered(self.now, id, &answer);
                if answer.status == 429 {
                    limits.requeue(id);
                    self.waits_again(caller, id);
                } else {
                    self.done += 1;
                    self.end(caller);
                }
            }
            Event::Lost(caller) => {
                let id = self.callers[caller].call.as_ref().unwrap().id;
                let limits = &mut self.processes[self.callers[caller].process];
                limits.failed(self.now, id);
                limits.requeue(id);
                self.waits_again(caller, id);
            }
        }
    }

    fn waits_again(&mut self, caller: usize, id: TicketId) {
        self.since
            .insert((self.callers[caller].process, id), self.now);
        self.ask(caller);
    }

    /// Makes the callers that were woken poll now.
    fn wake(&mut self) {
        for process in 0..self.processes.len() {
            for id in self.processes[process].take_woken() {
                let is_woken = |caller: &Caller| {
                    let call = caller.call.as_ref();
                    caller.process == process
                        && call.is_some_and(|call| call.id == id && call.asks_at.is_some())
                };
                if let Some(caller) = self.callers.iter().position(is_woken) {
                    self.callers[caller].call.as_mut().unwrap().asks_at = Some(self.now);
                }
            }
        }
    }

    fn next_job(&mut self, caller: usize) {
        let limits = &mut self.processes[self.callers[caller].process];
        let Some((route, patience)) = self.callers[caller].jobs.pop() else {
            return;
        };
        let deadline = self.now + patience;
        let id = limits.request(route.clone(), deadline);
        self.since
            .insert((self.callers[caller].process, id), self.now);
        self.callers[caller].call = Some(Call {
            id,
            route,
            deadline,
            asks_at: None,
        });
        self.ask(caller);
    }

    fn ask(&mut self, caller: usize) {
        let Caller { process, call, .. } = &mut self.callers[caller];
        let call = call.as_mut().unwrap();
        let limits = &mut self.processes[*process];
        match limits.poll(self.now, call.id) {
            Turn::Go => {
                let State::Sent(sent) = limits.tickets[&call.id].state else {
                    panic!("its turn came, but its state is not `Sent`")
                };
                let overtaken = limits.tickets.range(..call.id).filter(|(id, other)| {
                    let is_waiting =
                        other.state == State::Waiting && self.since[&(*process, **id)] < sent;
                    is_waiting && other.route == call.route
                });
                assert_eq!(overtaken.count(), 0, "it overtakes an earlier request");
                call.asks_at = None;
                let out = self.now + millis(self.rng.u64(self.delays.0.clone()));
                self.schedule(out, Event::Arrives(caller));
            }
            Turn::Wait(until) => {
                let until = until.map_or(call.deadline, |until| until.min(call.deadline));
                assert!(until > self.now, "it polls again without a pause");
                call.asks_at = Some(until);
            }
            Turn::Limited { retry_after, .. } => {
                let is_late = self.now >= call.deadline || self.now + retry_after > call.deadline;
                assert!(is_late, "it fails although it could wait");
                self.gave_up += 1;
                self.end(caller);
            }
            Turn::TooManyInvalidRequests { .. } | Turn::Closed => panic!("no history has it"),
        }
    }

    fn end(&mut self, caller: usize) {
        let id = self.callers[caller].call.take().unwrap().id;
        let limits = &mut self.processes[self.callers[caller].process];
        limits.leave(self.now, id);
        let pause = self.rng.u64(0..=self.pause);
        self.schedule(self.now + millis(pause), Event::Begins(caller));
    }
}

/// Runs many histories: `THREADCORD_HISTORIES` of them, or only the one with the seed
/// `THREADCORD_HISTORY`.
fn histories(run: impl Fn(u64)) {
    if let Some(seed) = environment::number("THREADCORD_HISTORY") {
        return run(seed);
    }
    for seed in 0..environment::number("THREADCORD_HISTORIES").unwrap_or(1_000) {
        let ran = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| run(seed)));
        if let Err(panic) = ran {
            eprintln!("the history of seed {seed} (`THREADCORD_HISTORY`)");
            std::panic::resume_unwind(panic);
        }
    }
}

#[test]
fn alone_it_is_never_refused_and_everybody_has_a_turn() {
    histories(|seed| {
        let mut history = History::new(seed, 1);
        let (callers, jobs) = (history.rng.usize(1..12), history.rng.usize(1..20));
        // No two routes share a bucket: a process can learn of that only by a 429.
        history.server.buckets = u64::MAX;
        history.pause = history.rng.u64(0..3_000);
        history.fill(callers, jobs, |_| PATIENCE);
        history.run();
        assert_eq!(
            history.server.refusals, 0,
            "429s of {}",
            history.server.answers
        );
        assert_eq!(history.done as usize, callers * jobs);
    });
}

#[test]
fn nobody_is_forgotten_whatever_gets_lost_or_gives_up() {
    histories(|seed| {
        let mut history = History::new(seed, 1);
        history.lost = history.rng.u32(0..300);
        history.server.odd = history.rng.u32(0..300);
        history.pause = history.rng.u64(0..3_000);
        let (callers, jobs) = (history.rng.usize(1..12), history.rng.usize(1..20));
        let is_patient = seed % 2 == 0;
        history.fill(callers, jobs, |rng| {
            let patience = millis(rng.u64(0..20_000));
            if is_patient { PATIENCE } else { patience }
        });
        history.run();
        let (done, gave_up) = (history.done as usize, history.gave_up as usize);
        assert_eq!(done + gave_up, callers * jobs);
        assert!(!is_patient || gave_up == 0, "{gave_up} were forgotten");
    });
}

#[test]
fn two_processes_recover_and_are_hardly_refused() {
    let (answers, refusals) = (std::cell::Cell::new(0), std::cell::Cell::new(0));
    histories(|seed| {
        let mut history = History::new(seed, 2);
        // With a limit of 1, each would have to guess whether the other has used it.
        history.server.limit = history.rng.u32(5..10);
        // Each process has its share of the global rate limit.
        for limits in &mut history.processes {
            limits.global = Global::new(history.server.global.0.div_ceil(2) - 1, SECOND);
        }
        let (callers, jobs) = (history.rng.usize(2..24), history.rng.usize(20..60));
        history.fill(callers, jobs, |_| PATIENCE);
        history.run();
        assert_eq!(history.done as usize, callers * jobs);
        answers.set(answers.get() + history.server.answers);
        refusals.set(refusals.get() + history.server.refusals);
    });
    let (answers, refusals): (u32, u32) = (answers.get(), refusals.get());
    assert!(
        refusals * 100 < answers,
        "{refusals} of {answers} answers are 429"
    );
}

#[test]
fn it_is_as_fast_as_the_limits_allow() {
    histories(|seed| {
        let mut history = History::new(seed, 1);
        history.delays = (0..1, 0..1);
        history.server.buckets = 1;
        let jobs = history.rng.usize(1..40);
        let callers = 8;
        for _ in 0..callers {
            let jobs = vec![(post("/channels/1/messages"), PATIENCE); jobs];
            history.callers.push(Caller {
                process: 0,
                jobs,
                call: None,
            });
        }
        let start = history.now;
        history.run();
        let count = u32::try_from(callers * jobs).unwrap();
        let windows = |limit: u32| (count - 1) / limit;
        let of_bucket = history.server.window * windows(history.server.limit);
        let of_all = SECOND * windows(history.server.global.0);
        let (took, least) = (history.now - start, of_bucket.max(of_all));
        // A bucket's window begins with its first request, which the global rate limit may delay.
        assert!(
            took <= least + history.server.window + SECOND,
            "{took:?} for at least {least:?}"
        );
    });
}
