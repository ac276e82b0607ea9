//! How tokens are chosen.

use std::collections::BTreeMap;

/// How tokens are chosen. The random numbers are a function of (seed, position) alone.
///
/// `None` leaves a parameter to the model's `generation_config.json`, or else to no effect at all.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct SamplingParams {
    /// 0 is greedy; `None` leaves it to the model's `generation_config.json`, which is greedy when silent.
    pub temperature: Option<f32>,
    /// Only the k most likely tokens.
    pub top_k: Option<u32>,
    /// Only the smallest set of tokens with this much probability, in (0, 1].
    pub top_p: Option<f32>,
    /// Only tokens with at least this part of the likeliest one's probability, in [0, 1].
    pub min_p: Option<f32>,
    /// Divides the positive logits of tokens that prompt or answer hold and multiplies the negative ones, as
    /// `transformers` and vLLM do; above 0, and 1 for none.
    pub repetition_penalty: Option<f32>,
    /// Taken from the logit of each token that the answer holds, in [-2, 2].
    pub presence_penalty: Option<f32>,
    /// Taken from the logit of each token once for each time that the answer holds it, in [-2, 2].
    pub frequency_penalty: Option<f32>,
    /// Added to the logits of these token ids, each in [-100, 100]; at most [`LOGIT_BIAS_COUNT_MAX`].
    pub logit_bias: BTreeMap<u32, f32>,
    /// Log-probabilities are wanted: of each token, and of this many of the likeliest ones at its place, at most
    /// [`TOP_LOGPROBS_MAX`].
    pub logprobs: Option<u32>,
    /// The seed; `None` means [`crate::RequestId::seed`].
    pub seed: Option<u64>,
}

/// Most tokens with a bias in one request. OpenAI allows 300; more is a grammar written the wrong way.
pub const LOGIT_BIAS_COUNT_MAX: usize = 1024;
/// Most alternatives of a token whose log-probabilities are told, as with OpenAI's API.
pub const TOP_LOGPROBS_MAX: u32 = 20;
