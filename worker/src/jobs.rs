//! What takes long and concerns a model: looking at its files, loading it, unloading it.
//!
//! Each is a task that ends with a [`JobDone`]; panics inside are turned into reasons, so that residency always
//! learns how it went.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use flotilla_client::Catalog;
use flotilla_protocol::ModelName;
use flotilla_protocol::catalog::{CatalogEntry, ModelSource};
use flotilla_worker_core::residency::{Grant, ModelNeeds};
use flotilla_worker_engine::StepLimits;
use thiserror::Error;
use tokio::task::{JoinError, spawn_blocking};
use tokio::time::{Instant, timeout};

use crate::engine::{Engine, EngineEnded, LoadFault, LoadLimits, load};
use crate::model::{OpenError, OpenedModel};

/// How a job ended.
#[derive(Debug)]
pub(crate) enum JobDone {
    /// A model's files were looked at.
    Inspected {
        /// The model.
        model: ModelName,
        /// Its entry as it was then, if the worker had seen it.
        entry: Option<Box<CatalogEntry>>,
        /// The files and what they need, or why they cannot be used.
        result: Result<(Arc<OpenedModel>, ModelNeeds), JobFault>,
    },
    /// A load ended.
    Loaded {
        /// The model.
        model: ModelName,
        /// Why it failed.
        result: Result<(), JobFault>,
        /// How long it took.
        elapsed: Duration,
    },
    /// A model is out of device memory.
    Unloaded {
        /// The model.
        model: ModelName,
        /// Whether the engine is still there.
        result: Result<(), EngineEnded>,
    },
}

/// Why a model cannot be inspected or loaded.
#[derive(Debug, Error)]
pub(crate) enum JobFault {
    /// Nobody added it.
    #[error("the catalog has no such model")]
    NotInCatalog,
    /// The catalog did not answer.
    #[error("the catalog cannot be read")]
    Catalog(#[from] flotilla_client::CatalogError),
    /// The catalog did not answer in time.
    #[error("the catalog did not answer within {0:?}")]
    CatalogTimedOut(Duration),
    /// The files cannot be used.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The weights could not be placed.
    #[error(transparent)]
    Load(#[from] LoadFault),
    /// The device's thread is gone.
    #[error(transparent)]
    Engine(#[from] EngineEnded),
    /// A bug in what reads the files.
    #[error("reading the model's files broke")]
    Broke(#[from] JoinError),
}

/// A model to look at.
#[derive(Debug)]
pub(crate) struct Inspection {
    /// The model.
    pub(crate) model: ModelName,
    /// Its entry, if the worker has seen it.
    pub(crate) entry: Option<CatalogEntry>,
    /// Where its entry is otherwise.
    pub(crate) catalog: Catalog,
    /// How long the catalog may take.
    pub(crate) catalog_timeout: Duration,
    /// Requests that run at once, unless the entry says fewer or more.
    pub(crate) slots: usize,
    /// Tokens of a step.
    pub(crate) batch_tokens_max: usize,
    /// Pages of the device.
    pub(crate) device_pages: u64,
}

impl Inspection {
    /// Opens the model's folder and counts what it needs.
    pub(crate) async fn run(self) -> JobDone {
        let (model, entry) = (self.model.clone(), self.entry.clone().map(Box::new));
        let result = self.inspect().await;
        JobDone::Inspected { model, entry, result }
    }

    async fn inspect(self) -> Result<(Arc<OpenedModel>, ModelNeeds), JobFault> {
        let entry = match self.entry {
            Some(entry) => entry,
            // The dispatcher may know of a new model before this worker's watch does.
            None => timeout(self.catalog_timeout, self.catalog.entry(&self.model))
                .await
                .map_err(|_| JobFault::CatalogTimedOut(self.catalog_timeout))??
                .ok_or(JobFault::NotInCatalog)?,
        };
        let entry_slots = entry.slots.and_then(|slots| usize::try_from(slots).ok());
        let slots = entry_slots.unwrap_or(self.slots).clamp(1, self.slots);
        let limits = StepLimits {
            batch_tokens_max: self.batch_tokens_max.max(slots),
            sequences_max: slots,
        };
        let device_pages = self.device_pages;
        let (folder, quantize) = (folder(entry.source), entry.quantize);
        spawn_blocking(move || {
            let opened = OpenedModel::open(&folder, limits, quantize)?;
            let needs = opened.needs(slots, device_pages);
            Ok((Arc::new(opened), needs))
        })
        .await?
    }
}

fn folder(source: ModelSource) -> PathBuf {
    match source {
        ModelSource::Folder(path) => path,
    }
}

/// Loads a model beside whatever runs and hands it to the engine.
pub(crate) async fn load_model(
    model: ModelName,
    opened: Arc<OpenedModel>,
    grant: Grant,
    limits: LoadLimits,
    engine: Engine,
) -> JobDone {
    let started = Instant::now();
    let result = place(model.clone(), opened, grant, limits, engine).await;
    JobDone::Loaded {
        model,
        result,
        elapsed: started.elapsed(),
    }
}

async fn place(
    model: ModelName,
    opened: Arc<OpenedModel>,
    grant: Grant,
    limits: LoadLimits,
    engine: Engine,
) -> Result<(), JobFault> {
    let threads = Arc::clone(engine.threads());
    let loaded = spawn_blocking(move || load(&opened, grant, &limits, &threads)).await??;
    Ok(engine.install(model, loaded).await?)
}

/// Takes a model out of the engine.
pub(crate) async fn unload_model(model: ModelName, engine: Engine) -> JobDone {
    let result = engine.unload(model.clone()).await;
    JobDone::Unloaded { model, result }
}
