//! Other shards take over while events flow: nothing is lost, repeated or out of order.

mod common;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use common::{PATIENCE, config, eventually, gateway, hold_newest, next, ready, shard};
use parking_lot::Mutex;
use serde_json::json;
use threadcord::sim::{Answer, Fault, Gateway};
use threadcord::store::MemoryStore;
use threadcord::{
    Command, Config, Error, Event, EventKind, Events, Handle, Plan, ShardId, ShardManager,
    StopReason,
};

const GUILDS: u32 = 24;

/// Events a second, in total.
const RATE: u32 = 5000;

/// What a bot received for each guild.
#[derive(Default)]
struct Seen {
    /// The numbers of its events, in the order of their arrival.
    numbers: HashMap<u64, Vec<u64>>,
    last: HashMap<u64, Instant>,
    /// The longest time without an event of a guild.
    silence: Duration,
    resharded: Vec<(Vec<ShardId>, Vec<ShardId>)>,
    ready: usize,
    arrivals: usize,
}

impl Seen {
    fn note(&mut self, event: &Event) {
        if let EventKind::Resharded { from, to } = event.kind() {
            self.resharded.push((from.clone(), to.clone()));
        }

        let Some(dispatch) = event.dispatch() else {
            return;
        };
        self.ready += usize::from(dispatch.name() == "READY");
        self.arrivals += usize::from(dispatch.name() == "GUILD_CREATE");
        let Some((guild, number)) = common::number(event) else {
            return;
        };
        let now = Instant::now();

        if let Some(last) = self.last.insert(guild, now) {
            self.silence = self.silence.max(now - last);
        }
        self.numbers.entry(guild).or_default().push(number);
    }
}

/// A fleet under load.
struct Play {
    gateway: Arc<Gateway>,
    manager: ShardManager,
    seen: Arc<Mutex<Seen>>,
    stop: Arc<AtomicBool>,
    sender: JoinHandle<u64>,
    handler: JoinHandle<()>,
}

impl Play {
    fn start(change: impl FnOnce(Config) -> Config) -> Self {
        let gateway = gateway()
            .shards(4)
            .max_concurrency(4)
            .guilds(GUILDS)
            .start()
            .unwrap();
        let mut config = config(&gateway);
        config.timing.reshard_overlap = Duration::from_secs(2);
        let manager = ready(change(config));
        let (seen, stop) = (Arc::<Mutex<Seen>>::default(), Arc::<AtomicBool>::default());
        let handler = std::thread::spawn({
            let (events, seen) = (manager.events(), Arc::clone(&seen));
            move || events.for_each(|event| seen.lock().note(&event))
        });
        manager.wait_guilds(PATIENCE).unwrap();
        let gateway = Arc::new(gateway);
        let sender = std::thread::spawn({
            let (gateway, stop) = (Arc::clone(&gateway), Arc::clone(&stop));
            // Two consecutive events are equal, to check that an equal event is not dropped as a
            // duplicate.
            move || common::send(&gateway, RATE, 2, 1..=usize::MAX, &stop)
        });
        Self {
            gateway,
            manager,
            seen,
            stop,
            sender,
            handler,
        }
    }

    /// Checks that every event arrived once and in order. Returns what was received.
    fn end(self) -> Seen {
        self.stop.store(true, Ordering::Release);
        let sent = self.sender.join().unwrap();
        eventually("the last event comes", || {
            let seen = self.seen.lock();
            seen.numbers
                .values()
                .filter(|numbers| numbers.len() as u64 >= sent)
                .count()
                == GUILDS as usize
        });
        self.manager.close();
        self.handler.join().unwrap();

        let seen = std::mem::take(&mut *self.seen.lock());
        for (guild, numbers) in &seen.numbers {
            let wrong = numbers
                .iter()
                .copied()
                .zip((0..sent).map(|n| n / 2))
                .position(|(got, sent)| got != sent);
            let around = wrong.map(|at| &numbers[at.saturating_sub(5)..numbers.len().min(at + 5)]);
            assert_eq!(
                wrong,
                None,
                "guild {guild} got {around:?} (of {} sent {})",
                sent,
                numbers.len()
            );
            assert_eq!(numbers.len() as u64, sent, "guild {guild}");
        }

        self.gateway.assert_lawful();
        println!(
            "{} events in all, the longest silence of a guild {:?}",
            sent * u64::from(GUILDS),
            seen.silence
        );
        seen
    }
}

fn ids(total: u32) -> Vec<ShardId> {
    (0..total).map(|number| shard(number, total)).collect()
}

fn running(manager: &ShardManager) -> Vec<ShardId> {
    manager
        .handle()
        .shards()
        .iter()
        .map(threadcord::Shard::id)
        .collect()
}

#[test]
fn resharding_there_and_back_under_load_loses_nothing() {
    let play = Play::start(|config| config);
    let manager = &play.manager;
    for total in [6, 4] {
        let before = running(manager);
        let reshard = manager.handle().reshard(&Plan::Total(total)).unwrap();
        assert!(matches!(
            manager.handle().reshard(&Plan::Total(9)),
            Err(Error::Busy {
                running: "a reshard"
            })
        ));
        assert!(matches!(
            manager.handle().restart_all(1),
            Err(Error::Busy { .. })
        ));
        assert!(matches!(
            manager.handle().close_shard(before[0]),
            Err(Error::Busy { .. })
        ));
        while !reshard.is_over() {
            // Every guild has exactly one shard at each moment, of one of the two sets.
            for guild in play.gateway.guild_ids() {
                let home = manager
                    .handle()
                    .shard_by_guild(guild)
                    .expect("a shard")
                    .id();
                assert_eq!(ShardId::for_guild(guild, home.total()), Some(home));
                assert!(before.contains(&home) || home.total() == total);
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        reshard.wait(PATIENCE).unwrap();
        assert_eq!(running(manager), ids(total));
        manager.wait_guilds(PATIENCE).unwrap();
        play.gateway
            .expect("the old ones are closed", PATIENCE, |seen| {
                seen.live.len() == total as usize
            });
    }

    let seen = play.end();
    assert_eq!(seen.resharded, [(ids(4), ids(6)), (ids(6), ids(4))]);
    assert_eq!(
        (seen.ready, seen.arrivals),
        (4, GUILDS as usize),
        "those of the first shards alone"
    );
}

#[test]
fn faults_during_a_reshard_lose_nothing() {
    let play = Play::start(|config| config);
    let reshard = play.manager.handle().reshard(&Plan::Total(6)).unwrap();
    play.gateway
        .expect("the new ones are live", PATIENCE, |seen| {
            seen.live.len() == 10
        });
    // Shards of both sets are cut off and resumed, and one of the new shards starts a new session.
    play.gateway.inject(shard(1, 4), Fault::Cut);
    play.gateway.inject(shard(2, 6), Fault::Cut);
    play.gateway
        .inject(shard(3, 6), Fault::InvalidSession { resumable: false });
    play.gateway.inject(shard(3, 4), Fault::Reconnect);
    reshard.wait(PATIENCE).unwrap();
    assert_eq!(running(&play.manager), ids(6));
    play.end();
}

#[test]
fn a_new_shard_that_stops_leaves_the_old_ones_as_they_were() {
    let play = Play::start(|config| config);
    let before = play.manager.handle().shards();
    play.gateway
        .inject(shard(4, 6), Fault::Identify(Answer::Close(4013)));
    let reshard = play.manager.handle().reshard(&Plan::Total(6)).unwrap();

    match reshard.wait(PATIENCE) {
        Err(Error::Stopped {
            shard: stopped,
            reason: StopReason::Discord(code),
        }) => {
            assert_eq!((stopped, code.0), (shard(4, 6), 4013));
        }
        other => panic!("{other:?}"),
    }

    play.gateway
        .expect("the new ones are closed", PATIENCE, |seen| {
            seen.live.keys().all(|shard| shard.total() == 4)
        });
    assert_eq!(running(&play.manager), ids(4));
    assert!(
        before.iter().all(|shard| shard.counters().connects == 1),
        "the old ones were not touched"
    );

    // The reshard can be retried when the new shards have ended.
    eventually("they have stopped", || {
        !matches!(
            play.manager.handle().reshard(&Plan::Total(4)),
            Err(Error::Busy { .. })
        )
    });
    play.manager
        .handle()
        .reshard(&Plan::Total(6))
        .unwrap()
        .wait(PATIENCE)
        .unwrap();
    let seen = play.end();
    assert_eq!(seen.resharded, [(ids(4), ids(6))]);
}

#[test]
fn a_reshard_waits_for_an_old_shard_that_lags_behind() {
    // The old shard has not read all events that were sent before the new shards started. No other
    // shard receives those.
    let gateway = gateway()
        .shards(1)
        .max_concurrency(4)
        .guilds(2)
        .start()
        .unwrap();
    let mut config = config(&gateway).max_outstanding_events(4);
    config.timing.reshard_overlap = Duration::from_millis(10);
    let manager = ready(config);
    let guilds = gateway.guild_ids();

    for n in 0..50 {
        for guild in &guilds {
            gateway
                .emit(
                    Some(*guild),
                    "TYPING_START",
                    &json!({"guild_id": guild.to_string(), "timestamp": n}),
                )
                .unwrap();
        }
    }

    let one = manager.handle().shard(ShardId::ONE).unwrap();
    eventually("it stalls", || one.status().outstanding_events >= 4);
    let reshard = manager.handle().reshard(&Plan::Total(2)).unwrap();
    let is_new = |seen: &threadcord::sim::Observed| {
        seen.live.keys().filter(|shard| shard.total() == 2).count() == 2
    };
    gateway.expect("the new ones are live", PATIENCE, is_new);
    assert!(
        matches!(
            reshard.wait(Duration::from_millis(500)),
            Err(Error::TimedOut { .. })
        ),
        "it waits for the old one"
    );

    let mut numbers: HashMap<u64, Vec<u64>> = HashMap::new();
    for event in manager.events() {
        if event.name() == "Resharded" {
            break;
        }
        let Some((guild, number)) = common::number(&event) else {
            continue;
        };
        numbers.entry(guild).or_default().push(number);
    }

    reshard.wait(PATIENCE).unwrap();
    assert_eq!(numbers.len(), 2);
    for numbers in numbers.values() {
        assert!(numbers.iter().copied().eq(0..50), "{numbers:?}");
    }
    gateway.assert_lawful();
}

#[test]
fn a_suspend_while_the_old_shards_close_keeps_the_new_ones() {
    let gateway = gateway()
        .shards(2)
        .max_concurrency(4)
        .guilds(4)
        .start()
        .unwrap();
    let mut config = config(&gateway);
    config.timing.reshard_overlap = Duration::from_millis(10);
    config.timing.handlers_timeout = PATIENCE;
    let manager = ready(config.clone());
    manager.wait_guilds(PATIENCE).unwrap();
    manager.events().receiver().try_iter().for_each(drop);
    let reshard = manager.handle().reshard(&Plan::Total(3)).unwrap();

    // An unhandled event delays the handover, after the old shards have closed.
    let kept = hold_newest(&gateway, &manager.events(), |seen| {
        seen.live.len() == 3 && seen.live.keys().all(|shard| shard.total() == 3)
    });
    assert!(!reshard.is_over());

    for guild in gateway.guild_ids() {
        assert_eq!(
            manager
                .handle()
                .shard_by_guild(guild)
                .map(|shard| shard.id()),
            ShardId::for_guild(guild, 3)
        );
        gateway
            .chat(gateway.channel_of(guild).unwrap(), "held")
            .unwrap();
    }

    // At the suspend some events are held, and some are not read yet. The suspend waits for
    // neither, but it waits for the handler.
    let held = |manager: &ShardManager| {
        manager
            .handle()
            .shards()
            .iter()
            .map(|shard| shard.status().outstanding_events)
            .sum::<usize>()
    };

    eventually("something is held", || held(&manager) > 0);
    let sessions = std::thread::scope(|scope| {
        let suspending = scope.spawn(|| manager.suspend());
        gateway.expect("all have left", PATIENCE, |seen| seen.live.is_empty());
        assert!(!suspending.is_finished());
        drop(kept);
        suspending.join().unwrap()
    });
    assert!(matches!(reshard.wait(PATIENCE), Err(Error::Closed)));
    drop(manager);
    assert_eq!(
        sessions
            .iter()
            .map(|session| session.shard)
            .collect::<Vec<_>>(),
        ids(3)
    );
    let manager = ready(
        config
            .plan(Plan::Stored)
            .session_store(MemoryStore::new(sessions)),
    );
    let events = manager.events();

    for _ in 0..4 {
        next(&events, |event| event.name() == "MESSAGE_CREATE");
    }

    assert_eq!(
        manager
            .handle()
            .shards()
            .iter()
            .map(|shard| shard.counters().identifies)
            .sum::<u64>(),
        0
    );
    gateway.assert_lawful();
}

#[test]
fn a_reshard_can_be_cancelled() {
    let gateway = gateway().shards(2).max_concurrency(4).start().unwrap();
    // The overlap is ten seconds.
    let manager = ready(config(&gateway));
    assert!(!manager.handle().cancel_reshard(), "there is none");
    let reshard = manager.handle().reshard(&Plan::Total(3)).unwrap();
    gateway.expect("both sets are live", PATIENCE, |seen| seen.live.len() == 5);
    assert!(manager.handle().cancel_reshard() && !manager.handle().cancel_reshard());
    assert!(matches!(reshard.wait(PATIENCE), Err(Error::Cancelled)));
    gateway.expect("the new ones are gone", PATIENCE, |seen| {
        seen.live.keys().all(|shard| shard.total() == 2)
    });
    assert_eq!(running(&manager), ids(2));
    manager.wait_ready(PATIENCE).unwrap();
    gateway.assert_lawful();
}

#[test]
fn workers_keep_each_guild_in_order_across_a_reshard() {
    let gateway = gateway()
        .shards(2)
        .max_concurrency(4)
        .guilds(8)
        .start()
        .unwrap();
    let mut config = config(&gateway);
    config.timing.reshard_overlap = Duration::from_millis(200);
    config.timing.handlers_timeout = PATIENCE;
    let manager = ready(config);
    let (guilds, stop) = (gateway.guild_ids(), AtomicBool::new(false));
    let seen: Mutex<HashMap<u64, Vec<u64>>> = Mutex::default();
    let (sent, handled) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let handler = |_: &Handle, event: Event| {
        let Some((guild, number)) = common::number(&event) else {
            return;
        };
        // Slow, so that the workers of the first two shards have a backlog.
        std::thread::sleep(Duration::from_micros(2500));
        seen.lock().entry(guild).or_default().push(number);
        handled.fetch_add(1, Ordering::SeqCst);
    };

    std::thread::scope(|scope| {
        scope.spawn(|| manager.run(4, handler).unwrap());
        scope.spawn(|| {
            for n in 0_u64.. {
                if stop.load(Ordering::Acquire) {
                    break;
                }
                for guild in &guilds {
                    let data = json!({"guild_id": guild.to_string(), "timestamp": n});
                    sent.fetch_add(
                        gateway
                            .emit(Some(*guild), "TYPING_START", &data)
                            .unwrap()
                            .min(1),
                        Ordering::SeqCst,
                    );
                }
                // About a thousand events a second, more than two workers can handle.
                std::thread::sleep(Duration::from_millis(8));
            }
        });
        for total in [3, 5, 2] {
            manager
                .handle()
                .reshard(&Plan::Total(total))
                .unwrap()
                .wait(PATIENCE)
                .unwrap();
        }
        stop.store(true, Ordering::Release);
        eventually("all are handled", || {
            handled.load(Ordering::SeqCst) == sent.load(Ordering::SeqCst)
        });
        manager.close();
    });

    for (guild, numbers) in seen.into_inner() {
        assert!(
            numbers.iter().copied().eq(0..numbers.len() as u64),
            "guild {guild}: {numbers:?}"
        );
    }
    gateway.assert_lawful();
}

#[test]
fn commands_find_the_shard_of_their_guild_throughout() {
    let gateway = gateway()
        .shards(2)
        .max_concurrency(4)
        .guilds(4)
        .start()
        .unwrap();
    let mut config = config(&gateway);
    config.timing.reshard_overlap = Duration::from_millis(50);
    let manager = ready(config);
    let reshard = manager.handle().reshard(&Plan::Total(3)).unwrap();
    let guild = gateway.guild_ids()[1];

    let mut accepted = 0;
    while !reshard.is_over() {
        let sounds = json!({"op": 31, "d": {"guild_ids": [guild.to_string()], "guild_id": guild.to_string()}});
        let sounds = Command::raw(&sounds).unwrap();
        accepted += usize::from(
            manager
                .handle()
                .shard_by_guild(guild)
                .unwrap()
                .send(sounds)
                .is_ok(),
        );
        std::thread::sleep(Duration::from_millis(2));
    }

    reshard.wait(PATIENCE).unwrap();
    let homes = [2, 3].map(|total| ShardId::for_guild(guild, total).unwrap());
    gateway.expect("every command arrives", PATIENCE, |seen| {
        homes
            .iter()
            .map(|home| seen.commands(*home, 31).count())
            .sum::<usize>()
            == accepted
    });
    gateway.assert_lawful();
}

#[test]
fn an_impossible_reshard_is_an_error_and_changes_nothing() {
    let gateway = gateway().shards(2).max_concurrency(2).start().unwrap();
    let manager = ready(config(&gateway));
    let refused = |plan: Plan| manager.handle().reshard(&plan).unwrap_err();
    assert!(matches!(
        refused(Plan::Total(0)),
        Error::Setting {
            setting: "plan",
            ..
        }
    ));
    assert!(matches!(
        refused(Plan::Ids {
            ids: vec![1, 1],
            total: 4
        }),
        Error::Setting { .. }
    ));
    assert!(matches!(refused(Plan::range(3..5, 4)), Error::ShardId(_)));
    assert!(matches!(refused(Plan::Total(2)), Error::AlreadyOpen { .. }));
    assert!(
        matches!(refused(Plan::Recommended), Error::AlreadyOpen { .. }),
        "2, as before"
    );
    let handle = manager.handle().clone();
    assert_eq!(running(&manager), ids(2));
    manager.close();
    assert!(matches!(refused(Plan::Total(4)), Error::Closed));
    drop(manager);
    assert!(matches!(
        handle.reshard(&Plan::Total(4)),
        Err(Error::Closed)
    ));
    gateway.assert_lawful();
}

#[test]
fn closing_during_a_reshard_ends_both_sets() {
    let gateway = gateway()
        .shards(2)
        .max_concurrency(1)
        .guilds(2)
        .ready_delay(Duration::from_millis(50))
        .start()
        .unwrap();
    let manager = ready(config(&gateway));
    let reshard = manager.handle().reshard(&Plan::Total(5)).unwrap();
    gateway.expect("some new ones are live", PATIENCE, |seen| {
        seen.live.len() > 3
    });
    manager.close();
    assert!(matches!(reshard.wait(PATIENCE), Err(Error::Closed)));
    gateway.expect("all are gone", PATIENCE, |seen| seen.live.is_empty());
    assert_eq!(
        manager
            .events()
            .filter(|event| matches!(event.kind(), EventKind::Stopped(_)))
            .count(),
        2
    );
    gateway.assert_lawful();
}

/// The numbers of the events that arrived, and how often each did.
fn tally(events: &Events, numbers: &mut HashMap<u64, usize>, timeout: Duration) -> bool {
    let Ok(event) = events.recv_timeout(timeout) else {
        return false;
    };
    if let Some((_, number)) = common::number(&event) {
        *numbers.entry(number).or_default() += 1;
    }
    true
}

/// Sends this many numbered events to the guilds in turn, at a rate.
fn numbered(gateway: &Gateway, count: u64, rate: u64) {
    let (guilds, start) = (gateway.guild_ids(), Instant::now());
    for n in 0..count {
        let guild = guilds[usize::try_from(n).unwrap() % guilds.len()];
        let data = json!({"guild_id": guild.to_string(), "user_id": "1", "timestamp": n});
        gateway.emit(Some(guild), "TYPING_START", &data).unwrap();
        let due = start + Duration::from_micros(1_000_000 / rate * (n + 1));
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
    }
}

#[test]
fn an_overloaded_old_shard_is_closed_only_once_it_has_caught_up() {
    const EVENTS: u64 = 2000;
    let gateway = Gateway::builder()
        .time_scale(common::SCALE)
        .heartbeat_interval(Duration::from_secs(30))
        .shards(1)
        .max_concurrency(4)
        .guilds(4)
        .start()
        .unwrap();
    let mut config = config(&gateway).max_outstanding_events(20);
    config.timing.reshard_overlap = Duration::from_millis(50);
    let manager = ready(config);
    manager.wait_guilds(PATIENCE).unwrap();
    let events = manager.events();
    let mut numbers = HashMap::new();
    std::thread::scope(|scope| {
        scope.spawn(|| numbered(&gateway, EVENTS, 1000));
        let reshard = manager.handle().reshard(&Plan::Total(2)).unwrap();
        // The handler is stuck while both sets send heartbeats.
        std::thread::sleep(Duration::from_secs(2));
        while numbers.len() < usize::try_from(EVENTS).unwrap() {
            assert!(
                tally(&events, &mut numbers, Duration::from_secs(20)),
                "{} of {EVENTS} events came",
                numbers.len()
            );
        }
        while !reshard.is_over() {
            tally(&events, &mut numbers, Duration::from_millis(10));
        }
        reshard.wait(PATIENCE).unwrap();
    });

    // The new shards have stalled for longer than the overlap, so events that they hold may be
    // repeated.
    let twice = numbers.values().filter(|count| **count > 1).count();
    assert!(twice <= 2 * 20, "{twice} of {EVENTS} events came twice");
    gateway.assert_lawful();
}

#[test]
fn an_ack_before_the_replay_does_not_make_an_old_shard_caught_up() {
    let gateway = Gateway::builder()
        .time_scale(common::SCALE)
        .heartbeat_interval(Duration::from_secs(10))
        .replay_delay(Duration::from_secs(1))
        .shards(1)
        .max_concurrency(4)
        .guilds(2)
        .start()
        .unwrap();
    let mut config = config(&gateway);
    config.timing.reshard_overlap = Duration::from_millis(10);
    let manager = ready(config);
    manager.wait_guilds(PATIENCE).unwrap();
    let events = manager.events();

    // An event that only the old session has, because it is sent before the new ones start.
    gateway.inject(ShardId::ONE, Fault::Cut);
    numbered(&gateway, 50, 10_000);
    let reshard = manager.handle().reshard(&Plan::Total(2)).unwrap();

    let mut numbers = HashMap::new();
    while !reshard.is_over() {
        tally(&events, &mut numbers, Duration::from_millis(10));
    }

    reshard.wait(PATIENCE).unwrap();
    while tally(&events, &mut numbers, Duration::from_millis(100)) {}
    assert_eq!(numbers.len(), 50, "of 50 events");
    gateway.assert_lawful();
}

#[test]
fn a_new_set_that_is_three_seconds_behind_repeats_nothing() {
    let gateway = gateway()
        .shards(1)
        .max_concurrency(4)
        .guilds(4)
        .start()
        .unwrap();

    // The overlap is ten seconds.
    let manager = ready(config(&gateway));
    manager.wait_guilds(PATIENCE).unwrap();
    let events = manager.events();
    let mut numbers: HashMap<(u64, u64), usize> = HashMap::new();
    let mut note = |timeout| {
        let event = events.recv_timeout(timeout).ok()?;
        if let Some(number) = common::number(&event) {
            *numbers.entry(number).or_default() += 1;
        }
        Some(())
    };

    let stop = AtomicBool::new(false);
    let sent = std::thread::scope(|scope| {
        let sender = scope.spawn(|| common::send(&gateway, 40, 1, 1..=usize::MAX, &stop));
        let reshard = manager.handle().reshard(&Plan::Total(2)).unwrap();
        gateway.expect("the new ones are live", PATIENCE, |seen| {
            seen.live.len() == 3
        });
        for number in 0..2 {
            let latency = Duration::from_secs(3);
            let jitter = Duration::ZERO;
            gateway.inject(shard(number, 2), Fault::Delay { latency, jitter });
        }
        while !reshard.is_over() {
            note(Duration::from_millis(10));
        }
        stop.store(true, Ordering::Release);
        reshard.wait(PATIENCE).unwrap();
        usize::try_from(sender.join().unwrap()).unwrap() * gateway.guild_ids().len()
    });

    // Events that are still on their way arrive within the delay.
    while note(Duration::from_secs(4)).is_some() {}
    let twice = numbers.values().filter(|count| **count > 1).count();
    assert_eq!((numbers.len(), twice), (sent, 0));
}

#[test]
fn an_unhandled_event_is_redelivered_whichever_set_delivered_it() {
    let gateway = gateway()
        .shards(1)
        .max_concurrency(4)
        .guilds(2)
        .start()
        .unwrap();
    let mut config = config(&gateway);
    config.timing.reshard_overlap = Duration::from_secs(1);
    let manager = ready(config.clone());
    manager.wait_guilds(PATIENCE).unwrap();
    let events = manager.events();
    events.receiver().try_iter().for_each(drop);
    let reshard = manager.handle().reshard(&Plan::Total(2)).unwrap();
    gateway.expect("both sets are live", PATIENCE, |seen| seen.live.len() == 3);
    let old = manager.handle().shard(ShardId::ONE).unwrap();
    numbered(&gateway, 10, 1000);
    // Every second event is handled before its duplicate arrives, the others after it.
    let mut kept = Vec::new();
    while kept.len() < 5 {
        let event = next(&events, |event| common::number(event).is_some());
        assert_eq!(event.shard(), old.id(), "the old set delivers it");
        if common::number(&event).unwrap().1.is_multiple_of(2) {
            kept.push(event);
        }
    }
    reshard.wait(PATIENCE).unwrap();
    let sessions = manager.suspend();
    let unhandled: Vec<u64> = kept
        .iter()
        .map(|event| common::number(event).unwrap().1)
        .collect();
    drop(manager);

    let manager = ready(
        config
            .plan(Plan::Stored)
            .session_store(MemoryStore::new(sessions)),
    );
    let events = manager.events();
    let mut again = Vec::new();
    while !unhandled.iter().all(|number| again.contains(number)) {
        let event = next(&events, |event| common::number(event).is_some());
        again.push(common::number(&event).unwrap().1);
    }
    drop(kept);
    gateway.assert_lawful();
}

/// The next `Resharded`.
fn resharded(events: &Events) -> (Vec<ShardId>, Vec<ShardId>) {
    match next(events, |event| event.name() == "Resharded").kind() {
        EventKind::Resharded { from, to } => (from.clone(), to.clone()),
        _ => unreachable!("the name says so"),
    }
}

#[test]
fn a_fleet_that_becomes_full_reshards_automatically() {
    let gateway = gateway()
        .shards(2)
        .max_concurrency(4)
        .guilds(4)
        .start()
        .unwrap();
    let mut config = config(&gateway).auto_reshard(Duration::from_millis(20), 0.8);
    config.timing.reshard_overlap = Duration::from_millis(20);
    let manager = ready(config);
    let events = manager.events();

    // 4,000 guilds on 2 shards: 80 %, which is not above the threshold.
    gateway.set_shards(4);
    let requests = || {
        gateway
            .observed()
            .count(|action| matches!(action, threadcord::sim::Action::Request { .. }))
    };

    let before = requests();
    eventually("it asks again and again", || requests() > before + 3);
    assert_eq!(running(&manager), ids(2));
    gateway.set_shards(5);
    assert_eq!(resharded(&events), (ids(2), ids(5)));
    assert_eq!(running(&manager), ids(5));
    gateway.assert_lawful();
}

#[test]
fn no_automatic_reshard_without_enough_identifies_left_today() {
    let day = Duration::from_secs(3600);
    let gateway = gateway()
        .shards(1)
        .session_starts(1000, 9, day)
        .start()
        .unwrap();
    let manager = ready(config(&gateway).auto_reshard(Duration::from_millis(5), 0.8));
    let requests = || {
        gateway
            .observed()
            .count(|action| matches!(action, threadcord::sim::Action::Request { .. }))
    };

    gateway.set_shards(5);
    let before = requests();
    eventually("it asks again and again", || requests() > before + 5);
    assert_eq!(running(&manager), ids(1));
    gateway.assert_lawful();
}
