//! Requests for members: matched by nonce, in order, within Discord's limit. Every request ends.

mod common;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::{PATIENCE, SCALE, config, eventually, gateway, next, owes_nothing, ready};
use serde::Deserialize;
use serde_json::{Value, json};
use threadcord::error::MembersFailure;
use threadcord::limit::{Limits, ReleaseAfter, SessionLimit};
use threadcord::sim::{Action, Fault, Gateway};
use threadcord::{
    Error, EventKind, Intents, MemberQuery, Members, Shard, ShardId, ShardManager, StopReason,
    Timing,
};

const ONE: ShardId = ShardId::ONE;

#[derive(Deserialize)]
struct Member {
    user: User,
}

#[derive(Deserialize)]
struct User {
    id: String,
    username: String,
}

/// Guilds with this many members, including the bot.
fn rig(members: u32) -> (Gateway, ShardManager, Shard, u64) {
    let others = members - 1;
    let gateway = gateway().guilds(3).members(others).start().unwrap();
    let manager = ready(config(&gateway));
    let (shard, guild) = (manager.handle().shard(ONE).unwrap(), gateway.guild_ids()[0]);
    (gateway, manager, shard, guild)
}

fn failure(mut members: Members) -> MembersFailure {
    match members.find_map(Result::err) {
        Some(Error::Members { failure, .. }) => failure,
        other => panic!("{other:?}"),
    }
}

/// A guild that the bot is not in, so that the gateway does not answer.
const ELSEWHERE: u64 = 5;

/// Waits for this many requests, and returns their nonces in order.
fn nonces(gateway: &Gateway, count: usize) -> Vec<String> {
    gateway.expect("the requests", PATIENCE, |seen| {
        seen.commands(ONE, 8).count() >= count
    });
    let seen = gateway.observed();
    seen.commands(ONE, 8)
        .map(|(_, data)| data["nonce"].as_str().unwrap().to_owned())
        .collect()
}

/// Answers a request by hand: one part of this many, with one member.
fn answer(gateway: &Gateway, nonce: &str, index: i64, count: i64) {
    let member = json!({"user": {"id": index.to_string(), "username": "x"}});
    let part = json!({"guild_id": "5", "members": [member], "chunk_index": index, "chunk_count": count, "nonce": nonce});
    gateway.emit(None, "GUILD_MEMBERS_CHUNK", &part).unwrap();
}

#[test]
fn all_members_of_a_guild_arrive_in_order_and_not_in_the_stream() {
    let (gateway, manager, shard, guild) = rig(2500);
    let mut members = shard
        .request_members(guild, &MemberQuery::all().presences(true))
        .unwrap();

    let mut ids = HashSet::new();
    for (at, chunk) in members.by_ref().enumerate() {
        let chunk = chunk.unwrap();
        assert_eq!((chunk.index() as usize, chunk.count()), (at, 3));
        let read: Vec<Member> = chunk.members().unwrap();
        assert_eq!(read.len(), [1000, 1000, 500][at]);
        assert_eq!(chunk.presences::<Value>().unwrap().len(), read.len());
        assert_eq!(chunk.not_found().unwrap(), [0; 0]);
        ids.extend(read.into_iter().map(|member| member.user.id));
    }

    assert_eq!(ids.len(), 2500);
    assert!(members.next().is_none(), "it stays over");
    manager.close();
    assert!(
        !manager
            .events()
            .any(|event| event.name() == "GUILD_MEMBERS_CHUNK")
    );
    gateway.assert_lawful();
}

#[test]
fn many_requests_run_at_once() {
    let (gateway, manager, shard, guild) = rig(1200);
    let first = guild + 1000;
    let requests: Vec<_> = (0..20)
        .map(|n| {
            let query = if n % 2 == 0 {
                MemberQuery::ids([first + n, 7, first + n + 1])
            } else {
                MemberQuery::prefix("user", 5)
            };
            (n, shard.request_members(guild, &query).unwrap())
        })
        .collect();
    let all: Vec<_> = gateway
        .guild_ids()
        .into_iter()
        .map(|guild| shard.request_members(guild, &MemberQuery::all()).unwrap())
        .collect();

    for (n, mut request) in requests {
        let chunk = request.next().unwrap().unwrap();
        let members: Vec<Member> = chunk.members().unwrap();
        if n % 2 == 0 {
            let ids: Vec<_> = members.into_iter().map(|member| member.user.id).collect();
            assert_eq!(ids, [first + n, first + n + 1].map(|id| id.to_string()));
            assert_eq!(chunk.not_found().unwrap(), [7]);
        } else {
            assert!(
                members.len() == 5
                    && members
                        .iter()
                        .all(|member| member.user.username.starts_with("user"))
            );
        }
        assert!(request.next().is_none());
    }

    for members in all {
        assert_eq!(members.read_all::<Member>().unwrap().len(), 1200);
    }

    drop(manager);
    gateway.assert_lawful();
}

#[test]
fn two_requests_for_all_members_keep_to_the_limit() {
    let (gateway, _manager, shard, guild) = rig(3);
    let start = Instant::now();
    let requests = [(); 2].map(|()| shard.request_members(guild, &MemberQuery::all()).unwrap());
    for request in requests {
        assert_eq!(request.read_all::<Member>().unwrap().len(), 3);
    }
    // 30 s in a hundredth of Discord's time.
    assert!(
        start.elapsed() >= Duration::from_millis(300),
        "{:?}",
        start.elapsed()
    );
    gateway.assert_lawful();
}

#[test]
fn a_rate_limit_is_waited_for() {
    let gateway = gateway().guilds(1).start().unwrap();
    let limit = Arc::new(SessionLimit::with_timing(
        Limits::default(),
        &Timing::scaled(SCALE),
        ReleaseAfter::default(),
    ));
    let guild = gateway.guild_ids()[0];

    // Another process of the bot has just made a request, of which this one does not know.
    let other = ready(config(&gateway).limiter(limit.clone()));
    let manager = ready(config(&gateway).limiter(limit));
    let ask = |manager: &ShardManager| {
        let members = manager
            .handle()
            .shard(ONE)
            .unwrap()
            .request_members(guild, &MemberQuery::all())
            .unwrap();
        members.read_all::<Member>().unwrap().len()
    };

    // With the bot.
    assert_eq!(ask(&other), 4);
    assert_eq!(ask(&manager), 4);
    let rules: Vec<String> = gateway
        .observed()
        .violations
        .into_iter()
        .map(|violation| violation.rule)
        .collect();
    assert_eq!(
        rules,
        ["all members of a guild once per 30 s"],
        "once, and not again and again"
    );
    let events = manager.events();
    next(&events, |event| event.name() == "RATE_LIMITED");
}

#[test]
fn after_a_cut_a_request_without_answers_is_sent_again() {
    let (gateway, manager, shard, _) = rig(3);
    let [fresh, begun] = [(); 2].map(|()| {
        shard
            .request_members(ELSEWHERE, &MemberQuery::ids([1]))
            .unwrap()
    });
    let first = nonces(&gateway, 2);
    answer(&gateway, &first[1], 0, 2);
    eventually("it has begun", || shard.status().outstanding_events > 0);
    gateway.inject(ONE, Fault::Cut);
    let again = nonces(&gateway, 3);
    assert_eq!(again.len(), 3, "a request that has begun continues");

    // A late part and its duplicate are equally valid, but only one of them counts.
    for nonce in [&again[0], &again[2]] {
        answer(&gateway, nonce, 0, 1);
    }

    answer(&gateway, &first[1], 1, 2);
    assert_eq!(fresh.read_all::<Member>().unwrap().len(), 1);
    assert_eq!(begun.read_all::<Member>().unwrap().len(), 2);
    manager.close();
    assert!(
        !manager
            .events()
            .any(|event| event.name() == "GUILD_MEMBERS_CHUNK"),
        "the other part is discarded"
    );
    gateway.assert_lawful();
}

#[test]
fn a_lost_session_resends_unanswered_requests_and_ends_started_ones() {
    let (gateway, _manager, shard, _) = rig(3);
    let [fresh, begun] = [(); 2].map(|()| {
        shard
            .request_members(ELSEWHERE, &MemberQuery::ids([1]))
            .unwrap()
    });
    answer(&gateway, &nonces(&gateway, 2)[1], 0, 2);
    eventually("it has begun", || shard.status().outstanding_events > 0);
    gateway.inject(ONE, Fault::InvalidSession { resumable: false });
    assert_eq!(failure(begun), MembersFailure::SessionLost);
    let again = nonces(&gateway, 3);
    answer(&gateway, &again[2], 0, 1);
    assert_eq!(fresh.read_all::<Member>().unwrap().len(), 1);
    gateway.assert_lawful();
}

#[test]
fn a_request_always_ends_whatever_happens_to_the_shard() {
    let (gateway, manager, shard, _) = rig(3);
    let start = Instant::now();
    let query = MemberQuery::ids([1]);
    let late = shard
        .request_members(ELSEWHERE, &query)
        .unwrap()
        .timeout(Duration::from_millis(50));
    assert_eq!(failure(late), MembersFailure::TimedOut);
    assert!(start.elapsed() >= Duration::from_millis(50));

    // An answer that arrives too late belongs to no request, and does not count as outstanding.
    answer(&gateway, &nonces(&gateway, 1)[0], 0, 1);
    let events = manager.events();
    gateway
        .chat(
            gateway.channel_of(gateway.guild_ids()[0]).unwrap(),
            "after it",
        )
        .unwrap();
    next(&events, |event| {
        assert_ne!(event.name(), "GUILD_MEMBERS_CHUNK");
        event.name() == "MESSAGE_CREATE"
    });
    eventually("nothing is owed", || owes_nothing(&shard));
    assert!(shard.counters().filtered > 0);
    let request = shard.request_members(ELSEWHERE, &query).unwrap();
    manager.suspend();
    assert_eq!(
        failure(request),
        MembersFailure::Stopped(StopReason::Suspended)
    );
    assert!(matches!(
        shard.request_members(ELSEWHERE, &query),
        Err(Error::Unsent(_))
    ));
}

#[test]
fn answers_may_come_out_of_order_and_twice() {
    let (gateway, _manager, shard, _) = rig(3);
    let request = shard
        .request_members(ELSEWHERE, &MemberQuery::ids([1]))
        .unwrap();
    let nonce = nonces(&gateway, 1).remove(0);

    for index in [2, 0, 2, 0, 1] {
        answer(&gateway, &nonce, index, 3);
    }

    let ids = request
        .read_all::<Member>()
        .unwrap()
        .into_iter()
        .map(|member| member.user.id);
    assert_eq!(ids.collect::<Vec<_>>(), ["0", "1", "2"]);

    for (index, count) in [(3, 3), (-1, 3), (0, -1)] {
        let before = nonces(&gateway, 1).len();
        let request = shard
            .request_members(ELSEWHERE, &MemberQuery::ids([1]))
            .unwrap();
        answer(
            &gateway,
            &nonces(&gateway, before + 1)[before],
            index,
            count,
        );
        assert_eq!(failure(request), MembersFailure::Malformed);
    }

    eventually("nothing is owed", || shard.status().outstanding_events <= 4);
    gateway.assert_lawful();
}

#[test]
fn parts_out_of_order_do_not_count_as_outstanding() {
    const PARTS: i64 = 40;
    let gateway = gateway().guilds(1).start().unwrap();
    let manager = ready(config(&gateway).max_outstanding_events(10));
    let (shard, events) = (manager.handle().shard(ONE).unwrap(), manager.events());
    next(&events, |event| event.name() == "GUILD_CREATE");
    let request = shard
        .request_members(ELSEWHERE, &MemberQuery::ids([1]))
        .unwrap()
        .timeout(Duration::from_secs(20));
    let nonce = nonces(&gateway, 1).remove(0);

    // The first part arrives last, after more bytes than the shard's outstanding limit.
    for index in (1..PARTS).chain([0]) {
        answer(&gateway, &nonce, index, PARTS);
    }

    let members = request.read_all::<Member>().unwrap();
    let ids = members.into_iter().map(|member| member.user.id);
    assert!(
        ids.eq((0..PARTS).map(|id| id.to_string())),
        "in order after all"
    );
    gateway.assert_lawful();
}

#[test]
fn a_request_that_is_dropped_is_forgotten() {
    let (gateway, manager, shard, guild) = rig(2500);
    drop(shard.request_members(guild, &MemberQuery::all()).unwrap());
    let mut half = shard
        .request_members(gateway.guild_ids()[1], &MemberQuery::all())
        .unwrap();
    half.next().unwrap().unwrap();
    drop(half);

    // A second request for the same guild would wait for its turn, but it is dropped.
    drop(shard.request_members(guild, &MemberQuery::all()).unwrap());
    let events = manager.events();
    gateway
        .chat(gateway.channel_of(guild).unwrap(), "after them")
        .unwrap();
    let mut chunks = 0;
    next(&events, |event| {
        chunks += usize::from(event.name() == "GUILD_MEMBERS_CHUNK");
        event.name() == "MESSAGE_CREATE"
    });
    assert_eq!(chunks, 0);
    eventually("nothing is owed", || {
        owes_nothing(&shard) && shard.status().waiting_commands == 0
    });
    gateway.assert_lawful();
}

#[test]
fn a_slow_reader_stalls_the_shard_and_loses_nothing() {
    let gateway = gateway().guilds(1).members(9_999).start().unwrap();
    let manager = ready(config(&gateway).max_outstanding_bytes(500_000));
    let (shard, events) = (manager.handle().shard(ONE).unwrap(), manager.events());
    next(&events, |event| {
        matches!(event.kind(), EventKind::GuildsReady { .. })
    });
    let request = shard
        .request_members(gateway.guild_ids()[0], &MemberQuery::all())
        .unwrap();
    next(&events, |event| {
        matches!(event.kind(), EventKind::Stalled { .. })
    });
    assert!(
        shard.status().outstanding_bytes < 2_000_000,
        "{:?}",
        shard.status()
    );

    let mut members = 0;
    for chunk in request {
        members += chunk.unwrap().members::<Member>().unwrap().len();
    }

    assert_eq!(members, 10_000);
    next(&events, |event| {
        matches!(event.kind(), EventKind::StallEnded { .. })
    });
    gateway.assert_lawful();
}

#[test]
fn what_discord_would_not_answer_is_refused_at_once() {
    let gateway = gateway().guilds(1).start().unwrap();
    let mut config = config(&gateway);
    config.shard.intents = Intents::GUILDS;
    let manager = ready(config);
    let (shard, guild) = (manager.handle().shard(ONE).unwrap(), gateway.guild_ids()[0]);
    let refused = |query: MemberQuery| {
        shard
            .request_members(guild, &query)
            .unwrap_err()
            .to_string()
    };

    assert!(refused(MemberQuery::all()).contains("GUILD_MEMBERS"));
    assert!(refused(MemberQuery::ids([1]).presences(true)).contains("GUILD_PRESENCES"));
    assert!(refused(MemberQuery::prefix("x", 0)).contains("`limit`"));
    assert!(refused(MemberQuery::ids([])).contains("`user_ids`"));
    assert_eq!(
        gateway
            .observed()
            .count(|action| matches!(action, Action::Command { .. })),
        0
    );
}

#[test]
fn a_non_blocking_loop_takes_members_as_they_arrive() {
    let (gateway, _manager, shard, guild) = rig(2500);
    let mut members = shard.request_members(guild, &MemberQuery::all()).unwrap();
    let mut count = 0;
    eventually("all have come", || match members.try_recv() {
        Ok(chunk) => {
            count += chunk.unwrap().members::<Member>().unwrap().len();
            false
        }
        Err(error) => error.is_disconnected(),
    });
    assert_eq!(count, 2500);

    let mut none = shard
        .request_members(ELSEWHERE, &MemberQuery::all())
        .unwrap()
        .timeout(Duration::from_millis(50));
    let early = none.recv_timeout(Duration::from_millis(1)).unwrap_err();
    assert!(early.is_timeout());
    let late = none.recv_timeout(PATIENCE).unwrap();
    assert!(matches!(
        late,
        Err(Error::Members {
            failure: MembersFailure::TimedOut,
            ..
        })
    ));
    assert!(none.recv_timeout(PATIENCE).unwrap_err().is_disconnected());
    gateway.assert_lawful();
}
