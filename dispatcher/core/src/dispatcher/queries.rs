//! What operators and metrics ask.

use std::time::Duration;

use flotilla_protocol::admin::{AssignedRequest, QueuedRequest};
use flotilla_protocol::event::Phase;
use flotilla_protocol::fleet::Report;
use flotilla_protocol::{Epoch, Moment, RequestId};

use super::Dispatcher;
use crate::input::StreamSequence;
use crate::request::{Held, Job};
use crate::stats::Stats;

impl Dispatcher {
    /// The term.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        self.settings.epoch
    }

    /// Requests that wait for a worker, most urgent first, and behind them those that wait for one of their own.
    pub fn queued(&self, now: Moment) -> impl Iterator<Item = QueuedRequest> {
        let jobs = self
            .queue
            .iter()
            .chain(self.isolation.waiting())
            .filter_map(|request| self.held.get(request)?.job());
        jobs.map(move |job| QueuedRequest {
            request: job.request.clone(),
            class: job.class,
            model: job.model.clone(),
            prompt_tokens: job.asked.prompt_tokens,
            age_ms: age_ms(job, now),
            attempts: job.used.0,
        })
    }

    /// How many requests wait for a worker.
    #[must_use]
    pub fn queued_count(&self) -> usize {
        self.queue.len() + self.isolation.waiting_count()
    }

    /// How many requests wait for a worker of their own, as they were on one that died.
    #[must_use]
    pub fn suspect_count(&self) -> usize {
        self.isolation.waiting_count()
    }

    /// Requests on workers, by id.
    pub fn assigned(&self, now: Moment) -> impl Iterator<Item = AssignedRequest> {
        self.held.values().filter_map(move |held| match held {
            Held::Assigned(run) => Some(AssignedRequest {
                request: run.job.request.clone(),
                class: run.job.class,
                model: run.job.model.clone(),
                worker: run.worker.clone(),
                attempt: run.attempt,
                age_ms: age_ms(&run.job, now),
            }),
            Held::Reading(_)
            | Held::Awaiting { .. }
            | Held::Queued { .. }
            | Held::Suspect(_)
            | Held::Ending { .. } => None,
        })
    }

    /// How many requests are on workers.
    #[must_use]
    pub fn assigned_count(&self) -> usize {
        self.fleet.iter().map(|(_, worker)| worker.assigned.len()).sum()
    }

    /// The newest report of each live worker, with its age.
    pub fn fleet(&self, now: Moment) -> impl Iterator<Item = (&Report, Duration)> {
        self.fleet
            .iter()
            .map(move |(_, worker)| (&worker.report, now.since(worker.heard)))
    }

    /// Whether the dispatcher answers for a request.
    #[must_use]
    pub fn holds(&self, request: &RequestId) -> bool {
        self.held.contains_key(request)
    }

    /// Whether the dispatcher answers for a message.
    #[must_use]
    pub fn holds_message(&self, sequence: StreamSequence) -> bool {
        self.sequences.contains_key(&sequence)
    }

    /// Whether a worker's newest report lists a request.
    #[must_use]
    pub fn runs_somewhere(&self, request: &RequestId) -> bool {
        self.fleet
            .iter()
            .any(|(_, worker)| worker.lists(request).is_some())
    }

    /// Whether a request waits or runs; `None` for one that is not held, or neither waits nor runs yet.
    #[must_use]
    pub fn phase(&self, request: &RequestId) -> Option<Phase> {
        match self.held.get(request)? {
            Held::Queued { .. } | Held::Suspect(_) => Some(Phase::Queued),
            Held::Assigned(_) => Some(Phase::Running),
            Held::Reading(_) | Held::Awaiting { .. } | Held::Ending { .. } => None,
        }
    }

    /// Every request that the dispatcher answers for.
    pub fn held(&self) -> impl Iterator<Item = &RequestId> {
        self.held.keys()
    }

    /// How many requests the dispatcher answers for, wherever they stand.
    #[must_use]
    pub fn held_count(&self) -> usize {
        self.held.len()
    }

    /// What happened in this term.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.stats
    }
}

fn age_ms(job: &Job, now: Moment) -> u64 {
    u64::try_from(job.age(now).as_millis()).unwrap_or(u64::MAX)
}
