//! The id of a shard, which defines the guilds that it serves.

use std::fmt;
use std::num::NonZeroU32;

use serde::{Deserialize, Serialize};

/// The id of a shard: its number, and the total number of shards.
///
/// It is displayed as `3/16`. The number is always below the total, so a `ShardId` need not be
/// checked again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "(u32, u32)", into = "(u32, u32)")]
pub struct ShardId {
    number: u32,
    total: u32,
}

impl ShardId {
    /// The only shard of a bot that does not use sharding.
    pub const ONE: Self = Self {
        number: 0,
        total: 1,
    };

    /// Creates the id of shard `number` (counted from 0) of `total`.
    ///
    /// # Errors
    /// If `number` is not below `total`.
    pub fn new(number: u32, total: u32) -> Result<Self, InvalidShardId> {
        if number < total {
            Ok(Self { number, total })
        } else {
            Err(InvalidShardId { number, total })
        }
    }

    /// Returns the shard of `total` that receives the events of a guild; `None` if `total` is 0.
    ///
    /// Source: [Discord, Sharding](https://docs.discord.com/developers/events/gateway#sharding):
    /// `(guild_id >> 22) % num_shards`.
    pub fn for_guild(guild_id: u64, total: u32) -> Option<Self> {
        let number = u32::try_from((guild_id >> 22).checked_rem(u64::from(total))?).ok()?;
        Some(Self { number, total })
    }

    /// Splits the shard into `count` shards that together have the same guilds. Their total is
    /// `count` times as large. Returns `None` if `count` is below 2 or the new total exceeds `u32`.
    ///
    /// ```
    /// # use threadcord::ShardId;
    /// let shard = ShardId::new(1, 2)?;
    /// assert_eq!(shard.split(2).unwrap(), [ShardId::new(1, 4)?, ShardId::new(3, 4)?]);
    /// # Ok::<(), threadcord::error::InvalidShardId>(())
    /// ```
    pub fn split(self, count: u32) -> Option<Vec<Self>> {
        let total = self.total.checked_mul(count).filter(|_| count >= 2)?;
        Some(
            (0..count)
                .map(|n| Self {
                    number: self.number + n * self.total,
                    total,
                })
                .collect(),
        )
    }

    /// Whether a guild can belong to both shards. Two different shards with the same total never
    /// share a guild.
    pub fn overlaps(self, other: Self) -> bool {
        let (mut divisor, mut rest) = (self.total, other.total);
        while rest > 0 {
            (divisor, rest) = (rest, divisor % rest);
        }
        // By the Chinese remainder theorem, an integer has one remainder for one total and another
        // remainder for the other total if both remainders are congruent modulo the greatest common
        // divisor.
        self.number % divisor == other.number % divisor
    }

    /// The number of this shard, from 0.
    pub fn number(self) -> u32 {
        self.number
    }

    /// The total number of shards.
    pub fn total(self) -> u32 {
        self.total
    }

    /// The rate limit key: `number % max_concurrency`. Shards with the same key share an identify
    /// limit.
    ///
    /// Source: [Discord, Sharding for very large
    /// bots](https://docs.discord.com/developers/events/gateway#max-concurrency).
    pub fn rate_limit_key(self, max_concurrency: NonZeroU32) -> u32 {
        self.number % max_concurrency
    }
}

impl fmt::Display for ShardId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.number, self.total)
    }
}

impl TryFrom<(u32, u32)> for ShardId {
    type Error = InvalidShardId;

    fn try_from((number, total): (u32, u32)) -> Result<Self, InvalidShardId> {
        Self::new(number, total)
    }
}

impl From<ShardId> for (u32, u32) {
    fn from(id: ShardId) -> Self {
        (id.number, id.total)
    }
}

#[cfg(feature = "model")]
impl From<twilight_model::gateway::ShardId> for ShardId {
    fn from(id: twilight_model::gateway::ShardId) -> Self {
        // Twilight also checks that the number is below the total.
        Self {
            number: id.number(),
            total: id.total(),
        }
    }
}

#[cfg(feature = "model")]
impl From<ShardId> for twilight_model::gateway::ShardId {
    fn from(id: ShardId) -> Self {
        Self::new(id.number, id.total)
    }
}

/// A shard number that is not below its total.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "shard {number} of {total} does not exist: the number must be below the total, and the total at least 1"
)]
pub struct InvalidShardId {
    number: u32,
    total: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_stay_below_the_total() {
        assert!(ShardId::new(0, 0).is_err());
        assert!(ShardId::new(4, 4).is_err());
        assert_eq!(ShardId::new(3, 4).unwrap().to_string(), "3/4");
        assert_eq!(ShardId::new(70_000, 100_000).unwrap().number(), 70_000);
    }

    #[test]
    fn guilds_map_by_the_formula() {
        assert_eq!(ShardId::for_guild(197_038_439_483_310_086, 0), None);
        let shard = ShardId::for_guild(197_038_439_483_310_086, 16).unwrap();
        assert_eq!(
            u64::from(shard.number()),
            (197_038_439_483_310_086_u64 >> 22) % 16
        );
    }

    #[test]
    fn a_split_covers_the_same_guilds() {
        for (number, total, count) in [(0, 1, 2), (1, 2, 2), (2, 5, 3), (6, 7, 10)] {
            let shard = ShardId::new(number, total).unwrap();
            let into = shard.split(count).unwrap();
            assert_eq!(into.len(), count as usize);
            for guild in (0..500).map(|n| n << 22) {
                let covers =
                    |shard: &ShardId| ShardId::for_guild(guild, shard.total()) == Some(*shard);
                assert_eq!(
                    into.iter().filter(|shard| covers(shard)).count(),
                    usize::from(covers(&shard))
                );
            }
        }
        assert_eq!([0, 1].map(|count| ShardId::ONE.split(count)), [None, None]);
        assert_eq!(ShardId::new(0, u32::MAX).unwrap().split(2), None);
    }

    #[test]
    fn overlaps_are_those_of_guilds() {
        for (a, b) in (1..7).flat_map(|a| (1..7).map(move |b| (a, b))) {
            for (x, y) in (0..a).flat_map(|x| (0..b).map(move |y| (x, y))) {
                let (left, right) = (ShardId::new(x, a).unwrap(), ShardId::new(y, b).unwrap());
                let both = (0..a * b).any(|guild| guild % a == x && guild % b == y);
                assert_eq!(left.overlaps(right), both, "{left} {right}");
            }
        }
    }

    #[test]
    fn keys_repeat_after_max_concurrency() {
        let key = |n| {
            ShardId::new(n, 64)
                .unwrap()
                .rate_limit_key(NonZeroU32::new(16).unwrap())
        };
        assert_eq!((key(0), key(15), key(16), key(33)), (0, 15, 0, 1));
    }

    #[test]
    fn a_stored_id_is_checked() {
        assert_eq!(
            serde_json::from_str::<ShardId>("[1,2]").unwrap(),
            ShardId::new(1, 2).unwrap()
        );
        assert!(serde_json::from_str::<ShardId>("[2,2]").is_err());
    }
}
