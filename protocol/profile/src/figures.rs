//! The ranges of figures, and how one becomes a span of time.

use std::time::Duration;

/// Shortest time and smallest rate that are believed, in seconds and requests a second: what is smaller can
/// only be a slip, and would be lost where spans count whole nanoseconds.
pub(crate) const FIGURE_MIN: f64 = 1e-9;
/// Longest time and largest rate that are believed: thirty years, and a thousand times what any device does.
pub(crate) const FIGURE_MAX: f64 = 1e9;
/// Longest span that a lookup answers, in seconds, however far it extrapolates.
const SECONDS_MAX: f64 = 1e12;

/// A span of so many seconds; negative ones are none.
pub(crate) fn span(seconds: f64) -> Duration {
    Duration::from_secs_f64(seconds.clamp(0.0, SECONDS_MAX))
}
