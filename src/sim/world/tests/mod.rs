//! Tests the world's rules in virtual time.
#![allow(
    clippy::disallowed_methods,
    reason = "made-up instants count from some real one"
)]

mod fidelity;
mod rest;

use serde::de::DeserializeSeed;
use serde_json::json;
use twilight_model::gateway::event::{DispatchEvent, GatewayEvent, GatewayEventDeserializer};

use super::super::builder::Builder;
use super::super::fault::Target;
use super::super::interaction::Interaction;
use super::super::traffic::EVENT_NAMES;
use super::*;
use crate::intents::Intents;

const TOKEN: &str = "MTAwMDAwMDAwMDAwMDAwMDAw.c2lt.c2ltdWxhdGVkLXRva2VuLW9mLW5vLXZhbHVl";

/// A world, and what its clients received.
struct Rig {
    world: World,
    now: Instant,
    got: Vec<(usize, Value)>,
    closes: Vec<(usize, u16)>,
}

impl Rig {
    fn new(build: impl FnOnce(Builder) -> Builder) -> Self {
        let now = Instant::now();
        let unix = Duration::from_secs(1_785_585_600);
        Self {
            world: build(Builder::new()).world(now, unix, "ws://here".into()),
            now,
            got: Vec::new(),
            closes: Vec::new(),
        }
    }

    fn drive(&mut self) {
        while let Some(order) = self.world.poll(self.now) {
            match order {
                Order::Send(connection, payload) => {
                    self.got.push((
                        connection,
                        serde_json::from_str(&payload).expect("payloads are JSON"),
                    ));
                }
                Order::Close(connection, code) => self.closes.push((connection, code)),
                _ => {}
            }
        }
    }

    fn sleep(&mut self, seconds: f64) {
        let end = self.now + Duration::from_secs_f64(seconds);
        while let Some(at) = self.world.deadline().filter(|at| *at <= end) {
            self.now = self.now.max(at);
            self.drive();
        }
        self.now = end;
        self.drive();
    }

    fn connect(&mut self, connection: usize) {
        self.world.connected(self.now, connection, Some("10"));
        self.drive();
    }

    fn say(&mut self, connection: usize, payload: &Value) {
        self.world.text(self.now, connection, &payload.to_string());
        self.drive();
    }

    fn identify(&mut self, connection: usize, shard: (u32, u32), intents: Intents) {
        self.connect(connection);
        self.say(connection, &identify(shard, intents));
    }

    fn resume(&mut self, connection: usize, session: &str, sequence: u64) {
        self.connect(connection);
        self.say(
            connection,
            &json!({"op": 6, "d": {"token": TOKEN, "session_id": session, "seq": sequence}}),
        );
    }

    /// Takes the payloads that a connection has received since the last call.
    fn take(&mut self, connection: usize) -> Vec<Value> {
        let (taken, kept) = std::mem::take(&mut self.got)
            .into_iter()
            .partition(|(id, _)| *id == connection);
        self.got = kept;
        let taken: Vec<(usize, Value)> = taken;
        taken.into_iter().map(|(_, payload)| payload).collect()
    }

    /// Takes the names of the events that a connection has received since the last call.
    fn names(&mut self, connection: usize) -> Vec<String> {
        let payloads = self.take(connection);
        payloads
            .iter()
            .filter_map(|payload| payload["t"].as_str())
            .map(str::to_owned)
            .collect()
    }

    fn session(&self) -> String {
        self.world
            .sessions
            .keys()
            .next()
            .expect("there is a session")
            .clone()
    }

    fn rest(
        &mut self,
        method: &str,
        path: &str,
        token: &str,
        body: &str,
    ) -> (u16, Value, HashMap<String, String>) {
        let authorization = format!("Bot {token}");
        let headers = [
            ("authorization", authorization.as_str()),
            ("user-agent", "DiscordBot (https://example.com, 1)"),
        ];
        let (path, query) = path.split_once('?').unwrap_or((path, ""));
        let query = query.split('&').filter_map(|pair| pair.split_once('='));
        let query = query.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let request = Incoming {
            method,
            path: &format!("/api/v10{path}"),
            query: query.collect(),
            headers: headers
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .into(),
            body: body.as_bytes(),
        };
        match self.world.rest(self.now, 99, &request) {
            Reply::Answer(answered, _) => (
                answered.status,
                serde_json::from_str(&answered.body).unwrap_or_default(),
                answered.headers.into_iter().collect(),
            ),
            _ => panic!("the request is not answered"),
        }
    }

    fn violations(&self) -> usize {
        self.world.observed.violations.len()
    }
}

fn identify(shard: (u32, u32), intents: Intents) -> Value {
    let properties = json!({"os": "linux", "browser": "test", "device": "test"});
    let data = json!({"token": TOKEN, "intents": intents.bits(), "properties": properties, "shard": [shard.0, shard.1]});
    json!({"op": 2, "d": data})
}

/// The close code for an IDENTIFY with changed data.
fn refusal(change: impl FnOnce(&mut Value)) -> Option<u16> {
    let mut rig = Rig::new(|builder| {
        builder
            .guilds(3)
            .guilds_per_shard(2)
            .allowed_intents(Intents::GUILDS)
    });
    let mut payload = identify((0, 2), Intents::GUILDS);
    change(&mut payload["d"]);
    rig.connect(1);
    rig.say(1, &payload);
    assert_eq!(rig.violations(), rig.closes.len());
    rig.closes.first().map(|(_, code)| *code)
}

#[test]
fn a_wrong_identify_is_closed_with_its_code() {
    assert_eq!(refusal(|_| {}), None);
    assert_eq!(refusal(|data| data["token"] = "other".into()), Some(4004));
    assert_eq!(
        refusal(|data| data["token"] = format!("Bot {TOKEN}").into()),
        None,
        "some libraries send the prefix"
    );
    assert_eq!(refusal(|data| data["shard"] = json!([2, 2])), Some(4010));
    assert_eq!(refusal(|data| data["shard"] = json!([0, 1])), Some(4011));
    assert_eq!(
        refusal(|data| data["intents"] = (1_u64 << 40).into()),
        Some(4013)
    );
    assert_eq!(
        refusal(|data| data["intents"] = Intents::GUILD_MEMBERS.bits().into()),
        Some(4014)
    );
    assert_eq!(refusal(|data| data["intents"] = "all".into()), Some(4002));
    assert_eq!(
        refusal(|data| data["large_threshold"] = 251.into()),
        Some(4002)
    );
    let presence = json!({"since": null, "activities": [], "status": "here", "afk": false});
    assert_eq!(refusal(|data| data["presence"] = presence), Some(4002));
}

#[test]
fn a_large_bot_needs_a_multiple() {
    let mut rig = Rig::new(|builder| builder.shard_multiple(16));
    rig.identify(1, (0, 24), Intents::GUILDS);
    rig.identify(2, (1, 32), Intents::GUILDS);
    assert_eq!(rig.closes, [(1, 4010)]);
    assert!(
        rig.rest("GET", "/oauth2/applications/@me", TOKEN, "").1["approximate_guild_count"]
            .as_u64()
            > Some(150_000)
    );
}

#[test]
fn a_wrong_payload_is_closed_with_its_code() {
    let too_long = json!({"op": 31, "d": {"guild_ids": ["1".repeat(5000)]}}).to_string();
    let cases: [(&str, u16); 14] = [
        ("no json", 4002),
        ("[]", 4002),
        ("5", 4002),
        (r#""x""#, 4002),
        ("{}", 4002),
        (r#"{"op":5,"d":null}"#, 4001),
        (&too_long, 4002),
        (r#"{"op":2,"d":null}"#, 4002),
        (r#"{"op":6,"d":null}"#, 4002),
        (
            r#"{"op":3,"d":{"since":null,"activities":[],"status":"here","afk":false}}"#,
            4002,
        ),
        (r#"{"op":4,"d":{"guild_id":"1"}}"#, 4002),
        (
            r#"{"op":8,"d":{"guild_id":["1"],"query":"","limit":0}}"#,
            4002,
        ),
        (
            r#"{"op":8,"d":{"guild_id":"1","query":"","limit":0,"user_ids":["1"]}}"#,
            4002,
        ),
        (r#"{"op":8,"d":{"guild_id":"1"}}"#, 4002),
    ];
    for (text, code) in cases {
        let mut rig = Rig::new(|builder| builder);
        rig.identify(1, (0, 1), Intents::GUILDS);
        rig.world.text(rig.now, 1, text);
        rig.drive();
        assert_eq!(
            (rig.closes.as_slice(), rig.violations()),
            ([(1, code)].as_slice(), 1),
            "{text}"
        );
    }

    let mut rig = Rig::new(|builder| builder);
    rig.world.connected(rig.now, 1, Some("5"));
    rig.connect(2);
    rig.say(2, &json!({"op": 31, "d": {"guild_ids": []}}));
    rig.connect(3);
    rig.world.binary(rig.now, 3, b"\xff");
    rig.identify(4, (0, 1), Intents::GUILDS);
    rig.say(4, &identify((0, 1), Intents::GUILDS));
    rig.drive();
    assert_eq!(rig.closes, [(1, 4012), (2, 4003), (3, 4002), (4, 4005)]);
}

#[test]
fn too_many_payloads_are_closed() {
    let mut rig = Rig::new(|builder| builder.heartbeat_interval(Duration::from_secs(200)));
    rig.identify(1, (0, 1), Intents::GUILDS);
    for _ in 1..120 {
        rig.say(1, &json!({"op": 1, "d": null}));
    }
    assert!(rig.closes.is_empty());
    rig.sleep(60.0);
    rig.say(1, &json!({"op": 1, "d": null}));
    for _ in 0..119 {
        rig.say(1, &json!({"op": 1, "d": null}));
    }
    assert!(rig.closes.is_empty());
    rig.say(1, &json!({"op": 1, "d": null}));
    assert_eq!(rig.closes, [(1, 4008)]);

    let mut rig = Rig::new(|builder| builder);
    rig.identify(1, (0, 1), Intents::GUILDS);
    for _ in 0..6 {
        assert!(rig.closes.is_empty());
        rig.say(1, &json!({"op": 3, "d": {"since": null, "activities": [], "status": "dnd", "afk": false}}));
    }
    assert_eq!(rig.closes, [(1, 4008)]);
}

#[test]
fn a_silent_client_is_closed_and_a_beating_one_is_not() {
    let mut rig = Rig::new(|builder| builder);
    rig.identify(1, (0, 2), Intents::GUILDS);
    rig.sleep(5.0);
    rig.identify(2, (1, 2), Intents::GUILDS);

    for _ in 0..4 {
        rig.sleep(41.25);
        rig.say(2, &json!({"op": 1, "d": 1}));
    }

    assert_eq!(rig.closes, [(1, 4009)]);
    assert_eq!(
        rig.take(2)
            .iter()
            .filter(|payload| payload["op"] == 11)
            .count(),
        4
    );
    rig.say(2, &json!({"op": 1, "d": 7}));
    assert_eq!(
        rig.violations(),
        2,
        "a heartbeat with a sequence that was never sent"
    );
}

#[test]
fn one_identify_per_key_and_window() {
    let mut rig = Rig::new(|builder| builder.max_concurrency(2));
    rig.identify(1, (0, 4), Intents::GUILDS);
    rig.identify(2, (1, 4), Intents::GUILDS);
    assert_eq!(rig.violations(), 0, "another key");
    rig.sleep(4.9);
    rig.identify(3, (2, 4), Intents::GUILDS);
    assert_eq!(rig.violations(), 1);
    assert_eq!(
        rig.take(3)[1],
        json!({"op": 9, "s": null, "t": null, "d": false})
    );
    assert_eq!(rig.world.starts_left, 997, "an early IDENTIFY counts, too");
    rig.sleep(5.0);
    rig.identify(4, (2, 4), Intents::GUILDS);
    assert_eq!(rig.names(4), ["READY"]);
}

#[test]
fn a_spent_day_ends_everything() {
    let mut rig = Rig::new(|builder| {
        builder
            .session_starts(1000, 1, Duration::from_secs(100))
            .max_concurrency(2)
    });
    rig.identify(1, (0, 2), Intents::GUILDS);
    let session = rig.session();
    rig.identify(2, (1, 2), Intents::GUILDS);
    rig.closes.sort_unstable();
    assert_eq!(rig.closes, [(1, 4004), (2, 4004)]);
    assert_eq!(
        rig.world.observed.lost.iter().collect::<Vec<_>>(),
        [&session]
    );
    assert_eq!(rig.rest("GET", "/gateway/bot", TOKEN, "").0, 401);
    rig.resume(3, &session, 1);
    assert_eq!(
        rig.closes.last(),
        Some(&(3, 4004)),
        "the token is no longer the bot's"
    );

    let mut rig = Rig::new(|builder| builder.session_starts(1000, 0, Duration::from_secs(100)));
    rig.sleep(100.0);
    rig.identify(1, (0, 1), Intents::GUILDS);
    assert_eq!(
        (rig.violations(), rig.world.starts_left),
        (0, 999),
        "the limit has been reset"
    );
}

#[test]
fn a_session_waits_for_its_client() {
    for (code, wait, is_kept) in [
        (None, 100.0, true),
        (Some(4000), 100.0, true),
        (Some(1000), 1.0, false),
        (Some(1001), 1.0, false),
        (None, 181.0, false),
    ] {
        let mut rig = Rig::new(|builder| builder.guilds(1));
        rig.identify(1, (0, 1), Intents::all());
        let session = rig.session();
        rig.world.closed(rig.now, 1, code);
        let channel = rig.world.guilds[0].channel();
        rig.world.chat(rig.now, channel, "missed").unwrap();
        rig.world.chat(rig.now, channel, "missed").unwrap();
        rig.sleep(wait);
        rig.resume(2, &session, 2);
        let answers = rig.take(2);
        if is_kept {
            let got: Vec<_> = answers[1..]
                .iter()
                .map(|payload| (payload["s"].as_u64(), payload["t"].as_str()))
                .collect();
            let message = Some("MESSAGE_CREATE");
            assert_eq!(
                got,
                [
                    (Some(3), message),
                    (Some(4), message),
                    (Some(4), Some("RESUMED"))
                ]
            );
        } else {
            assert_eq!(answers[1]["op"], 9);
        }
        assert_eq!(
            rig.world.observed.lost.is_empty(),
            wait < 180.0,
            "a client that ends its session loses nothing"
        );
    }
}

#[test]
fn a_session_does_not_resume_from_the_future_nor_from_too_far_back() {
    let mut rig = Rig::new(|builder| builder);
    rig.identify(1, (0, 1), Intents::GUILDS);
    let session = rig.session();
    rig.world.closed(rig.now, 1, None);
    rig.resume(2, &session, 2);
    assert_eq!(rig.closes, [(2, 4007)]);

    let mut rig = Rig::new(|builder| builder.guilds(1));
    rig.identify(1, (0, 1), Intents::all());
    let session = rig.session();
    let guild = rig.world.guilds[0].id;
    for _ in 0..10 {
        rig.world
            .emit(Some(guild), "BIG", &json!({"text": "a".repeat(1 << 20)}))
            .unwrap();
    }
    rig.drive();
    rig.world.closed(rig.now, 1, None);
    rig.resume(2, &session, 2);
    assert_eq!(
        rig.take(2)[1]["op"],
        9,
        "a missed event is no longer stored, and a replay has no gaps"
    );
}

#[test]
fn a_replay_has_a_number_of_events_and_may_come_late() {
    let mut rig = Rig::new(|builder| {
        builder
            .guilds(1)
            .replay_events(3)
            .replay_delay(Duration::from_secs(1))
    });
    rig.identify(1, (0, 1), Intents::empty());
    let (session, guild) = (rig.session(), rig.world.guilds[0].id);
    rig.world.closed(rig.now, 1, None);

    for _ in 0..3 {
        rig.world.emit(Some(guild), "X", &json!({})).unwrap();
    }

    rig.resume(2, &session, 1);
    rig.say(2, &json!({"op": 1, "d": 1}));
    let ops = |payloads: Vec<Value>| -> Vec<Value> {
        payloads
            .into_iter()
            .map(|payload| payload["op"].clone())
            .collect()
    };

    assert_eq!(
        ops(rig.take(2)),
        [10, 11],
        "the ACK is sent before the events"
    );
    rig.sleep(1.0);
    assert_eq!(ops(rig.take(2)), [0, 0, 0, 0], "three events and RESUMED");
    rig.world.closed(rig.now, 2, None);
    rig.world.emit(Some(guild), "X", &json!({})).unwrap();
    rig.resume(3, &session, 1);
    assert_eq!(
        ops(rig.take(3)),
        [10, 9],
        "the first of four events is no longer stored"
    );
}

#[test]
fn an_old_connection_may_learn_that_its_session_goes_on_elsewhere() {
    for (answer, op, close) in [
        ("nothing", None, None),
        ("reconnect", Some(7), None),
        ("invalid-session:true", Some(9), None),
        ("close:4000", None, Some(4000)),
    ] {
        let mut rig = Rig::new(|builder| builder.on_takeover(answer.parse().unwrap()));
        rig.identify(1, (0, 1), Intents::GUILDS);
        let session = rig.session();
        rig.take(1);
        rig.resume(2, &session, 1);
        let said = rig
            .take(1)
            .first()
            .and_then(|payload| payload["op"].as_u64());
        assert_eq!(
            (said, rig.closes.first().map(|(_, code)| *code)),
            (op, close)
        );
        assert_eq!(rig.names(2), ["RESUMED"], "{answer}");
        let command = r#"{"op":31,"d":{"guild_ids":[]}}"#;
        rig.world.text(rig.now, 1, command);
        let violations = &rig.world.observed.violations;
        assert_eq!(
            *violations,
            [],
            "the client may not know yet that its session has moved"
        );
    }
}

#[test]
fn an_event_that_is_too_large_to_keep_is_no_gap() {
    let mut rig = Rig::new(|builder| builder.guilds(1));
    rig.identify(1, (0, 1), Intents::all());
    let session = rig.session();
    let guild = rig.world.guilds[0].id;
    rig.world.closed(rig.now, 1, None);
    rig.world
        .emit(Some(guild), "BIG", &json!({"text": "a".repeat(9 << 20)}))
        .unwrap();
    rig.resume(2, &session, 2);
    assert_eq!(rig.take(2)[1]["op"], 9);
}

#[test]
fn op_9_lets_a_client_start_over_on_the_same_connection() {
    let mut rig = Rig::new(|builder| builder.guilds(1));
    rig.identify(1, (0, 1), Intents::GUILDS);
    let session = rig.session();
    rig.world.inject(
        rig.now,
        Target::All,
        Fault::InvalidSession { resumable: true },
    );
    rig.say(
        1,
        &json!({"op": 6, "d": {"token": TOKEN, "session_id": session, "seq": 2}}),
    );
    assert_eq!(rig.names(1).last().unwrap(), "RESUMED");
    rig.sleep(5.0);
    rig.world.inject(
        rig.now,
        Target::All,
        Fault::InvalidSession { resumable: false },
    );
    rig.say(1, &json!({"op": 31, "d": {"guild_ids": []}}));
    assert_eq!(
        rig.violations(),
        0,
        "the client may not have received op 9 yet"
    );
    rig.say(1, &identify((0, 1), Intents::GUILDS));
    assert_eq!(
        (rig.names(1), rig.violations()),
        (vec!["READY".into(), "GUILD_CREATE".into()], 0)
    );
}

#[test]
fn a_fault_of_one_connection_leaves_the_other_of_its_shard_alone() {
    let mut rig = Rig::new(|builder| builder);
    rig.identify(1, (0, 1), Intents::GUILDS);
    rig.sleep(5.0);
    rig.identify(2, (0, 1), Intents::GUILDS);
    assert_eq!(rig.world.observed.live[&ShardId::ONE], 2);
    rig.world.closed(rig.now, 2, Some(1000));
    assert_eq!(
        rig.world.observed.live[&ShardId::ONE],
        1,
        "the other is still there"
    );
    assert_eq!(rig.world.sessions.len(), 1);
}

#[test]
fn faults_that_wait_do_not_pile_up() {
    let mut rig = Rig::new(|builder| builder);
    let faults = vec![
        Fault::Hello(Answer::Nothing),
        "rest=500".parse().unwrap(),
        "tls=hang".parse().unwrap(),
    ];
    rig.world.set_random_faults(rig.now, 1e6, faults);
    rig.sleep(0.001);
    assert_eq!(
        rig.world.ambushes.len(),
        2,
        "each fault once, and none that this gateway does not support"
    );
}

#[test]
fn guilds_become_available_one_by_one() {
    let mut rig = Rig::new(|builder| builder.guilds(4).guild_delay(Duration::from_secs(1)));
    rig.identify(1, (1, 2), Intents::GUILDS);
    let ready = rig.take(1).remove(1);
    assert_eq!(ready["d"]["guilds"].as_array().unwrap().len(), 2);
    assert_eq!(
        (
            &ready["d"]["shard"],
            &ready["d"]["guilds"][0]["unavailable"]
        ),
        (&json!([1, 2]), &json!(true))
    );
    rig.sleep(0.5);
    assert!(rig.take(1).is_empty());
    rig.sleep(1.0);
    assert_eq!(rig.names(1), ["GUILD_CREATE"]);
    rig.sleep(10.0);
    assert!(rig.names(1).is_empty());
}

#[test]
fn intents_decide_what_is_sent() {
    let mut rig = Rig::new(|builder| builder.guilds(1));
    rig.identify(1, (0, 1), Intents::GUILD_MESSAGES);
    assert_eq!(
        rig.names(1),
        ["READY"],
        "GUILD_CREATE needs the intent GUILDS"
    );
    let guild = rig.world.guilds[0];
    rig.world.chat(rig.now, guild.channel(), "hidden").unwrap();
    rig.world
        .chat(
            rig.now,
            guild.channel(),
            &format!("<@{}> shown", payloads::BOT),
        )
        .unwrap();
    rig.world
        .chat(rig.now, payloads::DIRECT_CHANNEL, "not asked for")
        .unwrap();
    assert_eq!(
        rig.world.emit(Some(guild.id), "TYPING_START", &json!({})),
        Ok(0)
    );
    assert_eq!(
        rig.world.emit(Some(guild.id), "NEW_THING", &json!({})),
        Ok(1),
        "unknown events need no intent"
    );
    rig.drive();
    let got = rig.take(1);
    assert_eq!((got.len(), &got[0]["d"]["content"]), (3, &json!("")));
    assert!(got[1]["d"]["content"].as_str().unwrap().contains("shown"));
}

#[test]
fn direct_messages_go_to_shard_0_with_their_text() {
    let mut rig = Rig::new(|builder| builder.guilds(2).max_concurrency(2));
    rig.identify(1, (0, 2), Intents::DIRECT_MESSAGES);
    rig.identify(2, (1, 2), Intents::DIRECT_MESSAGES);
    rig.world
        .chat(rig.now, payloads::DIRECT_CHANNEL, "psst")
        .unwrap();
    rig.drive();
    assert_eq!(rig.take(1).last().unwrap()["d"]["content"], "psst");
    assert_eq!(rig.names(2), ["READY"]);
}

#[test]
fn members_come_in_chunks_and_not_too_often() {
    let mut rig = Rig::new(|builder| builder.guilds(1).members(2500));
    rig.identify(1, (0, 1), Intents::all());
    rig.take(1);
    let guild = rig.world.guilds[0];
    let id = guild.id.to_string();
    let all = json!({"op": 8, "d": {"guild_id": id, "query": "", "limit": 0, "nonce": "n", "presences": true}});
    rig.say(1, &all);
    let chunks = rig.take(1);
    let sizes: Vec<_> = chunks
        .iter()
        .map(|chunk| chunk["d"]["members"].as_array().unwrap().len())
        .collect();
    assert_eq!(sizes, [1000, 1000, 501], "the members and the bot");
    for (index, chunk) in chunks.iter().enumerate() {
        assert_eq!(
            (&chunk["d"]["chunk_index"], &chunk["d"]["chunk_count"]),
            (&json!(index), &json!(3))
        );
        assert_eq!(
            (&chunk["d"]["nonce"], chunk["t"].as_str()),
            (&json!("n"), Some("GUILD_MEMBERS_CHUNK"))
        );
        assert_eq!(
            chunk["d"]["presences"].as_array().unwrap().len(),
            sizes[index]
        );
    }
    rig.sleep(10.0);
    rig.say(1, &all);
    let limited = rig.take(1).remove(0);
    assert_eq!(
        (limited["t"].as_str(), &limited["d"]["opcode"]),
        (Some("RATE_LIMITED"), &json!(8))
    );
    assert_eq!(limited["d"]["meta"], json!({"guild_id": id, "nonce": "n"}));
    assert!((limited["d"]["retry_after"].as_f64().unwrap() - 20.0).abs() < 0.001);
    rig.sleep(20.0);
    rig.say(1, &all);
    assert_eq!(rig.take(1).len(), 3);

    let two = [guild.member(1).to_string(), "5".into()];
    rig.say(
        1,
        &json!({"op": 8, "d": {"guild_id": id, "user_ids": two, "nonce": "x".repeat(33)}}),
    );
    let chunk = rig.take(1).remove(0);
    assert_eq!(
        (
            chunk["d"]["members"].as_array().unwrap().len(),
            &chunk["d"]["not_found"]
        ),
        (1, &json!(["5"]))
    );
    assert_eq!(
        chunk["d"].get("nonce"),
        None,
        "a nonce that is too long is ignored"
    );
    let prefix = &payloads::username(guild.member(7))[..7];
    rig.say(
        1,
        &json!({"op": 8, "d": {"guild_id": id, "query": prefix, "limit": 3}}),
    );
    assert_eq!(rig.take(1)[0]["d"]["members"].as_array().unwrap().len(), 3);
    assert_eq!(rig.violations(), 1, "the request that was too early");
}

#[test]
fn other_commands_are_answered() {
    let mut rig = Rig::new(|builder| builder.guilds(1));
    rig.identify(1, (0, 1), Intents::all());
    rig.take(1);
    let guild = rig.world.guilds[0];
    let id = guild.id.to_string();
    let channel = guild.voice_channel().to_string();
    rig.say(1, &json!({"op": 4, "d": {"guild_id": id, "channel_id": channel, "self_mute": true, "self_deaf": false}}));
    rig.say(1, &json!({"op": 31, "d": {"guild_ids": [id, "5"]}}));
    rig.say(
        1,
        &json!({"op": 43, "d": {"guild_id": id, "fields": ["status"]}}),
    );
    assert_eq!(
        rig.names(1),
        [
            "VOICE_STATE_UPDATE",
            "VOICE_SERVER_UPDATE",
            "SOUNDBOARD_SOUNDS",
            "CHANNEL_INFO"
        ]
    );
}

#[test]
fn what_cannot_be_is_refused() {
    use super::super::EmitError;
    let mut rig = Rig::new(|builder| builder.guilds(1));
    let guild = Some(rig.world.guilds[0].id);
    assert_eq!(
        rig.world.emit(Some(5), "X", &json!({})),
        Err(EmitError::UnknownGuild(5))
    );
    assert_eq!(
        rig.world.emit(guild, "X", &json!([])),
        Err(EmitError::NotAnObject("X".into()))
    );
    assert_eq!(
        rig.world.emit(guild, "x\"", &json!({})),
        Err(EmitError::NotAName("x\"".into()))
    );
    assert_eq!(
        rig.world.chat(rig.now, 5, "x"),
        Err(EmitError::UnknownChannel(5))
    );
}

/// Reads a payload as twilight does.
fn typed(payload: &Value) -> DispatchEvent {
    let text = payload.to_string();
    let seed = GatewayEventDeserializer::from_json(&text).expect("it has an opcode");
    let event = seed.deserialize(&mut serde_json::Deserializer::from_str(&text));
    match event.unwrap_or_else(|error| panic!("{error}: {payload:#}")) {
        GatewayEvent::Dispatch(_, event) => event,
        other => panic!("{other:?} is no event"),
    }
}

#[test]
fn typed_libraries_parse_every_event() {
    let mut rig = Rig::new(|builder| builder.guilds(2));
    rig.identify(1, (0, 1), Intents::all());
    let guild = rig.world.guilds[0];
    for name in EVENT_NAMES {
        rig.world.settings.mix = super::super::traffic::Mix::new(&[(name.into(), 1)]).unwrap();
        rig.world.settings.activity = 1.0;
        for _ in 0..8 {
            rig.world.traffic(rig.now, rig.now);
        }
    }

    rig.world.settings.activity = 0.0;
    rig.world
        .timers
        .retain(|_, timer| !matches!(timer, Timer::Traffic));
    rig.world
        .chat(rig.now, payloads::DIRECT_CHANNEL, "psst")
        .unwrap();
    rig.world
        .chat(rig.now, guild.channel(), &format!("<@{}>", payloads::BOT))
        .unwrap();
    rig.world
        .interact(
            rig.now,
            &Interaction::command(guild.channel(), "hello", json!({})),
        )
        .unwrap();
    rig.drive();
    let id = guild.id.to_string();
    let channel = guild.voice_channel().to_string();

    for payload in [
        json!({"op": 4, "d": {"guild_id": id, "channel_id": channel, "self_mute": true, "self_deaf": false}}),
        json!({"op": 8, "d": {"guild_id": id, "query": "", "limit": 0, "nonce": "n", "presences": true}}),
        json!({"op": 8, "d": {"guild_id": id, "query": "", "limit": 0, "nonce": "n"}}),
    ] {
        rig.say(1, &payload);
    }

    let events: Vec<_> = rig
        .take(1)
        .into_iter()
        .filter(|payload| payload["op"] == 0)
        .collect();
    let mut seen: Vec<_> = events
        .iter()
        .map(|payload| payload["t"].as_str().unwrap().to_owned())
        .collect();

    // In `meta`, twilight-model 0.18 expects the name of its own enum, which Discord does not send.
    for payload in events
        .iter()
        .filter(|payload| payload["t"] != "RATE_LIMITED")
    {
        let event = typed(payload);
        assert_eq!(event.kind().name(), payload["t"].as_str());
    }
    seen.sort_unstable();
    seen.dedup();

    for name in EVENT_NAMES.into_iter().chain([
        "READY",
        "GUILD_MEMBERS_CHUNK",
        "INTERACTION_CREATE",
        "VOICE_SERVER_UPDATE",
    ]) {
        assert!(seen.iter().any(|seen| seen == name), "{name} was not tried");
    }
    assert_eq!(rig.violations(), 1, "the second request for all members");
}

#[test]
fn faults_strike_whom_they_are_for() {
    let mut rig = Rig::new(|builder| builder.max_concurrency(2));
    let [zero, one] = [0, 1].map(|number| ShardId::new(number, 2).unwrap());
    rig.world
        .inject(rig.now, one.into(), Fault::Identify(Answer::Nothing));
    rig.world.inject_after(
        rig.now,
        Duration::from_secs(9),
        zero.into(),
        Fault::Close(4000),
    );
    rig.identify(1, (0, 2), Intents::GUILDS);
    rig.identify(2, (1, 2), Intents::GUILDS);
    assert_eq!((rig.names(1), rig.names(2)), (vec!["READY".into()], vec![]));
    rig.sleep(9.0);
    assert_eq!(rig.closes, [(1, 4000)]);
    assert_eq!(rig.world.observed.faults.len(), 2);
    rig.world
        .set_random_faults(rig.now, 2.0, vec![Fault::HeartbeatRequest]);
    rig.sleep(10.0);
    let asked = rig
        .take(2)
        .iter()
        .filter(|payload| payload["op"] == 1)
        .count();
    assert!((8..35).contains(&asked), "{asked} in 10 s");
    rig.world.set_random_faults(rig.now, 0.0, Vec::new());
    rig.world.inject(rig.now, Target::Any, Fault::Repeat);
    rig.sleep(10.0);
    assert!(
        rig.take(2).is_empty(),
        "random faults have stopped, and without a session there is no event to repeat"
    );
}
