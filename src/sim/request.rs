//! A request to the HTTP API, and its response.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use percent_encoding::percent_decode_str;
use serde_json::{Value, json};

/// A request to the HTTP API.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct Request {
    /// The method, for example `POST`.
    pub method: String,
    /// The path below `/api/v10`, decoded, for example `/channels/5/messages`.
    pub path: String,
    /// The path segment at each `{}` of the route, in order.
    pub parameters: Vec<String>,
    /// The query parameters.
    pub query: BTreeMap<String, String>,
    /// The headers, in order, their names in lower case.
    pub headers: Vec<(String, String)>,
    /// The body: JSON, or the `payload_json` of a form; null if there is none.
    pub json: Value,
    /// The files of a form.
    pub files: Vec<File>,
}

/// A file that a request uploads.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct File {
    /// The name of its field, for example `files[0]`.
    pub field: String,
    /// The name of the file.
    pub name: String,
    /// Its content type, if the request gives one.
    pub content_type: Option<String>,
    /// The content of the file.
    pub bytes: Vec<u8>,
}

impl Request {
    /// The first header with this name, which is compared case-insensitively.
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut headers = self.headers.iter();
        let (_, value) = headers.find(|(other, _)| other.eq_ignore_ascii_case(name))?;
        Some(value)
    }

    /// The reason for the audit log (the header `X-Audit-Log-Reason`), decoded.
    pub fn reason(&self) -> Option<String> {
        let reason = self.header("x-audit-log-reason")?;
        Some(percent_decode_str(reason).decode_utf8_lossy().into_owned())
    }

    /// The id at the `{}` with this index; 0 if it is not an id. No object has the id 0.
    pub(super) fn id(&self, at: usize) -> u64 {
        let parameter = self.parameters.get(at);
        parameter
            .and_then(|text| text.parse().ok())
            .unwrap_or_default()
    }

    /// A query parameter that is an id: a list begins after it or ends before it.
    pub(super) fn bound(&self, name: &str) -> Option<u64> {
        self.query.get(name)?.parse().ok()
    }

    /// A boolean query parameter.
    ///
    /// Source: [Discord, Boolean query
    /// strings](https://docs.discord.com/developers/reference#boolean-query-strings).
    pub(super) fn flag(&self, name: &str) -> bool {
        let value = self.query.get(name).map(String::as_str);
        matches!(value, Some("true" | "True" | "1"))
    }
}

/// One line: the method, the path, the body and the files.
impl fmt::Display for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.method, self.path)?;
        if !self.json.is_null() {
            write!(f, " {}", self.json)?;
        }
        for file in &self.files {
            write!(f, " + {file:?}")?;
        }
        Ok(())
    }
}

/// The name and the size, without the content.
impl fmt::Debug for File {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} ({} bytes)", self.name, self.bytes.len())
    }
}

/// The response to a request.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Response {
    /// The status.
    pub status: u16,
    /// Headers in addition to those that every response has.
    pub headers: Vec<(String, String)>,
    /// The body; none if it is null.
    pub json: Value,
}

impl Response {
    /// A response with a status from 200 to 599 and a body.
    pub fn json(status: u16, json: Value) -> Self {
        let headers = Vec::new();
        Self {
            status,
            headers,
            json,
        }
    }

    /// A response with the status 204, without a body.
    pub fn no_content() -> Self {
        Self::json(204, Value::Null)
    }

    /// An error response in Discord's format.
    ///
    /// Source: [Discord, JSON error
    /// codes](https://docs.discord.com/developers/topics/opcodes-and-status-codes#json).
    pub fn error(status: u16, code: u32, message: &str) -> Self {
        Self::json(status, json!({"message": message, "code": code}))
    }
}

/// Answers the requests of a route in place of the simulator.
pub(super) type Handler = Arc<dyn Fn(&Request) -> Response + Send + Sync>;
