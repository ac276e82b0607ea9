//! What takes long and concerns a model: looking at it, loading it, unloading it, and bringing its weights near.
//!
//! Each is a task that ends with a [`JobDone`]; panics inside are turned into reasons, so that residency always
//! learns how it went.

mod inspection;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use flotilla_protocol::ModelName;
use flotilla_protocol::catalog::CatalogEntry;
use flotilla_weights::{Arrival, ArrivalError, FetchProgress};
use flotilla_worker_core::residency::{Keep, ModelNeeds};
use flotilla_worker_engine::{CpuImage, CpuThreads};
use thiserror::Error;
use tokio::sync::oneshot;
use tokio::task::{JoinError, spawn_blocking};
use tokio::time::{Instant, sleep};
use tracing::debug;

use crate::engine::{
    Engine, EngineEnded, LoadFault, LoadWatch, LoadedModel, LoadedSimulated, PartPlace, SharedDevice, fetch,
    load, load_parts,
};
use crate::model::{OpenError, OpenedModel};
use crate::simulated::SimulatedModelError;
use crate::weights::{Enough, LocateError, Weights};
pub(crate) use inspection::{Inspected, Inspection, KnownText, Looks};

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
        /// What runs it, or why it failed.
        result: Result<Running, JobFault>,
        /// How long it took.
        elapsed: Duration,
    },
    /// A model is out of device memory.
    Unloaded {
        /// The model.
        model: ModelName,
        /// The images that were kept, if the engine is still there.
        result: Result<Option<Vec<CpuImage>>, EngineEnded>,
    },
    /// The engine was told how many pages its batches share.
    KvTold {
        /// Whether it is still there.
        result: Result<(), EngineEnded>,
    },
    /// A model's files were brought onto the disk by order.
    Fetched {
        /// The model.
        model: ModelName,
        /// Their bytes, or why not.
        result: Result<u64, JobFault>,
    },
    /// Nothing more of a model's files comes: they are here, or its load says why not.
    Arrived {
        /// The model.
        model: ModelName,
    },
    /// A model's weights were brought into host memory.
    Prefetched {
        /// The model.
        model: ModelName,
        /// Their image, or why not.
        result: Result<Vec<CpuImage>, JobFault>,
    },
}

/// What runs a model that was loaded.
#[derive(Debug)]
pub(crate) struct Running {
    /// Its device's, or its own when it is in parts.
    pub(crate) engine: Engine,
    /// Closed when an engine of its own ends.
    pub(crate) ended: Option<oneshot::Receiver<String>>,
}

impl Running {
    fn on_device(engine: Engine) -> Self {
        Self { engine, ended: None }
    }
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
    /// The files cannot be used.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The files are not here and cannot be brought here.
    #[error(transparent)]
    Locate(#[from] Box<LocateError>),
    /// They were on their way.
    #[error("the rest of the model's files does not come")]
    Copy(#[from] ArrivalError),
    /// They got another name while they were looked at.
    #[error("the model's files are not where they were any more")]
    Moved,
    /// The disk does not answer.
    #[error("the model's files were not looked at within {0:?}; does the disk that they lie on answer?")]
    Silent(Duration),
    /// The files cannot be looked at.
    #[error("the model's files cannot be looked at")]
    Files(#[source] io::Error),
    /// Nothing that comes from elsewhere can be kept.
    #[error(
        "the model comes from a hub, and this worker has no place for it; that takes worker.weights.share = true, and a \
         dispatcher that has made the relay"
    )]
    NoStore,
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
    /// The system gives no thread for a model in parts.
    #[error("cannot start the model's thread")]
    Thread(#[source] io::Error),
    /// A bug in what reads the files.
    #[error("reading the model's files broke")]
    Broke(#[from] JoinError),
}

/// Loads a model beside whatever runs and hands it to the engine.
pub(crate) async fn load_model(
    model: ModelName,
    opened: Arc<OpenedModel>,
    device_pages: u64,
    image: Option<CpuImage>,
    watch: LoadWatch,
    threads: Arc<CpuThreads>,
    engine: Engine,
) -> JobDone {
    let started = Instant::now();
    let placed = async {
        let loaded = spawn_blocking(move || load(&opened, device_pages, image, &watch, &threads)).await??;
        engine.install(model.clone(), loaded).await?;
        Ok(Running::on_device(engine))
    };
    JobDone::Loaded {
        result: placed.await,
        elapsed: started.elapsed(),
        model,
    }
}

/// Loads a model in parts beside whatever runs, each on its device, and starts an engine of its own for it; `first` is
/// the engine of its first device.
pub(crate) async fn load_model_in_parts(
    model: ModelName,
    opened: Arc<OpenedModel>,
    places: Vec<PartPlace>,
    images: Vec<CpuImage>,
    watch: LoadWatch,
    first: Engine,
) -> JobDone {
    let started = Instant::now();
    let devices: Vec<SharedDevice> = places.iter().map(|place| place.device.clone()).collect();
    let kv_blocks = places.first().map_or(0, |place| place.part.kv_blocks);
    let placed = async {
        let loaded = spawn_blocking(move || load_parts(&opened, &places, images, &watch)).await??;
        let started = first.start_parts(devices, kv_blocks).map_err(JobFault::Thread)?;
        let (engine, ended) = (started.0, Some(started.1));
        engine.install(model.clone(), loaded).await?;
        Ok(Running { engine, ended })
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
    watch: LoadWatch,
    engine: Engine,
) -> JobDone {
    let started = Instant::now();
    let placed = async {
        tokio::select! {
            () = sleep(load_time) => {}
            () = watch.cancel.cancelled() => return Err(LoadFault::Cancelled.into()),
        }
        let loaded = LoadedModel::Simulated(Box::new(loaded));
        engine.install(model.clone(), loaded).await?;
        Ok(Running::on_device(engine))
    };
    JobDone::Loaded {
        result: placed.await,
        elapsed: started.elapsed(),
        model,
    }
}

/// Brings a model's weights into host memory, beside whatever runs.
pub(crate) async fn prefetch_model(
    model: ModelName,
    opened: Arc<OpenedModel>,
    watch: LoadWatch,
    threads: Arc<CpuThreads>,
) -> JobDone {
    let fetched = async { Ok(spawn_blocking(move || fetch(&opened, &watch, &threads)).await??) };
    JobDone::Prefetched {
        result: fetched.await,
        model,
    }
}

/// Brings the files of a model onto the disk, if they are not there.
pub(crate) async fn fetch_files(
    entry: Arc<CatalogEntry>,
    weights: Weights,
    progress: FetchProgress,
) -> JobDone {
    let fetched = async {
        let located = weights.locate(&entry, Enough::All, &progress).await;
        let _located = located.map_err(Box::new)?;
        Ok(progress.bytes_total().unwrap_or(entry.facts.weights_bytes))
    };
    JobDone::Fetched {
        result: fetched.await,
        model: entry.name.clone(),
    }
}

/// Waits until nothing more of a model's files comes.
pub(crate) async fn follow_arrival(model: ModelName, arrival: Arrival) -> JobDone {
    if let Err(error) = arrival.whole().await {
        // Whoever needs the files says so louder.
        debug!(%model, %error, "a model's files did not come");
    }
    JobDone::Arrived { model }
}

/// Takes a model out of the engine, after this time.
pub(crate) async fn unload_model(
    model: ModelName,
    keep: Keep,
    engine: Engine,
    unload_time: Duration,
) -> JobDone {
    if !unload_time.is_zero() {
        sleep(unload_time).await;
    }
    let result = engine.unload(model.clone(), keep).await;
    JobDone::Unloaded { model, result }
}

/// Tells the engine how many pages its batches share. How they stand then is told by [`Engine::kv`].
pub(crate) async fn resize_kv(engine: Engine, pages: u64) -> JobDone {
    let result = engine.resize_kv(pages).await;
    JobDone::KvTold { result }
}
