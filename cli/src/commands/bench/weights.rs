//! `flotilla bench weights`: copies of weights over the relay, against what the machine can do without them and
//! against the stock object store.
//!
//! Everything runs in one process beside a private nats-server, in rounds, each of which measures everything once:
//! what else happens on the machine falls on all alike. The part of workers is the real one: exports, importers and
//! stores, over connections and on threads of their own.

mod copies;
mod figures;
mod flow;
mod loads;
mod model;
mod relay;
mod role;
mod stock;
mod worker;
mod yardsticks;

use std::path::{Path, PathBuf};
use std::thread::available_parallelism;

use anyhow::Context as _;
use clap::Args;
use flotilla_client::Connection;
use flotilla_config::Config;
use flotilla_dispatcher::ensure_topology;
use tempfile::TempDir;
use tokio::task::block_in_place;

use self::copies::Copies;
use self::figures::Samples;
pub(crate) use self::figures::{Figures, tables};
use self::flow::Flow;
use self::model::Model;
use self::relay::Segments;
use super::{Outcome, machine};
use crate::commands::Interrupted;
use crate::context::Context;
use crate::fleet::{self, PrivateServer};
use crate::output;
use crate::stop::Signals;

/// Arguments of `flotilla bench weights`.
#[derive(Debug, Args)]
pub(crate) struct WeightsArguments {
    /// Size of the model; it is held in memory several times
    #[arg(long, default_value_t = 1_024, value_parser = clap::value_parser!(u32).range(256..=65_536))]
    mib: u32,
    /// How often everything but the time between tokens is measured; the best counts
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(0..=1_000))]
    rounds: u16,
    /// How often the time between tokens is measured beside a copy and without; 0 leaves it out
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u16).range(0..=1_000))]
    token_rounds: u16,
    /// Where the model and its copies are written, in a folder that is removed afterwards [default: the system's
    /// folder for temporary files]
    #[arg(long)]
    folder: Option<PathBuf>,
    /// A folder in memory, for copies that wait for no disk; left out when it is not there
    #[arg(long, default_value = "/dev/shm")]
    memory_folder: PathBuf,
    /// The nats-server to run [default: the one on PATH]
    #[arg(long, value_name = "PATH", env = "NATS_SERVER")]
    nats_server: Option<PathBuf>,
}

/// Measures beside a server of its own, which is gone afterwards.
///
/// # Errors
/// When files cannot be written, the server does not start, or a copy fails.
pub(super) async fn run(context: &Context, arguments: &WeightsArguments) -> anyhow::Result<Outcome<Figures>> {
    let disk = scratch(arguments.folder.as_deref())?;
    let memory = arguments
        .memory_folder
        .is_dir()
        .then(|| scratch(Some(&arguments.memory_folder)));
    let memory = memory.transpose()?;
    let nats_server = fleet::find_server(arguments.nats_server.as_deref())?;
    let mut signals = Signals::new()?;
    let (mut server, connection) = tokio::select! {
        started = PrivateServer::start(nats_server.clone(), disk.path(), &context.config) => started?,
        () = signals.next() => return Err(Interrupted.into()),
    };
    let mut config = context.config.clone();
    config.nats.url = vec![server.url().to_owned()];
    // All segments lie there at once when puts and gets are measured alone.
    config.nats.relay_max_bytes = (u64::from(arguments.mib) << 20) * 2;
    let measuring = measure(
        arguments,
        &config,
        &connection,
        disk.path(),
        memory.as_ref().map(TempDir::path),
    );
    let measured = tokio::select! {
        measured = measuring => measured,
        () = signals.next() => Err(Interrupted.into()),
    };
    // A client whose server has gone would ask for it as long as it lives.
    drop(connection);
    server.stop().await;
    let (mut samples, model) = measured?;
    drop(signals);
    if arguments.token_rounds > 0 {
        let flow = Flow {
            context,
            nats_server,
            disk: disk.path(),
            receivers: memory.as_ref().unwrap_or(&disk).path(),
            rounds: arguments.token_rounds,
        };
        flow.measure(&mut samples).await?;
    }
    Ok(Outcome {
        name: "weights",
        machine: machine::machine(),
        commit: machine::commit(),
        ratios: samples.ratios(),
        figures: samples.figures(model.files.manifest().bytes(), model.segments(), arguments.rounds),
    })
}

async fn measure(
    arguments: &WeightsArguments,
    config: &Config,
    connection: &Connection,
    disk: &Path,
    memory: Option<&Path>,
) -> anyhow::Result<(Samples, Model)> {
    ensure_topology(connection, config).await?;
    let threads = available_parallelism().context("cannot count the cores")?;
    output::note(&format!(
        "bench: a model of {} MiB in {}",
        arguments.mib,
        disk.display()
    ));
    let model = block_in_place(|| Model::write(&disk.join("model"), arguments.mib, threads))?;
    let segments = Segments::open(&config.nats, &model).await?;
    let copies = Copies {
        connection,
        nats: &config.nats,
        model: &model,
        disk,
        memory,
    };
    let mut samples = Samples::default();
    for round in 1..=arguments.rounds {
        output::note(&format!(
            "bench: round {round} of {}: sockets, disk, hash",
            arguments.rounds
        ));
        block_in_place(|| yardsticks::measure(&model, disk, &mut samples))?;
        output::note("bench: the stock object store");
        stock::measure(connection, &model, disk, &mut samples).await?;
        output::note("bench: segments through the relay");
        segments.measure(&mut samples).await?;
        output::note("bench: copies between workers");
        copies.measure(&mut samples).await?;
        output::note("bench: loads of a model that comes");
        copies.measure_loads(threads, &mut samples).await?;
    }
    Ok((samples, model))
}

fn scratch(parent: Option<&Path>) -> anyhow::Result<TempDir> {
    let made = parent.map_or_else(tempfile::tempdir, tempfile::tempdir_in);
    made.context("cannot create a folder for the benchmark")
}
