//! What requests took, and what that says of the device.

use std::time::Duration;

use flotilla_profile::Signature;

use crate::fault::PointFault;
use crate::point::{Offered, Point};
use crate::steps::Decoding;

/// When things happened to a request, all counted from the same moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RequestTimes {
    /// It was sent.
    pub sent: Duration,
    /// The device took it; the same as `sent` where nothing lies between.
    pub started: Duration,
    /// Its first token came.
    pub first_token: Duration,
    /// Its answer was complete.
    pub end: Duration,
    /// Tokens of its answer.
    pub output_tokens: u32,
}

/// What became of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It was answered.
    Answered(RequestTimes),
    /// It was refused, or ended without an answer.
    Failed,
}

/// What became of the requests of a point.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Measurement {
    /// One for each request, in the order in which they were sent.
    pub outcomes: Vec<Outcome>,
    /// How long the point took, all in all.
    pub took: Duration,
}

/// The times that a client sees, of the requests that count.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Latencies {
    pub(crate) e2e: Distribution,
    pub(crate) ttft: Distribution,
    pub(crate) tpot: Distribution,
}

/// Times in seconds, ascending; what failed took longer than any.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Distribution {
    ascending: Vec<f64>,
    failed: usize,
}

/// Times on the device, in seconds: the means, or of requests alone the medians, since these are few.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Means {
    pub(crate) e2e_s: f64,
    pub(crate) ttft_s: f64,
    pub(crate) tpot_s: f64,
}

/// What a point says of the device.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Summary {
    pub(crate) latencies: Latencies,
    /// Of the requests that count; `None` when none of them was answered.
    pub(crate) means: Option<Means>,
    /// Of the requests that count.
    pub(crate) answered: usize,
    /// Requests a second that were offered, by the times when they were sent.
    pub(crate) offered_per_s: f64,
    /// Rate of ends over rate of arrivals, at most 1.
    pub(crate) followed: f64,
    /// How those that count made their tokens.
    pub(crate) decoding: Vec<Decoding>,
}

impl Summary {
    /// Looks at the outcomes of a point.
    pub(crate) fn of(point: &Point, outcomes: &[Outcome]) -> Result<Self, PointFault> {
        let (cell, expected) = (point.signature, point.requests);
        if outcomes.len() != expected {
            let found = outcomes.len();
            return Err(PointFault::Count {
                cell,
                found,
                expected,
            });
        }
        let all: Vec<RequestTimes> = answered(outcomes).collect();
        all.iter().try_for_each(|times| check(cell, times))?;
        let counting = &outcomes[point.measured.clone()];
        let times: Vec<RequestTimes> = answered(counting).collect();
        let failed = counting.len() - times.len();
        let spread = |span: fn(&RequestTimes) -> f64| Distribution::new(times.iter().map(span), failed);
        let part = count(times.len()) / count(counting.len());
        Ok(Self {
            latencies: Latencies {
                e2e: spread(|it| seconds(it.sent, it.end)),
                ttft: spread(|it| seconds(it.sent, it.first_token)),
                tpot: spread(tpot),
            },
            means: Means::of(&times, point.offered),
            answered: times.len(),
            offered_per_s: offered(point, outcomes),
            followed: part / (1.0 + growth(&times)),
            decoding: times.iter().map(|it| Decoding::of(it, &all)).collect(),
        })
    }

    /// Requests a second that end.
    pub(crate) fn ends_per_s(&self) -> f64 {
        self.offered_per_s * self.followed
    }
}

impl Distribution {
    fn new(times: impl Iterator<Item = f64>, failed: usize) -> Self {
        let mut ascending: Vec<f64> = times.collect();
        ascending.sort_by(f64::total_cmp);
        Self { ascending, failed }
    }

    /// The time that so many percent do not exceed, by nearest rank, in seconds; 0 is the mean. Infinite where that
    /// is one that failed, or when there is none.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a rank lies between 0 and the number of times"
    )]
    pub(crate) fn at(&self, percentile: f64) -> f64 {
        let all = self.ascending.len() + self.failed;
        if percentile == MEAN {
            let mean = self.ascending.iter().sum::<f64>() / count(self.ascending.len());
            return if self.failed == 0 && all > 0 {
                mean
            } else {
                f64::INFINITY
            };
        }
        let rank = (percentile / 100.0 * count(all)).ceil() as usize;
        let found = self.ascending.get(rank.max(1) - 1);
        found.copied().unwrap_or(f64::INFINITY)
    }
}

impl Means {
    fn of(times: &[RequestTimes], offered: Offered) -> Option<Self> {
        let percentile = match offered {
            Offered::Alone => MEDIAN,
            Offered::PerSecond(_) => MEAN,
        };
        let mean =
            |span: fn(&RequestTimes) -> f64| Distribution::new(times.iter().map(span), 0).at(percentile);
        (!times.is_empty()).then(|| Self {
            e2e_s: mean(|it| seconds(it.started, it.end)),
            ttft_s: mean(|it| seconds(it.started, it.first_token)),
            tpot_s: mean(tpot),
        })
    }
}

fn answered(outcomes: &[Outcome]) -> impl Iterator<Item = RequestTimes> {
    outcomes.iter().filter_map(|outcome| match outcome {
        Outcome::Answered(times) => Some(*times),
        Outcome::Failed => None,
    })
}

fn check(cell: Signature, times: &RequestTimes) -> Result<(), PointFault> {
    if times.output_tokens != cell.output_tokens {
        let found = times.output_tokens;
        return Err(PointFault::WrongLength { cell, found });
    }
    let in_order = [times.sent, times.started, times.first_token, times.end].is_sorted();
    match in_order && times.sent < times.end {
        true => Ok(()),
        false => Err(PointFault::OutOfOrder { cell }),
    }
}

/// Requests a second from the first that counts to the first that does not any more; as they were meant where one
/// of these failed and nobody knows when it was sent.
fn offered(point: &Point, outcomes: &[Outcome]) -> f64 {
    let meant = match point.offered {
        Offered::PerSecond(rate) => rate,
        Offered::Alone => return 0.0,
    };
    let sent = |index: usize| match outcomes.get(index) {
        Some(Outcome::Answered(times)) => Some(times.sent),
        Some(Outcome::Failed) | None => None,
    };
    let span = sent(point.measured.start)
        .zip(sent(point.measured.end))
        .map(|(from, to)| seconds(from, to));
    match span.filter(|span| *span > 0.0) {
        Some(span) => count(point.measured.len()) / span,
        None => meant,
    }
}

/// How much longer a request takes for each second that it is sent later, at least 0: the slope of the line with the
/// least squares.
fn growth(times: &[RequestTimes]) -> f64 {
    let points = || {
        let of = |it: &RequestTimes| (it.sent.as_secs_f64(), seconds(it.sent, it.end));
        times.iter().map(of)
    };
    let mean = |sum: f64| sum / count(times.len());
    let at = mean(points().map(|(at, _)| at).sum());
    let took = mean(points().map(|(_, took)| took).sum());
    let together: f64 = points().map(|(x, y)| (x - at) * (y - took)).sum();
    let spread: f64 = points().map(|(x, _)| (x - at).powi(2)).sum();
    match spread > 0.0 {
        true => (together / spread).max(0.0),
        false => 0.0,
    }
}

/// Seconds from one moment to a later one.
pub(crate) fn seconds(from: Duration, to: Duration) -> f64 {
    to.saturating_sub(from).as_secs_f64()
}

/// Seconds of each token after the first.
fn tpot(times: &RequestTimes) -> f64 {
    seconds(times.first_token, times.end) / f64::from(times.output_tokens - 1)
}

/// A count as a figure.
#[expect(
    clippy::cast_precision_loss,
    reason = "a point has far less than 2^52 requests"
)]
pub(crate) fn count(number: usize) -> f64 {
    number as f64
}

/// The percentile that is the mean, as AIBrix writes it.
const MEAN: f64 = 0.0;
/// The percentile that half of all times do not exceed.
pub(crate) const MEDIAN: f64 = 50.0;

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(number: u64) -> Duration {
        Duration::from_millis(number)
    }

    /// Each request is sent 100 ms after the one before and takes `each` longer.
    fn queueing(requests: u64, each_ms: u64) -> Vec<RequestTimes> {
        let times = (0..requests).map(|index| RequestTimes {
            sent: ms(index * 100),
            started: ms(index * 100),
            first_token: ms(index * 100 + 50),
            end: ms(index * (100 + each_ms) + 1000),
            output_tokens: 3,
        });
        times.collect()
    }

    #[test]
    fn a_device_that_ends_half_of_what_comes_lets_every_request_wait_a_gap_longer() {
        let followed = |each_ms| 1.0 / (1.0 + growth(&queueing(50, each_ms)));
        assert!((followed(0) - 1.0).abs() < 1e-9);
        assert!((followed(100) - 0.5).abs() < 1e-9);
        assert!((followed(300) - 0.25).abs() < 1e-9);
    }

    #[test]
    fn the_last_answers_do_not_count_as_a_lack_of_speed() {
        let times = queueing(10, 0);
        let wall_s = times.last().unwrap().end.as_secs_f64();
        assert!(
            10.0 / wall_s < 0.9 * 10.0,
            "what requests over wall time would say"
        );
        assert!(growth(&times).abs() < 1e-9);
    }

    #[test]
    fn a_percentile_is_a_rank_and_what_failed_ranks_last() {
        let whole = Distribution::new([3.0, 1.0, 2.0, 4.0].into_iter(), 0);
        assert_eq!(
            [50.0, 75.0, 76.0, 100.0].map(|it| whole.at(it)),
            [2.0, 3.0, 4.0, 4.0]
        );
        assert_eq!(whole.at(0.0), 2.5);
        let broken = Distribution::new([3.0, 1.0].into_iter(), 2);
        assert_eq!(broken.at(50.0), 3.0);
        assert_eq!(broken.at(51.0), f64::INFINITY);
        assert_eq!(broken.at(0.0), f64::INFINITY);
        let nothing = Distribution::new(std::iter::empty(), 0);
        assert_eq!([0.0, 50.0].map(|it| nothing.at(it)), [f64::INFINITY; 2]);
    }
}
