//! Moments that may lie before the origin of time, such as when a request should have started at the latest.

use std::ops::{Add, Sub};
use std::time::Duration;

use flotilla_protocol::Moment;

/// Microseconds from the origin of time; negative before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Micros(pub(crate) i64);

impl Micros {
    /// Later than every moment.
    pub(crate) const NEVER: Self = Self(i64::MAX);

    /// Microseconds from `earlier` to this; negative when `earlier` is later.
    pub(crate) fn since(self, earlier: Self) -> i64 {
        self.0.saturating_sub(earlier.0)
    }
}

impl From<Moment> for Micros {
    fn from(moment: Moment) -> Self {
        Self(micros(moment.since(Moment::default())))
    }
}

impl Add<Duration> for Micros {
    type Output = Self;
    fn add(self, by: Duration) -> Self {
        Self(self.0.saturating_add(micros(by)))
    }
}

impl Sub<Duration> for Micros {
    type Output = Self;
    fn sub(self, by: Duration) -> Self {
        Self(self.0.saturating_sub(micros(by)))
    }
}

/// A span in microseconds; of more than 292,000 years as many as fit.
pub(crate) fn micros(span: Duration) -> i64 {
    i64::try_from(span.as_micros()).unwrap_or(i64::MAX)
}
