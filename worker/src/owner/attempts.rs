//! The attempts' tasks, and the switches by which the owner steers them.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use flotilla_protocol::assignment::{Assignment, AttemptEnd};
use flotilla_protocol::event::RequestError;
use flotilla_protocol::request::InferenceRequest;
use flotilla_protocol::{Attempt, RequestId, TraceParent};
use flotilla_worker_core::worker::Progress;
use tokio::sync::oneshot;
use tokio::task::{self, JoinSet};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::error;

use crate::attempt::{self, AttemptContext, HandBack, LeaseAnswer, NewAttempt, TokenCounts};

/// Every attempt that runs; at most as many as the desk has slots.
#[derive(Debug, Default)]
pub(super) struct Attempts {
    tasks: JoinSet<AttemptEnd>,
    by_request: HashMap<RequestId, Held>,
    by_task: HashMap<task::Id, RequestId>,
}

/// The owner's side of one attempt.
#[derive(Debug)]
struct Held {
    attempt: Attempt,
    lease: Option<oneshot::Sender<LeaseAnswer>>,
    cancel: CancellationToken,
    expire: CancellationToken,
    hand_back: HandBack,
    counts: Arc<TokenCounts>,
}

/// An attempt that ended.
#[derive(Debug)]
pub(super) struct Finished {
    pub(super) request: RequestId,
    pub(super) attempt: Attempt,
    pub(super) end: AttemptEnd,
    pub(super) progress: Progress,
}

impl Attempts {
    /// Starts the task of an attempt.
    pub(super) fn start(
        &mut self,
        assignment: Assignment,
        request: Result<InferenceRequest, RequestError>,
        trace: Option<TraceParent>,
        context: Arc<AttemptContext>,
    ) {
        let (lease, lease_answer) = oneshot::channel();
        let held = Held {
            attempt: assignment.attempt,
            lease: Some(lease),
            cancel: CancellationToken::new(),
            expire: CancellationToken::new(),
            hand_back: HandBack::default(),
            counts: Arc::default(),
        };
        let id = assignment.request.clone();
        let new = NewAttempt {
            assignment,
            request,
            trace,
            received: Instant::now(),
            lease: lease_answer,
            cancel: held.cancel.clone(),
            expire: held.expire.clone(),
            hand_back: held.hand_back.clone(),
            counts: Arc::clone(&held.counts),
        };
        let task = self.tasks.spawn(attempt::run(new, context));
        self.by_task.insert(task.id(), id.clone());
        self.by_request.insert(id, held);
    }

    /// Waits for the next attempt that ends; for ever when none runs. Cancelling loses nothing.
    pub(super) async fn next_finished(&mut self) -> Finished {
        let (id, end) = match self.tasks.join_next_with_id().await {
            Some(Ok((id, end))) => (id, end),
            Some(Err(broken)) => {
                error!(error = %broken, "an attempt's task panicked");
                let message = broken.to_string();
                (broken.id(), AttemptEnd::Panicked { message })
            }
            None => return std::future::pending().await,
        };
        let request = self.by_task.remove(&id).expect("every task has its request");
        let held = self
            .by_request
            .remove(&request)
            .expect("every request has one task");
        Finished {
            request,
            attempt: held.attempt,
            end,
            progress: held.progress(),
        }
    }

    /// Tells an attempt about its model.
    pub(super) fn answer_lease(&mut self, request: &RequestId, answer: LeaseAnswer) {
        let held = self.by_request.get_mut(request);
        if let Some(lease) = held.and_then(|held| held.lease.take()) {
            // An attempt that was cancelled meanwhile no longer listens.
            let _ = lease.send(answer);
        }
    }

    /// Ends an attempt's answer as cancelled; unknown ones have ended already.
    pub(super) fn cancel(&self, request: &RequestId) {
        if let Some(held) = self.by_request.get(request) {
            held.cancel.cancel();
        }
    }

    /// Ends an attempt's answer as too late; unknown ones have ended already.
    pub(super) fn expire(&self, request: &RequestId) {
        if let Some(held) = self.by_request.get(request) {
            held.expire.cancel();
        }
    }

    /// Stops an attempt and leaves its answer open; unknown ones have ended already.
    pub(super) fn hand_back(&self, request: &RequestId, reason: &str) {
        if let Some(held) = self.by_request.get(request) {
            held.hand_back.call(reason);
        }
    }

    /// Stops all attempts.
    pub(super) fn hand_back_all(&self, reason: &str) {
        let held = self.by_request.values();
        held.for_each(|held| held.hand_back.call(reason));
    }

    /// How far each attempt is.
    pub(super) fn progress(&self) -> impl Iterator<Item = (&RequestId, Progress)> {
        let held = self.by_request.iter();
        held.map(|(request, held)| (request, held.progress()))
    }

    /// How many run.
    pub(super) fn len(&self) -> usize {
        self.by_request.len()
    }
}

impl Held {
    fn progress(&self) -> Progress {
        Progress {
            prompt_tokens: self.counts.prompt.load(Ordering::Relaxed),
            output_tokens: self.counts.output.load(Ordering::Relaxed),
        }
    }
}
