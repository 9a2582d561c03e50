//! Decides which shards open, restart and close next.
#![deny(clippy::disallowed_methods)]

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::mem;
use std::num::NonZeroU32;
use std::time::{Duration, Instant};

use crate::protocol::ShardState;
use crate::shard::Change;
use crate::shard_id::ShardId;

/// What a transition must know of shards that only they know.
pub(super) trait Progress {
    /// Whether no other shard of its set has its guilds: one that is closing, or an earlier run.
    fn may_open(&self, shard: ShardId) -> bool;

    /// Whether a shard that opens has a session to resume.
    fn has_session(&self, shard: ShardId) -> bool;

    /// Whether a shard has read all that was sent to any session before an instant, or never will.
    fn has_read(&self, shard: ShardId, up_to: Instant) -> bool;

    /// How many events a shard has delivered.
    fn delivered(&self, shard: ShardId) -> u64;

    /// Whether the first `count` events that a shard delivered have been handled, or need not be.
    fn has_handled(&self, shard: ShardId, count: u64) -> bool;

    /// Whether an event would be delivered twice if the new set took over now.
    fn is_in_doubt(&self) -> bool;
}

/// How often shards that lag, or whose events are not handled, are checked.
pub(super) const PROGRESS_CHECK: Duration = Duration::from_millis(10);

/// How many windows of `max_concurrency` shards may be opening at once.
const AHEAD: usize = 2;

/// How many shards with a session may be opening at once.
const MAX_RESUMING: usize = 64;

/// The steps from the shards that run to the shards that should run. Starts, splits, restarts and
/// reshards are all transitions.
///
/// Shards open in the given order. Only as many open at once as can identify soon, because many
/// waiting connections cost threads and descriptors, and burden Discord. A shard opens only once
/// the previous one of its rate limit key has queued for its IDENTIFY (or has failed once), so that
/// they identify in order. Shards with a session need no IDENTIFY: they open beside the others, a
/// limited number at a time.
#[derive(Debug)]
pub(super) struct Transition {
    max_concurrency: NonZeroU32,
    open: VecDeque<ShardId>,
    /// Shards that will open with a session.
    resume: VecDeque<ShardId>,
    /// No shard opens before this instant.
    open_from: Option<Instant>,
    /// Opened, but neither identified nor resumed yet.
    under_way: HashMap<ShardId, UnderWay>,
    restart: VecDeque<ShardId>,
    /// Shards that were requested to restart; `true` once one has left the ready state.
    away: HashMap<ShardId, bool>,
    max_unavailable: usize,
    handover: Option<Handover>,
}

#[derive(Clone, Copy, Debug)]
struct UnderWay {
    has_session: bool,
    /// It has queued for its IDENTIFY, or has failed once.
    has_asked: bool,
}

/// The replacement of one set of shards by another.
#[derive(Debug)]
struct Handover {
    /// The new set: which shards are ready, and whose guilds have arrived.
    new: BTreeMap<ShardId, Settled>,
    /// Those of the old set that have not stopped.
    old: Vec<ShardId>,
    limits: HandoverLimits,
    phase: Phase,
    /// The hand-over can no longer be cancelled. If a new shard loses its connection or session, it
    /// is still waited for until the first old shard closes.
    is_committed: bool,
    /// How many events each shard of the old set had delivered once it had read all that was sent
    /// before the overlap: the new set may not have received those.
    only_old: Option<Vec<(ShardId, u64)>>,
}

/// How long a hand-over may take.
#[derive(Clone, Copy, Debug)]
pub(super) struct HandoverLimits {
    /// How long both sets run, and how much longer new shards that lag are waited for.
    pub(super) overlap: Duration,
    /// How long handlers are waited for.
    pub(super) handlers: Duration,
}

/// How far a shard of the new set is.
#[derive(Clone, Copy, Debug, Default)]
struct Settled {
    stage: Option<ShardState>,
    is_stalled: bool,
    guilds_ready: bool,
}

impl Settled {
    /// Whether the old set may close: from then on only this shard receives its guilds' events.
    fn is_usable(self) -> bool {
        self.stage == Some(ShardState::Ready) || self.is_stuck()
    }

    /// Whether it resumes, but has stopped reading until its held events are delivered. It cannot
    /// become ready, nor can its guilds arrive, before it has taken over.
    fn is_stuck(self) -> bool {
        self.stage == Some(ShardState::Resuming) && self.is_stalled
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Until the new set is ready and its guilds have arrived.
    Settling,
    /// Both sets run, since this instant.
    Overlap(Instant),
    /// The old set has read all that was sent before the new one was ready. Then it must also have
    /// read all that was sent before this instant: see [`Merge`](crate::delivery).
    CatchingUp(Instant),
    /// The old set has caught up, at this instant. The new set should read the events that would
    /// otherwise be delivered twice. It is not waited for longer than the overlap, because its held
    /// events may be what keeps it from reading.
    Doubting(Instant),
    /// Until this instant at the latest, handlers finish the events that only the old set received,
    /// before its sessions end. If the process were killed, those would not be redelivered.
    Handling(Instant),
    /// The old set closes; the number of shards that were requested to.
    Closing(usize),
}

/// The next step of a transition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Open this shard.
    Open(ShardId),
    /// Have this shard reconnect.
    Restart(ShardId),
    /// The old set will close: from here on the hand-over cannot be cancelled.
    Commit,
    /// Close this shard of the old set.
    Close(ShardId),
    /// The old set has stopped: let the new one take over, and report when it has.
    HandOver,
    /// Wait until that instant, or until a shard makes progress.
    Wait(Option<Instant>),
}

impl Transition {
    /// A transition with nothing to do; `max_concurrency` shards may identify at once.
    pub(super) fn new(max_concurrency: NonZeroU32) -> Self {
        Self {
            max_concurrency,
            open: VecDeque::new(),
            resume: VecDeque::new(),
            open_from: None,
            under_way: HashMap::new(),
            restart: VecDeque::new(),
            away: HashMap::new(),
            max_unavailable: 1,
            handover: None,
        }
    }

    /// How many may identify at once.
    pub(super) fn max_concurrency(&self) -> NonZeroU32 {
        self.max_concurrency
    }

    /// Sets how many may identify at once.
    pub(super) fn set_max_concurrency(&mut self, max_concurrency: NonZeroU32) {
        self.max_concurrency = max_concurrency;
    }

    /// Opens shards, after those that are queued already.
    pub(super) fn open(&mut self, shards: impl IntoIterator<Item = ShardId>) {
        for shard in shards {
            if !self.is_opening(shard) {
                self.open.push_back(shard);
            }
        }
    }

    /// As [`open`](Self::open), for shards that should have a session.
    pub(super) fn resume(&mut self, shards: impl IntoIterator<Item = ShardId>) {
        for shard in shards {
            if !self.is_opening(shard) {
                self.resume.push_back(shard);
            }
        }
    }

    /// Restarts shards: one at a time per rate limit key, and at most `max_unavailable` at once.
    pub(super) fn restart(
        &mut self,
        shards: impl IntoIterator<Item = ShardId>,
        max_unavailable: usize,
    ) {
        let is_idle = self.restart.is_empty() && self.away.is_empty();
        for shard in shards {
            if !self.restart.contains(&shard) {
                self.restart.push_back(shard);
            }
        }
        // An earlier request with a lower limit still gets that limit.
        self.max_unavailable = if is_idle {
            max_unavailable
        } else {
            self.max_unavailable.min(max_unavailable)
        };
    }

    /// Whether a shard was requested to restart and is not ready again.
    pub(super) fn is_away(&self, shard: ShardId) -> bool {
        self.away.contains_key(&shard)
    }

    /// Cancels the remaining restarts after one has failed. Returns them.
    pub(super) fn give_up_restarts(&mut self) -> Vec<ShardId> {
        mem::take(&mut self.restart).into()
    }

    /// Opens the shards `new`. When they are ready and their guilds have arrived, waits for the
    /// overlap and until `old` has caught up, then up to the overlap for `new` to catch up, and for
    /// the handlers of `old`. Then closes `old`, and hands over.
    pub(super) fn replace(&mut self, old: Vec<ShardId>, new: &[ShardId], limits: HandoverLimits) {
        self.open(new.iter().copied());
        let new = new
            .iter()
            .map(|shard| (*shard, Settled::default()))
            .collect();
        self.handover = Some(Handover {
            new,
            old,
            limits,
            phase: Phase::Settling,
            is_committed: false,
            only_old: None,
        });
    }

    /// Records that the new set has taken over.
    pub(super) fn handed_over(&mut self) {
        self.handover = None;
    }

    /// Whether there is nothing to do.
    pub(super) fn is_done(&self) -> bool {
        !self.has_queue()
            && self.under_way.is_empty()
            && self.restart.is_empty()
            && self.away.is_empty()
            && self.handover.is_none()
    }

    /// Whether a shard waits to be opened.
    pub(super) fn has_queue(&self) -> bool {
        !self.open.is_empty() || !self.resume.is_empty()
    }

    /// Whether this shard waits to be opened, or is opening.
    pub(super) fn is_opening(&self, shard: ShardId) -> bool {
        self.open.contains(&shard)
            || self.resume.contains(&shard)
            || self.under_way.contains_key(&shard)
    }

    /// Cancels the openings and restarts that have not begun, and any replacement. Openings and
    /// restarts in progress continue. Returns the shards whose restart is cancelled.
    pub(super) fn clear(&mut self) -> Vec<ShardId> {
        self.open.clear();
        self.resume.clear();
        self.handover = None;
        self.open_from = None;
        self.give_up_restarts()
    }

    /// What to do next.
    pub(super) fn poll(&mut self, now: Instant, progress: &impl Progress) -> Step {
        self.open_from = self.open_from.filter(|at| now < *at);
        let step = self.poll_open(progress).or_else(|| self.poll_restart());
        let step = step.unwrap_or_else(|| match &mut self.handover {
            Some(handover) => handover.poll(now, progress),
            None => Step::Wait(None),
        });
        match step {
            Step::Wait(until) => Step::Wait(until.into_iter().chain(self.open_from).min()),
            step => step,
        }
    }

    fn poll_open(&mut self, progress: &impl Progress) -> Option<Step> {
        if self.open_from.is_some() {
            return None;
        }
        let under_way = |has_session| {
            let mut all = self.under_way.iter().collect::<Vec<_>>();
            all.retain(|(_, shard)| shard.has_session == has_session);
            all
        };

        // A shard that has lost its session since then identifies before the queued ones.
        while let Some(shard) = self.resume.pop_front() {
            if progress.has_session(shard) {
                self.resume.push_front(shard);
                break;
            }
            self.open.push_front(shard);
        }

        let next = self.resume.front().copied();
        if let Some(shard) = next.filter(|shard| progress.may_open(*shard))
            && under_way(true).len() < MAX_RESUMING
        {
            self.resume.pop_front();
            return Some(self.set_under_way(shard, true));
        }

        let &shard = self.open.front()?;
        let ahead = under_way(false);
        let is_crowded = ahead.len() >= AHEAD * self.max_concurrency.get() as usize;
        let holds_back = |(other, under_way): &(&ShardId, &UnderWay)| {
            !under_way.has_asked && self.key(**other) == self.key(shard)
        };
        if is_crowded || ahead.iter().any(holds_back) || !progress.may_open(shard) {
            return None;
        }
        self.open.pop_front();
        Some(self.set_under_way(shard, false))
    }

    fn set_under_way(&mut self, shard: ShardId, has_session: bool) -> Step {
        let under_way = UnderWay {
            has_session,
            has_asked: false,
        };
        self.under_way.insert(shard, under_way);
        Step::Open(shard)
    }

    fn poll_restart(&mut self) -> Option<Step> {
        if self.away.len() >= self.max_unavailable {
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

    /// Handles a change of a shard.
    pub(super) fn handle(&mut self, shard: ShardId, change: Change) {
        if let Some(settled) = self
            .handover
            .as_mut()
            .and_then(|handover| handover.new.get_mut(&shard))
        {
            match change {
                Change::GuildsReady => settled.guilds_ready = true,
                Change::Stalled(is_stalled) => settled.is_stalled = is_stalled,
                Change::ShardState(stage) => {
                    settled.stage = Some(stage);
                    // A new session: its guilds arrive again.
                    settled.guilds_ready &= stage != ShardState::Identifying;
                }
                Change::MissedRestart => {}
            }
        }

        // The overlap so far counts only if the new set is still settled.
        if let Some(handover) = &mut self.handover
            && !matches!(handover.phase, Phase::Closing(1..))
            && !handover.is_settled()
        {
            handover.phase = Phase::Settling;
            handover.only_old = None;
        }

        let Change::ShardState(stage) = change else {
            return;
        };
        match stage {
            ShardState::Identifying | ShardState::Resuming | ShardState::Ready => {
                self.under_way.remove(&shard);
            }
            ShardState::Stopped(_) => return self.handle_stop(shard),
            ShardState::Queued | ShardState::Confirming | ShardState::Waiting => {
                if let Some(under_way) = self.under_way.get_mut(&shard) {
                    under_way.has_asked = true;
                }
            }
            ShardState::Connecting | ShardState::AwaitingHello => {}
        }

        // A restart is over once the shard has left the ready state and is ready again.
        match (stage, self.away.get_mut(&shard)) {
            (ShardState::Ready, Some(true)) => {
                self.away.remove(&shard);
            }
            (ShardState::Ready, Some(false)) | (_, None) => {}
            (_, Some(has_left)) => *has_left = true,
        }
    }

    /// Stops waiting for a shard that has stopped, or was never opened.
    pub(super) fn handle_stop(&mut self, shard: ShardId) {
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

    /// Puts a shard that could not be opened back first; no shard opens before `retry_at`.
    pub(super) fn put_back(&mut self, shard: ShardId, retry_at: Instant) {
        match self.under_way.remove(&shard) {
            Some(under_way) if under_way.has_session => self.resume.push_front(shard),
            Some(_) => self.open.push_front(shard),
            None => return,
        }
        self.open_from = Some(retry_at);
    }

    /// Removes a shard that is no longer wanted. Returns whether it was only waiting to be opened.
    pub(super) fn forget(&mut self, shard: ShardId) -> bool {
        let waiting = self.open.len() + self.resume.len();
        self.open.retain(|other| *other != shard);
        self.resume.retain(|other| *other != shard);
        self.restart.retain(|other| *other != shard);
        self.open.len() + self.resume.len() < waiting
    }

    fn key(&self, shard: ShardId) -> u32 {
        shard.rate_limit_key(self.max_concurrency)
    }
}

impl Handover {
    fn poll(&mut self, now: Instant, progress: &impl Progress) -> Step {
        while let Some(next) = self.next_phase(now, progress) {
            self.phase = next;
            if next == Phase::Closing(0) && !mem::replace(&mut self.is_committed, true) {
                return Step::Commit;
            }
        }

        if let Phase::Overlap(since) = self.phase
            && self.only_old.is_none()
            && self.has_caught_up(since, progress)
        {
            let old = self.old.iter();
            let delivered = old.map(|shard| (*shard, progress.delivered(*shard)));
            self.only_old = Some(delivered.collect());
            return self.poll(now, progress);
        }

        let is_usable = self.is_usable();
        let check = now + PROGRESS_CHECK;
        match &mut self.phase {
            Phase::Closing(_) if self.old.is_empty() => Step::HandOver,
            Phase::Closing(0) if !is_usable => Step::Wait(None),
            Phase::Closing(asked) => match self.old.get(*asked) {
                Some(shard) => {
                    *asked += 1;
                    Step::Close(*shard)
                }
                None => Step::Wait(None),
            },
            Phase::Settling => Step::Wait(None),
            Phase::Overlap(since) if now < *since + self.limits.overlap => {
                let end = *since + self.limits.overlap;
                let has_read = self.only_old.is_some();
                Step::Wait(Some(if has_read { end } else { end.min(check) }))
            }
            _ if !is_usable => Step::Wait(None),
            _ => Step::Wait(Some(check)),
        }
    }

    /// The phase that follows, if this one is over.
    fn next_phase(&self, now: Instant, progress: &impl Progress) -> Option<Phase> {
        let limits = self.limits;
        match self.phase {
            Phase::Settling => {
                let is_settled = self.is_settled() && self.is_usable();
                is_settled.then_some(Phase::Overlap(now))
            }
            Phase::Closing(_) => None,
            // If a new shard is disconnected now, its guilds would have neither set.
            _ if !self.is_usable() => None,
            // Only the old set can receive events that were sent before the new set began.
            Phase::Overlap(since) => {
                let is_over = now >= since + limits.overlap && self.only_old.is_some();
                is_over.then_some(Phase::CatchingUp(now))
            }
            Phase::CatchingUp(since) => {
                let has_caught_up = self.has_caught_up(since, progress);
                has_caught_up.then_some(Phase::Doubting(now))
            }
            Phase::Doubting(since) => {
                let is_over = now >= since + limits.overlap || !progress.is_in_doubt();
                is_over.then_some(Phase::Handling(now + limits.handlers))
            }
            Phase::Handling(until) => {
                let mut only_old = self.only_old.iter().flatten();
                let is_over = now >= until
                    || only_old.all(|(shard, count)| progress.has_handled(*shard, *count));
                is_over.then_some(Phase::Closing(0))
            }
        }
    }

    /// Whether the old set has read all that was sent before an instant. Queries every shard, so
    /// that all that lag are probed at the same time.
    fn has_caught_up(&self, since: Instant, progress: &impl Progress) -> bool {
        let has_read = |all, shard: &ShardId| progress.has_read(*shard, since) && all;
        self.old.iter().fold(true, has_read)
    }

    fn is_usable(&self) -> bool {
        let mut new = self.new.values();
        new.all(|settled| settled.is_usable() || self.is_given_up(*settled))
    }

    /// Whether the guilds of the new set have arrived.
    fn is_settled(&self) -> bool {
        let mut new = self.new.values();
        new.all(|settled| settled.guilds_ready || settled.is_stuck() || self.is_given_up(*settled))
    }

    /// Whether a shard of the new set stopped after the hand-over could no longer be cancelled.
    fn is_given_up(&self, settled: Settled) -> bool {
        self.is_committed && matches!(settled.stage, Some(ShardState::Stopped(_)))
    }
}

#[cfg(test)]
mod tests {
    #![allow(
        clippy::disallowed_methods,
        reason = "made-up instants count from some real one"
    )]

    use super::*;
    use crate::protocol::StopReason;

    fn shard(number: u32) -> ShardId {
        ShardId::new(number, 9).unwrap()
    }

    fn transition(shards: u32, max_concurrency: u32) -> Transition {
        let mut transition = Transition::new(NonZeroU32::new(max_concurrency).unwrap());
        transition.open((0..shards).map(shard));
        transition
    }

    fn stage(transition: &mut Transition, number: u32, stage: ShardState) {
        transition.handle(shard(number), Change::ShardState(stage));
    }

    /// How far the shards are.
    struct Known<R: Fn(ShardId, Instant) -> bool> {
        has_read: R,
        has_handled: bool,
        is_in_doubt: bool,
    }

    impl<R: Fn(ShardId, Instant) -> bool> Progress for Known<R> {
        fn may_open(&self, _: ShardId) -> bool {
            true
        }

        fn has_session(&self, shard: ShardId) -> bool {
            shard.number() > 6
        }

        fn has_read(&self, shard: ShardId, up_to: Instant) -> bool {
            (self.has_read)(shard, up_to)
        }

        fn delivered(&self, _: ShardId) -> u64 {
            7
        }

        fn has_handled(&self, _: ShardId, count: u64) -> bool {
            assert_eq!(count, 7);
            self.has_handled
        }

        fn is_in_doubt(&self) -> bool {
            self.is_in_doubt
        }
    }

    /// Nothing lags behind.
    fn known() -> Known<fn(ShardId, Instant) -> bool> {
        Known {
            has_read: |_, _| true,
            has_handled: true,
            is_in_doubt: false,
        }
    }

    /// The next step, where nothing lags behind.
    fn poll(transition: &mut Transition, now: Instant) -> Step {
        transition.poll(now, &known())
    }

    const LIMITS: HandoverLimits = HandoverLimits {
        overlap: Duration::from_secs(10),
        handlers: Duration::from_secs(5),
    };

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
        stage(&mut transition, 0, ShardState::Queued);
        stage(&mut transition, 1, ShardState::Queued);
        assert_eq!(opened(&mut transition), [2, 3]);
        stage(&mut transition, 2, ShardState::Queued);
        stage(&mut transition, 3, ShardState::Queued);
        assert!(opened(&mut transition).is_empty(), "four are on their way");
        stage(&mut transition, 0, ShardState::Identifying);
        stage(&mut transition, 0, ShardState::Ready);
        assert_eq!(opened(&mut transition), [4]);
        stage(&mut transition, 1, ShardState::Resuming);
        assert_eq!(opened(&mut transition), [5]);
        let later = Instant::now() + Duration::from_secs(9);
        transition.put_back(shard(5), later);
        assert_eq!(
            poll(&mut transition, Instant::now()),
            Step::Wait(Some(later)),
            "nor does another one"
        );
        assert_eq!(poll(&mut transition, later), Step::Open(shard(5)));
        transition.put_back(shard(5), Instant::now());
        assert_eq!(opened(&mut transition), [5]);

        for number in 2..9 {
            stage(&mut transition, number, ShardState::Ready);
            opened(&mut transition);
        }
        assert!(transition.is_done());
    }

    #[test]
    fn nobody_overtakes_within_a_key_and_nobody_holds_it_back_for_good() {
        let mut transition = transition(4, 2);
        assert_eq!(opened(&mut transition), [0, 1]);
        stage(&mut transition, 1, ShardState::Queued);
        assert!(
            opened(&mut transition).is_empty(),
            "shard 0 has not asked for its turn"
        );
        stage(&mut transition, 0, ShardState::Connecting);
        assert!(opened(&mut transition).is_empty());
        stage(&mut transition, 0, ShardState::Waiting);
        assert_eq!(
            opened(&mut transition),
            [2, 3],
            "it cannot connect, so it holds no other shard back"
        );
    }

    #[test]
    fn shards_with_a_session_open_beside_the_others() {
        let mut transition = transition(3, 1);
        transition.resume([shard(7), shard(8)]);
        assert_eq!(opened(&mut transition), [7, 8, 0]);
        transition.resume([shard(6)]);
        stage(&mut transition, 0, ShardState::Queued);
        assert_eq!(opened(&mut transition), [6], "it has none");
        stage(&mut transition, 6, ShardState::Ready);
        assert_eq!(opened(&mut transition), [1]);
        assert!(transition.forget(shard(2)) && !transition.forget(shard(7)));
        transition.put_back(shard(8), Instant::now());
        assert_eq!(opened(&mut transition), [8]);
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
        stage(&mut transition, 1, ShardState::Ready);
        assert_eq!(
            poll(&mut transition, now),
            Step::Wait(None),
            "it was ready before it left"
        );
        stage(&mut transition, 1, ShardState::Connecting);
        stage(&mut transition, 1, ShardState::Ready);
        assert_eq!(
            poll(&mut transition, now),
            Step::Restart(shard(3)),
            "shard 2 has the key of shard 0, which is away"
        );
        stage(&mut transition, 0, ShardState::Stopped(StopReason::Closed));
        assert_eq!(poll(&mut transition, now), Step::Restart(shard(2)));
        stage(&mut transition, 3, ShardState::Connecting);
        stage(&mut transition, 3, ShardState::Ready);
        assert_eq!(
            poll(&mut transition, now),
            Step::Wait(None),
            "shard 4 has the key of shard 2"
        );
        stage(&mut transition, 4, ShardState::Stopped(StopReason::Closed));
        transition.handle_stop(shard(2));
        assert!(transition.is_done());
    }

    #[test]
    fn a_new_set_settles_overlaps_and_takes_over() {
        let overlap = LIMITS.overlap;
        let mut now = Instant::now();
        let mut transition = transition(0, 9);
        transition.replace(
            vec![shard(5), shard(6), shard(7)],
            &[shard(0), shard(1)],
            LIMITS,
        );
        assert_eq!(opened(&mut transition), [0, 1]);

        for number in 0..2 {
            stage(&mut transition, number, ShardState::Ready);
            assert_eq!(poll(&mut transition, now), Step::Wait(None));
            transition.handle(shard(number), Change::GuildsReady);
        }

        assert_eq!(poll(&mut transition, now), Step::Wait(Some(now + overlap)));
        stage(&mut transition, 1, ShardState::Identifying);
        stage(&mut transition, 1, ShardState::Ready);
        now += overlap;
        assert_eq!(
            poll(&mut transition, now),
            Step::Wait(None),
            "a new session: its guilds are not in"
        );
        transition.handle(shard(1), Change::GuildsReady);
        assert_eq!(
            poll(&mut transition, now),
            Step::Wait(Some(now + overlap)),
            "the overlap starts again"
        );
        stage(&mut transition, 0, ShardState::Connecting);
        now += overlap;
        assert_eq!(
            poll(&mut transition, now),
            Step::Wait(None),
            "one is cut off"
        );
        stage(&mut transition, 6, ShardState::Stopped(StopReason::Closed));
        stage(&mut transition, 0, ShardState::Resuming);
        assert_eq!(
            poll(&mut transition, now),
            Step::Wait(None),
            "what it missed has not come, and may never"
        );
        transition.handle(shard(0), Change::Stalled(true));
        let check = |now| Step::Wait(Some(now + PROGRESS_CHECK));
        let lags = Known {
            has_read: |shard: ShardId, since| shard.number() != 7 || since != now,
            has_handled: true,
            is_in_doubt: false,
        };

        let lags = transition.poll(now, &lags);
        assert_eq!(lags, check(now), "an old one lags behind");
        now += overlap;
        for _ in 0..2 {
            let doubts = Known {
                is_in_doubt: true,
                ..known()
            };
            let doubts = transition.poll(now, &doubts);
            assert_eq!(doubts, check(now), "the hand-over would repeat an event");
            now += overlap / 2;
        }

        let unhandled = || Known {
            has_handled: false,
            ..known()
        };
        let polled = transition.poll(now, &unhandled());
        assert_eq!(polled, check(now), "a kill would lose an event");
        now += LIMITS.handlers;
        assert_eq!(transition.poll(now, &unhandled()), Step::Commit);
        stage(&mut transition, 0, ShardState::Identifying);
        stage(&mut transition, 0, ShardState::Ready);
        assert_eq!(
            poll(&mut transition, now),
            Step::Wait(None),
            "it has lost its session, and the old ones are still there"
        );
        transition.handle(shard(0), Change::GuildsReady);
        let overlaps = Step::Wait(Some(now + overlap));
        assert_eq!(poll(&mut transition, now), overlaps);
        now += overlap;
        stage(&mut transition, 1, ShardState::Connecting);
        assert_eq!(poll(&mut transition, now), Step::Wait(None));
        stage(&mut transition, 1, ShardState::Stopped(StopReason::Closed));
        let closes = poll(&mut transition, now);
        assert_eq!(
            closes,
            Step::Close(shard(5)),
            "a stopped shard is not waited for"
        );
        stage(&mut transition, 5, ShardState::Stopped(StopReason::Closed));
        assert_eq!(poll(&mut transition, now), Step::Close(shard(7)));
        assert_eq!(poll(&mut transition, now), Step::Wait(None));
        assert!(!transition.is_done());
        stage(&mut transition, 7, ShardState::Stopped(StopReason::Closed));
        assert_eq!(poll(&mut transition, now), Step::HandOver);
        assert!(!transition.is_done());
        transition.handed_over();
        assert!(transition.is_done());
    }

    #[test]
    fn what_is_cleared_is_done() {
        let mut transition = transition(3, 1);
        opened(&mut transition);
        transition.replace(vec![shard(5)], &[shard(7)], LIMITS);
        transition.restart([shard(6)], 1);
        transition.resume([shard(8)]);
        assert_eq!(transition.clear(), [shard(6)]);
        assert_eq!(poll(&mut transition, Instant::now()), Step::Wait(None));
        assert!(!transition.is_done(), "one is under way");
        transition.handle_stop(shard(0));
        assert!(transition.is_done());
    }
}
