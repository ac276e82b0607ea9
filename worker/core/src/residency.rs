//! Which models are in device memory: who is loaded, who may run, who has to leave.
//!
//! One machine for all models of a worker, and nothing in it waits. Requests that want a model attach to
//! it; a load belongs to the model, not to the request that asked first, and is cancelled only when nobody waits
//! any more. Only a ready model grants leases. A model that was told
//! to leave grants none, whoever asks: they wait for its next load. A model with leases is never unloaded.
//!
//! ```text
//! absent -> inspecting -> waiting for room -> loading -> ready -> (draining ->) unloading -> absent
//!                     `-> fetching to host memory -> absent
//!               any failure -> failed, until its back-off ends
//! ```
//!
//! Reading files, moving weights and running requests is the caller's business.

mod departures;
mod device;
mod fault;
mod host;
mod invariants;
mod kv;
mod loading;
mod model;
mod report;
mod reuse;
mod room;
mod shard;
mod split;
mod transition;
mod victims;

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use flotilla_protocol::fleet::{DepartureReason, LoadSource};
use flotilla_protocol::request::KeepAlive;
use flotilla_protocol::{ModelName, Moment, RequestId};
use serde::{Deserialize, Serialize};

use crate::kv::KvBlock;
use crate::ledger::{DeviceIndex, Ledger};
pub use departures::Departed;
use departures::Departures;
pub use device::DeviceFault;
pub use fault::{LoadFailure, ModelFault, Together, Unusable};
use host::Host;
pub use host::PrefetchRefusal;
use kv::Pool;
use loading::Stay;
pub use loading::{LoadFiles, LoadProgress};
use model::{Lease, Model, State};
pub use shard::{Part, Shard, SplitNeeds};

/// Shortest time until a failed load may be tried again; it doubles with each failure in a row.
pub const RETRY_MIN: Duration = Duration::from_secs(1);
/// Longest time until a failed load may be tried again.
pub const RETRY_MAX: Duration = Duration::from_secs(60);
/// A model that is wanted again so soon after it left for another one may be chasing it.
pub const THRASH_WINDOW: Duration = Duration::from_secs(60);

/// Limits of residency.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResidencySettings {
    /// Pages that each device may give out; its place in the list is its index.
    pub device_pages: Vec<u64>,
    /// Most models on one device at once; at least 1.
    pub models_max: usize,
    /// How long an idle model stays when no request says otherwise.
    pub keep_alive: KeepAlive,
    /// A model that was loaded is no victim for as long as its load took, and never longer than this, for one
    /// that left for others within the last [`THRASH_WINDOW`]: so models that chase each other in and out leave
    /// a device time to work, and who waits for room waits no longer than this. A hint goes before it. Zero is
    /// none.
    pub min_residency_max: Duration,
    /// Pages of host memory that weights may take beside the devices' own memory; 0 is none.
    pub host_pages: u64,
    /// When a load has stalled; `None` when the caller's loads end by themselves.
    pub load_stall: Option<LoadStall>,
}

/// A load that advances goes on for as long as it takes; one that does not is given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoadStall {
    /// Time in which [`Self::bytes_min`] are to be placed, again and again, and the last of them finished.
    pub window: Duration,
    /// Bytes whose placing counts as an advance.
    pub bytes_min: u64,
}

/// Pages that a model needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelNeeds {
    /// For its weights.
    pub weights_pages: u64,
    /// For intermediate results.
    pub workspace_pages: u64,
    /// For the keys and values of one full context: the device's pool is never smaller.
    pub kv_pages_min: u64,
    /// What keys and values are kept in; `None` for a model that keeps none.
    pub kv_block: Option<KvBlock>,
    /// What it takes in parts on several devices; `None` for one that cannot be cut.
    pub split: Option<SplitNeeds>,
}

/// Pages of a device that a model got for itself. Those for keys and values it shares with the others of the device,
/// unless several devices hold it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grant {
    /// For its weights.
    pub weights_pages: u64,
    /// For intermediate results.
    pub workspace_pages: u64,
    /// For keys and values of a model in parts.
    pub kv_pages: u64,
}

/// Whether a model may be evicted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Pin {
    /// It stays until an order to unload: never a victim, and no keep-alive ends it.
    Pinned,
    /// It may.
    Evictable,
}

/// What becomes of the weights of a model that leaves a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Keep {
    /// They are kept in host memory.
    InHost,
    /// They are dropped.
    Nowhere,
}

/// Why a model is ordered out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UnloadReason {
    /// Somebody said so.
    Ordered,
    /// The catalog has another model of that name now.
    Replaced,
    /// The catalog has no such model any more.
    Removed,
}

impl From<UnloadReason> for DepartureReason {
    fn from(reason: UnloadReason) -> Self {
        match reason {
            UnloadReason::Ordered => Self::Ordered,
            UnloadReason::Replaced => Self::Replaced,
            UnloadReason::Removed => Self::Removed,
        }
    }
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Action {
    /// Find out what a model needs; report by [`Residency::handle_inspected`].
    Inspect {
        /// The model.
        model: ModelName,
    },
    /// Load a model into these pages; report by [`Residency::handle_loaded`].
    Load {
        /// The model.
        model: ModelName,
        /// What each of its devices is to hold, in the order of the layers.
        shards: Vec<Shard>,
        /// Where the weights are: a copy in host memory is used up, or else its files are read.
        source: LoadSource,
    },
    /// Bring a model's weights into host memory; report by [`Residency::handle_prefetched`].
    Prefetch {
        /// The model.
        model: ModelName,
    },
    /// Drop the copy of a model's weights in host memory.
    DropCopy {
        /// The model.
        model: ModelName,
    },
    /// Nobody waits for a model any more, or its load stalled: end it soon and report by
    /// [`Residency::handle_loaded`], with success if it came first.
    CancelLoad {
        /// The model.
        model: ModelName,
    },
    /// Give a model's memory back; report by [`Residency::handle_unloaded`].
    Unload {
        /// The model.
        model: ModelName,
        /// The devices that hold it; after a fault, those of them that work.
        devices: Vec<DeviceIndex>,
        /// Where its weights go.
        keep: Keep,
    },
    /// Let the batches of a device share so many pages, and give back what nobody uses beyond them; report by
    /// [`Residency::handle_kv_resized`].
    ResizeKv {
        /// The device.
        device: DeviceIndex,
        /// The pages.
        pages: u64,
    },
    /// The request may run; its end is reported by [`Residency::handle_released`].
    LeaseGranted {
        /// The request.
        request: RequestId,
        /// The model.
        model: ModelName,
    },
    /// The device under a request's model failed: the request no longer holds the model, and has to go on
    /// elsewhere. It is detached.
    LeaseLost {
        /// The request.
        request: RequestId,
        /// The model.
        model: ModelName,
        /// Why.
        reason: String,
    },
    /// The request's model cannot be loaded; the request is detached.
    ModelFailed {
        /// The request.
        request: RequestId,
        /// Why.
        reason: String,
        /// Time until another try makes sense.
        retry_in: Duration,
    },
}

impl Action {
    /// The request that it is for.
    #[must_use]
    pub fn request(&self) -> Option<&RequestId> {
        match self {
            Self::LeaseGranted { request, .. }
            | Self::LeaseLost { request, .. }
            | Self::ModelFailed { request, .. } => Some(request),
            Self::Inspect { .. }
            | Self::Load { .. }
            | Self::Prefetch { .. }
            | Self::DropCopy { .. }
            | Self::CancelLoad { .. }
            | Self::Unload { .. }
            | Self::ResizeKv { .. } => None,
        }
    }
}

/// Why a model cannot be wanted now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unloadable {
    /// Why.
    pub fault: ModelFault,
    /// Time until another try makes sense.
    pub retry_in: Duration,
}

/// The models of one worker.
#[derive(Debug)]
pub struct Residency {
    settings: ResidencySettings,
    ledgers: Vec<Ledger>,
    /// Devices that are out.
    device_faults: BTreeMap<DeviceIndex, DeviceFault>,
    /// Of each device.
    pools: Vec<Pool>,
    models: BTreeMap<ModelName, Model>,
    host: Host,
    departures: Departures,
    /// The model that each attached request waits for or holds.
    requests: BTreeMap<RequestId, ModelName>,
    actions: VecDeque<Action>,
    /// Counts uses and arrivals, for "least recently used" and "first come" without a clock's ties.
    ticket: u64,
    /// Counts what a report would show.
    changes: u64,
    /// When room was looked for last: what time alone frees until then has been considered.
    looked_at: Moment,
}

impl Residency {
    /// Opens the devices, empty.
    ///
    /// # Panics
    /// When no model may be resident.
    #[must_use]
    pub fn new(settings: ResidencySettings) -> Self {
        assert!(settings.models_max > 0, "a device holds at least one model");
        let ledgers = (0_u32..).zip(&settings.device_pages);
        Self {
            ledgers: ledgers
                .map(|(index, pages)| Ledger::new(DeviceIndex(index), *pages))
                .collect(),
            host: Host::new(settings.host_pages),
            pools: settings.device_pages.iter().map(|_| Pool::default()).collect(),
            settings,
            device_faults: BTreeMap::new(),
            models: BTreeMap::new(),
            departures: Departures::default(),
            requests: BTreeMap::new(),
            actions: VecDeque::new(),
            ticket: 0,
            changes: 0,
            looked_at: Moment::default(),
        }
    }

    /// The next thing to do, if any.
    #[must_use]
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// Requests whose models are not there yet.
    pub fn waiting(&self) -> impl Iterator<Item = &RequestId> {
        let waiters = self.models.values().flat_map(|model| &model.waiters);
        waiters.map(|lease| &lease.request)
    }

    /// When [`Self::handle_timeout`] is due, if ever.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Moment> {
        let own = self
            .models
            .values()
            .filter_map(|model| model.timeout(self.settings.load_stall))
            .min();
        let is_full = self
            .models
            .values()
            .any(|model| matches!(model.state, State::WaitingForRoom { .. }));
        let guarded = self
            .models
            .values()
            .filter_map(|model| model.guarded_until(self.looked_at));
        let freed = guarded.min().filter(|_| is_full);
        [own, freed].into_iter().flatten().min()
    }

    /// Counts everything that a report would show: a report is due when it has changed.
    #[must_use]
    pub fn changes(&self) -> u64 {
        self.changes
    }

    /// A request wants to run on a model. It gets a lease, or learns that the model failed. A request that is
    /// attached already stays as it is.
    ///
    /// `keep_alive` is the request's own or else the catalog's; `None` leaves it to the settings.
    pub fn handle_wanted(
        &mut self,
        now: Moment,
        request: &RequestId,
        model: &ModelName,
        keep_alive: Option<KeepAlive>,
    ) {
        if self.requests.contains_key(request) {
            return;
        }
        if let Some(Unloadable { fault, retry_in }) = self.unloadable(now, model) {
            let (request, reason) = (request.clone(), fault.to_string());
            self.actions.push_back(Action::ModelFailed {
                request,
                reason,
                retry_in,
            });
            return;
        }
        self.requests.insert(request.clone(), model.clone());
        let lease = Lease {
            request: request.clone(),
            keep_alive: keep_alive.unwrap_or(self.settings.keep_alive),
        };
        self.model_mut(model).waiters.push_back(lease);
        self.advance(now, model);
        self.settle(now);
    }

    /// Somebody who sees the whole fleet says which models nobody will want here soon, the least wanted first:
    /// should `model`, which is about to be wanted, need room, those of them that are idle leave before others.
    /// The newest word about a model counts, until it is loaded; a model that is wanted again leaves the lists
    /// of the others.
    pub fn handle_evict_first(&mut self, model: &ModelName, evict_first: &[ModelName]) {
        let known = evict_first.iter().filter(|name| self.models.contains_key(*name));
        let known = known.cloned().collect();
        for entry in self.models.values_mut() {
            entry.evict_first.retain(|name| name != model);
        }
        self.model_mut(model).evict_first = known;
    }

    /// Somebody ordered a model to be resident, without a request. An order tries again at once what failed.
    pub fn handle_load_order(&mut self, now: Moment, model: &ModelName, keep_alive: Option<KeepAlive>) {
        let keep_alive = keep_alive.unwrap_or(self.settings.keep_alive);
        let ticket = self.next_ticket();
        let entry = self.model_mut(model);
        match &mut entry.state {
            State::Ready(ready) => {
                ready.used = ticket;
                ready.stay_for(keep_alive);
                ready.rest_if_idle(now, entry.pin);
            }
            State::Failed { .. } => {
                entry.state = State::Absent;
                entry.order = Some(keep_alive);
            }
            State::Absent
            | State::Inspecting
            | State::Fetching
            | State::WaitingForRoom { .. }
            | State::Loading(_)
            | State::Draining(_)
            | State::Unloading { .. } => entry.order = Some(keep_alive),
        }
        self.advance(now, model);
        self.settle(now);
    }

    /// Somebody ordered a model out, pinned or not. It leaves when its leases end and grants no more before;
    /// a load under way is finished first. Requests that wait keep waiting for its next load; what a model
    /// needs that waits for room is found out anew, as its files may be others.
    pub fn handle_unload_order(&mut self, now: Moment, model: &ModelName, reason: UnloadReason) {
        if reason != UnloadReason::Ordered {
            self.handle_host_outdated(model);
        }
        let Some(entry) = self.models.get_mut(model) else {
            return;
        };
        entry.order = None;
        entry.is_expected = false;
        entry.is_outdated |= reason != UnloadReason::Ordered;
        match &mut entry.state {
            State::Ready(_) => self.evict(now, model, reason.into()),
            State::Loading(loading) => loading.stay = Stay::LeaveWhenLoaded(reason),
            State::WaitingForRoom { .. } => entry.state = State::Absent,
            State::Absent
            | State::Inspecting
            | State::Fetching
            | State::Draining(_)
            | State::Unloading { .. }
            | State::Failed { .. } => {}
        }
        self.advance(now, model);
        self.settle(now);
    }

    /// The catalog says whether a model may be evicted.
    pub fn handle_pin(&mut self, now: Moment, model: &ModelName, pin: Pin) {
        let entry = self.model_mut(model);
        entry.pin = pin;
        if let State::Ready(ready) = &mut entry.state {
            ready.rest_if_idle(now, pin);
        }
        self.changes += 1;
        self.forget_if_at_rest(model);
        self.settle(now);
    }

    /// A request no longer wants its model. One that waits is detached; one that holds a lease gives it back,
    /// so nothing of it may run on the model any more.
    pub fn handle_released(&mut self, now: Moment, request: &RequestId) {
        self.detach(now, request);
    }

    /// What a model needs is known, or why it cannot be.
    ///
    /// # Panics
    /// When nobody asked.
    pub fn handle_inspected(&mut self, now: Moment, model: &ModelName, needs: Result<ModelNeeds, Unusable>) {
        let ticket = self.next_ticket();
        let entry = self.model_mut(model);
        assert!(
            matches!(entry.state, State::Inspecting),
            "{model} was asked about"
        );
        match needs {
            Ok(needs) => {
                entry.weights_pages = needs.weights_pages;
                entry.kv_pages_min = needs.kv_pages_min;
                entry.kv_block = needs.kv_block;
                entry.is_outdated = false;
                if entry.is_expected && !entry.is_wanted() {
                    self.fetch(now, model, &needs);
                } else {
                    entry.is_expected = false;
                    entry.state = State::WaitingForRoom { needs, ticket };
                }
            }
            Err(unusable) => {
                entry.is_expected = false;
                self.fail(now, model, unusable.into());
            }
        }
        self.advance(now, model);
        self.settle(now);
    }

    /// A model's memory is given back, and its weights are where they were to be kept or nowhere.
    ///
    /// # Panics
    /// When it was not on its way out.
    pub fn handle_unloaded(&mut self, now: Moment, model: &ModelName, kept: Keep) {
        let entry = self.model_mut(model);
        let state = std::mem::replace(&mut entry.state, State::Absent);
        let State::Unloading { home } = state else {
            panic!("{model} is being unloaded: {state:?}");
        };
        self.release(home);
        self.arrive(model, kept == Keep::InHost);
        self.advance(now, model);
        self.settle(now);
    }

    /// Time has passed: idle models leave, failed ones may be tried again.
    pub fn handle_timeout(&mut self, now: Moment) {
        let load_stall = self.settings.load_stall;
        let due = |model: &Model| model.timeout(load_stall).is_some_and(|at| at <= now);
        let due: Vec<_> = self.models.iter().filter(|(_, model)| due(model)).collect();
        let due: Vec<_> = due.into_iter().map(|(name, _)| name.clone()).collect();
        for name in due {
            let entry = self.model_mut(&name);
            match &entry.state {
                State::Ready(_) => self.evict(now, &name, DepartureReason::Idle),
                State::Failed { .. } => entry.state = State::Absent,
                State::Loading(_) => self.give_up_load(now, &name),
                State::Absent
                | State::Inspecting
                | State::Fetching
                | State::WaitingForRoom { .. }
                | State::Draining(_)
                | State::Unloading { .. } => {}
            }
            self.advance(now, &name);
        }
        self.settle(now);
    }

    /// Why a model cannot be wanted now, if it cannot: its last load failed and its back-off runs, or its load
    /// has stalled and not ended.
    #[must_use]
    pub fn unloadable(&self, now: Moment, model: &ModelName) -> Option<Unloadable> {
        match &self.models.get(model)?.state {
            State::Failed { fault, retry_at } if *retry_at > now => Some(Unloadable {
                fault: fault.clone(),
                retry_in: retry_at.since(now),
            }),
            State::Loading(loading) => loading.unloadable(now),
            State::Absent
            | State::Inspecting
            | State::Fetching
            | State::WaitingForRoom { .. }
            | State::Ready(_)
            | State::Draining(_)
            | State::Unloading { .. }
            | State::Failed { .. } => None,
        }
    }

    /// The requests that wait for a model or hold one.
    pub fn requests(&self) -> impl Iterator<Item = &RequestId> {
        self.requests.keys()
    }

    /// How many models it knows: those that anything depends on, and those that it remembers.
    #[must_use]
    pub fn known(&self) -> usize {
        self.models.len()
    }

    /// Whether no model is resident, on its way or wanted.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        let gone = |model: &Model| matches!(model.state, State::Absent | State::Failed { .. });
        self.models.values().all(gone)
    }
}
