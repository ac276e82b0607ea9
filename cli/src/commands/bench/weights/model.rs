//! A model of random weights.

use std::fs;
use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use anyhow::Context as _;
use bytes::Bytes;
use flotilla_weights::{ModelFiles, make_manifest};

use super::super::engine::{Shape, WEIGHTS_FILE, write_weights};

/// A model on disk and its weights in memory.
pub(super) struct Model {
    /// Its files, in the system's cache.
    pub(super) files: Arc<ModelFiles>,
    /// The bytes of its file of weights, for those that read no files.
    pub(super) bytes: Bytes,
}

impl Model {
    /// Writes one whose layers and embeddings have about so many bytes together.
    ///
    /// # Errors
    /// When files cannot be written or read.
    pub(super) fn write(folder: &Path, mib: u32, threads: NonZeroUsize) -> anyhow::Result<Self> {
        write_weights(&shape(mib), folder, threads)?;
        let weights = folder.join(WEIGHTS_FILE);
        let manifest = make_manifest(folder, threads.get(), &AtomicBool::new(false))?;
        let bytes = fs::read(&weights).with_context(|| format!("cannot read {}", weights.display()))?;
        Ok(Self {
            files: Arc::new(ModelFiles::new(Arc::new(manifest), folder.to_owned())),
            bytes: bytes.into(),
        })
    }

    /// How many segments it has.
    pub(super) fn segments(&self) -> usize {
        self.files.manifest().segments().len()
    }
}

/// Embeddings of 64 MiB and layers of 32 MiB each, in bf16.
fn shape(mib: u32) -> Shape {
    let layers = mib.saturating_sub(EMBEDDINGS_MIB) / LAYER_MIB;
    Shape {
        name: "copied",
        hidden: 1_024,
        layers: layers as usize,
        heads: 8,
        kv_heads: 8,
        intermediate: 4_096,
        vocabulary: 32_768,
        rope_theta: 10_000,
        context_tokens: 1_024,
    }
}

const EMBEDDINGS_MIB: u32 = 64;
const LAYER_MIB: u32 = 32;
