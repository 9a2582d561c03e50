//! Counts requests by their outcome.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::histogram::Histogram;

/// Counts the requests of a [`Rest`](super::Rest) and its clones. No count ever decreases.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[non_exhaustive]
pub struct RestCounters {
    /// The number of answers by HTTP status. A request that is retried can have several. A 429
    /// means that it was rate limited.
    pub answers: BTreeMap<u16, u64>,
    /// The number of attempts without an answer: the connection failed, or the answer was late.
    pub failures: u64,
    /// The number of requests that were held back, because their turn would have come too late,
    /// because Discord had refused too many others, or because the manager was closed.
    pub held: u64,
    /// How long each attempt waited for its turn because of Discord's rate limits.
    pub wait: Histogram,
}
