//! `flotilla bench`: measurements, each against a bound or a peer in the same run.

mod decide;
mod disk;
mod dispatch;
mod engine;
mod jetstream;
mod load;
pub(crate) mod machine;
mod swap;
mod weights;

use std::path::PathBuf;

use clap::{Args, Subcommand};
use serde::Serialize;
use serde_json::{Map, Value};

use crate::context::Context;
use crate::exit::Exit;
use crate::table::{Table, numbers, words};

/// What to measure.
#[derive(Debug, Subcommand)]
pub(crate) enum BenchCommand {
    /// Requests through the whole fleet against bare JetStream
    Dispatch(DispatchArguments),
    /// One decision of the dispatcher with a long queue and a large fleet, and the memory of a waiting request
    Decide(decide::DecideArguments),
    /// The engine's speed against the memory's and llama.cpp's, on random weights
    Engine(engine::EngineArguments),
    /// A request whose model takes another's place, against moving its bytes
    Swap(swap::SwapArguments),
    /// Copies of weights between workers, against bare TCP, the disk and the stock object store
    Weights(weights::WeightsArguments),
}

/// Arguments of `flotilla bench dispatch`.
#[derive(Debug, Args)]
pub(crate) struct DispatchArguments {
    /// Requests of the throughput part
    #[arg(long, default_value_t = 5_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    requests: u32,
    /// Requests under way at once in the throughput part
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=4_096))]
    concurrency: u32,
    /// Requests of the latency part, one at a time
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    latency_requests: u32,
    /// The nats-server to run [default: the one on PATH]
    #[arg(long, value_name = "PATH", env = "NATS_SERVER")]
    nats_server: Option<PathBuf>,
}

/// The outcome of a benchmark.
#[derive(Debug, Serialize)]
struct Outcome<F> {
    name: &'static str,
    machine: String,
    commit: Option<String>,
    ratios: Map<String, Value>,
    figures: F,
}

/// Runs a benchmark.
///
/// # Errors
/// When the fleet does not start, a request fails, or a model cannot be loaded.
pub(crate) async fn run(context: &Context, command: BenchCommand) -> anyhow::Result<Exit> {
    match command {
        BenchCommand::Dispatch(arguments) => {
            let outcome = dispatch::run(context, &arguments).await?;
            context.format.print(&outcome, |outcome| vec![table(outcome)])?;
        }
        BenchCommand::Decide(arguments) => {
            let outcome = decide::run(&arguments)?;
            context.format.print(&outcome, |outcome| vec![table(outcome)])?;
        }
        BenchCommand::Engine(arguments) => {
            let outcome = engine::run(&arguments).await?;
            context.format.print(&outcome, engine::tables)?;
        }
        BenchCommand::Swap(arguments) => {
            let outcome = swap::run(context, &arguments).await?;
            context.format.print(&outcome, |outcome| vec![table(outcome)])?;
        }
        BenchCommand::Weights(arguments) => {
            let outcome = weights::run(context, &arguments).await?;
            context.format.print(&outcome, weights::tables)?;
        }
    }
    Ok(Exit::Ok)
}

fn table(outcome: &Outcome<Map<String, Value>>) -> Table {
    let mut table = Table::new([words("FIGURE"), numbers("VALUE")]);
    let measured = outcome.ratios.iter().chain(&outcome.figures);
    for (name, value) in measured {
        let shown = match value.as_f64() {
            Some(number) => format!("{number:.3}"),
            None => value.to_string(),
        };
        table.row([name.clone(), shown]);
    }
    table.row(["machine".to_owned(), outcome.machine.clone()]);
    table.row([
        "commit".to_owned(),
        outcome.commit.clone().unwrap_or_else(|| "-".to_owned()),
    ]);
    table
}
