//! What is sent to measure one thing.

use std::ops::Range;
use std::time::Duration;

use flotilla_profile::Signature;

use crate::random::Random;

/// How requests follow each other.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Offered {
    /// Each when the one before it has ended.
    Alone,
    /// As they come: Poisson arrivals, so many a second on average, whatever has ended.
    PerSecond(f64),
}

/// Requests of one length to send, and how.
#[derive(Debug, Clone, PartialEq)]
pub struct Point {
    /// Place of the cell in the grid, from 0, in the order of [`crate::Grid::cells`].
    pub cell: usize,
    /// Length of every request.
    pub signature: Signature,
    /// How they follow each other.
    pub offered: Offered,
    /// Requests to send.
    pub requests: usize,
    /// Those of them that count; the ones before fill the device, the ones after keep it full.
    pub(crate) measured: Range<usize>,
    /// Of the arrivals.
    pub(crate) seed: u64,
}

impl Point {
    /// When each request is sent, counted from the first; empty for requests alone.
    ///
    /// The gaps are exponential. Those between requests that count have exactly the mean that the rate asks for, so
    /// that a rate is offered and not only meant. All points of a cell have the same gaps but for their scale, so that
    /// they differ in the rate alone.
    #[must_use]
    pub fn arrivals(&self) -> Vec<Duration> {
        let Offered::PerSecond(rate) = self.offered else {
            return Vec::new();
        };
        let stream = u64::try_from(self.cell).unwrap_or(u64::MAX).wrapping_mul(2);
        // The arrivals that count must not depend on how many come before them.
        let mut counting = Random::new(self.seed, stream);
        let mut around = Random::new(self.seed, stream.wrapping_add(1));
        let mut gaps: Vec<f64> = (0..self.requests)
            .map(|index| match self.measured.contains(&index) {
                true => counting.gap(),
                false => around.gap(),
            })
            .collect();
        scale_to_mean_one(&mut gaps[self.measured.clone()]);
        let mut at = 0.0;
        let begin = |gap: f64| {
            let now = at;
            at += gap / rate;
            Duration::from_secs_f64(now)
        };
        gaps.into_iter().map(begin).collect()
    }
}

fn scale_to_mean_one(gaps: &mut [f64]) {
    let sum: f64 = gaps.iter().sum();
    #[expect(
        clippy::cast_precision_loss,
        reason = "a point has far less than 2^52 requests"
    )]
    let mean = sum / gaps.len() as f64;
    if mean > 0.0 {
        gaps.iter_mut().for_each(|gap| *gap /= mean);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn point(rate: f64, before: usize) -> Point {
        Point {
            cell: 3,
            signature: Signature {
                prompt_tokens: 1,
                output_tokens: 2,
            },
            offered: Offered::PerSecond(rate),
            requests: before + 50 + 7,
            measured: before..before + 50,
            seed: 1,
        }
    }

    #[test]
    fn requests_that_count_arrive_at_exactly_the_rate() {
        let arrivals = point(4.0, 9).arrivals();
        let span = arrivals[59] - arrivals[9];
        assert!((span.as_secs_f64() - 50.0 / 4.0).abs() < 1e-6, "{span:?}");
    }

    #[test]
    fn points_of_a_cell_differ_in_the_scale_of_their_gaps_alone() {
        let counting = |rate, before| {
            let arrivals = point(rate, before).arrivals();
            let gaps = arrivals
                .windows(2)
                .map(|pair| (pair[1] - pair[0]).as_secs_f64() * rate);
            gaps.skip(before).take(50).collect::<Vec<_>>()
        };
        for (one, other) in counting(2.0, 3).into_iter().zip(counting(7.0, 11)) {
            assert!((one - other).abs() < 1e-6, "{one} {other}");
        }
    }
}
