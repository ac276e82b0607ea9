//! What is printed of a comparison.

use flotilla_simulator::bound::Bound;
use flotilla_simulator::outcome::{Figures, Learning};
use flotilla_simulator::policy::PolicyName;
use flotilla_simulator::run::Scenario;
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::{Compared, Comparison, Misinformed};
use crate::commands::bench::machine;
use crate::table::{Table, numbers, words};

/// A comparison as JSON, in the shape of the benchmarks.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    name: String,
    machine: String,
    commit: Option<String>,
    ratios: Map<String, Value>,
    figures: Map<String, Value>,
    policies: Map<String, Value>,
    /// By how many times as long everything takes by the profiles.
    #[serde(skip_serializing_if = "Map::is_empty")]
    wrong_profiles: Map<String, Value>,
}

impl Report {
    pub(super) fn new(scenario: &Scenario, comparison: &Comparison) -> Self {
        let trace = scenario.trace();
        let runs = comparison.runs.iter();
        let runs = runs.map(|run| (run.policy.to_string(), row(&run.figures)));
        let bound = comparison.bound.as_ref();
        let bound = bound.map(|bound| (BOUND.to_owned(), bound_row(bound)));
        let ratio = goodput_vs_bound(comparison);
        Self {
            name: trace.name.clone(),
            machine: machine::machine(),
            commit: machine::commit(),
            ratios: Map::from_iter([("goodput_vs_bound".to_owned(), json!(ratio))]),
            figures: Map::from_iter([
                ("requests".to_owned(), json!(trace.requests.len())),
                ("trace_s".to_owned(), json!(trace.duration().as_secs_f64())),
                ("devices".to_owned(), json!(scenario.fleet().devices.len())),
            ]),
            policies: runs.chain(bound).collect(),
            wrong_profiles: comparison.misinformed.iter().map(wrong_row).collect(),
        }
    }
}

/// A line for each policy, and the bound below.
pub(super) fn tables(comparison: &Comparison) -> Vec<Table> {
    let mut table = Table::new([
        words("POLICY"),
        numbers("SLO"),
        numbers("GOODPUT/S"),
        numbers("OF BOUND"),
        numbers("S/TOKEN P50"),
        numbers("S/TOKEN P99"),
        numbers("TTFT P99"),
        numbers("E2E P99"),
        numbers("COST"),
        numbers("LOADS"),
        numbers("SWAPS"),
        numbers("WAIT MAX"),
        numbers("LATE"),
    ]);
    let bound = comparison.bound.as_ref();
    for run in &comparison.runs {
        table.row(cells(run, bound));
    }
    if let Some(bound) = bound {
        let known = [
            BOUND.to_owned(),
            percent(bound.slo_share()),
            format!("{:.2}", bound.goodput_rps),
            percent(1.0),
        ];
        // It is no schedule, so nothing takes time in it, costs or is loaded.
        let unknown = std::iter::repeat_with(nothing).take(9);
        table.row(known.into_iter().chain(unknown));
    }
    match comparison.misinformed.is_empty() {
        true => vec![table],
        false => vec![table, wrong_table(&comparison.misinformed)],
    }
}

/// A line for each wrong profile.
fn wrong_table(misinformed: &[Misinformed]) -> Table {
    let mut table = Table::new([
        numbers("PROFILE TIMES"),
        numbers("SLO"),
        numbers("BEFORE 50"),
        numbers("AFTER 50"),
        numbers("REQUESTS BEFORE"),
        numbers("COST"),
    ]);
    for run in misinformed {
        let Learning { first, later } = run.learning;
        table.row([
            run.times.to_string(),
            percent(run.figures.slo_share),
            first.share().map_or_else(nothing, percent),
            later.share().map_or_else(nothing, percent),
            first.requests.to_string(),
            format!("{:.4}", run.figures.cost),
        ]);
    }
    table
}

fn wrong_row(run: &Misinformed) -> (String, Value) {
    let row = json!({
        "slo_share": run.figures.slo_share,
        "slo_share_before_correction": run.learning.first.share(),
        "slo_share_after_correction": run.learning.later.share(),
        "requests_before_correction": run.learning.first.requests,
        "cost": run.figures.cost,
    });
    (run.times.to_string(), row)
}

fn cells(run: &Compared, bound: Option<&Bound>) -> [String; 13] {
    let figures = &run.figures;
    [
        run.policy.to_string(),
        percent(figures.slo_share),
        format!("{:.2}", figures.goodput_rps),
        of_bound(figures, bound).map_or_else(nothing, percent),
        seconds(figures.s_per_token.p50, 4),
        seconds(figures.s_per_token.p99, 4),
        seconds(figures.ttft_s.p99, 2),
        seconds(figures.e2e_s.p99, 2),
        format!("{:.4}", figures.cost),
        figures.loads.to_string(),
        figures.swaps.to_string(),
        seconds(Some(figures.max_wait_s), 2),
        figures.deadline_exceeded.to_string(),
    ]
}

fn row(figures: &Figures) -> Value {
    json!({
        "slo_share": figures.slo_share,
        "goodput_rps": figures.goodput_rps,
        "p99_s_per_token": figures.s_per_token.p99,
        "cost": figures.cost,
        "swaps": figures.swaps,
        "max_wait_s": figures.max_wait_s,
    })
}

/// The bound in the shape of a policy; what only a schedule has is null.
fn bound_row(bound: &Bound) -> Value {
    json!({
        "slo_share": bound.slo_share(),
        "goodput_rps": bound.goodput_rps,
        "p99_s_per_token": null,
        "cost": null,
        "swaps": null,
        "max_wait_s": null,
    })
}

/// How near the dispatcher comes to who knows everything; nothing unless both were asked for.
fn goodput_vs_bound(comparison: &Comparison) -> Option<f64> {
    let ours = comparison.runs.iter().find(|run| run.policy == PolicyName::Slo)?;
    of_bound(&ours.figures, comparison.bound.as_ref())
}

fn of_bound(figures: &Figures, bound: Option<&Bound>) -> Option<f64> {
    let bound = bound.filter(|bound| bound.goodput_rps > 0.0)?;
    Some(figures.goodput_rps / bound.goodput_rps)
}

fn percent(share: f64) -> String {
    format!("{:.1} %", share * 1e2)
}

fn nothing() -> String {
    "-".to_owned()
}

fn seconds(value: Option<f64>, digits: usize) -> String {
    value.map_or_else(nothing, |value| format!("{value:.digits$} s"))
}

/// What the bound is called among policies.
const BOUND: &str = "bound";
