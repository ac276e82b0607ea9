//! Requests whose workers die run alone before they are found guilty.
//!
//! A death tells that one of those who ran may be to blame, and not which; most workers die for other reasons. So each
//! of them has a strike and goes on at once, beside others, but for the last strike: who is only one away from being a
//! dead letter is a suspect, and gets a worker for itself. Only when that one dies as well it has the last strike.
//! Meanwhile the others go on: at most a part of the workers is kept for suspects, and each of them as long for
//! others as it was for one while somebody waits.

use std::cmp::Reverse;
use std::time::Duration;

use flotilla_protocol::fleet::WorkerState;
use flotilla_protocol::{ModelName, Moment, RequestId, WorkerId};

use super::Dispatcher;
use super::placement::{Manner, Placement};
use crate::dispatch::{Dispatch, Losers};
use crate::fleet::Worker;
use crate::policy::Readiness;
use crate::request::{Begun, Death, Held, Job, StrikeReason};
use crate::share::Share;
use crate::timers::Timer;

impl Dispatcher {
    /// A worker died with an attempt that had begun.
    pub(super) fn blame(&mut self, now: Moment, mut job: Box<Job>, begun: &Begun, reason: StrikeReason) {
        if begun.alone {
            // From now on it is suspected for this one, in which nobody else was.
            let before = job.suspected_in.replace(begun.death());
            self.strike(now, job, reason);
            if let Some(death) = before.filter(|death| *death != begun.death()) {
                self.clear_others(now, &death);
            }
            return;
        }
        if job.strikes.next() < self.settings.strikes_max {
            self.stats.strikes += 1;
            job.strike(reason);
        }
        if job.strikes.next() >= self.settings.strikes_max {
            self.stats.suspects += 1;
            job.suspected_in = Some(begun.death());
        }
        self.enqueue(now, job);
    }

    /// Who is to blame for a death was found: of the others those that still wait need not run alone, and it is no strike of
    /// theirs.
    fn clear_others(&mut self, now: Moment, death: &Death) {
        let waiting = self.isolation.waiting().filter(|request| {
            let job = self.held.get(*request).and_then(Held::job);
            job.is_some_and(|job| job.suspected_in.as_ref() == Some(death))
        });
        for request in waiting.cloned().collect::<Vec<_>>() {
            if let Some(mut job) = self.take(&request) {
                job.clear();
                self.stats.cleared += 1;
                self.enqueue(now, job);
            }
        }
    }

    /// Lets a suspect wait for a worker of its own.
    pub(super) fn set_apart(&mut self, mut job: Box<Job>) {
        self.price(&mut job);
        let request = job.request.clone();
        if let Some(deadline) = job.deadline {
            self.timers.set(Timer::Deadline(request.clone()), deadline);
        }
        self.isolation.wait(job.published, request.clone());
        self.put(request, Held::Suspect(job));
    }

    /// Takes a suspect out of where it waits; its worker stays kept for it.
    ///
    /// # Panics
    /// When it does not wait.
    pub(super) fn take_apart(&mut self, request: &RequestId) -> Box<Job> {
        let Some(Held::Suspect(job)) = self.held.remove(request) else {
            unreachable!("a suspect that waits is taken");
        };
        self.isolation.end_wait(job.published, request);
        self.timers.clear(&Timer::Deadline(request.clone()));
        job
    }

    /// Suspects that wait for a model.
    pub(super) fn suspects_of(&self, model: &ModelName) -> Vec<RequestId> {
        let is_of_model = |request: &&RequestId| {
            let job = self.held.get(*request).and_then(Held::job);
            job.is_some_and(|job| job.model == *model)
        };
        self.isolation.waiting().filter(is_of_model).cloned().collect()
    }

    /// Gives free the worker that is kept for a request, if one is.
    pub(super) fn end_isolation(&mut self, request: &RequestId) {
        if let Some(worker) = self.isolation.release(request) {
            self.fleet.end_keep(&worker);
            self.open(&worker);
        }
    }

    /// Takes note of a request that a worker runs alone since a former leader gave it there. Whoever the worker was kept
    /// for waits for another.
    pub(super) fn keep_adopted(&mut self, now: Moment, worker: &WorkerId, request: &RequestId) {
        if let Some(other) = self.isolation.request_on(worker).cloned() {
            self.end_isolation(&other);
        }
        self.isolation.keep(now, worker, request);
        self.fleet.keep(worker, request);
    }

    /// A worker turns out to run more than one request: none of them is alone, whatever was asked of it.
    pub(super) fn note_company(&mut self, worker: &WorkerId) {
        let Some(known) = self.fleet.worker(worker).filter(|known| known.assigned.len() > 1) else {
            return;
        };
        let assigned: Vec<RequestId> = known.assigned.iter().cloned().collect();
        for request in assigned {
            if let Some(Held::Assigned(run)) = self.held.get_mut(&request) {
                run.alone = false;
                self.end_isolation(&request);
            }
        }
    }

    /// Keeps workers for suspects, and gives those that have become empty what they were kept for.
    pub(super) fn isolate(&mut self, now: Moment) {
        self.isolation.begin_rests(now);
        if self.deposed || self.isolation.waiting_count() == 0 {
            return;
        }
        self.end_vain_isolations();
        self.keep_workers(now);
        let kept = self
            .isolation
            .kept()
            .map(|(worker, request)| (worker.clone(), request.clone()));
        for (worker, request) in kept.collect::<Vec<_>>() {
            let is_empty = self.fleet.worker(&worker).is_some_and(Worker::can_take_alone);
            if is_empty && matches!(self.held.get(&request), Some(Held::Suspect(_))) {
                let placement = self.placement_alone(now, &request, &worker);
                self.stats.alone += 1;
                self.assign(now, &request, placement);
            }
        }
    }

    /// Gives free the workers that will not take what they are kept for.
    fn end_vain_isolations(&mut self) {
        let kept = self.isolation.kept();
        let is_vain = |(worker, request): &(&WorkerId, &RequestId)| {
            let Some(Held::Suspect(job)) = self.held.get(*request) else {
                return false;
            };
            let known = self.fleet.worker(worker);
            let is_leaving = known.is_none_or(|known| known.report.state == WorkerState::Draining);
            is_leaving || self.is_excluded(&job.model, worker)
        };
        let vain: Vec<RequestId> = kept.filter(is_vain).map(|(_, request)| request.clone()).collect();
        vain.iter().for_each(|request| self.end_isolation(request));
    }

    fn keep_workers(&mut self, now: Moment) {
        let kept_max = (self.fleet.len() / KEPT_PART).max(1);
        let waiting = self.isolation.waiting();
        let without = waiting.filter(|request| self.isolation.worker_of(request).is_none());
        for request in without.take(LOOK_COUNT_MAX).cloned().collect::<Vec<_>>() {
            if self.isolation.kept_count() >= kept_max {
                break;
            }
            if let Some(worker) = self.worker_to_keep(now, self.waiting(&request)) {
                self.isolation.keep(now, &worker, &request);
                self.fleet.keep(&worker, &request);
            }
        }
    }

    /// The worker that a suspect can soonest have for itself, if possible not the one that it has just come back from.
    pub(super) fn worker_to_keep(&self, now: Moment, job: &Job) -> Option<WorkerId> {
        let others_wait = !self.queue.is_empty();
        let may_keep = |id: &WorkerId, worker: &Worker| {
            let is_left_to_others = others_wait && self.isolation.rests(id);
            worker.takes_work()
                && self.isolation.request_on(id).is_none()
                && !is_left_to_others
                && job.may_go_to(id)
                && !self.is_excluded(&job.model, id)
        };
        let workers = self.fleet.iter().filter(|(id, worker)| may_keep(id, worker));
        let first = workers.min_by_key(|(id, worker)| {
            let holds = worker.model(&job.model).is_some();
            let is_empty = worker.can_take_alone();
            let is_avoided = job.avoid.as_ref() == Some(*id);
            (
                is_avoided,
                Reverse(is_empty),
                Reverse(holds),
                worker.empties_in(now),
            )
        });
        first.map(|(id, _)| id.clone())
    }

    fn is_excluded(&self, model: &ModelName, worker: &WorkerId) -> bool {
        let excluded = self.exclusions.of(model);
        excluded.is_some_and(|ids| ids.contains_key(worker))
    }

    /// Where on its worker a suspect runs: what nobody uses may go for its model.
    fn placement_alone(&mut self, now: Moment, request: &RequestId, worker: &WorkerId) -> Placement {
        // Kinds of devices may have come since it was priced.
        let Some(Held::Suspect(mut job)) = self.held.remove(request) else {
            unreachable!("a suspect that waits is placed");
        };
        self.price(&mut job);
        let known = self.fleet.worker(worker).expect("a kept worker is known");
        let Way {
            device,
            readiness,
            starts_in,
            victims,
        } = self.way(now, &job, known);
        let kind = known.devices[device].kind;
        let price = job.price(kind);
        let share = price.map_or(Share::FULL, |price| price.share);
        let takes = price.map_or(Duration::ZERO, |price| price.expected);
        self.held.insert(request.clone(), Held::Suspect(job));
        Placement {
            worker: worker.clone(),
            device,
            victims,
            manner: Manner::Alone,
            dispatch: Dispatch {
                at: now,
                kind,
                readiness,
                share,
                load: share,
                starts_in,
                ends_in: starts_in + takes,
                slack_us: i64::MAX,
                losers: Losers::default(),
            },
        }
    }

    fn way(&self, now: Moment, job: &Job, worker: &Worker) -> Way {
        if let Some(holder) = self.holder(now, &job.model, worker) {
            return Way {
                device: holder.device,
                readiness: holder.readiness,
                starts_in: holder.ready_in,
                victims: Vec::new(),
            };
        }
        let surroundings = self.surroundings(now);
        let swaps = surroundings.swaps(worker, &job.model, &job.request, true);
        let swap = swaps.min_by_key(|swap| (swap.load_time + swap.regret, swap.device));
        Way {
            // Without a way that we know of the worker makes room as it can, or says that it cannot.
            device: swap
                .as_ref()
                .map_or_else(|| worker.device_for(&job.model), |swap| swap.device),
            readiness: Readiness::Absent,
            starts_in: swap.as_ref().map_or(Duration::ZERO, |swap| swap.load_time),
            victims: swap.map_or_else(Vec::new, |swap| swap.victims),
        }
    }
}

/// How a model is had on a worker.
struct Way {
    device: usize,
    readiness: Readiness,
    starts_in: Duration,
    victims: Vec<ModelName>,
}

/// At most one worker of this many is kept for suspects, and always one may be: three quarters of a fleet serve the
/// others meanwhile.
const KEPT_PART: usize = 4;
/// How many suspects are looked at for a worker in one moment: some may wait for one that is not there.
const LOOK_COUNT_MAX: usize = 32;
