//! How a worker stands, as metrics.

use std::sync::atomic::Ordering;

use async_nats::connection::State;
use flotilla_client::Connection;
use flotilla_protocol::fleet::{DeviceReport, HostReport, ModelReport, ModelState, WorkerState};
use flotilla_telemetry::Readings;

use super::{
    DEVICE_WORKS, DRAINING, EPOCH_SEEN, HELD, HOST_BYTES, LEDGER_BYTES, LEDGER_PAGES, MODEL_BYTES,
    MODEL_STATE, NATS_CONNECTED, NATS_CONNECTS, NATS_IN_BYTES, NATS_OUT_BYTES, RELAY_BYTES, RESIDENT_BYTES,
    SLOTS, VLLM_KV, VLLM_RUNNING, VLLM_WAITING,
};

/// How a worker stands at a moment.
pub(crate) struct Standing {
    pub(crate) state: WorkerState,
    pub(crate) epoch_seen: u64,
    pub(crate) slots: usize,
    pub(crate) held: usize,
    pub(crate) models: Vec<ModelReport>,
    pub(crate) devices: Vec<DeviceReport>,
    /// Of all devices together.
    pub(crate) resident_bytes: Option<u64>,
    pub(crate) host: Option<HostReport>,
    /// Of weights on their way to others.
    pub(crate) relay_bytes: u64,
    pub(crate) connection: Connection,
}

/// Tells a scrape how a worker stands.
pub(crate) fn publish(standing: &Standing, readings: &mut Readings) {
    readings.count(&DRAINING, &[], (standing.state == WorkerState::Draining).into());
    readings.count(&EPOCH_SEEN, &[], standing.epoch_seen);
    readings.count(&SLOTS, &[], standing.slots as u64);
    readings.count(&HELD, &[], standing.held as u64);
    publish_connection(&standing.connection, readings);
    for device in &standing.devices {
        publish_device(device, readings);
    }
    if let Some(bytes) = standing.resident_bytes {
        readings.count(&RESIDENT_BYTES, &[], bytes);
    }
    readings.count(&RELAY_BYTES, &[], standing.relay_bytes);
    if let Some(host) = &standing.host {
        let used: u64 = host.models.iter().map(|model| model.bytes).sum();
        readings.count(&HOST_BYTES, &["weights"], used);
        readings.count(&HOST_BYTES, &["free"], host.bytes_total.saturating_sub(used));
    }
    for model in &standing.models {
        publish_model(model, &standing.devices, readings);
    }
}

fn publish_connection(connection: &Connection, readings: &mut Readings) {
    let is_up = connection.client.connection_state() == State::Connected;
    readings.count(&NATS_CONNECTED, &[], is_up.into());
    let traffic = connection.client.statistics();
    readings.count(&NATS_CONNECTS, &[], traffic.connects.load(Ordering::Relaxed));
    readings.count(&NATS_IN_BYTES, &[], traffic.in_bytes.load(Ordering::Relaxed));
    readings.count(&NATS_OUT_BYTES, &[], traffic.out_bytes.load(Ordering::Relaxed));
}

fn publish_device(device: &DeviceReport, readings: &mut Readings) {
    let name = device.device.to_string();
    let used = device.pages_weights + device.pages_kv + device.pages_workspace;
    for (purpose, pages) in [
        ("weights", device.pages_weights),
        ("kv", device.pages_kv),
        ("workspace", device.pages_workspace),
        ("free", device.pages_total.saturating_sub(used)),
    ] {
        readings.count(&LEDGER_PAGES, &[&name, purpose], pages);
    }
    readings.count(&LEDGER_BYTES, &[], used.saturating_mul(device.page_bytes));
    readings.count(&DEVICE_WORKS, &[&name], device.state.is_working().into());
}

fn publish_model(model: &ModelReport, devices: &[DeviceReport], readings: &mut Readings) {
    let name = model.model.as_str();
    let state = match model.state {
        ModelState::Loading => "loading",
        ModelState::Ready => "ready",
        ModelState::Draining => "draining",
        ModelState::Unloading => "unloading",
        ModelState::Failed { .. } => "failed",
    };
    let places: Vec<String> = model.devices().map(|index| index.to_string()).collect();
    let nowhere = [NO_DEVICE.to_owned()];
    for place in if places.is_empty() { &nowhere[..] } else { &places } {
        for each in ["loading", "ready", "draining", "unloading", "failed"] {
            readings.count(&MODEL_STATE, &[name, place, each], (each == state).into());
        }
    }
    readings.count(&MODEL_BYTES, &[name], model.weights_bytes);
    readings.count(&VLLM_RUNNING, &[name], model.leases.into());
    readings.count(&VLLM_WAITING, &[name], model.waiting.into());
    let used = model.devices().filter_map(|index| {
        let device = devices.iter().find(|device| device.device == index)?;
        kv_use(device)
    });
    if let Some(used) = used.reduce(f64::max) {
        readings.read(&VLLM_KV, &[name], used);
    }
}

/// The part of a device's pages for keys and values that is in use; `None` where there are none.
#[expect(clippy::cast_precision_loss, reason = "pages of a device")]
fn kv_use(device: &DeviceReport) -> Option<f64> {
    let others = device.pages_weights + device.pages_workspace;
    let pages = device.pages_total.saturating_sub(others);
    (pages > 0).then(|| device.pages_kv as f64 / pages as f64)
}

/// The device of a model that has no place.
const NO_DEVICE: &str = "none";
