//! Who decides which request runs where and when.

mod flotilla;
mod name;

use std::time::Duration;

use bytes::Bytes;
use flotilla_protocol::assignment::{AssignReply, Assignment, Done};
use flotilla_protocol::fleet::Report;
use flotilla_protocol::request::Slo;
use flotilla_protocol::{
    Attempt, Class, Encoding, Epoch, ModelName, Moment, RequestId, Strikes, Tenant, WorkerId,
};

pub use flotilla::Flotilla;
pub use name::{PolicyName, UnknownPolicy};

/// A request as an online policy sees it: all but the length of its answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Arriving {
    /// Its name.
    pub id: RequestId,
    /// Its place in the trace, from 0.
    pub index: usize,
    /// When it was published.
    pub published: Moment,
    /// On whose account it runs.
    pub tenant: Option<Tenant>,
    /// How urgent it is.
    pub class: Class,
    /// Its model.
    pub model: ModelName,
    /// Tokens of the prompt.
    pub prompt_tokens: u32,
    /// Most tokens of the answer.
    pub output_tokens_max: u32,
    /// Its own targets.
    pub slo: Option<Slo>,
    /// From here on it is worthless.
    pub deadline: Option<Moment>,
}

impl Arriving {
    /// An assignment of its first attempt; a worker is told no deadline.
    #[must_use]
    pub fn assignment(&self, now: Moment) -> Assignment {
        Assignment {
            request: self.id.clone(),
            attempt: Attempt(1),
            strikes: Strikes(0),
            epoch: Epoch(1),
            class: self.class,
            model: self.model.clone(),
            encoding: Encoding::Json,
            body: Bytes::new(),
            queued_ms: u64::try_from(now.since(self.published).as_millis()).unwrap_or(u64::MAX),
            deadline_in_ms: None,
            evict_first: Vec::new(),
            alone: false,
        }
    }
}

/// What a policy wants done.
#[derive(Debug, Clone, PartialEq)]
pub enum Order {
    /// Send the request to a worker; the answer comes by [`Policy::handle_reply`].
    Assign {
        /// The worker.
        worker: WorkerId,
        /// What to send.
        assignment: Assignment,
    },
    /// Bring a model's weights into the host memory of a worker.
    Prefetch {
        /// The worker.
        worker: WorkerId,
        /// The model.
        model: ModelName,
    },
    /// Let a model leave a worker's device as soon as no request holds it.
    Unload {
        /// The worker.
        worker: WorkerId,
        /// The model.
        model: ModelName,
    },
    /// End a request that is on no worker.
    End {
        /// The request.
        request: RequestId,
        /// Why.
        reason: EndReason,
    },
}

/// Why a policy ends a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum EndReason {
    /// Its deadline has passed.
    DeadlineExceeded,
    /// It cannot be served, or is not wanted.
    Refused,
}

/// How much a policy gives to a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Intake {
    /// As much as the worker's reports offer; it refuses more.
    ByFreeSlots,
    /// Anything at once: what finds no slot waits in the worker's own queue, first come first served.
    Unbounded,
}

/// Somebody who decides. The order of calls is that of [`flotilla_dispatcher_core::Dispatcher`]: after each
/// `handle_*` comes [`Policy::poll_order`] until `None`, and [`Policy::handle_timeout`] when
/// [`Policy::poll_timeout`] is reached.
pub trait Policy {
    /// What its workers take.
    fn intake(&self) -> Intake;

    /// A request was published.
    fn handle_arrival(&mut self, now: Moment, arriving: &Arriving);

    /// A worker's report came in.
    fn handle_report(&mut self, now: Moment, report: Report);

    /// A worker says that an attempt ended.
    fn handle_done(&mut self, now: Moment, done: Done);

    /// A worker answers an assignment.
    fn handle_reply(
        &mut self,
        now: Moment,
        worker: &WorkerId,
        request: &RequestId,
        attempt: Attempt,
        reply: AssignReply,
    );

    /// Time has passed.
    fn handle_timeout(&mut self, now: Moment);

    /// When [`Self::handle_timeout`] is due, if ever.
    fn poll_timeout(&self) -> Option<Moment>;

    /// The next thing to do, if any.
    #[must_use]
    fn poll_order(&mut self) -> Option<Order>;
}

/// Time until a moment that may have passed.
pub(crate) fn left(now: Moment, until: Option<Moment>) -> Option<Duration> {
    until.map(|until| until.since(now))
}
