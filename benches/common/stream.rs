//! A gateway that encodes all its messages before a client connects, so that it costs as little as
//! possible.
//!
//! It enforces no rules. A client answers HELLO with IDENTIFY, receives READY, and then requests
//! events with `REQUEST_SOUNDBOARD_SOUNDS` (op 31), since every library can send that command. The
//! first id is the number of events; the second, if present, is the number of events per second.
//! Every [`BLOCK`]th event is a [`MARKER`].

use std::io::{self, BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use flate2::{Compress, FlushCompress};
use native_tls::{Identity, TlsAcceptor};
use serde_json::{Value, json};
use tungstenite::handshake::server::{Request, Response};
use tungstenite::protocol::frame::coding::{Data, OpCode};
use tungstenite::protocol::frame::{Frame, FrameHeader};
use tungstenite::{Message, WebSocket};
use zstd_safe::zstd_sys::ZSTD_EndDirective;
use zstd_safe::{CCtx, CParameter, InBuffer, OutBuffer};

use super::probe;

/// One of this many events is a marker.
pub(crate) const BLOCK: usize = 1000;

/// The name of the event that ends a block. No other event has this name.
pub(crate) const MARKER: &str = "MESSAGE_POLL_VOTE_ADD";

/// The argument with which a bench starts itself as a gateway.
const SERVE: &str = "serve";

/// A heartbeat interval in milliseconds, longer than a bench runs: answers to heartbeats would
/// interrupt the encoded stream.
const NEVER: u64 = 3_000_000;

/// The messages of the gateway; every client receives the same.
pub(crate) struct Script {
    /// The data of READY.
    pub(crate) ready: String,
    /// Names and data of the events after it, in order.
    pub(crate) events: Vec<(String, String)>,
    /// In milliseconds. Heartbeats are answered only without compression.
    pub(crate) heartbeat_interval: u64,
}

impl Script {
    /// Repeats the corpus until there are `count` events.
    pub(crate) fn corpus(count: usize) -> Self {
        let (ready, rest): (Vec<_>, Vec<_>) = super::parts()
            .into_iter()
            .partition(|(name, _)| name == "READY");
        let marker = (
            MARKER.to_owned(),
            r#"{"user_id":"1","channel_id":"2","message_id":"3","answer_id":1}"#.to_owned(),
        );
        let events = rest.iter().filter(|(name, _)| name != "RESUMED").cycle();
        let events = events.take(count).enumerate().map(|(n, event)| {
            if n % BLOCK == BLOCK - 1 {
                &marker
            } else {
                event
            }
        });
        Self {
            events: events.cloned().collect(),
            ready: ready[0].1.clone(),
            heartbeat_interval: NEVER,
        }
    }
}

/// The encoded frames for one compression, back to back.
struct Stream {
    greeting: Vec<u8>,
    ready: Vec<u8>,
    events: Vec<u8>,
    /// The offset at which each event begins, and that at which the last one ends.
    bounds: Vec<usize>,
}

impl Stream {
    fn new(script: &Script, compression: &str) -> Self {
        let mut encoder = Encoder::new(compression);
        let interval = script.heartbeat_interval;
        let hello = json!({"t": null, "s": null, "op": 10, "d": {"heartbeat_interval": interval}})
            .to_string();
        let (greeting, ready) = (
            encoder.frame(&hello),
            encoder.frame(&super::payload("READY", 1, &script.ready)),
        );

        let (mut events, mut bounds) = (Vec::new(), vec![0]);
        for ((name, data), sequence) in script.events.iter().zip(2..) {
            events.extend(encoder.frame(&super::payload(name, sequence, data)));
            bounds.push(events.len());
        }

        Self {
            greeting,
            ready,
            events,
            bounds,
        }
    }

    fn events(&self, from: usize, to: usize) -> &[u8] {
        &self.events[self.bounds[from]..self.bounds[to]]
    }
}

/// Encodes payloads into websocket messages, with one compression context for all of them.
pub(crate) enum Encoder {
    Plain,
    Zlib(Compress),
    Zstd(CCtx<'static>),
}

impl Encoder {
    pub(crate) fn new(compression: &str) -> Self {
        match compression {
            "zlib" => Self::Zlib(Compress::new(flate2::Compression::default(), true)),
            "zstd" => {
                let mut context = CCtx::create();
                // Discord is said to use this window size.
                context
                    .set_parameter(CParameter::WindowLog(18))
                    .expect("a window of 256 KiB");
                Self::Zstd(context)
            }
            _ => Self::Plain,
        }
    }

    fn frame(&mut self, payload: &str) -> Vec<u8> {
        let kind = if matches!(self, Self::Plain) {
            Data::Text
        } else {
            Data::Binary
        };
        frame(kind, &self.message(payload))
    }

    pub(crate) fn message(&mut self, payload: &str) -> Vec<u8> {
        let mut encoded = Vec::with_capacity(payload.len() + 1024);
        match self {
            Self::Plain => encoded.extend_from_slice(payload.as_bytes()),
            Self::Zlib(context) => {
                context
                    .compress_vec(payload.as_bytes(), &mut encoded, FlushCompress::Sync)
                    .expect("it fits");
            }
            Self::Zstd(context) => {
                let mut output = OutBuffer::around(&mut encoded);
                let mut input = InBuffer::around(payload.as_bytes());
                let flush = ZSTD_EndDirective::ZSTD_e_flush;
                assert_eq!(
                    context.compress_stream2(&mut output, &mut input, flush),
                    Ok(0),
                    "it fits"
                );
            }
        }
        encoded
    }
}

fn frame(kind: Data, payload: &[u8]) -> Vec<u8> {
    let header = FrameHeader {
        opcode: OpCode::Data(kind),
        ..FrameHeader::default()
    };
    let mut bytes = Vec::new();
    Frame::from_payload(header, payload.to_vec().into())
        .format(&mut bytes)
        .expect("a vector grows");
    bytes
}

/// The state that all connections share.
struct Gateway {
    script: Script,
    streams: Vec<(String, Stream)>,
    tls: Option<TlsAcceptor>,
}

/// Runs the gateway if this process was started as one, with the messages that `script` returns.
/// In that case it never returns.
pub(crate) fn serve_if_asked(script: impl FnOnce(&[String]) -> Script) {
    let arguments: Vec<String> = std::env::args().collect();
    let Some(at) = arguments.iter().position(|argument| argument == SERVE) else {
        return;
    };
    probe::pin(1);
    let arguments = &arguments[at + 1..];
    let script = script(arguments);
    let (tls, pem) = if arguments.iter().any(|argument| argument == "tls") {
        certificate()
    } else {
        (None, None)
    };

    let compressions = ["none", "zlib", "zstd"]
        .into_iter()
        .filter(|name| arguments.iter().any(|a| a == name));
    let streams = compressions
        .map(|name| (name.to_owned(), Stream::new(&script, name)))
        .collect();
    let gateway = Arc::new(Gateway {
        script,
        streams,
        tls,
    });
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let scheme = if gateway.tls.is_some() { "wss" } else { "ws" };
    println!(
        "{}",
        json!({"url": format!("{scheme}://{}", listener.local_addr().expect("bound")), "pem": pem})
    );

    // Its standard input closes when the process that started it ends; then it ends, too.
    thread::spawn(|| {
        let _ = io::stdin().read_line(&mut String::new());
        std::process::exit(0);
    });

    for stream in listener.incoming() {
        let gateway = Arc::clone(&gateway);
        let thread = thread::Builder::new().stack_size(256 << 10);
        thread
            .spawn(move || gateway.accept(stream.expect("a connection")))
            .expect("a thread");
    }
}

fn certificate() -> (Option<TlsAcceptor>, Option<String>) {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
    let (pem, key) = (made.cert.pem(), made.signing_key.serialize_pem());
    let identity = Identity::from_pkcs8(pem.as_bytes(), key.as_bytes()).expect("an identity");
    (
        Some(TlsAcceptor::new(identity).expect("an acceptor")),
        Some(pem),
    )
}

impl Gateway {
    fn accept(&self, stream: TcpStream) {
        stream.set_nodelay(true).expect("a socket");
        // The thread ends when the client disconnects; errors do not matter.
        let _ = match &self.tls {
            Some(tls) => tls
                .accept(stream)
                .map(|stream| self.talk(stream))
                .map_err(drop),
            None => Ok(self.talk(stream)),
        };
    }

    #[expect(
        clippy::result_large_err,
        reason = "tungstenite requires this callback type"
    )]
    fn talk<S: io::Read + Write>(&self, stream: S) -> tungstenite::Result<()> {
        let mut query = String::new();
        let client = tungstenite::accept_hdr(stream, |request: &Request, response: Response| {
            query.push_str(request.uri().query().unwrap_or_default());
            Ok(response)
        });
        let Ok(mut client) = client else {
            return Ok(());
        };
        let wanted = query
            .split('&')
            .find_map(|part| part.strip_prefix("compress="))
            .unwrap_or("none");
        let is_wanted = |(name, _): &&(String, Stream)| wanted.starts_with(name.as_str());
        let (name, stream) = self
            .streams
            .iter()
            .find(is_wanted)
            .expect("a compression that this gateway was started with");
        client.get_mut().write_all(&stream.greeting)?;

        let mut at = 0;
        loop {
            let message = client.read()?;
            if message.is_close() {
                return client.flush();
            }
            let Ok(payload) = serde_json::from_slice::<Value>(&message.into_data()) else {
                continue;
            };
            match payload["op"].as_u64() {
                Some(1) if name == "none" => {
                    client.send(Message::text(r#"{"t":null,"s":null,"op":11,"d":null}"#))?;
                }
                Some(2) => client.get_mut().write_all(&stream.ready)?,
                Some(31) => {
                    let numbers = payload["d"]["guild_ids"].as_array().expect("ids");
                    let mut numbers = numbers.iter().map(|id| {
                        id.as_str()
                            .expect("an id")
                            .parse::<u64>()
                            .expect("a number")
                    });
                    let count =
                        usize::try_from(numbers.next().expect("a count")).expect("a small one");
                    match numbers.next() {
                        None => client.get_mut().write_all(stream.events(at, at + count))?,
                        Some(rate) => self.pace(&mut client, at, count, rate)?,
                    }
                    at += count;
                }
                _ => {}
            }
        }
    }

    /// Sends events one at a time, each with the time at which it was sent.
    fn pace<S: io::Read + Write>(
        &self,
        client: &mut WebSocket<S>,
        from: usize,
        count: usize,
        rate: u64,
    ) -> tungstenite::Result<()> {
        let (start, pause) = (
            Instant::now(),
            Duration::from_secs(1) / u32::try_from(rate).expect("a rate"),
        );
        for (n, sequence) in (0..u32::try_from(count).expect("few")).zip(from + 2..) {
            let (name, data) = &self.script.events[sequence - 2];
            thread::sleep((start + pause * n).saturating_duration_since(Instant::now()));
            let data = format!(r#"{{"at":{},{}"#, probe::monotonic().as_nanos(), &data[1..]);
            client.get_mut().write_all(&frame(
                Data::Text,
                super::payload(name, sequence as u64, &data).as_bytes(),
            ))?;
        }
        Ok(())
    }
}

/// A gateway in a separate process, on the second core.
pub(crate) struct Server {
    child: Child,
    pub(crate) url: String,
    /// Its certificate, if it has one.
    pub(crate) pem: Option<String>,
}

impl Server {
    /// Starts this program as a gateway.
    pub(crate) fn start(arguments: &[&str]) -> Self {
        let mut command = Command::new(std::env::current_exe().expect("this program"));
        command
            .arg(SERVE)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut child = command.spawn().expect("it starts");
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("piped"))
            .read_line(&mut line)
            .expect("the gateway prints a line");
        let mut said: Value = serde_json::from_str(&line).expect("the line is JSON");
        let url = said["url"]
            .as_str()
            .expect("a url")
            .replace("127.0.0.1", "localhost");
        let url = if said["pem"].is_null() {
            url.replace("localhost", "127.0.0.1")
        } else {
            url
        };

        let pem = serde_json::from_value(said["pem"].take()).expect("a certificate or none");
        Self { child, url, pem }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // The process may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
