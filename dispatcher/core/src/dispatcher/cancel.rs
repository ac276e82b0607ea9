//! Cancellations, and models that leave the catalog.

use flotilla_protocol::admin::CancelReply;
use flotilla_protocol::{ModelName, Moment, RequestId};

use super::Dispatcher;
use crate::request::{Held, Verdict};

impl Dispatcher {
    /// Somebody wants no answer any more. A request that is not held is remembered for ten minutes, among
    /// ten thousand.
    pub fn handle_cancel(&mut self, now: Moment, request: &RequestId) -> CancelReply {
        match self.held.get_mut(request) {
            None => {
                self.cancelled.remember(now, request.clone());
                CancelReply::Unknown
            }
            Some(Held::Ending { .. }) => CancelReply::Ended,
            Some(Held::Reading(job) | Held::Awaiting { job, .. }) => {
                job.verdict = Some(Verdict::Cancelled);
                CancelReply::Ended
            }
            Some(Held::Assigned(run)) => {
                run.job.verdict = Some(Verdict::Cancelled);
                self.tell_cancelled(now, request);
                CancelReply::Told
            }
            Some(Held::Queued { .. } | Held::Suspect(_)) => {
                self.condemn(now, request, Verdict::Cancelled);
                self.settle(now);
                CancelReply::Ended
            }
        }
    }

    /// The catalog lost a model: who waits for it is ended, who runs may finish.
    pub fn handle_model_removed(&mut self, now: Moment, model: &ModelName) {
        for request in self.waiting_for(model) {
            self.condemn(now, &request, Verdict::ModelRemoved);
        }
        self.models.remove(model);
        self.mispriced.remove(model);
        let jobs = self.held.values_mut().filter_map(Held::job_mut);
        for job in jobs.filter(|job| job.model == *model) {
            job.verdict.get_or_insert(Verdict::ModelRemoved);
        }
        self.settle(now);
    }

    fn condemn(&mut self, now: Moment, request: &RequestId, verdict: Verdict) {
        if let Some(mut job) = self.take(request) {
            job.verdict = Some(verdict);
            self.enqueue(now, job);
        }
    }
}
