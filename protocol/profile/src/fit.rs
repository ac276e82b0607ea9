//! The steps of a device, found from what whole requests took.
//!
//! At saturation a device ends X requests a second and holds N = X x e2e of them (Little's law). Reading their prompts
//! takes X x input / R of its time, where R is the rate of prefill; decode steps get the rest, so that a step,
//! which takes a + b x N by itself, comes only every (a + b x N) / (1 - X x input / R). Hence
//!
//! ```text
//! e2e = input / R + output x (a + b x N) / (1 - X x input / R)
//! ```
//!
//! For a given R this is linear in a and b, which least squares of the relative errors give at once; R is
//! searched. Where prompts take nearly all of the time, a small error of X is a large one of the right side, so
//! a cell counts by the part of the time that is left for decoding. N counts those that are still reading their prompts, too, so b is a little low when prompts rule.

use flotilla_protocol::profile::Profile;

use crate::steps::tpot_seconds;

/// The steps that explain a profile's matrices best.
#[derive(Debug, Clone, PartialEq)]
pub struct Fit {
    /// Prompt tokens a second, R.
    pub prefill_tokens_per_s: f64,
    /// Seconds of a step apart from its sequences, a.
    pub tpot_base_s: f64,
    /// Seconds that each sequence adds to a step, b.
    pub tpot_each_s: f64,
    /// Root of the weighted mean of squared relative errors of e2e over the feasible cells: 0.1 is 10 %.
    pub residual: f64,
    /// Largest N of any cell, in sequences.
    pub sequences_max: f64,
}

impl Fit {
    /// Fits a checked document; what it says of its steps itself is kept.
    pub(crate) fn of(document: &Profile) -> Self {
        let cells = cells(document);
        let steps = document.tpot_by_batch.as_deref();
        let try_rate = |rate: f64| Self::at_rate(&cells, steps, rate);
        match document.prefill_tokens_per_s {
            Some(rate) => try_rate(rate),
            None => search(rate_min(&cells), try_rate),
        }
    }

    /// The best fit for one rate of prefill.
    fn at_rate(cells: &[Cell], steps: Option<&[(f64, f64)]>, rate: f64) -> Self {
        let (base, each) = match steps {
            Some(_) => (0.0, 0.0),
            None => least_squares(cells, rate),
        };
        let step = |sequences: f64| match steps {
            Some(steps) => tpot_seconds(steps, sequences),
            None => base + each * sequences,
        };
        let (mut squares, mut weights) = (0.0, 0.0);
        for cell in cells {
            let expected = cell.prefill(rate) + cell.output * step(cell.sequences()) / cell.decoding(rate);
            let weight = cell.decoding(rate).powi(2);
            squares += weight * (expected / cell.e2e - 1.0).powi(2);
            weights += weight;
        }
        Self {
            prefill_tokens_per_s: rate,
            tpot_base_s: base,
            tpot_each_s: each,
            residual: (squares / weights).sqrt(),
            sequences_max: cells.iter().map(Cell::sequences).fold(1.0, f64::max),
        }
    }

    /// The steps as a table; at least a nanosecond each.
    pub(crate) fn tpot_by_batch(&self) -> Vec<(f64, f64)> {
        let step = |sequences: f64| {
            let seconds = self.tpot_base_s + self.tpot_each_s * sequences;
            (sequences, seconds.max(crate::figures::FIGURE_MIN))
        };
        // One point less when no cell holds more than one sequence: the line could not be told from it.
        let last = (self.sequences_max > 1.0).then_some(self.sequences_max);
        std::iter::once(1.0).chain(last).map(step).collect()
    }
}

/// One feasible cell of a profile.
struct Cell {
    output: f64,
    input: f64,
    tput: f64,
    e2e: f64,
}

impl Cell {
    /// Requests that the device holds at once.
    fn sequences(&self) -> f64 {
        self.tput * self.e2e
    }

    /// Seconds that its own prompt takes.
    fn prefill(&self, rate: f64) -> f64 {
        self.input / rate
    }

    /// Part of the device's time that is left for decode steps. A stated rate may leave none; then it is taken
    /// to leave a little.
    fn decoding(&self, rate: f64) -> f64 {
        (1.0 - self.tput * self.prefill(rate)).max(DECODING_MIN)
    }
}

fn cells(document: &Profile) -> Vec<Cell> {
    let e2e = document.e2e.iter().flatten();
    let rows = document.indexes[0].iter().zip(&document.tputs).zip(e2e);
    rows.flat_map(|((&output, tputs), e2e)| {
        let columns = document.indexes[1].iter().zip(tputs).zip(e2e);
        columns.map(move |((&input, &tput), &e2e)| Cell {
            output,
            input,
            tput,
            e2e,
        })
    })
    .filter(|cell| cell.tput > 0.0)
    .collect()
}

/// Slowest prefill that leaves every cell some time for decoding, in tokens a second.
fn rate_min(cells: &[Cell]) -> f64 {
    let read = cells.iter().map(|cell| cell.tput * cell.input);
    read.fold(0.0, f64::max) / (1.0 - DECODING_MIN)
}

/// The a and b, neither below 0, with the least squares of relative errors.
fn least_squares(cells: &[Cell], rate: f64) -> (f64, f64) {
    let (mut uu, mut uv, mut vv, mut uy, mut vy) = (0.0, 0.0, 0.0, 0.0, 0.0);
    for cell in cells {
        let u = cell.output / cell.e2e;
        let v = u * cell.sequences();
        let y = (1.0 - cell.prefill(rate) / cell.e2e) * cell.decoding(rate);
        uu += u * u;
        uv += u * v;
        vv += v * v;
        uy += u * y;
        vy += v * y;
    }
    let determinant = uu * vv - uv * uv;
    let base_only = ((uy / uu).max(0.0), 0.0);
    if determinant <= SINGULAR * uu * vv {
        return base_only;
    }
    let base = (uy * vv - vy * uv) / determinant;
    let each = (vy * uu - uy * uv) / determinant;
    match (base < 0.0, each < 0.0) {
        (_, true) => base_only,
        (true, false) => (0.0, (vy / vv).max(0.0)),
        (false, false) => (base, each),
    }
}

/// The rate with the least residual: first on a coarse scale of equal ratios, then by golden sections around the
/// best. Among equals the slowest, which promises least.
fn search(rate_min: f64, try_rate: impl Fn(f64) -> Fit) -> Fit {
    let ratio = RATE_SPAN.powf(1.0 / f64::from(RATE_STEPS));
    let rates = (0..=RATE_STEPS).map(|step| rate_min * ratio.powf(f64::from(step)));
    let coarse = rates.map(&try_rate).reduce(better);
    let mut best = coarse.expect("the scale is not empty");
    let (mut low, mut high) = (
        (best.prefill_tokens_per_s / ratio).max(rate_min).ln(),
        (best.prefill_tokens_per_s * ratio).ln(),
    );
    for _ in 0..SECTIONS {
        let inner = (high - low) * GOLDEN;
        let [left, right] = [high - inner, low + inner].map(|log| try_rate(log.exp()));
        if left.residual <= right.residual {
            high = low + inner;
        } else {
            low = high - inner;
        }
        best = better(better(best, left), right);
    }
    best
}

fn better(one: Fit, other: Fit) -> Fit {
    if other.residual < one.residual { other } else { one }
}

/// Least part of the time that decoding gets: with less, e2e would be fifty times what it is on an idle device,
/// and nobody calls that saturation.
const DECODING_MIN: f64 = 0.02;
/// Below this, relative to its terms, the determinant is rounding: all cells hold equally many sequences, and
/// a and b cannot be told apart.
const SINGULAR: f64 = 1e-9;
/// Fastest prefill that is tried, as a multiple of the slowest: beyond it prompts take no time to speak of.
const RATE_SPAN: f64 = 1e4;
/// Rates tried before refining: each 1.1 times the one before.
const RATE_STEPS: u32 = 96;
/// Sections of the refinement; 40 of them narrow a tenth to one part in 10^9.
const SECTIONS: u32 = 40;
/// The golden ratio's inverse.
const GOLDEN: f64 = 0.618_033_988_749_895;
