//! A request to the HTTP interface, and what it is answered with.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use percent_encoding::percent_decode_str;
use serde_json::{Value, json};

/// A request to the HTTP interface.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct Request {
    /// The method, for example `POST`.
    pub method: String,
    /// The path below `/api/v10`, decoded, for example `/channels/5/messages`.
    pub path: String,
    /// What stands at each `{}` of the route, in order.
    pub parameters: Vec<String>,
    /// The parameters behind the `?`.
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
    /// Its type, if the request says it.
    pub content_type: Option<String>,
    /// What is in it.
    pub bytes: Vec<u8>,
}

impl Request {
    /// The first header of this name, in any case.
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut headers = self.headers.iter();
        let (_, value) = headers.find(|(other, _)| other.eq_ignore_ascii_case(name))?;
        Some(value)
    }

    /// The reason for the audit log, decoded.
    pub fn reason(&self) -> Option<String> {
        let reason = self.header("x-audit-log-reason")?;
        Some(percent_decode_str(reason).decode_utf8_lossy().into_owned())
    }

    /// The id at a `{}` of the route; 0, which nothing has, if it is none.
    pub(super) fn id(&self, at: usize) -> u64 {
        let parameter = self.parameters.get(at);
        parameter
            .and_then(|text| text.parse().ok())
            .unwrap_or_default()
    }

    /// A parameter that is an id, which a list begins after or ends before.
    pub(super) fn bound(&self, name: &str) -> Option<u64> {
        self.query.get(name)?.parse().ok()
    }

    /// A boolean parameter.
    ///
    /// Source: [Discord, Boolean query
    /// strings](https://docs.discord.com/developers/reference#boolean-query-strings).
    pub(super) fn flag(&self, name: &str) -> bool {
        let value = self.query.get(name).map(String::as_str);
        matches!(value, Some("true" | "True" | "1"))
    }
}

/// One line: the method, the path and the body.
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

/// What a request is answered with.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Response {
    /// The status.
    pub status: u16,
    /// Headers besides those of every answer.
    pub headers: Vec<(String, String)>,
    /// The body; nothing if it is null.
    pub json: Value,
}

impl Response {
    /// A status from 200 to 599, and a body.
    pub fn json(status: u16, json: Value) -> Self {
        let headers = Vec::new();
        Self {
            status,
            headers,
            json,
        }
    }

    /// 204, without a body.
    pub fn no_content() -> Self {
        Self::json(204, Value::Null)
    }

    /// An error of Discord's shape.
    ///
    /// Source: [Discord, JSON error
    /// codes](https://docs.discord.com/developers/topics/opcodes-and-status-codes#json).
    pub fn error(status: u16, code: u32, message: &str) -> Self {
        Self::json(status, json!({"message": message, "code": code}))
    }
}

/// Answers the requests of a route in place of the simulator.
pub(super) type Handler = Arc<dyn Fn(&Request) -> Response + Send + Sync>;
