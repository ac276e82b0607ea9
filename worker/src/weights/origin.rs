//! Models of a hub: one worker of the fleet downloads them, the others copy from it.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use flotilla_client::CatalogError;
use flotilla_hub::{Hub, HubError, Repository};
use flotilla_protocol::catalog::{CatalogEntry, ModelSource};
use flotilla_protocol::hub::HubModel;
use flotilla_protocol::weights::{Claim, Generation, Root};
use flotilla_weights::{
    ArrivalError, ComingModel, FetchProgress, HeldDownload, ImportError, MakeError, Registry, RegistryError,
    StoreError, StoredModel, WEIGHTS_BYTES, make_manifest,
};
use flotilla_weights_core::Manifest;
use thiserror::Error;
use tokio::task::spawn_blocking;
use tokio::time::{interval, sleep};
use tracing::{info, warn};

use super::{Enough, Located, StopOnDrop, Weights};
use crate::error::chain;

/// Why a model of a hub is not here.
#[derive(Debug, Error)]
pub(crate) enum OriginError {
    #[error(
        "{model} is in no store of the fleet, and this worker may not download it; add {repo:?} or a pattern such as \
         {pattern:?} to worker.hub.allow", repo = model.repo.as_str(), pattern = pattern(model)
    )]
    NotAllowed { model: HubModel },
    #[error("{model} cannot be downloaded")]
    Hub {
        model: HubModel,
        #[source]
        source: HubError,
    },
    #[error("the files that the hub has now as {model} are not those of the catalog's model {root}")]
    OtherFiles { model: HubModel, root: Root },
    #[error("the files of {root} cannot be copied")]
    Copy {
        root: Root,
        #[source]
        source: ArrivalError,
    },
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("nobody can say who downloads it")]
    Registry(#[from] RegistryError),
    #[error("the model's root cannot be noted")]
    Catalog(#[from] CatalogError),
    #[error("what was downloaded makes no model")]
    Manifest(#[from] MakeError),
}

/// What came of asking the fleet.
enum InFleet {
    Here(Located),
    /// Nobody has offered it.
    Nowhere,
    /// Those who offer it do not send it.
    NotSent(ArrivalError),
}

impl Weights {
    /// The files of a hub's model: a copy from the store or from another worker, or, when nobody has them, a download.
    /// Of the workers that want them one downloads, and the others wait for it.
    pub(super) async fn of_hub(
        &self,
        entry: &CatalogEntry,
        model: &HubModel,
        enough: Enough,
        progress: &FetchProgress,
    ) -> Result<Located, OriginError> {
        let origin = model.to_string();
        loop {
            let found = self.in_fleet(entry, model, enough, progress).await?;
            if let InFleet::Here(located) = found {
                return Ok(located);
            }
            let registry = &self.importer.registry;
            if registry.downloader_of(&origin).await?.is_some() {
                sleep(LOOK_AGAIN).await;
                continue;
            }
            if !self.may_download(model) {
                return Err(refusal(model, entry.root, found));
            }
            let Ok(held) = registry.take_download(&origin, self.claim()).await? else {
                continue;
            };
            // Between the two looks another worker may have downloaded it.
            if matches!(found, InFleet::Nowhere) && self.is_offered(entry).await? {
                give_back(registry, held).await;
                continue;
            }
            return self.download_claimed(entry, model, held, progress).await;
        }
    }

    async fn in_fleet(
        &self,
        entry: &CatalogEntry,
        model: &HubModel,
        enough: Enough,
        progress: &FetchProgress,
    ) -> Result<InFleet, OriginError> {
        let Some(root) = self.root_of(entry).await? else {
            return self.downloaded_before(entry, model).await;
        };
        loop {
            let arrival = self.arrival(root);
            progress.follow(arrival.progress());
            let Err(source) = enough.of(&arrival).await else {
                return Ok(InFleet::Here(Located::Coming(arrival)));
            };
            match source.import() {
                Some(ImportError::NoHolder { .. }) => return Ok(InFleet::Nowhere),
                Some(ImportError::Holders { .. }) => return Ok(InFleet::NotSent(source)),
                // Another process of this machine receives it already.
                Some(ImportError::Store(StoreError::Busy { .. })) => sleep(LOOK_AGAIN).await,
                Some(_) | None => return Err(OriginError::Copy { root, source }),
            }
        }
    }

    /// A model that was downloaded for an entry that is gone by now. Only a commit is the same for ever.
    async fn downloaded_before(
        &self,
        entry: &CatalogEntry,
        model: &HubModel,
    ) -> Result<InFleet, OriginError> {
        if !model.revision.is_commit() {
            return Ok(InFleet::Nowhere);
        }
        let (store, origin) = (self.importer.store.clone(), model.to_string());
        let found = blocking(move || store.find_origin(&origin)).await?;
        match found {
            Some(stored) => self.offer(entry, model, stored).await.map(InFleet::Here),
            None => Ok(InFleet::Nowhere),
        }
    }

    /// The entry's root, as far as anybody has noted it by now.
    async fn root_of(&self, entry: &CatalogEntry) -> Result<Option<Root>, OriginError> {
        if entry.root.is_some() {
            return Ok(entry.root);
        }
        let now = self.catalog.entry(&entry.name).await?;
        Ok(now
            .filter(|now| now.source == entry.source)
            .and_then(|now| now.root))
    }

    async fn is_offered(&self, entry: &CatalogEntry) -> Result<bool, OriginError> {
        match self.root_of(entry).await? {
            Some(root) => Ok(!self.importer.registry.holders_of(root).await?.is_empty()),
            None => Ok(false),
        }
    }

    fn may_download(&self, model: &HubModel) -> bool {
        let mut allowed = self.hub.allow.iter().flatten();
        allowed.any(|pattern| pattern.matches(model.repo.as_str()))
    }

    fn claim(&self) -> Claim {
        Claim {
            sender: self.importer.identity.worker.clone(),
            incarnation: self.importer.identity.incarnation,
            // A download is known by its origin.
            generation: Generation(0),
        }
    }

    async fn download_claimed(
        &self,
        entry: &CatalogEntry,
        model: &HubModel,
        mut held: HeldDownload,
        progress: &FetchProgress,
    ) -> Result<Located, OriginError> {
        let registry = &self.importer.registry;
        let downloaded = tokio::select! {
            downloaded = self.download(entry, model, progress) => downloaded,
            never = renew(registry, &mut held) => match never {},
        };
        give_back(registry, held).await;
        downloaded
    }

    async fn download(
        &self,
        entry: &CatalogEntry,
        model: &HubModel,
        progress: &FetchProgress,
    ) -> Result<Located, OriginError> {
        let failed = |source| OriginError::Hub {
            model: model.clone(),
            source,
        };
        let settings = self.hub.clone();
        // Reading the machine's certificate authorities takes a while.
        let hub = blocking(move || Hub::new(&settings)).await.map_err(failed)?;
        let repository = hub.repository(model).await.map_err(failed)?;
        let coming = self.make_room(&repository).await?;
        let (commit, bytes) = (repository.model.clone(), repository.bytes());
        info!(model = %entry.name, origin = %commit, bytes, "downloading");
        hub.download(&repository, coming.folder(), progress)
            .await
            .map_err(failed)?;
        WEIGHTS_BYTES.increment(&["hub", "in"], bytes);
        let manifest = self.manifest_of_downloaded(coming.folder().to_owned()).await?;
        let stored = blocking(move || coming.finish(Arc::new(manifest))).await?;
        info!(model = %entry.name, origin = %commit, bytes, root = %stored.files().manifest().root(), "downloaded");
        self.offer(entry, model, stored).await
    }

    /// A folder for what comes. It may be in use for a moment: another name of the same commit, or an earlier process of
    /// this worker that has not ended quite yet.
    async fn make_room(&self, repository: &Repository) -> Result<ComingModel, OriginError> {
        let (origin, bytes) = (repository.model.to_string(), repository.bytes());
        loop {
            let (store, origin) = (self.importer.store.clone(), origin.clone());
            match blocking(move || store.begin(&origin, bytes)).await {
                Err(StoreError::Busy { .. }) => sleep(LOOK_AGAIN).await,
                begun => return Ok(begun?),
            }
        }
    }

    async fn manifest_of_downloaded(&self, folder: PathBuf) -> Result<Manifest, MakeError> {
        let (threads, stop) = (self.hash_threads, Arc::new(AtomicBool::new(false)));
        // Dropped when the worker ends or nobody waits any more.
        let _stop = StopOnDrop(Arc::clone(&stop));
        blocking(move || make_manifest(&folder, threads, &stop)).await
    }

    /// Notes the root of an entry and offers its files.
    async fn offer(
        &self,
        entry: &CatalogEntry,
        model: &HubModel,
        stored: StoredModel,
    ) -> Result<Located, OriginError> {
        let root = stored.files().manifest().root();
        let noted = match entry.root {
            Some(noted) => Some(noted),
            None => {
                let source = ModelSource::Hub(model.clone());
                self.catalog.identify(&entry.name, &source, root).await?
            }
        };
        self.exports.hold(Arc::clone(stored.files())).await;
        match noted {
            Some(noted) if noted != root => Err(OriginError::OtherFiles {
                model: model.clone(),
                root: noted,
            }),
            // An entry that is gone by now wants nothing of them.
            Some(_) | None => Ok(Located::Stored(stored)),
        }
    }
}

/// Why nobody sends the files and this worker may not download them.
fn refusal(model: &HubModel, root: Option<Root>, found: InFleet) -> OriginError {
    match (found, root) {
        (InFleet::NotSent(source), Some(root)) => OriginError::Copy { root, source },
        _ => OriginError::NotAllowed { model: model.clone() },
    }
}

/// Says again and again that this worker downloads. One that loses its claim goes on: two downloads cost bytes and
/// nothing else.
async fn renew(registry: &Registry, held: &mut HeldDownload) -> std::convert::Infallible {
    let mut renewals = interval(registry.renew_every);
    let mut is_lost = false;
    loop {
        renewals.tick().await;
        match registry.renew_download(held).await {
            Ok(true) => is_lost = false,
            Ok(false) if is_lost => {}
            Ok(false) => {
                is_lost = true;
                warn!("the claim to download a model is lost, and another worker may download it too");
            }
            Err(error) => warn!(error = chain(&error), "a claim to download could not be renewed"),
        }
    }
}

async fn give_back(registry: &Registry, held: HeldDownload) {
    if let Err(error) = registry.release_download(held).await {
        warn!(
            error = chain(&error),
            "a claim to download was not given back, and expires"
        );
    }
}

/// Everything of the same organisation.
fn pattern(model: &HubModel) -> String {
    match model.repo.as_str().split_once('/') {
        Some((organisation, _)) => format!("{organisation}/*"),
        None => "*".to_owned(),
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match spawn_blocking(work).await {
        Ok(done) => done,
        Err(broken) => std::panic::resume_unwind(broken.into_panic()),
    }
}

/// Before it is asked again whether another worker, or another model, is done.
const LOOK_AGAIN: Duration = Duration::from_millis(500);
