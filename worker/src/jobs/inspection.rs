//! Looking at a model: what it is, and what it needs on the device.

use std::sync::Arc;
use std::time::Duration;

use flotilla_client::Catalog;
use flotilla_protocol::ModelName;
use flotilla_protocol::catalog::{CatalogEntry, ModelSource};
use flotilla_weights::FetchProgress;
use flotilla_worker_core::residency::ModelNeeds;
use flotilla_worker_engine::StepLimits;
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use super::{JobDone, JobFault};
use crate::files::FilesIdentity;
use crate::hardware::{Hardware, HardwareKind};
use crate::model::{ModelText, OpenedModel};
use crate::simulated::{SimulatedModel, Simulation};
use crate::weights::{Located, Weights};

/// A model to look at.
#[derive(Debug)]
pub(crate) struct Inspection {
    /// The model.
    pub(crate) model: ModelName,
    /// Its entry, if the worker has seen it.
    pub(crate) entry: Option<Arc<CatalogEntry>>,
    /// What an earlier look has found, which holds as long as the files are the same.
    pub(crate) known: Option<KnownText>,
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
    /// Where its files come from if they are not here.
    pub(crate) weights: Option<Weights>,
    /// How far they are.
    pub(crate) progress: FetchProgress,
}

/// The text side of a model, and what it was made of.
#[derive(Debug, Clone)]
pub(crate) struct KnownText {
    /// The model's files.
    pub(crate) files: FilesIdentity,
    /// What requests need of it.
    pub(crate) text: Arc<ModelText>,
}

/// A model that can be loaded.
#[derive(Debug)]
pub(crate) enum Inspected {
    /// One with weights.
    Real {
        /// Its files.
        opened: Arc<OpenedModel>,
        /// Which they are.
        identity: FilesIdentity,
        /// Keeps its files where they are until they have been read.
        _located: Located,
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

    /// The files of one with weights.
    pub(crate) fn identity(&self) -> Option<&FilesIdentity> {
        match self {
            Self::Real { identity, .. } => Some(identity),
            Self::Simulated { .. } => None,
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
        match self.hardware.kind() {
            HardwareKind::Cpu(_) => {
                let weights = self.weights.map(|weights| (weights, self.progress));
                inspect_files(&entry, limits, self.known, weights).await
            }
            HardwareKind::Simulated(simulation) => {
                inspect_simulated(Arc::clone(simulation), entry, limits).await
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

async fn inspect_files(
    entry: &CatalogEntry,
    limits: StepLimits,
    known: Option<KnownText>,
    weights: Option<(Weights, FetchProgress)>,
) -> Found {
    let located = match (&entry.source, weights) {
        (ModelSource::Simulated { .. }, _) => return Err(JobFault::NoWeights),
        (_, Some((weights, progress))) => weights.locate(entry, &progress).await.map_err(Box::new)?,
        (ModelSource::Folder(folder), None) => Located::folder(folder.clone()),
        (ModelSource::Hub(_), None) => return Err(JobFault::NoStore),
    };
    let quantize = entry.quantize;
    spawn_blocking(move || {
        let folder = &located.folder;
        let identity = FilesIdentity::of(folder, quantize).map_err(JobFault::Files)?;
        let known = known.filter(|known| known.files == identity);
        let opened = OpenedModel::open(folder, limits, quantize, known.map(|known| known.text))?;
        let needs = opened.needs();
        let opened = Arc::new(opened);
        let inspected = Inspected::Real {
            opened,
            identity,
            _located: located,
        };
        Ok((Arc::new(inspected), needs))
    })
    .await?
}

async fn inspect_simulated(
    simulation: Arc<Simulation>,
    entry: Arc<CatalogEntry>,
    limits: StepLimits,
) -> Found {
    let inspect = move |simulation: &Simulation, entry: &CatalogEntry| {
        let (model, text) = SimulatedModel::open(simulation, entry, limits)?;
        let needs = model.needs();
        Ok((Arc::new(Inspected::Simulated { model, text }), needs))
    };
    match entry.source {
        ModelSource::Simulated { .. } => inspect(&simulation, &entry),
        ModelSource::Folder(_) | ModelSource::Hub(_) => {
            let reader = Arc::clone(&simulation);
            let _turn = simulation.turn_to_read().await;
            spawn_blocking(move || inspect(&reader, &entry)).await?
        }
    }
}
