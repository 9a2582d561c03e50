//! The durations that Discord prescribes, and those that this library chooses.

use std::time::Duration;

/// Timeouts, pauses and rate limit windows. Each field says whether its default is prescribed by
/// Discord ("Discord's") or chosen by this library ("Ours").
///
/// Shorter windows are for simulators: a configuration that connects to one of Discord's hosts is
/// refused if its windows are shorter than Discord's.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Timing {
    /// Timeout from the start of a connection to the end of the websocket upgrade, including TCP
    /// and TLS. Ours: 20 s.
    pub connect_timeout: Duration,
    /// Timeout from the upgrade to HELLO. Ours: 20 s.
    pub hello_timeout: Duration,
    /// Timeout from IDENTIFY to READY, and from RESUME or a replayed event to the next event. Ours:
    /// 60 s.
    pub answer_timeout: Duration,
    /// Timeout for the server's answer to a close frame. Ours: 2 s.
    pub close_timeout: Duration,
    /// Minimum pause after an invalid session (op 9). Discord's: 1 s.
    pub invalid_session_min: Duration,
    /// Maximum pause after the first invalid session. Discord's: 5 s.
    pub invalid_session_max: Duration,
    /// Maximum pause when several sessions in a row ended early; the pause grows each time. Ours:
    /// 15 min.
    pub invalid_session_cap: Duration,
    /// Pause before the second attempt to reconnect. It doubles with each failure. Ours: 1 s.
    pub backoff_base: Duration,
    /// Maximum pause between attempts to reconnect. Ours: 60 s.
    pub backoff_cap: Duration,
    /// Maximum pause after a connection that was ready, unless Discord closed it because of what
    /// the shard had sent. The session can probably be resumed, and its events are waiting. Ours:
    /// 5 s.
    pub backoff_cap_ready: Duration,
    /// How long a connection must have been ready to reset the count of failures. Ours: 10 s.
    pub stable_after: Duration,
    /// The window in which sessions that ended early are counted; see
    /// [`ShardConfig::max_short_sessions`](crate::ShardConfig::max_short_sessions). Ours: 10 min.
    pub circuit_window: Duration,
    /// The window of [`SENDS_PER_WINDOW`](crate::protocol::SENDS_PER_WINDOW). Discord's: 60 s.
    pub send_window: Duration,
    /// The window of [`PRESENCES_PER_WINDOW`](crate::protocol::PRESENCES_PER_WINDOW). Discord's:
    /// 20 s.
    pub presence_window: Duration,
    /// The window in which all members of a guild may be requested once. Discord's: 30 s.
    pub members_window: Duration,
    /// The window in which each rate limit key may identify once. Discord's: 5 s.
    pub identify_window: Duration,
    /// The window of [`Config::rest_rate_limit`](crate::Config::rest_rate_limit). Discord's: 1 s.
    pub rest_window: Duration,
    /// Added to each window of the gateway that Discord measures, because the network delays some
    /// messages more than others. Ours: 100 ms.
    pub guard: Duration,
    /// Margin after the announced reset of the daily IDENTIFY total, for clock drift. It matters
    /// because Discord resets the bot's token after one IDENTIFY too many. Ours: 30 s.
    pub reset_guard: Duration,
    /// How long a permit to identify is valid if it was granted by a
    /// [`FileLimit`](crate::limit::FileLimit) or another limiter that several processes share.
    /// Ours: 2 s.
    pub permit_validity: Duration,
    /// The time after which the daily total of IDENTIFYs resets. Discord's: 24 h.
    pub identify_reset: Duration,
    /// Timeout for the arrival of the next guild, counted from READY or from the last guild that
    /// arrived. Ours: 15 s.
    pub guilds_timeout: Duration,
    /// How long handlers may take to finish their events when sessions are suspended or
    /// transferred. Ours: 5 s.
    pub handlers_timeout: Duration,
    /// How long the old and the new shards of a reshard run together. New shards that lag get up to
    /// the same time again. Ours: 10 s.
    pub reshard_overlap: Duration,
    /// How long a reshard may take before it is cancelled, in addition to the time that its shards
    /// need under the identify limit. Ours: 1 h.
    pub reshard_timeout: Duration,
    /// The longest expected delay between two sessions that receive the same event. Discord
    /// guarantees no order between connections. Ours: 1 s.
    pub session_skew: Duration,
    /// How long to wait for the session store to confirm that a session may be resumed. After that,
    /// it is resumed without an answer. Ours: 30 s.
    pub confirm_timeout: Duration,
    /// How long a process owns a part of the shards (`redis::Part`) after it last renewed its
    /// lease. It renews the lease ten times in this period, every second by default. All processes
    /// must use the same value. Ours: 10 s.
    pub lease_ttl: Duration,
    /// How often the session store is written. Ours: 5 s.
    pub store_interval: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        let seconds = Duration::from_secs;
        Self {
            connect_timeout: seconds(20),
            hello_timeout: seconds(20),
            answer_timeout: seconds(60),
            close_timeout: seconds(2),
            invalid_session_min: seconds(1),
            invalid_session_max: seconds(5),
            invalid_session_cap: seconds(15 * 60),
            backoff_base: seconds(1),
            backoff_cap: seconds(60),
            backoff_cap_ready: seconds(5),
            stable_after: seconds(10),
            circuit_window: seconds(10 * 60),
            send_window: seconds(60),
            presence_window: seconds(20),
            members_window: seconds(30),
            identify_window: seconds(5),
            rest_window: seconds(1),
            guard: Duration::from_millis(100),
            reset_guard: seconds(30),
            permit_validity: seconds(2),
            identify_reset: seconds(24 * 60 * 60),
            guilds_timeout: seconds(15),
            handlers_timeout: seconds(5),
            reshard_overlap: seconds(10),
            reshard_timeout: seconds(60 * 60),
            session_skew: seconds(1),
            confirm_timeout: seconds(30),
            lease_ttl: seconds(10),
            store_interval: seconds(5),
        }
    }
}

impl Timing {
    /// Creates the default with every pause and window multiplied by `factor`, for a simulator
    /// whose time runs faster.
    ///
    /// The timeouts (`connect_timeout`, `hello_timeout`, `answer_timeout`, `close_timeout`,
    /// `guilds_timeout`, `handlers_timeout`, `reshard_timeout`), `guard`, `permit_validity`,
    /// `reshard_overlap`, `session_skew`, `confirm_timeout`, `lease_ttl` and `store_interval` keep
    /// their defaults. They compensate for a slow machine or network, and a faster clock does not
    /// change that.
    ///
    /// # Panics
    /// If `factor` is negative, not finite, or makes a duration overflow.
    pub fn scaled(factor: f64) -> Self {
        assert!(
            factor.is_finite() && factor >= 0.0,
            "the factor is {factor}, allowed: a finite number that is not negative"
        );
        let mut timing = Self::default();
        for (duration, scales) in timing.durations_mut() {
            if scales {
                *duration = duration.mul_f64(factor);
            }
        }
        timing
    }

    /// The longest of all durations.
    pub(crate) fn longest(&self) -> Duration {
        self.clone()
            .durations_mut()
            .into_iter()
            .map(|(duration, _)| *duration)
            .max()
            .unwrap_or_default()
    }

    /// Every duration, and whether a faster clock makes it shorter.
    fn durations_mut(&mut self) -> [(&mut Duration, bool); 29] {
        // No `..`, so that the compiler reports a new field that is missing here.
        let Self {
            connect_timeout,
            hello_timeout,
            answer_timeout,
            close_timeout,
            guard,
            permit_validity,
            guilds_timeout,
            handlers_timeout,
            reshard_overlap,
            reshard_timeout,
            session_skew,
            confirm_timeout,
            lease_ttl,
            store_interval,
            invalid_session_min,
            invalid_session_max,
            invalid_session_cap,
            backoff_base,
            backoff_cap,
            backoff_cap_ready,
            stable_after,
            circuit_window,
            send_window,
            presence_window,
            members_window,
            identify_window,
            rest_window,
            reset_guard,
            identify_reset,
        } = self;
        [
            (connect_timeout, false),
            (hello_timeout, false),
            (answer_timeout, false),
            (close_timeout, false),
            (guard, false),
            (permit_validity, false),
            (guilds_timeout, false),
            (handlers_timeout, false),
            (reshard_overlap, false),
            (reshard_timeout, false),
            (session_skew, false),
            (confirm_timeout, false),
            (lease_ttl, false),
            (store_interval, false),
            (invalid_session_min, true),
            (invalid_session_max, true),
            (invalid_session_cap, true),
            (backoff_base, true),
            (backoff_cap, true),
            (backoff_cap_ready, true),
            (stable_after, true),
            (circuit_window, true),
            (send_window, true),
            (presence_window, true),
            (members_window, true),
            (identify_window, true),
            (rest_window, true),
            (reset_guard, true),
            (identify_reset, true),
        ]
    }

    /// Whether a window is shorter than Discord's, so that a shard would exceed Discord's limits.
    pub fn breaks_discords_limits(&self) -> bool {
        let discord = Self::default();
        self.identify_window < discord.identify_window
            || self.send_window < discord.send_window
            || self.presence_window < discord.presence_window
            || self.members_window < discord.members_window
            || self.rest_window < discord.rest_window
            || self.identify_reset < discord.identify_reset
            || self.invalid_session_min < discord.invalid_session_min
    }
}

/// Converts a number of seconds from outside. A negative number or NaN becomes zero, and a number
/// that is too large becomes [`Duration::MAX`].
pub(crate) fn from_secs(seconds: f64) -> Duration {
    if seconds > 0.0 {
        Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX)
    } else {
        Duration::ZERO
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scaled_clock_keeps_its_time_outs() {
        let timing = Timing::scaled(0.01);
        assert_eq!(timing.identify_window, Duration::from_millis(50));
        assert_eq!(timing.hello_timeout, Timing::default().hello_timeout);
        assert!(timing.breaks_discords_limits());
        assert!(!Timing::default().breaks_discords_limits());
    }

    #[test]
    fn any_number_of_seconds_is_a_duration() {
        for (seconds, duration) in [
            (1.5, Duration::from_millis(1500)),
            (1e30, Duration::MAX),
            (f64::INFINITY, Duration::MAX),
            (-1.0, Duration::ZERO),
            (f64::NAN, Duration::ZERO),
        ] {
            assert_eq!(from_secs(seconds), duration, "{seconds}");
        }
    }
}
