//! Devices that are kept for requests that found room nowhere for too long.

use std::time::Duration;

use flotilla_protocol::{ModelName, Moment, RequestId, WorkerId};

use super::Dispatcher;
use crate::request::{Held, Job, Outlook};

impl Dispatcher {
    /// Notes that there is no room for a request.
    pub(super) fn note_blocked(&mut self, now: Moment, request: &RequestId) {
        if let Some(Held::Queued { job, .. }) = self.held.get_mut(request) {
            job.blocked_since.get_or_insert(now);
        }
    }

    /// Whether a device is to be kept for a request that there is no room for: there has been none for long enough.
    pub(super) fn may_reserve(&self, now: Moment, job: &Job) -> bool {
        let blocked_for = job.blocked_since.map_or(Duration::ZERO, |since| now.since(since));
        let reserved_max = (self.fleet.device_count() / RESERVED_PART).max(1);
        job.outlook == Outlook::Hopeful
            && blocked_for >= self.settings.policy.reserve_after
            && self.fleet.reserved_count() < reserved_max
            && !self.is_reserved(job)
    }

    /// The device to keep for a request that there is no room for, if any.
    pub(super) fn to_keep(
        &self,
        now: Moment,
        job: &Job,
        first_free: Option<(WorkerId, usize)>,
    ) -> Option<(WorkerId, usize)> {
        if !self.may_reserve(now, job) {
            return None;
        }
        let (worker, device) = first_free.or_else(|| self.emptiest_device(job))?;
        let known = self.fleet.worker(&worker)?;
        let is_kept = known.devices[device].reserved_for.is_some() || known.kept_for().is_some();
        (!is_kept).then_some((worker, device))
    }

    /// Keeps a device for a waiting request.
    pub(super) fn reserve(
        &mut self,
        model: &ModelName,
        request: RequestId,
        worker: &WorkerId,
        device: usize,
    ) {
        self.fleet.reserve(worker, device, &request);
        self.stats.reservations += 1;
        self.reserved.entry(model.clone()).or_default().insert(request);
    }

    /// The device with least load among those that may take a request whose model nobody has.
    fn emptiest_device(&self, job: &Job) -> Option<(WorkerId, usize)> {
        let excluded = self.exclusions.of(&job.model);
        let workers = self
            .fleet
            .roomy()
            .filter(|(id, _)| job.may_go_to(id) && !excluded.is_some_and(|ids| ids.contains_key(*id)));
        let devices = workers.flat_map(|(id, worker)| {
            let devices = worker.own_devices().iter().enumerate();
            devices.map(move |(index, device)| (device.load, id, index))
        });
        devices.min().map(|(_, id, index)| (id.clone(), index))
    }

    /// Gives free the device that was kept for a request.
    pub(super) fn end_reservation(&mut self, model: &ModelName, request: &RequestId) {
        let Some(of_model) = self.reserved.get_mut(model) else {
            return;
        };
        if !of_model.remove(request) {
            return;
        }
        if of_model.is_empty() {
            self.reserved.remove(model);
        }
        if let Some(worker) = self.fleet.unreserve(request) {
            self.open(&worker);
        }
    }

    /// Whether a device is kept for a waiting request.
    pub(super) fn is_reserved(&self, job: &Job) -> bool {
        let of_model = self.reserved.get(&job.model);
        of_model.is_some_and(|requests| requests.contains(&job.request))
    }
}

/// At most one device of this many is kept for a request, and always one may be.
const RESERVED_PART: usize = 4;
