//! What is found out about devices once, for all requests of a model that are looked at in a moment.
//!
//! Whoever looks for a device asks each that has the model. Most of what they hear is the same for all of them, and
//! in a full fleet most devices have no slot anyway.

use std::cell::OnceCell;
use std::time::Duration;

use flotilla_profile::LoadTier;
use flotilla_protocol::catalog::Policy;
use flotilla_protocol::fleet::{LoadSource, ModelReport, ModelState};
use flotilla_protocol::{ModelName, Moment, WorkerId};

use super::Dispatcher;
use crate::fleet::Worker;
use crate::models::Kind;
use crate::pace::Steps;
use crate::policy::Readiness;
use crate::request::Job;
use crate::swap::Swap;

/// The devices that have a model, for those who look at them in a moment.
#[derive(Debug)]
pub(super) struct Survey<'a> {
    pub(super) now: Moment,
    /// How the model is placed.
    pub(super) policy: Policy,
    /// The model's steps, by kind of device.
    pub(super) steps: Vec<(Kind, Steps<'a>)>,
    pub(super) census: Census,
    /// What it takes to bring the model to other workers with room, found out when it is first asked: without and with
    /// victims, and without devices that are kept for somebody.
    pub(super) swaps: [Option<Vec<Opening<'a>>>; 2],
    /// Device time that the model's queue needs and that one more copy has to be worth, in microseconds.
    pub(super) copy_us: OnceCell<(i64, i64)>,
}

/// The devices that have a model. It holds until something changes in the fleet, whatever happens in the queue.
#[derive(Debug)]
pub(super) struct Census {
    pub(super) holders: Vec<Holder>,
    pub(super) full: Full,
}

/// A device that a model could be loaded on.
pub(super) type Opening<'a> = (&'a WorkerId, &'a Worker, Swap);

/// The holders without a slot.
#[derive(Debug)]
pub(super) struct Full {
    /// Indices among all holders.
    pub(super) indices: Vec<usize>,
    /// Time until the first of them can take more.
    pub(super) first_free: Option<Duration>,
    /// Whether the model is on its way to one of them.
    pub(super) is_coming: bool,
    /// The place in `indices` of the one that was last found to serve in time.
    pub(super) in_time: usize,
}

/// A device that has a model, is loading it, or was given requests of it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Holder {
    /// The worker's number.
    pub(super) worker: usize,
    pub(super) device: usize,
    pub(super) readiness: Readiness,
    /// Time until the model is resident.
    pub(super) ready_in: Duration,
    /// Memory for keys and values that the model has there, if it is bounded.
    pub(super) kv_room: Option<KvRoom>,
}

/// Memory for keys and values, in tokens.
#[derive(Debug, Clone, Copy)]
pub(super) struct KvRoom {
    pub(super) booked: u64,
    pub(super) max: u64,
}

impl Dispatcher {
    /// Asks the devices that have a model; `census` is what they said a moment ago, if nothing changed since.
    pub(super) fn survey<'a>(&'a self, now: Moment, model: &ModelName, census: Option<Census>) -> Survey<'a> {
        let known = self.models.get(model);
        Survey {
            now,
            policy: known.map_or(Policy::default(), |known| known.policy),
            steps: self.models.steps_by_kind(model).collect(),
            census: census.unwrap_or_else(|| self.census(now, model)),
            swaps: [None, None],
            copy_us: OnceCell::new(),
        }
    }

    fn census(&self, now: Moment, model: &ModelName) -> Census {
        let excluded = self.exclusions.of(model);
        let holders = self
            .fleet
            .holders(model)
            .filter(|(id, worker)| worker.takes_work() && !excluded.is_some_and(|ids| ids.contains_key(*id)));
        let holders = holders.filter_map(|(_, worker)| self.holder(now, model, worker));
        let holders: Vec<Holder> = holders.collect();
        let full = self.full(now, &holders);
        Census { holders, full }
    }

    fn full(&self, now: Moment, holders: &[Holder]) -> Full {
        let mut full = Full {
            indices: Vec::new(),
            first_free: None,
            is_coming: false,
            in_time: 0,
        };
        for (index, holder) in holders.iter().enumerate() {
            let worker = self.fleet.at(holder.worker);
            let device = &worker.devices[holder.device];
            if worker.free_slots() > 0 || !self.priced_kinds.contains(&device.kind) {
                continue;
            }
            let free_in = holder.ready_in.max(device.frees_in(now));
            full.indices.push(index);
            full.first_free = Some(full.first_free.map_or(free_in, |first| first.min(free_in)));
            full.is_coming |= holder.readiness == Readiness::Loading;
        }
        full
    }

    /// What a worker has to say of a model; nothing when it does not have it, or soon will not.
    pub(super) fn holder(&self, now: Moment, model: &ModelName, worker: &Worker) -> Option<Holder> {
        let resident = worker.resident(model);
        let report = resident.map(|(_, report)| report);
        let device = worker.device_by(model, report);
        let load_time = |is_near: bool| {
            let tier = match is_near {
                true => LoadTier::Host,
                false => LoadTier::Origin,
            };
            self.models.load_time(model, worker.devices[device].kind, tier)
        };
        let (readiness, ready_in) = match resident {
            // It is on its way out.
            _ if worker.is_leaving(model) => return None,
            Some((_, report)) if report.state == ModelState::Ready => (Readiness::Ready, Duration::ZERO),
            Some((resident, report)) if report.state == ModelState::Loading => {
                let since = resident.loading_since.unwrap_or(now);
                let takes = load_time(report.loaded_from == Some(LoadSource::Host));
                (Readiness::Loading, takes.saturating_sub(now.since(since)))
            }
            // It will be loaded for who was given there already.
            _ if worker.is_booked_for(model) => {
                let is_near = worker.has_in_host(model).unwrap_or(false);
                (Readiness::Loading, load_time(is_near))
            }
            Some(_) | None => return None,
        };
        Some(Holder {
            worker: worker.number,
            device,
            readiness,
            ready_in,
            kv_room: report.and_then(|report| KvRoom::of(worker, report)),
        })
    }
}

impl<'a> Survey<'a> {
    /// The steps of the model on a kind of device, when somebody asked for it there before.
    pub(super) fn steps(&self, kind: Kind) -> Option<Steps<'a>> {
        let known = self.steps.iter().find(|(known, _)| *known == kind);
        known.map(|(_, steps)| *steps)
    }

    /// How a request is placed. Who measures a worker is to find out what it can do, not what a profile says of it.
    pub(super) fn policy_of(&self, job: &Job) -> Policy {
        match job.only_worker {
            Some(_) => Policy::Fifo,
            None => self.policy,
        }
    }
}

impl KvRoom {
    /// What a worker reports that a model has, without what is booked.
    pub(super) fn of(worker: &Worker, report: &ModelReport) -> Option<Self> {
        let max = report.kv_tokens_max?;
        let booked = worker.kv_tokens_booked(&report.model);
        Some(Self { booked, max })
    }

    /// Whether so many tokens more fit; a model that nobody uses takes any.
    pub(super) fn takes(self, tokens: u64) -> bool {
        self.booked == 0 || self.booked.saturating_add(tokens) <= self.max
    }
}
