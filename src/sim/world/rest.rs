//! The HTTP interface: what a bot needs to start and to answer.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::super::fault::RestFault;
use super::super::observed::EmitError;
use super::{Action, Fault, World, payloads};

/// Requests that one route takes within [`BUCKET_WINDOW`], and all routes together within a second.
///
/// Discord promises no numbers; these are of the order of what its headers usually say.
const BUCKET: u32 = 5;
const BUCKET_WINDOW: Duration = Duration::from_secs(5);
const GLOBAL: u32 = 50;
const GLOBAL_WINDOW: Duration = Duration::from_secs(1);
/// So many routes are remembered before those are forgotten whose window is over.
const MOST_BUCKETS: usize = 10_000;
/// From so many refused requests within the window on, Discord bans the sender's address.
const INVALID: usize = 10_000;
const INVALID_WINDOW: Duration = Duration::from_secs(600);
/// Messages that each channel keeps.
const MESSAGES: usize = 100;
/// How long an interaction may be answered, and its answer be followed up. Not scaled: these are
/// the bot's times.
const CALLBACK: Duration = Duration::from_secs(3);
const FOLLOW_UP: Duration = Duration::from_secs(15 * 60);

/// A request to the HTTP interface.
pub(crate) struct Request<'a> {
    pub(crate) method: &'a str,
    pub(crate) path: &'a str,
    pub(crate) query: HashMap<String, String>,
    pub(crate) authorization: Option<&'a str>,
    pub(crate) user_agent: Option<&'a str>,
    pub(crate) body: &'a str,
}

/// What becomes of a request.
pub(crate) enum Reply {
    Answer {
        status: u16,
        content_type: &'static str,
        headers: Vec<(&'static str, String)>,
        body: String,
    },
    Hang,
}

/// What the HTTP interface remembers.
#[derive(Default)]
pub(super) struct Desk {
    messages: HashMap<u64, VecDeque<Value>>,
    interactions: HashMap<u64, Interaction>,
    commands: Vec<Value>,
    buckets: HashMap<String, Bucket>,
    invalid: VecDeque<Instant>,
}

struct Interaction {
    token: String,
    channel: u64,
    since: Instant,
    /// What it was answered with, if with a message.
    message: Option<u64>,
    answered: bool,
}

#[derive(Clone, Copy)]
struct Bucket {
    used: u32,
    reset_at: Instant,
}

/// A status and a body; no body for 204.
type Outcome = (u16, Value);

impl Desk {
    pub(super) fn keep_message(&mut self, channel: u64, message: Value) {
        let messages = self.messages.entry(channel).or_default();
        if messages.len() == MESSAGES {
            messages.pop_front();
        }
        messages.push_back(message);
    }

    fn message(&mut self, channel: u64, id: &str) -> Option<&mut Value> {
        self.messages
            .get_mut(&channel)?
            .iter_mut()
            .find(|message| message["id"] == id)
    }
}

impl World {
    /// Answers a request of a connection.
    pub(crate) fn rest(&mut self, now: Instant, connection: usize, request: &Request<'_>) -> Reply {
        let path = request
            .path
            .strip_prefix("/api/v10")
            .or_else(|| request.path.strip_prefix("/api"))
            .unwrap_or("");
        let fault = self.ambush(now, None, |fault| match fault {
            Fault::Rest(fault) => Some(*fault),
            _ => None,
        });
        let reply = match fault {
            None => self.lawful(now, connection, request, path),
            Some(RestFault::Status(429)) => limited(self.scaled(BUCKET_WINDOW), false, Vec::new()),
            Some(RestFault::Status(status)) => json_reply((status, error_of(status)), Vec::new()),
            Some(RestFault::Html) => Reply::Answer {
                status: 502,
                content_type: "text/html",
                headers: Vec::new(),
                body: "<!doctype html><title>502</title><h1>Bad gateway</h1>".into(),
            },
            Some(RestFault::Hang) => return Reply::Hang,
        };
        let window = self.scaled(INVALID_WINDOW);
        if let Reply::Answer { status, .. } = reply {
            let (method, path) = (request.method.to_owned(), path.to_owned());
            self.record(
                now,
                connection,
                Action::Request {
                    method,
                    path,
                    status,
                },
            );
            if matches!(status, 401 | 403 | 429)
                && fault.is_none()
                && super::over(&mut self.desk.invalid, now, window, INVALID)
            {
                self.violation(
                    now,
                    connection,
                    "at most 10,000 invalid requests per 10 min".into(),
                );
            }
        }
        reply
    }

    fn lawful(
        &mut self,
        now: Instant,
        connection: usize,
        request: &Request<'_>,
        path: &str,
    ) -> Reply {
        if !request
            .user_agent
            .is_some_and(|agent| agent.starts_with("DiscordBot ("))
        {
            self.violation(
                now,
                connection,
                "a User-Agent is `DiscordBot (URL, VERSION)`".into(),
            );
            let message = "internal network error";
            return json_reply(
                (403, json!({"message": message, "code": 40333})),
                Vec::new(),
            );
        }
        let route: Vec<&str> = path.split('/').skip(1).collect();
        let is_open = matches!(
            route.as_slice(),
            ["gateway"] | ["interactions" | "webhooks", ..]
        );
        let token = request
            .authorization
            .and_then(|header| header.strip_prefix("Bot "));
        if !is_open && !token.is_some_and(|token| self.is_token(token)) {
            return json_reply((401, error_of(401)), Vec::new());
        }
        self.new_day(now);
        let headers = match self.take_turn(now, request.method, &route) {
            Ok(headers) => headers,
            Err(reply) => return reply,
        };
        json_reply(self.route(now, connection, request, &route), headers)
    }

    fn route(
        &mut self,
        now: Instant,
        connection: usize,
        request: &Request<'_>,
        route: &[&str],
    ) -> Outcome {
        let body = match request.body {
            "" => Value::Null,
            text => match serde_json::from_str(text) {
                Ok(body) => body,
                Err(_) => {
                    return (
                        400,
                        json!({"message": "The request body contains invalid JSON.", "code": 50109}),
                    );
                }
            },
        };
        match (request.method, route) {
            ("GET", ["gateway"]) => (200, json!({"url": self.url})),
            ("GET", ["gateway", "bot"]) => (200, self.gateway_bot(now)),
            ("GET", ["oauth2", "applications", "@me"] | ["applications", "@me"]) => {
                let large = if self.settings.shard_multiple > 1 {
                    150_001
                } else {
                    0
                };
                (200, payloads::application(self.guilds.len().max(large)))
            }
            ("GET", ["users", "@me"]) => (200, payloads::current_user()),
            ("POST", ["users", "@me", "channels"]) => (200, payloads::direct_channel()),
            ("GET", ["guilds", guild]) => match guild.parse().ok().and_then(|id| self.guild(id)) {
                Some(guild) => (200, payloads::guild_object(guild)),
                None => (404, json!({"message": "Unknown Guild", "code": 10004})),
            },
            (_, ["channels", channel, rest @ ..]) => match self.channel(channel) {
                Some((id, channel)) => {
                    self.channel_route(now, connection, request, (id, channel), rest, &body)
                }
                None => (404, json!({"message": "Unknown Channel", "code": 10003})),
            },
            ("POST", ["interactions", id, token, "callback"]) => self.callback(
                now,
                connection,
                id,
                token,
                &body,
                request.query.get("with_response"),
            ),
            (method, ["webhooks", _, token, rest @ ..]) => {
                self.follow_up(now, connection, method, token, rest, &body)
            }
            (
                method,
                ["applications", _, "commands"] | ["applications", _, "guilds", _, "commands"],
            ) => self.register(now, method, body),
            _ => (404, error_of(404)),
        }
    }

    fn channel(&self, id: &str) -> Option<(u64, Value)> {
        let id: u64 = id.parse().ok()?;
        match self.guild_of_channel(id) {
            Some(guild) => Some((id, payloads::text_channel(guild))),
            None => (id == payloads::DIRECT_CHANNEL).then(|| (id, payloads::direct_channel())),
        }
    }

    fn channel_route(
        &mut self,
        now: Instant,
        connection: usize,
        request: &Request<'_>,
        (id, channel): (u64, Value),
        rest: &[&str],
        body: &Value,
    ) -> Outcome {
        match (request.method, rest) {
            ("GET", []) => (200, channel),
            ("GET", ["messages"]) => {
                let limit = request
                    .query
                    .get("limit")
                    .map_or(Some(50), |limit| limit.parse().ok());
                let Some(limit) = limit.filter(|limit| (1..=100).contains(limit)) else {
                    return invalid_form(
                        "limit",
                        "NUMBER_TYPE_RANGE",
                        "int value should be between 1 and 100.",
                    );
                };
                let messages = self
                    .desk
                    .messages
                    .get(&id)
                    .into_iter()
                    .flatten()
                    .rev()
                    .take(limit);
                (200, messages.cloned().collect())
            }
            ("GET", ["messages", message]) => match self.desk.message(id, message) {
                Some(message) => (200, message.clone()),
                None => (404, json!({"message": "Unknown Message", "code": 10008})),
            },
            ("POST", ["messages"]) => self.write(now, connection, id, body),
            ("POST", ["typing"]) => (204, Value::Null),
            _ => (404, error_of(404)),
        }
    }

    /// The bot writes a message.
    fn write(&mut self, now: Instant, connection: usize, channel: u64, body: &Value) -> Outcome {
        if !body.is_object() {
            return (
                400,
                json!({"message": "Cannot send an empty message", "code": 50006}),
            );
        }
        let has = |field: &str| body[field].as_array().is_some_and(|list| !list.is_empty());
        let text = match &body["content"] {
            Value::Null => "",
            Value::String(text) => text,
            _ => {
                return invalid_form(
                    "content",
                    "STRING_TYPE_CONVERT",
                    "Could not interpret value as string.",
                );
            }
        };
        if text.is_empty()
            && !has("embeds")
            && !has("components")
            && !has("sticker_ids")
            && !body["poll"].is_object()
        {
            return (
                400,
                json!({"message": "Cannot send an empty message", "code": 50006}),
            );
        }
        if text.chars().count() > 2000 {
            return invalid_form(
                "content",
                "BASE_TYPE_BAD_LENGTH",
                "Must be 2000 or fewer in length.",
            );
        }
        let id = self.snowflake(now);
        let mut message = payloads::message(id, self.unix(now), channel, payloads::BOT, text);
        for field in ["embeds", "components", "nonce"] {
            if !body[field].is_null() {
                message[field] = body[field].clone();
            }
        }
        self.record(
            now,
            connection,
            Action::Post {
                channel,
                text: text.to_owned(),
            },
        );
        self.post(channel, message.clone());
        (200, message)
    }

    /// A member uses a command of the bot's; returns the interaction's id.
    pub(crate) fn interact(
        &mut self,
        now: Instant,
        channel: u64,
        name: &str,
        options: &Value,
    ) -> Result<u64, EmitError> {
        let guild = self
            .guild_of_channel(channel)
            .ok_or(EmitError::UnknownChannel(channel))?;
        let id = self.snowflake(now);
        let token = format!("{:032x}", self.rng.u128(..));
        let data = payloads::interaction(id, &token, guild, name, options);
        let interaction = Interaction {
            token,
            channel,
            since: now,
            message: None,
            answered: false,
        };
        self.desk
            .interactions
            .retain(|_, interaction| now < interaction.since + FOLLOW_UP);
        self.desk.interactions.insert(id, interaction);
        self.dispatch_to_guild(Some(guild.id), "INTERACTION_CREATE", &data);
        Ok(id)
    }

    /// Source: [Discord, Interaction
    /// callback](https://docs.discord.com/developers/interactions/receiving-and-responding).
    fn callback(
        &mut self,
        now: Instant,
        connection: usize,
        id: &str,
        token: &str,
        body: &Value,
        with_response: Option<&String>,
    ) -> Outcome {
        let id: u64 = id.parse().unwrap_or_default();
        let interaction = self
            .desk
            .interactions
            .get_mut(&id)
            .filter(|interaction| interaction.token == token);
        let Some(interaction) =
            interaction.filter(|interaction| now < interaction.since + CALLBACK)
        else {
            return (
                404,
                json!({"message": "Unknown interaction", "code": 10062}),
            );
        };
        if interaction.answered {
            return (
                400,
                json!({"message": "Interaction has already been acknowledged.", "code": 40060}),
            );
        }
        let Some(kind @ (1 | 4..=10 | 12)) = body["type"].as_u64() else {
            return invalid_form(
                "type",
                "BASE_TYPE_CHOICES",
                "Value must be one of {1, 4, 5, 6, 7, 8, 9, 10, 12}.",
            );
        };
        let channel = interaction.channel;
        if kind == 4 {
            let (status, message) = self.write(now, connection, channel, &body["data"]);
            if status != 200 {
                return (status, message);
            }
            let message = message["id"].as_str().and_then(|id| id.parse().ok());
            if let Some(interaction) = self.desk.interactions.get_mut(&id) {
                interaction.message = message;
            }
        }
        if let Some(interaction) = self.desk.interactions.get_mut(&id) {
            interaction.answered = true;
        }
        if with_response.is_some_and(|value| value == "true") {
            (
                200,
                json!({"interaction": {"id": id.to_string(), "type": 2}}),
            )
        } else {
            (204, Value::Null)
        }
    }

    /// Messages after the first answer to an interaction, and that answer itself.
    fn follow_up(
        &mut self,
        now: Instant,
        connection: usize,
        method: &str,
        token: &str,
        rest: &[&str],
        body: &Value,
    ) -> Outcome {
        let found = self
            .desk
            .interactions
            .iter()
            .find(|(_, interaction)| interaction.token == token);
        let found = found
            .filter(|(_, interaction)| interaction.answered && now < interaction.since + FOLLOW_UP);
        let Some((id, channel, message)) =
            found.map(|(id, found)| (*id, found.channel, found.message))
        else {
            return (404, json!({"message": "Unknown Webhook", "code": 10015}));
        };
        match (method, rest, message) {
            ("POST", [], _) => self.write(now, connection, channel, body),
            // An answer that was deferred comes with the first edit.
            ("PATCH", ["messages", "@original"], None) => {
                let (status, message) = self.write(now, connection, channel, body);
                if let Some(interaction) = self.desk.interactions.get_mut(&id) {
                    interaction.message = message["id"].as_str().and_then(|id| id.parse().ok());
                }
                (status, message)
            }
            ("GET" | "PATCH", ["messages", "@original"], Some(original)) => {
                let Some(message) = self.desk.message(channel, &original.to_string()) else {
                    return (404, json!({"message": "Unknown Message", "code": 10008}));
                };
                if let Some(text) = body["content"].as_str().filter(|_| method == "PATCH") {
                    message["content"] = text.into();
                }
                (200, message.clone())
            }
            _ => (404, error_of(404)),
        }
    }

    /// The commands of the application; of all guilds together, for nobody asks which.
    fn register(&mut self, now: Instant, method: &str, body: Value) -> Outcome {
        let with_id = |mut command: Value, world: &mut Self| {
            let id = world.snowflake(now).to_string();
            payloads::extend(
                &mut command,
                json!({"id": id, "application_id": payloads::BOT.to_string(), "version": "1"}),
            );
            command
        };
        match (method, body) {
            ("GET", _) => (200, self.desk.commands.clone().into()),
            ("POST", body) if body["name"].is_string() => {
                let command = with_id(body, self);
                // One of the same name takes the place of the old one.
                self.desk
                    .commands
                    .retain(|old| old["name"] != command["name"]);
                self.desk.commands.push(command.clone());
                (201, command)
            }
            ("PUT", Value::Array(list))
                if list.iter().all(|command| command["name"].is_string()) =>
            {
                self.desk.commands = list
                    .into_iter()
                    .map(|command| with_id(command, self))
                    .collect();
                (200, self.desk.commands.clone().into())
            }
            ("POST" | "PUT", _) => {
                invalid_form("name", "BASE_TYPE_REQUIRED", "This field is required")
            }
            _ => (405, error_of(405)),
        }
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

    /// Counts a request against its limits: the headers that tell of them, or the refusal.
    ///
    /// Source: [Discord, Rate limits](https://docs.discord.com/developers/topics/rate-limits).
    fn take_turn(
        &mut self,
        now: Instant,
        method: &str,
        route: &[&str],
    ) -> Result<Vec<(&'static str, String)>, Reply> {
        let name = match route {
            // The channel is what Discord calls a major parameter; ids behind it are not.
            ["channels", channel, rest @ ..] => format!(
                "{method}-channels-{channel}-{}",
                rest.first().unwrap_or(&"")
            ),
            _ => format!("{method}-{}", route.join("-")),
        };
        let is_open = route.first() == Some(&"interactions");
        if !is_open && let Err(wait) = self.count(now, "global", GLOBAL, GLOBAL_WINDOW) {
            return Err(limited(wait, true, Vec::new()));
        }
        let counted = self.count(now, &name, BUCKET, BUCKET_WINDOW);
        let bucket = self.desk.buckets[&name];
        let left = bucket.reset_at.saturating_duration_since(now);
        let headers = vec![
            ("x-ratelimit-limit", BUCKET.to_string()),
            (
                "x-ratelimit-remaining",
                BUCKET.saturating_sub(bucket.used).to_string(),
            ),
            (
                "x-ratelimit-reset",
                format!("{:.3}", (self.unix(now) + left).as_secs_f64()),
            ),
            (
                "x-ratelimit-reset-after",
                format!("{:.3}", left.as_secs_f64()),
            ),
            (
                "x-ratelimit-bucket",
                format!("{:016x}", super::super::observed::digest(name.as_bytes())),
            ),
        ];
        match counted {
            Ok(()) => Ok(headers),
            Err(wait) => Err(limited(wait, false, headers)),
        }
    }

    /// Counts a request in a bucket; how long to wait if that is full.
    fn count(
        &mut self,
        now: Instant,
        name: &str,
        limit: u32,
        window: Duration,
    ) -> Result<(), Duration> {
        let window = self.scaled(window);
        if self.desk.buckets.len() > MOST_BUCKETS {
            self.desk.buckets.retain(|_, bucket| bucket.reset_at > now);
        }
        let fresh = Bucket {
            used: 0,
            reset_at: now + window,
        };
        let bucket = self.desk.buckets.entry(name.to_owned()).or_insert(fresh);
        if bucket.reset_at <= now {
            *bucket = fresh;
        }
        if bucket.used == limit {
            return Err(bucket.reset_at - now);
        }
        bucket.used += 1;
        Ok(())
    }
}

fn limited(wait: Duration, global: bool, mut headers: Vec<(&'static str, String)>) -> Reply {
    let seconds = wait.as_secs_f64();
    headers.push(("retry-after", seconds.ceil().to_string()));
    headers.push((
        "x-ratelimit-scope",
        if global { "global" } else { "user" }.into(),
    ));
    if global {
        headers.push(("x-ratelimit-global", "true".into()));
    }
    let body =
        json!({"message": "You are being rate limited.", "retry_after": seconds, "global": global});
    json_reply((429, body), headers)
}

fn json_reply((status, body): Outcome, headers: Vec<(&'static str, String)>) -> Reply {
    let body = if status == 204 {
        String::new()
    } else {
        body.to_string()
    };
    Reply::Answer {
        status,
        content_type: "application/json",
        headers,
        body,
    }
}

fn error_of(status: u16) -> Value {
    let message = match status {
        400 => "400: Bad Request",
        401 => "401: Unauthorized",
        403 => "403: Forbidden",
        404 => "404: Not Found",
        405 => "405: Method Not Allowed",
        500 => "500: Internal Server Error",
        503 => "503: Service Unavailable",
        _ => return json!({"message": format!("{status}: Error"), "code": 0}),
    };
    json!({"message": message, "code": 0})
}

fn invalid_form(field: &str, code: &str, message: &str) -> Outcome {
    let errors = json!({field: {"_errors": [{"code": code, "message": message}]}});
    (
        400,
        json!({"message": "Invalid Form Body", "code": 50035, "errors": errors}),
    )
}
