//! How a request gets into the queue or, when it must not wait, to its end.

use flotilla_protocol::event::{ErrorCode, Event, FinishReason, Finished, RequestError, Timings, Usage};
use flotilla_protocol::{ModelName, Moment, RequestId};

use super::Dispatcher;
use crate::action::Action;
use crate::input::StreamSequence;
use crate::request::{Held, Job, Verdict, failure};
use crate::timers::Timer;

/// How many workers a `model_unloadable` names.
const REASON_COUNT_MAX: usize = 8;

impl Dispatcher {
    /// The journal of a request is terminal: the shell wrote an [`Action::End`], or found it so.
    pub fn handle_ended(&mut self, now: Moment, request: &RequestId) {
        let sequences = if let Some(Held::Ending { sequences }) = self.held.get_mut(request) {
            std::mem::take(sequences)
        } else if let Some(job) = self.take(request) {
            job.sequences
        } else {
            return;
        };
        self.held.remove(request);
        self.acknowledge(request, sequences);
        self.settle(now);
    }

    /// Lets a request wait for a worker, unless there is a reason to end it.
    pub(super) fn enqueue(&mut self, now: Moment, mut job: Box<Job>) {
        if let Some(verdict) = job.verdict.clone() {
            self.carry_out(now, job, verdict);
        } else if job.strikes >= self.settings.strikes_max {
            self.bury(job);
        } else if job.deadline.is_some_and(|deadline| deadline <= now) {
            self.end_deadline_exceeded(now, job);
        } else if let Some(error) = self.unloadable(&job.model) {
            self.stats.unloadable += 1;
            self.end(job, Event::failed(error));
        } else if job.suspected_in.is_some() {
            self.set_apart(job);
        } else {
            let request = job.request.clone();
            self.price(&mut job);
            if !job.is_counted {
                job.is_counted = true;
                let (line, work) = (job.line(), job.least_work());
                self.models.note_line_demand(now, &job.model, &line, work);
            }
            let outlook = job.outlook.after_repricing();
            let place = self.place_with(now, &mut job, outlook);
            self.queue.insert(&job.model, &place, request.clone());
            if self.may_be_placed(&job.model, &request) {
                self.touch(&job.model);
            }
            if let Some(deadline) = job.deadline {
                self.timers.set(Timer::Deadline(request.clone()), deadline);
            }
            self.newly_queued = true;
            let told_position = None;
            let queued = Held::Queued {
                job,
                place,
                told_position,
            };
            self.put(request, queued);
        }
    }

    /// Whether it is worth looking for a device for a request that has just begun to wait: nobody of its model waits in
    /// vain, or it stands before those who do, or so near behind them that it may take what they leave.
    fn may_be_placed(&self, model: &ModelName, request: &RequestId) -> bool {
        let looked_at = self.settings.policy.look_behind_max + 1;
        !self.stuck.contains(model) || self.queue.next_of(model, looked_at).contains(request)
    }

    /// Lets the shell acknowledge a request whose journal is terminal, and forgets it.
    pub(super) fn acknowledge(&mut self, request: &RequestId, sequences: Vec<StreamSequence>) {
        for sequence in &sequences {
            let owner = self.sequences.remove(sequence);
            assert_eq!(
                owner.as_ref(),
                Some(request),
                "a message is acknowledged once, for its request"
            );
        }
        self.stats.acked += u64::try_from(sequences.len()).unwrap_or(u64::MAX);
        let request = request.clone();
        self.push(Action::Ack { request, sequences });
    }

    /// Ends a request that waited until its deadline.
    pub(super) fn end_late(&mut self, now: Moment, request: &RequestId) {
        if matches!(
            self.held.get(request),
            Some(Held::Queued { .. } | Held::Suspect(_))
        ) && let Some(job) = self.take(request)
        {
            self.end_deadline_exceeded(now, job);
        }
    }

    /// Ends whoever waits for a model that no worker can load.
    pub(super) fn end_unloadable(&mut self, now: Moment, model: &ModelName) {
        if self.unloadable(model).is_none() {
            return;
        }
        for request in self.waiting_for(model) {
            if let Some(job) = self.take(&request) {
                self.enqueue(now, job);
            }
        }
    }

    /// Everybody who waits for a worker with a model.
    pub(super) fn waiting_for(&self, model: &ModelName) -> Vec<RequestId> {
        let mut requests = self.queue.requests_of(model);
        requests.extend(self.suspects_of(model));
        requests
    }

    fn end(&mut self, job: Box<Job>, event: Event) {
        let Job {
            request,
            sequences,
            encoding,
            ..
        } = *job;
        self.put(request.clone(), Held::Ending { sequences });
        self.push(Action::End {
            request,
            encoding,
            event,
        });
    }

    fn carry_out(&mut self, now: Moment, job: Box<Job>, verdict: Verdict) {
        let event = match verdict {
            Verdict::Cancelled => {
                self.stats.cancelled += 1;
                Event::Finished(Finished {
                    finish_reason: FinishReason::Cancelled,
                    usage: Usage::new(job.asked.prompt_tokens, 0),
                    timings: Timings {
                        queued_ms: job.age(now).as_secs_f64() * 1e3,
                        ..Timings::default()
                    },
                    data: None,
                })
            }
            Verdict::ModelRemoved => {
                let message = format!("the model {} was removed from the catalog", job.model);
                Event::failed(failure(ErrorCode::UnknownModel, message))
            }
            Verdict::Refused(error) => Event::failed(error),
        };
        self.end(job, event);
    }

    fn end_deadline_exceeded(&mut self, now: Moment, job: Box<Job>) {
        self.stats.deadlines_passed += 1;
        self.observe_missed(&job);
        let waited_ms = job.age(now).as_millis();
        let message = format!("the deadline passed after {waited_ms} ms without an answer");
        self.end(job, Event::failed(failure(ErrorCode::DeadlineExceeded, message)));
    }

    /// Ends a request that kills its workers.
    fn bury(&mut self, job: Box<Job>) {
        let reason = job.poison_reason();
        self.keep_letter(&job, reason.clone());
        self.end(job, Event::failed(failure(ErrorCode::Poisoned, reason)));
    }

    /// Ends a request whose journal nobody can go on with.
    pub(super) fn end_broken(&mut self, job: Box<Job>, reason: &str) {
        self.stats.journals_broken += 1;
        let reason = format!("the journal of the answer is broken: {reason}");
        self.keep_letter(&job, reason.clone());
        self.end(job, Event::failed(failure(ErrorCode::Internal, reason)));
    }

    /// Keeps a copy of a request for operators.
    fn keep_letter(&mut self, job: &Job, reason: String) {
        self.stats.dead += 1;
        self.observe_missed(job);
        self.push(Action::DeadLetter {
            request: job.request.clone(),
            sequences: job.sequences.clone(),
            class: job.class,
            model: job.model.clone(),
            body: job.body.clone(),
            encoding: job.encoding,
            reason,
        });
    }

    /// Why no worker can take a model; `None` while one may, or while there is none.
    fn unloadable(&self, model: &ModelName) -> Option<RequestError> {
        let excluded = self.exclusions.of(model)?;
        if self.fleet.len() == 0 || excluded.len() < self.fleet.len() {
            return None;
        }
        let reasons = excluded.iter().take(REASON_COUNT_MAX);
        let reasons: Vec<String> = reasons
            .map(|(worker, reason)| format!("{worker}: {reason}"))
            .collect();
        let message = format!("no worker can load {model}: {}", reasons.join("; "));
        Some(failure(ErrorCode::ModelUnloadable, message))
    }
}
