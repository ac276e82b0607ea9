//! What is decided again because time has passed: who is given up, what becomes worth a copy or free to be swapped,
//! which models are to be prefetched.

use std::collections::BTreeMap;

use flotilla_protocol::catalog::Policy;
use flotilla_protocol::{ModelName, Moment, RequestId, WorkerId};

use super::Dispatcher;
use crate::action::Action;
use crate::fleet::{Fleet, Worker};
use crate::micros::Micros;
use crate::queue::Line;
use crate::request::{Held, Job, Outlook};
use crate::timers::Timer;
use crate::triage::{TriageJob, given_up};

impl Dispatcher {
    /// Sees to it that there is a review while somebody waits.
    pub(super) fn schedule_review(&mut self, now: Moment) {
        if self.queue.is_empty() {
            self.timers.clear(&Timer::Review);
        } else if !self.timers.is_set(&Timer::Review) {
            self.timers
                .set(Timer::Review, now + self.settings.policy.review_interval);
        }
    }

    /// Looks at the next models in turn.
    pub(super) fn review(&mut self, now: Moment) {
        let count = self
            .queue
            .model_count()
            .min(self.settings.policy.review_models_max);
        for _ in 0..count {
            let after = self.reviewed.as_ref();
            let next = self
                .queue
                .model_after(after)
                .or_else(|| self.queue.model_after(None));
            let Some(model) = next.cloned() else { break };
            if self.mispriced.remove(&model) {
                self.reprice(now, &model);
            }
            self.triage(now, &model);
            self.prefetch(now, &model);
            self.touch(&model);
            self.reviewed = Some(model);
        }
    }

    /// Gives up the requests of a model without which more of the others are in time, and takes back those for which
    /// there is room again. Each line is judged by its part of what the model's holders can do.
    fn triage(&mut self, now: Moment, model: &ModelName) {
        let is_fifo = self
            .models
            .get(model)
            .is_some_and(|model| model.policy == Policy::Fifo);
        if is_fifo || !self.fleet.has_holder(model) {
            return;
        }
        for (rate, requests) in self.triage_lines(now, model) {
            let jobs: Vec<TriageJob> = requests.iter().map(|request| self.triage_job(request)).collect();
            let mut lost = given_up(Micros::from(now), rate.max(CAPACITY_MIN), &jobs)
                .into_iter()
                .peekable();
            for (index, request) in requests.iter().enumerate() {
                let outlook = match lost.next_if_eq(&index) {
                    Some(_) => Outlook::GivenUp,
                    None => Outlook::Hopeful,
                };
                if self.waiting(request).outlook != outlook {
                    self.stats.given_up += u64::from(outlook == Outlook::GivenUp);
                    self.set_outlook(now, request, outlook);
                }
            }
        }
    }

    /// The requests of a model that can be in time, those given up included, by the lines that they belong to, with
    /// the device-seconds a second that each line is entitled to.
    ///
    /// Capacity is divided by weight, and what a line does not need of its part goes to the others (water filling,
    /// from the line that needs least to that which needs most).
    fn triage_lines(&self, now: Moment, model: &ModelName) -> Vec<(f64, Vec<RequestId>)> {
        let mut lines: BTreeMap<Line, Vec<RequestId>> = BTreeMap::new();
        for request in self.queue.hopeful_of(model) {
            let line = self.waiting(request).line();
            lines.entry(line).or_default().push(request.clone());
        }
        let needs = self.models.line_demand(now, model);
        let need = |line: &Line| needs.get(line).copied().unwrap_or(0.0);
        let mut order: Vec<&Line> = lines
            .keys()
            .chain(needs.keys().filter(|it| !lines.contains_key(it)))
            .collect();
        let per_weight = |line: &Line| need(line) / self.queue.weight(line);
        order.sort_by(|left, right| per_weight(left).total_cmp(&per_weight(right)));
        let mut weights: f64 = order.iter().map(|line| self.queue.weight(line)).sum();
        let Some(example) = lines.values().flatten().next() else {
            return Vec::new();
        };
        let mut capacity = self.capacity_for(model, self.waiting(example));
        let mut entitled = BTreeMap::new();
        for line in order {
            let part = capacity * self.queue.weight(line) / weights;
            entitled.insert(line.clone(), part);
            capacity -= part.min(need(line));
            weights -= self.queue.weight(line);
        }
        lines
            .into_iter()
            .map(|(line, requests)| (entitled.get(&line).copied().unwrap_or(CAPACITY_MIN), requests))
            .collect()
    }

    fn triage_job(&self, request: &RequestId) -> TriageJob {
        match self.held.get(request) {
            Some(Held::Queued { job, place, .. }) => TriageJob {
                // Who has no target is never given up: it can always start in time.
                latest_start: match job.asked.target {
                    Some(_) => place.urgency.at,
                    None => Micros::NEVER,
                },
                work: job.least_work(),
            },
            _ => unreachable!("who stands in the queue waits"),
        }
    }

    /// Device-seconds a second that a model's holders have for it, in seconds of the fastest of their kinds: each
    /// device without what other models have booked. What is planned for is a part of it, as some time is always lost.
    fn capacity_for(&self, model: &ModelName, example: &Job) -> f64 {
        let fastest_s = example.least_work().as_secs_f64();
        let holders = self.fleet.holders(model);
        let devices = holders
            .filter(|(_, worker)| worker.takes_work())
            .map(|(_, worker)| {
                let index = worker.device_for(model);
                let price = example.price(worker.devices[index].kind);
                let speed = price.map_or(1.0, |price| fastest_s / price.work.as_secs_f64());
                let others = worker.bookings().map(|(_, booking)| booking);
                let others = others.filter(|it| it.device == index && it.model != *model);
                speed * (1.0 - others.map(|it| it.share.fraction()).sum::<f64>().min(1.0))
            });
        (devices.sum::<f64>() * self.settings.policy.planned_part).max(CAPACITY_MIN)
    }

    /// Asks a worker to bring a model nearer that waits and that nobody has.
    fn prefetch(&mut self, now: Moment, model: &ModelName) {
        if self.fleet.has_holder(model) {
            return;
        }
        let asked = self.prefetched.get(model);
        let repeat = self.settings.policy.prefetch_repeat;
        if asked.is_some_and(|asked| now.since(*asked) < repeat) {
            return;
        }
        let Some(worker) = least_loaded(&self.fleet, model) else {
            return;
        };
        if self.prefetched.len() >= PREFETCHED_COUNT_MAX {
            self.prefetched.retain(|_, asked| now.since(*asked) < repeat);
        }
        self.prefetched.insert(model.clone(), now);
        self.stats.prefetches += 1;
        let model = model.clone();
        self.push(Action::Prefetch { worker, model });
    }
}

/// The worker that will most likely load a model: that which has had it before, then the one with least to do.
fn least_loaded(fleet: &Fleet, model: &ModelName) -> Option<WorkerId> {
    let load = |worker: &Worker| worker.devices.iter().map(|device| device.load).min();
    let workers = fleet.iter().filter(|(_, worker)| worker.takes_work());
    let least = workers.min_by_key(|(id, worker)| (!worker.has_loaded(model), load(worker), *id));
    least.map(|(id, _)| id.clone())
}

/// Capacity of a model whose holders are booked by others: not nothing, as their requests end.
const CAPACITY_MIN: f64 = 0.01;
/// Models that are remembered as asked to be prefetched; more than wait for a load at once.
const PREFETCHED_COUNT_MAX: usize = 1024;
