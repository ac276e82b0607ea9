//! From a request to what the engine runs: the texts of vectors, or prompt tokens, limits and sampling; or the
//! reason why not.

use std::time::SystemTime;

use flotilla_prompt::Made;
use flotilla_protocol::RequestId;
use flotilla_protocol::event::{ErrorCode, RequestError};
use flotilla_protocol::request::{InferenceRequest, ResponseFormat, SamplingParams};
use flotilla_text::{AnswerGrammar, StopStrings};
use flotilla_worker_engine::{LogitBias, LogitEdits, LogitEditsError, Penalties, Sampling, SamplingDefaults};

use crate::model::{ModelText, TokenSource};

/// A request, ready to run.
#[derive(Debug)]
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
    /// Whether the model's end tokens end it as well.
    pub(crate) end_tokens: EndTokens,
    /// The shape that the answer must have, in the client's words.
    pub(crate) format: ResponseFormat,
    /// The same, before the answer's first token.
    pub(crate) grammar: Option<Box<AnswerGrammar>>,
}

/// What the end tokens of a model are to an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum EndTokens {
    /// They end it.
    End,
    /// They are tokens like any other.
    Ignored,
}

/// What a request wants, ready to run.
#[derive(Debug)]
pub(crate) enum Prepared {
    /// An answer.
    Generate(Box<Prompt>),
    /// The vectors of these texts, given as tokens.
    Embed(Vec<Vec<u32>>),
}

impl Prepared {
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
        match model.prompts.make(request, now)? {
            Made::Generate(made) => Ok(Self::Generate(Box::new(Prompt::new(id, request, model, made)?))),
            Made::Embed(texts) => Ok(Self::Embed(texts)),
        }
    }

    /// Tokens to be read.
    pub(crate) fn prompt_tokens(&self) -> usize {
        match self {
            Self::Generate(prompt) => prompt.tokens.len(),
            Self::Embed(texts) => texts.iter().map(Vec::len).sum(),
        }
    }
}

impl Prompt {
    fn new(
        id: &RequestId,
        request: &InferenceRequest,
        model: &ModelText,
        made: flotilla_prompt::Prompt,
    ) -> Result<Self, RequestError> {
        let stops = StopStrings::new(&request.stop).map_err(|error| invalid("stop", error.to_string()))?;
        let (sampling, edits) = sampling(id, &request.sampling, &model.sampling_defaults)?;
        let grammar = grammar(request, model)?;
        Ok(Self {
            tokens: made.tokens,
            answer_tokens_max: usize::try_from(made.answer_tokens_max).unwrap_or(usize::MAX),
            sampling,
            edits,
            stops,
            end_tokens: match request.ignore_eos {
                true => EndTokens::Ignored,
                false => EndTokens::End,
            },
            format: request.response_format.clone(),
            grammar: grammar.map(Box::new),
        })
    }
}

fn grammar(request: &InferenceRequest, model: &ModelText) -> Result<Option<AnswerGrammar>, RequestError> {
    let grammar = model.prompts.answer_grammar(request, &model.stop_token_ids)?;
    match (grammar, model.tokens) {
        (Some(_), TokenSource::MadeUp) => {
            let message = "this worker makes its tokens up, so its answers have no shape; leave it out";
            Err(invalid("response_format", message.to_owned()))
        }
        (grammar, _) => Ok(grammar),
    }
}

/// The request's parameters, else the model's, else greedy. A request that says how random it wants to be
/// has said all: the model's cuts belong to the model's temperature. Its repetition penalty belongs to none.
fn sampling(
    id: &RequestId,
    params: &SamplingParams,
    defaults: &SamplingDefaults,
) -> Result<(Sampling, LogitEdits), RequestError> {
    let cuts = match params.temperature {
        Some(_) => SamplingDefaults::default(),
        None => *defaults,
    };
    let logprobs = params
        .logprobs
        .map(|count| u8::try_from(count).unwrap_or(u8::MAX));
    let sampling = Sampling {
        temperature: params.temperature.or(defaults.temperature).unwrap_or(0.0),
        top_k: params.top_k.or(cuts.top_k),
        top_p: params.top_p.or(cuts.top_p).unwrap_or(1.0),
        min_p: params.min_p.or(cuts.min_p).unwrap_or(0.0),
        logprobs,
        seed: params.seed.unwrap_or_else(|| id.seed()),
        position: 0,
    };
    if sampling.is_valid() {
        Ok((sampling, edits(params, defaults)?))
    } else {
        let message = "temperature, top_k, top_p, min_p or logprobs is out of range".to_owned();
        Err(invalid("temperature", message))
    }
}

fn edits(params: &SamplingParams, defaults: &SamplingDefaults) -> Result<LogitEdits, RequestError> {
    let none = Penalties::NONE;
    let penalties = Penalties {
        repetition: params
            .repetition_penalty
            .or(defaults.repetition_penalty)
            .unwrap_or(none.repetition),
        presence: params.presence_penalty.unwrap_or(none.presence),
        frequency: params.frequency_penalty.unwrap_or(none.frequency),
    };
    let biases = params
        .logit_bias
        .iter()
        .map(|(&token, &addend)| LogitBias { token, addend });
    LogitEdits::new(penalties, biases).map_err(|error| {
        let field = match error {
            LogitEditsError::Penalties { .. } => "repetition_penalty",
            LogitEditsError::Bias { .. } => "logit_bias",
        };
        invalid(field, error.to_string())
    })
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
    use flotilla_worker_engine::AllHere;

    use super::*;
    use crate::fixture::{demo_folder, demo_limits};
    use crate::model::OpenedModel;

    fn prompt(body: &str) -> Result<Prompt, RequestError> {
        let model = OpenedModel::open(&demo_folder("adder"), &AllHere, demo_limits(), None, None).unwrap();
        let name = ModelName::new("adder").unwrap();
        let request = InferenceRequest::decode(&name, Encoding::Json, body.as_bytes(), 1 << 20)?;
        let id = RequestId::new("a").unwrap();
        match Prepared::new(&id, &request, &model.text, SystemTime::UNIX_EPOCH)? {
            Prepared::Generate(prompt) => Ok(*prompt),
            embed @ Prepared::Embed(_) => panic!("the adder makes text: {embed:?}"),
        }
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
            (r#"{"prompt": "1+1=", "logit_bias": {"16": 1}}"#, "logit_bias"),
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

    #[test]
    fn every_sampling_parameter_reaches_the_engine() {
        let asked = prompt(
            r#"{"prompt": "1+1=", "temperature": 1, "top_k": 3, "top_p": 0.5, "min_p": 0.25, "logprobs": 20,
                "repetition_penalty": 2, "presence_penalty": 0.5, "frequency_penalty": 0.25, "logit_bias": {"3": 9}}"#,
        )
        .unwrap();
        let sampling = asked.sampling;
        assert_eq!((sampling.top_k, sampling.logprobs), (Some(3), Some(20)));
        assert_eq!((sampling.top_p, sampling.min_p), (0.5, 0.25));
        let mut edits = asked.edits;
        edits.read_prompt(&[4]);
        edits.push_answer(5);
        edits.push_answer(5);
        let logit = |token| {
            let edit = edits.iter().find(|edit| edit.token == token);
            edit.map(|edit| edit.edited(8.0))
        };
        assert_eq!(logit(3), Some(17.0), "the bias");
        assert_eq!(logit(4), Some(4.0), "repeated from the prompt");
        assert_eq!(
            logit(5),
            Some(4.0 - 0.5 - 2.0 * 0.25),
            "repeated, present and counted"
        );
        assert_eq!(logit(6), None);
    }

    #[test]
    fn cuts_of_the_model_belong_to_its_temperature_and_its_repetition_penalty_to_none() {
        let defaults = SamplingDefaults {
            temperature: Some(0.5),
            top_k: Some(7),
            top_p: Some(0.75),
            min_p: Some(0.125),
            repetition_penalty: Some(2.0),
        };
        let id = RequestId::new("a").unwrap();
        let sampled = |params: SamplingParams| {
            let (sampling, mut edits) = sampling(&id, &params, &defaults).unwrap();
            edits.read_prompt(&[4]);
            let penalty = edits.iter().next().map(|edit| edit.divisor);
            (sampling.top_k, sampling.top_p, sampling.min_p, penalty)
        };
        let silent = sampled(SamplingParams::default());
        assert_eq!(silent, (Some(7), 0.75, 0.125, Some(2.0)));
        let hot = SamplingParams {
            temperature: Some(1.0),
            ..SamplingParams::default()
        };
        assert_eq!(sampled(hot.clone()), (None, 1.0, 0.0, Some(2.0)));
        let own = SamplingParams {
            repetition_penalty: Some(1.0),
            ..hot
        };
        assert_eq!(sampled(own), (None, 1.0, 0.0, None));
    }
}
