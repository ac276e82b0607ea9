//! What a measurement tells while it goes on, and at its end.

use flotilla_profile::{DeviceProfile, Signature};
use flotilla_profiling::{CellAnswer, CellEnd, Objective, Offered, Plan, Point, PointReport};

use super::place::Place;
use crate::output::{self, StatusLine};
use crate::table::{Table, numbers, words};

/// Tells on standard error how far a measurement is.
#[derive(Debug)]
pub(super) struct Told {
    status: StatusLine,
    cells: usize,
}

impl Told {
    pub(super) fn new(plan: &Plan) -> Self {
        Self {
            status: StatusLine::new(),
            cells: plan.grid().cell_count(),
        }
    }

    /// A point is being measured.
    pub(super) fn begin(&mut self, point: &Point) {
        let place = self.place(point);
        self.status
            .show(&format!("{place}: {} requests ...", point.requests));
    }

    /// A point was measured.
    pub(super) fn end(&mut self, point: &Point, report: &PointReport, objective: &Objective) {
        self.clear();
        let found = match point.offered {
            Offered::Alone => format!("e2e {}, ttft {}", seconds(report.e2e_s), seconds(report.ttft_s)),
            Offered::PerSecond(_) => format!(
                "{:.3}/s end, {name} of e2e {}, of ttft {}: {}",
                report.ends_per_s,
                seconds(report.e2e_s),
                seconds(report.ttft_s),
                if report.passed { "passed" } else { "too much" },
                name = percentile_name(objective.percentile()),
            ),
        };
        output::note(&format!("{}: {found}", self.place(point)));
        if let Some(answer) = &report.answer {
            output::note(&format!("{}: {}", self.cell(point), answered(answer)));
        }
    }

    pub(super) fn clear(&mut self) {
        self.status.clear();
    }

    fn place(&self, point: &Point) -> String {
        let offered = match point.offered {
            Offered::Alone => "alone".to_owned(),
            Offered::PerSecond(rate) => format!("{rate:.3}/s"),
        };
        format!("{}, {offered}", self.cell(point))
    }

    fn cell(&self, point: &Point) -> String {
        let Signature {
            prompt_tokens,
            output_tokens,
        } = point.signature;
        format!(
            "cell {} of {}: prompt {prompt_tokens}, answer {output_tokens} tokens",
            point.cell + 1,
            self.cells
        )
    }
}

fn answered(answer: &CellAnswer) -> String {
    let end = match answer.end {
        CellEnd::Found => "",
        CellEnd::CutShort => ", or more: time or measurements ran out",
        CellEnd::Infeasible => return "does not meet the targets even alone".to_owned(),
    };
    format!("sustains {:.3}/s{end}", answer.tput_per_s)
}

/// The percentile in words.
fn percentile_name(percentile: f64) -> String {
    match percentile {
        0.0 => "mean".to_owned(),
        percentile => format!("p{percentile}"),
    }
}

/// What will be measured, in a sentence.
pub(super) fn headline(plan: &Plan, place: &Place) -> String {
    let objective = plan.objective();
    let targets = match objective.targets().is_empty() {
        true => "throughput only".to_owned(),
        false => {
            let targets = objective.targets();
            let named = [
                ("e2e", targets.e2e),
                ("ttft", targets.ttft),
                ("tpot", targets.tpot),
                ("tpat", targets.tpat),
            ];
            let named = named
                .into_iter()
                .filter_map(|(name, target)| Some(format!("{name} {} s", target?.as_secs_f64())));
            let named: Vec<String> = named.collect();
            format!("{} {}", named.join(", "), percentile_name(objective.percentile()))
        }
    };
    format!(
        "measuring {} cells on worker {} ({}): {targets}",
        plan.grid().cell_count(),
        place.worker,
        place.device.kind
    )
}

/// The grid of a profile, a row for each cell.
pub(super) fn grid(profile: &DeviceProfile) -> Table {
    let document = profile.document();
    let mut table = Table::new([
        numbers("PROMPT"),
        numbers("ANSWER"),
        numbers("RATE"),
        numbers("E2E"),
        numbers("TTFT"),
        numbers("TPOT"),
        words("NOTE"),
    ]);
    let figure = |matrix: &Option<Vec<Vec<f64>>>, output: usize, input: usize| {
        let found = matrix.as_ref().map(|matrix| seconds(matrix[output][input]));
        found.unwrap_or_else(|| "-".to_owned())
    };
    for (output, answer) in document.indexes[0].iter().enumerate() {
        for (input, prompt) in document.indexes[1].iter().enumerate() {
            let tput = document.tputs[output][input];
            let note = if tput > 0.0 {
                ""
            } else {
                "misses the targets alone"
            };
            table.row([
                prompt.to_string(),
                answer.to_string(),
                format!("{tput:.3}/s"),
                figure(&document.e2e, output, input),
                figure(&document.ttft, output, input),
                figure(&document.tpot, output, input),
                note.to_owned(),
            ]);
        }
    }
    table
}

/// Seconds in the unit that suits them.
fn seconds(seconds: f64) -> String {
    match seconds {
        it if !it.is_finite() => "none".to_owned(),
        it if it < 1.0 => format!("{:.1} ms", it * 1e3),
        it => format!("{it:.2} s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_the_unit_that_suits_them_and_no_answer_is_no_time() {
        assert_eq!(seconds(0.012_34), "12.3 ms");
        assert_eq!(seconds(12.345), "12.35 s");
        assert_eq!(seconds(f64::INFINITY), "none");
    }
}
