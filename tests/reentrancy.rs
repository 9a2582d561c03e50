//! All user code may call back into the library: a logger, a hook, a limiter, a store, a transport,
//! a handler and a waker each call every method that does not wait. A lock that is held while one
//! of them runs hangs the test. (A logger belongs to the process, so that this file has one test.)

mod common;

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use common::hooked::{Call, Hooked};
use common::{PATIENCE, config, eventually, gateway, in_time, sounds};
use parking_lot::Mutex;
use serde_json::json;
use threadcord::command::OnlineStatus;
use threadcord::error::StoreError;
use threadcord::limit::{
    IdentifyLimiter, LimitStatus, Limits, ReleaseAfter, SessionLimit, Ticket, Wake,
};
use threadcord::sim::{Fault, Gateway};
use threadcord::store::{Saved, SessionStore};
use threadcord::transport::WebSocketConnector;
use threadcord::{
    Config, Error, Event, Handle, MemberQuery, Plan, Presence, ShardId, ShardManager,
};

/// The manager for the user code, and how often each kind of user code has called back.
static HANDLE: Mutex<Option<Handle>> = Mutex::new(None);
static CALLS: Mutex<Vec<(&str, usize)>> = Mutex::new(Vec::new());

/// Whether the handlers are stuck.
static IS_JAMMED: AtomicBool = AtomicBool::new(false);

thread_local! {
    static IS_CALLING: Cell<bool> = const { Cell::new(false) };
}

/// Calls every method that does not wait, counted for `who`.
fn call_back(who: &'static str) {
    if IS_CALLING.replace(true) {
        // The called methods log, too.
        return;
    }
    let handle = HANDLE.lock().clone();
    if let Some(handle) = handle {
        call_everything(&handle);
        let mut calls = CALLS.lock();
        match calls.iter_mut().find(|(other, _)| *other == who) {
            Some((_, count)) => *count += 1,
            None => calls.push((who, 1)),
        }
    }
    IS_CALLING.set(false);
}

fn call_everything(handle: &Handle) {
    for shard in handle.shards() {
        let _ = (shard.id(), shard.status(), shard.latency(), shard.session());
        let _ = format!("{shard:?}");
        let _ = shard.send(sounds(1));
        let _ = shard.request_members(1, &MemberQuery::all());
        let _ = (handle.shard(shard.id()), handle.shard_by_guild(1));
    }

    let _ = handle.status().to_string();
    let _ = handle.send_to_guild(1, sounds(1));
    let _ = handle.broadcast(&Presence::new(OnlineStatus::Idle));
    let _ = (handle.status().handler_panics, format!("{handle:?}"));

    // This is refused, but only after the state is checked.
    let stranger = ShardId::new(0, 77).unwrap();
    let _ = handle.close_shard(stranger).map_err(|error| error.report());
    let _ = handle.restart_shard(stranger);
    let _ = handle.restart_all(0);
}

struct Logger;

impl log::Log for Logger {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        metadata.target().starts_with("threadcord") && !metadata.target().contains("::sim")
    }

    fn log(&self, record: &log::Record<'_>) {
        if self.enabled(record.metadata()) {
            call_back("the logger");
        }
    }

    fn flush(&self) {}
}

struct Limiter(SessionLimit);

impl IdentifyLimiter for Limiter {
    fn request(&self, shard: ShardId, wake: Wake) -> Ticket {
        call_back("the limiter");
        self.0.request(shard, wake)
    }

    fn update(&self, limits: Limits, asked_at: Instant) {
        call_back("the limiter, about an update");
        self.0.update(limits, asked_at);
    }

    fn status(&self) -> Option<LimitStatus> {
        call_back("the limiter, about its status");
        Some(self.0.status())
    }
}

/// Fails every second time.
#[derive(Default)]
struct Store(AtomicUsize);

impl SessionStore for Store {
    fn load(&self) -> Result<Saved, StoreError> {
        Ok(Saved::default())
    }

    fn save(&self, _: &Saved) -> Result<(), StoreError> {
        call_back("the store");
        if self.0.fetch_add(1, Ordering::SeqCst) % 2 == 1 {
            return Err("it is full".into());
        }
        Ok(())
    }
}

fn wires(connector: WebSocketConnector) -> Hooked {
    Hooked::new(connector, |_, call| {
        call_back(match call {
            Call::Transport => "the connector",
            Call::Connect => "the transport, which connects",
            Call::Send => "the transport, which sends",
            Call::SendSecret => "the transport, which sends a secret",
            Call::Written => "the transport, about what was written",
            Call::Disconnect => "the transport, which disconnects",
            Call::Rest => "the transport, which rests",
            // Those are too many.
            Call::Read | Call::Wait => return,
        });
    })
}

fn settings(gateway: &Gateway) -> Config {
    let mut settings = config(gateway)
        .limiter(Arc::new(Limiter(SessionLimit::with_timing(
            Limits {
                max_concurrency: 4.try_into().unwrap(),
                ..Limits::default()
            },
            &config(gateway).timing,
            ReleaseAfter::Identify,
        ))))
        .session_store(Store::default())
        .auto_split(2)
        .for_shard(|_, _| call_back("the settings"))
        .on_close(|_| call_back("the hook"))
        .max_outstanding_events(20);
    settings.timing.reshard_overlap = Duration::from_millis(10);
    settings
}

/// Reshards, one cancelled and one completed, while all kinds of faults happen.
fn live(manager: &ShardManager, gateway: &Gateway) -> Result<(), Error> {
    manager.wait_ready(PATIENCE)?;
    let _ = manager.handle().reshard(&Plan::Total(3))?;
    manager.handle().cancel_reshard();
    let one = ShardId::ONE;
    let mut restart = None;
    eventually("it can be restarted", || {
        restart = manager.handle().restart_shard(one).ok();
        restart.is_some()
    });
    restart.expect("it was").wait(PATIENCE)?;

    for fault in [
        Fault::Cut,
        Fault::Reconnect,
        Fault::InvalidSession { resumable: false },
    ] {
        let before = gateway.observed().live[&one];
        gateway.inject(one, fault);
        gateway.expect("it is live on another connection", PATIENCE, |seen| {
            seen.live.get(&one).is_some_and(|now| *now != before)
        });
    }

    let two = || manager.handle().reshard(&Plan::Total(2));
    eventually("it reshards", || two().is_ok());
    eventually("they take over", || manager.handle().shards().len() == 2);
    IS_JAMMED.store(true, Ordering::SeqCst);
    let guild = gateway.guild_ids()[0];
    eventually("it stalls", || {
        let data = json!({"guild_id": guild.to_string(), "user_id": "1", "timestamp": 1});
        gateway.emit(Some(guild), "TYPING_START", &data).unwrap();
        let status = manager.handle().status();
        status
            .shards
            .iter()
            .any(|shard| shard.stalled_for.is_some())
    });
    IS_JAMMED.store(false, Ordering::SeqCst);
    gateway.inject(ShardId::new(1, 2)?, Fault::Close(4011));
    eventually("it splits", || {
        manager
            .handle()
            .shards()
            .iter()
            .any(|shard| shard.id().total() == 4)
    });
    Ok(())
}

#[test]
fn user_code_may_call_back() {
    log::set_logger(&Logger).unwrap();
    log::set_max_level(log::LevelFilter::Trace);
    let gateway = gateway()
        .shards(1)
        .max_concurrency(4)
        .guilds(2)
        .start()
        .unwrap();
    let manager = ShardManager::start_with(settings(&gateway), wires).unwrap();
    *HANDLE.lock() = Some(manager.handle().clone());
    let stops = Arc::new(AtomicBool::new(false));
    let (handling, manager) = (Arc::clone(&stops), Arc::new(manager));
    let handler = {
        let manager = Arc::clone(&manager);
        std::thread::spawn(move || {
            manager.run_keyed(
                2,
                |_| call_back("the key"),
                |_, event: Event| {
                    call_back("the handler");
                    while IS_JAMMED.load(Ordering::SeqCst) {
                        std::thread::sleep(Duration::from_millis(1));
                    }
                    let is_first = !handling.swap(true, Ordering::SeqCst);
                    assert!(!is_first, "a handler may panic");
                    drop(event);
                },
            )
        })
    };

    in_time("nothing hangs", move || {
        live(&manager, &gateway).unwrap();
        manager.close();
        let _ = handler.join();
    });
    let calls: Vec<&str> = CALLS.lock().iter().map(|(who, _)| *who).collect();

    for who in [
        "the logger",
        "the limiter",
        "the limiter, about its status",
        "the limiter, about an update",
        "the store",
        "the connector",
        "the settings",
        "the hook",
        "the handler",
        "the key",
        "the transport, which connects",
        "the transport, which disconnects",
    ] {
        assert!(
            calls.contains(&who),
            "{who} has never called back: {calls:?}"
        );
    }
}
