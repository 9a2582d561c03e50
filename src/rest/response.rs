//! The answer to a request.

use std::fmt;

use serde::de::DeserializeOwned;
use ureq::http::HeaderMap;

use crate::error::Error;

/// How many characters of an unexpected answer are quoted.
const QUOTED: usize = 200;

/// A successful answer from Discord.
#[derive(Clone)]
pub struct Response {
    request: String,
    status: u16,
    headers: HeaderMap,
    body: Vec<u8>,
}

impl Response {
    pub(super) fn new(request: String, status: u16, headers: HeaderMap, body: Vec<u8>) -> Self {
        Self {
            request,
            status,
            headers,
            body,
        }
    }

    /// The HTTP status, 200 to 299.
    pub fn status(&self) -> u16 {
        self.status
    }

    /// The first header with this name, in upper or lower case. `None` if there is none, or if its
    /// value is not visible ASCII.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// The body, at most 16 MiB.
    pub fn bytes(&self) -> &[u8] {
        &self.body
    }

    /// The body, without a copy.
    pub fn into_bytes(self) -> Vec<u8> {
        self.body
    }

    /// Parses the body as JSON, for example as a [`Value`](serde_json::Value). An empty body counts
    /// as `null`.
    ///
    /// # Errors
    /// [`Error::UnexpectedAnswer`] if the body is not JSON of the type `T`.
    pub fn json<T: DeserializeOwned>(&self) -> Result<T, Error> {
        let body: &[u8] = if self.body.is_empty() {
            b"null"
        } else {
            &self.body
        };
        serde_json::from_slice(body).map_err(|source| Error::UnexpectedAnswer {
            request: self.request.clone(),
            body: String::from_utf8_lossy(&self.body)
                .chars()
                .take(QUOTED)
                .collect(),
            source,
        })
    }
}

/// Without the body, which may hold secrets.
impl fmt::Debug for Response {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Response")
            .field("request", &self.request)
            .field("status", &self.status)
            .field("bytes", &self.body.len())
            .finish_non_exhaustive()
    }
}
