//! What a user can choose.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use url::Url;

use crate::error::Error;
use crate::intents::Intents;
use crate::limit::{IdentifyLimiter, ReleaseAfter};
use crate::protocol::{Command, Identity, MAX_PAYLOAD, Session, Timing};
use crate::shard_id::ShardId;
use crate::token::Token;
use crate::transport::Compression;

/// Settings of a [`ShardManager`](crate::ShardManager). Only the token and the intents are needed.
///
/// ```
/// # use threadcord::{Config, Intents, Plan, Token};
/// let config = Config::new(Token::new("aaa.bbb.ccc")?, Intents::GUILDS | Intents::GUILD_MESSAGES)
///     .plan(Plan::Total(4))
///     .large_threshold(250);
/// # Ok::<(), threadcord::InvalidToken>(())
/// ```
#[derive(Clone)]
#[non_exhaustive]
pub struct Config {
    /// The bot's token.
    pub token: Token,
    /// What the bot wants to hear about.
    pub intents: Intents,
    /// Which shards to run. Default: as many as Discord recommends.
    pub plan: Plan,
    /// Sessions to resume, of an earlier [`suspend`](crate::ShardManager::suspend). One whose shard is not in the plan,
    /// or has another total, is not used. Default: none.
    pub sessions: Vec<Session>,
    /// How Discord compresses what it sends. Default: [`Compression::ZstdStream`].
    pub compression: Compression,
    /// From how many members on Discord leaves a guild's offline members out, 50 to 250. Default: 50.
    pub large_threshold: u16,
    /// The presence to start with: the `d` of a presence update. Default: Discord's.
    pub presence: Option<Value>,
    /// The gateway to connect to, `wss://...`. Default: what `/gateway/bot` says, which is asked all the same unless
    /// `plan` and `limiter` leave nothing to ask.
    pub gateway_url: Option<String>,
    /// The base of the HTTP API. Default: `https://discord.com/api/v10`.
    pub rest_url: String,
    /// Hosts, besides the gateway's own and Discord's, that a session may name to be resumed on. The token goes there.
    /// Default: none.
    pub resume_hosts: Vec<String>,
    /// Certificates to trust in place of the system's, as PEM, for websocket and HTTP alike. Default: none.
    pub root_certificates: Option<String>,
    /// Decides who may identify. Default: a [`SessionLimit`](crate::limit::SessionLimit) of the manager's own, with
    /// Discord's values. Managers of one bot that run in one process, at once or within 5 s, must share one.
    pub limiter: Option<Arc<dyn IdentifyLimiter>>,
    /// From when the default limiter's window counts. Default: from the IDENTIFY.
    pub release_after: ReleaseAfter,
    /// How many events of a shard may be outstanding before it stops reading, at least 1. Default: 1,024.
    pub max_outstanding_events: usize,
    /// How many bytes of events of a shard may be outstanding before it stops reading, at least 1; one event always
    /// fits. Default: 4 MiB.
    pub max_outstanding_bytes: usize,
    /// The largest payload in bytes, uncompressed; a larger one ends the connection. 64 KiB to 1 GiB. Default: 64 MiB.
    pub max_payload: usize,
    /// The stack of a shard's thread in bytes, at least 64 KiB. Default: 256 KiB.
    pub stack_size: usize,
    /// Durations. Default: Discord's.
    pub timing: Timing,
}

impl Config {
    /// The default settings for a bot.
    pub fn new(token: Token, intents: Intents) -> Self {
        Self {
            token,
            intents,
            plan: Plan::Recommended,
            sessions: Vec::new(),
            compression: Compression::default(),
            large_threshold: 50,
            presence: None,
            gateway_url: None,
            rest_url: "https://discord.com/api/v10".into(),
            resume_hosts: Vec::new(),
            root_certificates: None,
            limiter: None,
            release_after: ReleaseAfter::default(),
            max_outstanding_events: 1024,
            max_outstanding_bytes: 4 << 20,
            max_payload: 64 << 20,
            stack_size: 256 << 10,
            timing: Timing::default(),
        }
    }

    /// Sets [`plan`](Self::plan).
    pub fn plan(self, plan: Plan) -> Self {
        Self { plan, ..self }
    }

    /// Sets [`sessions`](Self::sessions).
    pub fn sessions(self, sessions: Vec<Session>) -> Self {
        Self { sessions, ..self }
    }

    /// Sets [`compression`](Self::compression).
    pub fn compression(self, compression: Compression) -> Self {
        Self { compression, ..self }
    }

    /// Sets [`large_threshold`](Self::large_threshold).
    pub fn large_threshold(self, large_threshold: u16) -> Self {
        Self { large_threshold, ..self }
    }

    /// Sets [`presence`](Self::presence).
    pub fn presence(self, presence: Value) -> Self {
        Self { presence: Some(presence), ..self }
    }

    /// Sets [`gateway_url`](Self::gateway_url).
    pub fn gateway_url(self, url: impl Into<String>) -> Self {
        Self { gateway_url: Some(url.into()), ..self }
    }

    /// Sets [`rest_url`](Self::rest_url).
    pub fn rest_url(self, url: impl Into<String>) -> Self {
        Self { rest_url: url.into(), ..self }
    }

    /// Sets [`resume_hosts`](Self::resume_hosts).
    pub fn resume_hosts(self, resume_hosts: Vec<String>) -> Self {
        Self { resume_hosts, ..self }
    }

    /// Sets [`root_certificates`](Self::root_certificates).
    pub fn root_certificates(self, pem: impl Into<String>) -> Self {
        Self { root_certificates: Some(pem.into()), ..self }
    }

    /// Sets [`limiter`](Self::limiter).
    pub fn limiter(self, limiter: Arc<dyn IdentifyLimiter>) -> Self {
        Self { limiter: Some(limiter), ..self }
    }

    /// Sets [`release_after`](Self::release_after).
    pub fn release_after(self, release_after: ReleaseAfter) -> Self {
        Self { release_after, ..self }
    }

    /// Sets [`max_outstanding_events`](Self::max_outstanding_events).
    pub fn max_outstanding_events(self, max_outstanding_events: usize) -> Self {
        Self { max_outstanding_events, ..self }
    }

    /// Sets [`max_outstanding_bytes`](Self::max_outstanding_bytes).
    pub fn max_outstanding_bytes(self, max_outstanding_bytes: usize) -> Self {
        Self { max_outstanding_bytes, ..self }
    }

    /// Sets [`max_payload`](Self::max_payload).
    pub fn max_payload(self, max_payload: usize) -> Self {
        Self { max_payload, ..self }
    }

    /// Sets [`stack_size`](Self::stack_size).
    pub fn stack_size(self, stack_size: usize) -> Self {
        Self { stack_size, ..self }
    }

    /// Sets [`timing`](Self::timing).
    pub fn timing(self, timing: Timing) -> Self {
        Self { timing, ..self }
    }

    /// What IDENTIFY says about the bot.
    pub(crate) fn identity(&self) -> Identity {
        Identity {
            token: self.token.clone(),
            intents: self.intents,
            library: "threadcord".into(),
            large_threshold: self.large_threshold,
            compress: self.compression == Compression::Payload,
            presence: self.presence.clone(),
        }
    }

    /// Whether every setting is allowed; [`ShardManager::start`](crate::ShardManager::start) asks before it does anything.
    pub fn validate(&self) -> Result<(), Error> {
        Intents::try_from_bits(self.intents.bits())?;
        self.plan.validate()?;
        within("large_threshold", self.large_threshold.into(), 50, 250)?;
        within("max_outstanding_events", self.max_outstanding_events, 1, usize::MAX)?;
        within("max_outstanding_bytes", self.max_outstanding_bytes, 1, usize::MAX)?;
        within("max_payload", self.max_payload, 64 << 10, 1 << 30)?;
        within("stack_size", self.stack_size, 64 << 10, 1 << 30)?;
        let size = self.identity().identify(ShardId::ONE).expose().len() + LONGEST_SHARD_ID;
        if size > MAX_PAYLOAD {
            let allowed = format!("one with which IDENTIFY has at most {MAX_PAYLOAD} bytes");
            return Err(Error::setting("presence", format!("too large, with it IDENTIFY has {size} bytes"), allowed));
        }
        let presence = self.presence.as_ref().map(|presence| Command::raw(&json!({"op": 3, "d": presence})));
        if let Some(Err(wrong)) = presence {
            return Err(Error::setting("presence", wrong, "the `d` of a presence update"));
        }
        let rest = url("rest_url", &self.rest_url, ["https", "http"])?;
        match &self.gateway_url {
            Some(gateway) => self.validate_gateway(gateway)?,
            // The gateway that Discord names is Discord's.
            None => self.validate_timing(is_discord(&rest))?,
        }
        Ok(())
    }

    /// Whether the settings go with this gateway, which the user or `/gateway/bot` has named.
    pub(crate) fn validate_gateway(&self, gateway: &str) -> Result<(), Error> {
        let given = url("gateway_url", gateway, ["wss", "ws"])?;
        if self.gateway_url.is_none() && given.scheme() == "ws" && self.rest_url.starts_with("https") {
            return Err(Error::setting("gateway_url", gateway, "one with wss://, where it was named over https://"));
        }
        self.validate_timing(is_discord(&given))
    }

    fn validate_timing(&self, is_discord: bool) -> Result<(), Error> {
        if is_discord && self.timing.breaks_discords_limits() {
            return Err(Error::setting("timing", "shorter than Discord's windows", "that for simulators alone"));
        }
        let longest = self.timing.longest();
        if longest > LONGEST_DURATION {
            let allowed = format!("durations up to {LONGEST_DURATION:?}");
            return Err(Error::setting("timing", format!("{longest:?}"), allowed));
        }
        Ok(())
    }
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config")
            .field("intents", &self.intents)
            .field("plan", &self.plan)
            .field("compression", &self.compression)
            .field("gateway_url", &self.gateway_url)
            .field("rest_url", &self.rest_url)
            .finish_non_exhaustive()
    }
}

/// Digits that the longest shard id has more than the shortest, for number and total.
const LONGEST_SHARD_ID: usize = 2 * 9;

/// No duration is longer, so that no instant overflows.
const LONGEST_DURATION: Duration = Duration::from_secs(7 * 24 * 60 * 60);

fn within(setting: &'static str, given: usize, least: usize, most: usize) -> Result<(), Error> {
    if (least..=most).contains(&given) {
        return Ok(());
    }
    Err(Error::setting(
        setting,
        given,
        if most == usize::MAX { format!("at least {least}") } else { format!("{least} to {most}") },
    ))
}

fn url(setting: &'static str, given: &str, schemes: [&'static str; 2]) -> Result<Url, Error> {
    match Url::parse(given) {
        Ok(url) if schemes.contains(&url.scheme()) && url.has_host() => Ok(url),
        _ => Err(Error::setting(
            setting,
            given,
            format!("a url that starts with {}:// or {}://", schemes[0], schemes[1]),
        )),
    }
}

/// Whether a url leads to Discord.
fn is_discord(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default();
    ["discord.com", "discord.gg", "discordapp.com"].iter().any(|domain| is_under(host, domain))
}

/// Whether a host is a domain or one below it.
pub(crate) fn is_under(host: &str, domain: &str) -> bool {
    host.strip_suffix(domain).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

/// Which shards a process runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Plan {
    /// As many shards as `/gateway/bot` recommends, all of them.
    #[default]
    Recommended,
    /// So many shards, all of them.
    Total(u32),
    /// Some of so many shards, by number; the others run elsewhere.
    Ids {
        /// Their numbers, in the order in which they shall start.
        ids: Vec<u32>,
        /// How many shards there are in all.
        total: u32,
    },
}

impl Plan {
    /// The shards whose numbers are in a range, for one process of several.
    pub fn range(ids: Range<u32>, total: u32) -> Self {
        Self::Ids { ids: ids.collect(), total }
    }

    /// The shards to run, where Discord recommends `recommended` shards.
    pub fn shards(&self, recommended: u32) -> Result<Vec<ShardId>, Error> {
        self.validate()?;
        let (ids, total) = match self {
            Self::Recommended => ((0..recommended).collect(), recommended),
            Self::Total(total) => ((0..*total).collect(), *total),
            Self::Ids { ids, total } => (ids.clone(), *total),
        };
        ids.into_iter().map(|number| Ok(ShardId::new(number, total)?)).collect()
    }

    fn validate(&self) -> Result<(), Error> {
        match self {
            Self::Total(0) => Err(Error::setting("plan", "a total of 0 shards", "at least 1")),
            Self::Recommended | Self::Total(_) => Ok(()),
            Self::Ids { ids, .. } if ids.is_empty() => {
                Err(Error::setting("plan", "an empty list of shards", "at least one shard"))
            }
            Self::Ids { ids, total } => {
                let mut seen = std::collections::HashSet::new();
                for number in ids {
                    ShardId::new(*number, *total)?;
                    if !seen.insert(number) {
                        return Err(Error::setting("plan", format!("shard {number} twice"), "each shard once"));
                    }
                }
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> Config {
        Config::new(Token::new("a.b.c").unwrap(), Intents::GUILDS)
    }

    #[expect(clippy::needless_pass_by_value, reason = "each caller makes one of its own")]
    fn refused(config: Config) -> String {
        config.validate().expect_err("refused").to_string()
    }

    #[test]
    fn each_setting_is_checked_and_named() {
        config().validate().unwrap();
        assert!(refused(config().large_threshold(49)).contains("`large_threshold` is 49; allowed: 50 to 250"));
        assert!(refused(config().large_threshold(251)).contains("251"));
        assert!(refused(config().gateway_url("https://x")).contains("`gateway_url` is https://x"));
        assert!(refused(config().gateway_url("nonsense")).contains("nonsense"));
        assert!(refused(config().rest_url("wss://x")).contains("wss://x"));
        assert!(refused(config().max_outstanding_events(0)).contains("at least 1"));
        assert!(refused(config().stack_size(100)).contains("100"));
        assert!(refused(config().presence(json!("online"))).contains("presence"));
        assert!(refused(config().presence(json!({"activities": null}))).contains("empty one for none"));
        assert!(refused(config().presence(json!({"activities": [], "status": "x".repeat(4000)}))).contains("4096"));
        let mut unknown = config();
        unknown.intents = Intents::from_bits_retain(1 << 40);
        assert!(refused(unknown).contains("0x10000000000"));
    }

    #[test]
    fn short_windows_are_for_simulators() {
        let scaled = || config().timing(Timing::scaled(0.01));
        assert!(refused(scaled()).contains("simulators"));
        assert!(refused(scaled().gateway_url("wss://gateway-us-east1-b.discord.gg")).contains("simulators"));
        scaled().gateway_url("wss://localhost:1").validate().unwrap();
        scaled().rest_url("http://127.0.0.1:1/api/v10").validate().unwrap();
        let mismatch = |config: &Config, gateway| config.validate_gateway(gateway).unwrap_err().to_string();
        let proxied = scaled().rest_url("http://127.0.0.1:1/api/v10");
        assert!(mismatch(&proxied, "wss://gateway.discord.gg").contains("simulators"), "whoever names the gateway");
        assert!(mismatch(&config(), "ws://gateway.discord.gg").contains("wss://"), "named over https");
        let mut endless = config();
        endless.timing.hello_timeout = Duration::MAX;
        assert!(refused(endless).contains("timing"));
    }

    #[test]
    fn plans_name_shards_that_exist_once() {
        let shards =
            |plan: Plan| plan.shards(3).map(|shards| shards.iter().map(ToString::to_string).collect::<Vec<_>>());
        assert_eq!(shards(Plan::Recommended).unwrap(), ["0/3", "1/3", "2/3"]);
        assert_eq!(shards(Plan::Total(2)).unwrap(), ["0/2", "1/2"]);
        assert_eq!(shards(Plan::range(4..6, 8)).unwrap(), ["4/8", "5/8"]);
        assert!(shards(Plan::Total(0)).is_err());
        assert!(shards(Plan::range(0..0, 8)).is_err());
        assert!(shards(Plan::range(7..9, 8)).unwrap_err().to_string().contains("shard 8 of 8"));
        assert!(shards(Plan::Ids { ids: vec![1, 1], total: 2 }).unwrap_err().to_string().contains("twice"));
    }

    #[test]
    fn nothing_shows_the_token() {
        let config = Config::new(Token::new("secret.is.here").unwrap(), Intents::GUILDS);
        assert!(!format!("{config:?}").contains("secret"));
    }

    #[test]
    fn domains_are_compared_by_their_labels() {
        assert!(is_under("gateway.discord.gg", "discord.gg") && is_under("discord.gg", "discord.gg"));
        assert!(!is_under("evildiscord.gg", "discord.gg") && !is_under("discord.gg.evil.com", "discord.gg"));
    }
}
