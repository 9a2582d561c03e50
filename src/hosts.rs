//! Parses the URLs that users set, and checks to which hosts they lead.

use std::net::{IpAddr, Ipv6Addr};

use http::Uri;

/// The maximum length of a URL, in bytes: more than any that Discord or a user has.
const MAX_URL: usize = 2048;

/// Parses a URL with one of these schemes, a host, and no user. The scheme and the host are returned
/// in lower case. White space around the URL, and a `#` and what follows it, are dropped. `None` if
/// the URL is different.
pub(crate) fn parse_url(given: &str, schemes: [&'static str; 2]) -> Option<Uri> {
    let given = given.trim();
    if given.len() > MAX_URL || !given.is_ascii() {
        return None;
    }

    let mut parts = given.parse::<Uri>().ok()?.into_parts();
    let scheme = parts.scheme?;
    let mut schemes = schemes.into_iter();
    let scheme = schemes.find(|allowed| allowed.eq_ignore_ascii_case(scheme.as_str()))?;
    parts.scheme = Some(scheme.parse().ok()?);

    let authority = parts.authority?.as_str().to_ascii_lowercase();
    let (host, port) = match authority.rfind(':') {
        Some(at) if !authority.ends_with(']') => (&authority[..at], Some(&authority[at + 1..])),
        _ => (&*authority, None),
    };
    let is_host = match host.strip_prefix('[') {
        Some(rest) => rest.strip_suffix(']')?.parse::<Ipv6Addr>().is_ok(),
        None => !host.is_empty() && !host.contains(['@', ':', '%']),
    };
    if !is_host || !port.is_none_or(is_port) {
        return None;
    }

    parts.authority = Some(authority.parse().ok()?);
    Uri::from_parts(parts).ok()
}

/// Whether a string is a host name in lower case.
pub(crate) fn is_name(name: &str) -> bool {
    let is_label = |label: &str| {
        let mut bytes = label.bytes();
        !label.is_empty() && bytes.all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-'))
    };
    name.split('.').all(is_label)
}

/// Whether a string is a valid port number, 1 to 65535.
pub(crate) fn is_port(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_digit()) && text.parse::<u16>().is_ok_and(|port| port > 0)
}

/// A URL's host in the form for the resolver and TLS: an IPv6 address has no brackets.
pub(crate) fn host(url: &Uri) -> &str {
    let host = url.host().unwrap_or_default();
    host.trim_start_matches('[').trim_end_matches(']')
}

/// A URL's host as it is written, an IPv6 address in brackets, and its port.
pub(crate) fn host_and_port(url: &Uri) -> (&str, u16) {
    (url.host().unwrap_or_default(), port(url))
}

/// Whether what is sent to a URL is encrypted.
pub(crate) fn is_encrypted(url: &Uri) -> bool {
    matches!(url.scheme_str(), Some("https" | "wss"))
}

/// A URL's port: the one in the URL, or the default of its scheme.
pub(crate) fn port(url: &Uri) -> u16 {
    let default = if is_encrypted(url) { 443 } else { 80 };
    url.port_u16().unwrap_or(default)
}

/// Whether a URL leads to Discord.
pub(crate) fn is_discord(url: &Uri) -> bool {
    ["discord.com", "discord.gg", "discordapp.com"]
        .iter()
        .any(|domain| is_under(host(url), domain))
}

/// Whether a URL leads to this machine.
fn is_loopback(url: &Uri) -> bool {
    let host = host(url);
    match host.parse::<IpAddr>() {
        Ok(ip) => ip.is_loopback(),
        Err(_) => is_under(host, "localhost"),
    }
}

/// Whether a secret may be sent to a URL: it is encrypted, or leads to this machine.
pub(crate) fn is_private(url: &Uri) -> bool {
    is_encrypted(url) || is_loopback(url)
}

/// Whether a host, in lower case, is this domain or a subdomain. A dot at the end of the host is
/// ignored.
pub(crate) fn is_under(host: &str, domain: &str) -> bool {
    host.strip_suffix('.')
        .unwrap_or(host)
        .strip_suffix(domain)
        .is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(given: &str) -> Option<Uri> {
        parse_url(given, ["wss", "ws"])
    }

    #[test]
    fn domains_are_compared_by_their_labels() {
        assert!(
            is_under("gateway.discord.gg", "discord.gg") && is_under("discord.gg", "discord.gg")
        );
        assert!(
            !is_under("evildiscord.gg", "discord.gg")
                && !is_under("discord.gg.evil.com", "discord.gg")
        );
    }

    #[test]
    fn urls_have_a_scheme_a_host_and_perhaps_a_port() {
        let read = url("wss://Gateway.Example:444/Path?Query#fragment").unwrap();
        assert_eq!(read.to_string(), "wss://gateway.example:444/Path?Query");
        assert_eq!((host(&read), port(&read)), ("gateway.example", 444));
        let read = url(" WSS://gateway.example\n").unwrap();
        assert_eq!(read.to_string(), "wss://gateway.example/");
        let read = url("ws://[::1]").unwrap();
        assert_eq!((host(&read), port(&read)), ("::1", 80));
        assert_eq!(port(&url("wss://[::1]:5").unwrap()), 5);

        for wrong in [
            "",
            "/",
            "gateway.example",
            "gateway.example:443",
            "https://gateway.example",
            "wss://",
            "wss:///path",
            "wss://:443",
            "wss://host:",
            "wss://host:0",
            "wss://host:+5",
            "wss://host:65536",
            "wss://host:1:2",
            "wss://::1",
            "wss://[::1",
            "wss://[host]",
            "wss://[::1]x",
            "wss://hôst",
            "wss://host/päth",
            "wss://user@host",
            "wss://user:password@host",
            "wss://ho st",
            "wss://ho%73t",
            "wss:\\\\host",
            "wss://host\\@other",
        ] {
            assert!(url(wrong).is_none(), "{wrong}");
        }
        let long = format!("wss://host/{}", "a".repeat(MAX_URL));
        assert_eq!(url(&long), None);
    }

    #[test]
    fn names_have_a_case_and_may_end_with_a_dot() {
        for discord in ["wss://GATEWAY.discord.gg", "wss://gateway.discord.gg./x"] {
            assert!(is_discord(&url(discord).unwrap()), "{discord}");
        }

        for private in [
            "ws://LOCALHOST",
            "ws://a.localhost.:1",
            "ws://127.1.2.3",
            "ws://[::1]:5",
        ] {
            assert!(is_private(&url(private).unwrap()), "{private}");
        }

        for public in [
            "ws://localhost.example",
            "ws://10.0.0.1",
            "ws://[::2]",
            "ws://127.1",
        ] {
            assert!(!is_private(&url(public).unwrap()), "{public}");
        }
    }
}
