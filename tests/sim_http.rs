//! The simulator's HTTP interface over real sockets: connections that stay open, bodies in chunks
//! and forms, hostile answers, and user-defined handlers.

mod common;

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;

use common::PATIENCE;
use serde_json::json;
use threadcord::sim::{Fault, Gateway, Response, Target};

struct Client {
    stream: TcpStream,
    token: String,
}

/// A status, the head and the body.
type Answer = (u16, String, String);

impl Client {
    fn new(gateway: &Gateway) -> Self {
        let url = gateway.rest_url();
        let address = url
            .trim_start_matches("http://")
            .trim_end_matches("/api/v10");
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let token = gateway.token().to_owned();
        Self { stream, token }
    }

    fn send(&mut self, method: &str, path: &str, headers: &str, body: &[u8]) {
        let head = format!(
            "{method} /api/v10{path} HTTP/1.1\r\nhost: sim\r\nauthorization: Bot {}\r\n\
             user-agent: DiscordBot (test, 1)\r\n{headers}\r\n",
            self.token
        );
        self.stream.write_all(head.as_bytes()).unwrap();
        self.stream.write_all(body).unwrap();
    }

    /// Reads an answer; `None` if the connection ends before it is whole.
    fn read(&mut self) -> Option<Answer> {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            match self.stream.read(&mut byte) {
                Ok(1) => head.push(byte[0]),
                Ok(_) => return None,
                Err(error) if error.kind() == ErrorKind::ConnectionReset => return None,
                Err(error) => panic!("{error}"),
            }
        }

        let head = String::from_utf8(head).unwrap();
        let length = head
            .lines()
            .find_map(|line| line.strip_prefix("content-length: "));
        let mut body = vec![0; length.map_or(0, |length| length.parse().unwrap())];
        self.stream.read_exact(&mut body).ok()?;
        let status = head[9..12].parse().unwrap();
        Some((status, head, String::from_utf8(body).unwrap()))
    }

    fn get(&mut self, path: &str) -> Option<Answer> {
        self.send("GET", path, "", b"");
        self.read()
    }
}

fn gateway() -> Gateway {
    let limit = std::time::Duration::from_millis(1);
    Gateway::builder()
        .guilds(1)
        .rest_limit(1000, limit)
        .start()
        .unwrap()
}

#[test]
fn a_connection_carries_many_requests() {
    let gateway = gateway();
    let mut client = Client::new(&gateway);
    for _ in 0..3 {
        let (status, head, _) = client.get("/users/@me").unwrap();
        assert_eq!(status, 200);
        assert!(head.contains("connection: keep-alive"), "{head}");
    }
    // Two at once.
    client.send("GET", "/gateway", "", b"");
    client.send("GET", "/users/%40me", "connection: close\r\n", b"");
    assert!(client.read().unwrap().2.contains("\"url\""));
    let (_, head, body) = client.read().unwrap();
    assert!(head.contains("connection: close") && body.contains("simulated bot"));
    assert_eq!(client.read(), None);
}

#[test]
fn no_content_has_neither_type_nor_length() {
    let gateway = gateway();
    let channel = gateway.channel_of(gateway.guild_ids()[0]).unwrap();
    let mut client = Client::new(&gateway);
    client.send(
        "POST",
        &format!("/channels/{channel}/typing"),
        "content-length: 0\r\n",
        b"",
    );
    let (status, head, _) = client.read().unwrap();
    assert_eq!(status, 204);
    assert!(!head.contains("content-"), "{head}");
    assert_eq!(
        client.get("/users/@me").unwrap().0,
        200,
        "the connection stays open"
    );
}

#[test]
fn a_file_comes_in_a_form_and_in_chunks() {
    let gateway = gateway();
    let channel = gateway.channel_of(gateway.guild_ids()[0]).unwrap();
    let mut client = Client::new(&gateway);
    let cat = vec![7; 3_000_000];
    let mut form = b"--x\r\ncontent-disposition: form-data; name=\"payload_json\"\r\n\r\n\
        {\"content\":\"a cat\",\"attachments\":[{\"id\":0,\"description\":\"sleeps\"}]}\r\n\
        --x\r\ncontent-disposition: form-data; name=\"files[0]\"; filename=\"cat.png\"\r\n\
        content-type: image/png\r\n\r\n"
        .to_vec();
    form.extend(&cat);
    form.extend(b"\r\n--x--\r\n");
    let mut chunked = Vec::new();
    for chunk in form.chunks(100_000) {
        write!(chunked, "{:x}\r\n", chunk.len()).unwrap();
        chunked.extend(chunk);
        chunked.extend(b"\r\n");
    }
    chunked.extend(b"0\r\n\r\n");
    let headers = "content-type: multipart/form-data; boundary=x\r\ntransfer-encoding: chunked\r\n";
    client.send(
        "POST",
        &format!("/channels/{channel}/messages"),
        headers,
        &chunked,
    );
    let (status, _, body) = client.read().unwrap();
    let message: serde_json::Value = serde_json::from_str(&body).unwrap();
    let attachment = &message["attachments"][0];
    assert_eq!(
        (status, &attachment["size"]),
        (200, &json!(3_000_000)),
        "{body}"
    );
    assert_eq!(
        (&attachment["description"], &attachment["content_type"]),
        (&json!("sleeps"), &json!("image/png"))
    );

    let request = gateway.expect_request("POST", "/channels/{}/messages", PATIENCE);
    assert_eq!(request.json["content"], "a cat");
    assert!(request.files[0].name == "cat.png" && request.files[0].bytes == cat);
}

#[test]
fn hostile_answers_come_on_request() {
    let gateway = gateway();
    let inject = |fault: &str| gateway.inject(Target::All, fault.parse::<Fault>().unwrap());
    let get = || Client::new(&gateway).get("/users/@me");
    inject("rest=503");
    assert_eq!(get().unwrap().0, 503);
    inject("rest=html");
    assert!(get().unwrap().1.contains("text/html"));
    inject("rest=429:shared");
    assert!(get().unwrap().1.contains("x-ratelimit-scope: shared"));
    inject("rest=redirect:http://127.0.0.1:1/");
    assert!(get().unwrap().1.contains("location: http://127.0.0.1:1/"));

    for fault in ["rest=truncated", "rest=reset", "rest=reset-after"] {
        inject(fault);
        assert_eq!(get(), None, "{fault}");
    }

    inject("rest=slow:2000");
    let start = std::time::Instant::now();
    assert_eq!(get().unwrap().0, 200);
    assert!(start.elapsed().as_millis() > 100, "{:?}", start.elapsed());
    let carried_out = gateway
        .observed()
        .count(|action| matches!(action, threadcord::sim::Action::Request { status: 200, .. }));
    assert_eq!(
        carried_out, 3,
        "truncated, reset after and slow are carried out"
    );
}

#[test]
fn a_handler_answers_its_route() {
    let gateway = Arc::new(gateway());
    let guild = gateway.guild_ids()[0];
    let inner = Arc::downgrade(&gateway);
    gateway.on("PATCH", "/guilds/{}/roles/{}", move |request| {
        // It may use the gateway.
        let guilds = inner
            .upgrade()
            .map_or(0, |gateway| gateway.guild_ids().len());
        Response::json(
            200,
            json!({"id": request.parameters[1], "name": request.json["name"], "guilds": guilds}),
        )
    });
    gateway.on("GET", "/users/@me", |_| panic!("it panics"));
    let mut client = Client::new(&gateway);
    let body = br#"{"name":"crabs"}"#;
    client.send(
        "PATCH",
        &format!("/guilds/{guild}/roles/5"),
        "content-length: 16\r\n",
        body,
    );
    let (status, head, body) = client.read().unwrap();
    assert_eq!(
        (status, body.as_str()),
        (200, r#"{"guilds":1,"id":"5","name":"crabs"}"#)
    );
    assert!(head.contains("x-ratelimit-remaining"), "{head}");
    assert_eq!(client.get("/users/@me").unwrap().0, 500);
    gateway.on("GET", "/users/@me", |_| {
        Response::error(404, 10013, "Unknown User")
    });
    assert!(client.get("/users/@me").unwrap().2.contains("10013"));
}

#[test]
#[should_panic = "no DELETE /channels/{} within 10ms; received instead: [\n    \"GET /users/@me\",\n]"]
fn a_request_that_does_not_come_is_missed() {
    let gateway = gateway();
    Client::new(&gateway).get("/users/@me").unwrap();
    gateway.expect_request(
        "DELETE",
        "/channels/{}",
        std::time::Duration::from_millis(10),
    );
}
