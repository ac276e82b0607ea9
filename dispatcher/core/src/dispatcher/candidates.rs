//! Which devices may take a request, when, and at what cost.

use std::time::Duration;

use flotilla_profile::LoadTier;
use flotilla_protocol::fleet::ModelState;
use flotilla_protocol::{ModelName, Moment, WorkerId};

use super::Dispatcher;
use super::placement::aim;
use crate::fleet::Worker;
use crate::micros::{Micros, micros};
use crate::policy::{Aim, Candidate, Readiness, Room};
use crate::price::Price;
use crate::request::Job;
use crate::swap::{Surroundings, Swap};

impl Dispatcher {
    /// Every device that may take a request now or later. Devices in `claimed` are left to those before it.
    ///
    /// Workers that have the model come first. Others are looked at only when none of them serves: when nobody has
    /// the model, when the queue is worth one more copy, or when only another copy meets the target and nothing has
    /// to go for it.
    pub(super) fn candidates<'a>(
        &'a self,
        now: Moment,
        job: &'a Job,
        claimed: &[(WorkerId, usize)],
    ) -> Vec<Candidate<'a>> {
        let excluded = self.exclusions.of(&job.model);
        let may_take = |id: &WorkerId| !excluded.is_some_and(|ids| ids.contains_key(id));
        let holders = self.fleet.holders(&job.model);
        let holders = holders.filter(|(id, worker)| may_take(id) && worker.takes_work());
        let mut candidates: Vec<_> = holders
            .filter_map(|(id, worker)| self.with_model(now, job, id, worker, claimed))
            .collect();
        if is_served(job, &candidates) {
            return candidates;
        }
        let is_worth_a_copy = self.is_worth_a_copy(&job.model, &candidates);
        let on_time_later = candidates.iter().any(|candidate| candidate.slack_us >= 0);
        if !is_worth_a_copy && (aim(job) != Aim::Target || on_time_later) {
            return candidates;
        }
        let others = self.fleet.roomy();
        let others = others.filter(|(id, _)| may_take(id) && !self.fleet.holds(id, &job.model));
        for (id, worker) in others {
            let copy = self.without_model(now, job, id, worker, claimed);
            candidates.extend(copy.filter(|copy| is_worth_a_copy || copy.victims.is_empty()));
        }
        candidates
    }

    /// A worker that has the model, is loading it, or was given requests of it.
    fn with_model<'a>(
        &'a self,
        now: Moment,
        job: &'a Job,
        id: &'a WorkerId,
        worker: &'a Worker,
        claimed: &[(WorkerId, usize)],
    ) -> Option<Candidate<'a>> {
        let device_index = worker.device_for(&job.model);
        let device = &worker.devices[device_index];
        let price = job.price(device.kind)?;
        let (readiness, ready_in) = self.ready_in(now, &job.model, worker, device_index)?;
        let room = self.room(
            job,
            worker,
            device_index,
            price,
            is_claimed(claimed, id, device_index),
        );
        let starts_in = match room {
            Room::Now => ready_in,
            _ => device.frees_in(now).max(ready_in),
        };
        Some(candidate(
            now,
            job,
            price,
            id,
            worker,
            Spot {
                device: device_index,
                room,
                readiness,
                starts_in,
                cost: price.cost_with(Duration::ZERO),
                victims: Vec::new(),
            },
        ))
    }

    /// A worker that would have to load the model. `None` when it has no room for it.
    fn without_model<'a>(
        &'a self,
        now: Moment,
        job: &'a Job,
        id: &'a WorkerId,
        worker: &'a Worker,
        claimed: &[(WorkerId, usize)],
    ) -> Option<Candidate<'a>> {
        let Swap {
            device,
            load_time,
            regret,
            victims,
        } = self.surroundings(now).swap(worker, &job.model, &job.request)?;
        let price = job.price(worker.devices[device].kind)?;
        let room = self.room(job, worker, device, price, is_claimed(claimed, id, device));
        let starts_in = match room {
            Room::Now => load_time,
            _ => worker.devices[device].frees_in(now) + load_time,
        };
        Some(candidate(
            now,
            job,
            price,
            id,
            worker,
            Spot {
                device,
                room,
                readiness: Readiness::Absent,
                starts_in: starts_in + regret,
                cost: price.cost_with(load_time + regret),
                victims,
            },
        ))
    }

    pub(super) fn surroundings(&self, now: Moment) -> Surroundings<'_> {
        Surroundings {
            now,
            settings: &self.settings.policy,
            models: &self.models,
            queue: &self.queue,
            fleet: &self.fleet,
        }
    }

    fn room(&self, job: &Job, worker: &Worker, device: usize, price: &Price, is_claimed: bool) -> Room {
        let state = &worker.devices[device];
        if worker.free_slots() == 0 {
            Room::NoSlot
        } else if is_claimed || !state.is_open_to(&job.request) {
            Room::Reserved
        } else if price.is_measured() && !state.has_room_for(price.share) {
            Room::NoShare
        } else if has_kv_room(job, worker) {
            Room::Now
        } else {
            Room::NoKv
        }
    }

    /// How far a model is on a worker that has it or was given requests of it; `None` when it is on its way out.
    fn ready_in(
        &self,
        now: Moment,
        model: &ModelName,
        worker: &Worker,
        device: usize,
    ) -> Option<(Readiness, Duration)> {
        let load_time = || {
            self.models
                .load_time(model, worker.devices[device].kind, LoadTier::Origin)
        };
        match worker.resident(model) {
            Some((_, report)) if report.state == ModelState::Ready => {
                Some((Readiness::Ready, Duration::ZERO))
            }
            Some((resident, report)) if report.state == ModelState::Loading => {
                let since = resident.loading_since.unwrap_or(now);
                Some((Readiness::Loading, load_time().saturating_sub(now.since(since))))
            }
            // It will be loaded for who was given there already.
            _ if worker.is_booked_for(model) => Some((Readiness::Loading, load_time())),
            Some(_) | None => None,
        }
    }

    /// Whether one more copy of a model pays for itself: nobody has it, or the holders would need several times as
    /// long as the load takes until they have room and the queue is done.
    fn is_worth_a_copy(&self, model: &ModelName, holders: &[Candidate<'_>]) -> bool {
        if holders.is_empty() {
            return true;
        }
        let devices = i64::try_from(holders.len()).unwrap_or(i64::MAX);
        let drain_us = self.queue.live_work_us(model) / devices;
        let first_free = holders
            .iter()
            .map(|holder| holder.starts_in)
            .min()
            .unwrap_or_default();
        let copies_on_their_way = holders
            .iter()
            .any(|holder| holder.readiness == Readiness::Loading);
        let kinds = self.priced_kinds.iter();
        let load_time = kinds
            .map(|kind| self.models.load_time(model, *kind, LoadTier::Host))
            .min();
        let load_us = micros(
            load_time
                .unwrap_or_default()
                .mul_f64(self.settings.policy.copy_gain),
        );
        !copies_on_their_way && micros(first_free).saturating_add(drain_us) > load_us
    }
}

/// Where a candidate stands, besides what its price says.
struct Spot {
    device: usize,
    room: Room,
    readiness: Readiness,
    starts_in: Duration,
    cost: f64,
    victims: Vec<ModelName>,
}

fn candidate<'a>(
    now: Moment,
    job: &Job,
    price: &Price,
    id: &'a WorkerId,
    worker: &Worker,
    spot: Spot,
) -> Candidate<'a> {
    let load = worker.devices[spot.device].load;
    let expected = price.expected_at(load + price.share);
    Candidate {
        worker: id,
        device: spot.device,
        is_avoided: job.avoid.as_ref() == Some(id),
        room: spot.room,
        readiness: spot.readiness,
        starts_in: spot.starts_in,
        ends_in: spot.starts_in + expected,
        slack_us: slack_us(now, job, price, spot.starts_in, expected),
        cost: spot.cost,
        load,
        is_measured: price.is_measured(),
        free_slots: worker.free_slots(),
        victims: spot.victims,
    }
}

/// How much later than in `starts_in` a request could start and still meet its target, where it takes `expected`.
fn slack_us(now: Moment, job: &Job, price: &Price, starts_in: Duration, expected: Duration) -> i64 {
    if price.start_within_us == i64::MAX {
        return i64::MAX;
    }
    let latest_start = job.published.0.saturating_add(price.start_within_us);
    let gained_us = micros(price.expected) - micros(expected);
    latest_start
        .saturating_sub(Micros::from(now).0)
        .saturating_sub(micros(starts_in))
        .saturating_add(gained_us)
}

/// Whether one of those that have the model takes the request at once and in time.
fn is_served(job: &Job, candidates: &[Candidate<'_>]) -> bool {
    let aim = aim(job);
    let serves = |candidate: &Candidate<'_>| {
        candidate.room == Room::Now && (aim != Aim::Target || candidate.slack_us >= 0)
    };
    candidates.iter().any(serves)
}

fn has_kv_room(job: &Job, worker: &Worker) -> bool {
    let kv_tokens_max = worker.model(&job.model).and_then(|report| report.kv_tokens_max);
    kv_tokens_max.is_none_or(|max| {
        let booked = worker.kv_tokens_booked(&job.model);
        booked == 0 || booked.saturating_add(job.kv_tokens()) <= max
    })
}

fn is_claimed(claimed: &[(WorkerId, usize)], id: &WorkerId, device: usize) -> bool {
    claimed
        .iter()
        .any(|(worker, index)| worker == id && *index == device)
}
