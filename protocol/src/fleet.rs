//! What workers say of themselves: a registration that expires and a report that is always whole.

use serde::{Deserialize, Serialize};

use crate::ids::{Attempt, Epoch, ModelName, RequestId, WorkerId};

/// A worker's entry in the KV bucket `workers`; refreshed, and gone by itself when the worker is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Registration {
    /// The worker.
    pub worker: WorkerId,
    /// Which start of the worker this is: random, so that a restart is never taken for the old process.
    pub incarnation: u64,
    /// Host name, for people.
    pub host: String,
    /// Version of the software.
    pub version: String,
    /// The devices that it owns.
    pub devices: Vec<DeviceDescription>,
}

/// What a device is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DeviceDescription {
    /// Its place on the worker, from 0.
    pub index: u32,
    /// Kind, e.g. `cpu`; the key of profiles.
    pub kind: String,
    /// Name, for people.
    pub name: String,
    /// Bytes that the ledger may give out.
    pub memory_bytes: u64,
    /// Bytes a second that its memory was measured to give; `None` when nobody measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_bytes_per_s: Option<u64>,
    /// What an hour of it costs, in any unit that the fleet shares; `None` when nobody said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cost: Option<f64>,
}

/// The state of one worker, whole: a lost report costs nothing.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// The worker.
    pub worker: WorkerId,
    /// Which start of the worker.
    pub incarnation: u64,
    /// Counts the reports of this start, from 1; a smaller one than seen is late and ignored.
    pub seq: u64,
    /// Newest leader epoch that the worker has seen.
    pub epoch_seen: Epoch,
    /// Whether it takes work.
    pub state: WorkerState,
    /// How many more requests it can take.
    pub free_slots: u32,
    /// Every request that it holds: waiting for its model, running or writing its last event.
    pub running: Vec<RunningRequest>,
    /// Every model that is not absent.
    pub models: Vec<ModelReport>,
    /// Each device's ledger.
    pub devices: Vec<DeviceReport>,
}

/// Whether a worker takes work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WorkerState {
    /// It does.
    Ready,
    /// It finishes what it has and exits.
    Draining,
}

/// One request on a worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunningRequest {
    /// The request.
    pub request: RequestId,
    /// The attempt.
    pub attempt: Attempt,
    /// The model.
    pub model: ModelName,
    /// Tokens of the prompt.
    pub prompt_tokens: u32,
    /// Tokens made so far, earlier attempts included.
    pub output_tokens: u32,
}

/// One model on a worker.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModelReport {
    /// The model.
    pub model: ModelName,
    /// Where it stands.
    pub state: ModelState,
    /// The device that holds it, while one does.
    pub device: Option<u32>,
    /// Requests that hold it.
    pub leases: u32,
    /// Requests that wait for it.
    pub waiting: u32,
    /// Bytes of its weights.
    pub weights_bytes: u64,
    /// Milliseconds until it is unloaded for idleness; `None` while it is in use or stays.
    pub expires_in_ms: Option<u64>,
    /// How long its last load took, in milliseconds.
    pub load_ms: Option<u64>,
    /// Tokens that its keys and values have room for, all requests together; `None` while nobody knows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kv_tokens_max: Option<u64>,
}

/// Where a model stands on a worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ModelState {
    /// Waiting for room or on its way into device memory.
    Loading,
    /// It can run.
    Ready,
    /// It finishes what it runs and leaves.
    Draining,
    /// On its way out of device memory.
    Unloading,
    /// It could not be loaded.
    Failed {
        /// Why.
        reason: String,
        /// Milliseconds until the next try is allowed.
        retry_in_ms: u64,
    },
}

/// One device's ledger.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceReport {
    /// Which device.
    pub device: u32,
    /// Bytes of one page.
    pub page_bytes: u64,
    /// All pages.
    pub pages_total: u64,
    /// Pages that hold weights.
    pub pages_weights: u64,
    /// Pages that hold keys and values.
    pub pages_kv: u64,
    /// Pages that hold intermediate results.
    pub pages_workspace: u64,
}

impl DeviceReport {
    /// Pages that nobody has reserved.
    #[must_use]
    pub fn pages_free(&self) -> u64 {
        let used = [self.pages_weights, self.pages_kv, self.pages_workspace];
        used.into_iter().fold(self.pages_total, u64::saturating_sub)
    }

    /// Bytes of the free pages.
    #[must_use]
    pub fn free_bytes(&self) -> u64 {
        self.pages_free().saturating_mul(self.page_bytes)
    }
}
