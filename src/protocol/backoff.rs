//! How long to wait before the next attempt.

use std::time::Duration;

/// The pause for a number of failures: none for 0, `base` for 1, then doubling up to `cap`.
///
/// `jitter`, from 0 to 1, shortens the pause by up to half, so that shards that lost their
/// connections at the same time do not all reconnect at the same time.
pub(crate) fn delay(base: Duration, cap: Duration, failures: u32, jitter: f64) -> Duration {
    let Some(doublings) = failures.checked_sub(1) else {
        return Duration::ZERO;
    };
    let factor = 1_u32.checked_shl(doublings).unwrap_or(u32::MAX);
    base.saturating_mul(factor)
        .min(cap)
        .mul_f64(1.0 - jitter.clamp(0.0, 1.0) / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_doubles_up_to_the_cap() {
        let seconds = |failures, jitter| {
            delay(
                Duration::from_secs(1),
                Duration::from_secs(60),
                failures,
                jitter,
            )
            .as_secs()
        };
        assert_eq!(
            [0, 1, 2, 3, 7, 500].map(|n| seconds(n, 0.0)),
            [0, 1, 2, 4, 60, 60]
        );
        assert_eq!(seconds(3, 1.0), 2);
    }
}
