//! What becomes of models: residency's wishes carried out, the catalog's changes and the jobs' ends taken in.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use flotilla_protocol::catalog::{CatalogEntry, ModelSource};
use flotilla_protocol::fleet::{LoadSource, WorkerState};
use flotilla_protocol::{ModelName, Moment};
use flotilla_weights::ComingFiles;
use flotilla_worker_core::ledger::DeviceIndex;
use flotilla_worker_core::residency::{
    self, Action, Keep, LoadFailure, LoadFiles, LoadProgress, ModelNeeds, Pin, Shard, UnloadReason, Unusable,
};
use flotilla_worker_engine::{CpuImage, CpuThreads};
use thiserror::Error;
use tokio::task::JoinError;
use tokio::time::Instant;
use tracing::{debug, info, warn};

use super::Owner;
use super::recent::RecentTexts;
use crate::attempt::{LeaseAnswer, ReadyModel};
use crate::engine::{LoadFault, LoadWatch, PartPlace};
use crate::error::chain;
use crate::files::FilesIdentity;
use crate::hardware::HardwareKind;
use crate::jobs::{
    Inspected, Inspection, JobDone, JobFault, Running, fetch_files, follow_arrival, load_model,
    load_model_in_parts, load_simulated, prefetch_model, resize_kv, unload_model,
};
use crate::metrics::count_load;
use crate::model::OpenedModel;
use crate::simulated::HostTier;
use crate::watch::Change;

/// What the owner keeps of models beside residency's own books.
#[derive(Debug, Default)]
pub(super) struct Models {
    /// Those that were inspected and not loaded yet.
    inspected: HashMap<ModelName, Arc<Inspected>>,
    /// Loads under way.
    loading: HashMap<ModelName, Load>,
    /// What requests need of the loaded ones.
    ready: HashMap<ModelName, ReadyModel>,
    /// The files of those with weights, loaded or in host memory.
    identities: HashMap<ModelName, FilesIdentity>,
    /// The text sides of those that were inspected last.
    recent: RecentTexts,
    /// Weights in host memory, of each part of a model.
    images: HashMap<ModelName, Vec<CpuImage>>,
    /// The host memory of a simulated machine.
    host: HostTier,
}

/// A load under way.
#[derive(Debug)]
struct Load {
    watch: LoadWatch,
    source: LoadSource,
}

impl Models {
    /// Each load under way, with how far it is; `origin` is time zero.
    pub(super) fn loads_under_way(
        &self,
        origin: Instant,
    ) -> impl Iterator<Item = (&ModelName, LoadProgress)> {
        let files = move |watch: &LoadWatch| match watch.coming().map(ComingFiles::ended_at) {
            None => LoadFiles::Here(Moment::default()),
            Some(None) => LoadFiles::OnTheirWay,
            Some(Some(at)) => LoadFiles::Here(Moment::after_origin(at.saturating_duration_since(origin))),
        };
        self.loading.iter().map(move |(model, Load { watch, .. })| {
            let progress = LoadProgress {
                placed_bytes: watch.placed_bytes(),
                files: files(watch),
            };
            (model, progress)
        })
    }

    /// Notes of which files a model was made.
    fn identify(&mut self, model: &ModelName, inspected: &Inspected) {
        if let Some(identity) = inspected.identity() {
            self.identities.insert(model.clone(), identity.clone());
        }
    }

    /// Keeps a model's weights, if there are any.
    fn keep(&mut self, model: &ModelName, images: Option<Vec<CpuImage>>) -> Keep {
        match images {
            Some(images) => {
                self.images.insert(model.clone(), images);
                Keep::InHost
            }
            None => Keep::Nowhere,
        }
    }

    fn cancel_load(&self, model: &ModelName) {
        if let Some(load) = self.loading.get(model) {
            load.watch.cancel.cancel();
        }
    }
}

/// Why a model is not brought into host memory.
#[derive(Debug, Error)]
pub(super) enum PrefetchRefusal {
    #[error("the worker drains")]
    Draining,
    #[error("the catalog, as far as this worker has seen it, has no model {0}")]
    Unknown(ModelName),
    #[error(transparent)]
    Residency(#[from] residency::PrefetchRefusal),
    #[error("the model is simulated and has no weights")]
    NoWeights,
    #[error(
        "the worker keeps no weights that come from elsewhere; that takes worker.weights.share = true, and real devices"
    )]
    NoStore,
    #[error("there is no profile for the model")]
    NoProfile,
}

impl Owner {
    pub(super) fn carry_out_for_model(&mut self, action: Action) {
        match action {
            Action::Inspect { model } => self.inspect(model),
            Action::Load {
                model,
                shards,
                source,
            } => self.load(model, &shards, source),
            Action::Prefetch { model } => self.begin_prefetch(model),
            Action::DropCopy { model } => {
                debug!(%model, "weights leave host memory");
                self.models.images.remove(&model);
            }
            Action::CancelLoad { model } => {
                info!(%model, "a load is cancelled");
                self.models.cancel_load(&model);
                self.models.host.interrupt(self.now(), &model);
            }
            Action::Unload { model, keep, .. } => {
                info!(%model, ?keep, "unloading");
                let ready = self.models.ready.remove(&model);
                let engine = ready.expect("only a loaded model is unloaded").engine;
                let unload_time = self.hardware.unload_time();
                self.jobs.spawn(unload_model(model, keep, engine, unload_time));
            }
            Action::ResizeKv { device, pages } => {
                debug!(
                    device = device.0,
                    pages, "the pool for keys and values is resized"
                );
                let engine = self.devices.engine(device);
                self.jobs.spawn(resize_kv(engine, pages));
            }
            Action::LeaseGranted { request, model } => {
                let ready = self.models.ready.get(&model).cloned();
                let ready = ready.expect("only a loaded model grants leases");
                self.attempts.answer_lease(&request, LeaseAnswer::Granted(ready));
            }
            Action::LeaseLost { request, reason, .. } => self.attempts.hand_back(&request, &reason),
            Action::ModelFailed {
                request,
                reason,
                retry_in,
            } => {
                let answer = LeaseAnswer::ModelFailed { reason, retry_in };
                self.attempts.answer_lease(&request, answer);
            }
        }
    }

    fn inspect(&mut self, model: ModelName) {
        let progress = self.fetches.begin(&model);
        let inspection = Inspection {
            entry: self.entries.get(&model).cloned(),
            known: self.models.recent.of(&model),
            model,
            catalog: self.catalog.clone(),
            catalog_timeout: self.connection.request_timeout,
            slots: self.settings.slots,
            batch_tokens_max: self.settings.batch_tokens_max,
            hardware: self.hardware.clone(),
            weights: self.weights.clone(),
            progress,
            looks: self.settings.looks.clone(),
        };
        self.jobs.spawn(inspection.run());
    }

    fn load(&mut self, model: ModelName, shards: &[Shard], source: LoadSource) {
        let images = match source {
            LoadSource::Host => self.models.images.remove(&model).unwrap_or_default(),
            LoadSource::Origin => Vec::new(),
        };
        let inspected = self.models.inspected.get(&model).map(Arc::clone);
        let inspected = inspected.expect("a model is inspected before it is loaded");
        let weights_bytes = inspected.weights_bytes();
        let devices: Vec<u32> = shards.iter().map(|shard| shard.device.0).collect();
        info!(%model, ?devices, weights_bytes, ?source, "loading");
        let engine = self.devices.engine(shards[0].device);
        let watch = match &*inspected {
            Inspected::Real { opened, .. } => {
                let watch = LoadWatch::child_of(&self.cancel_loads, inspected.coming().cloned());
                self.load_real(model.clone(), opened, shards, images, watch.clone());
                watch
            }
            Inspected::Simulated { model: simulated, .. } => {
                let (loaded, times) = (simulated.in_memory(), simulated.load_times());
                let load_time = self.models.host.begin_load(self.now(), &model, times);
                let watch = LoadWatch::simulated(&self.cancel_loads, load_time, weights_bytes);
                let model = model.clone();
                self.jobs
                    .spawn(load_simulated(model, loaded, load_time, watch.clone(), engine));
                watch
            }
        };
        self.models.loading.insert(model, Load { watch, source });
    }

    /// Loads a model whole on its device, or each of its parts on its own.
    fn load_real(
        &mut self,
        model: ModelName,
        opened: &Arc<OpenedModel>,
        shards: &[Shard],
        images: Vec<CpuImage>,
        watch: LoadWatch,
    ) {
        let (opened, first) = (Arc::clone(opened), shards[0].device);
        let engine = self.devices.engine(first);
        let places = shards.iter().filter_map(|shard| {
            let (_, threads) = self.cpu_device(shard.device);
            let device = self.devices.engine(shard.device).share(threads);
            Some(PartPlace {
                part: shard.part?,
                device,
            })
        });
        let places: Vec<PartPlace> = places.collect();
        if places.is_empty() {
            let (device_pages, threads) = self.cpu_device(first);
            let image = images.into_iter().next();
            self.jobs.spawn(load_model(
                model,
                opened,
                device_pages,
                image,
                watch,
                threads,
                engine,
            ));
        } else {
            self.jobs
                .spawn(load_model_in_parts(model, opened, places, images, watch, engine));
        }
    }

    /// Pages and threads of a device that real models are loaded on.
    fn cpu_device(&self, device: DeviceIndex) -> (u64, Arc<CpuThreads>) {
        let HardwareKind::Cpu(cpu) = self.hardware.kind() else {
            unreachable!("a simulated device has no models with weights");
        };
        (
            self.hardware.device_pages()[device.0 as usize],
            cpu.threads(device),
        )
    }

    /// Brings a model's weights into host memory, where they are not there or on the device already.
    ///
    /// # Errors
    /// [`PrefetchRefusal`].
    pub(super) fn prefetch(&mut self, now: Moment, model: &ModelName) -> Result<(), PrefetchRefusal> {
        if self.desk.state() == WorkerState::Draining {
            return Err(PrefetchRefusal::Draining);
        }
        let entry = self.entries.get(model).map(Arc::clone);
        let entry = entry.ok_or_else(|| PrefetchRefusal::Unknown(model.clone()))?;
        match (self.hardware.kind(), &entry.source) {
            (HardwareKind::Simulated(simulation), _) => {
                let times = simulation.load_times(&entry).ok_or(PrefetchRefusal::NoProfile)?;
                self.models.host.begin_prefetch(now, model, times);
                Ok(())
            }
            (HardwareKind::Cpu(_), ModelSource::Simulated { .. }) => Err(PrefetchRefusal::NoWeights),
            (HardwareKind::Cpu(_), ModelSource::Folder(_) | ModelSource::Hub(_)) => {
                self.desk.residency_mut().handle_prefetch(now, model)?;
                Ok(())
            }
        }
    }

    /// Brings a model's files onto the disk, where they are not there already.
    ///
    /// # Errors
    /// [`PrefetchRefusal`].
    pub(super) fn fetch(&mut self, model: &ModelName) -> Result<(), PrefetchRefusal> {
        if self.desk.state() == WorkerState::Draining {
            return Err(PrefetchRefusal::Draining);
        }
        let entry = self.entries.get(model).map(Arc::clone);
        let entry = entry.ok_or_else(|| PrefetchRefusal::Unknown(model.clone()))?;
        if matches!(entry.source, ModelSource::Simulated { .. }) {
            return Err(PrefetchRefusal::NoWeights);
        }
        let weights = self.weights.clone().ok_or(PrefetchRefusal::NoStore)?;
        self.fetches.forget(model);
        let progress = self.fetches.begin(model);
        self.jobs.spawn(fetch_files(entry, weights, progress));
        self.desk.handle_report_asked();
        Ok(())
    }

    fn begin_prefetch(&mut self, model: ModelName) {
        let inspected = self.models.inspected.get(&model);
        let inspected = inspected.expect("a model is inspected before it is prefetched");
        let Inspected::Real { opened, .. } = &**inspected else {
            unreachable!("a simulated device offers no host memory to residency");
        };
        info!(%model, "prefetching");
        let watch = LoadWatch::child_of(&self.cancel_loads, inspected.coming().cloned());
        let opened = Arc::clone(opened);
        let (_, threads) = self.cpu_device(DeviceIndex::default());
        self.jobs.spawn(prefetch_model(model, opened, watch, threads));
    }

    pub(super) fn handle_change(&mut self, change: Change) {
        let now = self.now();
        match change {
            Change::Put(entry) => {
                let pin = if entry.pin { Pin::Pinned } else { Pin::Evictable };
                self.desk.residency_mut().handle_pin(now, &entry.name, pin);
                let name = entry.name.clone();
                let before = self.entries.insert(name.clone(), entry);
                if before.is_some_and(|before| self.is_outdated(&before)) {
                    info!(model = %name, "the model is another one now");
                    self.models.host.forget(&name);
                    self.desk
                        .residency_mut()
                        .handle_unload_order(now, &name, UnloadReason::Replaced);
                }
            }
            Change::Removed(model) => {
                self.entries.remove(&model);
                self.models.host.forget(&model);
                let residency = self.desk.residency_mut();
                residency.handle_pin(now, &model, Pin::Evictable);
                residency.handle_unload_order(now, &model, UnloadReason::Removed);
            }
        }
    }

    /// Whether the catalog has other weights by now under an entry's name.
    fn is_outdated(&self, entry: &CatalogEntry) -> bool {
        let now = self.entries.get(&entry.name);
        now.is_some_and(|now| !now.is_same_model(entry))
    }

    pub(super) fn handle_job(&mut self, done: Result<JobDone, JoinError>) {
        let now = self.now();
        let done = done.expect("a job turns panics into reasons, and nobody aborts it");
        match &done {
            JobDone::Inspected { model, result, .. } => {
                match result.as_ref().map(|(found, _)| found.arrival()) {
                    // Those who wait for the model are told of its files for as long as these come.
                    Ok(Some(arrival)) => {
                        self.jobs.spawn(follow_arrival(model.clone(), arrival.clone()));
                    }
                    Ok(None) | Err(_) => self.fetches.end(model),
                }
            }
            JobDone::Fetched { model, .. } | JobDone::Arrived { model } => self.fetches.end(model),
            JobDone::Loaded { .. }
            | JobDone::Unloaded { .. }
            | JobDone::KvTold { .. }
            | JobDone::Prefetched { .. } => {}
        }
        match done {
            JobDone::Inspected {
                model,
                entry: Some(entry),
                ..
            } if self.is_outdated(&entry) => self.inspect(model),
            JobDone::Inspected { model, result, .. } => self.handle_inspected(model, result),
            JobDone::Loaded {
                model,
                result,
                elapsed,
            } => self.handle_loaded(&model, result, elapsed),
            JobDone::Unloaded { model, result } => {
                // Without its engine a model is gone as well; that end is noticed for itself.
                let images = result.unwrap_or_else(|error| {
                    debug!(%error, "a model was not unloaded");
                    None
                });
                let kept = self.models.keep(&model, images);
                self.desk.residency_mut().handle_unloaded(now, &model, kept);
            }
            JobDone::KvTold { result: Ok(()) } | JobDone::Arrived { .. } => {}
            JobDone::KvTold { result: Err(error) } => debug!(%error, "a pool was not resized"),
            JobDone::Prefetched { model, result } => self.handle_prefetched(&model, result),
            JobDone::Fetched { model, result } => {
                let end = result.map_err(|fault| unusable(&model, &fault).reason);
                self.fetches.note(now, &model, end);
                self.desk.handle_report_asked();
            }
        }
    }

    fn handle_loaded(&mut self, model: &ModelName, result: Result<Running, JobFault>, elapsed: Duration) {
        let now = self.now();
        let inspected = self.models.inspected.remove(model);
        let inspected = inspected.expect("a model is inspected before it is loaded");
        let weights_bytes = inspected.weights_bytes();
        let result = result.map_err(|fault| load_failure(model, &fault));
        let result = result.map(|Running { engine, ended }| {
            if let Some(ended) = ended {
                self.devices.watch_parts(model.clone(), ended);
            }
            self.models.identify(model, &inspected);
            info!(%model, elapsed_ms = elapsed.as_millis(), "model ready");
            let text = Arc::clone(inspected.text());
            self.models
                .ready
                .insert(model.clone(), ReadyModel { text, engine });
        });
        if let Some(Load { watch, source }) = self.models.loading.remove(model) {
            let came_meanwhile = watch.coming().is_some();
            let counted = result.as_ref().map(|()| weights_bytes);
            count_load(counted, source, came_meanwhile, elapsed);
            if result.is_err() {
                let placed_bytes = watch.placed_bytes();
                info!(%model, placed_bytes, "a load that ended early gives its memory back");
            }
        }
        self.desk
            .residency_mut()
            .handle_loaded(now, model, result, elapsed);
    }

    /// The engine of a model in parts has ended. That of one that was unloaded is expected to; else the model is gone,
    /// with one of its devices, which is told by itself, or by a bug of the engine.
    pub(super) fn handle_parts_ended(&mut self, model: &ModelName) {
        let now = self.now();
        let ready = self.models.ready.get(model);
        if ready.is_some_and(|ready| ready.engine.has_ended()) {
            warn!(%model, "the engine of a model in parts has ended");
            let residency = self.desk.residency_mut();
            residency.handle_unload_order(now, model, UnloadReason::Ordered);
        }
    }

    fn handle_inspected(&mut self, model: ModelName, result: Result<(Arc<Inspected>, ModelNeeds), JobFault>) {
        let now = self.now();
        let residency = self.desk.residency_mut();
        let needs = result.map(|(inspected, needs)| {
            if inspected.identity() != self.models.identities.get(&model) {
                residency.handle_host_outdated(&model);
            }
            if let Some(files) = inspected.identity() {
                self.models.recent.note(&model, files, inspected.text());
            }
            self.models.inspected.insert(model.clone(), inspected);
            needs
        });
        let needs = needs.map_err(|fault| unusable(&model, &fault));
        residency.handle_inspected(now, &model, needs);
    }

    fn handle_prefetched(&mut self, model: &ModelName, result: Result<Vec<CpuImage>, JobFault>) {
        let now = self.now();
        let inspected = self.models.inspected.remove(model);
        let inspected = inspected.expect("a model is inspected before it is prefetched");
        let result = result.map_err(|fault| unusable(model, &fault));
        let result = result.map(|images| {
            info!(%model, "weights are in host memory");
            self.models.identify(model, &inspected);
            self.models.keep(model, Some(images));
        });
        self.desk.residency_mut().handle_prefetched(now, model, result);
    }
}

fn load_failure(model: &ModelName, fault: &JobFault) -> LoadFailure {
    match fault {
        JobFault::Load(LoadFault::Cancelled) => LoadFailure::Cancelled,
        fault => unusable(model, fault).into(),
    }
}

fn unusable(model: &ModelName, fault: &JobFault) -> Unusable {
    let reason = chain(fault);
    warn!(%model, error = reason, "a model cannot be served");
    Unusable { reason }
}
