//! The rate limits of the HTTP API.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use serde_json::json;

use super::super::super::fault::Scope;
use super::super::super::observed::digest;
use super::super::super::request::Response;
use super::super::World;
use super::Headers;

const GLOBAL_WINDOW: Duration = Duration::from_secs(1);

/// Above this number of buckets, those whose window has ended are removed.
const MAX_BUCKETS: usize = 10_000;

/// The number of requests of each bucket within its window.
#[derive(Default)]
pub(super) struct Buckets(HashMap<String, Bucket>);

#[derive(Clone, Copy)]
struct Bucket {
    used: u32,
    reset_at: Instant,
}

impl Buckets {
    /// Counts a request. Returns the bucket's new state, and whether the request was allowed.
    fn count(&mut self, now: Instant, name: &str, limit: u32, window: Duration) -> (Bucket, bool) {
        if self.0.len() > MAX_BUCKETS {
            self.0.retain(|_, bucket| bucket.reset_at > now);
        }
        let fresh = Bucket {
            used: 0,
            reset_at: now + window,
        };
        let bucket = self.0.entry(name.to_owned()).or_insert(fresh);
        if bucket.reset_at <= now {
            *bucket = fresh;
        }

        let has_room = bucket.used < limit;
        bucket.used += u32::from(has_room);
        (*bucket, has_room)
    }
}

impl World {
    /// Counts a request against the global rate limit. Requests for interactions are exempt.
    pub(super) fn take_global_turn(
        &mut self,
        now: Instant,
        connection: usize,
        key: &str,
    ) -> Result<(), Response> {
        let (limit, window) = (self.settings.global_rest_limit, self.scaled(GLOBAL_WINDOW));
        let (bucket, has_room) = self.desk.buckets.count(now, "", limit, window);
        if has_room {
            return Ok(());
        }
        key.clone_into(&mut self.sent);
        let rule = format!("429: at most {limit} requests a second");
        self.warn_only(now, connection, rule, true);
        Err(limited(bucket.reset_at - now, Scope::Global))
    }

    /// Counts a request against the limit of its route. Returns the rate limit headers, or the
    /// refusal.
    ///
    /// A bucket is a route with its major parameter; `key` names both.
    pub(super) fn take_turn(
        &mut self,
        now: Instant,
        connection: usize,
        (route, key): (&str, &str),
    ) -> Result<Headers, Response> {
        let (limit, window) = self.settings.rest_limit;
        let window = self.scaled(window);
        let (bucket, has_room) = self.desk.buckets.count(now, key, limit, window);
        let left = bucket.reset_at - now;
        let reset_at = self.unix(now) + left;
        let headers = [
            ("x-ratelimit-limit", limit.to_string()),
            ("x-ratelimit-remaining", (limit - bucket.used).to_string()),
            (
                "x-ratelimit-reset",
                format!("{:.3}", reset_at.as_secs_f64()),
            ),
            (
                "x-ratelimit-reset-after",
                format!("{:.3}", left.as_secs_f64()),
            ),
            (
                "x-ratelimit-bucket",
                format!("{:016x}", digest(route.as_bytes())),
            ),
        ];
        let headers = headers.map(|(name, value)| (name.to_owned(), value));

        if has_room {
            return Ok(headers.into());
        }

        key.clone_into(&mut self.sent);
        let rule = format!("429: at most {limit} requests of a route in {window:?}");
        self.warn_only(now, connection, rule, true);
        let mut refusal = limited(left, Scope::User);
        refusal.headers.extend(headers);
        Err(refusal)
    }
}

/// The response 429, as Discord's proxy returns it.
pub(super) fn limited(wait: Duration, scope: Scope) -> Response {
    let seconds = wait.as_secs_f64();
    let is_global = scope == Scope::Global;
    let mut response = Response::json(
        429,
        json!({
            "message": "You are being rate limited.",
            "retry_after": seconds,
            "global": is_global,
        }),
    );
    let scope = match scope {
        Scope::User => "user",
        Scope::Global => "global",
        Scope::Shared => "shared",
    };

    let mut headers = vec![
        ("retry-after", seconds.ceil().to_string()),
        ("x-ratelimit-scope", scope.to_owned()),
        // Some clients treat a 429 without this header as a ban of their IP address.
        ("via", "1.1 google".to_owned()),
    ];

    if is_global {
        headers.push(("x-ratelimit-global", "true".to_owned()));
    }

    let headers = headers.into_iter();
    response.headers = headers
        .map(|(name, value)| (name.to_owned(), value))
        .collect();
    response
}
