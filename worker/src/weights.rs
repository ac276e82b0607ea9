//! Where the files of models come from: the folder that the catalog names, the content store, or another worker.
//!
//! An entry's root decides what its files are. A worker that has the folder of an entry without a root reads it all and
//! notes its root; from then on every worker takes files of that root and of no other, wherever they lie.

mod arrivals;
mod carrier;
mod following;
mod origin;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use std::{fs, io};

use flotilla_client::{Catalog, ConnectError, Connection};
use flotilla_config::{Config, WorkerHub};
use flotilla_protocol::catalog::{CatalogEntry, ModelSource};
use flotilla_protocol::weights::Root;
use flotilla_weights::{
    Arrival, ArrivalError, Buffers, Exports, FetchProgress, FilesError, Importer, KnownManifests, MakeError,
    ModelFiles, RateCap, Receiver, Registry, RegistryError, Relay, RelayBytes, RelayError, Sender, Store,
    StoreError, StoredModel,
};
use flotilla_weights_core::{Manifest, ReceivingSettings, SendingSettings};
use thiserror::Error;
use tokio::sync::mpsc;
use tokio::task::{JoinError, spawn_blocking};
use tokio::time::timeout;
use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::AbortOnDropHandle;
use tracing::{info, warn};

use crate::error::chain;
use crate::identity::Identity;
use crate::watch::Change;
use arrivals::Arrivals;
use carrier::Carrier;
pub(crate) use origin::OriginError;

/// A worker's part in the copying of weights. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Weights {
    importer: Importer,
    arrivals: Arrivals,
    exports: Exports,
    catalog: Catalog,
    manifests: KnownManifests,
    hash_threads: usize,
    hub: WorkerHub,
    rate: RateCap,
    in_relay: RelayBytes,
    /// The cap while requests run here.
    serving_bytes_per_s: u64,
}

/// Keeps a worker's part in copying alive; dropped, copies under way are ended where they are.
#[derive(Debug)]
pub(crate) struct Sharing {
    stop: CancellationToken,
    _stop_at_end: DropGuard,
    exporting: AbortOnDropHandle<()>,
    _following: AbortOnDropHandle<()>,
    // The last to go: what ends before still says so.
    _carrier: Carrier,
}

impl Sharing {
    /// Ends copies under way, so that their receivers go elsewhere at once and nothing is left in the relay, if the
    /// server can be reached.
    pub(crate) async fn end(self) {
        self.stop.cancel();
        match timeout(END_MAX, self.exporting).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => warn!(%error, "the task that sends weights broke"),
            Err(_) => warn!("copies did not end in time; what they left in the relay is swept by others"),
        }
    }
}

/// The files of a model on this machine. They are not removed while the value lives.
#[derive(Debug)]
pub(crate) enum Located {
    /// Of a folder that is believed to be the model's.
    Folder(PathBuf),
    /// A model of a store.
    Stored(StoredModel),
    /// A model that is on its way, and by now perhaps here.
    Coming(Arrival),
}

/// How much of a model's files somebody waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Enough {
    /// All but weights: those are waited for when they are read.
    Description,
    /// Everything.
    All,
}

/// Why weights are not shared.
#[derive(Debug, Error)]
pub(crate) enum ShareError {
    #[error("there is no thread for weights")]
    Carrier(#[source] io::Error),
    #[error("the thread for weights broke")]
    Broke(#[from] JoinError),
    #[error("there is no connection for weights")]
    Connect(#[from] ConnectError),
    #[error(transparent)]
    Relay(#[from] RelayError),
    #[error(transparent)]
    Registry(#[from] RegistryError),
    #[error("there is no place for weights under worker.data_dir")]
    Files(#[from] FilesError),
    #[error("there is no content store under worker.data_dir")]
    Store(#[from] StoreError),
}

/// Why the files of a model are not here.
#[derive(Debug, Error)]
pub(crate) enum LocateError {
    #[error("the folder {folder} has other files than the model {root}, and the model's cannot be copied", folder = folder.display())]
    OtherFiles {
        folder: PathBuf,
        root: Root,
        #[source]
        source: ArrivalError,
    },
    #[error("the folder {folder} is not on this machine, and its files cannot be copied", folder = folder.display())]
    NotHere {
        folder: PathBuf,
        #[source]
        source: ArrivalError,
    },
    #[error(transparent)]
    Origin(#[from] OriginError),
    #[error("the model is simulated and has no files")]
    NoFiles,
    #[error("the model's files cannot be compared with its root")]
    Manifest(#[from] MakeError),
    #[error("comparing the model's files broke")]
    Broke(#[from] JoinError),
}

impl Located {
    /// Where they are now; `None` of those that do not come any more.
    pub(crate) fn folder(&self) -> Option<PathBuf> {
        match self {
            Self::Folder(folder) => Some(folder.clone()),
            Self::Stored(model) => Some(model.files().folder().to_owned()),
            Self::Coming(arrival) => arrival.folder(),
        }
    }

    /// What they are, where their bytes were compared with it.
    pub(crate) fn root(&self) -> Option<Root> {
        match self {
            Self::Folder(_) => None,
            Self::Stored(model) => Some(model.files().manifest().root()),
            Self::Coming(arrival) => Some(arrival.root()),
        }
    }

    /// What they come by.
    pub(crate) const fn arrival(&self) -> Option<&Arrival> {
        match self {
            Self::Folder(_) | Self::Stored(_) => None,
            Self::Coming(arrival) => Some(arrival),
        }
    }
}

impl Enough {
    /// Waits for as much of what comes.
    async fn of(self, arrival: &Arrival) -> Result<(), ArrivalError> {
        match self {
            Self::Description => arrival.described().await,
            Self::All => arrival.whole().await.map(drop),
        }
    }
}

impl Weights {
    /// Takes part in copying: answers those who ask, and follows the catalog to know what this machine has of it.
    ///
    /// # Errors
    /// [`ShareError`].
    pub(crate) async fn start(
        config: &Config,
        identity: &Identity,
        catalog: Catalog,
        changes: mpsc::Receiver<Change>,
    ) -> Result<(Self, Sharing), ShareError> {
        let settings = &config.worker.weights;
        let name = format!("{} weights", identity.worker);
        let carrier = Carrier::start().map_err(ShareError::Carrier)?;
        let nats = config.nats.clone();
        let connecting = carrier.run(async move { Connection::open_for_weights(&nats, &name).await });
        let connection = connecting.await??;
        let ask_timeout = connection.request_timeout * 2;
        let (relay, registry) = (
            Relay::open(connection.clone()).await?,
            Registry::open(&connection).await?,
        );
        let (stop, rate, buffers) = (
            CancellationToken::new(),
            RateCap::new(None),
            Buffers::new(SPARE_BUFFERS_MAX),
        );
        let identity = flotilla_weights::Identity {
            worker: identity.worker.clone(),
            incarnation: identity.incarnation,
            machine: machine(),
        };
        let in_relay = RelayBytes::default();
        let sender = Sender {
            settings: SendingSettings {
                window_bytes: settings
                    .window_bytes
                    .min(relay.bytes_max().unwrap_or(u64::MAX) / 4),
                ..SendingSettings::default()
            },
            relay: relay.clone(),
            registry: registry.clone(),
            rate: rate.clone(),
            buffers: buffers.clone(),
            stop: stop.clone(),
            in_relay: in_relay.clone(),
        };
        let (exports, exporting) = Exports::start(identity.clone(), sender, settings.sends_max).await?;
        let receiver = Receiver {
            relay,
            settings: ReceivingSettings::default(),
            buffers,
            stop: stop.clone(),
        };
        let data = &config.worker.data_dir;
        let weights = Self {
            importer: Importer {
                identity,
                receiver,
                registry,
                store: Store::open(data.join("models"), settings.store_max_bytes)?,
                ask_timeout,
            },
            arrivals: Arrivals::default(),
            exports,
            catalog,
            manifests: KnownManifests::open(data.join("manifests"))?,
            hash_threads: hash_threads(),
            hub: config.worker.hub.clone(),
            rate,
            in_relay,
            serving_bytes_per_s: settings.send_bytes_per_s_max,
        };
        let following = tokio::spawn(weights.clone().follow(changes));
        let sharing = Sharing {
            _stop_at_end: stop.clone().drop_guard(),
            stop,
            exporting,
            _following: AbortOnDropHandle::new(following),
            _carrier: carrier,
        };
        Ok((weights, sharing))
    }

    /// Bytes that copies from here have in the relay.
    pub(crate) fn relay_bytes(&self) -> u64 {
        self.in_relay.bytes()
    }

    /// Slows copies down while requests run here.
    pub(crate) fn set_serving(&self, is_serving: bool) {
        self.rate.set(is_serving.then_some(self.serving_bytes_per_s));
    }

    /// The files of a model of the catalog: its folder on this machine if it has the model's root, else a copy of the
    /// root from the content store or from another worker, or a download from its hub. Takes as long as it takes to
    /// have enough of them, and tells meanwhile how far it is. What comes as a copy goes on coming after that.
    ///
    /// # Errors
    /// [`LocateError`].
    pub(crate) async fn locate(
        &self,
        entry: &CatalogEntry,
        enough: Enough,
        progress: &FetchProgress,
    ) -> Result<Located, LocateError> {
        match &entry.source {
            ModelSource::Folder(folder) => self.of_folder(entry, folder, enough, progress).await,
            ModelSource::Hub(model) => Ok(self.of_hub(entry, model, enough, progress).await?),
            ModelSource::Simulated { .. } => Err(LocateError::NoFiles),
        }
    }

    async fn of_folder(
        &self,
        entry: &CatalogEntry,
        folder: &Path,
        enough: Enough,
        progress: &FetchProgress,
    ) -> Result<Located, LocateError> {
        let Some(root) = entry.root else {
            return Ok(Located::Folder(folder.to_owned()));
        };
        let is_here = tokio::fs::try_exists(folder.join("config.json"))
            .await
            .unwrap_or(false);
        if is_here && self.manifest_of(folder).await?.root() == root {
            return Ok(Located::Folder(folder.to_owned()));
        }
        let arrival = self.arrival(root);
        progress.follow(arrival.progress());
        enough.of(&arrival).await.map_err(|source| {
            let folder = folder.to_owned();
            match is_here {
                true => LocateError::OtherFiles { folder, root, source },
                false => LocateError::NotHere { folder, source },
            }
        })?;
        if is_here {
            warn!(model = %entry.name, folder = %folder.display(), %root, "the folder has other files than the catalog's model; a copy is used");
        }
        Ok(Located::Coming(arrival))
    }

    /// The manifest of a folder, known or made now.
    async fn manifest_of(&self, folder: &Path) -> Result<Manifest, LocateError> {
        let (manifests, folder, threads) = (self.manifests.clone(), folder.to_owned(), self.hash_threads);
        let stop = Arc::new(AtomicBool::new(false));
        // Dropped when the worker ends or nobody waits any more.
        let _stop = StopOnDrop(Arc::clone(&stop));
        Ok(spawn_blocking(move || manifests.of(&folder, threads, &stop)).await??)
    }

    /// Offers what the content store has of earlier runs.
    async fn offer_stored(&self) {
        let store = self.importer.store.clone();
        let found = spawn_blocking(move || {
            let whole = store.models()?.into_iter().filter(|state| state.whole);
            let files = whole.filter_map(|state| match StoredModel::open(store.folder_of(state.root), state.root) {
                Ok(model) => model.map(|model| Arc::clone(model.files())),
                Err(error) => {
                    warn!(root = %state.root, error = chain(&error), "a model of the store cannot be read");
                    None
                }
            });
            Ok::<Vec<Arc<ModelFiles>>, FilesError>(files.collect())
        });
        match found.await {
            Ok(Ok(found)) => {
                for files in found {
                    self.exports.hold(files).await;
                }
            }
            Ok(Err(error)) => warn!(error = chain(&error), "the content store cannot be listed"),
            Err(error) => warn!(%error, "listing the content store broke"),
        }
    }

    /// Finds out what this machine has of an entry, notes its root if nobody has, and offers its files.
    async fn identify(&self, entry: &CatalogEntry) -> Option<Root> {
        let ModelSource::Folder(folder) = &entry.source else {
            return None;
        };
        if !tokio::fs::try_exists(folder.join("config.json"))
            .await
            .unwrap_or(false)
        {
            return None;
        }
        let manifest = match self.manifest_of(folder).await {
            Ok(manifest) => manifest,
            Err(error) => {
                warn!(model = %entry.name, error = chain(&error), "a model's files cannot be offered to others");
                return None;
            }
        };
        let root = manifest.root();
        let noted = match entry.root {
            Some(noted) => Some(noted),
            None => match self.catalog.identify(&entry.name, &entry.source, root).await {
                Ok(noted) => noted,
                Err(error) => {
                    warn!(model = %entry.name, error = chain(&error), "the model's root could not be noted");
                    None
                }
            },
        };
        if noted != Some(root) {
            info!(model = %entry.name, folder = %folder.display(), %root, "the folder's files are not those of the catalog's model");
            return None;
        }
        let files = ModelFiles::new(Arc::new(manifest), folder.clone());
        self.exports.hold(Arc::new(files)).await;
        Some(root)
    }
}

/// Ends the making of a manifest.
struct StopOnDrop(Arc<AtomicBool>);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// What the machine's system calls this boot of it: the same for all containers on it, and for none elsewhere.
fn machine() -> String {
    let read: io::Result<String> = fs::read_to_string("/proc/sys/kernel/random/boot_id");
    // A system without it has no containers either: nobody is on the same machine.
    read.map(|id| id.trim().to_owned()).unwrap_or_default()
}

/// Half of the cores: requests may be running.
fn hash_threads() -> usize {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    (cores / 2).clamp(1, HASH_THREADS_MAX)
}

/// As long as an answer of a healthy server may take, twice: segments under way, and then their removal.
const END_MAX: Duration = Duration::from_secs(10);
/// More threads wait for the disk.
const HASH_THREADS_MAX: usize = 8;
/// Segments on their way in and out at once.
const SPARE_BUFFERS_MAX: usize = 24;
