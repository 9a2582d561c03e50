//! Connections through an HTTP proxy.

mod common;

use std::time::Duration;

use common::proxy::{Answer, Program, Proxy};
use common::{PATIENCE, config, counters_of, eventually, gateway, next, ready};
use threadcord::error::ProxyFailure;
use threadcord::sim::{Fault, Gateway};
use threadcord::{Disconnect, Error, EventKind, Plan, ShardId, ShardManager, sim};

const ONE: ShardId = ShardId::ONE;

fn tls() -> Gateway {
    gateway().tls(true).guilds(1).start().unwrap()
}

#[test]
fn everything_goes_through_the_proxy_by_host_name() {
    let gateway = tls();
    let proxy = Proxy::start();
    let by_name = |url: String| url.replace("127.0.0.1", "localhost");
    let config = config(&gateway)
        .rest_url(by_name(gateway.rest_url()))
        .gateway_url(by_name(gateway.url()))
        .proxy(proxy.url().replace("//", "//user:pass@"));
    let manager = ready(config);
    gateway.inject(ONE, Fault::Cut);
    eventually("it resumes", || counters_of(&manager, ONE).resumes == 1);
    manager.close();
    gateway.assert_lawful();

    let requests = proxy.requests();
    let rest = by_name(gateway.rest_url());
    let port = rest.split(':').nth(2).unwrap().split('/').next().unwrap();
    let expected = (
        format!("CONNECT localhost:{port} HTTP/1.1"),
        Some("Basic dXNlcjpwYXNz".to_owned()),
    );
    assert!(requests.len() >= 3, "REST and two connections");
    assert!(
        requests.iter().all(|request| *request == expected),
        "{requests:?}"
    );
}

#[test]
fn a_refusal_by_the_proxy_at_the_start_is_a_typed_error() {
    let gateway = tls();
    let proxy = Proxy::start();
    let start = |answer| {
        proxy.answer(answer);
        let config = config(&gateway).proxy(proxy.url());
        match ShardManager::start(config.retry_start_for(Duration::ZERO)) {
            Err(Error::Proxy(error)) => error,
            other => panic!("{answer:?}: {other:?}"),
        }
    };
    let refused = start(Answer::Text("HTTP/1.1 403 Forbidden\r\n\r\n"));
    assert!(matches!(refused.failure, ProxyFailure::Refused(403)));
    let closed = start(Answer::Text(""));
    assert!(matches!(closed.failure, ProxyFailure::Closed));
    let garbage = start(Answer::Text("SSH-2.0-OpenSSH_9.2\r\n"));
    assert!(matches!(garbage.failure, ProxyFailure::Malformed));
    let text = garbage.to_string();
    assert!(text.contains(&proxy.url()["http://".len()..]), "{text}");

    // Wrong credentials are a permanent error: there is no retry.
    proxy.answer(Answer::Text("HTTP/1.1 407 Who are you\r\n\r\n"));
    let before = proxy.requests().len();
    let patient = config(&gateway)
        .proxy(proxy.url())
        .retry_start_for(PATIENCE);
    let error = ShardManager::start(patient).unwrap_err();
    assert!(
        error.is_fatal() && error.to_string().contains("407"),
        "{error}"
    );
    assert_eq!(proxy.requests().len(), before + 1);

    // Temporary errors are retried.
    proxy.answer(Answer::Text("HTTP/1.1 503 Later\r\n\r\n"));
    let patient = config(&gateway)
        .proxy(proxy.url())
        .retry_start_for(PATIENCE);
    let starting = ShardManager::start_in_background(patient).unwrap();
    let before = proxy.requests().len();
    eventually("it asks again", || proxy.requests().len() > before + 4);
    proxy.answer(Answer::Open);
    let manager = starting.wait().unwrap();
    manager.wait_ready(PATIENCE).unwrap();
}

#[test]
fn shards_retry_until_the_proxy_opens_and_resume() {
    let gateway = tls();
    let proxy = Proxy::start();
    let mut config = config(&gateway).proxy(proxy.url());
    config.timing.connect_timeout = Duration::from_millis(400);
    let manager = ready(config);
    let events = manager.events();
    for (answer, says) in [
        (Answer::Text("HTTP/1.1 403 Forbidden\r\n\r\n"), "HTTP 403"),
        (Answer::Text("HTTP/1.1 407 Who\r\n\r\n"), "HTTP 407"),
        (Answer::Text("HTTP/1.1 2"), "without an answer"),
        (Answer::Text("\u{16}\u{3}\u{1}"), "as an HTTP proxy does"),
        (Answer::Silence, "in time"),
    ] {
        proxy.answer(answer);
        gateway.inject(ONE, Fault::Cut);
        let failed = next(&events, |event| {
            let reason = Disconnect::ConnectFailed;
            matches!(event.kind(), EventKind::Disconnected { reason: given, .. } if *given == reason)
        });
        let EventKind::Disconnected { cause, .. } = failed.kind() else {
            unreachable!("it was just seen to be one")
        };
        let cause = cause.as_deref().unwrap_or_default();
        assert!(
            cause.contains("the proxy") && cause.contains(says),
            "{cause}"
        );

        proxy.answer(Answer::Open);
        // What failed until then is not what the next round waits for.
        next(&events, |event| matches!(event.kind(), EventKind::Resumed));
    }
    assert_eq!(counters_of(&manager, ONE).identifies, 1);
}

#[test]
fn nothing_goes_through_the_proxy_unencrypted() {
    let plain = gateway().start().unwrap();
    let proxy = Proxy::start();
    let error = ShardManager::start(config(&plain).proxy(proxy.url())).unwrap_err();
    assert!(error.to_string().contains("`proxy`"), "{error}");

    // The gateway alone is plain.
    let gateway = tls();
    let config = config(&gateway)
        .gateway_url(plain.url())
        .allow_plaintext(true)
        .proxy(proxy.url());
    let error = ShardManager::start(config).unwrap_err();
    assert!(error.to_string().contains("`proxy`"), "{error}");
    assert_eq!(proxy.requests(), []);

    for wrong in ["socks5://127.0.0.1:1", "proxy", "http://user:secret@h/path"] {
        let config = common::config(&gateway).proxy(wrong);
        let error = ShardManager::start(config).unwrap_err().to_string();
        assert!(
            error.contains("`proxy`") && !error.contains("secret"),
            "{error}"
        );
    }
}

/// Fifty shards identify and resume through a proxy.
fn fifty_shards(url: &str) {
    let gateway: sim::Builder = gateway();
    let gateway = gateway.tls(true).guilds(50).max_concurrency(50);
    let gateway = gateway.start().unwrap();
    let manager = ready(config(&gateway).plan(Plan::Total(50)).proxy(url));
    manager.wait_guilds(PATIENCE).unwrap();

    for shard in manager.handle().shards() {
        gateway.inject(shard.id(), Fault::Cut);
    }

    eventually("all resume", || {
        let counters = manager.handle().status().counters;
        counters.values().all(|counters| counters.resumes >= 1)
    });
    manager.wait_ready(PATIENCE).unwrap();
    let counters = manager.handle().status().counters;
    assert!(counters.values().all(|counters| counters.identifies == 1));
    manager.close();
    gateway.assert_lawful();
}

#[test]
fn fifty_shards_behind_tinyproxy() {
    let test = "fifty_shards_behind_tinyproxy";
    let Some(proxy) = Program::tinyproxy(test) else {
        return;
    };
    let port = proxy.port();
    fifty_shards(&format!("http://user:pa55%77ord@127.0.0.1:{port}"));

    let gateway = tls();
    let config = config(&gateway).proxy(format!("http://user:wrong@127.0.0.1:{port}"));
    let error = ShardManager::start(config).unwrap_err();
    assert!(error.is_fatal(), "{error}");
    let Error::Proxy(error) = error else {
        panic!("{error}")
    };
    println!("a wrong password: {error}");
}

#[test]
fn fifty_shards_behind_squid() {
    let test = "fifty_shards_behind_squid";
    let Some(proxy) = Program::squid(test) else {
        return;
    };
    let port = proxy.port();
    fifty_shards(&format!("http://127.0.0.1:{port}"));
}
