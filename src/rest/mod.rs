//! Discord's HTTP interface, within its rate limits: so that a bot can answer.

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

/// How often a request is sent in all, if it does not get through.
const ATTEMPTS: u32 = 4;

/// How often it is sent in all, if Discord answers that it is rate limited.
const LIMITED_ATTEMPTS: u32 = 30;

/// The pause after the first failed attempt; it doubles.
const PAUSE: Duration = Duration::from_millis(500);

/// The largest answer that is read.
const MAX_ANSWER: u64 = 16 << 20;

/// How much of an answer is read if it is an error.
const MAX_ERROR: u64 = 64 << 10;

/// No call takes longer, so that no instant overflows.
const MAX_TIMEOUT: Duration = Duration::from_secs(24 * 60 * 60);

/// Discord's HTTP interface, with the bot's token. Cheap to clone; clones share connections and
/// rate limits, so have one for each bot, such as [`Handle::rest`](crate::Handle::rest).
///
/// It keeps Discord's rate limits: a call blocks until it is its turn, in the order of arrival, or
/// fails at once if that would take longer than it may. Other processes with the same token spend
/// from the same limits; it sees that by what Discord says is left, and makes room.
///
/// There are no typed endpoints: paths and bodies are those of [Discord's
/// documentation](https://docs.discord.com/developers/reference).
///
/// The bot's token is sent to this base URL alone, encrypted or to this machine, and not with the
/// paths of webhooks and interactions that carry a token of their own.
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
    /// The API of Discord itself, for a bot without a gateway. See also
    /// [`Handle::rest`](crate::Handle::rest).
    pub fn new(token: Token) -> Result<Self, Error> {
        Self::builder(token).build()
    }

    /// Other settings than the default.
    pub fn builder(token: Token) -> RestBuilder {
        RestBuilder::new(token)
    }

    /// What the paths are below, for example `https://discord.com/api/v10`, without a slash at the
    /// end.
    pub fn base_url(&self) -> &str {
        &self.0.base_url
    }

    /// Where the gateway is. Needs no token.
    pub fn gateway(&self) -> Result<String, Error> {
        #[derive(Deserialize)]
        struct Gateway {
            url: String,
        }
        let gateway: Gateway = self.get("/gateway").send()?.json()?;
        Ok(gateway.url)
    }

    /// Where the gateway is, how many shards Discord recommends, and how often the bot may still
    /// identify.
    pub fn gateway_bot(&self) -> Result<GatewayBot, Error> {
        let asked_at = clock::now();
        let answer: GatewayBot = self.get("/gateway/bot").send()?.json()?;
        Ok(GatewayBot { asked_at, ..answer })
    }

    /// The application that the bot belongs to.
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

    /// Begins a request of any method, in upper or lower case, with a path below the API's version.
    pub fn request(&self, method: &str, path: &str) -> Request<'_> {
        Request::new(self, method, path)
    }

    /// Sends a request in one call, for example `call("POST", "/channels/1/messages",
    /// Some(&json!({"content": "pong"})))`. An answer without a body is `null`.
    ///
    /// It blocks, and fails, as [`Request::send`] does.
    pub fn call(&self, method: &str, path: &str, json: Option<&Value>) -> Result<Value, Error> {
        let request = self.request(method, path);
        let request = match json {
            Some(json) => request.json(json),
            None => request,
        };
        request.send()?.json()
    }

    /// What became of the requests so far, of this one and its clones.
    pub fn counters(&self) -> RestCounters {
        self.0.counters.lock().clone()
    }

    /// How it connects, for what connects in the same way.
    pub(crate) fn dialer(&self) -> Arc<Dialer> {
        Arc::clone(&self.0.dialer)
    }

    /// Ends the calls that wait for their turn, and all waits to come.
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

    /// Sends a request until it is answered for good.
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
                        "{} is rate limited for {retry_after:?}, retrying then",
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
        // What ureq logs has placeholders for the secrets.
        let mut path = parts.path.clone();
        let own = own_token(&path).map(|range| {
            let hidden = self.0.secrets.hide(&path[range.clone()]);
            path.replace_range(range, hidden.placeholder());
            hidden
        });

        let mut request = http::Request::builder()
            .method(&parts.method)
            .uri(format!("{}{path}", self.0.base_url));
        // For this request alone, so that a placeholder from a log is of no use later.
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
            // A length of 0 has to be said where a body is usual.
            run(agent, request.body(&[][..])?, timeout)
        } else {
            run(agent, request.body(())?, timeout)
        }
    }
}

/// How an attempt ended.
enum Outcome {
    Success(Response),
    /// With a 429.
    Limited(Duration),
    /// With another status than success.
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
            // A webhook or an interaction has a token of its own.
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

/// Reads an answer; of an error, what there is of it.
fn read(response: http::Response<Body>) -> Result<Read, ureq::Error> {
    let (head, mut body) = response.into_parts();
    let status = head.status.as_u16();
    let body = if head.status.is_success() {
        body.with_config().limit(MAX_ANSWER).read_to_vec()?
    } else {
        let mut read = Vec::new();
        let mut reader = io::Read::take(body.as_reader(), MAX_ERROR);
        // The status says more than why its text is cut short.
        let _ = io::Read::read_to_end(&mut reader, &mut read);
        read
    };
    Ok(Read {
        status,
        headers: head.headers,
        body,
    })
}

/// Whether a request got nowhere, so that it may be sent again whatever it is.
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
