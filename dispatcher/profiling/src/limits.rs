//! How much is measured.

use std::time::Duration;

use crate::fault::LimitsFault;

/// How much is measured of each cell, and how long all may take.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Limits {
    /// Requests of a point that count, at least. A percentile of 99 is that of one of a hundred.
    pub requests: u32,
    /// Requests alone that count. Their median is all that is asked of them.
    pub requests_alone: u32,
    /// Most points with a rate of one cell.
    pub points_max: u32,
    /// The highest rate that passes is known to this part of it: 0.1 is 10 %.
    pub tolerance: f64,
    /// Highest rate that is offered, in requests a second: what the sender can keep up with.
    pub rate_max_per_s: f64,
    /// Time for the whole grid; `None` takes what it needs. Each cell gets an equal part of what is left. Points
    /// that do not fit have fewer requests or are left out; requests alone are always measured.
    pub budget: Option<Duration>,
    /// Of the arrivals.
    pub seed: u64,
}

impl Default for Limits {
    /// 100 requests, 5 alone, 12 points, 10 %, 1000 requests a second, no budget, seed 0.
    fn default() -> Self {
        Self {
            requests: 100,
            requests_alone: 5,
            points_max: 12,
            tolerance: 0.1,
            rate_max_per_s: 1000.0,
            budget: None,
            seed: 0,
        }
    }
}

impl Limits {
    /// Checks every number.
    ///
    /// # Errors
    /// [`LimitsFault`], the first one.
    pub(crate) fn check(&self) -> Result<(), LimitsFault> {
        let ranges = [
            ("requests", f64::from(self.requests), 4.0, 100_000.0),
            ("requests_alone", f64::from(self.requests_alone), 1.0, 1000.0),
            ("points_max", f64::from(self.points_max), 1.0, 100.0),
            ("tolerance", self.tolerance, 0.01, 1.0),
            ("rate_max_per_s", self.rate_max_per_s, 1e-3, 1e6),
        ];
        let wrong = ranges
            .into_iter()
            .find(|(_, found, min, max)| !(*min..=*max).contains(found));
        match wrong {
            Some((name, found, min, max)) => Err(LimitsFault::Range {
                name,
                found,
                min,
                max,
            }),
            None => Ok(()),
        }
    }
}
