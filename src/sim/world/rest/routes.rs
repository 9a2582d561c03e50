//! The table of the routes of the HTTP API.

use percent_encoding::percent_decode_str;
use serde_json::Value;

use super::super::super::permissions::{
    BAN_MEMBERS, KICK_MEMBERS, MANAGE_MESSAGES, MANAGE_ROLES, READ_MESSAGE_HISTORY, SEND_MESSAGES,
};
use super::super::super::request::Response;
use super::super::{World, payloads};
use super::Call;
use super::answers::{METHOD_NOT_ALLOWED, NOT_FOUND, Outcome, Refusal};

/// Handles the requests of a method and a path.
pub(super) struct Route {
    pub(super) method: &'static str,
    /// The path; `{}` matches any one segment.
    pub(super) pattern: &'static str,
    /// The permission that the bot needs in the guild of the path; 0 if none.
    pub(super) permission: u64,
    pub(super) handle: fn(&mut World, &Call<'_>) -> Outcome,
}

const fn route(
    method: &'static str,
    pattern: &'static str,
    permission: u64,
    handle: fn(&mut World, &Call<'_>) -> Outcome,
) -> Route {
    Route {
        method,
        pattern,
        permission,
        handle,
    }
}

/// The first route that matches is used.
#[rustfmt::skip]
const ROUTES: &[Route] = &[
    route("GET", "/gateway", 0, |world, _| ok(serde_json::json!({"url": world.url}))),
    route("GET", "/gateway/bot", 0, |world, call| ok(world.gateway_bot(call.now))),
    route("GET", "/oauth2/applications/@me", 0, |world, _| ok(world.application())),
    route("GET", "/applications/@me", 0, |world, _| ok(world.application())),
    route("GET", "/users/@me", 0, |_, _| ok(payloads::current_user())),
    route("GET", "/users/@me/guilds", 0, World::own_guilds),
    route("POST", "/users/@me/channels", 0, World::open_direct_channel),
    route("GET", "/users/{}", 0, World::get_user),

    route("GET", "/channels/{}", 0, World::get_channel),
    route("POST", "/channels/{}/typing", SEND_MESSAGES, World::type_in_channel),
    route("GET", "/channels/{}/messages", READ_MESSAGE_HISTORY, World::list_messages),
    route("POST", "/channels/{}/messages", SEND_MESSAGES, World::create_message),
    route("POST", "/channels/{}/messages/bulk-delete", MANAGE_MESSAGES, World::bulk_delete),
    route("GET", "/channels/{}/messages/{}", READ_MESSAGE_HISTORY, World::get_message),
    route("PATCH", "/channels/{}/messages/{}", 0, World::edit_message),
    route("DELETE", "/channels/{}/messages/{}", 0, World::delete_message),
    route("DELETE", "/channels/{}/messages/{}/reactions", MANAGE_MESSAGES, World::clear_reactions),
    route("GET", "/channels/{}/messages/{}/reactions/{}", 0, World::list_reactions),
    route("DELETE", "/channels/{}/messages/{}/reactions/{}", MANAGE_MESSAGES, World::clear_emoji),
    route("PUT", "/channels/{}/messages/{}/reactions/{}/@me", READ_MESSAGE_HISTORY, World::add_reaction),
    route("DELETE", "/channels/{}/messages/{}/reactions/{}/{}", 0, World::remove_reaction),

    route("GET", "/guilds/{}", 0, World::get_guild),
    route("GET", "/guilds/{}/channels", 0, World::list_channels),
    route("GET", "/guilds/{}/roles", 0, World::list_roles),
    route("GET", "/guilds/{}/members", 0, World::list_members),
    route("GET", "/guilds/{}/members/search", 0, World::search_members),
    route("GET", "/guilds/{}/members/{}", 0, World::get_member),
    route("PATCH", "/guilds/{}/members/{}", 0, World::edit_member),
    route("DELETE", "/guilds/{}/members/{}", KICK_MEMBERS, World::kick_member),
    route("PUT", "/guilds/{}/members/{}/roles/{}", MANAGE_ROLES, World::add_role),
    route("DELETE", "/guilds/{}/members/{}/roles/{}", MANAGE_ROLES, World::remove_role),
    route("GET", "/guilds/{}/bans", BAN_MEMBERS, World::list_bans),
    route("GET", "/guilds/{}/bans/{}", BAN_MEMBERS, World::get_ban),
    route("PUT", "/guilds/{}/bans/{}", BAN_MEMBERS, World::ban),
    route("DELETE", "/guilds/{}/bans/{}", BAN_MEMBERS, World::unban),

    route("GET", "/applications/{}/commands", 0, |world, call| ok(world.list_commands(call))),
    route("POST", "/applications/{}/commands", 0, World::create_command),
    route("PUT", "/applications/{}/commands", 0, World::overwrite_commands),
    route("GET", "/applications/{}/commands/{}", 0, World::get_command),
    route("PATCH", "/applications/{}/commands/{}", 0, World::edit_command),
    route("DELETE", "/applications/{}/commands/{}", 0, World::delete_command),
    route("GET", "/applications/{}/guilds/{}/commands", 0, |world, call| ok(world.list_commands(call))),
    route("POST", "/applications/{}/guilds/{}/commands", 0, World::create_command),
    route("PUT", "/applications/{}/guilds/{}/commands", 0, World::overwrite_commands),
    route("GET", "/applications/{}/guilds/{}/commands/{}", 0, World::get_command),
    route("PATCH", "/applications/{}/guilds/{}/commands/{}", 0, World::edit_command),
    route("DELETE", "/applications/{}/guilds/{}/commands/{}", 0, World::delete_command),

    route("POST", "/interactions/{}/{}/callback", 0, World::callback),
    route("POST", "/webhooks/{}/{}", 0, World::follow_up),
    route("GET", "/webhooks/{}/{}/messages/{}", 0, World::get_webhook_message),
    route("PATCH", "/webhooks/{}/{}/messages/{}", 0, World::edit_webhook_message),
    route("DELETE", "/webhooks/{}/{}/messages/{}", 0, World::delete_webhook_message),
];

#[expect(clippy::unnecessary_wraps, reason = "the routes' type")]
fn ok(json: Value) -> Outcome {
    Ok(Response::json(200, json))
}

/// The route of a request, and the values of its `{}`.
pub(super) fn find(method: &str, path: &str) -> Result<(&'static Route, Vec<String>), Refusal> {
    let mut is_known = false;
    for route in ROUTES {
        if let Some(parameters) = matches(route.pattern, path) {
            if route.method == method {
                return Ok((route, parameters));
            }
            is_known = true;
        }
    }
    Err(if is_known {
        METHOD_NOT_ALLOWED
    } else {
        NOT_FOUND
    })
}

/// The percent-decoded values of the `{}` of a pattern, if the path matches it.
pub(in crate::sim) fn matches(pattern: &str, path: &str) -> Option<Vec<String>> {
    let (mut wanted, mut given) = (pattern.split('/'), path.split('/'));
    let mut parameters = Vec::new();
    loop {
        let (wanted, given) = match (wanted.next(), given.next()) {
            (None, None) => return Some(parameters),
            (wanted, given) => (wanted?, percent_decode_str(given?).decode_utf8_lossy()),
        };
        match wanted {
            "{}" if !given.is_empty() => parameters.push(given.into_owned()),
            _ if wanted == given => {}
            _ => return None,
        }
    }
}

/// The major parameter of a route, whose values have separate rate limits: a channel id, a guild
/// id, or the token of a webhook. Empty for other routes.
///
/// Source: [Discord, Rate limits](https://docs.discord.com/developers/topics/rate-limits).
pub(super) fn major<'a>(name: &str, parameters: &'a [String]) -> &'a str {
    let (_, pattern) = name.split_once(' ').unwrap_or_default();
    let at = match pattern.split('/').nth(1) {
        Some("channels" | "guilds") => 0,
        Some("webhooks") => 1,
        _ => return "",
    };
    parameters.get(at).map_or("", String::as_str)
}

/// Replaces each id in a path with `{}`.
pub(super) fn without_ids(path: &str) -> String {
    let is_id = |segment: &str| segment.bytes().all(|byte| byte.is_ascii_digit());
    let segments = path.split('/');
    let segments = segments.map(|segment| match segment {
        "" => "",
        segment if is_id(segment) => "{}",
        segment => segment,
    });
    segments.collect::<Vec<_>>().join("/")
}

/// Whether a path is a valid pattern: it begins with `/`, without query, fragment or spaces.
pub(in crate::sim) fn is_pattern(pattern: &str) -> bool {
    pattern.starts_with('/') && !pattern.contains(['?', '#', ' '])
}

/// The methods and paths of all routes.
pub(in crate::sim) fn names() -> impl Iterator<Item = (&'static str, &'static str)> {
    ROUTES.iter().map(|route| (route.method, route.pattern))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_matched_segment_by_segment() {
        let pattern = "/channels/{}/messages/{}/reactions/{}/@me";
        let found = matches(pattern, "/channels/1/messages/2/reactions/a%2Fb/%40me");
        assert_eq!(found.unwrap(), ["1", "2", "a/b"]);
        for path in ["/channels/1", "/channels//messages/2/reactions/x/@me", ""] {
            assert_eq!(matches(pattern, path), None, "{path}");
        }
        assert!(
            matches!(find("PUT", "/gateway"), Err(refusal) if Response::from(refusal.clone()).status == 405)
        );
    }

    #[test]
    fn a_literal_comes_before_what_would_hide_it() {
        for (at, route) in ROUTES.iter().enumerate() {
            let example = route.pattern.replace("{}", "1");
            let (found, _) = find(route.method, &example).ok().unwrap();
            assert_eq!(found.pattern, route.pattern, "{at}");
        }
    }
}
