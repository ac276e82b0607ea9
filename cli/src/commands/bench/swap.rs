//! `flotilla bench swap`: how long a request waits whose model has to take another's place, against what the
//! machine needs to move as many bytes.
//!
//! The fleet is the real one. Its worker has memory for one of two models, which are asked for in turns, one
//! request at a time, so that every request is a swap: unload, load, and the first token. From host memory the
//! bound is the bandwidth of memory; from disk, with the system's file cache emptied before each load, that of
//! the disk, read from end to end in the same round, as a worker reads it. What lies in the file cache is measured
//! against the memory's bandwidth, too, and beside it what the system takes to copy the file out of its cache.

mod models;

use std::path::{Path, PathBuf};
use std::thread::available_parallelism;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use bytes::Bytes;
use clap::Args;
use flotilla_client::{Answer, Connection, Events, NewRequest, new_request_id, submit};
use flotilla_protocol::{Class, Encoding, ModelName};
use serde_json::{Map, Value, json};

pub(super) use self::models::Pair;
use super::engine::{Memory, ShapeName};
use super::{Outcome, disk, machine};
use crate::commands::Interrupted;
use crate::context::Context;
use crate::fleet::{self, Fleet, FleetPlan, Port};
use crate::output;
use crate::stop::Signals;

/// Arguments of `flotilla bench swap`.
#[derive(Debug, Args)]
pub(crate) struct SwapArguments {
    /// Shape of both models
    #[arg(long, value_enum, default_value = "smollm2-135m")]
    shape: ShapeName,
    /// How often each kind of swap is measured
    #[arg(long, default_value_t = 9, value_parser = clap::value_parser!(u16).range(1..=1_000))]
    rounds: u16,
    /// Memory that is read to know its bandwidth, in MiB; what a cache holds is too little
    #[arg(long, hide = true, default_value_t = 1_024, value_parser = clap::value_parser!(u16).range(1..))]
    memory_mib: u16,
    /// Where the random weights are kept [default: a folder that is removed afterwards]
    #[arg(long)]
    folder: Option<PathBuf>,
    /// The nats-server to run [default: the one on PATH]
    #[arg(long, value_name = "PATH", env = "NATS_SERVER")]
    nats_server: Option<PathBuf>,
}

/// Where a model's weights come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    HostMemory,
    FileCache,
    Disk,
}

impl Source {
    const ALL: [Self; 3] = [Self::HostMemory, Self::FileCache, Self::Disk];

    const fn name(self) -> &'static str {
        match self {
            Self::HostMemory => "host_memory",
            Self::FileCache => "file_cache",
            Self::Disk => "disk",
        }
    }

    /// What the worker keeps of a model that it has unloaded.
    const fn host_memory(self) -> &'static str {
        match self {
            Self::HostMemory => "worker.host_memory_bytes=64GiB",
            Self::FileCache | Self::Disk => "worker.host_memory_bytes=0",
        }
    }
}

/// What one kind of swap takes, in seconds: medians.
#[derive(Debug, Clone, Copy)]
struct Measured {
    /// From the worker's taking the request to the model's being ready.
    load_s: f64,
    /// What the client waits more than with a resident model.
    swap_s: f64,
    /// What moving the weights takes at the bandwidth of their source.
    bound_s: f64,
    /// What the system takes to give the weights out of its cache, where they come from there.
    cached_read_s: Option<f64>,
}

/// Measures on fleets of its own, which are gone afterwards.
///
/// # Errors
/// When weights cannot be written, a fleet does not start, or a request fails.
pub(super) async fn run(
    context: &Context,
    arguments: &SwapArguments,
) -> anyhow::Result<Outcome<Map<String, Value>>> {
    let scratch = tempfile::tempdir().context("cannot create a folder for the benchmark")?;
    let folder = arguments
        .folder
        .clone()
        .unwrap_or_else(|| scratch.path().join("models"));
    let threads = available_parallelism().context("cannot count the cores")?;
    output::note(&format!("bench: two models in {}", folder.display()));
    let pair = Pair::write(&arguments.shape.shape(), &folder, threads)?;
    let mut memory = Memory::new(arguments.memory_mib, threads);
    let mut ratios = Map::new();
    let mut figures = Map::new();
    for source in Source::ALL {
        output::note(&format!("bench: from {}", source.name()));
        let plan = plan(
            context,
            arguments,
            &scratch.path().join(source.name()),
            &pair,
            source,
        )?;
        let measured = measure(context, &plan, &pair, source, arguments.rounds, &mut memory).await?;
        let name = source.name();
        ratios.insert(
            format!("{name}.load_vs_bound"),
            json!(measured.load_s / measured.bound_s),
        );
        ratios.insert(
            format!("{name}.load_beyond_10_ms_vs_bound"),
            json!((measured.load_s - ALLOWANCE_S).max(0.0) / measured.bound_s),
        );
        figures.insert(format!("{name}.load_ms"), json!(measured.load_s * 1e3));
        figures.insert(format!("{name}.swap_ms"), json!(measured.swap_s * 1e3));
        figures.insert(format!("{name}.bound_ms"), json!(measured.bound_s * 1e3));
        if let Some(read_s) = measured.cached_read_s {
            figures.insert(format!("{name}.read_ms"), json!(read_s * 1e3));
        }
    }
    figures.insert("weights_mib".to_owned(), json!(pair.weights_bytes >> 20));
    Ok(Outcome {
        name: "swap",
        machine: machine::machine(),
        commit: machine::commit(),
        ratios,
        figures,
    })
}

fn plan(
    context: &Context,
    arguments: &SwapArguments,
    folder: &Path,
    pair: &Pair,
    source: Source,
) -> anyhow::Result<FleetPlan> {
    std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let mut settings = context.child_arguments();
    for setting in [
        source.host_memory().to_owned(),
        "worker.models_per_device_max=1".to_owned(),
        format!("worker.cpu.memory_bytes={}", pair.device_bytes()),
    ] {
        settings.extend(["--set".to_owned(), setting]);
    }
    Ok(FleetPlan {
        nats_server: fleet::find_server(arguments.nats_server.as_deref())?,
        port: Port::Any,
        folder: folder.to_owned(),
        workers: 1,
        models_dir: pair.folder.clone(),
        arguments: settings,
    })
}

async fn measure(
    context: &Context,
    plan: &FleetPlan,
    pair: &Pair,
    source: Source,
    rounds: u16,
    memory: &mut Memory,
) -> anyhow::Result<Measured> {
    let mut signals = Signals::new()?;
    let (mut fleet, client) = tokio::select! {
        started = Fleet::start(plan, &context.config) => started?,
        () = signals.next() => return Err(Interrupted.into()),
    };
    let measured = tokio::select! {
        measured = take_turns(&client, pair, source, rounds, memory) => measured,
        () = signals.next() => Err(Interrupted.into()),
    };
    fleet.stop().await;
    measured
}

/// Each round is two swaps, each followed by a request to the model that is there by then.
async fn take_turns(
    client: &Connection,
    pair: &Pair,
    source: Source,
    rounds: u16,
    memory: &mut Memory,
) -> anyhow::Result<Measured> {
    let (mut loads, mut swaps, mut bounds) = (Vec::new(), Vec::new(), Vec::new());
    let mut cached_reads = Vec::new();
    // The first round finds nothing in host memory.
    for round in 0..=rounds {
        for (model, weights) in pair.models() {
            let bandwidth = match source {
                Source::HostMemory | Source::FileCache => memory.read(),
                Source::Disk => disk::read_bandwidth(&weights)?,
            };
            match source {
                Source::HostMemory => {}
                Source::FileCache => {
                    cached_reads.push(pair.weights_bytes as f64 / disk::cached_bandwidth(&weights)?);
                }
                Source::Disk => disk::drop_from_cache(&weights)?,
            }
            let cold = ask(client, &model).await?;
            let warm = ask(client, &model).await?;
            if round > 0 {
                loads.push(cold.load_s);
                swaps.push(cold.answer.saturating_sub(warm.answer).as_secs_f64());
                bounds.push(pair.weights_bytes as f64 / bandwidth);
            }
        }
    }
    Ok(Measured {
        load_s: median(loads),
        swap_s: median(swaps),
        bound_s: median(bounds),
        cached_read_s: (source == Source::FileCache).then(|| median(cached_reads)),
    })
}

struct Asked {
    /// From the publish to the last event.
    answer: Duration,
    /// How long the request waited for its model.
    load_s: f64,
}

/// One token of a model.
async fn ask(client: &Connection, model: &ModelName) -> anyhow::Result<Asked> {
    let body: Bytes = serde_json::to_vec(&json!({"prompt": "w5 w6 w7", "max_tokens": 1}))?.into();
    let request = new_request_id();
    let mut events = Events::subscribe(client, request.clone()).await?;
    let begun = Instant::now();
    let new = NewRequest {
        request,
        class: Class::Interactive,
        model: model.clone(),
        encoding: Encoding::Json,
        body,
    };
    submit(client, new).await?;
    let answer = tokio::time::timeout(REQUEST_MAX, Answer::collect(&mut events));
    let answer = answer
        .await
        .context("a request of the benchmark has no answer")??;
    Ok(Asked {
        answer: begun.elapsed(),
        load_s: answer.end?.timings.load_ms / 1e3,
    })
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// What a swap may take beside moving the bytes.
const ALLOWANCE_S: f64 = 0.010;
/// Far beyond any load of a benchmark.
const REQUEST_MAX: Duration = Duration::from_secs(120);
