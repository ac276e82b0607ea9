//! `flotilla models`: the catalog, and which of its models are loaded.

use clap::{Args, Subcommand};
use flotilla_client::{Catalog, CatalogError};
use flotilla_protocol::admin::{FleetStatus, ResidencyReply, ResidencyRequest};
use flotilla_protocol::catalog::{CatalogEntry, ModelSource};
use flotilla_protocol::request::KeepAlive;
use flotilla_protocol::{ModelName, WorkerId};
use serde::Serialize;

use crate::admin::{self, AdminError, Nothing};
use crate::commands::ps::model_state;
use crate::context::Context;
use crate::exit::Exit;
use crate::table::{Table, bytes, numbers, or_dash, span_ms, words};

mod add;
mod pull;
mod simulated;
mod treatment;

use add::AddArguments;
use pull::PullArguments;

/// What to do with models.
#[derive(Debug, Subcommand)]
pub(crate) enum ModelsCommand {
    /// Lists the catalog
    List,
    /// Prints one entry and the workers that hold the model
    Show {
        /// The model's name
        name: ModelName,
    },
    /// Adds a Hugging Face folder, a model of the hub, or a model that is simulated
    Add(Box<AddArguments>),
    /// Brings a model's files to a worker, from another worker or the hub
    Pull(PullArguments),
    /// Removes a model from the catalog; its files stay
    Rm {
        /// The model's name
        name: ModelName,
    },
    /// Loads a model, on the worker with most room unless one is named
    Load(LoadArguments),
    /// Unloads a model when it is idle, everywhere unless a worker is named
    Unload {
        /// The model's name
        name: ModelName,
        /// The worker
        #[arg(long)]
        worker: Option<WorkerId>,
    },
}

/// Arguments of `flotilla models load`.
#[derive(Debug, Args)]
pub(crate) struct LoadArguments {
    /// The model's name
    name: ModelName,
    /// The worker
    #[arg(long)]
    worker: Option<WorkerId>,
    /// How long it stays loaded when idle: "10m", or "-1" for until evicted
    #[arg(long, value_name = "TIME", allow_hyphen_values = true, value_parser = keep_alive)]
    keep_alive: Option<KeepAlive>,
}

/// Runs a command.
///
/// # Errors
/// When the catalog or the dispatcher cannot be asked, or refuses.
pub(crate) async fn run(context: &Context, command: ModelsCommand) -> anyhow::Result<Exit> {
    match command {
        ModelsCommand::List => list(context).await?,
        ModelsCommand::Show { name } => show(context, &name).await?,
        ModelsCommand::Add(arguments) => add(context, &arguments.entry(context).await?).await?,
        ModelsCommand::Pull(arguments) => pull::run(context, arguments).await?,
        ModelsCommand::Rm { name } => remove(context, &name).await?,
        ModelsCommand::Load(arguments) => {
            let question = ResidencyRequest {
                model: arguments.name,
                worker: arguments.worker,
                keep_alive: arguments.keep_alive,
            };
            order(context, "load", &question).await?;
        }
        ModelsCommand::Unload { name, worker } => {
            let question = ResidencyRequest {
                model: name,
                worker,
                keep_alive: None,
            };
            order(context, "unload", &question).await?;
        }
    }
    Ok(Exit::Ok)
}

async fn list(context: &Context) -> anyhow::Result<()> {
    let connection = context.connect("flotilla-models").await?;
    let entries = Catalog::open(&connection).await?.list().await?;
    context.format.print(&entries, |entries| {
        let mut table = Table::new([
            words("MODEL"),
            words("ARCHITECTURE"),
            numbers("WEIGHTS"),
            words("QUANTIZE"),
            numbers("CONTEXT"),
            words("PIN"),
            words("KEEP ALIVE"),
            words("SOURCE"),
        ]);
        for entry in entries {
            table.row([
                entry.name.to_string(),
                entry.facts.architecture.clone(),
                bytes(entry.facts.weights_bytes),
                or_dash(entry.quantize),
                entry.facts.context_tokens_max.to_string(),
                yes_or_dash(entry.pin),
                or_dash(entry.keep_alive.map(keep_alive_text)),
                source(entry),
            ]);
        }
        vec![table]
    })
}

/// An entry and where it is.
#[derive(Debug, Serialize)]
struct Shown {
    #[serde(flatten)]
    entry: CatalogEntry,
    workers: Vec<Holder>,
}

#[derive(Debug, Serialize)]
struct Holder {
    worker: WorkerId,
    state: String,
    leases: u32,
}

async fn show(context: &Context, name: &ModelName) -> anyhow::Result<()> {
    let connection = context.connect("flotilla-models").await?;
    let catalog = Catalog::open(&connection).await?;
    let entry = catalog.entry(name).await?;
    let entry = entry.ok_or_else(|| CatalogError::Unknown { model: name.clone() })?;
    let workers = match admin::ask(&connection, "workers", &Nothing {}).await {
        Ok(fleet) => holders(&fleet, name),
        // The catalog stands without a dispatcher; its holders are only known to one.
        Err(AdminError::NoLeader { .. }) => Vec::new(),
        Err(error) => return Err(error.into()),
    };
    let shown = Shown { entry, workers };
    context
        .format
        .print(&shown, |shown| vec![facts(shown), held(shown)])
}

fn holders(fleet: &FleetStatus, name: &ModelName) -> Vec<Holder> {
    let reports = fleet.workers.iter().map(|worker| &worker.report);
    reports
        .flat_map(|report| report.models.iter().map(move |model| (report, model)))
        .filter(|(_, model)| model.model == *name)
        .map(|(report, model)| Holder {
            worker: report.worker.clone(),
            state: model_state(&model.state),
            leases: model.leases,
        })
        .collect()
}

fn facts(shown: &Shown) -> Table {
    let entry = &shown.entry;
    let mut table = Table::new([words("MODEL"), words("VALUE")]);
    let mut row = |key: &str, value: String| table.row([key.to_owned(), value]);
    row("name", entry.name.to_string());
    row("source", source(entry));
    row("architecture", entry.facts.architecture.clone());
    row("task", entry.facts.task.to_string());
    row("context tokens", entry.facts.context_tokens_max.to_string());
    row("vocabulary", entry.facts.vocabulary_size.to_string());
    row("weights", bytes(entry.facts.weights_bytes));
    row("quantize", or_dash(entry.quantize));
    row("slots", or_dash(entry.slots));
    row("keep alive", or_dash(entry.keep_alive.map(keep_alive_text)));
    row("pin", yes_or_dash(entry.pin));
    row("targets", or_dash(treatment::targets(entry)));
    row("policy", entry.policy.unwrap_or_default().to_string());
    row("answer tokens", or_dash(entry.output_tokens_prior));
    table
}

fn held(shown: &Shown) -> Table {
    let mut table = Table::new([words("WORKER"), numbers("LEASES"), words("STATE")]);
    for holder in &shown.workers {
        table.row([
            holder.worker.to_string(),
            holder.leases.to_string(),
            holder.state.clone(),
        ]);
    }
    table
}

async fn add(context: &Context, entry: &CatalogEntry) -> anyhow::Result<()> {
    let connection = context.connect("flotilla-models").await?;
    Catalog::open(&connection).await?.add(entry).await?;
    let sentence = match &entry.source {
        ModelSource::Folder(folder) => format!("{} is in the catalog, from {}", entry.name, folder.display()),
        ModelSource::Hub(model) => format!("{} is in the catalog, from {model}", entry.name),
        ModelSource::Simulated { .. } => format!("{} is in the catalog, simulated", entry.name),
    };
    context.format.print_line(entry, sentence)
}

async fn remove(context: &Context, name: &ModelName) -> anyhow::Result<()> {
    let connection = context.connect("flotilla-models").await?;
    Catalog::open(&connection).await?.remove(name).await?;
    context.format.print_line(
        &serde_json::json!({"removed": name}),
        format_args!("{name} is removed"),
    )
}

async fn order(context: &Context, verb: &'static str, question: &ResidencyRequest) -> anyhow::Result<()> {
    let connection = context.connect("flotilla-models").await?;
    let reply: ResidencyReply = admin::ask(&connection, verb, question).await?;
    let workers: Vec<&str> = reply.workers.iter().map(WorkerId::as_str).collect();
    let sentence = match workers.is_empty() {
        true => format!("no worker has anything to {verb}"),
        false => format!("told {}; `flotilla ps` shows how far it is", workers.join(", ")),
    };
    context.format.print_line(&reply, sentence)
}

fn source(entry: &CatalogEntry) -> String {
    match &entry.source {
        ModelSource::Folder(path) => path.display().to_string(),
        ModelSource::Hub(model) => model.to_string(),
        ModelSource::Simulated { .. } => "simulated".to_owned(),
    }
}

fn yes_or_dash(is_so: bool) -> String {
    or_dash(is_so.then_some("yes"))
}

fn keep_alive_text(keep_alive: KeepAlive) -> String {
    match keep_alive {
        KeepAlive::Ms(ms) => span_ms(ms),
        KeepAlive::UntilEvicted => "until evicted".to_owned(),
    }
}

/// A plain number is seconds, a negative one "until evicted", else a span such as `10m`.
fn keep_alive(text: &str) -> Result<KeepAlive, String> {
    if let Ok(seconds) = text.parse::<i64>() {
        let seconds = u64::try_from(seconds);
        return Ok(seconds.map_or(KeepAlive::UntilEvicted, |s| KeepAlive::Ms(s.saturating_mul(1000))));
    }
    let span = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    let ms = u64::try_from(span.as_millis()).map_err(|_| "longer than any machine lives".to_owned())?;
    Ok(KeepAlive::Ms(ms))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keep_alive_is_read_as_in_a_request() {
        assert_eq!(keep_alive("10m").unwrap(), KeepAlive::Ms(600_000));
        assert_eq!(keep_alive("30").unwrap(), KeepAlive::Ms(30_000));
        assert_eq!(keep_alive("0").unwrap(), KeepAlive::Ms(0));
        assert_eq!(keep_alive("-1").unwrap(), KeepAlive::UntilEvicted);
        assert!(keep_alive("soon").is_err());
    }
}
