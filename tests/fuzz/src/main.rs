//! A long run of mutated bytes: `cargo run --release -p flotilla-fuzz --bin fuzz -- --inputs 10000000 --seed 1`.

use std::path::PathBuf;
use std::thread::available_parallelism;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Parser;
use flotilla_fuzz::{Options, Target, replay, run, table, targets};

/// Mutated bytes for every decoder of bytes from outside.
#[derive(Debug, Parser)]
struct Arguments {
    /// Inputs in all.
    #[arg(long, default_value_t = 100_000)]
    inputs: u64,
    /// What they follow from; drawn and printed when it is not given.
    #[arg(long)]
    seed: Option<u64>,
    /// These decoders alone.
    #[arg(long)]
    target: Vec<String>,
    /// The number of each decoder's first input.
    #[arg(long, default_value_t = 0)]
    from: u64,
    /// Longest time of one input.
    #[arg(long, default_value = "1s")]
    time_max: humantime::Duration,
    /// Threads; one for each processor when it is not given.
    #[arg(long)]
    threads: Option<usize>,
    /// Where inputs that break something are kept.
    #[arg(long, default_value = "target/fuzz")]
    folder: PathBuf,
    /// Reads this file with the one decoder of --target, and says what came of it.
    #[arg(long, value_name = "FILE")]
    replay: Option<PathBuf>,
    /// Names the decoders.
    #[arg(long)]
    list: bool,
}

#[expect(clippy::print_stdout, reason = "the table is what the program is for")]
fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let chosen = chosen(&arguments)?;
    if arguments.list {
        chosen.iter().for_each(|target| println!("{}", target.name));
        return Ok(());
    }
    let time_max = Duration::from(arguments.time_max);
    if let Some(file) = &arguments.replay {
        let input = std::fs::read(file).with_context(|| file.display().to_string())?;
        let [target] = &chosen[..] else {
            bail!("one --target reads {}", file.display());
        };
        println!("{:?}", replay(target, &input, time_max));
        return Ok(());
    }
    let seed = match arguments.seed {
        Some(seed) => seed,
        None => getrandom::u64().context("no random numbers")? >> 16,
    };
    println!("seed {seed}");
    let began = Instant::now();
    let options = Options {
        seed,
        inputs: arguments.inputs,
        from: arguments.from,
        time_max,
        threads: arguments
            .threads
            .unwrap_or_else(|| available_parallelism().map_or(1, usize::from)),
        folder: arguments.folder,
    };
    let outcomes = run(&chosen, &options);
    println!("{}", table(&chosen, &outcomes));
    let inputs: u64 = outcomes.iter().map(|outcome| outcome.inputs).sum();
    println!("{inputs} inputs in {:.0?}", began.elapsed());
    let findings: Vec<String> = outcomes
        .iter()
        .flat_map(|outcome| &outcome.findings)
        .map(ToString::to_string)
        .collect();
    if findings.is_empty() {
        return Ok(());
    }
    bail!("{} findings\n{}", findings.len(), findings.join("\n"))
}

fn chosen(arguments: &Arguments) -> Result<Vec<Target>> {
    let mut all = targets::all();
    let names = &arguments.target;
    if let Some(unknown) = names
        .iter()
        .find(|name| all.iter().all(|target| target.name != **name))
    {
        bail!("there is no target {unknown}; --list names them");
    }
    all.retain(|target| names.is_empty() || names.iter().any(|name| name == target.name));
    Ok(all)
}
