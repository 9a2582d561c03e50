//! Tests undocumented behavior of Discord on which several processes rely, and prints a report. It
//! needs a test bot that is alone in a guild, and a channel there in which the bot may write. It
//! identifies once, writes six messages, and takes up to five minutes.
//!
//! ```sh
//! DISCORD_TOKEN=... cargo run --example verify -- CHANNEL_ID
//! ```
//!
//! A second argument sets for how many seconds it watches a connection on which nothing may happen
//! (default: 30). The report ends with a command to run on another machine within a minute, which
//! tests whether a session can be resumed from there.

use std::error::Error;
use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};
use std::{env, process};

use native_tls::TlsConnector;
use serde_json::{Value, json};
use threadcord::rest::Rest;
use threadcord::transport::Uri;
use threadcord::{Intents, Token};
use tungstenite::{Message, WebSocket};

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// For how many seconds a connection is watched on which nothing may happen.
const WATCH: u64 = 30;

/// How often a socket is polled.
const TICK: Duration = Duration::from_millis(50);

/// If fewer IDENTIFYs than this are left, none is spent: the bot's owner may need them.
const SPARE: u32 = 20;

type Outcome<T> = Result<T, Box<dyn Error>>;

fn main() -> Outcome<()> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let token = env::var("DISCORD_TOKEN").map_err(|_| "DISCORD_TOKEN is not set")?;
    let mut rest = Rest::builder(Token::new(&*token)?);
    if let Ok(url) = env::var("DISCORD_REST_URL") {
        rest = rest.base_url(url);
    }
    let rest = rest.build()?;

    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["resume", url, session, sequence] => {
            let state = State {
                url: url.to_owned(),
                session: session.to_owned(),
                sequence: sequence.parse()?,
            };
            let (_, answer, _) = resume(&token, &state)?;
            println!("RESUME from this machine: {answer}");
            Ok(())
        }
        [channel] => ask_all(&rest, &token, channel, Duration::from_secs(WATCH)),
        [channel, seconds] => {
            let watch = Duration::from_secs(seconds.parse()?);
            ask_all(&rest, &token, channel, watch)
        }
        _ => {
            eprintln!("usage: verify CHANNEL_ID [SECONDS], or: verify resume URL SESSION SEQUENCE");
            process::exit(2)
        }
    }
}

/// What a RESUME needs.
#[derive(Clone)]
struct State {
    url: String,
    session: String,
    sequence: u64,
}

fn ask_all(rest: &Rest, token: &str, channel: &str, watch: Duration) -> Outcome<()> {
    let gateway = rest.gateway_bot()?;
    let left = gateway.session_start_limit.remaining;
    if left < SPARE {
        return Err(format!("only {left} IDENTIFYs are left today").into());
    }
    println!("threadcord verify, {left} IDENTIFYs left");

    let mut old = Connection::open(&gateway.url)?;
    let mut state = old.identify(token)?;

    println!("1. what a RESUME does to the old connection:");
    let (mut new, answer, _) = resume(token, &state)?;
    println!("   the RESUME: {answer}");
    println!("   the old connection: {}", old.watch(watch)?);

    println!("2. a RESUME below a sequence that a heartbeat has acknowledged:");
    let from = state.sequence;
    let written = write_messages(rest, channel, &mut new, 3)?;
    new.heartbeat()?;
    new.until("the acknowledgement", |payload| payload["op"] == 11)?;
    drop(new);
    state.sequence = from;
    let (mut new, answer, replayed) = resume(token, &state)?;
    println!(
        "   {answer}; {} of {written} messages were redelivered",
        messages(&replayed)
    );

    println!("3. the order of an acknowledgement and of replayed events:");
    write_messages(rest, channel, &mut new, 3)?;
    drop(new);
    let (mut new, order) = resume_with_heartbeat(token, &state)?;
    println!("   {order}");
    state.sequence = new.sequence;

    println!("4. a presence without `since`:");
    let presence = json!({"status": "online", "afk": false, "activities": []});
    new.send(&json!({"op": 3, "d": presence}))?;
    println!("   {}", new.watch(watch)?);

    println!("5. how long a connection lasts after op 7:");
    println!("   {}", new.watch_op_7(watch)?);
    state.sequence = new.sequence.max(state.sequence);
    drop(new);

    println!("6. on another machine, within a minute:");
    println!(
        "   verify resume '{}' {} {}",
        state.url, state.session, state.sequence
    );
    Ok(())
}

/// Resumes on a new connection and heartbeats at once. Returns when the acknowledgement came.
fn resume_with_heartbeat(token: &str, state: &State) -> Outcome<(Connection, String)> {
    let mut connection = Connection::open(&state.url)?;
    connection.send(&resume_of(token, state))?;
    connection.heartbeat()?;
    let order = connection.until("RESUMED or op 9", ends_resume)?;

    let found = match order.iter().position(|payload| payload["op"] == 11) {
        Some(ack) => format!(
            "the acknowledgement comes after {} of {} replayed messages",
            messages(&order[..ack]),
            messages(&order)
        ),
        None => "the acknowledgement comes after RESUMED".into(),
    };
    Ok((connection, found))
}

/// Resumes on a new connection. Returns the answer, and all payloads up to it.
fn resume(token: &str, state: &State) -> Outcome<(Connection, String, Vec<Value>)> {
    let mut connection = Connection::open(&state.url)?;
    connection.send(&resume_of(token, state))?;
    let start = Instant::now();
    let came = connection.until("RESUMED or op 9", ends_resume)?;
    let answer = match came.last() {
        Some(last) if last["op"] == 9 => format!("op 9, {}", last["d"]),
        _ => format!(
            "resumed after {:.1?}, with {} events",
            start.elapsed(),
            came.len() - 1
        ),
    };
    Ok((connection, answer, came))
}

fn resume_of(token: &str, state: &State) -> Value {
    let (session, sequence) = (&state.session, state.sequence);
    json!({"op": 6, "d": {"token": token, "session_id": session, "seq": sequence}})
}

fn ends_resume(payload: &Value) -> bool {
    payload["t"] == "RESUMED" || payload["op"] == 9
}

fn messages(payloads: &[Value]) -> usize {
    let is_message = |payload: &&Value| payload["t"] == "MESSAGE_CREATE";
    payloads.iter().filter(is_message).count()
}

/// Writes messages, and waits for their events.
fn write_messages(
    rest: &Rest,
    channel: &str,
    connection: &mut Connection,
    count: usize,
) -> Outcome<usize> {
    let path = format!("/channels/{channel}/messages");
    for number in 0..count {
        let body = json!({"content": format!("verify {number}")});
        rest.post(&path).json(&body).send()?;
        connection.until("the message", |payload| payload["t"] == "MESSAGE_CREATE")?;
    }
    Ok(count)
}

/// A connection to the gateway that sends only heartbeats by itself.
struct Connection {
    socket: WebSocket<Box<dyn Stream>>,
    heartbeat_interval: Duration,
    next_heartbeat: Instant,
    sequence: u64,
}

trait Stream: Read + Write {}

impl<T: Read + Write> Stream for T {}

/// What a connection receives.
enum Input {
    Payload(Value),
    Closed(String),
    Nothing,
}

impl Connection {
    /// Connects, and reads HELLO.
    fn open(url: &str) -> Outcome<Self> {
        let url: Uri = url.parse()?;
        let host = url.host().ok_or("a gateway URL without a host")?;
        let is_encrypted = url.scheme_str() == Some("wss");
        let port = url
            .port_u16()
            .unwrap_or(if is_encrypted { 443 } else { 80 });
        let request = format!("{url}?v=10&encoding=json");

        let stream = TcpStream::connect((host, port))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let control = stream.try_clone()?;
        let stream: Box<dyn Stream> = if is_encrypted {
            Box::new(TlsConnector::new()?.connect(host, stream)?)
        } else {
            Box::new(stream)
        };
        let (socket, _) =
            tungstenite::client(request, stream).map_err(|error| error.to_string())?;
        control.set_read_timeout(Some(TICK))?;

        let mut connection = Self {
            socket,
            heartbeat_interval: Duration::MAX,
            next_heartbeat: Instant::now() + PATIENCE,
            sequence: 0,
        };

        let came = connection.until("HELLO", |payload| payload["op"] == 10)?;
        let interval = came
            .last()
            .and_then(|hello| hello["d"]["heartbeat_interval"].as_u64());
        connection.heartbeat_interval =
            Duration::from_millis(interval.ok_or("HELLO has no interval")?);
        connection.next_heartbeat = Instant::now() + connection.heartbeat_interval.mul_f64(0.5);
        Ok(connection)
    }

    fn identify(&mut self, token: &str) -> Outcome<State> {
        let intents = Intents::GUILDS | Intents::GUILD_MESSAGES;
        let properties = json!({"os": env::consts::OS, "browser": "verify", "device": "verify"});
        let data = json!({"token": token, "intents": intents, "properties": properties});
        self.send(&json!({"op": 2, "d": data}))?;
        let came = self.until("READY", |payload| {
            payload["t"] == "READY" || payload["op"] == 9
        })?;
        let ready = &came.last().ok_or("nothing came")?["d"];
        let text = |field: &str| ready[field].as_str().map(str::to_owned).ok_or("no READY");
        Ok(State {
            url: text("resume_gateway_url")?,
            session: text("session_id")?,
            sequence: self.sequence,
        })
    }

    fn send(&mut self, payload: &Value) -> Outcome<()> {
        Ok(self.socket.send(Message::text(payload.to_string()))?)
    }

    fn heartbeat(&mut self) -> Outcome<()> {
        self.next_heartbeat = Instant::now() + self.heartbeat_interval;
        let sequence = self.sequence;
        self.send(&json!({"op": 1, "d": sequence}))
    }

    /// Waits a moment for the next input. Sends heartbeats that are due.
    fn next(&mut self) -> Outcome<Input> {
        if Instant::now() >= self.next_heartbeat {
            self.heartbeat()?;
        }

        match self.socket.read() {
            Ok(Message::Text(text)) => {
                let payload: Value = serde_json::from_str(&text)?;
                self.sequence = payload["s"].as_u64().unwrap_or(self.sequence);
                if payload["op"] == 1 {
                    self.heartbeat()?;
                }
                Ok(Input::Payload(payload))
            }
            Ok(Message::Close(frame)) => {
                let why = frame.map(|frame| format!("close {} {}", frame.code, frame.reason));
                Ok(Input::Closed(
                    why.unwrap_or_else(|| "a close without a code".into()),
                ))
            }
            Ok(_) => Ok(Input::Nothing),
            Err(tungstenite::Error::Io(error)) if is_time_out(&error) => Ok(Input::Nothing),
            Err(error) => Ok(Input::Closed(format!("cut: {error}"))),
        }
    }

    /// Returns all payloads up to one that satisfies a condition.
    fn until(&mut self, what: &str, is_it: impl Fn(&Value) -> bool) -> Outcome<Vec<Value>> {
        let deadline = Instant::now() + PATIENCE;
        let mut came = Vec::new();
        while Instant::now() < deadline {
            match self.next()? {
                Input::Payload(payload) => {
                    came.push(payload);
                    if came.last().is_some_and(&is_it) {
                        return Ok(came);
                    }
                }
                Input::Closed(why) => return Err(format!("{what} did not come: {why}").into()),
                Input::Nothing => {}
            }
        }
        Err(format!("{what} did not come within {PATIENCE:?}").into())
    }

    /// Describes what happens on the connection within a time.
    fn watch(&mut self, time: Duration) -> Outcome<String> {
        let start = Instant::now();
        while start.elapsed() < time {
            let end = match self.next()? {
                Input::Payload(payload) if payload["op"] == 7 => "op 7".to_owned(),
                Input::Payload(payload) if payload["op"] == 9 => format!("op 9, {}", payload["d"]),
                Input::Closed(why) => why,
                Input::Payload(_) | Input::Nothing => continue,
            };
            return Ok(format!("{end}, after {:.1?}", start.elapsed()));
        }
        Ok(format!("nothing happens within {time:?}"))
    }

    /// Waits for op 7, which Discord sends now and then, and then for the end.
    fn watch_op_7(&mut self, watch: Duration) -> Outcome<String> {
        let first = self.watch(watch)?;
        if !first.starts_with("op 7") {
            return Ok(format!("not known: {first}"));
        }
        Ok(format!("{first}; then {}", self.watch(4 * watch)?))
    }
}

fn is_time_out(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut)
}
