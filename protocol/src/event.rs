//! The events of a request's answer: what the journal stores and a client reads.

mod embedding;

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::codec::{DecodeError, EncodeError, Encoding};
use crate::ids::{IdError, ModelName, RequestId};

pub use embedding::{Embedding, embeddings_bytes_max};

/// Largest body of one event that a reader accepts, in bytes: the events of our own making stay far below.
pub const EVENT_BYTES_MAX: usize = 8 << 20;

/// Which event a message is; travels in the header `Flotilla-Event`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EventKind {
    /// An attempt began.
    Accepted,
    /// News before the first token; never in the journal.
    Progress,
    /// Tokens of the answer.
    Tokens,
    /// The answer is complete. Terminal.
    Finished,
    /// There is no answer. Terminal.
    Failed,
}

impl EventKind {
    const ALL: [Self; 5] = [
        Self::Accepted,
        Self::Progress,
        Self::Tokens,
        Self::Finished,
        Self::Failed,
    ];

    /// The header's value.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::Progress => "progress",
            Self::Tokens => "tokens",
            Self::Finished => "finished",
            Self::Failed => "failed",
        }
    }

    /// Whether nothing may follow.
    #[must_use]
    pub fn is_terminal(self) -> bool {
        matches!(self, Self::Finished | Self::Failed)
    }
}

impl fmt::Display for EventKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for EventKind {
    type Err = IdError;
    fn from_str(text: &str) -> Result<Self, IdError> {
        Self::ALL
            .into_iter()
            .find(|kind| kind.as_str() == text)
            .ok_or_else(|| IdError::Unknown {
                kind: "the event",
                value: text.chars().take(64).collect(),
                allowed: "accepted, progress, tokens, finished and failed",
            })
    }
}

/// One event.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// An attempt began.
    Accepted(Accepted),
    /// News before the first token.
    Progress(Progress),
    /// Tokens of the answer.
    Tokens(Tokens),
    /// The answer is complete.
    Finished(Finished),
    /// There is no answer.
    Failed(Failed),
}

/// Body of `accepted`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Accepted {
    /// The request.
    pub request: RequestId,
    /// The model that answers.
    pub model: ModelName,
    /// Tokens of the prompt.
    pub prompt_tokens: u32,
}

/// Body of `progress`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// What the request waits for.
    pub phase: Phase,
    /// Place in the queue, from 0; only while queued.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub position: Option<u64>,
    /// How much of the phase is done, in [0, 1].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fraction: Option<f64>,
    /// Expected milliseconds to the first token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub eta_ms: Option<u64>,
}

/// What a request waits for before its first token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// A worker with room.
    Queued,
    /// The model's bytes on their way to the worker.
    Fetching,
    /// The model on its way into device memory.
    Loading,
    /// The prompt is being read.
    Prefill,
    /// A worker has it, in whichever phase: what the dispatcher says of a request with `cancel_on_disconnect`, to find
    /// out whether anybody listens.
    Running,
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Queued => "queued",
            Self::Fetching => "fetching",
            Self::Loading => "loading",
            Self::Prefill => "prefill",
            Self::Running => "running",
        })
    }
}

/// Body of `tokens`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Tokens {
    /// Index of the first of these tokens in the answer, from 0.
    pub offset: u32,
    /// The tokens. Empty when only text that was held back is delivered.
    pub token_ids: Vec<u32>,
    /// Text that became certain with these tokens.
    pub text: String,
    /// One for each of these tokens when the request asked for log-probabilities, otherwise none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub logprobs: Vec<TokenLogprobs>,
}

/// How likely a token was, before temperature and cuts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TokenLogprobs {
    /// Natural logarithm of the token's probability; finite, at least [`LOGPROB_MIN`].
    pub logprob: f32,
    /// The likeliest tokens at its place and their log-probabilities, likeliest first; as many as were asked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub top: Vec<(u32, f32)>,
}

impl TokenLogprobs {
    /// Makes every number finite, because JSON has no other: what is impossible gets [`LOGPROB_MIN`].
    #[must_use]
    pub fn new(logprob: f32, top: impl IntoIterator<Item = (u32, f32)>) -> Self {
        let finite = |logprob: f32| match logprob.is_finite() {
            true => logprob.max(LOGPROB_MIN),
            false => LOGPROB_MIN,
        };
        Self {
            logprob: finite(logprob),
            top: top
                .into_iter()
                .map(|(token, logprob)| (token, finite(logprob)))
                .collect(),
        }
    }
}

/// The log-probability of an impossible token, as OpenAI's API writes it.
pub const LOGPROB_MIN: f32 = -9999.0;

/// Body of `finished`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Finished {
    /// Why the answer ends here.
    pub finish_reason: FinishReason,
    /// Tokens counted.
    pub usage: Usage,
    /// Where the time went.
    pub timings: Timings,
    /// Embeddings, one for each input and in their order; absent for generations.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<Vec<Embedding>>,
}

/// Why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FinishReason {
    /// The model's end token or a stop string.
    Stop,
    /// `max_tokens` or the end of the context.
    Length,
    /// Somebody cancelled it.
    Cancelled,
}

/// Tokens counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Usage {
    /// Tokens of the prompt.
    pub prompt_tokens: u32,
    /// Tokens of the answer.
    pub completion_tokens: u32,
    /// Their sum.
    pub total_tokens: u32,
    /// More about the prompt, where there is something to tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt_tokens_details: Option<PromptTokensDetails>,
}

/// More about the tokens of a prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PromptTokensDetails {
    /// How many did not have to be read because the worker kept their keys and values.
    pub cached_tokens: u32,
}

impl Usage {
    /// Sums up.
    #[must_use]
    pub fn new(prompt_tokens: u32, completion_tokens: u32) -> Self {
        Self {
            prompt_tokens,
            completion_tokens,
            total_tokens: prompt_tokens.saturating_add(completion_tokens),
            prompt_tokens_details: None,
        }
    }

    /// Adds how many of the prompt's tokens did not have to be read; 0 is left out.
    #[must_use]
    pub fn with_cached_tokens(self, cached_tokens: u32) -> Self {
        Self {
            prompt_tokens_details: (cached_tokens > 0).then_some(PromptTokensDetails { cached_tokens }),
            ..self
        }
    }
}

/// Where the time of the last attempt went, in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Timings {
    /// From publish to the worker.
    pub queued_ms: f64,
    /// Waiting for the model.
    pub load_ms: f64,
    /// Reading the prompt.
    pub prefill_ms: f64,
    /// Making tokens.
    pub decode_ms: f64,
}

/// Body of `failed`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failed {
    /// What went wrong.
    pub error: RequestError,
}

/// What went wrong with a request, in the shape of OpenAI's errors.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{code}: {message}")]
pub struct RequestError {
    /// Which kind of failure.
    pub code: ErrorCode,
    /// What happened and what to do.
    pub message: String,
    /// The offending field, where there is one.
    pub param: Option<String>,
}

/// The closed list of failures that a client can see.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorCode {
    /// The body is not a request.
    InvalidRequest,
    /// The catalog has no such model.
    UnknownModel,
    /// Prompt and answer do not fit the model's context.
    ContextExceeded,
    /// The request's deadline passed.
    DeadlineExceeded,
    /// There is no room to wait.
    QueueFull,
    /// No worker can load the model.
    ModelUnloadable,
    /// The body is larger than allowed.
    TooLarge,
    /// The request killed its worker too often.
    Poisoned,
    /// Our fault.
    Internal,
}

impl ErrorCode {
    /// The code as it travels.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::InvalidRequest => "invalid_request",
            Self::UnknownModel => "unknown_model",
            Self::ContextExceeded => "context_exceeded",
            Self::DeadlineExceeded => "deadline_exceeded",
            Self::QueueFull => "queue_full",
            Self::ModelUnloadable => "model_unloadable",
            Self::TooLarge => "too_large",
            Self::Poisoned => "poisoned",
            Self::Internal => "internal",
        }
    }

    /// The status of HTTP that means the same, used as `Nats-Service-Error-Code`.
    #[must_use]
    pub fn status(self) -> usize {
        match self {
            Self::InvalidRequest | Self::ContextExceeded => 400,
            Self::UnknownModel => 404,
            Self::DeadlineExceeded => 408,
            Self::TooLarge => 413,
            Self::QueueFull => 429,
            Self::Poisoned | Self::Internal => 500,
            Self::ModelUnloadable => 503,
        }
    }
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Event {
    /// Which event this is.
    #[must_use]
    pub fn kind(&self) -> EventKind {
        match self {
            Self::Accepted(_) => EventKind::Accepted,
            Self::Progress(_) => EventKind::Progress,
            Self::Tokens(_) => EventKind::Tokens,
            Self::Finished(_) => EventKind::Finished,
            Self::Failed(_) => EventKind::Failed,
        }
    }

    /// A `failed` event.
    #[must_use]
    pub fn failed(error: RequestError) -> Self {
        Self::Failed(Failed { error })
    }

    /// Writes the body; the kind travels in the header.
    ///
    /// # Errors
    /// See [`Encoding::encode`].
    pub fn encode(&self, encoding: Encoding) -> Result<bytes::Bytes, EncodeError> {
        match self {
            Self::Accepted(body) => encoding.encode(body),
            Self::Progress(body) => encoding.encode(body),
            Self::Tokens(body) => encoding.encode(body),
            Self::Finished(body) => encoding.encode(body),
            Self::Failed(body) => encoding.encode(body),
        }
    }

    /// Reads a body of the given kind.
    ///
    /// # Errors
    /// [`DecodeError`] when the body is not such an event.
    pub fn decode(kind: EventKind, encoding: Encoding, body: &[u8]) -> Result<Self, DecodeError> {
        Ok(match kind {
            EventKind::Accepted => Self::Accepted(encoding.decode(body, EVENT_BYTES_MAX)?),
            EventKind::Progress => Self::Progress(encoding.decode(body, EVENT_BYTES_MAX)?),
            EventKind::Tokens => Self::Tokens(encoding.decode(body, EVENT_BYTES_MAX)?),
            EventKind::Finished => Self::Finished(encoding.decode(body, EVENT_BYTES_MAX)?),
            EventKind::Failed => Self::Failed(encoding.decode(body, EVENT_BYTES_MAX)?),
        })
    }
}
