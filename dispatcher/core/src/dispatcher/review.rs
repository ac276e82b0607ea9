//! What is decided again because time has passed: who is given up, what becomes worth a copy or free to be swapped,
//! which models are to be prefetched.

use std::collections::BTreeMap;
use std::time::Duration;

use flotilla_protocol::catalog::Policy;
use flotilla_protocol::{ModelName, Moment, RequestId, WorkerId};

use super::Dispatcher;
use crate::action::Action;
use crate::fleet::{Fleet, Worker};
use crate::micros::Micros;
use crate::queue::{Line, Spot, Whom};
use crate::request::{Held, Job, Outlook};
use crate::timers::Timer;
use crate::triage::{TriageJob, given_up};

/// How far the reviews have come.
///
/// One looks at some models, in parts: a long queue is gone through over several calls, between which the dispatcher
/// hears of everything else.
#[derive(Debug, Default)]
pub(super) struct Review {
    /// Models that are still looked at.
    models_left: usize,
    /// When the next one begins.
    next_at: Moment,
    /// The model that was looked at last.
    last: Option<ModelName>,
    /// The model that is looked at, and what is done about it next.
    at: Option<(ModelName, Stage)>,
}

/// What is done about a model's queue.
#[derive(Debug)]
enum Stage {
    /// Its requests behind this spot are priced anew.
    Pricing(Option<Spot>),
    /// Those behind this spot are asked when they have to start and what they take.
    Asking(Option<Spot>, Lines),
    /// These requests are given up, or taken back.
    Sorting(std::vec::IntoIter<(RequestId, Outlook)>),
}

/// The requests of a model that can be in time, those given up included, by the lines that they belong to.
type Lines = BTreeMap<Line, Vec<Asked>>;

/// A request that was asked.
#[derive(Debug)]
struct Asked {
    request: RequestId,
    outlook: Outlook,
    job: TriageJob,
}

/// What one part of a review may still cost, in about microseconds.
#[derive(Debug)]
struct Effort(usize);

impl Effort {
    /// How many steps of a cost are left, but one at least.
    fn count(&self, cost: usize) -> usize {
        (self.0 / cost).max(1)
    }

    fn spend(&mut self, count: usize, cost: usize) {
        self.0 = self.0.saturating_sub(count * cost);
    }
}

impl Dispatcher {
    /// Sees to it that there is a review while somebody waits.
    pub(super) fn schedule_review(&mut self, now: Moment) {
        if self.queue.is_empty() {
            self.timers.clear(&Timer::Review);
            self.review.models_left = 0;
            self.review.at = None;
            self.review.next_at = now;
        } else if !self.timers.is_set(&Timer::Review) {
            let at = if self.review.models_left > 0 {
                now + PART_PAUSE
            } else if self.review.next_at > now {
                self.review.next_at
            } else {
                now + self.settings.policy.review_interval
            };
            self.timers.set(Timer::Review, at);
        }
    }

    /// Looks at the next models in turn, for as long as one part of a review may take.
    pub(super) fn review(&mut self, now: Moment) {
        if self.review.models_left == 0 {
            let most = self.settings.policy.review_models_max;
            self.review.models_left = self.queue.model_count().min(most);
            self.review.next_at = now + self.settings.policy.review_interval;
        }
        let mut effort = Effort(PART_COST);
        while effort.0 > 0 && self.review.models_left > 0 {
            let begun = self.review.at.take().map(|(model, stage)| (model, Some(stage)));
            let Some((model, stage)) = begun.or_else(|| self.next_reviewed()) else {
                self.review.models_left = 0;
                break;
            };
            match stage.and_then(|stage| self.review_stage(now, &model, stage, &mut effort)) {
                Some(stage) => self.review.at = Some((model, stage)),
                None => {
                    effort.spend(1, MODEL_COST);
                    self.end_review_of(now, model);
                }
            }
        }
    }

    /// The next model, with what is to be done about its queue.
    fn next_reviewed(&mut self) -> Option<(ModelName, Option<Stage>)> {
        let after = self.review.last.as_ref();
        let next = self.queue.model_after(after);
        let model = next.or_else(|| self.queue.model_after(None))?.clone();
        let stage = match self.mispriced.remove(&model) {
            true => {
                self.stats.repricings += 1;
                Some(Stage::Pricing(None))
            }
            false => self.triage_of(&model),
        };
        Some((model, stage))
    }

    /// Goes on with a model's queue. Tells what is to be done next.
    fn review_stage(
        &mut self,
        now: Moment,
        model: &ModelName,
        stage: Stage,
        effort: &mut Effort,
    ) -> Option<Stage> {
        match stage {
            Stage::Pricing(spot) => {
                let count_max = effort.count(PRICE_COST);
                let (requests, spot) = self.queue.behind(model, spot.as_ref(), Whom::All, count_max);
                effort.spend(requests.len(), PRICE_COST);
                for request in requests {
                    self.sort_in_again(now, &request);
                }
                spot.map_or_else(|| self.triage_of(model), |spot| Some(Stage::Pricing(Some(spot))))
            }
            Stage::Asking(spot, mut lines) => {
                let count_max = effort.count(ASK_COST);
                let (requests, spot) = self.queue.behind(model, spot.as_ref(), Whom::Hopeful, count_max);
                effort.spend(requests.len(), ASK_COST);
                for request in requests {
                    self.ask_for_triage(request, &mut lines);
                }
                match spot {
                    Some(spot) => Some(Stage::Asking(Some(spot), lines)),
                    None => Some(Stage::Sorting(self.triage(now, model, lines).into_iter())),
                }
            }
            Stage::Sorting(mut changes) => {
                let count_max = effort.count(SORT_COST);
                effort.spend(changes.len().min(count_max), SORT_COST);
                for (request, outlook) in changes.by_ref().take(count_max) {
                    self.revise_outlook(now, &request, outlook);
                }
                (changes.len() > 0).then_some(Stage::Sorting(changes))
            }
        }
    }

    /// What is left when a model's queue is in order.
    fn end_review_of(&mut self, now: Moment, model: ModelName) {
        self.review.models_left -= 1;
        if self.queue.waits_for(&model) {
            self.prefetch(now, &model);
            self.touch(&model);
        }
        self.review.last = Some(model);
    }

    /// Requests of a model are given up only where they could be served, and not with the policy fifo.
    fn triage_of(&self, model: &ModelName) -> Option<Stage> {
        let known = self.models.get(model);
        let is_fifo = known.is_some_and(|model| model.policy == Policy::Fifo);
        (!is_fifo && self.fleet.has_holder(model)).then(|| Stage::Asking(None, Lines::new()))
    }

    fn ask_for_triage(&self, request: RequestId, lines: &mut Lines) {
        let Some(Held::Queued { job, place, .. }) = self.held.get(&request) else {
            unreachable!("who stands in the queue waits")
        };
        let asked = Asked {
            request,
            outlook: job.outlook,
            job: TriageJob {
                // Who has no target is never given up: it can always start in time.
                latest_start: match job.asked.target {
                    Some(_) => place.urgency.at,
                    None => Micros::NEVER,
                },
                work: job.least_work(),
            },
        };
        lines.entry(job.line()).or_default().push(asked);
    }

    /// Finds out which requests of a model are given up, so that more of the others are in time, and which are taken
    /// back, as there is room for them again. Each line is judged by its part of what the model's holders can do.
    fn triage(&self, now: Moment, model: &ModelName, lines: Lines) -> Vec<(RequestId, Outlook)> {
        let entitled = self.entitled(now, model, &lines);
        let mut changes = Vec::new();
        for (line, asked) in lines {
            let rate = entitled.get(&line).copied().unwrap_or(CAPACITY_MIN);
            let jobs: Vec<TriageJob> = asked.iter().map(|asked| asked.job).collect();
            let lost = given_up(Micros::from(now), rate.max(CAPACITY_MIN), &jobs);
            let mut lost = lost.into_iter().peekable();
            for (index, asked) in asked.into_iter().enumerate() {
                let outlook = match lost.next_if_eq(&index) {
                    Some(_) => Outlook::GivenUp,
                    None => Outlook::Hopeful,
                };
                if asked.outlook != outlook {
                    changes.push((asked.request, outlook));
                }
            }
        }
        changes
    }

    /// Gives up a request or takes it back, if it still waits and is not late meanwhile.
    fn revise_outlook(&mut self, now: Moment, request: &RequestId, outlook: Outlook) {
        let Some(Held::Queued { job, .. }) = self.held.get(request) else {
            return;
        };
        if job.outlook != outlook && job.outlook != Outlook::Late {
            self.stats.given_up += u64::from(outlook == Outlook::GivenUp);
            self.set_outlook(now, request, outlook);
        }
    }

    /// The device-seconds a second that each line of a model is entitled to.
    ///
    /// Capacity is divided by weight, and what a line does not need of its part goes to the others (water filling,
    /// from the line that needs least to that which needs most).
    fn entitled(&self, now: Moment, model: &ModelName, lines: &Lines) -> BTreeMap<Line, f64> {
        let mut entitled = BTreeMap::new();
        let asked = lines.values().flatten();
        let waiting = |asked: &Asked| self.held.get(&asked.request).and_then(Held::job);
        let Some(example) = asked.filter_map(waiting).next() else {
            return entitled;
        };
        let needs = self.models.line_demand(now, model);
        let need = |line: &Line| needs.get(line).copied().unwrap_or(0.0);
        let mut order: Vec<&Line> = lines
            .keys()
            .chain(needs.keys().filter(|it| !lines.contains_key(it)))
            .collect();
        let per_weight = |line: &Line| need(line) / self.queue.weight(line);
        order.sort_by(|left, right| per_weight(left).total_cmp(&per_weight(right)));
        let mut weights: f64 = order.iter().map(|line| self.queue.weight(line)).sum();
        let mut capacity = self.capacity_for(model, example);
        for line in order {
            let part = capacity * self.queue.weight(line) / weights;
            entitled.insert(line.clone(), part);
            capacity -= part.min(need(line));
            weights -= self.queue.weight(line);
        }
        entitled
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
                let others = others.filter(|it| worker.shares_time(it.device, index) && it.model != *model);
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

/// What one part of a review costs at most, about a microsecond each. What follows, a look at the heads of the queues
/// that changed, costs as much again, so that nothing else waits for much longer than a millisecond.
const PART_COST: usize = 512;
/// A request is priced anew and moves in the queue.
const PRICE_COST: usize = 4;
/// A request is asked when it has to start.
const ASK_COST: usize = 1;
/// A request is given up or taken back.
const SORT_COST: usize = 4;
/// A model is looked at, with the devices that have it.
const MODEL_COST: usize = 16;
/// Time between two parts of a review: what came meanwhile goes first, and reviews take less than half of all time.
const PART_PAUSE: Duration = Duration::from_millis(2);
/// Capacity of a model whose holders are booked by others: not nothing, as their requests end.
const CAPACITY_MIN: f64 = 0.01;
/// Models that are remembered as asked to be prefetched; more than wait for a load at once.
const PREFETCHED_COUNT_MAX: usize = 1024;
