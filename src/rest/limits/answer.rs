//! Reads what an answer reports about rate limits.

use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;

/// How long nothing is sent after a 429 that does not come from Discord's API and names no time.
const BLOCKED: Duration = Duration::from_secs(5 * 60);

/// How long a rate limit of Discord's API lasts if the answer names no usable time.
const UNKNOWN_WAIT: Duration = Duration::from_secs(1);

/// The resolution of Discord's times. A window may end later than reported by this much.
const RESOLUTION: Duration = Duration::from_millis(1);

/// The longest wait, whatever an answer asks for.
const MAX_WAIT: Duration = Duration::from_secs(24 * 60 * 60);

/// The longest bucket name that is accepted, in bytes.
const MAX_NAME: usize = 200;

/// How many characters are shown of an answer that does not come from Discord's API.
const SHOWN: usize = 200;

/// What an answer reports about rate limits.
#[derive(Clone, Debug, Default, PartialEq)]
pub(in super::super) struct Answer {
    pub(super) status: u16,
    /// The name of the bucket.
    pub(super) bucket: Option<Arc<str>>,
    pub(super) count: Option<Count>,
    /// What a 429 limits; `None` for any other status.
    pub(super) limited: Option<Limited>,
    /// Whether the answer has the scope `shared`: others use the limit too, so that a 429 does not
    /// count as an invalid request.
    pub(super) is_shared: bool,
}

/// What is left of a bucket's window.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Count {
    /// At least 1.
    pub(super) limit: u32,
    pub(super) remaining: u32,
    pub(super) reset_after: Duration,
}

/// What a 429 limits, and for how long.
#[derive(Clone, Debug, PartialEq)]
pub(in super::super) enum Limited {
    /// The bucket.
    Bucket(Duration),
    /// The global rate limit.
    Global(Duration),
    /// This machine's IP address, with the text of the answer.
    Blocked(Duration, String),
}

impl Answer {
    /// Reads the headers and, for a 429, the body. A malformed value counts as absent.
    pub(in super::super) fn new<'a>(
        status: u16,
        header: impl Fn(&str) -> Option<&'a str>,
        body: &str,
    ) -> Self {
        let number = |name| header(name).and_then(|value: &str| value.trim().parse().ok());
        let seconds = |name| header(name).and_then(|value: &str| wait(value.trim().parse().ok()?));
        let count = || {
            Some(Count {
                limit: number("x-ratelimit-limit").filter(|limit| *limit > 0)?,
                remaining: number("x-ratelimit-remaining")?,
                reset_after: seconds("x-ratelimit-reset-after")?,
            })
        };

        let scope = header("x-ratelimit-scope");
        let limited = (status == 429).then(|| {
            let is_global = scope == Some("global") || header("x-ratelimit-global").is_some();
            limited(seconds("retry-after"), scope.is_some(), is_global, body)
        });

        let name = header("x-ratelimit-bucket");
        Self {
            status,
            bucket: name.filter(|name| name.len() <= MAX_NAME).map(Arc::from),
            count: count(),
            limited,
            is_shared: scope == Some("shared"),
        }
    }

    /// How long to wait after a 429; `None` for any other status.
    pub(in super::super) fn retry_after(&self) -> Option<Duration> {
        match self.limited {
            Some(Limited::Bucket(wait) | Limited::Global(wait) | Limited::Blocked(wait, _)) => {
                Some(wait)
            }
            None => None,
        }
    }

    pub(super) fn is_success(&self) -> bool {
        (200..300).contains(&self.status)
    }
}

/// Reads what a 429 limits. The time in the body is more exact than the header's, so it is
/// preferred.
fn limited(header: Option<Duration>, has_scope: bool, is_global: bool, body: &str) -> Limited {
    let told: Value = serde_json::from_str(body).unwrap_or_default();
    let is_discords = has_scope || told["retry_after"].is_number();
    let time = told["retry_after"].as_f64().and_then(wait).or(header);
    match time {
        _ if !is_discords => {
            let text: String = body.chars().take(SHOWN).collect();
            Limited::Blocked(time.unwrap_or(BLOCKED), text.trim().to_owned())
        }
        time if is_global || told["global"] == true => {
            Limited::Global(time.unwrap_or(UNKNOWN_WAIT))
        }
        time => Limited::Bucket(time.unwrap_or(UNKNOWN_WAIT)),
    }
}

/// Converts a number of seconds into a wait, at most [`MAX_WAIT`]. `None` if it is negative or not
/// finite.
fn wait(seconds: f64) -> Option<Duration> {
    if !seconds.is_finite() || seconds < 0.0 {
        return None;
    }
    let wait = Duration::try_from_secs_f64(seconds).unwrap_or(MAX_WAIT);
    Some(wait.saturating_add(RESOLUTION).min(MAX_WAIT))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(status: u16, headers: &[(&str, &'static str)], body: &str) -> Answer {
        let header = |name: &str| {
            let (_, value) = headers.iter().find(|(other, _)| *other == name)?;
            Some(*value)
        };
        Answer::new(status, header, body)
    }

    #[test]
    fn headers_that_make_no_sense_count_as_absent() {
        let with = |limit, remaining, reset_after| {
            let headers = [
                ("x-ratelimit-limit", limit),
                ("x-ratelimit-remaining", remaining),
                ("x-ratelimit-reset-after", reset_after),
            ];
            answer(200, &headers, "").count
        };

        let count = Count {
            limit: 5,
            remaining: 4,
            reset_after: Duration::from_millis(1501),
        };

        assert_eq!(with("5", "4", "1.5"), Some(count));
        for (limit, remaining, reset_after) in [
            ("x", "4", "1"),
            ("0", "4", "1"),
            ("-5", "4", "1"),
            ("5", "", "1"),
            ("5", "4", "soon"),
            ("5", "4", "-1"),
            ("5", "4", "NaN"),
            ("99999999999999", "4", "1"),
        ] {
            assert_eq!(with(limit, remaining, reset_after), None);
        }

        let huge = with("5", "9", "1e300").unwrap();
        assert_eq!((huge.remaining, huge.reset_after), (9, MAX_WAIT));
    }

    #[test]
    fn a_429_says_what_is_limited_and_for_how_long() {
        let seconds = |seconds| Duration::from_secs_f64(seconds) + RESOLUTION;
        let json =
            r#"{"message": "You are being rate limited.", "retry_after": 0.5, "global": false}"#;
        let limited =
            |headers: &[(&str, &'static str)], body| answer(429, headers, body).limited.unwrap();
        assert_eq!(
            limited(&[("retry-after", "9")], json),
            Limited::Bucket(seconds(0.5))
        );
        assert_eq!(
            limited(&[], r#"{"retry_after": 0.5, "global": true}"#),
            Limited::Global(seconds(0.5))
        );
        assert_eq!(
            limited(&[("x-ratelimit-global", "true")], json),
            Limited::Global(seconds(0.5))
        );
        let scope = [("x-ratelimit-scope", "user"), ("retry-after", "2")];
        assert_eq!(limited(&scope, ""), Limited::Bucket(seconds(2.0)));

        // Invalid times.
        assert_eq!(
            limited(&[("retry-after", "2")], r#"{"retry_after": -1}"#),
            Limited::Bucket(seconds(2.0))
        );
        assert_eq!(
            limited(&[], r#"{"retry_after": -1}"#),
            Limited::Bucket(UNKNOWN_WAIT)
        );
        assert_eq!(
            limited(&[], r#"{"retry_after": 1e300}"#),
            Limited::Bucket(MAX_WAIT)
        );
        assert_eq!(
            limited(&[], r#"{"retry_after": 0}"#),
            Limited::Bucket(seconds(0.0))
        );

        // A Cloudflare page.
        let page = "<title>Access denied</title>";
        assert_eq!(limited(&[], page), Limited::Blocked(BLOCKED, page.into()));
        assert_eq!(
            limited(&[("retry-after", "60")], page),
            Limited::Blocked(seconds(60.0), page.into())
        );
        assert_eq!(
            limited(&[("retry-after", "-1")], "[]"),
            Limited::Blocked(BLOCKED, "[]".into())
        );
    }
}
