//! Arithmetic with instants that cannot overflow.

use std::time::{Duration, Instant};

/// The longest delay: a year.
pub(super) const LONGEST: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// The instant after a delay. The delay is limited to [`LONGEST`], because adding to an `Instant`
/// can overflow.
pub(super) fn after(now: Instant, delay: Duration) -> Instant {
    now + delay.min(LONGEST)
}
