//! The body as it arrives, before its fields are checked.

mod chat;
mod free;
mod response_format;
mod sampling;
mod shapes;

use serde::Deserialize;
use serde::de::IgnoredAny;

use self::chat::{RawMessages, RawTools};
use self::free::{Free, ValuesLeft};
use self::response_format::RawResponseFormat;
use self::shapes::{OneOrMany, RawKeepAlive, RawLogitBias, RawLogprobs, RawPrompt};
use super::{
    EMBED_INPUT_COUNT_MAX, InferenceRequest, Input, ResponseFormat, STOP_BYTES_MAX, STOP_COUNT_MAX, Slo,
};
use crate::codec::DecodeError;
use crate::event::{ErrorCode, RequestError};
use crate::ids::{ModelName, Tenant};

/// Every field of the OpenAI bodies and ours. Those that change the answer in a way that we do not
/// support are read only to be refused by name; those without effect on the answer are ignored.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawRequest {
    #[serde(default)]
    model: Option<String>,
    #[serde(default)]
    prompt: Option<RawPrompt>,
    #[serde(default)]
    messages: Option<RawMessages>,
    #[serde(default)]
    input: Option<OneOrMany>,
    #[serde(default)]
    max_tokens: Option<u32>,
    #[serde(default)]
    max_completion_tokens: Option<u32>,
    #[serde(default)]
    temperature: Option<f32>,
    #[serde(default)]
    top_k: Option<i64>,
    #[serde(default)]
    top_p: Option<f32>,
    #[serde(default)]
    min_p: Option<f32>,
    #[serde(default)]
    repetition_penalty: Option<f32>,
    #[serde(default)]
    presence_penalty: Option<f32>,
    #[serde(default)]
    frequency_penalty: Option<f32>,
    #[serde(default)]
    logit_bias: Option<RawLogitBias>,
    #[serde(default)]
    logprobs: Option<RawLogprobs>,
    #[serde(default)]
    top_logprobs: Option<i64>,
    #[serde(default)]
    seed: Option<i64>,
    #[serde(default)]
    stop: Option<OneOrMany>,
    #[serde(default)]
    ignore_eos: Option<bool>,
    #[serde(default)]
    response_format: Option<RawResponseFormat>,
    #[serde(default)]
    tools: Option<Free>,
    #[serde(default)]
    tool_choice: Option<Free>,
    #[serde(default)]
    parallel_tool_calls: Option<bool>,
    #[serde(default)]
    keep_alive: Option<RawKeepAlive>,
    #[serde(default)]
    deadline_ms: Option<u64>,
    #[serde(default)]
    cancel_on_disconnect: Option<bool>,
    #[serde(default)]
    slo: Option<Slo>,
    #[serde(default)]
    tenant: Option<Tenant>,

    #[serde(default)]
    n: Option<u32>,
    #[serde(default)]
    best_of: Option<u32>,
    #[serde(default)]
    echo: Option<bool>,
    #[serde(default)]
    suffix: Option<IgnoredAny>,
    #[serde(default)]
    dimensions: Option<IgnoredAny>,
    #[serde(default)]
    encoding_format: Option<String>,

    #[serde(default, rename = "stream")]
    _stream: Option<bool>,
    #[serde(default, rename = "stream_options")]
    _stream_options: Option<IgnoredAny>,
    #[serde(default, rename = "user")]
    _user: Option<String>,
    #[serde(default, rename = "metadata")]
    _metadata: Option<IgnoredAny>,
    #[serde(default, rename = "store")]
    _store: Option<bool>,
    #[serde(default, rename = "service_tier")]
    _service_tier: Option<String>,
}

fn invalid(param: &str, message: impl Into<String>) -> RequestError {
    RequestError {
        code: ErrorCode::InvalidRequest,
        message: message.into(),
        param: Some(param.to_owned()),
    }
}

/// Turns a decoder's error into a client's, with the nearest known field for an unknown one.
pub(super) fn explain(error: DecodeError) -> RequestError {
    // serde lists every field that it knows: `unknown field `a`, expected one of `b`, `c``.
    let unknown = match &error {
        DecodeError::Malformed { message, .. } => message
            .strip_prefix("unknown field `")
            .and_then(|rest| rest.split_once("`, expected one of `"))
            .map(|(name, known)| (name.to_owned(), known.to_owned())),
        DecodeError::TooLarge { .. } | DecodeError::ContentType { .. } => None,
    };
    let mut error = RequestError::from(error);
    let Some((name, known)) = unknown else {
        return error;
    };
    let at_top = error.param.as_deref().is_none_or(|path| path == name);
    if at_top {
        let nearest = known
            .split('`')
            .filter(|field| !field.is_empty() && *field != ", ")
            .map(|field| (strsim::damerau_levenshtein(field, &name), field))
            .min()
            .filter(|(distance, field)| *distance * 2 <= field.len());
        error.message = match nearest {
            Some((_, field)) => format!("unknown field {name:?}; did you mean {field:?}?"),
            None => format!("unknown field {name:?}"),
        };
        error.param = Some(name);
    }
    error
}

impl RawRequest {
    /// Checks every field.
    pub(super) fn check(mut self, model: &ModelName) -> Result<InferenceRequest, RequestError> {
        self.refuse_unsupported()?;
        if let Some(named) = self.model.as_deref().filter(|named| *named != model.as_str()) {
            return Err(invalid(
                "model",
                format!("the body names model {named:?}, the subject {:?}", model.as_str()),
            ));
        }
        if self.input.is_some() {
            self.refuse_generation()?;
        }
        let sampling = sampling::check(&mut self)?;
        let max_tokens = self.max_tokens()?;
        let slo = self.slo.map(check_slo).transpose()?;
        if self.deadline_ms == Some(0) {
            return Err(invalid("deadline_ms", "must be at least 1"));
        }
        let ignore_eos = self.ignore_eos.unwrap_or(false);
        let mut values_left = ValuesLeft::of_a_body();
        let response_format = check_format(self.response_format, ignore_eos, &mut values_left)?;
        let tools = RawTools {
            tools: self.tools,
            choice: self.tool_choice,
            parallel: self.parallel_tool_calls,
        };
        Ok(InferenceRequest {
            max_tokens,
            sampling,
            stop: check_stop(self.stop)?,
            ignore_eos,
            response_format,
            keep_alive: self.keep_alive.map(|RawKeepAlive(keep_alive)| keep_alive),
            deadline_ms: self.deadline_ms,
            cancel_on_disconnect: self.cancel_on_disconnect.unwrap_or(false),
            slo,
            tenant: self.tenant,
            input: check_input(self.prompt, self.messages, self.input, tools, &mut values_left)?,
        })
    }

    fn refuse_unsupported(&self) -> Result<(), RequestError> {
        let unsupported = [
            ("n", self.n.is_some_and(|n| n != 1)),
            ("best_of", self.best_of.is_some_and(|n| n != 1)),
            ("echo", self.echo == Some(true)),
            ("suffix", self.suffix.is_some()),
            ("dimensions", self.dimensions.is_some()),
            (
                "encoding_format",
                self.encoding_format
                    .as_deref()
                    .is_some_and(|format| format != "float"),
            ),
        ];
        match unsupported.into_iter().find(|(_, set)| *set) {
            Some((field, _)) => Err(invalid(
                field,
                format!("{field} with this value is not supported; leave it out"),
            )),
            None => Ok(()),
        }
    }

    /// Refuses beside an `input` what only an answer made of tokens can obey.
    fn refuse_generation(&self) -> Result<(), RequestError> {
        let given = [
            ("max_tokens", self.max_tokens.is_some()),
            ("max_completion_tokens", self.max_completion_tokens.is_some()),
            ("temperature", self.temperature.is_some()),
            ("top_k", self.top_k.is_some()),
            ("top_p", self.top_p.is_some()),
            ("min_p", self.min_p.is_some()),
            ("repetition_penalty", self.repetition_penalty.is_some()),
            ("presence_penalty", self.presence_penalty.is_some()),
            ("frequency_penalty", self.frequency_penalty.is_some()),
            ("logit_bias", self.logit_bias.is_some()),
            ("logprobs", self.logprobs.is_some()),
            ("top_logprobs", self.top_logprobs.is_some()),
            ("seed", self.seed.is_some()),
            ("stop", self.stop.is_some()),
            ("ignore_eos", self.ignore_eos.is_some()),
            ("response_format", self.response_format.is_some()),
        ];
        match given.into_iter().find(|(_, given)| *given) {
            Some((field, _)) => Err(invalid(field, "has no meaning for embeddings; leave it out")),
            None => Ok(()),
        }
    }

    fn max_tokens(&self) -> Result<Option<u32>, RequestError> {
        let (field, value) = match (self.max_tokens, self.max_completion_tokens) {
            (Some(_), Some(_)) => {
                return Err(invalid(
                    "max_completion_tokens",
                    "set either max_tokens or max_completion_tokens",
                ));
            }
            (None, other) => ("max_completion_tokens", other),
            (some, None) => ("max_tokens", some),
        };
        match value {
            Some(0) => Err(invalid(field, "must be at least 1")),
            other => Ok(other),
        }
    }
}

/// What has a shape ends when the shape is complete.
fn check_format(
    format: Option<RawResponseFormat>,
    ignore_eos: bool,
    values_left: &mut ValuesLeft,
) -> Result<ResponseFormat, RequestError> {
    match format
        .map(|format| format.check(values_left))
        .transpose()?
        .unwrap_or_default()
    {
        ResponseFormat::JsonObject | ResponseFormat::JsonSchema(_) if ignore_eos => Err(invalid(
            "ignore_eos",
            "has no meaning with a response_format, which says where the answer ends; leave it out",
        )),
        format => Ok(format),
    }
}

fn check_slo(slo: Slo) -> Result<Slo, RequestError> {
    let targets = [
        ("slo.e2e_ms", slo.e2e_ms),
        ("slo.ttft_ms", slo.ttft_ms),
        ("slo.tpot_ms", slo.tpot_ms),
        ("slo.tpat_ms", slo.tpat_ms),
    ];
    for (field, value) in targets {
        if value.is_some_and(|ms| !(ms.is_finite() && ms > 0.0)) {
            return Err(invalid(field, "must be a positive number of milliseconds"));
        }
    }
    Ok(slo)
}

fn check_stop(stop: Option<OneOrMany>) -> Result<Vec<String>, RequestError> {
    let stop = stop.map(|OneOrMany(texts)| texts).unwrap_or_default();
    if stop.len() > STOP_COUNT_MAX {
        return Err(invalid(
            "stop",
            format!("has {} texts, at most {STOP_COUNT_MAX} are allowed", stop.len()),
        ));
    }
    match stop
        .iter()
        .find(|text| text.is_empty() || text.len() > STOP_BYTES_MAX)
    {
        Some(text) => Err(invalid(
            "stop",
            format!(
                "a text has {} bytes, allowed are 1 to {STOP_BYTES_MAX}",
                text.len()
            ),
        )),
        None => Ok(stop),
    }
}

fn check_input(
    prompt: Option<RawPrompt>,
    messages: Option<RawMessages>,
    input: Option<OneOrMany>,
    tools: RawTools,
    values_left: &mut ValuesLeft,
) -> Result<Input, RequestError> {
    if messages.is_none() {
        tools.refuse()?;
    }
    match (prompt, messages, input) {
        (Some(RawPrompt::Text(text)), None, None) => Ok(Input::Prompt(text)),
        (Some(RawPrompt::Tokens(tokens)), None, None) if tokens.is_empty() => {
            Err(invalid("prompt", "has no token"))
        }
        (Some(RawPrompt::Tokens(tokens)), None, None) => Ok(Input::PromptTokens(tokens)),
        (None, Some(RawMessages(messages)), None) => {
            chat::check(messages, tools, values_left).map(Input::Chat)
        }
        (None, None, Some(OneOrMany(texts))) if texts.is_empty() || texts.len() > EMBED_INPUT_COUNT_MAX => {
            Err(invalid(
                "input",
                format!(
                    "has {} texts, allowed are 1 to {EMBED_INPUT_COUNT_MAX}",
                    texts.len()
                ),
            ))
        }
        (None, None, Some(OneOrMany(texts))) => Ok(Input::Embed(texts)),
        (None, None, None) => Err(invalid("prompt", "missing: give prompt, messages or input")),
        (Some(_), Some(_), _) => Err(invalid("messages", "give either prompt or messages, not both")),
        (Some(_), None, Some(_)) | (None, Some(_), Some(_)) => Err(invalid(
            "input",
            "is for embeddings; give either input or a prompt, not both",
        )),
    }
}
