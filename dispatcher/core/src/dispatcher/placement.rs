//! Requests meet workers.

use std::time::Duration;

use flotilla_protocol::assignment::Assignment;
use flotilla_protocol::{ModelName, Moment, RequestId, WorkerId};

use super::Dispatcher;
use crate::action::Action;
use crate::fleet::Sight;
use crate::policy::{self, Candidate};
use crate::request::{Held, Run};

impl Dispatcher {
    /// Gives free slots to the most urgent requests. A model that no worker with room may take is skipped
    /// as a whole; nothing is looked at when no worker has room.
    pub(super) fn place(&mut self, now: Moment) {
        let mut after = None;
        while !self.deposed && self.fleet.has_room() {
            let Some((rank, model, request)) = self.queue.head_after(after) else {
                break;
            };
            after = Some(rank);
            if let Some(worker) = self.choose_worker(model, request) {
                let request = request.clone();
                self.assign(now, &request, &worker);
            }
        }
    }

    fn choose_worker(&self, model: &ModelName, request: &RequestId) -> Option<WorkerId> {
        let excluded = self.exclusions.of(model);
        let avoid = self.held.get(request)?.job()?.avoid.as_ref();
        let candidates = self
            .fleet
            .roomy()
            .filter(|(id, _)| !excluded.is_some_and(|ids| ids.contains_key(*id)));
        let candidates = candidates.map(|(id, worker)| Candidate {
            worker: id,
            residency: self.fleet.residency(worker, model),
            free_slots: worker.free_slots(),
            avoided: avoid == Some(id),
        });
        policy::choose(candidates).cloned()
    }

    fn assign(&mut self, now: Moment, request: &RequestId, worker: &WorkerId) {
        let mut job = self.take(request).expect("who waits is held");
        let incarnation = self
            .fleet
            .worker(worker)
            .expect("the chosen worker is known")
            .report
            .incarnation;
        self.stats.assigned += 1;
        job.used = job.used.next();
        job.avoid = None;
        let attempt = job.used;
        let assignment = Assignment {
            request: request.clone(),
            attempt,
            strikes: job.strikes,
            epoch: self.settings.epoch,
            class: job.class,
            model: job.model.clone(),
            encoding: job.encoding,
            body: job.body.clone(),
            queued_ms: milliseconds(job.age(now)),
            deadline_in_ms: job.deadline.map(|deadline| milliseconds(deadline.since(now))),
            evict_first: Vec::new(),
        };
        self.fleet.book(worker, request, Sight::Unseen);
        let run = Run {
            job,
            worker: worker.clone(),
            incarnation,
            attempt,
            known_at_seq: None,
            cancel_told: None,
        };
        self.put(request.clone(), Held::Assigned(run));
        let worker = worker.clone();
        self.push(Action::Assign { worker, assignment });
    }
}

fn milliseconds(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}
