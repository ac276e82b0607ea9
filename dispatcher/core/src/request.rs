//! One request while the dispatcher answers for it.

use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use flotilla_protocol::event::{ErrorCode, RequestError};
use flotilla_protocol::{Attempt, Class, Encoding, ModelName, Moment, RequestId, Strikes, Tenant, WorkerId};

use crate::dispatch::Dispatch;
use crate::input::{Arrival, PromptCount, StreamSequence};
use crate::micros::Micros;
use crate::models::Kind;
use crate::price::{Asked, Price};
use crate::queue::{Line, Place};

/// Longest reason of one strike, in characters.
const REASON_CHARS_MAX: usize = 256;
/// How many reasons of strikes are kept, the newest.
const REASON_COUNT_MAX: usize = 8;

/// Where a request stands; it stands in exactly one place.
#[derive(Debug)]
pub(crate) enum Held {
    /// Its journal is being read.
    Reading(Box<Job>),
    /// Its journal names a worker that has not reported in this term.
    Awaiting { job: Box<Job>, begun: Begun },
    /// It waits for a worker.
    Queued {
        job: Box<Job>,
        place: Place,
        told_position: Option<u64>,
    },
    /// It waits for a worker of its own, as it was on one that died.
    Suspect(Box<Job>),
    /// It is on a worker.
    Assigned(Box<Run>),
    /// Its terminal event is being written.
    Ending { sequences: Vec<StreamSequence> },
}

/// A request on a worker.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) job: Box<Job>,
    pub(crate) worker: WorkerId,
    pub(crate) incarnation: u64,
    pub(crate) attempt: Attempt,
    /// A report with a larger `seq` that does not list the attempt tells that it ended; `None` while the
    /// worker has neither answered nor listed it.
    pub(crate) known_at_seq: Option<u64>,
    /// When the worker was last told that the request is cancelled.
    pub(crate) cancel_told: Option<Moment>,
    /// How it was decided, when we did.
    pub(crate) dispatch: Option<Dispatch>,
    /// Whether nothing runs beside it on the worker, from its beginning to its end.
    pub(crate) alone: bool,
}

/// An attempt that has begun, as far as it matters when its worker dies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Begun {
    pub(crate) worker: WorkerId,
    /// Which start of the worker, where that is known.
    pub(crate) incarnation: Option<u64>,
    pub(crate) attempt: Attempt,
    /// Whether nothing ran beside it.
    pub(crate) alone: bool,
}

/// The end of a worker's process: those who ran then have it in common.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Death {
    worker: WorkerId,
    incarnation: Option<u64>,
}

impl Begun {
    /// The death of its worker.
    pub(crate) fn death(&self) -> Death {
        Death {
            worker: self.worker.clone(),
            incarnation: self.incarnation,
        }
    }
}

impl Run {
    pub(crate) fn begun(&self) -> Begun {
        Begun {
            worker: self.worker.clone(),
            incarnation: Some(self.incarnation),
            attempt: self.attempt,
            alone: self.alone,
        }
    }
}

/// What is known of a request until it ends.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) request: RequestId,
    pub(crate) sequences: Vec<StreamSequence>,
    pub(crate) class: Class,
    pub(crate) model: ModelName,
    pub(crate) encoding: Encoding,
    pub(crate) body: Bytes,
    pub(crate) tenant: Option<Tenant>,
    pub(crate) only_worker: Option<WorkerId>,
    /// What profiles are asked; never changes.
    pub(crate) asked: Asked,
    pub(crate) output_tokens_max: u32,
    pub(crate) prompt_count: PromptCount,
    /// What it takes on each kind of device.
    pub(crate) prices: Vec<(Kind, Price)>,
    pub(crate) outlook: Outlook,
    /// Whether its line's demand knows of it.
    pub(crate) is_counted: bool,
    /// When it was first found that there is no room for it.
    pub(crate) blocked_since: Option<Moment>,
    pub(crate) published: Micros,
    pub(crate) sequence: StreamSequence,
    pub(crate) deadline: Option<Moment>,
    arrived: Moment,
    age_at_arrival: Duration,
    /// The largest attempt that a worker or the journal may know.
    pub(crate) used: Attempt,
    /// The largest attempt that is known to run no more.
    pub(crate) over: Attempt,
    /// The death for which it has to run alone.
    pub(crate) suspected_in: Option<Death>,
    pub(crate) strikes: Strikes,
    pub(crate) reasons: Vec<StrikeReason>,
    pub(crate) verdict: Option<Verdict>,
    /// The worker that it has just come back from.
    pub(crate) avoid: Option<WorkerId>,
}

/// Whether a request can meet its target, as far as that was found out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outlook {
    /// It can, or has none.
    Hopeful,
    /// It was given up so that more of the others can.
    GivenUp,
    /// It cannot.
    Late,
}

/// Why a request must end as soon as no worker runs it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    Cancelled,
    ModelRemoved,
    /// Admission refuses it now, whatever it did before.
    Refused(RequestError),
}

/// Why a request got a strike.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum StrikeReason {
    /// The worker fell silent.
    WorkerLost(WorkerId),
    /// The worker's connection was gone.
    WorkerGone(WorkerId),
    /// The worker's process was replaced by another.
    WorkerRestarted(WorkerId),
    /// The engine panicked over it.
    Panicked { worker: WorkerId, message: String },
}

impl Outlook {
    /// What is thought of a request with new prices: by these it may be in time again.
    pub(crate) fn after_repricing(self) -> Self {
        match self {
            Self::Hopeful | Self::Late => Self::Hopeful,
            Self::GivenUp => Self::GivenUp,
        }
    }
}

impl Job {
    pub(crate) fn new(now: Moment, arrival: Arrival, asked: Asked) -> Self {
        Self {
            tenant: arrival.tenant,
            only_worker: arrival.only_worker,
            asked,
            output_tokens_max: arrival.output_tokens_max,
            prompt_count: arrival.prompt_count,
            prices: Vec::new(),
            outlook: Outlook::Hopeful,
            is_counted: false,
            blocked_since: None,
            published: Micros::from(now) - arrival.age,
            sequence: arrival.sequence,
            deadline: arrival.deadline_in.map(|left| now + left),
            request: arrival.request,
            sequences: vec![arrival.sequence],
            class: arrival.class,
            model: arrival.model,
            encoding: arrival.encoding,
            body: arrival.body,
            arrived: now,
            age_at_arrival: arrival.age,
            used: Attempt(0),
            over: Attempt(0),
            suspected_in: None,
            strikes: Strikes(0),
            reasons: Vec::new(),
            verdict: None,
            avoid: None,
        }
    }

    /// What it takes on a kind of device, when it was priced for it.
    pub(crate) fn price(&self, kind: Kind) -> Option<&Price> {
        let priced = self.prices.iter().find(|(priced, _)| *priced == kind);
        priced.map(|(_, price)| price)
    }

    /// Whether a worker may have it at all.
    pub(crate) fn may_go_to(&self, worker: &WorkerId) -> bool {
        self.only_worker.as_ref().is_none_or(|only| only == worker)
    }

    /// Where it waits while it can be in time.
    pub(crate) fn line(&self) -> Line {
        Line::Live {
            class: self.class,
            tenant: self.tenant.clone(),
        }
    }

    /// Device time that it needs at least.
    pub(crate) fn least_work(&self) -> Duration {
        let work = self.prices.iter().map(|(_, price)| price.work);
        work.min().unwrap_or_default()
    }

    /// Tokens of keys and values that it may come to need.
    pub(crate) fn kv_tokens(&self) -> u64 {
        u64::from(self.asked.prompt_tokens) + u64::from(self.output_tokens_max)
    }

    /// Time since the publish.
    pub(crate) fn age(&self, now: Moment) -> Duration {
        self.age_at_arrival + now.since(self.arrived)
    }

    /// Takes note that an attempt runs no more.
    pub(crate) fn close(&mut self, attempt: Attempt) {
        self.over = self.over.max(attempt);
        self.used = self.used.max(attempt);
    }

    /// Adds a strike; of many reasons the newest are kept.
    pub(crate) fn strike(&mut self, reason: StrikeReason) {
        self.strikes = self.strikes.next();
        if self.reasons.len() == REASON_COUNT_MAX {
            self.reasons.remove(0);
        }
        self.reasons.push(reason);
    }

    /// Another was to blame for the death for which it was to run alone.
    pub(crate) fn clear(&mut self) {
        self.suspected_in = None;
        if self.reasons.pop().is_some() {
            self.strikes = Strikes(self.strikes.0 - 1);
        }
    }

    /// A worker that was taken for dead lives and has its newest attempt: nothing died with it.
    pub(crate) fn forgive(&mut self, worker: &WorkerId) {
        if self.reasons.last() == Some(&StrikeReason::WorkerLost(worker.clone())) {
            self.reasons.pop();
            self.strikes = Strikes(self.strikes.0 - 1);
        }
    }

    /// Why it is poison, in words.
    pub(crate) fn poison_reason(&self) -> String {
        let mut text = format!("the request has {} strikes", self.strikes);
        for (index, reason) in self.reasons.iter().enumerate() {
            text.push_str(if index == 0 { ": " } else { "; " });
            text.push_str(&reason.to_string());
        }
        let told = u32::try_from(self.reasons.len()).unwrap_or(u32::MAX);
        if self.strikes.0 > told {
            text.push_str(&format!("; and {} of earlier", self.strikes.0 - told));
        }
        text
    }
}

impl Held {
    pub(crate) fn sequences(&self) -> &[StreamSequence] {
        match self {
            Self::Ending { sequences } => sequences,
            Self::Reading(job)
            | Self::Awaiting { job, .. }
            | Self::Queued { job, .. }
            | Self::Suspect(job) => &job.sequences,
            Self::Assigned(run) => &run.job.sequences,
        }
    }

    pub(crate) fn sequences_mut(&mut self) -> &mut Vec<StreamSequence> {
        match self {
            Self::Ending { sequences } => sequences,
            Self::Reading(job)
            | Self::Awaiting { job, .. }
            | Self::Queued { job, .. }
            | Self::Suspect(job) => &mut job.sequences,
            Self::Assigned(run) => &mut run.job.sequences,
        }
    }

    /// The request, unless it is ending.
    pub(crate) fn job(&self) -> Option<&Job> {
        match self {
            Self::Ending { .. } => None,
            Self::Reading(job)
            | Self::Awaiting { job, .. }
            | Self::Queued { job, .. }
            | Self::Suspect(job) => Some(job),
            Self::Assigned(run) => Some(&run.job),
        }
    }

    /// The request, unless it is ending.
    pub(crate) fn job_mut(&mut self) -> Option<&mut Job> {
        match self {
            Self::Ending { .. } => None,
            Self::Reading(job)
            | Self::Awaiting { job, .. }
            | Self::Queued { job, .. }
            | Self::Suspect(job) => Some(job),
            Self::Assigned(run) => Some(&mut run.job),
        }
    }
}

impl fmt::Display for StrikeReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::WorkerLost(worker) => write!(f, "worker {worker} fell silent"),
            Self::WorkerGone(worker) => write!(f, "worker {worker} had no connection any more"),
            Self::WorkerRestarted(worker) => write!(f, "worker {worker} died and started again"),
            Self::Panicked { worker, message } => {
                let message: String = message.chars().take(REASON_CHARS_MAX).collect();
                write!(f, "worker {worker} panicked: {message}")
            }
        }
    }
}

/// An error that concerns no single field.
pub(crate) fn failure(code: ErrorCode, message: String) -> RequestError {
    RequestError {
        code,
        message,
        param: None,
    }
}
