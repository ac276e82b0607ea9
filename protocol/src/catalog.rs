//! The catalog: which models there are, where their files come from and how to treat them.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::hub::HubModel;
use crate::ids::{IdError, ModelName};
use crate::request::{KeepAlive, Slo};
use crate::weights::Root;

/// One model, as JSON in the KV bucket `models` under its encoded name.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CatalogEntry {
    /// What clients call it.
    pub name: ModelName,
    /// Where its files are.
    pub source: ModelSource,
    /// What its files say about it.
    pub facts: ModelFacts,
    /// The name of its files' bytes: files of any other root are not the model's, wherever they lie. `None` until a worker
    /// that has the files has read all of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub root: Option<Root>,
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
    /// What its matrices are rounded to when it is loaded; `None` keeps them as its files store them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quantize: Option<Quantize>,
    /// How its requests are placed; `None` means [`Policy::Slo`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<Policy>,
    /// Tokens that its answers usually have, for as long as none was seen; `None` expects the most that a
    /// request allows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output_tokens_prior: Option<u32>,
}

/// How the requests of a model are placed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Policy {
    /// The cheapest worker that meets the target, else the one that ends soonest.
    #[default]
    Slo,
    /// The fullest worker that the request still fits on.
    Pack,
    /// The emptiest worker.
    Spread,
    /// In order of arrival, wherever a slot is free: for comparison.
    Fifo,
}

impl Policy {
    const ALL: [Self; 4] = [Self::Slo, Self::Pack, Self::Spread, Self::Fifo];

    /// Its name in the catalog.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Slo => "slo",
            Self::Pack => "pack",
            Self::Spread => "spread",
            Self::Fifo => "fifo",
        }
    }
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Policy {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        let found = Self::ALL.into_iter().find(|known| known.as_str() == text);
        found.ok_or_else(|| IdError::Unknown {
            kind: "policy",
            value: text.chars().take(64).collect(),
            allowed: "slo, pack, spread and fifo",
        })
    }
}

impl CatalogEntry {
    /// Whether both describe the same weights: a worker that has loaded one of them has loaded the other.
    #[must_use]
    pub fn is_same_model(&self, other: &Self) -> bool {
        // A root that is known now says nothing new about files that are used already.
        let roots_differ = self.root.zip(other.root).is_some_and(|(a, b)| a != b);
        !roots_differ
            && (&self.source, &self.facts, self.quantize) == (&other.source, &other.facts, other.quantize)
    }
}

/// To how many bits the matrices of a model are rounded. Each number is a small whole one times a scale that
/// it shares with its neighbours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Quantize {
    /// 8 bits, one scale a row: about half the size of bf16.
    Int8,
    /// 4 bits, one scale for 32 columns of a row; embeddings and output layer as [`Self::Int8`]. The layers are
    /// about 0.28 times the size of bf16, a model of 8 billion parameters 0.31 in all.
    Int4,
}

impl Quantize {
    const ALL: [Self; 2] = [Self::Int8, Self::Int4];

    /// Its name in the catalog.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Int8 => "int8",
            Self::Int4 => "int4",
        }
    }
}

impl fmt::Display for Quantize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Quantize {
    type Err = IdError;

    fn from_str(text: &str) -> Result<Self, IdError> {
        let found = Self::ALL.into_iter().find(|known| known.as_str() == text);
        found.ok_or_else(|| IdError::Unknown {
            kind: "quantize",
            value: text.chars().take(64).collect(),
            allowed: "int8 and int4",
        })
    }
}

/// Where a model's files are.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ModelSource {
    /// A Hugging Face folder at this path of the worker's machine.
    Folder(PathBuf),
    /// A repository of the hub, which a worker downloads when nobody in the fleet has the files yet.
    Hub(HubModel),
    /// Nowhere: the model has no files, only the facts of its entry. Workers whose engine is simulated serve
    /// it; its tokens are short words.
    Simulated {
        /// Bytes of the keys and values of one token; at least 1.
        kv_bytes_per_token: u64,
    },
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

impl fmt::Display for ModelTask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Generate => f.write_str("generate"),
            Self::Embed { dimensions } => write!(f, "embed, {dimensions} dimensions"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{DecodeError, Encoding};

    const ENTRY: &str = r#"{"name": "m", "source": {"folder": "/m"}, "quantize": "int8", "facts": {
        "architecture": "A", "context_tokens_max": 1, "vocabulary_size": 1, "weights_bytes": 1}}"#;

    fn decode(entry: &str) -> Result<CatalogEntry, DecodeError> {
        Encoding::Json.decode(entry.as_bytes(), 1 << 10)
    }

    #[test]
    fn quantize_is_the_same_word_in_the_catalog_and_on_the_command_line() {
        for quantize in Quantize::ALL {
            let entry = decode(&ENTRY.replace("int8", quantize.as_str())).unwrap();
            assert_eq!(entry.quantize, Some(quantize));
            assert_eq!(quantize.as_str().parse(), Ok(quantize));
        }
        assert_eq!(
            "int3".parse::<Quantize>().unwrap_err().to_string(),
            "quantize is \"int3\"; allowed are int8 and int4"
        );
    }

    #[test]
    fn policy_is_the_same_word_in_the_catalog_and_on_the_command_line() {
        for policy in Policy::ALL {
            let entry =
                decode(&ENTRY.replace(r#""quantize": "int8""#, &format!(r#""policy": "{policy}""#))).unwrap();
            assert_eq!(entry.policy, Some(policy));
            assert_eq!(policy.as_str().parse(), Ok(policy));
        }
        assert_eq!(
            "lifo".parse::<Policy>().unwrap_err().to_string(),
            "policy is \"lifo\"; allowed are slo, pack, spread and fifo"
        );
    }

    #[test]
    fn an_entry_with_an_unknown_quantize_is_refused_with_its_field() {
        let error = decode(&ENTRY.replace("int8", "int3")).unwrap_err();
        let DecodeError::Malformed { field, message } = error else {
            panic!("the shape is wrong: {error}");
        };
        assert_eq!(field, "quantize");
        assert!(message.contains("int3") && message.contains("int8"), "{message}");
    }

    #[test]
    fn a_model_is_another_one_with_other_files_or_weights_and_not_with_other_settings() {
        let entry = decode(ENTRY).unwrap();
        let with = |change: fn(&mut CatalogEntry)| {
            let mut changed = entry.clone();
            change(&mut changed);
            changed.is_same_model(&entry)
        };
        assert!(with(|entry| entry.pin = true));
        assert!(with(|entry| entry.slots = Some(1)));
        assert!(!with(|entry| entry.quantize = None));
        assert!(
            with(|entry| entry.root = Some(Root::new([1; 32]))),
            "it is known now"
        );
        assert!(!with(|entry| entry.source = ModelSource::Folder("/n".into())));
        assert!(!with(|entry| entry.facts.weights_bytes = 2));
    }
}
