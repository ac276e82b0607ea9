//! Ollama's scheduler, before a fleet as if all devices were in one machine.
//!
//! Modelled is version 0.3.14, whose defaults give a model four slots at once (later ones give it one):
//!
//! * One loop takes requests in the order of their arrival (512 may wait, more are refused), each to the end
//!   of its placement before it looks at the next. Who is at the head and cannot be placed holds up
//!   everybody.
//! * A model that is loaded takes its requests at once; beyond its slots they wait in a line of its own. A
//!   model is loaded at most once, however many devices are idle.
//! * A model that is not loaded goes to the device with the most free memory that holds it whole with keys
//!   and values for four full contexts; if none does, for one. While any model is being loaded the loop
//!   waits, unless the head's model is loaded.
//! * When it fits nowhere, or three models for each device are loaded, one is evicted: the first idle one in
//!   the order of keep-alive, equals in any order; without an idle one the first of all, which leaves when
//!   its requests have ended. The loop waits until some model has left, which is noticed 250 ms later, and
//!   begins again.
//! * An idle model leaves five minutes after its last request ended.
//!
//! Not modelled: layers on the CPU (a model that no empty device holds is refused), several devices for one
//! model, readiness that is polled, memory that comes back slowly or is estimated wrongly, and the races and
//! deadlocks of that version, all of which would only slow it down. A load outlives the client that asked
//! first.

mod gpu;
mod runner;

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::time::Duration;

use flotilla_protocol::assignment::{AssignReply, AttemptEnd, Done};
use flotilla_protocol::fleet::{ModelState, Report};
use flotilla_protocol::request::KeepAlive;
use flotilla_protocol::{Attempt, ModelName, Moment, RequestId, WorkerId};

use super::assignment;
use super::departures::Departures;
use crate::fleet::{FleetSpec, ModelSpec};
use crate::policy::{Arriving, EndReason, Intake, Order, Policy};
use crate::random::Random;
use gpu::Gpu;
use runner::{Runner, Stage};

/// The scheduler. Its fleet is that of [`for_ollama`].
#[derive(Debug)]
pub struct Ollama {
    models: BTreeMap<ModelName, ModelSpec>,
    gpus: Vec<Gpu>,
    runners: BTreeMap<ModelName, Runner>,
    pending: VecDeque<Arriving>,
    /// The loop waits until some model has left.
    awaits_unload: bool,
    /// When it will be noticed that a model has left.
    unloads_seen: BTreeSet<Moment>,
    model_of: HashMap<RequestId, ModelName>,
    departures: Departures,
    random: Random,
    orders: VecDeque<Order>,
}

/// A fleet as Ollama runs it: no more sequences than it has slots, and nothing leaves unless it says so.
#[must_use]
pub fn for_ollama(fleet: &FleetSpec) -> FleetSpec {
    let mut fleet = fleet.clone();
    for model in &mut fleet.models {
        model.slots = Some(SLOTS.min(model.slots.unwrap_or(SLOTS)));
    }
    fleet.limits.keep_alive = KeepAlive::UntilEvicted;
    fleet
}

impl Ollama {
    /// A scheduler before a fleet.
    #[must_use]
    pub fn before(fleet: &FleetSpec, seed: u64) -> Self {
        let models = fleet.models.iter();
        Self {
            models: models.map(|model| (model.name.clone(), model.clone())).collect(),
            gpus: fleet.devices.iter().map(Gpu::new).collect(),
            runners: BTreeMap::new(),
            pending: VecDeque::new(),
            awaits_unload: false,
            unloads_seen: BTreeSet::new(),
            model_of: HashMap::new(),
            departures: Departures::default(),
            random: Random::new(seed, RANDOM_STREAM),
            orders: VecDeque::new(),
        }
    }

    /// The pending loop: places the head again and again until it cannot.
    fn place_pending(&mut self, now: Moment) {
        while let Some(head) = self.pending.front() {
            if self.awaits_unload || !self.gpus.iter().all(Gpu::has_reported) {
                return;
            }
            let has_left = head.deadline.is_some_and(|deadline| deadline <= now);
            let is_loading = self.runners.values().any(|runner| runner.stage == Stage::Loading);
            match self.runners.get(&head.model).map(|runner| runner.stage) {
                _ if has_left => drop(self.pending.pop_front()),
                Some(Stage::Ready) => self.attach_head(now),
                Some(Stage::Loading) => return,
                None if is_loading => return,
                None => self.load_for_head(now),
            }
        }
    }

    /// Gives the head to the runner of its model.
    fn attach_head(&mut self, now: Moment) {
        let Some(head) = self.pending.pop_front() else {
            return;
        };
        let model = head.model.clone();
        let runner = self.runners.get_mut(&model).expect("its model has a runner");
        runner.attach(head);
        self.run_waiting(now, &model);
    }

    /// Loads the head's model if it fits somewhere; else asks for another to leave.
    fn load_for_head(&mut self, now: Moment) {
        let Some(head) = self.pending.front() else { return };
        let model = &self.models[&head.model];
        let is_full = self.runners.len() >= MODELS_PER_GPU * self.gpus.len();
        let place = (!is_full).then(|| gpu::place(&self.gpus, model)).flatten();
        let alone = self
            .runners
            .is_empty()
            .then(|| gpu::place_alone(&self.gpus, model));
        match place.or(alone.flatten()) {
            Some(place) => {
                let runner = Runner::new(place, Stage::Loading);
                self.gpus[runner.gpu].take(runner.pages);
                self.runners.insert(model.name.clone(), runner);
                self.attach_head(now);
            }
            None if self.runners.is_empty() => {
                if let Some(head) = self.pending.pop_front() {
                    self.fail(now, &head);
                }
            }
            None => self.evict_one(now),
        }
    }

    /// Tells one model to leave; the loop waits until some model has left.
    fn evict_one(&mut self, now: Moment) {
        let order = self.runners.iter();
        let mut order: Vec<_> = order
            .map(|(model, runner)| (runner.keep_alive, self.random.next(), model.clone()))
            .collect();
        order.sort();
        let is_idle = |model: &ModelName| self.runners[model].is_idle();
        let idle = order.iter().find(|(_, _, model)| is_idle(model));
        let Some((_, _, victim)) = idle.or(order.first()).cloned() else {
            return;
        };
        self.awaits_unload = true;
        if let Some(runner) = self.runners.get_mut(&victim) {
            runner.keep_alive = Duration::ZERO;
            runner.expires = None;
        }
        self.rest(now, &victim);
    }

    /// Sends on what waits for a slot of a model, first come first served.
    fn run_waiting(&mut self, now: Moment, model: &ModelName) {
        let Some(runner) = self.runners.get_mut(model) else {
            return;
        };
        while let Some(arriving) = runner.start_next(now) {
            if let Some(deadline) = arriving.deadline {
                self.departures.forget(deadline, &arriving.id);
            }
            self.model_of.insert(arriving.id.clone(), model.clone());
            self.orders.push_back(Order::Assign {
                worker: self.gpus[runner.gpu].worker.clone(),
                assignment: assignment(now, &arriving),
            });
        }
    }

    /// What follows when a model has lost a request: idle, it is unloaded at once or after its keep-alive.
    fn rest(&mut self, now: Moment, model: &ModelName) {
        let Some(runner) = self.runners.get_mut(model).filter(|runner| runner.is_idle()) else {
            return;
        };
        if runner.keep_alive > Duration::ZERO {
            runner.expires = Some(now + runner.keep_alive);
        } else {
            self.unload(now, model);
        }
    }

    fn unload(&mut self, now: Moment, model: &ModelName) {
        let Some(runner) = self.runners.remove(model) else {
            return;
        };
        self.gpus[runner.gpu].give_back(runner.pages);
        self.unloads_seen.insert(now + MEMORY_POLL);
        self.order_unload(runner.gpu, model);
    }

    fn order_unload(&mut self, gpu: usize, model: &ModelName) {
        self.orders.push_back(Order::Unload {
            worker: self.gpus[gpu].worker.clone(),
            model: model.clone(),
        });
    }

    fn fail(&mut self, now: Moment, arriving: &Arriving) {
        if let Some(deadline) = arriving.deadline {
            self.departures.forget(deadline, &arriving.id);
        }
        if arriving.deadline.is_none_or(|deadline| now < deadline) {
            self.refuse(arriving.id.clone());
        }
    }

    fn refuse(&mut self, request: RequestId) {
        let reason = EndReason::Refused;
        self.orders.push_back(Order::End { request, reason });
    }

    /// A request has left its runner; one that could not be loaded is gone.
    fn end(&mut self, now: Moment, request: &RequestId, has_failed: bool) {
        let Some(model) = self.model_of.remove(request) else {
            return;
        };
        if has_failed {
            self.refuse(request.clone());
        }
        let Some(runner) = self.runners.get_mut(&model) else {
            return;
        };
        runner.running -= 1;
        if has_failed && runner.stage == Stage::Loading {
            let (gpu, pages) = (runner.gpu, runner.pages);
            self.runners.remove(&model);
            self.gpus[gpu].give_back(pages);
        }
        self.run_waiting(now, &model);
        self.rest(now, &model);
        self.place_pending(now);
    }

    /// Once all devices have reported: what is resident from the start gets one runner each, on the device
    /// with the most free memory of those that hold it. Further copies leave.
    fn adopt(&mut self, now: Moment) {
        for (name, model) in &self.models {
            let holders = (0..self.gpus.len()).filter(|&gpu| self.gpus[gpu].resident.contains(name));
            let holders: Vec<_> = holders.collect();
            let is_full = self.runners.len() >= MODELS_PER_GPU * self.gpus.len();
            let place = (!is_full).then(|| gpu::place_among(&self.gpus, &holders, model));
            let place = place.flatten();
            for &gpu in holders
                .iter()
                .filter(|&&gpu| place.is_none_or(|place| place.gpu != gpu))
            {
                self.orders.push_back(Order::Unload {
                    worker: self.gpus[gpu].worker.clone(),
                    model: name.clone(),
                });
            }
            if let Some(place) = place {
                let mut runner = Runner::new(place, Stage::Ready);
                runner.expires = Some(now + runner.keep_alive);
                self.gpus[place.gpu].take(place.pages);
                self.runners.insert(name.clone(), runner);
            }
        }
    }
}

impl Policy for Ollama {
    fn intake(&self) -> Intake {
        Intake::Unbounded
    }

    fn handle_arrival(&mut self, now: Moment, arriving: &Arriving) {
        if self.pending.len() >= PENDING_MAX || !self.models.contains_key(&arriving.model) {
            return self.refuse(arriving.id.clone());
        }
        if let Some(deadline) = arriving.deadline {
            let reason = EndReason::DeadlineExceeded;
            self.departures.expect(deadline, &arriving.id, reason);
        }
        self.pending.push_back(arriving.clone());
        self.place_pending(now);
    }

    fn handle_report(&mut self, now: Moment, report: Report) {
        let Some(gpu) = self.gpus.iter().position(|gpu| gpu.worker == report.worker) else {
            return;
        };
        let is_first = !self.gpus[gpu].has_reported();
        self.gpus[gpu].learn(&report);
        if is_first && self.gpus.iter().all(Gpu::has_reported) {
            self.adopt(now);
        }
        let ready = report.models.iter();
        for model in ready.filter(|model| model.state == ModelState::Ready) {
            let runner = self.runners.get_mut(&model.model);
            if let Some(runner) = runner.filter(|runner| runner.gpu == gpu && runner.stage == Stage::Loading)
            {
                runner.stage = Stage::Ready;
                self.rest(now, &model.model);
            }
        }
        self.place_pending(now);
    }

    fn handle_done(&mut self, now: Moment, done: Done) {
        self.end(now, &done.request, done.end != AttemptEnd::Terminal);
    }

    fn handle_reply(
        &mut self,
        now: Moment,
        _worker: &WorkerId,
        request: &RequestId,
        _attempt: Attempt,
        reply: AssignReply,
    ) {
        if let AssignReply::Refused(_) = reply {
            self.end(now, request, true);
        }
    }

    fn handle_timeout(&mut self, now: Moment) {
        while let Some((request, reason)) = self.departures.next(now) {
            self.orders.push_back(Order::End { request, reason });
        }
        let expired = self.runners.iter();
        let expired = expired.filter(|(_, runner)| runner.expires.is_some_and(|at| at <= now));
        let expired: Vec<_> = expired.map(|(model, _)| model.clone()).collect();
        expired.iter().for_each(|model| self.unload(now, model));
        while self.unloads_seen.first().is_some_and(|at| *at <= now) {
            self.unloads_seen.pop_first();
            self.awaits_unload = false;
        }
        self.place_pending(now);
    }

    fn poll_timeout(&self) -> Option<Moment> {
        let expires = self.runners.values().filter_map(|runner| runner.expires).min();
        let seen = self.unloads_seen.first().copied();
        let due = [expires, seen, self.departures.poll_timeout()];
        due.into_iter().flatten().min()
    }

    fn poll_order(&mut self) -> Option<Order> {
        self.orders.pop_front()
    }
}

/// Sequences that one model runs at once, when there is memory for them.
const SLOTS: u32 = 4;
/// Requests that may wait for their placement.
const PENDING_MAX: usize = 512;
/// Models that may be loaded, for each device.
const MODELS_PER_GPU: usize = 3;
/// How long after a model left the first look at the memory finds it free.
const MEMORY_POLL: Duration = Duration::from_millis(250);
/// Of the numbers that equals are told apart with.
const RANDOM_STREAM: u64 = 0x011a;

#[cfg(test)]
mod tests;
