//! Looking at a model: what it is, and what it needs on the device.

use std::sync::Arc;
use std::time::Duration;

use flotilla_client::Catalog;
use flotilla_protocol::ModelName;
use flotilla_protocol::catalog::{CatalogEntry, ModelSource};
use flotilla_worker_core::residency::ModelNeeds;
use flotilla_worker_engine::{CpuThreads, StepLimits};
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use super::{JobDone, JobFault};
use crate::hardware::{Cpu, Hardware, HardwareKind};
use crate::model::{ModelText, OpenedModel};
use crate::simulated::{SimulatedModel, Simulation};

/// A model to look at.
#[derive(Debug)]
pub(crate) struct Inspection {
    /// The model.
    pub(crate) model: ModelName,
    /// Its entry, if the worker has seen it.
    pub(crate) entry: Option<Arc<CatalogEntry>>,
    /// Where its entry is otherwise.
    pub(crate) catalog: Catalog,
    /// How long the catalog may take.
    pub(crate) catalog_timeout: Duration,
    /// Requests that run at once, unless the entry says fewer or more.
    pub(crate) slots: usize,
    /// Tokens of a step.
    pub(crate) batch_tokens_max: usize,
    /// What it is to run on.
    pub(crate) hardware: Hardware,
}

/// A model that can be loaded.
#[derive(Debug)]
pub(crate) enum Inspected {
    /// One with weights.
    Real {
        /// Its files.
        opened: Arc<OpenedModel>,
        /// What places its weights.
        threads: Arc<CpuThreads>,
    },
    /// One that is simulated.
    Simulated {
        /// What it is.
        model: SimulatedModel,
        /// Its text side.
        text: Arc<ModelText>,
    },
}

impl Inspected {
    /// Bytes of the weights.
    pub(crate) fn weights_bytes(&self) -> u64 {
        match self {
            Self::Real { opened, .. } => opened.weights_bytes() as u64,
            Self::Simulated { model, .. } => model.weights_bytes(),
        }
    }

    /// What requests need.
    pub(crate) fn text(&self) -> &Arc<ModelText> {
        match self {
            Self::Real { opened, .. } => &opened.text,
            Self::Simulated { text, .. } => text,
        }
    }
}

type Found = Result<(Arc<Inspected>, ModelNeeds), JobFault>;

impl Inspection {
    /// Looks at the model and counts what it needs.
    pub(crate) async fn run(self) -> JobDone {
        let (model, entry) = (self.model.clone(), self.entry.clone());
        let result = self.inspect().await;
        JobDone::Inspected { model, entry, result }
    }

    async fn inspect(self) -> Found {
        let entry = match &self.entry {
            Some(entry) => Arc::clone(entry),
            // The dispatcher may know of a new model before this worker's watch does.
            None => timeout(self.catalog_timeout, self.catalog.entry(&self.model))
                .await
                .map_err(|_| JobFault::CatalogTimedOut(self.catalog_timeout))??
                .map(Arc::new)
                .ok_or(JobFault::NotInCatalog)?,
        };
        let limits = self.limits(&entry);
        let device_pages = self.hardware.device_pages();
        match self.hardware.kind() {
            HardwareKind::Cpu(cpu) => inspect_files(cpu, &entry, limits, device_pages).await,
            HardwareKind::Simulated(simulation) => {
                inspect_simulated(Arc::clone(simulation), entry, limits, device_pages).await
            }
        }
    }

    fn limits(&self, entry: &CatalogEntry) -> StepLimits {
        let entry_slots = entry.slots.and_then(|slots| usize::try_from(slots).ok());
        let slots = entry_slots.unwrap_or(self.slots).clamp(1, self.slots);
        StepLimits {
            batch_tokens_max: self.batch_tokens_max.max(slots),
            sequences_max: slots,
        }
    }
}

async fn inspect_files(cpu: &Cpu, entry: &CatalogEntry, limits: StepLimits, device_pages: u64) -> Found {
    let folder = match &entry.source {
        ModelSource::Folder(path) => path.clone(),
        ModelSource::Simulated { .. } => return Err(JobFault::NoWeights),
    };
    let (quantize, threads) = (entry.quantize, Arc::clone(&cpu.threads));
    spawn_blocking(move || {
        let opened = OpenedModel::open(&folder, limits, quantize)?;
        let needs = opened.needs(limits.sequences_max, device_pages);
        let opened = Arc::new(opened);
        Ok((Arc::new(Inspected::Real { opened, threads }), needs))
    })
    .await?
}

async fn inspect_simulated(
    simulation: Arc<Simulation>,
    entry: Arc<CatalogEntry>,
    limits: StepLimits,
    device_pages: u64,
) -> Found {
    let inspect = move |simulation: &Simulation, entry: &CatalogEntry| {
        let (model, text) = SimulatedModel::open(simulation, entry, limits)?;
        let needs = model.needs(device_pages);
        Ok((Arc::new(Inspected::Simulated { model, text }), needs))
    };
    match entry.source {
        ModelSource::Simulated { .. } => inspect(&simulation, &entry),
        ModelSource::Folder(_) => {
            let reader = Arc::clone(&simulation);
            let _turn = simulation.turn_to_read().await;
            spawn_blocking(move || inspect(&reader, &entry)).await?
        }
    }
}
