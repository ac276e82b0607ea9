//! The workers, as their reports and our assignments show them.

mod device;
mod invariants;
mod worker;
mod workers;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use flotilla_protocol::assignment::Done;
use flotilla_protocol::fleet::{ModelReport, ModelState, Report};
use flotilla_protocol::{Attempt, ModelName, Moment, RequestId, WorkerId};

use crate::models::Kind;
pub(crate) use device::{Booking, Device, Giver};
pub(crate) use worker::{Resident, Worker};
use workers::Workers;

/// Of how many workers more than report the registrations are remembered.
const REGISTERED_COUNT_FACTOR: usize = 2;

/// What a report is to what is known of its worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Novelty {
    /// The worker was not known.
    NewWorker,
    /// Another process than before: the one before is dead.
    NewIncarnation,
    /// The next of the same process.
    Newer,
    /// Overtaken by a newer one.
    Stale,
}

/// All workers.
#[derive(Debug, Default)]
pub(crate) struct Fleet {
    workers: Workers,
    /// Those with a free slot, with their numbers.
    roomy: BTreeMap<WorkerId, usize>,
    /// Workers, with their numbers, by the models that they have, or were given requests of.
    holders: BTreeMap<ModelName, BTreeMap<WorkerId, usize>>,
    /// Kinds of the devices of workers, as they registered, whether they report or not.
    registered: BTreeMap<WorkerId, Vec<Kind>>,
    /// Models that have fewer holders than when [`Fleet::take_left`] was last called.
    left: BTreeSet<ModelName>,
    /// Workers by the requests that one of their devices is kept for.
    reserved: BTreeMap<RequestId, WorkerId>,
    /// How many devices of each kind the workers have.
    kinds: BTreeMap<Kind, usize>,
}

impl Fleet {
    /// What this report would be.
    pub(crate) fn novelty(&self, report: &Report) -> Novelty {
        match self.workers.get(&report.worker) {
            None => Novelty::NewWorker,
            Some(worker) if worker.past.contains(&report.incarnation) => Novelty::Stale,
            Some(worker) if worker.report.incarnation != report.incarnation => Novelty::NewIncarnation,
            Some(worker) if report.seq <= worker.report.seq => Novelty::Stale,
            Some(_) => Novelty::Newer,
        }
    }

    /// Remembers the devices of a worker. A worker that reports gets them at once; tells whether it does. What others
    /// gave it has to be booked anew then, by what it takes on these devices.
    pub(crate) fn register(&mut self, id: &WorkerId, kinds: Vec<Kind>, workers_max: usize) -> bool {
        if kinds.is_empty() {
            return false;
        }
        if self.registered.len() >= workers_max * REGISTERED_COUNT_FACTOR {
            let workers = &self.workers;
            self.registered.retain(|id, _| workers.contains(id));
        }
        self.registered.insert(id.clone(), kinds.clone());
        let Some(worker) = self.workers.get_mut(id) else {
            return false;
        };
        if worker
            .own_devices()
            .iter()
            .map(|device| device.kind)
            .eq(kinds.iter().copied())
        {
            return false;
        }
        self.reserved.retain(|_, keeper| keeper != id);
        discount(&mut self.kinds, &worker.devices);
        count(&mut self.kinds, &kinds);
        worker.replace_devices(kinds.into_iter().map(Device::new).collect());
        self.unbook_strangers(id);
        self.refresh(id);
        true
    }

    /// Takes a report as its worker's newest. `unknown` is the kind of devices that did not register.
    pub(crate) fn install(&mut self, now: Moment, report: Report, unknown: Kind) {
        let id = report.worker.clone();
        let before = self.held_models(&id);
        if let Some(worker) = self.workers.get_mut(&id) {
            worker.replace(now, report);
        } else {
            let registered = self.registered.get(&id).cloned();
            let kinds = registered.unwrap_or_else(|| vec![unknown; report.devices.len().max(1)]);
            count(&mut self.kinds, &kinds);
            let devices = kinds.into_iter().map(Device::new).collect();
            self.workers
                .insert(id.clone(), |number| Worker::new(now, number, report, devices));
        }
        let after = self.held_models(&id);
        before.difference(&after).for_each(|model| self.leave(&id, model));
        self.note_holder(&id);
        self.refresh(&id);
    }

    /// Sets of a worker's devices that have models in parts and are not known yet, each with the kinds of its devices.
    pub(crate) fn new_sets(&self, id: &WorkerId) -> Vec<(Vec<usize>, Vec<Kind>)> {
        let Some(worker) = self.workers.get(id) else {
            return Vec::new();
        };
        let kinds = |set: &Vec<usize>| set.iter().map(|device| worker.devices[*device].kind).collect();
        let sets = worker.new_sets().into_iter();
        sets.map(|set| (set.clone(), kinds(&set))).collect()
    }

    /// Knows these sets of a worker's devices, each as a device of this kind, and books where its models are.
    pub(crate) fn follow_models(&mut self, id: &WorkerId, sets: Vec<(Vec<usize>, Kind)>) {
        let Some(worker) = self.workers.get_mut(id) else {
            return;
        };
        for (set, kind) in sets {
            count(&mut self.kinds, &[kind]);
            worker.add_set(set, kind);
        }
        worker.follow_models();
        self.refresh(id);
    }

    /// Forgets a worker.
    pub(crate) fn remove(&mut self, id: &WorkerId) {
        self.drop_holder(id);
        if let Some(worker) = self.workers.remove(id) {
            self.reserved.retain(|_, keeper| keeper != id);
            discount(&mut self.kinds, &worker.devices);
        }
        self.roomy.remove(id);
    }

    /// Books a request on a worker. `Listed` says that its newest report lists it.
    pub(crate) fn book(&mut self, id: &WorkerId, request: &RequestId, booking: Booking, sight: Sight) {
        let worker = self
            .workers
            .get_mut(id)
            .expect("requests are given to known workers only");
        worker.assigned.insert(request.clone());
        match sight {
            Sight::Listed => {}
            Sight::Unseen => {
                let is_kept = worker.kept_for.as_ref() == Some(request);
                let free_slots = if is_kept {
                    worker.offered_slots()
                } else {
                    worker.free_slots()
                };
                assert!(free_slots > 0, "{id} would get more than it offered");
                worker.unseen.insert(request.clone());
            }
        }
        let holders = self.holders.entry(booking.model.clone()).or_default();
        holders.insert(id.clone(), worker.number);
        worker.devices[booking.device].note_prompt(booking.began, booking.reads);
        worker.bookings.insert(request.clone(), booking);
        self.refresh(id);
    }

    /// Books what a worker lists and somebody else gave it.
    pub(crate) fn book_listed(&mut self, id: &WorkerId, request: &RequestId, booking: Booking) {
        if let Some(worker) = self.workers.get_mut(id) {
            let holders = self.holders.entry(booking.model.clone()).or_default();
            holders.insert(id.clone(), worker.number);
            worker.bookings.insert(request.clone(), booking);
            self.refresh(id);
        }
    }

    fn unbook_strangers(&mut self, id: &WorkerId) {
        let Some(worker) = self.workers.get_mut(id) else {
            return;
        };
        let strangers = worker
            .bookings
            .extract_if(.., |_, booking| booking.giver == Giver::Stranger);
        let models: Vec<ModelName> = strangers.map(|(_, booking)| booking.model).collect();
        models.iter().for_each(|model| self.release_holder(id, model));
    }

    /// Lets bookings follow how far their requests are. The share stays what it was admitted with: a request slows the
    /// others by its last token as much as by its first.
    pub(crate) fn follow(&mut self, now: Moment, id: &WorkerId, left: Vec<Left>) {
        let Some(worker) = self.workers.get_mut(id) else {
            return;
        };
        for left in left {
            if let Some(booking) = worker.bookings.get_mut(&left.request) {
                booking.ends_at = left.ends_at;
                booking.made = left.made;
                booking.made_at = now;
            }
        }
        self.refresh(id);
    }

    /// Notes that a worker's newest report knows of a request.
    pub(crate) fn saw(&mut self, id: &WorkerId, request: &RequestId) {
        if let Some(worker) = self.workers.get_mut(id) {
            worker.unseen.remove(request);
            self.refresh(id);
        }
    }

    /// Undoes a booking.
    pub(crate) fn unbook(&mut self, id: &WorkerId, request: &RequestId) {
        if let Some(worker) = self.workers.get_mut(id) {
            worker.assigned.remove(request);
            worker.unseen.remove(request);
            if let Some(booking) = worker.bookings.remove(request) {
                self.release_holder(id, &booking.model);
            }
            self.refresh(id);
        }
    }

    /// Notes that an attempt ended on a worker's process, whose slot is free before its next report says so.
    pub(crate) fn ended(&mut self, done: &Done) {
        let worker = self.workers.get_mut(&done.worker);
        if let Some(worker) = worker.filter(|worker| worker.report.incarnation == done.incarnation) {
            worker.ended.insert(done.request.clone(), done.attempt);
            let booking = worker.bookings.get(&done.request);
            if booking.is_some_and(|booking| booking.giver == Giver::Stranger)
                && let Some(booking) = worker.bookings.remove(&done.request)
            {
                self.release_holder(&done.worker, &booking.model);
            }
            self.refresh(&done.worker);
        }
    }

    /// Gives a worker nothing but this request, until [`Fleet::end_keep`].
    pub(crate) fn keep(&mut self, id: &WorkerId, request: &RequestId) {
        if let Some(worker) = self.workers.get_mut(id) {
            worker.kept_for = Some(request.clone());
            self.refresh(id);
        }
    }

    /// Gives a worker to everybody again.
    pub(crate) fn end_keep(&mut self, id: &WorkerId) {
        if let Some(worker) = self.workers.get_mut(id) {
            worker.kept_for = None;
            self.refresh(id);
        }
    }

    /// Gives a worker nothing more until its next report.
    pub(crate) fn shut(&mut self, id: &WorkerId) {
        if let Some(worker) = self.workers.get_mut(id) {
            worker.shut = true;
            self.refresh(id);
        }
    }

    /// Notes that a worker's connection is gone; tells for how long that has been known.
    pub(crate) fn miss(&mut self, now: Moment, id: &WorkerId) -> Option<Duration> {
        let worker = self.workers.get_mut(id)?;
        Some(now.since(*worker.absent_since.get_or_insert(now)))
    }

    pub(crate) fn contains(&self, id: &WorkerId) -> bool {
        self.workers.contains(id)
    }

    pub(crate) fn worker(&self, id: &WorkerId) -> Option<&Worker> {
        self.workers.get(id)
    }

    /// The worker with a number.
    ///
    /// # Panics
    /// When nobody has it.
    pub(crate) fn at(&self, number: usize) -> &Worker {
        self.workers.at(number)
    }

    pub(crate) fn len(&self) -> usize {
        self.workers.len()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&WorkerId, &Worker)> {
        self.workers.iter()
    }

    /// Workers with a free slot.
    pub(crate) fn roomy(&self) -> impl Iterator<Item = (&WorkerId, &Worker)> {
        self.roomy
            .iter()
            .map(|(id, number)| (id, self.workers.at(*number)))
    }

    pub(crate) fn has_room(&self) -> bool {
        !self.roomy.is_empty()
    }

    /// Workers that have a model, or were given requests of it.
    pub(crate) fn holders(&self, model: &ModelName) -> impl Iterator<Item = (&WorkerId, &Worker)> {
        let holders = self.holders.get(model).into_iter().flatten();
        holders.map(|(id, number)| (id, self.workers.at(*number)))
    }

    /// Whether any worker has a model, or was given requests of it.
    pub(crate) fn has_holder(&self, model: &ModelName) -> bool {
        self.holders.get(model).is_some_and(|ids| !ids.is_empty())
    }

    /// Whether a worker has a model, or was given requests of it.
    pub(crate) fn holds(&self, id: &WorkerId, model: &ModelName) -> bool {
        self.holders.get(model).is_some_and(|ids| ids.contains_key(id))
    }

    /// Models that a worker has no more, since this was last asked: others may be chosen for them now.
    pub(crate) fn take_left(&mut self) -> BTreeSet<ModelName> {
        std::mem::take(&mut self.left)
    }

    /// A model goes at another pace than before: what runs beside it does so as well.
    pub(crate) fn forget_pace_of(&mut self, model: &ModelName) {
        let holders = self.holders.get(model).into_iter().flatten();
        for (_, number) in holders {
            let devices = &mut self.workers.at_mut(*number).devices;
            devices.iter_mut().for_each(Device::forget_crew);
        }
    }

    /// Kinds of all devices, each once.
    pub(crate) fn kinds(&self) -> impl Iterator<Item = Kind> {
        self.kinds.keys().copied()
    }

    /// Keeps a device for a request.
    /// Tells whether it could: a device is kept for one request at a time.
    pub(crate) fn reserve(&mut self, id: &WorkerId, device: usize, request: &RequestId) -> bool {
        let Some(worker) = self.workers.get_mut(id) else {
            return false;
        };
        let reserved_for = &mut worker.devices[device].reserved_for;
        if reserved_for.is_some() {
            return false;
        }
        *reserved_for = Some(request.clone());
        self.reserved.insert(request.clone(), id.clone());
        true
    }

    /// Ends the reservation of a request, if it has one; tells where it was.
    pub(crate) fn unreserve(&mut self, request: &RequestId) -> Option<WorkerId> {
        let id = self.reserved.remove(request)?;
        let worker = self
            .workers
            .get_mut(&id)
            .expect("a known worker's device is kept");
        let kept = worker
            .devices
            .iter_mut()
            .filter(|device| device.is_kept_for(request));
        kept.for_each(|device| device.reserved_for = None);
        Some(id)
    }

    /// Devices that are kept for a request.
    pub(crate) fn reserved_count(&self) -> usize {
        self.reserved.len()
    }

    /// All devices.
    pub(crate) fn device_count(&self) -> usize {
        self.kinds.values().sum()
    }

    /// The newest attempt at a request that some worker's report lists, if it is newer than `over`.
    pub(crate) fn newest_run(&self, request: &RequestId, over: Attempt) -> Option<(WorkerId, Attempt)> {
        let runs = self
            .workers
            .iter()
            .filter_map(|(id, worker)| Some((worker.lists(request)?, id)));
        let (attempt, id) = runs.max()?;
        (attempt > over).then(|| (id.clone(), attempt))
    }

    fn note_holder(&mut self, id: &WorkerId) {
        let Some(number) = self.workers.number(id) else {
            return;
        };
        for model in self.held_models(id) {
            self.holders.entry(model).or_default().insert(id.clone(), number);
        }
    }

    fn drop_holder(&mut self, id: &WorkerId) {
        for model in self.held_models(id) {
            self.leave(id, &model);
        }
    }

    /// A request of a model has left a worker, which may not have the model either.
    fn release_holder(&mut self, id: &WorkerId, model: &ModelName) {
        let worker = self.workers.get(id).expect("who held a request is known");
        if worker.model(model).is_none() && !worker.is_booked_for(model) {
            self.leave(id, model);
        }
    }

    fn leave(&mut self, id: &WorkerId, model: &ModelName) {
        if let Some(ids) = self.holders.get_mut(model) {
            ids.remove(id);
            if ids.is_empty() {
                self.holders.remove(model);
            }
        }
        self.left.insert(model.clone());
    }

    fn held_models(&self, id: &WorkerId) -> BTreeSet<ModelName> {
        let Some(worker) = self.workers.get(id) else {
            return BTreeSet::new();
        };
        let resident = worker.residents().map(|(_, report)| &report.model);
        let booked = worker.bookings.values().map(|booking| &booking.model);
        resident.chain(booked).cloned().collect()
    }

    fn refresh(&mut self, id: &WorkerId) {
        let Some(worker) = self.workers.get_mut(id) else {
            return;
        };
        worker.sum_up();
        if worker.free_slots() == 0 {
            self.roomy.remove(id);
        } else if !self.roomy.contains_key(id) {
            self.roomy.insert(id.clone(), worker.number);
        }
    }
}

/// Counts devices of these kinds.
fn count(kinds: &mut BTreeMap<Kind, usize>, added: &[Kind]) {
    for kind in added {
        *kinds.entry(*kind).or_default() += 1;
    }
}

/// Counts these devices no more.
fn discount(kinds: &mut BTreeMap<Kind, usize>, removed: &[Device]) {
    for device in removed {
        if let Some(count) = kinds.get_mut(&device.kind) {
            *count -= 1;
        }
    }
    kinds.retain(|_, count| *count > 0);
}

/// What is left of a request by a report.
#[derive(Debug)]
pub(crate) struct Left {
    pub(crate) request: RequestId,
    pub(crate) made: u32,
    pub(crate) ends_at: Moment,
}

/// Whether a worker's newest report lists a request that is booked there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sight {
    Listed,
    Unseen,
}

/// The failure of a model that may not be tried again yet, with the milliseconds until it may.
pub(crate) fn failure(model: &ModelReport) -> Option<(&str, u64)> {
    match &model.state {
        ModelState::Failed {
            reason,
            retry_in_ms: retry_in_ms @ 1..,
        } => Some((reason, *retry_in_ms)),
        ModelState::Failed { .. }
        | ModelState::Loading
        | ModelState::Ready
        | ModelState::Draining
        | ModelState::Unloading => None,
    }
}
