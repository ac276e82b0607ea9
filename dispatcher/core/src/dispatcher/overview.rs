//! How the queue and the fleet stand.

use std::collections::BTreeMap;
use std::time::Duration;

use flotilla_protocol::assignment::Done;
use flotilla_protocol::fleet::ModelState;
use flotilla_protocol::{ModelName, Moment};

use super::Dispatcher;
use crate::models::Kind;
use crate::observation::{Observation, TargetOutcome};
use crate::overview::{KindOverview, ModelOverview, Overview, ProfileOverview, Waiting};
use crate::policy::Readiness;
use crate::request::{Held, Job};

impl Dispatcher {
    /// How everything stands. Costs as much as there are models, devices and requests on workers, however many wait.
    #[must_use]
    pub fn overview(&self, now: Moment) -> Overview {
        let mut running = BTreeMap::new();
        for (_, worker) in self.fleet.iter() {
            for (_, booking) in worker.bookings() {
                *running.entry(&booking.model).or_default() += 1;
            }
        }
        let asked_for = self.models.iter().filter(|(_, model)| model.is_asked_for());
        Overview {
            models: asked_for
                .map(|(name, _)| {
                    self.model_overview(now, name, running.get(name).copied().unwrap_or_default())
                })
                .collect(),
            kinds: self.kind_overviews(now),
            profiles: self.profile_overviews(),
            workers: self.fleet.len(),
            held: self.held.len(),
        }
    }

    /// The next thing to count; call until `None` after every `handle_*`.
    #[must_use]
    pub fn poll_observation(&mut self) -> Option<Observation> {
        self.observations.pop()
    }

    /// An answer is complete. Comes before its request is taken from where it stands.
    pub(super) fn observe_end(&mut self, now: Moment, done: &Done) {
        let Some(Held::Assigned(run)) = self.held.get(&done.request) else {
            return;
        };
        let job = &run.job;
        if done.output_tokens == 0 || job.verdict.is_some() {
            return;
        }
        let age = job.age(now);
        let target = job.asked.target.as_ref();
        let within = target.and_then(|target| target.end_within(done.prompt_tokens, done.output_tokens));
        let target = match within {
            None => TargetOutcome::None,
            Some(within) if age <= within => TargetOutcome::Met,
            Some(_) => TargetOutcome::Missed,
        };
        let ready = run
            .dispatch
            .as_ref()
            .filter(|it| it.readiness == Readiness::Ready);
        let ready = ready.filter(|it| !it.ends_in.is_zero());
        let forecast_ratio = ready.map(|it| now.since(it.at).as_secs_f64() / it.ends_in.as_secs_f64());
        self.observations.push(|| Observation::Answered {
            model: job.model.clone(),
            class: job.class,
            age,
            output_tokens: done.output_tokens,
            predicted_tokens: job.asked.prediction.high,
            target,
            forecast_ratio,
        });
    }

    /// A request ends without an answer that it should have had.
    pub(super) fn observe_missed(&mut self, job: &Job) {
        if job.asked.target.is_some() {
            self.observations.push(|| Observation::Missed {
                model: job.model.clone(),
                class: job.class,
            });
        }
    }

    fn model_overview(&self, now: Moment, model: &ModelName, running: usize) -> ModelOverview {
        let of_queue = self.queue.census(model);
        let ready = self.fleet.holders(model).filter(|(_, worker)| {
            let report = worker.model(model);
            report.is_some_and(|report| report.state == ModelState::Ready)
        });
        let waiting = of_queue.classes.map(|of_class| Waiting {
            count: of_class.count,
            oldest: of_class.oldest.map_or(Duration::ZERO, |sequence| {
                let request = self.sequences.get(&sequence);
                let job = request.and_then(|request| self.held.get(request)?.job());
                job.map_or(Duration::ZERO, |job| job.age(now))
            }),
            slack_s: of_class.latest_start.map(|at| seconds(at.since(now.into()))),
        });
        ModelOverview {
            model: model.clone(),
            waiting,
            given_up: of_queue.given_up,
            late: of_queue.late,
            running,
            residents: ready.count(),
        }
    }

    fn profile_overviews(&self) -> Vec<ProfileOverview> {
        let profiles = self.models.iter().flat_map(|(name, model)| {
            let compared = model
                .profiles()
                .filter(|(_, profiled)| profiled.correction.samples() > 0);
            compared.map(move |(kind, profiled)| ProfileOverview {
                model: name.clone(),
                kind: self.models.kind_name(kind).to_owned(),
                factor: profiled.correction.factor(),
                is_alarming: profiled.correction.drift().is_alarming,
            })
        });
        profiles.collect()
    }

    fn kind_overviews(&self, now: Moment) -> Vec<KindOverview> {
        let mut kinds = self.supply();
        let wanted = self.wanted_devices(now, &kinds);
        if kinds.is_empty() && !wanted.is_empty() {
            kinds.insert(self.unknown_kind, Supply::default());
        }
        let told = kinds.into_iter().map(|(kind, supply)| {
            let wanted = wanted.get(&kind).copied().unwrap_or_default();
            KindOverview {
                kind: self.models.kind_name(kind).to_owned(),
                workers: supply.workers,
                devices: supply.devices,
                booked: supply.booked,
                wanted: supply.workers_with(wanted / self.settings.policy.planned_part),
            }
        });
        told.collect()
    }

    /// What there is of each kind of device.
    fn supply(&self) -> BTreeMap<Kind, Supply> {
        let mut kinds: BTreeMap<Kind, Supply> = BTreeMap::new();
        for (_, worker) in self.fleet.iter() {
            let own = worker.own_devices();
            for (index, device) in own.iter().enumerate() {
                let supply = kinds.entry(device.kind).or_default();
                supply.devices += 1;
                supply.booked += device.load.fraction();
                let is_first = own[..index].iter().all(|other| other.kind != device.kind);
                supply.workers += usize::from(is_first);
            }
        }
        kinds
    }

    /// Devices of each kind that would always be busy: with what is asked for lately, and with what waits, which is to
    /// be worked off within the patience of its class. A model counts for the kind that most of its holders are of.
    fn wanted_devices(&self, now: Moment, kinds: &BTreeMap<Kind, Supply>) -> BTreeMap<Kind, f64> {
        let policy = &self.settings.policy;
        let patience = [policy.patience_interactive, policy.patience_batch];
        let most_common = kinds.iter().max_by_key(|(_, supply)| supply.devices);
        let most_common = most_common.map_or(self.unknown_kind, |(kind, _)| *kind);
        let mut wanted = BTreeMap::new();
        for (name, _) in self.models.iter().filter(|(_, model)| model.is_asked_for()) {
            let lately: f64 = self.models.line_demand(now, name).values().sum();
            let classes = self.queue.census(name).classes;
            let anybody_waits = classes.iter().any(|of_class| of_class.count > 0);
            let each = classes.iter().zip(patience);
            let waiting: f64 = each
                .map(|(of_class, patience)| seconds(of_class.work_us) / patience.as_secs_f64().max(1.0))
                .sum();
            if anybody_waits || lately > NEXT_TO_NOTHING {
                *wanted
                    .entry(self.kind_of(name).unwrap_or(most_common))
                    .or_default() += lately + waiting;
            }
        }
        wanted
    }

    /// The kind of devices that most workers which have a model hold it on.
    fn kind_of(&self, model: &ModelName) -> Option<Kind> {
        let mut holders: BTreeMap<Kind, usize> = BTreeMap::new();
        for (_, worker) in self.fleet.holders(model) {
            let device = worker.device_for(model);
            let first = worker.members(device).next()?;
            *holders.entry(worker.devices[first].kind).or_default() += 1;
        }
        let most = holders.into_iter().max_by_key(|(_, count)| *count);
        most.map(|(kind, _)| kind)
    }
}

/// What there is of a kind of device.
#[derive(Debug, Clone, Copy, Default)]
struct Supply {
    workers: usize,
    devices: usize,
    booked: f64,
}

impl Supply {
    /// How many workers have so many devices.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "a fleet's size"
    )]
    fn workers_with(self, devices: f64) -> usize {
        let per_worker = self.devices.max(1) as f64 / self.workers.max(1) as f64;
        (devices / per_worker).ceil().max(0.0) as usize
    }
}

#[expect(clippy::cast_precision_loss, reason = "spans are far below 2^52 microseconds")]
fn seconds(us: i64) -> f64 {
    us as f64 / 1e6
}

/// Devices that a demand which dies away is not worth: a hundredth.
const NEXT_TO_NOTHING: f64 = 0.01;
