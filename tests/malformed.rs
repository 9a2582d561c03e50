//! Invalid data from Discord causes an error in the log and a close that can be resumed, but no
//! panic, busy loop or hang.

mod common;

use common::{PATIENCE, config, counters_of, eventually, gateway, ready, status_of};
use threadcord::sim::{Action, Answer, Fault, Observed};
use threadcord::{Compression, Disconnect, ShardId, ShardManager};

const ONE: ShardId = ShardId::ONE;

fn connects(seen: &Observed) -> usize {
    seen.count(|action| *action == Action::Connected)
}

/// Whether the client closed with a code that keeps the session.
fn closed_resumably(seen: &Observed) -> bool {
    seen.records
        .iter()
        .any(|record| record.action == Action::Closed(Some(4000)))
}

#[test]
fn payloads() {
    for payload in [
        "not json",
        "",
        "{}",
        "[]",
        "null",
        r#"{"op":"0"}"#,
        r#"{"op":null,"d":null}"#,
        r#"{"op":0,"d":{}}"#,
        r#"{"op":0,"t":"READY","s":2,"d":{"resume_gateway_url":"ws://x"}}"#,
        r#"{"op":0,"t":"X","s":-1,"d":{}}"#,
        r#"{"op":10,"d":{"heartbeat_interval":0}}"#,
        r#"{"op":10,"d":{"heartbeat_interval":9223372036854775808}}"#,
    ] {
        let gateway = gateway().start().unwrap();
        let manager = ready(config(&gateway));
        gateway.send_raw(ONE, payload);
        eventually(payload, || counters_of(&manager, ONE).resumes == 1);
        let status = status_of(&manager, ONE);
        assert_eq!(
            (
                status.last_disconnect,
                counters_of(&manager, ONE).identifies
            ),
            (Some(Disconnect::Malformed), 1),
            "{payload}"
        );
        assert!(gateway.wait_for(PATIENCE, closed_resumably), "{payload}");
        gateway.assert_lawful();
    }
}

#[test]
fn greetings() {
    for greeting in [
        "not json",
        r#"{"op":10,"d":{"heartbeat_interval":0}}"#,
        r#"{"op":10,"d":{"heartbeat_interval":9223372036854775808}}"#,
        r#"{"op":10,"d":null}"#,
    ] {
        let gateway = gateway().start().unwrap();
        for _ in 0..3 {
            gateway.inject(ONE, Fault::Hello(Answer::Payload(greeting.into())));
        }
        let manager = ShardManager::start(config(&gateway)).unwrap();
        assert!(
            gateway.wait_for(PATIENCE, |seen| connects(seen) >= 3),
            "{greeting}"
        );
        manager.wait_ready(PATIENCE).unwrap();
        // With backoff: a shard that spun would have connected thousands of times.
        assert!(connects(&gateway.observed()) < 50, "{greeting}");
        gateway.assert_lawful();
    }
}

#[test]
fn ready_without_a_session() {
    let gateway = gateway().start().unwrap();
    let answer = r#"{"t":"READY","s":1,"op":0,"d":{"v":10,"user":{"id":"1"},"guilds":[]}}"#;
    gateway.inject(ONE, Fault::Identify(Answer::Payload(answer.into())));
    let manager = ready(config(&gateway));
    assert_eq!(counters_of(&manager, ONE).identifies, 2);
    gateway.assert_lawful();
}

#[test]
fn compressed_data() {
    for (compression, bytes) in [
        (Compression::Payload, &b"\x78\x9c\xab"[..]),
        (Compression::ZlibStream, b"\x00\x01\x02\x03\x00\x00\xff\xff"),
        (Compression::ZstdStream, b"\x28\xb5\x2f\xfd garbage"),
        (Compression::ZstdStream, b""),
        (Compression::None, b"binary where text is due"),
    ] {
        let gateway = gateway().start().unwrap();
        let manager = ready(config(&gateway).compression(compression));
        gateway.send_bytes(ONE, bytes);
        eventually("it resumes", || counters_of(&manager, ONE).resumes == 1);
        let status = status_of(&manager, ONE);
        assert_eq!(
            (
                status.last_disconnect,
                counters_of(&manager, ONE).identifies
            ),
            (Some(Disconnect::Malformed), 1),
            "{compression:?}"
        );
        gateway.assert_lawful();
    }
}

#[test]
fn text_instead_of_binary_is_read_as_it_is() {
    for compression in [Compression::ZlibStream, Compression::ZstdStream] {
        let gateway = gateway().start().unwrap();
        let manager = ready(config(&gateway).compression(compression));
        gateway.send_text(ONE, r#"{"op":7}"#);
        eventually("it resumes", || counters_of(&manager, ONE).resumes == 1);
        assert_eq!(
            status_of(&manager, ONE).last_disconnect,
            Some(Disconnect::ReconnectRequested)
        );
        gateway.assert_lawful();
    }
}

#[test]
fn a_payload_over_the_limit() {
    for compression in [
        Compression::None,
        Compression::ZlibStream,
        Compression::ZstdStream,
    ] {
        let gateway = gateway().guilds(1).start().unwrap();
        let manager = ready(
            config(&gateway)
                .compression(compression)
                .max_payload(64 << 10),
        );
        let bomb = format!(r#"{{"op":99,"d":"{}"}}"#, "a".repeat(1 << 20));
        gateway.send_raw(ONE, &bomb);
        eventually("it resumes", || counters_of(&manager, ONE).resumes == 1);
        assert_eq!(
            status_of(&manager, ONE).last_disconnect,
            Some(Disconnect::Malformed)
        );
        gateway.assert_lawful();
    }
}
