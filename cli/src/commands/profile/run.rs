//! `flotilla profile run`: measures a model on a worker of a running fleet.
//!
//! Requests take the way of every request, through the stream and the dispatcher to the worker, and their times are
//! those that a client sees. What is measured next is decided by [`flotilla_profiling`].

mod arguments;
mod place;
mod sender;
mod told;

use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use flotilla_client::{Catalog, CatalogError, Connection, Profiles};
use flotilla_profile::{DeviceProfile, EstimateFrom};
use flotilla_profiling::{Device, Plan};
use flotilla_protocol::catalog::{CatalogEntry, ModelTask};
use flotilla_protocol::profile::LoadSeconds;
use serde_json::json;

use self::place::Place;
use self::sender::Sender;
use self::told::Told;
use crate::commands::{Interrupted, UsageError};
use crate::context::Context;
use crate::output;
use crate::stop::Signals;
use crate::table::{Table, numbers, span_ms};

pub(crate) use self::arguments::RunArguments;

/// Measures, prints and stores a profile.
///
/// # Errors
/// When the worker cannot be measured, or somebody pressed Ctrl-C; nothing is stored then.
pub(super) async fn run(context: &Context, arguments: &RunArguments) -> anyhow::Result<()> {
    let connection = context.connect("flotilla-profile-run").await?;
    let entry = entry(&connection, arguments).await?;
    let plan = Plan::new(
        arguments.grid(&entry)?,
        arguments.objective(&entry)?,
        arguments.limits(),
    );
    let plan = plan.map_err(|fault| UsageError::new(format!("--{fault}")))?;
    let place = Place::find(&connection, arguments).await?;
    let profiles = Profiles::open(&connection).await?;
    // What is stored and cannot be read is about to be replaced.
    let known = profiles
        .entry(&entry.name, &place.device.kind)
        .await
        .ok()
        .flatten();
    if arguments.dry_run {
        return dry_run(context, &plan, &place, &entry, known.as_ref());
    }
    let measured = Run {
        connection,
        plan,
        place,
        entry: &entry,
        known,
    };
    let profile = measured.carry_out().await?;
    if let Some(file) = &arguments.output {
        write(&profile, file)?;
    }
    if !arguments.no_store {
        profiles.put(&entry.name, &profile).await?;
        output::note(&format!(
            "stored as the profile of {} on {}",
            entry.name,
            profile.kind()
        ));
    }
    context
        .format
        .print(profile.document(), |_| vec![told::grid(&profile)])
}

async fn entry(connection: &Connection, arguments: &RunArguments) -> anyhow::Result<CatalogEntry> {
    let model = &arguments.model;
    let found = Catalog::open(connection).await?.entry(model).await?;
    let entry = found.ok_or_else(|| CatalogError::Unknown { model: model.clone() })?;
    match entry.facts.task {
        ModelTask::Generate => Ok(entry),
        ModelTask::Embed { .. } => {
            let told = format!("{model} makes vectors; only models that generate have a profile");
            Err(UsageError::new(told).into())
        }
    }
}

/// A measurement.
struct Run<'a> {
    connection: Connection,
    plan: Plan,
    place: Place,
    entry: &'a CatalogEntry,
    /// The profile that is there already.
    known: Option<DeviceProfile>,
}

impl Run<'_> {
    async fn carry_out(mut self) -> anyhow::Result<DeviceProfile> {
        let mut signals = Signals::new()?;
        output::note(&told::headline(&self.plan, &self.place));
        let resident = tokio::select! {
            resident = self.place.load(&self.connection, &self.entry.name) => resident?,
            () = signals.next() => return Err(Interrupted.into()),
        };
        let sender = Sender {
            connection: self.connection.clone(),
            place: self.place.clone(),
            model: self.entry.name.clone(),
            vocabulary_size: self.entry.facts.vocabulary_size,
        };
        let mut told = Told::new(&self.plan);
        while let Some(point) = self.plan.poll_point() {
            told.begin(&point);
            let sent = sender.send(&point, &mut signals).await;
            told.clear();
            let sent = sent?;
            let report = self.plan.handle_point(&point, &sent.measurement);
            let report = report.map_err(|fault| because(fault.into(), sent.failure.as_deref()))?;
            told.end(&point, &report, self.plan.objective());
            if let Some(failure) = sent.failure {
                output::note(&format!("a request failed: {failure}"));
            }
        }
        let device = self.device(resident.load)?;
        Ok(self.plan.finish(device)?)
    }

    /// What was measured, with what this run did not measure from the profile before.
    fn device(&self, load: Option<Duration>) -> anyhow::Result<Device> {
        let device = &self.place.device;
        let former = self.known.as_ref();
        let former_load = former.and_then(|known| known.document().load_seconds_by_tier.clone());
        let load_seconds_by_tier = match load.map(|load| load.as_secs_f64()).filter(|load| *load > 0.0) {
            Some(load_s) => Some(LoadSeconds {
                origin: Some(load_s),
                ..former_load.unwrap_or_default()
            }),
            None => former_load,
        };
        Ok(Device {
            kind: device.kind.clone(),
            cost: device.cost.or(former.map(DeviceProfile::cost)).unwrap_or(COST),
            created: unix_s()?,
            load_seconds_by_tier,
        })
    }
}

fn because(fault: anyhow::Error, failure: Option<&str>) -> anyhow::Error {
    match failure {
        Some(failure) => fault.context(format!("a request failed: {failure}")),
        None => fault,
    }
}

fn unix_s() -> anyhow::Result<f64> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    Ok(now.context("this machine's clock is before 1970")?.as_secs_f64())
}

fn write(profile: &DeviceProfile, file: &Path) -> anyhow::Result<()> {
    let json = serde_json::to_string(profile.document())?;
    std::fs::write(file, json + "\n").with_context(|| format!("cannot write {}", file.display()))
}

/// Prints what would be measured.
fn dry_run(
    context: &Context,
    plan: &Plan,
    place: &Place,
    entry: &CatalogEntry,
    known: Option<&DeviceProfile>,
) -> anyhow::Result<()> {
    let guess = known.cloned().or_else(|| guess(place, entry));
    let takes = guess.map(|profile| plan.estimate(&profile));
    let time = match takes {
        Some(takes) => format!("about {}", span_ms(milliseconds(takes))),
        None => "an unknown time, since neither a profile nor the memory's speed is known".to_owned(),
    };
    output::note(&told::headline(plan, place));
    output::note(&format!("it would take {time}"));
    let shown = json!({
        "worker": place.worker,
        "kind": place.device.kind,
        "inputs": plan.grid().inputs(),
        "outputs": plan.grid().outputs(),
        "estimated_s": takes.map(|takes| takes.as_secs_f64()),
    });
    context.format.print(&shown, |_| vec![lengths(plan)])
}

/// What the model's size and the memory's speed let expect.
fn guess(place: &Place, entry: &CatalogEntry) -> Option<DeviceProfile> {
    let from = EstimateFrom {
        kind: place.device.kind.clone(),
        cost: COST,
        weights_bytes: entry.facts.weights_bytes,
        memory_bytes_per_s: place.device.memory_bytes_per_s?,
        slots: place.slots.max(1),
        created: 0.0,
    };
    DeviceProfile::estimated(from).ok()
}

fn lengths(plan: &Plan) -> Table {
    let mut table = Table::new([numbers("PROMPT"), numbers("ANSWER")]);
    for cell in plan.grid().cells() {
        table.row([cell.prompt_tokens.to_string(), cell.output_tokens.to_string()]);
    }
    table
}

fn milliseconds(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

/// Of a device of which nobody said what it costs: all of them alike.
const COST: f64 = 1.0;
