//! `flotilla ps`: workers, devices and ledgers, models with tier, leases, queue and expiry, and why models left.

mod departures;

use flotilla_client::Connection;
use flotilla_protocol::ModelName;
use flotilla_protocol::admin::{FleetStatus, WorkerStatus};
use flotilla_protocol::fleet::{
    DeviceReport, DeviceState, FetchReport, FetchState, HostModel, LoadSource, ModelReport, ModelState,
    WorkerState,
};

use crate::admin::{self, Nothing};
use crate::context::Context;
use crate::exit::Exit;
use crate::table::{Table, bytes, numbers, or_dash, span_ms, words};

/// Prints the fleet as the leading dispatcher sees it.
///
/// # Errors
/// When no dispatcher answers.
pub(crate) async fn run(context: &Context) -> anyhow::Result<Exit> {
    let connection = context.connect("flotilla-ps").await?;
    let fleet = ask(&connection).await?;
    context.format.print(&fleet, tables)?;
    Ok(Exit::Ok)
}

/// The fleet as the leading dispatcher sees it, workers by name.
///
/// # Errors
/// When no dispatcher answers.
pub(super) async fn ask(connection: &Connection) -> anyhow::Result<FleetStatus> {
    let mut fleet: FleetStatus = admin::ask(connection, "workers", &Nothing {}).await?;
    fleet
        .workers
        .sort_by(|a, b| a.report.worker.cmp(&b.report.worker));
    Ok(fleet)
}

/// The tables that people see.
pub(super) fn tables(fleet: &FleetStatus) -> Vec<Table> {
    vec![
        workers(fleet),
        devices(fleet),
        models(fleet),
        departures::table(fleet),
    ]
}

fn workers(fleet: &FleetStatus) -> Table {
    let mut table = Table::new([
        words("WORKER"),
        words("HOST"),
        words("STATE"),
        numbers("RUNNING"),
        numbers("FREE SLOTS"),
        numbers("LAST REPORT"),
        words("VERSION"),
    ]);
    for worker in &fleet.workers {
        let registration = worker.registration.as_ref();
        table.row([
            worker.report.worker.to_string(),
            or_dash(registration.map(|it| &it.host)),
            worker_state(worker.report.state).to_owned(),
            worker.report.running.len().to_string(),
            worker.report.free_slots.to_string(),
            format!("{} ago", span_ms(worker.report_age_ms)),
            or_dash(registration.map(|it| &it.version)),
        ]);
    }
    table
}

fn worker_state(state: WorkerState) -> &'static str {
    match state {
        WorkerState::Ready => "ready",
        WorkerState::Draining => "draining",
    }
}

fn devices(fleet: &FleetStatus) -> Table {
    let mut table = Table::new([
        words("WORKER"),
        numbers("DEVICE"),
        words("KIND"),
        numbers("MEMORY"),
        numbers("FREE"),
        numbers("WEIGHTS"),
        numbers("KV"),
        numbers("WORKSPACE"),
        numbers("BY SYSTEM"),
        words("STATE"),
        words("NAME"),
    ]);
    for worker in &fleet.workers {
        for device in &worker.report.devices {
            table.row(device_row(worker, device));
        }
        if let Some(resident_bytes) = worker.report.resident_bytes {
            table.row(all_devices_row(worker, resident_bytes));
        }
    }
    table
}

/// All devices of a worker together, where the system does not tell one from another.
fn all_devices_row(worker: &WorkerStatus, resident_bytes: u64) -> [String; 11] {
    let devices = worker.report.devices.iter();
    let sum = |of: fn(&DeviceReport) -> u64| bytes(devices.clone().map(of).sum());
    let none = || "-".to_owned();
    [
        worker.report.worker.to_string(),
        "all".to_owned(),
        none(),
        sum(|device| device.pages_total.saturating_mul(device.page_bytes)),
        sum(DeviceReport::free_bytes),
        sum(|device| device.pages_weights.saturating_mul(device.page_bytes)),
        sum(|device| device.pages_kv.saturating_mul(device.page_bytes)),
        sum(|device| device.pages_workspace.saturating_mul(device.page_bytes)),
        bytes(resident_bytes),
        none(),
        none(),
    ]
}

fn device_row(worker: &WorkerStatus, device: &DeviceReport) -> [String; 11] {
    let mut descriptions = worker.registration.iter().flat_map(|it| &it.devices);
    let description = descriptions.find(|description| description.index == device.device);
    let pages = |count: u64| bytes(count.saturating_mul(device.page_bytes));
    [
        worker.report.worker.to_string(),
        device.device.to_string(),
        or_dash(description.map(|it| &it.kind)),
        pages(device.pages_total),
        bytes(device.free_bytes()),
        pages(device.pages_weights),
        pages(device.pages_kv),
        pages(device.pages_workspace),
        or_dash(device.resident_bytes.map(bytes)),
        match &device.state {
            DeviceState::Working => "working".to_owned(),
            DeviceState::Failed { reason } => format!("failed: {reason}"),
        },
        or_dash(description.map(|it| &it.name)),
    ]
}

fn models(fleet: &FleetStatus) -> Table {
    let mut table = Table::new([
        words("WORKER"),
        words("MODEL"),
        words("TIER"),
        numbers("LEASES"),
        numbers("WAITING"),
        numbers("WEIGHTS"),
        numbers("LOADED IN"),
        words("FROM"),
        words("EXPIRES"),
        words("STATE"),
    ]);
    for worker in &fleet.workers {
        for model in &worker.report.models {
            table.row(model_row(worker, model));
        }
        let fetches = worker.report.fetches.iter();
        for fetch in fetches.filter(|fetch| !has_row(worker, fetch)) {
            table.row(fetch_row(worker, fetch));
        }
        let host = worker.report.host.iter().flat_map(|host| &host.models);
        for copy in host {
            table.row(copy_row(worker, copy));
        }
    }
    table
}

fn model_row(worker: &WorkerStatus, model: &ModelReport) -> [String; 10] {
    [
        worker.report.worker.to_string(),
        model.model.to_string(),
        or_dash(model.device.map(|_| place(worker, model))),
        model.leases.to_string(),
        model.waiting.to_string(),
        bytes(model.weights_bytes),
        or_dash(model.load_ms.map(span_ms)),
        or_dash(model.loaded_from.map(|source| match source {
            LoadSource::Host => "host",
            LoadSource::Origin => "files",
        })),
        or_dash(model.expires_in_ms.map(|ms| format!("in {}", span_ms(ms)))),
        match fetching(worker, &model.model).filter(|_| model.state == ModelState::Loading) {
            Some(fetch) => fetch_state(fetch),
            None => model_state(&model.state),
        },
    ]
}

/// Whether a fetch is told with its model, or is over.
fn has_row(worker: &WorkerStatus, fetch: &FetchReport) -> bool {
    let mut models = worker.report.models.iter();
    fetch.state != FetchState::Running || models.any(|model| model.model == fetch.model)
}

fn fetching<'a>(worker: &'a WorkerStatus, model: &ModelName) -> Option<&'a FetchReport> {
    let mut fetches = worker.report.fetches.iter();
    fetches.find(|fetch| fetch.model == *model && fetch.state == FetchState::Running)
}

fn fetch_state(fetch: &FetchReport) -> String {
    let total = u128::from(fetch.bytes_total.unwrap_or(fetch.bytes).max(1));
    format!("fetching {} %", u128::from(fetch.bytes) * 100 / total)
}

/// A model whose files come, and that nobody waits for.
fn fetch_row(worker: &WorkerStatus, fetch: &FetchReport) -> [String; 10] {
    let none = || "-".to_owned();
    [
        worker.report.worker.to_string(),
        fetch.model.to_string(),
        none(),
        "0".to_owned(),
        "0".to_owned(),
        or_dash(fetch.bytes_total.map(bytes)),
        none(),
        none(),
        none(),
        fetch_state(fetch),
    ]
}

/// The devices that hold a model, as `cpu0+cpu1`.
fn place(worker: &WorkerStatus, model: &ModelReport) -> String {
    let described = || worker.registration.iter().flat_map(|it| &it.devices);
    let names = model.devices().map(|index| {
        let description = described().find(|description| description.index == index);
        let kind = description.map_or("device ", |description| &description.kind);
        format!("{kind}{index}")
    });
    names.collect::<Vec<_>>().join("+")
}

/// Weights that are in host memory only.
fn copy_row(worker: &WorkerStatus, copy: &HostModel) -> [String; 10] {
    let none = || "-".to_owned();
    [
        worker.report.worker.to_string(),
        copy.model.to_string(),
        "host".to_owned(),
        none(),
        none(),
        bytes(copy.bytes),
        none(),
        none(),
        none(),
        "not loaded".to_owned(),
    ]
}

/// A model's state in words.
pub(crate) fn model_state(state: &ModelState) -> String {
    match state {
        ModelState::Loading => "loading".to_owned(),
        ModelState::Ready => "ready".to_owned(),
        ModelState::Draining => "draining".to_owned(),
        ModelState::Unloading => "unloading".to_owned(),
        ModelState::Failed { reason, retry_in_ms } => {
            format!("failed, next try in {}: {reason}", span_ms(*retry_in_ms))
        }
    }
}

#[cfg(test)]
mod tests {
    use flotilla_protocol::fleet::DeviceDescription;

    use super::*;

    #[test]
    fn tables_tell_tiers_failed_devices_and_why_models_left() {
        let report = include_str!("../../../protocol/tests/golden/report-host-departures.json");
        let worker = WorkerStatus {
            registration: None,
            report: serde_json::from_str(report).unwrap(),
            report_age_ms: 20,
        };
        let fleet = FleetStatus {
            workers: vec![worker],
        };
        let shown: String = tables(&fleet).iter().map(ToString::to_string).collect();
        for told in [
            "failed: it computes wrong sums",
            "device 0",
            "not loaded",
            "other needed its room",
            "the catalog has no such model any more",
            "1.5 s ago",
        ] {
            assert!(shown.contains(told), "{told} is not in\n{shown}");
        }
    }

    #[test]
    fn devices_of_a_split_model_are_named_by_kind_and_number() {
        let registration = include_str!("../../../protocol/tests/golden/registration.json");
        let report = include_str!("../../../protocol/tests/golden/report-shards.json");
        let mut worker = WorkerStatus {
            registration: Some(serde_json::from_str(registration).unwrap()),
            report: serde_json::from_str(report).unwrap(),
            report_age_ms: 20,
        };
        let name = |worker: &WorkerStatus| place(worker, &worker.report.models[0]);
        assert_eq!(name(&worker), "cpu0+device 1");
        let registration = worker.registration.as_mut().unwrap();
        let second = registration.devices[0].clone();
        registration
            .devices
            .push(DeviceDescription { index: 1, ..second });
        assert_eq!(name(&worker), "cpu0+cpu1");
        let fleet = FleetStatus {
            workers: vec![worker],
        };
        let shown: String = tables(&fleet).iter().map(ToString::to_string).collect();
        assert!(shown.contains(" all "), "one row is of all devices:\n{shown}");
    }
}
