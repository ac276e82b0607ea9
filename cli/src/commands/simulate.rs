//! `flotilla simulate`: what policies make of a trace, on a virtual clock.

mod inputs;
mod report;

use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::{fs, thread};

use anyhow::Context as _;
use clap::Args;
use flotilla_protocol::catalog;
use flotilla_simulator::bound::Bound;
use flotilla_simulator::outcome::{Figures, Learning, Outcome};
use flotilla_simulator::plot;
use flotilla_simulator::policy::{Flotilla, PolicyName};
use flotilla_simulator::run::Scenario;
use thiserror::Error;

use crate::context::Context;
use crate::exit::Exit;

/// Arguments of `flotilla simulate`.
#[derive(Debug, Args)]
pub(crate) struct SimulateArguments {
    /// A trace (JSON Lines), or one that is built in: composite, overload, long-tail or bursts
    #[arg(value_name = "TRACE")]
    trace: String,
    /// The fleet (TOML) [default: that of the built-in trace]
    #[arg(long, value_name = "FILE")]
    fleet: Option<PathBuf>,
    /// Policies to compare, separated by commas, or all; bound is what nobody exceeds, knowing the future
    #[arg(long, value_name = "NAMES", default_value = "all", value_delimiter = ',')]
    policy: Vec<Choice>,
    /// Also what the dispatcher (slo) makes of profiles that are wrong: which say that everything takes so many
    /// times as long as it does, separated by commas
    #[arg(long, value_name = "FACTORS", value_delimiter = ',', value_parser = above_zero)]
    wrong_profile: Vec<f64>,
    /// Of all that is random in a built-in trace and in policies
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Times the trace's own rate
    #[arg(long, value_name = "FACTOR", default_value_t = 1.0, value_parser = above_zero)]
    rate: f64,
    /// How many seconds of the trace [default: 600 of a built-in one, all of a file]
    #[arg(long, value_name = "SECONDS", value_parser = above_zero)]
    duration: Option<f64>,
    /// Writes the requests as a trace file too
    #[arg(long, value_name = "FILE")]
    write_trace: Option<PathBuf>,
    /// Draws pictures into a folder, as SVG
    #[arg(long, value_name = "DIR")]
    plots: Option<PathBuf>,
}

/// One word of `--policy`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Choice {
    All,
    Bound,
    One(PolicyName),
}

/// No policy has this name.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("policy is {found:?}; give one of {}, bound, or all", PolicyName::names())]
struct UnknownChoice {
    found: String,
}

impl FromStr for Choice {
    type Err = UnknownChoice;

    fn from_str(text: &str) -> Result<Self, UnknownChoice> {
        match (text, text.parse()) {
            ("all", _) => Ok(Self::All),
            ("bound", _) => Ok(Self::Bound),
            (_, Ok(policy)) => Ok(Self::One(policy)),
            (found, Err(_)) => Err(UnknownChoice {
                found: found.to_owned(),
            }),
        }
    }
}

/// What everybody came to.
#[derive(Debug)]
struct Comparison {
    runs: Vec<Compared>,
    bound: Option<Bound>,
    misinformed: Vec<Misinformed>,
}

/// What the dispatcher came to with profiles that were wrong.
#[derive(Debug)]
struct Misinformed {
    /// How many times as long everything takes by its profiles.
    times: f64,
    figures: Figures,
    learning: Learning,
}

/// What one policy came to.
#[derive(Debug)]
struct Compared {
    policy: PolicyName,
    outcome: Outcome,
    figures: Figures,
}

/// Runs the simulations.
///
/// # Errors
/// When a file cannot be read or written, or is wrong; when trace and fleet do not go together.
pub(crate) fn run(context: &Context, arguments: &SimulateArguments) -> anyhow::Result<Exit> {
    let trace = inputs::trace(arguments)?;
    let fleet = inputs::fleet(arguments)?;
    if let Some(path) = &arguments.write_trace {
        inputs::write_trace(path, &trace)?;
    }
    let scenario = Scenario::new(trace, fleet)?;
    let mut comparison = compare(&scenario, &arguments.policy, arguments.seed);
    let factors = arguments.wrong_profile.iter();
    comparison.misinformed = factors.map(|&times| misinform(&scenario, times)).collect();
    if let Some(folder) = &arguments.plots {
        write_plots(folder, &scenario, &comparison)?;
    }
    let report = report::Report::new(&scenario, &comparison);
    context.format.print(&report, |_| report::tables(&comparison))?;
    Ok(Exit::Ok)
}

/// The policies that are asked for, each once, in the order of reports. The catalog's own placement is one of all
/// where the catalog says something of it.
fn chosen(choices: &[Choice], scenario: &Scenario) -> Vec<PolicyName> {
    let mut models = scenario.fleet().models.iter();
    let is_placed = models.any(|model| model.policy.is_some());
    let is_one_of_all = |name| is_placed || name != PolicyName::Catalog;
    let is_chosen = |name| {
        let all = choices.contains(&Choice::All) && is_one_of_all(name);
        all || choices.contains(&Choice::One(name))
    };
    PolicyName::ALL
        .into_iter()
        .filter(|name| is_chosen(*name))
        .collect()
}

/// Runs each policy on a thread of its own, and finds the bound on another.
fn compare(scenario: &Scenario, choices: &[Choice], seed: u64) -> Comparison {
    let simulate = |policy: PolicyName| {
        let outcome = policy.simulate(scenario, seed);
        let figures = Figures::of(scenario, &outcome);
        Compared {
            policy,
            outcome,
            figures,
        }
    };
    let wants_bound = choices.contains(&Choice::All) || choices.contains(&Choice::Bound);
    thread::scope(|scope| {
        let bound = wants_bound.then(|| scope.spawn(|| Bound::of(scenario)));
        let runs = chosen(choices, scenario).into_iter();
        let runs: Vec<_> = runs.map(|policy| scope.spawn(move || simulate(policy))).collect();
        Comparison {
            runs: runs.into_iter().map(join).collect(),
            bound: bound.map(join),
            misinformed: Vec::new(),
        }
    })
}

fn misinform(scenario: &Scenario, times: f64) -> Misinformed {
    let mut policy = Flotilla::misinformed(scenario.fleet(), Some(catalog::Policy::Slo), times);
    let outcome = flotilla_simulator::run::run(scenario, &mut policy);
    Misinformed {
        times,
        figures: Figures::of(scenario, &outcome),
        learning: Learning::of(scenario, &outcome, LEARNED_AFTER),
    }
}

fn join<T>(run: thread::ScopedJoinHandle<'_, T>) -> T {
    run.join()
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Draws the pictures, each into a file of the folder.
fn write_plots(folder: &Path, scenario: &Scenario, comparison: &Comparison) -> anyhow::Result<()> {
    let runs = comparison.runs.iter().map(|run| plot::Compared {
        policy: run.policy,
        outcome: &run.outcome,
        figures: &run.figures,
    });
    let runs: Vec<_> = runs.collect();
    fs::create_dir_all(folder).with_context(|| format!("cannot make the folder {}", folder.display()))?;
    for plot in plot::plots(scenario, &runs, comparison.bound.as_ref()) {
        let path = folder.join(plot.file);
        fs::write(&path, plot.svg).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

/// Requests of a model on a kind of device after which a profile that is wrong by 2 is corrected.
const LEARNED_AFTER: usize = 50;

fn above_zero(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(number) if number.is_finite() && number > 0.0 => Ok(number),
        Ok(_) | Err(_) => Err("give a number above 0".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use flotilla_protocol::catalog::Policy;
    use flotilla_simulator::trace::{BuiltinTrace, Recipe};

    use super::*;

    fn scenario() -> Scenario {
        let trace = BuiltinTrace::Bursts.make(&Recipe {
            seed: 1,
            rate: 1.0,
            duration: Duration::from_secs(20),
        });
        Scenario::new(trace, BuiltinTrace::Bursts.fleet()).unwrap()
    }

    #[test]
    fn policies_are_run_once_in_the_order_of_reports() {
        let scenario = scenario();
        let [one, other] = ["fifo", "slo"].map(|name| name.parse::<Choice>().unwrap());
        let chosen = |choices: &[Choice]| chosen(choices, &scenario);
        assert_eq!(chosen(&[one, other, one]), [PolicyName::Slo, PolicyName::Fifo]);
        assert_eq!(chosen(&[Choice::All, one]), chosen(&[Choice::All]));
        let unknown = "lifo".parse::<Choice>().unwrap_err().to_string();
        assert!(unknown.contains("fifo") && unknown.contains("bound"), "{unknown}");
    }

    #[test]
    fn the_bound_is_a_row_and_what_others_are_compared_with() {
        let scenario = scenario();
        let choices = ["bound", "slo", "random"].map(|name| name.parse().unwrap());
        let comparison = compare(&scenario, &choices, 1);
        let report = serde_json::to_value(report::Report::new(&scenario, &comparison)).unwrap();
        let bound = &report["policies"]["bound"];
        assert!(bound["slo_share"].as_f64().unwrap() > 0.0);
        assert_eq!(bound["swaps"], serde_json::Value::Null);
        let ratio = report["ratios"]["goodput_vs_bound"].as_f64().unwrap();
        assert!((0.0..=1.0).contains(&ratio), "{ratio}");
        let table = report::tables(&comparison)[0].to_string();
        let rows: Vec<_> = table
            .lines()
            .map(|line| line.split(' ').next().unwrap())
            .collect();
        assert_eq!(rows, ["POLICY", "slo", "random", "bound"]);
    }

    #[test]
    fn pictures_are_written_into_a_new_folder() {
        let scenario = scenario();
        let comparison = compare(&scenario, &["fifo".parse().unwrap()], 1);
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().join("new").join("plots");
        write_plots(&folder, &scenario, &comparison).unwrap();
        let files = fs::read_dir(&folder).unwrap().count();
        assert_eq!(files, 6);
    }

    #[test]
    fn the_catalogs_own_placement_is_one_of_all_where_there_is_one() {
        let plain = scenario();
        let mut fleet = plain.fleet().clone();
        fleet.models[0].policy = Some(Policy::Pack);
        let placed = Scenario::new(plain.trace().clone(), fleet).unwrap();
        let is_run = |scenario| chosen(&[Choice::All], scenario).contains(&PolicyName::Catalog);
        assert!(is_run(&placed) && !is_run(&plain));
        let named: Choice = "catalog".parse().unwrap();
        assert_eq!(chosen(&[named], &plain), [PolicyName::Catalog]);
    }

    #[test]
    fn json_has_the_figures_of_every_policy_that_was_run() {
        let scenario = scenario();
        let compared = compare(
            &scenario,
            &[PolicyName::Slo, PolicyName::Fifo].map(Choice::One),
            1,
        );
        let json = serde_json::to_value(report::Report::new(&scenario, &compared)).unwrap();
        assert_eq!(json["name"], "bursts");
        assert!(json["ratios"]["goodput_vs_bound"].is_null());
        let policies = json["policies"].as_object().unwrap();
        assert_eq!(policies.keys().collect::<Vec<_>>(), ["slo", "fifo"]);
        for row in policies.values() {
            let keys: Vec<_> = row.as_object().unwrap().keys().collect();
            assert_eq!(
                keys,
                [
                    "slo_share",
                    "goodput_rps",
                    "p99_s_per_token",
                    "cost",
                    "swaps",
                    "max_wait_s"
                ]
            );
            assert!(
                row["slo_share"].as_f64().is_some_and(|share| share > 0.5),
                "{row}"
            );
        }
        let table = report::tables(&compared)[0].to_string();
        assert_eq!(table.lines().count(), 3);
    }

    #[test]
    fn what_a_wrong_profile_costs_is_told_before_and_after_it_was_corrected() {
        let scenario = scenario();
        let mut compared = compare(&scenario, &[Choice::One(PolicyName::Slo)], 1);
        compared.misinformed = vec![misinform(&scenario, 2.0)];
        let json = serde_json::to_value(report::Report::new(&scenario, &compared)).unwrap();
        let wrong = &json["wrong_profiles"]["2"];
        assert!(wrong["slo_share"].as_f64().unwrap() > 0.5, "{wrong}");
        let learning = compared.misinformed[0].learning;
        let all = scenario.trace().requests.len();
        assert_eq!(learning.first.requests + learning.later.requests, all);
        let table = report::tables(&compared)[1].to_string();
        assert_eq!(table.lines().count(), 2, "{table}");
    }
}
