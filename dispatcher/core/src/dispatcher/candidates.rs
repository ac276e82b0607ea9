//! Which devices may take a request, when, and at what cost.

use std::time::Duration;

use flotilla_profile::LoadTier;
use flotilla_protocol::catalog::Policy;
use flotilla_protocol::{ModelName, Moment, WorkerId};

use super::Dispatcher;
use super::placement::aim;
use super::survey::{Census, Holder, KvRoom, Opening, Survey};
use crate::fleet::Worker;
use crate::micros::micros;
use crate::policy::{Aim, Candidate, Readiness, Room};
use crate::price::Price;
use crate::request::Job;
use crate::swap::Surroundings;

/// Which devices without a slot are candidates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Foresight {
    /// One that serves in time, if that is to be known: what is given away now goes to others.
    AnyInTime,
    /// All.
    All,
}

impl Dispatcher {
    /// Every device that may take a request now or later. Devices in `claimed` are left to those before it.
    ///
    /// Workers that have the model come first. Others are looked at only when none of them serves: when nobody has
    /// the model, when the queue is worth one more copy, or when only another copy meets the target and nothing has
    /// to go for it.
    pub(super) fn candidates<'a>(
        &'a self,
        survey: &mut Survey<'a>,
        job: &'a Job,
        claimed: &[(WorkerId, usize)],
        foresight: Foresight,
    ) -> Vec<Candidate<'a>> {
        let mut candidates = self.holding(survey, job, claimed, foresight);
        if is_served(job, &candidates) {
            return candidates;
        }
        let may_evict = self.is_worth_a_copy(survey, job, &candidates, foresight);
        let on_time_later = candidates.iter().any(|candidate| candidate.slack_us >= 0);
        if !may_evict && (aim(job) != Aim::Target || on_time_later) {
            return candidates;
        }
        let known = match self.is_reserved(job) {
            true => None,
            false => survey.swaps[usize::from(may_evict)].take(),
        };
        let openings = known.unwrap_or_else(|| self.openings(survey.now, job, may_evict));
        for opening in openings.iter().filter(|(id, ..)| job.may_go_to(id)) {
            candidates.extend(self.without_model(survey, job, opening, claimed));
        }
        if !self.is_reserved(job) {
            survey.swaps[usize::from(may_evict)] = Some(openings);
        }
        candidates
    }

    /// Where a request's model could be loaded on workers with room that do not have it.
    fn openings(&self, now: Moment, job: &Job, may_evict: bool) -> Vec<Opening<'_>> {
        let excluded = self.exclusions.of(&job.model);
        let may_take = |id: &WorkerId| !excluded.is_some_and(|ids| ids.contains_key(id));
        let others = self.fleet.roomy();
        let others = others.filter(|(id, _)| may_take(id) && !self.fleet.holds(id, &job.model));
        let surroundings = self.surroundings(now);
        let openings = others.flat_map(|(id, worker)| {
            let swaps = surroundings.swaps(worker, &job.model, &job.request, may_evict);
            swaps.map(move |swap| (id, worker, swap))
        });
        openings.collect()
    }

    /// The devices that have a request's model.
    fn holding<'a>(
        &'a self,
        survey: &mut Survey<'a>,
        job: &'a Job,
        claimed: &[(WorkerId, usize)],
        foresight: Foresight,
    ) -> Vec<Candidate<'a>> {
        let mut candidates = Vec::new();
        for holder in &survey.census.holders {
            if self.fleet.at(holder.worker).free_slots() > 0 || foresight == Foresight::All {
                candidates.extend(self.with_model(survey, job, holder, claimed));
            }
        }
        let is_in_time = |it: &Candidate<'_>| it.slack_us >= 0;
        if foresight == Foresight::AnyInTime && aim(job) == Aim::Target && !candidates.iter().any(is_in_time)
        {
            let Census { holders, full } = &survey.census;
            let mut places = (full.in_time..full.indices.len()).chain(0..full.in_time);
            let found = places.find_map(|place| {
                let candidate = self.with_model(survey, job, &holders[full.indices[place]], claimed);
                Some((place, candidate.filter(is_in_time)?))
            });
            if let Some((place, candidate)) = found {
                survey.census.full.in_time = place;
                candidates.push(candidate);
            }
        }
        candidates
    }

    /// A worker that has the model, is loading it, or was given requests of it.
    fn with_model<'a>(
        &'a self,
        survey: &Survey<'a>,
        job: &'a Job,
        holder: &Holder,
        claimed: &[(WorkerId, usize)],
    ) -> Option<Candidate<'a>> {
        let device = holder.device;
        let worker = self.fleet.at(holder.worker);
        let id = &worker.report.worker;
        if !job.may_go_to(id) {
            return None;
        }
        let price = job.price(worker.devices[device].kind)?;
        let is_claimed = is_claimed(claimed, id, device);
        let spot = Spot {
            id,
            worker,
            device,
            price,
            room: survey.room(job, worker, device, price, is_claimed, holder.kv_room),
            readiness: holder.readiness,
            ready_in: holder.ready_in,
            cost: price.cost_with(Duration::ZERO),
            victims: Vec::new(),
        };
        Some(self.candidate(survey, job, spot))
    }

    /// A device that the model would have to be loaded on.
    fn without_model<'a>(
        &self,
        survey: &Survey<'a>,
        job: &'a Job,
        &(id, worker, ref swap): &Opening<'a>,
        claimed: &[(WorkerId, usize)],
    ) -> Option<Candidate<'a>> {
        let device = swap.device;
        let price = job.price(worker.devices[device].kind)?;
        let is_claimed = is_claimed(claimed, id, device);
        let report = worker.model(&job.model);
        let kv_room = report.and_then(|report| KvRoom::of(worker, report));
        let takes = swap.load_time + swap.regret;
        let spot = Spot {
            id,
            worker,
            device,
            price,
            room: survey.room(job, worker, device, price, is_claimed, kv_room),
            readiness: Readiness::Absent,
            ready_in: takes,
            cost: price.cost_with(takes),
            victims: swap.victims.clone(),
        };
        Some(self.candidate(survey, job, spot))
    }

    fn candidate<'a>(&self, survey: &Survey<'a>, job: &Job, spot: Spot<'a>) -> Candidate<'a> {
        let now = survey.now;
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
        if let Some(steps) = survey.steps(device.kind) {
            let pace = spot.worker.crew(spot.device, &self.models).at(now, device);
            let prospect = pace.with(&job.model, steps, &job.asked, job.published, starts_in);
            candidate.ends_in = prospect.whole;
            candidate.slack_us = prospect.slack_us;
            let spares = spot.room == Room::Now && self.spares_others(survey, job, spot.price);
            let tolerance = self.settings.policy.harm_tolerance;
            if spares && pace.is_harmed_by(&job.model, steps, job.asked.prompt_tokens, tolerance) {
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
    fn spares_others(&self, survey: &Survey<'_>, job: &Job, price: &Price) -> bool {
        let is_fifo = survey.policy_of(job) == Policy::Fifo;
        let waits = |since: Moment| survey.now.since(since) >= self.settings.policy.reserve_after;
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

    /// Whether one more copy of a model pays for itself: nobody has it, or the holders would need several times as
    /// long as the load takes until they have room and the queue is done.
    fn is_worth_a_copy(
        &self,
        survey: &Survey<'_>,
        job: &Job,
        holders: &[Candidate<'_>],
        foresight: Foresight,
    ) -> bool {
        let count = holders.len() + survey.unlisted(holders, foresight);
        if count == 0 {
            return true;
        }
        let full = match foresight {
            Foresight::AnyInTime => (survey.census.full.first_free, survey.census.full.is_coming),
            Foresight::All => (None, false),
        };
        let starts_in = holders.iter().map(|holder| holder.starts_in);
        let first_free = starts_in.chain(full.0).min().unwrap_or_default();
        let is_loading = |holder: &Candidate<'_>| holder.readiness == Readiness::Loading;
        let copies_on_their_way = full.1 || holders.iter().any(is_loading);
        let (live_work_us, load_us) = *survey.copy_us.get_or_init(|| self.copy_us(&job.model));
        let drain_us = live_work_us / i64::try_from(count).unwrap_or(i64::MAX);
        !copies_on_their_way && micros(first_free).saturating_add(drain_us) > load_us
    }

    /// Device time that a model's queue needs, and what it takes to make one more copy worth its load, in microseconds.
    fn copy_us(&self, model: &ModelName) -> (i64, i64) {
        let kinds = self.priced_kinds.iter();
        let load_time = kinds.map(|kind| self.models.load_time(model, *kind, LoadTier::Host));
        let load_time = load_time.min().unwrap_or_default();
        let worth = load_time.mul_f64(self.settings.policy.copy_gain);
        (self.queue.live_work_us(model), micros(worth))
    }
}

impl Survey<'_> {
    /// How many of the holders without a slot are not among these candidates.
    pub(super) fn unlisted(&self, candidates: &[Candidate<'_>], foresight: Foresight) -> usize {
        let listed = candidates.iter().filter(|it| it.room == Room::NoSlot);
        match foresight {
            Foresight::AnyInTime => self.census.full.indices.len() - listed.count(),
            Foresight::All => 0,
        }
    }

    /// Whether a request can be given to a device now.
    fn room(
        &self,
        job: &Job,
        worker: &Worker,
        device: usize,
        price: &Price,
        is_claimed: bool,
        kv_room: Option<KvRoom>,
    ) -> Room {
        let state = &worker.devices[device];
        if worker.free_slots() == 0 {
            Room::NoSlot
        } else if is_claimed || !worker.is_open_to(device, &job.request) {
            Room::Reserved
        } else if price.is_measured()
            && self.policy_of(job) != Policy::Fifo
            && !state.has_room_for(price.share)
        {
            Room::NoShare
        } else if kv_room.is_none_or(|room| room.takes(job.kv_tokens())) {
            Room::Now
        } else {
            Room::NoKv
        }
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

fn is_claimed(claimed: &[(WorkerId, usize)], id: &WorkerId, device: usize) -> bool {
    claimed
        .iter()
        .any(|(worker, index)| worker == id && *index == device)
}
