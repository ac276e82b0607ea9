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
    let compared = compare(&scenario, &chosen(&arguments.policy), arguments.seed);
    let report = report::Report::new(&scenario, &compared);
    context.format.print(&report, |_| report::tables(&compared))?;
    Ok(Exit::Ok)
}

/// The policies that are asked for, each once, in the order of reports.
fn chosen(choices: &[Choice]) -> Vec<PolicyName> {
    let is_chosen = |name| choices.contains(&Choice::All) || choices.contains(&Choice::One(name));
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
    use super::*;

    #[test]
    fn policies_are_run_once_in_the_order_of_reports() {
        let all = chosen(&[Choice::All, Choice::One(PolicyName::Fifo)]);
        assert_eq!(all, PolicyName::ALL);
        let one: Choice = "fifo".parse().unwrap();
        assert_eq!(chosen(&[one, one]), [PolicyName::Fifo]);
        assert!("lifo".parse::<Choice>().unwrap_err().to_string().contains("fifo"));
    }
}
