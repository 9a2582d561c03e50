//! Where a shard may connect to, and with it who gets to see the token.
#![deny(clippy::disallowed_methods)]

use url::Url;

use crate::error::Error;
use crate::hosts::is_under;
use crate::transport::Compression;

/// The version of the gateway's interface that this library speaks.
const API_VERSION: &str = "10";

/// Discord's own domain for gateways.
const DISCORD: &str = "discord.gg";

/// The gateway's address, and the rule for the addresses that sessions name.
#[derive(Clone, Debug)]
pub(crate) struct Addresses {
    main: Url,
    resume_hosts: Vec<String>,
}

impl Addresses {
    /// `gateway` comes from the configuration or from `/gateway/bot`.
    pub(crate) fn new(gateway: &str, resume_hosts: Vec<String>) -> Result<Self, Error> {
        let main = parse(gateway).ok_or_else(|| {
            Error::setting(
                "gateway_url",
                gateway,
                "a url that starts with wss:// or ws://",
            )
        })?;
        Ok(Self { main, resume_hosts })
    }

    /// The gateway itself.
    pub(crate) fn main(&self, compression: Compression) -> Url {
        with_query(self.main.clone(), compression)
    }

    /// A session's own address, if the token may go there: to the gateway's host, below
    /// `discord.gg` if the gateway is, or to a host that the user listed; and never in the clear
    /// where the gateway is not.
    pub(crate) fn resume(&self, url: &str, compression: Compression) -> Option<Url> {
        let url = parse(url)?;
        let (host, main) = (url.host_str()?, self.main.host_str()?);
        let trusted = host == main
            || (is_under(host, DISCORD) && is_under(main, DISCORD))
            || self.resume_hosts.iter().any(|listed| listed == host);
        let downgraded = self.main.scheme() == "wss" && url.scheme() != "wss";
        (trusted && !downgraded).then(|| with_query(url, compression))
    }
}

fn parse(url: &str) -> Option<Url> {
    let url = Url::parse(url).ok()?;
    (matches!(url.scheme(), "wss" | "ws") && url.has_host()).then_some(url)
}

/// The url with Discord's parameters, whatever of them it had; other ones stay.
fn with_query(mut url: Url, compression: Compression) -> Url {
    let own: Vec<(String, String)> = url
        .query_pairs()
        .filter(|(key, _)| !matches!(&**key, "v" | "encoding" | "compress"))
        .map(|(key, value)| (key.into_owned(), value.into_owned()))
        .collect();
    let mut pairs = url.query_pairs_mut();
    pairs
        .clear()
        .append_pair("v", API_VERSION)
        .append_pair("encoding", "json");
    if let Some(compress) = compression.query() {
        pairs.append_pair("compress", compress);
    }
    pairs.extend_pairs(own);
    drop(pairs);
    url.set_fragment(None);
    url
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(gateway: &str) -> Addresses {
        Addresses::new(gateway, vec!["listed.example".into()]).unwrap()
    }

    #[test]
    fn every_address_gets_the_same_query() {
        let discord = addresses("wss://gateway.discord.gg");
        let zstd = Compression::ZstdStream;
        assert_eq!(
            discord.main(zstd).as_str(),
            "wss://gateway.discord.gg/?v=10&encoding=json&compress=zstd-stream"
        );
        for url in [
            "wss://a.discord.gg",
            "wss://a.discord.gg/",
            "wss://a.discord.gg/?v=9&compress=zlib-stream#x",
        ] {
            let resume = discord.resume(url, zstd).unwrap();
            assert_eq!(
                resume.as_str(),
                "wss://a.discord.gg/?v=10&encoding=json&compress=zstd-stream"
            );
        }
        let resume = discord
            .resume("wss://a.discord.gg:444/path/?shard=1", zstd)
            .unwrap();
        assert_eq!(
            resume.as_str(),
            "wss://a.discord.gg:444/path/?v=10&encoding=json&compress=zstd-stream&shard=1"
        );
        let plain = Addresses::new("ws://localhost:1/x", Vec::new()).unwrap();
        assert_eq!(
            plain.main(Compression::Payload).as_str(),
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
        assert!(Addresses::new("https://x", Vec::new()).is_err());
    }
}
