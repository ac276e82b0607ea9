//! From a request to what the engine runs: prompt tokens, limits and sampling, or the reason why not.

use std::time::SystemTime;

use flotilla_prompt::Made;
use flotilla_protocol::RequestId;
use flotilla_protocol::event::{ErrorCode, RequestError};
use flotilla_protocol::request::{InferenceRequest, SamplingParams};
use flotilla_text::StopStrings;
use flotilla_worker_engine::{LogitEdits, ModelConfig, Sampling};

use crate::model::ModelText;

/// A request, ready to run.
#[derive(Debug, Clone)]
pub(crate) struct Prompt {
    /// The prompt, at least one token and at least one less than the context.
    pub(crate) tokens: Vec<u32>,
    /// Most tokens of the answer, within the context; at least 1.
    pub(crate) answer_tokens_max: usize,
    /// How tokens are drawn; the position is the engine's.
    pub(crate) sampling: Sampling,
    /// Penalties and biases, before any token was read.
    pub(crate) edits: LogitEdits,
    /// Texts that end the answer.
    pub(crate) stops: StopStrings,
}

impl Prompt {
    /// Prepares a request for a model. Renders and tokenises, so it belongs on a blocking thread. `now` is
    /// what a chat template shows as the date.
    ///
    /// # Errors
    /// A [`RequestError`] for the client.
    pub(crate) fn new(
        id: &RequestId,
        request: &InferenceRequest,
        model: &ModelText,
        now: SystemTime,
    ) -> Result<Self, RequestError> {
        let made = match model.prompts.make(request, now)? {
            Made::Generate(prompt) => prompt,
            Made::Embed(_) => {
                let message = "this worker's engine makes no embeddings".to_owned();
                return Err(invalid("input", message));
            }
        };
        let stops = StopStrings::new(&request.stop).map_err(|error| invalid("stop", error.to_string()))?;
        let (sampling, edits) = sampling(id, &request.sampling, &model.config)?;
        Ok(Self {
            tokens: made.tokens,
            answer_tokens_max: usize::try_from(made.answer_tokens_max).unwrap_or(usize::MAX),
            sampling,
            edits,
            stops,
        })
    }
}

/// The request's parameters, else the model's, else greedy. A request that says how random it wants to be
/// has said all: the model's cuts belong to the model's temperature.
fn sampling(
    id: &RequestId,
    params: &SamplingParams,
    config: &ModelConfig,
) -> Result<(Sampling, LogitEdits), RequestError> {
    refuse_unknown_to_engine(params)?;
    let defaults = config.sampling_defaults;
    let (top_k, top_p) = match params.temperature {
        Some(_) => (params.top_k, params.top_p),
        None => (params.top_k.or(defaults.top_k), params.top_p.or(defaults.top_p)),
    };
    let sampling = Sampling {
        temperature: params.temperature.or(defaults.temperature).unwrap_or(0.0),
        top_k,
        top_p: top_p.unwrap_or(1.0),
        min_p: 0.0,
        logprobs: None,
        seed: params.seed.unwrap_or_else(|| id.seed()),
        position: 0,
    };
    if sampling.is_valid() {
        Ok((sampling, LogitEdits::none()))
    } else {
        let message = "temperature, top_k or top_p is out of range".to_owned();
        Err(invalid("temperature", message))
    }
}

/// The engine draws by temperature, top-k and top-p alone: what it would leave out is refused by name.
fn refuse_unknown_to_engine(params: &SamplingParams) -> Result<(), RequestError> {
    let has_effect = |value: Option<f32>, none: f32| value.is_some_and(|value| value != none);
    let asked = [
        ("min_p", has_effect(params.min_p, 0.0)),
        ("repetition_penalty", has_effect(params.repetition_penalty, 1.0)),
        ("presence_penalty", has_effect(params.presence_penalty, 0.0)),
        ("frequency_penalty", has_effect(params.frequency_penalty, 0.0)),
        ("logit_bias", !params.logit_bias.is_empty()),
        ("logprobs", params.logprobs.is_some()),
    ];
    match asked.into_iter().find(|(_, asked)| *asked) {
        Some((field, _)) => {
            let message = format!("{field} with this value is not supported; leave it out");
            Err(invalid(field, message))
        }
        None => Ok(()),
    }
}

fn invalid(param: &'static str, message: String) -> RequestError {
    RequestError {
        code: ErrorCode::InvalidRequest,
        message,
        param: Some(param.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use flotilla_protocol::{Encoding, ModelName};

    use super::*;
    use crate::fixture::{demo_folder, demo_limits};
    use crate::model::OpenedModel;

    fn prompt(body: &str) -> Result<Prompt, RequestError> {
        let model = OpenedModel::open(&demo_folder("adder"), demo_limits()).unwrap();
        let name = ModelName::new("adder").unwrap();
        let request = InferenceRequest::decode(&name, Encoding::Json, body.as_bytes(), 1 << 20)?;
        let id = RequestId::new("a").unwrap();
        Prompt::new(&id, &request, &model.text, SystemTime::UNIX_EPOCH)
    }

    #[test]
    fn answer_is_as_long_as_asked_for_or_as_the_context_allows() {
        let asked = prompt(r#"{"prompt": "123+456=", "max_tokens": 8}"#).unwrap();
        assert_eq!(asked.answer_tokens_max, 8);
        let room = 128 - asked.tokens.len();
        assert_eq!(
            prompt(r#"{"prompt": "123+456="}"#).unwrap().answer_tokens_max,
            room
        );
        let error = prompt(r#"{"prompt": "123+456=", "max_tokens": 4000}"#).unwrap_err();
        assert_eq!(error.param.as_deref(), Some("max_tokens"));
    }

    #[test]
    fn prompt_that_fills_the_context_is_refused_and_one_token_less_is_not() {
        let body = |tokens: usize| format!(r#"{{"prompt": {:?}}}"#, vec![3; tokens]);
        let error = prompt(&body(128)).unwrap_err();
        assert_eq!(
            (error.code, error.param.as_deref()),
            (ErrorCode::ContextExceeded, Some("prompt"))
        );
        assert_eq!(prompt(&body(127)).unwrap().answer_tokens_max, 1);
    }

    #[test]
    fn what_the_model_cannot_do_is_refused_with_the_field() {
        let cases = [
            (r#"{"prompt": [3, 16]}"#, "prompt"),
            (
                r#"{"messages": [{"role": "user", "content": "1+1="}]}"#,
                "messages",
            ),
            (r#"{"input": "1+1="}"#, "input"),
            (r#"{"prompt": "1+1=", "min_p": 0.1}"#, "min_p"),
            (r#"{"prompt": "1+1=", "logprobs": 0}"#, "logprobs"),
        ];
        for (body, param) in cases {
            let error = prompt(body).unwrap_err();
            assert_eq!(
                (error.code, error.param.as_deref()),
                (ErrorCode::InvalidRequest, Some(param)),
                "{body}"
            );
        }
    }

    #[test]
    fn sampling_is_greedy_unless_asked_and_seeded_by_the_request_id() {
        let greedy = prompt(r#"{"prompt": "1+1="}"#).unwrap().sampling;
        assert_eq!(greedy.temperature.to_bits(), 0.0_f32.to_bits());
        assert_eq!(greedy.seed, RequestId::new("a").unwrap().seed());
        let hot = prompt(r#"{"prompt": "1+1=", "temperature": 0.5, "seed": 7}"#)
            .unwrap()
            .sampling;
        assert_eq!((hot.temperature.to_bits(), hot.seed), (0.5_f32.to_bits(), 7));
    }
}
