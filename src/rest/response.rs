//! What a request was answered with.

use std::fmt;

use serde::de::DeserializeOwned;
use ureq::http::HeaderMap;

use crate::error::Error;

/// How much of an unexpected answer is quoted.
const QUOTED: usize = 200;

/// A successful answer of Discord's.
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

    /// The first header of this name, in any case; `None` also if it is not ASCII.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// The body, up to 16 MiB.
    pub fn bytes(&self) -> &[u8] {
        &self.body
    }

    /// The body, up to 16 MiB.
    pub fn into_bytes(self) -> Vec<u8> {
        self.body
    }

    /// The body as JSON of any shape, for example as a [`Value`](serde_json::Value); an empty body
    /// counts as `null`. [`Error::UnexpectedAnswer`] if it is of another shape.
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
