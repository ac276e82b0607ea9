//! What a trace meets: devices, models and the network between them and the dispatcher.

mod builtin;
mod fault;
mod file;
mod table;
mod timing;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use flotilla_profile::DeviceProfile;
use flotilla_protocol::catalog::{CatalogEntry, ModelFacts, ModelSource, ModelTask, Policy};
use flotilla_protocol::fleet::{DeviceDescription, Registration};
use flotilla_protocol::request::{KeepAlive, Slo};
use flotilla_protocol::{ModelName, WorkerId};

pub use fault::{FleetFault, FleetFaults, FleetProblem};
pub use file::FleetFile;
pub(crate) use timing::Timing;

/// A fleet.
#[derive(Debug, Clone)]
pub struct FleetSpec {
    /// Its devices, each the only one of a worker.
    pub devices: Vec<DeviceSpec>,
    /// Its models.
    pub models: Vec<ModelSpec>,
    /// What holds for all.
    pub limits: FleetLimits,
}

/// One device, the only one of a worker.
#[derive(Debug, Clone)]
pub struct DeviceSpec {
    /// The worker.
    pub worker: WorkerId,
    /// Kind; the key of profiles.
    pub kind: String,
    /// How fast it is with models that have no profile of their own for its kind.
    pub profile: Arc<DeviceProfile>,
    /// What an hour with at least one request on it costs, in any unit that the fleet shares.
    pub cost_per_hour: f64,
    /// Bytes that its ledger may give out.
    pub memory_bytes: u64,
    /// Bytes a second that its memory was measured to give; `None` when nobody measured.
    pub memory_bytes_per_s: Option<u64>,
    /// Most requests that one of its models runs at once; at least 1.
    pub slots: u32,
    /// Most tokens of one step; at least `slots`.
    pub batch_tokens_max: u32,
    /// Most models on it at once; `None` lets its memory decide.
    pub models_max: Option<usize>,
}

/// One model.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelSpec {
    /// What requests call it.
    pub name: ModelName,
    /// Bytes of its weights.
    pub weights_bytes: u64,
    /// Bytes of the keys and values of one token; at least 1.
    pub kv_bytes_per_token: u64,
    /// Longest prompt and answer together, in tokens.
    pub context_tokens_max: u32,
    /// Most requests that run at once on one device; `None` leaves it to the device.
    pub slots: Option<u32>,
    /// Targets of requests that have none of their own.
    pub slo: Option<Slo>,
    /// How its requests are placed by the real dispatcher.
    pub policy: Option<Policy>,
    /// Tokens that its answers usually have, for as long as none was seen.
    pub output_tokens_prior: Option<u32>,
    /// Where it is when the trace begins.
    pub start: Start,
    /// How fast kinds of devices are with it, where that is not the device's own profile.
    pub profiles: BTreeMap<String, Arc<DeviceProfile>>,
}

/// Where a model is when the trace begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// Nowhere: the first request waits for its load from its origin.
    Cold,
    /// Resident on every device, as far as there is room.
    Warm,
}

/// What holds for a whole fleet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FleetLimits {
    /// How long any message between dispatcher and worker is under way.
    pub network_latency: Duration,
    /// How long an idle model stays resident.
    pub keep_alive: KeepAlive,
    /// Longest time between two reports of a worker.
    pub report_interval: Duration,
    /// Shortest time between two reports of a worker.
    pub report_pause: Duration,
}

impl Default for FleetLimits {
    fn default() -> Self {
        Self {
            network_latency: NETWORK_LATENCY,
            keep_alive: KEEP_ALIVE,
            report_interval: REPORT_INTERVAL,
            report_pause: REPORT_PAUSE,
        }
    }
}

impl FleetSpec {
    /// A model by its name.
    #[must_use]
    pub fn model(&self, name: &ModelName) -> Option<&ModelSpec> {
        self.models.iter().find(|model| model.name == *name)
    }

    /// How fast a device is with a model.
    #[must_use]
    pub fn profile<'a>(&self, model: &'a ModelSpec, device: &'a DeviceSpec) -> &'a Arc<DeviceProfile> {
        model.profiles.get(&device.kind).unwrap_or(&device.profile)
    }

    /// A device by its worker.
    #[must_use]
    pub fn device(&self, worker: &WorkerId) -> Option<&DeviceSpec> {
        self.devices.iter().find(|device| device.worker == *worker)
    }
}

impl DeviceSpec {
    /// What its worker would write into the bucket of workers.
    #[must_use]
    pub fn registration(&self) -> Registration {
        Registration {
            worker: self.worker.clone(),
            incarnation: INCARNATION,
            host: "simulated".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            devices: vec![DeviceDescription {
                index: 0,
                kind: self.kind.clone(),
                name: self.kind.clone(),
                memory_bytes: self.memory_bytes,
                memory_bytes_per_s: self.memory_bytes_per_s,
                cost: Some(self.cost_per_hour),
            }],
        }
    }
}

impl ModelSpec {
    /// Bytes without which it does not run: weights, and keys and values of one full context.
    #[must_use]
    pub fn bytes_min(&self) -> u64 {
        let kv_bytes = self
            .kv_bytes_per_token
            .saturating_mul(u64::from(self.context_tokens_max));
        self.weights_bytes.saturating_add(kv_bytes)
    }

    /// What an operator would write into the catalog.
    #[must_use]
    pub fn entry(&self) -> CatalogEntry {
        CatalogEntry {
            name: self.name.clone(),
            source: ModelSource::Simulated {
                kv_bytes_per_token: self.kv_bytes_per_token,
            },
            facts: ModelFacts {
                architecture: "simulated".to_owned(),
                context_tokens_max: self.context_tokens_max,
                vocabulary_size: u32::MAX,
                weights_bytes: self.weights_bytes,
                task: ModelTask::Generate,
            },
            root: None,
            slots: self.slots,
            keep_alive: None,
            pin: false,
            slo: self.slo,
            quantize: None,
            policy: self.policy,
            output_tokens_prior: self.output_tokens_prior,
        }
    }
}

/// Workers of a simulation start once.
pub(crate) const INCARNATION: u64 = 1;
/// Half a round trip within one site, with the server's own work in between.
const NETWORK_LATENCY: Duration = Duration::from_micros(500);
/// As the worker's own default.
const KEEP_ALIVE: KeepAlive = KeepAlive::Ms(300_000);
/// As the worker's own default.
const REPORT_INTERVAL: Duration = Duration::from_secs(1);
/// As the worker's own.
const REPORT_PAUSE: Duration = Duration::from_millis(20);
