//! Pictures of a comparison, as SVG.
//!
//! Each policy has one colour and one marker in all of them; colours are told apart without red and green
//! (Okabe and Ito's), and beyond the eighth policy lines are dashed.

mod chart;
mod pictures;
mod scale;
mod style;
mod svg;

use crate::bound::Bound;
use crate::outcome::{Figures, Outcome};
use crate::policy::PolicyName;
use crate::run::Scenario;

/// What one policy made of a scenario.
#[derive(Debug, Clone, Copy)]
pub struct Compared<'a> {
    /// The policy.
    pub policy: PolicyName,
    /// What it made of it.
    pub outcome: &'a Outcome,
    /// The figures of that.
    pub figures: &'a Figures,
}

/// One picture.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plot {
    /// What its file is called.
    pub file: &'static str,
    /// Its contents.
    pub svg: String,
}

/// All pictures of a comparison; the bound is drawn where there is one.
#[must_use]
pub fn plots(scenario: &Scenario, compared: &[Compared<'_>], bound: Option<&Bound>) -> Vec<Plot> {
    let pictures = [
        (
            "latency-per-token.svg",
            pictures::latency_per_token(scenario, compared),
        ),
        ("slo-by-minute.svg", pictures::slo_by_minute(scenario, compared)),
        ("goodput.svg", pictures::goodput(scenario, compared, bound)),
        ("cost-and-slo.svg", pictures::cost_and_slo(scenario, compared)),
        ("queue.svg", pictures::queue(scenario, compared)),
        ("longest-wait.svg", pictures::longest_wait(scenario, compared)),
    ];
    let pictures = pictures.into_iter();
    pictures.map(|(file, svg)| Plot { file, svg }).collect()
}

#[cfg(test)]
mod tests;
