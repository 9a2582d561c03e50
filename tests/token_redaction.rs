//! No log line at any level contains a secret, and each secret is sent only where it belongs.

mod common;

use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::Arc;

use common::{config, counters_of, eventually, gateway, lines, ready};
use log::LevelFilter;
use parking_lot::Mutex;
use threadcord::rest::Rest;
use threadcord::sim::Fault;
use threadcord::{Compression, Error, ShardId, Token};

/// The token of a webhook or an interaction.
const OWN: &str = "aW50ZXJhY3Rpb246b2Ytc29tZWJvZHk6c2VjcmV0";

/// A server that records the heads of requests and refuses each request.
fn refusing() -> (String, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/api/v10", listener.local_addr().unwrap());
    let heads = Arc::<Mutex<Vec<String>>>::default();
    let kept = Arc::clone(&heads);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (mut stream, mut head) = (stream.unwrap(), Vec::new());
            while !head.ends_with(b"\r\n\r\n") {
                let mut byte = [0];
                stream.read_exact(&mut byte).unwrap();
                head.extend(byte);
            }
            kept.lock().push(String::from_utf8(head).unwrap());
            let body = r#"{"message":"Invalid Webhook Token","code":50027}"#;
            let length = body.len();
            let answer = format!(
                "HTTP/1.1 401 X\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}"
            );
            stream.write_all(answer.as_bytes()).unwrap();
        }
    });
    (url, heads)
}

/// The bytes of all hex dumps in the log, which have sixteen bytes per line.
fn dumped(lines: &[String]) -> String {
    let dumps = lines.iter().filter(|line| line.contains("ureq_proto"));
    dumps
        .map(|line| {
            let from = line.len().saturating_sub(16);
            line.get(from..).unwrap_or_default()
        })
        .collect()
}

#[test]
fn no_line_shows_a_secret() {
    lines::keep(LevelFilter::Trace);
    let gateway = gateway().guilds(1).tls(true).start().unwrap();
    let manager = ready(config(&gateway).compression(Compression::None));
    gateway.inject(ShardId::ONE, Fault::Cut);
    eventually("it resumes", || {
        counters_of(&manager, ShardId::ONE).resumes == 1
    });
    manager.handle().rest().current_application().unwrap();

    // Requests with their own token do not get the bot's token, and their failure does not count
    // against it.
    let (url, heads) = refusing();
    let rest = Rest::builder(Token::new(gateway.token()).unwrap())
        .base_url(&url)
        .build()
        .unwrap();
    for path in [
        format!("/webhooks/1/{OWN}?wait=true"),
        format!("/interactions/1/{OWN}/callback"),
    ] {
        let error = rest.call("post", &path, None).unwrap_err();
        assert!(error.to_string().contains("50027"), "{error}");
        assert!(!error.report().contains(OWN), "{error}");
        let head = heads.lock().pop().unwrap();
        assert!(
            head.starts_with(&format!("POST /api/v10{path} HTTP/1.1")),
            "{head}"
        );
        assert!(!head.to_lowercase().contains("authorization"), "{head}");
    }
    let error = rest.call("GET", "/webhooks/1", None).unwrap_err();
    assert!(matches!(error, Error::Unauthorized), "{error}");
    let head = heads.lock().pop().unwrap();
    assert!(
        head.contains(&format!("authorization: Bot {}\r\n", gateway.token())),
        "{head}"
    );
    manager.close();

    let lines = lines::kept();
    let of_ours: Vec<_> = lines
        .iter()
        .filter(|line| line.contains("threadcord"))
        .collect();
    assert!(of_ours.len() > 5, "the logger sees this crate: {of_ours:?}");
    // The gateway's end of the connection logs what it received. In reality that is another
    // program.
    let of_this_side = |line: &&String| !line.contains("Received message {\"d\"");
    let dump = dumped(&lines);
    assert!(
        dump.contains("/interactions/1/hidden-"),
        "it sees the dumps: {dump}"
    );
    for secret in [gateway.token(), OWN] {
        let telling: Vec<_> = lines
            .iter()
            .filter(of_this_side)
            .filter(|line| line.contains(secret))
            .collect();
        assert!(telling.is_empty(), "{telling:#?}");
        assert!(!dump.contains(&secret[..20]), "{dump}");
    }
}
