//! What the shell tells the dispatcher, besides the messages of `flotilla_protocol`.

use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use flotilla_protocol::assignment::AssignReply;
use flotilla_protocol::request::Slo;
use flotilla_protocol::{Attempt, Class, Encoding, ModelName, RequestId, Strikes, Tenant, WorkerId};
use serde::{Deserialize, Serialize};

/// Place of a message in the request stream; names one message for ever, whatever consumer delivers it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct StreamSequence(pub u64);

impl fmt::Display for StreamSequence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A valid request that the stream delivered.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Arrival {
    /// The message that brought it.
    pub sequence: StreamSequence,
    /// The request.
    pub request: RequestId,
    /// Class.
    pub class: Class,
    /// Model.
    pub model: ModelName,
    /// Encoding of the body and of the answer.
    pub encoding: Encoding,
    /// The client's body, as published.
    pub body: Bytes,
    /// Tokens of the prompt.
    pub prompt_tokens: u32,
    /// How the tokens of the prompt are known.
    pub prompt_count: PromptCount,
    /// Most tokens that the answer may have.
    pub output_tokens_max: u32,
    /// On whose account it runs.
    pub tenant: Option<Tenant>,
    /// Its own latency targets.
    pub slo: Option<Slo>,
    /// The only worker that may have it, whatever share of the device is booked: it measures that worker.
    pub only_worker: Option<WorkerId>,
    /// Time since it was published.
    pub age: Duration,
    /// Time left to its deadline, when it has one; zero when it passed.
    pub deadline_in: Option<Duration>,
    /// Whether anybody may have seen the request before.
    pub origin: Origin,
}

/// How the tokens of a prompt are known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PromptCount {
    /// By the model's own tokenizer.
    Counted,
    /// From the bytes, because the tokenizer is not at hand.
    Estimated,
}

/// Whether a request may have a journal already.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    /// Published in this term and delivered for the first time: its journal is empty.
    Fresh,
    /// Redelivered, or published before this term: its journal decides.
    MaybeSeen,
}

/// What became of a message that was handed in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[must_use = "a message that is not held must be given back to the stream"]
pub enum Admission {
    /// The dispatcher answers for it from now on: its ack wait has to be extended until [`crate::Action::Ack`].
    Held,
    /// `held_max` is reached; nothing was remembered.
    Full,
}

/// What a request's journal holds; the answer to [`crate::Action::ReadJournal`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JournalState {
    /// Nothing.
    Empty,
    /// Events of attempts, none of them terminal.
    Open {
        /// The newest attempt.
        attempt: Attempt,
        /// Strikes that it began with.
        strikes: Strikes,
        /// The worker that wrote it.
        worker: WorkerId,
        /// Which start of the worker, where the journal says so.
        incarnation: Option<u64>,
        /// Whether it was given a worker for itself.
        alone: bool,
    },
    /// A terminal event.
    Terminal,
    /// Something that no writer of ours makes, so that nobody can go on with the answer.
    Broken {
        /// What is wrong with it.
        reason: String,
    },
}

/// What came of an [`crate::Action::Assign`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AssignOutcome {
    /// The worker's answer.
    Replied(AssignReply),
    /// None in time; the worker may have taken the request all the same.
    NoAnswer,
}
