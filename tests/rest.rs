//! HTTP requests: their contents, their responses, and their rate limits.

mod common;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use common::{PATIENCE, config, gateway, ready};
use serde_json::{Value, json};
use threadcord::rest::{Rest, RestBuilder};
use threadcord::sim::{Action, Fault, Gateway, Observed, Target};
use threadcord::{Config, Error, Intents, Interaction, ShardManager, Timing, Token};

/// Time runs ten times as fast as at Discord.
const SCALE: f64 = 0.1;

const CHANNELS: u64 = 20;
const REQUESTS: u64 = 2_000;
const THREADS: usize = 32;

/// How many requests a route accepts in a window, and the window's length: the simulator's default.
const LIMIT: u64 = 5;
const WINDOW: Duration = Duration::from_millis(500);

/// A client of a gateway whose time has that scale.
fn client(gateway: &Gateway, scale: f64) -> Rest {
    let builder = client_with(gateway.token(), &gateway.rest_url(), scale);
    match gateway.root_certificate() {
        Some(pem) => builder.root_certificates(pem).build().unwrap(),
        None => builder.build().unwrap(),
    }
}

fn client_with(token: &str, url: &str, scale: f64) -> RestBuilder {
    let window = Duration::from_secs(1).mul_f64(scale);
    Rest::builder(Token::new(token).unwrap())
        .base_url(url)
        .rate_limit(NonZeroU32::new(50).unwrap(), window)
}

/// A client of a server that is not the simulator.
fn client_of(url: &str) -> Rest {
    let token = Token::new("a.b.c").unwrap();
    Rest::builder(token).base_url(url).build().unwrap()
}

/// Sends requests to all routes as fast as possible, on many threads. Returns how long it took.
fn load(rest: &Rest, channels: &[u64]) -> Duration {
    let next = AtomicUsize::new(0);
    let start = Instant::now();
    thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number as u64 >= REQUESTS {
                        return;
                    }
                    // Each channel has two routes.
                    let path = format!(
                        "/channels/{}/messages",
                        channels[number / 2 % channels.len()]
                    );
                    let request = match number % 2 {
                        0 => rest
                            .post(&path)
                            .json(&json!({"content": number.to_string()})),
                        _ => rest.get(&path).query("limit", 1),
                    };
                    request.timeout(PATIENCE).send().unwrap();
                }
            });
        }
    });
    start.elapsed()
}

fn busy_gateway() -> Gateway {
    let builder = Gateway::builder().guilds(u32::try_from(CHANNELS).unwrap());
    builder.time_scale(SCALE).start().unwrap()
}

fn channels(gateway: &Gateway) -> Vec<u64> {
    let guilds = gateway.guild_ids().into_iter();
    guilds
        .map(|guild| gateway.channel_of(guild).unwrap())
        .collect()
}

/// How many requests there were, and how many of them were answered with 429.
fn answers(seen: &Observed) -> (usize, usize) {
    let all = seen.count(|action| matches!(action, Action::Request { .. }));
    let limited = seen.count(|action| matches!(action, Action::Request { status: 429, .. }));
    (all, limited)
}

/// The minimum time: each route's requests end in its last window, and its windows begin with its
/// first request. The global rate limit alone would take less: 39 windows of 100 ms.
#[test]
fn a_busy_bot_is_never_limited() {
    let gateway = busy_gateway();
    let took = load(&client(&gateway, SCALE), &channels(&gateway));
    let seen = gateway.observed();
    let each = REQUESTS / (2 * CHANNELS);
    assert_eq!(
        answers(&seen),
        (usize::try_from(REQUESTS).unwrap(), 0),
        "{:?}",
        seen.warnings
    );
    let windows = u32::try_from((each - 1) / LIMIT).unwrap();
    println!(
        "{REQUESTS} requests took {took:?}; the limits force {:?}",
        WINDOW * windows
    );
}

#[test]
fn two_processes_share_the_limits() {
    let gateway = busy_gateway();
    let channels = channels(&gateway);
    let names: Vec<String> = channels.iter().map(u64::to_string).collect();
    let mut other = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "as_another_process", "--ignored", "--nocapture"])
        .env("DISCORD_TOKEN", gateway.token())
        .env("DISCORD_REST_URL", gateway.rest_url())
        .env("CHANNELS", names.join(","))
        .spawn()
        .unwrap();
    let took = load(&client(&gateway, SCALE), &channels);
    assert!(other.wait().unwrap().success());

    let (all, limited) = answers(&gateway.observed());
    println!("{all} answers in {took:?}, {limited} of them 429");
    assert_eq!(
        all - limited,
        2 * usize::try_from(REQUESTS).unwrap(),
        "each was carried out"
    );
    assert!(limited * 100 < all, "{limited} of {all} are 429");
}

#[test]
#[ignore = "`two_processes_share_the_limits` starts it"]
fn as_another_process() {
    let variable = |name: &str| std::env::var(name).unwrap();
    let channels = variable("CHANNELS");
    let channels: Vec<u64> = channels
        .split(',')
        .map(|channel| channel.parse().unwrap())
        .collect();
    let rest = client_with(
        &variable("DISCORD_TOKEN"),
        &variable("DISCORD_REST_URL"),
        SCALE,
    );
    load(&rest.build().unwrap(), &channels);
}

#[test]
fn a_request_carries_what_it_is_given() {
    let gateway = gateway().guilds(1).tls(true).start().unwrap();
    let rest = client(&gateway, common::SCALE);
    let channel = channels(&gateway)[0];
    let path = format!("/channels/{channel}/messages");
    let sent = rest
        .request("post", &path)
        .query("a b", "c&d")
        .header("X-Test", "5")
        .json(&json!({"content": "two files", "attachments": [{"id": 0, "description": "a cat"}]}))
        .file("cat \u{1f408}.png", &[0xff, 0, 13, 10, b'-', b'-'][..])
        .file("b.txt", "text")
        .send()
        .unwrap();
    assert_eq!(sent.status(), 200);
    assert!(sent.header("X-RateLimit-Bucket").is_some());
    let message: Value = sent.json().unwrap();
    assert_eq!(message["attachments"].as_array().unwrap().len(), 2);

    let request = gateway.expect_request("POST", "/channels/{}/messages", PATIENCE);
    assert_eq!(request.query["a b"], "c&d");
    assert_eq!(request.header("x-test"), Some("5"));
    assert_eq!(request.json["content"], "two files");
    let files = &request.files;
    assert_eq!(
        (files[0].name.as_str(), files[0].field.as_str()),
        ("cat \u{1f408}.png", "files[0]")
    );
    assert_eq!(files[0].bytes, [0xff, 0, 13, 10, b'-', b'-']);
    assert_eq!(files[1].bytes, b"text");

    let id = message["id"].as_str().unwrap();
    let deleted = rest
        .delete(&format!("{path}/{id}"))
        .reason("sp\u{e4}m, 100 %")
        .send()
        .unwrap();
    assert_eq!((deleted.status(), deleted.bytes()), (204, &b""[..]));
    deleted.json::<()>().unwrap();
    let request = gateway.expect_request("DELETE", "/channels/{}/messages/{}", PATIENCE);
    assert_eq!(request.reason().as_deref(), Some("sp\u{e4}m, 100 %"));

    let gone = rest.get(&format!("{path}/{id}")).send().unwrap_err();
    assert!(
        gone.is_unknown_message() && !gone.is_missing_permissions(),
        "{gone}"
    );
    let text = gone.to_string();
    assert!(
        text.contains("HTTP 404: Unknown Message (code 10008)"),
        "{text}"
    );
    let refused = rest
        .post(&path)
        .json(&json!({"content": ""}))
        .send()
        .unwrap_err();
    assert_eq!(
        refused.status().map(|error| error.status),
        Some(400),
        "{refused}"
    );
    gateway.assert_lawful();
}

/// A value that cannot be serialized as JSON.
struct Wrong;

impl serde::Serialize for Wrong {
    fn serialize<S: serde::Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
        Err(serde::ser::Error::custom("it is wrong"))
    }
}

#[test]
fn invalid_requests_fail_before_anything_is_sent() {
    let gateway = gateway().guilds(1).start().unwrap();
    let rest = client(&gateway, common::SCALE);
    let post = || rest.post("/channels/1/messages");
    for (request, wanted) in [
        (rest.request("G T", "/gateway"), "method"),
        (rest.get("gateway"), "path"),
        (rest.get("/a b"), "path"),
        (rest.get("/channels/1/../2"), "path"),
        (post().header("a b", "c"), "header"),
        (post().header("Authorization", "Bot x"), "header"),
        (post().header("x", "a\nb"), "header"),
        (post().reason(""), "reason"),
        (post().reason(&"x".repeat(513)), "reason"),
        (post().file("", "x"), "file"),
        (post().file("a\"b", "x"), "file"),
        (post().file("a\r\nb", "x"), "file"),
        (post().file(&"x".repeat(256), "x"), "file"),
        (post().json(&Wrong), "it is wrong"),
        // The first counts.
        (post().reason("").header("a b", "c"), "reason"),
    ] {
        let error = request.send().unwrap_err();
        assert!(matches!(error, Error::Setting { .. }), "{error}");
        assert!(error.to_string().contains(wanted), "{error}");
    }
    assert_eq!(answers(&gateway.observed()).0, 0);
}

/// A server that sends every client the same bytes, and then is silent or closes.
fn saying(answer: Vec<u8>, stays: bool) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    thread::spawn(move || {
        let mut open: Vec<TcpStream> = Vec::new();
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let _ = stream.read(&mut [0; 4096]);
            let _ = stream.write_all(&answer);
            if stays {
                open.push(stream);
            }
        }
    });
    url
}

/// A server whose responses never end.
fn endless(status: &str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let head = format!("HTTP/1.1 {status}\r\ncontent-type: application/json\r\n\r\n");
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let _ = stream.read(&mut [0; 4096]);
            let _ = stream.write_all(head.as_bytes());
            while stream.write_all(&[b'['; 16_384]).is_ok() {}
        }
    });
    url
}

type Wanted = fn(&Error) -> bool;

#[test]
fn hostile_answers_are_errors_in_bounded_time() {
    let answer = |head: &str, body: &str| {
        format!(
            "HTTP/1.1 {head}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
            body.len()
        )
    };

    let limits = "200 OK\r\nx-ratelimit-limit: many\r\nx-ratelimit-remaining: -1\r\nx-ratelimit-reset-after: 1e999";
    let page = answer("429 Too Many Requests", "<title>Access denied</title>");
    // Long enough for what such a server says.
    let silence = Duration::from_secs(5);
    let cases: [(String, bool, Wanted); 9] = [
        (answer("200 OK", "<html>"), false, |error| {
            matches!(error, Error::UnexpectedAnswer { .. })
        }),
        (answer("200 OK", r#"{"a": "#), false, |error| {
            matches!(error, Error::UnexpectedAnswer { .. })
        }),
        (answer(limits, "nonsense"), false, |error| {
            matches!(error, Error::UnexpectedAnswer { .. })
        }),
        (
            answer("302 Found\r\nlocation: http://127.0.0.1:1/", ""),
            false,
            |error| error.status().is_some_and(|error| error.status == 302),
        ),
        (
            "HTTP/1.1 200 OK\r\ncontent-length: 50\r\n\r\nshort".into(),
            false,
            |error| matches!(error, Error::Http { .. }),
        ),
        (
            "HTTP/1.1 200 OK\r\ncontent-length: 50\r\n\r\nshort".into(),
            true,
            |error| matches!(error, Error::Http { .. }),
        ),
        (
            "HTTP/1.1 404 Not Found\r\ncontent-length: 50\r\n\r\nshort".into(),
            true,
            |error| error.status().is_some_and(|error| error.body == "short"),
        ),
        ("nonsense".into(), true, |error| {
            matches!(error, Error::Http { .. })
        }),
        (page, false, |error| {
            matches!(error, Error::RateLimited { retry_after, text: Some(text), .. }
                if *retry_after >= Duration::from_secs(250) && text.contains("Access denied"))
        }),
    ];
    for (answer, stays, is_wanted) in cases {
        let rest = client_of(&saying(answer.clone().into_bytes(), stays));
        let start = Instant::now();
        let timeout = if stays { silence } else { PATIENCE };
        let answered = rest.post("/channels/1/messages").timeout(timeout).send();
        let error = answered
            .and_then(|answer| answer.json::<Value>())
            .unwrap_err();
        assert!(is_wanted(&error), "{answer:?} gives {error:?}");
        assert!(start.elapsed() < PATIENCE, "{answer:?}");
    }

    let error = client_of(&endless("200 OK")).get("/x").send().unwrap_err();
    assert!(matches!(error, Error::Http { .. }), "{error:?}");
    let error = client_of(&endless("500 X")).post("/x").send().unwrap_err();
    assert_eq!(error.status().map(|error| error.body.len()), Some(64 << 10));
}

#[test]
fn a_limit_that_lasts_too_long_fails_at_once() {
    let gateway = gateway()
        .guilds(1)
        .rest_limit(1, Duration::from_secs(36_000))
        .start()
        .unwrap();
    let rest = client(&gateway, common::SCALE);
    rest.get("/users/@me").send().unwrap();
    let Err(Error::RateLimited {
        retry_after, text, ..
    }) = rest.get("/users/@me").send()
    else {
        panic!("it would have to wait for six minutes")
    };

    assert!(
        retry_after > Duration::from_secs(300) && text.is_none(),
        "{retry_after:?}"
    );
    assert_eq!(answers(&gateway.observed()), (1, 0));
}

#[test]
fn handlers_may_wait_for_ten_seconds() {
    // A window of 20 s.
    let gateway = gateway()
        .guilds(1)
        .rest_limit(1, Duration::from_secs(2_000))
        .start()
        .unwrap();
    let manager = ready(config(&gateway));
    let handle = manager.handle().clone();
    handle.rest().get("/users/@me").send().unwrap();
    gateway.chat(channels(&gateway)[0], "hello").unwrap();
    let (outcome, answered) = crossbeam_channel::unbounded();
    manager
        .run(1, |handle, event| {
            if event.name() == "MESSAGE_CREATE" {
                let answer = handle.rest().get("/users/@me").send();
                outcome.send(answer.map(drop)).unwrap();
                handle.stop();
            }
        })
        .unwrap();
    let answer = answered.recv().unwrap();
    assert!(
        matches!(answer, Err(Error::RateLimited { .. })),
        "{answer:?}"
    );

    // Elsewhere it waits, until the manager closes.
    let waiting = thread::spawn(move || handle.rest().get("/users/@me").send().map(drop));
    manager.close();
    let closed = waiting.join().unwrap();
    assert!(matches!(closed, Err(Error::Closed)), "{closed:?}");
}

#[test]
fn what_may_be_sent_again_is() {
    let gateway = gateway().guilds(1).start().unwrap();
    let rest = client(&gateway, common::SCALE);
    let path = format!("/channels/{}/messages", channels(&gateway)[0]);
    let fault = |word: &str| -> Fault { word.parse().unwrap() };

    for word in ["rest=500", "rest=reset", "rest=reset-after"] {
        gateway.inject(Target::Any, fault(word));
        assert!(rest.get(&path).send().is_ok(), "{word}");
        gateway.inject(Target::Any, fault(word));
        let posted = rest.post(&path).json(&json!({"content": "once"})).send();
        assert!(posted.is_err(), "{word}: it may have been carried out");
    }

    // A 429 was not carried out.
    for word in ["rest=429", "rest=429:global", "rest=429:shared"] {
        gateway.inject(Target::Any, fault(word));
        let posted = rest.post(&path).json(&json!({"content": word})).send();
        assert!(posted.is_ok(), "{word}: {posted:?}");
        let before = answers(&gateway.observed()).1;
        gateway.inject(Target::Any, fault(word));
        let unknown = rest
            .post("/interactions/1/token/callback")
            .json(&json!({"type": 5}))
            .send();
        assert!(unknown.unwrap_err().is_unknown_interaction(), "{word}");
        assert_eq!(
            answers(&gateway.observed()).1 - before,
            1,
            "{word}: it waits as long as asked"
        );
    }
}

#[test]
fn an_interaction_is_answered_once_and_in_time() {
    let gateway = gateway().guilds(1).start().unwrap();
    let manager = ready(config(&gateway));
    let channel = channels(&gateway)[0];
    let rest = manager.handle().rest();
    let mut events = manager.events();
    let mut next = || {
        let used = threadcord::sim::Interaction::command(channel, "hello", json!({}));
        gateway.interact(&used).unwrap();
        let event = events
            .find(|event| event.name() == "INTERACTION_CREATE")
            .unwrap();
        Interaction::from(event.dispatch().unwrap()).unwrap()
    };

    let interaction = next();
    assert_eq!((interaction.kind(), interaction.name()), (2, Some("hello")));
    interaction.defer(rest).unwrap();
    let edited = interaction
        .edit_original(rest, &json!({"content": "later"}))
        .unwrap();
    assert_eq!(edited["content"], "later");
    let more = interaction
        .follow_up(rest, &json!({"content": "more"}))
        .unwrap();
    assert_eq!(more["content"], "more");
    interaction.delete_original(rest).unwrap();
    let twice = interaction
        .reply(rest, &json!({"content": "again"}))
        .unwrap_err();
    assert!(twice.is_already_answered(), "{twice}");
    let text = twice.to_string();
    assert!(
        text.contains("within 3 s") && text.contains("15 minutes"),
        "{text}"
    );
    let secret = interaction.callback_path();
    let secret = secret.split('/').nth(3).unwrap();
    assert!(!format!("{interaction:?} {}", twice.report()).contains(secret));

    let late = next();
    // The simulator does not scale this time.
    thread::sleep(Duration::from_millis(3_100));
    let error = late.reply(rest, &json!({"content": "late"})).unwrap_err();
    assert!(error.is_unknown_interaction(), "{error}");
}

#[test]
fn a_client_of_a_manager_has_its_settings() {
    let gateway = gateway().guilds(1).start().unwrap();
    let config = Config::new(Token::new(gateway.token()).unwrap(), Intents::GUILDS)
        .rest_url(format!("{}/", gateway.rest_url()))
        .timing(Timing::scaled(common::SCALE));
    let manager = ShardManager::start(config).unwrap();
    assert_eq!(manager.handle().rest().base_url(), gateway.rest_url());
}
