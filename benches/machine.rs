//! Measures the time per input of the protocol's state machine, without threads or sockets.

mod common;

use std::time::{Duration, Instant};

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use serde_json::json;
use threadcord::protocol::{Identity, Input, Machine, Output};
use threadcord::{Command, Intents, ShardId, Timing, Token};

fn drive(machine: &mut Machine, now: Instant) -> usize {
    let mut outputs = 0;
    while !matches!(machine.poll(now), Output::Wait(_) | Output::Stop(_)) {
        outputs += 1;
    }
    outputs
}

/// A machine whose session is live.
fn ready(now: Instant) -> Machine {
    let identity = Identity {
        token: Token::new("aaa.bbb.ccc").expect("a token"),
        intents: Intents::all(),
        library: "bench".into(),
        large_threshold: 50,
        compress: false,
        presence: None,
    };

    let mut machine = Machine::new(now, ShardId::ONE, identity, Timing::default(), None, 1);
    let hello = json!({"op": 10, "d": {"heartbeat_interval": 41_250}}).to_string();
    let ready = common::payload(
        "READY",
        1,
        r#"{"session_id":"s","resume_gateway_url":"","guilds":[]}"#,
    );
    drive(&mut machine, now);

    for input in [
        Input::Connected,
        Input::Payload(hello.into()),
        Input::Permit,
        Input::Payload(ready.into()),
    ] {
        machine.handle(now, input);
        drive(&mut machine, now);
    }
    machine
}

fn events(criterion: &mut Criterion) {
    let now = Instant::now();
    let events: Vec<String> = (2..)
        .zip(
            common::parts()
                .into_iter()
                .filter(|(name, _)| name != "READY"),
        )
        .map(|(sequence, (name, data))| common::payload(name, sequence, &data))
        .collect();
    let mut group = criterion.benchmark_group("machine");
    group.throughput(Throughput::Elements(events.len() as u64));
    group.bench_function("an event", |bencher| {
        let new = || {
            (
                ready(now),
                events
                    .iter()
                    .map(|event| event.clone().into_bytes())
                    .collect::<Vec<_>>(),
            )
        };
        bencher.iter_batched(
            new,
            |(mut machine, payloads)| {
                let mut kept = Vec::with_capacity(payloads.len());
                for payload in payloads {
                    machine.handle(now, Input::Payload(payload.into()));
                    kept.extend(machine.poll_at_once());
                }
                (machine, kept)
            },
            BatchSize::LargeInput,
        );
    });
    group.finish();
}

fn heartbeats_and_commands(criterion: &mut Criterion) {
    let now = Instant::now();
    let mut group = criterion.benchmark_group("machine");
    group.throughput(Throughput::Elements(1));
    group.bench_function("a heartbeat and its ACK", |bencher| {
        let (mut machine, mut now) = (ready(now), now);
        bencher.iter(|| {
            now += Duration::from_secs(42);
            let sent = drive(&mut machine, now);
            machine.handle(
                now,
                Input::Payload(br#"{"t":null,"s":null,"op":11,"d":null}"#.as_slice().into()),
            );
            sent
        });
    });
    group.bench_function("a command", |bencher| {
        let (mut machine, mut now) = (ready(now), now);
        let command = Command::soundboard_sounds(&[1]).expect("a command");
        bencher.iter(|| {
            // Time passes, so that no rate limit is reached.
            now += Duration::from_secs(1);
            machine.handle(now, Input::Drained);
            machine.handle(
                now,
                Input::Payload(br#"{"t":null,"s":null,"op":11,"d":null}"#.as_slice().into()),
            );
            machine.handle(now, Input::Command(command.clone()));
            drive(&mut machine, now)
        });
    });
    group.bench_function("when nothing is due", |bencher| {
        let mut machine = ready(now);
        bencher.iter(|| drive(&mut machine, now));
    });
    group.finish();
}

criterion_group!(benches, events, heartbeats_and_commands);
criterion_main!(benches);
