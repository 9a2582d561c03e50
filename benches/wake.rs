//! From `Shard::send` on one thread to the bytes at the other end of an idle shard's connection.

use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use criterion::{Criterion, criterion_group, criterion_main};
use crossbeam_channel::{Receiver, Sender};
use serde_json::{Value, json};
use threadcord::limit::Unlimited;
use threadcord::{Command, Compression, Config, Intents, Plan, ShardId, ShardManager, Timing, Token};
use tungstenite::{Message, WebSocket};

/// So long nothing happens before a command, so that the shard is asleep.
const IDLE: Duration = Duration::from_micros(500);

/// A gateway that says when commands arrive, and nothing else.
fn gateway() -> (String, Receiver<Instant>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("ws://{}", listener.local_addr().expect("an address"));
    let (sender, arrivals) = crossbeam_channel::unbounded();
    thread::spawn(move || {
        let (stream, _) = listener.accept().expect("a client");
        stream.set_nodelay(true).expect("a socket");
        let client = tungstenite::accept(stream).expect("a websocket");
        serve(client, &sender);
    });
    (url, arrivals)
}

fn serve(mut client: WebSocket<TcpStream>, arrivals: &Sender<Instant>) {
    let hello = json!({"op": 10, "d": {"heartbeat_interval": 3_000_000}});
    let ready =
        json!({"op": 0, "s": 1, "t": "READY", "d": {"session_id": "s", "resume_gateway_url": "", "guilds": []}});
    client.send(Message::text(hello.to_string())).expect("it is sent");
    while let Ok(message) = client.read() {
        let now = Instant::now();
        let Ok(payload) = serde_json::from_slice::<Value>(&message.into_data()) else { return };
        if payload["op"] == 2 {
            client.send(Message::text(ready.to_string())).expect("it is sent");
        } else if payload["op"] == 31 && arrivals.send(now).is_err() {
            return;
        }
    }
}

fn wake(criterion: &mut Criterion) {
    let (url, arrivals) = gateway();
    let mut timing = Timing::default();
    // No limit is to be measured.
    timing.send_window = Duration::from_micros(1);
    timing.guard = Duration::ZERO;
    let token = Token::new("aaa.bbb.ccc").expect("a token");
    let config = Config::new(token, Intents::empty())
        .gateway_url(url)
        .limiter(Arc::new(Unlimited))
        .plan(Plan::Total(1))
        .compression(Compression::None)
        .timing(timing);
    let manager = ShardManager::start(config).expect("the shard starts");
    manager.wait_ready(Duration::from_secs(60)).expect("it gets ready");
    let shard = manager.shard(ShardId::ONE).expect("it runs");
    let command = Command::soundboard_sounds(&[1]).expect("a command");
    let mut all = Vec::new();
    let mut once = || {
        thread::sleep(IDLE);
        let sent = Instant::now();
        shard.send(command.clone()).expect("it is taken");
        let took = arrivals.recv().expect("it arrives") - sent;
        all.push(took);
        took
    };
    criterion.bench_function("wake/send to the wire", |bencher| {
        bencher.iter_custom(|count| (0..count).map(|_| once()).sum());
    });
    all.sort_unstable();
    let percentile = |percent: usize| all.get(all.len() * percent / 100).copied().unwrap_or_default();
    println!("{} commands: median {:?}, 99 % {:?}", all.len(), percentile(50), percentile(99));
}

criterion_group!(benches, wake);
criterion_main!(benches);
