//! What became of each request and device, and the figures of it.

mod figures;
mod learning;
mod target;

use std::time::Duration;

use flotilla_protocol::{Class, ModelName, Moment, RequestId, Tenant, WorkerId};

use crate::trace::TraceRequest;
pub use figures::{Figures, Part, Percentiles};
pub use learning::Learning;
pub use target::meets_targets;
pub(crate) use target::{Limits, hold};

/// What a run led to.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    /// What became of each request, in the order of the trace.
    pub requests: Vec<RequestRecord>,
    /// What each device did, in the order of the fleet.
    pub devices: Vec<DeviceRecord>,
    /// When the last request ended, or the simulation gave up.
    pub ended: Moment,
}

/// What became of one request.
#[derive(Debug, Clone, PartialEq)]
pub struct RequestRecord {
    /// The request.
    pub id: RequestId,
    /// On whose account it ran.
    pub tenant: Option<Tenant>,
    /// How urgent it was.
    pub class: Class,
    /// Its model.
    pub model: ModelName,
    /// When it was published.
    pub published: Moment,
    /// When it was first given to a worker.
    pub assigned: Option<Moment>,
    /// When its first token was made.
    pub first_token: Option<Moment>,
    /// When it ended.
    pub ended: Option<Moment>,
    /// Tokens that were made.
    pub output_tokens: u32,
    /// The worker that it ended on.
    pub worker: Option<WorkerId>,
    /// How it ended.
    pub end: RequestEnd,
}

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RequestEnd {
    /// Its answer is complete.
    Finished,
    /// Its deadline passed, on a worker or before.
    DeadlineExceeded,
    /// The policy ended it for another reason.
    Refused,
    /// It had no end when the simulation gave up.
    Unfinished,
}

/// What one device did.
#[derive(Debug, Clone, PartialEq)]
pub struct DeviceRecord {
    /// Its worker.
    pub worker: WorkerId,
    /// Models that were loaded.
    pub loads: u64,
    /// Of these, the ones that others were evicted for.
    pub swaps: u64,
    /// Steps that it made.
    pub steps: u64,
    /// Time with at least one request on it.
    pub busy: Duration,
    /// What that time cost.
    pub cost: f64,
}

impl RequestRecord {
    /// Time from publish to end.
    #[must_use]
    pub fn total(&self) -> Option<Duration> {
        self.ended.map(|ended| ended.since(self.published))
    }

    /// Time from publish to the first token.
    #[must_use]
    pub fn to_first_token(&self) -> Option<Duration> {
        self.first_token.map(|first| first.since(self.published))
    }

    /// A request that was not published yet.
    pub(crate) fn new(request: &TraceRequest) -> Self {
        Self {
            id: request.id.clone(),
            tenant: request.tenant.clone(),
            class: request.class,
            model: request.model.clone(),
            published: Moment::after_origin(request.at),
            assigned: None,
            first_token: None,
            ended: None,
            output_tokens: 0,
            worker: None,
            end: RequestEnd::Unfinished,
        }
    }
}
