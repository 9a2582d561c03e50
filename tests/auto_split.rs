//! Shards that hold too many guilds are split, again and again, while events flow.

mod common;

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use common::{PATIENCE, config, eventually, gateway, next, ready, shard};
use parking_lot::Mutex;
use serde_json::{Value, json};
use threadcord::sim::{Fault, Gateway};
use threadcord::{Error, Event, EventKind, Handle, Plan, ShardId, ShardManager, StopReason};

/// Checks that no rule was broken except the one that causes splits.
fn assert_lawful(gateway: &Gateway) {
    let mut violations = gateway.observed().violations;
    violations.retain(|violation| !violation.rule.starts_with("4011"));
    assert!(violations.is_empty(), "{violations:#?}");
}

/// Checks that every guild belongs to one shard, and that one session receives its events.
fn covered_once(gateway: &Gateway, shard_of: impl Fn(u64) -> Option<ShardId>, totals: &[u32]) {
    for guild in gateway.guild_ids() {
        let home = shard_of(guild).expect("a shard for each guild");
        assert!(
            totals.contains(&home.total()) && ShardId::for_guild(guild, home.total()) == Some(home),
            "{home}"
        );
        let data = json!({"guild_id": guild.to_string(), "user_id": "covered"});
        assert_eq!(
            gateway.emit(Some(guild), "TYPING_START", &data),
            Ok(1),
            "guild {guild}"
        );
    }
}

#[test]
fn two_become_four_and_eight_while_a_slow_handler_is_busy() {
    let gateway = gateway()
        .guilds(8)
        .guilds_per_shard(8)
        .max_concurrency(4)
        .start()
        .unwrap();
    let manager = ready(
        config(&gateway)
            .plan(Plan::Total(2))
            .auto_split(2)
            .max_outstanding_events(64),
    );
    let (covered, splits) = (
        Mutex::<HashMap<u64, usize>>::default(),
        Mutex::<Vec<ShardId>>::default(),
    );
    let stop = AtomicBool::new(false);
    let handler = |_: &Handle, event: Event| {
        if let EventKind::Split { .. } = event.kind() {
            splits.lock().push(event.shard());
        }
        let Some(dispatch) = event.dispatch() else {
            return;
        };
        if !stop.load(Ordering::Acquire) {
            // Two workers: about 660 events a second, of a thousand.
            std::thread::sleep(Duration::from_millis(3));
        }
        let data: Value = dispatch.decode().unwrap();
        if data["user_id"] == "covered" {
            *covered
                .lock()
                .entry(data["guild_id"].as_str().unwrap().parse().unwrap())
                .or_default() += 1;
        }
    };

    std::thread::scope(|scope| {
        scope.spawn(|| manager.run(2, handler).unwrap());
        gateway.set_activity(1000.0);
        for total in [4, 8] {
            // Each shard becomes too large for its next session.
            gateway.add_guilds(8 * total - u32::try_from(gateway.guild_ids().len()).unwrap());
            for number in 0..total / 2 {
                gateway.inject(
                    shard(number, total / 2),
                    Fault::InvalidSession { resumable: false },
                );
            }
            eventually("all are split and ready", || {
                let shards = manager.handle().shards();
                shards.len() == total as usize
                    && shards.iter().all(|shard| shard.id().total() == total)
            });
            manager.wait_ready(PATIENCE).unwrap();
            gateway.expect("they are live, and no others", PATIENCE, |seen| {
                seen.live.len() == total as usize
                    && seen.live.keys().all(|shard| shard.total() == total)
            });
            covered_once(
                &gateway,
                |guild| Some(manager.handle().shard_by_guild(guild)?.id()),
                &[total],
            );
        }
        gateway.set_activity(0.0);
        stop.store(true, Ordering::Release);
        eventually("every guild is heard", || covered.lock().len() == 64);
        eventually("once for each time that it was asked", || {
            covered.lock().values().sum::<usize>() == 32 + 64
        });
        manager.close();
    });
    let splits: BTreeSet<_> = splits.into_inner().into_iter().collect();
    let expected = [
        shard(0, 2),
        shard(1, 2),
        shard(0, 4),
        shard(1, 4),
        shard(2, 4),
        shard(3, 4),
    ];
    assert_eq!(splits, expected.into());
    assert_lawful(&gateway);
}

#[test]
fn one_of_two_is_split_at_the_start_and_again() {
    let gateway = gateway()
        .guilds(32)
        .guilds_per_shard(8)
        .max_concurrency(4)
        .start()
        .unwrap();

    // Shard 1 is in another process.
    let manager =
        ShardManager::start(config(&gateway).plan(Plan::range(0..1, 2)).auto_split(2)).unwrap();
    let events = manager.events();
    let split = next(&events, |event| event.name() == "Split");
    let EventKind::Split { into } = split.kind() else {
        panic!()
    };
    assert_eq!(
        (split.shard(), &into[..]),
        (shard(0, 2), &[shard(0, 4), shard(2, 4)][..])
    );
    manager.wait_ready(PATIENCE).unwrap();
    assert_eq!(gateway.observed().live.len(), 2);
    let here = |guild: &u64| (guild >> 22).is_multiple_of(2);

    for guild in gateway.guild_ids() {
        assert_eq!(
            manager.handle().shard_by_guild(guild).is_some(),
            here(&guild)
        );
    }

    manager.close();
    assert_lawful(&gateway);
}

#[test]
fn three_at_a_time_and_one_shard_alone() {
    let gateway = gateway()
        .guilds(18)
        .guilds_per_shard(6)
        .max_concurrency(4)
        .start()
        .unwrap();
    let mut config = config(&gateway).plan(Plan::Total(1)).auto_split(3);
    config.timing.reshard_overlap = Duration::from_millis(50);
    let manager = ShardManager::start(config).unwrap();
    manager.wait_guilds(PATIENCE).unwrap();
    covered_once(
        &gateway,
        |guild| Some(manager.handle().shard_by_guild(guild)?.id()),
        &[3],
    );

    // Half of it grows: its guilds are those of other totals then.
    gateway.add_guilds(3);
    gateway.inject(shard(2, 3), Fault::InvalidSession { resumable: false });
    eventually("one of three is split", || {
        manager.handle().shards().len() == 5
    });
    manager.wait_ready(PATIENCE).unwrap();
    covered_once(
        &gateway,
        |guild| Some(manager.handle().shard_by_guild(guild)?.id()),
        &[3, 9],
    );

    // A reshard makes all shards one set again.
    let mut events = manager.events();
    manager.handle().reshard(&Plan::Total(6)).unwrap();
    assert!(events.any(|event| event.name() == "Resharded"));
    gateway.expect("the old ones are gone", PATIENCE, |seen| {
        seen.live.keys().all(|shard| shard.total() == 6)
    });
    covered_once(
        &gateway,
        |guild| Some(manager.handle().shard_by_guild(guild)?.id()),
        &[6],
    );
    assert_lawful(&gateway);
}

#[test]
fn without_auto_split_a_full_shard_stops() {
    let gateway = gateway().guilds(10).guilds_per_shard(9).start().unwrap();
    let manager = ShardManager::start(config(&gateway)).unwrap();
    match manager.run(1, |_, _| {}) {
        Err(Error::Stopped {
            reason: StopReason::Discord(code),
            ..
        }) => assert_eq!(code.0, 4011),
        other => panic!("{other:?}"),
    }
}
