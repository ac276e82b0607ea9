//! Two models of one shape, with weights and tokenizers of their own.

use std::fs;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use flotilla_protocol::ModelName;
use serde_json::{Map, Value, json};

use super::super::engine::{Shape, WEIGHTS_FILE, write_weights};

/// Two models that a worker is to swap.
#[derive(Debug)]
pub(crate) struct Pair {
    /// The folder of their folders.
    pub(crate) folder: PathBuf,
    /// Bytes of the weights of one.
    pub(crate) weights_bytes: u64,
}

impl Pair {
    /// Writes both, unless they are there from an earlier run.
    ///
    /// # Errors
    /// When files cannot be written.
    pub(crate) fn write(shape: &Shape, folder: &Path, threads: NonZeroUsize) -> anyhow::Result<Self> {
        let shape = Shape {
            context_tokens: shape.context_tokens.min(CONTEXT_TOKENS),
            ..*shape
        };
        for name in NAMES {
            let model = folder.join(name);
            write_weights(&shape, &model, threads)?;
            let path = model.join("tokenizer.json");
            fs::write(&path, tokenizer(shape.vocabulary).to_string())
                .with_context(|| format!("cannot write {}", path.display()))?;
        }
        let weights = folder.join(NAMES[0]).join(WEIGHTS_FILE);
        let metadata = fs::metadata(&weights);
        let metadata = metadata.with_context(|| format!("cannot read {}", weights.display()))?;
        Ok(Self {
            folder: folder.to_owned(),
            weights_bytes: metadata.len(),
        })
    }

    /// Each model and the file with its weights.
    pub(crate) fn models(&self) -> [(ModelName, PathBuf); 2] {
        NAMES.map(|name| {
            let model = ModelName::new(name).expect("the names are models' names");
            (model, self.folder.join(name).join(WEIGHTS_FILE))
        })
    }

    /// Enough for either and a short context.
    pub(crate) fn device_bytes(&self) -> u64 {
        self.weights_bytes + DEVICE_BEYOND_WEIGHTS_BYTES
    }
}

/// Token n is written `w<n>`; words are separated by spaces.
fn tokenizer(vocabulary: u32) -> Value {
    let words: Map<_, _> = (0..vocabulary).map(|n| (format!("w{n}"), json!(n))).collect();
    json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "post_processor": null,
        "added_tokens": [], "pre_tokenizer": {"type": "WhitespaceSplit"},
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": false},
        "model": {"type": "WordLevel", "vocab": words, "unk_token": "w1"},
    })
}

const NAMES: [&str; 2] = ["swap-a", "swap-b"];
/// A short context: its keys and values are not what is measured.
const CONTEXT_TOKENS: usize = 1_024;
/// Workspace of a step, with the logits of all slots, and keys and values of one context.
const DEVICE_BEYOND_WEIGHTS_BYTES: u64 = 512 << 20;
