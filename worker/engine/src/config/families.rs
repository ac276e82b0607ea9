//! What each family of decoders makes of its `config.json`: which fields it reads, and what it takes for those
//! that are not there. The defaults are those of transformers.

use super::check::{CONTEXT_TOKENS_MAX, in_range, positive, unsupported};
use super::raw::{RawConfig, RawRope, RawRopes};
use super::rope::Rope;
use super::{Biases, ConfigError, LayerAttention};

/// A family of decoders that the engine runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// Llama 2 and 3, SmolLM and SmolLM2, and all that took their definition.
    Llama,
    /// Mistral: Llama with a sliding window.
    Mistral,
    /// Qwen 2 and 2.5: biases of queries, keys and values.
    Qwen2,
    /// Qwen 3: queries and keys are normalised.
    Qwen3,
    /// SmolLM 3: some layers do not know positions.
    SmolLm3,
    /// Gemma 3, text only: norms around each half of a layer, two rotary embeddings.
    Gemma3,
}

/// What a layer sees, apart from its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LayerType {
    Full,
    Sliding,
}

impl Family {
    const ALL: [Self; 6] = [
        Self::Llama,
        Self::Mistral,
        Self::Qwen2,
        Self::Qwen3,
        Self::SmolLm3,
        Self::Gemma3,
    ];

    /// The architecture as `config.json` names it.
    pub const fn architecture(self) -> &'static str {
        match self {
            Self::Llama => "LlamaForCausalLM",
            Self::Mistral => "MistralForCausalLM",
            Self::Qwen2 => "Qwen2ForCausalLM",
            Self::Qwen3 => "Qwen3ForCausalLM",
            Self::SmolLm3 => "SmolLM3ForCausalLM",
            Self::Gemma3 => "Gemma3ForCausalLM",
        }
    }

    const fn model_type(self) -> &'static str {
        match self {
            Self::Llama => "llama",
            Self::Mistral => "mistral",
            Self::Qwen2 => "qwen2",
            Self::Qwen3 => "qwen3",
            Self::SmolLm3 => "smollm3",
            Self::Gemma3 => "gemma3_text",
        }
    }

    /// The family that a configuration names.
    pub(super) fn of(raw: &RawConfig) -> Result<Self, ConfigError> {
        let find = |name: fn(Self) -> &'static str, found: &str| {
            Self::ALL.into_iter().find(|family| name(*family) == found)
        };
        match (raw.architectures.as_deref(), raw.model_type.as_deref()) {
            (Some([architecture]), _) => match find(Self::architecture, architecture) {
                Some(family) => Ok(family),
                None => unsupported("architectures", ARCHITECTURES, architecture),
            },
            (Some(several), _) => unsupported("architectures", ARCHITECTURES, several.join(", ")),
            (None, Some(model_type)) => match find(Self::model_type, model_type) {
                Some(family) => Ok(family),
                None => unsupported("model_type", MODEL_TYPES, model_type),
            },
            (None, None) => Err(ConfigError::Missing {
                field: "architectures",
            }),
        }
    }

    pub(super) const fn biases(self, raw: &RawConfig) -> Biases {
        let (qkv, output, feed_forward) = match self {
            Self::Llama | Self::SmolLm3 => (raw.attention_bias, raw.attention_bias, raw.mlp_bias),
            Self::Qwen3 | Self::Gemma3 => (raw.attention_bias, raw.attention_bias, false),
            Self::Qwen2 => (true, false, false),
            Self::Mistral => (false, false, false),
        };
        Biases {
            qkv,
            output,
            feed_forward,
        }
    }

    /// Whether queries and keys are normalised.
    pub(super) const fn normalises_queries_and_keys(self) -> bool {
        matches!(self, Self::Qwen3 | Self::Gemma3)
    }

    /// Whether fields that others derive must be stated.
    pub(super) const fn states_head_dim(self) -> bool {
        matches!(self, Self::Qwen3 | Self::Gemma3)
    }

    pub(super) const fn ties_embeddings(self) -> bool {
        matches!(self, Self::SmolLm3 | Self::Gemma3)
    }

    const fn rope_theta(self) -> f64 {
        match self {
            Self::Llama | Self::Mistral | Self::Qwen2 | Self::Qwen3 => 10_000.0,
            Self::SmolLm3 => 2_000_000.0,
            Self::Gemma3 => 1_000_000.0,
        }
    }

    /// The rotary embeddings, and what each layer sees and turns by.
    pub(super) fn attention(
        self,
        raw: &RawConfig,
        layers: usize,
    ) -> Result<(Vec<Rope>, Vec<LayerAttention>), ConfigError> {
        let ropes = self.ropes(raw)?;
        let window = self.window(raw)?;
        let rotates = self.rotating_layers(raw, layers)?;
        let types = self.layer_types(raw, window, &rotates)?;
        let layer = |(kind, rotates): (LayerType, bool)| {
            let window = match kind {
                LayerType::Full => None,
                LayerType::Sliding if window.is_none() => {
                    let expected = "full_attention where no sliding window is in use";
                    return unsupported("layer_types", expected, "sliding_attention");
                }
                LayerType::Sliding => window,
            };
            let rope = match (self, kind) {
                (Self::Gemma3, LayerType::Sliding) => GEMMA_LOCAL_ROPE,
                (Self::Gemma3, LayerType::Full) => GEMMA_GLOBAL_ROPE,
                _ => 0,
            };
            Ok(LayerAttention {
                window,
                rope: rotates.then_some(rope),
            })
        };
        let attention = types.into_iter().zip(rotates).map(layer);
        Ok((ropes, attention.collect::<Result<_, _>>()?))
    }

    /// The sliding window of those layers that have one, in tokens.
    fn window(self, raw: &RawConfig) -> Result<Option<usize>, ConfigError> {
        let in_use = raw.use_sliding_window == Some(true);
        let window = match self {
            Self::Llama => None,
            Self::Mistral | Self::Gemma3 => raw.sliding_window.or_absent(SLIDING_WINDOW_DEFAULT),
            Self::Qwen2 | Self::Qwen3 if in_use => raw.sliding_window.or_absent(SLIDING_WINDOW_DEFAULT),
            Self::SmolLm3 if in_use => raw.sliding_window.value(),
            Self::Qwen2 | Self::Qwen3 | Self::SmolLm3 => None,
        };
        window
            .map(|window| in_range("sliding_window", window, CONTEXT_TOKENS_MAX))
            .transpose()
    }

    /// For each layer, whether it turns queries and keys at all.
    fn rotating_layers(self, raw: &RawConfig, layers: usize) -> Result<Vec<bool>, ConfigError> {
        if self != Self::SmolLm3 {
            return Ok(vec![true; layers]);
        }
        let interval = raw.no_rope_layer_interval.unwrap_or(4);
        let interval = in_range("no_rope_layer_interval", interval, CONTEXT_TOKENS_MAX)?;
        let Some(given) = &raw.no_rope_layers else {
            return Ok((1..=layers).map(|layer| layer % interval != 0).collect());
        };
        check_layer_count("no_rope_layers", given.len(), layers)?;
        let rotates = |flag: &u64| match flag {
            0 => Ok(false),
            1 => Ok(true),
            other => unsupported("no_rope_layers", "0 or 1", other.to_string()),
        };
        given.iter().map(rotates).collect()
    }

    fn layer_types(
        self,
        raw: &RawConfig,
        window: Option<usize>,
        rotates: &[bool],
    ) -> Result<Vec<LayerType>, ConfigError> {
        let pattern = raw.sliding_window_pattern.unwrap_or(6);
        let pattern = in_range("sliding_window_pattern", pattern, CONTEXT_TOKENS_MAX)?;
        let windowed_from = raw.max_window_layers.unwrap_or(28);
        let slides = |(layer, rotates): (usize, &bool)| match self {
            Self::Llama => false,
            Self::Mistral => window.is_some(),
            Self::Qwen2 | Self::Qwen3 => window.is_some() && layer as u64 >= windowed_from,
            Self::SmolLm3 => window.is_some() && !rotates,
            Self::Gemma3 => !(layer + 1).is_multiple_of(pattern),
        };
        let derived: Vec<LayerType> = rotates
            .iter()
            .enumerate()
            .map(|layer| match slides(layer) {
                true => LayerType::Sliding,
                false => LayerType::Full,
            })
            .collect();
        let Some(names) = &raw.layer_types else {
            return Ok(derived);
        };
        check_layer_count("layer_types", names.len(), rotates.len())?;
        let given: Vec<LayerType> = names
            .iter()
            .map(|name| layer_type(name))
            .collect::<Result<_, _>>()?;
        // These two read no layer types: what contradicts them was made for another definition.
        if matches!(self, Self::Llama | Self::Mistral) && given != derived {
            return unsupported("layer_types", "all layers alike in this family", names.join(", "));
        }
        Ok(given)
    }

    fn ropes(self, raw: &RawConfig) -> Result<Vec<Rope>, ConfigError> {
        if let Some(factor) = raw.partial_rotary_factor.filter(|factor| *factor != 1.0) {
            return unsupported("partial_rotary_factor", "1", factor.to_string());
        }
        if self == Self::Gemma3 {
            return raw.gemma_ropes();
        }
        // As with transformers, the older spelling wins.
        let older = raw
            .rope_scaling
            .as_ref()
            .filter(|rope| rope.all != RawRope::default());
        let (field, chosen) = match (older, &raw.rope_parameters) {
            (Some(rope), _) => ("rope_scaling", rope.clone()),
            (None, Some(rope)) => ("rope_parameters", rope.clone()),
            (None, None) => ("rope_parameters", RawRopes::default()),
        };
        if chosen.full_attention.is_some() || chosen.sliding_attention.is_some() {
            return unsupported(field, "one set of parameters for all layers", "one a layer type");
        }
        let newer_theta = raw.rope_parameters.as_ref().and_then(|rope| rope.all.rope_theta);
        let theta = chosen.all.rope_theta.or(raw.rope_theta).or(newer_theta);
        let theta = theta.unwrap_or(self.rope_theta());
        Ok(vec![raw.rope(field, chosen.all, theta)?])
    }
}

impl RawConfig {
    /// The rotary embeddings of [`Family::Gemma3`], in the order of their constants.
    fn gemma_ropes(&self) -> Result<Vec<Rope>, ConfigError> {
        let field = "rope_parameters";
        let RawRopes {
            all,
            full_attention,
            sliding_attention,
        } = self.rope_parameters.clone().unwrap_or_default();
        if all != RawRope::default() {
            return unsupported(field, "one set of parameters a layer type", "one for all layers");
        }
        let older = self.rope_scaling.as_ref().map(|rope| rope.all.clone());
        let (global_field, global) = match older {
            Some(rope) => ("rope_scaling", rope),
            None => (field, full_attention.clone().unwrap_or_default()),
        };
        let newer_theta = full_attention.and_then(|rope| rope.rope_theta);
        let global_theta = global.rope_theta.or(newer_theta).or(self.rope_theta);
        let global_theta = global_theta.unwrap_or(Family::Gemma3.rope_theta());
        let local = sliding_attention.unwrap_or_default();
        let local_theta = local.rope_theta.or(self.rope_local_base_freq);
        let local_theta = positive("rope_local_base_freq", local_theta.unwrap_or(10_000.0))?;
        Ok(vec![
            self.rope(global_field, global, global_theta)?,
            self.rope(field, local, local_theta)?,
        ])
    }

    fn rope(&self, field: &'static str, mut raw: RawRope, theta: f64) -> Result<Rope, ConfigError> {
        raw.original_max_position_embeddings = self
            .original_max_position_embeddings
            .or(raw.original_max_position_embeddings);
        let context_tokens = self.max_position_embeddings.unwrap_or(0);
        Rope::new(field, &raw, theta, context_tokens)
    }
}

fn layer_type(name: &str) -> Result<LayerType, ConfigError> {
    match name {
        "full_attention" => Ok(LayerType::Full),
        "sliding_attention" => Ok(LayerType::Sliding),
        other => unsupported("layer_types", "full_attention or sliding_attention", other),
    }
}

fn check_layer_count(field: &'static str, found: usize, layers: usize) -> Result<(), ConfigError> {
    if found == layers {
        Ok(())
    } else {
        Err(ConfigError::LayerCount { field, found, layers })
    }
}

const ARCHITECTURES: &str = "one of LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM, \
                             SmolLM3ForCausalLM, Gemma3ForCausalLM";
const MODEL_TYPES: &str = "one of llama, mistral, qwen2, qwen3, smollm3, gemma3_text";
const SLIDING_WINDOW_DEFAULT: u64 = 4096;
const GEMMA_GLOBAL_ROPE: usize = 0;
const GEMMA_LOCAL_ROPE: usize = 1;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lists_in_messages_name_every_family() {
        for family in Family::ALL {
            assert!(ARCHITECTURES.contains(family.architecture()), "{family:?}");
            assert!(MODEL_TYPES.contains(family.model_type()), "{family:?}");
        }
    }
}
