//! Checks whether a configuration is valid, and matches the gateway.

use std::time::Duration;

use super::{AutoReshard, Config, Plan, ShardConfig};
use crate::error::Error;
use crate::hosts::{is_discord, is_encrypted, is_name, parse_url};
use crate::intents::Intents;
use crate::protocol::{Command, Identity, MAX_PAYLOAD, MAX_PRESENCE};
use crate::rest::{check_proxy, check_rest_url, check_url};
use crate::shard_id::ShardId;
use crate::timing::Timing;
use crate::token::Token;

/// How many more digits the longest shard id has than the shortest: 9 each for number and total.
const MAX_SHARD_ID: usize = 2 * 9;

/// The longest allowed duration, so that no instant overflows.
const MAX_DURATION: Duration = Duration::from_secs(7 * 24 * 60 * 60);

impl Config {
    /// Checks that every setting is allowed. [`ShardManager::start`](crate::ShardManager::start)
    /// does this first.
    pub fn validate(&self) -> Result<(), Error> {
        self.plan.validate()?;
        if let Some(count) = self.auto_split {
            within("auto_split", count as usize, 2, 1000)?;
        }
        if let Some(auto) = self.auto_reshard {
            auto.validate(&self.plan, &self.timing)?;
        }
        if self.retry_start_for > MAX_DURATION {
            let given = format!("{:?}", self.retry_start_for);
            return Err(Error::setting("retry_start_for", given, "up to 7 days"));
        }
        self.shard.validate(&self.token)?;

        let rest = check_rest_url("rest_url", &self.rest_url, self.allow_plaintext)?;
        check_proxy(self.proxy.as_deref(), &[&rest])?;
        let is_wrong = |host: &&String| !is_name(&host.to_ascii_lowercase());
        if let Some(host) = self.resume_hosts.iter().find(is_wrong) {
            let allowed = "host names without a port, such as gateway.example";
            return Err(Error::setting("resume_hosts", host, allowed));
        }
        match &self.gateway_url {
            Some(gateway) => self.validate_gateway(gateway),
            // Discord's REST API returns a gateway of Discord.
            None => self.validate_timing(is_discord(&rest)),
        }
    }

    /// Checks that the settings match this gateway, which the user has set or `/gateway/bot` has
    /// returned.
    pub(crate) fn validate_gateway(&self, gateway: &str) -> Result<(), Error> {
        let schemes = ["wss", "ws"];
        let given = check_url("gateway_url", gateway, schemes, self.allow_plaintext)?;
        let rest = parse_url(&self.rest_url, ["https", "http"]);
        let is_downgrade = rest.is_some_and(|rest| is_encrypted(&rest)) && !is_encrypted(&given);
        if self.gateway_url.is_none() && is_downgrade {
            return Err(Error::setting(
                "gateway_url",
                gateway,
                "a wss:// URL, because `/gateway/bot` returned it over https://; to use ws://, \
                 set `gateway_url`",
            ));
        }
        check_proxy(self.proxy.as_deref(), &[&given])?;
        self.validate_timing(is_discord(&given))
    }

    fn validate_timing(&self, is_discord: bool) -> Result<(), Error> {
        if is_discord && self.timing.breaks_discords_limits() {
            return Err(Error::setting(
                "timing",
                "below Discord's limits",
                "Discord's durations, or longer; only simulators accept shorter ones",
            ));
        }
        let longest = self.timing.longest();
        if longest > MAX_DURATION {
            let given = format!("set with a duration of {longest:?}");
            return Err(Error::setting("timing", given, "durations up to 7 days"));
        }
        Ok(())
    }
}

impl ShardConfig {
    /// Checks that every setting is allowed.
    pub(super) fn validate(&self, token: &Token) -> Result<(), Error> {
        Intents::try_from_bits(self.intents.bits())?;
        within("large_threshold", self.large_threshold.into(), 50, 250)?;
        let at_least_one = |setting, given| within(setting, given, 1, usize::MAX);
        at_least_one("max_outstanding_events", self.max_outstanding_events)?;
        at_least_one("max_outstanding_bytes", self.max_outstanding_bytes)?;
        at_least_one("max_waiting_commands", self.max_waiting_commands)?;
        within("max_payload", self.max_payload, 64 << 10, 1 << 30)?;
        within("stack_size", self.stack_size, 64 << 10, 1 << 30)?;
        self.validate_identify(token)
    }

    /// Checks that IDENTIFY can be sent, with any presence.
    fn validate_identify(&self, token: &Token) -> Result<(), Error> {
        if let Some(Err(wrong)) = self.presence.as_ref().map(Command::presence) {
            return Err(Error::setting(
                "presence",
                format!("invalid ({wrong})"),
                "a presence as Discord documents it",
            ));
        }

        // A command may set a longer presence later, and the next IDENTIFY contains it.
        let bare = Identity {
            presence: None,
            ..self.identity(token)
        };
        let size = bare.identify(ShardId::ONE, None).expose().len() + MAX_SHARD_ID;
        let allowed = MAX_PAYLOAD - MAX_PRESENCE - r#","presence":"#.len();
        if size > allowed {
            let given = format!("too long: IDENTIFY has {size} bytes without a presence");
            let allowed = format!("a token short enough for {allowed} bytes");
            return Err(Error::setting("token", given, allowed));
        }
        Ok(())
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
                "more than 0 and at most 1",
            ));
        }

        // A simulator may scale the time, and then a minute is too long.
        let least = if timing.breaks_discords_limits() {
            Duration::from_millis(1)
        } else {
            Duration::from_secs(60)
        };
        if !(least..=MAX_DURATION).contains(&check_every) {
            let allowed = format!("{least:?} to 7 days");
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
                "set, but the plan has only some of the shards",
                "a plan for all shards; stop several processes to change their total",
            )),
        }
    }
}

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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::Presence;
    use crate::protocol::{Activity, OnlineStatus};

    fn config() -> Config {
        Config::new(Token::new("a.b.c").unwrap(), Intents::GUILDS)
    }

    fn identity(config: &Config) -> Identity {
        config.shard.identity(&config.token)
    }

    #[expect(
        clippy::needless_pass_by_value,
        reason = "each caller creates a separate configuration"
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

        // The longest token and the longest presence fit into one IDENTIFY.
        let activities = (0..23).fold(Presence::new(OnlineStatus::Online), |presence, _| {
            presence.activity(Activity::playing("x".repeat(100)))
        });
        let bare = Identity {
            presence: None,
            ..identity(&config())
        }
        .identify(ShardId::ONE, None)
        .expose()
        .len();
        let room = MAX_PAYLOAD - MAX_PRESENCE - r#","presence":"#.len() - MAX_SHARD_ID - bare;
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
        let identify = longest.presence(activities);
        let identify = identity(&identify).identify(shard, None);
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
            refused(config().auto_reshard(hour, 0.8).plan(Plan::bucket(0, 2)))
                .contains("a plan for all shards")
        );
        let mut unknown = config();
        unknown.shard.intents = Intents::from_bits_retain(1 << 40);
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
            "even if `/gateway/bot` returns it"
        );
        assert!(
            mismatch(&config(), "ws://gateway.discord.gg").contains("wss://"),
            "received over https"
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
}
