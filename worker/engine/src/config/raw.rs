//! `config.json` as it is written: every field that some family reads, none believed yet.

use serde::{Deserialize, Deserializer};
use serde_json::Value;

#[derive(Deserialize)]
pub(super) struct RawConfig {
    pub(super) architectures: Option<Vec<String>>,
    pub(super) model_type: Option<String>,
    pub(super) vocab_size: Option<u64>,
    pub(super) hidden_size: Option<u64>,
    pub(super) intermediate_size: Option<u64>,
    pub(super) num_hidden_layers: Option<u64>,
    pub(super) num_attention_heads: Option<u64>,
    pub(super) num_key_value_heads: Option<u64>,
    pub(super) head_dim: Option<u64>,
    pub(super) max_position_embeddings: Option<u64>,
    pub(super) rope_theta: Option<f64>,
    pub(super) rope_local_base_freq: Option<f64>,
    pub(super) rope_parameters: Option<RawRopes>,
    pub(super) rope_scaling: Option<RawRopes>,
    pub(super) original_max_position_embeddings: Option<u64>,
    pub(super) partial_rotary_factor: Option<f64>,
    pub(super) no_rope_layers: Option<Vec<u64>>,
    pub(super) no_rope_layer_interval: Option<u64>,
    #[serde(default)]
    pub(super) sliding_window: Field<u64>,
    pub(super) use_sliding_window: Option<bool>,
    pub(super) max_window_layers: Option<u64>,
    pub(super) sliding_window_pattern: Option<u64>,
    pub(super) layer_types: Option<Vec<String>>,
    pub(super) query_pre_attn_scalar: Option<f64>,
    pub(super) attn_logit_softcapping: Option<f64>,
    pub(super) final_logit_softcapping: Option<f64>,
    pub(super) use_bidirectional_attention: Option<bool>,
    pub(super) rms_norm_eps: Option<f64>,
    pub(super) hidden_act: Option<String>,
    pub(super) hidden_activation: Option<String>,
    #[serde(default)]
    pub(super) attention_bias: bool,
    #[serde(default)]
    pub(super) mlp_bias: bool,
    pub(super) tie_word_embeddings: Option<bool>,
    pub(super) quantization_config: Option<Value>,
    pub(super) dtype: Option<String>,
    pub(super) torch_dtype: Option<String>,
    pub(super) bos_token_id: Option<u64>,
    pub(super) eos_token_id: Option<TokenIds>,
}

/// Rope parameters: one set, or one a layer type.
#[derive(Clone, Default, Deserialize)]
pub(super) struct RawRopes {
    #[serde(flatten)]
    pub(super) all: RawRope,
    pub(super) full_attention: Option<RawRope>,
    pub(super) sliding_attention: Option<RawRope>,
}

#[derive(Clone, Default, Deserialize, PartialEq)]
pub(super) struct RawRope {
    pub(super) rope_type: Option<String>,
    #[serde(rename = "type")]
    pub(super) older_rope_type: Option<String>,
    pub(super) rope_theta: Option<f64>,
    pub(super) partial_rotary_factor: Option<f64>,
    pub(super) factor: Option<f64>,
    pub(super) original_max_position_embeddings: Option<u64>,
    pub(super) low_freq_factor: Option<f64>,
    pub(super) high_freq_factor: Option<f64>,
    pub(super) attention_factor: Option<f64>,
    pub(super) beta_fast: Option<f64>,
    pub(super) beta_slow: Option<f64>,
    pub(super) mscale: Option<f64>,
    pub(super) mscale_all_dim: Option<f64>,
    pub(super) truncate: Option<bool>,
}

/// A field whose absence and `null` differ in meaning.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) enum Field<T> {
    #[default]
    Absent,
    Null,
    Value(T),
}

impl<T> Field<T> {
    /// What the field says, if anything.
    pub(super) fn value(self) -> Option<T> {
        match self {
            Self::Absent | Self::Null => None,
            Self::Value(value) => Some(value),
        }
    }

    /// What the field says, `default` if it is not there at all.
    pub(super) fn or_absent(self, default: T) -> Option<T> {
        match self {
            Self::Absent => Some(default),
            Self::Null => None,
            Self::Value(value) => Some(value),
        }
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Field<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Option::deserialize(deserializer).map(|value| value.map_or(Self::Null, Self::Value))
    }
}

#[derive(Deserialize)]
#[serde(untagged)]
pub(super) enum TokenIds {
    One(u64),
    Many(Vec<u64>),
}

impl TokenIds {
    pub(super) fn as_slice(&self) -> &[u64] {
        match self {
            Self::One(id) => std::slice::from_ref(id),
            Self::Many(ids) => ids,
        }
    }
}
