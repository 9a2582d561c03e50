//! Instants that are far away.

use std::time::{Duration, Instant};

/// A year: what lies further off does not happen.
pub(super) const LONGEST: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// The instant after a delay. Delays that nobody lives to see are cut down, for instants end
/// somewhere.
pub(super) fn after(now: Instant, delay: Duration) -> Instant {
    now + delay.min(LONGEST)
}
