//! The settings of [`Rest`].

use std::fmt;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use http::Uri;
use parking_lot::Mutex;
use ureq::Agent;
use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig, TlsProvider};
use ureq::unversioned::resolver::DefaultResolver;
use ureq::unversioned::transport::{Connector, NativeTlsConnector};

use super::connect::{Names, Tcp};
use super::secrets::Secrets;
use super::turns::Turns;
use super::{Inner, Rest};
use crate::dial::{Dialer, Proxy};
use crate::error::Error;
use crate::hosts::{is_discord, is_encrypted, is_private, parse_url};
use crate::protocol::USER_AGENT;
use crate::token::Token;

/// The window of Discord's global rate limit.
const WINDOW: Duration = Duration::from_secs(1);

/// The longest window, so that no instant overflows.
const MAX_WINDOW: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// The number of idle connections that are kept open. As many threads can call at the same time
/// without a new handshake each.
const MAX_IDLE_CONNECTIONS: usize = 32;

/// The settings of a [`Rest`] client; [`Rest::builder`] creates them.
#[derive(Clone)]
#[must_use = "`build` makes the client"]
pub struct RestBuilder {
    token: Token,
    base_url: String,
    root_certificates: Option<String>,
    allow_plaintext: bool,
    proxy: Option<String>,
    rate_limit: u32,
    window: Duration,
}

impl RestBuilder {
    pub(super) fn new(token: Token) -> Self {
        Self {
            token,
            base_url: "https://discord.com/api/v10".into(),
            root_certificates: None,
            allow_plaintext: false,
            proxy: None,
            rate_limit: 50,
            window: WINDOW,
        }
    }

    /// Sets the URL to which paths are appended. Default: `https://discord.com/api/v10`.
    pub fn base_url(mut self, base_url: impl Into<String>) -> Self {
        self.base_url = base_url.into();
        self
    }

    /// Trusts only these certificates (PEM). Default: the certificates that the system trusts.
    pub fn root_certificates(mut self, pem: impl Into<String>) -> Self {
        self.root_certificates = Some(pem.into());
        self
    }

    /// Allows `http://` to hosts other than this machine. The token is then sent unencrypted.
    /// Default: `false`.
    pub fn allow_plaintext(mut self, allow: bool) -> Self {
        self.allow_plaintext = allow;
        self
    }

    /// Connects through an HTTP proxy; see [`Config::proxy`](crate::Config::proxy). Default: none.
    pub fn proxy(mut self, url: impl Into<String>) -> Self {
        self.proxy = Some(url.into());
        self
    }

    /// Sets the global rate limit: how many requests to all routes together are sent in a window.
    /// Default: 50 in 1 s. Large bots may ask Discord for a higher limit. Processes with the same
    /// token share the limit. A window of less than 1 s is for simulators whose time runs faster.
    ///
    /// Source: [Discord, Global rate
    /// limit](https://docs.discord.com/developers/topics/rate-limits#global-rate-limit).
    pub fn rate_limit(mut self, requests: NonZeroU32, window: Duration) -> Self {
        self.rate_limit = requests.get();
        self.window = window;
        self
    }

    /// Creates the client. Sends nothing.
    ///
    /// # Errors
    /// [`Error::Setting`] for
    /// - a base URL that is not `http://` or `https://`, or has a query, a fragment, a user or a
    ///   password;
    /// - a base URL with `http://`, if plaintext is not allowed there or a proxy is set;
    /// - a proxy that is not an `http://` URL;
    /// - certificates that are not PEM;
    /// - a window of more than 7 days, or of less than 1 s with a host of Discord.
    pub fn build(self) -> Result<Rest, Error> {
        let base_url = self.check()?;
        let proxy = check_proxy(self.proxy.as_deref(), &[&base_url])?;
        let roots = match &self.root_certificates {
            None => RootCerts::PlatformVerifier,
            Some(pem) => RootCerts::from(certificates(pem)?),
        };
        let tls = TlsConfig::builder()
            .provider(TlsProvider::NativeTls)
            .root_certs(roots)
            .build();
        let config = Agent::config_builder()
            .tls_config(tls)
            .proxy(None)
            .user_agent(USER_AGENT)
            .http_status_as_error(false)
            .max_redirects(0)
            .max_idle_connections(MAX_IDLE_CONNECTIONS)
            .max_idle_connections_per_host(MAX_IDLE_CONNECTIONS)
            .build();

        let secrets = Secrets::default();
        let dialer = Arc::new(Dialer::new(proxy));
        let names = Names {
            dialer: Arc::clone(&dialer),
            system: DefaultResolver::default(),
        };
        let connector = Tcp(Arc::clone(&dialer))
            .chain(NativeTlsConnector::default())
            .chain(secrets.clone());
        Ok(Rest(Arc::new(Inner {
            agent: Agent::with_parts(config, connector, names),
            dialer,
            secrets,
            token: self.token,
            base_url: base_url.to_string().trim_end_matches('/').to_owned(),
            turns: Turns::new(self.rate_limit, self.window),
            counters: Mutex::default(),
        })))
    }

    fn check(&self) -> Result<Uri, Error> {
        let url = check_rest_url("base_url", &self.base_url, self.allow_plaintext)?;
        if self.window > MAX_WINDOW || (is_discord(&url) && self.window < WINDOW) {
            let given = format!("a window of {:?}", self.window);
            let allowed = "1 s to 7 days (less than 1 s only with a simulator)";
            return Err(Error::setting("rate_limit", given, allowed));
        }
        Ok(url)
    }
}

/// Omits the token and all else that may be secret.
impl fmt::Debug for RestBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RestBuilder")
            .field("rate_limit", &(self.rate_limit, self.window))
            .finish_non_exhaustive()
    }
}

/// Parses a URL to which the token is sent. It must have no user, no password and no fragment.
pub(crate) fn check_url(
    setting: &'static str,
    given: &str,
    schemes: [&'static str; 2],
    allow_plaintext: bool,
) -> Result<Uri, Error> {
    let [encrypted, plain] = schemes;
    if given.contains('@') {
        // The URL is not shown, since it may contain a password.
        let allowed = "a URL without user and password";
        return Err(Error::setting(setting, "a URL with an @", allowed));
    }

    let refuse = |allowed: String| Err(Error::setting(setting, given, allowed));
    let Some(url) = parse_url(given, schemes) else {
        let allowed = format!("a URL that starts with {encrypted}:// or {plain}:// and a host");
        return refuse(allowed);
    };

    if given.contains('#') {
        return refuse("a URL without a fragment".into());
    }
    if !allow_plaintext && !is_private(&url) {
        return refuse(format!(
            "{encrypted}://, a loopback host such as localhost, or any host with \
             `allow_plaintext(true)`"
        ));
    }
    Ok(url)
}

/// Parses a URL to which paths are appended.
pub(crate) fn check_rest_url(
    setting: &'static str,
    given: &str,
    allow_plaintext: bool,
) -> Result<Uri, Error> {
    let url = check_url(setting, given, ["https", "http"], allow_plaintext)?;
    if url.query().is_some() {
        return Err(Error::setting(setting, given, "a URL without a query"));
    }
    Ok(url)
}

/// Parses the proxy to connect through, if one is given. Fails if one of the URLs in `to` is not
/// encrypted, so that the proxy never sees the token.
pub(crate) fn check_proxy(given: Option<&str>, to: &[&Uri]) -> Result<Option<Proxy>, Error> {
    let Some(given) = given else { return Ok(None) };
    let proxy = Proxy::parse(given).map_err(|why| {
        let allowed = "http://host:port or http://user:password@host:port";
        Error::setting("proxy", why, allowed)
    })?;
    if let Some(plain) = to.iter().find(|url| !is_encrypted(url)) {
        let given = format!("set, but {plain} is not encrypted, so the proxy would see the token");
        let allowed = "a proxy only with https:// and wss:// URLs";
        return Err(Error::setting("proxy", given, allowed));
    }
    Ok(Some(proxy))
}

fn certificates(pem: &str) -> Result<Vec<Certificate<'static>>, Error> {
    let refused =
        |why: String| Error::setting("root_certificates", why, "one or more PEM certificates");
    let mut certificates = Vec::new();
    for item in ureq::tls::parse_pem(pem.as_bytes()) {
        if let PemItem::Certificate(certificate) =
            item.map_err(|error| refused(error.to_string()))?
        {
            certificates.push(certificate);
        }
    }

    if certificates.is_empty() {
        Err(refused("PEM without a certificate".into()))
    } else {
        Ok(certificates)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_base_url_is_checked_before_anything_is_sent() {
        let build = |url: &str, plain| {
            let builder = Rest::builder(Token::new("a.b.c").unwrap()).base_url(url);
            builder.allow_plaintext(plain).build()
        };

        for url in [
            "",
            "discord.com",
            "wss://discord.com",
            "https://discord.com/api?x=1",
            "https://discord.com/api#x",
            "https://user:secret@discord.com/api",
            "https://user:secret@discord.com/api?x=1",
            "ftp://user:secret@discord.com",
            "http://discord.com/api/v10",
            "http://localhost.example.com",
        ] {
            let error = build(url, false).unwrap_err();
            assert!(
                matches!(
                    error,
                    Error::Setting {
                        setting: "base_url",
                        ..
                    }
                ),
                "{url}"
            );
            assert!(!error.to_string().contains("secret"), "{error}");
        }

        assert!(build("http://10.0.0.5:8080/api", true).is_ok());
        for url in [
            "http://127.0.0.1:80/api",
            "http://[::1]/",
            "http://sim.localhost",
        ] {
            assert!(build(url, false).is_ok(), "{url}");
        }

        let rest = build("https://discord.com/api/v10/", false).unwrap();
        assert_eq!(rest.base_url(), "https://discord.com/api/v10");
        let rest = build("HTTPS://Discord.com/api", false).unwrap();
        assert_eq!(rest.base_url(), "https://discord.com/api");
    }
}
