//! Measures the time from `Shard::send` on one thread to the bytes at the other end of an idle
//! shard's connection and, in turn with it, the minimum: a thread that is woken and writes.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use criterion::{Criterion, criterion_group, criterion_main};
use crossbeam_channel::{Receiver, Sender};
use serde_json::{Value, json};
use threadcord::limit::Unlimited;
use threadcord::{
    Command, Compression, Config, Intents, Plan, ShardId, ShardManager, Timing, Token,
};
use tungstenite::{Message, WebSocket};

/// The pause before each command, so that the shard is asleep.
const IDLE: Duration = Duration::from_micros(500);

/// A gateway that only reports when commands arrive.
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
    let ready = json!({"op": 0, "s": 1, "t": "READY", "d": {"session_id": "s", "resume_gateway_url": "", "guilds": []}});
    client
        .send(Message::text(hello.to_string()))
        .expect("it is sent");

    while let Ok(message) = client.read() {
        let now = Instant::now();
        let Ok(payload) = serde_json::from_slice::<Value>(&message.into_data()) else {
            return;
        };
        if payload["op"] == 2 {
            client
                .send(Message::text(ready.to_string()))
                .expect("it is sent");
        } else if payload["op"] == 31 && arrivals.send(now).is_err() {
            return;
        }
    }
}

/// A thread that sleeps until it is woken, and then writes as many bytes as a command has to a
/// socket.
struct Floor {
    thread: thread::Thread,
    is_asked: Arc<AtomicBool>,
    arrivals: Receiver<Instant>,
}

impl Floor {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let mut stream =
            TcpStream::connect(listener.local_addr().expect("an address")).expect("it connects");
        stream.set_nodelay(true).expect("a socket");
        let (mut peer, _) = listener.accept().expect("a client");
        let (sender, arrivals) = crossbeam_channel::unbounded();
        let mut bytes = [0; 50];
        thread::spawn(move || {
            while peer.read_exact(&mut bytes).is_ok() && sender.send(Instant::now()).is_ok() {}
        });
        let is_asked = Arc::<AtomicBool>::default();
        let asked = Arc::clone(&is_asked);
        let thread = thread::spawn(move || {
            loop {
                while !asked.swap(false, Ordering::AcqRel) {
                    thread::park();
                }
                stream.write_all(&bytes).expect("it is sent");
            }
        });
        Self {
            thread: thread.thread().clone(),
            is_asked,
            arrivals,
        }
    }

    fn once(&self) -> Duration {
        thread::sleep(IDLE);
        let sent = Instant::now();
        self.is_asked.store(true, Ordering::Release);
        self.thread.unpark();
        self.arrivals.recv().expect("it arrives") - sent
    }
}

fn wake(criterion: &mut Criterion) {
    let (url, arrivals) = gateway();
    let mut timing = Timing::default();
    // The send limit must not delay the commands.
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
    manager
        .wait_ready(Duration::from_secs(60))
        .expect("the shard becomes ready");
    let shard = manager.handle().shard(ShardId::ONE).expect("it runs");
    let command = Command::soundboard_sounds(&[1]).expect("a command");
    let floor = Floor::start();
    let (mut all, mut floors) = (Vec::new(), Vec::new());
    let mut once = || {
        thread::sleep(IDLE);
        let sent = Instant::now();
        shard.send(command.clone()).expect("the command is queued");
        let took = arrivals.recv().expect("it arrives") - sent;
        all.push(took);
        floors.push(floor.once());
        took
    };

    criterion.bench_function("wake/send to the wire", |bencher| {
        bencher.iter_custom(|count| (0..count).map(|_| once()).sum());
    });
    for (name, mut all) in [("commands", all), ("minimum", floors)] {
        all.sort_unstable();
        let percentile = |percent: usize| {
            all.get(all.len() * percent / 100)
                .copied()
                .unwrap_or_default()
        };
        println!(
            "{} {name}: median {:?}, 99 % {:?}",
            all.len(),
            percentile(50),
            percentile(99)
        );
    }
}

criterion_group!(benches, wake);
criterion_main!(benches);
