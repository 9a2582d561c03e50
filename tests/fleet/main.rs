//! Several processes, each with a part of the shards: a real Redis, real processes, and a simulated
//! gateway.

mod chaos;
#[path = "../common/mod.rs"]
mod common;
mod processes;

use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use common::redis::RedisServer;
use common::{PATIENCE, SCALE, config, counters_of, eventually, gateway, shard};
use threadcord::limit::LimitError;
use threadcord::redis::{OwnedPart, Redis};
use threadcord::sim::{Action, Fault, Gateway, Observed};
use threadcord::store::{OwnershipLost, Saved, SessionStore};
use threadcord::{Config, Error, Plan, Session, ShardManager, Timing, Token};

/// How long a lease lasts here.
const TTL: Duration = Duration::from_secs(1);

fn timing(scale: f64) -> Timing {
    let mut timing = Timing::scaled(scale);
    timing.guard = Duration::from_millis(20);
    timing.lease_ttl = TTL;
    timing.session_skew = Duration::from_millis(10);
    timing
}

fn open(server: &RedisServer, gateway: &Gateway) -> Redis {
    let token = Token::new(gateway.token()).unwrap();
    Redis::open_with_timing(&server.url(), &token, &timing(SCALE)).unwrap()
}

/// A configuration for a part that this process owns.
fn of_part(gateway: &Gateway, redis: &Redis, plan: Plan, part: OwnedPart) -> Config {
    let limiter = redis.identify_limit();
    config(gateway)
        .plan(plan)
        .limiter(limiter)
        .session_store(part)
}

/// A gateway with a heartbeat interval of 200 ms.
fn lively() -> Gateway {
    let gateway = gateway().guilds(8).shards(4).max_concurrency(4);
    let gateway = gateway.heartbeat_interval(Duration::from_secs(20));
    gateway.start().unwrap()
}

fn resumes(seen: &Observed) -> usize {
    seen.count(|action| matches!(action, Action::Resume { .. }))
}

fn identifies(seen: &Observed) -> usize {
    seen.count(|action| matches!(action, Action::Identify(_)))
}

#[test]
fn a_part_has_one_owner_and_a_standby_resumes_its_sessions() {
    let name = "a_part_has_one_owner_and_a_standby_resumes_its_sessions";
    let Some(server) = RedisServer::start(name, &[]) else {
        return;
    };
    let gateway = lively();
    let redis = open(&server, &gateway);
    let start = Instant::now();
    let first = redis.part(1, 2).acquire(PATIENCE).unwrap();
    assert!(start.elapsed() >= TTL, "Redis may have lost an owner");
    let plan = Plan::bucket(1, 2);
    let config = of_part(&gateway, &redis, plan.clone(), first);
    let manager = ShardManager::start(config.clone()).unwrap();
    manager.wait_ready(PATIENCE).unwrap();

    // Another process that wants the part waits.
    let other = open(&server, &gateway);
    let refused = other.part(1, 2).acquire(TTL * 2).unwrap_err();
    let is_not_free = matches!(refused, Error::PartNotFree { part: 1, of: 2, .. });
    assert!(is_not_free, "{refused:?}");
    let report = refused.report();
    let (pid, wanted) = (std::process::id(), "it belongs to ");
    assert!(
        report.contains(wanted) && report.contains(&format!(":{pid}:")),
        "{report}"
    );
    let status = redis.status().unwrap();
    assert_eq!(status.total, Some(4));
    assert_eq!(status.limit.unwrap().max_concurrency.get(), 4);
    let owners: Vec<_> = status
        .parts
        .iter()
        .map(|part| part.owner.is_some())
        .collect();
    assert_eq!(owners, [false, true]);
    let renewed_ago = status.parts[1].renewed_ago.unwrap();
    assert!(renewed_ago < TTL, "{renewed_ago:?}");

    thread::scope(|scope| {
        let standby = scope.spawn(|| {
            let part = other.part(1, 2).acquire(PATIENCE).unwrap();
            let config = of_part(&gateway, &other, plan, part);
            let manager = ShardManager::start(config).unwrap();
            manager.wait_ready(PATIENCE).unwrap();
            manager
        });
        manager.suspend();
        let error = ShardManager::start(config).unwrap_err().report();
        assert!(error.contains("acquire it again"), "{error}");
        let next = standby.join().unwrap();
        for number in [1, 3] {
            assert_eq!(
                counters_of(&next, shard(number, 4)).identifies,
                0,
                "it resumes"
            );
        }
    });
    let seen = gateway.observed();
    assert_eq!((identifies(&seen), resumes(&seen)), (2, 2));
    gateway.assert_lawful();
}

#[test]
fn all_processes_have_one_total_and_one_number_of_parts() {
    let name = "all_processes_have_one_total_and_one_number_of_parts";
    let Some(server) = RedisServer::start(name, &[]) else {
        return;
    };
    let gateway = lively();
    let redis = open(&server, &gateway);
    for (index, of) in [(2, 2), (0, 0)] {
        let error = redis.part(index, of).acquire(PATIENCE).unwrap_err();
        assert!(
            matches!(
                error,
                Error::Setting {
                    setting: "part",
                    ..
                }
            ),
            "{error:?}"
        );
    }
    let start = |index, plan, change: fn(Config) -> Config| {
        let part = redis.part(index, 2).acquire(PATIENCE).unwrap();
        ShardManager::start(change(of_part(&gateway, &redis, plan, part)))
    };
    let refusal = |index, plan, change| {
        let error = start(index, plan, change).unwrap_err();
        assert!(matches!(error, Error::Setting { .. }), "{error:?}");
        error.to_string()
    };
    let bucket = |index, total| Plan::Bucket {
        index,
        of: 2,
        total,
    };

    let first = start(0, bucket(0, Some(6)), |config| config).unwrap();
    first.wait_ready(PATIENCE).unwrap();
    assert!(refusal(1, bucket(0, Some(6)), |config| config).contains("shards of part 1 of 2"));
    let report = refusal(1, bucket(1, Some(8)), |config| config);
    assert!(
        report.contains("of 8 shards") && report.contains("have: 6"),
        "{report}"
    );
    let report = refusal(1, bucket(1, None), |config| config.auto_split(2));
    assert!(
        report.contains("`auto_split`") && report.contains("6 shards"),
        "{report}"
    );
    // Discord recommends four.
    let second = start(1, bucket(1, None), |config| config).unwrap();
    second.wait_ready(PATIENCE).unwrap();
    let shards = second.handle().shards();
    let shards: Vec<_> = shards.iter().map(|shard| shard.id().to_string()).collect();
    assert_eq!(shards, ["1/6", "3/6", "5/6"]);
    let report = second
        .handle()
        .reshard(&bucket(1, Some(8)))
        .unwrap_err()
        .to_string();
    assert!(report.contains("of 8 shards"), "{report}");

    let error = redis.part(0, 3).acquire(PATIENCE).unwrap_err().to_string();
    assert!(
        error.contains("one of 3 parts") && error.contains("one of 2"),
        "{error}"
    );
    let error = redis.set_total(8).unwrap_err().report();
    assert!(error.contains("is owned by"), "{error}");
    first.suspend();
    second.suspend();
    redis.set_total(8).unwrap();
    let released = Instant::now();
    let first = start(0, bucket(0, None), |config| config).unwrap();
    assert!(released.elapsed() < TTL, "no TTL is waited out");
    first.wait_ready(PATIENCE).unwrap();
    assert_eq!(first.handle().shards()[0].id().total(), 8);
    first.close();
    redis.set_parts(3).unwrap();
    assert_eq!(redis.status().unwrap().parts.len(), 3);
    assert!(matches!(redis.set_total(0), Err(Error::Setting { .. })));
    gateway.assert_lawful();
}

#[test]
fn damaged_data_of_a_part_is_an_error_at_once() {
    let name = "damaged_data_of_a_part_is_an_error_at_once";
    let Some(server) = RedisServer::start(name, &[]) else {
        return;
    };
    let gateway = lively();
    let redis = open(&server, &gateway);
    let bot = Token::new(gateway.token()).unwrap().user_id().unwrap();
    let mut admin = server.admin();
    let mut set = |name: &str, text: &str| {
        let key = format!("threadcord:{{{bot}}}:{name}");
        let () = redis::cmd("SET")
            .arg(&key)
            .arg(text)
            .query(&mut admin)
            .unwrap();
    };

    for (name, text) in [
        ("fleet", "<html>"),
        ("fleet", r#"{"threadcord":2,"parts":2,"total":4}"#),
        ("part:0/2", "{}"),
    ] {
        set("fleet", r#"{"threadcord":1,"parts":2,"total":4}"#);
        set(name, text);
        let error = redis.part(0, 2).acquire(PATIENCE).unwrap_err();
        assert!(matches!(error, Error::Redis(_)), "{error:?}");
        let report = error.report();
        assert!(
            report.contains("cannot be used") && report.contains(name),
            "{report}"
        );
    }

    // Sessions that cannot be used are ignored.
    set("part:0/2", "");
    let part = redis.part(0, 2).acquire(PATIENCE).unwrap();
    for text in ["<html>", r#"{"threadcord":2,"sessions":[]}"#] {
        set("sessions:0/2", text);
        assert!(part.load().unwrap().sessions.is_empty(), "{text}");
    }

    // Their times are those of Redis, whatever the clocks of the processes say.
    let mut session = Session::new("a".into(), 7, "wss://x".into(), shard(0, 4), bot);
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    session.saved_at = since.as_secs() - 60;
    let saved = Saved {
        sessions: vec![session],
        ..Saved::default()
    };
    part.save(&saved).unwrap();
    let loaded = part.load().unwrap().sessions;
    assert_eq!((loaded.len(), loaded[0].sequence), (1, 7));
    assert!(loaded[0].saved_at.abs_diff(saved.sessions[0].saved_at) <= 2);
}

#[test]
fn a_process_that_has_lost_its_part_saves_nothing_and_confirms_nothing() {
    let name = "a_process_that_has_lost_its_part_saves_nothing_and_confirms_nothing";
    let Some(server) = RedisServer::start(name, &[]) else {
        return;
    };
    let gateway = lively();
    let redis = open(&server, &gateway);
    let bot = Token::new(gateway.token()).unwrap().user_id().unwrap();
    let key = |name: &str, index: u32| format!("threadcord:{{{bot}}}:{name}:{index}/2");
    let mut admin = server.admin();
    let mut get = |key: &str| -> String { redis::cmd("GET").arg(key).query(&mut admin).unwrap() };
    let session = Session::new("a".into(), 7, "wss://x".into(), shard(0, 4), bot);
    let saved = Saved {
        sessions: vec![session],
        ..Saved::default()
    };
    let save = |part: &OwnedPart| {
        let error = part.save(&saved).unwrap_err();
        assert!(error.is::<OwnershipLost>(), "{error}");
    };
    let confirm = |part: &OwnedPart| part.confirm(Box::new(|| {})).unwrap().wait(None);
    let is_refused = |part: &OwnedPart| {
        let refused = confirm(part).unwrap_err();
        assert_eq!(refused, LimitError::Closed);
    };

    // Each of these calls detects the loss by itself, whichever comes first.
    let finds_out: [&dyn Fn(&OwnedPart); 2] = [&save, &is_refused];
    for (index, finds_out) in (0..).zip(finds_out) {
        let part = redis.part(index, 2).acquire(PATIENCE).unwrap();
        part.save(&Saved::default()).unwrap();
        confirm(&part).unwrap();
        let sessions = get(&key("sessions", index));

        // Another process takes it over, with a token that is higher.
        let lease = get(&key("part", index));
        let mut lease: serde_json::Value = serde_json::from_str(&lease).unwrap();
        lease["token"] = (lease["token"].as_u64().unwrap() + 1).into();
        lease["owner"] = "another".into();
        let mut set = redis::cmd("SET");
        set.arg(key("part", index)).arg(lease.to_string());
        let () = set.query(&mut server.admin()).unwrap();
        finds_out(&part);

        save(&part);
        is_refused(&part);
        assert_eq!(get(&key("sessions", index)), sessions);
        // It does not release a part that it does not own, either.
        drop(part);
        let stored: serde_json::Value = serde_json::from_str(&get(&key("part", index))).unwrap();
        assert_eq!(stored, lease);
    }
}

#[test]
fn a_process_that_was_stopped_while_the_parts_were_changed_has_lost_its_own() {
    let name = "a_process_that_was_stopped_while_the_parts_were_changed_has_lost_its_own";
    let Some(server) = RedisServer::start(name, &[]) else {
        return;
    };
    let gateway = lively();
    let redis = open(&server, &gateway);
    let bot = Token::new(gateway.token()).unwrap().user_id().unwrap();
    let key = format!("threadcord:{{{bot}}}:part:0/1");
    drop(redis.part(0, 1).acquire(PATIENCE).unwrap());
    let mut admin = server.admin();
    let mut token = || {
        let text: String = redis::cmd("GET").arg(&key).query(&mut admin).unwrap();
        let lease: serde_json::Value = serde_json::from_str(&text).unwrap();
        lease["token"].as_u64().unwrap()
    };

    // What it would renew with, and save.
    let before = token();
    redis.set_parts(2).unwrap();
    assert!(token() > before);
    let part = redis.part(1, 2).acquire(PATIENCE).unwrap();
    assert!(
        redis
            .set_parts(3)
            .unwrap_err()
            .report()
            .contains("owned by")
    );
    part.save(&Saved::default()).unwrap();
}

#[test]
fn parts_keep_their_owners_while_redis_is_down_or_emptied() {
    let name = "parts_keep_their_owners_while_redis_is_down_or_emptied";
    let Some(mut server) = RedisServer::start(name, &[]) else {
        return;
    };
    let gateway = lively();
    let redis = open(&server, &gateway);
    let part = redis.part(0, 1).acquire(PATIENCE).unwrap();
    let config = of_part(&gateway, &redis, Plan::Total(2), part);
    let manager = ShardManager::start(config).unwrap();
    manager.wait_ready(PATIENCE).unwrap();
    let owner = redis.status().unwrap().parts[0].owner.clone();

    let other = open(&server, &gateway);
    thread::scope(|scope| {
        let standby = scope.spawn(|| other.part(0, 1).acquire(6 * TTL).unwrap_err());
        server.kill();
        // The clients of Redis back off for longer than this TTL if it is unavailable for long.
        thread::sleep(TTL / 3);
        server.restart();
        eventually("the lease is written again", || {
            let status = redis.status();
            status.is_ok_and(|status| status.parts.iter().any(|part| part.owner == owner))
        });
        let report = standby.join().unwrap().report();
        assert!(report.contains("it belongs to"), "{report}");
    });

    // What is asked of a server that may not know of another owner is answered later.
    gateway.inject(shard(0, 2), Fault::Cut);
    gateway.expect("it resumes", PATIENCE, |seen| resumes(seen) == 1);
    manager.wait_ready(PATIENCE).unwrap();
    // The total and the sessions are written again, too, although no session has moved.
    let () = redis::cmd("FLUSHALL").query(&mut server.admin()).unwrap();
    let bot = Token::new(gateway.token()).unwrap().user_id().unwrap();
    let key = format!("threadcord:{{{bot}}}:sessions:0/1");
    eventually("the total and the sessions are written again", || {
        let mut get = redis::cmd("GET");
        let text: Option<String> = get.arg(&key).query(&mut server.admin()).unwrap();
        let are_saved = text.is_some_and(|text| text.matches("resume_url").count() == 2);
        are_saved && redis.status().unwrap().total == Some(2)
    });
    let counters = [0, 1].map(|number| counters_of(&manager, shard(number, 2)));
    assert_eq!(counters.map(|counters| counters.identifies), [1, 1]);
    gateway.assert_lawful();
}
