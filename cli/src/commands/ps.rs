//! `flotilla ps`: workers, devices and ledgers, models with state, leases and expiry.

use flotilla_protocol::admin::{FleetStatus, WorkerStatus};
use flotilla_protocol::fleet::{DeviceReport, ModelReport, ModelState, WorkerState};

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
    let mut fleet: FleetStatus = admin::ask(&connection, "workers", &Nothing {}).await?;
    fleet
        .workers
        .sort_by(|a, b| a.report.worker.cmp(&b.report.worker));
    context.format.print(&fleet, |fleet| {
        vec![workers(fleet), devices(fleet), models(fleet)]
    })?;
    Ok(Exit::Ok)
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
        words("NAME"),
    ]);
    for worker in &fleet.workers {
        for device in &worker.report.devices {
            table.row(device_row(worker, device));
        }
    }
    table
}

fn device_row(worker: &WorkerStatus, device: &DeviceReport) -> [String; 9] {
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
        or_dash(description.map(|it| &it.name)),
    ]
}

fn models(fleet: &FleetStatus) -> Table {
    let mut table = Table::new([
        words("WORKER"),
        words("MODEL"),
        numbers("DEVICE"),
        numbers("LEASES"),
        numbers("WAITING"),
        numbers("WEIGHTS"),
        numbers("LOADED IN"),
        words("EXPIRES"),
        words("STATE"),
    ]);
    for worker in &fleet.workers {
        for model in &worker.report.models {
            table.row(model_row(worker, model));
        }
    }
    table
}

fn model_row(worker: &WorkerStatus, model: &ModelReport) -> [String; 9] {
    [
        worker.report.worker.to_string(),
        model.model.to_string(),
        or_dash(model.device),
        model.leases.to_string(),
        model.waiting.to_string(),
        bytes(model.weights_bytes),
        or_dash(model.load_ms.map(span_ms)),
        or_dash(model.expires_in_ms.map(|ms| format!("in {}", span_ms(ms)))),
        model_state(&model.state),
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
