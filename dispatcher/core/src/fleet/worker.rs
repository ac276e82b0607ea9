//! One worker, as its reports and our assignments show it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use flotilla_protocol::fleet::{ModelReport, ModelState, Report, RunningRequest, WorkerState};
use flotilla_protocol::{Attempt, ModelName, Moment, RequestId};

use super::device::{Booking, Device, Giver};
use crate::models::{Kind, Models};
use crate::pace::Crew;

/// How many earlier starts of a worker are known as past; a report of one of them is late.
const PAST_COUNT_MAX: usize = 8;
/// Of how many models a worker's loads are remembered.
const LOADED_COUNT_MAX: usize = 1024;

/// One worker.
#[derive(Debug)]
pub(crate) struct Worker {
    /// No other worker has the same.
    pub(crate) number: usize,
    pub(crate) report: Report,
    pub(crate) heard: Moment,
    pub(super) past: VecDeque<u64>,
    running: BTreeMap<RequestId, Attempt>,
    /// Every model that is not absent.
    residents: BTreeMap<ModelName, Resident>,
    /// Models that were resident at some time: their weights are probably in the machine's memory.
    loaded: BTreeSet<ModelName>,
    /// Its devices, and behind them one for each set of them that had a model in parts: what runs there takes time of
    /// all of them.
    pub(crate) devices: Vec<Device>,
    /// Of each such set, the devices that it consists of.
    sets: Vec<Vec<usize>>,
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
    /// Since when it is known that its connection is gone.
    pub(super) absent_since: Option<Moment>,
    /// The request that it is kept for: it takes nothing else.
    pub(super) kept_for: Option<RequestId>,
    /// How many more requests it takes, as far as we know: what [`Worker::sum_up`] found.
    free_slots: u32,
    /// Models that make room for others, of which its newest report cannot know yet.
    leaving: BTreeSet<ModelName>,
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
    pub(super) fn new(now: Moment, number: usize, report: Report, devices: Vec<Device>) -> Self {
        let mut worker = Self {
            number,
            heard: now,
            past: VecDeque::new(),
            running: BTreeMap::new(),
            residents: BTreeMap::new(),
            loaded: BTreeSet::new(),
            devices,
            sets: Vec::new(),
            bookings: BTreeMap::new(),
            assigned: BTreeSet::new(),
            unseen: BTreeSet::new(),
            ended: BTreeMap::new(),
            shut: false,
            absent_since: None,
            kept_for: None,
            free_slots: 0,
            leaving: BTreeSet::new(),
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
        self.absent_since = None;
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
        self.free_slots
    }

    /// How many more requests it takes, counted.
    pub(super) fn count_free_slots(&self) -> u32 {
        match self.kept_for {
            Some(_) => 0,
            None => self.offered_slots(),
        }
    }

    /// How many more requests it takes, whether it is kept for one or not.
    pub(super) fn offered_slots(&self) -> u32 {
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

    /// The request that it is kept for.
    pub(crate) fn kept_for(&self) -> Option<&RequestId> {
        self.kept_for.as_ref()
    }

    /// Whether it has nothing and takes something: who gets it now has it for itself.
    pub(crate) fn can_take_alone(&self) -> bool {
        let is_over = |run: &RunningRequest| !self.is_running(run);
        self.assigned.is_empty() && self.report.running.iter().all(is_over) && self.offered_slots() > 0
    }

    /// How long until everything that is booked here is expected to have ended.
    pub(crate) fn empties_in(&self, now: Moment) -> Duration {
        let ends = self.bookings.values().map(|booking| booking.ends_at.since(now));
        ends.max().unwrap_or_default()
    }

    /// Whether its newest report says that a request runs alone.
    pub(crate) fn runs_alone(&self, request: &RequestId) -> bool {
        let mut running = self.report.running.iter();
        running.any(|run| run.request == *request && run.alone)
    }

    /// Whether this was an earlier start of it.
    pub(crate) fn is_past(&self, incarnation: u64) -> bool {
        self.past.contains(&incarnation)
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

    /// Whether a model's weights are in its host memory, and no device has them; `None` of a worker that does not
    /// tell.
    pub(crate) fn has_in_host(&self, model: &ModelName) -> Option<bool> {
        let host = self.report.host.as_ref()?;
        Some(host.models.iter().any(|copy| copy.model == *model))
    }

    /// What takes capacity.
    pub(crate) fn bookings(&self) -> impl Iterator<Item = (&RequestId, &Booking)> {
        self.bookings.iter()
    }

    pub(crate) fn booking(&self, request: &RequestId) -> Option<&Booking> {
        self.bookings.get(request)
    }

    /// What runs on a device; `models` tells how.
    pub(crate) fn crew(&self, device: usize, models: &Models) -> &Crew {
        self.devices[device].crew(|| self.make_crew(device, models))
    }

    /// What runs on a device, put together anew. The steps of a model in parts are those of all its devices.
    pub(super) fn make_crew(&self, device: usize, models: &Models) -> Crew {
        let here = || {
            let bookings = self.bookings.values();
            bookings.filter(|booking| self.shares_time(booking.device, device))
        };
        Crew::new(here(), |model| {
            let booking = here().find(|booking| booking.model == *model)?;
            models.steps(model, self.devices[booking.device].kind)
        })
    }

    /// The devices themselves, without sets of them.
    pub(crate) fn own_devices(&self) -> &[Device] {
        &self.devices[..self.devices.len() - self.sets.len()]
    }

    /// The devices that one consists of: itself, or those of a set.
    pub(crate) fn members(&self, device: usize) -> impl Iterator<Item = usize> {
        let own = self.own_devices().len();
        let set = device.checked_sub(own).map(|index| &self.sets[index]);
        let itself = if set.is_none() { Some(device) } else { None };
        set.into_iter().flatten().copied().chain(itself)
    }

    /// Whether what runs on one device takes time of the other: they are the same, or have some in common.
    pub(crate) fn shares_time(&self, one: usize, other: usize) -> bool {
        self.members(one)
            .any(|member| self.members(other).any(|it| it == member))
    }

    /// Whether a request may be placed on a device as far as reservations go, of others that share its time as well.
    pub(crate) fn is_open_to(&self, device: usize, request: &RequestId) -> bool {
        let mut devices = self.devices.iter().enumerate();
        devices.all(|(index, it)| it.is_open_to(request) || !self.shares_time(index, device))
    }

    /// The sets of devices that have models in parts by its newest report, which are not known as sets yet.
    pub(super) fn new_sets(&self) -> Vec<Vec<usize>> {
        let own = self.own_devices().len();
        let in_parts = self.report.models.iter().filter(|model| !model.shards.is_empty());
        let sets = in_parts.map(|model| self.set_of(model));
        let is_whole = |set: &Vec<usize>| set.iter().all(|device| *device < own);
        let mut sets: Vec<Vec<usize>> = sets.filter(is_whole).collect();
        sets.sort_unstable();
        sets.dedup();
        sets.retain(|set| !self.sets.contains(set));
        sets
    }

    fn set_of(&self, report: &ModelReport) -> Vec<usize> {
        let devices = report.devices();
        devices
            .map(|device| usize::try_from(device).unwrap_or(usize::MAX))
            .collect()
    }

    /// Knows one more set of devices, which is of a kind of its own.
    pub(super) fn add_set(&mut self, set: Vec<usize>, kind: Kind) {
        self.sets.push(set);
        self.devices.push(Device::new(kind));
    }

    /// Has these devices, and no sets of them.
    pub(super) fn replace_devices(&mut self, devices: Vec<Device>) {
        self.sets.clear();
        self.devices = devices;
        let last = self.devices.len() - 1;
        for booking in self.bookings.values_mut() {
            booking.device = booking.device.min(last);
        }
    }

    /// Books where models are what was booked where they were thought to come.
    pub(super) fn follow_models(&mut self) {
        let mut moved = Vec::new();
        for (request, booking) in &self.bookings {
            let report = self
                .model(&booking.model)
                .filter(|report| report.device.is_some());
            let device = report.map_or(booking.device, |report| {
                self.device_by(&booking.model, Some(report))
            });
            if device != booking.device {
                moved.push((request.clone(), device));
            }
        }
        for (request, device) in moved {
            let booking = self.bookings.get_mut(&request).expect("it was found just now");
            // Nobody gave it to this device, so it may be more than there was room for.
            (booking.device, booking.is_measured) = (device, false);
        }
    }

    /// Whether anything booked here uses a model.
    pub(crate) fn is_booked_for(&self, model: &ModelName) -> bool {
        self.bookings.values().any(|booking| booking.model == *model)
    }

    /// Whether a model makes room for another one, of which its newest report cannot know yet.
    pub(crate) fn is_leaving(&self, model: &ModelName) -> bool {
        self.leaving.contains(model)
    }

    /// Models on their way to a device, of which its newest report cannot know yet.
    pub(crate) fn coming_to(&self, device: usize) -> BTreeSet<&ModelName> {
        let bookings = self.unseen_bookings();
        let bookings = bookings.filter(|booking| self.shares_time(booking.device, device));
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

    /// Bytes of a model's weights on one of its devices, if it has any there; who says nothing of devices has one.
    pub(crate) fn bytes_on(&self, report: &ModelReport, device: usize) -> Option<u64> {
        let is_here = |named: u32| usize::try_from(named).is_ok_and(|named| named == device);
        if report.shards.is_empty() {
            return is_here(report.device.unwrap_or(0)).then_some(report.weights_bytes);
        }
        let here = report.shards.iter().find(|shard| is_here(shard.device));
        here.map(|shard| shard.weights_bytes)
    }

    /// The device that holds a model, or would: the one that its report names, or the set of them, else that with most
    /// free bytes.
    pub(crate) fn device_for(&self, model: &ModelName) -> usize {
        self.device_by(model, self.model(model))
    }

    /// The same, where it is known what is reported of the model.
    pub(crate) fn device_by(&self, model: &ModelName, report: Option<&ModelReport>) -> usize {
        let set = report.filter(|report| !report.shards.is_empty());
        let set = set.map(|report| self.set_of(report));
        let known = set.and_then(|set| self.sets.iter().position(|it| *it == set));
        if let Some(known) = known {
            return self.own_devices().len() + known;
        }
        let reported = report.and_then(|report| report.device);
        let booked = || self.bookings.values().find(|booking| booking.model == *model);
        let device = reported
            .and_then(|device| usize::try_from(device).ok())
            .or_else(|| booked().map(|booking| booking.device))
            .unwrap_or_else(|| self.emptiest_device());
        device.min(self.devices.len() - 1)
    }

    fn emptiest_device(&self) -> usize {
        let devices = self.report.devices.iter().enumerate();
        let emptiest = devices.max_by_key(|(index, device)| (device.free_bytes(), std::cmp::Reverse(*index)));
        emptiest.map_or(0, |(index, _)| index)
    }

    /// Adds up what is booked, and finds out what that leaves.
    pub(super) fn sum_up(&mut self) {
        self.free_slots = self.count_free_slots();
        let leaving = self.unseen_bookings().flat_map(|booking| &booking.victims);
        self.leaving = leaving.cloned().collect();
        for device in &mut self.devices {
            device.clear();
        }
        for booking in self.bookings.values() {
            for member in 0..self.own_devices().len() {
                if self.shares_time(booking.device, member) {
                    self.devices[member].add(booking);
                }
            }
        }
        for set in self.own_devices().len()..self.devices.len() {
            for member in self.members(set).collect::<Vec<_>>() {
                let member = self.devices[member].clone();
                self.devices[set].add_member(&member);
            }
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
