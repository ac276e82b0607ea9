//! The tensors of a decoder: their names, shapes and load order.

use std::collections::HashMap;

use crate::{ModelConfig, TensorInfo};

/// Which weight of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    Embedding,
    Layer(usize, LayerRole),
    Norm,
    Head,
}

/// Which weight of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LayerRole {
    InputNorm,
    Query,
    Key,
    Value,
    Output,
    FeedForwardNorm,
    Gate,
    Up,
    Down,
}

/// A weight that a configuration asks for.
#[derive(Clone, Debug)]
pub(crate) struct Required {
    pub(crate) role: Role,
    pub(crate) name: String,
    pub(crate) shape: Vec<usize>,
}

/// The weights of a model in load order: embeddings, layers ascending, norm, head.
pub(crate) fn required(config: &ModelConfig) -> Vec<Required> {
    let mut weights = vec![Required {
        role: Role::Embedding,
        name: "model.embed_tokens.weight".to_owned(),
        shape: vec![config.vocab_size, config.hidden],
    }];
    for layer in 0..config.layers {
        weights.extend(LAYER_ROLES.iter().map(|role| Required {
            role: Role::Layer(layer, *role),
            name: format!("model.layers.{layer}.{}.weight", role.module()),
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
            name: "lm_head.weight".to_owned(),
            shape: vec![config.vocab_size, config.hidden],
        });
    }
    weights
}

/// Pairs each weight that the configuration asks for with its tensor; tensors that nobody needs are left out.
///
/// # Errors
/// A weight is missing or has another shape.
pub(crate) fn resolve<'a>(
    config: &ModelConfig,
    tensors: impl IntoIterator<Item = &'a TensorInfo>,
) -> Result<Vec<(Role, TensorInfo)>, TensorsError> {
    let by_name: HashMap<&str, &TensorInfo> = tensors
        .into_iter()
        .map(|tensor| (tensor.name.as_str(), tensor))
        .collect();
    required(config)
        .into_iter()
        .map(|weight| {
            let Some(tensor) = by_name.get(weight.name.as_str()) else {
                return Err(TensorsError::Missing {
                    tensor: weight.name,
                    shape: weight.shape,
                });
            };
            if tensor.shape != weight.shape {
                return Err(TensorsError::Shape {
                    tensor: weight.name,
                    expected: weight.shape,
                    found: tensor.shape.clone(),
                });
            }
            Ok((weight.role, (*tensor).clone()))
        })
        .collect()
}

impl LayerRole {
    const fn module(self) -> &'static str {
        match self {
            Self::InputNorm => "input_layernorm",
            Self::Query => "self_attn.q_proj",
            Self::Key => "self_attn.k_proj",
            Self::Value => "self_attn.v_proj",
            Self::Output => "self_attn.o_proj",
            Self::FeedForwardNorm => "post_attention_layernorm",
            Self::Gate => "mlp.gate_proj",
            Self::Up => "mlp.up_proj",
            Self::Down => "mlp.down_proj",
        }
    }

    fn shape(self, config: &ModelConfig) -> Vec<usize> {
        match self {
            Self::InputNorm | Self::FeedForwardNorm => vec![config.hidden],
            Self::Query => vec![config.query_width(), config.hidden],
            Self::Key | Self::Value => vec![config.kv_width(), config.hidden],
            Self::Output => vec![config.hidden, config.query_width()],
            Self::Gate | Self::Up => vec![config.intermediate, config.hidden],
            Self::Down => vec![config.hidden, config.intermediate],
        }
    }
}

const LAYER_ROLES: [LayerRole; 9] = [
    LayerRole::InputNorm,
    LayerRole::Query,
    LayerRole::Key,
    LayerRole::Value,
    LayerRole::Output,
    LayerRole::FeedForwardNorm,
    LayerRole::Gate,
    LayerRole::Up,
    LayerRole::Down,
];

/// Why a set of tensors is not the model that a configuration describes.
#[derive(Debug, thiserror::Error)]
pub enum TensorsError {
    /// A weight is not there.
    #[error("tensor {tensor} of shape {shape:?} is missing")]
    Missing {
        /// The tensor.
        tensor: String,
        /// The shape it should have.
        shape: Vec<usize>,
    },
    /// A weight has another shape than the configuration asks for.
    #[error("tensor {tensor}: expected shape {expected:?}, found {found:?}")]
    Shape {
        /// The tensor.
        tensor: String,
        /// What the configuration asks for.
        expected: Vec<usize>,
        /// What the file has.
        found: Vec<usize>,
    },
    /// A weight's element type is none that the engine computes with.
    #[error("tensor {tensor}: expected F32, F16 or BF16, found {found}")]
    Dtype {
        /// The tensor.
        tensor: String,
        /// The name of its element type.
        found: String,
    },
}
