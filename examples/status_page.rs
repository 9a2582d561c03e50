//! A page that shows the state of every shard, for people and for programs: `/` for a browser,
//! `/status.json`, `/metrics` for Prometheus, `/healthz` (whether the bot still runs) and `/readyz`
//! (whether every shard is ready).
//!
//! ```sh
//! cargo run --example status_page    # then open http://127.0.0.1:8080
//! STATUS_ADDRESS=0.0.0.0:9000 cargo run --example status_page    # for other machines, too
//! ```
//!
//! It shows no secret, but everyone who can reach the address can read it: put a login in front of
//! it, or keep it on the loopback interface. Ctrl-C closes the bot.

mod common;

use std::error::Error;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use std::{env, thread};

use threadcord::{Intents, ShardManager};

const PAGE: &str = include_str!("status_page.html");

/// How many requests are served at once; more are refused.
const MAX_REQUESTS: usize = 32;

/// How long a client may take to send a request, and to read the response.
const PATIENCE: Duration = Duration::from_secs(5);

/// The maximum length of a request's head.
const MAX_HEAD: usize = 8 << 10;

fn main() -> Result<(), Box<dyn Error>> {
    let config = common::config(Intents::GUILDS | Intents::GUILD_MESSAGES)?;
    let address = env::var("STATUS_ADDRESS").unwrap_or_else(|_| "127.0.0.1:8080".into());
    let listener = TcpListener::bind(&address)?;
    println!("http://{}", listener.local_addr()?);

    let manager = Arc::new(ShardManager::start(config)?);
    let (shown, handle) = (Arc::clone(&manager), manager.handle().clone());
    thread::spawn(move || serve(&listener, &shown));
    ctrlc::set_handler(move || handle.request_close())?;
    manager.run(2, |_, _event| {})?;
    manager.close();
    Ok(())
}

/// Answers each request on a separate thread, so that a slow client does not block others.
fn serve(listener: &TcpListener, manager: &ShardManager) {
    let open = AtomicUsize::new(0);
    thread::scope(|scope| {
        for stream in listener.incoming() {
            let Ok(stream) = stream else {
                // No descriptor is left. Other requests may end and free some.
                thread::sleep(Duration::from_millis(100));
                continue;
            };
            let is_full = open.fetch_add(1, Ordering::SeqCst) >= MAX_REQUESTS;
            let place = Place(&open);
            if is_full {
                continue;
            }
            let thread = thread::Builder::new().name("status".into());
            // If no thread can be started, the client is refused.
            let _ = thread.spawn_scoped(scope, move || {
                let _place = place;
                // An error means that the client has disconnected, which needs no action.
                let _ = answer(stream, manager);
            });
        }
    });
}

fn answer(mut stream: TcpStream, manager: &ShardManager) -> io::Result<()> {
    let (status, kind, body) = match read_target(&mut stream)? {
        Ok(target) => page(&target, manager),
        Err(status) => (status, "text/plain", status.to_owned()),
    };

    let head = format!(
        "HTTP/1.1 {status}\r\ncontent-type: {kind}; charset=utf-8\r\ncontent-length: {}\r\n\
         cache-control: no-store\r\nx-content-type-options: nosniff\r\n\
         content-security-policy: default-src 'none'; style-src 'unsafe-inline'; \
         script-src 'unsafe-inline'; connect-src 'self'; frame-ancestors 'none'\r\n\
         connection: close\r\n\r\n",
        body.len()
    );
    let deadline = Instant::now() + PATIENCE;
    let answer = head + &body;

    let mut unsent = answer.as_bytes();
    while !unsent.is_empty() {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        stream.set_write_timeout(Some(left))?;
        let count = stream.write(unsent)?;
        unsent = &unsent[count..];
    }
    stream.shutdown(Shutdown::Write)
}

/// A request that is being served.
struct Place<'a>(&'a AtomicUsize);

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// The path of a GET request, or the status with which the request is refused.
fn read_target(stream: &mut TcpStream) -> io::Result<Result<String, &'static str>> {
    let deadline = Instant::now() + PATIENCE;
    let mut head = Vec::new();
    let mut buffer = [0; 1024];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(Err("408 Request Timeout"));
        }
        stream.set_read_timeout(Some(left))?;
        let count = stream.read(&mut buffer)?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        head.extend_from_slice(&buffer[..count]);

        let mut headers = [httparse::EMPTY_HEADER; 64];
        let mut request = httparse::Request::new(&mut headers);
        match request.parse(&head) {
            Ok(httparse::Status::Complete(_)) => {
                let target = request.path.unwrap_or_default();
                return Ok(match request.method {
                    Some("GET") => Ok(target.split('?').next().unwrap_or_default().to_owned()),
                    _ => Err("405 Method Not Allowed"),
                });
            }
            Ok(httparse::Status::Partial) if head.len() < MAX_HEAD => {}
            Ok(httparse::Status::Partial) => return Ok(Err("431 Request Header Fields Too Large")),
            Err(_) => return Ok(Err("400 Bad Request")),
        }
    }
}

/// The status, content type and body of a response.
fn page(target: &str, manager: &ShardManager) -> (&'static str, &'static str, String) {
    const OK: &str = "200 OK";
    const UNAVAILABLE: &str = "503 Service Unavailable";
    match target {
        "/" => (OK, "text/html", PAGE.to_owned()),
        "/status.json" => match serde_json::to_string(&manager.handle().status()) {
            Ok(json) => (OK, "application/json", json),
            Err(error) => ("500 Internal Server Error", "text/plain", error.to_string()),
        },
        "/metrics" => (
            OK,
            "text/plain; version=0.0.4",
            manager.handle().status().prometheus(),
        ),
        // If this fails, the process should be restarted.
        "/healthz" => match manager.check() {
            Ok(()) => (OK, "text/plain", "ok\n".to_owned()),
            Err(error) => (UNAVAILABLE, "text/plain", format!("{}\n", error.report())),
        },
        "/readyz" => {
            let status = manager.handle().status();
            let is_ready = status.is_healthy() && !status.shards.is_empty();
            let code = if is_ready { OK } else { UNAVAILABLE };
            (code, "text/plain", format!("{status}\n"))
        }
        _ => ("404 Not Found", "text/plain", "404 Not Found\n".to_owned()),
    }
}
