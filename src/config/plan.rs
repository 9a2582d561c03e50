//! Which shards a process runs.

use std::collections::HashSet;
use std::num::NonZeroU32;
use std::ops::Range;

use crate::error::Error;
use crate::protocol::Session;
use crate::shard_id::ShardId;

/// The maximum number of shards of a bot: several hundred times as many as the largest bot has.
const MAX_SHARDS: u32 = 1_000_000;

/// Which shards a process runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Plan {
    /// All shards, as many as `/gateway/bot` recommends.
    #[default]
    Recommended,
    /// All shards, this many.
    Total(u32),
    /// Some of the shards, by number. Other processes run the others.
    Ids {
        /// Their numbers, in the order in which they start.
        ids: Vec<u32>,
        /// How many shards there are in total.
        total: u32,
    },
    /// The shards whose sessions are stored: the same shards as before, even after splits and
    /// reshards.
    ///
    /// This requires that the stored shards cover every guild exactly once. If they do not, but all
    /// have the same total, all shards of that total are run. Otherwise the number of shards is
    /// what Discord recommends.
    Stored,
    /// The shards of one process of several: those whose number modulo `of` is `index`.
    ///
    /// If `max_concurrency` is a multiple of `of`, no two processes share a rate limit key, so each
    /// process may have its own limiter. Each process then counts only its own IDENTIFYs against
    /// the daily total.
    Bucket {
        /// The index of this process, from 0.
        index: u32,
        /// The number of processes.
        of: u32,
        /// How many shards there are in total. `None`: as many as Discord recommends when the
        /// process starts. Processes that start at different times may get different numbers.
        total: Option<u32>,
    },
}

impl Plan {
    /// Creates a plan for the shards whose numbers are in a range, for one process of several.
    pub fn range(ids: Range<u32>, total: u32) -> Self {
        Self::Ids {
            ids: ids.collect(),
            total,
        }
    }

    /// Creates a [`Plan::Bucket`] for process `index` of `of`, with the total that Discord
    /// recommends.
    pub fn bucket(index: u32, of: u32) -> Self {
        Self::Bucket {
            index,
            of,
            total: None,
        }
    }

    /// Whether shards of other processes may identify with the same rate limit keys.
    pub(crate) fn shares_keys(&self, max_concurrency: NonZeroU32) -> bool {
        match self {
            Self::Bucket { of, .. } => *of > 1 && !max_concurrency.get().is_multiple_of(*of),
            Self::Ids { ids, total } => ids.len() < *total as usize,
            Self::Recommended | Self::Stored | Self::Total(_) => false,
        }
    }

    /// The total number of shards, if the plan sets it and does not list single shards.
    pub(crate) fn explicit_total(&self) -> Option<u32> {
        match self {
            Self::Total(total)
            | Self::Bucket {
                total: Some(total), ..
            } => Some(*total),
            Self::Recommended
            | Self::Stored
            | Self::Ids { .. }
            | Self::Bucket { total: None, .. } => None,
        }
    }

    /// The same plan with another total.
    pub(crate) fn with_total(&self, total: u32) -> Self {
        match *self {
            Self::Bucket { index, of, .. } => Self::Bucket {
                index,
                of,
                total: Some(total),
            },
            _ => Self::Total(total),
        }
    }

    /// The shards to run if Discord recommends `recommended` shards and these sessions are stored.
    pub(crate) fn shards_with(
        &self,
        recommended: u32,
        sessions: &[Session],
    ) -> Result<Vec<ShardId>, Error> {
        if *self == Self::Stored {
            let mut stored: Vec<ShardId> = sessions.iter().map(|session| session.shard).collect();
            stored.sort_unstable();
            stored.dedup();
            if is_whole(&stored) {
                return Ok(stored);
            }
            if let Some(total) = stored.first().map(|shard| shard.total())
                && stored.iter().all(|shard| shard.total() == total)
            {
                return Self::Total(total).shards(total);
            }
            log::info!(
                "the stored sessions do not cover all guilds, \
                 starting the number of shards that Discord recommends"
            );
        }
        self.shards(recommended)
    }

    /// Whether the shards depend on what Discord recommends.
    pub(crate) fn asks_discord(&self) -> bool {
        matches!(
            self,
            Self::Recommended | Self::Stored | Self::Bucket { total: None, .. }
        )
    }

    /// Returns the shards to run if Discord recommends `recommended` shards.
    ///
    /// # Errors
    /// [`Error::Setting`] or [`Error::ShardId`] if the plan is invalid, or if there is no shard for
    /// its bucket.
    pub fn shards(&self, recommended: u32) -> Result<Vec<ShardId>, Error> {
        self.validate()?;
        let takes_recommended = matches!(self, Self::Recommended | Self::Stored)
            || matches!(self, Self::Bucket { total: None, .. });
        if takes_recommended && recommended > MAX_SHARDS {
            let given = format!("the {recommended} shards that the gateway recommends");
            return Err(Error::setting("plan", given, at_most()));
        }

        let (ids, total) = match self {
            Self::Recommended | Self::Stored => ((0..recommended).collect(), recommended),
            Self::Total(total) => ((0..*total).collect(), *total),
            Self::Ids { ids, total } => (ids.clone(), *total),
            Self::Bucket { index, of, total } => {
                let total = total.unwrap_or(recommended);
                let ids: Vec<u32> = (*index..total).step_by(*of as usize).collect();
                if ids.is_empty() {
                    let given = format!("bucket {index} of {of}, with {total} shards in total");
                    return Err(Error::setting("plan", given, "no more buckets than shards"));
                }
                (ids, total)
            }
        };

        ids.into_iter()
            .map(|number| Ok(ShardId::new(number, total)?))
            .collect()
    }

    pub(crate) fn validate(&self) -> Result<(), Error> {
        match self {
            Self::Total(0) | Self::Bucket { total: Some(0), .. } => {
                Err(Error::setting("plan", "a total of 0 shards", "at least 1"))
            }
            Self::Total(total)
            | Self::Ids { total, .. }
            | Self::Bucket {
                total: Some(total), ..
            } if *total > MAX_SHARDS => {
                let given = format!("a total of {total} shards");
                Err(Error::setting("plan", given, at_most()))
            }
            Self::Bucket { index, of, .. } if index >= of => Err(Error::setting(
                "plan",
                format!("bucket {index} of {of}"),
                "an index below the number of buckets",
            )),
            Self::Ids { ids, .. } if ids.is_empty() => Err(Error::setting(
                "plan",
                "an empty list of shards",
                "at least one shard",
            )),
            Self::Recommended | Self::Stored | Self::Total(_) | Self::Bucket { .. } => Ok(()),
            Self::Ids { ids, total } => {
                let mut seen = HashSet::new();
                for number in ids {
                    ShardId::new(*number, *total)?;
                    if !seen.insert(number) {
                        return Err(Error::setting(
                            "plan",
                            format!("shard {number} twice"),
                            "each shard once",
                        ));
                    }
                }
                Ok(())
            }
        }
    }
}

fn at_most() -> String {
    format!("up to {MAX_SHARDS} shards")
}

/// Whether the shards cover every guild exactly once.
fn is_whole(shards: &[ShardId]) -> bool {
    let apart = |(at, shard): (usize, &ShardId)| {
        shards[at + 1..].iter().all(|other| !shard.overlaps(*other))
    };
    // Each shard has 1/total of all guilds. Shards that share no guild cover all guilds if these
    // parts add up to 1.
    let parts: f64 = shards
        .iter()
        .map(|shard| 1.0 / f64::from(shard.total()))
        .sum();
    shards.iter().enumerate().all(apart) && (parts - 1.0).abs() < 0.5 / f64::from(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plans_name_shards_that_exist_once() {
        let shards = |plan: Plan| {
            plan.shards(3)
                .map(|shards| shards.iter().map(ToString::to_string).collect::<Vec<_>>())
        };

        assert_eq!(shards(Plan::Recommended).unwrap(), ["0/3", "1/3", "2/3"]);
        assert_eq!(shards(Plan::Total(2)).unwrap(), ["0/2", "1/2"]);
        assert_eq!(shards(Plan::range(4..6, 8)).unwrap(), ["4/8", "5/8"]);
        assert_eq!(shards(Plan::bucket(1, 2)).unwrap(), ["1/3"]);
        assert_eq!(
            shards(Plan::Bucket {
                index: 1,
                of: 2,
                total: Some(5)
            })
            .unwrap(),
            ["1/5", "3/5"]
        );
        assert!(
            shards(Plan::bucket(2, 2))
                .unwrap_err()
                .to_string()
                .contains("bucket 2 of 2")
        );
        assert!(shards(Plan::bucket(0, 0)).is_err());
        assert!(
            shards(Plan::bucket(5, 6))
                .unwrap_err()
                .to_string()
                .contains("no more buckets than shards")
        );

        for endless in [
            Plan::Total(u32::MAX),
            Plan::range(0..1, u32::MAX),
            Plan::Bucket {
                index: 0,
                of: 1,
                total: Some(u32::MAX),
            },
        ] {
            let refused = shards(endless).unwrap_err().to_string();
            assert!(refused.contains("up to 1000000"), "{refused}");
        }

        for taken in [Plan::Recommended, Plan::Stored, Plan::bucket(0, 2)] {
            let refused = taken.shards(u32::MAX).unwrap_err().to_string();
            assert!(refused.contains("recommends"), "{refused}");
        }

        assert!(shards(Plan::Total(0)).is_err());
        assert!(shards(Plan::range(0..0, 8)).is_err());
        assert!(
            shards(Plan::range(7..9, 8))
                .unwrap_err()
                .to_string()
                .contains("shard 8 of 8")
        );
        assert!(
            shards(Plan::Ids {
                ids: vec![1, 1],
                total: 2
            })
            .unwrap_err()
            .to_string()
            .contains("twice")
        );
    }

    #[test]
    fn a_stored_plan_is_what_the_sessions_make_up() {
        let plan = |ids: &[(u32, u32)]| {
            let session = |id: &(u32, u32)| {
                let shard = ShardId::new(id.0, id.1).unwrap();
                Session::new("a".into(), 1, String::new(), shard, 1)
            };
            let sessions: Vec<Session> = ids.iter().map(session).collect();
            let shards = Plan::Stored.shards_with(2, &sessions).unwrap();
            shards
                .into_iter()
                .map(<(u32, u32)>::from)
                .collect::<Vec<_>>()
        };

        let recommended = [(0, 2), (1, 2)];
        assert_eq!(
            plan(&[(0, 4), (1, 2), (2, 4)]),
            [(0, 4), (1, 2), (2, 4)],
            "after a split"
        );
        assert_eq!(plan(&[(0, 1)]), [(0, 1)]);
        assert_eq!(plan(&[]), recommended);
        assert_eq!(
            plan(&[(0, 3), (2, 3)]),
            [(0, 3), (1, 3), (2, 3)],
            "one had no session"
        );
        assert_eq!(plan(&[(0, 4), (1, 8)]), recommended, "some of the guilds");
        assert_eq!(
            plan(&[(0, 2), (2, 4), (1, 4)]),
            recommended,
            "two of them have the same guilds"
        );
        let many: Vec<_> = (0..3000).map(|number| (number, 3000)).collect();
        assert_eq!(plan(&many).len(), 3000);
        assert_eq!(plan(&many[1..]).len(), 3000);
    }
}
