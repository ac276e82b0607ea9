//! What is measured next, cell by cell.

use std::time::Duration;

use flotilla_profile::{DeviceProfile, Signature};

use crate::cell::{Alone, Cell, CellAnswer, Expected, Setting};
use crate::fault::{FinishError, LimitsFault, PointFault};
use crate::grid::Grid;
use crate::limits::Limits;
use crate::measured::{MEDIAN, Measurement, Summary};
use crate::objective::Objective;
use crate::point::{Offered, Point};
use crate::profile::{Device, Figures};
use crate::steps::Decoded;

/// A measurement of a grid.
///
/// [`Plan::poll_point`] tells what to send, [`Plan::handle_point`] is told what came of it, and so on until there is
/// no next point; then [`Plan::finish`] makes the profile.
#[derive(Debug)]
pub struct Plan {
    grid: Grid,
    objective: Objective,
    limits: Limits,
    done: Vec<Done>,
    /// The cell whose requests alone are known and whose answer is not.
    current: Option<Cell>,
    /// The point that was told and not measured yet.
    asked: Option<Point>,
    spent: Duration,
    samples: u64,
    decoded: Vec<Decoded>,
}

/// A cell that was measured.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Done {
    pub(crate) answer: CellAnswer,
    pub(crate) alone: Alone,
}

/// What a point came to.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PointReport {
    /// Whether the device bore it: targets hold, and it follows.
    pub passed: bool,
    /// Of the requests that count, how many were answered.
    pub answered: usize,
    /// Requests a second that ended; 0 for requests alone.
    pub ends_per_s: f64,
    /// Time of a whole request at the objective's percentile, as a client sees it, in seconds; the median of requests
    /// alone. Infinite where that is one without an answer.
    pub e2e_s: f64,
    /// Time to the first token, likewise.
    pub ttft_s: f64,
    /// The cell's answer, when this was its last point.
    pub answer: Option<CellAnswer>,
}

impl Plan {
    /// Plans a measurement.
    ///
    /// # Errors
    /// [`LimitsFault`].
    pub fn new(grid: Grid, objective: Objective, limits: Limits) -> Result<Self, LimitsFault> {
        limits.check()?;
        Ok(Self {
            grid,
            objective,
            limits,
            done: Vec::new(),
            current: None,
            asked: None,
            spent: Duration::ZERO,
            samples: 0,
            decoded: Vec::new(),
        })
    }

    /// The grid.
    #[must_use]
    pub fn grid(&self) -> &Grid {
        &self.grid
    }

    /// The objective.
    #[must_use]
    pub fn objective(&self) -> &Objective {
        &self.objective
    }

    /// The limits.
    #[must_use]
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Answers of the cells that are done, in the order of [`Grid::cells`].
    pub fn answers(&self) -> impl Iterator<Item = &CellAnswer> {
        self.done.iter().map(|done| &done.answer)
    }

    /// What to send next: the same until it was measured, and `None` when every cell has its answer.
    #[must_use]
    pub fn poll_point(&mut self) -> Option<Point> {
        if self.asked.is_none() {
            self.asked = self.next_point();
        }
        self.asked.clone()
    }

    fn next_point(&self) -> Option<Point> {
        match &self.current {
            Some(cell) => cell.next(&self.objective, &self.limits).ok(),
            None => {
                let index = self.done.len();
                let signature = self.grid.cells().nth(index)?;
                Some(self.alone(index, signature))
            }
        }
    }

    /// The first request of a cell pays for what others find ready, and does not count.
    fn alone(&self, index: usize, signature: Signature) -> Point {
        let counting = self.limits.requests_alone as usize;
        Point {
            cell: index,
            signature,
            offered: Offered::Alone,
            requests: counting + 1,
            measured: 1..counting + 1,
            seed: self.limits.seed,
        }
    }

    /// Takes what came of the point that was told last.
    ///
    /// # Errors
    /// [`PointFault`]; the point stays asked for.
    pub fn handle_point(
        &mut self,
        point: &Point,
        measurement: &Measurement,
    ) -> Result<PointReport, PointFault> {
        let cell = point.signature;
        if self.asked.as_ref() != Some(point) {
            return Err(PointFault::Unasked { cell });
        }
        let summary = Summary::of(point, &measurement.outcomes)?;
        let report = match point.offered {
            Offered::Alone => self.begin_cell(point, &summary, measurement)?,
            Offered::PerSecond(rate) => self.go_on(rate, &summary, measurement.took),
        };
        self.asked = None;
        self.samples += u64::try_from(summary.answered).unwrap_or(u64::MAX);
        if let Offered::PerSecond(_) = point.offered {
            let decoding = summary.decoding;
            self.decoded.push(Decoded { cell, decoding });
        }
        Ok(PointReport {
            answer: self.end_cell(),
            ..report
        })
    }

    fn begin_cell(
        &mut self,
        point: &Point,
        summary: &Summary,
        measurement: &Measurement,
    ) -> Result<PointReport, PointFault> {
        let signature = point.signature;
        let Some(alone) = Alone::of(signature, summary, &self.objective) else {
            return Err(PointFault::NothingSucceeded {
                cell: signature,
                requests: point.measured.len(),
            });
        };
        let share = self.share_of_budget();
        self.spent += measurement.took;
        let setting = Setting {
            objective: &self.objective,
            limits: &self.limits,
            left: share.map(|share| share.saturating_sub(measurement.took)),
        };
        let expected = self.expected(point.cell, &alone);
        let cell = Cell::new(point.cell, signature, alone, expected, setting);
        self.current = Some(cell);
        Ok(report(alone.holds, summary, MEDIAN))
    }

    fn go_on(&mut self, rate: f64, summary: &Summary, took: Duration) -> PointReport {
        self.spent += took;
        let cell = self
            .current
            .as_mut()
            .expect("a rate is only asked of a cell that has begun");
        let passed = cell.note(rate, summary, took, &self.objective);
        report(passed, summary, self.objective.percentile())
    }

    /// Closes the cell when it has no next point.
    fn end_cell(&mut self) -> Option<CellAnswer> {
        let cell = self.current.as_ref()?;
        let end = cell.next(&self.objective, &self.limits).err()?;
        let answer = cell.answer(end, &self.objective);
        let alone = *cell.alone();
        self.done.push(Done { answer, alone });
        self.current = None;
        Some(answer)
    }

    /// An equal part of the time that is left for each cell that is not done.
    fn share_of_budget(&self) -> Option<Duration> {
        let left = self.limits.budget?.saturating_sub(self.spent);
        let cells = self.grid.cell_count() - self.done.len();
        Some(left / u32::try_from(cells).unwrap_or(u32::MAX).max(1))
    }

    /// Neighbours hold about as many requests at once, so that rates are as the times of requests alone.
    fn expected(&self, index: usize, alone: &Alone) -> Option<Expected> {
        let neighbours = self.grid.neighbours(index).filter_map(|index| {
            let Done {
                answer,
                alone: theirs,
            } = self.done.get(index)?;
            (answer.tput_per_s > 0.0).then(|| Expected {
                tput_per_s: answer.tput_per_s * theirs.means.e2e_s / alone.means.e2e_s,
                slowdown: answer.e2e_s / theirs.means.e2e_s,
            })
        });
        let lower = |one: Expected, other: Expected| match other.tput_per_s < one.tput_per_s {
            true => other,
            false => one,
        };
        neighbours.reduce(lower)
    }

    /// Makes the profile.
    ///
    /// # Errors
    /// [`FinishError`].
    pub fn finish(&self, device: Device) -> Result<DeviceProfile, FinishError> {
        let cells = self.grid.cell_count() - self.done.len();
        if cells > 0 {
            return Err(FinishError::Unfinished { cells });
        }
        let figures = Figures {
            grid: &self.grid,
            objective: &self.objective,
            done: &self.done,
            decoded: &self.decoded,
            samples: self.samples,
        };
        figures.profile(device)
    }
}

fn report(passed: bool, summary: &Summary, percentile: f64) -> PointReport {
    PointReport {
        passed,
        answered: summary.answered,
        ends_per_s: summary.ends_per_s(),
        e2e_s: summary.latencies.e2e.at(percentile),
        ttft_s: summary.latencies.ttft.at(percentile),
        answer: None,
    }
}
