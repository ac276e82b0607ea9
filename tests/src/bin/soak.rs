//! A long run under load: `cargo run -p flotilla-tests --bin soak -- --minutes 30`.
//!
//! Needs `cargo build -p flotilla-cli` first, and a nats-server in `$NATS_SERVER` or on `PATH`.

use std::time::Duration;

use anyhow::Result;
use clap::Parser;
use flotilla_tests::chaos::new_seed;
use flotilla_tests::soak::{SoakOptions, soak};

/// Load at a share of the capacity: two dispatchers, two workers, one server; nothing may grow.
#[derive(Debug, Parser)]
struct Arguments {
    /// What the questions and their times follow from; drawn and printed when it is not given.
    #[arg(long)]
    seed: Option<u64>,
    /// How long the fleet is under load.
    #[arg(long, default_value_t = 30.0)]
    minutes: f64,
    /// Percent of the capacity, which is measured first.
    #[arg(long, default_value_t = 80.0)]
    load: f64,
}

#[tokio::main]
#[expect(clippy::print_stdout, reason = "the summary is what the program is for")]
async fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let seed = arguments.seed.unwrap_or_else(new_seed);
    println!("soak with seed {seed}");
    let duration = Duration::from_secs_f64(arguments.minutes * 60.0);
    let options = SoakOptions {
        seed,
        duration,
        share: arguments.load / 100.0,
        capacity_requests: 400,
        read_every: (duration / 200).max(Duration::from_millis(250)),
    };
    println!("{}", soak(&options).await?);
    Ok(())
}
