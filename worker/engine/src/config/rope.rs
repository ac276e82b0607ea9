//! Rotary position embeddings: how fast each pair of a head's elements turns.
//!
//! All formulas are rounded where transformers rounds them, because an angle is a position times a frequency:
//! an error in the last bit grows with the position.

use std::f64::consts::PI;

use super::ConfigError;
use super::check::{CONTEXT_TOKENS_MAX, in_range, positive, unsupported};
use super::raw::RawRope;

/// One rotary position embedding; a model may have one for each kind of layer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rope {
    /// The base of the wavelengths.
    pub theta: f64,
    /// How the wavelengths are stretched for contexts longer than those of the training.
    pub scaling: RopeScaling,
}

/// How a rotary position embedding's wavelengths are stretched.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum RopeScaling {
    /// Not at all.
    Default,
    /// All by one factor.
    Linear {
        /// The factor.
        factor: f64,
    },
    /// As Llama 3 does: long ones by a factor, short ones not, those between by a part of it.
    Llama3 {
        /// The factor of wavelengths above `original_context_tokens / low_freq_factor`.
        factor: f64,
        /// See `factor`.
        low_freq_factor: f64,
        /// Wavelengths below `original_context_tokens / high_freq_factor` stay; more than `low_freq_factor`.
        high_freq_factor: f64,
        /// The context of the training, in tokens.
        original_context_tokens: usize,
    },
    /// YaRN: like Llama 3's, with a ramp over the pairs instead of the wavelengths.
    Yarn(Yarn),
}

/// The parameters of YaRN.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Yarn {
    /// The factor of the long wavelengths.
    pub factor: f64,
    /// The context of the training, in tokens.
    pub original_context_tokens: usize,
    /// Pairs that turn more often than this within the original context stay as they are.
    pub beta_fast: f64,
    /// Pairs that turn less often than this are stretched by the whole factor.
    pub beta_slow: f64,
    /// Whether the ramp starts and ends at whole pairs.
    pub truncate: bool,
    /// What sines and cosines are multiplied by.
    pub attention_factor: f64,
}

impl Rope {
    /// `field` is where the parameters were read from.
    pub(super) fn new(
        field: &'static str,
        raw: &RawRope,
        theta: f64,
        context_tokens: u64,
    ) -> Result<Self, ConfigError> {
        if let Some(factor) = raw.partial_rotary_factor.filter(|factor| *factor != 1.0) {
            return unsupported(field, "partial_rotary_factor 1", factor.to_string());
        }
        let kind = raw.rope_type.as_deref().or(raw.older_rope_type.as_deref());
        let scaling = match kind.unwrap_or("default") {
            "default" => RopeScaling::Default,
            "linear" => RopeScaling::Linear {
                factor: raw.factor()?,
            },
            "llama3" => raw.llama3(context_tokens)?,
            "yarn" => RopeScaling::Yarn(raw.yarn(context_tokens)?),
            other => {
                let found = format!("rope_type {other}");
                return unsupported(field, "rope_type default, linear, llama3 or yarn", found);
            }
        };
        Ok(Self {
            theta: positive("rope_theta", theta)?,
            scaling,
        })
    }

    /// By how much each pair of elements turns from one position to the next, in radians: f32
    /// \[head_dim / 2].
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_precision_loss,
        reason = "parameters were checked as f32, and head_dim is at most 2^20"
    )]
    pub fn inverse_frequencies(&self, head_dim: usize) -> Vec<f32> {
        let theta = self.theta as f32;
        let wavelengths = (0..head_dim / 2).map(|pair| theta.powf((2 * pair) as f32 / head_dim as f32));
        match self.scaling {
            RopeScaling::Default => wavelengths.map(|length| 1.0 / length).collect(),
            RopeScaling::Linear { factor } => {
                wavelengths.map(|length| 1.0 / length / factor as f32).collect()
            }
            RopeScaling::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                original_context_tokens,
            } => {
                let (low, high) = (low_freq_factor as f32, high_freq_factor as f32);
                let context = original_context_tokens as f32;
                let stretch = |frequency: f32| {
                    let turns = context / (2.0 * PI as f32 / frequency);
                    let stay = ((turns - low) / (high - low)).clamp(0.0, 1.0);
                    (1.0 - stay) * frequency / factor as f32 + stay * frequency
                };
                wavelengths.map(|length| stretch(1.0 / length)).collect()
            }
            RopeScaling::Yarn(yarn) => {
                let (start, end) = yarn.ramp(head_dim, self.theta);
                let stretch = |(pair, length): (usize, f32)| {
                    let ramp = ((pair as f32 - start as f32) / (end - start) as f32).clamp(0.0, 1.0);
                    let stay = 1.0 - ramp;
                    1.0 / (yarn.factor as f32 * length) * (1.0 - stay) + 1.0 / length * stay
                };
                wavelengths.enumerate().map(stretch).collect()
            }
        }
    }

    /// What sines and cosines are multiplied by, so that attention stays as sharp as in the training.
    #[expect(clippy::cast_possible_truncation, reason = "the factor was checked as f32")]
    pub const fn attention_factor(&self) -> f32 {
        match self.scaling {
            RopeScaling::Default | RopeScaling::Linear { .. } | RopeScaling::Llama3 { .. } => 1.0,
            RopeScaling::Yarn(yarn) => yarn.attention_factor as f32,
        }
    }
}

impl RawRope {
    fn llama3(&self, context_tokens: u64) -> Result<RopeScaling, ConfigError> {
        let low_freq_factor = required("low_freq_factor", self.low_freq_factor)?;
        let high_freq_factor = required("high_freq_factor", self.high_freq_factor)?;
        if high_freq_factor <= low_freq_factor {
            return Err(ConfigError::TooSmall {
                field: "high_freq_factor",
                found: high_freq_factor,
                floor_field: "low_freq_factor",
                floor: low_freq_factor,
            });
        }
        Ok(RopeScaling::Llama3 {
            factor: self.factor()?,
            low_freq_factor,
            high_freq_factor,
            original_context_tokens: self.original_context_tokens(context_tokens)?,
        })
    }

    fn yarn(&self, context_tokens: u64) -> Result<Yarn, ConfigError> {
        let factor = self.factor()?;
        // As with transformers, 0 means that a number is not given.
        let given = |found: Option<f64>| found.filter(|found| *found != 0.0);
        let beta_fast = positive("beta_fast", given(self.beta_fast).unwrap_or(32.0))?;
        let beta_slow = positive("beta_slow", given(self.beta_slow).unwrap_or(1.0))?;
        if beta_fast < beta_slow {
            return Err(ConfigError::TooSmall {
                field: "beta_fast",
                found: beta_fast,
                floor_field: "beta_slow",
                floor: beta_slow,
            });
        }
        let sharpness = |scale: f64| 0.1 * scale * factor.ln() + 1.0;
        let attention_factor = match (
            self.attention_factor,
            given(self.mscale),
            given(self.mscale_all_dim),
        ) {
            (Some(factor), _, _) => factor,
            (None, Some(scale), Some(all)) => sharpness(scale) / sharpness(all),
            (None, _, _) => sharpness(1.0),
        };
        Ok(Yarn {
            factor,
            original_context_tokens: self.original_context_tokens(context_tokens)?,
            beta_fast,
            beta_slow,
            truncate: self.truncate.unwrap_or(true),
            attention_factor: positive("attention_factor", attention_factor)?,
        })
    }

    fn factor(&self) -> Result<f64, ConfigError> {
        let factor = required("factor", self.factor)?;
        if factor < 1.0 {
            return unsupported("factor", "1 or more", factor.to_string());
        }
        Ok(factor)
    }

    fn original_context_tokens(&self, context_tokens: u64) -> Result<usize, ConfigError> {
        let found = self.original_max_position_embeddings.unwrap_or(context_tokens);
        in_range("original_max_position_embeddings", found, CONTEXT_TOKENS_MAX)
    }
}

impl Yarn {
    /// The pairs between which the stretching grows from nothing to the whole factor.
    #[expect(clippy::cast_precision_loss, reason = "both sizes are at most 2^24")]
    fn ramp(&self, head_dim: usize, theta: f64) -> (f64, f64) {
        let context = self.original_context_tokens as f64;
        let pair_of = |turns: f64| head_dim as f64 * (context / (turns * 2.0 * PI)).ln() / (2.0 * theta.ln());
        let (mut start, mut end) = (pair_of(self.beta_fast), pair_of(self.beta_slow));
        if self.truncate {
            (start, end) = (start.floor(), end.ceil());
        }
        let (start, end) = (start.max(0.0), end.min(head_dim as f64 - 1.0));
        // Keeps the slope finite.
        (start, if start == end { end + 0.001 } else { end })
    }
}

fn required(field: &'static str, found: Option<f64>) -> Result<f64, ConfigError> {
    positive(field, found.ok_or(ConfigError::Missing { field })?)
}
