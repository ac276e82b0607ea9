//! `generation_config.json`: what a model's makers recommend for sampling, and the tokens that end an answer.

use serde::Deserialize;

use super::ConfigError;
use super::check::unsupported;
use super::raw::TokenIds;

/// Sampling parameters from `generation_config.json`. As with transformers, a file without `do_sample: true`
/// means greedy whatever else it names, and one with it means temperature 1 unless it names another.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct SamplingDefaults {
    /// See [`crate::Sampling::temperature`].
    pub temperature: Option<f32>,
    /// See [`crate::Sampling::top_k`].
    pub top_k: Option<u32>,
    /// See [`crate::Sampling::top_p`].
    pub top_p: Option<f32>,
    /// See [`crate::Sampling::min_p`].
    pub min_p: Option<f32>,
    /// See [`crate::Penalties::repetition`]. Holds for greedy decoding as well.
    pub repetition_penalty: Option<f32>,
}

#[derive(Default, Deserialize)]
pub(super) struct RawGeneration {
    pub(super) bos_token_id: Option<u64>,
    pub(super) eos_token_id: Option<TokenIds>,
    do_sample: Option<bool>,
    temperature: Option<f32>,
    top_k: Option<u32>,
    top_p: Option<f32>,
    min_p: Option<f32>,
    repetition_penalty: Option<f32>,
}

impl RawGeneration {
    pub(super) fn sampling_defaults(&self) -> Result<SamplingDefaults, ConfigError> {
        let sampling = crate::Sampling {
            temperature: self.temperature.unwrap_or(1.0),
            // Transformers writes 0 for "all".
            top_k: self.top_k.filter(|top_k| *top_k > 0),
            top_p: self.top_p.unwrap_or(1.0),
            min_p: self.min_p.unwrap_or(0.0),
            ..crate::Sampling::GREEDY
        };
        if !sampling.is_valid() {
            return unsupported(
                "generation_config.json",
                "temperature >= 0, top_p in 0..=1 without 0 and min_p in 0..=1",
                format!(
                    "temperature {}, top_p {} and min_p {}",
                    sampling.temperature, sampling.top_p, sampling.min_p
                ),
            );
        }
        let penalties = crate::Penalties {
            repetition: self.repetition_penalty.unwrap_or(1.0),
            ..crate::Penalties::NONE
        };
        if !penalties.is_valid() {
            return unsupported(
                "generation_config.json",
                "repetition_penalty > 0",
                format!("repetition_penalty {}", penalties.repetition),
            );
        }
        if self.do_sample != Some(true) {
            return Ok(SamplingDefaults {
                repetition_penalty: self.repetition_penalty,
                ..SamplingDefaults::default()
            });
        }
        Ok(SamplingDefaults {
            temperature: Some(sampling.temperature),
            top_k: sampling.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            repetition_penalty: self.repetition_penalty,
        })
    }
}
