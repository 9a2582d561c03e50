//! Connects through an HTTP proxy.
#![deny(clippy::disallowed_methods)]

use std::{fmt, io, mem};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use percent_encoding::percent_decode_str;

use crate::hosts::{parse_url, port};

/// The longest response head that is read, in bytes.
const MAX_HEAD: usize = 16 << 10;

/// An HTTP proxy that opens tunnels to other hosts (`CONNECT`).
///
/// Source: [RFC 9110, CONNECT](https://www.rfc-editor.org/rfc/rfc9110#name-connect).
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Proxy {
    host: String,
    port: u16,
    /// The value of `Proxy-Authorization`.
    authorization: Option<String>,
}

impl Proxy {
    /// Parses a URL such as `http://user:password@proxy.example:3128`. The error says what is wrong
    /// with it, without the password.
    pub(crate) fn parse(given: &str) -> Result<Self, String> {
        let Some((scheme, rest)) = given.trim().split_once("://") else {
            return Err("not a URL".into());
        };
        if !scheme.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
            return Err("not a URL".into());
        }
        if !scheme.eq_ignore_ascii_case("http") {
            return Err(format!("a URL with {scheme}://"));
        }
        // The last @ ends the password. If that @ is in a path or a query, `login` contains the `/`
        // or `?` before it, and is refused below.
        let (login, host) = match rest.rsplit_once('@') {
            Some((login, host)) => (Some(login).filter(|login| !login.is_empty()), host),
            None => (None, rest),
        };
        let url = parse_url(&format!("http://{host}"), ["http", "http"]);
        let url = url.ok_or("a URL with an invalid host or port")?;
        let has_more = url.path() != "/" || url.query().is_some() || given.contains('#');
        if has_more || login.is_some_and(|login| login.contains(['/', '?', '\\'])) {
            // The URL is not shown, since it may contain a password that is not escaped.
            return Err("a URL with more than a user, a password, a host and a port".into());
        }

        let authorization = login.map(|login| {
            let (user, password) = login.split_once(':').unwrap_or((login, ""));
            let decode = |text| percent_decode_str(text).collect::<Vec<u8>>();
            BASE64_STANDARD.encode([&decode(user)[..], b":", &decode(password)].concat())
        });
        Ok(Self {
            host: url.host().unwrap_or_default().to_owned(),
            port: port(&url),
            authorization: authorization.map(|encoded| format!("Basic {encoded}")),
        })
    }

    /// The proxy's host name or IP address, and its port.
    pub(crate) fn host_and_port(&self) -> (&str, u16) {
        (&self.host, self.port)
    }

    /// Begins a tunnel to `target`, a host and a port.
    pub(super) fn tunnel(&self, target: &str) -> Tunnel {
        let authorization = self.authorization.as_ref().map_or(String::new(), |value| {
            format!("Proxy-Authorization: {value}\r\n")
        });
        let request = format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n{authorization}\r\n");
        Tunnel {
            proxy: self.to_string(),
            target: target.to_owned(),
            request: request.into_bytes(),
            answer: Vec::new(),
        }
    }

    /// The error for a failed connection to the proxy itself.
    pub(super) fn unreachable(&self, target: &str, source: io::Error) -> ProxyError {
        ProxyError {
            proxy: self.to_string(),
            target: target.to_owned(),
            failure: ProxyFailure::Unreachable(source),
        }
    }
}

/// Shows host and port, without credentials.
impl fmt::Display for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Proxy({self})")
    }
}

/// The `CONNECT` request to a proxy, and its answer.
pub(super) struct Tunnel {
    proxy: String,
    target: String,
    /// The unsent part of the request.
    request: Vec<u8>,
    /// The part of the answer that has arrived.
    answer: Vec<u8>,
}

impl Tunnel {
    /// The unsent part of the request.
    pub(super) fn unsent(&self) -> &[u8] {
        &self.request
    }

    /// Notes that this many bytes were sent.
    pub(super) fn sent(&mut self, count: usize) {
        self.request.drain(..count);
    }

    /// Takes bytes that the proxy has sent; none if it has closed the connection. Returns whether
    /// the tunnel is open.
    pub(super) fn receive(&mut self, bytes: &[u8]) -> Result<bool, ProxyError> {
        if bytes.is_empty() {
            return Err(self.fail(ProxyFailure::Closed));
        }
        self.answer.extend_from_slice(bytes);
        let mut headers = [httparse::EMPTY_HEADER; 64];
        let mut answer = httparse::Response::new(&mut headers);
        let head = match answer.parse(&self.answer) {
            Ok(httparse::Status::Complete(head)) => head,
            Ok(httparse::Status::Partial) if self.answer.len() < MAX_HEAD => return Ok(false),
            Ok(httparse::Status::Partial) | Err(_) => {
                return Err(self.fail(ProxyFailure::Malformed));
            }
        };

        match answer.code {
            // The other side of the tunnel never sends first, so no bytes may follow the head.
            Some(200..=299) if head < self.answer.len() => Err(self.fail(ProxyFailure::Malformed)),
            Some(200..=299) => Ok(true),
            Some(status @ (401 | 407)) => Err(self.fail(ProxyFailure::Credentials(status))),
            Some(status) => Err(self.fail(ProxyFailure::Refused(status))),
            None => Err(self.fail(ProxyFailure::Malformed)),
        }
    }

    /// The error that ends the tunnel.
    pub(super) fn fail(&mut self, failure: ProxyFailure) -> ProxyError {
        ProxyError {
            proxy: mem::take(&mut self.proxy),
            target: mem::take(&mut self.target),
            failure,
        }
    }
}

/// A proxy ([`Config::proxy`](crate::Config::proxy)) did not open a connection.
#[derive(Debug, thiserror::Error)]
#[error("the proxy {proxy} {failure} (for a connection to {target})")]
#[non_exhaustive]
pub struct ProxyError {
    /// The proxy's host and port.
    pub proxy: String,
    /// The host and port to which it should have connected.
    pub target: String,
    /// What went wrong.
    pub failure: ProxyFailure,
}

/// Why a proxy did not open a connection.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProxyFailure {
    /// The proxy itself cannot be reached.
    #[error("cannot be reached: {0}")]
    Unreachable(io::Error),
    /// It requires credentials, or rejects those it got: HTTP 407, or 401, which some proxies send
    /// instead.
    #[error("requires valid credentials in its URL (HTTP {0})")]
    Credentials(u16),
    /// It answered with this HTTP status: it does not allow the connection, or it cannot reach the
    /// target.
    #[error("refused with HTTP {0}")]
    Refused(u16),
    /// It closed the connection before it had answered, or the connection was lost.
    #[error("closed the connection without an answer")]
    Closed,
    /// Its answer is not valid HTTP.
    #[error("did not answer as an HTTP proxy does")]
    Malformed,
    /// It did not answer in time.
    #[error("did not answer in time")]
    TimedOut,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_checked_and_keep_their_secrets() {
        let proxy = Proxy::parse("http://us%65r:p%3Ass@[::1]:3128").unwrap();
        assert_eq!(proxy.host_and_port(), ("[::1]", 3128));
        let text = format!("{proxy:?} {proxy}");
        assert_eq!(text, "Proxy([::1]:3128) [::1]:3128");
        let tunnel = proxy.tunnel("gateway.discord.gg:443");
        let request = String::from_utf8(tunnel.unsent().to_vec()).unwrap();
        let encoded = BASE64_STANDARD.encode("user:p:ss");
        assert_eq!(
            request,
            format!(
                "CONNECT gateway.discord.gg:443 HTTP/1.1\r\nHost: gateway.discord.gg:443\r\n\
                 Proxy-Authorization: Basic {encoded}\r\n\r\n"
            )
        );
        assert_eq!(Proxy::parse("http://p").unwrap().host_and_port(), ("p", 80));

        for wrong in [
            "",
            "proxy:3128",
            "socks5://p:1",
            "https://p:1",
            "http://p/x",
            "http://p?x",
        ] {
            assert!(Proxy::parse(wrong).is_err(), "{wrong}");
        }
        for leaking in [
            "ftp://user:secret@p",
            "http://user:12/secret@p:3128",
            "http://user:/secret@p",
            "http://user:1\\secret@p",
            "http://tok/secret@p",
            "http://user:secret@p/path",
            "http://user:secret@[p",
            "http://user:secret@p:99999",
            "user:secret@p://",
        ] {
            let wrong = Proxy::parse(leaking).unwrap_err();
            assert!(!wrong.contains("secret"), "{wrong}");
        }
    }

    #[test]
    fn answers_may_come_in_pieces_and_need_not_be_http() {
        let tunnel = || Proxy::parse("http://p:1").unwrap().tunnel("t:2");
        let mut pieces = tunnel();
        let answer = b"HTTP/1.1 200 Connection established\r\nVia: x\r\n\r\n";
        let (last, others) = answer.split_last().unwrap();
        for byte in others {
            assert!(!pieces.receive(&[*byte]).unwrap());
        }
        assert!(pieces.receive(&[*last]).unwrap());

        let failure = |answer: &[u8]| tunnel().receive(answer).unwrap_err().failure;
        assert!(matches!(failure(b""), ProxyFailure::Closed));
        let refused = failure(b"HTTP/1.0 403 Forbidden\r\n\r\n<html>");
        assert!(matches!(refused, ProxyFailure::Refused(403)));
        let unauthorized = failure(b"HTTP/1.1 407 x\r\nProxy-Authenticate: Basic\r\n\r\n");
        assert!(matches!(unauthorized, ProxyFailure::Credentials(407)));
        for malformed in [
            &b"\x16\x03\x01"[..],
            b"HTTP/1.1 200 OK\r\n\r\ntoo much",
            &[b'a'; MAX_HEAD],
            &[&b"HTTP/1.1 200 OK\r\nx: "[..], &[b'a'; MAX_HEAD]].concat(),
        ] {
            assert!(matches!(failure(malformed), ProxyFailure::Malformed));
        }

        let error = tunnel().receive(b"HTTP/1.1 503 x\r\n\r\n").unwrap_err();
        assert_eq!(
            error.to_string(),
            "the proxy p:1 refused with HTTP 503 (for a connection to t:2)"
        );
    }
}
