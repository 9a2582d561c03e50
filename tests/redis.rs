//! The identify limit that processes share over Redis: a real server, real processes.

mod common;

use std::num::NonZeroU32;
use std::process::{Child, Command};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};
use std::{env, thread};

use common::redis::RedisServer;
use common::{PATIENCE, SCALE, config, eventually, gateway, shard};
use threadcord::limit::{IdentifyLimiter, LimitError, Limits, contract};
use threadcord::redis::Redis;
use threadcord::sim::Gateway;
use threadcord::{Config, Error, Intents, Plan, ShardManager, Stage, Timing, Token};

const PROCESSES: u32 = 16;

/// What a key's window is at Discord, and how long a permit is valid.
const WINDOW: Duration = Duration::from_millis(100);
const VALIDITY: Duration = Duration::from_millis(500);

fn timing() -> Timing {
    let mut timing = Timing::scaled(0.02);
    timing.guard = Duration::from_millis(20);
    timing.permit_validity = VALIDITY;
    timing
}

fn token() -> Token {
    Token::new("MTIzNDU2Nzg5MDEyMzQ1Njc4.abcdef.0123456789abcdefghijklmnopqrstuv").unwrap()
}

fn open(server: &RedisServer) -> Redis {
    Redis::open_with_timing(&server.url(), &token(), &timing()).unwrap()
}

fn limits(remaining: u32, max_concurrency: u32) -> Limits {
    Limits {
        remaining,
        max_concurrency: NonZeroU32::new(max_concurrency).unwrap(),
        reset_after: Duration::from_secs(3600),
        ..Limits::default()
    }
}

#[test]
fn two_objects_on_one_server_keep_the_contract() {
    let Some(server) = RedisServer::start("two_objects_on_one_server_keep_the_contract", &[])
    else {
        return;
    };
    let (a, b) = (
        open(&server).identify_limit(),
        open(&server).identify_limit(),
    );
    a.update(limits(1000, 1), Instant::now());
    contract::grants_once(&*a);
    contract::windows_are_shared((&*a, shard(0, 2)), (&*b, shard(1, 2)), 5, WINDOW);
    contract::windows_are_kept(&*b, shard(0, 2), shard(1, 2), WINDOW);
    contract::leaving_frees_the_slot(&*a, shard(0, 2), shard(1, 2));

    // A process that is killed before it identifies costs the time that it had, and one window.
    let held = a.request(shard(0, 2), Box::new(|| {})).wait(None).unwrap();
    let start = Instant::now();
    assert!(!held.is_expired());
    let permit = b.request(shard(1, 2), Box::new(|| {})).wait(None).unwrap();
    assert!(start.elapsed() >= VALIDITY + WINDOW);
    assert!(held.is_expired(), "it may not be used any more");
    drop((held, permit));

    a.update(limits(900, 2), Instant::now());
    b.update(limits(900, 2), Instant::now());
    contract::keys_are_independent(&*b, &[shard(0, 2), shard(1, 2)]);
    let status = b.status().unwrap();
    assert_eq!((status.total, status.max_concurrency.get()), (1000, 2));
}

#[test]
fn what_redis_cannot_do_is_said_at_once() {
    let name = "what_redis_cannot_do_is_said_at_once";
    let Some(server) = RedisServer::start(name, &["--requirepass", "secret"]) else {
        return;
    };
    let port = server.port();
    let url = |login: &str| format!("redis://{login}127.0.0.1:{port}/");
    let open = |url: &str| Redis::open(url, &token());
    let refused = |url: &str| {
        let error = open(url).unwrap_err();
        assert!(matches!(error, Error::Redis(_)), "{error:?}");
        let report = error.report();
        assert!(!report.contains("secret"), "{report}");
        report
    };

    for url in [
        "",
        "http://127.0.0.1/",
        "redis://",
        "rediss://127.0.0.1/#insecure",
    ] {
        let error = open(url).unwrap_err();
        assert!(
            matches!(error, Error::Setting { setting: "url", .. }),
            "{url}: {error:?}"
        );
    }
    let start = Instant::now();
    let report = refused("redis://127.0.0.1:1/");
    assert!(report.contains("refused"), "{report}");
    assert!(start.elapsed() < Duration::from_secs(5));

    assert!(refused(&url("")).to_lowercase().contains("auth"));
    assert!(
        refused(&url(":secret-not@"))
            .to_lowercase()
            .contains("password")
    );
    assert!(open(&url(":secret@")).is_ok());

    // The documented rights are enough, and each of them is needed.
    let client = redis::Client::open(url(":secret@")).unwrap();
    let mut admin = client.get_connection().unwrap();
    let rights = "+get +set +time +multi +exec +info +evalsha +script|load";
    let mut set_rights = |rights: &str| {
        let mut set = redis::cmd("ACL");
        set.arg("SETUSER")
            .arg("bot")
            .arg("reset")
            .arg("on")
            .arg(">secret");
        set.arg("~threadcord:*").arg("resetchannels").arg("-@all");
        set.arg(rights.split_whitespace().collect::<Vec<_>>());
        let () = set.query(&mut admin).unwrap();
    };
    set_rights(rights);
    open(&url("bot:secret@")).unwrap();
    for right in ["+get", "+set", "+time", "+info", "+evalsha"] {
        set_rights(&rights.replacen(right, "", 1));
        // Something to write, so that each right is used.
        let mut admin = client.get_connection().unwrap();
        let () = redis::cmd("FLUSHALL").query(&mut admin).unwrap();
        let report = refused(&url("bot:secret@"));
        let said = report.to_lowercase();
        let refusals = ["no permissions", "noperm", "can't run this command"];
        assert!(
            refusals.iter().any(|refusal| said.contains(refusal)),
            "{right}: {report}"
        );
    }

    // What another version has written, and what is none of ours.
    let key = format!("threadcord:{{{}}}:limit", token().user_id().unwrap());
    let mut put = |command: &str, value: &[&str]| {
        let () = redis::cmd("DEL").arg(&key).query(&mut admin).unwrap();
        let () = redis::cmd(command)
            .arg(&key)
            .arg(value)
            .query(&mut admin)
            .unwrap();
    };
    put("SET", &[r#"{"threadcord":9}"#]);
    assert!(refused(&url(":secret@")).contains(&key));
    put("RPUSH", &["x"]);
    assert!(refused(&url(":secret@")).contains("WRONGTYPE"));
    put("SET", &[""]);

    let () = redis::cmd("CONFIG")
        .arg(&["SET", "maxmemory", "1"])
        .query(&mut admin)
        .unwrap();
    assert!(refused(&url(":secret@")).contains("OOM"));
    let () = redis::cmd("CONFIG")
        .arg(&["SET", "maxmemory", "0"])
        .query(&mut admin)
        .unwrap();
    let () = redis::cmd("REPLICAOF")
        .arg(&["127.0.0.1", "1"])
        .query(&mut admin)
        .unwrap();
    let report = refused(&url(":secret@"));
    assert!(report.contains("read only replica"), "{report}");
}

#[test]
fn one_process_asks_discord_and_ten_are_kept_back() {
    let Some(server) = RedisServer::start("one_process_asks_discord_and_ten_are_kept_back", &[])
    else {
        return;
    };
    let request = |limit: &dyn IdentifyLimiter, number| {
        let ticket = limit.request(shard(number, 16), Box::new(|| {}));
        ticket.wait(Some(Instant::now() + PATIENCE))
    };
    let (a, b) = (
        open(&server).identify_limit(),
        open(&server).identify_limit(),
    );
    // Nobody knows what is left.
    let Err(LimitError::Failed(cause)) = request(&*a, 0) else {
        panic!("it cannot tell")
    };
    assert!(cause.to_string().contains("not known"), "{cause}");
    let () = redis::cmd("FLUSHALL").query(&mut server.admin()).unwrap();

    let emptied = Instant::now();
    let asked = Arc::new(AtomicU32::new(0));
    for limit in [&a, &b] {
        // The newest way to ask is one of a manager that has ended.
        let asked = Arc::clone(&asked);
        limit.ask_with(Arc::new(move || {
            asked.fetch_add(1, Ordering::SeqCst);
            Ok(limits(13, 16))
        }));
        limit.ask_with(Arc::new(|| Err(Error::Closed)));
    }
    let permits = thread::scope(|scope| {
        let asks = [(&a, 0), (&b, 1)];
        let asks = asks.map(|(limit, number)| scope.spawn(move || request(&**limit, number)));
        asks.map(|ask| ask.join().unwrap().unwrap())
    });
    assert_eq!(asked.load(Ordering::SeqCst), 1, "the others waited");
    let waited = emptied.elapsed();
    assert!(
        waited >= WINDOW,
        "one may have identified just before it was emptied"
    );
    for mut permit in permits {
        permit.used();
    }
    request(&*b, 2).unwrap().used();
    let Err(LimitError::Failed(cause)) = request(&*a, 3) else {
        panic!("ten are kept back")
    };
    assert!(cause.to_string().contains("no IDENTIFY is left"), "{cause}");
    assert_eq!(a.status().unwrap().remaining, 10);
}

#[test]
fn while_redis_is_away_nobody_identifies_and_connections_go_on() {
    let name = "while_redis_is_away_nobody_identifies_and_connections_go_on";
    let Some(mut server) = RedisServer::start(name, &[]) else {
        return;
    };
    let gateway = gateway().guilds(1).start().unwrap();
    let token = Token::new(gateway.token()).unwrap();
    let redis = Redis::open_with_timing(&server.url(), &token, &timing()).unwrap();
    let one = |number| {
        let plan = Plan::Ids {
            ids: vec![number],
            total: 2,
        };
        let config = config(&gateway).plan(plan);
        ShardManager::start(config.limiter(redis.identify_limit())).unwrap()
    };
    let first = one(0);
    first.wait_ready(PATIENCE).unwrap();

    server.kill();
    let second = one(1);
    eventually("the second was refused, and asks again", || {
        let shards = second.handle().shards();
        shards
            .first()
            .is_some_and(|shard| shard.status().stage == Stage::Queued)
    });
    thread::sleep(Duration::from_millis(500));
    let status = first.handle().shards()[0].status();
    assert_eq!((status.connects, status.identifies), (1, 1));
    assert_eq!(second.handle().shards()[0].status().identifies, 0);

    // It comes back empty: Discord is asked again.
    server.restart();
    second.wait_ready(PATIENCE).unwrap();
    assert_eq!(first.handle().shards()[0].status().connects, 1);
    gateway.assert_lawful();
}

/// A process that runs one shard, and stays.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn process(gateway: &Gateway, server: &RedisServer, number: u32) -> Process {
    let child = Command::new(env::current_exe().unwrap())
        .args(["--exact", "as_one_of_many", "--ignored", "--nocapture"])
        .env("DISCORD_TOKEN", gateway.token())
        .env("DISCORD_REST_URL", gateway.rest_url())
        .env("REDIS_URL", server.url())
        .env("SHARD", number.to_string())
        .spawn();
    Process(child.unwrap())
}

#[test]
fn many_processes_start_at_once_and_redis_restarts_empty() {
    let name = "many_processes_start_at_once_and_redis_restarts_empty";
    let Some(mut server) = RedisServer::start(name, &[]) else {
        return;
    };
    let gateway = gateway().guilds(1).start().unwrap();
    let mut processes: Vec<_> = (0..PROCESSES)
        .map(|number| process(&gateway, &server, number))
        .collect();
    gateway.expect("some are ready", PATIENCE, |seen| seen.live.len() >= 4);
    server.restart();
    gateway.expect("half are ready", PATIENCE, |seen| seen.live.len() >= 8);
    // One that may have its turn just now.
    let live = gateway.observed().live;
    let is_waiting = |number: &u32| !live.contains_key(&shard(*number, PROCESSES));
    let killed = (0..PROCESSES).find(is_waiting).expect("one waits");
    processes[killed as usize] = process(&gateway, &server, killed);
    gateway.expect("all are ready", PATIENCE, |seen| {
        seen.live.len() == PROCESSES as usize
    });
    gateway.assert_lawful();
}

#[test]
#[ignore = "`many_processes_start_at_once_and_redis_restarts_empty` starts it"]
fn as_one_of_many() {
    let variable = |name: &str| env::var(name).unwrap();
    let mut timing = Timing::scaled(SCALE);
    timing.guard = Duration::from_millis(50);
    let plan = Plan::Ids {
        ids: vec![variable("SHARD").parse().unwrap()],
        total: PROCESSES,
    };
    let token = Token::new(variable("DISCORD_TOKEN")).unwrap();
    let redis = Redis::open_with_timing(&variable("REDIS_URL"), &token, &timing).unwrap();
    let config = Config::new(token, Intents::GUILDS)
        .rest_url(variable("DISCORD_REST_URL"))
        .limiter(redis.identify_limit())
        .timing(timing)
        .retry_start_for(PATIENCE)
        .plan(plan);
    let _manager = ShardManager::start(config).unwrap();
    loop {
        thread::park();
    }
}
