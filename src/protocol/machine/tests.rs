#![allow(
    clippy::disallowed_methods,
    reason = "made-up instants count from some real one"
)]

use proptest::prelude::*;
use serde_json::{Value, json};

use super::confirm::Confirmation;
use super::*;
use crate::intents::Intents;
use crate::protocol::retry::MAX_UNREADABLE;
use crate::protocol::{ChunkOf, MemberQuery, MemberRequest, MembersFailure};
use crate::token::Token;

const INTERVAL: Duration = Duration::from_secs(40);
const INTERVAL_MS: u64 = 40_000;

/// A machine, the time, and the outputs so far.
struct Rig {
    machine: Machine,
    now: Instant,
    said: Vec<Output>,
}

impl Rig {
    fn new(session: Option<Session>) -> Self {
        let identity = Identity {
            token: Token::new("a.b.c").unwrap(),
            intents: Intents::GUILDS,
            library: "test".into(),
            large_threshold: 50,
            compress: false,
            presence: None,
        };

        let now = Instant::now();
        let machine = Machine::new(now, shard(), identity, Timing::default(), session, 7);
        let mut rig = Self {
            machine,
            now,
            said: Vec::new(),
        };

        rig.drive();
        rig
    }

    /// A machine with a live session whose last sequence is 1.
    fn ready() -> Self {
        let mut rig = Self::new(None);
        rig.input(Input::Connected);
        rig.hello();
        rig.input(Input::Permit);
        rig.dispatch(
            "READY",
            1,
            &json!({"session_id": "s1", "resume_gateway_url": "wss://r", "user": {"id": "5"}}),
        );
        assert_eq!(rig.machine.stage(), ShardState::Ready);
        rig.said.clear();
        rig
    }

    /// Polls until there is nothing to do, with an empty socket. Returns the next deadline.
    fn drive(&mut self) -> Option<(Instant, Timer)> {
        for _ in 0..1000 {
            match self.machine.poll(self.now) {
                Output::Wait(Some((until, _))) if until <= self.now => {
                    self.machine.handle(self.now, Input::Drained);
                }
                Output::Wait(wait) => return wait,
                Output::Stop(reason) => {
                    self.said.push(Output::Stop(reason));
                    return None;
                }
                output => self.said.push(output),
            }
        }
        panic!("it spins: {:?}", self.said.last());
    }

    fn input(&mut self, input: Input) {
        self.machine.handle(self.now, input);
        self.drive();
    }

    fn payload(&mut self, payload: &Value) {
        self.input(Input::Payload(payload.to_string().into()));
    }

    fn dispatch(&mut self, name: &str, sequence: u64, data: &Value) {
        self.payload(&json!({"op": 0, "t": name, "s": sequence, "d": data}));
    }

    fn hello(&mut self) {
        self.payload(&json!({"op": 10, "d": {"heartbeat_interval": INTERVAL_MS}}));
    }

    /// Lets time pass up to the next deadline. Returns its reason.
    fn sleep(&mut self) -> Timer {
        let (until, why) = self.drive().expect("a deadline");
        self.now = until;
        self.drive();
        why
    }

    /// Sleeps until a connection is requested. Returns its endpoint and how long it took.
    fn reconnect(&mut self) -> (Endpoint, Duration) {
        let start = self.now;
        for _ in 0..10 {
            for output in &self.said {
                if let Output::Connect(target) = output {
                    let target = target.clone();
                    self.said.clear();
                    return (target, self.now - start);
                }
            }
            self.sleep();
        }
        panic!("no connection is requested: {:?}", self.said);
    }

    /// The opcodes sent since the last call, with their data.
    fn sent(&mut self) -> Vec<(u64, Value)> {
        let sent = self.said.iter().filter_map(|output| match output {
            Output::Send(json) => Some(json.clone()),
            Output::Identify(secret) | Output::Resume(secret) => Some(secret.expose().to_owned()),
            Output::SendCommand(command) => Some(command.json().to_owned()),
            _ => None,
        });
        let sent = sent
            .map(|json| serde_json::from_str::<Value>(&json).unwrap())
            .map(|json| (json["op"].as_u64().unwrap(), json["d"].clone()))
            .collect();
        self.said.clear();
        sent
    }

    fn delivered(&self) -> Vec<u64> {
        let delivered = self.said.iter().filter_map(|output| match output {
            Output::Deliver(payload) => payload.sequence(),
            _ => None,
        });
        delivered.collect()
    }

    fn said(&self, wanted: &Output) -> bool {
        self.said.contains(wanted)
    }

    fn lost_session(&self) -> bool {
        self.said
            .iter()
            .any(|output| matches!(output, Output::Report(Notice::SessionLost(_))))
    }
}

fn shard() -> ShardId {
    ShardId::new(1, 2).unwrap()
}

fn session(sequence: u64) -> Session {
    Session::new("old".into(), sequence, "wss://resume".into(), shard(), 5)
}

fn command(op: u64) -> Command {
    let data = match op {
        3 => json!({"since": null, "activities": [], "status": "online", "afk": false}),
        8 => json!({"guild_id": "1", "query": "", "limit": 0}),
        _ => json!({}),
    };
    Command::raw(&json!({"op": op, "d": data})).unwrap()
}

/// A request for all members of guild 1.
fn request(id: u32) -> Input {
    Input::RequestMembers(MemberRequest::new(id, 1, &MemberQuery::all()).unwrap())
}

#[test]
fn a_fresh_shard_identifies_with_a_permit_alone() {
    let mut rig = Rig::new(None);
    assert_eq!(
        rig.said[0],
        Output::Report(Notice::Connecting { resuming: false })
    );
    assert_eq!(rig.said[1], Output::Connect(Endpoint::Main));
    assert_eq!(rig.machine.stage(), ShardState::Connecting);
    rig.input(Input::Connected);
    assert_eq!(rig.machine.stage(), ShardState::AwaitingHello);
    rig.hello();
    assert_eq!(rig.machine.stage(), ShardState::Queued);
    assert_eq!(rig.said.last(), Some(&Output::RequestPermit));
    assert!(rig.sent().is_empty());
    rig.input(Input::Permit);
    assert_eq!(rig.machine.stage(), ShardState::Identifying);
    let sent = rig.sent();
    assert_eq!((sent.len(), sent[0].0), (1, 2));
    assert_eq!(sent[0].1["shard"], json!([1, 2]));
}

#[test]
fn ready_starts_a_session_and_is_delivered() {
    let mut rig = Rig::new(None);
    rig.input(Input::Connected);
    rig.hello();
    rig.input(Input::Permit);
    rig.said.clear();
    rig.dispatch(
        "READY",
        1,
        &json!({"session_id": "s1", "resume_gateway_url": "wss://r", "user": {"id": "5"}}),
    );
    let session = Session::new("s1".into(), 1, "wss://r".into(), shard(), 5);
    let session = session.with_intents(Intents::GUILDS);
    assert_eq!(rig.said[0], Output::Report(Notice::Ready(session)));
    assert_eq!(rig.delivered(), [1]);
    rig.dispatch("GUILD_CREATE", 2, &json!({}));
    rig.dispatch("SOMETHING_NEW", 3, &json!({}));
    assert_eq!(rig.delivered(), [1, 2, 3]);
    assert_eq!(rig.machine.session().unwrap().sequence, 3);
}

#[test]
fn a_heartbeat_in_the_queue_has_no_sequence() {
    let mut rig = Rig::new(None);
    rig.input(Input::Connected);
    rig.hello();
    rig.said.clear();
    assert_eq!(rig.sleep(), Timer::Heartbeat);
    assert_eq!(rig.sent(), [(1, Value::Null)]);
    let mut rig = Rig::ready();
    rig.sleep();
    assert_eq!(rig.sent(), [(1, json!(1))], "READY's own sequence counts");
}

#[test]
fn op_1_is_answered_at_once_and_moves_nothing() {
    let mut rig = Rig::ready();
    let due = rig.drive();
    rig.payload(&json!({"op": 1, "d": null}));
    assert_eq!(rig.sent(), [(1, json!(1))]);
    assert_eq!(rig.drive(), due);
    rig.sleep();
    rig.input(Input::Drained);
    assert_eq!(rig.machine.stage(), ShardState::Ready, "no false zombie");
}

#[test]
fn a_silent_server_is_dropped_and_resumed() {
    let mut rig = Rig::ready();
    rig.sleep();
    rig.input(Input::Drained);
    assert_eq!(rig.machine.stage(), ShardState::Ready);
    rig.sleep();
    rig.said.clear();
    rig.input(Input::Drained);
    assert!(
        rig.said(&Output::Disconnect(None)),
        "without waiting for a close frame"
    );
    let (target, _) = rig.reconnect();
    assert_eq!(target, Endpoint::Resume("wss://r".into()));
}

#[test]
fn an_ack_keeps_the_connection_and_gives_the_latency() {
    let mut rig = Rig::ready();
    for _ in 0..5 {
        rig.sleep();
        rig.input(Input::Drained);
        rig.now += Duration::from_millis(30);
        rig.payload(&json!({"op": 11}));
    }
    assert_eq!(rig.machine.stage(), ShardState::Ready);
    assert_eq!(rig.machine.latency(), Some(Duration::from_millis(30)));
}

#[test]
fn a_heartbeat_without_an_answer_is_missed_once() {
    let mut rig = Rig::ready();
    rig.sleep();
    rig.payload(&json!({"op": 11}));
    let before = rig.machine.beats();
    assert_eq!(before.missed, 0);
    // One heartbeat without an ACK: when the next is due, the connection is dead.
    rig.sleep();
    rig.sleep();
    rig.input(Input::Drained);
    assert_eq!(rig.machine.stage(), ShardState::Connecting);
    let beats = rig.machine.beats();
    assert_eq!((beats.missed, beats.sent), (1, before.sent + 2));
}

#[test]
fn a_new_connection_is_no_zombie_and_has_one_schedule() {
    let mut rig = Rig::ready();
    // A heartbeat of the old connection that was never acknowledged.
    rig.sleep();
    for _ in 0..3 {
        rig.payload(&json!({"op": 7}));
        rig.reconnect();
        rig.input(Input::Connected);
        rig.hello();
        rig.input(Input::Drained);
        rig.dispatch("RESUMED", 1, &json!({}));
        rig.input(Input::Drained);
        assert_eq!(rig.machine.stage(), ShardState::Ready);
    }

    rig.said.clear();
    let end = rig.now + INTERVAL * 10;
    while rig.drive().is_some_and(|(until, _)| until <= end) {
        rig.sleep();
        rig.payload(&json!({"op": 11}));
    }

    let beats = rig.sent().iter().filter(|(op, _)| *op == 1).count();
    assert!((9..=10).contains(&beats), "{beats} in ten intervals");
}

#[test]
fn after_a_stall_an_ack_has_its_whole_time() {
    let mut rig = Rig::ready();
    for _ in 0..5 {
        rig.sleep();
        rig.input(Input::Stalled);
    }

    // The shard reads again. The ACK is still on its way, behind data that the peer could not send.
    rig.now += Duration::from_secs(30);
    rig.input(Input::Stalled);
    rig.input(Input::Drained);
    assert_eq!(rig.machine.stage(), ShardState::Ready);
    rig.now += INTERVAL;
    rig.input(Input::Drained);
    assert_ne!(
        rig.machine.stage(),
        ShardState::Ready,
        "but no more than that"
    );
}

#[test]
fn every_identify_that_leads_nowhere_makes_the_next_one_wait_longer() {
    let losses: [fn(&mut Rig); 4] = [
        |rig| rig.input(Input::Closed(None)),
        |rig| rig.input(Input::Closed(Some(4000))),
        |rig| rig.payload(&json!({"op": 0, "t": "READY", "s": 1, "d": {}})),
        |rig| {
            rig.dispatch("READY", 1, &json!({"session_id": "s", "user": {"id": "5"}}));
            rig.input(Input::Closed(Some(4009)));
        },
    ];
    for (at, loss) in losses.into_iter().enumerate() {
        let mut rig = Rig::new(None);
        let mut total = Duration::ZERO;
        for _ in 0..20 {
            rig.input(Input::Connected);
            rig.hello();
            rig.input(Input::Permit);
            rig.said.clear();
            loss(&mut rig);
            total += rig.reconnect().1;
        }
        assert!(
            total > Duration::from_secs(60 * 60),
            "20 IDENTIFYs within {total:?} by loss {at}"
        );
    }
}

#[test]
fn a_session_that_cannot_get_past_an_event_is_given_up() {
    let mut rig = Rig::ready();
    for _ in 1..MAX_UNREADABLE {
        rig.input(Input::Payload(Bytes::from_static(b"unreadable")));
        assert!(!rig.lost_session());
        rig.reconnect();
        rig.input(Input::Connected);
        rig.hello();
        assert_eq!(rig.machine.stage(), ShardState::Resuming);
    }
    rig.input(Input::Payload(Bytes::from_static(b"unreadable")));
    assert!(rig.lost_session());
    assert_eq!(rig.reconnect().0, Endpoint::Main);
}

#[test]
fn a_stop_spends_no_permit() {
    let mut rig = Rig::new(None);
    rig.input(Input::Connected);
    rig.hello();
    rig.said.clear();
    rig.machine.handle(rig.now, Input::Permit);
    rig.machine.handle(rig.now, Input::Stop(StopReason::Closed));
    rig.drive();
    assert!(rig.sent().is_empty());
}

#[test]
fn an_unread_ack_is_not_missing() {
    let mut rig = Rig::ready();
    // The shard has stalled: it sends heartbeats, but does not read.
    for _ in 0..5 {
        assert_eq!(rig.sleep(), Timer::Heartbeat);
        rig.input(Input::Stalled);
    }
    assert_eq!(rig.machine.stage(), ShardState::Ready);
    rig.payload(&json!({"op": 11}));
    rig.input(Input::Drained);
    assert_eq!(rig.machine.stage(), ShardState::Ready);
}

#[test]
fn op_7_resumes_at_once_in_every_state() {
    let reconnect = json!({"op": 7, "d": null});
    let mut rig = Rig::ready();
    rig.payload(&reconnect);
    assert!(rig.said(&Output::Disconnect(Some(RESUMABLE))));
    assert_eq!(
        rig.reconnect(),
        (Endpoint::Resume("wss://r".into()), Duration::ZERO)
    );

    // Before HELLO.
    rig.input(Input::Connected);
    rig.payload(&reconnect);
    rig.reconnect();

    // In place of RESUMED.
    rig.input(Input::Connected);
    rig.hello();
    assert_eq!(rig.machine.stage(), ShardState::Resuming);
    rig.payload(&reconnect);
    assert_eq!(rig.reconnect().0, Endpoint::Resume("wss://r".into()));

    // In place of READY.
    let mut rig = Rig::new(None);
    rig.said.clear();
    rig.input(Input::Connected);
    rig.hello();
    rig.input(Input::Permit);
    rig.payload(&reconnect);
    assert!(
        !rig.said
            .iter()
            .any(|output| matches!(output, Output::Report(Notice::Ready(_))))
    );
    assert_eq!(rig.reconnect().0, Endpoint::Main);

    // In the queue.
    rig.input(Input::Connected);
    rig.hello();
    rig.payload(&reconnect);
    assert_eq!(rig.reconnect().0, Endpoint::Main);
}

#[test]
fn a_resume_replays_in_order_and_drops_what_came_before() {
    let mut rig = Rig::new(Some(session(10)));
    assert!(rig.said(&Output::Connect(Endpoint::Resume("wss://resume".into()))));
    rig.input(Input::Connected);
    rig.said.clear();
    rig.hello();
    assert_eq!(
        rig.sent(),
        [(6, json!({"token": "a.b.c", "session_id": "old", "seq": 10}))]
    );

    for sequence in [9, 10, 11, 12, 11] {
        rig.dispatch("MESSAGE_CREATE", sequence, &json!({}));
    }

    assert_eq!(rig.delivered(), [11, 12]);
    assert_eq!(rig.machine.stage(), ShardState::Resuming);
    rig.dispatch("RESUMED", 12, &json!({}));
    assert_eq!(rig.machine.stage(), ShardState::Ready);
    assert!(rig.said(&Output::Report(Notice::Resumed)));
    assert_eq!(
        rig.delivered(),
        [11, 12, 12],
        "RESUMED is delivered whatever its sequence"
    );
}

#[test]
fn a_resume_takes_no_permit() {
    let mut rig = Rig::new(Some(session(10)));
    rig.input(Input::Connected);
    rig.hello();
    rig.dispatch("RESUMED", 10, &json!({}));
    assert_eq!(rig.machine.stage(), ShardState::Ready);
    assert!(!rig.said(&Output::RequestPermit));
}

#[test]
fn a_ready_that_comes_again_starts_no_session() {
    let again = json!({"session_id": "s1", "resume_gateway_url": "wss://r", "user": {"id": "5"}});
    let mut rig = Rig::ready();
    rig.dispatch("MESSAGE_CREATE", 2, &json!({}));
    rig.dispatch("READY", 1, &again);
    rig.dispatch("MESSAGE_CREATE", 2, &json!({}));
    assert_eq!((rig.delivered(), rig.lost_session()), (vec![2], false));
    rig.payload(&json!({"op": 7}));
    rig.reconnect();
    rig.input(Input::Connected);
    rig.hello();
    rig.dispatch("READY", 1, &again);
    assert_eq!(
        (rig.machine.stage(), rig.delivered(), rig.lost_session()),
        (ShardState::Resuming, vec![], false)
    );

    // If no event of a stored session has been handled, READY is its first missed event.
    let stored = Session::new("s1".into(), 0, "wss://r".into(), shard(), 5);
    let mut rig = Rig::new(Some(stored));
    rig.input(Input::Connected);
    rig.hello();
    rig.dispatch("READY", 1, &again);
    rig.dispatch("MESSAGE_CREATE", 2, &json!({}));
    rig.dispatch("RESUMED", 2, &json!({}));
    assert_eq!(
        (rig.delivered(), rig.lost_session()),
        (vec![1, 2, 2], false)
    );
}

#[test]
fn a_new_session_begins_without_a_sequence() {
    let mut rig = Rig::ready();
    rig.dispatch("MESSAGE_CREATE", 900, &json!({}));
    rig.payload(&json!({"op": 9, "d": false}));
    rig.reconnect();
    rig.input(Input::Connected);
    rig.hello();
    rig.input(Input::Permit);
    rig.sent();
    rig.payload(&json!({"op": 1, "d": null}));
    assert_eq!(
        rig.sent(),
        [(1, Value::Null)],
        "the old session's is forgotten"
    );
    rig.dispatch(
        "READY",
        1,
        &json!({"session_id": "s2", "resume_gateway_url": "", "user": {"id": "5"}}),
    );
    rig.dispatch("MESSAGE_CREATE", 2, &json!({}));
    assert_eq!(
        rig.delivered(),
        [1, 2],
        "no event of the new session is dropped"
    );
}

#[test]
fn events_of_an_old_connection_are_ignored() {
    let mut rig = Rig::ready();
    rig.payload(&json!({"op": 7}));
    rig.said.clear();
    for sequence in [2, 3] {
        rig.dispatch("MESSAGE_CREATE", sequence, &json!({}));
    }
    assert_eq!(
        (rig.delivered(), rig.machine.session().unwrap().sequence),
        (Vec::new(), 1),
        "they arrive with the replay"
    );
}

#[test]
fn op_9_false_to_a_resume_gives_up_the_session() {
    let mut rig = Rig::new(Some(session(10)));
    rig.input(Input::Connected);
    rig.hello();
    rig.said.clear();
    rig.payload(&json!({"op": 9, "d": false}));
    assert!(rig.lost_session());
    let (target, pause) = rig.reconnect();
    assert_eq!(target, Endpoint::Main);
    assert!((1.0..=5.0).contains(&pause.as_secs_f64()), "{pause:?}");
    rig.input(Input::Connected);
    rig.hello();
    assert_eq!(rig.machine.stage(), ShardState::Queued);
    assert_eq!(rig.machine.session(), None);
}

#[test]
fn op_9_true_keeps_the_session() {
    let mut rig = Rig::ready();
    rig.payload(&json!({"op": 9, "d": true}));
    assert!(!rig.lost_session());
    assert_eq!(rig.reconnect().0, Endpoint::Resume("wss://r".into()));
}

#[test]
fn op_9_again_and_again_waits_longer_each_time() {
    let mut rig = Rig::new(None);
    let mut pauses = Vec::new();
    for _ in 0..12 {
        rig.input(Input::Connected);
        rig.hello();
        rig.input(Input::Permit);
        rig.said.clear();
        rig.payload(&json!({"op": 9, "d": false}));
        pauses.push(rig.reconnect().1.as_secs());
    }
    assert!(
        pauses[0] <= 5 && pauses[4] > 20 && pauses[11] > 400,
        "{pauses:?}"
    );
}

#[test]
fn close_codes_decide_what_follows() {
    for (code, resumes) in [
        (None, true),
        (Some(1000), true),
        (Some(4000), true),
        (Some(4008), true),
        (Some(4999), true),
    ]
    .into_iter()
    .chain([4003, 4007, 4009].map(|code| (Some(code), false)))
    {
        let mut rig = Rig::ready();
        rig.input(Input::Closed(code));
        assert_eq!(rig.lost_session(), !resumes, "{code:?}");
        let target = if resumes {
            Endpoint::Resume("wss://r".into())
        } else {
            Endpoint::Main
        };
        assert_eq!(rig.reconnect().0, target, "{code:?}");
    }
}

#[test]
fn fatal_codes_stop_in_every_state_and_stay() {
    let reason = StopReason::Discord(CloseCode(4014));
    let stages: [fn(&mut Rig); 5] = [
        |_| {},
        |rig| rig.input(Input::Connected),
        |rig| {
            rig.input(Input::Connected);
            rig.hello();
        },
        |rig| {
            rig.input(Input::Connected);
            rig.hello();
            rig.input(Input::Permit);
        },
        |rig| *rig = Rig::ready(),
    ];
    for (at, stage) in stages.into_iter().enumerate() {
        let mut rig = Rig::new(None);
        stage(&mut rig);
        rig.input(Input::Closed(Some(4014)));
        assert!(rig.said(&Output::Stop(reason)), "stage {at}");
        rig.input(Input::Permit);
        rig.input(Input::Connected);
        rig.input(Input::Stop(StopReason::Closed));
        assert_eq!(
            rig.machine.poll(rig.now + Duration::from_secs(1000)),
            Output::Stop(reason)
        );
    }
}

#[test]
fn close_ends_the_session_and_suspend_keeps_it() {
    let mut rig = Rig::ready();
    rig.input(Input::Stop(StopReason::Closed));
    assert!(
        rig.said(&Output::Disconnect(Some(1000))) && rig.said(&Output::Stop(StopReason::Closed))
    );
    assert_eq!(rig.machine.session(), None);
    let mut rig = Rig::ready();
    rig.input(Input::Stop(StopReason::Suspended));
    assert!(rig.said(&Output::Disconnect(Some(4000))));
    assert_eq!(rig.machine.session().unwrap().id, "s1");

    // Between two connections there is nothing to close.
    let mut rig = Rig::ready();
    rig.input(Input::Failed(Disconnect::ConnectionLost));
    rig.input(Input::Failed(Disconnect::ConnectFailed));
    rig.said.clear();
    rig.input(Input::Stop(StopReason::Suspended));
    assert_eq!(rig.said, [Output::Stop(StopReason::Suspended)]);
    assert_eq!(rig.machine.session().unwrap().id, "s1");
}

#[test]
fn a_session_with_other_intents_is_reported_as_lost_and_a_new_one_started() {
    // A stored session.
    let stored = session(5).with_intents(Intents::GUILD_MESSAGES);
    let mut rig = Rig::new(Some(stored.clone()));
    assert!(rig.said(&Output::Report(Notice::SessionLost(stored))));
    assert!(rig.said(&Output::Connect(Endpoint::Main)));
    rig.input(Input::Connected);
    rig.hello();
    assert_eq!(rig.machine.stage(), ShardState::Queued);

    // A live session, whose shard is restarted with other intents: it is ended.
    let mut rig = Rig::ready();
    let identity = Identity {
        intents: Intents::GUILD_MESSAGES,
        ..rig.machine.identity.clone()
    };
    rig.input(Input::Restart(Box::new(identity)));
    assert_eq!(rig.said[0], Output::Disconnect(Some(1000)));
    assert!(rig.lost_session());
    assert!(rig.said(&Output::Connect(Endpoint::Main)));

    // A session whose intents are not known is resumed.
    let rig = Rig::new(Some(session(5)));
    assert!(rig.machine.session().is_some());
}

#[test]
fn what_came_while_the_process_was_frozen_is_read_before_anything_is_missed() {
    let frozen = Duration::from_secs(600);
    let mut rig = Rig::new(None);
    rig.now += frozen;
    rig.machine.handle(rig.now, Input::Connected);
    rig.now += frozen;
    let hello = json!({"op": 10, "d": {"heartbeat_interval": INTERVAL_MS}});
    let read = |rig: &mut Rig, payload: &Value| {
        // The machine is polled before it has read.
        let _ = rig.machine.poll(rig.now);
        rig.machine
            .handle(rig.now, Input::Payload(payload.to_string().into()));
    };

    read(&mut rig, &hello);
    assert_eq!(rig.machine.stage(), ShardState::Queued);
    rig.input(Input::Permit);
    rig.now += frozen;
    let data = json!({"session_id": "s1", "user": {"id": "5"}});
    read(&mut rig, &json!({"op": 11}));
    read(&mut rig, &json!({"op": 0, "t": "READY", "s": 1, "d": data}));
    assert_eq!(rig.machine.stage(), ShardState::Ready);
    assert!(!rig.sent().is_empty());
}

#[test]
fn ready_needs_its_session_alone() {
    for (url, user) in [
        (json!(null), json!({"id": 5})),
        (json!(7), json!([])),
        (json!({}), json!("x")),
    ] {
        let mut rig = Rig::new(None);
        rig.input(Input::Connected);
        rig.hello();
        rig.input(Input::Permit);
        let data = json!({"session_id": "s1", "resume_gateway_url": url, "user": user});
        rig.dispatch("READY", 1, &data);
        assert_eq!(rig.machine.stage(), ShardState::Ready, "{data}");
        rig.said.clear();
        rig.input(Input::Closed(None));
        assert_eq!(rig.reconnect().0, Endpoint::Main, "{data}");
    }
}

#[test]
fn a_limiter_that_fails_is_asked_again_after_a_pause_that_grows() {
    let mut rig = Rig::new(None);
    rig.input(Input::Connected);
    rig.hello();

    let mut pauses = Vec::new();
    for _ in 0..4 {
        rig.said.clear();
        let failed_at = rig.now;
        rig.input(Input::NoPermit);
        while !rig.said(&Output::RequestPermit) {
            rig.sleep();
            rig.payload(&json!({"op": 11}));
        }
        pauses.push(rig.now - failed_at);
    }

    assert_eq!(
        rig.machine.stage(),
        ShardState::Queued,
        "it heartbeats meanwhile"
    );
    assert!(pauses[0] >= Duration::from_millis(500), "{pauses:?}");
    assert!(pauses[3] > 2 * pauses[0], "{pauses:?}");
}

#[test]
fn a_connection_that_was_ready_comes_back_soon() {
    let back = |rig: &mut Rig, loss: &dyn Fn(&mut Rig)| {
        rig.said.clear();
        loss(rig);
        let pause = rig.reconnect().1;
        rig.input(Input::Connected);
        rig.hello();
        rig.dispatch("RESUMED", 1, &json!({}));
        pause
    };

    let mut rig = Rig::ready();
    for _ in 0..20 {
        let pause = back(&mut rig, &|rig| rig.payload(&json!({"op": 7})));
        assert_eq!(pause, Duration::ZERO, "Discord requested it");
    }

    let cut = |rig: &mut Rig| rig.input(Input::Closed(None));
    let pauses: Vec<_> = (0..20).map(|_| back(&mut rig, &cut)).collect();
    assert!(pauses.iter().all(|pause| *pause <= Duration::from_secs(5)));
    assert!(pauses[19] > Duration::from_secs(2), "but not at once");

    // The shard sent something wrong, and would send it again.
    for code in [4001, 4002, 4005, 4008] {
        let mut rig = Rig::ready();
        let close = |rig: &mut Rig| rig.input(Input::Closed(Some(code)));
        let pauses: Vec<_> = (0..10).map(|_| back(&mut rig, &close)).collect();
        assert!(pauses[9] >= Duration::from_secs(30), "{code}: {pauses:?}");
    }
}

#[test]
fn sessions_that_last_a_little_cannot_burn_the_day() {
    // Each session lasts longer than `stable_after`, and costs an IDENTIFY.
    let mut rig = Rig::new(None);
    let start = rig.now;
    rig.machine = rig.machine.with_session_starts(start, 1000);

    let mut identifies = 0;
    while rig.now < start + Duration::from_secs(24 * 60 * 60) {
        rig.input(Input::Connected);
        rig.hello();
        rig.input(Input::Permit);
        identifies += 1;
        rig.dispatch("READY", 1, &json!({"session_id": "s", "user": {"id": "5"}}));
        rig.now += Duration::from_secs(11);
        rig.said.clear();
        rig.input(Input::Closed(Some(4009)));
        rig.reconnect();
    }
    // The shard is one of two, and so has half of the 1000 a day.
    assert!(identifies <= 501, "{identifies}");
}

#[test]
fn a_stop_before_the_connection_is_opened_opens_none() {
    let mut rig = Rig::ready();
    rig.said.clear();
    rig.machine.handle(rig.now, Input::Closed(None));
    loop {
        match rig.machine.poll(rig.now) {
            Output::Report(Notice::Connecting { .. }) => break,
            Output::Wait(_) => rig.now += Duration::from_secs(1),
            _ => {}
        }
    }
    rig.input(Input::Stop(StopReason::Suspended));
    let connects = |output: &Output| matches!(output, Output::Connect(_));
    assert!(!rig.said.iter().any(connects), "{:?}", rig.said);
}

#[test]
fn a_request_that_was_not_sent_may_go_out_at_once() {
    let mut rig = Rig::ready();
    let all = || Command::request_members(1, &MemberQuery::all(), None).unwrap();
    rig.input(Input::Command(all()));
    assert!(rig.said(&Output::SendCommand(all())));
    rig.said.clear();
    rig.input(Input::Unsent(all()));
    assert!(rig.said(&Output::SendCommand(all())), "{:?}", rig.said);
}

#[test]
fn nobody_waits_forever() {
    let mut rig = Rig::new(None);
    assert_eq!(rig.sleep(), Timer::Connect);
    assert_eq!(
        rig.machine.stage(),
        ShardState::Connecting,
        "the first retry is at once"
    );
    rig.input(Input::Connected);
    assert_eq!(rig.sleep(), Timer::Hello);
    assert_eq!(rig.machine.stage(), ShardState::Waiting);
    assert_eq!(rig.sleep(), Timer::Reconnect);
    rig.input(Input::Connected);
    rig.hello();
    rig.input(Input::Permit);

    while rig.sleep() != Timer::Answer {
        rig.payload(&json!({"op": 11}));
    }

    let answer = Disconnect::ReadyTimeout;
    let disconnected = |output: &Output| matches!(output, Output::Report(Notice::Disconnected { reason, .. }) if *reason == answer);
    assert!(rig.said.iter().any(disconnected));
}

#[test]
fn a_replay_extends_its_deadline_and_a_stall_too() {
    let mut rig = Rig::new(Some(session(1)));
    rig.input(Input::Connected);
    rig.hello();
    for sequence in 2..6 {
        rig.now += Duration::from_secs(50);
        rig.payload(&json!({"op": 11}));
        rig.dispatch("MESSAGE_CREATE", sequence, &json!({}));
        rig.now += Duration::from_secs(50);
        rig.input(Input::Stalled);
    }
    assert_eq!(rig.machine.stage(), ShardState::Resuming);
}

#[test]
fn a_dead_resume_url_gives_way_to_the_main_one() {
    let mut rig = Rig::ready();
    rig.input(Input::Closed(None));
    for _ in 0..3 {
        assert_eq!(rig.reconnect().0, Endpoint::Resume("wss://r".into()));
        rig.input(Input::Failed(Disconnect::ConnectFailed));
    }
    assert_eq!(rig.reconnect().0, Endpoint::Main);
    rig.input(Input::Connected);
    rig.said.clear();
    rig.hello();
    assert_eq!(rig.sent()[0].0, 6, "still resuming");
}

#[test]
fn failures_are_forgotten_only_after_a_stable_connection() {
    let mut rig = Rig::ready();
    let mut pauses = Vec::new();
    for _ in 0..4 {
        rig.input(Input::Closed(None));
        pauses.push(rig.reconnect().1);
        rig.input(Input::Connected);
        rig.hello();
        rig.dispatch("RESUMED", 1, &json!({}));
    }
    assert_eq!(pauses[0], Duration::ZERO);
    assert!(pauses[1] < pauses[2] && pauses[2] < pauses[3], "{pauses:?}");
    rig.now += Timing::default().stable_after;
    rig.input(Input::Closed(None));
    assert_eq!(rig.reconnect().1, Duration::ZERO);
}

#[test]
fn a_foreign_session_is_not_used() {
    let mut foreign = session(3);
    foreign.shard = ShardId::new(1, 4).unwrap();
    let rig = Rig::new(Some(foreign));
    assert!(rig.said(&Output::Connect(Endpoint::Main)));
    assert_eq!(rig.machine.session(), None);
}

#[test]
fn commands_wait_for_ready_and_for_resumed() {
    let mut rig = Rig::new(None);
    rig.input(Input::Command(command(4)));
    rig.input(Input::Connected);
    rig.hello();
    rig.input(Input::Permit);
    assert_eq!(rig.sent().last().unwrap().0, 2);
    rig.dispatch(
        "READY",
        1,
        &json!({"session_id": "s", "resume_gateway_url": "", "user": {"id": "5"}}),
    );
    assert_eq!(rig.sent(), [(4, json!({}))]);
    rig.payload(&json!({"op": 7}));
    rig.input(Input::Command(command(8)));
    rig.input(Input::Unsent(command(4)));
    rig.reconnect();
    rig.input(Input::Connected);
    rig.hello();
    assert_eq!(rig.sent()[0].0, 6);
    rig.dispatch("RESUMED", 1, &json!({}));
    let ops: Vec<u64> = rig.sent().into_iter().map(|(op, _)| op).collect();
    assert_eq!(ops, [4, 8], "what a cut connection did not send goes first");
}

#[test]
fn the_budget_holds_commands_but_not_heartbeats() {
    let mut rig = Rig::ready();
    for _ in 0..200 {
        rig.input(Input::Command(command(31)));
    }
    let burst = rig.sent().len();
    assert!((100..120).contains(&burst), "{burst}");
    let mut waits = Vec::new();
    while rig.machine.queued_commands() > 0 {
        waits.push(rig.sleep());
        rig.payload(&json!({"op": 11}));
    }
    assert!(
        waits.contains(&Timer::Heartbeat) && waits.contains(&Timer::SendBudget),
        "{waits:?}"
    );
}

#[test]
fn each_connection_has_a_budget_of_its_own() {
    let mut rig = Rig::ready();
    for _ in 0..150 {
        rig.input(Input::Command(command(31)));
    }
    let burst = rig.sent().len();
    rig.payload(&json!({"op": 7}));
    rig.reconnect();
    rig.input(Input::Connected);
    rig.hello();
    rig.said.clear();
    rig.dispatch("RESUMED", 1, &json!({}));
    assert_eq!(rig.sent().len(), 150 - burst, "the rest goes out at once");
}

fn presence(since: u64) -> Command {
    let data = json!({"since": since, "activities": [], "status": "online", "afk": false});
    Command::raw(&json!({"op": 3, "d": data})).unwrap()
}

#[test]
fn of_presences_the_newest_waits_and_lets_others_pass() {
    let mut rig = Rig::ready();
    for since in 1..=8 {
        rig.input(Input::Command(presence(since)));
    }

    rig.input(Input::Command(command(4)));
    let ops: Vec<u64> = rig.sent().into_iter().map(|(op, _)| op).collect();
    assert_eq!(ops, [3, 3, 3, 3, 3, 4]);
    while rig.machine.has_queued_presence() {
        rig.sleep();
    }

    let sent = rig.sent().into_iter().filter(|(op, _)| *op == 3);
    assert_eq!(
        sent.map(|(_, data)| data["since"].as_u64().unwrap())
            .collect::<Vec<_>>(),
        [8],
        "no earlier presence is sent"
    );
}

#[test]
fn the_presence_that_was_set_last_is_in_the_next_identify() {
    let mut rig = Rig::ready();
    rig.input(Input::Command(presence(1)));
    rig.input(Input::Closed(Some(4009)));
    rig.input(Input::Command(presence(2)));

    // The presence that the old connection did not send is older.
    rig.input(Input::Unsent(presence(1)));
    rig.reconnect();
    rig.input(Input::Connected);
    rig.hello();
    rig.said.clear();
    rig.input(Input::Permit);
    let (op, identify) = rig.sent().remove(0);
    assert_eq!((op, &identify["presence"]["since"]), (2, &json!(2)));
    rig.said.clear();
    rig.dispatch("READY", 1, &json!({"session_id": "s2"}));
    assert_eq!(rig.sent(), [], "it need not be sent again");
    rig.payload(&json!({"op": 7}));
    rig.input(Input::Unsent(presence(2)));
    rig.reconnect();
    rig.input(Input::Connected);
    rig.hello();
    rig.said.clear();
    rig.dispatch("RESUMED", 1, &json!({}));
    assert_eq!(
        rig.sent()[0].1["since"],
        2,
        "a resumed session has no IDENTIFY to send it"
    );
}

#[test]
fn chunks_go_to_the_request_that_they_answer() {
    let mut rig = Rig::ready();
    rig.input(request(4));
    let nonce = rig.sent()[0].1["nonce"].clone();
    let chunk =
        |nonce: &Value, index| json!({"nonce": nonce, "chunk_index": index, "chunk_count": 2});

    rig.dispatch("GUILD_MEMBERS_CHUNK", 2, &chunk(&nonce, 1));
    rig.dispatch("GUILD_MEMBERS_CHUNK", 3, &chunk(&json!("the user's"), 0));
    let expected = ChunkOf {
        request: 4,
        index: 1,
        count: 2,
    };
    assert!(matches!(&rig.said[0], Output::DeliverMembers(chunk, _) if *chunk == expected));
    assert_eq!(rig.delivered(), [3]);
    rig.said.clear();

    rig.input(Input::CancelMembers(4));
    rig.dispatch("GUILD_MEMBERS_CHUNK", 4, &chunk(&nonce, 0));
    assert_eq!(rig.said, [Output::Skip(4)]);
}

#[test]
fn a_request_survives_a_lost_session_unless_its_answer_had_begun() {
    let mut rig = Rig::ready();
    rig.input(request(1));
    let begun = rig.sent()[0].1["nonce"].clone();
    let data = json!({"nonce": begun, "chunk_index": 0, "chunk_count": 2});
    rig.dispatch("GUILD_MEMBERS_CHUNK", 2, &data);
    for (id, guild) in [(2, 2), (3, 3), (4, 4)] {
        let request = MemberRequest::new(id, guild, &MemberQuery::all()).unwrap();
        rig.input(Input::RequestMembers(request));
    }
    let unsent = rig.said.iter().filter_map(|output| match output {
        Output::SendCommand(command) => Some(command.clone()),
        _ => None,
    });
    let unsent: Vec<Command> = unsent.skip(1).collect();
    rig.said.clear();

    rig.payload(&json!({"op": 9, "d": false}));
    assert!(rig.said(&Output::FailMembers(1, MembersFailure::SessionLost)));
    // The connection did not send the last two, and one of them was cancelled meanwhile.
    rig.input(Input::CancelMembers(4));
    for command in unsent.into_iter().rev() {
        rig.input(Input::Unsent(command));
    }

    rig.reconnect();
    rig.input(Input::Connected);
    rig.hello();
    rig.input(Input::Permit);
    rig.said.clear();
    let ready = json!({"session_id": "s2", "resume_gateway_url": "wss://r", "user": {"id": "5"}});
    rig.dispatch("READY", 1, &ready);
    let sent = rig.sent().into_iter();
    let asked: Vec<_> = sent.map(|(_, data)| data["guild_id"].clone()).collect();
    assert_eq!(asked, ["3"], "it had not been sent, so it need not wait");
    rig.now += Duration::from_secs(31);
    rig.drive();
    let sent = rig.sent().into_iter().filter(|(op, _)| *op == 8);
    let asked: Vec<_> = sent.map(|(_, data)| data["guild_id"].clone()).collect();
    assert_eq!(asked, ["2"], "each once, and not the cancelled one");
}

#[test]
fn all_members_of_a_guild_are_asked_for_once_in_a_while() {
    let mut rig = Rig::ready();
    let ask = |nonce: &str| {
        let data = json!({"guild_id": "1", "query": "", "limit": 0, "nonce": nonce});
        Input::Command(Command::raw(&json!({"op": 8, "d": data})).unwrap())
    };
    let timing = Timing::default();
    let window = timing.members_window + timing.guard;
    let start = rig.now;
    rig.input(ask("a"));
    rig.input(request(1));
    rig.input(ask("c"));
    rig.input(Input::Command(command(31)));
    let sent = |rig: &mut Rig| {
        let sent: Vec<_> = rig
            .sent()
            .into_iter()
            .map(|(op, data)| (op, data["nonce"].clone()))
            .collect();
        rig.said.clear();
        sent
    };

    assert_eq!(
        sent(&mut rig),
        [(8, json!("a")), (31, json!(null))],
        "other commands are not delayed"
    );

    // A new connection does not change what Discord counts.
    rig.payload(&json!({"op": 7}));
    rig.reconnect();
    rig.input(Input::Connected);
    rig.hello();
    rig.dispatch("RESUMED", 1, &json!({}));
    rig.said.clear();
    rig.input(Input::CancelMembers(1));
    rig.now = start + window;
    rig.drive();
    assert_eq!(
        sent(&mut rig).last(),
        Some(&(8, json!("c"))),
        "the request in between was cancelled"
    );
    rig.input(ask("d"));
    let meta = json!({"guild_id": "1", "nonce": "c"});
    rig.dispatch(
        "RATE_LIMITED",
        2,
        &json!({"opcode": 8, "retry_after": 45.5, "meta": meta}),
    );
    let limited = rig.now;
    rig.now = limited + Duration::from_secs(45);
    rig.payload(&json!({"op": 11}));
    assert!(sent(&mut rig).iter().all(|(op, _)| *op != 8));
    rig.now = limited + Duration::from_millis(45_500) + timing.guard;
    rig.drive();
    assert!(sent(&mut rig).contains(&(8, json!("d"))));

    for odd in [
        json!({}),
        json!({"opcode": 8, "retry_after": -1, "meta": {"guild_id": "x"}}),
        json!(null),
    ] {
        rig.dispatch(
            "RATE_LIMITED",
            rig.machine.session().unwrap().sequence + 1,
            &odd,
        );
    }

    assert_eq!(
        rig.machine.stage(),
        ShardState::Ready,
        "a RATE_LIMITED that it cannot read is an ordinary event"
    );
}

#[test]
fn malformed_payloads_reconnect_and_resume() {
    for bytes in [
        &b"not json"[..],
        b"{}",
        br#"{"op":"0"}"#,
        br#"{"op":0,"d":{}}"#,
        br#"{"op":9,"d":"maybe"}"#,
        br#"{"op":10,"d":{}}"#,
        br#"{"op":0,"t":"READY","s":2,"d":{"resume_gateway_url":"wss://r"}}"#,
        br#"{"op":0,"t":"READY","s":2,"d":{"session_id":"","resume_gateway_url":"wss://r"}}"#,
        b"\xff\xff",
    ] {
        let mut rig = Rig::ready();
        rig.input(Input::Payload(Bytes::copy_from_slice(bytes)));
        assert!(
            rig.said(&Output::Disconnect(Some(RESUMABLE))),
            "{}",
            String::from_utf8_lossy(bytes)
        );
        assert_eq!(rig.reconnect().0, Endpoint::Resume("wss://r".into()));
    }
}

#[test]
fn impossible_heartbeat_intervals_are_malformed() {
    for interval in [
        json!(0),
        json!(1_u64 << 63),
        json!(u64::MAX),
        json!(100),
        json!(-1),
        json!("41250"),
        Value::Null,
    ] {
        let mut rig = Rig::new(None);
        rig.input(Input::Connected);
        rig.payload(&json!({"op": 10, "d": {"heartbeat_interval": interval}}));
        assert!(rig.said(&Output::Disconnect(Some(RESUMABLE))), "{interval}");
    }
}

#[test]
fn unknown_opcodes_and_stray_events_are_ignored() {
    let mut rig = Rig::ready();
    rig.payload(&json!({"op": 99, "d": [1]}));
    assert_eq!(rig.machine.stage(), ShardState::Ready);
    let mut rig = Rig::new(None);
    rig.input(Input::Connected);
    rig.hello();
    rig.dispatch("MESSAGE_CREATE", 5, &json!({}));
    rig.dispatch("RESUMED", 5, &json!({}));
    assert_eq!(
        (rig.machine.stage(), rig.delivered()),
        (ShardState::Queued, Vec::new())
    );
}

#[test]
fn an_unasked_ready_is_the_session_that_lives_now() {
    let mut rig = Rig::new(Some(session(10)));
    rig.input(Input::Connected);
    rig.hello();
    rig.dispatch(
        "READY",
        1,
        &json!({"session_id": "new", "resume_gateway_url": "", "user": {"id": "5"}}),
    );
    assert!(rig.lost_session());
    let session = rig.machine.session().unwrap();
    assert_eq!((session.id.as_str(), session.sequence), ("new", 1));
}

/// Something that a network or a server may do.
#[derive(Clone, Debug)]
enum Step {
    Connected,
    Hello(u64),
    Dispatch(&'static str, u64),
    Op(u64, Option<bool>),
    /// Discord requests this many heartbeats.
    Requests(usize),
    Bytes(Vec<u8>),
    Odd(&'static str),
    Closed(Option<u16>),
    Failed,
    Permit,
    Drained,
    Stalled,
    Command(u64),
    Stop(StopReason),
    /// Nothing happens for this many milliseconds.
    Pass(u64),
    /// Nothing happens until the machine's own deadline.
    Sleep,
}

/// JSON with unexpected content.
const ODD: [&str; 10] = [
    r#"{"op":9,"d":"maybe"}"#,
    r#"{"op":9,"d":{}}"#,
    r#"{"op":10}"#,
    r#"{"op":10,"d":{"heartbeat_interval":-1}}"#,
    r#"{"op":11,"d":[],"s":1}"#,
    r#"{"op":0,"t":"READY","s":1,"d":null}"#,
    r#"{"op":0,"t":"READY","s":1,"d":{"session_id":"","user":{"id":"x"}}}"#,
    r#"{"op":0,"t":"RESUMED","s":0,"d":null}"#,
    r#"{"op":0,"t":null,"s":5,"d":{}}"#,
    r#"{"op":0,"t":"X","s":18446744073709551615}"#,
];

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let name = prop_oneof![Just("READY"), Just("RESUMED"), Just("MESSAGE_CREATE")];
    let code = prop_oneof![3 => Just(None), 2 => (4000..4010_u16).prop_map(Some), 1 => any::<u16>().prop_map(Some)];
    let step = prop_oneof![
        6 => Just(Step::Connected),
        6 => prop_oneof![4 => 1000..60_000_u64, 1 => any::<u64>()].prop_map(Step::Hello),
        8 => (name, 0..40_u64).prop_map(|(name, sequence)| Step::Dispatch(name, sequence)),
        6 => (prop_oneof![Just(1_u64), Just(7), Just(9), Just(11), any::<u64>()], any::<Option<bool>>())
            .prop_map(|(op, data)| Step::Op(op, data)),
        1 => (0..90_usize).prop_map(Step::Requests),
        1 => prop::collection::vec(any::<u8>(), 0..30).prop_map(Step::Bytes),
        1 => prop::sample::select(&ODD[..]).prop_map(Step::Odd),
        1 => code.prop_map(Step::Closed),
        1 => Just(Step::Failed),
        6 => Just(Step::Permit),
        4 => Just(Step::Drained),
        1 => Just(Step::Stalled),
        6 => prop_oneof![Just(3_u64), Just(4), Just(8)].prop_map(Step::Command),
        4 => (0..90_000_u64).prop_map(Step::Pass),
        8 => Just(Step::Sleep),
    ];
    let stop =
        prop_oneof![Just(StopReason::Closed), Just(StopReason::Suspended)].prop_map(Step::Stop);
    (prop::collection::vec(step, 1..120), prop::option::of(stop)).prop_map(|(mut steps, stop)| {
        steps.extend(stop);
        steps
    })
}

/// What an observer of the wire sees on one connection.
#[derive(Default)]
struct Wire {
    sends: Vec<Instant>,
    presences: Vec<Instant>,
    beat_due: Option<Instant>,
}

/// Checks every output of the machine against Discord's rules.
struct Observer {
    rig: Rig,
    wire: Wire,
    permits: usize,
    interval: Duration,
    /// When all members of the guild were last requested.
    members: Option<Instant>,
    /// The last sequence delivered of the current session.
    last: u64,
}

impl Observer {
    fn check(&mut self) -> Result<(), TestCaseError> {
        for output in std::mem::take(&mut self.rig.said) {
            let now = self.rig.now;
            match output {
                Output::Connect(_) | Output::Disconnect(_) => self.wire = Wire::default(),
                Output::RequestPermit => self.permits = 0,
                Output::Identify(_) => {
                    prop_assert!(self.permits > 0, "an IDENTIFY without a permit");
                    self.permits = 0;
                    self.sends(now, false)?;
                }
                Output::Send(json) => {
                    self.sends(now, false)?;
                    if json.contains(r#""op":1"#)
                        && let Some(due) = self.wire.beat_due
                        && now >= due
                    {
                        self.wire.beat_due =
                            Some((due + self.interval).max(now + self.interval / 2));
                    }
                }
                Output::Resume(_) => self.sends(now, false)?,
                Output::SendCommand(command) => {
                    self.sends(now, command.is_presence())?;
                    if command.op() == 8 {
                        let last = self.members.replace(now);
                        let free = last.is_none_or(|last| now >= last + Duration::from_secs(30));
                        prop_assert!(free, "all members of a guild twice in 30 s");
                    }
                }
                Output::Deliver(payload) => {
                    let sequence = payload.sequence().unwrap();
                    match payload.name() {
                        Some(EventName::Ready) => self.last = sequence,
                        Some(EventName::Resumed) => {}
                        _ => prop_assert!(sequence > self.last, "{sequence} after {}", self.last),
                    }
                    self.last = self.last.max(sequence);
                }
                _ => {}
            }
        }

        if let Some(due) = self.wire.beat_due
            && self.rig.machine.state.link().is_some()
        {
            prop_assert!(self.rig.now < due, "a heartbeat is late");
        }
        Ok(())
    }

    fn sends(&mut self, now: Instant, is_presence: bool) -> Result<(), TestCaseError> {
        let within =
            |sent: &[Instant], window| sent.iter().filter(|at| **at + window > now).count();
        self.wire.sends.push(now);
        prop_assert!(
            within(&self.wire.sends, Duration::from_secs(60)) <= 120,
            "more than 120 in 60 s"
        );
        if is_presence {
            self.wire.presences.push(now);
            prop_assert!(
                within(&self.wire.presences, Duration::from_secs(20)) <= 5,
                "more than 5 presences in 20 s"
            );
        }
        Ok(())
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Connected => self.rig.input(Input::Connected),
            Step::Hello(interval) => {
                let greeted = self.rig.machine.stage() == ShardState::AwaitingHello;
                self.rig
                    .payload(&json!({"op": 10, "d": {"heartbeat_interval": interval}}));
                if let (true, Some(link)) = (greeted, self.rig.machine.state.link()) {
                    self.interval = Duration::from_millis(interval);
                    self.wire.beat_due = Some(link.heartbeat.next());
                }
            }
            Step::Dispatch(name, sequence) => {
                let data = json!({"session_id": "s", "resume_gateway_url": "wss://r", "user": {"id": "1"}});
                self.rig.dispatch(name, sequence, &data);
            }
            Step::Op(op, data) => self.rig.payload(&json!({"op": op, "d": data})),
            Step::Requests(count) => (0..count).for_each(|_| self.rig.payload(&json!({"op": 1}))),
            Step::Odd(payload) => self
                .rig
                .input(Input::Payload(Bytes::copy_from_slice(payload.as_bytes()))),
            Step::Bytes(bytes) => self.rig.input(Input::Payload(bytes.into())),
            Step::Closed(code) => self.rig.input(Input::Closed(code)),
            Step::Failed => self.rig.input(Input::Failed(Disconnect::ConnectionLost)),
            Step::Permit => {
                if self.rig.machine.stage() == ShardState::Queued {
                    self.permits += 1;
                }
                self.rig.input(Input::Permit);
            }
            Step::Drained => self.rig.input(Input::Drained),
            Step::Stalled => self.rig.input(Input::Stalled),
            Step::Command(op) => {
                for _ in 0..30 {
                    self.rig.input(Input::Command(command(op)));
                }
            }
            Step::Stop(reason) => self.rig.input(Input::Stop(reason)),
            Step::Pass(millis) => {
                let until = self.rig.now + Duration::from_millis(millis);
                // The driver wakes at each deadline in between.
                while let Some((at, _)) = self.rig.drive().filter(|(at, _)| *at <= until) {
                    self.rig.now = at;
                    self.rig.drive();
                    if self.check().is_err() {
                        return;
                    }
                }
                self.rig.now = until;
                self.rig.drive();
            }
            Step::Sleep => {
                if let Some((at, _)) = self.rig.drive() {
                    self.rig.now = at;
                    self.rig.drive();
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(10_000))]

    /// No input makes the machine panic, spin, identify without a permit, exceed a send limit, send
    /// a heartbeat late, or deliver events out of order.
    #[test]
    fn every_history_keeps_the_rules(steps in steps(), seed in any::<u64>(), resumes in any::<bool>()) {
        let mut rig = Rig::new(resumes.then(|| session(10)));
        rig.machine.rng = fastrand::Rng::with_seed(seed);
        let last = if resumes { 10 } else { 0 };
        let mut seen = Observer { rig, wire: Wire::default(), permits: 0, interval: INTERVAL, members: None, last };
        for step in steps {
            seen.step(step);
            seen.check()?;
        }
    }
}

#[test]
fn sessions_that_never_last_open_the_circuit() {
    let new = || {
        let mut rig = Rig::new(None);
        rig.machine = rig.machine.with_max_short_sessions(NonZeroU32::new(3));
        rig
    };

    let lose = |rig: &mut Rig, after: Duration| {
        rig.input(Input::Connected);
        rig.hello();
        rig.input(Input::Permit);
        rig.dispatch("READY", 1, &json!({"session_id": "s", "user": {"id": "5"}}));
        rig.now += after;
        rig.said.clear();
        rig.input(Input::Closed(Some(4009)));
    };

    // After three in a row, the shard stops and reports the lost session.
    let mut rig = new();
    for _ in 0..2 {
        lose(&mut rig, Duration::from_secs(9));
        rig.reconnect();
    }

    lose(&mut rig, Duration::from_secs(9));
    assert_eq!(
        rig.machine.stage(),
        ShardState::Stopped(StopReason::CircuitOpen)
    );
    assert!(rig.lost_session());

    // With a lasting session between them, or ten minutes, it continues.
    for (last, away) in [(11, 0), (9, 10 * 60)] {
        let mut rig = new();
        for _ in 0..5 {
            lose(&mut rig, Duration::from_secs(9));
            rig.reconnect();
            rig.now += Duration::from_secs(away);
            lose(&mut rig, Duration::from_secs(last));
            rig.reconnect();
        }
    }

    // Without a circuit breaker it continues indefinitely.
    let mut rig = Rig::new(None);
    for _ in 0..50 {
        lose(&mut rig, Duration::ZERO);
        rig.reconnect();
    }
}

#[test]
fn a_restart_resumes_at_once_in_every_state() {
    let restart = |rig: &mut Rig| {
        let identity = Identity {
            large_threshold: 100,
            ..rig.machine.identity.clone()
        };
        rig.said.clear();
        rig.input(Input::Restart(Box::new(identity)));
    };

    // Ready: the close code keeps the session, and the next connection resumes it.
    let mut rig = Rig::ready();
    restart(&mut rig);
    assert_eq!(rig.said[0], Output::Disconnect(Some(4000)));
    assert!(
        rig.said
            .contains(&Output::Connect(Endpoint::Resume("wss://r".into()))),
        "{:?}",
        rig.said
    );
    let told = Notice::Disconnected {
        reason: Disconnect::Restarted,
        retry_in: Duration::ZERO,
        resumable: true,
    };

    assert!(rig.said.contains(&Output::Report(told)));
    // Queued: no IDENTIFY is sent on the old connection, and the next one has the new identity.
    let mut rig = Rig::new(None);
    rig.input(Input::Connected);
    rig.hello();
    rig.machine.handle(rig.now, Input::Permit);
    restart(&mut rig);
    assert!(
        !rig.said
            .iter()
            .any(|output| matches!(output, Output::Identify(_))),
        "{:?}",
        rig.said
    );
    rig.input(Input::Connected);
    rig.hello();
    rig.said.clear();
    rig.input(Input::Permit);
    assert_eq!(rig.sent()[0].1["large_threshold"], 100);

    // In a long pause: the failures that caused it are forgotten.
    let mut rig = Rig::new(None);
    for _ in 0..10 {
        rig.input(Input::Failed(Disconnect::ConnectFailed));
        rig.reconnect();
    }

    rig.input(Input::Failed(Disconnect::ConnectFailed));
    restart(&mut rig);
    assert!(rig.said.contains(&Output::Connect(Endpoint::Main)));
    rig.input(Input::Failed(Disconnect::ConnectFailed));
    assert_eq!(rig.reconnect().1, Duration::ZERO, "the first failure again");

    // Stopped: a restart does nothing.
    rig.input(Input::Stop(StopReason::Closed));
    restart(&mut rig);
    assert!(matches!(rig.machine.stage(), ShardState::Stopped(_)));
}

/// A machine that asks for confirmation before it resumes. It has reconnected, and asked.
fn asking() -> Rig {
    let mut rig = Rig::ready();
    rig.machine.confirmation = Some(Confirmation::default());
    rig.input(Input::Closed(None));
    connect_and_ask(&mut rig);
    rig
}

fn connect_and_ask(rig: &mut Rig) {
    rig.reconnect();
    rig.input(Input::Connected);
    rig.hello();
    assert_eq!(rig.machine.stage(), ShardState::Confirming);
    assert!(rig.said.contains(&Output::RequestConfirmation));
    assert_eq!(rig.sent(), []);
}

/// Lets up to `time` pass. Returns whether RESUME is sent in it.
fn resumes_within(rig: &mut Rig, time: Duration) -> bool {
    let end = rig.now + time;
    while let Some((until, _)) = rig.drive().filter(|(until, _)| *until <= end) {
        rig.now = until;
        rig.drive();
        let sent = rig.sent();
        if sent.iter().any(|(op, _)| *op == 6) {
            return true;
        }
        if sent.iter().any(|(op, _)| *op == 1) {
            rig.payload(&json!({"op": 11}));
        }
    }
    rig.now = end;
    false
}

#[test]
fn a_session_is_resumed_once_it_is_confirmed() {
    let mut rig = asking();
    assert!(!resumes_within(&mut rig, Duration::from_secs(29)));
    rig.input(Input::Permit);
    assert_eq!(rig.sent()[0].0, 6);
    assert_eq!(rig.machine.stage(), ShardState::Resuming);

    // If the store fails, the request is retried after a pause.
    let mut rig = asking();
    rig.input(Input::NoPermit);
    assert_eq!(rig.said, []);
    while !rig.said.contains(&Output::RequestConfirmation) {
        rig.sleep();
    }
    rig.input(Input::Permit);
    assert!(rig.sent().iter().any(|(op, _)| *op == 6));
}

#[test]
fn without_an_answer_a_session_is_resumed_once() {
    let (timeout, second) = (Duration::from_secs(30), Duration::from_secs(1));
    let mut rig = asking();
    assert!(resumes_within(&mut rig, timeout));
    rig.dispatch("RESUMED", 2, &json!({}));
    rig.input(Input::Closed(None));
    connect_and_ask(&mut rig);
    assert!(
        !resumes_within(&mut rig, 10 * timeout),
        "another process may have taken it over"
    );
    // After an answer, it may again be resumed without one.
    rig.input(Input::Permit);
    rig.dispatch("RESUMED", 3, &json!({}));
    rig.input(Input::Closed(None));
    connect_and_ask(&mut rig);
    assert!(resumes_within(&mut rig, timeout));

    // The connection lasted, so no other process has taken over the session.
    rig.dispatch("RESUMED", 4, &json!({}));
    assert!(!resumes_within(&mut rig, 2 * timeout + second));
    rig.input(Input::Closed(None));
    connect_and_ask(&mut rig);
    assert!(resumes_within(&mut rig, timeout));
}

#[test]
fn a_session_that_is_lost_to_another_process_is_left_alone() {
    let mut rig = asking();
    rig.input(Input::Stop(StopReason::OwnershipLost));
    let last: Vec<_> = rig.said.iter().collect();
    let stop = Output::Stop(StopReason::OwnershipLost);
    assert_eq!(last, [&Output::Disconnect(None), &stop]);
    assert_eq!(rig.machine.session(), None);
}
