//! What a manager does with its shards.

mod common;

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use common::{PATIENCE, config, eventually, gateway, next, ready, shard, sounds, status_of};
use parking_lot::Mutex;
use serde_json::{Value, json};
use threadcord::sim::{self, Action};
use threadcord::store::MemoryStore;
use threadcord::{
    Command, Disconnect, Error, Plan, ShardId, ShardManager, ShardState, StopReason, Timing,
};

/// Waits until the gateway has seen this many connections closed with a code.
fn closed_with(gateway: &sim::Gateway, code: u16, count: usize) {
    let closed = |record: &&sim::Record| record.action == Action::Closed(Some(code));
    assert!(
        gateway.wait_for(PATIENCE, |seen| seen.records.iter().filter(closed).count()
            == count)
    );
}

#[test]
fn shards_identify_in_the_order_of_their_buckets() {
    let gateway = gateway().shards(8).max_concurrency(2).start().unwrap();
    let manager = ready(config(&gateway));
    assert_eq!(manager.handle().shards().len(), 8);
    let records = gateway.observed().records;
    let order: Vec<u32> = records
        .iter()
        .filter(|record| matches!(record.action, Action::Identify(_)))
        .map(|record| record.shard.unwrap().number())
        .collect();

    for key in 0..2 {
        let of_key: Vec<u32> = order
            .iter()
            .copied()
            .filter(|number| number % 2 == key)
            .collect();
        assert_eq!(of_key, [key, key + 2, key + 4, key + 6], "{order:?}");
    }
    gateway.assert_lawful();
}

#[test]
fn windows_are_kept_on_the_wire() {
    // Long enough that the guard of 100 ms does not hide a missing window.
    let gateway = sim::Gateway::builder()
        .time_scale(0.1)
        .shards(4)
        .max_concurrency(2)
        .start()
        .unwrap();
    let manager = ready(config(&gateway).timing(Timing::scaled(0.1)));
    assert_eq!(manager.handle().shards().len(), 4);
    gateway.assert_lawful();
}

#[test]
fn a_subset_of_the_shards_runs() {
    let gateway = gateway().guilds(40).start().unwrap();
    let manager = ready(config(&gateway).plan(Plan::range(2..4, 4)));
    let ids: Vec<String> = manager
        .handle()
        .shards()
        .iter()
        .map(|shard| shard.id().to_string())
        .collect();
    assert_eq!(ids, ["2/4", "3/4"]);

    for guild in gateway.guild_ids() {
        let home = ShardId::for_guild(guild, 4).unwrap();
        assert_eq!(
            manager
                .handle()
                .shard_by_guild(guild)
                .map(|shard| shard.id()),
            (home.number() >= 2).then_some(home)
        );
    }
    gateway.assert_lawful();
}

#[test]
fn ready_needs_no_guilds_intent() {
    let gateway = gateway().guilds(3).start().unwrap();
    let mut config = config(&gateway);
    config.shard.intents = threadcord::Intents::GUILD_MESSAGES;
    ready(config);
    gateway.assert_lawful();
}

#[test]
fn wait_ready_times_out_with_the_shard_counts() {
    let gateway = gateway().shards(2).ready_delay(PATIENCE).start().unwrap();
    let manager = ShardManager::start(config(&gateway)).unwrap();
    let Err(Error::NotReady {
        ready: 0, total: 2, ..
    }) = manager.wait_ready(Duration::from_millis(50))
    else {
        panic!()
    };
    manager.close();
    assert!(matches!(
        manager.wait_ready(PATIENCE),
        Err(Error::Stopped { .. } | Error::Closed)
    ));
}

#[test]
fn workers_keep_each_shard_in_order_and_survive_panics() {
    const EVENTS: usize = 200;
    let gateway = gateway()
        .shards(4)
        .max_concurrency(4)
        .guilds(8)
        .start()
        .unwrap();
    let manager = ready(config(&gateway));

    for n in 0..EVENTS {
        for guild in gateway.guild_ids() {
            gateway
                .chat(gateway.channel_of(guild).unwrap(), &n.to_string())
                .unwrap();
        }
    }

    let seen: Mutex<HashMap<String, Vec<usize>>> = Mutex::default();
    let count = AtomicUsize::new(0);
    manager
        .run(3, |handle, event| {
            let Some(dispatch) = event
                .dispatch()
                .filter(|dispatch| dispatch.name() == "MESSAGE_CREATE")
            else {
                return;
            };
            let message: Value = dispatch.decode().unwrap();
            let number = message["content"].as_str().unwrap().parse().unwrap();
            seen.lock()
                .entry(message["guild_id"].to_string())
                .or_default()
                .push(number);
            if count.fetch_add(1, Ordering::SeqCst) + 1 == EVENTS * 8 {
                handle.request_close();
            }
            assert!(number != 100, "a message that the handler cannot stand");
        })
        .unwrap();
    assert_eq!(seen.lock().len(), 8);

    for numbers in seen.lock().values() {
        assert!(numbers.iter().copied().eq(0..EVENTS));
    }

    assert_eq!(manager.handle().status().handler_panics, 8);
    assert!(matches!(
        manager.run(0, |_, _| {}),
        Err(Error::Setting {
            setting: "workers",
            ..
        })
    ));
    gateway.assert_lawful();
}

#[test]
fn closing_from_a_handler_twice_and_from_elsewhere() {
    let gateway = gateway().shards(2).max_concurrency(2).start().unwrap();
    let manager = ready(config(&gateway));
    let handle = manager.handle().clone();
    manager
        .run(2, |handle, _| {
            handle.request_close();
            handle.request_close();
        })
        .unwrap();
    manager.close();
    manager.close();
    assert_eq!(handle.shards().len(), 2);
    closed_with(&gateway, 1000, 2);
    drop(manager);
    assert!(
        handle.shards().is_empty(),
        "a handle keeps no manager alive"
    );
    handle.request_close();
    gateway.assert_lawful();
}

#[test]
fn closing_while_connecting_is_prompt() {
    // This server accepts connections and sends nothing.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let gateway = gateway().start().unwrap();
    let url = format!("ws://{}", listener.local_addr().unwrap());
    let manager = ShardManager::start(config(&gateway).gateway_url(url)).unwrap();
    eventually("it connects", || {
        manager
            .handle()
            .shard(ShardId::ONE)
            .is_some_and(|shard| shard.status().state == ShardState::Connecting)
    });
    let start = std::time::Instant::now();
    manager.close();
    assert!(
        start.elapsed() < Duration::from_secs(10),
        "{:?}",
        start.elapsed()
    );
}

#[test]
fn no_upgrade_and_no_tls_time_out() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let gateway = gateway().start().unwrap();
    for scheme in ["ws", "wss"] {
        let mut config =
            config(&gateway).gateway_url(format!("{scheme}://{}", listener.local_addr().unwrap()));
        config.timing.connect_timeout = Duration::from_millis(50);
        let manager = ShardManager::start(config).unwrap();
        eventually("it tries again", || {
            manager.handle().shard(ShardId::ONE).is_some_and(|shard| {
                shard.counters().connects >= 3
                    && shard.status().last_disconnect == Some(Disconnect::ConnectFailed)
            })
        });
    }
}

#[test]
fn a_refused_upgrade_is_retried() {
    for status in [429, 503, 200] {
        let http = common::Http::new(&[(status, "", "")]);
        let gateway = gateway().start().unwrap();
        let url = http.url.replace("http", "ws");
        let manager = ShardManager::start(config(&gateway).gateway_url(url)).unwrap();
        eventually("it tries again", || http.count() >= 3);
        assert!(http.count() < 50, "with backoff");
        assert_eq!(
            status_of(&manager, ShardId::ONE).last_disconnect,
            Some(Disconnect::ConnectFailed)
        );
    }
}

#[test]
fn an_untrusted_certificate_is_refused() {
    let trusted = gateway().tls(true).start().unwrap();
    let other = gateway().tls(true).start().unwrap();
    let manager = ShardManager::start(config(&trusted).gateway_url(other.url())).unwrap();
    eventually("it is refused", || {
        manager.handle().shard(ShardId::ONE).is_some_and(|shard| {
            shard.counters().connects >= 2
                && shard.status().last_disconnect == Some(Disconnect::ConnectFailed)
        })
    });
    assert!(other.observed().records.is_empty());
}

#[test]
fn suspend_keeps_sessions_that_start_again() {
    let gateway = gateway()
        .shards(3)
        .max_concurrency(3)
        .guilds(6)
        .start()
        .unwrap();
    let manager = ready(config(&gateway));
    let events = manager.events();
    for _ in 0..6 {
        next(&events, |event| event.name() == "GUILD_CREATE");
    }
    let sessions = manager.suspend();
    drop((events, manager));
    assert_eq!(sessions.len(), 3);
    closed_with(&gateway, 4000, 3);
    let stored = serde_json::to_string(&sessions).unwrap();
    for guild in gateway.guild_ids() {
        gateway
            .chat(gateway.channel_of(guild).unwrap(), "while it was away")
            .unwrap();
    }

    let mut stored: Vec<threadcord::Session> = serde_json::from_str(&stored).unwrap();
    let foreign = threadcord::Session::new(
        "x".into(),
        1,
        String::new(),
        shard(0, 9),
        sessions[0].bot_user_id,
    );
    stored.push(foreign);
    let manager = ready(config(&gateway).session_store(MemoryStore::new(stored)));
    let events = manager.events();
    for _ in 0..6 {
        let message = next(&events, |event| event.name() == "MESSAGE_CREATE");
        let message: Value = message.dispatch().unwrap().decode().unwrap();
        assert_eq!(message["content"], "while it was away");
    }
    for shard in manager.handle().shards() {
        assert_eq!(
            (shard.counters().identifies, shard.counters().resumes),
            (0, 1)
        );
    }
    gateway.assert_lawful();
}

#[test]
fn unhandled_events_are_redelivered() {
    let gateway = gateway().guilds(1).start().unwrap();
    let manager = ready(config(&gateway));
    let events = manager.events();
    let channel = gateway.channel_of(gateway.guild_ids()[0]).unwrap();

    for n in 0..5 {
        gateway.chat(channel, &n.to_string()).unwrap();
    }

    let mut messages: Vec<_> = (0..5)
        .map(|_| next(&events, |event| event.name() == "MESSAGE_CREATE"))
        .collect();

    // The third is still being handled when the others are done.
    let third = messages.remove(2);
    drop(messages);
    let sessions = manager.suspend();
    drop((third, events, manager));
    let manager = ready(config(&gateway).session_store(MemoryStore::new(sessions)));
    let events = manager.events();

    for n in 2..5 {
        let message = next(&events, |event| event.name() == "MESSAGE_CREATE");
        assert_eq!(
            message.dispatch().unwrap().decode::<Value>().unwrap()["content"],
            n.to_string()
        );
    }
    gateway.assert_lawful();
}

#[test]
fn events_that_were_not_taken_are_redelivered() {
    let gateway = gateway().guilds(1).start().unwrap();
    let manager = ready(config(&gateway));
    let channel = gateway.channel_of(gateway.guild_ids()[0]).unwrap();
    for n in 0..5 {
        gateway.chat(channel, &n.to_string()).unwrap();
    }

    for event in manager.events() {
        if event.name() == "MESSAGE_CREATE" {
            break;
        }
    }

    // The loop has ended, and no thread takes the queued events.
    let sessions = manager.suspend();
    drop(manager);
    assert_eq!(sessions.len(), 1);
    let manager = ready(config(&gateway).session_store(MemoryStore::new(sessions)));
    let events = manager.events();

    for n in 1..5 {
        let message = next(&events, |event| event.name() == "MESSAGE_CREATE");
        assert_eq!(
            message.dispatch().unwrap().decode::<Value>().unwrap()["content"],
            n.to_string()
        );
    }
    gateway.assert_lawful();
}

#[test]
fn a_dropped_stream_can_be_continued_later() {
    let gateway = gateway().guilds(1).start().unwrap();
    let manager = ready(config(&gateway).max_outstanding_events(10));
    let channel = gateway.channel_of(gateway.guild_ids()[0]).unwrap();
    for n in 0..50 {
        gateway.chat(channel, &n.to_string()).unwrap();
    }

    let mut numbers = Vec::new();
    while numbers.len() < 50 {
        // A new stream for each event.
        let event = manager.events().next().unwrap();
        if let Some(dispatch) = event
            .dispatch()
            .filter(|dispatch| dispatch.name() == "MESSAGE_CREATE")
        {
            numbers.push(
                dispatch.decode::<Value>().unwrap()["content"]
                    .as_str()
                    .unwrap()
                    .to_owned(),
            );
        }
    }

    assert!(numbers.into_iter().eq((0..50).map(|n| n.to_string())));
    gateway.assert_lawful();
}

#[test]
fn raw_commands_are_checked_and_sent() {
    let gateway = gateway().start().unwrap();
    let manager = ready(config(&gateway));
    let shard = manager.handle().shard(ShardId::ONE).unwrap();
    for refused in [
        json!({"op": 2}),
        json!({"op": 1}),
        json!({"op": 6}),
        json!({}),
        json!([]),
        json!("x"),
    ] {
        assert!(Command::raw(&refused).is_err(), "{refused}");
    }

    let error = Command::raw(&json!({"op": 31, "d": "x".repeat(5000)})).unwrap_err();
    assert!(error.to_string().contains("at most 4096"), "{error}");
    let presence =
        json!({"op": 3, "d": {"since": null, "activities": [], "status": "idle", "afk": false}});
    shard.send(Command::raw(&presence).unwrap()).unwrap();
    gateway.expect("the presence", PATIENCE, |seen| {
        seen.commands(ShardId::ONE, 3)
            .any(|(_, data)| *data == presence["d"])
    });
    gateway.assert_lawful();
}

#[test]
fn a_flood_of_commands_stays_within_the_limit() {
    let gateway = gateway().start().unwrap();
    let manager = ready(config(&gateway));
    let shard = manager.handle().shard(ShardId::ONE).unwrap();
    for n in 1..=400 {
        shard.send(sounds(n)).unwrap();
    }
    let is_command = |action: &Action| matches!(action, Action::Command { .. });
    assert!(gateway.wait_for(PATIENCE, |seen| seen.count(is_command) == 400));
    gateway.assert_lawful();
}

#[test]
fn stage_changes_are_reported() {
    let gateway = gateway().start().unwrap();
    let manager = ready(config(&gateway));
    manager.wait_guilds(PATIENCE).unwrap();
    let events = manager.events();
    manager.close();
    let stages: Vec<String> = events
        .filter(|event| event.dispatch().is_none())
        .map(|event| event.name().to_owned())
        .collect();
    assert_eq!(
        stages,
        ["Connecting", "SessionStarted", "GuildsReady", "Stopped"]
    );
    assert!(matches!(
        manager.handle().shards()[0].status().state,
        ShardState::Stopped(StopReason::Closed)
    ));
    assert!(manager.handle().shards()[0].session().is_none());
}

#[test]
fn shard_numbers_may_be_large() {
    let gateway = gateway().start().unwrap();
    let plan = Plan::Ids {
        ids: vec![70_000, 99_999],
        total: 100_000,
    };
    let manager = ready(config(&gateway).plan(plan));
    let live: Vec<ShardId> = gateway.observed().live.keys().copied().collect();
    assert_eq!(live, [shard(70_000, 100_000), shard(99_999, 100_000)]);
    drop(manager);
    gateway.assert_lawful();
}

#[test]
fn a_guild_of_another_process_has_no_shard() {
    let gateway = gateway().guilds(2).start().unwrap();
    let manager = ready(config(&gateway).plan(Plan::Ids {
        ids: vec![1],
        total: 2,
    }));
    let [here, there] = [1, 0].map(|number: u64| {
        *gateway
            .guild_ids()
            .iter()
            .find(|id| (**id >> 22) % 2 == number)
            .expect("a guild for each shard")
    });
    assert_eq!(
        manager.handle().shard_by_guild(here).unwrap().id(),
        shard(1, 2)
    );
    assert!(manager.handle().shard_by_guild(there).is_none());
    let handle = manager.handle().clone();
    manager.close();
    drop(manager);
    assert!(
        handle
            .shard_by_guild(here)
            .is_none_or(|shard| matches!(shard.status().state, ShardState::Stopped(_)))
    );
}

#[test]
fn shutdown_interrupts_a_pause() {
    let gateway = gateway().start().unwrap();
    let mut config = config(&gateway);
    config.timing.backoff_base = std::time::Duration::from_secs(3600);
    config.timing.backoff_cap = std::time::Duration::from_secs(3600);
    let manager = ready(config);
    drop(gateway);
    eventually("it pauses", || {
        matches!(
            manager.handle().shards()[0].status().state,
            ShardState::Waiting
        )
    });
    let start = std::time::Instant::now();
    manager.close();
    assert!(start.elapsed() < PATIENCE);
}
