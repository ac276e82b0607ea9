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

/// The kind of several devices that hold a model together, in the order of its layers: `2xcpu` of two of kind `cpu`.
/// Profiles of what runs there have it as their key.
#[must_use]
pub fn kind_of_set(kinds: &[&str]) -> String {
    let alike = kinds.chunk_by(|one, other| one == other);
    let names = alike.map(|alike| format!("{}x{}", alike.len(), alike[0]));
    names.collect::<Vec<_>>().join("+")
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
    /// Bytes that all devices have in use by the system's own count, where it does not tell one from another; then no
    /// [`DeviceReport`] has its own. `None` otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resident_bytes: Option<u64>,
    /// Host memory that holds weights; `None` when none does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<HostReport>,
    /// The newest departures of models from devices, oldest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub departures: Vec<DepartureReport>,
    /// Models whose files come onto the worker's disk, or came lately.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub fetches: Vec<FetchReport>,
}

/// How far the files of a model are on their way onto a worker's disk, from another worker or from their origin.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FetchReport {
    /// The model.
    pub model: ModelName,
    /// Bytes that are there.
    pub bytes: u64,
    /// Bytes of all its files; `None` while nobody has said.
    pub bytes_total: Option<u64>,
    /// Whether more come.
    pub state: FetchState,
}

/// Whether files are still on their way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FetchState {
    /// They are.
    Running,
    /// All are there.
    Done,
    /// They do not come.
    Failed {
        /// Why.
        reason: String,
    },
}

/// The account of a worker's host memory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostReport {
    /// Bytes that weights may take.
    pub bytes_total: u64,
    /// Models whose weights are there.
    pub models: Vec<HostModel>,
}

/// A model whose weights are in host memory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostModel {
    /// The model.
    pub model: ModelName,
    /// Bytes of its weights.
    pub bytes: u64,
}

/// A model that was told to leave a device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DepartureReport {
    /// The model.
    pub model: ModelName,
    /// The device that it left.
    pub device: u32,
    /// Milliseconds since.
    pub ago_ms: u64,
    /// Why.
    pub reason: DepartureReason,
}

/// Why a model left a device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "why", rename_all = "snake_case")]
pub enum DepartureReason {
    /// Nobody wanted it for as long as it was kept.
    Idle,
    /// Another model needed its room.
    Room {
        /// The other model.
        newcomer: ModelName,
    },
    /// Somebody ordered it out.
    Ordered,
    /// The catalog has another model of that name now.
    Replaced,
    /// The catalog has no such model any more.
    Removed,
    /// Its device failed.
    DeviceFailed {
        /// What broke.
        reason: String,
    },
    /// One that this version does not know.
    #[serde(other)]
    Other,
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
    /// Whether it runs with nothing beside it, see [`crate::assignment::Assignment::alone`].
    #[serde(default, skip_serializing_if = "crate::assignment::is_false")]
    pub alone: bool,
}

/// One model on a worker.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModelReport {
    /// The model.
    pub model: ModelName,
    /// Where it stands.
    pub state: ModelState,
    /// The device that holds it, while one does; the first of them when several do.
    pub device: Option<u32>,
    /// Its parts in the order of its layers, when several devices hold it; else none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub shards: Vec<ShardReport>,
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
    /// Tokens that its keys and values would have room for if it had the device's pool for itself; `None` while
    /// nobody knows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kv_tokens_max: Option<u64>,
    /// Where the load under way, or the last one, reads the weights from; `None` while nobody knows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loaded_from: Option<LoadSource>,
}

/// The part of a model that one of several devices holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardReport {
    /// The device.
    pub device: u32,
    /// The first of its layers; embeddings go with layer 0, the output layer with the last.
    pub first_layer: u32,
    /// How many layers follow each other there.
    pub layers: u32,
    /// Bytes of its weights.
    pub weights_bytes: u64,
}

impl ModelReport {
    /// Every device that holds a part of it, or all.
    pub fn devices(&self) -> impl Iterator<Item = u32> {
        let whole = self.device.filter(|_| self.shards.is_empty());
        whole
            .into_iter()
            .chain(self.shards.iter().map(|shard| shard.device))
    }
}

/// Where a load reads weights from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LoadSource {
    /// The worker's host memory.
    Host,
    /// Files.
    Origin,
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
    /// Pages that hold keys and values, of requests that run or cached.
    pub pages_kv: u64,
    /// Pages that hold intermediate results.
    pub pages_workspace: u64,
    /// Pages for keys and values that a model that comes cannot have at once: those of requests that run, and no
    /// fewer than one full context of any model takes. `None` from a worker that keeps all of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pages_kv_kept: Option<u64>,
    /// Bytes in use by the system's own count, to compare the ledger with; `None` where it counts none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resident_bytes: Option<u64>,
    /// Whether it works; workers that say nothing have no device that failed.
    #[serde(default, skip_serializing_if = "DeviceState::is_working")]
    pub state: DeviceState,
}

/// Whether a device works.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DeviceState {
    /// It does.
    #[default]
    Working,
    /// It is taken out until its worker starts again.
    Failed {
        /// Why.
        reason: String,
    },
}

impl DeviceState {
    /// Whether it works.
    #[must_use]
    pub fn is_working(&self) -> bool {
        *self == Self::Working
    }
}

impl DeviceReport {
    /// Pages that a model that comes can have at once; what is cached in them is forgotten then.
    #[must_use]
    pub fn pages_free(&self) -> u64 {
        let pages_kv = self.pages_kv_kept.unwrap_or(self.pages_kv);
        let used = [self.pages_weights, pages_kv, self.pages_workspace];
        used.into_iter().fold(self.pages_total, u64::saturating_sub)
    }

    /// Bytes of the free pages.
    #[must_use]
    pub fn free_bytes(&self) -> u64 {
        self.pages_free().saturating_mul(self.page_bytes)
    }
}
