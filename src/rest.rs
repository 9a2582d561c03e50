//! The few requests that a gateway library needs, and one plain call so that a bot can answer.

use std::fmt;
use std::num::NonZeroU32;
use std::thread;
use std::time::Duration;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use ureq::http::{Method, Request, Response, StatusCode};
use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig, TlsProvider};
use ureq::{Agent, Body};

use crate::error::Error;
use crate::token::Token;

/// What Discord wants every client to call itself.
///
/// Source: [Discord, User Agent](https://docs.discord.com/developers/reference#user-agent).
const USER_AGENT: &str = concat!(
    "DiscordBot (",
    env!("CARGO_PKG_REPOSITORY"),
    ", ",
    env!("CARGO_PKG_VERSION"),
    ")"
);

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
        Ok(Self {
            agent: config.new_agent(),
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
        self.get("/gateway/bot")
    }

    /// The application that the bot belongs to.
    pub fn current_application(&self) -> Result<Value, Error> {
        self.get("/oauth2/applications/@me")
    }

    /// Any request, for example `call("POST", "/channels/1/messages", Some(&json!({"content":
    /// "pong"})))`.
    ///
    /// It blocks until the answer is there: up to 30 s for each of at most 4 attempts, and what a
    /// 429 asks to wait between them (up to 30 s each; above it, [`Error::RateLimited`]). Only a
    /// GET is repeated after a 5xx. An answer without a body is `null`.
    pub fn call(&self, method: &str, path: &str, json: Option<&Value>) -> Result<Value, Error> {
        let method = Method::from_bytes(method.as_bytes())
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
            let mut response = self
                .send(method, path, json)
                .map_err(|source| http_error(&request, source))?;
            let status = response.status();
            let body = read(&mut response).map_err(|source| http_error(&request, source))?;
            let wait = match status {
                _ if status.is_success() => return Ok(body),
                StatusCode::UNAUTHORIZED => return Err(Error::Unauthorized),
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
        let request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.base))
            .header("authorization", format!("Bot {}", self.token.expose()));
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
    Duration::try_from_secs_f64(seconds.unwrap_or(1.0)).unwrap_or(Duration::MAX)
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
    let mut parts: Vec<&str> = path.split('/').collect();
    if let ["", "interactions" | "webhooks", _, token, ..] = parts.as_mut_slice() {
        *token = "...";
    }
    format!("{method} {}", parts.join("/"))
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
    }
}
