//! Connections that fail at the start of the handshake.

mod common;

use common::{PATIENCE, config, counters_of, eventually, gateway, ready};
use threadcord::sim::{Action, Answer, Fault, Gateway, Offer, ResumeUrl, Target};
use threadcord::{Compression, Config, Disconnect, ShardId, ShardManager};

const ONE: ShardId = ShardId::ONE;

#[test]
fn nothing_is_sent_where_the_first_frame_is_a_close() {
    let gateway = gateway().start().unwrap();
    for _ in 0..3 {
        gateway.inject(Target::Any, Fault::Hello(Answer::Close(4000)));
    }

    let manager = ready(config(&gateway));
    assert_eq!(counters_of(&manager, ONE).identifies, 1);
    let seen = gateway.observed();
    let connections: Vec<usize> = seen
        .records
        .iter()
        .filter(|record| record.action == Action::Connected)
        .map(|record| record.connection)
        .collect();
    assert_eq!(connections.len(), 4);

    for early in &connections[..3] {
        let sent = |action: &Action| !matches!(action, Action::Connected | Action::Closed(_));
        let sent: Vec<_> = seen
            .records
            .iter()
            .filter(|record| record.connection == *early && sent(&record.action))
            .collect();
        assert!(sent.is_empty(), "{sent:?}");
    }
}

#[test]
fn no_hello_times_out() {
    let gateway = gateway().start().unwrap();
    gateway.inject(Target::Any, Fault::Hello(Answer::Nothing));
    let mut config = config(&gateway);
    config.timing.hello_timeout = std::time::Duration::from_millis(50);
    let manager = ShardManager::start(config).unwrap();
    eventually("it is noticed", || {
        manager
            .handle()
            .shard(ONE)
            .is_some_and(|shard| shard.status().last_disconnect == Some(Disconnect::HelloTimeout))
    });
    manager.wait_ready(PATIENCE).unwrap();
}

/// A gateway that requires `zstd-stream`, and a bot that uses it.
fn particular() -> (Gateway, Config) {
    let gateway = gateway().compression(Offer::ZstdStream).start().unwrap();
    let config = config(&gateway).compression(Compression::ZstdStream);
    (gateway, config)
}

#[test]
fn a_resume_url_always_gets_version_encoding_and_compression() {
    // Without `v` the simulator closes with 4012, and without `compress` it does not upgrade.
    for tail in [
        "",
        "/",
        "/path",
        "/path/?a=b",
        "?v=9&compress=no&encoding=etf",
    ] {
        let (gateway, config) = particular();
        let url = format!("{}{tail}", gateway.url());
        gateway.inject(ONE, Fault::ResumeUrl(ResumeUrl::Url(url)));
        let manager = ready(config);
        gateway.inject(ONE, Fault::Cut);
        eventually(tail, || counters_of(&manager, ONE).resumes == 1);
        assert_eq!(
            counters_of(&manager, ONE).connects,
            2,
            "{tail}: at the first attempt"
        );
        gateway.assert_lawful();
    }
}
