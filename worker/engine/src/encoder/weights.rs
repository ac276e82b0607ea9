//! The tensors of an encoder: their names, shapes and load order.

use crate::EncoderConfig;
use crate::weights::{Required, WeightRole};

/// Which weight of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Role {
    Embedding(Embedding),
    /// Of the sum of all embeddings.
    Norm(Part),
    Layer(usize, Module, Part),
}

/// What is looked up for each token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Embedding {
    Word,
    Position,
    TokenType,
}

/// Which module of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Module {
    Query,
    Key,
    Value,
    AttentionOutput,
    AttentionNorm,
    Intermediate,
    Output,
    OutputNorm,
}

/// Which tensor of a module.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Part {
    Weight,
    Bias,
}

impl WeightRole for Role {
    fn is_of_layer(self) -> bool {
        match self {
            Self::Layer(..) => true,
            Self::Embedding(_) | Self::Norm(_) => false,
        }
    }
}

/// The weights of a model in load order: embeddings, layers ascending. Files of a model with a head on top
/// have a prefix before all names.
pub(crate) fn required(config: &EncoderConfig, is_there: &dyn Fn(&str) -> bool) -> Vec<Required<Role>> {
    let prefix = if is_there(&format!("{PREFIX}{WORDS}")) {
        PREFIX
    } else {
        ""
    };
    let weight = |role, name: &str, shape: &[usize]| Required {
        role,
        name: format!("{prefix}{name}"),
        shape: shape.to_vec(),
    };
    let hidden = config.hidden;
    let embedding = |embedding, name, rows| weight(Role::Embedding(embedding), name, &[rows, hidden]);
    let mut weights = vec![
        embedding(Embedding::Word, WORDS, config.vocab_size),
        embedding(
            Embedding::Position,
            "embeddings.position_embeddings.weight",
            config.positions,
        ),
        embedding(
            Embedding::TokenType,
            "embeddings.token_type_embeddings.weight",
            config.token_types,
        ),
    ];
    weights.extend(PARTS.map(|part| {
        let name = format!("embeddings.LayerNorm.{}", part.name());
        weight(Role::Norm(part), &name, &[hidden])
    }));
    for layer in 0..config.layers {
        for (module, part) in MODULES
            .into_iter()
            .flat_map(|module| PARTS.map(|part| (module, part)))
        {
            let name = format!("encoder.layer.{layer}.{}.{}", module.name(), part.name());
            let role = Role::Layer(layer, module, part);
            weights.push(weight(role, &name, &module.shape(part, config)));
        }
    }
    weights
}

/// Whether a tensor that no weight is made of may be there all the same: what comes after the states, and the
/// positions that old versions stored.
pub(crate) fn is_ignored(tensor: &str) -> bool {
    let name = tensor.strip_prefix(PREFIX).unwrap_or(tensor);
    name.starts_with("pooler.") || name.starts_with("cls.") || name == "embeddings.position_ids"
}

impl Module {
    const fn name(self) -> &'static str {
        match self {
            Self::Query => "attention.self.query",
            Self::Key => "attention.self.key",
            Self::Value => "attention.self.value",
            Self::AttentionOutput => "attention.output.dense",
            Self::AttentionNorm => "attention.output.LayerNorm",
            Self::Intermediate => "intermediate.dense",
            Self::Output => "output.dense",
            Self::OutputNorm => "output.LayerNorm",
        }
    }

    fn shape(self, part: Part, config: &EncoderConfig) -> Vec<usize> {
        let (outputs, inputs) = match self {
            Self::Query | Self::Key | Self::Value | Self::AttentionOutput => (config.hidden, config.hidden),
            Self::Intermediate => (config.intermediate, config.hidden),
            Self::Output => (config.hidden, config.intermediate),
            Self::AttentionNorm | Self::OutputNorm => return vec![config.hidden],
        };
        match part {
            Part::Weight => vec![outputs, inputs],
            Part::Bias => vec![outputs],
        }
    }
}

impl Part {
    const fn name(self) -> &'static str {
        match self {
            Self::Weight => "weight",
            Self::Bias => "bias",
        }
    }
}

const WORDS: &str = "embeddings.word_embeddings.weight";
const PREFIX: &str = "bert.";

const PARTS: [Part; 2] = [Part::Weight, Part::Bias];

const MODULES: [Module; 8] = [
    Module::Query,
    Module::Key,
    Module::Value,
    Module::AttentionOutput,
    Module::AttentionNorm,
    Module::Intermediate,
    Module::Output,
    Module::OutputNorm,
];
