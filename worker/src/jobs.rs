//! What takes long and concerns a model: looking at it, loading it, unloading it, and bringing its weights near.
//!
//! Each is a task that ends with a [`JobDone`]; panics inside are turned into reasons, so that residency always
//! learns how it went.

mod inspection;
mod prefetch;

use std::sync::Arc;
use std::time::Duration;

use flotilla_protocol::ModelName;
use flotilla_protocol::catalog::CatalogEntry;
use flotilla_worker_core::residency::{Grant, ModelNeeds};
use flotilla_worker_engine::CpuThreads;
use thiserror::Error;
use tokio::task::{JoinError, spawn_blocking};
use tokio::time::{Instant, sleep};

use crate::engine::{Engine, EngineEnded, LoadFault, LoadLimits, LoadedModel, LoadedSimulated, load};
use crate::model::{OpenError, OpenedModel};
use crate::simulated::SimulatedModelError;
pub(crate) use inspection::{Inspected, Inspection};
pub(crate) use prefetch::{PrefetchFault, prefetch_folder};

/// How a job ended.
#[derive(Debug)]
pub(crate) enum JobDone {
    /// A model was looked at.
    Inspected {
        /// The model.
        model: ModelName,
        /// Its entry as it was then, if the worker had seen it.
        entry: Option<Arc<CatalogEntry>>,
        /// What was found and what it needs, or why it cannot be used.
        result: Result<(Arc<Inspected>, ModelNeeds), JobFault>,
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
    /// A model's weights were read into the system's file cache.
    Prefetched {
        /// The model.
        model: ModelName,
        /// How many bytes, or why not.
        result: Result<u64, PrefetchFault>,
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
    /// It exists in the catalog only.
    #[error("the model is simulated and has no weights; workers with worker.engine = \"simulated\" serve it")]
    NoWeights,
    /// It cannot be simulated.
    #[error(transparent)]
    Simulated(#[from] SimulatedModelError),
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

/// Loads a model beside whatever runs and hands it to the engine.
pub(crate) async fn load_model(
    model: ModelName,
    opened: Arc<OpenedModel>,
    grant: Grant,
    limits: LoadLimits,
    threads: Arc<CpuThreads>,
    engine: Engine,
) -> JobDone {
    let started = Instant::now();
    let placed = async {
        let loaded = spawn_blocking(move || load(&opened, grant, &limits, &threads)).await??;
        Ok(engine.install(model.clone(), loaded).await?)
    };
    JobDone::Loaded {
        result: placed.await,
        elapsed: started.elapsed(),
        model,
    }
}

/// Lets the time of a simulated load pass and hands the model to the engine.
pub(crate) async fn load_simulated(
    model: ModelName,
    loaded: LoadedSimulated,
    load_time: Duration,
    timeout: Duration,
    limits: LoadLimits,
    engine: Engine,
) -> JobDone {
    let started = Instant::now();
    let placed = async {
        tokio::select! {
            () = sleep(load_time.min(timeout)) => {}
            () = limits.cancel.cancelled() => return Err(LoadFault::Cancelled.into()),
        }
        if load_time > timeout {
            return Err(LoadFault::SimulatedTimedOut { load_time, timeout }.into());
        }
        let loaded = LoadedModel::Simulated(Box::new(loaded));
        Ok(engine.install(model.clone(), loaded).await?)
    };
    JobDone::Loaded {
        result: placed.await,
        elapsed: started.elapsed(),
        model,
    }
}

/// Takes a model out of the engine, after this time.
pub(crate) async fn unload_model(model: ModelName, engine: Engine, unload_time: Duration) -> JobDone {
    if !unload_time.is_zero() {
        sleep(unload_time).await;
    }
    let result = engine.unload(model.clone()).await;
    JobDone::Unloaded { model, result }
}
