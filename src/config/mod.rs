//! What a user can choose.

mod plan;

use std::fmt;
use std::num::NonZeroU32;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

pub use plan::Plan;
use url::{Host, Url};

use crate::error::Error;
use crate::event::EventFilter;
use crate::intents::Intents;
use crate::limit::{IdentifyLimiter, ReleaseAfter};
use crate::protocol::{
    CloseReason, Command, Identity, MAX_PAYLOAD, MAX_PRESENCE, Presence, Session,
};
use crate::shard_id::ShardId;
use crate::store::SessionStore;
use crate::timing::Timing;
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
    /// Sessions to resume, of an earlier [`suspend`](crate::ShardManager::suspend). One whose shard
    /// is not in the plan, or has another total, is not used. Default: none.
    pub sessions: Vec<Session>,
    /// Keeps the sessions for the next process: loaded at the start, written every few seconds, when
    /// a shard identifies, is ready or stops, and when the manager is suspended. [`FileStore`](crate::store::FileStore) is one. Default: none.
    pub session_store: Option<Arc<dyn SessionStore>>,
    /// How many shards take the place of one that holds more guilds than Discord allows (close code
    /// 4011), 2 or more: shard `[i, n]` becomes `[i + j*n, k*n]` for each `j` below `k`. Default:
    /// none, the shard stops.
    pub auto_split: Option<u32>,
    /// Whether to reshard when the shards grow full. Needs a plan with all shards. Default: no.
    pub auto_reshard: Option<AutoReshard>,
    /// After how many sessions in a row that never lasted, within 10 minutes
    /// ([`Timing::circuit_window`](crate::Timing::circuit_window)), a shard stops with
    /// [`CloseReason::CircuitOpen`](crate::CloseReason::CircuitOpen) rather than spend more
    /// IDENTIFYs; a restart has it try again. Default: 5.
    pub most_short_sessions: Option<NonZeroU32>,
    /// What to do if fewer IDENTIFYs are left today than are needed. Default: [`Shortage::Warn`].
    pub shortage: Shortage,
    /// How long [`ShardManager::start`](crate::ShardManager::start) asks Discord again, with growing
    /// pauses of up to 30 s, while it cannot be reached or answers with a server error: for a
    /// program that starts before its network does. Default: not at all.
    pub retry_start_for: Duration,
    /// Changes the settings of single shards, for example the presence. It is called whenever a
    /// shard is opened or restarted (once to check what it does, and once to use it), on any
    /// thread, and must not block. Of what it sets these count: `intents`, `compression`,
    /// `large_threshold`, `presence`, `events`, `most_short_sessions`, `max_outstanding_events`,
    /// `max_outstanding_bytes`, `max_waiting_commands`, `max_payload`, `stack_size`, `timing`; a
    /// restart takes the `intents`, `large_threshold` and `presence` (of which one that a command
    /// has set counts more). Default: none.
    pub for_shard: Option<ShardHook>,
    /// Called when a shard's connection has ended: with the reason, and whether the shard comes
    /// back by itself. It is called on the shard's thread and must not block. Default: none;
    /// [`EventKind`](crate::EventKind) tells the same in the stream.
    pub on_close: Option<CloseHook>,
    /// How Discord compresses what it sends. Default: [`Compression::ZstdStream`].
    pub compression: Compression,
    /// From how many members on Discord leaves a guild's offline members out, 50 to 250. Default:
    /// 50.
    pub large_threshold: u16,
    /// The presence to start with, until a command sets another. Default: Discord's, online and
    /// doing nothing.
    pub presence: Option<Presence>,
    /// Which events pass. Default: all.
    pub events: EventFilter,
    /// The gateway to connect to, `wss://...`. Default: what `/gateway/bot` says, which is asked
    /// all the same unless `plan` and `limiter` leave nothing to ask.
    pub gateway_url: Option<String>,
    /// The base of the HTTP API. Default: `https://discord.com/api/v10`.
    pub rest_url: String,
    /// Hosts, besides the gateway's own and Discord's, that a session may name to be resumed on.
    /// The token goes there. Default: none.
    pub resume_hosts: Vec<String>,
    /// Whether `http://` and `ws://` are allowed for other hosts than this machine, as for a gateway
    /// proxy in a private network: the token goes there in the clear. Default: no.
    pub allow_plaintext: bool,
    /// Certificates to trust in place of the system's, as PEM, for websocket and HTTP alike.
    /// Default: none.
    pub root_certificates: Option<String>,
    /// Decides who may identify. Default: a [`SessionLimit`](crate::limit::SessionLimit) of the
    /// manager's own, with Discord's values. Managers of one bot that run in one process, at once
    /// or within 5 s, must share one.
    pub limiter: Option<Arc<dyn IdentifyLimiter>>,
    /// From when the default limiter's window counts. Default: from the IDENTIFY.
    pub release_after: ReleaseAfter,
    /// How many events of a shard may be outstanding before it stops reading, at least 1. Default:
    /// 1,024.
    pub max_outstanding_events: usize,
    /// How many bytes the payloads of a shard's events may have, uncompressed, before it stops
    /// reading, at least 1; one event always fits. Small ones share blocks of 16 KiB with others
    /// that came beside them, so that one alone may hold that much. Default: 4 MiB.
    pub max_outstanding_bytes: usize,
    /// How many commands of a shard may wait to be sent, at least 1; presences, of which the newest
    /// waits, not counted. Default: 1,024.
    pub max_waiting_commands: usize,
    /// The largest payload in bytes, uncompressed; a larger one ends the connection. 64 KiB to 1
    /// GiB. Default: 64 MiB.
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
            session_store: None,
            auto_split: None,
            auto_reshard: None,
            most_short_sessions: NonZeroU32::new(5),
            shortage: Shortage::default(),
            retry_start_for: Duration::ZERO,
            for_shard: None,
            on_close: None,
            compression: Compression::default(),
            large_threshold: 50,
            presence: None,
            events: EventFilter::ALL,
            gateway_url: None,
            rest_url: "https://discord.com/api/v10".into(),
            resume_hosts: Vec::new(),
            allow_plaintext: false,
            root_certificates: None,
            limiter: None,
            release_after: ReleaseAfter::default(),
            max_outstanding_events: 1024,
            max_outstanding_bytes: 4 << 20,
            max_waiting_commands: 1024,
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

    /// Sets [`session_store`](Self::session_store).
    pub fn session_store(self, store: impl SessionStore + 'static) -> Self {
        Self {
            session_store: Some(Arc::new(store)),
            ..self
        }
    }

    /// Sets [`auto_split`](Self::auto_split).
    pub fn auto_split(self, count: u32) -> Self {
        Self {
            auto_split: Some(count),
            ..self
        }
    }

    /// Sets [`auto_reshard`](Self::auto_reshard): asks Discord every `check_every` (a minute to 7
    /// days), and reshards where the fullest shard holds more than `threshold` of what it may
    /// (above 0, to 1).
    pub fn auto_reshard(self, check_every: Duration, threshold: f64) -> Self {
        Self {
            auto_reshard: Some(AutoReshard {
                check_every,
                threshold,
            }),
            ..self
        }
    }

    /// Sets [`most_short_sessions`](Self::most_short_sessions); with `None` shards try for ever,
    /// with longer and longer pauses.
    pub fn most_short_sessions(self, most: Option<NonZeroU32>) -> Self {
        Self {
            most_short_sessions: most,
            ..self
        }
    }

    /// Sets [`shortage`](Self::shortage).
    pub fn shortage(self, shortage: Shortage) -> Self {
        Self { shortage, ..self }
    }

    /// Sets [`for_shard`](Self::for_shard).
    pub fn for_shard(self, change: impl Fn(ShardId, &mut Config) + Send + Sync + 'static) -> Self {
        Self {
            for_shard: Some(Arc::new(change)),
            ..self
        }
    }

    /// Sets [`retry_start_for`](Self::retry_start_for).
    pub fn retry_start_for(self, retry_start_for: Duration) -> Self {
        Self {
            retry_start_for,
            ..self
        }
    }

    /// Sets [`on_close`](Self::on_close).
    pub fn on_close(
        self,
        on_close: impl Fn(ShardId, CloseReason, bool) + Send + Sync + 'static,
    ) -> Self {
        Self {
            on_close: Some(Arc::new(on_close)),
            ..self
        }
    }

    /// Sets [`compression`](Self::compression).
    pub fn compression(self, compression: Compression) -> Self {
        Self {
            compression,
            ..self
        }
    }

    /// Sets [`large_threshold`](Self::large_threshold).
    pub fn large_threshold(self, large_threshold: u16) -> Self {
        Self {
            large_threshold,
            ..self
        }
    }

    /// Sets [`presence`](Self::presence).
    pub fn presence(self, presence: Presence) -> Self {
        Self {
            presence: Some(presence),
            ..self
        }
    }

    /// Sets [`events`](Self::events).
    pub fn events(self, events: EventFilter) -> Self {
        Self { events, ..self }
    }

    /// Sets [`gateway_url`](Self::gateway_url).
    pub fn gateway_url(self, url: impl Into<String>) -> Self {
        Self {
            gateway_url: Some(url.into()),
            ..self
        }
    }

    /// Sets [`rest_url`](Self::rest_url).
    pub fn rest_url(self, url: impl Into<String>) -> Self {
        Self {
            rest_url: url.into(),
            ..self
        }
    }

    /// Sets [`resume_hosts`](Self::resume_hosts).
    pub fn resume_hosts(self, resume_hosts: Vec<String>) -> Self {
        Self {
            resume_hosts,
            ..self
        }
    }

    /// Sets [`allow_plaintext`](Self::allow_plaintext).
    pub fn allow_plaintext(self, allow_plaintext: bool) -> Self {
        Self {
            allow_plaintext,
            ..self
        }
    }

    /// Sets [`root_certificates`](Self::root_certificates).
    pub fn root_certificates(self, pem: impl Into<String>) -> Self {
        Self {
            root_certificates: Some(pem.into()),
            ..self
        }
    }

    /// Sets [`limiter`](Self::limiter).
    pub fn limiter(self, limiter: Arc<dyn IdentifyLimiter>) -> Self {
        Self {
            limiter: Some(limiter),
            ..self
        }
    }

    /// Sets [`release_after`](Self::release_after).
    pub fn release_after(self, release_after: ReleaseAfter) -> Self {
        Self {
            release_after,
            ..self
        }
    }

    /// Sets [`max_outstanding_events`](Self::max_outstanding_events).
    pub fn max_outstanding_events(self, max_outstanding_events: usize) -> Self {
        Self {
            max_outstanding_events,
            ..self
        }
    }

    /// Sets [`max_outstanding_bytes`](Self::max_outstanding_bytes).
    pub fn max_outstanding_bytes(self, max_outstanding_bytes: usize) -> Self {
        Self {
            max_outstanding_bytes,
            ..self
        }
    }

    /// Sets [`max_waiting_commands`](Self::max_waiting_commands).
    pub fn max_waiting_commands(self, max_waiting_commands: usize) -> Self {
        Self {
            max_waiting_commands,
            ..self
        }
    }

    /// Sets [`max_payload`](Self::max_payload).
    pub fn max_payload(self, max_payload: usize) -> Self {
        Self {
            max_payload,
            ..self
        }
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

    /// Whether every setting is allowed; [`ShardManager::start`](crate::ShardManager::start) asks
    /// before it does anything.
    pub fn validate(&self) -> Result<(), Error> {
        Intents::try_from_bits(self.intents.bits())?;
        self.plan.validate()?;
        if let Some(count) = self.auto_split {
            within("auto_split", count as usize, 2, 1000)?;
        }
        if let Some(auto) = self.auto_reshard {
            auto.validate(&self.plan, &self.timing)?;
        }
        let bot = self.token.user_id();
        if let Some(foreign) = self
            .sessions
            .iter()
            .find(|session| is_foreign(session, bot))
        {
            return Err(Error::ForeignSession {
                shard: foreign.shard,
                bot_user_id: foreign.bot_user_id,
            });
        }
        let mut shards = std::collections::HashSet::new();
        if let Some(twice) = self
            .sessions
            .iter()
            .find(|session| !shards.insert(session.shard))
        {
            let given = format!("two sessions of shard {}", twice.shard);
            return Err(Error::setting("sessions", given, "one for each shard"));
        }
        within("large_threshold", self.large_threshold.into(), 50, 250)?;
        within(
            "max_outstanding_events",
            self.max_outstanding_events,
            1,
            usize::MAX,
        )?;
        within(
            "max_outstanding_bytes",
            self.max_outstanding_bytes,
            1,
            usize::MAX,
        )?;
        within(
            "max_waiting_commands",
            self.max_waiting_commands,
            1,
            usize::MAX,
        )?;
        if self.retry_start_for > LONGEST_DURATION {
            let given = format!("{:?}", self.retry_start_for);
            let allowed = format!("up to {LONGEST_DURATION:?}");
            return Err(Error::setting("retry_start_for", given, allowed));
        }
        within("max_payload", self.max_payload, 64 << 10, 1 << 30)?;
        within("stack_size", self.stack_size, 64 << 10, 1 << 30)?;
        if let Some(Err(wrong)) = self.presence.as_ref().map(Command::presence) {
            return Err(Error::setting(
                "presence",
                format!("not one that Discord takes: {wrong}"),
                "what that says",
            ));
        }
        // Commands may set a presence later, and the next IDENTIFY has to carry it.
        let bare = Identity {
            presence: None,
            ..self.identity()
        };
        let size = bare.identify(ShardId::ONE, None).expose().len() + LONGEST_SHARD_ID;
        let allowed = MAX_PAYLOAD - MAX_PRESENCE - r#","presence":"#.len();
        if size > allowed {
            let given = format!("so long that IDENTIFY has {size} bytes without a presence");
            return Err(Error::setting(
                "token",
                given,
                format!("one with which it has at most {allowed}"),
            ));
        }
        let rest = url("rest_url", &self.rest_url, ["https", "http"])?;
        self.check_plaintext("rest_url", &rest)?;
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
        if self.gateway_url.is_none()
            && given.scheme() == "ws"
            && self.rest_url.starts_with("https")
        {
            return Err(Error::setting(
                "gateway_url",
                gateway,
                "one with wss://, where it was named over https://",
            ));
        }
        self.check_plaintext("gateway_url", &given)?;
        self.validate_timing(is_discord(&given))
    }

    /// The token goes over the line in the clear only where nobody else can listen, or the user
    /// says so.
    fn check_plaintext(&self, setting: &'static str, url: &Url) -> Result<(), Error> {
        let is_encrypted = matches!(url.scheme(), "https" | "wss");
        if is_encrypted || self.allow_plaintext || is_loopback(url) {
            return Ok(());
        }
        let allowed = format!(
            "{}s://, a loopback host such as localhost, or any host with `allow_plaintext(true)`",
            url.scheme()
        );
        Err(Error::setting(setting, url.as_str(), allowed))
    }

    /// The settings of one shard at a gateway, checked.
    pub(crate) fn of_shard(
        self: &Arc<Self>,
        shard: ShardId,
        gateway: &str,
    ) -> Result<Arc<Self>, Error> {
        let Some(change) = &self.for_shard else {
            return Ok(Arc::clone(self));
        };
        let mut config = Self::clone(self);
        catch_unwind(AssertUnwindSafe(|| change(shard, &mut config))).map_err(|_| {
            Error::setting(
                "for_shard",
                format!("one that panics for shard {shard}"),
                "one that does not",
            )
        })?;
        config.token = self.token.clone();
        config.validate()?;
        config.validate_gateway(gateway)?;
        Ok(Arc::new(config))
    }

    fn validate_timing(&self, is_discord: bool) -> Result<(), Error> {
        if is_discord && self.timing.breaks_discords_limits() {
            return Err(Error::setting(
                "timing",
                "shorter than Discord's windows",
                "that for simulators alone",
            ));
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

/// Changes the settings of one shard.
pub type ShardHook = Arc<dyn Fn(ShardId, &mut Config) + Send + Sync>;

/// Hears of a shard's closed connections: the reason, and whether the shard comes back by itself.
pub type CloseHook = Arc<dyn Fn(ShardId, CloseReason, bool) + Send + Sync>;

/// When to reshard without being asked.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AutoReshard {
    /// How often Discord is asked.
    pub check_every: Duration,
    /// How full the shards may be before they are replaced by as many as Discord recommends: 0.8 is
    /// 80 %.
    pub threshold: f64,
}

/// Asks every 8 hours and reshards above 80 %.
impl Default for AutoReshard {
    fn default() -> Self {
        Self {
            check_every: Duration::from_secs(8 * 60 * 60),
            threshold: 0.8,
        }
    }
}

impl AutoReshard {
    fn validate(self, plan: &Plan, timing: &Timing) -> Result<(), Error> {
        let Self {
            check_every,
            threshold,
        } = self;
        if !(threshold > 0.0 && threshold <= 1.0) {
            return Err(Error::setting(
                "auto_reshard",
                format!("a threshold of {threshold}"),
                "above 0, to 1",
            ));
        }
        // Against a simulator, where time is scaled, a minute may be long.
        let least = if timing.breaks_discords_limits() {
            Duration::from_millis(1)
        } else {
            Duration::from_secs(60)
        };
        if !(least..=LONGEST_DURATION).contains(&check_every) {
            let allowed = format!("{least:?} to {LONGEST_DURATION:?}");
            return Err(Error::setting(
                "auto_reshard",
                format!("a check every {check_every:?}"),
                allowed,
            ));
        }
        match plan {
            Plan::Recommended | Plan::Stored | Plan::Total(_) => Ok(()),
            _ => Err(Error::setting(
                "auto_reshard",
                "a plan for some of the shards",
                "one for all of them; several processes are to be resharded by hand, at once",
            )),
        }
    }
}

/// What to do if fewer IDENTIFYs are left today than are needed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Shortage {
    /// Say so in the log, and wait for the reset.
    #[default]
    Warn,
    /// Refuse with [`Error::TooFewIdentifies`](crate::Error::TooFewIdentifies).
    Refuse,
}

/// Whether a session belongs to another bot, as far as that is known.
pub(crate) fn is_foreign(session: &Session, bot_user_id: Option<u64>) -> bool {
    session.bot_user_id != 0 && bot_user_id.is_some_and(|bot| bot != session.bot_user_id)
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
        if most == usize::MAX {
            format!("at least {least}")
        } else {
            format!("{least} to {most}")
        },
    ))
}

fn url(setting: &'static str, given: &str, schemes: [&'static str; 2]) -> Result<Url, Error> {
    match Url::parse(given) {
        Ok(url) if schemes.contains(&url.scheme()) && url.has_host() => Ok(url),
        _ => Err(Error::setting(
            setting,
            given,
            format!(
                "a url that starts with {}:// or {}://",
                schemes[0], schemes[1]
            ),
        )),
    }
}

/// Whether a url leads to Discord.
fn is_discord(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default();
    ["discord.com", "discord.gg", "discordapp.com"]
        .iter()
        .any(|domain| is_under(host, domain))
}

/// Whether a url leads to this machine.
fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Domain(name)) => is_under(name, "localhost"),
        Some(Host::Ipv4(ip)) => ip.is_loopback(),
        Some(Host::Ipv6(ip)) => ip.is_loopback(),
        None => false,
    }
}

/// Whether a host is a domain or one below it.
pub(crate) fn is_under(host: &str, domain: &str) -> bool {
    host.strip_suffix(domain)
        .is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::{Activity, OnlineStatus};

    fn config() -> Config {
        Config::new(Token::new("a.b.c").unwrap(), Intents::GUILDS)
    }

    #[expect(
        clippy::needless_pass_by_value,
        reason = "each caller makes one of its own"
    )]
    fn refused(config: Config) -> String {
        config.validate().expect_err("refused").to_string()
    }

    #[test]
    fn each_setting_is_checked_and_named() {
        config().validate().unwrap();
        assert!(
            refused(config().large_threshold(49))
                .contains("`large_threshold` is 49; allowed: 50 to 250")
        );
        assert!(refused(config().large_threshold(251)).contains("251"));
        assert!(refused(config().gateway_url("https://x")).contains("`gateway_url` is https://x"));
        assert!(refused(config().gateway_url("nonsense")).contains("nonsense"));
        assert!(refused(config().rest_url("wss://x")).contains("wss://x"));
        assert!(refused(config().max_outstanding_events(0)).contains("at least 1"));
        assert!(refused(config().stack_size(100)).contains("100"));
        assert!(
            refused(config().max_waiting_commands(0))
                .contains("`max_waiting_commands` is 0; allowed: at least 1")
        );
        let presence =
            |activity| config().presence(Presence::new(OnlineStatus::Online).activity(activity));
        presence(Activity::custom("x")).validate().unwrap();
        assert!(refused(presence(Activity::playing(""))).contains("`activities[0].name`"));
        // The longest of both fit into one IDENTIFY.
        let activities = (0..23).fold(Presence::new(OnlineStatus::Online), |presence, _| {
            presence.activity(Activity::playing("x".repeat(100)))
        });
        let bare = Identity {
            presence: None,
            ..config().identity()
        }
        .identify(ShardId::ONE, None)
        .expose()
        .len();
        let room = MAX_PAYLOAD - MAX_PRESENCE - r#","presence":"#.len() - LONGEST_SHARD_ID - bare;
        let longest = Config::new(
            Token::new(format!("a.b.c{}", "c".repeat(room))).unwrap(),
            Intents::GUILDS,
        );
        longest
            .clone()
            .presence(activities.clone())
            .validate()
            .unwrap();
        let shard = ShardId::new(u32::MAX - 1, u32::MAX).unwrap();
        let identify = longest
            .presence(activities)
            .identity()
            .identify(shard, None);
        assert!(
            (3800..=MAX_PAYLOAD).contains(&identify.expose().len()),
            "{}",
            identify.expose().len()
        );
        let long = Config::new(
            Token::new(format!("a.b.{}", "c".repeat(1000))).unwrap(),
            Intents::GUILDS,
        );
        assert!(refused(long).contains("`token`"));
        for count in [0, 1] {
            assert!(refused(config().auto_split(count)).contains("`auto_split`"));
        }
        let hour = Duration::from_secs(3600);
        config().auto_reshard(hour, 0.8).validate().unwrap();
        for threshold in [0.0, 1.1, f64::NAN] {
            assert!(refused(config().auto_reshard(hour, threshold)).contains("threshold"));
        }
        assert!(refused(config().auto_reshard(Duration::ZERO, 0.8)).contains("60s"));
        assert!(
            refused(config().auto_reshard(hour, 0.8).plan(Plan::bucket(0, 2))).contains("by hand")
        );
        let mut unknown = config();
        unknown.intents = Intents::from_bits_retain(1 << 40);
        assert!(refused(unknown).contains("0x10000000000"));
    }

    #[test]
    fn the_token_goes_in_the_clear_only_to_this_machine_or_where_it_may() {
        for host in ["localhost", "bot.localhost", "127.9.9.9", "[::1]"] {
            let config = config().rest_url(format!("http://{host}:1/api"));
            config
                .clone()
                .gateway_url(format!("ws://{host}:1"))
                .validate()
                .unwrap();
            config.validate_gateway(&format!("ws://{host}:1")).unwrap();
        }
        for host in ["discord.com", "10.0.0.1", "localhost.example", "[fe80::1]"] {
            let rest = config().rest_url(format!("http://{host}/api/v10"));
            let gateway = config().gateway_url(format!("ws://{host}"));
            assert!(refused(rest.clone()).contains("allow_plaintext"), "{host}");
            assert!(refused(gateway.clone()).contains("wss://"), "{host}");
            rest.allow_plaintext(true).validate().unwrap();
            gateway.allow_plaintext(true).validate().unwrap();
        }
    }

    #[test]
    fn the_settings_of_one_shard_are_held_against_the_gateway_that_was_named() {
        let scaled = |_: ShardId, config: &mut Config| config.timing = Timing::scaled(0.01);
        let config = config()
            .rest_url("http://127.0.0.1:1/api/v10")
            .for_shard(scaled);
        let config = Arc::new(config);
        let gateway = "wss://gateway.discord.gg";
        let refused = config.of_shard(ShardId::ONE, gateway).err().unwrap();
        assert!(refused.to_string().contains("timing"), "{refused}");
        config.of_shard(ShardId::ONE, "ws://127.0.0.1:2").unwrap();
    }

    #[test]
    fn short_windows_are_for_simulators() {
        let scaled = || config().timing(Timing::scaled(0.01));
        assert!(refused(scaled()).contains("simulators"));
        assert!(
            refused(scaled().gateway_url("wss://gateway-us-east1-b.discord.gg"))
                .contains("simulators")
        );
        scaled()
            .gateway_url("wss://localhost:1")
            .validate()
            .unwrap();
        scaled()
            .rest_url("http://127.0.0.1:1/api/v10")
            .validate()
            .unwrap();
        let mismatch =
            |config: &Config, gateway| config.validate_gateway(gateway).unwrap_err().to_string();
        let proxied = scaled().rest_url("http://127.0.0.1:1/api/v10");
        assert!(
            mismatch(&proxied, "wss://gateway.discord.gg").contains("simulators"),
            "whoever names the gateway"
        );
        assert!(
            mismatch(&config(), "ws://gateway.discord.gg").contains("wss://"),
            "named over https"
        );
        let mut endless = config();
        endless.timing.hello_timeout = Duration::MAX;
        assert!(refused(endless).contains("timing"));
    }

    #[test]
    fn nothing_shows_the_token() {
        let config = Config::new(Token::new("secret.is.here").unwrap(), Intents::GUILDS);
        assert!(!format!("{config:?}").contains("secret"));
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
}
