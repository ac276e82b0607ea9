//! `flotilla simulate`: what policies make of a trace, on a virtual clock.

mod inputs;
mod report;

use std::path::PathBuf;
use std::str::FromStr;
use std::thread;

use clap::Args;
use flotilla_simulator::outcome::Figures;
use flotilla_simulator::policy::{PolicyName, UnknownPolicy};
use flotilla_simulator::run::Scenario;

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
    /// Policies to compare, separated by commas, or all
    #[arg(long, value_name = "NAMES", default_value = "all", value_delimiter = ',')]
    policy: Vec<Choice>,
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
}

/// One word of `--policy`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Choice {
    All,
    One(PolicyName),
}

impl FromStr for Choice {
    type Err = UnknownPolicy;

    fn from_str(text: &str) -> Result<Self, UnknownPolicy> {
        match text {
            "all" => Ok(Self::All),
            name => name.parse().map(Self::One),
        }
    }
}

/// What one policy came to.
#[derive(Debug)]
struct Compared {
    policy: PolicyName,
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
    let compared = compare(&scenario, &chosen(&arguments.policy, &scenario), arguments.seed);
    let report = report::Report::new(&scenario, &compared);
    context.format.print(&report, |_| report::tables(&compared))?;
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

/// Runs each policy on a thread of its own.
fn compare(scenario: &Scenario, policies: &[PolicyName], seed: u64) -> Vec<Compared> {
    let simulate = |policy: PolicyName| Compared {
        policy,
        figures: Figures::of(scenario, &policy.simulate(scenario, seed)),
    };
    thread::scope(|scope| {
        let runs: Vec<_> = policies
            .iter()
            .map(|policy| scope.spawn(move || simulate(*policy)))
            .collect();
        let ended = runs.into_iter().map(thread::ScopedJoinHandle::join);
        ended
            .map(|ended| ended.unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .collect()
    })
}

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
        assert!("lifo".parse::<Choice>().unwrap_err().to_string().contains("fifo"));
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
        let compared = compare(&scenario, &[PolicyName::Slo, PolicyName::Fifo], 1);
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
}
