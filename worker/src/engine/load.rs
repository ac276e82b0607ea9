//! Filling a model's device memory, on a blocking thread.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use flotilla_weights::{ArrivalError, ComingFiles, WaitError};
use flotilla_worker_core::batch::{Batch, BatchSettings};
use flotilla_worker_core::kv::KvSlab;
use flotilla_worker_core::residency::Part;
use flotilla_worker_core::texts::{TextLimits, TextQueue};
use flotilla_worker_engine::{
    self as engine, BLOCK_TOKENS, CpuBackend, CpuImage, CpuThreads, DecoderModel, EncoderModel, EncoderPlan,
    KvSpace, LoadError, MemoryPlan, ModelError, ModelFolder, ModelLoader, ModelPlan, TensorInfo, load_image,
};
use thiserror::Error;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::simulated::LoadedSimulated;
use super::turns::SharedDevice;
use crate::incoming::Waits;
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
    /// The device of each of its stages when it is in parts; else none.
    pub(super) devices: Vec<SharedDevice>,
}

/// A part of a model, and where it goes.
#[derive(Debug)]
pub(crate) struct PartPlace {
    pub(crate) part: Part,
    pub(crate) device: SharedDevice,
}

#[derive(Debug)]
pub(crate) struct LoadedEncoder {
    pub(super) encoder: EncoderModel<CpuBackend>,
    pub(super) queue: TextQueue,
}

/// How others see and end a load. Clones share everything.
#[derive(Debug, Clone)]
pub(crate) struct LoadWatch {
    /// Ends the load before its time.
    pub(crate) cancel: CancellationToken,
    placed: Placed,
    /// Its files, if they are on their way.
    coming: Option<ComingFiles>,
}

#[derive(Debug, Clone)]
enum Placed {
    /// Bytes, as they are placed.
    Counted(Arc<AtomicU64>),
    /// All bytes at an even pace, in a simulated load.
    Evenly {
        since: Instant,
        load_time: Duration,
        weights_bytes: u64,
    },
}

impl LoadWatch {
    /// Of a load that begins, of files that may be on their way; it ends with its parent, too.
    pub(crate) fn child_of(parent: &CancellationToken, coming: Option<ComingFiles>) -> Self {
        Self {
            cancel: parent.child_token(),
            placed: Placed::Counted(Arc::default()),
            coming,
        }
    }

    /// The same for a simulated load.
    pub(crate) fn simulated(parent: &CancellationToken, load_time: Duration, weights_bytes: u64) -> Self {
        Self {
            cancel: parent.child_token(),
            placed: Placed::Evenly {
                since: Instant::now(),
                load_time,
                weights_bytes,
            },
            coming: None,
        }
    }

    /// Bytes of the weights that have been placed. Stale by some milliseconds.
    pub(crate) fn placed_bytes(&self) -> u64 {
        match &self.placed {
            Placed::Counted(bytes) => bytes.load(Ordering::Relaxed),
            Placed::Evenly {
                since,
                load_time,
                weights_bytes,
            } => {
                let passed = since.elapsed().min(*load_time).as_micros();
                let bytes = u128::from(*weights_bytes) * passed / load_time.as_micros().max(1);
                u64::try_from(bytes).unwrap_or(u64::MAX)
            }
        }
    }

    /// Its files, if they were on their way when it began.
    pub(crate) const fn coming(&self) -> Option<&ComingFiles> {
        self.coming.as_ref()
    }

    /// Waits for what nobody read of its files: a model is ready when all of its root is here.
    fn wait_for_all(&self) -> Result<(), LoadFault> {
        self.coming.as_ref().map_or(Ok(()), |coming| {
            coming.wait_for_all(&self.cancel).map_err(|error| match error {
                WaitError::Ended => LoadFault::Cancelled,
                WaitError::Arrival(error) => LoadFault::Copy(error),
            })
        })
    }

    fn add(&self, bytes: usize) {
        if let Placed::Counted(placed) = &self.placed {
            placed.fetch_add(bytes as u64, Ordering::Relaxed);
        }
    }
}

/// Why a model is not in device memory.
#[derive(Debug, Error)]
pub(crate) enum LoadFault {
    /// The device or the weights.
    #[error("the weights cannot be placed")]
    Load(#[from] LoadError),
    /// The files.
    #[error("the weights cannot be read")]
    Read(#[from] ModelError),
    /// Files that were on their way.
    #[error("the rest of the model's files does not come")]
    Copy(#[source] ArrivalError),
    /// Nobody waits for it any more, or the worker ends.
    #[error("the load was cancelled")]
    Cancelled,
}

/// Brings a model's weights into host memory, as they lie on the device. Blocks as [`load`] does.
///
/// # Errors
/// [`LoadFault`].
pub(crate) fn fetch(
    opened: &OpenedModel,
    watch: &LoadWatch,
    threads: &Arc<CpuThreads>,
) -> Result<Vec<CpuImage>, LoadFault> {
    let kv_space = KvSpace::NONE;
    let images = match &opened.weights {
        OpenedWeights::Decoder { folder, plan } => {
            place_all(folder, MemoryPlan::clone(plan), kv_space, watch, threads)?.into_images()
        }
        OpenedWeights::Encoder { folder, plan } => {
            let encoder = place_all(folder, EncoderPlan::clone(plan), kv_space, watch, threads)?;
            encoder.into_image().map(|image| vec![image])
        }
    };
    Ok(images.map_err(LoadError::from)?)
}

/// Loads a model on a device of so many pages, any of which its keys and values may have later, of its image if
/// there is one. Blocks for as long as its files take to be read, so it
/// belongs on a blocking thread; between two pieces it looks whether it is to end.
///
/// # Errors
/// [`LoadFault`]; the memory is given back then.
pub(crate) fn load(
    opened: &OpenedModel,
    device_pages: u64,
    image: Option<CpuImage>,
    watch: &LoadWatch,
    threads: &Arc<CpuThreads>,
) -> Result<LoadedModel, LoadFault> {
    match &opened.weights {
        OpenedWeights::Decoder { folder, plan } => {
            let slab = KvSlab::of(plan.kv_block_bytes() as u64);
            let (plan, kv_space) = (MemoryPlan::clone(plan), kv_space(slab, device_pages));
            let decoder = match image {
                Some(image) => load_image(CpuBackend::new(Arc::clone(threads)), plan, image, kv_space)?,
                None => place_all(folder, plan, kv_space, watch, threads)?,
            };
            let batch = Batch::new(batch_settings(&decoder, slab));
            let loaded = LoadedDecoder {
                decoder,
                batch,
                devices: Vec::new(),
            };
            Ok(LoadedModel::Text(Box::new(loaded)))
        }
        OpenedWeights::Encoder { folder, plan } => {
            let (plan, kv_space) = (EncoderPlan::clone(plan), KvSpace::NONE);
            let encoder = match image {
                Some(image) => load_image(CpuBackend::new(Arc::clone(threads)), plan, image, kv_space)?,
                None => place_all(folder, plan, kv_space, watch, threads)?,
            };
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

/// Loads a model in parts, each on its device, of an image for each part if there are any. Blocks as [`load`] does.
///
/// All blocks for its keys and values get their memory here, as they are the model's alone.
///
/// # Errors
/// [`LoadFault`]; the memory is given back then.
pub(crate) fn load_parts(
    opened: &OpenedModel,
    places: &[PartPlace],
    images: Vec<CpuImage>,
    watch: &LoadWatch,
) -> Result<LoadedModel, LoadFault> {
    let OpenedWeights::Decoder { folder, plan } = &opened.weights else {
        unreachable!("what makes vectors is never cut");
    };
    let is_read = images.len() < places.len();
    let mut images = images.into_iter();
    let parts = places.iter().map(|PartPlace { part, device }| {
        let stage = plan.stage(part.first_layer as usize..part.range().end as usize);
        let stage = stage.expect("a part of a model that was planned is no larger");
        let kv_space = KvSpace::of_one_slab(in_usize(part.kv_blocks), stage.kv_block_bytes());
        match images.next() {
            Some(image) => {
                let backend = CpuBackend::new(Arc::clone(&device.threads));
                Ok(load_image(backend, stage, image, kv_space)?)
            }
            None => place(folder, stage, kv_space, watch, &device.threads),
        }
    });
    let mut decoder = DecoderModel::join(parts.collect::<Result<Vec<_>, LoadFault>>()?);
    if is_read {
        watch.wait_for_all()?;
    }
    decoder.map_kv_slab(0).map_err(LoadError::from)?;
    let loaded = LoadedDecoder {
        batch: Batch::new(batch_settings(&decoder, PRIVATE_SLAB)),
        decoder,
        devices: places.iter().map(|place| place.device.clone()).collect(),
    };
    Ok(LoadedModel::Text(Box::new(loaded)))
}

/// The same as [`place`] of a model that is not in parts; ends when all of its files are here.
fn place_all<C, P: ModelPlan>(
    folder: &ModelFolder<C>,
    plan: P,
    kv_space: KvSpace,
    watch: &LoadWatch,
    threads: &Arc<CpuThreads>,
) -> Result<P::Model<CpuBackend>, LoadFault> {
    let model = place(folder, plan, kv_space, watch, threads)?;
    watch.wait_for_all()?;
    Ok(model)
}

/// Places all weights that a plan has of a folder, while what comes next is read. Reading begins before memory is mapped.
/// Of files that are on their way, what has come is placed while the rest comes.
fn place<C, P: ModelPlan>(
    folder: &ModelFolder<C>,
    plan: P,
    kv_space: KvSpace,
    watch: &LoadWatch,
    threads: &Arc<CpuThreads>,
) -> Result<P::Model<CpuBackend>, LoadFault> {
    let weights = plan.weights().clone();
    let wants = |info: &TensorInfo| weights.has(&info.name);
    let end = watch.cancel.child_token();
    let waits = Waits::new(watch.coming(), &end);
    folder.read_ahead_of(wants, &waits, |pieces| {
        // Whatever ends it, readers wait for nothing any more.
        let _end_waits = end.clone().drop_guard();
        let mut loader = ModelLoader::new(CpuBackend::new(Arc::clone(threads)), plan, kv_space)?;
        for piece in pieces {
            if watch.cancel.is_cancelled() {
                return Err(LoadFault::Cancelled);
            }
            let piece = piece?;
            loader.place(&piece.info.name, piece.offset_bytes, piece.bytes())?;
            watch.add(piece.bytes().len());
        }
        Ok(loader.finish()?)
    })
}

fn batch_settings(decoder: &DecoderModel<CpuBackend>, slab: KvSlab) -> BatchSettings {
    let plan = decoder.plan();
    BatchSettings {
        batch_tokens_max: plan.limits().batch_tokens_max,
        sequences_max: plan.limits().sequences_max,
        block_tokens: BLOCK_TOKENS,
        slab,
        context_tokens_max: plan.config().context_tokens_max,
    }
}

/// As many slabs as the device has pages for, or as the engine can tell apart.
fn kv_space(slab: KvSlab, device_pages: u64) -> KvSpace {
    let slabs_max = device_pages.min(KvSpace::PAGES_MAX as u64) / slab.pages;
    KvSpace {
        slab: engine::KvSlab {
            blocks: slab.blocks as usize,
            pages: in_usize(slab.pages),
        },
        slabs_max: in_usize(slabs_max),
    }
}

fn in_usize(count: u64) -> usize {
    usize::try_from(count).unwrap_or(usize::MAX)
}

/// How the batch of a model in parts counts its memory: in blocks, each of which has its own all the time.
const PRIVATE_SLAB: KvSlab = KvSlab { blocks: 1, pages: 1 };
