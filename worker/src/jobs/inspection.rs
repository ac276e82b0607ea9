//! Looking at a model: what it is, and what it needs on the device.

use std::sync::Arc;
use std::time::Duration;

use flotilla_client::{Catalog, CatalogError};
use flotilla_protocol::ModelName;
use flotilla_protocol::catalog::{CatalogEntry, ModelSource, Quantize};
use flotilla_weights::{Arrival, ComingFiles, FetchProgress};
use flotilla_worker_core::residency::ModelNeeds;
use flotilla_worker_engine::StepLimits;
use tokio::sync::Semaphore;
use tokio::task::{JoinError, spawn_blocking};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::{JobDone, JobFault};
use crate::error::chain;
use crate::files::FilesIdentity;
use crate::hardware::{Hardware, HardwareKind};
use crate::incoming::Waits;
use crate::model::{ModelText, OpenedModel};
use crate::simulated::{SimulatedModel, Simulation};
use crate::weights::{Enough, Located, Weights};

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
    /// How long they may take to be looked at when they are here.
    pub(crate) looks: Looks,
}

/// Looks at files, each for a limited time. A thread that waits for a disk cannot be ended, so that there are only so many of
/// them. Clones share the limit.
#[derive(Debug, Clone)]
pub(crate) struct Looks {
    limit: Duration,
    turns: Arc<Semaphore>,
}

impl Looks {
    /// Looks that may take so long each, the wait for their turn included.
    pub(crate) fn new(limit: Duration) -> Self {
        Self {
            limit,
            turns: Arc::new(Semaphore::new(LOOKS_AT_ONCE_MAX)),
        }
    }

    /// Runs something that reads files.
    ///
    /// # Errors
    /// [`JobFault::Silent`], or it broke.
    async fn look<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, JobFault> {
        let looked = async {
            let turn = Arc::clone(&self.turns).acquire_owned().await;
            let turn = turn.expect("the turns are never closed");
            let work = move || {
                let _turn = turn;
                work()
            };
            spawn_blocking(work).await
        };
        let looked = timeout(self.limit, looked).await;
        Ok(looked.map_err(|_| JobFault::Silent(self.limit))??)
    }
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
        /// How those come that are not here yet.
        coming: Option<ComingFiles>,
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

    /// How the files of one with weights come, if they were not all here.
    pub(crate) fn coming(&self) -> Option<&ComingFiles> {
        match self {
            Self::Real { coming, .. } => coming.as_ref(),
            Self::Simulated { .. } => None,
        }
    }

    /// The same, as long as they come.
    pub(crate) fn arrival(&self) -> Option<&Arrival> {
        let arrival = self.coming().map(ComingFiles::arrival);
        arrival.filter(|arrival| arrival.is_under_way())
    }

    /// What requests need.
    pub(crate) fn text(&self) -> &Arc<ModelText> {
        match self {
            Self::Real { opened, .. } => &opened.text,
            Self::Simulated { text, .. } => text,
        }
    }
}

type Known = (Arc<Inspected>, ModelNeeds);
type Found = Result<Known, JobFault>;
/// Why files were not opened, and the files.
type Unopened = Box<(JobFault, Files)>;

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
            None => self.find().await?,
        };
        let limits = self.limits(&entry);
        match self.hardware.kind() {
            HardwareKind::Cpu(_) => {
                let weights = self.weights.map(|weights| (weights, self.progress));
                inspect_files(&entry, limits, self.known, weights, &self.looks).await
            }
            HardwareKind::Simulated(simulation) => {
                inspect_simulated(Arc::clone(simulation), entry, limits, &self.looks).await
            }
        }
    }

    /// Asks the catalog until it answers: servers that are away or elect a leader are no fault of the model. Who waits for
    /// the model may have a deadline of its own.
    async fn find(&self) -> Result<Arc<CatalogEntry>, JobFault> {
        loop {
            let fault = match timeout(self.catalog_timeout, self.catalog.entry(&self.model)).await {
                Ok(Ok(found)) => return found.map(Arc::new).ok_or(JobFault::NotInCatalog),
                Ok(Err(error @ CatalogError::NotAnEntry { .. })) => return Err(error.into()),
                Ok(Err(error)) => chain(&error),
                Err(_) => "no answer in time".to_owned(),
            };
            warn!(model = %self.model, error = fault, "the catalog cannot be read yet");
            sleep(AGAIN_AFTER).await;
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

/// Files to look at, and how.
#[derive(Debug)]
struct Files {
    located: Located,
    coming: Option<ComingFiles>,
    limits: StepLimits,
    quantize: Option<Quantize>,
    known: Option<KnownText>,
}

async fn inspect_files(
    entry: &CatalogEntry,
    limits: StepLimits,
    known: Option<KnownText>,
    weights: Option<(Weights, FetchProgress)>,
    looks: &Looks,
) -> Found {
    let located = locate(entry, weights).await?;
    let coming = located.arrival().cloned().map(ComingFiles::new);
    let mut files = Files {
        located,
        coming,
        limits,
        quantize: entry.quantize,
        known,
    };
    if let Some(arrival) = files.located.arrival().cloned() {
        match files.look_early().await? {
            Ok(found) => return Ok(found),
            // The folder may have got its last name just now. What is wrong with the files is wrong when they are
            // all here, too.
            Err(failed) => {
                let (error, rest) = *failed;
                debug!(model = %entry.name, error = chain(&error), "files cannot be opened while they come");
                files = rest;
            }
        }
        arrival.whole().await?;
    }
    let open = move || files.open(&CancellationToken::new()).map_err(|failed| failed.0);
    looks.look(open).await?
}

/// The files of a model, as far as a look at them needs.
async fn locate(
    entry: &CatalogEntry,
    weights: Option<(Weights, FetchProgress)>,
) -> Result<Located, JobFault> {
    match (&entry.source, weights) {
        (ModelSource::Simulated { .. }, _) => Err(JobFault::NoWeights),
        (_, Some((weights, progress))) => {
            let located = weights.locate(entry, Enough::Description, &progress).await;
            Ok(located.map_err(Box::new)?)
        }
        (ModelSource::Folder(folder), None) => Ok(Located::Folder(folder.clone())),
        (ModelSource::Hub(_), None) => Err(JobFault::NoStore),
    }
}

impl Files {
    /// Looks at what has come, and ends when nobody waits for that.
    async fn look_early(self) -> Result<Result<Known, Unopened>, JoinError> {
        let end = CancellationToken::new();
        let _end = end.clone().drop_guard();
        spawn_blocking(move || self.open(&end)).await
    }

    /// Opens the files as far as they are here, and waits for the headers of weights.
    fn open(self, end: &CancellationToken) -> Result<Known, Unopened> {
        match self.opened(end) {
            Ok((opened, identity)) => {
                let needs = opened.needs();
                let inspected = Inspected::Real {
                    opened: Arc::new(opened),
                    identity,
                    coming: self.coming,
                    _located: self.located,
                };
                Ok((Arc::new(inspected), needs))
            }
            Err(error) => Err(Box::new((error, self))),
        }
    }

    fn opened(&self, end: &CancellationToken) -> Result<(OpenedModel, FilesIdentity), JobFault> {
        let folder = self.located.folder().ok_or(JobFault::Moved)?;
        let identity = match self.located.root() {
            Some(root) => FilesIdentity::of_root(root, self.quantize),
            None => FilesIdentity::of(&folder, self.quantize).map_err(JobFault::Files)?,
        };
        let known = self.known.as_ref().filter(|known| known.files == identity);
        let text = known.map(|known| Arc::clone(&known.text));
        let waits = Waits::new(self.coming.as_ref(), end);
        let opened = OpenedModel::open(&folder, &waits, self.limits, self.quantize, text)?;
        // A folder that gets its last name meanwhile seems to lack files that a model need not have.
        match self.coming.is_none() || folder.try_exists().unwrap_or(false) {
            true => Ok((opened, identity)),
            false => Err(JobFault::Moved),
        }
    }
}

async fn inspect_simulated(
    simulation: Arc<Simulation>,
    entry: Arc<CatalogEntry>,
    limits: StepLimits,
    looks: &Looks,
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
            looks.look(move || inspect(&reader, &entry)).await?
        }
    }
}

/// Far more than look at once while disks answer.
const LOOKS_AT_ONCE_MAX: usize = 32;
/// How soon the catalog is asked again.
const AGAIN_AFTER: Duration = Duration::from_millis(500);
