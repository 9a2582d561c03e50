//! A limit on the IDENTIFYs that a shard may spend on lost sessions.

use std::time::{Duration, Instant};

use crate::shard_id::ShardId;

/// The number of sessions that a bot may start in a day, unless Discord reports another number.
///
/// Source: [Discord, Session Start
/// Limit](https://docs.discord.com/developers/events/gateway#session-start-limit-object).
pub(crate) const DEFAULT_SESSION_STARTS: u32 = 1000;

/// A shard may always spend one an hour, however many shards share the bot's daily total.
const MIN_A_DAY: u32 = 24;

/// A shard's share of the bot's daily IDENTIFYs, for the IDENTIFYs that lost sessions cost.
///
/// Half of the share may be spent at once. The other half becomes available evenly over the day, so
/// that no more than the share is spent in any 24 hours.
#[derive(Debug)]
pub(crate) struct IdentifyAllowance {
    /// Half of the share.
    half: u32,
    left: f64,
    counted_at: Instant,
}

impl IdentifyAllowance {
    /// Creates the share of `shard` in `total` session starts a day.
    pub(crate) fn new(now: Instant, shard: ShardId, total: u32) -> Self {
        let half = (total / shard.total()).max(2 * MIN_A_DAY) / 2;
        Self {
            half,
            left: f64::from(half),
            counted_at: now,
        }
    }

    /// Spends one IDENTIFY. Returns how long to wait until it is available.
    pub(crate) fn spend(&mut self, now: Instant, day: Duration) -> Duration {
        let each = day / self.half;
        let since = now.saturating_duration_since(self.counted_at);
        self.counted_at = now;
        let earned = since.as_secs_f64() / each.as_secs_f64().max(f64::MIN_POSITIVE);
        self.left = (self.left + earned).min(f64::from(self.half)) - 1.0;
        each.mul_f64((-self.left).max(0.0))
    }
}

#[cfg(test)]
mod tests {
    #![allow(
        clippy::disallowed_methods,
        reason = "made-up instants count from some real one"
    )]

    use super::*;

    const DAY: Duration = Duration::from_secs(24 * 60 * 60);

    /// The number of IDENTIFYs that a shard spends in a day if each session lasts for `lasts`.
    fn spent_in_a_day(total: u32, shards: u32, lasts: Duration) -> u32 {
        let start = Instant::now();
        let shard = ShardId::new(0, shards).unwrap();
        let mut allowance = IdentifyAllowance::new(start, shard, total);
        let (mut now, mut spent) = (start, 0);
        while now < start + DAY {
            now += lasts + allowance.spend(now, DAY);
            spent += 1;
        }
        spent
    }

    #[test]
    fn a_day_never_sees_more_than_the_share() {
        let short = Duration::from_secs(11);
        for (total, shards) in [(1000, 1), (1000, 10), (2000, 16)] {
            let spent = spent_in_a_day(total, shards, short);
            let share = total / shards;
            assert!(spent <= share + 1, "{spent} of {share}");
            assert!(
                spent >= share / 2,
                "{spent} of {share}: half of it may be spent"
            );
        }
        let spent = spent_in_a_day(1000, 1000, short);
        assert!((24..=49).contains(&spent), "{spent}: at least one an hour");
    }

    #[test]
    fn seldom_losses_never_wait() {
        let start = Instant::now();
        let mut allowance = IdentifyAllowance::new(start, ShardId::ONE, 1000);
        for hour in 0..1000 {
            let now = start + Duration::from_secs(60 * 60) * hour;
            assert_eq!(allowance.spend(now, DAY), Duration::ZERO);
        }
    }
}
