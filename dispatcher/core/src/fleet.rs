//! The workers, as their reports and our assignments show them.

mod device;
mod worker;

use std::collections::{BTreeMap, BTreeSet};

use flotilla_protocol::assignment::Done;
use flotilla_protocol::fleet::{ModelReport, ModelState, Report};
use flotilla_protocol::{Attempt, ModelName, Moment, RequestId, WorkerId};

use crate::models::Kind;
use crate::share::Share;
pub(crate) use device::{Booking, Device, Giver};
pub(crate) use worker::{Resident, Worker};

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
    workers: BTreeMap<WorkerId, Worker>,
    /// Those with a free slot.
    roomy: BTreeSet<WorkerId>,
    /// Workers by the models that they have, or were given requests of.
    holders: BTreeMap<ModelName, BTreeSet<WorkerId>>,
    /// Kinds of the devices of workers, as they registered, whether they report or not.
    registered: BTreeMap<WorkerId, Vec<Kind>>,
    /// Models that have fewer holders than when [`Fleet::take_left`] was last called.
    left: BTreeSet<ModelName>,
    /// Devices that are kept for a request.
    reserved_count: usize,
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
            self.registered.retain(|id, _| workers.contains_key(id));
        }
        self.registered.insert(id.clone(), kinds.clone());
        let Some(worker) = self.workers.get_mut(id) else {
            return false;
        };
        if worker
            .devices
            .iter()
            .map(|device| device.kind)
            .eq(kinds.iter().copied())
        {
            return false;
        }
        self.reserved_count -= worker.reserved_count();
        worker.devices = kinds.into_iter().map(Device::new).collect();
        let device_max = worker.devices.len() - 1;
        for booking in worker.bookings.values_mut() {
            booking.device = booking.device.min(device_max);
        }
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
            let devices = kinds.into_iter().map(Device::new).collect();
            self.workers.insert(id.clone(), Worker::new(now, report, devices));
        }
        let after = self.held_models(&id);
        before.difference(&after).for_each(|model| self.leave(&id, model));
        self.note_holder(&id);
        self.refresh(&id);
    }

    /// Forgets a worker.
    pub(crate) fn remove(&mut self, id: &WorkerId) {
        self.drop_holder(id);
        if let Some(worker) = self.workers.remove(id) {
            self.reserved_count -= worker.reserved_count();
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
                assert!(worker.free_slots() > 0, "{id} would get more than it offered");
                worker.unseen.insert(request.clone());
            }
        }
        self.holders
            .entry(booking.model.clone())
            .or_default()
            .insert(id.clone());
        worker.devices[booking.device].note_prompt(booking.began, booking.reads);
        worker.bookings.insert(request.clone(), booking);
        self.refresh(id);
    }

    /// Books what a worker lists and somebody else gave it.
    pub(crate) fn book_listed(&mut self, id: &WorkerId, request: &RequestId, booking: Booking) {
        if let Some(worker) = self.workers.get_mut(id) {
            let holders = self.holders.entry(booking.model.clone()).or_default();
            holders.insert(id.clone());
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

    /// Lets bookings follow what is left of their requests. They only shrink: what one has left free may be given to
    /// another by the time at which it seems to need more again.
    pub(crate) fn follow(&mut self, now: Moment, id: &WorkerId, left: Vec<Left>) {
        let Some(worker) = self.workers.get_mut(id) else {
            return;
        };
        for left in left {
            if let Some(booking) = worker.bookings.get_mut(&left.request) {
                booking.share = left.share.min(booking.share);
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

    /// Gives a worker nothing more until its next report.
    pub(crate) fn shut(&mut self, id: &WorkerId) {
        if let Some(worker) = self.workers.get_mut(id) {
            worker.shut = true;
            self.refresh(id);
        }
    }

    pub(crate) fn contains(&self, id: &WorkerId) -> bool {
        self.workers.contains_key(id)
    }

    pub(crate) fn worker(&self, id: &WorkerId) -> Option<&Worker> {
        self.workers.get(id)
    }

    pub(crate) fn len(&self) -> usize {
        self.workers.len()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&WorkerId, &Worker)> {
        self.workers.iter()
    }

    /// Workers with a free slot.
    pub(crate) fn roomy(&self) -> impl Iterator<Item = (&WorkerId, &Worker)> {
        self.roomy.iter().map(|id| (id, &self.workers[id]))
    }

    pub(crate) fn has_room(&self) -> bool {
        !self.roomy.is_empty()
    }

    /// Workers that have a model, or were given requests of it.
    pub(crate) fn holders(&self, model: &ModelName) -> impl Iterator<Item = (&WorkerId, &Worker)> {
        let holders = self.holders.get(model).into_iter().flatten();
        holders.filter_map(|id| self.workers.get_key_value(id))
    }

    /// Whether any worker has a model, or was given requests of it.
    pub(crate) fn has_holder(&self, model: &ModelName) -> bool {
        self.holders.get(model).is_some_and(|ids| !ids.is_empty())
    }

    /// Whether a worker has a model, or was given requests of it.
    pub(crate) fn holds(&self, id: &WorkerId, model: &ModelName) -> bool {
        self.holders.get(model).is_some_and(|ids| ids.contains(id))
    }

    /// Models that a worker has no more, since this was last asked: others may be chosen for them now.
    pub(crate) fn take_left(&mut self) -> BTreeSet<ModelName> {
        std::mem::take(&mut self.left)
    }

    /// Kinds of all devices, each once.
    pub(crate) fn kinds(&self) -> BTreeSet<Kind> {
        let devices = self.workers.values().flat_map(|worker| &worker.devices);
        devices.map(|device| device.kind).collect()
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
        self.reserved_count += 1;
        true
    }

    /// Ends the reservation of a request, if it has one; tells where it was.
    pub(crate) fn unreserve(&mut self, request: &RequestId) -> Option<WorkerId> {
        if self.reserved_count == 0 {
            return None;
        }
        for (id, worker) in &mut self.workers {
            for device in &mut worker.devices {
                if device.reserved_for.as_ref() == Some(request) {
                    device.reserved_for = None;
                    self.reserved_count -= 1;
                    return Some(id.clone());
                }
            }
        }
        None
    }

    /// Devices that are kept for a request.
    pub(crate) fn reserved_count(&self) -> usize {
        self.reserved_count
    }

    /// All devices.
    pub(crate) fn device_count(&self) -> usize {
        self.workers.values().map(|worker| worker.devices.len()).sum()
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
        for model in self.held_models(id) {
            self.holders.entry(model).or_default().insert(id.clone());
        }
    }

    fn drop_holder(&mut self, id: &WorkerId) {
        for model in self.held_models(id) {
            self.leave(id, &model);
        }
    }

    /// A request of a model has left a worker, which may not have the model either.
    fn release_holder(&mut self, id: &WorkerId, model: &ModelName) {
        let worker = &self.workers[id];
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
        if let Some(worker) = self.workers.get_mut(id) {
            worker.sum_up();
        }
        if self.workers.get(id).is_some_and(|worker| worker.free_slots() > 0) {
            if !self.roomy.contains(id) {
                self.roomy.insert(id.clone());
            }
        } else {
            self.roomy.remove(id);
        }
    }

    /// # Panics
    /// When the index of workers with room is wrong.
    pub(crate) fn the_roomy_are_those_with_free_slots(&self) {
        let roomy = self.workers.iter().filter(|(_, worker)| worker.free_slots() > 0);
        assert!(roomy.map(|(id, _)| id).eq(self.roomy.iter()));
    }

    /// # Panics
    /// When the index of holders is wrong.
    pub(crate) fn the_holders_are_those_that_have_or_were_given(&self) {
        let mut holders: BTreeMap<&ModelName, BTreeSet<&WorkerId>> = BTreeMap::new();
        for (id, worker) in &self.workers {
            let resident = worker.residents().map(|(_, report)| &report.model);
            let booked = worker.bookings.values().map(|booking| &booking.model);
            for model in resident.chain(booked) {
                holders.entry(model).or_default().insert(id);
            }
        }
        let kept: BTreeMap<&ModelName, BTreeSet<&WorkerId>> = self
            .holders
            .iter()
            .map(|(model, ids)| (model, ids.iter().collect()))
            .collect();
        assert_eq!(kept, holders);
    }

    /// # Panics
    /// When a device's load is not the sum of what is booked there, or more than it has was given away.
    pub(crate) fn shares_add_up_and_are_never_given_twice(&self) {
        for (id, worker) in &self.workers {
            for (index, device) in worker.devices.iter().enumerate() {
                let booked: Vec<_> = worker.bookings.values().filter(|it| it.device == index).collect();
                assert_eq!(device.booked_count, booked.len());
                assert_eq!(device.load, booked.iter().map(|booking| booking.share).sum());
                let ours = booked
                    .iter()
                    .filter(|booking| booking.giver == Giver::Us && booking.is_measured);
                let given: Share = ours.clone().map(|booking| booking.share).sum();
                assert!(
                    given <= Share::FULL || ours.count() <= 1,
                    "{id} has {given:?} of device {index}"
                );
            }
            for request in &worker.assigned {
                assert!(
                    worker.bookings.contains_key(request),
                    "{request} runs for nothing on {id}"
                );
            }
        }
        let reserved: usize = self.workers.values().map(Worker::reserved_count).sum();
        assert_eq!(reserved, self.reserved_count);
    }
}

/// What is left of a request by a report.
#[derive(Debug)]
pub(crate) struct Left {
    pub(crate) request: RequestId,
    pub(crate) made: u32,
    pub(crate) share: Share,
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
