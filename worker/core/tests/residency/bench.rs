//! A worker driven by hand.

use std::time::Duration;

use flotilla_protocol::fleet::{DepartureReason, LoadSource};
use flotilla_protocol::request::KeepAlive;
use flotilla_protocol::{ModelName, Moment, RequestId};
use flotilla_worker_core::kv::KvBlock;
use flotilla_worker_core::ledger::{DeviceIndex, PAGE_BYTES};
use flotilla_worker_core::residency::{
    Action, DeviceFault, Keep, LoadFailure, LoadFiles, LoadProgress, ModelNeeds, Residency,
    ResidencySettings, SplitNeeds, UnloadReason, Unusable,
};

pub(crate) fn broken(reason: &str) -> Unusable {
    Unusable {
        reason: reason.to_owned(),
    }
}

/// A worker with one device, driven by hand.
pub(crate) struct Bench {
    pub(crate) residency: Residency,
    pub(crate) now: Moment,
}

impl Bench {
    pub(crate) fn new(pages: u64, models_max: usize) -> Self {
        Self::with(ResidencySettings {
            device_pages: vec![pages],
            models_max,
            ..Self::settings()
        })
    }

    /// One device of 100 pages, without limits but for its pages.
    pub(crate) fn settings() -> ResidencySettings {
        ResidencySettings {
            device_pages: vec![100],
            models_max: usize::MAX,
            keep_alive: KeepAlive::Ms(1000),
            min_residency_max: Duration::ZERO,
            load_stall: None,
            host_pages: 0,
        }
    }

    pub(crate) fn with(settings: ResidencySettings) -> Self {
        Self {
            residency: Residency::new(settings),
            now: Moment::default(),
        }
    }

    pub(crate) fn want(&mut self, request: &str, model: &str, keep_alive: Option<KeepAlive>) {
        let (request, model) = (RequestId::new(request).unwrap(), ModelName::new(model).unwrap());
        self.residency
            .handle_wanted(self.now, &request, &model, keep_alive);
    }

    pub(crate) fn release(&mut self, request: &str) {
        self.residency
            .handle_released(self.now, &RequestId::new(request).unwrap());
    }

    pub(crate) fn release_all(&mut self, requests: &[&str]) {
        requests.iter().for_each(|request| self.release(request));
    }

    pub(crate) fn wait(&mut self, ms: u64) {
        self.now = self.now + Duration::from_millis(ms);
        self.residency.handle_timeout(self.now);
    }

    /// Inspects a model that needs so many pages, none of them for keys and values.
    pub(crate) fn inspect(&mut self, model: &str, pages: u64) {
        let needs = ModelNeeds {
            weights_pages: pages,
            workspace_pages: 0,
            kv_pages_min: 0,
            kv_block: None,
            split: None,
        };
        let model = ModelName::new(model).unwrap();
        self.residency.handle_inspected(self.now, &model, Ok(needs));
    }

    /// Inspects a model of so many layers, each of so many pages, that can be cut between any two of them.
    pub(crate) fn inspect_in_layers(&mut self, model: &str, layers: u32, pages: u64) {
        self.inspect_in_layers_with_kv(model, layers, pages, 0);
    }

    /// The same, with so many blocks for keys and values at least, of half a page for each layer.
    pub(crate) fn inspect_in_layers_with_kv(
        &mut self,
        model: &str,
        layers: u32,
        pages: u64,
        kv_blocks_min: u64,
    ) {
        let split = SplitNeeds {
            layers,
            first_bytes: 0,
            layer_bytes: pages * PAGE_BYTES,
            last_bytes: 0,
            first_workspace_pages: 0,
            inner_workspace_pages: 0,
            last_workspace_pages: 0,
            kv_layer_block_bytes: PAGE_BYTES / 2,
            kv_blocks_min,
            kv_blocks_max: 2 * kv_blocks_min,
        };
        let block = KvBlock {
            tokens: 16,
            bytes: u64::from(layers) * split.kv_layer_block_bytes,
        };
        let needs = ModelNeeds {
            weights_pages: u64::from(layers) * pages,
            workspace_pages: 0,
            kv_pages_min: block.pages_for(16 * kv_blocks_min),
            kv_block: (kv_blocks_min > 0).then_some(block),
            split: Some(split),
        };
        let model = ModelName::new(model).unwrap();
        self.residency.handle_inspected(self.now, &model, Ok(needs));
    }

    pub(crate) fn loaded(&mut self, model: &str) {
        self.loaded_in(model, 7);
    }

    pub(crate) fn loaded_in(&mut self, model: &str, ms: u64) {
        let model = ModelName::new(model).unwrap();
        self.residency
            .handle_loaded(self.now, &model, Ok(()), Duration::from_millis(ms));
    }

    pub(crate) fn not_loaded(&mut self, model: &str, failure: LoadFailure) {
        let model = ModelName::new(model).unwrap();
        self.residency
            .handle_loaded(self.now, &model, Err(failure), Duration::ZERO);
    }

    pub(crate) fn unreadable(&mut self, model: &str) {
        let model = ModelName::new(model).unwrap();
        let unusable = broken("unreadable");
        self.residency.handle_inspected(self.now, &model, Err(unusable));
    }

    pub(crate) fn progress(&mut self, model: &str, placed_bytes: u64) {
        self.progress_of(model, placed_bytes, LoadFiles::Here(Moment::default()));
    }

    pub(crate) fn progress_of(&mut self, model: &str, placed_bytes: u64, files: LoadFiles) {
        let model = ModelName::new(model).unwrap();
        let progress = LoadProgress { placed_bytes, files };
        self.residency.handle_load_progress(self.now, &model, progress);
    }

    pub(crate) fn order(&mut self, model: &str) {
        let model = ModelName::new(model).unwrap();
        self.residency.handle_load_order(self.now, &model, None);
    }

    pub(crate) fn order_out(&mut self, model: &str) {
        let model = ModelName::new(model).unwrap();
        self.residency
            .handle_unload_order(self.now, &model, UnloadReason::Ordered);
    }

    pub(crate) fn break_device(&mut self, device: u32) {
        let fault = DeviceFault {
            reason: format!("device {device} broke"),
        };
        self.residency
            .handle_device_fault(self.now, DeviceIndex(device), fault);
    }

    /// Why models left, oldest first.
    pub(crate) fn departures(&self) -> Vec<(String, DepartureReason)> {
        let departures = self.residency.departure_reports(self.now).into_iter();
        departures
            .map(|departure| (departure.model.to_string(), departure.reason))
            .collect()
    }

    pub(crate) fn pages_free(&self) -> u64 {
        let devices = self.residency.device_reports();
        devices.iter().map(|device| device.pages_free()).sum()
    }

    pub(crate) fn unloaded(&mut self, model: &str) {
        self.residency
            .handle_unloaded(self.now, &ModelName::new(model).unwrap(), Keep::Nowhere);
    }

    /// The model's weights are in host memory now.
    pub(crate) fn unloaded_to_host(&mut self, model: &str) {
        self.residency
            .handle_unloaded(self.now, &ModelName::new(model).unwrap(), Keep::InHost);
    }

    /// Models whose weights are in host memory.
    pub(crate) fn in_host(&self) -> Vec<String> {
        let report = self.residency.host_report().unwrap();
        let models = report.models.into_iter();
        models.map(|copy| copy.model.to_string()).collect()
    }

    /// Loads a model of so many pages for a request, which keeps its lease.
    pub(crate) fn run(&mut self, request: &str, model: &str, pages: u64) {
        self.run_in(request, model, pages, 7);
    }

    /// The same with a load that takes so long, by what the machine is told; its clock stands still.
    pub(crate) fn run_in(&mut self, request: &str, model: &str, pages: u64, ms: u64) {
        self.want(request, model, None);
        self.inspect(model, pages);
        self.loaded_in(model, ms);
        let seen = self.actions();
        assert_eq!(seen.last(), Some(&format!("lease {request} {model}")), "{seen:?}");
    }

    /// A use of a resident model that takes no time.
    pub(crate) fn use_once(&mut self, model: &str) {
        self.want("once", model, None);
        self.release("once");
    }

    /// Inspects a newcomer of so many pages that is wanted, and tells who is unloaded for it.
    pub(crate) fn unloads_for(&mut self, newcomer: &str, pages: u64) -> Vec<String> {
        self.want(&format!("for-{newcomer}"), newcomer, None);
        self.inspect(newcomer, pages);
        let seen = self.actions().into_iter();
        seen.filter_map(|action| action.strip_prefix("unload ").map(str::to_owned))
            .collect()
    }

    /// All actions, in short.
    pub(crate) fn actions(&mut self) -> Vec<String> {
        let mut seen = Vec::new();
        while let Some(action) = self.residency.poll_action() {
            seen.push(match action {
                Action::Inspect { model } => format!("inspect {model}"),
                Action::ResizeKv { pages, .. } => format!("resize {pages}"),
                Action::Load { model, source, .. } => match source {
                    LoadSource::Origin => format!("load {model}"),
                    LoadSource::Host => format!("load {model} from host"),
                },
                Action::Prefetch { model } => format!("prefetch {model}"),
                Action::DropCopy { model } => format!("drop {model}"),
                Action::LeaseLost { request, reason, .. } => format!("lost {request}: {reason}"),
                Action::CancelLoad { model } => format!("cancel {model}"),
                Action::Unload { model, keep, .. } => match keep {
                    Keep::Nowhere => format!("unload {model}"),
                    Keep::InHost => format!("unload {model} to host"),
                },
                Action::LeaseGranted { request, model } => format!("lease {request} {model}"),
                Action::ModelFailed {
                    request, retry_in, ..
                } => {
                    format!("failed {request} {}", retry_in.as_millis())
                }
            });
        }
        self.residency.check_invariants();
        seen
    }
}
