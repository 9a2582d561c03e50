//! Where a URL leads to.

use url::{Host, Url};

/// Whether a URL leads to Discord.
pub(crate) fn is_discord(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default();
    ["discord.com", "discord.gg", "discordapp.com"]
        .iter()
        .any(|domain| is_under(host, domain))
}

/// Whether a URL leads to this machine.
fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Domain(name)) => is_under(name, "localhost"),
        Some(Host::Ipv4(ip)) => ip.is_loopback(),
        Some(Host::Ipv6(ip)) => ip.is_loopback(),
        None => false,
    }
}

/// Whether a secret can be sent to a URL: encrypted, or to this machine.
pub(crate) fn is_private(url: &Url) -> bool {
    matches!(url.scheme(), "https" | "wss") || is_loopback(url)
}

/// Whether a host is a domain or one below it.
pub(crate) fn is_under(host: &str, domain: &str) -> bool {
    host.strip_suffix(domain)
        .is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

#[cfg(test)]
mod tests {
    use super::*;

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
}
