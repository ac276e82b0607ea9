//! One cell: from its first request alone to its answer.

use std::time::Duration;

use flotilla_profile::Signature;

use crate::limits::Limits;
use crate::measured::{Latencies, MEDIAN, Means, Summary, count};
use crate::objective::Objective;
use crate::point::{Offered, Point};
use crate::search::Search;

/// What is known of a cell.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CellAnswer {
    /// Length of its requests.
    pub signature: Signature,
    /// How its measurement ended.
    pub end: CellEnd,
    /// Requests a second that the device sustains; 0 when it cannot meet the targets.
    pub tput_per_s: f64,
    /// Mean seconds of a request on the device at that rate.
    pub e2e_s: f64,
    /// Mean seconds to its first token.
    pub ttft_s: f64,
    /// Mean seconds of each token after the first.
    pub tpot_s: f64,
    /// Points with a rate that were measured.
    pub points: u32,
}

/// How the measurement of a cell ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CellEnd {
    /// Its answer is known to the tolerance.
    Found,
    /// There was no more time, or no more points: the device may do better.
    CutShort,
    /// Not even requests alone meet the targets.
    Infeasible,
}

/// A cell whose requests alone are known.
#[derive(Debug)]
pub(crate) struct Cell {
    index: usize,
    signature: Signature,
    alone: Alone,
    search: Search,
    /// Points with a rate so far.
    points: Vec<Loaded>,
    /// Time of a request on the device at the load of the point before, or as a neighbour lets expect.
    e2e_s: f64,
    /// Time that it may take; `None` without a budget.
    left: Option<Duration>,
}

/// What requests alone took.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Alone {
    pub(crate) means: Means,
    /// Requests a second, one after the other.
    pub(crate) per_s: f64,
    pub(crate) holds: bool,
}

/// What a rate came to.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Loaded {
    offered_per_s: f64,
    ends_per_s: f64,
    follows: bool,
    passed: bool,
    means: Means,
}

/// What the answer of a neighbour lets expect.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Expected {
    /// Requests a second.
    pub(crate) tput_per_s: f64,
    /// Time at that rate over time alone.
    pub(crate) slowdown: f64,
}

impl Alone {
    /// `None` when nothing was answered.
    pub(crate) fn of(cell: Signature, summary: &Summary, objective: &Objective) -> Option<Self> {
        Some(Self {
            means: summary.means?,
            per_s: 1.0 / summary.latencies.e2e.at(MEDIAN),
            holds: objective.holds(cell, &summary.latencies, MEDIAN),
        })
    }
}

impl Cell {
    pub(crate) fn new(
        index: usize,
        signature: Signature,
        alone: Alone,
        expected: Option<Expected>,
        setting: Setting<'_>,
    ) -> Self {
        let Setting {
            objective,
            limits,
            left,
        } = setting;
        // Without targets a rate that is too high says what the device can do, and one that is not says nothing.
        let overload = if objective.targets().is_empty() {
            OVERLOAD
        } else {
            1.0
        };
        let guess = expected.map(|expected| expected.tput_per_s * overload);
        Self {
            search: Search::new(alone.per_s, guess, limits.tolerance, limits.rate_max_per_s),
            e2e_s: alone.means.e2e_s * expected.map_or(1.0, |expected| expected.slowdown),
            index,
            signature,
            alone,
            points: Vec::new(),
            left,
        }
    }

    /// The next point; `None` when the answer is there.
    pub(crate) fn next(&self, objective: &Objective, limits: &Limits) -> Result<Point, CellEnd> {
        if !self.alone.holds {
            return Err(CellEnd::Infeasible);
        }
        let is_saturated = objective.targets().is_empty() && self.points.iter().any(|it| !it.follows);
        let Some(rate) = self.search.next().filter(|_| !is_saturated) else {
            return Err(CellEnd::Found);
        };
        if self.points.len() >= usize::try_from(limits.points_max).unwrap_or(usize::MAX) {
            return Err(CellEnd::CutShort);
        }
        self.point(rate, limits).ok_or(CellEnd::CutShort)
    }

    /// As many requests as the rate needs, or as there is time for.
    fn point(&self, rate: f64, limits: &Limits) -> Option<Point> {
        let capacity = self.capacity().unwrap_or(f64::INFINITY);
        let at_once = rate.min(capacity) * self.e2e_s;
        let before = at_least_one(at_once * FILL_TIMES);
        let after = at_least_one(at_once);
        let wanted = at_least_one(at_once * SPAN_TIMES).max(limits.requests as usize);
        let fitting = self.left.map_or(usize::MAX, |left| {
            let time = left.as_secs_f64() - self.e2e_s;
            floor(time * rate.min(capacity)).saturating_sub(before + after)
        });
        let counting = wanted.min(fitting).min(REQUESTS_MAX);
        let least = REQUESTS_MIN.min(limits.requests as usize);
        (counting >= least).then(|| Point {
            cell: self.index,
            signature: self.signature,
            offered: Offered::PerSecond(rate),
            requests: before + counting + after,
            measured: before..before + counting,
            seed: limits.seed,
        })
    }

    /// Takes note of what came of a rate; whether it passed.
    pub(crate) fn note(
        &mut self,
        rate: f64,
        summary: &Summary,
        took: Duration,
        objective: &Objective,
    ) -> bool {
        let latencies: &Latencies = &summary.latencies;
        let followed_min = match objective.targets().is_empty() {
            true => FOLLOWED_MIN_UNBOUND,
            false => FOLLOWED_MIN,
        };
        let follows = summary.followed >= followed_min;
        let passed = follows && objective.holds(self.signature, latencies, objective.percentile());
        self.left = self.left.map(|left| left.saturating_sub(took));
        self.search.note(rate, passed);
        if let Some(means) = summary.means {
            self.e2e_s = means.e2e_s;
            self.points.push(Loaded {
                offered_per_s: summary.offered_per_s,
                ends_per_s: summary.ends_per_s(),
                follows,
                passed,
                means,
            });
        }
        passed
    }

    /// Requests a second that the device was seen to end when it was offered more.
    fn capacity(&self) -> Option<f64> {
        let overloaded = self.points.iter().filter(|it| !it.follows);
        overloaded.map(|it| it.ends_per_s).reduce(f64::max)
    }

    /// What is known so far.
    pub(crate) fn answer(&self, end: CellEnd, objective: &Objective) -> CellAnswer {
        let answer = |tput_per_s, means: Means| CellAnswer {
            signature: self.signature,
            end,
            tput_per_s,
            e2e_s: means.e2e_s,
            ttft_s: means.ttft_s,
            tpot_s: means.tpot_s,
            points: u32::try_from(self.points.len()).unwrap_or(u32::MAX),
        };
        if end == CellEnd::Infeasible {
            return answer(0.0, self.alone.means);
        }
        let found = match objective.targets().is_empty() {
            true => self.saturated(),
            false => self.highest_that_passed(),
        };
        let found = found.filter(|(tput_per_s, _)| *tput_per_s >= self.alone.per_s);
        let (tput_per_s, means) = found.unwrap_or((self.alone.per_s, self.alone.means));
        answer(tput_per_s, means)
    }

    /// The point at which the device ended most a second, when it was offered more than that; else the highest rate.
    fn saturated(&self) -> Option<(f64, Means)> {
        let overloaded = self.points.iter().filter(|it| !it.follows);
        let most = overloaded.max_by(|one, other| one.ends_per_s.total_cmp(&other.ends_per_s));
        most.map(|it| (it.ends_per_s, it.means))
            .or_else(|| self.highest_that_passed())
    }

    fn highest_that_passed(&self) -> Option<(f64, Means)> {
        let passed = self.points.iter().filter(|it| it.passed);
        let highest = passed.max_by(|one, other| one.offered_per_s.total_cmp(&other.offered_per_s))?;
        let capacity = self.capacity().unwrap_or(f64::INFINITY);
        Some((highest.offered_per_s.min(capacity), highest.means))
    }

    pub(crate) fn alone(&self) -> &Alone {
        &self.alone
    }
}

/// What a cell starts with.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Setting<'a> {
    pub(crate) objective: &'a Objective,
    pub(crate) limits: &'a Limits,
    pub(crate) left: Option<Duration>,
}

fn at_least_one(requests: f64) -> usize {
    floor(requests.ceil()).max(1)
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "the figure was clamped to what fits"
)]
fn floor(requests: f64) -> usize {
    requests.clamp(0.0, count(REQUESTS_MAX)) as usize
}

/// A device follows when it ends at least this part of what comes. Below 1, so that a run of long gaps and short
/// ones is not taken for a queue that grows for ever.
const FOLLOWED_MIN: f64 = 0.9;
/// The same without targets, where the device is to be overloaded until every slot of it is taken all the time.
const FOLLOWED_MIN_UNBOUND: f64 = 0.8;
/// Times of a request that the device is given to fill. After one the first requests end; a device that is offered
/// little more than it can do takes two to have all its slots taken, and longer ones than the point before knew.
const FILL_TIMES: f64 = 2.5;
/// Times of a request that those that count come in, at least: within fewer, growth cannot be told from chance.
const SPAN_TIMES: f64 = 6.0;
/// Fewest requests that a percentile is taken of when time is short.
const REQUESTS_MIN: usize = 10;
/// Most requests of a point: an hour of the fastest devices.
const REQUESTS_MAX: usize = 50_000;
/// How much more than a neighbour's answer is offered to overload the device.
const OVERLOAD: f64 = 1.5;
