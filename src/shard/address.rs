//! The URLs that a shard may connect to, and so the hosts that receive the token.
#![deny(clippy::disallowed_methods)]

use http::Uri;

use crate::error::Error;
use crate::hosts::{is_encrypted, is_name, is_port, is_private, is_under, parse_url};
use crate::transport::Compression;

/// The version of the gateway's interface that this library speaks.
const API_VERSION: &str = "10";

/// Discord's own domain for gateways.
const DISCORD: &str = "discord.gg";

/// The schemes of gateways.
const SCHEMES: [&str; 2] = ["wss", "ws"];

/// The gateway's URL, and the rule for the resume URLs of sessions.
#[derive(Clone, Debug)]
pub(crate) struct Addresses {
    main: Uri,
    resume_hosts: Vec<String>,
    allow_plaintext: bool,
}

impl Addresses {
    /// `gateway` comes from the configuration or from `/gateway/bot`.
    pub(crate) fn new(
        gateway: &str,
        resume_hosts: Vec<String>,
        allow_plaintext: bool,
    ) -> Result<Self, Error> {
        let main = parse_url(gateway, SCHEMES).ok_or_else(|| {
            Error::setting(
                "gateway_url",
                gateway,
                "a URL that starts with wss:// or ws://",
            )
        })?;
        Ok(Self {
            main,
            resume_hosts,
            allow_plaintext,
        })
    }

    /// The gateway itself.
    pub(crate) fn main(&self, compression: Compression) -> Uri {
        with_query(self.main.clone(), compression)
    }

    /// A session's resume URL, if the token may be sent there: to the gateway's host, to a host
    /// under `discord.gg` if the gateway is under it too, or to a host that the user listed. An
    /// unencrypted URL is never trusted if the gateway's is encrypted.
    pub(crate) fn resume(&self, url: &str, compression: Compression) -> Option<Uri> {
        let url = parse_resume(url)?;
        let (host, main) = (url.host()?, self.main.host()?);
        let trusted = host == main
            || (is_under(host, DISCORD) && is_under(main, DISCORD))
            || self
                .resume_hosts
                .iter()
                .any(|listed| listed.eq_ignore_ascii_case(host));
        let downgraded = is_encrypted(&self.main) && !is_encrypted(&url);
        let is_exposed = !is_private(&url) && host != main && !self.allow_plaintext;
        (trusted && !downgraded && !is_exposed).then(|| with_query(url, compression))
    }
}

/// Parses a session's resume URL, if it has the form of Discord's: a scheme, a host name in lower
/// case, an optional port and an optional slash. For any other URL, two parsers may disagree about
/// the host.
fn parse_resume(given: &str) -> Option<Uri> {
    let (scheme, rest) = given.split_once("://")?;
    let rest = rest.strip_suffix('/').unwrap_or(rest);
    let (name, port) = match rest.split_once(':') {
        Some((name, port)) => (name, Some(port)),
        None => (rest, None),
    };
    (SCHEMES.contains(&scheme) && is_name(name) && port.is_none_or(is_port))
        .then(|| parse_url(given, SCHEMES))
        .flatten()
}

/// Replaces Discord's query parameters in a URL; other parameters stay.
fn with_query(url: Uri, compression: Compression) -> Uri {
    let mut query = format!("v={API_VERSION}&encoding=json");
    if let Some(compress) = compression.query() {
        query.extend(["&compress=", compress]);
    }
    for own in url.query().unwrap_or_default().split('&') {
        let key = own.split('=').next().unwrap_or_default();
        if !matches!(key, "" | "v" | "encoding" | "compress") {
            query.extend(["&", own]);
        }
    }

    // A parsed URL is far below the length that `http` allows, and its parts stay valid.
    let path_and_query = format!("{}?{query}", url.path()).parse();
    let mut parts = url.into_parts();
    parts.path_and_query = Some(path_and_query.expect("made of a path and queries"));
    Uri::from_parts(parts).expect("only its query has changed")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(gateway: &str) -> Addresses {
        Addresses::new(gateway, vec!["Listed.example".into()], false).unwrap()
    }

    #[test]
    fn every_address_gets_the_same_query() {
        let discord = addresses("wss://gateway.discord.gg");
        let zstd = Compression::ZstdStream;
        assert_eq!(
            discord.main(zstd).to_string(),
            "wss://gateway.discord.gg/?v=10&encoding=json&compress=zstd-stream"
        );
        for (url, expected) in [
            ("wss://a.discord.gg", "wss://a.discord.gg/"),
            ("wss://a.discord.gg/", "wss://a.discord.gg/"),
            ("wss://a-1.discord.gg:444/", "wss://a-1.discord.gg:444/"),
        ] {
            let resume = discord.resume(url, zstd).unwrap().to_string();
            let query = "?v=10&encoding=json&compress=zstd-stream";
            assert_eq!(resume, format!("{expected}{query}"));
        }

        let own = addresses("wss://Gateway.Example/a/?v=9&shard=1&compress=zlib-stream#x");
        assert_eq!(
            own.main(zstd).to_string(),
            "wss://gateway.example/a/?v=10&encoding=json&compress=zstd-stream&shard=1"
        );
        let plain = Addresses::new("ws://localhost:1/x", Vec::new(), false).unwrap();
        assert_eq!(
            plain.main(Compression::Payload).to_string(),
            "ws://localhost:1/x?v=10&encoding=json"
        );
    }

    #[test]
    fn the_token_goes_to_trusted_hosts_alone() {
        let resume =
            |addresses: &Addresses, url| addresses.resume(url, Compression::None).is_some();
        let discord = addresses("wss://gateway.discord.gg");
        assert!(resume(&discord, "wss://listed.example"));

        for url in [
            "ws://gateway.discord.gg",
            "wss://evil.example",
            "wss://discord.gg.evil.example",
            "https://gateway.discord.gg",
            "",
        ] {
            assert!(!resume(&discord, url), "{url}");
        }

        let local = addresses("ws://localhost:1");
        assert!(resume(&local, "ws://localhost:2") && resume(&local, "wss://localhost"));
        assert!(!resume(&local, "wss://gateway.discord.gg"));
        assert!(resume(&local, "wss://listed.example"));
        assert!(!resume(&local, "ws://listed.example"), "in the clear");
        assert!(Addresses::new("https://x", Vec::new(), false).is_err());
    }

    #[test]
    fn a_resume_url_has_one_form_alone() {
        let discord = addresses("wss://gateway.discord.gg");
        for form in [
            "gateway.discord.gg",
            "wss:gateway.discord.gg",
            "WSS://gateway.discord.gg",
            "wss://Gateway.discord.gg",
            "wss://gateway.discord.gg.",
            "wss://gateway..discord.gg",
            "wss://.discord.gg",
            "wss://gateway.discord.gg:",
            "wss://gateway.discord.gg:0",
            "wss://gateway.discord.gg:65536",
            "wss://gateway.discord.gg:+444",
            "wss://gateway.discord.gg:444:444",
            "wss://gateway.discord.gg//",
            "wss://gateway.discord.gg/path",
            "wss://gateway.discord.gg?v=10",
            "wss://gateway.discord.gg/?v=10",
            "wss://gateway.discord.gg#x",
            "wss://user@gateway.discord.gg",
            "wss://user:password@gateway.discord.gg",
            "wss://evil.example@gateway.discord.gg",
            "wss://gateway.discord.gg@evil.example",
            "wss://evil.example\\.discord.gg",
            "wss://evil.example%2f.discord.gg",
            "wss://evil.example\0.discord.gg",
            " wss://gateway.discord.gg",
            "wss://gateway.discord.gg ",
            "wss://gäteway.discord.gg",
            "wss://[::1]",
        ] {
            assert_eq!(discord.resume(form, Compression::None), None, "{form}");
        }
    }
}
