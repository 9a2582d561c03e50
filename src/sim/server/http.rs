//! Requests and answers of HTTP/1.1.

use std::collections::HashMap;

use tungstenite::handshake::derive_accept_key;
use url::Url;

use super::super::fault::UpgradeFault;
use super::super::world::{Reply, Request};
use super::connection::Then;

/// A request that is not HTTP.
pub(super) struct Unreadable;

/// What a request is answered with: bytes, and what the connection is after them; or nothing, ever.
pub(super) enum Response {
    Bytes(Vec<u8>, Then),
    Reset,
    Hang,
}

/// Who answers requests.
pub(super) trait Responder {
    fn upgrade(&mut self, compress: Option<&str>) -> Option<UpgradeFault>;
    fn rest(&mut self, request: &Request<'_>) -> Reply;
}

/// Answers a request; `None` if it is not complete.
pub(super) fn respond(
    bytes: &[u8],
    responder: &mut impl Responder,
) -> Result<Option<Response>, Unreadable> {
    let mut headers = [httparse::EMPTY_HEADER; 64];
    let mut head = httparse::Request::new(&mut headers);
    let httparse::Status::Complete(length) = head.parse(bytes).map_err(|_| Unreadable)? else {
        return Ok(None);
    };
    let header = |name: &str| {
        let header = head
            .headers
            .iter()
            .find(|header| header.name.eq_ignore_ascii_case(name));
        header.and_then(|header| std::str::from_utf8(header.value).ok())
    };
    let (method, target) = (
        head.method.unwrap_or_default(),
        head.path.unwrap_or_default(),
    );
    let url = Url::parse("ws://host/")
        .and_then(|base| base.join(target))
        .map_err(|_| Unreadable)?;
    let mut query: HashMap<String, String> = url.query_pairs().into_owned().collect();
    if let Some(key) = header("sec-websocket-key") {
        let tail = bytes.get(length..).unwrap_or_default().to_vec();
        return Ok(Some(upgrade(key, &mut query, tail, responder)));
    }
    let body_length = header("content-length")
        .map_or(Ok(0), str::parse::<usize>)
        .map_err(|_| Unreadable)?;
    let Some(body) = bytes.get(length..length.saturating_add(body_length)) else {
        return Ok(None);
    };
    let request = Request {
        method,
        path: url.path(),
        query,
        authorization: header("authorization"),
        user_agent: header("user-agent"),
        body: &String::from_utf8_lossy(body),
    };
    Ok(Some(match responder.rest(&request) {
        Reply::Hang => Response::Hang,
        Reply::Answer {
            status,
            content_type,
            headers,
            body,
        } => {
            let headers: Vec<String> = headers
                .iter()
                .map(|(name, value)| format!("{name}: {value}\r\n"))
                .collect();
            Response::Bytes(
                answer(status, content_type, &headers.concat(), &body),
                Then::Close,
            )
        }
    }))
}

fn upgrade(
    key: &str,
    query: &mut HashMap<String, String>,
    tail: Vec<u8>,
    responder: &mut impl Responder,
) -> Response {
    match responder.upgrade(query.get("compress").map(String::as_str)) {
        Some(UpgradeFault::Refused) => return Response::Reset,
        Some(UpgradeFault::Hang) => return Response::Hang,
        Some(UpgradeFault::Status(status)) => {
            let retry = if status == 429 {
                "retry-after: 1\r\n"
            } else {
                ""
            };
            return Response::Bytes(
                answer(status, "text/plain", retry, "simulated"),
                Then::Close,
            );
        }
        None => {}
    }
    if query
        .get("encoding")
        .is_some_and(|encoding| encoding != "json")
    {
        let refusal = answer(
            400,
            "text/plain",
            "",
            "the simulated gateway speaks `encoding=json` alone",
        );
        return Response::Bytes(refusal, Then::Close);
    }
    let accepted = format!(
        "HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\n\
         sec-websocket-accept: {}\r\n\r\n",
        derive_accept_key(key.as_bytes()),
    );
    let then = Then::Open {
        compress: query.remove("compress"),
        version: query.remove("v"),
        tail,
    };
    Response::Bytes(accepted.into_bytes(), then)
}

fn answer(status: u16, content_type: &str, headers: &str, body: &str) -> Vec<u8> {
    // 204 has no body, and may not say how long it is.
    let length = if status == 204 {
        String::new()
    } else {
        format!("content-length: {}\r\n", body.len())
    };
    format!(
        "HTTP/1.1 {status} Simulated\r\ncontent-type: {content_type}\r\n{length}{headers}connection: close\r\n\r\n{body}"
    )
    .into_bytes()
}
