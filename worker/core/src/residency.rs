//! Which models are in device memory: who is loaded, who may run, who has to leave.
//!
//! One machine for all models of a worker, and nothing in it waits. Requests that want a model attach to
//! it; a load belongs to the model, not to the request that asked first, so a load that nobody waits for
//! any more is finished and leaves the model idle. Only a ready model grants leases. A model that was told
//! to leave grants none, whoever asks: they wait for its next load. A model with leases is never unloaded.
//!
//! ```text
//! absent -> inspecting -> waiting for room -> loading -> ready -> (draining ->) unloading -> absent
//!               any failure -> failed, until its back-off ends
//! ```
//!
//! Reading files, moving weights and running requests is the caller's business.

mod invariants;
mod model;
mod report;
mod room;
mod transition;

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use flotilla_protocol::request::KeepAlive;
use flotilla_protocol::{ModelName, Moment, RequestId};
use serde::{Deserialize, Serialize};

use crate::ledger::{DeviceIndex, Ledger, PAGE_BYTES};
use model::{Lease, Model, Ready, State, Stay};

/// Shortest time until a failed load may be tried again; it doubles with each failure in a row.
pub const RETRY_MIN: Duration = Duration::from_secs(1);
/// Longest time until a failed load may be tried again.
pub const RETRY_MAX: Duration = Duration::from_secs(60);

/// Limits of residency.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResidencySettings {
    /// Pages that each device may give out; its place in the list is its index.
    pub device_pages: Vec<u64>,
    /// Most models on one device at once; at least 1.
    pub models_max: usize,
    /// How long an idle model stays when no request says otherwise.
    pub keep_alive: KeepAlive,
}

/// Pages that a model needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelNeeds {
    /// For its weights.
    pub weights_pages: u64,
    /// For intermediate results.
    pub workspace_pages: u64,
    /// For keys and values, at least.
    pub kv_pages_min: u64,
    /// For keys and values, at best; models are evicted for the least only.
    pub kv_pages_wanted: u64,
    /// What keys and values are kept in; `None` for a model that keeps none.
    pub kv_block: Option<KvBlock>,
}

/// The unit in which a model's keys and values are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct KvBlock {
    /// Tokens of one block.
    pub tokens: u64,
    /// Bytes of one block.
    pub bytes: u64,
}

impl KvBlock {
    /// Tokens that fit on this many pages.
    #[must_use]
    pub fn tokens_on(self, pages: u64) -> u64 {
        let blocks = pages.saturating_mul(PAGE_BYTES) / self.bytes.max(1);
        blocks.saturating_mul(self.tokens)
    }
}

/// Pages that a model got.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grant {
    /// For its weights.
    pub weights_pages: u64,
    /// For intermediate results.
    pub workspace_pages: u64,
    /// For keys and values.
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
        /// The device.
        device: DeviceIndex,
        /// Its pages.
        grant: Grant,
    },
    /// Give a model's memory back; report by [`Residency::handle_unloaded`].
    Unload {
        /// The model.
        model: ModelName,
        /// The device.
        device: DeviceIndex,
    },
    /// The request may run; its end is reported by [`Residency::handle_released`].
    LeaseGranted {
        /// The request.
        request: RequestId,
        /// The model.
        model: ModelName,
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
            Self::LeaseGranted { request, .. } | Self::ModelFailed { request, .. } => Some(request),
            Self::Inspect { .. } | Self::Load { .. } | Self::Unload { .. } => None,
        }
    }
}

/// Why a model cannot be wanted now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unloadable {
    /// Why.
    pub reason: String,
    /// Time until another try makes sense.
    pub retry_in: Duration,
}

/// The models of one worker.
#[derive(Debug)]
pub struct Residency {
    settings: ResidencySettings,
    ledgers: Vec<Ledger>,
    models: BTreeMap<ModelName, Model>,
    /// The model that each attached request waits for or holds.
    requests: BTreeMap<RequestId, ModelName>,
    actions: VecDeque<Action>,
    /// Counts uses and arrivals, for "least recently used" and "first come" without a clock's ties.
    ticket: u64,
    /// Counts what a report would show.
    changes: u64,
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
            settings,
            models: BTreeMap::new(),
            requests: BTreeMap::new(),
            actions: VecDeque::new(),
            ticket: 0,
            changes: 0,
        }
    }

    /// The next thing to do, if any.
    #[must_use]
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// When [`Self::handle_timeout`] is due, if ever.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Moment> {
        self.models.values().filter_map(Model::timeout).min()
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
        if let Some(Unloadable { reason, retry_in }) = self.unloadable(now, model) {
            let request = request.clone();
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
            | State::WaitingForRoom { .. }
            | State::Loading { .. }
            | State::Draining(_)
            | State::Unloading { .. } => entry.order = Some(keep_alive),
        }
        self.advance(now, model);
        self.settle(now);
    }

    /// Somebody ordered a model out, pinned or not. It leaves when its leases end and grants no more before;
    /// a load under way is finished first. Requests that wait keep waiting for its next load; what a model
    /// needs that waits for room is found out anew, as its files may be others.
    pub fn handle_unload_order(&mut self, now: Moment, model: &ModelName) {
        let Some(entry) = self.models.get_mut(model) else {
            return;
        };
        entry.order = None;
        match &mut entry.state {
            State::Ready(_) => self.evict(model),
            State::Loading { stay, .. } => *stay = Stay::LeaveWhenLoaded,
            State::WaitingForRoom { .. } => entry.state = State::Absent,
            State::Absent
            | State::Inspecting
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
        self.forget_if_blank(model);
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
    pub fn handle_inspected(&mut self, now: Moment, model: &ModelName, needs: Result<ModelNeeds, String>) {
        let ticket = self.next_ticket();
        let entry = self.model_mut(model);
        assert!(
            matches!(entry.state, State::Inspecting),
            "{model} was asked about"
        );
        match needs {
            Ok(needs) => {
                entry.weights_pages = needs.weights_pages;
                entry.kv_block = needs.kv_block;
                entry.state = State::WaitingForRoom { needs, ticket };
            }
            Err(reason) => self.fail(now, model, reason),
        }
        self.advance(now, model);
        self.settle(now);
    }

    /// A load ended, after this much time.
    ///
    /// # Panics
    /// When none was under way.
    pub fn handle_loaded(
        &mut self,
        now: Moment,
        model: &ModelName,
        result: Result<(), String>,
        load_time: Duration,
    ) {
        let ticket = self.next_ticket();
        let entry = self.model_mut(model);
        let state = std::mem::replace(&mut entry.state, State::Absent);
        let State::Loading {
            device,
            reservations,
            stay,
        } = state
        else {
            panic!("a load of {model} is under way: {state:?}");
        };
        match result {
            Ok(()) => {
                entry.failures = 0;
                entry.load_time = Some(load_time);
                let ready = Ready::new(device, reservations, ticket, KeepAlive::Ms(0));
                self.open(now, model, ready, stay);
            }
            Err(reason) => {
                self.release(device, reservations);
                self.fail(now, model, reason);
            }
        }
        self.advance(now, model);
        self.settle(now);
    }

    /// A model's memory is given back.
    ///
    /// # Panics
    /// When it was not on its way out.
    pub fn handle_unloaded(&mut self, now: Moment, model: &ModelName) {
        let entry = self.model_mut(model);
        let state = std::mem::replace(&mut entry.state, State::Absent);
        let State::Unloading { device, reservations } = state else {
            panic!("{model} is being unloaded: {state:?}");
        };
        self.release(device, reservations);
        self.advance(now, model);
        self.settle(now);
    }

    /// Time has passed: idle models leave, failed ones may be tried again.
    pub fn handle_timeout(&mut self, now: Moment) {
        let due = |model: &Model| model.timeout().is_some_and(|at| at <= now);
        let due: Vec<_> = self.models.iter().filter(|(_, model)| due(model)).collect();
        let due: Vec<_> = due.into_iter().map(|(name, _)| name.clone()).collect();
        for name in due {
            let entry = self.model_mut(&name);
            match &entry.state {
                State::Ready(_) => self.evict(&name),
                State::Failed { .. } => entry.state = State::Absent,
                State::Absent
                | State::Inspecting
                | State::WaitingForRoom { .. }
                | State::Loading { .. }
                | State::Draining(_)
                | State::Unloading { .. } => {}
            }
            self.advance(now, &name);
        }
        self.settle(now);
    }

    /// Why a model cannot be wanted now, if it cannot: its last load failed and its back-off runs.
    #[must_use]
    pub fn unloadable(&self, now: Moment, model: &ModelName) -> Option<Unloadable> {
        match &self.models.get(model)?.state {
            State::Failed { reason, retry_at } if *retry_at > now => Some(Unloadable {
                reason: reason.clone(),
                retry_in: retry_at.since(now),
            }),
            State::Absent
            | State::Inspecting
            | State::WaitingForRoom { .. }
            | State::Loading { .. }
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

    /// Whether no model is resident, on its way or wanted.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        let gone = |model: &Model| matches!(model.state, State::Absent | State::Failed { .. });
        self.models.values().all(gone)
    }
}
