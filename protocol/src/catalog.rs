//! The catalog: which models there are, where their files come from and how to treat them.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::ids::ModelName;
use crate::request::{KeepAlive, Slo};

/// One model, as JSON in the KV bucket `models` under its encoded name.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CatalogEntry {
    /// What clients call it.
    pub name: ModelName,
    /// Where its files are.
    pub source: ModelSource,
    /// What its files say about it.
    pub facts: ModelFacts,
    /// Most requests that run at once on one worker; `None` leaves it to the worker.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slots: Option<u32>,
    /// How long it stays resident after its last lease; `None` leaves it to the worker.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keep_alive: Option<KeepAlive>,
    /// Never a victim of eviction.
    #[serde(default)]
    pub pin: bool,
    /// Targets of its requests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slo: Option<Slo>,
}

/// Where a model's files are.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ModelSource {
    /// A Hugging Face folder at this path of the worker's machine.
    Folder(PathBuf),
}

/// What a model's files say about it, read once when it is added.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelFacts {
    /// Architecture, as `config.json` names it.
    pub architecture: String,
    /// Longest prompt and answer together, in tokens.
    pub context_tokens_max: u32,
    /// Entries of the vocabulary.
    pub vocabulary_size: u32,
    /// Bytes of all tensors.
    pub weights_bytes: u64,
    /// What it does with a prompt.
    #[serde(default, skip_serializing_if = "ModelTask::is_generate")]
    pub task: ModelTask,
}

/// What a model does. Entries of older releases do not say, and are of models that generate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ModelTask {
    /// It goes on with a text.
    #[default]
    Generate,
    /// It makes a vector of a text.
    Embed {
        /// Numbers of a vector.
        dimensions: u32,
    },
}

impl ModelTask {
    /// Whether it goes on with a text.
    #[must_use]
    pub fn is_generate(&self) -> bool {
        matches!(self, Self::Generate)
    }
}

impl std::fmt::Display for ModelTask {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Generate => f.write_str("generate"),
            Self::Embed { dimensions } => write!(f, "embed, {dimensions} dimensions"),
        }
    }
}
