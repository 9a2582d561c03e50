//! What the library reads from a path: its rate limit, and the token that it may contain.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use ureq::http::Method;
use ureq::http::uri::PathAndQuery;

use crate::error::Error;

/// A method and a path, reduced to what Discord's rate limits distinguish.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Route {
    /// Method and path, with `{}` for each parameter such as an id.
    pub(super) template: Arc<str>,
    /// The major parameter: a channel, guild, webhook or interaction, each of which has a separate
    /// limit. Empty if there is none.
    ///
    /// Source: [Discord, Rate limits](https://docs.discord.com/developers/topics/rate-limits).
    pub(super) major: Arc<str>,
    /// Whether it does not count against the global rate limit. Answers to interactions do not.
    pub(super) is_exempt: bool,
}

impl Route {
    /// The route of a path below the API's version.
    pub(super) fn new(method: &Method, path: &str) -> Self {
        let own_token = own_token(path);
        let mut template = method.to_string();
        let mut major = String::new();
        let mut before = ["", ""];
        let parts = without_query(path).split('/');
        for (at, part) in parts.filter(|part| !part.is_empty()).enumerate() {
            let [kind_before, kind] = before;
            let is_token = own_token.is_some()
                && at == 2
                && matches!(kind_before, "webhooks" | "interactions");
            let is_major = at == 1
                && part != "templates"
                && matches!(kind, "channels" | "guilds" | "webhooks" | "interactions");
            if is_major || is_token {
                major.push('/');
                major.push_str(part);
            }

            // The names of emojis, invites and templates are parameters as well.
            let is_name = matches!(kind, "invites" | "reactions" | "templates");
            let is_parameter = is_id(part) || is_token || is_name;
            template.push('/');
            template.push_str(if is_parameter { "{}" } else { part });
            before = [kind, part];
        }
        let is_exempt = own_token.is_some() && template.contains("/interactions/");
        Self {
            template: template.into(),
            major: major.into(),
            is_exempt,
        }
    }
}

fn is_id(part: &str) -> bool {
    part.bytes().all(|byte| byte.is_ascii_digit())
}

fn without_query(path: &str) -> &str {
    let end = path.find(['?', '#']).unwrap_or(path.len());
    &path[..end]
}

/// Where the token is in a path of a webhook or an interaction, at any depth:
/// `/webhooks/ID/TOKEN`, `/interactions/ID/TOKEN/callback`.
pub(super) fn own_token(path: &str) -> Option<Range<usize>> {
    let mut parts: Vec<Range<usize>> = Vec::new();
    let mut start = 0;
    for part in without_query(path).split('/') {
        if !part.is_empty() {
            parts.push(start..start + part.len());
        }
        start += part.len() + 1;
    }
    parts.windows(3).find_map(|window| {
        let [kind, _, token] = window else {
            return None;
        };
        matches!(&path[kind.clone()], "webhooks" | "interactions").then(|| token.clone())
    })
}

/// Method and path for errors and logs, without the token in a path of an interaction or a webhook.
pub(super) fn describe(method: impl fmt::Display, path: &str) -> String {
    match own_token(path) {
        Some(own) => format!("{method} {}...{}", &path[..own.start], &path[own.end..]),
        None => format!("{method} {path}"),
    }
}

/// Checks that a path can be sent unchanged.
pub(super) fn check(path: &str) -> Result<(), Error> {
    let is_up = |part: &str| matches!(part, "." | "..");
    let is_right = path.starts_with('/')
        && path
            .bytes()
            .all(|byte| byte.is_ascii_graphic() && byte != b'#')
        && path.parse::<PathAndQuery>().is_ok()
        && !without_query(path).split('/').any(is_up);
    if is_right {
        return Ok(());
    }

    let allowed = "a path relative to the base URL, such as /channels/1/messages: it starts with \
                   a slash, is percent-encoded, and has no `#` and no segment `.` or `..`";
    let given = own_token(path).map(|own| path.replace(&path[own], "..."));
    Err(Error::setting(
        "path",
        given.as_deref().unwrap_or(path),
        allowed,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_shown_without_their_tokens() {
        let shown = |path| describe(Method::POST, path);
        assert_eq!(
            shown("/interactions/1/secret/callback"),
            "POST /interactions/1/.../callback"
        );
        assert_eq!(shown("/webhooks/1/secret"), "POST /webhooks/1/...");
        assert_eq!(shown("/channels/1/messages"), "POST /channels/1/messages");
        assert_eq!(
            shown("/discord/webhooks/1/secret/messages/@original?wait=true"),
            "POST /discord/webhooks/1/.../messages/@original?wait=true"
        );
        assert_eq!(shown("//webhooks/1/secret"), "POST //webhooks/1/...");
        assert_eq!(shown("/webhooks/1/secret?x=/"), "POST /webhooks/1/...?x=/");
        assert_eq!(shown("/webhooks//1//secret"), "POST /webhooks//1//...");

        for public in ["/webhooks/1", "/webhooks/1/", "/guilds/1/webhooks", "/", ""] {
            assert_eq!(own_token(public), None, "{public}");
        }
    }

    #[test]
    fn a_route_keeps_what_has_a_limit_of_its_own() {
        for (path, template, major, is_exempt) in [
            (
                "/channels/12/messages/3?x=1",
                "GET/channels/{}/messages/{}",
                "/12",
                false,
            ),
            (
                "/guilds/5/members/6/roles/7",
                "GET/guilds/{}/members/{}/roles/{}",
                "/5",
                false,
            ),
            ("/webhooks/5", "GET/webhooks/{}", "/5", false),
            (
                "/webhooks/5/abc/messages/@original",
                "GET/webhooks/{}/{}/messages/@original",
                "/5/abc",
                false,
            ),
            (
                "/interactions/5/abc/callback",
                "GET/interactions/{}/{}/callback",
                "/5/abc",
                true,
            ),
            (
                "/channels/1/messages/2/reactions/%F0%9F%91%8D/@me",
                "GET/channels/{}/messages/{}/reactions/{}/@me",
                "/1",
                false,
            ),
            ("/users/@me/guilds/9", "GET/users/@me/guilds/{}", "", false),
            ("//gateway//bot", "GET/gateway/bot", "", false),
            ("/invites/abc", "GET/invites/{}", "", false),
            (
                "/guilds/templates/abc",
                "GET/guilds/templates/{}",
                "",
                false,
            ),
            (
                "/guilds/5/templates/abc",
                "GET/guilds/{}/templates/{}",
                "/5",
                false,
            ),
            ("/", "GET", "", false),
        ] {
            let route = Route::new(&Method::GET, path);
            assert_eq!(
                (&*route.template, &*route.major, route.is_exempt),
                (template, major, is_exempt)
            );
        }
    }

    #[test]
    fn a_bad_path_is_refused_without_its_secret() {
        for path in [
            "",
            "gateway",
            "/a b",
            "//evil\n",
            "/a#b",
            "/channels/<id>",
            &format!("/{}", "a".repeat(70_000)),
            "/channels/1/../2",
            "/.",
            "/\u{e9}",
        ] {
            assert!(check(path).is_err(), "{path}");
        }

        let error = check("/webhooks/1/secret/messages/ 5")
            .unwrap_err()
            .to_string();
        assert!(!error.contains("secret"), "{error}");

        for path in ["/", "/a?b=..&c=/../", "//gateway", "/a..b"] {
            assert!(check(path).is_ok(), "{path}");
        }
    }
}
