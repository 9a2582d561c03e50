//! Handlers run in order, their panics affect nothing else, stopping them loses no event, and they
//! delay no heartbeat.

mod common;

use std::collections::HashMap;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use common::{
    PATIENCE, SCALE, config, counters_of, eventually, gateway, next, number, ready, shard,
    status_of,
};
use parking_lot::{Condvar, Mutex};
use serde_json::json;
use threadcord::sim::{Action, Gateway};
use threadcord::store::MemoryStore;
use threadcord::{Dispatch, Error, Event, EventKind, ShardId};

fn guild_of(gateway: &Gateway, shard: ShardId) -> u64 {
    let has = |id: &u64| ShardId::for_guild(*id, shard.total()) == Some(shard);
    gateway.guild_ids().into_iter().find(has).unwrap()
}

fn emit(gateway: &Gateway, guild: u64, number: u64) {
    let data = json!({"guild_id": guild.to_string(), "user_id": "1", "timestamp": number});
    gateway.emit(Some(guild), "TYPING_START", &data).unwrap();
}

fn emit_all(gateway: &Gateway, guilds: &[u64], number: u64) {
    for guild in guilds {
        emit(gateway, *guild, number);
    }
}

/// A gate that handlers wait at.
#[derive(Default)]
struct Gate {
    open: Mutex<bool>,
    changed: Condvar,
}

impl Gate {
    fn pass(&self) {
        let mut open = self.open.lock();
        while !*open {
            self.changed.wait(&mut open);
        }
    }

    fn open(&self) {
        *self.open.lock() = true;
        self.changed.notify_all();
    }
}

/// `THREADCORD_EVENTS` sets another number than a million.
#[test]
fn a_million_events_through_eight_shards_into_four_workers() {
    let events: u64 =
        std::env::var("THREADCORD_EVENTS").map_or(1_000_000, |events| events.parse().unwrap());
    let gateway = gateway()
        .shards(8)
        .max_concurrency(8)
        .guilds(16)
        .start()
        .unwrap();
    let manager = ready(config(&gateway));
    let guilds = gateway.guild_ids();
    let handled = AtomicU64::new(0);
    let last: Mutex<HashMap<u64, u64>> = Mutex::default();
    let sequences: Mutex<HashMap<ShardId, u64>> = Mutex::default();
    let wrong: Mutex<Option<String>> = Mutex::default();
    thread::scope(|scope| {
        scope.spawn(|| {
            for n in 0..events {
                // The simulator keeps unread events; this many are enough to keep all busy.
                while n > handled.load(Ordering::Acquire) + 20_000 {
                    if wrong.lock().is_some() {
                        return;
                    }
                    thread::sleep(Duration::from_micros(100));
                }
                emit(
                    &gateway,
                    guilds[usize::try_from(n).unwrap() % guilds.len()],
                    n / guilds.len() as u64,
                );
            }
        });
        let ran = manager.run(4, |handle, event| {
            let Some(dispatch) = event.dispatch() else {
                return;
            };
            // Within a session no event is missing, and none is delivered twice.
            let before = sequences.lock().insert(event.shard(), dispatch.sequence());
            let mut is_right = before.is_none_or(|before| dispatch.sequence() == before + 1);
            let Some((guild, number)) = number(&event) else {
                return;
            };
            let before = last.lock().insert(guild, number);
            is_right &= number == before.map_or(0, |before| before + 1);
            if !is_right {
                *wrong.lock() = Some(format!("{event:?} after {before:?}"));
                handle.stop();
            }
            if handled.fetch_add(1, Ordering::AcqRel) + 1 == events {
                handle.stop();
            }
        });
        ran.unwrap();
    });
    assert_eq!(wrong.into_inner(), None);
    assert_eq!(handled.into_inner(), events);
    assert_eq!(manager.handle().status().handler_panics, 0);
    gateway.assert_lawful();
}

#[test]
fn a_stuck_handler_stalls_the_shards_whose_events_it_holds_and_delays_no_heartbeat() {
    // A heartbeat every 50 ms: a handler that is stuck for 3 s is stuck for 60 heartbeats.
    let gateway = Gateway::builder()
        .time_scale(SCALE)
        .heartbeat_interval(Duration::from_secs(5))
        .shards(4)
        .max_concurrency(4)
        .guilds(4)
        .start()
        .unwrap();
    let manager = ready(config(&gateway).max_outstanding_events(20));
    let (stuck, gate) = (shard(0, 4), Gate::default());
    let seen: Mutex<HashMap<ShardId, Vec<u64>>> = Mutex::default();
    let longest = AtomicU64::new(0);
    thread::scope(|scope| {
        let run = scope.spawn(|| {
            // Four workers, so that each shard has one to itself.
            manager.run(4, |_, event| {
                if let EventKind::StallEnded { stalled_for } = event.kind()
                    && event.shard() == stuck
                {
                    longest.fetch_max(
                        u64::try_from(stalled_for.as_millis()).unwrap(),
                        Ordering::Relaxed,
                    );
                }
                let Some((_, number)) = number(&event) else {
                    return;
                };
                if event.shard() == stuck {
                    gate.pass();
                }
                seen.lock().entry(event.shard()).or_default().push(number);
            })
        });
        let guilds = [0, 1, 2, 3].map(|number| guild_of(&gateway, shard(number, 4)));
        for n in 0..200 {
            emit_all(&gateway, &guilds, n);
        }
        let is_stalled = |id| status_of(&manager, id).stalled_for.is_some();
        eventually("it stalls", || is_stalled(stuck));
        let all = |id| {
            seen.lock()
                .get(&id)
                .is_some_and(|numbers| numbers.len() == 200)
        };
        eventually("the others continue", || {
            (1..4).all(|number| all(shard(number, 4)))
        });
        let beats = |id: ShardId| {
            let records = gateway.observed().records;
            records
                .iter()
                .filter(|r| r.shard == Some(id) && matches!(r.action, Action::Heartbeat(_)))
                .count()
        };
        let before = [0, 1, 2, 3].map(|number| beats(shard(number, 4)));
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(3) {
            thread::sleep(Duration::from_millis(100));
        }
        for (number, before) in (0..).zip(before) {
            let beats = beats(shard(number, 4)) - before;
            assert!(
                beats >= 40,
                "{beats} heartbeats of shard {number} in 3 s, where there should be 60"
            );
            assert_eq!(counters_of(&manager, shard(number, 4)).connects, 1);
        }
        assert!(is_stalled(stuck) && !is_stalled(shard(1, 4)));
        gate.open();
        eventually("nothing is lost", || all(stuck));
        eventually("it reads again", || !is_stalled(stuck));
        eventually("and says for how long it did not", || {
            longest.load(Ordering::Relaxed) > 3000
        });
        manager.handle().stop();
        run.join().unwrap().unwrap();
    });
    assert!(
        seen.into_inner()
            .into_values()
            .all(|numbers| numbers.into_iter().eq(0..200)),
        "each shard in order"
    );
    assert_eq!(manager.handle().status().handler_panics, 0);
    gateway.assert_lawful();
}

#[test]
fn each_guild_stays_in_order_whoever_has_its_shard() {
    let gateway = gateway().guilds(12).start().unwrap();
    let manager = ready(config(&gateway));
    let guilds = gateway.guild_ids();
    for n in 0..300 {
        emit_all(&gateway, &guilds, n);
    }

    let seen: Mutex<HashMap<u64, Vec<u64>>> = Mutex::default();
    let threads: Mutex<HashMap<u64, thread::ThreadId>> = Mutex::default();
    let (count, moved) = (AtomicUsize::new(0), AtomicBool::new(false));
    let guild = |event: &Event| event.dispatch().and_then(Dispatch::guild_id);
    manager
        .run_keyed(4, guild, |handle, event| {
            let Some((guild, number)) = number(&event) else {
                return;
            };
            seen.lock().entry(guild).or_default().push(number);
            let id = thread::current().id();
            moved.fetch_or(
                *threads.lock().entry(guild).or_insert(id) != id,
                Ordering::Relaxed,
            );
            if count.fetch_add(1, Ordering::Relaxed) + 1 == 12 * 300 {
                assert!(handle.stop());
            }
        })
        .unwrap();
    assert!(
        seen.into_inner()
            .into_values()
            .all(|numbers| numbers.into_iter().eq(0..300))
    );
    let mut workers: Vec<_> = threads.into_inner().into_values().collect();
    workers.dedup();
    assert!(workers.len() > 1, "one shard's guilds on several workers");
    assert!(!moved.into_inner(), "each on one");
    assert_eq!(manager.handle().status().handler_panics, 0);
}

#[test]
fn a_panic_is_an_event_but_a_panic_while_handling_it_is_not() {
    let gateway = gateway().guilds(1).start().unwrap();
    let manager = ready(config(&gateway));
    let guild = gateway.guild_ids()[0];
    emit(&gateway, guild, 0);
    let told: Mutex<Vec<String>> = Mutex::default();
    manager
        .run(2, |handle, event| {
            if let EventKind::HandlerPanicked {
                event,
                sequence,
                message,
            } = event.kind()
            {
                assert!(sequence.is_some());
                told.lock().push(format!("{event}: {message}"));
                emit(&gateway, guild, 1);
                panic!("again");
            }
            match number(&event) {
                Some((_, 0)) => panic!("at number {}", 0),
                Some(_) => drop(handle.stop()),
                None => {}
            }
        })
        .unwrap();
    assert_eq!(told.into_inner(), ["TYPING_START: at number 0"]);
    assert_eq!(manager.handle().status().handler_panics, 2);
    eventually("what a handler panicked at counts as handled", || {
        manager.events().try_recv().is_err()
            && status_of(&manager, ShardId::ONE).outstanding_events == 0
    });
}

#[test]
fn panics_at_shard_events_are_reported_too_and_stay_outstanding() {
    let gateway = gateway().guilds(1).start().unwrap();
    let manager = ready(config(&gateway).max_outstanding_events(10));
    let shard = manager.handle().shard(ShardId::ONE).unwrap();
    for n in 0..100 {
        emit(&gateway, gateway.guild_ids()[0], n);
    }

    let (told, gate) = (Mutex::new(Vec::new()), Gate::default());
    let is_news = |event: &Event| matches!(event.kind(), EventKind::HandlerPanicked { .. });
    thread::scope(|scope| {
        // Reports wait at a stuck worker, and everything else panics.
        let run = scope.spawn(|| {
            manager.run_keyed(8, is_news, |_, event| {
                let EventKind::HandlerPanicked {
                    event, sequence, ..
                } = event.kind()
                else {
                    panic!("at everything")
                };
                gate.pass();
                told.lock().push((event.clone(), sequence.is_some()));
            })
        });
        eventually("it stalls", || shard.status().stalled_for.is_some());
        assert!(
            shard.status().outstanding_events <= 30,
            "{:?}",
            shard.status()
        );
        gate.open();
        eventually("everything is reported", || {
            told.lock()
                .iter()
                .filter(|(event, _)| event == "TYPING_START")
                .count()
                == 100
        });
        manager.handle().stop();
        run.join().unwrap().unwrap();
    });
    assert!(
        told.into_inner()
            .contains(&("SessionStarted".into(), false))
    );
}

#[test]
fn a_new_handler_continues_where_a_stopped_one_was() {
    let gateway = gateway()
        .shards(2)
        .max_concurrency(2)
        .guilds(2)
        .start()
        .unwrap();
    let manager = ready(config(&gateway));
    let (guilds, seen) = (
        gateway.guild_ids(),
        Mutex::new(HashMap::<u64, Vec<u64>>::new()),
    );

    for n in 0..200 {
        emit_all(&gateway, &guilds, n);
    }

    let count = AtomicUsize::new(0);
    // Under one lock, so that no worker handles another event before the stop.
    let note = |event: &Event, stop: &dyn Fn(usize)| {
        let Some((guild, number)) = number(event) else {
            return;
        };
        let mut seen = seen.lock();
        seen.entry(guild).or_default().push(number);
        stop(count.fetch_add(1, Ordering::Relaxed) + 1);
    };

    // From inside, on two workers and then on one.
    for (workers, at) in [(2, 50), (1, 100)] {
        manager
            .run(workers, |handle, event| {
                note(&event, &|count| {
                    if count == at {
                        handle.stop();
                    }
                });
            })
            .unwrap();
        assert!(
            (at..=at + workers).contains(&count.load(Ordering::Relaxed)),
            "each finished what it had"
        );
    }

    // From outside, while no event arrives.
    thread::scope(|scope| {
        let run = scope.spawn(|| manager.run(2, |_, event| note(&event, &|_| {})));
        eventually("all are handled", || count.load(Ordering::Relaxed) == 400);
        assert!(manager.handle().stop());
        run.join().unwrap().unwrap();
    });
    assert!(!manager.handle().stop(), "nothing runs");
    assert!(
        seen.into_inner()
            .into_values()
            .all(|numbers| numbers.into_iter().eq(0..200)),
        "in order, each once"
    );

    // The shards have gone on.
    emit(&gateway, guilds[0], 200);
    next(&manager.events(), |event| {
        number(event).is_some_and(|(_, number)| number == 200)
    });
    gateway.assert_lawful();
}

#[test]
fn one_handler_at_a_time_and_at_least_one_worker() {
    let gateway = gateway().start().unwrap();
    let manager = ready(config(&gateway));
    let error = manager.run(0, |_, _| {}).unwrap_err();
    assert_eq!(error.to_string(), "`workers` is 0; allowed: at least 1");
    let running = AtomicBool::new(false);
    thread::scope(|scope| {
        let first = scope.spawn(|| manager.run(1, |_, _| running.store(true, Ordering::Release)));
        eventually("it runs", || running.load(Ordering::Acquire));
        assert!(matches!(
            manager.run(1, |_, _| {}),
            Err(Error::HandlerRunning)
        ));
        assert!(matches!(
            manager.run_keyed(2, |_| 0, |_, _| {}),
            Err(Error::HandlerRunning)
        ));
        manager.handle().stop();
        first.join().unwrap().unwrap();
    });
    manager.handle().request_close();
    manager.run(1, |_, _| {}).expect("another may follow");
}

#[test]
fn an_iterator_waits_while_a_handler_runs_and_takes_the_rest() {
    let gateway = gateway().guilds(1).start().unwrap();
    let manager = ready(config(&gateway));
    let guild = gateway.guild_ids()[0];
    let handled = AtomicUsize::new(0);
    thread::scope(|scope| {
        let run = scope.spawn(|| {
            manager.run(2, |handle, event| {
                if number(&event).is_some() && handled.fetch_add(1, Ordering::SeqCst) == 9 {
                    handle.stop();
                }
            })
        });
        emit(&gateway, guild, 0);
        eventually("the handler runs", || handled.load(Ordering::SeqCst) == 1);
        let (taken, numbers) = crossbeam_channel::unbounded();
        let mut events = manager.events();
        scope.spawn(move || {
            let all = events.by_ref().filter_map(|event| number(&event));
            all.take(10)
                .for_each(|(_, number)| taken.send(number).unwrap());
        });
        (1..20).for_each(|n| emit(&gateway, guild, n));
        run.join().unwrap().unwrap();
        let taken: Vec<u64> = (0..10)
            .map(|_| numbers.recv_timeout(PATIENCE).unwrap())
            .collect();
        assert!(
            taken.into_iter().eq(10..20),
            "all that comes after the stop"
        );
    });
    assert_eq!(handled.into_inner(), 10);
}

#[test]
fn threads_over_clones_of_the_stream_have_the_events_of_one_shard_at_a_time() {
    const THREADS: usize = 16;
    let gateway = gateway().guilds(1).start().unwrap();
    let manager = ready(config(&gateway));
    let guild = gateway.guild_ids()[0];
    let seen: Mutex<Vec<u64>> = Mutex::default();

    // Each of the first has to wait for the others.
    let together = Barrier::new(THREADS);
    thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                for (_, number) in manager.events().filter_map(|event| number(&event)) {
                    if number < THREADS as u64 {
                        together.wait();
                    }
                    seen.lock().push(number);
                }
            });
        }
        (0..1000).for_each(|n| emit(&gateway, guild, n));
        eventually("all are handled", || seen.lock().len() == 1000);
        manager.close();
    });
    let mut seen = seen.into_inner();
    seen.sort_unstable();
    assert!(seen.into_iter().eq(0..1000), "each once");
}

#[test]
fn the_stream_and_the_programs_own_channels_are_selected_together() {
    let gateway = gateway().guilds(1).start().unwrap();
    let manager = ready(config(&gateway));
    let events = manager.events();
    let (sender, own) = crossbeam_channel::unbounded();
    emit(&gateway, gateway.guild_ids()[0], 7);
    sender.send("mine").unwrap();

    let (mut mine, mut theirs) = (0, 0);
    while mine == 0 || theirs == 0 {
        crossbeam_channel::select! {
            recv(events.receiver()) -> event => theirs += usize::from(number(&event.unwrap()).is_some()),
            recv(own) -> text => mine += text.unwrap().len(),
            default(PATIENCE) => panic!("nothing comes"),
        }
    }

    assert!(events.recv_timeout(Duration::from_millis(1)).is_err() && events.try_recv().is_err());
    manager.close();
    assert!(
        events.into_iter().all(|event| event.dispatch().is_none()),
        "it ends"
    );
}

#[test]
fn after_a_suspend_run_returns_once_each_worker_has_finished_its_event() {
    let gateway = gateway()
        .shards(2)
        .max_concurrency(2)
        .guilds(2)
        .start()
        .unwrap();
    let mut settings = config(&gateway);
    settings.timing.handlers_timeout = PATIENCE;
    let manager = ready(settings.clone());
    let guilds = gateway.guild_ids();
    for n in 0..256 {
        emit_all(&gateway, &guilds, n);
    }
    let handled: Mutex<Vec<(u64, u64)>> = Mutex::default();
    let (gate, began) = (Gate::default(), AtomicUsize::new(0));
    let sessions = thread::scope(|scope| {
        let run = scope.spawn(|| {
            manager.run(2, |_, event| {
                let Some(number) = number(&event) else { return };
                began.fetch_add(1, Ordering::SeqCst);
                gate.pass();
                handled.lock().push(number);
            })
        });
        eventually("both workers have an event", || {
            began.load(Ordering::SeqCst) == 2
        });
        let suspend = scope.spawn(|| manager.suspend());
        gateway.expect("the shards have left", PATIENCE, |seen| {
            seen.live.is_empty()
        });
        assert!(!suspend.is_finished(), "it waits for the two");
        gate.open();
        run.join().unwrap().unwrap();
        suspend.join().unwrap()
    });
    assert_eq!(handled.lock().len(), 2, "and for nothing else");
    drop(manager);

    let manager = ready(settings.session_store(MemoryStore::new(sessions)));
    let events = manager.events();
    let mut again = Vec::new();
    while again.len() < 2 * 256 - 2 {
        let event = next(&events, |event| number(event).is_some());
        again.push(number(&event).unwrap());
    }
    let handled = handled.into_inner();
    assert!(handled.iter().all(|number| !again.contains(number)));
    gateway.assert_lawful();
}

#[test]
fn after_a_close_what_is_queued_is_handled_for_a_while() {
    let gateway = gateway().guilds(1).start().unwrap();
    for (timeout, all) in [(PATIENCE, true), (Duration::ZERO, false)] {
        let mut settings = config(&gateway);
        settings.timing.handlers_timeout = timeout;
        let manager = ready(settings);
        let guilds = gateway.guild_ids();
        for n in 0..100 {
            emit_all(&gateway, &guilds, n);
        }
        let one = manager.handle().shard(ShardId::ONE).unwrap();
        eventually("they are queued", || one.status().outstanding_events >= 100);
        let handled = AtomicUsize::new(0);
        manager
            .run(1, |handle, event| {
                if number(&event).is_some() {
                    handle.request_close();
                    handled.fetch_add(1, Ordering::SeqCst);
                }
            })
            .unwrap();
        let handled = handled.into_inner();
        assert_eq!(handled, if all { 100 } else { 1 });
        let left = manager.events().filter(|event| event.dispatch().is_some());
        assert_eq!(left.count(), 0);
    }
}

#[test]
fn a_close_after_run_has_returned_does_not_undo_a_suspend() {
    let gateway = gateway().guilds(1).start().unwrap();
    for _ in 0..30 {
        let store = MemoryStore::default();
        let manager = ready(config(&gateway).session_store(store.clone()));
        let handle = manager.handle().clone();
        let asking = thread::spawn(move || handle.request_suspend());
        manager.run(1, |_, _| {}).unwrap();
        drop(manager);
        asking.join().unwrap();
        assert_eq!(store.sessions().len(), 1, "its session can be resumed");
    }
}
