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

/// The window in which Discord counts the requests of all routes.
const WINDOW: Duration = Duration::from_secs(1);

/// No window is longer, so that no instant overflows.
const MAX_WINDOW: Duration = Duration::from_secs(7 * 24 * 60 * 60);

/// Connections that are kept open: as many threads may call at once without a new handshake each.
const MAX_IDLE_CONNECTIONS: usize = 32;

/// The settings of [`Rest`], by [`Rest::builder`].
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

    /// Sets what the paths are below. Default: `https://discord.com/api/v10`.
    pub fn base_url(mut self, base_url: impl Into<String>) -> Self {
        self.base_url = base_url.into();
        self
    }

    /// Trusts these certificates (PEM) alone. Default: what the system trusts.
    pub fn root_certificates(mut self, pem: impl Into<String>) -> Self {
        self.root_certificates = Some(pem.into());
        self
    }

    /// Allows `http://` to other hosts than this machine, which sends the token in the clear.
    /// Default: no.
    pub fn allow_plaintext(mut self, allow: bool) -> Self {
        self.allow_plaintext = allow;
        self
    }

    /// Connects through an HTTP proxy; see [`Config::proxy`](crate::Config::proxy). Default: none.
    pub fn proxy(mut self, url: impl Into<String>) -> Self {
        self.proxy = Some(url.into());
        self
    }

    /// Sets how many requests of all routes together go out in a window. Large bots may ask Discord
    /// for more; several processes with one token share it. A window of less than 1 s is for
    /// simulators whose time runs faster. Default: 50 in 1 s.
    ///
    /// Source: [Discord, Global rate
    /// limit](https://docs.discord.com/developers/topics/rate-limits#global-rate-limit).
    pub fn rate_limit(mut self, requests: NonZeroU32, window: Duration) -> Self {
        self.rate_limit = requests.get();
        self.window = window;
        self
    }

    /// Makes the client. Nothing is sent.
    ///
    /// [`Error::Setting`] for a base URL that is not `http(s)://`, has a query, a fragment or a
    /// password, or is plain where that is not allowed or would lead through a proxy, for a proxy
    /// that is no `http://` URL, for certificates that are no PEM, and for a window of less than 1 s
    /// with a host of Discord's, or of more than 7 days.
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
            let given = format!("for a window of {:?}", self.window);
            let allowed = "1 s to 7 days, or less than that for a simulator";
            return Err(Error::setting("rate_limit", given, allowed));
        }
        Ok(url)
    }
}

/// Without the token and what else may be secret.
impl fmt::Debug for RestBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RestBuilder")
            .field("rate_limit", &(self.rate_limit, self.window))
            .finish_non_exhaustive()
    }
}

/// Reads a URL that the token is sent to. It has no user and no password, and no fragment.
pub(crate) fn check_url(
    setting: &'static str,
    given: &str,
    schemes: [&'static str; 2],
    allow_plaintext: bool,
) -> Result<Uri, Error> {
    let [encrypted, plain] = schemes;
    if given.contains('@') {
        // A password is not shown.
        let allowed = "a URL without a user and a password";
        return Err(Error::setting(setting, "a URL with an @", allowed));
    }
    let refuse = |allowed: String| Err(Error::setting(setting, given, allowed));
    let Some(url) = parse_url(given, schemes) else {
        let allowed = format!("a URL that starts with {encrypted}:// or {plain}://, then a host");
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

/// Reads a URL that paths are put below.
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

/// The proxy to connect through, if one is given. Nothing goes through it in the clear.
pub(crate) fn check_proxy(given: Option<&str>, to: &[&Uri]) -> Result<Option<Proxy>, Error> {
    let Some(given) = given else { return Ok(None) };
    let proxy = Proxy::parse(given).map_err(|why| {
        let allowed = "http://host:port or http://user:password@host:port";
        Error::setting("proxy", why, allowed)
    })?;
    if let Some(plain) = to.iter().find(|url| !is_encrypted(url)) {
        let given = format!("one for {plain}, which would show it the token");
        let allowed = "used with https:// and wss:// alone";
        return Err(Error::setting("proxy", given, allowed));
    }
    Ok(Some(proxy))
}

fn certificates(pem: &str) -> Result<Vec<Certificate<'static>>, Error> {
    let refused =
        |why: String| Error::setting("root_certificates", why, "one or more certificates as PEM");
    let mut certificates = Vec::new();
    for item in ureq::tls::parse_pem(pem.as_bytes()) {
        if let PemItem::Certificate(certificate) =
            item.map_err(|error| refused(error.to_string()))?
        {
            certificates.push(certificate);
        }
    }
    if certificates.is_empty() {
        Err(refused("without a certificate".into()))
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
