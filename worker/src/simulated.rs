//! Devices that are simulated: what they are, how fast they are and what they hold.
//!
//! Everything about requests and memory is decided by the real cores; what is made up is the time that steps
//! and loads take, which a profile says, and the tokens, which follow from seeds. [`crate::engine`] has the part
//! that runs: a task in the place of the engine's thread.

mod host;
mod model;
mod profiles;
mod texts;

pub(crate) use host::{HostTier, LoadTimes};
pub(crate) use model::{SimulatedModel, SimulatedModelError};
pub use profiles::SimulationError;
pub(crate) use profiles::Timing;

use std::sync::Arc;

use flotilla_config::WorkerSimulated;
use flotilla_protocol::ModelName;
use flotilla_protocol::catalog::CatalogEntry;
use flotilla_protocol::fleet::DeviceDescription;
use flotilla_worker_core::ledger::PAGE_BYTES;
use tokio::sync::{Semaphore, SemaphorePermit};

use profiles::Profiles;
use texts::SharedTexts;

/// What all simulated workers of a process share: each has a device of its own, and all devices are alike.
#[derive(Debug)]
pub(crate) struct Simulation {
    profiles: Profiles,
    texts: SharedTexts,
    /// Who reads the files of a model. One at a time: each takes a thread, and hundreds may want the same
    /// files, which all but the first find open.
    reading: Semaphore,
    device_pages: u64,
    seed: u64,
    answer_tokens_mean: Option<u32>,
}

impl Simulation {
    /// Reads the profiles.
    ///
    /// # Errors
    /// [`SimulationError`]: a file is missing or wrong, or they are of several kinds of devices.
    pub(crate) fn open(config: &WorkerSimulated) -> Result<Self, SimulationError> {
        Ok(Self {
            profiles: Profiles::read(config.profile.as_deref().unwrap_or_default())?,
            texts: SharedTexts::default(),
            reading: Semaphore::new(1),
            device_pages: config.memory_bytes / PAGE_BYTES,
            seed: config.seed,
            answer_tokens_mean: config.answer_tokens_mean,
        })
    }

    /// Waits for the turn to read the files of a model; it ends when what is returned is dropped.
    pub(crate) async fn turn_to_read(&self) -> SemaphorePermit<'_> {
        let turn = self.reading.acquire().await;
        turn.expect("nobody closes the semaphore")
    }

    /// Pages of a device.
    pub(crate) fn device_pages(&self) -> u64 {
        self.device_pages
    }

    /// A device as the fleet sees it.
    pub(crate) fn description(&self, index: u32) -> DeviceDescription {
        DeviceDescription {
            index,
            kind: self.profiles.kind().to_owned(),
            name: format!("{} (simulated)", self.profiles.kind()),
            memory_bytes: self.device_pages * PAGE_BYTES,
            // A profile is of one model; what the memory gives does not follow from it.
            memory_bytes_per_s: None,
            cost: Some(self.profiles.cost()),
        }
    }

    /// How long loads of a model take; `None` when there is no profile for it.
    pub(crate) fn load_times(&self, entry: &CatalogEntry) -> Option<LoadTimes> {
        let timing = self.timing(&entry.name)?;
        Some(timing.load_times(model::weights_bytes(entry)))
    }

    /// How fast a model is.
    fn timing(&self, model: &ModelName) -> Option<Arc<Timing>> {
        self.profiles.timing(model)
    }
}
