//! Requests that are to run alone, and the workers that are kept for them.

use std::collections::{BTreeMap, BTreeSet};

use flotilla_protocol::{Moment, RequestId, WorkerId};

use crate::micros::Micros;

/// Requests that were on a worker when it died, and wait to run with nothing beside them.
#[derive(Debug, Default)]
pub(crate) struct Isolation {
    /// Those that wait, by the times of their publishes.
    waiting: BTreeSet<(Micros, RequestId)>,
    /// Workers that take nothing but one request, from the choice of the worker to the end of the attempt.
    kept: BTreeMap<WorkerId, Keep>,
    by_request: BTreeMap<RequestId, WorkerId>,
    /// Workers that were kept, and are left to others for as long again.
    rests: BTreeMap<WorkerId, Rest>,
}

#[derive(Debug)]
struct Keep {
    request: RequestId,
    since: Moment,
}

/// How long a worker is left to others.
#[derive(Debug, Clone, Copy)]
enum Rest {
    /// As long as it was kept, which began at this moment and has just ended.
    AsLongAsSince(Moment),
    Until(Moment),
}

impl Isolation {
    /// A request waits to run alone.
    pub(crate) fn wait(&mut self, published: Micros, request: RequestId) {
        self.waiting.insert((published, request));
    }

    /// A request does not wait any more; a worker that is kept for it stays so.
    pub(crate) fn end_wait(&mut self, published: Micros, request: &RequestId) {
        self.waiting.remove(&(published, request.clone()));
    }

    /// Those that wait, the oldest first.
    pub(crate) fn waiting(&self) -> impl Iterator<Item = &RequestId> {
        self.waiting.iter().map(|(_, request)| request)
    }

    pub(crate) fn waiting_count(&self) -> usize {
        self.waiting.len()
    }

    /// Keeps a worker for a request.
    ///
    /// # Panics
    /// When either has another.
    pub(crate) fn keep(&mut self, now: Moment, worker: &WorkerId, request: &RequestId) {
        let keep = Keep {
            request: request.clone(),
            since: now,
        };
        let other = self.kept.insert(worker.clone(), keep);
        let elsewhere = self.by_request.insert(request.clone(), worker.clone());
        assert!(
            other.is_none() && elsewhere.is_none(),
            "a worker is kept for one request"
        );
    }

    /// Gives free the worker that was kept for a request, if one was.
    pub(crate) fn release(&mut self, request: &RequestId) -> Option<WorkerId> {
        let worker = self.by_request.remove(request)?;
        let keep = self
            .kept
            .remove(&worker)
            .expect("a request's worker is kept for it");
        self.rests.insert(worker.clone(), Rest::AsLongAsSince(keep.since));
        Some(worker)
    }

    /// The worker that is kept for a request.
    pub(crate) fn worker_of(&self, request: &RequestId) -> Option<&WorkerId> {
        self.by_request.get(request)
    }

    /// The request that a worker is kept for.
    pub(crate) fn request_on(&self, worker: &WorkerId) -> Option<&RequestId> {
        self.kept.get(worker).map(|keep| &keep.request)
    }

    /// Workers that are kept, with the requests.
    pub(crate) fn kept(&self) -> impl Iterator<Item = (&WorkerId, &RequestId)> {
        self.kept.iter().map(|(worker, keep)| (worker, &keep.request))
    }

    pub(crate) fn kept_count(&self) -> usize {
        self.kept.len()
    }

    /// Counts from now how long the workers that were given free just now are left to others.
    pub(crate) fn begin_rests(&mut self, now: Moment) {
        self.rests.retain(|_, rest| {
            let until = match *rest {
                Rest::AsLongAsSince(since) => now + now.since(since),
                Rest::Until(until) => until,
            };
            *rest = Rest::Until(until);
            now < until
        });
    }

    /// Whether a worker is left to others.
    pub(crate) fn rests(&self, worker: &WorkerId) -> bool {
        self.rests.contains_key(worker)
    }
}
