//! The few requests that a gateway library needs, and one plain call so that a bot can answer.

mod secrets;

use std::fmt;
use std::io;
use std::num::NonZeroU32;
use std::ops::Range;
use std::thread;
use std::time::{Duration, Instant};

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use ureq::http::{Method, Request, Response, StatusCode};
use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig, TlsProvider};
use ureq::unversioned::resolver::DefaultResolver;
use ureq::unversioned::transport::{Connector, DefaultConnector};
use ureq::{Agent, Body};

use self::secrets::Secrets;
use crate::clock;
use crate::error::Error;
use crate::protocol::USER_AGENT;
use crate::timing::from_secs;
use crate::token::Token;

/// How long one attempt may take.
const TIMEOUT: Duration = Duration::from_secs(30);

/// How often a request is sent in all.
const ATTEMPTS: u32 = 4;

/// The pause after the first 5xx; it doubles.
const PAUSE: Duration = Duration::from_millis(500);

/// The longest that Discord may ask to wait, in one answer, for the call to go on.
const LONGEST_RETRY_AFTER: Duration = Duration::from_secs(30);

/// The largest answer that is read.
const LARGEST_ANSWER: u64 = 16 << 20;

/// How much of an unexpected answer is quoted.
const QUOTED: usize = 200;

/// Discord's HTTP interface, with the bot's token. Cheap to clone; clones share connections.
///
/// It is no full REST client: it knows no rate limit buckets, it only heeds a 429 when it gets one.
#[derive(Clone)]
pub struct Rest {
    agent: Agent,
    secrets: Secrets,
    token: Token,
    base: String,
}

/// What `/gateway/bot` says.
///
/// Source: [Discord, Get Gateway
/// Bot](https://docs.discord.com/developers/events/gateway#get-gateway-bot).
#[derive(Clone, Debug, Deserialize)]
#[non_exhaustive]
pub struct GatewayBot {
    /// Where to connect to.
    pub url: String,
    /// How many shards Discord recommends.
    pub shards: NonZeroU32,
    /// What is left of the bot's IDENTIFYs.
    pub session_start_limit: SessionStartLimit,
    /// When Discord was asked: of IDENTIFYs that were sent since then the answer may not know.
    #[serde(skip, default = "Instant::now")]
    pub asked_at: Instant,
}

/// What is left of a bot's IDENTIFYs, as Discord sends it.
#[derive(Clone, Debug, Deserialize)]
#[non_exhaustive]
pub struct SessionStartLimit {
    /// IDENTIFYs a day.
    pub total: u32,
    /// IDENTIFYs left until the reset.
    pub remaining: u32,
    /// Milliseconds until the reset.
    pub reset_after: u64,
    /// How many shards may identify at once.
    pub max_concurrency: NonZeroU32,
}

impl Rest {
    /// A client for the API at `base`, for example `https://discord.com/api/v10`. With
    /// `root_certificates` (PEM) it trusts those alone, else what the system trusts.
    pub fn new(token: Token, base: &str, root_certificates: Option<&str>) -> Result<Self, Error> {
        let roots = match root_certificates {
            None => RootCerts::PlatformVerifier,
            Some(pem) => RootCerts::from(certificates(pem)?),
        };
        let tls = TlsConfig::builder()
            .provider(TlsProvider::NativeTls)
            .root_certs(roots)
            .build();
        let config = Agent::config_builder()
            .tls_config(tls)
            .proxy(None)
            .user_agent(USER_AGENT)
            .http_status_as_error(false)
            .max_redirects(0)
            .timeout_global(Some(TIMEOUT))
            .build();
        let secrets = Secrets::default();
        let connector = DefaultConnector::default().chain(secrets.clone());
        Ok(Self {
            agent: Agent::with_parts(config, connector, DefaultResolver::default()),
            secrets,
            token,
            base: base.trim_end_matches('/').to_owned(),
        })
    }

    /// Where the gateway is. Needs no token.
    pub fn gateway(&self) -> Result<String, Error> {
        #[derive(Deserialize)]
        struct Gateway {
            url: String,
        }
        self.get::<Gateway>("/gateway").map(|gateway| gateway.url)
    }

    /// Where the gateway is, how many shards Discord recommends, and how often the bot may still
    /// identify.
    pub fn gateway_bot(&self) -> Result<GatewayBot, Error> {
        let asked_at = clock::now();
        let answer: GatewayBot = self.get("/gateway/bot")?;
        Ok(GatewayBot { asked_at, ..answer })
    }

    /// The application that the bot belongs to.
    pub fn current_application(&self) -> Result<Value, Error> {
        self.get("/oauth2/applications/@me")
    }

    /// Any request, for example `call("POST", "/channels/1/messages", Some(&json!({"content":
    /// "pong"})))`.
    ///
    /// The bot's token is sent with it, but not to the paths of webhooks and interactions that carry
    /// a token of their own. A method in lower case is taken as well.
    ///
    /// It blocks until the answer is there: up to 30 s for each of at most 4 attempts, and what a
    /// 429 asks to wait between them (up to 30 s each; above it, [`Error::RateLimited`]). Only a
    /// GET is repeated after a 5xx, and any request whose connection could not be made. An answer without a body is `null`.
    pub fn call(&self, method: &str, path: &str, json: Option<&Value>) -> Result<Value, Error> {
        let method = Method::from_bytes(method.to_ascii_uppercase().as_bytes())
            .map_err(|_| Error::setting("method", method, "an HTTP method such as GET or POST"))?;
        if !path.starts_with('/') || path.bytes().any(|byte| !byte.is_ascii_graphic()) {
            return Err(Error::setting(
                "path",
                path,
                "a path below the API's version, with a leading slash, URL-encoded",
            ));
        }
        let request = describe(&method, path);
        let body = self.request(&method, path, json)?;
        if body.is_empty() {
            Ok(Value::Null)
        } else {
            parse(&request, &body)
        }
    }

    fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Error> {
        let body = self.request(&Method::GET, path, None)?;
        parse(&format!("GET {path}"), &body)
    }

    fn request(&self, method: &Method, path: &str, json: Option<&Value>) -> Result<String, Error> {
        let request = describe(method, path);
        let mut pause = PAUSE;
        let mut attempt = 0;
        loop {
            attempt += 1;
            let mut response = match self.send(method, path, json) {
                Ok(response) => response,
                Err(error) if was_not_connected(&error) && attempt < ATTEMPTS => {
                    log::info!("{request}: {error}; the next attempt follows in {pause:?}");
                    thread::sleep(pause);
                    pause *= 2;
                    continue;
                }
                Err(source) => return Err(http_error(&request, source)),
            };

            let status = response.status();
            let body = read(&mut response).map_err(|source| http_error(&request, source))?;
            let wait = match status {
                _ if status.is_success() => return Ok(body),
                // A webhook or an interaction has a token of its own.
                StatusCode::UNAUTHORIZED if own_token(path).is_none() => {
                    return Err(Error::Unauthorized);
                }
                StatusCode::TOO_MANY_REQUESTS => {
                    let retry_after = retry_after(&response, &body);
                    if attempt == ATTEMPTS || retry_after > LONGEST_RETRY_AFTER {
                        return Err(Error::RateLimited {
                            request,
                            retry_after,
                        });
                    }
                    retry_after
                }
                _ if status.is_server_error() && *method == Method::GET && attempt < ATTEMPTS => {
                    pause *= 2;
                    pause / 2
                }
                _ => {
                    return Err(Error::Status {
                        request,
                        status: status.as_u16(),
                        body: quote(&body),
                    });
                }
            };
            log::info!(
                "{request} was answered with {status}; the next attempt follows in {wait:?}"
            );
            thread::sleep(wait);
        }
    }

    fn send(
        &self,
        method: &Method,
        path: &str,
        json: Option<&Value>,
    ) -> Result<Response<Body>, ureq::Error> {
        // What is logged below has placeholders for them.
        let mut path = path.to_owned();
        let own = own_token(&path).map(|range| {
            let hidden = self.secrets.hide(&path[range.clone()]);
            path.replace_range(range, hidden.placeholder());
            hidden
        });

        let mut request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.base));
        let token = own
            .is_none()
            .then(|| self.secrets.hide(self.token.expose()));
        if let Some(token) = &token {
            request = request.header("authorization", format!("Bot {}", token.placeholder()));
        }

        match json {
            Some(json) => self.agent.run(
                request
                    .header("content-type", "application/json")
                    .body(json.to_string())?,
            ),
            // A length of 0 has to be said where a body is usual.
            None if matches!(*method, Method::POST | Method::PUT | Method::PATCH) => {
                self.agent.run(request.body(&[][..])?)
            }
            None => self.agent.run(request.body(())?),
        }
    }
}

impl fmt::Debug for Rest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rest")
            .field("base", &self.base)
            .finish_non_exhaustive()
    }
}

fn certificates(pem: &str) -> Result<Vec<Certificate<'static>>, Error> {
    let refused =
        |why: String| Error::setting("root_certificates", why, "one or more certificates as PEM");
    let mut certificates = Vec::new();
    for item in ureq::tls::parse_pem(pem.as_bytes()) {
        if let PemItem::Certificate(certificate) =
            item.map_err(|error| refused(error.to_string()))?
        {
            certificates.push(certificate);
        }
    }
    if certificates.is_empty() {
        Err(refused("without a certificate".into()))
    } else {
        Ok(certificates)
    }
}

fn read(response: &mut Response<Body>) -> Result<String, ureq::Error> {
    response
        .body_mut()
        .with_config()
        .limit(LARGEST_ANSWER)
        .lossy_utf8(true)
        .read_to_string()
}

/// How long a 429 asks to wait: its body is more exact than its header.
fn retry_after(response: &Response<Body>, body: &str) -> Duration {
    #[derive(Deserialize)]
    struct RateLimited {
        retry_after: f64,
    }
    let header = || {
        response
            .headers()
            .get("retry-after")?
            .to_str()
            .ok()?
            .parse()
            .ok()
    };
    let seconds = serde_json::from_str(body)
        .map(|limited: RateLimited| limited.retry_after)
        .ok()
        .or_else(header);
    seconds
        .map(from_secs)
        .filter(|wait| !wait.is_zero())
        .unwrap_or(Duration::from_secs(1))
}

fn parse<T: DeserializeOwned>(request: &str, body: &str) -> Result<T, Error> {
    serde_json::from_str(body).map_err(|source| Error::UnexpectedAnswer {
        request: request.to_owned(),
        body: quote(body),
        source,
    })
}

/// Method and path for errors and logs, without the token that a path of an interaction or webhook
/// holds.
fn describe(method: &Method, path: &str) -> String {
    match own_token(path) {
        Some(own) => format!("{method} {}...{}", &path[..own.start], &path[own.end..]),
        None => format!("{method} {path}"),
    }
}

/// The token that a path of a webhook or an interaction holds, wherever it is:
/// `/webhooks/ID/TOKEN`, `/interactions/ID/TOKEN/callback`.
fn own_token(path: &str) -> Option<Range<usize>> {
    let end = path.find(['?', '#']).unwrap_or(path.len());
    let mut parts = Vec::new();
    for part in path[..end].split('/') {
        let start = parts.last().map_or(0, |last: &Range<usize>| last.end + 1);
        parts.push(start..start + part.len());
    }
    parts.windows(3).find_map(|window| {
        let [kind, id, token] = window else {
            return None;
        };
        let is_own = matches!(&path[kind.clone()], "webhooks" | "interactions");
        (is_own && !id.is_empty() && !token.is_empty()).then(|| token.clone())
    })
}

/// Whether a request got nowhere, so that it may be sent again whatever it is.
fn was_not_connected(error: &ureq::Error) -> bool {
    match error {
        ureq::Error::HostNotFound | ureq::Error::ConnectionFailed => true,
        ureq::Error::Io(error) => error.kind() == io::ErrorKind::ConnectionRefused,
        _ => false,
    }
}

fn quote(body: &str) -> String {
    body.chars().take(QUOTED).collect()
}

fn http_error(request: &str, source: ureq::Error) -> Error {
    Error::Http {
        request: request.to_owned(),
        source: Box::new(source),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_shown_without_their_tokens() {
        let shown = |path| describe(&Method::POST, path);
        assert_eq!(
            shown("/interactions/1/secret/callback"),
            "POST /interactions/1/.../callback"
        );
        assert_eq!(shown("/webhooks/1/secret"), "POST /webhooks/1/...");
        assert_eq!(shown("/channels/1/messages"), "POST /channels/1/messages");
        assert_eq!(
            shown("/discord/webhooks/1/secret/messages/@original?wait=true"),
            "POST /discord/webhooks/1/.../messages/@original?wait=true"
        );
        assert_eq!(shown("//webhooks/1/secret"), "POST //webhooks/1/...");
        assert_eq!(shown("/webhooks/1/secret?x=/"), "POST /webhooks/1/...?x=/");
        for public in ["/webhooks/1", "/webhooks/1/", "/guilds/1/webhooks", "/", ""] {
            assert_eq!(own_token(public), None, "{public}");
        }
    }
}
