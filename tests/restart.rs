//! Sessions outlive the process: it is suspended or killed, and restarted.
#![cfg(unix)]

mod common;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use common::{PATIENCE, config, eventually, gateway, next, number, ready, shard};
use parking_lot::Mutex;
use serde_json::Value;
use threadcord::error::StoreError;
use threadcord::limit::{Limits, ReleaseAfter, SessionLimit};
use threadcord::sim::{Action, Gateway};
use threadcord::store::{FileStore, MemoryStore, Saved, SessionStore};
use threadcord::{
    Config, Error, Event, Handle, Intents, Plan, Session, ShardId, ShardManager, Token,
};

const GUILDS: u32 = 20;
const SHARDS: u32 = 4;

/// Events a second, in total.
const RATE: u32 = 5000;

/// Tells the child process where the gateway is and where to write.
const CHILD: &str = "THREADCORD_TEST_CHILD";

fn loaded_gateway() -> Gateway {
    gateway()
        .shards(SHARDS)
        .max_concurrency(SHARDS)
        .guilds(GUILDS)
        .start()
        .unwrap()
}

/// A limiter for managers that identify soon after one another.
fn limiter() -> Arc<SessionLimit> {
    let timing = threadcord::Timing::scaled(common::SCALE);
    Arc::new(SessionLimit::with_timing(
        Limits::default(),
        &timing,
        ReleaseAfter::Identify,
    ))
}

fn identifies(gateway: &Gateway) -> usize {
    gateway
        .observed()
        .count(|action| matches!(action, Action::Identify(_)))
}

#[test]
fn a_suspended_bot_restarts_under_load() {
    let folder = tempfile::tempdir().unwrap();
    let gateway = loaded_gateway();
    let (seen, stop) = (
        Mutex::<HashMap<u64, Vec<u64>>>::default(),
        AtomicBool::new(false),
    );
    let mut config =
        config(&gateway).session_store(FileStore::new(folder.path().join("sessions.json")));
    config.timing.handlers_timeout = PATIENCE;
    let mut sent = 0;
    std::thread::scope(|scope| {
        let mut sender = None;
        for round in 0..4 {
            let manager = ShardManager::start(config.clone()).unwrap();
            std::thread::scope(|handlers| {
                // Events are taken before all shards are ready: the replay may be larger than the
                // outstanding limit of a shard whose events are not taken.
                handlers.spawn(|| {
                    let handler = |_: &Handle, event: Event| {
                        let Some((guild, number)) = number(&event) else {
                            return;
                        };
                        std::thread::sleep(Duration::from_micros(100));
                        seen.lock().entry(guild).or_default().push(number);
                    };
                    manager.run(3, handler).unwrap();
                });
                manager.wait_ready(PATIENCE).unwrap();
                if round == 0 {
                    sender = Some(scope.spawn(|| common::send(&gateway, RATE, 1, 1..=1, &stop)));
                }
                std::thread::sleep(Duration::from_millis(500));
                if round == 3 {
                    stop.store(true, Ordering::Release);
                    sent = sender.take().unwrap().join().unwrap();
                    let is_last = |numbers: &&Vec<u64>| numbers.last() == Some(&(sent - 1));
                    eventually("the last one comes", || {
                        seen.lock().values().filter(is_last).count() == GUILDS as usize
                    });
                }
                assert_eq!(manager.suspend().len(), SHARDS as usize);
            });
        }
    });

    for (guild, numbers) in seen.into_inner() {
        assert!(
            numbers.iter().copied().eq(0..sent),
            "guild {guild}: {} of {sent}",
            numbers.len()
        );
    }

    assert_eq!(
        identifies(&gateway),
        SHARDS as usize,
        "those of the first start"
    );
    gateway.assert_lawful();
}

/// The process that is killed: it records each event that it has handled.
#[test]
fn child() {
    let Ok(told) = std::env::var(CHILD) else {
        return;
    };
    let [rest, token, folder]: [&str; 3] = told.split(' ').collect::<Vec<_>>().try_into().unwrap();
    let mut config = Config::new(Token::new(token).unwrap(), threadcord::Intents::all())
        .rest_url(rest)
        .timing(threadcord::Timing::scaled(common::SCALE))
        .session_store(FileStore::new(PathBuf::from(folder).join("sessions.json")));
    config.timing.store_interval = Duration::from_millis(300);
    let manager = ShardManager::start(config).unwrap();

    let mut log = fs::File::create(PathBuf::from(folder).join("handled")).unwrap();
    for event in manager.events() {
        let Some(dispatch) = event.dispatch() else {
            continue;
        };
        let Some((guild, number)) = number(&event) else {
            continue;
        };
        // One write for each event, so that every event in the file has been handled, however the
        // process ends.
        let line = format!(
            "{} {} {guild} {number}\n",
            event.shard().number(),
            dispatch.sequence()
        );
        log.write_all(line.as_bytes()).unwrap();
    }
}

#[test]
fn a_killed_bot_restarts_under_load() {
    let folder = tempfile::tempdir().unwrap();
    let gateway = Arc::new(loaded_gateway());
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child", "--nocapture"])
        .env(
            CHILD,
            format!(
                "{} {} {}",
                gateway.rest_url(),
                gateway.token(),
                folder.path().display()
            ),
        )
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    gateway.expect("the child is ready", PATIENCE, |seen| {
        seen.live.len() == SHARDS as usize
    });
    let stop = Arc::new(AtomicBool::new(false));
    let sender = std::thread::spawn({
        let (gateway, stop) = (Arc::clone(&gateway), Arc::clone(&stop));
        move || common::send(&gateway, RATE, 1, 1..=1, &stop)
    });
    // Long enough for several writes of the store. The kill happens between two of them.
    std::thread::sleep(Duration::from_millis(1750));
    child.kill().unwrap();
    child.wait().unwrap();
    let store = FileStore::new(folder.path().join("sessions.json"));
    let sessions = store.load().unwrap().sessions;
    assert_eq!(sessions.len(), SHARDS as usize);
    let stored: BTreeMap<u32, u64> = sessions
        .iter()
        .map(|session| (session.shard.number(), session.sequence))
        .collect();
    let log = fs::read_to_string(folder.path().join("handled")).unwrap();
    // The last line may be cut off in the middle.
    let lines = log.lines().filter(|_| log.ends_with('\n')).map(|line| {
        let fields: Vec<u64> = line
            .split(' ')
            .map(|field| field.parse().unwrap())
            .collect();
        (
            u32::try_from(fields[0]).unwrap(),
            fields[1],
            (fields[2], fields[3]),
        )
    });
    let handled: Vec<_> = lines.collect();
    assert!(
        handled.len() > 1000,
        "the child was busy: {}",
        handled.len()
    );
    let before_write: BTreeSet<_> = handled
        .iter()
        .filter(|(shard, sequence, _)| *sequence <= stored[shard])
        .map(|(.., event)| *event)
        .collect();
    let since_write: BTreeSet<_> = handled
        .iter()
        .filter(|(shard, sequence, _)| *sequence > stored[shard])
        .map(|(.., event)| *event)
        .collect();

    // Not `ready`: the replay may be larger than the outstanding limit of a shard whose events are
    // not taken.
    let manager = ShardManager::start(config(&gateway).session_store(store)).unwrap();
    let events = manager.events();
    stop.store(true, Ordering::Release);
    let sent = sender.join().unwrap();
    let mut again = BTreeSet::new();
    let wanted = u64::from(GUILDS) * sent - before_write.len() as u64;
    while (again.len() as u64) < wanted {
        let event = next(&events, |event| number(event).is_some());
        let event = number(&event).unwrap();
        assert!(again.insert(event), "{event:?} came twice from one process");
    }
    assert!(
        before_write.is_disjoint(&again),
        "what was handled before the last write is not redelivered"
    );
    assert!(
        since_write.is_subset(&again),
        "what was handled since then does"
    );
    println!(
        "{} handled before the last write, {} since, of {} sent",
        before_write.len(),
        since_write.len(),
        sent * u64::from(GUILDS)
    );
    assert_eq!(identifies(&gateway), SHARDS as usize, "those of the child");
    gateway.assert_lawful();
}

#[test]
fn handlers_may_finish_before_sessions_are_taken() {
    let gateway = gateway().guilds(1).start().unwrap();
    let channel = gateway.channel_of(gateway.guild_ids()[0]).unwrap();
    for (patience, comes_again) in [(PATIENCE, false), (Duration::from_millis(50), true)] {
        let mut config = config(&gateway);
        config.timing.handlers_timeout = patience;
        let manager = ready(config);
        let (started, begun) = crossbeam_channel::bounded(1);
        let (finish, finished) = crossbeam_channel::bounded::<()>(0);
        let sessions = std::thread::scope(|scope| {
            scope.spawn(|| {
                manager.run(1, |_, event| {
                    if event.name() == "MESSAGE_CREATE" {
                        started.send(()).unwrap();
                        // Until the test lets it finish, or times out.
                        let _ = finished.recv();
                    }
                })
            });
            gateway.chat(channel, "one that takes long").unwrap();
            begun.recv().unwrap();
            let suspending = scope.spawn(|| manager.suspend());
            if comes_again {
                let sessions = suspending.join().unwrap();
                drop(finish);
                return sessions;
            }
            gateway.expect("it has left", PATIENCE, |seen| seen.live.is_empty());
            assert!(!suspending.is_finished(), "it waits for the handler");
            drop(finish);
            suspending.join().unwrap()
        });
        drop(manager);
        let manager = ready(common::config(&gateway).session_store(MemoryStore::new(sessions)));
        gateway.chat(channel, "the next").unwrap();
        let message = next(&manager.events(), |event| event.name() == "MESSAGE_CREATE");
        let content = message.dispatch().unwrap().decode::<Value>().unwrap()["content"].clone();
        assert_eq!(
            content,
            if comes_again {
                "one that takes long"
            } else {
                "the next"
            }
        );
        manager.close();
    }
    gateway.assert_lawful();
}

#[test]
fn a_store_is_written_while_the_bot_runs_and_emptied_when_it_ends() {
    let folder = tempfile::tempdir().unwrap();
    let store = FileStore::new(folder.path().join("sessions.json"));
    let gateway = gateway().shards(2).max_concurrency(2).start().unwrap();
    let mut config = config(&gateway)
        .session_store(store.clone())
        .limiter(limiter());
    config.timing.store_interval = Duration::from_millis(10);
    let manager = ready(config.clone());
    eventually("both sessions are stored", || {
        store.load().unwrap().sessions.len() == 2
    });
    manager.close();
    assert!(
        store.load().unwrap().sessions.is_empty(),
        "sessions that are over are not kept"
    );
    drop(manager);
    assert_eq!(identifies(&gateway), 2);

    // A session that Discord does not know falls back to an IDENTIFY.
    let bot = Token::new(gateway.token()).unwrap().user_id().unwrap();
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap()
        .as_secs();
    let made_up = |id: ShardId, bot| {
        let mut session = Session::new("made up".into(), 7, gateway.url(), id, bot);
        session.saved_at = now;
        session
    };
    store
        .save(&Saved {
            sessions: vec![
                made_up(shard(0, 2), bot),
                made_up(shard(1, 2), bot + 1),
                made_up(shard(0, 9), bot),
            ],
            ..Saved::default()
        })
        .unwrap();
    let manager = ready(config);
    let resumes = gateway
        .observed()
        .count(|action| matches!(action, Action::Resume { .. }));
    assert_eq!(
        (resumes, identifies(&gateway)),
        (1, 4),
        "one is tried; another bot's and another total's are not"
    );
    manager.suspend();
    assert_eq!(store.load().unwrap().sessions.len(), 2);
    gateway.assert_lawful();
}

/// A store that fails on request.
#[derive(Clone, Default)]
struct Failing {
    reading: Arc<AtomicBool>,
    writing: Arc<AtomicBool>,
}

impl SessionStore for Failing {
    fn load(&self) -> Result<Saved, StoreError> {
        if self.reading.load(Ordering::SeqCst) {
            Err("unreadable".into())
        } else {
            Ok(Saved::default())
        }
    }

    fn save(&self, _: &Saved) -> Result<(), StoreError> {
        if self.writing.load(Ordering::SeqCst) {
            Err("full".into())
        } else {
            Ok(())
        }
    }
}

#[test]
fn a_failing_store_is_an_error_only_at_the_start() {
    let gateway = gateway().start().unwrap();
    let store = Failing::default();
    let start = || {
        let mut config = config(&gateway).session_store(store.clone());
        config.timing.store_interval = Duration::from_millis(1);
        ShardManager::start(config)
    };

    store.reading.store(true, Ordering::SeqCst);
    let error = start().unwrap_err();
    assert_eq!(
        error.report(),
        "the session store cannot be read: unreadable"
    );
    store.reading.store(false, Ordering::SeqCst);
    store.writing.store(true, Ordering::SeqCst);
    assert!(matches!(
        start(),
        Err(Error::Store {
            what: "written",
            ..
        })
    ));
    let folder = tempfile::tempdir().unwrap();
    let nowhere = FileStore::new(folder.path().join("missing/sessions.json"));
    assert!(matches!(
        ShardManager::start(config(&gateway).session_store(nowhere)),
        Err(Error::Store { .. })
    ));
    assert!(gateway.observed().live.is_empty() && identifies(&gateway) == 0);
    store.writing.store(false, Ordering::SeqCst);
    let manager = start().unwrap();
    manager.wait_ready(PATIENCE).unwrap();
    store.writing.store(true, Ordering::SeqCst);
    gateway
        .chat(gateway.direct_channel(), "life goes on")
        .unwrap();
    next(&manager.events(), |event| event.name() == "MESSAGE_CREATE");
    assert_eq!(manager.suspend().len(), 1);
    gateway.assert_lawful();
}

#[test]
fn a_restart_after_a_split_and_a_reshard_keeps_the_shards() {
    let folder = tempfile::tempdir().unwrap();
    let gateway = gateway()
        .shards(2)
        .max_concurrency(4)
        .guilds(16)
        .guilds_per_shard(8)
        .start()
        .unwrap();
    let mut config =
        config(&gateway).session_store(FileStore::new(folder.path().join("sessions.json")));
    config = config.plan(Plan::Stored).auto_split(2);
    config.timing.reshard_overlap = Duration::from_millis(10);
    let manager = ready(config.clone());
    gateway.add_guilds(1);
    gateway.inject(
        shard(0, 2),
        threadcord::sim::Fault::InvalidSession { resumable: false },
    );
    eventually("it is split", || manager.handle().shards().len() == 3);
    manager.wait_ready(PATIENCE).unwrap();
    manager.suspend();
    drop(manager);
    let manager = ready(config.clone());
    let ids: Vec<_> = manager
        .handle()
        .shards()
        .iter()
        .map(threadcord::Shard::id)
        .collect();
    assert_eq!(ids, [shard(0, 4), shard(1, 2), shard(2, 4)]);
    let events = manager.events();
    manager.handle().reshard(&Plan::Total(5)).unwrap();
    next(&events, |event| event.name() == "Resharded");
    manager.suspend();
    drop(manager);
    let spent = identifies(&gateway);
    let manager = ready(config);
    assert_eq!(
        (manager.handle().shards().len(), identifies(&gateway)),
        (5, spent)
    );
}

#[test]
fn a_changed_plan_starts_new_sessions() {
    let gateway = gateway().shards(2).max_concurrency(3).start().unwrap();
    let config = config(&gateway).limiter(limiter());
    let sessions = ready(config.clone()).suspend();
    let manager = ready(
        config
            .plan(Plan::Total(3))
            .session_store(MemoryStore::new(sessions)),
    );
    assert_eq!(
        manager
            .handle()
            .shards()
            .iter()
            .map(|shard| shard.counters().identifies)
            .sum::<u64>(),
        3
    );
    gateway.assert_lawful();
}

#[test]
fn changed_intents_start_a_new_session() {
    let gateway = gateway().guilds(1).start().unwrap();
    let limiter = limiter();
    let settings = |intents| {
        let mut settings = config(&gateway);
        settings.shard.intents = intents;
        settings.limiter(Arc::<SessionLimit>::clone(&limiter))
    };

    let manager = ready(settings(Intents::GUILDS));
    let sessions = manager.suspend();
    drop(manager);
    let intents = Intents::GUILDS | Intents::GUILD_MESSAGES;
    let manager = ready(settings(intents).session_store(MemoryStore::new(sessions)));
    assert_eq!(identifies(&gateway), 2);
    let events = manager.events();
    let channel = gateway.channel_of(gateway.guild_ids()[0]).unwrap();
    gateway.chat(channel, "heard").unwrap();
    let mut was_told = false;
    common::next(&events, |event| {
        was_told |= event.name() == "SessionLost";
        event.name() == "MESSAGE_CREATE"
    });
    assert!(was_told, "that what the old session missed is lost");
    gateway.assert_lawful();
}
