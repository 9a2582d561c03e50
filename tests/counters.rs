//! Which events are counted, and how long the counts last.

mod common;

use std::collections::BTreeMap;
use std::thread;
use std::time::Duration;

use common::{PATIENCE, config, counters_of, eventually, gateway, next, ready, shard, sounds};
use serde_json::json;
use threadcord::sim::{Fault, Target};
use threadcord::status::Histogram;
use threadcord::{Disconnect, Error, Plan, Shard, ShardId, ShardManager, ShardState, StopReason};

const ONE: ShardId = ShardId::ONE;

/// The values of a page of Prometheus' format, and which of them are counters.
fn values(page: &str) -> BTreeMap<String, (f64, bool)> {
    let (mut values, mut kind) = (BTreeMap::new(), "");
    for line in page.lines() {
        if let Some(declared) = line.strip_prefix("# TYPE ") {
            kind = declared.split(' ').nth(1).expect("a name and a type");
            continue;
        }
        let (name, value) = line.rsplit_once(' ').expect("a name and a value");
        let old = values.insert(name.to_owned(), (value.parse().unwrap(), kind != "gauge"));
        assert_eq!(old, None, "{name} stands twice");
    }
    values
}

/// Fails if a count has decreased or disappeared.
fn assert_grown(before: &str, after: &str) {
    let after = values(after);
    for (name, (value, is_counter)) in values(before) {
        if is_counter {
            let now = after.get(&name).map(|(value, _)| *value);
            assert!(now >= Some(value), "{name} was {value} and is {now:?}");
        }
    }
}

fn counts(manager: &ShardManager, shard: ShardId) -> [u64; 5] {
    let counters = &manager.handle().status().counters[&shard];
    [
        counters.connects,
        counters.identifies,
        counters.resumes,
        counters.sessions_lost,
        counters.disconnects.values().sum(),
    ]
}

struct Suspends<'a>(&'a ShardManager);

impl Drop for Suspends<'_> {
    fn drop(&mut self) {
        self.0.suspend();
    }
}

#[test]
fn counters_never_decrease_whatever_happens_to_shards() {
    let gateway = gateway().guilds(4).activity(500.0).max_concurrency(16);
    let gateway = gateway.start().unwrap();
    let manager = ready(config(&gateway).plan(Plan::Total(2)));
    let handle = manager.handle();
    let one = shard(0, 2);
    thread::scope(|scope| {
        // A failure must not leave the other threads waiting.
        let _end = Suspends(&manager);
        scope.spawn(|| manager.run(1, |_, event| drop(event)));
        let watched = scope.spawn(|| {
            let mut before = handle.status().prometheus();
            let runs = |shard: &Shard| !matches!(shard.status().state, ShardState::Stopped(_));
            while handle.shards().iter().any(runs) {
                let after = handle.status().prometheus();
                assert_grown(&before, &after);
                before = after;
            }
        });

        gateway.inject(one, Fault::Cut);
        eventually("it resumes", || counters_of(&manager, one).resumes == 1);
        manager.wait_ready(PATIENCE).unwrap();
        gateway.inject(one, Fault::InvalidSession { resumable: false });
        eventually("it identifies", || counts(&manager, one) == [3, 2, 1, 1, 2]);
        manager.wait_ready(PATIENCE).unwrap();
        handle.restart_shard(one).unwrap().wait(PATIENCE).unwrap();
        assert_eq!(counts(&manager, one), [4, 2, 2, 1, 3]);

        handle.shard(one).unwrap().request_close();
        eventually("it closes", || {
            common::status_of(&manager, one).state == ShardState::Stopped(StopReason::Closed)
        });
        assert_eq!(counts(&manager, one), [4, 2, 2, 1, 3]);
        handle.open_shard(one).unwrap().wait(PATIENCE).unwrap();
        assert_eq!(counts(&manager, one), [5, 3, 2, 1, 3]);

        handle
            .reshard(&Plan::Total(4))
            .unwrap()
            .wait(PATIENCE)
            .unwrap();
        let status = handle.status();
        assert_eq!(status.counters.len(), 6, "those that are gone, too");
        assert_eq!(counts(&manager, one), [5, 3, 2, 1, 3]);
        for (shard, counters) in &status.counters {
            let by_name: u64 = counters.events_by_name.values().sum();
            assert_eq!(counters.events, by_name, "{shard}");
            assert!(counters.events_by_name["READY"] > 0, "{shard}");
        }
        let reasons = &status.counters[&one].disconnects;
        assert_eq!(
            reasons.keys().copied().collect::<Vec<_>>(),
            [
                Disconnect::Restarted,
                Disconnect::ConnectionLost,
                Disconnect::InvalidSession { resumable: false }
            ]
        );
        assert!(status.is_healthy(), "{status}");
        manager.suspend();
        watched.join().unwrap();
    });
    gateway.assert_lawful();
}

#[test]
fn what_waits_and_what_is_refused_is_counted() {
    let gateway = gateway().guilds(1).start().unwrap();
    let mut bot = config(&gateway);
    bot.shard.max_outstanding_events = 4;
    bot.shard.max_waiting_commands = 2;
    let manager = ready(bot);
    let (events, guild) = (manager.events(), gateway.guild_ids()[0]);
    manager.wait_guilds(PATIENCE).unwrap();
    assert!(manager.handle().status().is_healthy());

    let data = json!({"guild_id": guild.to_string(), "user_id": "1", "timestamp": 1});
    for _ in 0..20 {
        gateway.emit(Some(guild), "TYPING_START", &data).unwrap();
    }
    eventually("it stalls", || counters_of(&manager, ONE).stalls == 1);
    assert!(!manager.handle().status().is_healthy());
    for _ in 0..20 {
        let event = next(&events, |event| event.name() == "TYPING_START");
        thread::sleep(Duration::from_millis(2));
        drop(event);
    }
    eventually("it reads again", || manager.handle().status().is_healthy());
    let counters = counters_of(&manager, ONE);
    assert!(counters.stalled_for > Duration::ZERO, "{counters:?}");
    assert_eq!(counters.events_by_name["TYPING_START"], 20);
    let at_least = |histogram: &Histogram, count, each: Duration| {
        assert!(histogram.count() >= count, "{histogram:?}");
        assert!(histogram.sum() >= each, "{histogram:?}");
    };
    at_least(&counters.event_wait, 1, Duration::from_millis(2));
    at_least(&counters.event_handling, 1, Duration::from_millis(2));
    assert_eq!(counters.identify_wait.count(), 1);

    // Requests for members wait for one another.
    let one = manager.handle().shard(ONE).unwrap();
    let mut refused = 0;
    for _ in 0..200 {
        refused += u64::from(one.send(sounds(guild)).is_err());
    }
    eventually("they are sent", || {
        let counters = one.counters();
        counters.commands_sent + counters.commands_refused == 200
    });
    assert_eq!(one.counters().commands_refused, refused);
    let heard = one.status().last_received.expect("it has heard");
    eventually("a heartbeat is answered", || one.counters().heartbeats > 0);
    assert!(heard < PATIENCE);
    gateway.assert_lawful();
}

#[test]
fn rest_calls_are_counted_by_their_answers() {
    let gateway = gateway().guilds(1).start().unwrap();
    let manager = ready(config(&gateway));
    let rest = manager.handle().rest();
    let channel = gateway.channel_of(gateway.guild_ids()[0]).unwrap();
    let path = format!("/channels/{channel}/messages");
    let before = rest.counters();
    assert_eq!(before.answers[&200], 1, "that of the start");

    gateway.inject(Target::Any, "rest=429".parse::<Fault>().unwrap());
    rest.call("POST", &path, Some(&json!({"content": "a"})))
        .unwrap();
    assert!(matches!(
        rest.call("GET", "/channels/1", None),
        Err(Error::Status(_))
    ));
    let counters = manager.handle().status().rest;
    assert_eq!(
        (
            counters.answers[&200],
            counters.answers[&429],
            counters.answers[&404]
        ),
        (2, 1, 1),
        "{counters:?}"
    );
    assert!(counters.wait.count() >= 4, "{counters:?}");
    let page = manager.handle().status().prometheus();
    let page = values(&page);
    let limited = page["threadcord_rest_answers_total{status=\"429\"}"].0;
    assert!((limited - 1.0).abs() < 0.1, "{limited}");
}
