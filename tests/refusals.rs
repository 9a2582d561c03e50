//! User input that cannot work is a typed error that names it, before a thread is started.

mod common;

use std::time::{Duration, Instant};

use common::{Http, config, gateway, ready};
use serde_json::{Value, json};
use threadcord::error::ErrorKind;
use threadcord::rest::Rest;
use threadcord::{
    CloseCode, Config, Error, Intents, Plan, ShardId, ShardManager, StopReason, Token,
};

fn bot(rest_url: &str) -> Config {
    Config::new(Token::new("a.b.c").unwrap(), Intents::GUILDS).rest_url(rest_url)
}

fn refused(config: Config) -> Error {
    let threads = threads();
    let error = ShardManager::start(config).expect_err("refused");
    assert!(
        threads_named("shard-").is_empty(),
        "no thread of a shard: {threads}"
    );
    error
}

fn threads() -> usize {
    threads_named("").len()
}

/// The names of this process's threads that begin so; where the system does not tell, none.
fn threads_named(prefix: &str) -> Vec<String> {
    let Ok(tasks) = std::fs::read_dir("/proc/self/task") else {
        return Vec::new();
    };
    tasks
        .filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("comm")).ok())
        .filter(|name| name.starts_with(prefix))
        .collect()
}

#[test]
fn every_user_mistake_is_a_typed_error() {
    // One after the other: the count of threads is the process's.
    settings();
    answers_of_rest();
    unreachable_hosts();
    wrong_tokens_and_intents();
    repeated_requests();
    calls();
}

fn settings() {
    let local = || bot("http://127.0.0.1:1/api/v10");
    for (config, wanted) in [
        (local().plan(Plan::Total(0)), "0 shards"),
        (
            local().plan(Plan::Ids {
                ids: vec![],
                total: 4,
            }),
            "empty",
        ),
        (
            local().plan(Plan::Ids {
                ids: vec![4],
                total: 4,
            }),
            "shard 4 of 4",
        ),
        (
            local().plan(Plan::Ids {
                ids: vec![0],
                total: 0,
            }),
            "shard 0 of 0",
        ),
        (local().large_threshold(49), "49"),
        (local().large_threshold(300), "50 to 250"),
        (local().gateway_url("http://x"), "`gateway_url` is http://x"),
        (local().rest_url("discord.com"), "`rest_url` is discord.com"),
        (local().root_certificates("no pem"), "root_certificates"),
    ] {
        let error = refused(config);
        assert!(error.to_string().contains(wanted), "{error}");
        assert_eq!(error.kind(), ErrorKind::Caller);
    }

    let mut unknown = local();
    unknown.shard.intents = Intents::from_bits_retain(1 << 33);
    assert!(matches!(refused(unknown), Error::Intents(_)));
}

fn client(url: &str) -> Rest {
    let token = Token::new("a.b.c").unwrap();
    Rest::builder(token).base_url(url).build().unwrap()
}

fn answers_of_rest() {
    let limits = r#""session_start_limit":{"total":1000,"remaining":999,"reset_after":0,"max_concurrency":1}"#;
    let no_shards = format!(r#"{{"url":"ws://x","shards":0,{limits}}}"#);
    let no_keys = no_shards
        .replace(r#""shards":0"#, r#""shards":1"#)
        .replace("concurrency\":1", "concurrency\":0");

    for (answer, wanted) in [
        (
            (401, "", r#"{"message":"401: Unauthorized","code":0}"#),
            "refused the token",
        ),
        (
            (
                200,
                "content-type: text/html\r\n",
                "<html>maintenance</html>",
            ),
            "<html>maintenance</html>",
        ),
        ((200, "", no_shards.as_str()), "GET /gateway/bot"),
        ((200, "", no_keys.as_str()), "GET /gateway/bot"),
        ((403, "", r#"{"message":"Missing Access"}"#), "403"),
        ((302, "location: http://127.0.0.1:1/\r\n", ""), "302"),
    ] {
        let http = Http::new(&[answer]);
        let error = refused(bot(&http.url));
        let chain = format!("{error} {:?}", std::error::Error::source(&error));
        assert!(chain.contains(wanted), "{chain}");
        assert_eq!(http.count(), 1, "asked once");
        match answer.0 {
            401 => assert!(matches!(error, Error::Unauthorized) && error.is_fatal()),
            200 => assert!(
                matches!(error, Error::UnexpectedAnswer { .. })
                    && error.kind() == ErrorKind::Discord
            ),
            _ => assert!(matches!(error, Error::Status(_))),
        }
    }

    let url = format!(r#"{{"url":"nonsense","shards":1,{limits}}}"#);
    let http = Http::new(&[(200, "", &url)]);
    assert!(refused(bot(&http.url)).to_string().contains("nonsense"));
}

fn unreachable_hosts() {
    let error = refused(bot("http://127.0.0.1:1/api/v10"));
    assert!(
        matches!(error, Error::Http { .. }) && error.kind() == ErrorKind::Transient,
        "{error:?}"
    );
    let error = refused(bot("https://no-such-host.invalid/api/v10"));
    assert!(matches!(error, Error::Http { .. }), "{error:?}");
}

fn wrong_tokens_and_intents() {
    let gateway = gateway()
        .allowed_intents(Intents::default())
        .start()
        .unwrap();
    assert!(matches!(
        refused(bot(&gateway.rest_url())),
        Error::Unauthorized
    ));
    let manager = ShardManager::start(config(&gateway)).unwrap();
    let Err(Error::Stopped {
        reason,
        shard: ShardId::ONE,
    }) = manager.wait_ready(common::PATIENCE)
    else {
        panic!("it cannot be ready")
    };

    assert_eq!(reason, StopReason::Discord(CloseCode(4014)));
    assert!(reason.to_string().contains("GUILD_PRESENCES"), "{reason}");
    assert_eq!(
        manager.events().count(),
        2,
        "connecting and closed, then the stream ends"
    );
}

fn repeated_requests() {
    let good = r#"{"url":"ws://x"}"#;
    let limited = r#"{"message":"You are being rate limited.","retry_after":0.05,"global":false}"#;
    let http = Http::new(&[
        (503, "", ""),
        (429, "retry-after: 9\r\n", limited),
        (200, "", good),
    ]);
    let rest = client(&http.url);
    assert_eq!(rest.gateway().unwrap(), "ws://x");
    assert_eq!(http.count(), 3);
    let http = Http::new(&[(500, "", "")]);
    let rest = client(&http.url);
    assert!(matches!(
        rest.gateway(),
        Err(Error::Status(error)) if error.status == 500
    ));
    assert_eq!(http.count(), 4, "bounded");
    assert!(
        rest.call("POST", "/channels/1/messages", Some(&json!({})))
            .is_err()
    );
    assert_eq!(
        http.count(),
        5,
        "a POST may have been carried out: it is not sent again"
    );
    let http = Http::new(&[(429, "retry-after: 3600\r\n", "")]);
    let rest = client(&http.url);
    let start = Instant::now();
    let Err(Error::RateLimited { retry_after, .. }) = rest.gateway() else {
        panic!("limited")
    };
    let an_hour = Duration::from_secs(3599)..Duration::from_secs(3601);
    assert!(an_hour.contains(&retry_after), "{retry_after:?}");
    assert!(start.elapsed() < Duration::from_secs(60));
}

fn calls() {
    let gateway = gateway().guilds(1).tls(true).start().unwrap();
    let manager = ready(config(&gateway));
    let handle = manager.handle();
    let rest = handle.rest();
    assert_eq!(
        rest.current_application().unwrap()["name"],
        "simulated application"
    );
    let channel = gateway.channel_of(gateway.guild_ids()[0]).unwrap();
    let path = format!("/channels/{channel}/messages");
    let message = rest
        .call("POST", &path, Some(&json!({"content": "hello"})))
        .unwrap();
    assert_eq!(message["content"], "hello");
    assert!(matches!(
        rest.call("GET", "/nothing", None),
        Err(Error::Status(error)) if error.status == 404
    ));

    for (method, path) in [
        ("GET", "gateway"),
        ("GET", "/a b"),
        ("G T", "/gateway"),
        ("GET", "//evil\n"),
    ] {
        assert!(
            matches!(
                rest.call(method, path, None::<&Value>),
                Err(Error::Setting { .. })
            ),
            "{method} {path}"
        );
    }

    let shown = format!(
        "{rest:?} {handle:?} {manager:?} {:?}",
        manager.handle().shards()
    );
    assert!(!shown.contains(gateway.token()));
}

#[test]
fn a_refused_connection_is_retried() {
    use std::io::{Read, Write};
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let server = std::thread::spawn(move || {
        // The gateway is unreachable for the first attempt.
        std::thread::sleep(std::time::Duration::from_millis(200));
        let listener = std::net::TcpListener::bind(address).unwrap();
        let (mut stream, _) = listener.accept().unwrap();
        let _ = stream.read(&mut [0; 4096]).unwrap();
        let answer = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{}";
        stream.write_all(answer.as_bytes()).unwrap();
    });
    let rest = client(&format!("http://{address}"));
    assert_eq!(
        rest.call("POST", "/x", None).unwrap(),
        serde_json::json!({})
    );
    server.join().unwrap();
}
