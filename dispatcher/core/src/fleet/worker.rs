//! One worker, as its reports and our assignments show it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use flotilla_protocol::fleet::{ModelReport, ModelState, Report, RunningRequest, WorkerState};
use flotilla_protocol::{Attempt, ModelName, Moment, RequestId};

use super::device::{Booking, Device, Giver};

/// How many earlier starts of a worker are known as past; a report of one of them is late.
const PAST_COUNT_MAX: usize = 8;
/// Of how many models a worker's loads are remembered.
const LOADED_COUNT_MAX: usize = 1024;

/// One worker.
#[derive(Debug)]
pub(crate) struct Worker {
    pub(crate) report: Report,
    pub(crate) heard: Moment,
    pub(super) past: VecDeque<u64>,
    running: BTreeMap<RequestId, Attempt>,
    /// Every model that is not absent.
    residents: BTreeMap<ModelName, Resident>,
    /// Models that were resident at some time: their weights are probably in the machine's memory.
    loaded: BTreeSet<ModelName>,
    pub(crate) devices: Vec<Device>,
    /// What takes capacity: all that we gave it, and what its reports list besides.
    pub(super) bookings: BTreeMap<RequestId, Booking>,
    /// What we believe it runs.
    pub(crate) assigned: BTreeSet<RequestId>,
    /// Of these, the ones that its newest report cannot know yet: they take slots that it calls free.
    pub(crate) unseen: BTreeSet<RequestId>,
    /// Attempts that it said have ended, while a report that still lists them may be its newest: their slots
    /// are free although it calls them taken.
    pub(super) ended: BTreeMap<RequestId, Attempt>,
    /// It refused, gave back or did not answer: nothing more until its next report.
    pub(super) shut: bool,
}

/// A model on a worker.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Resident {
    /// Index into the report's models.
    index: usize,
    /// When we first heard that it is ready.
    pub(crate) ready_since: Option<Moment>,
    /// When we first heard that it is being loaded.
    pub(crate) loading_since: Option<Moment>,
    /// When somebody last used it, as far as we know.
    pub(crate) used: Moment,
}

impl Worker {
    pub(super) fn new(now: Moment, report: Report, devices: Vec<Device>) -> Self {
        let mut worker = Self {
            heard: now,
            past: VecDeque::new(),
            running: BTreeMap::new(),
            residents: BTreeMap::new(),
            loaded: BTreeSet::new(),
            devices,
            bookings: BTreeMap::new(),
            assigned: BTreeSet::new(),
            unseen: BTreeSet::new(),
            ended: BTreeMap::new(),
            shut: false,
            report,
        };
        worker.index(now);
        worker
    }

    pub(super) fn replace(&mut self, now: Moment, report: Report) {
        if report.incarnation != self.report.incarnation {
            self.past.push_back(self.report.incarnation);
            self.ended.clear();
            self.residents.clear();
            self.loaded.clear();
            if self.past.len() > PAST_COUNT_MAX {
                self.past.pop_front();
            }
        }
        self.heard = now;
        self.shut = false;
        self.report = report;
        self.index(now);
    }

    fn index(&mut self, now: Moment) {
        let running = self.report.running.iter();
        self.running = running.map(|run| (run.request.clone(), run.attempt)).collect();
        let mut residents = BTreeMap::new();
        for (index, model) in self.report.models.iter().enumerate() {
            let before = self.residents.get(&model.model).copied();
            residents.insert(model.model.clone(), Resident::seen(now, index, model, before));
            if model.state == ModelState::Ready && self.loaded.len() < LOADED_COUNT_MAX {
                self.loaded.insert(model.model.clone());
            }
        }
        self.residents = residents;
        let running = &self.running;
        self.ended
            .retain(|request, attempt| running.get(request) == Some(attempt));
        // What others gave it is booked for as long as it lists it.
        self.bookings
            .retain(|request, booking| booking.giver != Giver::Stranger || running.contains_key(request));
    }

    /// The attempt at a request that its newest report lists.
    pub(crate) fn lists(&self, request: &RequestId) -> Option<Attempt> {
        self.running.get(request).copied()
    }

    /// What it lists.
    pub(crate) fn listed(&self) -> &[RunningRequest] {
        &self.report.running
    }

    /// Whether a listed request takes capacity: one that has ended since does not.
    pub(crate) fn is_running(&self, run: &RunningRequest) -> bool {
        self.ended.get(&run.request) != Some(&run.attempt)
    }

    /// How many more requests it takes, as far as we know.
    pub(crate) fn free_slots(&self) -> u32 {
        if !self.takes_work() {
            return 0;
        }
        let ended = self
            .ended
            .iter()
            .filter(|(request, attempt)| self.running.get(*request) == Some(attempt));
        let free_slots = self.report.free_slots.saturating_add(count(ended.count()));
        free_slots.saturating_sub(count(self.unseen.len()))
    }

    /// Whether it takes work at all: it does not drain, and answered when it was last asked.
    pub(crate) fn takes_work(&self) -> bool {
        self.report.state == WorkerState::Ready && !self.shut
    }

    /// How many requests it takes in all.
    pub(crate) fn slots(&self) -> u32 {
        let listed = count(self.report.running.len());
        self.report.free_slots.saturating_add(listed).max(1)
    }

    pub(crate) fn model(&self, model: &ModelName) -> Option<&ModelReport> {
        self.residents
            .get(model)
            .map(|resident| &self.report.models[resident.index])
    }

    /// A model that is not absent, with what its report says.
    pub(crate) fn resident(&self, model: &ModelName) -> Option<(&Resident, &ModelReport)> {
        let resident = self.residents.get(model)?;
        Some((resident, &self.report.models[resident.index]))
    }

    /// Every model that is not absent.
    pub(crate) fn residents(&self) -> impl Iterator<Item = (&Resident, &ModelReport)> {
        let residents = self.residents.values();
        residents.map(|resident| (resident, &self.report.models[resident.index]))
    }

    /// Whether a model was resident here before.
    pub(crate) fn has_loaded(&self, model: &ModelName) -> bool {
        self.loaded.contains(model)
    }

    /// What takes capacity.
    pub(crate) fn bookings(&self) -> impl Iterator<Item = (&RequestId, &Booking)> {
        self.bookings.iter()
    }

    pub(crate) fn booking(&self, request: &RequestId) -> Option<&Booking> {
        self.bookings.get(request)
    }

    /// Whether anything booked here uses a model.
    pub(crate) fn is_booked_for(&self, model: &ModelName) -> bool {
        self.bookings.values().any(|booking| booking.model == *model)
    }

    /// Whether a model makes room for another one, of which its newest report cannot know yet.
    pub(crate) fn is_leaving(&self, model: &ModelName) -> bool {
        self.unseen_bookings()
            .any(|booking| booking.victims.contains(model))
    }

    /// Models on their way to a device, of which its newest report cannot know yet.
    pub(crate) fn coming_to(&self, device: usize) -> BTreeSet<&ModelName> {
        let bookings = self.unseen_bookings().filter(|booking| booking.device == device);
        let models = bookings.map(|booking| &booking.model);
        models
            .filter(|model| !self.residents.contains_key(*model))
            .collect()
    }

    fn unseen_bookings(&self) -> impl Iterator<Item = &Booking> {
        self.unseen
            .iter()
            .filter_map(|request| self.bookings.get(request))
    }

    /// Tokens of keys and values that are booked for a model: each request's longest possible length.
    pub(crate) fn kv_tokens_booked(&self, model: &ModelName) -> u64 {
        let of_model = self.bookings.values().filter(|booking| booking.model == *model);
        of_model.map(|booking| booking.kv_tokens).sum()
    }

    /// The device that a model's report names, or the first.
    pub(crate) fn device_of(&self, report: &ModelReport) -> usize {
        let device = report.device.and_then(|device| usize::try_from(device).ok());
        device.unwrap_or(0).min(self.devices.len() - 1)
    }

    /// The device that holds a model, or would: the one that its report names, else that with most free bytes.
    pub(crate) fn device_for(&self, model: &ModelName) -> usize {
        let reported = self.model(model).and_then(|report| report.device);
        let booked = || self.bookings.values().find(|booking| booking.model == *model);
        let device = reported
            .and_then(|device| usize::try_from(device).ok())
            .or_else(|| booked().map(|booking| booking.device))
            .unwrap_or_else(|| self.emptiest_device());
        device.min(self.devices.len() - 1)
    }

    /// Devices that are kept for a request.
    pub(super) fn reserved_count(&self) -> usize {
        let reserved = self.devices.iter().filter(|device| device.reserved_for.is_some());
        reserved.count()
    }

    fn emptiest_device(&self) -> usize {
        let devices = self.report.devices.iter().enumerate();
        let emptiest = devices.max_by_key(|(index, device)| (device.free_bytes(), std::cmp::Reverse(*index)));
        emptiest.map_or(0, |(index, _)| index)
    }

    /// Adds up what is booked.
    pub(super) fn sum_up(&mut self) {
        for device in &mut self.devices {
            device.clear();
        }
        for booking in self.bookings.values() {
            self.devices[booking.device].add(booking);
        }
    }
}

impl Resident {
    fn seen(now: Moment, index: usize, model: &ModelReport, before: Option<Self>) -> Self {
        let is_ready = model.state == ModelState::Ready;
        let is_loading = model.state == ModelState::Loading;
        let in_use = model.leases > 0 || model.waiting > 0;
        Self {
            index,
            ready_since: is_ready.then(|| before.and_then(|before| before.ready_since).unwrap_or(now)),
            loading_since: is_loading.then(|| before.and_then(|before| before.loading_since).unwrap_or(now)),
            used: match before {
                Some(before) if !in_use => before.used,
                Some(_) | None => now,
            },
        }
    }

    /// How long the model is to stay before it may be swapped for another, for a load that took this long.
    pub(crate) fn stays_until(&self, load_time: Duration, loads: f64, longest: Duration) -> Option<Moment> {
        let ready_since = self.ready_since?;
        Some(ready_since + load_time.mul_f64(loads).min(longest))
    }
}

fn count(requests: usize) -> u32 {
    u32::try_from(requests).unwrap_or(u32::MAX)
}
