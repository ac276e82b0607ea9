//! How attempts begin, end and follow one another.

use std::time::Duration;

use flotilla_protocol::assignment::{AssignReply, AttemptEnd, Done, Refusal};
use flotilla_protocol::{Attempt, ModelName, Moment, RequestId, WorkerId};

use super::Dispatcher;
use crate::action::Action;
use crate::fleet::Sight;
use crate::input::AssignOutcome;
use crate::request::{Held, Job, Run, StrikeReason, Verdict};
use crate::timers::Timer;

/// Shortest exclusion, so that a worker that refuses at once is not asked at once.
const EXCLUDED_FOR_MIN: Duration = Duration::from_secs(1);

impl Dispatcher {
    /// What came of an [`Action::Assign`]. An outcome of an attempt that is over is ignored.
    pub fn handle_assign_reply(
        &mut self,
        now: Moment,
        worker: &WorkerId,
        request: &RequestId,
        attempt: Attempt,
        outcome: AssignOutcome,
    ) {
        let Some(Held::Assigned(run)) = self.held.get(request) else {
            return;
        };
        if run.worker != *worker || run.attempt != attempt {
            return;
        }
        match self.believed(worker, outcome) {
            AssignOutcome::Replied(AssignReply::Accepted {
                report_seq,
                incarnation,
            }) => self.confirm(now, request, report_seq, incarnation),
            // The worker has listed it meanwhile: whatever went wrong on the way, it runs.
            AssignOutcome::NoAnswer | AssignOutcome::Replied(AssignReply::Refused(_))
                if run.known_at_seq.is_some() => {}
            AssignOutcome::NoAnswer => {
                self.stats.unanswered += 1;
                self.fleet.shut(worker);
                let Some(mut job) = self.take(request) else { return };
                job.avoid = Some(worker.clone());
                self.enqueue(now, job);
            }
            AssignOutcome::Replied(AssignReply::Refused(refusal)) => {
                self.refused(now, request, worker, refusal)
            }
        }
        self.settle(now);
    }

    /// What an outcome says: an earlier start of the worker that answers has lost the request since, or will.
    fn believed(&self, worker: &WorkerId, outcome: AssignOutcome) -> AssignOutcome {
        let AssignOutcome::Replied(AssignReply::Accepted {
            incarnation: Some(incarnation),
            ..
        }) = &outcome
        else {
            return outcome;
        };
        let known = self.fleet.worker(worker);
        match known.is_some_and(|known| known.is_past(*incarnation)) {
            true => AssignOutcome::NoAnswer,
            false => outcome,
        }
    }

    /// A worker says that an attempt ended. Anything but the attempt that runs is ignored, except that a
    /// terminal journal is terminal whoever tells.
    pub fn handle_done(&mut self, now: Moment, done: Done) {
        self.fleet.ended(&done);
        self.open(&done.worker);
        if self.is_of_current(&done) {
            if done.end == AttemptEnd::Terminal {
                self.observe_end(now, &done);
                self.learn_from_end(now, &done);
            }
            if let Some(job) = self.take(&done.request) {
                self.end_attempt(now, job, done);
            }
        }
        self.settle(now);
    }

    /// Whether the end of an attempt is that of its request's newest.
    fn is_of_current(&self, done: &Done) -> bool {
        match self.held.get(&done.request) {
            Some(Held::Assigned(run)) => {
                run.worker == done.worker
                    && run.incarnation == done.incarnation
                    && run.attempt == done.attempt
            }
            Some(Held::Reading(_) | Held::Awaiting { .. } | Held::Queued { .. } | Held::Suspect(_)) => {
                done.end == AttemptEnd::Terminal
            }
            Some(Held::Ending { .. }) | None => false,
        }
    }

    /// What follows from the end of a request's newest attempt.
    fn end_attempt(&mut self, now: Moment, mut job: Box<Job>, done: Done) {
        match done.end {
            AttemptEnd::Terminal => self.acknowledge(&done.request, job.sequences),
            AttemptEnd::Fenced { attempt, strikes } => {
                self.stats.fenced += 1;
                job.used = job.used.max(attempt);
                job.strikes = job.strikes.max(strikes);
                self.read_journal(job);
            }
            AttemptEnd::HandedBack { .. } => {
                self.stats.handed_back += 1;
                self.fleet.shut(&done.worker);
                job.avoid = Some(done.worker);
                self.requeue_closed(now, job, done.attempt);
            }
            AttemptEnd::ModelUnloadable { reason, retry_in_ms } => {
                let model = job.model.clone();
                let retry_in = Duration::from_millis(retry_in_ms);
                self.requeue_closed(now, job, done.attempt);
                self.exclude(now, &model, &done.worker, reason, retry_in);
            }
            AttemptEnd::Panicked { message } => {
                job.close(done.attempt);
                let worker = done.worker;
                self.strike(now, job, StrikeReason::Panicked { worker, message });
            }
            AttemptEnd::JournalBroken { reason } => self.end_broken(job, &reason),
        }
    }

    /// Takes over a run that a worker's report lists.
    pub(super) fn adopt(&mut self, now: Moment, mut job: Box<Job>, worker: &WorkerId, attempt: Attempt) {
        let known = self
            .fleet
            .worker(worker)
            .expect("only a known worker's report can list a run");
        let (incarnation, seq) = (known.report.incarnation, known.report.seq);
        let alone = known.runs_alone(&job.request);
        self.stats.adopted += 1;
        let request = job.request.clone();
        job.used = job.used.max(attempt);
        job.forgive(worker);
        if !alone {
            job.suspected_in = None;
        }
        let booking = self.adopted(now, &mut job, worker);
        self.fleet.book(worker, &request, booking, Sight::Listed);
        let mut run = Run {
            job,
            worker: worker.clone(),
            incarnation,
            attempt,
            known_at_seq: Some(seq),
            cancel_told: None,
            dispatch: None,
            alone,
        };
        if alone {
            let death = run.begun().death();
            run.job.suspected_in.get_or_insert(death);
            self.keep_adopted(now, worker, &request);
        }
        self.put(request.clone(), Held::Assigned(Box::new(run)));
        self.note_company(worker);
        self.tell_cancelled(now, &request);
    }

    /// Requeues a request one of whose attempts is known to be over, through no fault of its own.
    pub(super) fn requeue_closed(&mut self, now: Moment, mut job: Box<Job>, attempt: Attempt) {
        job.close(attempt);
        self.enqueue(now, job);
    }

    /// Gives a strike and what follows from it.
    pub(super) fn strike(&mut self, now: Moment, mut job: Box<Job>, reason: StrikeReason) {
        self.stats.strikes += 1;
        job.strike(reason);
        self.enqueue(now, job);
    }

    /// Ends the attempt of a worker whose process is gone. An assignment that it had not answered may
    /// have been lost with it, and is no fault of the request.
    pub(super) fn break_attempt(&mut self, now: Moment, request: &RequestId, reason: StrikeReason) {
        let Some(Held::Assigned(run)) = self.held.get(request) else {
            return;
        };
        let answered = run.known_at_seq.is_some();
        let begun = run.begun();
        let Some(job) = self.take(request) else { return };
        if answered {
            self.blame(now, job, &begun, reason);
        } else {
            self.enqueue(now, job);
        }
    }

    /// A report that should list an attempt does not: it ended, and the journal tells how.
    pub(super) fn read_lost_done(&mut self, request: &RequestId) {
        let Some(Held::Assigned(run)) = self.held.get(request) else {
            return;
        };
        let (attempt, worker) = (run.attempt, run.worker.clone());
        self.stats.done_lost += 1;
        let Some(mut job) = self.take(request) else { return };
        job.close(attempt);
        job.avoid = Some(worker);
        self.read_journal(job);
    }

    /// Tells the worker of a cancelled request.
    pub(super) fn tell_cancelled(&mut self, now: Moment, request: &RequestId) {
        let Some(Held::Assigned(run)) = self.held.get_mut(request) else {
            return;
        };
        if run.job.verdict == Some(Verdict::Cancelled) {
            run.cancel_told = Some(now);
            let worker = run.worker.clone();
            self.push(Action::CancelOnWorker {
                worker,
                request: request.clone(),
            });
        }
    }

    /// Keeps a model off a worker for a while.
    pub(super) fn exclude(
        &mut self,
        now: Moment,
        model: &ModelName,
        worker: &WorkerId,
        reason: String,
        retry_in: Duration,
    ) {
        if !self.fleet.contains(worker) {
            return;
        }
        let retry_in = retry_in.max(EXCLUDED_FOR_MIN);
        self.exclusions.insert(model, worker, reason);
        self.touch(model);
        self.timers.set(
            Timer::ExclusionEnds(model.clone(), worker.clone()),
            now + retry_in,
        );
        self.end_unloadable(now, model);
    }

    /// The worker has the request. When a report that should list it has come before this answer and does
    /// not, the attempt is over already. A start of the worker that has not reported yet counts its reports anew.
    fn confirm(&mut self, now: Moment, request: &RequestId, report_seq: u64, incarnation: Option<u64>) {
        let Some(Held::Assigned(run)) = self.held.get_mut(request) else {
            return;
        };
        if let Some(incarnation) = incarnation.filter(|incarnation| *incarnation != run.incarnation) {
            run.incarnation = incarnation;
            run.known_at_seq = Some(report_seq);
            self.tell_cancelled(now, request);
            return;
        }
        let seq = run.known_at_seq.map_or(report_seq, |known| known.max(report_seq));
        run.known_at_seq = Some(seq);
        let worker = run.worker.clone();
        let Some(newest) = self.fleet.worker(&worker) else {
            return;
        };
        if newest.report.seq > seq && newest.lists(request).is_none() {
            self.read_lost_done(request);
        } else {
            self.tell_cancelled(now, request);
        }
    }

    /// The worker has never begun, so the attempt's number is free again.
    fn refused(&mut self, now: Moment, request: &RequestId, worker: &WorkerId, refusal: Refusal) {
        self.stats.refused += 1;
        let Some(mut job) = self.take(request) else { return };
        job.used = Attempt(job.used.0 - 1);
        job.avoid = Some(worker.clone());
        let model = job.model.clone();
        match refusal {
            Refusal::Full | Refusal::Draining => {
                self.fleet.shut(worker);
                self.enqueue(now, job);
            }
            Refusal::StaleEpoch { seen } => {
                self.enqueue(now, job);
                self.step_down(seen);
            }
            Refusal::ModelUnloadable { reason, retry_in_ms } => {
                self.enqueue(now, job);
                self.exclude(now, &model, worker, reason, Duration::from_millis(retry_in_ms));
            }
        }
    }
}
