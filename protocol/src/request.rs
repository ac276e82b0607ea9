//! What a client asks for: an OpenAI completion, chat completion or embedding body plus our own fields.
//!
//! [`InferenceRequest::decode`] is the only way in. It refuses what it does not know instead of dropping
//! it: a client that sets `max_token` or `best_of` learns so, with the field's name.

mod chat;
mod keep_alive;
mod raw;
mod response_format;
mod sampling;

use serde::{Deserialize, Serialize};

use crate::codec::{DecodeError, Encoding};
use crate::event::{ErrorCode, RequestError};
use crate::ids::{ModelName, Tenant};

pub use chat::{Chat, ChatMessage, FREE_VALUES_MAX, MESSAGES_COUNT_MAX, TOOLS_COUNT_MAX};
pub use keep_alive::{KeepAlive, KeepAliveError};
pub use response_format::{JsonSchema, ResponseFormat, SCHEMA_BYTES_MAX, SCHEMA_NAME_BYTES_MAX};
pub use sampling::{LOGIT_BIAS_COUNT_MAX, SamplingParams, TOP_LOGPROBS_MAX};

/// A request as the rest of Flotilla sees it: every field checked.
#[derive(Debug, Clone, PartialEq)]
pub struct InferenceRequest {
    /// What to run.
    pub input: Input,
    /// Most tokens to generate; `None` leaves it to the room that the context has.
    pub max_tokens: Option<u32>,
    /// How to choose tokens.
    pub sampling: SamplingParams,
    /// Texts that end the answer and are not part of it; at most [`STOP_COUNT_MAX`].
    pub stop: Vec<String>,
    /// Whether the model's end tokens are tokens like any other, so that the answer ends at `max_tokens`, the end
    /// of the context or a stop string: for measurements, which need answers of a known length.
    pub ignore_eos: bool,
    /// The shape that the answer must have.
    pub response_format: ResponseFormat,
    /// How long the model stays resident after this request.
    pub keep_alive: Option<KeepAlive>,
    /// The request is worthless this many milliseconds after it was published.
    pub deadline_ms: Option<u64>,
    /// Whether the request is cancelled when nobody has listened to its events for a while.
    pub cancel_on_disconnect: bool,
    /// Targets of this request, tighter or looser than the catalog's.
    pub slo: Option<Slo>,
    /// On whose account it runs.
    pub tenant: Option<Tenant>,
}

/// What to run.
#[derive(Debug, Clone, PartialEq)]
pub enum Input {
    /// A completion of a text.
    Prompt(String),
    /// A completion of token ids.
    PromptTokens(Vec<u32>),
    /// A chat completion.
    Chat(Chat),
    /// Embeddings of these texts.
    Embed(Vec<String>),
}

impl Input {
    /// The field of the body that holds it.
    #[must_use]
    pub fn field(&self) -> &'static str {
        match self {
            Self::Prompt(_) | Self::PromptTokens(_) => "prompt",
            Self::Chat(_) => "messages",
            Self::Embed(_) => "input",
        }
    }
}

/// Latency targets; all that are set must hold.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Slo {
    /// Whole answer, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub e2e_ms: Option<f64>,
    /// First token, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttft_ms: Option<f64>,
    /// Each output token, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tpot_ms: Option<f64>,
    /// Each token of prompt and output, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tpat_ms: Option<f64>,
}

/// Most stop strings of one request, as with OpenAI's API times four.
pub const STOP_COUNT_MAX: usize = 16;
/// Longest stop string in bytes: the answer's text is held back by as much.
pub const STOP_BYTES_MAX: usize = 256;
/// Most texts of one embedding request.
pub const EMBED_INPUT_COUNT_MAX: usize = 2048;

impl InferenceRequest {
    /// Decodes and checks a body of at most `bytes_max` bytes that was published for `model`.
    ///
    /// # Errors
    /// A [`RequestError`] with code `too_large` or `invalid_request` whose `param` names the field.
    pub fn decode(
        model: &ModelName,
        encoding: Encoding,
        body: &[u8],
        bytes_max: usize,
    ) -> Result<Self, RequestError> {
        let raw: raw::RawRequest = encoding.decode(body, bytes_max).map_err(raw::explain)?;
        raw.check(model)
    }

    /// Whether the answer is a list of vectors instead of tokens.
    #[must_use]
    pub fn is_embedding(&self) -> bool {
        matches!(self.input, Input::Embed(_))
    }

    /// Most tokens that the answer may have: `max_tokens`, or else the room that the prompt leaves.
    ///
    /// # Errors
    /// `context_exceeded` with the numbers, when the prompt leaves no room, or less than `max_tokens`.
    pub fn answer_tokens_max(
        &self,
        prompt_tokens: u32,
        context_tokens_max: u32,
    ) -> Result<u32, RequestError> {
        let room = context_tokens_max.saturating_sub(prompt_tokens);
        let refused = |param: &str, message| RequestError {
            code: ErrorCode::ContextExceeded,
            message,
            param: Some(param.to_owned()),
        };
        match self.max_tokens {
            _ if room == 0 => Err(refused(
                self.input.field(),
                format!(
                    "the prompt has {prompt_tokens} tokens, which leaves no room for an answer in the model's \
                     context of {context_tokens_max}"
                ),
            )),
            Some(wanted) if wanted > room => Err(refused(
                "max_tokens",
                format!(
                    "the prompt has {prompt_tokens} tokens and max_tokens is {wanted}, together more than the \
                     model's context of {context_tokens_max}"
                ),
            )),
            Some(wanted) => Ok(wanted),
            None => Ok(room),
        }
    }

    /// Whether the input is a conversation.
    #[must_use]
    pub fn is_chat(&self) -> bool {
        matches!(self.input, Input::Chat(_))
    }
}

impl From<DecodeError> for RequestError {
    fn from(error: DecodeError) -> Self {
        let code = match error {
            DecodeError::TooLarge { .. } => ErrorCode::TooLarge,
            DecodeError::Malformed { .. } | DecodeError::ContentType { .. } => ErrorCode::InvalidRequest,
        };
        let param = match &error {
            DecodeError::Malformed { field, .. } if !field.is_empty() => Some(field.clone()),
            DecodeError::ContentType { .. } => Some(crate::headers::CONTENT_TYPE.to_owned()),
            DecodeError::Malformed { .. } | DecodeError::TooLarge { .. } => None,
        };
        Self {
            code,
            message: error.to_string(),
            param,
        }
    }
}
