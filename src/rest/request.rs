//! Builds a request step by step.

use std::fmt;
use std::time::Duration;

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Serialize;
use ureq::http::{HeaderName, HeaderValue, Method};
use ureq::unversioned::multipart::{Form, Part};

use super::response::Response;
use super::{Rest, route};
use crate::error::Error;

/// The longest audit log reason that Discord accepts, in characters.
///
/// Source: [Discord, Audit log
/// reason](https://docs.discord.com/developers/resources/audit-log#audit-log-entry-object).
const MAX_REASON: usize = 512;

/// The longest file name, in bytes.
const MAX_FILE_NAME: usize = 255;

/// Headers that the library sets itself.
const OWN_HEADERS: [&str; 8] = [
    "authorization",
    "connection",
    "content-length",
    "content-type",
    "host",
    "transfer-encoding",
    "user-agent",
    REASON,
];

pub(super) const REASON: &str = "x-audit-log-reason";

const METHODS: [Method; 7] = [
    Method::DELETE,
    Method::GET,
    Method::HEAD,
    Method::OPTIONS,
    Method::PATCH,
    Method::POST,
    Method::PUT,
];

/// A request to Discord; begin one with [`Rest::get`], [`Rest::post`] and so on.
///
/// [`send`](Self::send) reports invalid settings, before anything is sent.
///
/// ```no_run
/// # fn f(rest: &threadcord::rest::Rest) -> Result<(), threadcord::Error> {
/// use serde_json::{Value, json};
///
/// let answer = rest
///     .post("/channels/1/messages")
///     .json(&json!({"content": "a cat"}))
///     .file("cat.png", std::fs::read("cat.png").unwrap())
///     .send()?;
/// let message: Value = answer.json()?;
/// rest.delete("/channels/1/messages/2").reason("spam").send()?;
/// let bans: Value = rest.get("/guilds/1/bans").query("limit", 100).send()?.json()?;
/// # Ok(())
/// # }
/// ```
#[must_use = "nothing is sent before `send`"]
pub struct Request<'a> {
    rest: &'a Rest,
    pub(super) parts: Result<Parts, Error>,
}

/// The parts of a request, all of which have been checked.
pub(super) struct Parts {
    pub(super) method: Method,
    /// With its query.
    pub(super) path: String,
    pub(super) headers: Vec<(HeaderName, HeaderValue)>,
    /// For the audit log.
    pub(super) reason: Option<HeaderValue>,
    pub(super) json: Option<String>,
    files: Vec<File>,
    pub(super) timeout: Option<Duration>,
}

struct File {
    name: String,
    bytes: Vec<u8>,
}

impl<'a> Request<'a> {
    pub(super) fn new(rest: &'a Rest, method: &str, path: &str) -> Self {
        let upper = method.to_ascii_uppercase();
        let method = METHODS.into_iter().find(|known| known.as_str() == upper);
        let method = method.ok_or_else(|| {
            let allowed = "DELETE, GET, HEAD, OPTIONS, PATCH, POST or PUT";
            Error::setting("method", upper, allowed)
        });

        let parts = method.and_then(|method| {
            route::check(path)?;
            Ok(Parts {
                method,
                path: path.to_owned(),
                headers: Vec::new(),
                reason: None,
                json: None,
                files: Vec::new(),
                timeout: None,
            })
        });
        Self { rest, parts }
    }

    /// Adds a query parameter, percent-encoded.
    pub fn query(self, name: &str, value: impl fmt::Display) -> Self {
        self.with(|parts| {
            let separator = if parts.path.contains('?') { "&" } else { "?" };
            let encoded = |text: &str| utf8_percent_encode(text, NON_ALPHANUMERIC).to_string();
            let (name, value) = (encoded(name), encoded(&value.to_string()));
            for part in [separator, &name, "=", &value] {
                parts.path.push_str(part);
            }
            route::check(&parts.path)?;
            Ok(())
        })
    }

    /// Adds a header. Headers that the library sets itself are refused: `Authorization`,
    /// `Connection`, `Content-Length`, `Content-Type`, `Host`, `Transfer-Encoding`, `User-Agent`
    /// and `X-Audit-Log-Reason`.
    pub fn header(self, name: &str, value: &str) -> Self {
        self.with(|parts| {
            let allowed = "a header name, except those that the library sets itself";
            let wrong = || Error::setting("header", name, allowed);
            let parsed = HeaderName::from_bytes(name.as_bytes()).map_err(|_| wrong())?;
            if OWN_HEADERS.contains(&parsed.as_str()) {
                return Err(wrong());
            }

            let value = HeaderValue::from_str(value).map_err(|_| {
                Error::setting(
                    "header",
                    format!("{name} with an invalid value"),
                    "visible ASCII",
                )
            })?;
            parts.headers.push((parsed, value));
            Ok(())
        })
    }

    /// Sets the reason that Discord shows in the guild's audit log: 1 to 512 characters.
    pub fn reason(self, reason: &str) -> Self {
        self.with(|parts| {
            let length = reason.chars().count();
            if !(1..=MAX_REASON).contains(&length) {
                let allowed = format!("1 to {MAX_REASON} characters");
                return Err(Error::setting(
                    "reason",
                    format!("{length} characters long"),
                    allowed,
                ));
            }

            let encoded = utf8_percent_encode(reason, NON_ALPHANUMERIC).to_string();
            let value = HeaderValue::from_str(&encoded)
                .map_err(|error| Error::setting("reason", error, "text"))?;
            parts.reason = Some(value);
            Ok(())
        })
    }

    /// Sets the JSON body. If there are files, it becomes the form field `payload_json`.
    pub fn json(self, body: &(impl Serialize + ?Sized)) -> Self {
        self.with(|parts| {
            let json = serde_json::to_string(body).map_err(|error| not_json(&error))?;
            parts.json = Some(json);
            Ok(())
        })
    }

    /// Attaches a file. The first one is `files[0]`, as the `attachments` of a message count them.
    /// The name has 1 to 255 bytes, without double quotes, slashes, backslashes and control
    /// characters.
    ///
    /// Source: [Discord, Uploading
    /// files](https://docs.discord.com/developers/reference#uploading-files).
    pub fn file(self, name: &str, bytes: impl Into<Vec<u8>>) -> Self {
        self.with(|parts| {
            let is_right = (1..=MAX_FILE_NAME).contains(&name.len())
                && !name.contains(|c: char| c.is_control() || matches!(c, '"' | '\\' | '/'));
            if !is_right {
                let allowed = format!(
                    "a name of 1 to {MAX_FILE_NAME} bytes without a quote, a slash, a backslash or a \
                     control character"
                );
                return Err(Error::setting("file", name.escape_debug(), allowed));
            }

            parts.files.push(File {
                name: name.to_owned(),
                bytes: bytes.into(),
            });
            Ok(())
        })
    }

    /// Sets how long the whole call may take: waiting for its turn, all attempts, and reading the
    /// answer. Default: 30 s; 10 s on a thread that runs a handler. Maximum: 24 hours.
    pub fn timeout(self, timeout: Duration) -> Self {
        self.with(|parts| {
            parts.timeout = Some(timeout);
            Ok(())
        })
    }

    /// Sends the request, and blocks until the answer has arrived.
    ///
    /// The request waits for its turn within Discord's rate limits. If that would take longer than
    /// its [timeout](Self::timeout), it fails at once with [`Error::RateLimited`].
    ///
    /// After a connection error or a 5xx it is retried, up to three times and while there is time,
    /// if its method is GET, HEAD, PUT or DELETE. A request with another method is retried only if
    /// no connection was made, because Discord might carry it out twice.
    ///
    /// # Errors
    /// - [`Error::Setting`]: something in the request is invalid.
    /// - [`Error::RateLimited`]: its turn would come after its timeout, or 30 attempts in a row
    ///   were answered with a 429.
    /// - [`Error::Status`]: Discord refuses it.
    /// - [`Error::Unauthorized`]: Discord refuses the bot's token.
    /// - [`Error::TooManyInvalidRequests`]: Discord has refused too many requests.
    /// - [`Error::Http`]: Discord cannot be reached or does not answer in time.
    /// - [`Error::Proxy`]: the proxy opens no connection.
    /// - [`Error::Closed`]: the request would have to wait, and the manager is closed.
    pub fn send(self) -> Result<Response, Error> {
        self.rest.send(&self.parts?)
    }

    fn with(mut self, change: impl FnOnce(&mut Parts) -> Result<(), Error>) -> Self {
        self.parts = self.parts.and_then(|mut parts| {
            change(&mut parts)?;
            Ok(parts)
        });
        self
    }
}

/// The error for a body that cannot be serialised.
pub(crate) fn not_json(error: &serde_json::Error) -> Error {
    let given = format!("not JSON: {error}");
    Error::setting("json", given, "a value that serde_json can serialise")
}

/// Shows method and path, without secrets.
impl fmt::Debug for Request<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.parts {
            Ok(parts) => write!(f, "Request({})", parts.describe()),
            Err(error) => write!(f, "Request({error})"),
        }
    }
}

impl Parts {
    /// Method and path, without secrets.
    pub(super) fn describe(&self) -> String {
        route::describe(&self.method, &self.path)
    }

    pub(super) fn has_files(&self) -> bool {
        !self.files.is_empty()
    }

    /// The names of the form's fields, one for each file.
    pub(super) fn fields(&self) -> Vec<String> {
        (0..self.files.len())
            .map(|at| format!("files[{at}]"))
            .collect()
    }

    /// The form: the JSON as `payload_json`, and one field for each file.
    pub(super) fn form<'b>(&'b self, fields: &'b [String]) -> Result<Form<'b>, ureq::Error> {
        let mut form = Form::new();
        if let Some(json) = &self.json {
            form = form.part(
                "payload_json",
                Part::text(json).mime_str("application/json")?,
            );
        }
        for (field, file) in fields.iter().zip(&self.files) {
            form = form.part(field, Part::bytes(&file.bytes).file_name(&file.name));
        }
        Ok(form)
    }
}
