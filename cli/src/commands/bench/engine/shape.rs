//! The shapes of well-known models, without their weights: speed does not depend on what the weights say.

use std::fmt;

use clap::ValueEnum;
use serde_json::{Value, json};

/// The name of a shape.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ShapeName {
    /// SmolLM2-135M: 134.5 million parameters
    #[value(name = "smollm2-135m")]
    Smollm2,
    /// Llama-3.2-1B: 1.24 billion parameters
    #[value(name = "llama-3.2-1b")]
    Llama32,
    /// For tests: so small that its figures mean nothing
    #[value(name = "tiny", hide = true)]
    Tiny,
}

impl ShapeName {
    /// What it stands for.
    pub(crate) const fn shape(self) -> Shape {
        match self {
            Self::Smollm2 => Shape {
                name: "smollm2-135m",
                hidden: 576,
                layers: 30,
                heads: 9,
                kv_heads: 3,
                intermediate: 1_536,
                vocabulary: 49_152,
                rope_theta: 100_000,
                context_tokens: 8_192,
            },
            Self::Llama32 => Shape {
                name: "llama-3.2-1b",
                hidden: 2_048,
                layers: 16,
                heads: 32,
                kv_heads: 8,
                intermediate: 8_192,
                vocabulary: 128_256,
                rope_theta: 500_000,
                context_tokens: 131_072,
            },
            Self::Tiny => Shape {
                name: "tiny",
                hidden: 64,
                layers: 2,
                heads: 4,
                kv_heads: 2,
                intermediate: 96,
                vocabulary: 256,
                rope_theta: 10_000,
                context_tokens: 256,
            },
        }
    }
}

impl fmt::Display for ShapeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.shape().name)
    }
}

/// A Llama model without weights. The output layer is the embedding table.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shape {
    /// Name of its folder and of its figures.
    pub(crate) name: &'static str,
    /// Length of the residual stream's rows; a multiple of `heads`.
    pub(crate) hidden: usize,
    /// Layers.
    pub(crate) layers: usize,
    /// Query heads.
    pub(crate) heads: usize,
    /// Heads of keys and of values.
    pub(crate) kv_heads: usize,
    /// Width of the feed-forward layers.
    pub(crate) intermediate: usize,
    /// Token ids.
    pub(crate) vocabulary: u32,
    /// Base of the rotary embedding's wavelengths. Scaling is left out: it changes a table of constants only.
    pub(crate) rope_theta: u32,
    /// Positions.
    pub(crate) context_tokens: usize,
}

impl Shape {
    /// `config.json`.
    pub(crate) fn config(&self) -> Value {
        json!({
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_act": "silu",
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim(),
            "max_position_embeddings": self.context_tokens,
            "rms_norm_eps": 1e-5,
            "rope_theta": f64::from(self.rope_theta),
            "vocab_size": self.vocabulary,
            "tie_word_embeddings": true,
            "torch_dtype": "bfloat16",
        })
    }

    /// Names and shapes of all tensors, row-major, in the order of the file.
    pub(crate) fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        let (hidden, inner) = (self.hidden, self.intermediate);
        let (queries, keys) = (self.heads * self.head_dim(), self.kv_heads * self.head_dim());
        let mut tensors = vec![(
            "model.embed_tokens.weight".to_owned(),
            vec![self.vocabulary as usize, hidden],
        )];
        for layer in 0..self.layers {
            let layer = [
                ("input_layernorm", vec![hidden]),
                ("self_attn.q_proj", vec![queries, hidden]),
                ("self_attn.k_proj", vec![keys, hidden]),
                ("self_attn.v_proj", vec![keys, hidden]),
                ("self_attn.o_proj", vec![hidden, queries]),
                ("post_attention_layernorm", vec![hidden]),
                ("mlp.gate_proj", vec![inner, hidden]),
                ("mlp.up_proj", vec![inner, hidden]),
                ("mlp.down_proj", vec![hidden, inner]),
            ]
            .map(|(name, shape)| (format!("model.layers.{layer}.{name}.weight"), shape));
            tensors.extend(layer);
        }
        tensors.push(("model.norm.weight".to_owned(), vec![hidden]));
        tensors
    }

    /// How many parameters it has.
    #[cfg(test)]
    pub(crate) fn parameters(&self) -> usize {
        self.tensors()
            .iter()
            .map(|(_, shape)| shape.iter().product::<usize>())
            .sum()
    }

    fn head_dim(&self) -> usize {
        self.hidden / self.heads
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shapes_have_as_many_parameters_as_the_models_they_are_named_after() {
        assert_eq!(ShapeName::Smollm2.shape().parameters(), 134_515_008);
        assert_eq!(ShapeName::Llama32.shape().parameters(), 1_235_814_400);
    }
}
