//! The identify limit that processes share through Redis, with a real server and real processes.

mod common;

use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};
use std::{env, thread};

use common::process::Process;
use common::redis::RedisServer;
use common::{PATIENCE, SCALE, config, eventually, gateway, shard};
use threadcord::limit::{IdentifyLimiter, LimitError, Limits, contract};
use threadcord::redis::Redis;
use threadcord::sim::Gateway;
use threadcord::store::{Saved, SessionStore};
use threadcord::{Config, Error, Intents, Plan, ShardManager, ShardState, Timing, Token};

const PROCESSES: u32 = 16;

/// The window of a key at Discord, and the validity of a permit.
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

    // A process that is killed before it identifies delays the key by its permit's validity and one
    // window. A permit that is given back frees the key at once.
    drop(a.request(shard(0, 2), Box::new(|| {})).wait(None).unwrap());
    let start = Instant::now();
    let held = a.request(shard(0, 2), Box::new(|| {})).wait(None).unwrap();
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

const SECRET: &str = ":secret@";

/// A server that requires a password, and connections to it with a login such as `user:password@`.
struct Guarded(RedisServer);

impl Guarded {
    fn start(test: &str) -> Option<Self> {
        RedisServer::start(test, &["--requirepass", "secret"]).map(Self)
    }

    fn url(&self, login: &str) -> String {
        format!("redis://{login}127.0.0.1:{}/", self.0.port())
    }

    fn admin(&self) -> redis::Connection {
        let client = redis::Client::open(self.url(SECRET)).unwrap();
        client.get_connection().unwrap()
    }

    /// Why a login is refused.
    fn refusal(&self, login: &str) -> String {
        refusal(&self.url(login))
    }
}

fn refusal(url: &str) -> String {
    let error = Redis::open(url, &token()).unwrap_err();
    assert!(matches!(error, Error::Redis(_)), "{error:?}");
    let report = error.report();
    assert!(!report.contains("secret"), "{report}");
    report
}

/// Runs a command that answers `OK`.
fn command(admin: &mut redis::Connection, words: &[&str]) {
    let mut command = redis::cmd(words[0]);
    let answer = command.arg(&words[1..]).query(admin);
    let () = answer.unwrap();
}

#[test]
fn a_url_or_a_login_that_is_wrong_is_refused() {
    let Some(server) = Guarded::start("a_url_or_a_login_that_is_wrong_is_refused") else {
        return;
    };
    let urls = [
        "",
        "http://127.0.0.1/",
        "redis://",
        "rediss://127.0.0.1/#insecure",
    ];
    for url in urls {
        let error = Redis::open(url, &token()).unwrap_err();
        let is_of_url = matches!(error, Error::Setting { setting: "url", .. });
        assert!(is_of_url, "{url}: {error:?}");
    }
    let start = Instant::now();
    let report = refusal("redis://127.0.0.1:1/");
    assert!(report.contains("refused"), "{report}");
    assert!(start.elapsed() < Duration::from_secs(5));

    assert!(server.refusal("").to_lowercase().contains("auth"));
    let report = server.refusal(":secret-not@");
    assert!(report.to_lowercase().contains("password"), "{report}");
    Redis::open(&server.url(SECRET), &token()).unwrap();
}

#[test]
fn the_documented_rights_are_enough_and_needed() {
    let Some(server) = Guarded::start("the_documented_rights_are_enough_and_needed") else {
        return;
    };
    let mut admin = server.admin();
    let login = "bot:secret@";
    let rights = "+get +set +time +info +evalsha +script|load";
    let mut reset = |rights: &str| {
        // There is something to write, and scripts to load, so that each permission is used.
        command(&mut admin, &["FLUSHALL"]);
        command(&mut admin, &["SCRIPT", "FLUSH"]);
        let mut words = vec!["ACL", "SETUSER", "bot", "reset", "on", ">secret"];
        words.extend(["~threadcord:*", "resetchannels", "-@all"]);
        words.extend(rights.split_whitespace());
        command(&mut admin, &words);
    };

    reset(rights);
    let mut timing = timing();
    timing.lease_ttl = Duration::from_millis(200);
    let redis = Redis::open_with_timing(&server.url(login), &token(), &timing).unwrap();
    let part = redis.part(0, 1).acquire(PATIENCE).unwrap();
    let saved = Saved::default();
    part.save(&saved).unwrap();
    assert_eq!(part.load().unwrap(), saved);
    drop(part);

    for right in rights.split_whitespace() {
        reset(&rights.replacen(right, "", 1));
        let report = server.refusal(login);
        let said = report.to_lowercase();
        let refusals = ["no permissions", "noperm", "can't run this command"];
        let is_refused = refusals.iter().any(|refusal| said.contains(refusal));
        assert!(is_refused, "{right}: {report}");
    }
}

#[test]
fn what_is_not_ours_is_left_alone() {
    let Some(server) = Guarded::start("what_is_not_ours_is_left_alone") else {
        return;
    };
    let mut admin = server.admin();
    let key = format!("threadcord:{{{}}}:limit", token().user_id().unwrap());
    let other = r#"{"threadcord":9}"#;
    command(&mut admin, &["SET", &key, other]);
    let report = server.refusal(SECRET);
    assert!(
        report.contains(&key) && report.contains("version 9"),
        "{report}"
    );

    // Another process does not overwrite it either, whatever Discord says.
    command(&mut admin, &["FLUSHALL"]);
    let redis = Redis::open(&server.url(SECRET), &token()).unwrap();
    command(&mut admin, &["SET", &key, other]);
    redis
        .identify_limit()
        .update(limits(900, 1), Instant::now());
    let stored: String = redis::cmd("GET").arg(&key).query(&mut admin).unwrap();
    assert_eq!(stored, other);

    command(&mut admin, &["FLUSHALL"]);
    let length: u32 = redis::cmd("RPUSH")
        .arg(&[&key, "x"])
        .query(&mut admin)
        .unwrap();
    assert_eq!(length, 1);
    assert!(server.refusal(SECRET).contains("WRONGTYPE"));
}

#[test]
fn a_server_that_cannot_write_is_refused() {
    let Some(server) = Guarded::start("a_server_that_cannot_write_is_refused") else {
        return;
    };
    let mut admin = server.admin();
    command(&mut admin, &["CONFIG", "SET", "maxmemory", "1"]);
    assert!(server.refusal(SECRET).contains("OOM"));
    command(&mut admin, &["CONFIG", "SET", "maxmemory", "0"]);
    command(&mut admin, &["REPLICAOF", "127.0.0.1", "1"]);
    let report = server.refusal(SECRET);
    assert!(report.contains("read only replica"), "{report}");
}

/// A frozen server costs a caller one timeout.
#[test]
fn a_server_that_hangs_costs_two_seconds() {
    let Some(server) = RedisServer::start("a_server_that_hangs_costs_two_seconds", &[]) else {
        return;
    };
    let redis = open(&server);
    server.freeze();
    let start = Instant::now();
    assert!(redis.identify_limit().status().is_none());
    let elapsed = start.elapsed();
    let call = Duration::from_secs(2);
    assert!(elapsed >= call && elapsed < 2 * call, "{elapsed:?}");
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

    // No process knows how many IDENTIFYs are left.
    let Err(LimitError::Failed(cause)) = request(&*a, 0) else {
        panic!("it cannot tell")
    };
    assert!(cause.to_string().contains("not known"), "{cause}");
    let emptied = Instant::now();
    command(&mut server.admin(), &["FLUSHALL"]);
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
        let asks = asks.map(|(limit, number)| {
            scope.spawn(move || (request(&**limit, number).unwrap(), emptied.elapsed()))
        });
        asks.map(|ask| ask.join().unwrap())
    });
    assert_eq!(asked.load(Ordering::SeqCst), 1, "the others waited");

    for (mut permit, waited) in permits {
        let why = "another process may have got a permit just before it was emptied";
        assert!(waited >= VALIDITY + WINDOW, "{why}: {waited:?}");
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
fn without_redis_no_shard_identifies_and_connections_stay_open() {
    let name = "without_redis_no_shard_identifies_and_connections_stay_open";
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
            .is_some_and(|shard| shard.status().state == ShardState::Queued)
    });
    thread::sleep(Duration::from_millis(500));
    let counters = first.handle().shards()[0].counters();
    assert_eq!((counters.connects, counters.identifies), (1, 1));
    assert_eq!(second.handle().shards()[0].counters().identifies, 0);

    // The server restarts empty, so that the limits are requested from Discord again.
    server.restart();
    second.wait_ready(PATIENCE).unwrap();
    assert_eq!(first.handle().shards()[0].counters().connects, 1);
    gateway.assert_lawful();
}

/// Runs one shard until it is killed.
fn process(gateway: &Gateway, server: &RedisServer, number: u32) -> Process {
    let variables = [
        ("DISCORD_TOKEN", gateway.token()),
        ("DISCORD_REST_URL", &gateway.rest_url()),
        ("REDIS_URL", &server.url()),
        ("SHARD", &number.to_string()),
    ];
    Process::start("as_one_of_many", &variables)
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

    // A process that may have its turn just now.
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

    // The server may be restarting just now.
    let url = variable("REDIS_URL");
    let redis = loop {
        match Redis::open_with_timing(&url, &token, &timing) {
            Ok(redis) => break redis,
            Err(error) => eprintln!("{}", error.report()),
        }
        thread::sleep(Duration::from_millis(100));
    };

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
