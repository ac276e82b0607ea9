//! One model as a simulated device serves it: what it needs, and what it answers.

use std::sync::Arc;

use flotilla_prompt::{ModelBounds, PromptMaker};
use flotilla_protocol::catalog::{CatalogEntry, ModelSource, Quantize};
use flotilla_worker_core::batch::{Batch, BatchSettings};
use flotilla_worker_core::kv::KvBlock;
use flotilla_worker_core::ledger::PAGE_BYTES;
use flotilla_worker_core::residency::ModelNeeds;
use flotilla_worker_engine::{BLOCK_TOKENS, StepLimits};
use thiserror::Error;

use super::{LoadTimes, Simulation, Timing};
use crate::engine::{Drawing, LoadedSimulated};
use crate::model::ModelText;

/// A model of the catalog whose facts are believed.
#[derive(Debug)]
pub(crate) struct SimulatedModel {
    timing: Arc<Timing>,
    drawing: Drawing,
    limits: StepLimits,
    weights_bytes: u64,
    context_tokens_max: usize,
    kv_block: KvBlock,
}

/// Why a model cannot be simulated.
#[derive(Debug, Error)]
pub(crate) enum SimulatedModelError {
    /// It makes vectors.
    #[error("the model makes embeddings; a simulated engine makes text only")]
    Embeds,
    /// Nobody said how fast it is.
    #[error(
        "there is no profile for the model; add MODEL=FILE, or FILE for every model, to worker.simulated.profile"
    )]
    NoProfile,
}

impl SimulatedModel {
    /// A model of the catalog, for steps of up to these sizes, and its text side. Reads the text files of a
    /// model that has some, which takes up to seconds.
    ///
    /// # Errors
    /// [`SimulatedModelError`].
    pub(crate) fn open(
        simulation: &Simulation,
        entry: &CatalogEntry,
        limits: StepLimits,
    ) -> Result<(Self, Arc<ModelText>), SimulatedModelError> {
        if !entry.facts.task.is_generate() {
            return Err(SimulatedModelError::Embeds);
        }
        let timing = simulation
            .timing(&entry.name)
            .ok_or(SimulatedModelError::NoProfile)?;
        let bounds = ModelBounds::from(&entry.facts);
        let (text, kv_bytes_per_token) = match &entry.source {
            ModelSource::Simulated { kv_bytes_per_token } => {
                let text = ModelText::simulated(PromptMaker::simulated(bounds));
                (Arc::new(text), *kv_bytes_per_token)
            }
            // Its words are made up, as nothing is downloaded for times alone.
            ModelSource::Hub(_) => {
                let text = ModelText::simulated(PromptMaker::simulated(bounds));
                (Arc::new(text), KV_BYTES_PER_TOKEN)
            }
            ModelSource::Folder(folder) => {
                let text = simulation.texts.of_folder(&entry.name, folder, bounds);
                (text, KV_BYTES_PER_TOKEN)
            }
        };
        let model = Self {
            timing,
            drawing: Drawing {
                seed: simulation.seed,
                vocabulary_size: bounds.vocabulary_size,
                end: text.stop_token_ids.first().copied(),
                answer_tokens_mean: simulation.answer_tokens_mean,
            },
            limits,
            weights_bytes: weights_bytes(entry),
            context_tokens_max: in_usize(bounds.context_tokens_max.into()),
            kv_block: KvBlock {
                tokens: BLOCK_TOKENS as u64,
                bytes: kv_bytes_per_token.max(1).saturating_mul(BLOCK_TOKENS as u64),
            },
        };
        Ok((model, text))
    }

    /// Bytes of the weights.
    pub(crate) fn weights_bytes(&self) -> u64 {
        self.weights_bytes
    }

    /// How long its loads take.
    pub(crate) fn load_times(&self) -> LoadTimes {
        self.timing.load_times(self.weights_bytes)
    }

    /// Pages that it needs on a device, by the rule of real models.
    pub(crate) fn needs(&self) -> ModelNeeds {
        ModelNeeds {
            weights_pages: self.weights_bytes.div_ceil(PAGE_BYTES),
            workspace_pages: WORKSPACE_PAGES,
            kv_pages_min: self.kv_block.pages_for(self.context_tokens_max as u64),
            kv_block: Some(self.kv_block),
            split: None,
        }
    }

    /// The model on a device.
    pub(crate) fn in_memory(&self) -> LoadedSimulated {
        let batch = Batch::new(BatchSettings {
            batch_tokens_max: self.limits.batch_tokens_max,
            sequences_max: self.limits.sequences_max,
            block_tokens: BLOCK_TOKENS,
            slab: self.kv_block.slab(),
            context_tokens_max: self.context_tokens_max,
        });
        LoadedSimulated {
            batch,
            timing: Arc::clone(&self.timing),
            drawing: self.drawing,
        }
    }
}

/// Bytes on the device: what quantisation leaves of bf16, as the engine's own is documented.
pub(super) fn weights_bytes(entry: &CatalogEntry) -> u64 {
    let stored = entry.facts.weights_bytes;
    match entry.quantize {
        None => stored,
        Some(Quantize::Int8) => stored / 2,
        Some(Quantize::Int4) => stored / 100 * 31,
    }
}

fn in_usize(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

/// Of a real model, whose catalog entry does not say it: that of 32 layers with 8 heads of 128 for keys and
/// values in 16 bits, as many models of 8 billion parameters have.
const KV_BYTES_PER_TOKEN: u64 = 128 << 10;
/// 64 MiB, about what a step of 512 tokens of a model of 8 billion parameters needs.
const WORKSPACE_PAGES: u64 = 32;
