//! A request is given to a worker.

use std::time::Duration;

use flotilla_protocol::assignment::Assignment;
use flotilla_protocol::catalog::Policy;
use flotilla_protocol::{ModelName, Moment, RequestId};

use super::Dispatcher;
use super::placement::{Manner, Placement};
use crate::action::Action;
use crate::dispatch::Dispatch;
use crate::fleet::{Booking, Giver, Sight};
use crate::observation::Observation;
use crate::policy::Readiness;
use crate::queue::Line;
use crate::request::{Held, Job, Run};

impl Dispatcher {
    /// Gives a waiting request to a worker.
    pub(super) fn assign(&mut self, now: Moment, request: &RequestId, placement: Placement) {
        let Placement {
            worker,
            device,
            victims,
            dispatch,
            manner,
        } = placement;
        let (line, mut job) = self.take_to_run(request, manner);
        self.queue.charge(&line, tokens(&job));
        let known = self.fleet.worker(&worker).expect("the chosen worker is known");
        let incarnation = known.report.incarnation;
        self.stats.assigned += 1;
        self.stats.assigned_cold += u64::from(dispatch.readiness == Readiness::Absent);
        self.stats.victims += u64::try_from(victims.len()).unwrap_or(u64::MAX);
        job.used = job.used.next();
        job.avoid = None;
        job.blocked_since = None;
        self.observations.push(|| Observation::Assigned {
            model: job.model.clone(),
            class: job.class,
            waited: job.age(now),
            slack_s: job.asked.target.map(|_| slack_s(dispatch.slack_us)),
        });
        let attempt = job.used;
        let alone = manner == Manner::Alone;
        let mut assignment = self.assignment(now, &job, victims.clone());
        assignment.alone = alone;
        let mut booking = self.booking(&job, device, &dispatch, victims);
        booking.is_measured &= self.policy_of(&job) != Policy::Fifo;
        self.fleet.book(&worker, request, booking, Sight::Unseen);
        let run = Run {
            job,
            worker: worker.clone(),
            incarnation,
            attempt,
            known_at_seq: None,
            cancel_told: None,
            dispatch: Some(dispatch),
            alone,
        };
        self.put(request.clone(), Held::Assigned(Box::new(run)));
        self.push(Action::Assign { worker, assignment });
    }

    /// What the worker is told.
    fn assignment(&self, now: Moment, job: &Job, evict_first: Vec<ModelName>) -> Assignment {
        Assignment {
            request: job.request.clone(),
            attempt: job.used,
            strikes: job.strikes,
            epoch: self.settings.epoch,
            class: job.class,
            model: job.model.clone(),
            encoding: job.encoding,
            body: job.body.clone(),
            queued_ms: milliseconds(job.age(now)),
            deadline_in_ms: job.deadline.map(|deadline| milliseconds(deadline.since(now))),
            evict_first,
            alone: false,
        }
    }

    /// The capacity that a request takes on a device.
    fn booking(&self, job: &Job, device: usize, dispatch: &Dispatch, victims: Vec<ModelName>) -> Booking {
        let price = job.price(dispatch.kind);
        Booking {
            device,
            model: job.model.clone(),
            asked: job.asked,
            published: job.published,
            reads: self.reads(&job.model, dispatch.kind, job.asked.prompt_tokens),
            began: dispatch.at,
            made: 0,
            made_at: dispatch.at,
            share: dispatch.share,
            kv_tokens: job.kv_tokens(),
            ends_at: dispatch.at + dispatch.ends_in,
            is_measured: price.is_some_and(|price| price.is_measured()),
            giver: Giver::Us,
            victims,
        }
    }

    /// Takes a request out of where it waits, with the line that pays for it. The worker that is kept for a suspect
    /// stays so.
    fn take_to_run(&mut self, request: &RequestId, manner: Manner) -> (Line, Box<Job>) {
        if manner == Manner::Alone {
            let job = self.take_apart(request);
            return (job.line(), job);
        }
        let Some(Held::Queued { place, .. }) = self.held.get(request) else {
            unreachable!("only who waits is placed");
        };
        let line = place.line.clone();
        (line, self.take(request).expect("who waits is held"))
    }
}

/// What a request is charged for: prompt and answer.
fn tokens(job: &Job) -> f64 {
    f64::from(job.asked.prompt_tokens) + f64::from(job.asked.prediction.high)
}

#[expect(clippy::cast_precision_loss, reason = "spans are far below 2^52 microseconds")]
fn slack_s(slack_us: i64) -> f64 {
    slack_us as f64 / 1e6
}

fn milliseconds(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}
