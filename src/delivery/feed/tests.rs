//! Explores every order of events in two sets, their leases and one stream.

use std::collections::HashSet;
use std::ops::Range;
use std::time::Duration;

use bytes::Bytes;

use super::*;
use crate::delivery::{self, Events};
use crate::environment;
use crate::event::{Credit, Dispatch, EventKind, Ledger};
use crate::protocol::{Payload, Session};

const OLD: ShardId = ShardId::ONE;

fn new() -> ShardId {
    ShardId::new(0, 2).unwrap()
}

/// The length of the longest stream that is explored. `THREADCORD_EVENTS_EXPLORED` overrides it:
/// eight events take some minutes.
const LONGEST: usize = 4;

/// When the handler finishes events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Handler {
    /// It finishes every event at once.
    AtOnce,
    /// It finishes every event at once except this one, which it may finish at any moment.
    KeepsOne(usize),
    /// It may finish this event at any moment, and finishes the others at the end.
    Finishes(usize),
}

/// A step of a history.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// The new session begins: it receives what is sent from this event on.
    Begin(usize),
    /// The old shard reads its next event.
    Old,
    /// The new shard reads its next event.
    New,
    /// The ACK of a heartbeat shows how far the old shard has read.
    OldAck,
    /// The same for the new one.
    NewAck,
    /// The old set has closed.
    HandOver,
    /// The handler finishes the delivered copy with this index.
    Handle(usize),
}

/// The production types, and what an observer knows about the history.
struct Play<'a> {
    stream: &'a [u64],
    handler: Handler,
    start: Instant,
    old: Arc<Feed>,
    new: Arc<Feed>,
    ledgers: [Arc<Ledger>; 2],
    events: Events,
    begins: Option<usize>,
    old_read: usize,
    new_read: usize,
    /// How many events had been sent when the ACKs of the old shard's heartbeats were read.
    old_acks: Vec<usize>,
    is_live: bool,
    /// Whether the hand-over was made in doubt.
    was_in_doubt: bool,
    /// The events of which it was not certain at the hand-over that the new set would receive them.
    in_doubt: Range<usize>,
    /// The number of each delivered event, with the event until it has been handled.
    delivered: Vec<(usize, Option<Event>)>,
}

impl<'a> Play<'a> {
    fn new(start: Instant, stream: &'a [u64], handler: Handler) -> Self {
        let (sender, events) = delivery::channel();
        let old = Feed::new(sender);
        let new = old.successor(&[OLD], &[new()]);
        let ledger = |shard| {
            let ledger = Ledger::new(Credit::new(100, 100_000), Arc::default(), || {});
            ledger.begin(Session::new("s".into(), 0, String::new(), shard, 1), 0);
            ledger
        };

        Self {
            stream,
            handler,
            start,
            old,
            new,
            ledgers: [ledger(OLD), ledger(self::new())],
            events,
            begins: None,
            old_read: 0,
            new_read: 0,
            old_acks: Vec::new(),
            is_live: false,
            was_in_doubt: false,
            in_doubt: 0..0,
            delivered: Vec::new(),
        }
    }

    /// A moment before event `n` is sent.
    fn before(&self, n: usize) -> Instant {
        self.start + Duration::from_millis(1000 * n as u64 + 1000)
    }

    /// How many events have been sent at least.
    fn sent(&self) -> usize {
        let read = self.old_read.max(self.new_read);
        read.max(self.begins.unwrap_or(0))
    }

    /// The earliest moment by which everything read so far can have been read.
    fn now(&self) -> Instant {
        self.start + Duration::from_millis(1000 * self.sent() as u64 + 500)
    }

    /// The steps that may happen next.
    fn steps(&self) -> Vec<Step> {
        let mut steps = Vec::new();
        match self.begins {
            None => steps.extend((self.old_read..=self.stream.len()).map(Step::Begin)),
            Some(begins) => {
                if self.new_read < self.stream.len() {
                    steps.push(Step::New);
                }
                steps.push(Step::NewAck);
                // The old set closes once it has read what was sent before the new set began, and
                // then what was sent before that point was reached.
                let wanted = self.old_acks.last().unwrap_or(&begins);
                let acks = self.old_acks.len();
                if !self.is_live && acks >= 2 {
                    steps.push(Step::HandOver);
                }
                // A third ACK may remove the last doubts. How events are handled has no influence
                // on that, so it is explored with one kind of handler only.
                let is_wanted = acks < 2
                    || acks == 2
                        && self.new.is_in_doubt()
                        && matches!(self.handler, Handler::KeepsOne(_));
                if !self.is_live && is_wanted && self.old_read >= *wanted {
                    steps.push(Step::OldAck);
                }
            }
        }

        if !self.is_live && self.old_read < self.stream.len() {
            steps.push(Step::Old);
        }

        let kept = match self.handler {
            Handler::AtOnce => None,
            Handler::KeepsOne(kept) | Handler::Finishes(kept) => Some(kept),
        };
        let outstanding = self.delivered.iter().enumerate();
        let kept = outstanding.filter(|(_, (n, event))| event.is_some() && Some(*n) == kept);
        steps.extend(kept.map(|(at, _)| Step::Handle(at)));
        steps
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Begin(at) => {
                self.begins = Some(at);
                self.new_read = at;
                self.new.begin(new(), true);
                self.new.ready(self.before(at), new());
            }
            Step::Old => {
                self.old_read += 1;
                let event = self.event(0, OLD, self.old_read - 1);
                self.old.put(self.now(), event);
            }
            Step::New => {
                self.new_read += 1;
                let event = self.event(1, new(), self.new_read - 1);
                self.new.put(self.now(), event);
            }
            Step::OldAck => {
                if self.old_acks.is_empty() {
                    self.in_doubt = 0..self.old_read;
                }
                self.old_acks.push(self.sent());
                self.old.has_read(OLD, self.before(self.old_read));
            }
            Step::NewAck => self.new.has_read(new(), self.before(self.new_read)),
            Step::HandOver => {
                self.is_live = true;
                self.was_in_doubt = self.new.is_in_doubt();
                self.in_doubt.start = self.new_read;
                let kind = EventKind::Resumed;
                self.new.take_over(self.now(), Event::new(new(), kind));
            }
            Step::Handle(at) => self.delivered[at].1 = None,
        }
        while let Ok(event) = self.events.try_recv() {
            if let Some(dispatch) = event.dispatch() {
                let number = usize::try_from(dispatch.sequence()).unwrap() - 1;
                let is_kept = match self.handler {
                    Handler::AtOnce => false,
                    Handler::KeepsOne(kept) => number == kept,
                    Handler::Finishes(_) => true,
                };
                self.delivered.push((number, is_kept.then_some(event)));
            }
        }
    }

    /// Creates event `n` as a session of the set receives it.
    fn event(&self, set: usize, shard: ShardId, n: usize) -> Event {
        let (sequence, data) = (n as u64 + 1, self.stream[n]);
        let json =
            format!(r#"{{"op":0,"s":{sequence},"t":"X","d":{{"guild_id":"0","n":{data}}}}}"#);
        let payload = Payload::read(Bytes::from(json)).unwrap();
        let dispatch = Dispatch::new(payload).unwrap();
        let (lease, _) = self.ledgers[set].lease(sequence, 10, None);
        Event::dispatch_of(shard, dispatch, lease)
    }

    /// Whether a copy of event `n` has been handled.
    fn is_handled(&self, n: usize) -> bool {
        let mut copies = self.delivered.iter();
        copies.any(|(number, event)| *number == n && event.is_none())
    }

    fn mark(&self, set: usize) -> u64 {
        self.ledgers[set].session().unwrap().sequence
    }

    /// Checks that each session's mark is below every event that the session received and that has
    /// not been handled.
    fn check_marks(&self) {
        let received = [
            0..self.old_read,
            self.begins.unwrap_or(self.new_read)..self.new_read,
        ];
        for (set, mut received) in received.into_iter().enumerate() {
            if let Some(first) = received.find(|n| !self.is_handled(*n)) {
                let mark = self.mark(set);
                assert!(mark <= first as u64, "set {set}: {mark} is past {first}");
            }
        }
    }

    /// Everything that determines how the history continues.
    fn key(&self) -> String {
        let delivered: Vec<_> = self
            .delivered
            .iter()
            .map(|(number, event)| (number, event.is_some()))
            .collect();
        let merging = self.old.merging.lock().after.clone().unwrap();
        let merge = merging.merge.lock().outline(self.start);
        let (begins, old, new) = (self.begins, self.old_read, self.new_read);
        let ledgers = [0, 1].map(|set| (self.mark(set), self.ledgers[set].outstanding()));
        let (acks, live) = (&self.old_acks, (self.is_live, self.was_in_doubt));
        format!("{begins:?} {old} {new} {acks:?} {live:?} {ledgers:?} {delivered:?} {merge}")
    }
}

/// Explores every history of a stream, each state once. Returns the number of states.
fn explore(stream: &[u64], handler: Handler) -> usize {
    let start = Instant::now();
    let is_distinct = stream.iter().collect::<HashSet<_>>().len() == stream.len();
    let (mut seen, mut left) = (HashSet::new(), vec![Vec::new()]);
    while let Some(history) = left.pop() {
        let mut play = Play::new(start, stream, handler);
        for step in &history {
            play.step(*step);
        }
        if !seen.insert(play.key()) {
            continue;
        }
        if is_distinct {
            play.check_marks();
        }
        let steps = play.steps();
        // The history ends here: only heartbeats, which never end, remain.
        if steps.iter().all(|step| matches!(step, Step::NewAck)) {
            play.delivered
                .iter_mut()
                .for_each(|(_, event)| *event = None);
            check_end(&play, is_distinct, &history);
        }
        for step in steps {
            let mut longer: Vec<Step> = history.clone();
            longer.push(step);
            left.push(longer);
        }
    }
    seen.len()
}

/// Checks that every event was delivered and that all leases were settled. If the events are
/// distinct, also checks that they were in order, and delivered twice only in doubt.
fn check_end(play: &Play<'_>, is_distinct: bool, history: &[Step]) {
    let given: Vec<usize> = play.delivered.iter().map(|(number, _)| *number).collect();
    if is_distinct {
        let mut firsts = given.clone();
        let mut seen = HashSet::new();
        firsts.retain(|n| seen.insert(*n));
        assert!(
            firsts.iter().copied().eq(0..play.stream.len()),
            "{given:?} after {history:?}"
        );
        for n in firsts {
            let copies = given.iter().filter(|other| **other == n).count();
            let may_come_twice = play.was_in_doubt && play.in_doubt.contains(&n);
            assert!(
                copies == 1 || copies == 2 && may_come_twice,
                "{given:?} after {history:?}"
            );
        }
    }

    for digest in play.stream {
        let sent = play.stream.iter().filter(|other| *other == digest).count();
        let copies = given.iter().filter(|n| play.stream[**n] == *digest);
        let copies = copies.count();
        assert!(
            copies >= sent,
            "{copies} of {sent} copies of {digest}: {given:?} after {history:?}"
        );
    }

    for (set, ledger) in play.ledgers.iter().enumerate() {
        assert_eq!(ledger.outstanding(), (0, 0), "set {set} after {history:?}");
    }
}

#[test]
fn no_order_loses_an_event_or_moves_a_mark_past_one() {
    let longest = environment::number("THREADCORD_EVENTS_EXPLORED");
    let longest = longest.map_or(LONGEST, |longest| {
        usize::try_from(longest).expect("the length fits into a usize")
    });
    let distinct: Vec<u64> = (0..longest as u64).collect();

    let mut states = 0;
    for kept in 0..longest {
        states += explore(&distinct, Handler::KeepsOne(kept));
        states += explore(&distinct, Handler::Finishes(kept));
    }

    // Every stream of two kinds of events, so that many events are equal.
    let length = longest.min(6);
    for bits in 0..1_u64 << (length - 1) {
        let stream: Vec<u64> = (0..length).map(|n| bits >> n & 1).collect();
        states += explore(&stream, Handler::AtOnce);
    }
    println!("{states} states of streams of up to {longest} events");
}

#[test]
fn what_every_session_is_sent_takes_no_equal_event_away() {
    let now = Instant::now();
    let sets = [2, 3].map(|total| {
        (0..total)
            .map(|number| ShardId::new(number, total).unwrap())
            .collect::<Vec<_>>()
    });
    let (sender, events) = delivery::channel();
    let old = Feed::new(sender);
    let new = old.successor(&sets[0], &sets[1]);
    let put = |feed: &Feed, set: &[ShardId]| {
        for shard in set {
            let json = r#"{"op":0,"s":2,"t":"USER_UPDATE","d":{"id":"1"}}"#;
            let dispatch = Dispatch::from_json(json).unwrap();
            feed.put(now, Event::new(*shard, EventKind::Dispatch(dispatch)));
        }
    };

    let came = || std::iter::from_fn(|| events.try_recv().ok()).count();
    for shard in &sets[1] {
        new.begin(*shard, true);
        new.ready(now, *shard);
    }

    for shard in &sets[0] {
        old.has_read(*shard, now);
    }

    put(&old, &sets[0]);
    put(&new, &sets[1]);
    assert_eq!(came(), 2, "the events of the old set");
    new.take_over(now, Event::new(sets[1][0], EventKind::Resumed));
    assert_eq!(came(), 1, "only the first event: none was held");
    put(&new, &sets[1]);
    assert_eq!(came(), 3, "another change");
}

#[test]
fn the_answer_to_a_command_is_nobody_elses() {
    let now = Instant::now();
    let (sender, events) = delivery::channel();
    let old = Feed::new(sender);
    let new_outlet = old.successor(&[OLD], &[new()]);
    let put = |feed: &Feed, shard| {
        let json = r#"{"op":0,"s":2,"t":"SOUNDBOARD_SOUNDS","d":{"guild_id":"4194304","soundboard_sounds":[]}}"#;
        let dispatch = Dispatch::from_json(json).unwrap();
        feed.put(now, Event::new(shard, EventKind::Dispatch(dispatch)));
    };

    let came = || std::iter::from_fn(|| events.try_recv().ok()).count();
    new_outlet.begin(new(), true);
    new_outlet.ready(now, new());
    old.has_read(OLD, now);
    put(&old, OLD);
    assert_eq!(came(), 1);
    put(&new_outlet, new());
    assert_eq!(came(), 0, "it is held");
    put(&old, OLD);
    assert_eq!(came(), 1);
    new_outlet.take_over(now, Event::new(new(), EventKind::Resumed));
    assert_eq!(came(), 2, "the first event and the held one");
    put(&new_outlet, new());
    assert_eq!(came(), 1);
}
