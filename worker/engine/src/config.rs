//! A model's configuration, as `config.json` and `generation_config.json` state it.

use std::slice;

use serde::Deserialize;
use serde_json::Value;

/// The numbers that fix a Llama model; every one is checked to be sane and to fit the others.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// How many token ids there are.
    pub vocab_size: usize,
    /// The length of the residual stream's rows.
    pub hidden: usize,
    /// The width of the feed-forward layers.
    pub intermediate: usize,
    /// The number of layers.
    pub layers: usize,
    /// The number of query heads, a multiple of `kv_heads`.
    pub heads: usize,
    /// The number of key and value heads.
    pub kv_heads: usize,
    /// The length of one head's vector; even.
    pub head_dim: usize,
    /// The longest sequence the model was made for, in tokens.
    pub context_tokens_max: usize,
    /// The base of the rotary position embedding's wavelengths.
    pub rope_theta: f32,
    /// What normalisation adds to the mean square.
    pub rms_norm_epsilon: f32,
    /// Whether the output layer is the embedding table.
    pub tied_embeddings: bool,
    /// The token that starts a sequence, if the model has one.
    pub bos_token_id: Option<u32>,
    /// The tokens that end a generation; may be empty.
    pub eos_token_ids: Vec<u32>,
    /// What the model's makers recommend for sampling.
    pub sampling_defaults: SamplingDefaults,
}

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
        raw.check_family()?;
        raw.into_config(generation)
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

#[derive(Deserialize)]
struct RawConfig {
    architectures: Option<Vec<String>>,
    model_type: Option<String>,
    vocab_size: Option<u64>,
    hidden_size: Option<u64>,
    intermediate_size: Option<u64>,
    num_hidden_layers: Option<u64>,
    num_attention_heads: Option<u64>,
    num_key_value_heads: Option<u64>,
    head_dim: Option<u64>,
    max_position_embeddings: Option<u64>,
    rope_theta: Option<f64>,
    rope_parameters: Option<RawRope>,
    rope_scaling: Option<RawRope>,
    rms_norm_eps: Option<f64>,
    hidden_act: Option<String>,
    #[serde(default)]
    attention_bias: bool,
    #[serde(default)]
    mlp_bias: bool,
    #[serde(default)]
    tie_word_embeddings: bool,
    quantization_config: Option<Value>,
    dtype: Option<String>,
    torch_dtype: Option<String>,
    bos_token_id: Option<u64>,
    eos_token_id: Option<TokenIds>,
}

#[derive(Deserialize)]
struct RawRope {
    rope_type: Option<String>,
    #[serde(rename = "type")]
    older_rope_type: Option<String>,
    rope_theta: Option<f64>,
    partial_rotary_factor: Option<f64>,
}

#[derive(Default, Deserialize)]
struct RawGeneration {
    bos_token_id: Option<u64>,
    eos_token_id: Option<TokenIds>,
    do_sample: Option<bool>,
    temperature: Option<f32>,
    top_k: Option<u32>,
    top_p: Option<f32>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum TokenIds {
    One(u64),
    Many(Vec<u64>),
}

struct Heads {
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
}

impl RawConfig {
    fn check_family(&self) -> Result<(), ConfigError> {
        match (self.architectures.as_deref(), self.model_type.as_deref()) {
            (Some([architecture]), _) => expect("architectures", ARCHITECTURE, architecture)?,
            (Some(several), _) => return unsupported("architectures", ARCHITECTURE, several.join(", ")),
            (None, Some(model_type)) => expect("model_type", "llama", model_type)?,
            (None, None) => {
                return Err(ConfigError::Missing {
                    field: "architectures",
                });
            }
        }
        expect("hidden_act", "silu", self.hidden_act.as_deref().unwrap_or("silu"))?;
        expect_false("attention_bias", self.attention_bias)?;
        expect_false("mlp_bias", self.mlp_bias)?;
        if let Some(quantization) = &self.quantization_config {
            return unsupported("quantization_config", "none", quantization.to_string());
        }
        match self.dtype.as_deref().or(self.torch_dtype.as_deref()) {
            None | Some("float32" | "float16" | "bfloat16") => Ok(()),
            Some(other) => unsupported("dtype", "float32, float16 or bfloat16", other.to_owned()),
        }
    }

    fn into_config(self, generation: RawGeneration) -> Result<ModelConfig, ConfigError> {
        let vocab_size = size("vocab_size", self.vocab_size, VOCAB_SIZE_MAX)?;
        let hidden = size("hidden_size", self.hidden_size, WIDTH_MAX)?;
        let Heads {
            heads,
            kv_heads,
            head_dim,
        } = self.heads(hidden)?;
        let eos = generation.eos_token_id.as_ref().or(self.eos_token_id.as_ref());
        let bos = generation.bos_token_id.or(self.bos_token_id);
        Ok(ModelConfig {
            vocab_size,
            hidden,
            intermediate: size("intermediate_size", self.intermediate_size, WIDTH_MAX)?,
            layers: size("num_hidden_layers", self.num_hidden_layers, LAYERS_MAX)?,
            heads,
            kv_heads,
            head_dim,
            context_tokens_max: size(
                "max_position_embeddings",
                self.max_position_embeddings,
                CONTEXT_TOKENS_MAX,
            )?,
            rope_theta: self.rope_theta()?,
            rms_norm_epsilon: positive("rms_norm_eps", self.rms_norm_eps.unwrap_or(1e-6))?,
            tied_embeddings: self.tie_word_embeddings,
            bos_token_id: bos
                .map(|id| token_id("bos_token_id", id, vocab_size))
                .transpose()?,
            eos_token_ids: eos_token_ids(eos, vocab_size)?,
            sampling_defaults: generation.sampling_defaults()?,
        })
    }

    fn heads(&self, hidden: usize) -> Result<Heads, ConfigError> {
        let heads = size("num_attention_heads", self.num_attention_heads, HEADS_MAX)?;
        let kv_heads = match self.num_key_value_heads {
            None => heads,
            found => size("num_key_value_heads", found, HEADS_MAX)?,
        };
        divides("num_attention_heads", heads, "num_key_value_heads", kv_heads)?;
        let head_dim = match self.head_dim {
            None => {
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

    fn rope_theta(&self) -> Result<f32, ConfigError> {
        let mut theta = self.rope_theta;
        for (field, rope) in [
            ("rope_parameters", &self.rope_parameters),
            ("rope_scaling", &self.rope_scaling),
        ] {
            let Some(rope) = rope else { continue };
            let kind = rope
                .rope_type
                .as_deref()
                .or(rope.older_rope_type.as_deref())
                .unwrap_or("default");
            if kind != "default" {
                return unsupported(field, "rope_type default", format!("rope_type {kind}"));
            }
            if let Some(factor) = rope.partial_rotary_factor.filter(|factor| *factor != 1.0) {
                return unsupported(field, "partial_rotary_factor 1", factor.to_string());
            }
            theta = theta.or(rope.rope_theta);
        }
        positive("rope_theta", theta.unwrap_or(ROPE_THETA_DEFAULT))
    }
}

impl RawGeneration {
    fn sampling_defaults(&self) -> Result<SamplingDefaults, ConfigError> {
        let sampling = crate::Sampling {
            temperature: self.temperature.unwrap_or(1.0),
            // Transformers writes 0 for "all".
            top_k: self.top_k.filter(|top_k| *top_k > 0),
            top_p: self.top_p.unwrap_or(1.0),
            ..crate::Sampling::GREEDY
        };
        if !sampling.is_valid() {
            return unsupported(
                "generation_config.json",
                "temperature >= 0 and top_p in 0..=1 without 0",
                format!(
                    "temperature {} and top_p {}",
                    sampling.temperature, sampling.top_p
                ),
            );
        }
        if self.do_sample != Some(true) {
            return Ok(SamplingDefaults::default());
        }
        Ok(SamplingDefaults {
            temperature: Some(sampling.temperature),
            top_k: sampling.top_k,
            top_p: self.top_p,
        })
    }
}

fn eos_token_ids(ids: Option<&TokenIds>, vocab_size: usize) -> Result<Vec<u32>, ConfigError> {
    let ids = match ids {
        None => &[],
        Some(TokenIds::One(id)) => slice::from_ref(id),
        Some(TokenIds::Many(ids)) => ids.as_slice(),
    };
    ids.iter()
        .map(|id| token_id("eos_token_id", *id, vocab_size))
        .collect()
}

fn token_id(field: &'static str, id: u64, vocab_size: usize) -> Result<u32, ConfigError> {
    match u32::try_from(id) {
        Ok(token) if id < vocab_size as u64 => Ok(token),
        _ => Err(ConfigError::TokenId {
            field,
            found: id,
            vocab_size,
        }),
    }
}

fn size(field: &'static str, found: Option<u64>, max: u64) -> Result<usize, ConfigError> {
    in_range(field, found.ok_or(ConfigError::Missing { field })?, max)
}

fn in_range(field: &'static str, found: u64, max: u64) -> Result<usize, ConfigError> {
    match usize::try_from(found) {
        Ok(size) if (1..=max).contains(&found) => Ok(size),
        _ => Err(ConfigError::OutOfRange { field, found, max }),
    }
}

fn divides(
    field: &'static str,
    found: usize,
    divisor: &'static str,
    divisor_found: usize,
) -> Result<(), ConfigError> {
    if found.is_multiple_of(divisor_found) {
        Ok(())
    } else {
        Err(ConfigError::NotDivisible {
            field,
            found,
            divisor,
            divisor_found,
        })
    }
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "the model computes in f32; the result is checked"
)]
fn positive(field: &'static str, found: f64) -> Result<f32, ConfigError> {
    let narrow = found as f32;
    if narrow > 0.0 && narrow.is_finite() {
        Ok(narrow)
    } else {
        Err(ConfigError::NotPositive { field, found })
    }
}

fn expect(field: &'static str, expected: &'static str, found: &str) -> Result<(), ConfigError> {
    if found == expected {
        Ok(())
    } else {
        unsupported(field, expected, found.to_owned())
    }
}

fn expect_false(field: &'static str, found: bool) -> Result<(), ConfigError> {
    if found {
        unsupported(field, "false", "true".to_owned())
    } else {
        Ok(())
    }
}

fn unsupported<T>(field: &'static str, expected: &'static str, found: String) -> Result<T, ConfigError> {
    Err(ConfigError::Unsupported {
        field,
        expected,
        found,
    })
}

const ARCHITECTURE: &str = "LlamaForCausalLM";
const ROPE_THETA_DEFAULT: f64 = 10_000.0;

// No model comes near these. With them, every product of sizes in this crate fits a u64.
const VOCAB_SIZE_MAX: u64 = 1 << 24;
const WIDTH_MAX: u64 = 1 << 20;
const HEADS_MAX: u64 = 1 << 12;
const LAYERS_MAX: u64 = 1 << 12;
/// Up to here every position is an exact f32.
const CONTEXT_TOKENS_MAX: u64 = 1 << 24;

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file is not the JSON it should be.
    #[error("not a model configuration in JSON")]
    Json(#[source] serde_json::Error),
    /// The file beside it is not the JSON it should be.
    #[error("generation_config.json is not a generation configuration in JSON")]
    GenerationJson(#[source] serde_json::Error),
    /// A field without a default is not there.
    #[error("field {field} is missing")]
    Missing {
        /// The field.
        field: &'static str,
    },
    /// A field asks for something that the engine does not do.
    #[error("field {field}: expected {expected}, found {found}")]
    Unsupported {
        /// The field.
        field: &'static str,
        /// What the engine can do.
        expected: &'static str,
        /// What the file says.
        found: String,
    },
    /// A size is zero or absurd.
    #[error("field {field}: expected 1 to {max}, found {found}")]
    OutOfRange {
        /// The field.
        field: &'static str,
        /// What the file says.
        found: u64,
        /// The largest value that is believed.
        max: u64,
    },
    /// A size is not a multiple of another.
    #[error("field {field}: expected a multiple of {divisor_found} ({divisor}), found {found}")]
    NotDivisible {
        /// The field.
        field: &'static str,
        /// What the file says.
        found: usize,
        /// The field that must divide it.
        divisor: &'static str,
        /// What the file says there.
        divisor_found: usize,
    },
    /// A number must be positive and finite as an f32.
    #[error("field {field}: expected a positive number, found {found}")]
    NotPositive {
        /// The field.
        field: &'static str,
        /// What the file says.
        found: f64,
    },
    /// A token id lies outside the vocabulary.
    #[error("field {field}: expected a token id below {vocab_size}, found {found}")]
    TokenId {
        /// The field.
        field: &'static str,
        /// What the file says.
        found: u64,
        /// How many ids there are.
        vocab_size: usize,
    },
}
