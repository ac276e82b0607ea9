//! What the dispatcher and a worker say about one attempt.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::codec::Encoding;
use crate::ids::{Attempt, Class, Epoch, ModelName, RequestId, Strikes, WorkerId};
use crate::request::KeepAlive;

/// The dispatcher gives a request to a worker; request-reply, answered by [`AssignReply`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Assignment {
    /// The request.
    pub request: RequestId,
    /// This attempt; larger than every attempt in the journal.
    pub attempt: Attempt,
    /// Strikes before this attempt; written to the journal with `accepted`.
    pub strikes: Strikes,
    /// Term of the leader that assigns.
    pub epoch: Epoch,
    /// Class.
    pub class: Class,
    /// Model.
    pub model: ModelName,
    /// Encoding of the body and of the answer's events.
    pub encoding: Encoding,
    /// The client's body, as published.
    pub body: Bytes,
    /// Milliseconds from publish to this assignment.
    pub queued_ms: u64,
    /// Milliseconds from this assignment to the request's deadline, when it has one.
    pub deadline_in_ms: Option<u64>,
    /// Models that the dispatcher expects no work for on this worker, the least wanted first: should the
    /// request's model need room, they go before others that are idle.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub evict_first: Vec<ModelName>,
    /// It is to run with nothing beside it on the worker, as one of those that ran when a worker died. Written to the
    /// journal with `accepted`.
    #[serde(default, skip_serializing_if = "is_false")]
    pub alone: bool,
}

/// A worker's answer to an [`Assignment`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AssignReply {
    /// The worker runs it. Every later report of this incarnation lists the request until its attempt ended.
    Accepted {
        /// Last report before the request was taken: only newer ones can tell that it ended.
        report_seq: u64,
        /// Which start of the worker answers; `None` of a worker that does not tell.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        incarnation: Option<u64>,
    },
    /// The worker does not run it.
    Refused(Refusal),
}

/// Why a worker does not run a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "snake_case")]
pub enum Refusal {
    /// No slot is free; or a request runs alone, or the request is to run alone and another runs.
    #[error("no slot is free")]
    Full,
    /// The worker takes no new work.
    #[error("the worker drains")]
    Draining,
    /// A newer leader has spoken.
    #[error("epoch {seen} was seen")]
    StaleEpoch {
        /// The newest epoch seen.
        seen: Epoch,
    },
    /// The model cannot be loaded on this worker.
    #[error("the model cannot be loaded: {reason}")]
    ModelUnloadable {
        /// Why.
        reason: String,
        /// Milliseconds until another try makes sense.
        retry_in_ms: u64,
    },
}

/// An attempt ended; sent by the worker on `flotilla.done`. A lost one is made good by the next report.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Done {
    /// The worker.
    pub worker: WorkerId,
    /// Which start of the worker.
    pub incarnation: u64,
    /// The request.
    pub request: RequestId,
    /// The attempt.
    pub attempt: Attempt,
    /// How it ended.
    pub end: AttemptEnd,
    /// Tokens of the prompt.
    pub prompt_tokens: u32,
    /// Tokens of the answer, earlier attempts included.
    pub output_tokens: u32,
}

/// How an attempt ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AttemptEnd {
    /// The journal is terminal.
    Terminal,
    /// The journal holds a newer attempt, or as new a one of another worker.
    Fenced {
        /// The newest attempt in the journal.
        attempt: Attempt,
        /// Strikes that it began with.
        strikes: Strikes,
    },
    /// The worker gives it back unharmed: it drains, or its model had to go.
    HandedBack {
        /// Why.
        reason: String,
    },
    /// The model could not be loaded.
    ModelUnloadable {
        /// Why.
        reason: String,
        /// Milliseconds until another try makes sense.
        retry_in_ms: u64,
    },
    /// The request made the engine panic, alone: a strike.
    Panicked {
        /// The panic's message.
        message: String,
    },
    /// The journal holds what no writer of ours makes, so that nobody can go on with the answer.
    JournalBroken {
        /// What is wrong with it.
        reason: String,
    },
}

/// Ends a request wherever it is; from a client on `flotilla.cancel`, from the dispatcher to a worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cancel {
    /// The request.
    pub request: RequestId,
}

/// An order to a worker; request-reply, answered by [`ControlReply`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Control {
    /// Make a model resident.
    Load {
        /// The model.
        model: ModelName,
        /// How long it stays.
        keep_alive: Option<KeepAlive>,
    },
    /// Unload a model when it is idle.
    Unload {
        /// The model.
        model: ModelName,
    },
    /// Bring a model's weights into host memory, so that a load need not read the disk.
    Prefetch {
        /// The model.
        model: ModelName,
    },
    /// Bring a model's files onto the worker's disk, if they are not there.
    Fetch {
        /// The model.
        model: ModelName,
    },
    /// Take no new work, finish or hand back, exit.
    Drain,
    /// Report at once: nothing was heard of the worker for a while.
    Report,
}

/// A worker's answer to a [`Control`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ControlReply {
    /// It will be done; reports show how far it is.
    Accepted,
    /// It will not.
    Refused {
        /// Why.
        reason: String,
    },
}

/// Whether a flag says what its absence says.
#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
pub(crate) fn is_false(flag: &bool) -> bool {
    !flag
}
