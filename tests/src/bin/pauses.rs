//! Pauses of clients when a part dies: `deploy/bench.sh pauses`, or `cargo run --release -p flotilla-tests --bin pauses`.
//!
//! Needs `cargo build --release -p flotilla-cli` first, and a nats-server in `$NATS_SERVER` or on `PATH`.

use std::fs;
use std::process::Command;
use std::thread::available_parallelism;

use anyhow::Result;
use clap::Parser;
use flotilla_tests::pauses::{PausesOptions, run};
use serde_json::json;

/// Workers and leaders are killed and stopped, and clients measure how long they wait.
#[derive(Debug, Parser)]
struct Arguments {
    /// Faults of each kind.
    #[arg(long, default_value_t = 40)]
    rounds: usize,
    /// A setting other than the default one, as KEY=VALUE; may be repeated.
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// One JSON object instead of a table.
    #[arg(long)]
    json: bool,
}

#[tokio::main]
#[expect(clippy::print_stdout, reason = "the figures are what the program is for")]
async fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let options = PausesOptions {
        rounds: arguments.rounds,
        settings: arguments.set,
    };
    let pauses = run(&options).await?;
    if arguments.json {
        let outcome = json!({
            "name": "pauses", "machine": machine(), "commit": commit(), "ratios": {}, "figures": pauses.figures(),
        });
        println!("{outcome:#}");
    } else {
        println!("{pauses}machine {}", machine());
    }
    Ok(())
}

/// As the other benchmarks tell it.
fn machine() -> String {
    let cores = available_parallelism().map_or_else(|_| "?".to_owned(), |count| count.to_string());
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info.lines().find_map(|line| line.strip_prefix("model name"));
    let name = model.and_then(|rest| rest.split_once(':'));
    let name = name.map_or(std::env::consts::ARCH, |(_, name)| name.trim());
    format!("{name}, {cores} cores")
}

fn commit() -> Option<String> {
    let output = Command::new("git").args(["rev-parse", "HEAD"]).output().ok()?;
    let commit = String::from_utf8(output.stdout).ok()?.trim().to_owned();
    (output.status.success() && !commit.is_empty()).then_some(commit)
}
