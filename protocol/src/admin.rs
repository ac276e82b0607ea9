//! What operators ask of the leading dispatcher on `flotilla.admin.*`; JSON both ways.

use serde::{Deserialize, Serialize};

use crate::fleet::{Registration, Report};
use crate::ids::{Attempt, Class, Epoch, ModelName, RequestId, Tenant, WorkerId};
use crate::profile::ProfileSource;
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

/// Body of `admin.why`; the answer is [`WhyReply`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WhyRequest {
    /// The request.
    pub request: RequestId,
}

/// Where a request stands and why.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WhyReply {
    /// The request.
    pub request: RequestId,
    /// What it was found to be; `None` when the dispatcher does not hold it.
    pub found: Option<Explanation>,
}

/// What the dispatcher knows and thinks of a request.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Explanation {
    /// Model.
    pub model: ModelName,
    /// Class.
    pub class: Class,
    /// On whose account.
    pub tenant: Option<Tenant>,
    /// Milliseconds since it was published.
    pub age_ms: u64,
    /// Tokens of the prompt.
    pub prompt_tokens: u32,
    /// Whether these were estimated from the bytes.
    pub prompt_estimated: bool,
    /// Tokens that the answer is predicted to have, at least and at most.
    pub output_tokens: (u32, u32),
    /// Milliseconds after its publish by which an answer of that greatest length has to be complete; `None`
    /// without a target.
    pub target_ms: Option<u64>,
    /// Where it stands.
    pub standing: Standing,
    /// The devices that may take it, the best first, at most [`WHY_CANDIDATE_COUNT_MAX`].
    pub candidates: Vec<WhyCandidate>,
    /// All devices that may take it.
    pub candidates_total: u32,
}

/// Most devices that one [`Explanation`] lists.
pub const WHY_CANDIDATE_COUNT_MAX: usize = 64;

/// Where a request stands.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Standing {
    /// Its journal is read, or its worker is awaited.
    Checking,
    /// It waits.
    Queued {
        /// How it is doing: `in_time`, `given_up` (so that more of the others are in time) or `late`; `suspect` when it
        /// was on a worker that died and is to run alone.
        line: String,
        /// Milliseconds until it has to start; negative when that is past. `None` without a target.
        slack_ms: Option<i64>,
        /// A device is kept for it.
        reserved: bool,
        /// What it waits for, in words.
        waits_for: String,
    },
    /// It is on a worker.
    Assigned {
        /// The worker.
        worker: WorkerId,
        /// The attempt.
        attempt: Attempt,
        /// How it came there; `None` when a former leader decided.
        decision: Option<Decision>,
    },
    /// Its terminal event is being written.
    Ending,
}

/// How an assignment was decided.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Decision {
    /// Kind of the device.
    pub device_kind: String,
    /// Milliseconds until it was expected to start there.
    pub starts_in_ms: u64,
    /// Milliseconds until it was expected to end there.
    pub ends_in_ms: u64,
    /// Milliseconds that were to spare; `None` without a target.
    pub slack_ms: Option<i64>,
    /// Part of the device that it was to occupy.
    pub share: f64,
    /// Part of the device that was booked with it.
    pub load: f64,
    /// Devices that could have run it, but were dearer, fuller or slower.
    pub not_preferred: u32,
    /// Devices that would have missed the target.
    pub too_late: u32,
    /// Devices without room.
    pub no_room: u32,
    /// Devices without the model.
    pub no_copy: u32,
}

/// One device that may take a request, and why it does not have it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WhyCandidate {
    /// The worker.
    pub worker: WorkerId,
    /// Its device.
    pub device: u32,
    /// The device's kind.
    pub device_kind: String,
    /// Where the figures come from.
    pub profile: Option<ProfileSource>,
    /// Whether the request could be given there now, or what is missing: `now`, `no_share`, `no_slot`, `no_kv`,
    /// `harm`, `reserved`, `no_copy`, `excluded`, `draining`.
    pub room: String,
    /// How far the model is there: `ready`, `loading` or `absent`.
    pub model: String,
    /// Part of the device that is booked.
    pub load: f64,
    /// Part that the request would occupy.
    pub share: f64,
    /// Milliseconds until it would start there.
    pub starts_in_ms: u64,
    /// Milliseconds until it would end there.
    pub ends_in_ms: u64,
    /// Milliseconds to spare; negative when the target would be missed, `None` without one.
    pub slack_ms: Option<i64>,
    /// Device time times price, with what a load costs; comparable between candidates only.
    pub cost: f64,
    /// Models that would have to go.
    pub victims: Vec<ModelName>,
}

/// Answer of `admin.profiles`: what the dispatcher decides by.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ProfileStatuses {
    /// One for each model and device kind that was asked for.
    pub profiles: Vec<ProfileStatus>,
}

/// A profile in use.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ProfileStatus {
    /// The model.
    pub model: ModelName,
    /// The device kind.
    pub device_kind: String,
    /// Where the figures come from.
    pub source: ProfileSource,
    /// Observed over expected time, learnt from finished requests.
    pub correction: f64,
    /// Finished requests behind that.
    pub samples: u64,
    /// Whether the profile is so far off that somebody should measure again.
    pub is_drifting: bool,
    /// Prices that lay beyond what was measured.
    pub extrapolated: u64,
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

/// Body of a question to `replay.<request>`; the answer are messages of the journal, the last with status 204, or 404 when
/// there are none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReplayRequest {
    /// Sequence of the last entry that is known; 0 for all.
    pub after: u64,
}

/// Body of a question to `standing.<request>`, for clients that may not look into the queue; the answer is
/// [`StandingReply`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StandingRequest {
    /// Place of the request's message in the request stream, as its publish told it; `None` from those who have
    /// forgotten.
    #[serde(default)]
    pub stream_seq: Option<u64>,
}

/// Whether a request is still to be answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StandingReply {
    /// Its message is in the stream; or may be, where the place is not known: nobody has looked at all of them yet.
    Queued,
    /// It is not: the request was answered, or never published. For a place that was told that is certain; otherwise
    /// it may have been on its way from the stream to the queue at this moment.
    Gone,
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

/// Body of `admin.load`, `admin.unload` and `admin.fetch`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ResidencyRequest {
    /// The model.
    pub model: ModelName,
    /// The worker; `None` means: load on, or fetch to, the one with most room, unload everywhere.
    #[serde(default)]
    pub worker: Option<WorkerId>,
    /// How long it stays, for `load`.
    #[serde(default)]
    pub keep_alive: Option<KeepAlive>,
}

/// Answer of `admin.load`, `admin.unload` and `admin.fetch`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResidencyReply {
    /// The workers that were told and accepted.
    pub workers: Vec<WorkerId>,
}

/// Body of `admin.drain`; the answer is [`DrainReply`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DrainRequest {
    /// The worker that is to take no new work, finish or hand back what it runs, and end.
    pub worker: WorkerId,
}

/// Answer of `admin.drain`: the worker has been told and drains.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DrainReply {
    /// The worker.
    pub worker: WorkerId,
    /// Which start of it drains: one that comes back under its name has another.
    pub incarnation: u64,
}

/// Answer of `admin.reconciliation`: what was accepted against what is answered, as the leader found it. Counters begin
/// with its term.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Reconciliation {
    /// Looks at the streams that came to their end.
    pub rounds: u64,
    /// Looks that did not.
    pub rounds_failed: u64,
    /// Milliseconds since the last one ended; `None` before the first.
    pub last_round_age_ms: Option<u64>,
    /// Messages in the request stream.
    pub stream_messages: u64,
    /// Of these, the ones that are still to be delivered for the first time.
    pub pending_messages: u64,
    /// Messages that were delivered and not acknowledged, by the server's count.
    pub ack_pending_messages: u64,
    /// Of these, the ones that were delivered more than once.
    pub redelivered_messages: u64,
    /// Messages that the leader answers for.
    pub held_messages: u64,
    /// Messages in the stream that are neither held nor still to be delivered: on their way, or stuck.
    pub unaccounted_messages: u64,
    /// Messages that were stuck, and were got out of the stream to be answered.
    pub stuck_total: u64,
    /// Requests that had an end and were not acknowledged.
    pub ended_unacked_total: u64,
    /// Messages that are held and gone from the stream: the requests are answered, unless the leader ends before.
    pub gone_messages: u64,
    /// Requests that were begun, have no end, and whose messages are gone: nobody will answer them.
    pub lost_requests: u64,
    /// All that were found to be lost, those that had an end after all included.
    pub lost_total: u64,
    /// Some of those that are lost.
    pub lost: Vec<RequestId>,
    /// Messages that the server said it would not deliver any more.
    pub max_deliveries_total: u64,
    /// Messages that somebody else took out of the stream.
    pub terminated_total: u64,
}
