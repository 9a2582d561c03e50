//! The HTTP API: the routes that a bot calls, and the gateway events that they cause.

mod answers;
mod application_commands;
mod body;
mod channels;
mod guilds;
mod interactions;
mod limits;
mod messages;
mod reactions;
mod routes;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use percent_encoding::percent_decode_str;
use serde_json::{Value, json};

use self::answers::{Outcome, Refusal};
pub(super) use self::channels::Place;
pub(super) use self::messages::Message;
use self::routes::Route;
pub(in crate::sim) use self::routes::{is_pattern, matches, names};
use super::super::fault::RestFault;
use super::super::request::{Handler, Request, Response};
use super::{Action, Fault, World, payloads};

/// The wait that [`RestFault::Limited`] tells a client.
const LIMITED: Duration = Duration::from_secs(5);
/// Discord bans an IP address from this number of invalid requests within the window on.
const INVALID: usize = 10_000;
const INVALID_WINDOW: Duration = Duration::from_secs(600);
/// The API versions that Discord serves, and the default for a path without a version.
///
/// Source: [Discord, API versioning](https://docs.discord.com/developers/reference#api-versioning).
pub(super) const VERSIONS: std::ops::RangeInclusive<u32> = 6..=10;
pub(super) const DEFAULT_VERSION: u32 = 6;

type Headers = Vec<(String, String)>;

/// A request as received.
pub(crate) struct Incoming<'a> {
    pub(crate) method: &'a str,
    /// Still percent-encoded.
    pub(crate) path: &'a str,
    pub(crate) query: BTreeMap<String, String>,
    /// Names in lower case.
    pub(crate) headers: Headers,
    pub(crate) body: &'a [u8],
}

/// What the server does with a request.
pub(crate) enum Reply {
    Answer(Answered, Manner),
    /// Call the test's handler without the world's lock, then [`World::handled`].
    Ask(Handler, Box<Admitted>),
    Reset,
    Hang,
}

/// A response to send.
pub(crate) struct Answered {
    pub(crate) status: u16,
    pub(crate) content_type: &'static str,
    pub(crate) headers: Headers,
    pub(crate) body: String,
}

/// How a response is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Manner {
    Whole,
    /// The second half is never sent.
    Truncated,
    /// At this rate, in bytes per second.
    Slow(u32),
    /// The connection is reset instead.
    Reset,
}

/// A request that has passed all checks.
pub(crate) struct Admitted {
    pub(crate) request: Request,
    connection: usize,
    limits: Headers,
    manner: Manner,
}

/// A request that a built-in route handles.
struct Call<'a> {
    now: Instant,
    connection: usize,
    request: &'a Request,
}

/// What handles a request.
enum Target {
    Handler(Handler),
    Route(&'static Route),
    Nothing(Refusal),
}

/// The state of the HTTP API.
#[derive(Default)]
pub(super) struct Desk {
    messages: HashMap<u64, VecDeque<messages::Message>>,
    interactions: HashMap<u64, interactions::Interaction>,
    commands: Vec<Value>,
    /// The direct channels that the bot has opened, each with its user's id.
    direct: BTreeMap<u64, u64>,
    /// The permissions that the bot lacks, by guild.
    denied: HashMap<u64, u64>,
    /// By method and pattern.
    handlers: BTreeMap<(String, String), Handler>,
    buckets: limits::Buckets,
    invalid: VecDeque<Instant>,
}

impl Call<'_> {
    fn json(&self) -> &Value {
        &self.request.json
    }

    fn id(&self, at: usize) -> u64 {
        self.request.id(at)
    }

    /// The query parameter `limit`, from 1 to `most`.
    fn limit(&self, default: usize, most: usize) -> Result<usize, Refusal> {
        let limit = self.request.query.get("limit");
        let limit = limit.map_or(Some(default), |limit| limit.parse().ok());
        let limit = limit.filter(|limit| (1..=most).contains(limit));
        limit.ok_or_else(|| {
            let message = format!("int value should be between 1 and {most}.");
            answers::invalid_form("limit", "NUMBER_TYPE_RANGE", &message)
        })
    }
}

impl World {
    /// Registers a handler for a route. Returns the handler that it replaces: this is the test's
    /// code, and must not be dropped under the world's lock.
    pub(in crate::sim) fn on(
        &mut self,
        method: &str,
        pattern: &str,
        handler: Handler,
    ) -> Option<Handler> {
        let key = (method.to_owned(), pattern.to_owned());
        self.desk.handlers.insert(key, handler)
    }

    /// Denies the bot these permissions in a guild, in place of those denied before.
    pub(in crate::sim) fn deny(&mut self, guild: u64, permissions: u64) {
        self.desk.denied.insert(guild, permissions);
    }

    /// Handles an HTTP request on a connection.
    pub(crate) fn rest(
        &mut self,
        now: Instant,
        connection: usize,
        incoming: &Incoming<'_>,
    ) -> Reply {
        let fault = self.ambush(now, None, |fault| match fault {
            Fault::Rest(fault) => Some(fault.clone()),
            _ => None,
        });
        let mut request = Request {
            method: incoming.method.to_owned(),
            path: decoded(below_version(incoming.path).unwrap_or(incoming.path)),
            query: incoming.query.clone(),
            headers: incoming.headers.clone(),
            ..Request::default()
        };
        let content_type = request.header("content-type");
        let body = body::read(content_type, incoming.body);
        let body = body.map(|body| (request.json, request.files) = body);
        let (canned, manner) = match fault {
            Some(RestFault::Hang) => return Reply::Hang,
            Some(RestFault::Reset) => return Reply::Reset,
            Some(RestFault::Html) => return self.html(now, connection, request),
            fault => self.befallen(fault),
        };
        if let Some(response) = canned {
            return self.answer_with(now, connection, request, response, manner);
        }

        let admitted = self.admit(now, connection, incoming.path, &mut request);
        let admitted = admitted.and_then(|admitted| match body {
            Ok(()) => Ok(admitted),
            Err(refusal) => Err(refusal.into()),
        });
        let (limits, target) = match admitted {
            Ok(admitted) => admitted,
            Err(response) => return self.answer_with(now, connection, request, response, manner),
        };
        let admitted = Admitted {
            request,
            connection,
            limits,
            manner,
        };
        let call = Call {
            now,
            connection,
            request: &admitted.request,
        };
        let outcome = match target {
            Target::Handler(handler) => return Reply::Ask(handler, Box::new(admitted)),
            Target::Route(route) => self.carry_out(route, &call),
            Target::Nothing(refusal) => Err(refusal),
        };
        self.handled(now, admitted, outcome.unwrap_or_else(Response::from))
    }

    /// The effect of a fault on a request: the response that replaces the regular one, if any, and
    /// how a response is sent.
    fn befallen(&self, fault: Option<RestFault>) -> (Option<Response>, Manner) {
        match fault {
            Some(RestFault::Status(status)) => (Some(answers::error_of(status)), Manner::Whole),
            Some(RestFault::Limited(scope)) => {
                let response = limits::limited(self.scaled(LIMITED), scope);
                (Some(response), Manner::Whole)
            }
            Some(RestFault::Redirect(url)) => (Some(redirect(url)), Manner::Whole),
            Some(RestFault::Truncated) => (None, Manner::Truncated),
            Some(RestFault::Slow { bytes_per_second }) => (None, Manner::Slow(bytes_per_second)),
            Some(RestFault::ResetAfter) => (None, Manner::Reset),
            Some(RestFault::Html | RestFault::Hang | RestFault::Reset) | None => {
                (None, Manner::Whole)
            }
        }
    }

    /// Finishes a request that a built-in route or the test's handler has answered.
    pub(crate) fn handled(
        &mut self,
        now: Instant,
        admitted: Admitted,
        mut response: Response,
    ) -> Reply {
        response.headers.extend(admitted.limits);
        let (connection, manner) = (admitted.connection, admitted.manner);
        self.answer_with(now, connection, admitted.request, response, manner)
    }

    /// Makes the checks that are the same for all routes.
    fn admit(
        &mut self,
        now: Instant,
        connection: usize,
        path: &str,
        request: &mut Request,
    ) -> Result<(Headers, Target), Response> {
        let path = below_version(path)?;
        let agent = request.header("user-agent").unwrap_or_default();
        if !agent.starts_with("DiscordBot (") {
            self.sent = super::records::shortened(format!("{agent:?} for {request}"));
            let rule = "a User-Agent must be `DiscordBot (URL, VERSION)`";
            self.warn_only(now, connection, rule.to_owned(), false);
        }
        let is_open = matches!(
            path.split('/').nth(1),
            Some("gateway" | "interactions" | "webhooks")
        ) && path != "/gateway/bot";
        let token = request.header("authorization");
        let token = token.and_then(|header| header.strip_prefix("Bot "));
        if !is_open && !token.is_some_and(|token| self.is_token(token)) {
            return Err(answers::UNAUTHORIZED.into());
        }

        self.new_day(now);
        let (target, name, parameters) = self.target(&request.method, path);
        let limits = if path.starts_with("/interactions/") {
            // Discord does not limit the first answers to interactions.
            Headers::new()
        } else {
            let key = format!("{name} {}", routes::major(&name, &parameters));
            if !path.starts_with("/webhooks/") {
                self.take_global_turn(now, connection, &key)?;
            }
            self.take_turn(now, connection, (&name, &key))?
        };
        request.parameters = parameters;
        Ok((limits, target))
    }

    /// What handles a request, the name of its route, and the values of its `{}`.
    fn target(&self, method: &str, path: &str) -> (Target, String, Vec<String>) {
        let mut handlers = self.desk.handlers.iter();
        let handler = handlers.find_map(|((wanted, pattern), handler)| {
            let parameters = routes::matches(pattern, path).filter(|_| wanted == method)?;
            Some((handler, pattern, parameters))
        });
        if let Some((handler, pattern, parameters)) = handler {
            let target = Target::Handler(Arc::clone(handler));
            return (target, format!("{method} {pattern}"), parameters);
        }

        match routes::find(method, path) {
            Ok((route, parameters)) => {
                let name = format!("{method} {}", route.pattern);
                (Target::Route(route), name, parameters)
            }
            Err(refusal) => {
                let name = format!("{method} {}", routes::without_ids(path));
                (Target::Nothing(refusal), name, Vec::new())
            }
        }
    }

    /// Runs the route of a request, if the bot has the permission that the route needs.
    fn carry_out(&mut self, route: &Route, call: &Call<'_>) -> Outcome {
        let guild = match route.pattern.split('/').nth(1) {
            Some("guilds") => Some(call.id(0)),
            Some("channels") => self.guild_of_channel(call.id(0)).map(|guild| guild.id),
            _ => None,
        };
        if guild.is_some_and(|guild| self.lacks(guild, route.permission)) {
            return Err(answers::MISSING_PERMISSIONS);
        }
        (route.handle)(self, call)
    }

    fn lacks(&self, guild: u64, permission: u64) -> bool {
        let denied = self.desk.denied.get(&guild).copied();
        denied.unwrap_or_default() & permission != 0
    }

    /// The HTML error page of a proxy that cannot reach Discord.
    fn html(&mut self, now: Instant, connection: usize, request: Request) -> Reply {
        self.record_request(now, connection, request, 502, Value::Null);
        let answered = Answered {
            status: 502,
            content_type: "text/html",
            headers: Headers::new(),
            body: "<!doctype html><title>502</title><h1>Bad gateway</h1>".into(),
        };
        Reply::Answer(answered, Manner::Whole)
    }

    fn answer_with(
        &mut self,
        now: Instant,
        connection: usize,
        request: Request,
        response: Response,
        manner: Manner,
    ) -> Reply {
        let Response {
            status,
            headers,
            json,
        } = response;
        let scope = headers.iter().find(|(name, _)| name == "x-ratelimit-scope");
        let is_shared = scope.is_some_and(|(_, scope)| scope == "shared");
        let window = self.scaled(INVALID_WINDOW);
        if matches!(status, 401 | 403 | 429)
            && !is_shared
            && super::over(&mut self.desk.invalid, now, window, INVALID)
        {
            self.sent = super::records::shortened(request.to_string());
            let rule = "at most 10,000 invalid requests per 10 min";
            self.violation(now, connection, rule, true);
        }

        let body = if json.is_null() {
            String::new()
        } else {
            json.to_string()
        };
        self.record_request(now, connection, request, status, json);
        let answered = Answered {
            status,
            content_type: "application/json",
            headers,
            body,
        };
        Reply::Answer(answered, manner)
    }

    fn record_request(
        &mut self,
        now: Instant,
        connection: usize,
        request: Request,
        status: u16,
        answer: Value,
    ) {
        let request = Box::new(request);
        let action = Action::Request {
            request,
            status,
            answer,
        };
        self.record(now, connection, action);
    }

    fn gateway_bot(&self, now: Instant) -> Value {
        let reset_after = self.reset_at.saturating_duration_since(now);
        json!({
            "url": self.url,
            "shards": self.settings.shards,
            "session_start_limit": {
                "total": self.settings.session_starts,
                "remaining": self.starts_left,
                "reset_after": u64::try_from(reset_after.as_millis()).unwrap_or(u64::MAX),
                "max_concurrency": self.settings.max_concurrency,
            },
        })
    }

    fn application(&self) -> Value {
        // A bot whose shard count must be a multiple of a number is a large bot.
        let least = if self.settings.shard_multiple > 1 {
            150_001
        } else {
            0
        };
        payloads::application(self.guilds.len().max(least), self.settings.allowed_intents)
    }
}

fn redirect(url: String) -> Response {
    let mut response = Response::json(307, json!({}));
    response.headers.push(("location".to_owned(), url));
    response
}

fn decoded(path: &str) -> String {
    percent_decode_str(path).decode_utf8_lossy().into_owned()
}

/// The path below `/api` and the version; an error if the version is not served.
fn below_version(path: &str) -> Result<&str, Response> {
    let path = path.strip_prefix("/api").ok_or(answers::NOT_FOUND)?;
    let Some(versioned) = path.strip_prefix("/v") else {
        return Ok(path);
    };
    let (version, _) = versioned.split_once('/').unwrap_or((versioned, ""));
    if !version
        .parse()
        .is_ok_and(|version| VERSIONS.contains(&version))
    {
        return Err(answers::UNKNOWN_VERSION.into());
    }
    Ok(&versioned[version.len()..])
}
