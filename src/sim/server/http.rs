//! Reads HTTP/1.1 requests and writes the responses.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::Uri;
use tungstenite::handshake::derive_accept_key;

use super::super::fault::UpgradeFault;
use super::super::world::{Answered, Incoming, Manner, Reply};
use super::connection::Then;

/// The maximum size of a body, in bytes. Discord accepts less in files.
const MAX_BODY: usize = 32 << 20;
const MAX_HEAD: usize = 64 << 10;
const HEADERS: usize = 100;

/// Why a request cannot be read: it is not HTTP, or it is too large.
#[derive(Debug, PartialEq)]
pub(super) enum Unreadable {
    NotHttp,
    TooLarge,
}

/// The response to a request. `Bytes` also has what follows on the connection; `Hang` never
/// answers.
pub(super) enum Response {
    Bytes(Vec<u8>, Then),
    /// These bytes, at this many bytes a second.
    Slow(Vec<u8>, u32),
    Reset,
    Hang,
}

/// Decides how requests are answered.
pub(super) trait Responder {
    fn upgrade(&mut self, compress: Option<&str>) -> Option<UpgradeFault>;
    fn rest(&mut self, request: &Incoming<'_>) -> Reply;
}

/// Reads the requests of a connection one after the other.
#[derive(Default)]
pub(super) struct Reader {
    bytes: Vec<u8>,
    head: Option<Head>,
    /// The position in a chunked body, and the content read so far.
    chunks: Chunks,
}

struct Head {
    method: String,
    target: String,
    headers: Vec<(String, String)>,
    /// The length of the head, in bytes.
    length: usize,
    is_last: bool,
}

#[derive(Default)]
struct Chunks {
    at: usize,
    body: Vec<u8>,
}

impl Head {
    fn header(&self, name: &str) -> Option<&str> {
        let mut headers = self.headers.iter();
        headers
            .find(|(other, _)| other == name)
            .map(|(_, value)| value.as_str())
    }
}

impl Reader {
    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// Takes the head and the body of the next request, once it is complete.
    fn next(&mut self) -> Result<Option<(Head, Vec<u8>)>, Unreadable> {
        if self.head.is_none() {
            self.head = head(&self.bytes)?;
        }
        let Some(head) = &self.head else {
            return Ok(None);
        };

        let is_chunked = head
            .header("transfer-encoding")
            .is_some_and(|encoding| encoding.eq_ignore_ascii_case("chunked"));
        let (body, end) = if head.header("sec-websocket-key").is_some() {
            (Vec::new(), head.length)
        } else if is_chunked {
            self.chunks.at = self.chunks.at.max(head.length);
            if !self.chunks.read(&self.bytes)? {
                return Ok(None);
            }
            (std::mem::take(&mut self.chunks.body), self.chunks.at)
        } else {
            let length = head.header("content-length").map_or(Ok(0), str::parse);
            let length: usize = length.map_err(|_| Unreadable::NotHttp)?;
            if length > MAX_BODY {
                return Err(Unreadable::TooLarge);
            }
            let end = head.length + length;
            let Some(body) = self.bytes.get(head.length..end) else {
                return Ok(None);
            };
            (body.to_vec(), end)
        };

        self.bytes.drain(..end);
        self.chunks = Chunks::default();
        Ok(self.head.take().map(|head| (head, body)))
    }
}

/// Parses the head of a request; `None` if it is not complete.
fn head(bytes: &[u8]) -> Result<Option<Head>, Unreadable> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS];
    let mut request = httparse::Request::new(&mut headers);
    let parsed = request.parse(bytes).map_err(|_| Unreadable::NotHttp)?;
    let httparse::Status::Complete(length) = parsed else {
        return if bytes.len() < MAX_HEAD {
            Ok(None)
        } else {
            Err(Unreadable::TooLarge)
        };
    };

    let headers = request.headers.iter().map(|header| {
        let value = String::from_utf8_lossy(header.value).into_owned();
        (header.name.to_ascii_lowercase(), value)
    });
    let mut head = Head {
        method: request.method.unwrap_or_default().to_owned(),
        target: request.path.unwrap_or_default().to_owned(),
        headers: headers.collect(),
        length,
        is_last: request.version == Some(0),
    };
    let connection = head.header("connection").unwrap_or_default();
    head.is_last |= connection.eq_ignore_ascii_case("close");
    Ok(Some(head))
}

impl Chunks {
    /// Reads more chunks. Returns whether the last one has been read.
    fn read(&mut self, bytes: &[u8]) -> Result<bool, Unreadable> {
        loop {
            let rest = bytes.get(self.at..).unwrap_or_default();
            let parsed = httparse::parse_chunk_size(rest).map_err(|_| Unreadable::NotHttp)?;
            let httparse::Status::Complete((start, size)) = parsed else {
                return if rest.len() < MAX_HEAD {
                    Ok(false)
                } else {
                    Err(Unreadable::TooLarge)
                };
            };
            let size = usize::try_from(size).unwrap_or(usize::MAX);
            if size > MAX_BODY - self.body.len() {
                return Err(Unreadable::TooLarge);
            }

            if size == 0 {
                // Trailers follow the last chunk. They are ignored.
                let mut trailers = [httparse::EMPTY_HEADER; HEADERS];
                let trailers = httparse::parse_headers(&rest[start..], &mut trailers);
                let trailers = trailers.map_err(|_| Unreadable::NotHttp)?;
                let httparse::Status::Complete((length, _)) = trailers else {
                    return Ok(false);
                };
                self.at += start + length;
                return Ok(true);
            }
            let end = start + size;
            let Some(b"\r\n") = rest.get(end..end + 2) else {
                // The chunk is not complete, or longer than its announced size.
                return if rest.len() >= end + 2 {
                    Err(Unreadable::NotHttp)
                } else {
                    Ok(false)
                };
            };
            self.body.extend_from_slice(&rest[start..end]);
            self.at += end + 2;
        }
    }
}

/// Answers the next request; `None` if it is not complete.
pub(super) fn respond(
    reader: &mut Reader,
    responder: &mut impl Responder,
) -> Result<Option<Response>, Unreadable> {
    let (head, body) = match reader.next() {
        Ok(Some(request)) => request,
        Ok(None) => return Ok(None),
        Err(Unreadable::NotHttp) => return Err(Unreadable::NotHttp),
        Err(Unreadable::TooLarge) => {
            let body = r#"{"message": "Request entity too large", "code": 40005}"#;
            let bytes = answer(413, "application/json", &[], body, true);
            return Ok(Some(Response::Bytes(bytes, Then::Close)));
        }
    };
    let target: Uri = head.target.parse().map_err(|_| Unreadable::NotHttp)?;
    let query = form_urlencoded::parse(target.query().unwrap_or_default().as_bytes());
    let query: BTreeMap<String, String> = query.into_owned().collect();
    if let Some(key) = head.header("sec-websocket-key") {
        let tail = std::mem::take(&mut reader.bytes);
        return Ok(Some(upgrade(key, &query, tail, responder)));
    }

    let is_last = head.is_last;
    let incoming = Incoming {
        method: &head.method,
        path: target.path(),
        query,
        headers: head.headers,
        body: &body,
    };
    Ok(Some(match responder.rest(&incoming) {
        // `Ask` cannot occur: the responder has already called the handler.
        Reply::Hang | Reply::Ask(..) => Response::Hang,
        Reply::Reset | Reply::Answer(_, Manner::Reset) => Response::Reset,
        Reply::Answer(answered, manner) => respond_with(&answered, manner, is_last),
    }))
}

fn respond_with(answered: &Answered, manner: Manner, is_last: bool) -> Response {
    let Answered {
        status,
        content_type,
        headers,
        body,
    } = answered;
    let is_last = is_last || manner != Manner::Whole;

    let mut bytes = answer(*status, content_type, headers, body, is_last);
    match manner {
        Manner::Slow(rate) => Response::Slow(bytes, rate),
        Manner::Truncated => {
            bytes.truncate(bytes.len() - body.len().div_ceil(2));
            Response::Bytes(bytes, Then::Close)
        }
        _ if is_last => Response::Bytes(bytes, Then::Close),
        _ => Response::Bytes(bytes, Then::Request),
    }
}

fn upgrade(
    key: &str,
    query: &BTreeMap<String, String>,
    tail: Vec<u8>,
    responder: &mut impl Responder,
) -> Response {
    match responder.upgrade(query.get("compress").map(String::as_str)) {
        Some(UpgradeFault::Refused) => return Response::Reset,
        Some(UpgradeFault::Hang) => return Response::Hang,
        Some(UpgradeFault::Status(status)) => {
            let retry = (status == 429).then(|| ("retry-after".to_owned(), "1".to_owned()));
            let retry: Vec<_> = retry.into_iter().collect();
            let refusal = answer(status, "text/plain", &retry, "simulated", true);
            return Response::Bytes(refusal, Then::Close);
        }
        None => {}
    }
    let encoding = query.get("encoding");
    if encoding.is_some_and(|encoding| encoding != "json") {
        let message = "the simulated gateway speaks `encoding=json` alone";
        let refusal = answer(400, "text/plain", &[], message, true);
        return Response::Bytes(refusal, Then::Close);
    }

    let accepted = format!(
        "HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\n\
         sec-websocket-accept: {}\r\n\r\n",
        derive_accept_key(key.as_bytes()),
    );
    let then = Then::Open {
        compress: query.get("compress").cloned(),
        version: query.get("v").cloned(),
        tail,
    };
    Response::Bytes(accepted.into_bytes(), then)
}

fn answer(
    status: u16,
    content_type: &str,
    headers: &[(String, String)],
    body: &str,
    is_last: bool,
) -> Vec<u8> {
    // A 204 has no body, and must not have the headers for its length and its type.
    let about = if status == 204 {
        String::new()
    } else {
        format!(
            "content-type: {content_type}\r\ncontent-length: {}\r\n",
            body.len()
        )
    };
    let headers = headers
        .iter()
        .flat_map(|(name, value)| [name, ": ", value, "\r\n"]);
    let headers: String = headers.collect();
    let connection = if is_last { "close" } else { "keep-alive" };
    let date = date(SystemTime::now());
    let body = if status == 204 { "" } else { body };
    format!(
        "HTTP/1.1 {status} Simulated\r\ndate: {date}\r\n{about}{headers}\
         connection: {connection}\r\n\r\n{body}"
    )
    .into_bytes()
}

/// Formats a date like `Sun, 06 Nov 1994 08:49:37 GMT`.
///
/// Source: [RFC 9110, Date/Time
/// Formats](https://www.rfc-editor.org/rfc/rfc9110#name-date-time-formats).
fn date(at: SystemTime) -> String {
    const DAYS: [&str; 7] = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"];
    const MONTHS: [&str; 12] = [
        "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
    ];
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let day = usize::try_from(since / 86_400 % 7).unwrap_or_default();

    // Like `2026-11-28T09:15:00Z`.
    let text = humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_secs(since));
    let text = text.to_string();
    let month: usize = text[5..7].parse().unwrap_or(1);
    format!(
        "{}, {} {} {} {} GMT",
        DAYS[day],
        &text[8..10],
        MONTHS[month - 1],
        &text[..4],
        &text[11..19]
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads a request that arrives byte by byte.
    fn read(reader: &mut Reader, bytes: &[u8]) -> Vec<(String, Vec<u8>)> {
        let mut requests = Vec::new();
        for byte in bytes {
            reader.push(&[*byte]);
            while let Some((head, body)) = reader.next().unwrap() {
                requests.push((head.target, body));
            }
        }
        requests
    }

    #[test]
    fn dates_are_those_of_http() {
        let at = UNIX_EPOCH + Duration::from_secs(784_111_777);
        assert_eq!(date(at), "Sun, 06 Nov 1994 08:49:37 GMT");
    }

    #[test]
    fn requests_come_one_after_the_other() {
        let bytes = b"GET /a HTTP/1.1\r\n\r\nPOST /b HTTP/1.1\r\ncontent-length: 3\r\n\r\nabc\
            POST /c HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nde\r\n1;x=y\r\nf\r\n0\r\n\r\n\
            PUT /d HTTP/1.1\r\ncontent-length: 0\r\n\r\n";
        let requests = read(&mut Reader::default(), bytes);
        let bodies = requests
            .iter()
            .map(|(target, body)| (target.as_str(), body.as_slice()));
        let expected: [(&str, &[u8]); 4] =
            [("/a", b""), ("/b", b"abc"), ("/c", b"def"), ("/d", b"")];
        assert!(bodies.eq(expected), "{requests:?}");
    }

    #[test]
    fn what_is_too_large_or_no_http_is_refused() {
        for (bytes, expected) in [
            ("nonsense\r\n\r\n".to_owned(), Unreadable::NotHttp),
            (
                "GET / HTTP/1.1\r\ncontent-length: 99999999999\r\n\r\n".to_owned(),
                Unreadable::TooLarge,
            ),
            (
                "GET / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\nffffffff\r\n".to_owned(),
                Unreadable::TooLarge,
            ),
            (
                "GET / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n1\r\nabc\r\n".to_owned(),
                Unreadable::NotHttp,
            ),
            (
                format!("GET /{}", "a".repeat(MAX_HEAD)),
                Unreadable::TooLarge,
            ),
        ] {
            let mut reader = Reader::default();
            reader.push(bytes.as_bytes());
            assert_eq!(reader.next().err(), Some(expected), "{}", &bytes[..40]);
        }
    }
}
