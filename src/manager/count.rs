//! Checks of the number of shards, for which Discord is queried.

use std::num::NonZeroU32;

use crate::config::Plan;
use crate::rest::{GatewayBot, Rest};
use crate::shard_id::ShardId;

/// A bot with more guilds than this is large: its shard count must be a multiple of the number in
/// `/gateway/bot`.
///
/// Source: [Discord, Sharding for very large
/// bots](https://docs.discord.com/developers/events/gateway#sharding-for-very-large-bots).
const LARGE_BOT: u64 = 150_000;

/// The maximum number of guilds of a shard.
///
/// Source: [Discord, Sharding](https://docs.discord.com/developers/events/gateway#sharding).
const GUILDS_PER_SHARD: f64 = 2500.0;

/// The number of guilds per shard that Discord's recommendation assumes.
const GUILDS_PER_RECOMMENDED_SHARD: f64 = 1000.0;

/// The plan, with its explicit total rounded up if the bot is large.
pub(super) fn rounded(
    plan: &Plan,
    gateway: Option<&GatewayBot>,
    is_large: impl FnOnce() -> bool,
) -> Plan {
    let (Some(total), Some(gateway)) = (plan.explicit_total(), gateway) else {
        return plan.clone();
    };
    match total.checked_next_multiple_of(gateway.shards.get()) {
        Some(multiple) if multiple != total && is_large() => {
            log::warn!(
                "a large bot needs a multiple of {} shards: using {multiple} instead of {total}",
                gateway.shards
            );
            plan.with_total(multiple)
        }
        _ => plan.clone(),
    }
}

/// Whether the bot is large, see [`LARGE_BOT`]. `false` if Discord does not report the number of
/// guilds; a wrong total then leads to close code 4010.
pub(super) fn is_large(rest: &Rest) -> bool {
    match rest.current_application() {
        Ok(application) => application["approximate_guild_count"]
            .as_u64()
            .is_some_and(|guilds| guilds > LARGE_BOT),
        Err(error) => {
            log::warn!("failed to query the number of guilds: {}", error.report());
            false
        }
    }
}

/// A question to Discord about the number of shards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Question {
    /// Discord has refused this shard: which total does it accept?
    Total(ShardId),
    /// Are the shards too full?
    Fullness,
}

/// Discord's answer, together with what this process knows.
#[derive(Debug)]
pub(super) struct Answer {
    /// The shards to run instead; the settings of each are valid.
    pub(super) shards: Vec<ShardId>,
    /// How many shards Discord recommends.
    pub(super) recommended: u32,
    /// How many IDENTIFYs are left today.
    pub(super) remaining: u32,
    /// How many IDENTIFYs there are in a day.
    pub(super) total: u32,
    pub(super) max_concurrency: NonZeroU32,
    /// How many guilds the fullest shard has.
    pub(super) fullest: usize,
}

impl Answer {
    /// How full the fullest of `total` shards is: 0 is empty, 1 is full, and it may exceed 1.
    pub(super) fn fullness(&self, total: u32) -> f64 {
        let by_recommendation = f64::from(self.recommended) / f64::from(total)
            * (GUILDS_PER_RECOMMENDED_SHARD / GUILDS_PER_SHARD);
        let fullest = u32::try_from(self.fullest).unwrap_or(u32::MAX);
        by_recommendation.max(f64::from(fullest) / GUILDS_PER_SHARD)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fullness_is_that_of_the_fullest() {
        let percent = |recommended, total, fullest| {
            let answer = Answer {
                shards: Vec::new(),
                recommended,
                remaining: 1000,
                total: 1000,
                max_concurrency: NonZeroU32::MIN,
                fullest,
            };
            (answer.fullness(total) * 100.0).round().to_string()
        };
        assert_eq!(percent(4, 4, 0), "40");
        assert_eq!(percent(8, 4, 1000), "80");
        assert_eq!(percent(4, 4, 2500), "100");
    }
}
