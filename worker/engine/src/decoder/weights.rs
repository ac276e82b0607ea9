//! The tensors of a decoder: their names, shapes and load order.

use crate::weights::{Required, WeightRole};
use crate::{ModelConfig, Norms};

/// Which weight of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Role {
    Embedding,
    Layer(usize, LayerRole),
    Norm,
    Head,
}

impl WeightRole for Role {
    fn is_of_layer(self) -> bool {
        match self {
            Self::Layer(..) => true,
            Self::Embedding | Self::Norm | Self::Head => false,
        }
    }
}

/// Which weight of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum LayerRole {
    Norm(LayerNorm),
    Weights(Linear),
    Bias(Linear),
}

/// Which normalisation of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum LayerNorm {
    Input,
    Query,
    Key,
    AttentionOutput,
    FeedForward,
    FeedForwardOutput,
}

/// Which linear layer of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Linear {
    Query,
    Key,
    Value,
    Output,
    Gate,
    Up,
    Down,
}

/// The weights of a model in load order: embeddings, layers ascending, norm, head.
pub(crate) fn required(config: &ModelConfig) -> Vec<Required<Role>> {
    let mut weights = vec![Required {
        role: Role::Embedding,
        name: "model.embed_tokens.weight".to_owned(),
        shape: vec![config.vocab_size, config.hidden],
    }];
    let roles = layer_roles(config);
    for layer in 0..config.layers.len() {
        weights.extend(roles.iter().map(|role| Required {
            role: Role::Layer(layer, *role),
            name: format!("model.layers.{layer}.{}", role.name(config)),
            shape: role.shape(config),
        }));
    }
    weights.push(Required {
        role: Role::Norm,
        name: "model.norm.weight".to_owned(),
        shape: vec![config.hidden],
    });
    if !config.tied_embeddings {
        weights.push(Required {
            role: Role::Head,
            name: HEAD.to_owned(),
            shape: vec![config.vocab_size, config.hidden],
        });
    }
    weights
}

/// Whether a tensor that no weight is made of may be there all the same, as with transformers: the output layer
/// beside the embeddings that it is tied to, and the frequencies that old versions stored.
pub(crate) fn is_ignored(tensor: &str) -> bool {
    tensor == HEAD || tensor.ends_with(".rotary_emb.inv_freq")
}

/// The weights of one layer, in the order in which they are needed.
fn layer_roles(config: &ModelConfig) -> Vec<LayerRole> {
    let has_norm = |norm: LayerNorm| match norm {
        LayerNorm::Input | LayerNorm::FeedForward => true,
        LayerNorm::Query | LayerNorm::Key => config.qk_norm,
        LayerNorm::AttentionOutput | LayerNorm::FeedForwardOutput => config.norms == Norms::BeforeAndAfter,
    };
    let is_there = |role: &LayerRole| match role {
        LayerRole::Norm(norm) => has_norm(*norm),
        LayerRole::Weights(_) => true,
        LayerRole::Bias(linear) => linear.has_bias(config),
    };
    LAYER_ROLES.into_iter().filter(is_there).collect()
}

impl LayerRole {
    fn name(self, config: &ModelConfig) -> String {
        match self {
            Self::Norm(norm) => format!("{}.weight", norm.module(config)),
            Self::Weights(linear) => format!("{}.weight", linear.module()),
            Self::Bias(linear) => format!("{}.bias", linear.module()),
        }
    }

    fn shape(self, config: &ModelConfig) -> Vec<usize> {
        match self {
            Self::Norm(LayerNorm::Query | LayerNorm::Key) => vec![config.head_dim],
            Self::Norm(
                LayerNorm::Input
                | LayerNorm::AttentionOutput
                | LayerNorm::FeedForward
                | LayerNorm::FeedForwardOutput,
            ) => vec![config.hidden],
            Self::Weights(linear) => linear.shape(config).to_vec(),
            Self::Bias(linear) => vec![linear.shape(config)[0]],
        }
    }
}

impl LayerNorm {
    const fn module(self, config: &ModelConfig) -> &'static str {
        match (self, config.norms) {
            (Self::Input, _) => "input_layernorm",
            (Self::Query, _) => "self_attn.q_norm",
            (Self::Key, _) => "self_attn.k_norm",
            // Without norms on outputs, this name means what goes into the feed-forward layers.
            (Self::AttentionOutput, _) | (Self::FeedForward, Norms::Before) => "post_attention_layernorm",
            (Self::FeedForward, Norms::BeforeAndAfter) => "pre_feedforward_layernorm",
            (Self::FeedForwardOutput, _) => "post_feedforward_layernorm",
        }
    }
}

impl Linear {
    const fn module(self) -> &'static str {
        match self {
            Self::Query => "self_attn.q_proj",
            Self::Key => "self_attn.k_proj",
            Self::Value => "self_attn.v_proj",
            Self::Output => "self_attn.o_proj",
            Self::Gate => "mlp.gate_proj",
            Self::Up => "mlp.up_proj",
            Self::Down => "mlp.down_proj",
        }
    }

    const fn shape(self, config: &ModelConfig) -> [usize; 2] {
        match self {
            Self::Query => [config.query_width(), config.hidden],
            Self::Key | Self::Value => [config.kv_width(), config.hidden],
            Self::Output => [config.hidden, config.query_width()],
            Self::Gate | Self::Up => [config.intermediate, config.hidden],
            Self::Down => [config.hidden, config.intermediate],
        }
    }

    const fn has_bias(self, config: &ModelConfig) -> bool {
        match self {
            Self::Query | Self::Key | Self::Value => config.biases.qkv,
            Self::Output => config.biases.output,
            Self::Gate | Self::Up | Self::Down => config.biases.feed_forward,
        }
    }
}

const LAYER_ROLES: [LayerRole; 20] = [
    LayerRole::Norm(LayerNorm::Input),
    LayerRole::Weights(Linear::Query),
    LayerRole::Bias(Linear::Query),
    LayerRole::Weights(Linear::Key),
    LayerRole::Bias(Linear::Key),
    LayerRole::Weights(Linear::Value),
    LayerRole::Bias(Linear::Value),
    LayerRole::Norm(LayerNorm::Query),
    LayerRole::Norm(LayerNorm::Key),
    LayerRole::Weights(Linear::Output),
    LayerRole::Bias(Linear::Output),
    LayerRole::Norm(LayerNorm::AttentionOutput),
    LayerRole::Norm(LayerNorm::FeedForward),
    LayerRole::Weights(Linear::Gate),
    LayerRole::Bias(Linear::Gate),
    LayerRole::Weights(Linear::Up),
    LayerRole::Bias(Linear::Up),
    LayerRole::Weights(Linear::Down),
    LayerRole::Bias(Linear::Down),
    LayerRole::Norm(LayerNorm::FeedForwardOutput),
];

const HEAD: &str = "lm_head.weight";
