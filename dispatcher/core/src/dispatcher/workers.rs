//! What reports and silence tell.

use std::time::Duration;

use flotilla_protocol::fleet::{ModelState, Report};
use flotilla_protocol::{Moment, RequestId, WorkerId};

use super::Dispatcher;
use crate::action::Action;
use crate::fleet::{self, Novelty};
use crate::request::{Held, StrikeReason};
use crate::timers::Timer;

/// A cancellation may be lost on its way: it is told again with a report that comes this much later.
const CANCEL_REPEAT: Duration = Duration::from_secs(1);
/// Parts of the time after which a silent worker is lost. A worker is asked for a report when it is late by the first: with
/// the default settings 1.33 s, when one that reports every second has missed one.
const LATE_PART: u32 = 3;
/// It is asked again after this one: 1 s, twice what a part takes at most between two tries to reconnect.
const ASK_AGAIN_PART: u32 = 4;
/// And it is lost when it is still not there after this one: two answers that came at once, because it was ourselves who had no
/// connection, are one.
const ABSENT_PART: u32 = 6;

impl Dispatcher {
    /// A worker's report came in.
    pub fn handle_report(&mut self, now: Moment, report: Report) {
        if report.epoch_seen > self.settings.epoch {
            return self.step_down(report.epoch_seen);
        }
        let novelty = self.fleet.novelty(&report);
        match novelty {
            Novelty::Stale => {
                self.stats.reports_stale += 1;
                return;
            }
            Novelty::NewWorker if self.fleet.len() >= self.settings.workers_max => {
                self.stats.workers_turned_away += 1;
                return;
            }
            Novelty::NewWorker | Novelty::Newer => {}
            Novelty::NewIncarnation => {
                self.stats.workers_restarted += 1;
                self.end_exclusions(&report.worker);
            }
        }
        let worker = report.worker.clone();
        self.fleet.install(now, report, self.unknown_kind);
        self.learn_sets(&worker);
        self.learn_from_report(&worker);
        self.price_new_kinds(now);
        let lost_after = self.settings.worker_lost_after;
        self.timers
            .set(Timer::WorkerLost(worker.clone()), now + lost_after);
        self.timers
            .set(Timer::WorkerLate(worker.clone()), now + lost_after / LATE_PART);
        self.learn_models(now, &worker);
        self.learn_runs(now, &worker, novelty);
        self.adopt_listed(now, &worker);
        self.release_awaiting(now, &worker);
        self.follow_bookings(now, &worker);
        self.open(&worker);
        self.settle(now);
    }

    /// Nobody listened where a worker was asked for a report: its connection is gone, as that of a process is that was
    /// killed. One that only reconnects is back before it is missed for the second time.
    pub fn handle_absent(&mut self, now: Moment, worker: &WorkerId) {
        let missed_for = self.fleet.miss(now, worker);
        if missed_for.is_some_and(|time| time >= self.settings.worker_lost_after / ABSENT_PART) {
            self.stats.workers_absent += 1;
            self.lose_worker(now, worker, StrikeReason::WorkerGone);
        }
        self.settle(now);
    }

    /// Asks a worker that is late, again and again until it reports or is lost.
    pub(super) fn ask_for_report(&mut self, now: Moment, worker: WorkerId) {
        let again = self.settings.worker_lost_after / ASK_AGAIN_PART;
        self.timers.set(Timer::WorkerLate(worker.clone()), now + again);
        self.push(Action::AskForReport { worker });
    }

    /// A worker was silent for too long: what it ran goes elsewhere. Should it only have been cut off, a
    /// request that still waits goes back to it with its next report.
    pub(super) fn lose_worker(
        &mut self,
        now: Moment,
        worker: &WorkerId,
        reason: fn(WorkerId) -> StrikeReason,
    ) {
        let Some(lost) = self.fleet.worker(worker) else {
            return;
        };
        let requests: Vec<RequestId> = lost.assigned.iter().cloned().collect();
        self.stats.workers_lost += 1;
        self.timers.clear(&Timer::WorkerLost(worker.clone()));
        self.timers.clear(&Timer::WorkerLate(worker.clone()));
        self.end_exclusions(worker);
        for request in requests {
            self.break_attempt(now, &request, reason(worker.clone()));
        }
        if let Some(request) = self.isolation.request_on(worker).cloned() {
            self.end_isolation(&request);
        }
        self.fleet.remove(worker);
        for model in self.exclusions.models() {
            self.end_unloadable(now, &model);
        }
    }

    fn end_exclusions(&mut self, worker: &WorkerId) {
        for model in self.exclusions.models_of(worker) {
            self.exclusions.remove(&model, worker);
            self.touch(&model);
            self.timers.clear(&Timer::ExclusionEnds(model, worker.clone()));
        }
    }

    fn learn_models(&mut self, now: Moment, worker: &WorkerId) {
        let Some(known) = self.fleet.worker(worker) else {
            return;
        };
        let mut failed = Vec::new();
        for model in &known.report.models {
            if let Some((reason, retry_in_ms)) = fleet::failure(model) {
                failed.push((
                    model.model.clone(),
                    reason.to_owned(),
                    Duration::from_millis(retry_in_ms),
                ));
            } else if model.state == ModelState::Ready && self.exclusions.remove(&model.model, worker) {
                self.timers
                    .clear(&Timer::ExclusionEnds(model.model.clone(), worker.clone()));
            }
        }
        for (model, reason, retry_in) in failed {
            self.exclude(now, &model, worker, reason, retry_in);
        }
    }

    /// Compares what the worker lists with what it should run.
    fn learn_runs(&mut self, now: Moment, worker: &WorkerId, novelty: Novelty) {
        let Some(known) = self.fleet.worker(worker) else {
            return;
        };
        let (incarnation, seq) = (known.report.incarnation, known.report.seq);
        let assigned = known.assigned.iter();
        let assigned: Vec<_> = assigned
            .map(|request| (request.clone(), known.lists(request)))
            .collect();
        for (request, listed) in assigned {
            let Some(Held::Assigned(run)) = self.held.get_mut(&request) else {
                continue;
            };
            let same_process = run.incarnation == incarnation;
            // A newer start of the worker has answered and not reported yet: this report is by the one before.
            if !same_process && novelty == Novelty::Newer {
                continue;
            }
            if listed == Some(run.attempt) {
                run.incarnation = incarnation;
                run.known_at_seq = Some(
                    run.known_at_seq
                        .filter(|_| same_process)
                        .map_or(seq, |at| at.max(seq)),
                );
                let told = run.cancel_told;
                self.fleet.saw(worker, &request);
                if told.is_some_and(|told| now.since(told) >= CANCEL_REPEAT) {
                    self.tell_cancelled(now, &request);
                }
            } else if !same_process {
                self.break_attempt(now, &request, StrikeReason::WorkerRestarted(worker.clone()));
            } else if run.known_at_seq.is_some_and(|at| seq > at) {
                self.read_lost_done(&request);
            }
        }
    }

    /// Takes over runs of requests that are held but on no worker: the answer to their assignment was
    /// lost, or a former leader gave them away.
    fn adopt_listed(&mut self, now: Moment, worker: &WorkerId) {
        let Some(known) = self.fleet.worker(worker) else {
            return;
        };
        let mut adopted = Vec::new();
        for run in &known.report.running {
            let newest = match self.held.get(&run.request) {
                Some(Held::Queued { job, .. } | Held::Awaiting { job, .. } | Held::Suspect(job)) => {
                    run.attempt > job.over && run.attempt >= job.used
                }
                Some(Held::Reading(_) | Held::Assigned(_) | Held::Ending { .. }) | None => false,
            };
            if newest {
                adopted.push((run.request.clone(), run.attempt));
            }
        }
        for (request, attempt) in adopted {
            if let Some(job) = self.take(&request) {
                self.adopt(now, job, worker, attempt);
            }
        }
    }

    /// The worker has reported without listing these: their attempts are over, one way or the other.
    fn release_awaiting(&mut self, now: Moment, worker: &WorkerId) {
        for request in self.awaiting.remove(worker).unwrap_or_default() {
            if let Some((job, begun)) = self.take_awaiting(&request) {
                self.end_unlisted(now, job, &begun);
            }
        }
    }
}
