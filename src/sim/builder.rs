//! The settings of a simulated gateway.

use std::time::{Duration, Instant};

use super::fault::Answer;
use super::gateway::Gateway;
use super::settings::{MAX_ACTIVE, Offer, Settings, StartError};
use super::time::LONGEST;
use super::traffic::Mix;
use super::world::World;
use crate::intents::Intents;

/// Configures and starts a [`Gateway`].
#[derive(Clone, Debug)]
pub struct Builder {
    pub(super) settings: Settings,
    pub(super) guilds: u32,
    pub(super) tls: bool,
    pub(super) port: u16,
    mix: Vec<(String, u32)>,
}

impl Gateway {
    /// Returns a builder with the defaults: one shard, no guilds.
    pub fn builder() -> Builder {
        Builder::new()
    }
}

impl Builder {
    pub(super) fn new() -> Self {
        let settings = Settings {
            token: "MTAwMDAwMDAwMDAwMDAwMDAw.c2lt.c2ltdWxhdGVkLXRva2VuLW9mLW5vLXZhbHVl".into(),
            shards: 1,
            shard_multiple: 1,
            max_concurrency: 1,
            session_starts: 1000,
            session_starts_left: 1000,
            reset_after: Duration::from_secs(24 * 60 * 60),
            time_scale: 1.0,
            heartbeat_interval: Duration::from_millis(41_250),
            ready_delay: Duration::ZERO,
            guild_delay: Duration::ZERO,
            latency: Duration::ZERO,
            jitter: Duration::ZERO,
            allowed_intents: Intents::all(),
            guilds_per_shard: 2500,
            members: 3,
            activity: 0.0,
            mix: Mix::default(),
            offer: Offer::Any,
            keep_dispatches: false,
            replay_events: 3500,
            replay_delay: Duration::ZERO,
            on_takeover: Answer::Nothing,
            rest_limit: (5, Duration::from_secs(5)),
            global_rest_limit: 50,
            is_strict: false,
            seed: 0,
        };
        Self {
            settings,
            guilds: 0,
            tls: false,
            port: 0,
            mix: Vec::new(),
        }
    }

    /// The port on the loopback interface. Default: 0, which picks any free port.
    pub fn port(mut self, port: u16) -> Self {
        self.port = port;
        self
    }

    /// Whether to serve `wss` and `https`. Clients must trust [`Gateway::root_certificate`].
    /// Default: no.
    pub fn tls(mut self, tls: bool) -> Self {
        self.tls = tls;
        self
    }

    /// How many shards `/gateway/bot` recommends. Default: 1.
    pub fn shards(mut self, shards: u32) -> Self {
        self.settings.shards = shards;
        self
    }

    /// Treats the bot as a large one, with over 150,000 guilds. The shard count of an IDENTIFY must
    /// be a multiple of this number; otherwise the gateway closes with 4010. Default: 1.
    pub fn shard_multiple(mut self, multiple: u32) -> Self {
        self.settings.shard_multiple = multiple;
        self
    }

    /// How many shards may identify at once. Default: 1.
    pub fn max_concurrency(mut self, max_concurrency: u32) -> Self {
        self.settings.max_concurrency = max_concurrency;
        self
    }

    /// How many guilds the bot is in, spread over all shards. Default: 0.
    pub fn guilds(mut self, guilds: u32) -> Self {
        self.guilds = guilds;
        self
    }

    /// How many members each guild has besides the bot. Default: 3.
    pub fn members(mut self, members: u32) -> Self {
        self.settings.members = members;
        self
    }

    /// The factor for Discord's durations: with 0.01 a window of 5 s lasts 50 ms. The client needs
    /// the same scale (`Timing::scaled`), or it identifies too early. Above 0, up to 1000.
    /// Default: 1.
    pub fn time_scale(mut self, factor: f64) -> Self {
        self.settings.time_scale = factor;
        self
    }

    /// The heartbeat interval before scaling. Default: 41.25 s.
    ///
    /// A heartbeat may be late by a quarter of the interval plus 2 s. The 2 s are not scaled: they
    /// allow for delays of the machine.
    pub fn heartbeat_interval(mut self, interval: Duration) -> Self {
        self.settings.heartbeat_interval = interval;
        self
    }

    /// The delay before READY, not scaled. Default: none.
    pub fn ready_delay(mut self, delay: Duration) -> Self {
        self.settings.ready_delay = delay;
        self
    }

    /// The delay between one guild of a session and the next becoming available, not scaled.
    /// Default: none.
    pub fn guild_delay(mut self, delay: Duration) -> Self {
        self.settings.guild_delay = delay;
        self
    }

    /// The latency of every message in each direction, and the maximum random delay on top of it.
    /// Neither is scaled. Default: none.
    pub fn latency(mut self, latency: Duration, jitter: Duration) -> Self {
        self.settings.latency = latency;
        self.settings.jitter = jitter;
        self
    }

    /// The session start limit: the total number of IDENTIFYs, how many are left, and the time
    /// until the limit resets, not scaled. Default: 1000, 1000, 24 h.
    pub fn session_starts(mut self, total: u32, left: u32, reset_after: Duration) -> Self {
        self.settings.session_starts = total;
        self.settings.session_starts_left = left;
        self.settings.reset_after = reset_after;
        self
    }

    /// The intents that the bot may use. Others close the connection with 4014. Default: all.
    pub fn allowed_intents(mut self, intents: Intents) -> Self {
        self.settings.allowed_intents = intents;
        self
    }

    /// The maximum number of guilds of a shard. More close the connection with 4011. Default: 2500.
    pub fn guilds_per_shard(mut self, guilds: usize) -> Self {
        self.settings.guilds_per_shard = guilds;
        self
    }

    /// How many events a second the guilds generate by themselves, in total. Default: 0.
    pub fn activity(mut self, events_per_second: f64) -> Self {
        self.settings.activity = events_per_second;
        self
    }

    /// Which events the guilds generate, each with its weight. The allowed names are
    /// [`EVENT_NAMES`](super::EVENT_NAMES). Default: all of them, mostly messages, typing and
    /// presences.
    pub fn mix<'a>(mut self, weights: impl IntoIterator<Item = (&'a str, u32)>) -> Self {
        self.mix = weights
            .into_iter()
            .map(|(name, weight)| (name.to_owned(), weight))
            .collect();
        self
    }

    /// Which transport compressions the gateway offers. Default: all.
    pub fn compression(mut self, offer: Offer) -> Self {
        self.settings.offer = offer;
        self
    }

    /// Whether to record every event that was sent to a session, for [`Gateway::dispatches`]. This
    /// takes memory. Default: no.
    pub fn keep_dispatches(mut self, keep: bool) -> Self {
        self.settings.keep_dispatches = keep;
        self
    }

    /// How many events a session keeps for replay; there is also a limit of 8 MiB. A RESUME from a
    /// sequence before them is answered with op 9. Discord no longer documents a number. Default:
    /// 3,500, which it once documented.
    pub fn replay_events(mut self, events: usize) -> Self {
        self.settings.replay_events = events;
        self
    }

    /// The delay between RESUME and the start of the replay, not scaled. Meanwhile heartbeats are
    /// acknowledged, ahead of the events. Default: none.
    pub fn replay_delay(mut self, delay: Duration) -> Self {
        self.settings.replay_delay = delay;
        self
    }

    /// What the old connection receives when its session is resumed on another connection. Discord
    /// does not document this. Default: nothing.
    pub fn on_takeover(mut self, answer: Answer) -> Self {
        self.settings.on_takeover = answer;
        self
    }

    /// How many requests each route accepts in a window, which is scaled. Each channel, guild and
    /// webhook has its own limit. Discord guarantees no numbers. Default: 5 in 5 s.
    pub fn rest_limit(mut self, requests: u32, window: Duration) -> Self {
        self.settings.rest_limit = (requests, window);
        self
    }

    /// The global rate limit: how many requests all routes together accept in a second, which is
    /// scaled. Requests for interactions are not counted. Default: 50.
    pub fn global_rest_limit(mut self, requests: u32) -> Self {
        self.settings.global_rest_limit = requests;
        self
    }

    /// Whether to close a connection also for a payload that deviates from Discord's documentation
    /// but that Discord is not known to refuse. It is closed with the matching close code. Default:
    /// no; a [warning](super::Observed::warnings) is recorded instead.
    pub fn strict(mut self, strict: bool) -> Self {
        self.settings.is_strict = strict;
        self
    }

    /// The seed of the random number generator. Default: 0.
    pub fn seed(mut self, seed: u64) -> Self {
        self.settings.seed = seed;
        self
    }

    /// Starts the gateway on the loopback interface.
    ///
    /// # Errors
    /// If a setting is out of its range, the port is in use, or the operating system reports an
    /// error.
    pub fn start(mut self) -> Result<Gateway, StartError> {
        self.check()?;
        if !self.mix.is_empty() {
            self.settings.mix =
                Mix::new(&self.mix).map_err(|(given, allowed)| wrong("mix", &given, allowed))?;
        }
        let (port, is_tls, token) = (self.port, self.tls, self.token().to_owned());
        Gateway::serve(port, is_tls, token, |now, unix, url| {
            self.world(now, unix, url)
        })
    }

    pub(crate) fn token(&self) -> &str {
        &self.settings.token
    }

    /// Builds the world without a server, starting at `now`, which is `unix` after the Unix epoch.
    pub(crate) fn world(self, now: Instant, unix: Duration, url: String) -> World {
        let mut world = World::new(now, unix, self.settings, url);
        world.add_guilds(self.guilds);
        world
    }

    fn check(&self) -> Result<(), StartError> {
        let Settings {
            shards,
            shard_multiple,
            max_concurrency,
            members,
            time_scale,
            heartbeat_interval,
            activity,
            rest_limit,
            global_rest_limit,
            ..
        } = self.settings;
        let settings = [
            ("shards", shards, 1, u32::MAX),
            ("shard_multiple", shard_multiple, 1, u32::MAX),
            ("max_concurrency", max_concurrency, 1, u32::MAX),
            ("guilds", self.guilds, 0, 1_000_000),
            ("members", members, 1, 1_000_000),
            ("rest_limit", rest_limit.0, 1, u32::MAX),
            ("global_rest_limit", global_rest_limit, 1, u32::MAX),
        ];
        for (setting, given, least, most) in settings {
            if !(least..=most).contains(&given) {
                return Err(wrong(setting, &given, format!("{least} to {most}")));
            }
        }

        self.check_durations()?;
        if !(time_scale > 0.0 && time_scale <= 1000.0) {
            return Err(wrong(
                "time_scale",
                &time_scale,
                "more than 0 and at most 1000",
            ));
        }

        let interval = heartbeat_interval.mul_f64(time_scale);
        if interval < Duration::from_millis(1) {
            return Err(wrong(
                "heartbeat_interval",
                &humantime::format_duration(interval),
                "1 ms or more, once scaled",
            ));
        }

        if !(0.0..=MAX_ACTIVE).contains(&activity) {
            return Err(wrong("activity", &activity, "0 to 1000000 events a second"));
        }
        Ok(())
    }

    fn check_durations(&self) -> Result<(), StartError> {
        let Settings {
            reset_after,
            heartbeat_interval,
            ready_delay,
            guild_delay,
            latency,
            jitter,
            replay_delay,
            rest_limit,
            ..
        } = self.settings;
        let durations = [
            ("reset_after", reset_after),
            ("heartbeat_interval", heartbeat_interval),
            ("ready_delay", ready_delay),
            ("guild_delay", guild_delay),
            ("latency", latency),
            ("jitter", jitter),
            ("replay_delay", replay_delay),
            ("rest_limit", rest_limit.1),
        ];
        for (setting, given) in durations {
            if given > LONGEST {
                return Err(wrong(
                    setting,
                    &humantime::format_duration(given),
                    "up to a year",
                ));
            }
        }
        Ok(())
    }
}

fn wrong(setting: &'static str, given: &impl ToString, allowed: impl Into<String>) -> StartError {
    StartError::Setting {
        setting,
        given: given.to_string(),
        allowed: allowed.into(),
    }
}
