//! What became of requests.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::histogram::Histogram;

/// The requests of a [`Rest`](super::Rest) and its clones. No count ever goes back.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[non_exhaustive]
pub struct RestCounters {
    /// Answers by HTTP status. One request can have several: those with 429 were rate limited.
    pub answers: BTreeMap<u16, u64>,
    /// Attempts without an answer: no connection, or none in time.
    pub failures: u64,
    /// Requests that were not sent: their turn would have come too late, Discord had refused too many
    /// others, or the manager was closed.
    pub held: u64,
    /// How long each attempt waited for its turn, by Discord's rate limits.
    pub wait: Histogram,
}
