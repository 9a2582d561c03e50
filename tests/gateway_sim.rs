//! The program `gateway-sim`: what it serves, what it says, and how it ends.

mod common;

use std::io::BufRead;
use std::process::Command;

use common::program::Program;
use common::{PATIENCE, counters_of, eventually, next};
use threadcord::{ShardId, ShardManager, Timing};

#[test]
fn it_serves_a_bot_and_takes_orders() {
    let mut program = Program::start(&[
        "--guilds",
        "2",
        "--time-scale",
        "0.01",
        "--heartbeat-interval",
        "500s",
    ]);
    let manager = ShardManager::start(program.config().timing(Timing::scaled(0.01))).unwrap();
    manager.wait_ready(PATIENCE).unwrap();
    let events = manager.events();
    program.order("chat hello there");
    let message = next(&events, |event| event.name() == "MESSAGE_CREATE");
    assert_eq!(
        message
            .dispatch()
            .unwrap()
            .decode::<serde_json::Value>()
            .unwrap()["content"],
        "hello there"
    );
    program.order(r#"emit SOMETHING {"a": 1}"#);
    next(&events, |event| event.name() == "SOMETHING");
    program.order("nonsense");
    program.order(r#"command ban {"user": "5"}"#);
    let used = next(&events, |event| event.name() == "INTERACTION_CREATE");
    let used = used
        .dispatch()
        .unwrap()
        .decode::<serde_json::Value>()
        .unwrap();
    assert_eq!(used["data"]["options"][0]["value"], "5");
    program.order(&format!("react {} \u{1f44d}", id_of(&message)));
    next(&events, |event| event.name() == "MESSAGE_REACTION_ADD");
    program.order("press nothing");
    program.order("fault cut@0/1");
    eventually("it resumes", || {
        counters_of(&manager, ShardId::ONE).resumes == 1
    });
    manager.close();
    let (said, status) = program.end();
    assert!(status.success(), "{said}");

    for line in [
        "shard 0/1      identify",
        "FAULT cut",
        "resume",
        "closed 1000",
        "1 sessions receive SOMETHING",
        "no client broke a rule",
    ] {
        assert!(said.contains(line), "{line} is not in\n{said}");
    }
}

fn id_of(message: &threadcord::Event) -> String {
    let data = message.dispatch().unwrap().decode::<serde_json::Value>();
    data.unwrap()["id"].as_str().unwrap().to_owned()
}

#[test]
fn it_lists_its_routes() {
    let output = Command::new(env!("CARGO_BIN_EXE_gateway-sim"))
        .arg("--routes")
        .output()
        .unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{said}");
    for route in ["GET     /gateway/bot", "PATCH   /channels/{}/messages/{}"] {
        assert!(said.lines().any(|line| line == route), "{said}");
    }
}

#[test]
fn it_ends_with_1_if_a_client_broke_a_rule() {
    let mut program = Program::start(&["--shards", "2"]);
    // A hundredth of the window that it should be.
    let manager = ShardManager::start(program.config().timing(Timing::scaled(0.01))).unwrap();

    let mut said = String::new();
    while !said.contains("VIOLATION") {
        said.clear();
        assert!(
            program.lines.read_line(&mut said).unwrap() > 0,
            "it ends without a violation"
        );
    }

    drop(manager);
    let (said, status) = program.end();
    assert_eq!(status.code(), Some(1), "{said}");
    assert!(
        said.contains("violations:") && said.contains("one IDENTIFY per key and 5 s"),
        "{said}"
    );
}

#[test]
fn a_wrong_flag_is_reported_with_the_allowed_ones() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    for (arguments, wanted) in [
        (["--port", "70000"], ["--port", "0 to 65535"]),
        (["--port", &port], ["--port", "in use"]),
        (["--shards", "0"], ["--shards", "1 to 4294967295"]),
        (["--shards", "-3"], ["--shards", "1 to 4294967295"]),
        (
            ["--time-scale", "0"],
            ["--time-scale", "more than 0 and at most 1000"],
        ),
        (["--activity", "-1"], ["--activity", "0 to 1000000"]),
        (["--mix", "TYPING=1"], ["--mix", "TYPING_START"]),
        (["--mix", "TYPING_START=many"], ["--mix", "NAME=WEIGHT"]),
        (["--compression", "gzip"], ["--compression", "zstd-stream"]),
        (["--latency", "5"], ["--latency", "250ms"]),
        (
            ["--heartbeat-interval", "0s"],
            ["--heartbeat-interval", "1 ms or more"],
        ),
        (["--fault", "cut"], ["--fault", "TIME:FAULT"]),
        (["--fault", "1s:cutt"], ["--fault", "cut-in-frame"]),
        (["--fault", "1s:cut@2/2"], ["--fault", "shard"]),
        (
            ["--fault-kind", "close=1"],
            ["--fault-kind", "3000 to 4999"],
        ),
        (["--fault-kind", "cut"], ["--random-faults", "required"]),
        (["--certificate", "x.pem"], ["--tls", "required"]),
        (["--sharts", "1"], ["--sharts", "--shards"]),
    ] {
        let output = Command::new(env!("CARGO_BIN_EXE_gateway-sim"))
            .args(arguments)
            .output()
            .unwrap();
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {error}");
        assert!(
            wanted.iter().all(|wanted| error.contains(wanted)),
            "{arguments:?}: {error}"
        );
    }
}
