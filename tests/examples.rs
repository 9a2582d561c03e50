//! Every example that runs until it is stopped works as described, in a separate process, against a
//! simulated gateway.

mod common;

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

use common::{PATIENCE, eventually};
use serde_json::{Value, json};
use threadcord::sim::{Action, Answer, Builder, Fault, Gateway, Interaction, Target};
use threadcord::{Intents, ShardId};

/// A gateway whose time is not scaled, because examples do not support scaling.
fn gateway() -> Builder {
    Gateway::builder().guilds(2)
}

struct Example {
    child: Child,
    lines: Option<BufReader<ChildStdout>>,
}

impl Example {
    fn command(name: &str, gateway: &Gateway, arguments: &[&str]) -> Command {
        let tests = std::env::current_exe().unwrap();
        let path: PathBuf = tests
            .ancestors()
            .nth(2)
            .unwrap()
            .join("examples")
            .join(name);
        let path = path.with_extension(std::env::consts::EXE_EXTENSION);
        assert!(
            path.exists(),
            "{} is not built: `cargo test` without `--test` does that",
            path.display()
        );
        let mut command = Command::new(path);
        command
            .args(arguments)
            .env("DISCORD_TOKEN", gateway.token())
            .env("DISCORD_REST_URL", gateway.rest_url());
        command
    }

    fn start(name: &str, gateway: &Gateway, arguments: &[&str]) -> Self {
        let example = Self::run(Self::command(name, gateway, arguments));
        gateway.expect("it gets ready", PATIENCE, |seen| !seen.live.is_empty());
        example
    }

    fn run(mut command: Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let lines = child.stdout.take().map(BufReader::new);
        Self { child, lines }
    }

    /// The next line that the example prints.
    fn line(&mut self) -> String {
        let mut line = String::new();
        assert!(
            self.lines.as_mut().unwrap().read_line(&mut line).unwrap() > 0,
            "it ended"
        );
        line
    }

    fn ends_well(&mut self) {
        let mut status = None;
        eventually("it ends", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        assert!(status.unwrap().success(), "{status:?}");
    }

    /// Reads the output until a line contains this text.
    fn says(&mut self, text: &str) {
        while !self.line().contains(text) {}
    }
}

impl Drop for Example {
    fn drop(&mut self) {
        // Most examples run until they are stopped.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn echo_answers() {
    let gateway = gateway().start().unwrap();
    let _example = Example::start("echo", &gateway, &[]);
    for guild in gateway.guild_ids() {
        let channel = gateway.channel_of(guild).unwrap();
        gateway.chat(channel, "hello").unwrap();
        gateway.chat(channel, "!ping").unwrap();
        gateway.expect("it answers", PATIENCE, |seen| {
            seen.posts(channel).eq(["pong"])
        });
    }
    gateway.assert_lawful();
}

#[test]
fn slash_registers_and_answers() {
    let gateway = gateway().start().unwrap();
    let mut example = Example::start("slash", &gateway, &[]);
    example.says("registered /hello");
    let channel = gateway.channel_of(gateway.guild_ids()[0]).unwrap();
    for command in ["other", "hello"] {
        let used = Interaction::command(channel, command, json!({}));
        gateway.interact(&used).unwrap();
    }
    gateway.expect("it answers", PATIENCE, |seen| {
        seen.posts(channel).eq(["hello to you"])
    });
    let registered = |action: &Action| matches!(action, Action::Request { request, .. } if request.method == "PUT" && request.path.ends_with("/commands"));
    assert_eq!(gateway.observed().count(registered), 1);
    gateway.assert_lawful();
}

#[test]
fn moderation_deletes_warns_and_removes() {
    let gateway = gateway().start().unwrap();
    let mut example = Example::start("moderation", &gateway, &["badword"]);
    let channel = gateway.channel_of(gateway.guild_ids()[0]).unwrap();

    let mut author = String::new();
    for _ in 0..2 {
        gateway.chat(channel, "what a badword").unwrap();
        let deleted = gateway.expect_request("DELETE", "/channels/{}/messages/{}", PATIENCE);
        assert_eq!(deleted.reason().as_deref(), Some("a forbidden word"));
        let opened = gateway.expect_request("POST", "/users/@me/channels", PATIENCE);
        opened.json["recipient_id"]
            .as_str()
            .unwrap()
            .clone_into(&mut author);
        let warning = gateway.expect_request("POST", "/channels/{}/messages", PATIENCE);
        assert_eq!(warning.json["content"], "please mind your language");
        example.says("warned");
    }

    gateway.chat(channel, "another badword").unwrap();
    let removed = gateway.expect_request("DELETE", "/guilds/{}/members/{}", PATIENCE);
    assert_eq!(removed.parameters[1], author);
    assert_eq!(
        removed.reason().as_deref(),
        Some("forbidden words, 3 times")
    );
    gateway.assert_lawful();
}

#[test]
fn interactions_answers_every_kind() {
    let gateway = gateway().start().unwrap();
    let mut example = Example::start("interactions", &gateway, &[]);
    example.says("registered /peel");
    let channel = gateway.channel_of(gateway.guild_ids()[0]).unwrap();
    let callback = || {
        gateway
            .expect_request("POST", "/interactions/{}/{}/callback", PATIENCE)
            .json
    };
    let typed = Interaction::autocomplete(channel, "peel", json!({"fruit": "ap"}), "fruit");
    gateway.interact(&typed).unwrap();
    assert_eq!(callback()["data"]["choices"][1]["value"], "apricot");

    let used = Interaction::command(channel, "peel", json!({"fruit": "plum"}));
    gateway.interact(&used).unwrap();
    assert_eq!(callback()["type"], 5, "it defers");
    let edited = gateway.expect_request("PATCH", "/webhooks/{}/{}/messages/{}", PATIENCE);
    assert_eq!(edited.json["content"], "peeled the plum");
    let question = gateway.expect_request("POST", "/webhooks/{}/{}", PATIENCE);
    assert_eq!(
        question.json["components"][0]["components"][0]["custom_id"],
        "rate"
    );

    gateway
        .interact(&Interaction::press(channel, "rate"))
        .unwrap();
    assert_eq!(callback()["type"], 9, "a modal");
    let filled = Interaction::submit(channel, "opinion", json!({"opinion": "sweet"}));
    gateway.interact(&filled).unwrap();
    assert_eq!(callback()["data"]["content"], "noted: sweet");
    gateway.assert_lawful();
}

#[test]
fn presence_rotates_on_every_shard() {
    let gateway = gateway().shards(2).max_concurrency(2).start().unwrap();
    let _example = Example::start("presence", &gateway, &[]);
    for number in [0, 1] {
        let shard = ShardId::new(number, 2).unwrap();
        gateway.expect("two more", PATIENCE, |seen| {
            let name = |data: &Value| {
                data["activities"][0]["name"]
                    .as_str()
                    .unwrap_or_default()
                    .to_owned()
            };
            let later: BTreeSet<String> = seen
                .commands(shard, 3)
                .map(|(_, data)| name(data))
                .collect();
            let first = seen
                .identifies(shard)
                .next()
                .map(|(_, data)| name(&data["presence"]));
            later.len() >= 2 && first.as_deref() == Some("the gateway")
        });
    }
    gateway.assert_lawful();
}

#[test]
fn members_lists_a_guild() {
    for (prefix, count) in [(None, 1500), (Some("user"), 100)] {
        // And the bot.
        let gateway = gateway().members(1499).start().unwrap();
        let guild = gateway.guild_ids()[0].to_string();
        let arguments: Vec<&str> = std::iter::once(&*guild).chain(prefix).collect();
        let mut example = Example::start("members", &gateway, &arguments);
        let mut said = String::new();
        example
            .lines
            .as_mut()
            .unwrap()
            .read_to_string(&mut said)
            .unwrap();
        assert_eq!(said.lines().count(), count, "{said}");
        let users = said.lines().filter(|line| line.contains(" user"));
        assert_eq!(
            users.count(),
            count - usize::from(prefix.is_none()),
            "{said}"
        );
        example.ends_well();
        gateway.assert_lawful();
    }
}

#[cfg(feature = "model")]
#[test]
fn typed_prints_what_is_said() {
    let gateway = gateway().start().unwrap();
    let mut example = Example::start("typed", &gateway, &[]);
    gateway
        .chat(
            gateway.channel_of(gateway.guild_ids()[0]).unwrap(),
            "for everybody",
        )
        .unwrap();
    example.says("guild ");
    example.says(": for everybody");
    gateway.assert_lawful();
}

#[test]
fn embedded_never_stops_drawing() {
    let gateway = gateway().start().unwrap();
    let mut example = Example::start("embedded", &gateway, &[]);
    let channel = gateway.channel_of(gateway.guild_ids()[0]).unwrap();
    for n in 0..250 {
        gateway.chat(channel, &format!("number {n}")).unwrap();
    }
    example.says(r#"250 messages, the last was "number 249""#);
    gateway.assert_lawful();
}

#[test]
fn ndjson_is_one_event_a_line() {
    let gateway = gateway().start().unwrap();
    let mut example = Example::start("ndjson", &gateway, &[]);
    let spread = "{\"op\":0,\"s\":100,\"t\":\"SPREAD_OUT\",\"d\":{\n\"a\":\r\n\"b\\nc\"}}";
    gateway.send_raw(ShardId::ONE, spread);

    let mut names = Vec::new();
    while names.last().is_none_or(|name| name != "SPREAD_OUT") {
        let event: Value = serde_json::from_str(&example.line()).unwrap();
        assert_eq!(event["shard"], json!([0, 1]));
        names.push(event["t"].as_str().unwrap().to_owned());
        if names.last().unwrap() == "SPREAD_OUT" {
            assert_eq!(
                (&event["s"], &event["d"]),
                (&json!(100), &json!({"a": "b\nc"}))
            );
        }
    }

    assert_eq!(
        names,
        ["READY", "GUILD_CREATE", "GUILD_CREATE", "SPREAD_OUT"]
    );

    // A reader that goes away, as `head` does, is no error. A program that another test starts at
    // this moment may still hold the pipe, so one event need not meet its end.
    drop(example.lines.take());
    let mut sequence = 100;
    eventually("it ends", || {
        sequence += 1;
        let another = format!(r#"{{"op":0,"s":{sequence},"t":"ANOTHER","d":{{}}}}"#);
        gateway.send_raw(ShardId::ONE, &another);
        example.child.try_wait().unwrap().is_some()
    });
    example.ends_well();
}

/// The output of an example until it ends, and its exit code.
fn printed(mut command: Command) -> (String, i32) {
    let output = command.output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    (text, output.status.code().unwrap())
}

#[test]
fn doctor_finds_what_is_wrong() {
    let gateway = Gateway::builder()
        .shards(4)
        .allowed_intents(Intents::all() - Intents::GUILD_MEMBERS)
        .session_starts(1000, 3, Duration::from_secs(7200))
        .start()
        .unwrap();
    let doctor = |arguments: &[&str]| Example::command("doctor", &gateway, arguments);
    let (said, code) = printed(doctor(&["GUILDS", "MESSAGE_CONTENT", "GUILD_MEMBERS"]));
    for line in [
        "ok       token        Discord accepts it",
        "ok       intents      MESSAGE_CONTENT is switched on",
        "ERROR    intents      GUILD_MEMBERS is not switched on",
        "ok       shards       4, and Discord recommends 4",
        "ERROR    IDENTIFYs    3 of 1000 left, all of them again in 2.0 h: too few for 4",
        "ok       clock        within 2s of Discord's",
        "ok       DNS          127.0.0.1 resolves",
        "warning  TLS ",
    ] {
        assert!(
            said.lines().any(|said| said.starts_with(line)),
            "{line}\n{said}"
        );
    }
    assert_eq!(code, 1);

    let mut wrong = doctor(&[]);
    wrong.env("DISCORD_TOKEN", "a.b.c");
    let (said, code) = printed(wrong);
    assert!(said.starts_with("ERROR    token"), "{said}");
    assert_eq!(code, 1);
    gateway.assert_lawful();
}

#[test]
fn plan_draws_a_timeline() {
    let gateway = Gateway::builder().shards(5).max_concurrency(2);
    let gateway = gateway.start().unwrap();
    let plan = |arguments: &[&str]| printed(Example::command("plan", &gateway, arguments));
    let (said, code) = plan(&[]);
    let rows: Vec<_> = said.lines().filter(|line| line.contains(" s  #")).collect();
    assert_eq!(rows.len(), 3, "{said}");
    assert!(rows[2].starts_with("    10.2 s"), "{said}");
    assert!(said.contains("5 of 1000 IDENTIFYs"), "{said}");
    assert_eq!(code, 0);

    let (said, _) = plan(&["3200", "16", "3199"]);
    assert!(said.contains("after 0.0 s"), "{said}");
    let (said, _) = plan(&["3200", "16"]);
    assert!(said.contains("after 1014.9 s"), "{said}");
    assert!(said.contains("too few"), "{said}");
    for wrong in [&["0"][..], &["1", "0"], &["1", "1", "2"], &["x"], &["1"; 4]] {
        assert_eq!(plan(wrong).1, 2, "{wrong:?}");
    }
}

/// What an HTTP server answers to these bytes; nothing if it closes.
fn answer(address: &str, request: &[u8]) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    // It may answer before it has read everything.
    let _ = stream.write_all(request);
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8(answer).unwrap()
}

#[test]
fn status_page_answers_every_request() {
    let gateway = gateway().guilds(2).shards(2).start().unwrap();
    let mut command = Example::command("status_page", &gateway, &[]);
    command.env("STATUS_ADDRESS", "127.0.0.1:0");
    let mut example = Example::run(command);
    let address = example.line();
    let address = address.trim().strip_prefix("http://").unwrap();
    let get = |path: &str| answer(address, format!("GET {path} HTTP/1.1\r\n\r\n").as_bytes());
    gateway.expect("they get ready", PATIENCE, |seen| seen.live.len() == 2);
    eventually("it is ready", || get("/readyz").starts_with("HTTP/1.1 200"));

    let page = get("/");
    assert!(page.contains("content-type: text/html") && page.contains("</html>"));
    let status = get("/status.json");
    let json = status.split_once("\r\n\r\n").unwrap().1;
    let json: Value = serde_json::from_str(json).unwrap();
    assert_eq!(json["shards"][1]["state"], "ready", "{json}");
    assert_eq!(json["counters"]["0/2"]["identifies"], 1, "{json}");
    assert!(get("/metrics").contains("\nthreadcord_healthy 1\n"));
    assert!(get("/healthz").ends_with("\r\n\r\nok\n"));
    for text in [&page, &status, &get("/metrics"), &get("/readyz")] {
        assert!(!text.contains(gateway.token()), "no secret is on it");
    }

    assert!(get("/../etc/passwd").starts_with("HTTP/1.1 404"));
    let post = answer(address, b"POST / HTTP/1.1\r\ncontent-length: 9\r\n\r\n");
    assert!(post.starts_with("HTTP/1.1 405"), "{post}");
    let huge = [&b"GET /"[..], &vec![b'a'; 100_000]].concat();
    let refused = answer(address, &huge);
    assert!(
        refused.is_empty() || refused.starts_with("HTTP/1.1 431"),
        "{refused}"
    );
    assert!(answer(address, b"\x16\x03\x01\x02\x00").starts_with("HTTP/1.1 400"));

    // Others that say nothing, or too slowly, take its places only for a while.
    let mut slow: Vec<_> = (0..200)
        .map(|_| TcpStream::connect(address).unwrap())
        .collect();
    for stream in &mut slow {
        let _ = stream.write_all(b"GET / HT");
    }
    eventually("it answers again", || {
        get("/healthz").starts_with("HTTP/1.1 200")
    });
    drop(slow);

    // Discord closes with a code that stops the shard.
    gateway.inject(Target::Any, "close=4004".parse::<Fault>().unwrap());
    eventually("it is not ready", || {
        get("/readyz").starts_with("HTTP/1.1 503")
    });
    eventually("it is not well", || {
        get("/healthz").starts_with("HTTP/1.1 503")
    });
    let _ = example.child.kill();
}

/// What the example says of an old connection, if the gateway answers a takeover like this.
fn verified(answer: Answer) -> String {
    let gateway = gateway().on_takeover(answer).start().unwrap();
    let channel = gateway.channel_of(gateway.guild_ids()[0]).unwrap();
    let command = Example::command("verify", &gateway, &[&channel.to_string(), "1"]);
    let mut example = Example::run(command);
    let mut report = String::new();
    example
        .lines
        .as_mut()
        .unwrap()
        .read_to_string(&mut report)
        .unwrap();
    example.ends_well();
    let seen = gateway.observed();
    assert_eq!(
        seen.count(|action| matches!(action, Action::Identify(_))),
        1
    );
    assert!(
        report.contains("3 of 3 messages were redelivered"),
        "{report}"
    );
    report
}

#[test]
fn verify_distinguishes_the_variants_of_a_gateway() {
    let variants = [
        (
            Answer::Nothing,
            "the old connection: nothing happens within 1s",
        ),
        (Answer::Reconnect, "the old connection: op 7, after"),
        (
            Answer::InvalidSession { resumable: false },
            "the old connection: op 9, false, after",
        ),
        (Answer::Close(4000), "the old connection: close 4000"),
    ];
    std::thread::scope(|scope| {
        for (answer, wanted) in variants {
            scope.spawn(move || {
                let report = verified(answer);
                assert!(report.contains(wanted), "{report}");
            });
        }
    });
}

#[cfg(feature = "redis")]
#[test]
fn fleet_resumes_the_sessions_of_a_killed_process() {
    let name = "fleet_resumes_the_sessions_of_a_killed_process";
    let Some(server) = common::redis::RedisServer::start(name, &[]) else {
        return;
    };
    let gateway = gateway().start().unwrap();
    let start = || {
        let mut command = Example::command("fleet", &gateway, &["0", "1"]);
        command.env("REDIS_URL", server.url());
        Example::run(command)
    };

    let mut first = start();
    first.says("0/1 identified");
    let mut second = start();
    second.says("waits for part 0 of 1");

    // A process that is killed before its first save leaves nothing to resume.
    let mut admin = server.admin();
    eventually("the session is stored", || {
        let mut keys = redis::cmd("KEYS");
        let keys: Vec<String> = keys.arg("*:sessions:*").query(&mut admin).unwrap();
        keys.iter().any(|key| {
            let mut get = redis::cmd("GET");
            let text: Option<String> = get.arg(key).query(&mut admin).unwrap();
            text.is_some_and(|text| text.contains("resume_url"))
        })
    });
    first.child.kill().unwrap();
    second.says("0/1 resumed");
    gateway.assert_lawful();
}

#[cfg(feature = "redis")]
#[test]
fn streams_forwards_every_event_and_waits_for_redis() {
    let name = "streams_forwards_every_event_and_waits_for_redis";
    let Some(server) = common::redis::RedisServer::start(name, &[]) else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let gateway = gateway().start().unwrap();
    let mut command = Example::command("streams", &gateway, &[]);
    command.env("REDIS_URL", server.url());
    command.env("SESSIONS", folder.path().join("sessions.json"));
    let _example = Example::run(command);
    gateway.expect("it gets ready", PATIENCE, |seen| !seen.live.is_empty());

    let channel = gateway.channel_of(gateway.guild_ids()[0]).unwrap();
    let mut admin = server.admin();
    let mut count = |text: &str| {
        let length = redis::cmd("XRANGE")
            .arg(&["events:0", "-", "+"])
            .query(&mut admin);
        let entries: Vec<(String, Vec<String>)> = length.unwrap();
        let has_text = |(_, fields): &&(String, Vec<String>)| fields[7].contains(text);
        entries.iter().filter(has_text).count()
    };
    gateway.chat(channel, "the first").unwrap();
    eventually("it is forwarded", || count("the first") == 1);
    // What comes while Redis hangs is forwarded later.
    server.freeze();
    gateway.chat(channel, "the second").unwrap();
    gateway.expect("it is sent", PATIENCE, |seen| seen.events >= 4);
    server.thaw();
    eventually("it is forwarded", || count("the second") >= 1);
    gateway.assert_lawful();
}

/// A display without a screen, if `Xvfb` is installed.
struct Display {
    server: Child,
    name: String,
}

impl Display {
    fn start(test: &str) -> Option<Self> {
        let server = Command::new("Xvfb")
            .args(["-displayfd", "1"])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn();
        let Ok(mut server) = server else {
            common::process::skip(test, "Xvfb", "THREADCORD_NEEDS_DISPLAY");
            return None;
        };

        // It prints its number once it accepts connections.
        let mut number = String::new();
        let output = server.stdout.take().unwrap();
        BufReader::new(output).read_line(&mut number).unwrap();
        let name = format!(":{}", number.trim());
        Some(Self { server, name })
    }
}

impl Drop for Display {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

#[test]
fn window_shows_events_without_a_pause() {
    let Some(display) = Display::start("window_shows_events_without_a_pause") else {
        return;
    };
    let gateway = gateway().activity(100.0).start().unwrap();
    let mut command = Example::command("window", &gateway, &["600"]);
    command.env("DISPLAY", &display.name);
    let mut example = Example::run(command);

    let line = example.line();
    let (events, rest) = line.split_once(" events; ").unwrap();
    assert!(events.parse::<u64>().unwrap() > 0, "{line}");
    assert!(rest.starts_with("the longest frame took "), "{line}");
    example.ends_well();
    gateway.assert_lawful();
}
