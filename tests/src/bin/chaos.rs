//! A long run of chaos: `cargo run -p flotilla-tests --bin chaos -- --requests 100000 --seed 7`.
//!
//! Needs `cargo build -p flotilla-cli` first, and a nats-server in `$NATS_SERVER` or on `PATH`.

use std::path::PathBuf;

use anyhow::Result;
use clap::Parser;
use clap::builder::TypedValueParser;
use flotilla_tests::chaos::{ChaosOptions, Pace, TimelineOf, run};

/// Requests under faults: two dispatchers, two workers with simulated devices, one server or a cluster.
#[derive(Debug, Parser)]
struct Arguments {
    /// What the questions and the faults follow from; drawn and printed when it is not given.
    #[arg(long)]
    seed: Option<u64>,
    /// Requests in all.
    #[arg(long, default_value_t = 10_000)]
    requests: usize,
    /// Faults in all: one for each 150 requests when it is not given.
    #[arg(long)]
    faults: Option<usize>,
    /// Servers: one, or three that are a cluster.
    #[arg(long, default_value_t = 1, value_parser = clap::builder::PossibleValuesParser::new(["1", "3"]).map(|count| count.parse::<usize>().expect("a number")))]
    servers: usize,
    /// Requests under way at once.
    #[arg(long, default_value_t = 48)]
    clients: usize,
    /// Shorter patience with silent parts than by default, and shorter faults with it.
    #[arg(long)]
    quick: bool,
    /// What the parts log.
    #[arg(long, default_value = "info")]
    log_level: String,
    /// Where the timeline goes, also that of a run that found nothing.
    #[arg(long)]
    timeline: Option<PathBuf>,
}

#[tokio::main]
#[expect(clippy::print_stdout, reason = "the summary is what the program is for")]
async fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let seed = arguments.seed.unwrap_or_else(flotilla_tests::chaos::new_seed);
    println!("chaos with seed {seed}");
    let mut options = ChaosOptions::new(seed, arguments.requests);
    options.faults = arguments.faults.unwrap_or(options.faults);
    options.servers = arguments.servers;
    options.clients = arguments.clients;
    options.log_level = arguments.log_level;
    if arguments.quick {
        options.pace = Pace::Quick;
    }
    if let Some(timeline) = arguments.timeline {
        options.timeline = timeline;
        options.timeline_of = TimelineOf::EveryRun;
    }
    println!("{}", run(&options).await?);
    Ok(())
}
