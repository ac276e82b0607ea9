//! What the dispatcher learns about models, devices and profiles, and what follows for those who wait.

use std::time::Duration;

use flotilla_profile::{DeviceProfile, Signature};
use flotilla_protocol::assignment::Done;
use flotilla_protocol::catalog::CatalogEntry;
use flotilla_protocol::fleet::{Registration, RunningRequest};
use flotilla_protocol::{ModelName, Moment, WorkerId};

use super::Dispatcher;
use crate::dispatch::Dispatch;
use crate::fleet::{Booking, Giver, Left};
use crate::input::Arrival;
use crate::micros::Micros;
use crate::models::{Kind, Repricing};
use crate::pace;
use crate::policy::Readiness;
use crate::price::{Asked, Price};
use crate::request::{Held, Job, Run};
use crate::share::Share;

impl Dispatcher {
    /// The catalog has a model, newly or with other settings.
    pub fn handle_catalog(&mut self, now: Moment, entry: &CatalogEntry) {
        self.models.put(entry);
        self.reprice(now, &entry.name);
        self.settle(now);
    }

    /// A worker says what its devices are. It may come before or after its reports.
    pub fn handle_registration(&mut self, now: Moment, registration: &Registration) {
        let mut kinds = Vec::new();
        for device in &registration.devices {
            let kind = self.models.kind(&device.kind);
            self.models
                .learn_kind(kind, device.memory_bytes_per_s, device.cost);
            kinds.push(kind);
        }
        let workers_max = self.settings.workers_max;
        if self.fleet.register(&registration.worker, kinds, workers_max) {
            self.price_new_kinds(now);
            self.follow_bookings(now, &registration.worker);
            self.open(&registration.worker);
        }
        self.settle(now);
    }

    /// A profile of a model is there; an older one than that in use changes nothing.
    pub fn handle_profile(&mut self, now: Moment, model: &ModelName, profile: DeviceProfile) {
        if self.models.put_profile(model, profile) == Repricing::Needed {
            self.reprice(now, model);
        }
        self.settle(now);
    }

    /// A profile was removed: the model runs on an estimate there from now on.
    pub fn handle_profile_removed(&mut self, now: Moment, model: &ModelName, kind: &str) {
        if self.models.remove_profile(model, kind) == Repricing::Needed {
            self.reprice(now, model);
        }
        self.settle(now);
    }

    /// What profiles are asked about a request: its lengths and its target, fixed for its whole life.
    pub(super) fn ask(&mut self, now: Moment, arrival: &Arrival) -> Asked {
        let (model, prompt_tokens) = (&arrival.model, arrival.prompt_tokens);
        let deadline = arrival.deadline_in.map(|left| left + arrival.age);
        Asked {
            prompt_tokens,
            prediction: self
                .models
                .predict(now, model, prompt_tokens, arrival.output_tokens_max),
            target: self.models.target(model, deadline, arrival.slo),
        }
    }

    /// Prices a request for every kind of device that there is.
    pub(super) fn price(&mut self, job: &mut Job) {
        let kinds: Vec<Kind> = self.priced_kinds.iter().copied().collect();
        let models = &mut self.models;
        let prices = kinds
            .into_iter()
            .map(|kind| (kind, models.price(&job.model, kind, &job.asked)));
        job.prices = prices.collect();
    }

    /// Prices waiting requests of a model anew and sorts them again.
    pub(super) fn reprice(&mut self, now: Moment, model: &ModelName) {
        let requests = self.queue.requests_of(model);
        self.stats.repricings += u64::from(!requests.is_empty());
        for request in requests {
            self.sort_in_again(now, &request);
        }
        self.touch(model);
    }

    /// Prices all waiting requests anew when a kind of device has joined the fleet.
    pub(super) fn price_new_kinds(&mut self, now: Moment) {
        if self.fleet.kinds().all(|kind| self.priced_kinds.contains(&kind)) {
            return;
        }
        self.priced_kinds = self.fleet.kinds().collect();
        let models: Vec<ModelName> = self.queue.models().cloned().collect();
        for model in models {
            self.reprice(now, &model);
        }
    }

    /// Learns which sets of a worker's devices have models in parts. Such a set is of a kind of its own, `2xcpu`, with
    /// profiles and corrections of its own; it costs what its devices cost together.
    pub(super) fn learn_sets(&mut self, worker: &WorkerId) {
        let sets = self.fleet.new_sets(worker).into_iter().map(|(set, members)| {
            let kind = self.models.kind_of_set(&members);
            (set, kind)
        });
        let sets = sets.collect();
        self.fleet.follow_models(worker, sets);
    }

    /// Learns from a report what loads take, how large models are and how many requests a worker holds.
    pub(super) fn learn_from_report(&mut self, worker: &WorkerId) {
        let Some(known) = self.fleet.worker(worker) else {
            return;
        };
        let slots = known.slots();
        for device in &known.devices {
            self.models.learn_slots(device.kind, slots);
        }
        for model in &known.report.models {
            let load_time = model.load_ms.map(Duration::from_millis);
            self.models
                .learn_load(&model.model, load_time, model.weights_bytes);
        }
    }

    /// Lets the bookings of a worker follow what its newest report says is left of each request, and books what it
    /// lists and we did not give it, so that nobody gives a device away twice.
    pub(super) fn follow_bookings(&mut self, now: Moment, worker: &WorkerId) {
        let Some(known) = self.fleet.worker(worker) else {
            return;
        };
        let mut left = Vec::new();
        let mut strangers = Vec::new();
        for run in known.listed().iter().filter(|run| known.is_running(run)) {
            match known.booking(&run.request) {
                // Until its first token nothing is known of it that was not when it was booked.
                Some(_) if run.output_tokens == 0 => {}
                Some(booking) => {
                    let kind = known.devices[booking.device].kind;
                    let (model, signature) = (&booking.model, booking.asked.signature());
                    let time = self.models.time_left(model, kind, signature, run.output_tokens);
                    left.push(Left {
                        request: run.request.clone(),
                        made: run.output_tokens,
                        ends_at: now + time,
                    });
                }
                None => strangers.push((run.clone(), known.device_for(&run.model))),
            }
        }
        for (run, device) in strangers {
            let booking = self.stranger(now, worker, &run, device);
            self.fleet.book_listed(worker, &run.request, booking);
        }
        self.fleet.follow(now, worker, left);
    }

    /// What a request takes that a former leader gave to a worker, which we take over.
    pub(super) fn adopted(&mut self, now: Moment, job: &mut Job, worker: &WorkerId) -> Booking {
        self.price(job);
        let known = self
            .fleet
            .worker(worker)
            .expect("only a known worker's report can list a run");
        let device = known.device_for(&job.model);
        let price = job.price(known.devices[device].kind);
        let share = price.map_or(Share::FULL, |price| price.share);
        Booking {
            device,
            model: job.model.clone(),
            asked: job.asked,
            published: job.published,
            reads: self.reads(&job.model, known.devices[device].kind, job.asked.prompt_tokens),
            began: now,
            made: 0,
            made_at: now,
            share,
            kv_tokens: job.kv_tokens(),
            ends_at: now + price.map_or(Duration::ZERO, |price| price.expected),
            is_measured: price.is_some_and(Price::is_measured),
            giver: Giver::Former,
            victims: Vec::new(),
        }
    }

    /// What it takes to read a prompt on a kind of device.
    pub(super) fn reads(&self, model: &ModelName, kind: Kind, prompt_tokens: u32) -> Duration {
        let steps = self.models.steps(model, kind);
        steps.map_or(Duration::ZERO, |steps| pace::reads(steps, prompt_tokens))
    }

    /// What a request takes that somebody else gave to a worker.
    fn stranger(&mut self, now: Moment, worker: &WorkerId, run: &RunningRequest, device: usize) -> Booking {
        let known = self
            .fleet
            .worker(worker)
            .expect("a worker whose report was read is known");
        let kind = known.devices[device].kind;
        let output_tokens_max = STRANGER_OUTPUT_TOKENS_MAX.max(run.output_tokens);
        let prediction = self
            .models
            .predict(now, &run.model, run.prompt_tokens, output_tokens_max);
        let asked = Asked {
            prompt_tokens: run.prompt_tokens,
            prediction,
            target: None,
        };
        let price = self.models.price(&run.model, kind, &asked);
        Booking {
            device,
            model: run.model.clone(),
            asked,
            published: Micros::from(now),
            reads: self.reads(&run.model, kind, run.prompt_tokens),
            began: now,
            made: run.output_tokens,
            made_at: now,
            share: price.share,
            kv_tokens: u64::from(run.prompt_tokens) + u64::from(prediction.high),
            ends_at: now + price.expected,
            is_measured: price.is_measured(),
            giver: Giver::Stranger,
            victims: Vec::new(),
        }
    }

    /// Learns from an answer that is complete: how long it was, and how long it took. Comes before its capacity is
    /// released.
    pub(super) fn learn_from_end(&mut self, now: Moment, done: &Done) {
        let Some(Held::Assigned(run)) = self.held.get(&done.request) else {
            return;
        };
        if done.output_tokens == 0 {
            return;
        }
        let (model, line) = (run.job.model.clone(), run.job.line());
        let predicted = run.job.asked.prediction.high;
        // What ran on another kind than it was given to, as its model came there in parts, says nothing of the former.
        let worker = self.fleet.worker(&run.worker);
        let ran_on = worker.and_then(|worker| {
            let device = worker.booking(&done.request)?.device;
            Some(worker.devices.get(device)?.kind)
        });
        let timed = run
            .dispatch
            .as_ref()
            .filter(|it| it.readiness == Readiness::Ready && ran_on.is_none_or(|kind| kind == it.kind));
        let timed = timed.map(|dispatch| {
            (
                dispatch.kind,
                now.since(dispatch.at),
                self.mean_load(run, dispatch),
            )
        });
        self.queue
            .correct(&line, f64::from(done.output_tokens) - f64::from(predicted));
        self.models
            .learn_output(now, &model, done.prompt_tokens, done.output_tokens);
        let Some((kind, observed, load)) = timed else {
            return;
        };
        let signature = Signature {
            prompt_tokens: done.prompt_tokens,
            output_tokens: done.output_tokens,
        };
        // Not at once: sorting a long queue again is no part of a decision.
        if self.models.learn_time(&model, kind, signature, observed, load) == Repricing::Needed {
            self.mispriced.insert(model);
        }
    }

    /// What was booked on a run's device, the mean of its beginning and its end.
    fn mean_load(&self, run: &Run, dispatch: &Dispatch) -> f64 {
        let worker = self.fleet.worker(&run.worker);
        let device = worker.and_then(|worker| {
            let device = worker.booking(&run.job.request)?.device;
            worker.devices.get(device)
        });
        let at_end = device.map_or(dispatch.load, |device| device.load);
        (dispatch.load + at_end).fraction() / 2.0
    }
}

/// The longest answer that is expected of a request of which nothing is known.
const STRANGER_OUTPUT_TOKENS_MAX: u32 = 1024;
