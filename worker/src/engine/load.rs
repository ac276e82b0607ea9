//! Filling a model's device memory, on a blocking thread.

use std::sync::Arc;
use std::time::{Duration, Instant};

use flotilla_worker_core::batch::{Batch, BatchSettings};
use flotilla_worker_core::residency::Grant;
use flotilla_worker_core::texts::{TextLimits, TextQueue};
use flotilla_worker_engine::{
    BLOCK_TOKENS, CpuBackend, CpuThreads, DecoderModel, DeviceError, EncoderModel, EncoderPlan, LoadError,
    MemoryPlan, ModelFolder, ModelLoader, ModelPlan, PAGE_BYTES,
};
use thiserror::Error;
use tokio_util::sync::CancellationToken;

use super::simulated::LoadedSimulated;
use crate::model::{OpenedModel, OpenedWeights};

/// A model whose weights are in device memory.
#[derive(Debug)]
pub(crate) enum LoadedModel {
    /// One that makes text, and its batch.
    Text(Box<LoadedDecoder>),
    /// One that makes vectors, and the texts that wait for it.
    Vectors(Box<LoadedEncoder>),
    /// One that is simulated, and its batch.
    Simulated(Box<LoadedSimulated>),
}

#[derive(Debug)]
pub(crate) struct LoadedDecoder {
    pub(super) decoder: DecoderModel<CpuBackend>,
    pub(super) batch: Batch,
}

#[derive(Debug)]
pub(crate) struct LoadedEncoder {
    pub(super) encoder: EncoderModel<CpuBackend>,
    pub(super) queue: TextQueue,
}

/// How long a load may take, and who may end it.
#[derive(Debug, Clone)]
pub(crate) struct LoadLimits {
    /// Time that any load may take.
    pub(crate) timeout_floor: Duration,
    /// Slowest load that is not given up.
    pub(crate) bytes_per_s_min: u64,
    /// Ends a load before its time.
    pub(crate) cancel: CancellationToken,
}

/// Why a model is not in device memory.
#[derive(Debug, Error)]
pub(crate) enum LoadFault {
    /// The device or the weights.
    #[error("the weights cannot be placed")]
    Load(#[from] LoadError),
    /// The device has no room for keys and values.
    #[error("the memory for keys and values cannot be had")]
    Kv(#[source] DeviceError),
    /// It took too long.
    #[error("{placed_bytes} of {weights_bytes} bytes were loaded when the time of {timeout:?} was over")]
    TimedOut {
        /// Bytes that were placed.
        placed_bytes: u64,
        /// Bytes of all weights.
        weights_bytes: u64,
        /// The limit.
        timeout: Duration,
    },
    /// It would take too long.
    #[error("the load takes {load_time:?}, as the profile says, and may take {timeout:?}")]
    SimulatedTimedOut {
        /// How long it takes.
        load_time: Duration,
        /// The limit.
        timeout: Duration,
    },
    /// The worker ends.
    #[error("the worker ends")]
    Cancelled,
}

/// Loads a model into the pages that it was granted. Blocks for as long as its files take to be read, so it
/// belongs on a blocking thread; between two slices it looks at the limits.
///
/// # Errors
/// [`LoadFault`]; the memory is given back then.
pub(crate) fn load(
    opened: &OpenedModel,
    grant: Grant,
    limits: &LoadLimits,
    threads: &Arc<CpuThreads>,
) -> Result<LoadedModel, LoadFault> {
    match &opened.weights {
        OpenedWeights::Decoder { folder, plan } => {
            let kv_blocks = kv_blocks(grant, plan.kv_block_bytes());
            let mut decoder = place(folder, MemoryPlan::clone(plan), kv_blocks, limits, threads)?;
            decoder.set_kv_blocks(kv_blocks).map_err(LoadFault::Kv)?;
            let batch = Batch::new(batch_settings(&decoder));
            let loaded = LoadedDecoder { decoder, batch };
            Ok(LoadedModel::Text(Box::new(loaded)))
        }
        OpenedWeights::Encoder { folder, plan } => {
            let encoder = place(folder, EncoderPlan::clone(plan), 0, limits, threads)?;
            let step = encoder.plan().limits();
            let queue = TextQueue::new(TextLimits {
                batch_tokens_max: step.batch_tokens_max,
                texts_max: step.sequences_max,
            });
            let loaded = LoadedEncoder { encoder, queue };
            Ok(LoadedModel::Vectors(Box::new(loaded)))
        }
    }
}

/// Places all weights of a folder.
fn place<C, P: ModelPlan>(
    folder: &ModelFolder<C>,
    plan: P,
    kv_blocks: usize,
    limits: &LoadLimits,
    threads: &Arc<CpuThreads>,
) -> Result<P::Model<CpuBackend>, LoadFault> {
    let mut loader = ModelLoader::new(CpuBackend::new(Arc::clone(threads)), plan, kv_blocks)?;
    let weights_bytes = folder.weights_bytes() as u64;
    let timeout = limits.timeout(weights_bytes);
    let started = Instant::now();
    let mut placed_bytes = 0;
    for tensor in folder.tensors() {
        for (index, slice) in tensor.bytes.chunks(SLICE_BYTES).enumerate() {
            if limits.cancel.is_cancelled() {
                return Err(LoadFault::Cancelled);
            }
            if started.elapsed() > timeout {
                return Err(LoadFault::TimedOut {
                    placed_bytes,
                    weights_bytes,
                    timeout,
                });
            }
            loader.place(&tensor.info.name, index * SLICE_BYTES, slice)?;
            placed_bytes += slice.len() as u64;
        }
    }
    Ok(loader.finish()?)
}

impl LoadLimits {
    /// Time that the load of so many bytes may take.
    pub(crate) fn timeout(&self, weights_bytes: u64) -> Duration {
        let by_size = Duration::from_secs(weights_bytes / self.bytes_per_s_min.max(1));
        self.timeout_floor.saturating_add(by_size)
    }
}

fn batch_settings(decoder: &DecoderModel<CpuBackend>) -> BatchSettings {
    let plan = decoder.plan();
    BatchSettings {
        batch_tokens_max: plan.limits().batch_tokens_max,
        sequences_max: plan.limits().sequences_max,
        block_tokens: BLOCK_TOKENS,
        blocks_total: u32::try_from(decoder.kv_blocks()).expect("the blocks were counted as u32"),
        context_tokens_max: plan.config().context_tokens_max,
    }
}

/// The blocks that fit the granted pages; their indices are u32.
fn kv_blocks(grant: Grant, block_bytes: usize) -> usize {
    let bytes = u128::from(grant.kv_pages) * PAGE_BYTES as u128;
    let blocks = bytes / (block_bytes as u128).max(1);
    usize::try_from(blocks.min(u128::from(u32::MAX))).unwrap_or(usize::MAX)
}

/// Bytes placed between two looks at the limits: some milliseconds, even from a slow disk.
const SLICE_BYTES: usize = 8 << 20;
