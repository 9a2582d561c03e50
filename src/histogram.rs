//! Histograms of durations.
#![deny(clippy::disallowed_methods)]

use std::iter;
use std::time::Duration;

use serde::ser::SerializeStruct;
use serde::{Serialize, Serializer};

/// Counts durations in buckets with fixed bounds, since its creation.
///
/// It serialises as its count, its sum in seconds, and its buckets that are not empty. Each bucket
/// is an upper bound in seconds (`null` for the last), and the number of durations between the
/// previous bound and this one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Histogram {
    counts: [u64; Self::BOUNDS.len() + 1],
    sum: Duration,
}

impl Histogram {
    /// The upper bounds of the buckets, from 10 µs to 1 minute. The last bucket, for longer
    /// durations, has no bound.
    pub const BOUNDS: [Duration; 14] = [
        Duration::from_micros(10),
        Duration::from_micros(50),
        Duration::from_micros(100),
        Duration::from_micros(500),
        Duration::from_millis(1),
        Duration::from_millis(5),
        Duration::from_millis(10),
        Duration::from_millis(50),
        Duration::from_millis(100),
        Duration::from_millis(500),
        Duration::from_secs(1),
        Duration::from_secs(5),
        Duration::from_secs(10),
        Duration::from_secs(60),
    ];

    /// The number of durations.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// The sum of the durations.
    pub fn sum(&self) -> Duration {
        self.sum
    }

    /// The mean of the durations; `None` if there are none.
    pub fn mean(&self) -> Option<Duration> {
        let nanos = self.sum.as_nanos().checked_div(self.count().into())?;
        u64::try_from(nanos).ok().map(Duration::from_nanos)
    }

    /// Returns the buckets: the upper bound of each (`None` for the last), and the number of
    /// durations between the previous bound and this one.
    pub fn buckets(&self) -> impl Iterator<Item = (Option<Duration>, u64)> + '_ {
        let bounds = Self::BOUNDS.into_iter().map(Some).chain(iter::once(None));
        bounds.zip(self.counts)
    }

    /// Adds a duration `weight` times.
    pub(crate) fn record(&mut self, duration: Duration, weight: u64) {
        let bucket = Self::BOUNDS.partition_point(|bound| *bound < duration);
        self.counts[bucket] += weight;
        let nanos = duration.as_nanos().saturating_mul(weight.into());
        let sum = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        self.sum = self.sum.saturating_add(sum);
    }

    /// Adds the durations of another histogram.
    pub(crate) fn add(&mut self, other: &Self) {
        for (count, others) in self.counts.iter_mut().zip(other.counts) {
            *count += others;
        }
        self.sum = self.sum.saturating_add(other.sum);
    }
}

impl Serialize for Histogram {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let seconds = |bound: Option<Duration>| bound.map(|bound| bound.as_secs_f64());
        let filled = self.buckets().filter(|(_, count)| *count > 0);
        let buckets = filled.map(|(bound, count)| (seconds(bound), count));
        let mut fields = serializer.serialize_struct("Histogram", 3)?;
        fields.serialize_field("count", &self.count())?;
        fields.serialize_field("sum", &self.sum.as_secs_f64())?;
        fields.serialize_field("buckets", &buckets.collect::<Vec<_>>())?;
        fields.end()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn it_counts_by_size() {
        let mut histogram = Histogram::default();
        assert_eq!((histogram.count(), histogram.mean()), (0, None));

        histogram.record(Duration::from_micros(10), 3);
        histogram.record(Duration::from_micros(11), 1);
        histogram.record(Duration::from_secs(61), 2);
        let filled: Vec<_> = histogram
            .buckets()
            .filter(|(_, count)| *count > 0)
            .collect();
        let micros = |micros| Some(Duration::from_micros(micros));
        assert_eq!(filled, [(micros(10), 3), (micros(50), 1), (None, 2)]);
        assert_eq!(histogram.sum(), Duration::from_micros(41 + 122_000_000));

        let json = serde_json::to_value(&histogram).unwrap();
        assert_eq!(json["buckets"], json!([[1e-5, 3], [5e-5, 1], [null, 2]]));

        histogram.add(&histogram.clone());
        assert_eq!(histogram.count(), 12);
        assert_eq!(histogram.mean(), Some(histogram.sum() / 12));

        histogram.record(Duration::MAX, u64::MAX - 12);
        assert!(
            histogram.sum() > Duration::from_secs(1 << 30),
            "no overflow"
        );
    }
}
