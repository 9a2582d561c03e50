//! Each fault of the simulator, one by one: how the client reacts, and that no event is lost.

mod common;

use std::time::Duration;

use common::book::Book;
use common::{COMPRESSIONS, config, counters_of, eventually, ready};
use threadcord::sim::{Fault, Gateway, Target};
use threadcord::status::ShardCounters;
use threadcord::{Compression, Config, ShardId, ShardManager, ShardState};

const ONE: ShardId = ShardId::ONE;

fn fault(word: &str) -> Fault {
    word.parse().unwrap()
}

fn gateway(tls: bool) -> Gateway {
    let gateway = common::gateway().tls(tls).guilds(2);
    gateway.keep_dispatches(true).start().unwrap()
}

/// A gateway with half a second between heartbeats, so that silence is soon noticed.
fn hectic(tls: bool) -> Gateway {
    let gateway = common::gateway()
        .heartbeat_interval(Duration::from_secs(50))
        .tls(tls)
        .guilds(2);
    gateway.keep_dispatches(true).start().unwrap()
}

fn bot(gateway: &Gateway, compression: Compression) -> Config {
    config(gateway)
        .compression(compression)
        .max_payload(64 << 10)
}

/// A configuration that does not wait long for a peer that hangs.
fn hasty(gateway: &Gateway, compression: Compression) -> Config {
    let mut config = bot(gateway, compression);
    let timing = &mut config.timing;
    for timeout in [
        &mut timing.connect_timeout,
        &mut timing.hello_timeout,
        &mut timing.answer_timeout,
    ] {
        *timeout = Duration::from_millis(500);
    }
    config
}

/// Whether a fault has struck.
fn struck(gateway: &Gateway, fault: &Fault) -> bool {
    gateway
        .observed()
        .faults
        .iter()
        .any(|strike| strike.fault == *fault)
}

/// Sends events before, during and after a fault of a ready shard, and checks that every event is
/// accounted for. Returns the shard's counters at the end.
fn through(
    gateway: &Gateway,
    manager: &ShardManager,
    happens: impl FnOnce(&Gateway),
    is_over: impl Fn(&ShardCounters) -> bool,
) -> ShardCounters {
    let events = manager.events();
    let mut book = Book::default();
    let shard = manager.handle().shard(ONE).unwrap();
    let channel = gateway.channel_of(gateway.guild_ids()[0]).unwrap();
    let chat = |count: u32| {
        for _ in 0..count {
            gateway.chat(channel, "the same again").unwrap();
        }
    };

    chat(10);
    happens(gateway);
    chat(10);
    eventually("it is over", || {
        events
            .receiver()
            .try_iter()
            .for_each(|event| book.note(&event));
        is_over(&shard.counters()) && shard.status().state == ShardState::Ready
    });
    chat(10);
    eventually("all has arrived", || {
        events
            .receiver()
            .try_iter()
            .for_each(|event| book.note(&event));
        book.outstanding(gateway) == 0
    });
    book.check(gateway);
    gateway.assert_lawful();
    assert!(!gateway.observed().faults.is_empty(), "nothing has struck");
    shard.counters()
}

#[test]
fn a_bad_connection_loses_nothing() {
    for word in ["delay=5ms+20ms", "drip=100000", "heartbeat-request"] {
        let gateway = gateway(true);
        let manager = ready(bot(&gateway, Compression::ZstdStream));
        let counters = through(
            &gateway,
            &manager,
            |gateway| gateway.inject(ONE, fault(word)),
            |_| true,
        );
        assert_eq!((counters.connects, counters.resumes), (1, 0), "{word}");
    }
}

#[test]
fn repeated_events_are_delivered_once() {
    for word in ["repeat", "out-of-order"] {
        let gateway = gateway(false);
        let manager = ready(bot(&gateway, Compression::None));
        let counters = through(
            &gateway,
            &manager,
            |gateway| gateway.inject(ONE, fault(word)),
            |_| true,
        );
        assert_eq!((counters.connects, counters.resumes), (1, 0), "{word}");
    }

    let gateway = gateway(false);
    let manager = ready(bot(&gateway, Compression::None));
    let happens = |gateway: &Gateway| {
        gateway.inject(ONE, Fault::ReplayTwice);
        gateway.inject(ONE, Fault::Cut);
    };
    through(&gateway, &manager, happens, |counters| {
        counters.resumes == 1
    });
    assert!(struck(&gateway, &Fault::ReplayTwice));
}

fn is_resumed_from(words: &[&str], gateway: impl Fn() -> Gateway) {
    for (at, word) in words.iter().enumerate() {
        let gateway = gateway();
        let manager = ready(bot(&gateway, COMPRESSIONS[at % 4]));
        let counters = through(
            &gateway,
            &manager,
            |gateway| gateway.inject(ONE, fault(word)),
            |counters| counters.resumes == 1,
        );
        assert_eq!(
            (counters.identifies, counters.sessions_lost),
            (1, 0),
            "{word}"
        );
    }
}

#[test]
fn a_connection_that_breaks_is_resumed() {
    for tls in [false, true] {
        is_resumed_from(&["cut", "reset", "cut-in-frame"], || gateway(tls));
        is_resumed_from(&["silence", "no-ack"], || hectic(tls));
    }
}

#[test]
fn a_protocol_error_closes_the_connection_and_resumes() {
    // Each with every compression.
    for word in ["garbage", "corrupt", "bomb=131072", "oversized"] {
        is_resumed_from(&[word; 4], || gateway(false));
    }
}

#[test]
fn a_peer_that_asks_for_it_is_resumed() {
    is_resumed_from(
        &[
            "reconnect",
            "invalid-session=true",
            "close=1012",
            "close=4000",
            "close=4001",
            "close=4002",
        ],
        || gateway(false),
    );
    is_resumed_from(&["close=4005", "close=4008", "close=4999"], || {
        gateway(false)
    });
}

/// The session was lost, and the shard has identified again.
fn is_replaced(counters: &ShardCounters) -> bool {
    // Only the loss is reported before the state, which is still that of the old session then.
    counters.sessions_lost == 1 && counters.identifies == 2
}

#[test]
fn a_session_that_is_ended_is_reported_and_replaced() {
    for word in [
        "invalid-session=false",
        "close=1000",
        "close=1001",
        "close=4003",
        "close=4007",
        "close=4009",
    ] {
        let gateway = gateway(false);
        let manager = ready(bot(&gateway, Compression::ZlibStream));
        let happens = |gateway: &Gateway| gateway.inject(ONE, fault(word));
        let counters = through(&gateway, &manager, happens, is_replaced);
        assert_eq!(counters.resumes, 0, "{word}");
    }
}

/// Lets a fault happen to the handshake after a cut, and returns the counters after it.
fn handshake(word: &str, tls: bool, is_over: fn(&ShardCounters) -> bool) -> ShardCounters {
    let gateway = gateway(tls);
    let manager = ready(hasty(&gateway, Compression::ZstdStream));
    let happens = |gateway: &Gateway| {
        gateway.inject(ONE, fault(word));
        gateway.inject(ONE, Fault::Cut);
    };
    let counters = through(&gateway, &manager, happens, is_over);
    assert!(
        struck(&gateway, &fault(word)) && counters.connects >= 3,
        "{word}: {counters:?}"
    );
    counters
}

#[test]
fn a_failed_handshake_is_retried() {
    for word in [
        "upgrade=refused",
        "upgrade=503",
        "upgrade=429",
        "upgrade=hang",
        "hello=nothing",
        "hello=reconnect",
        "hello=close:4000",
        "resume=nothing",
        "resume=reconnect",
        "resume=invalid-session:true",
        "resume=close:4000",
    ] {
        let counters = handshake(word, false, |counters| counters.resumes == 1);
        assert_eq!(
            (counters.identifies, counters.sessions_lost),
            (1, 0),
            "{word}"
        );
    }
}

#[test]
fn failed_tls_is_retried() {
    for word in ["tls=expired", "tls=wrong-name", "tls=untrusted", "tls=hang"] {
        let counters = handshake(word, true, |counters| counters.resumes == 1);
        assert_eq!(
            (counters.identifies, counters.sessions_lost),
            (1, 0),
            "{word}"
        );
    }
}

#[test]
fn a_resume_that_is_refused_is_a_new_session() {
    for word in [
        "resume=invalid-session:false",
        "resume=close:4007",
        "resume=close:4009",
    ] {
        let counters = handshake(word, false, is_replaced);
        assert_eq!((counters.identifies, counters.resumes), (2, 0), "{word}");
    }
}

#[test]
fn a_start_that_fails_is_no_start() {
    for word in [
        "identify=nothing",
        "identify=reconnect",
        "identify=invalid-session:false",
        "identify=close:4000",
    ] {
        let gateway = gateway(false);
        gateway.inject(Target::Any, fault(word));
        let manager = ready(hasty(&gateway, Compression::ZstdStream));
        let counters = counters_of(&manager, ONE);
        assert_eq!(
            (
                counters.identifies,
                counters.resumes,
                counters.sessions_lost
            ),
            (2, 0, 0),
            "{word}"
        );
        gateway.assert_lawful();
    }
}

#[test]
fn an_unreachable_resume_url_falls_back_to_the_main_url() {
    for (tls, word) in [
        (false, "resume-url=dead"),
        (true, "resume-url=dead"),
        (false, "resume-url=foreign"),
        (true, "resume-url=foreign"),
    ] {
        let gateway = gateway(tls);
        gateway.inject(ONE, fault(word));
        let manager = ready(bot(&gateway, Compression::ZstdStream));
        let happens = |gateway: &Gateway| gateway.inject(ONE, Fault::Cut);
        let counters = through(&gateway, &manager, happens, |counters| {
            counters.resumes == 1
        });
        assert_eq!(counters.identifies, 1, "{word}");
    }
}

#[test]
fn a_failed_rest_request_is_an_error_or_retried() {
    let gateway = gateway(false);
    let manager = ready(bot(&gateway, Compression::ZstdStream));
    let handle = manager.handle();
    let get = || handle.rest().call("GET", "/users/@me", None);

    for (word, is_tried_again) in [
        ("rest=401", false),
        ("rest=html", true),
        ("rest=500", true),
        ("rest=503", true),
        ("rest=429", true),
    ] {
        gateway.inject(Target::Any, fault(word));
        let answer = get();
        assert_eq!(answer.is_ok(), is_tried_again, "{word}: {answer:?}");
        assert!(struck(&gateway, &fault(word)));
        assert!(get().is_ok(), "{word}: the next one is well");
    }
}

#[test]
fn faults_come_by_schedule_and_by_chance() {
    let gateway = gateway(false);
    let manager = ready(bot(&gateway, Compression::ZstdStream));
    gateway.inject_after(Duration::from_millis(100), Target::All, Fault::Reconnect);
    eventually("the scheduled one strikes", || {
        struck(&gateway, &Fault::Reconnect)
    });
    gateway.random_faults(50.0, [Fault::HeartbeatRequest, Fault::Repeat]);
    let both = || struck(&gateway, &Fault::HeartbeatRequest) && struck(&gateway, &Fault::Repeat);
    through(
        &gateway,
        &manager,
        |_| eventually("both strike", both),
        |_| true,
    );
    gateway.random_faults(0.0, []);
}

#[test]
fn a_gateway_reports_invalid_settings() {
    use threadcord::sim::StartError;
    let taken = Gateway::builder().start().unwrap();
    let port: u16 = taken.url().rsplit(':').next().unwrap().parse().unwrap();
    let error = Gateway::builder().port(port).start().unwrap_err();
    assert!(
        matches!(error, StartError::PortInUse(given) if given == port),
        "{error}"
    );

    for (builder, wanted) in [
        (Gateway::builder().shards(0), "`shards` is 0; allowed: 1 to"),
        (
            Gateway::builder().max_concurrency(0),
            "`max_concurrency` is 0",
        ),
        (
            Gateway::builder().shard_multiple(0),
            "`shard_multiple` is 0",
        ),
        (Gateway::builder().members(0), "`members` is 0"),
        (Gateway::builder().guilds(2_000_000), "0 to 1000000"),
        (
            Gateway::builder().time_scale(f64::NAN),
            "`time_scale` is NaN",
        ),
        (Gateway::builder().activity(-1.0), "`activity` is -1"),
        (
            Gateway::builder().ready_delay(Duration::MAX),
            "`ready_delay` is",
        ),
        (
            Gateway::builder().heartbeat_interval(Duration::ZERO),
            "1 ms or more, once scaled",
        ),
        (
            Gateway::builder().time_scale(1e-9),
            "1 ms or more, once scaled",
        ),
        (
            Gateway::builder().mix([("TYPING", 1)]),
            "`mix` is TYPING; allowed: MESSAGE_CREATE",
        ),
    ] {
        let error = builder.start().unwrap_err().to_string();
        assert!(error.contains(wanted), "{error}");
    }
}
