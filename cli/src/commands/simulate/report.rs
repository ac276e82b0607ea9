//! What is printed of a comparison.

use flotilla_simulator::outcome::Figures;
use flotilla_simulator::run::Scenario;
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::Compared;
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
}

impl Report {
    pub(super) fn new(scenario: &Scenario, compared: &[Compared]) -> Self {
        let trace = scenario.trace();
        let policies = compared.iter();
        Self {
            name: trace.name.clone(),
            machine: machine::machine(),
            commit: machine::commit(),
            ratios: Map::from_iter([("goodput_vs_bound".to_owned(), json!(goodput_vs_bound(compared)))]),
            figures: Map::from_iter([
                ("requests".to_owned(), json!(trace.requests.len())),
                ("trace_s".to_owned(), json!(trace.duration().as_secs_f64())),
                ("devices".to_owned(), json!(scenario.fleet().devices.len())),
            ]),
            policies: policies
                .map(|compared| (compared.policy.to_string(), row(&compared.figures)))
                .collect(),
        }
    }
}

/// A line for each policy.
pub(super) fn tables(compared: &[Compared]) -> Vec<Table> {
    let mut table = Table::new([
        words("POLICY"),
        numbers("SLO"),
        numbers("GOODPUT/S"),
        numbers("S/TOKEN P50"),
        numbers("P99"),
        numbers("TTFT P99"),
        numbers("E2E P99"),
        numbers("COST"),
        numbers("LOADS"),
        numbers("SWAPS"),
        numbers("WAIT MAX"),
        numbers("LATE"),
    ]);
    for Compared { policy, figures } in compared {
        table.row([
            policy.to_string(),
            format!("{:.1} %", figures.slo_share * 1e2),
            format!("{:.2}", figures.goodput_rps),
            seconds(figures.s_per_token.p50, 4),
            seconds(figures.s_per_token.p99, 4),
            seconds(figures.ttft_s.p99, 2),
            seconds(figures.e2e_s.p99, 2),
            format!("{:.4}", figures.cost),
            figures.loads.to_string(),
            figures.swaps.to_string(),
            seconds(Some(figures.max_wait_s), 2),
            figures.deadline_exceeded.to_string(),
        ]);
    }
    vec![table]
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

/// How near the dispatcher comes to who knows everything; nothing unless both were run.
fn goodput_vs_bound(compared: &[Compared]) -> Option<f64> {
    let goodput = |name: &str| {
        let found = compared.iter().find(|compared| compared.policy.as_str() == name);
        found.map(|compared| compared.figures.goodput_rps)
    };
    let bound = goodput("bound").filter(|bound| *bound > 0.0)?;
    Some(goodput("slo")? / bound)
}

fn seconds(value: Option<f64>, digits: usize) -> String {
    value.map_or_else(|| "-".to_owned(), |value| format!("{value:.digits$} s"))
}
