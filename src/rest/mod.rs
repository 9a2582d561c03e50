//! A client for Discord's HTTP API that keeps within the rate limits.

mod builder;
mod connect;
mod counters;
mod limits;
mod request;
mod response;
mod route;
mod secrets;
mod thread;
mod turns;

use std::fmt;
use std::io;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde::Deserialize;
use serde_json::Value;
use ureq::http::{self, HeaderMap, Method};
use ureq::{Agent, Body};

pub use self::builder::RestBuilder;
pub(crate) use self::builder::{check_proxy, check_rest_url, check_url};
pub use self::counters::RestCounters;
use self::limits::Answer;
use self::request::Parts;
pub use self::request::Request;
pub(crate) use self::request::not_json;
pub use self::response::Response;
use self::route::{Route, own_token};
use self::secrets::Secrets;
pub(crate) use self::thread::handle_events;
use self::turns::{Held, Place, Turns};
use crate::clock;
use crate::dial::{Dialer, ProxyError, ProxyFailure};
use crate::error::{Error, StatusError};
use crate::token::Token;

/// How many times a request is sent in total if it fails.
const ATTEMPTS: u32 = 4;

/// How many times a request is sent in total if Discord answers each time that it is rate limited.
const LIMITED_ATTEMPTS: u32 = 30;

/// The pause after the first failed attempt; it doubles.
const PAUSE: Duration = Duration::from_millis(500);

/// The longest body of a successful answer, in bytes.
const MAX_ANSWER: u64 = 16 << 20;

/// How many bytes are read of the body of an error.
const MAX_ERROR: u64 = 64 << 10;

/// The longest timeout of a call, so that no instant overflows.
const MAX_TIMEOUT: Duration = Duration::from_secs(24 * 60 * 60);

/// A client for Discord's HTTP API, with the bot's token. Cheap to clone; clones share connections
/// and rate limits. Use only one per bot: with a manager, [`Handle::rest`](crate::Handle::rest).
///
/// It keeps within Discord's rate limits. A call blocks until it is its turn, in the order of
/// arrival. It fails at once if its turn would come after its [timeout](Request::timeout). Other
/// processes with the same token use the same limits. The client notices them by the remaining
/// requests that Discord reports, and leaves them room.
///
/// There are no typed endpoints: paths and bodies are those of [Discord's
/// documentation](https://docs.discord.com/developers/reference).
///
/// The bot's token is sent only to the [base URL](RestBuilder::base_url): encrypted, or to this
/// machine, unless [`RestBuilder::allow_plaintext`] allows more. It is not sent with paths of
/// webhooks and interactions that contain their own token.
#[derive(Clone)]
pub struct Rest(Arc<Inner>);

struct Inner {
    agent: Agent,
    dialer: Arc<Dialer>,
    secrets: Secrets,
    token: Token,
    base_url: String,
    turns: Turns,
    counters: Mutex<RestCounters>,
}

/// The answer to `/gateway/bot`.
///
/// Source: [Discord, Get Gateway
/// Bot](https://docs.discord.com/developers/events/gateway#get-gateway-bot).
#[derive(Clone, Debug, Deserialize)]
#[non_exhaustive]
pub struct GatewayBot {
    /// The URL of the gateway.
    pub url: String,
    /// The number of shards that Discord recommends.
    pub shards: NonZeroU32,
    /// The limit of the bot's IDENTIFYs, and how many are left.
    pub session_start_limit: SessionStartLimit,
    /// When the request was made. The answer may not include IDENTIFYs that were sent after this.
    #[serde(skip, default = "Instant::now")]
    pub asked_at: Instant,
}

/// The limit of a bot's IDENTIFYs and how many are left, as Discord reports it.
#[derive(Clone, Debug, Deserialize)]
#[non_exhaustive]
pub struct SessionStartLimit {
    /// The number of IDENTIFYs per day.
    pub total: u32,
    /// The number of IDENTIFYs left until the reset.
    pub remaining: u32,
    /// Milliseconds until the reset.
    pub reset_after: u64,
    /// How many shards may identify at once.
    pub max_concurrency: NonZeroU32,
}

impl Rest {
    /// Creates a client of Discord's API with default settings, for a program that does not connect
    /// to the gateway. Otherwise use [`Handle::rest`](crate::Handle::rest).
    ///
    /// Fails as [`RestBuilder::build`] does.
    pub fn new(token: Token) -> Result<Self, Error> {
        Self::builder(token).build()
    }

    /// Returns a builder, for settings other than the default.
    pub fn builder(token: Token) -> RestBuilder {
        RestBuilder::new(token)
    }

    /// The URL to which paths are appended, for example `https://discord.com/api/v10`. It has no
    /// slash at the end.
    pub fn base_url(&self) -> &str {
        &self.0.base_url
    }

    /// Requests the URL of the gateway (`GET /gateway`). Discord requires no token for it.
    pub fn gateway(&self) -> Result<String, Error> {
        #[derive(Deserialize)]
        struct Gateway {
            url: String,
        }
        let gateway: Gateway = self.get("/gateway").send()?.json()?;
        Ok(gateway.url)
    }

    /// Requests the URL of the gateway, the number of shards that Discord recommends, and how many
    /// IDENTIFYs the bot has left (`GET /gateway/bot`).
    pub fn gateway_bot(&self) -> Result<GatewayBot, Error> {
        let asked_at = clock::now();
        let answer: GatewayBot = self.get("/gateway/bot").send()?.json()?;
        Ok(GatewayBot { asked_at, ..answer })
    }

    /// Requests the application that the bot belongs to (`GET /oauth2/applications/@me`).
    pub fn current_application(&self) -> Result<Value, Error> {
        self.get("/oauth2/applications/@me").send()?.json()
    }

    /// Begins a GET request, with a path such as `/channels/1`.
    pub fn get(&self, path: &str) -> Request<'_> {
        self.request("GET", path)
    }

    /// Begins a POST request, with a path such as `/channels/1/messages`.
    pub fn post(&self, path: &str) -> Request<'_> {
        self.request("POST", path)
    }

    /// Begins a PUT request, with a path such as `/guilds/1/bans/2`.
    pub fn put(&self, path: &str) -> Request<'_> {
        self.request("PUT", path)
    }

    /// Begins a PATCH request, with a path such as `/channels/1/messages/2`.
    pub fn patch(&self, path: &str) -> Request<'_> {
        self.request("PATCH", path)
    }

    /// Begins a DELETE request, with a path such as `/channels/1/messages/2`.
    pub fn delete(&self, path: &str) -> Request<'_> {
        self.request("DELETE", path)
    }

    /// Begins a request with this method, in upper or lower case. The path is relative to the
    /// [base URL](Self::base_url). Methods: DELETE, GET, HEAD, OPTIONS, PATCH, POST, PUT.
    pub fn request(&self, method: &str, path: &str) -> Request<'_> {
        Request::new(self, method, path)
    }

    /// Sends a request in one call, for example `call("POST", "/channels/1/messages",
    /// Some(&json!({"content": "pong"})))`. An answer without a body is `null`.
    ///
    /// It blocks and fails as [`Request::send`] does.
    pub fn call(&self, method: &str, path: &str, json: Option<&Value>) -> Result<Value, Error> {
        let request = self.request(method, path);
        let request = match json {
            Some(json) => request.json(json),
            None => request,
        };
        request.send()?.json()
    }

    /// Counts the requests of this client and its clones so far, by their outcome.
    pub fn counters(&self) -> RestCounters {
        self.0.counters.lock().clone()
    }

    /// The dialer of this client, for other connections that must be made in the same way.
    pub(crate) fn dialer(&self) -> Arc<Dialer> {
        Arc::clone(&self.0.dialer)
    }

    /// Fails the calls that wait for their turn, and all later calls that would have to wait.
    pub(crate) fn close(&self) {
        self.0.turns.close();
    }

    fn send(&self, parts: &Parts) -> Result<Response, Error> {
        let timeout = parts.timeout.unwrap_or_else(thread::default_timeout);
        let deadline = clock::now() + timeout.min(MAX_TIMEOUT);
        let route = Route::new(&parts.method, &parts.path);
        let place = self.0.turns.queue(route, deadline);
        self.attempts(parts, &place, deadline)
            .map_err(|failure| failure.into_error(parts))
    }

    /// Sends a request, and retries it until it has its final answer or must fail.
    fn attempts(
        &self,
        parts: &Parts,
        place: &Place<'_>,
        deadline: Instant,
    ) -> Result<Response, Failure> {
        let is_idempotent = matches!(
            parts.method,
            Method::GET | Method::HEAD | Method::PUT | Method::DELETE
        );
        let (mut pause, mut failed, mut limited) = (PAUSE, 0, 0);
        loop {
            self.wait(place, deadline)?;
            let (problem, may_repeat) = match self.attempt(parts, place, deadline) {
                Ok(Outcome::Success(response)) => return Ok(response),
                Ok(Outcome::Limited(retry_after)) => {
                    limited += 1;
                    if limited == LIMITED_ATTEMPTS {
                        let text = Some(format!("{limited} times in a row"));
                        return Err(Held::Limited { retry_after, text }.into());
                    }
                    log::info!(
                        "{} is rate limited, retrying in {retry_after:?}",
                        parts.describe()
                    );
                    place.again();
                    continue;
                }
                Ok(Outcome::Status(status, body)) if status >= 500 => {
                    (Failure::Status(status, body), is_idempotent)
                }
                Ok(Outcome::Status(status, body)) => return Err(Failure::Status(status, body)),
                Err(error) => {
                    let may_repeat =
                        was_not_connected(&error) || (is_idempotent && is_of_connection(&error));
                    (Failure::Http(error), may_repeat)
                }
            };

            failed += 1;
            let has_time = clock::now() + pause < deadline;
            if !may_repeat || failed == ATTEMPTS || !has_time {
                return Err(problem);
            }
            log::info!("{problem}, retrying {} in {pause:?}", parts.describe());
            if !place.pause(pause) {
                return Err(problem);
            }
            pause *= 2;
            place.again();
        }
    }

    /// Waits for a request's turn.
    fn wait(&self, place: &Place<'_>, deadline: Instant) -> Result<(), Held> {
        let since = clock::now();
        let waited = place.wait(deadline);
        let mut counters = self.0.counters.lock();
        match waited {
            Ok(()) => counters.wait.record(clock::now() - since, 1),
            Err(_) => counters.held += 1,
        }
        waited
    }

    /// Sends a request once.
    fn attempt(
        &self,
        parts: &Parts,
        place: &Place<'_>,
        deadline: Instant,
    ) -> Result<Outcome, ureq::Error> {
        let left = deadline.saturating_duration_since(clock::now());
        let read = self.exchange(parts, left).and_then(read);
        let read = read.inspect_err(|_| {
            self.0.counters.lock().failures += 1;
            place.failed();
        })?;

        let Read {
            status,
            headers,
            body,
        } = &read;
        *self.0.counters.lock().answers.entry(*status).or_default() += 1;
        let header = |name: &str| headers.get(name)?.to_str().ok();
        let text = if *status == 429 {
            String::from_utf8_lossy(body)
        } else {
            "".into()
        };
        let answer = Answer::new(*status, header, &text);
        place.answered(&answer);
        Ok(match answer.retry_after() {
            Some(retry_after) => Outcome::Limited(retry_after),
            None => read.into_outcome(parts),
        })
    }

    fn exchange(
        &self,
        parts: &Parts,
        timeout: Duration,
    ) -> Result<http::Response<Body>, ureq::Error> {
        // ureq logs requests, so it gets placeholders in place of the secrets.
        let mut path = parts.path.clone();
        let own = own_token(&path).map(|range| {
            let hidden = self.0.secrets.hide(&path[range.clone()]);
            path.replace_range(range, hidden.placeholder());
            hidden
        });

        let mut request = http::Request::builder()
            .method(&parts.method)
            .uri(format!("{}{path}", self.0.base_url));
        // A new placeholder for each request, so that one from a log is of no use later.
        let token = own
            .is_none()
            .then(|| self.0.secrets.hide(self.0.token.expose()));
        if let Some(token) = &token {
            request = request.header("authorization", format!("Bot {}", token.placeholder()));
        }
        if let Some(reason) = &parts.reason {
            request = request.header(request::REASON, reason);
        }
        for (name, value) in &parts.headers {
            request = request.header(name, value);
        }

        let agent = &self.0.agent;
        let fields = parts.fields();
        if parts.has_files() {
            let form = parts.form(&fields)?;
            let kind = format!("multipart/form-data; boundary={}", form.boundary());
            run(
                agent,
                request.header("content-type", kind).body(form)?,
                timeout,
            )
        } else if let Some(json) = &parts.json {
            let request = request.header("content-type", "application/json");
            run(agent, request.body(json.as_bytes())?, timeout)
        } else if matches!(parts.method, Method::POST | Method::PUT | Method::PATCH) {
            // These methods usually have a body, so an empty one needs `Content-Length: 0`.
            run(agent, request.body(&[][..])?, timeout)
        } else {
            run(agent, request.body(())?, timeout)
        }
    }
}

/// The answer to one attempt.
enum Outcome {
    Success(Response),
    /// A 429, and how long to wait.
    Limited(Duration),
    /// Any other status, and the body.
    Status(u16, String),
}

/// Why a request fails.
enum Failure {
    Held(Held),
    Status(u16, String),
    Http(ureq::Error),
}

impl From<Held> for Failure {
    fn from(held: Held) -> Self {
        Self::Held(held)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Held(_) => write!(f, "held back"),
            Self::Status(status, _) => write!(f, "HTTP {status}"),
            Self::Http(error) => write!(f, "{error}"),
        }
    }
}

impl Failure {
    fn into_error(self, parts: &Parts) -> Error {
        let request = parts.describe();
        match self {
            Self::Held(Held::Closed) => Error::Closed,
            Self::Held(Held::Limited { retry_after, text }) => Error::RateLimited {
                request,
                retry_after,
                text,
            },
            Self::Held(Held::TooManyInvalidRequests { count, retry_after }) => {
                Error::TooManyInvalidRequests {
                    request,
                    count,
                    retry_after,
                }
            }
            // Where the path has its own token, the 401 does not concern the bot's.
            Self::Status(401, _) if own_token(&parts.path).is_none() => Error::Unauthorized,
            Self::Status(status, body) => {
                Error::Status(Box::new(StatusError::new(request, status, body)))
            }
            Self::Http(ureq::Error::Other(source)) => match source.downcast() {
                Ok(error) => Error::Proxy(*error),
                Err(source) => Error::Http {
                    request,
                    source: Box::new(ureq::Error::Other(source)),
                },
            },
            Self::Http(source) => Error::Http {
                request,
                source: Box::new(source),
            },
        }
    }
}

/// An answer that has been read.
struct Read {
    status: u16,
    headers: HeaderMap,
    body: Vec<u8>,
}

impl Read {
    fn into_outcome(self, parts: &Parts) -> Outcome {
        if (200..300).contains(&self.status) {
            let request = parts.describe();
            Outcome::Success(Response::new(request, self.status, self.headers, self.body))
        } else {
            Outcome::Status(
                self.status,
                String::from_utf8_lossy(&self.body).into_owned(),
            )
        }
    }
}

fn run(
    agent: &Agent,
    request: http::Request<impl ureq::AsSendBody>,
    timeout: Duration,
) -> Result<http::Response<Body>, ureq::Error> {
    let configured = agent.configure_request(request);
    agent.run(configured.timeout_global(Some(timeout)).build())
}

/// Reads an answer. The body of an error may be cut short.
fn read(response: http::Response<Body>) -> Result<Read, ureq::Error> {
    let (head, mut body) = response.into_parts();
    let status = head.status.as_u16();
    let body = if head.status.is_success() {
        body.with_config().limit(MAX_ANSWER).read_to_vec()?
    } else {
        let mut read = Vec::new();
        let mut reader = io::Read::take(body.as_reader(), MAX_ERROR);
        // If this fails, the status is still the more useful error.
        let _ = io::Read::read_to_end(&mut reader, &mut read);
        read
    };

    Ok(Read {
        status,
        headers: head.headers,
        body,
    })
}

/// Whether a request cannot have reached Discord, so that even one that is not idempotent may be
/// retried.
fn was_not_connected(error: &ureq::Error) -> bool {
    match error {
        ureq::Error::HostNotFound
        | ureq::Error::ConnectionFailed
        | ureq::Error::Timeout(ureq::Timeout::Connect) => true,
        ureq::Error::Other(error) => {
            let proxy = error.downcast_ref::<ProxyError>();
            proxy.is_some_and(|error| !matches!(error.failure, ProxyFailure::Credentials(_)))
        }
        ureq::Error::Io(error) => matches!(
            error.kind(),
            io::ErrorKind::ConnectionRefused
                | io::ErrorKind::HostUnreachable
                | io::ErrorKind::NetworkUnreachable
                | io::ErrorKind::NetworkDown
                | io::ErrorKind::AddrNotAvailable
        ),
        _ => false,
    }
}

/// Whether a request failed because of its connection.
fn is_of_connection(error: &ureq::Error) -> bool {
    matches!(error, ureq::Error::Io(_) | ureq::Error::Protocol(_))
}

impl fmt::Debug for Rest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rest")
            .field("base_url", &self.0.base_url)
            .finish_non_exhaustive()
    }
}
