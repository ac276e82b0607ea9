//! A model of random bytes.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use anyhow::Context as _;
use bytes::Bytes;
use flotilla_weights::{ModelFiles, make_manifest};
use serde_json::{Map, json};

/// A model on disk and its weights in memory.
pub(super) struct Model {
    /// Its files, in the system's cache.
    pub(super) files: Arc<ModelFiles>,
    /// The bytes of its file of weights, for those that read no files.
    pub(super) bytes: Bytes,
}

impl Model {
    /// Writes one whose tensors have so many bytes together.
    ///
    /// # Errors
    /// When files cannot be written or read.
    pub(super) fn write(folder: &Path, mib: u32, threads: usize) -> anyhow::Result<Self> {
        fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let weights = folder.join("model.safetensors");
        write_weights(&weights, mib).with_context(|| format!("cannot write {}", weights.display()))?;
        let config = folder.join("config.json");
        fs::write(&config, "{}").with_context(|| format!("cannot write {}", config.display()))?;
        let manifest = make_manifest(folder, threads, &AtomicBool::new(false))?;
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

fn write_weights(path: &Path, mib: u32) -> io::Result<()> {
    let mut file = File::create(path)?;
    let (mut tensors, mut end) = (Map::new(), 0);
    let parts = mib.div_ceil(TENSOR_MIB);
    for part in 0..parts {
        let begin = end;
        let bytes = u64::from(TENSOR_MIB.min(mib - part * TENSOR_MIB)) << 20;
        end += bytes;
        tensors.insert(
            format!("layers.{part}.weight"),
            json!({"dtype": "U8", "shape": [bytes], "data_offsets": [begin, end]}),
        );
    }
    let mut header = serde_json::to_vec(&tensors)?;
    header.resize(header.len().next_multiple_of(8), b' ');
    file.write_all(&(header.len() as u64).to_le_bytes())?;
    file.write_all(&header)?;
    let mut state = SEED;
    let mut buffer = Vec::with_capacity(1 << 20);
    for _ in 0..mib {
        buffer.clear();
        while buffer.len() < 1 << 20 {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            buffer.extend_from_slice(&state.to_le_bytes());
        }
        file.write_all(&buffer)?;
    }
    file.sync_all()
}

/// As large as a matrix of a small model.
const TENSOR_MIB: u32 = 24;
const SEED: u64 = 0x9e37_79b9_7f4a_7c15;
