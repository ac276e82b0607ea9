//! A model's configuration, as `config.json` and `generation_config.json` state it.

mod check;
mod encoder;
mod error;
mod families;
mod generation;
mod raw;
mod rope;

pub use encoder::{EncoderConfig, ModelKind};
pub use error::ConfigError;
pub use families::Family;
pub use generation::SamplingDefaults;
pub use rope::{Rope, RopeScaling, Yarn};

use crate::backend::Activation;
use check::{
    CONTEXT_TOKENS_MAX, HEADS_MAX, LAYERS_MAX, VOCAB_SIZE_MAX, WIDTH_MAX, divides, in_range, positive,
    positive_f32, size, token_id, unsupported,
};
use generation::RawGeneration;
use raw::{RawConfig, TokenIds};

/// What fixes a decoder: its numbers, and the features of its family. Every one is checked to be sane and to
/// fit the others.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// Which family it is of.
    pub family: Family,
    /// How many token ids there are.
    pub vocab_size: usize,
    /// The length of the residual stream's rows.
    pub hidden: usize,
    /// The width of the feed-forward layers.
    pub intermediate: usize,
    /// What each layer sees; at least one layer.
    pub layers: Vec<LayerAttention>,
    /// The number of query heads, a multiple of `kv_heads`.
    pub heads: usize,
    /// The number of key and value heads.
    pub kv_heads: usize,
    /// The length of one head's vector; even.
    pub head_dim: usize,
    /// The longest sequence the model was made for, in tokens.
    pub context_tokens_max: usize,
    /// The rotary position embeddings, one or two; layers name theirs by index.
    pub ropes: Vec<Rope>,
    /// What products of queries and keys are multiplied by.
    pub attention_scale: f32,
    /// Which linear layers add a bias.
    pub biases: Biases,
    /// Whether each head of queries and keys is normalised before it turns.
    pub qk_norm: bool,
    /// Where a layer normalises.
    pub norms: Norms,
    /// What normalisation adds to the mean square.
    pub rms_norm_epsilon: f32,
    /// What normalisation adds to each of its weights.
    pub norm_weight_offset: f32,
    /// What gates the feed-forward layers.
    pub activation: Activation,
    /// What embeddings are multiplied by, once rounded to their element type.
    pub embedding_scale: f32,
    /// Whether the output layer is the embedding table.
    pub tied_embeddings: bool,
    /// The token that starts a sequence, if the model has one.
    pub bos_token_id: Option<u32>,
    /// The tokens that end a generation; may be empty.
    pub eos_token_ids: Vec<u32>,
    /// What the model's makers recommend for sampling.
    pub sampling_defaults: SamplingDefaults,
}

/// What the tokens of one layer see, and how they know positions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayerAttention {
    /// How many tokens a token sees, itself and those before it, at least 1; none means all.
    pub window: Option<usize>,
    /// The rotary embedding, an index into [`ModelConfig::ropes`]; none means that positions are not known.
    pub rope: Option<usize>,
}

/// Which linear layers add a bias.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Biases {
    /// Those of queries, keys and values.
    pub qkv: bool,
    /// That of attention's output.
    pub output: bool,
    /// Those of the feed-forward layers.
    pub feed_forward: bool,
}

/// Where a layer normalises.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Norms {
    /// What goes into attention and into the feed-forward layers.
    Before,
    /// That, and what comes out of both, before it is added to the residual stream.
    BeforeAndAfter,
}

impl ModelConfig {
    /// Reads and checks the contents of `config.json`, and of `generation_config.json` if there is one.
    ///
    /// # Errors
    /// The first fault found, with its field.
    pub fn from_json(config: &[u8], generation: Option<&[u8]>) -> Result<Self, ConfigError> {
        let raw: RawConfig = serde_json::from_slice(config).map_err(ConfigError::Json)?;
        let generation: RawGeneration = match generation {
            Some(bytes) => serde_json::from_slice(bytes).map_err(ConfigError::GenerationJson)?,
            None => RawGeneration::default(),
        };
        let family = Family::of(&raw)?;
        raw.check_supported()?;
        raw.into_config(family, &generation)
    }

    /// The length of a token's queries: heads times head_dim.
    pub const fn query_width(&self) -> usize {
        self.heads * self.head_dim
    }

    /// The length of a token's keys, and of its values.
    pub const fn kv_width(&self) -> usize {
        self.kv_heads * self.head_dim
    }
}

struct Heads {
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
}

impl RawConfig {
    fn check_supported(&self) -> Result<(), ConfigError> {
        if let Some(quantization) = &self.quantization_config {
            return unsupported("quantization_config", "none", quantization.to_string());
        }
        for (field, found) in [
            ("attn_logit_softcapping", self.attn_logit_softcapping),
            ("final_logit_softcapping", self.final_logit_softcapping),
        ] {
            if let Some(found) = found {
                return unsupported(field, "none", found.to_string());
            }
        }
        if self.use_bidirectional_attention == Some(true) {
            return unsupported("use_bidirectional_attention", "false", "true");
        }
        match self.dtype.as_deref().or(self.torch_dtype.as_deref()) {
            None | Some("float32" | "float16" | "bfloat16") => Ok(()),
            Some(other) => unsupported("dtype", "float32, float16 or bfloat16", other),
        }
    }

    fn into_config(self, family: Family, generation: &RawGeneration) -> Result<ModelConfig, ConfigError> {
        let vocab_size = size("vocab_size", self.vocab_size, VOCAB_SIZE_MAX)?;
        let hidden = size("hidden_size", self.hidden_size, WIDTH_MAX)?;
        let Heads {
            heads,
            kv_heads,
            head_dim,
        } = self.heads(family, hidden)?;
        let context = self.max_position_embeddings;
        let context_tokens_max = size("max_position_embeddings", context, CONTEXT_TOKENS_MAX)?;
        let layers = size("num_hidden_layers", self.num_hidden_layers, LAYERS_MAX)?;
        let (ropes, layers) = family.attention(&self, layers)?;
        let gemma = family == Family::Gemma3;
        let eos = generation.eos_token_id.as_ref().or(self.eos_token_id.as_ref());
        let bos = generation.bos_token_id.or(self.bos_token_id);
        Ok(ModelConfig {
            family,
            vocab_size,
            hidden,
            intermediate: size("intermediate_size", self.intermediate_size, WIDTH_MAX)?,
            layers,
            heads,
            kv_heads,
            head_dim,
            context_tokens_max,
            ropes,
            attention_scale: self.attention_scale(family, head_dim)?,
            biases: family.biases(&self),
            qk_norm: family.normalises_queries_and_keys(),
            norms: if gemma {
                Norms::BeforeAndAfter
            } else {
                Norms::Before
            },
            rms_norm_epsilon: positive_f32("rms_norm_eps", self.rms_norm_eps.unwrap_or(1e-6))?,
            norm_weight_offset: if gemma { 1.0 } else { 0.0 },
            activation: self.activation(family)?,
            embedding_scale: if gemma { square_root(hidden) } else { 1.0 },
            tied_embeddings: self.tie_word_embeddings.unwrap_or(family.ties_embeddings()),
            bos_token_id: bos
                .map(|id| token_id("bos_token_id", id, vocab_size))
                .transpose()?,
            eos_token_ids: eos_token_ids(eos, vocab_size)?,
            sampling_defaults: generation.sampling_defaults()?,
        })
    }

    fn heads(&self, family: Family, hidden: usize) -> Result<Heads, ConfigError> {
        let heads = size("num_attention_heads", self.num_attention_heads, HEADS_MAX)?;
        let kv_heads = match self.num_key_value_heads {
            None if family == Family::Llama => heads,
            found => size("num_key_value_heads", found, HEADS_MAX)?,
        };
        divides("num_attention_heads", heads, "num_key_value_heads", kv_heads)?;
        let head_dim = match self.head_dim {
            None if !family.states_head_dim() => {
                divides("hidden_size", hidden, "num_attention_heads", heads)?;
                hidden / heads
            }
            found => size("head_dim", found, WIDTH_MAX)?,
        };
        divides("head_dim", head_dim, "the two halves that rotate", 2)?;
        in_range(
            "num_attention_heads * head_dim",
            (heads * head_dim) as u64,
            WIDTH_MAX,
        )?;
        Ok(Heads {
            heads,
            kv_heads,
            head_dim,
        })
    }

    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_precision_loss,
        reason = "head_dim is at most 2^20, and the root of an f32's range is within it"
    )]
    fn attention_scale(&self, family: Family, head_dim: usize) -> Result<f32, ConfigError> {
        let divisor = match family {
            Family::Gemma3 => positive(
                "query_pre_attn_scalar",
                self.query_pre_attn_scalar.unwrap_or(256.0),
            )?,
            Family::Llama | Family::Mistral | Family::Qwen2 | Family::Qwen3 | Family::SmolLm3 => {
                head_dim as f64
            }
        };
        Ok((1.0 / divisor.sqrt()) as f32)
    }

    fn activation(&self, family: Family) -> Result<Activation, ConfigError> {
        let (field, found, default) = match family {
            Family::Gemma3 => ("hidden_activation", &self.hidden_activation, "gelu_pytorch_tanh"),
            Family::Llama | Family::Mistral | Family::Qwen2 | Family::Qwen3 | Family::SmolLm3 => {
                ("hidden_act", &self.hidden_act, "silu")
            }
        };
        match found.as_deref().unwrap_or(default) {
            "silu" => Ok(Activation::Silu),
            "gelu_pytorch_tanh" => Ok(Activation::GeluTanh),
            other => unsupported(field, "silu or gelu_pytorch_tanh", other),
        }
    }
}

fn eos_token_ids(ids: Option<&TokenIds>, vocab_size: usize) -> Result<Vec<u32>, ConfigError> {
    ids.map_or(&[][..], TokenIds::as_slice)
        .iter()
        .map(|id| token_id("eos_token_id", *id, vocab_size))
        .collect()
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    reason = "sizes are at most 2^20"
)]
fn square_root(size: usize) -> f32 {
    (size as f64).sqrt() as f32
}
