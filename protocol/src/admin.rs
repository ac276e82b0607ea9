//! What operators ask of the leading dispatcher on `flotilla.admin.*`; JSON both ways.

use serde::{Deserialize, Serialize};

use crate::fleet::{Registration, Report};
use crate::ids::{Attempt, Class, Epoch, ModelName, RequestId, WorkerId};
use crate::request::KeepAlive;

/// Answer of `admin.queue`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct QueueStatus {
    /// The dispatcher that leads.
    pub dispatcher: String,
    /// Its term.
    pub epoch: Epoch,
    /// Requests that wait in memory, most urgent first, at most [`QUEUE_ENTRY_COUNT_MAX`].
    pub queued: Vec<QueuedRequest>,
    /// Requests that wait in memory, all of them.
    pub queued_total: u64,
    /// Requests on workers.
    pub assigned: Vec<AssignedRequest>,
    /// Messages that wait in the stream and were not pulled yet.
    pub stream_pending: u64,
}

/// Most requests that one [`QueueStatus`] lists.
pub const QUEUE_ENTRY_COUNT_MAX: usize = 1000;

/// A request that waits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueuedRequest {
    /// The request.
    pub request: RequestId,
    /// Class.
    pub class: Class,
    /// Model.
    pub model: ModelName,
    /// Tokens of the prompt.
    pub prompt_tokens: u32,
    /// Milliseconds since it was published.
    pub age_ms: u64,
    /// Attempts so far.
    pub attempts: u32,
}

/// A request on a worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AssignedRequest {
    /// The request.
    pub request: RequestId,
    /// Class.
    pub class: Class,
    /// Model.
    pub model: ModelName,
    /// The worker.
    pub worker: WorkerId,
    /// The attempt.
    pub attempt: Attempt,
    /// Milliseconds since it was published.
    pub age_ms: u64,
}

/// Answer of `admin.workers`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FleetStatus {
    /// Every live worker.
    pub workers: Vec<WorkerStatus>,
}

/// One worker, as the dispatcher sees it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WorkerStatus {
    /// What it is; `None` until its registration has been read.
    pub registration: Option<Registration>,
    /// Its newest report.
    pub report: Report,
    /// Milliseconds since that report.
    pub report_age_ms: u64,
}

/// Body of `admin.cancel`; the answer is [`CancelReply`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CancelRequest {
    /// The request.
    pub request: RequestId,
}

/// Answer of `admin.cancel`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CancelReply {
    /// It waited and is ended.
    Ended,
    /// It runs; its worker has been told.
    Told,
    /// The dispatcher does not hold it; it is ended should it arrive.
    Unknown,
}

/// Body of `admin.load` and `admin.unload`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ResidencyRequest {
    /// The model.
    pub model: ModelName,
    /// The worker; `None` means: load on the one with most room, unload everywhere.
    #[serde(default)]
    pub worker: Option<WorkerId>,
    /// How long it stays, for `load`.
    #[serde(default)]
    pub keep_alive: Option<KeepAlive>,
}

/// Answer of `admin.load` and `admin.unload`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResidencyReply {
    /// The workers that were told and accepted.
    pub workers: Vec<WorkerId>,
}
