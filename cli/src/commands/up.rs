//! `flotilla up`: a whole fleet on this machine, until Ctrl-C.

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::Args;
use flotilla_client::{Catalog, CatalogError, Connection};
use flotilla_protocol::ModelName;
use thiserror::Error;

use crate::commands::UsageError;
use crate::context::Context;
use crate::exit::Exit;
use crate::fleet::{self, Fleet, FleetPlan, Port, UpFile};
use crate::output::{self, Format};
use crate::stop::Signals;

/// Arguments of `flotilla up`.
#[derive(Debug, Args)]
pub(crate) struct UpArguments {
    /// The nats-server to run [default: the one on PATH]
    #[arg(long, value_name = "PATH", env = "NATS_SERVER")]
    nats_server: Option<PathBuf>,
    /// Port of the nats-server [default: 4222, or the next free one]
    #[arg(long)]
    port: Option<u16>,
    /// How many workers
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=64))]
    workers: u8,
    /// Folder whose subfolders are added to the catalog, beside the demo models
    #[arg(long, value_name = "DIR")]
    models: Option<PathBuf>,
}

/// Another `flotilla up` uses the folder.
#[derive(Debug, Error)]
#[error(
    "another `flotilla up` runs in {}; stop it, or choose another folder with --set worker.data_dir=DIR",
    folder.display()
)]
struct AlreadyUp {
    folder: PathBuf,
}

/// Runs a fleet until a signal, or until nothing of use is left of it.
///
/// # Errors
/// When a part does not start, or all that is of use has died.
pub(crate) async fn run(context: &Context, arguments: UpArguments) -> anyhow::Result<Exit> {
    if context.global.nats.is_some() {
        let message = "`up` runs a server of its own; for another one start `flotilla dispatcher` and \
            `flotilla worker` with --nats";
        return Err(UsageError::new(message).into());
    }
    let mut signals = Signals::new()?;
    let plan = plan(context, &arguments)?;
    let _lock = lock(&plan.folder)?;
    let up_file = UpFile::path(&plan.folder);
    remove(&up_file)?;
    fleet::extract(&fleet::DEMO_MODELS, &plan.models_dir)?;
    let started = tokio::select! {
        started = start(context, &arguments, &plan) => started?,
        () = signals.next() => return Ok(Exit::Interrupted),
    };
    let mut fleet = started;
    let up = fleet.up_file(&context.config.nats.namespace);
    up.write(&up_file)?;
    announce(context, &fleet, &up)?;
    let ended = watch(&mut fleet, &mut signals).await;
    output::note("flotilla: draining; Ctrl-C again stops at once");
    tokio::select! {
        () = fleet.stop() => {}
        () = signals.next() => fleet.kill().await,
    }
    remove(&up_file)?;
    ended?;
    Ok(Exit::Ok)
}

fn plan(context: &Context, arguments: &UpArguments) -> anyhow::Result<FleetPlan> {
    let folder = std::path::absolute(context.data_dir()).context("cannot find the data folder's path")?;
    Ok(FleetPlan {
        nats_server: fleet::find_server(arguments.nats_server.as_deref())?,
        port: arguments.port.map_or(Port::From(NATS_PORT), Port::Exactly),
        models_dir: folder.join("models"),
        folder,
        workers: usize::from(arguments.workers),
        arguments: context.child_arguments(),
    })
}

/// Holds the folder until it is dropped, or the process dies.
fn lock(folder: &Path) -> anyhow::Result<File> {
    fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let path = folder.join("up.lock");
    let file = File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(AlreadyUp {
            folder: folder.to_owned(),
        }
        .into()),
        Err(TryLockError::Error(error)) => {
            Err(error).with_context(|| format!("cannot lock {}", path.display()))
        }
    }
}

fn remove(path: &Path) -> anyhow::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", path.display()))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

async fn start(context: &Context, arguments: &UpArguments, plan: &FleetPlan) -> anyhow::Result<Fleet> {
    let (fleet, connection) = Fleet::start(plan, &context.config).await?;
    let own = arguments
        .models
        .as_ref()
        .or(context.config.worker.models_dir.as_ref());
    if let Some(folder) = own {
        add_models(&connection, folder).await?;
    }
    Ok(fleet)
}

/// Adds every model folder of a folder, or brings its entry up to date.
async fn add_models(connection: &Connection, folder: &Path) -> anyhow::Result<()> {
    let catalog = Catalog::open(connection).await?;
    let unreadable = || format!("cannot read the folder of models {}", folder.display());
    for child in fs::read_dir(folder).with_context(unreadable)? {
        let path = std::path::absolute(child.with_context(unreadable)?.path())?;
        if !path.join("config.json").is_file() {
            continue;
        }
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let name = ModelName::new(name).with_context(|| path.display().to_string())?;
        let entry = flotilla_worker::describe(name.clone(), &path)?;
        match catalog.add(&entry).await {
            Err(CatalogError::Exists { .. }) if catalog.entry(&name).await?.as_ref() != Some(&entry) => {
                catalog.remove(&name).await?;
                catalog.add(&entry).await?;
            }
            Ok(()) | Err(CatalogError::Exists { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Reports deaths until somebody asks for the end.
async fn watch(fleet: &mut Fleet, signals: &mut Signals) -> anyhow::Result<()> {
    loop {
        let death = tokio::select! {
            () = signals.next() => return Ok(()),
            death = fleet.next_death() => death,
        };
        if !fleet.is_useful() {
            anyhow::bail!("{death}");
        }
        output::note(&format!(
            "flotilla: {death}\nflotilla: the rest goes on without it"
        ));
    }
}

fn announce(context: &Context, fleet: &Fleet, up: &UpFile) -> anyhow::Result<()> {
    if context.format == Format::Json {
        return output::line(serde_json::to_string(up)?);
    }
    let namespace = &up.namespace;
    let url = fleet.url();
    output::line(format_args!(
        "The fleet is up: {} with nats-server, a dispatcher and {} worker(s).",
        url,
        up.worker_pids.len()
    ))?;
    for child in fleet.children() {
        output::line(format_args!(
            "  {:<12} pid {:<8} log {}",
            child.name(),
            child.pid(),
            child.log().display()
        ))?;
    }
    if let Some(http) = &up.dispatcher_http {
        output::line(format_args!(
            "\nMetrics and health (/metrics, /livez, /readyz):\n  {:<12} {http}",
            "dispatcher"
        ))?;
    }
    for (number, http) in (1..).zip(&up.worker_http) {
        output::line(format_args!("  {:<12} {http}", format!("worker-{number}")))?;
    }
    let models = fleet::DEMO_MODELS.map(|model| model.name).join(", ");
    output::line(format_args!(
        "\nDemo models: {models}. Requests go to {namespace}.request.<class>.<model>. Try, in this folder:\n\n  \
         flotilla run adder '123+456='\n  \
         flotilla run sorter 'sort 52914='\n  \
         flotilla ps\n  \
         nats --server {url} req {namespace}.infer.adder '{{\"prompt\":\"123+456=\"}}'\n\n\
         Ctrl-C drains and stops everything."
    ))
}

/// Where NATS clients look first.
const NATS_PORT: u16 = 4222;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_folder_has_one_fleet() {
        let folder = tempfile::tempdir().unwrap();
        let held = lock(folder.path()).unwrap();
        let error = lock(folder.path()).unwrap_err();
        assert!(error.is::<AlreadyUp>(), "{error}");
        drop(held);
        lock(folder.path()).unwrap();
    }
}
