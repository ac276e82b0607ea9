//! Tensors, kernels and models on the devices of a worker.
//!
//! The way through the crate: [`ModelFolder`] checks a model's files before a byte of them is believed,
//! [`MemoryPlan`] says to the byte what the model needs, [`ModelLoader`] places the weights in device
//! memory as they arrive, and [`DecoderModel`] runs [`Step`]s over many sequences at once. Encoders go the same
//! way with an [`EncoderPlan`], and [`EncoderModel`] makes vectors of whole sequences.
//!
//! The crate knows tensors, not requests: which sequences run, which KV blocks they own and how many pages
//! of device memory a model may have is decided outside. Model code is written once, over [`Backend`].

mod backend;
mod config;
mod cpu;
mod decoder;
mod encoder;
mod folder;
mod header;
mod image;
mod loader;
mod mapping;
mod plan;
mod sampling;
mod step;
mod tensor;
mod weights;

pub use backend::{
    Activation, Attention, Backend, BatchView, DeviceError, EditLogits, EmbedGather, Gated, KV_UNIT_BYTES,
    KvLayer, KvLayout, LayerNorm, Linear, MaskLogits, Matrix, NO_ELEMENT, PRODUCTS_MAX, PlaceRows, Pool,
    Pooling, Product, QkvPrep, RegionId, RmsNorm, Rotations, Sample, Span, VectorScale, Visible,
};
pub use config::{
    Biases, ConfigError, EncoderConfig, Family, LayerAttention, ModelConfig, ModelKind, Norms, Rope,
    RopeScaling, SamplingDefaults, Yarn,
};
pub use cpu::{CpuBackend, CpuImage, CpuThreads, Level};
pub use decoder::{DecoderModel, KvSlab, KvSpace, StagedStep};
pub use encoder::{EncoderModel, EncoderPlan};
pub use folder::{AllHere, FolderTensor, Incoming, ModelError, ModelFolder, Piece, Pieces};
pub use header::{Header, HeaderError, HeaderTensor, StoredDtype};
pub use image::load_image;
pub use loader::{LoadError, ModelLoader};
pub use plan::{
    MemoryPlan, ModelPlan, ModelRegions, PlanError, PlannedTensor, PlannedWeights, StageSizes, StepLimits,
};
pub use sampling::{
    AllowedTokens, EDIT_WORDS, LOGPROB_WORDS, LOGPROBS_MAX, LogitBias, LogitEdit, LogitEdits,
    LogitEditsError, Logprobs, MASKED_LOGIT, NO_TOKEN, PARAMETER_WORDS, Penalties, Sampling, TokenLogprob,
    TokenMask, mask_words, uniform,
};
pub use step::{PendingStep, SequenceOutput, SequenceStep, Step, StepError, StepOutput};
pub use tensor::{Dtype, INT4_GROUP_COLUMNS, PANEL_ROWS, Precision, TensorInfo, WeightFormat};
pub use weights::TensorsError;

/// The unit in which device memory is mapped and accounted for, in bytes.
pub const PAGE_BYTES: usize = 2 << 20;

/// How many tokens one KV block holds.
pub const BLOCK_TOKENS: usize = 16;
