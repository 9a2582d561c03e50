//! Commands: checked when they are built, bounded while they are queued, and never sent faster than
//! a limit allows.

mod common;

use std::sync::Arc;
use std::time::{Duration, Instant};

use common::{PATIENCE, SCALE, config, eventually, gateway, next, ready, shard, sounds};
use serde_json::json;
use threadcord::command::{Activity, ChannelField, OnlineStatus, VoiceState};
use threadcord::error::{ErrorKind, SendFailure};
use threadcord::sim::{Action, Fault};
use threadcord::store::MemoryStore;
use threadcord::{Command, Error, EventKind, MemberQuery, Plan, Presence, ShardId};

const ONE: ShardId = ShardId::ONE;

fn playing(name: impl Into<String>) -> Presence {
    Presence::new(OnlineStatus::Online).activity(Activity::playing(name))
}

fn name(presence: &serde_json::Value) -> &str {
    presence["activities"][0]["name"]
        .as_str()
        .unwrap_or_default()
}

#[test]
fn every_typed_command_is_accepted() {
    let gateway = gateway().guilds(1).start().unwrap();
    let manager = ready(config(&gateway));
    let (shard, guild) = (manager.handle().shard(ONE).unwrap(), gateway.guild_ids()[0]);
    let voice = gateway.channel_of(guild).unwrap() + 1;
    let presence = playing("a game")
        .activity(Activity::streaming("it", "https://twitch.tv/x"))
        .activity(Activity::listening("you"))
        .activity(Activity::watching("it").state("closely"))
        .activity(Activity::custom("well"))
        .activity(Activity::competing("it"))
        .idle_since(std::time::SystemTime::now())
        .afk(true);
    let commands = [
        Command::presence(&presence),
        Command::voice_state(&VoiceState::join(guild, voice).self_mute(true)),
        Command::request_members(
            guild,
            &MemberQuery::prefix("user", 10).presences(true),
            Some("mine"),
        ),
        Command::soundboard_sounds(&[guild]),
        Command::channel_info(guild, &[ChannelField::Status, ChannelField::VoiceStartTime]),
    ];
    for command in commands {
        shard.send(command.unwrap()).unwrap();
    }

    let events = manager.events();
    for answer in [
        "VOICE_STATE_UPDATE",
        "GUILD_MEMBERS_CHUNK",
        "SOUNDBOARD_SOUNDS",
        "CHANNEL_INFO",
    ] {
        next(&events, |event| event.name() == answer);
    }

    gateway.expect("the presence", PATIENCE, |seen| {
        seen.commands(ONE, 3)
            .any(|(_, data)| *data == json!(presence))
    });
    gateway.assert_lawful();
}

#[test]
fn the_queue_is_bounded_and_gives_commands_back() {
    let gateway = gateway().start().unwrap();
    let manager = ready(config(&gateway).max_waiting_commands(10));
    let shard = manager.handle().shard(ONE).unwrap();
    gateway.inject(ONE, Fault::Resume(threadcord::sim::Answer::Nothing));
    gateway.inject(ONE, Fault::Cut);
    eventually("it is away", || {
        shard.status().state == threadcord::ShardState::Resuming
    });
    for n in 1..=10 {
        shard.send(sounds(n)).unwrap();
    }
    let refused = shard.send(sounds(11)).unwrap_err();
    assert_eq!(
        refused.failure,
        SendFailure::Full {
            shard: ONE,
            waiting: 10
        }
    );
    assert!(
        refused
            .to_string()
            .contains("10 commands of shard 0/1 are queued already"),
        "{refused}"
    );
    assert_eq!(
        Error::from(refused).kind(),
        ErrorKind::Transient,
        "later there is room"
    );
    assert_eq!(shard.status().waiting_commands, 10);
    shard
        .send(Command::presence(&playing("there is always room")).unwrap())
        .unwrap();
    assert_eq!(shard.status().waiting_commands, 11);
    let late = shard
        .send_timeout(sounds(11), Duration::from_millis(20))
        .unwrap_err();
    assert_eq!(
        late.failure,
        SendFailure::TimedOut {
            shard: ONE,
            waiting: 10
        }
    );
    assert_eq!(late.into_command(), sounds(11));

    let waiting = {
        let shard = shard.clone();
        std::thread::spawn(move || shard.send_timeout(sounds(11), PATIENCE))
    };
    gateway.inject(ONE, Fault::Cut);
    waiting
        .join()
        .unwrap()
        .expect("there is room once the shard is back");
    let sent = |seen: &threadcord::sim::Observed| {
        let guilds = seen
            .commands(ONE, 31)
            .map(|(_, data)| data["guild_ids"][0].as_str().unwrap().to_owned());
        guilds.collect::<Vec<_>>()
    };
    gateway.expect("all in order", PATIENCE, |seen| {
        sent(seen).into_iter().eq((1..=11).map(|n| n.to_string()))
    });
    eventually("nothing waits", || shard.status().waiting_commands == 0);

    manager.close();
    let stopped = shard.send(sounds(12)).unwrap_err();
    assert!(matches!(
        stopped.failure,
        SendFailure::Stopped { shard: ONE, .. }
    ));
    assert_eq!(stopped.command, sounds(12));
    gateway.assert_lawful();
}

#[test]
fn the_latest_presence_is_sent_within_the_limit() {
    let gateway = gateway().start().unwrap();
    let manager = ready(config(&gateway));
    let shard = manager.handle().shard(ONE).unwrap();
    for n in 0..=1000 {
        shard
            .send(Command::presence(&playing(n.to_string())).unwrap())
            .unwrap();
    }

    gateway.expect("the last one", PATIENCE, |seen| {
        seen.commands(ONE, 3).any(|(_, data)| name(data) == "1000")
    });
    assert!(
        gateway.observed().commands(ONE, 3).count() < 20,
        "few of the others"
    );
    gateway.assert_lawful();
}

#[test]
fn the_last_presence_is_in_the_next_identify() {
    let gateway = gateway().start().unwrap();
    let manager = ready(config(&gateway).presence(playing("first")));
    let shard = manager.handle().shard(ONE).unwrap();
    let in_identify = |at| {
        let seen = gateway.observed();
        seen.identifies(ONE)
            .nth(at)
            .map(|(_, data)| name(&data["presence"]).to_owned())
    };

    assert_eq!(in_identify(0).unwrap(), "first");
    shard
        .send(Command::presence(&playing("second")).unwrap())
        .unwrap();
    gateway.expect("it is sent", PATIENCE, |seen| {
        seen.commands(ONE, 3).count() == 1
    });
    gateway.inject(ONE, Fault::InvalidSession { resumable: false });
    eventually("it identifies again", || in_identify(1).is_some());
    assert_eq!(in_identify(1).unwrap(), "second");
    manager.wait_ready(PATIENCE).unwrap();

    // A shard that is closed and opened again has the presence, too.
    manager
        .handle()
        .close_shard(ONE)
        .unwrap()
        .wait(PATIENCE)
        .unwrap();
    manager
        .handle()
        .open_shard(ONE)
        .unwrap()
        .wait(PATIENCE)
        .unwrap();
    assert_eq!(in_identify(2).unwrap(), "second");
}

#[test]
fn a_broadcast_presence_reaches_shards_that_open_later() {
    let gateway = gateway()
        .shards(2)
        .max_concurrency(8)
        .guilds(4)
        .start()
        .unwrap();
    let manager = ready(config(&gateway).plan(Plan::Ids {
        ids: vec![0],
        total: 2,
    }));
    manager.handle().broadcast(&playing("for all")).unwrap();
    gateway.expect("it is sent", PATIENCE, |seen| {
        seen.commands(shard(0, 2), 3).count() == 1
    });
    manager
        .handle()
        .open_shard(shard(1, 2))
        .unwrap()
        .wait(PATIENCE)
        .unwrap();
    let seen = |id| {
        let seen = gateway.observed();
        seen.identifies(id)
            .next()
            .map(|(_, data)| name(&data["presence"]).to_owned())
            .unwrap()
    };

    assert_eq!(seen(shard(1, 2)), "for all");
    // The presence of a single shard follows that shard's guilds.
    manager
        .handle()
        .shard(shard(1, 2))
        .unwrap()
        .send(Command::presence(&playing("for one")).unwrap())
        .unwrap();
    manager
        .handle()
        .reshard(&Plan::Total(4))
        .unwrap()
        .wait(PATIENCE)
        .unwrap();
    let names = [0, 1, 2, 3].map(|number| seen(shard(number, 4)));
    assert_eq!(names, ["for all", "for one", "for all", "for one"]);
    assert!(matches!(
        manager.handle().broadcast(&playing("")),
        Err(Error::Command(_))
    ));
    manager.close();
    assert!(matches!(
        manager.handle().broadcast(&playing("late")),
        Err(Error::Closed)
    ));
    gateway.assert_lawful();
}

#[test]
fn a_broadcast_presence_reaches_shards_that_resume_later() {
    let gateway = gateway()
        .shards(2)
        .max_concurrency(2)
        .guilds(2)
        .start()
        .unwrap();
    let sessions = ready(config(&gateway)).suspend();
    let one = config(&gateway)
        .plan(Plan::Ids {
            ids: vec![0],
            total: 2,
        })
        .session_store(MemoryStore::new(vec![sessions[0].clone()]));
    let manager = ready(one);
    manager.handle().broadcast(&playing("for all")).unwrap();
    manager
        .handle()
        .resume_shard(sessions[1].clone())
        .unwrap()
        .wait(PATIENCE)
        .unwrap();

    for id in [shard(0, 2), shard(1, 2)] {
        gateway.expect("it is sent", PATIENCE, |seen| {
            seen.commands(id, 3)
                .any(|(_, data)| name(data) == "for all")
        });
        assert_eq!(gateway.observed().identifies(id).count(), 1, "it resumed");
    }
    gateway.assert_lawful();
}

#[test]
fn commands_find_the_shard_of_a_guild() {
    let gateway = gateway()
        .shards(2)
        .max_concurrency(2)
        .guilds(2)
        .start()
        .unwrap();
    let manager = ready(config(&gateway));

    for guild in gateway.guild_ids() {
        manager
            .handle()
            .send_to_guild(guild, sounds(guild))
            .unwrap();
        let home = ShardId::for_guild(guild, 2).unwrap();
        gateway.expect("it arrives there", PATIENCE, |seen| {
            seen.commands(home, 31)
                .any(|(_, data)| data["guild_ids"] == json!([guild.to_string()]))
        });
    }

    let handle = manager.handle().clone();
    manager
        .handle()
        .close_shard(shard(1, 2))
        .unwrap()
        .wait(PATIENCE)
        .unwrap();
    let elsewhere = gateway
        .guild_ids()
        .into_iter()
        .find(|id| ShardId::for_guild(*id, 2) == Some(shard(1, 2)))
        .unwrap();
    let error = handle
        .send_to_guild(elsewhere, sounds(elsewhere))
        .unwrap_err();
    assert_eq!(
        (error.failure, error.command),
        (
            SendFailure::NoShard {
                guild_id: elsewhere
            },
            sounds(elsewhere)
        )
    );
    drop(manager);
    assert!(handle.send_to_guild(elsewhere, sounds(elsewhere)).is_err());
    gateway.assert_lawful();
}

#[test]
fn heartbeats_identifies_and_resumes_pass_a_full_queue() {
    // A window of 60 s takes 600 ms here, and the heartbeat interval is a fourth of that.
    let gateway = threadcord::sim::Gateway::builder()
        .time_scale(SCALE)
        .heartbeat_interval(Duration::from_secs(15))
        .start()
        .unwrap();
    let manager = ready(config(&gateway).max_waiting_commands(100));
    let shard = manager.handle().shard(ONE).unwrap();
    let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let flood = {
        let (shard, stop) = (shard.clone(), Arc::clone(&stop));
        std::thread::spawn(move || {
            let mut sent = 0;
            while !stop.load(std::sync::atomic::Ordering::Acquire) {
                sent += usize::from(
                    shard
                        .send_timeout(sounds(1), Duration::from_millis(50))
                        .is_ok(),
                );
            }
            sent
        })
    };

    let beats = |seen: &threadcord::sim::Observed| {
        seen.count(|action| matches!(action, Action::Heartbeat(_)))
    };
    gateway.expect("it beats under the flood", PATIENCE, |seen| beats(seen) > 6);
    gateway.inject(ONE, Fault::Reconnect);
    gateway.expect("it resumes", PATIENCE, |seen| {
        seen.count(|action| matches!(action, Action::Resume { .. })) == 1 && seen.live.len() == 1
    });
    gateway.inject(ONE, Fault::InvalidSession { resumable: false });
    gateway.expect("it identifies", PATIENCE, |seen| {
        seen.identifies(ONE).count() == 2
    });
    stop.store(true, std::sync::atomic::Ordering::Release);
    let sent = flood.join().unwrap();
    gateway.expect("all arrive", PATIENCE, |seen| {
        seen.commands(ONE, 31).count() == sent
    });
    gateway.assert_lawful();
}

#[test]
fn a_command_reaches_an_idle_shard_without_waiting_for_a_tick() {
    let gateway = gateway().start().unwrap();
    let manager = ready(config(&gateway));
    let (shard, events) = (manager.handle().shard(ONE).unwrap(), manager.events());
    next(&events, |event| {
        matches!(event.kind(), EventKind::GuildsReady { .. })
    });

    // A bench measures the latency. Here the next heartbeat would be 5 s away.
    for n in 1..=20 {
        let asked = Instant::now();
        shard.send(sounds(n)).unwrap();
        gateway.expect("it arrives", PATIENCE, |seen| {
            seen.commands(ONE, 31).count() as u64 == n
        });
        assert!(
            asked.elapsed() < Duration::from_secs(2),
            "{:?}",
            asked.elapsed()
        );
    }
}
