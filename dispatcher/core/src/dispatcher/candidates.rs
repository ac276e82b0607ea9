//! Which devices may take a request, when, and at what cost.

use std::time::Duration;

use flotilla_profile::LoadTier;
use flotilla_protocol::catalog::Policy;
use flotilla_protocol::fleet::ModelState;
use flotilla_protocol::{ModelName, Moment, WorkerId};

use super::Dispatcher;
use super::placement::aim;
use crate::fleet::Worker;
use crate::micros::micros;
use crate::pace::Pace;
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
        let may_take = |id: &WorkerId| job.may_go_to(id) && !excluded.is_some_and(|ids| ids.contains_key(id));
        let holders = self.fleet.holders(&job.model);
        let holders = holders.filter(|(id, worker)| may_take(id) && worker.takes_work());
        let mut candidates: Vec<_> = holders
            .filter_map(|holder| self.with_model(now, job, holder, claimed))
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
        for other in others {
            let surroundings = self.surroundings(now);
            let swaps = surroundings.swaps(other.1, &job.model, &job.request);
            let swaps = swaps.filter(|swap| is_worth_a_copy || swap.victims.is_empty());
            candidates.extend(swaps.filter_map(|swap| self.without_model(now, job, other, swap, claimed)));
        }
        candidates
    }

    /// A worker that has the model, is loading it, or was given requests of it.
    fn with_model<'a>(
        &'a self,
        now: Moment,
        job: &'a Job,
        (id, worker): (&'a WorkerId, &'a Worker),
        claimed: &[(WorkerId, usize)],
    ) -> Option<Candidate<'a>> {
        let device = worker.device_for(&job.model);
        let price = job.price(worker.devices[device].kind)?;
        let (readiness, ready_in) = self.ready_in(now, &job.model, worker, device)?;
        let spot = Spot {
            id,
            worker,
            device,
            price,
            room: self.room(job, worker, device, price, is_claimed(claimed, id, device)),
            readiness,
            ready_in,
            cost: price.cost_with(Duration::ZERO),
            victims: Vec::new(),
        };
        Some(self.candidate(now, job, spot))
    }

    /// A device that the model would have to be loaded on.
    fn without_model<'a>(
        &'a self,
        now: Moment,
        job: &'a Job,
        (id, worker): (&'a WorkerId, &'a Worker),
        swap: Swap,
        claimed: &[(WorkerId, usize)],
    ) -> Option<Candidate<'a>> {
        let Swap {
            device,
            load_time,
            regret,
            victims,
        } = swap;
        let price = job.price(worker.devices[device].kind)?;
        let spot = Spot {
            id,
            worker,
            device,
            price,
            room: self.room(job, worker, device, price, is_claimed(claimed, id, device)),
            readiness: Readiness::Absent,
            ready_in: load_time + regret,
            cost: price.cost_with(load_time + regret),
            victims,
        };
        Some(self.candidate(now, job, spot))
    }

    fn candidate<'a>(&self, now: Moment, job: &Job, spot: Spot<'a>) -> Candidate<'a> {
        let device = &spot.worker.devices[spot.device];
        let frees_in = device.frees_in(now);
        let starts_in = match spot.room {
            Room::Now => spot.ready_in,
            _ => spot.ready_in.max(frees_in),
        };
        let mut candidate = Candidate {
            worker: spot.id,
            device: spot.device,
            is_avoided: job.avoid.as_ref() == Some(spot.id),
            room: spot.room,
            readiness: spot.readiness,
            starts_in,
            ends_in: starts_in + spot.price.expected,
            slack_us: i64::MAX,
            cost: spot.cost,
            load: device.load,
            is_measured: spot.price.is_measured(),
            free_slots: spot.worker.free_slots(),
            victims: spot.victims,
        };
        let kind = device.kind;
        if let Some(steps) = self.models.steps(&job.model, kind) {
            let bookings = spot.worker.bookings().map(|(_, booking)| booking);
            let here = bookings.filter(|booking| booking.device == spot.device);
            let pace = Pace::new(now, device, here, |model| self.models.steps(model, kind));
            let prospect = pace.with(&job.model, steps, &job.asked, job.published, starts_in);
            candidate.ends_in = prospect.whole;
            candidate.slack_us = prospect.slack_us;
            let spares = spot.room == Room::Now && self.spares_others(now, job, spot.price);
            if spares && pace.is_harmed_by(&job.model, steps, job.asked.prompt_tokens) {
                let later = frees_in.saturating_sub(starts_in);
                candidate.room = Room::Harm;
                candidate.starts_in += later;
                candidate.ends_in += later;
                candidate.slack_us = prospect.slack_us.saturating_sub(micros(later));
            }
        }
        candidate
    }

    /// Whether a request leaves a device alone where it would make others late. With the policy fifo nobody does; who
    /// has no target to meet does so for some time; and estimates are no ground for a wait.
    fn spares_others(&self, now: Moment, job: &Job, price: &Price) -> bool {
        let is_fifo = self.policy_of(job) == Policy::Fifo;
        let waits = |since: Moment| now.since(since) >= self.settings.policy.reserve_after;
        let is_tired = aim(job) != Aim::Target && job.blocked_since.is_some_and(waits);
        price.is_measured() && !is_fifo && !is_tired
    }

    /// How a request's model is placed. Who measures a worker is to find out what it can do, not what a profile says
    /// of it.
    pub(super) fn policy_of(&self, job: &Job) -> Policy {
        if job.only_worker.is_some() {
            return Policy::Fifo;
        }
        let model = self.models.get(&job.model);
        model.map_or(Policy::default(), |model| model.policy)
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
        } else if price.is_measured()
            && self.policy_of(job) != Policy::Fifo
            && !state.has_room_for(price.share)
        {
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
            _ if worker.is_leaving(model) => None,
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

/// A device as it is looked at for a request.
struct Spot<'a> {
    id: &'a WorkerId,
    worker: &'a Worker,
    device: usize,
    price: &'a Price,
    room: Room,
    readiness: Readiness,
    ready_in: Duration,
    cost: f64,
    victims: Vec<ModelName>,
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
