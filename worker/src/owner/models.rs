//! What becomes of models: residency's wishes carried out, the catalog's changes and the jobs' ends taken in.

use std::collections::HashMap;
use std::sync::Arc;

use flotilla_protocol::catalog::{CatalogEntry, ModelSource};
use flotilla_protocol::fleet::WorkerState;
use flotilla_protocol::{ModelName, Moment};
use flotilla_worker_core::ledger::PAGE_BYTES;
use flotilla_worker_core::residency::{Action, Grant, Pin};
use thiserror::Error;
use tokio::task::JoinError;
use tracing::{debug, info, warn};

use super::Owner;
use crate::attempt::LeaseAnswer;
use crate::engine::LoadLimits;
use crate::error::chain;
use crate::hardware::HardwareKind;
use crate::jobs::{
    Inspected, Inspection, JobDone, JobFault, PrefetchFault, load_model, load_simulated, prefetch_folder,
    unload_model,
};
use crate::model::ModelText;
use crate::simulated::HostTier;
use crate::watch::Change;

/// What the owner keeps of models beside residency's own books.
#[derive(Debug, Default)]
pub(super) struct Models {
    /// Those that were inspected and not loaded yet.
    inspected: HashMap<ModelName, Arc<Inspected>>,
    /// What requests need of the loaded ones.
    texts: HashMap<ModelName, Arc<ModelText>>,
    /// The one whose files are being read into host memory.
    prefetching: Option<ModelName>,
    /// The host memory of a simulated machine.
    host: HostTier,
}

/// Why a model is not brought into host memory.
#[derive(Debug, Error)]
pub(super) enum PrefetchRefusal {
    #[error("the worker drains")]
    Draining,
    #[error("the catalog, as far as this worker has seen it, has no model {0}")]
    Unknown(ModelName),
    #[error("model {0} is being read; one is read at a time")]
    Busy(ModelName),
    #[error(
        "the weights have {weights_bytes} bytes and the device {device_bytes}: the model cannot be loaded"
    )]
    TooLarge { weights_bytes: u64, device_bytes: u64 },
    #[error("the model is simulated and has no weights")]
    NoWeights,
    #[error("there is no profile for the model")]
    NoProfile,
}

impl Owner {
    pub(super) fn carry_out_for_model(&mut self, action: Action) {
        match action {
            Action::Inspect { model } => self.inspect(model),
            Action::Load { model, grant, .. } => self.load(model, grant),
            Action::Unload { model, .. } => {
                info!(%model, "unloading");
                self.models.texts.remove(&model);
                let (engine, unload_time) = (self.context.engine.clone(), self.hardware.unload_time());
                self.jobs.spawn(unload_model(model, engine, unload_time));
            }
            Action::LeaseGranted { request, model } => {
                let text = self.models.texts.get(&model).map(Arc::clone);
                let text = text.expect("only a loaded model grants leases");
                self.attempts.answer_lease(&request, LeaseAnswer::Granted(text));
            }
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
        let inspection = Inspection {
            entry: self.entries.get(&model).cloned(),
            model,
            catalog: self.catalog.clone(),
            catalog_timeout: self.connection.request_timeout,
            slots: self.settings.slots,
            batch_tokens_max: self.settings.batch_tokens_max,
            hardware: self.hardware.clone(),
        };
        self.jobs.spawn(inspection.run());
    }

    fn load(&mut self, model: ModelName, grant: Grant) {
        let inspected = self.models.inspected.get(&model);
        let inspected = inspected.expect("a model is inspected before it is loaded");
        let weights_bytes = inspected.weights_bytes();
        info!(%model, weights_bytes, kv_pages = grant.kv_pages, "loading");
        let (limits, engine) = (self.load_limits(), self.context.engine.clone());
        match &**inspected {
            Inspected::Real { opened, threads } => {
                let (opened, threads) = (Arc::clone(opened), Arc::clone(threads));
                self.jobs
                    .spawn(load_model(model, opened, grant, limits, threads, engine));
            }
            Inspected::Simulated { model: simulated, .. } => {
                let (loaded, times) = (simulated.in_memory(grant), simulated.load_times());
                let load_time = self.models.host.begin_load(self.now(), &model, times);
                let timeout = limits.timeout(weights_bytes);
                self.jobs
                    .spawn(load_simulated(model, loaded, load_time, timeout, limits, engine));
            }
        }
    }

    fn load_limits(&self) -> LoadLimits {
        LoadLimits {
            timeout_floor: self.settings.load_timeout_floor,
            bytes_per_s_min: self.settings.load_bytes_per_s_min,
            cancel: self.cancel_loads.clone(),
        }
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
        let is_resident = self.models.texts.contains_key(model);
        match self.hardware.kind() {
            HardwareKind::Simulated(simulation) => {
                let times = simulation.load_times(&entry).ok_or(PrefetchRefusal::NoProfile)?;
                self.models.host.begin_prefetch(now, model, times);
                Ok(())
            }
            HardwareKind::Cpu(_) if is_resident => Ok(()),
            HardwareKind::Cpu(_) => self.prefetch_files(&entry),
        }
    }

    fn prefetch_files(&mut self, entry: &CatalogEntry) -> Result<(), PrefetchRefusal> {
        let ModelSource::Folder(folder) = &entry.source else {
            return Err(PrefetchRefusal::NoWeights);
        };
        if let Some(model) = &self.models.prefetching {
            return match *model == entry.name {
                true => Ok(()),
                false => Err(PrefetchRefusal::Busy(model.clone())),
            };
        }
        let weights_bytes = entry.facts.weights_bytes;
        let device_bytes = self.hardware.device_pages().saturating_mul(PAGE_BYTES);
        if weights_bytes > device_bytes {
            return Err(PrefetchRefusal::TooLarge {
                weights_bytes,
                device_bytes,
            });
        }
        let (model, cancel) = (entry.name.clone(), self.cancel_loads.clone());
        self.models.prefetching = Some(model.clone());
        self.jobs
            .spawn(prefetch_folder(model, folder.clone(), device_bytes, cancel));
        Ok(())
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
                    self.desk.residency_mut().handle_unload_order(now, &name);
                }
            }
            Change::Removed(model) => {
                self.entries.remove(&model);
                self.models.host.forget(&model);
                let residency = self.desk.residency_mut();
                residency.handle_pin(now, &model, Pin::Evictable);
                residency.handle_unload_order(now, &model);
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
        match done.expect("a job turns panics into reasons, and nobody aborts it") {
            JobDone::Inspected {
                model,
                entry: Some(entry),
                ..
            } if self.is_outdated(&entry) => self.inspect(model),
            JobDone::Inspected { model, result, .. } => {
                let needs = result.map(|(inspected, needs)| {
                    self.models.inspected.insert(model.clone(), inspected);
                    needs
                });
                let needs = needs.map_err(|fault| reason(&model, &fault));
                self.desk.residency_mut().handle_inspected(now, &model, needs);
            }
            JobDone::Loaded {
                model,
                result,
                elapsed,
            } => {
                let inspected = self.models.inspected.remove(&model);
                if let (Ok(()), Some(inspected)) = (&result, inspected) {
                    info!(%model, elapsed_ms = elapsed.as_millis(), "model ready");
                    let text = Arc::clone(inspected.text());
                    self.models.texts.insert(model.clone(), text);
                }
                let result = result.map_err(|fault| reason(&model, &fault));
                self.desk
                    .residency_mut()
                    .handle_loaded(now, &model, result, elapsed);
            }
            JobDone::Unloaded {
                model,
                result: Ok(()),
            } => {
                self.desk.residency_mut().handle_unloaded(now, &model);
            }
            // The engine's end is noticed for itself, and ends the worker.
            JobDone::Unloaded {
                result: Err(error), ..
            } => debug!(%error, "a model was not unloaded"),
            JobDone::Prefetched { model, result } => self.handle_prefetched(&model, result),
        }
    }

    fn handle_prefetched(&mut self, model: &ModelName, result: Result<u64, PrefetchFault>) {
        self.models.prefetching = None;
        match result {
            Ok(bytes) => info!(%model, bytes, "weights are in host memory"),
            // A load tries the same files again, and its failure is told.
            Err(fault) => warn!(%model, error = chain(&fault), "weights were not read"),
        }
    }
}

fn reason(model: &ModelName, fault: &JobFault) -> String {
    let reason = chain(fault);
    warn!(%model, error = reason, "a model cannot be served");
    reason
}
