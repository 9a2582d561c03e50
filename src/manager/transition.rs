//! Which shards open, restart and close next.
#![deny(clippy::disallowed_methods)]

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::num::NonZeroU32;
use std::time::{Duration, Instant};

use crate::protocol::Stage;
use crate::shard::Change;
use crate::shard_id::ShardId;

/// How often a set that lags behind is looked at.
const CAUGHT_UP_CHECK: Duration = Duration::from_millis(10);

/// How many windows' worth of shards may be on their way.
const AHEAD: usize = 2;

/// The way from the shards that run to those that shall run: starts, splits, restarts and reshards
/// are all one of these.
///
/// Shards open in the order given. No more are on their way at once than could identify soon: a
/// crowd of connections that wait for their turn costs threads, descriptors and Discord's patience.
/// And a shard opens only when the one before it of its rate limit key has taken its place in the
/// queue (or has failed once), so that they identify in order.
#[derive(Debug)]
pub(crate) struct Transition {
    max_concurrency: NonZeroU32,
    open: VecDeque<ShardId>,
    /// Opened, but neither identified nor resumed yet; `true` once it has asked for its turn.
    under_way: HashMap<ShardId, bool>,
    restart: VecDeque<ShardId>,
    /// Asked to restart; `true` once it has left.
    away: HashMap<ShardId, bool>,
    most_away: usize,
    handover: Option<Handover>,
}

/// One set of shards gives way to another.
#[derive(Debug)]
struct Handover {
    /// The new set: who is ready, and whose guilds are in.
    new: BTreeMap<ShardId, Settled>,
    /// Those of the old set that have not stopped.
    old: Vec<ShardId>,
    overlap: Duration,
    phase: Phase,
}

#[derive(Clone, Copy, Debug, Default)]
struct Settled {
    ready: bool,
    guilds_in: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Until the new set is ready and its guilds are in.
    Settling,
    /// Both sets are heard, since then.
    Overlap(Instant),
    /// The old set has read all that was sent before the new one was ready. Then it must also have
    /// read all that was sent before this instant: see [`Merge`](crate::delivery).
    CatchingUp(Instant),
    /// The old set has caught up, at that instant. The new one is to read what would be repeated
    /// else, but is not waited for longer than the overlap: what it holds may be what keeps it from
    /// reading on.
    Doubting(Instant),
    /// The old set closes; so many of it have been asked to.
    Closing(usize),
}

/// What a transition asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Open this shard.
    Open(ShardId),
    /// Have this one connect anew.
    Restart(ShardId),
    /// The old set is going to close: from here there is no way back.
    Commit,
    /// Close this one of the old set.
    Close(ShardId),
    /// The old set has stopped: the new one takes over; say when it has.
    HandOver,
    /// Nothing before that instant, or before a shard gets somewhere.
    Wait(Option<Instant>),
}

impl Transition {
    /// Nothing to do, where `max_concurrency` shards may identify at once.
    pub(crate) fn new(max_concurrency: NonZeroU32) -> Self {
        Self {
            max_concurrency,
            open: VecDeque::new(),
            under_way: HashMap::new(),
            restart: VecDeque::new(),
            away: HashMap::new(),
            most_away: 1,
            handover: None,
        }
    }

    /// How many may identify at once.
    pub(crate) fn max_concurrency(&self) -> NonZeroU32 {
        self.max_concurrency
    }

    /// Discord says how many may identify at once.
    pub(crate) fn set_max_concurrency(&mut self, max_concurrency: NonZeroU32) {
        self.max_concurrency = max_concurrency;
    }

    /// Opens shards, after those that are to be opened already.
    pub(crate) fn open(&mut self, shards: impl IntoIterator<Item = ShardId>) {
        for shard in shards {
            if !self.is_opening(shard) {
                self.open.push_back(shard);
            }
        }
    }

    /// Restarts shards, one of a rate limit key at a time and `most_away` in all.
    pub(crate) fn restart(&mut self, shards: impl IntoIterator<Item = ShardId>, most_away: usize) {
        let is_idle = self.restart.is_empty() && self.away.is_empty();
        for shard in shards {
            if !self.restart.contains(&shard) {
                self.restart.push_back(shard);
            }
        }
        // Whoever asked before for fewer to be away at once is not let down.
        self.most_away = if is_idle {
            most_away
        } else {
            self.most_away.min(most_away)
        };
    }

    /// Whether a shard was asked to restart and is not back.
    pub(crate) fn is_away(&self, shard: ShardId) -> bool {
        self.away.contains_key(&shard)
    }

    /// A restart has failed: the others are not tried. Returns them.
    pub(crate) fn give_up_restarts(&mut self) -> Vec<ShardId> {
        std::mem::take(&mut self.restart).into()
    }

    /// Opens the shards `new`; when they are ready and their guilds are in, waits for `overlap` and
    /// until `old` has caught up, then up to `overlap` for `new` to catch up, closes `old`, and
    /// hands over.
    pub(crate) fn replace(&mut self, old: Vec<ShardId>, new: &[ShardId], overlap: Duration) {
        self.open(new.iter().copied());
        let new = new
            .iter()
            .map(|shard| (*shard, Settled::default()))
            .collect();
        self.handover = Some(Handover {
            new,
            old,
            overlap,
            phase: Phase::Settling,
        });
    }

    /// The new set has taken over.
    pub(crate) fn handed_over(&mut self) {
        self.handover = None;
    }

    /// Whether nothing is to be done.
    pub(crate) fn is_done(&self) -> bool {
        !self.is_opening_any()
            && self.restart.is_empty()
            && self.away.is_empty()
            && self.handover.is_none()
    }

    /// Whether a shard waits to be opened, or is on its way.
    pub(crate) fn is_opening_any(&self) -> bool {
        !self.open.is_empty() || !self.under_way.is_empty()
    }

    /// Whether this shard waits to be opened, or is on its way.
    pub(crate) fn is_opening(&self, shard: ShardId) -> bool {
        self.open.contains(&shard) || self.under_way.contains_key(&shard)
    }

    /// Nothing more is opened, restarted or replaced. Returns what was to be opened.
    pub(crate) fn clear(&mut self) -> Vec<ShardId> {
        self.under_way.clear();
        self.restart.clear();
        self.away.clear();
        self.handover = None;
        std::mem::take(&mut self.open).into()
    }

    /// What to do next. `has_caught_up` tells whether a shard has delivered all that was sent to it
    /// before an instant, and `is_in_doubt` whether the hand-over would repeat an event.
    pub(crate) fn poll(
        &mut self,
        now: Instant,
        has_caught_up: impl Fn(ShardId, Instant) -> bool,
        is_in_doubt: impl Fn() -> bool,
    ) -> Step {
        let step = self.poll_open().or_else(|| self.poll_restart());
        step.unwrap_or_else(|| self.poll_handover(now, &has_caught_up, &is_in_doubt))
    }

    fn poll_open(&mut self) -> Option<Step> {
        let &shard = self.open.front()?;
        let crowded = self.under_way.len() >= AHEAD * self.max_concurrency.get() as usize;
        if crowded
            || self
                .under_way
                .iter()
                .any(|(other, asked)| !asked && self.key(*other) == self.key(shard))
        {
            return None;
        }
        self.open.pop_front();
        self.under_way.insert(shard, false);
        Some(Step::Open(shard))
    }

    fn poll_restart(&mut self) -> Option<Step> {
        if self.away.len() >= self.most_away {
            return None;
        }
        let is_free = |shard: &ShardId| {
            self.away
                .keys()
                .all(|other| self.key(*other) != self.key(*shard))
        };
        let at = self.restart.iter().position(is_free)?;
        let shard = self.restart.remove(at)?;
        self.away.insert(shard, false);
        Some(Step::Restart(shard))
    }

    fn poll_handover(
        &mut self,
        now: Instant,
        has_caught_up: &impl Fn(ShardId, Instant) -> bool,
        is_in_doubt: &impl Fn() -> bool,
    ) -> Step {
        let Some(Handover {
            new,
            old,
            overlap,
            phase,
        }) = &mut self.handover
        else {
            return Step::Wait(None);
        };
        if *phase == Phase::Settling
            && new
                .values()
                .all(|settled| settled.ready && settled.guilds_in)
        {
            *phase = Phase::Overlap(now);
        }
        match phase {
            Phase::Settling => Step::Wait(None),
            Phase::Overlap(since) if now < *since + *overlap => Step::Wait(Some(*since + *overlap)),
            // One that is cut off just now would leave its guilds without either.
            Phase::Overlap(_) | Phase::CatchingUp(_) | Phase::Doubting(_)
                if !new.values().all(|settled| settled.ready) =>
            {
                Step::Wait(None)
            }
            // What an old one has not read, and was sent before the new ones began, nobody else
            // has.
            Phase::Overlap(since) | Phase::CatchingUp(since)
                if !old.iter().all(|shard| has_caught_up(*shard, *since)) =>
            {
                Step::Wait(Some(now + CAUGHT_UP_CHECK))
            }
            Phase::Overlap(_) => {
                *phase = Phase::CatchingUp(now);
                self.poll_handover(now, has_caught_up, is_in_doubt)
            }
            Phase::CatchingUp(_) => {
                *phase = Phase::Doubting(now);
                self.poll_handover(now, has_caught_up, is_in_doubt)
            }
            Phase::Doubting(since) if now < *since + *overlap && is_in_doubt() => {
                Step::Wait(Some(now + CAUGHT_UP_CHECK))
            }
            Phase::Doubting(_) => {
                *phase = Phase::Closing(0);
                Step::Commit
            }
            Phase::Closing(_) if old.is_empty() => Step::HandOver,
            Phase::Closing(asked) => match old.get(*asked) {
                Some(shard) => {
                    *asked += 1;
                    Step::Close(*shard)
                }
                None => Step::Wait(None),
            },
        }
    }

    /// Something has changed at a shard.
    pub(crate) fn handle(&mut self, shard: ShardId, change: Change) {
        if let Some(settled) = self
            .handover
            .as_mut()
            .and_then(|handover| handover.new.get_mut(&shard))
        {
            match change {
                Change::GuildsIn => settled.guilds_in = true,
                Change::Stage(stage) => {
                    // One that resumes may be held up by what it holds, and goes on once it has
                    // taken over.
                    settled.ready = matches!(stage, Stage::Ready | Stage::Resuming);
                    // A new session: its guilds arrive anew.
                    settled.guilds_in &= stage != Stage::Identifying;
                }
            }
        }
        if let Some(Handover {
            new,
            phase: phase @ (Phase::Overlap(_) | Phase::CatchingUp(_) | Phase::Doubting(_)),
            ..
        }) = &mut self.handover
            && new.values().any(|settled| !settled.guilds_in)
        {
            *phase = Phase::Settling;
        }
        let Change::Stage(stage) = change else { return };
        match stage {
            Stage::Identifying | Stage::Resuming | Stage::Ready => {
                self.under_way.remove(&shard);
            }
            Stage::Stopped(_) => return self.handle_stop(shard),
            Stage::Queued | Stage::Waiting => {
                if let Some(asked) = self.under_way.get_mut(&shard) {
                    *asked = true;
                }
            }
            Stage::Connecting | Stage::AwaitingHello => {}
        }
        match (stage, self.away.get_mut(&shard)) {
            (Stage::Ready, Some(true)) => {
                self.away.remove(&shard);
            }
            (Stage::Ready, Some(false)) | (_, None) => {}
            (_, Some(has_left)) => *has_left = true,
        }
    }

    /// A shard has stopped, or was not there to begin with: nobody waits for it.
    pub(crate) fn handle_stop(&mut self, shard: ShardId) {
        self.under_way.remove(&shard);
        self.away.remove(&shard);
        self.restart.retain(|other| *other != shard);
        let Some(Handover { old, phase, .. }) = &mut self.handover else {
            return;
        };
        let Some(at) = old.iter().position(|old| *old == shard) else {
            return;
        };
        old.remove(at);
        if let Phase::Closing(asked) = phase
            && at < *asked
        {
            *asked -= 1;
        }
    }

    /// A shard could not be opened for now; it is next again.
    pub(crate) fn put_back(&mut self, shard: ShardId) {
        if self.under_way.remove(&shard).is_some() {
            self.open.push_front(shard);
        }
    }

    /// A shard is not wanted any more. Returns whether it was only waiting to be opened.
    pub(crate) fn forget(&mut self, shard: ShardId) -> bool {
        let waiting = self.open.len();
        self.open.retain(|other| *other != shard);
        self.restart.retain(|other| *other != shard);
        self.open.len() < waiting
    }

    fn key(&self, shard: ShardId) -> u32 {
        shard.rate_limit_key(self.max_concurrency)
    }
}

#[cfg(test)]
mod tests {
    #![allow(
        clippy::disallowed_methods,
        reason = "made-up instants count from some real one"
    )]

    use super::*;
    use crate::protocol::CloseReason;

    fn shard(number: u32) -> ShardId {
        ShardId::new(number, 9).unwrap()
    }

    fn transition(shards: u32, max_concurrency: u32) -> Transition {
        let mut transition = Transition::new(NonZeroU32::new(max_concurrency).unwrap());
        transition.open((0..shards).map(shard));
        transition
    }

    fn stage(transition: &mut Transition, number: u32, stage: Stage) {
        transition.handle(shard(number), Change::Stage(stage));
    }

    /// The next step, where nothing lags behind.
    fn poll(transition: &mut Transition, now: Instant) -> Step {
        transition.poll(now, |_, _| true, || false)
    }

    /// Opens what may be opened.
    fn opened(transition: &mut Transition) -> Vec<u32> {
        let mut opened = Vec::new();
        while let Step::Open(shard) = poll(transition, Instant::now()) {
            opened.push(shard.number());
        }
        opened
    }

    #[test]
    fn two_windows_at_a_time() {
        let mut transition = transition(9, 2);
        assert_eq!(opened(&mut transition), [0, 1]);
        stage(&mut transition, 0, Stage::Queued);
        stage(&mut transition, 1, Stage::Queued);
        assert_eq!(opened(&mut transition), [2, 3]);
        stage(&mut transition, 2, Stage::Queued);
        stage(&mut transition, 3, Stage::Queued);
        assert!(opened(&mut transition).is_empty(), "four are on their way");
        stage(&mut transition, 0, Stage::Identifying);
        stage(&mut transition, 0, Stage::Ready);
        assert_eq!(opened(&mut transition), [4]);
        stage(&mut transition, 1, Stage::Resuming);
        assert_eq!(opened(&mut transition), [5]);
        transition.put_back(shard(5));
        assert_eq!(opened(&mut transition), [5]);
        for number in 2..9 {
            stage(&mut transition, number, Stage::Ready);
            opened(&mut transition);
        }
        assert!(transition.is_done());
    }

    #[test]
    fn nobody_overtakes_within_a_key_and_nobody_holds_it_back_for_good() {
        let mut transition = transition(4, 2);
        assert_eq!(opened(&mut transition), [0, 1]);
        stage(&mut transition, 1, Stage::Queued);
        assert!(
            opened(&mut transition).is_empty(),
            "shard 0 has not asked for its turn"
        );
        stage(&mut transition, 0, Stage::Connecting);
        assert!(opened(&mut transition).is_empty());
        stage(&mut transition, 0, Stage::Waiting);
        assert_eq!(
            opened(&mut transition),
            [2, 3],
            "it cannot connect: it holds nobody back"
        );
    }

    #[test]
    fn restarts_take_turns() {
        let now = Instant::now();
        let mut transition = transition(0, 2);
        transition.restart((0..5).map(shard), 2);
        transition.restart([shard(4)], 5);
        assert_eq!(poll(&mut transition, now), Step::Restart(shard(0)));
        assert_eq!(poll(&mut transition, now), Step::Restart(shard(1)));
        assert_eq!(poll(&mut transition, now), Step::Wait(None), "two are away");
        stage(&mut transition, 1, Stage::Ready);
        assert_eq!(
            poll(&mut transition, now),
            Step::Wait(None),
            "it was ready before it left"
        );
        stage(&mut transition, 1, Stage::Connecting);
        stage(&mut transition, 1, Stage::Ready);
        assert_eq!(
            poll(&mut transition, now),
            Step::Restart(shard(3)),
            "shard 2 has the key of shard 0, which is away"
        );
        stage(&mut transition, 0, Stage::Stopped(CloseReason::Cut));
        assert_eq!(poll(&mut transition, now), Step::Restart(shard(2)));
        stage(&mut transition, 3, Stage::Connecting);
        stage(&mut transition, 3, Stage::Ready);
        assert_eq!(
            poll(&mut transition, now),
            Step::Wait(None),
            "shard 4 has the key of shard 2"
        );
        stage(&mut transition, 4, Stage::Stopped(CloseReason::Cut));
        transition.handle_stop(shard(2));
        assert!(transition.is_done());
    }

    #[test]
    fn a_new_set_settles_overlaps_and_takes_over() {
        let overlap = Duration::from_secs(10);
        let mut now = Instant::now();
        let mut transition = transition(0, 9);
        transition.replace(
            vec![shard(5), shard(6), shard(7)],
            &[shard(0), shard(1)],
            overlap,
        );
        assert_eq!(opened(&mut transition), [0, 1]);
        for number in 0..2 {
            stage(&mut transition, number, Stage::Ready);
            assert_eq!(poll(&mut transition, now), Step::Wait(None));
            transition.handle(shard(number), Change::GuildsIn);
        }
        assert_eq!(poll(&mut transition, now), Step::Wait(Some(now + overlap)));
        stage(&mut transition, 1, Stage::Identifying);
        stage(&mut transition, 1, Stage::Ready);
        now += overlap;
        assert_eq!(
            poll(&mut transition, now),
            Step::Wait(None),
            "a new session: its guilds are not in"
        );
        transition.handle(shard(1), Change::GuildsIn);
        assert_eq!(
            poll(&mut transition, now),
            Step::Wait(Some(now + overlap)),
            "the overlap begins anew"
        );
        stage(&mut transition, 0, Stage::Connecting);
        now += overlap;
        assert_eq!(
            poll(&mut transition, now),
            Step::Wait(None),
            "one is cut off"
        );
        stage(&mut transition, 6, Stage::Stopped(CloseReason::Cut));
        stage(&mut transition, 0, Stage::Resuming);
        let check = |now| Step::Wait(Some(now + CAUGHT_UP_CHECK));
        let lags = |shard: ShardId, since| shard.number() != 7 || since + overlap != now;
        let lags = transition.poll(now, lags, || false);
        assert_eq!(lags, check(now), "an old one lags behind");
        now += overlap;
        for _ in 0..2 {
            let doubts = transition.poll(now, |_, _| true, || true);
            assert_eq!(doubts, check(now), "the hand-over would repeat an event");
            now += overlap / 2;
        }
        assert_eq!(poll(&mut transition, now), Step::Commit);
        assert_eq!(poll(&mut transition, now), Step::Close(shard(5)));
        stage(&mut transition, 5, Stage::Stopped(CloseReason::Requested));
        assert_eq!(poll(&mut transition, now), Step::Close(shard(7)));
        assert_eq!(poll(&mut transition, now), Step::Wait(None));
        assert!(!transition.is_done());
        stage(&mut transition, 7, Stage::Stopped(CloseReason::Requested));
        assert_eq!(poll(&mut transition, now), Step::HandOver);
        assert!(!transition.is_done());
        transition.handed_over();
        assert!(transition.is_done());
    }

    #[test]
    fn what_is_cleared_is_done() {
        let mut transition = transition(3, 1);
        opened(&mut transition);
        transition.replace(vec![shard(5)], &[shard(7)], Duration::ZERO);
        transition.restart([shard(6)], 1);
        assert_eq!(transition.clear(), [shard(1), shard(2), shard(7)]);
        assert!(transition.is_done());
    }
}
