//! How much device memory a model needs, to the byte, and what lies where in it.

mod areas;
mod stages;
mod weights;
mod workspace;

use std::ops::Range;

use crate::backend::{Backend, DeviceError, KvLayout, RegionId, WORD_BYTES};
use crate::decoder::weights::{Role, required};
use crate::decoder::{DecoderModel, KvSpace};
use crate::tensor::Precision;
use crate::weights::{TensorsError, resolve};
use crate::{BLOCK_TOKENS, ModelConfig, PAGE_BYTES, TensorInfo};

pub(crate) use areas::{Area, Areas};
use stages::Scope;
pub use stages::StageSizes;
pub(crate) use weights::Placement;
pub use weights::{PlannedTensor, PlannedWeights};
pub(crate) use workspace::{EDITS_AT_ONCE, MASKS_AT_ONCE, Workspace};

/// The largest step that a model can be given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StepLimits {
    /// How many tokens all sequences of a step bring together, at least 1.
    pub batch_tokens_max: usize,
    /// How many sequences take part in a step, at least 1.
    pub sequences_max: usize,
}

impl StepLimits {
    pub(crate) fn check(self) -> Result<(), PlanError> {
        if self.batch_tokens_max == 0 || self.sequences_max == 0 {
            return Err(PlanError::ZeroLimit { limits: self });
        }
        match u32::try_from(self.batch_tokens_max.max(self.sequences_max)) {
            Ok(_) => Ok(()),
            Err(_) => Err(PlanError::TooLarge),
        }
    }
}

/// Where everything of a model that is to be loaded lies: what a loader needs to know of it.
///
/// A workspace starts with u32 \[tensors], for the loader: one answer of `first_non_finite` each.
pub trait ModelPlan {
    /// What is there in the end.
    type Model<B: Backend>;

    /// The weights.
    fn weights(&self) -> &PlannedWeights;

    /// What inputs, activations and results of the largest step take.
    fn workspace_bytes(&self) -> usize;

    /// The pages that loading maps for the workspace.
    fn workspace_pages(&self) -> usize {
        self.workspace_bytes().div_ceil(PAGE_BYTES)
    }

    /// The model, whose weights are placed.
    ///
    /// # Errors
    /// The device failed.
    fn into_model<B: Backend>(self, backend: B, regions: ModelRegions)
    -> Result<Self::Model<B>, DeviceError>;
}

/// The memory of one model.
#[derive(Clone, Copy, Debug)]
pub struct ModelRegions {
    /// All pages of [`ModelPlan::weights`], mapped.
    pub weights: RegionId,
    /// All pages of [`ModelPlan::workspace_bytes`], mapped.
    pub workspace: RegionId,
    /// Reserved for all slabs, not mapped.
    pub kv: RegionId,
    /// What lies where in `kv`.
    pub kv_space: KvSpace,
}

/// The device memory of one decoder: weights, workspace, and the size of a KV block.
///
/// Keys and values are f32 whatever the weights are: activations are f32, and rounding keys and values to 16
/// bits would cost more accuracy than all else in a step (bf16: 2^-9 an element), so that logits would depend
/// on what was read back from a block rather than on the weights alone.
#[derive(Clone, Debug)]
pub struct MemoryPlan {
    config: ModelConfig,
    limits: StepLimits,
    weights: PlannedWeights,
    /// What each of the weights is.
    roles: Vec<Role>,
    /// Those of its layers that are planned.
    layers: Range<usize>,
    workspace: Workspace,
    kv_layout: KvLayout,
}

impl MemoryPlan {
    /// Plans a model of the given tensors; tensors that the model does not need are left out.
    ///
    /// # Errors
    /// A tensor is missing or has the wrong shape, a limit is zero, or the sizes overflow.
    pub fn new<'a>(
        config: &ModelConfig,
        tensors: impl IntoIterator<Item = &'a TensorInfo>,
        limits: StepLimits,
        precision: Precision,
    ) -> Result<Self, PlanError> {
        limits.check()?;
        let resolved = resolve(required(config), tensors).map_err(PlanError::Tensors)?;
        let weights = PlannedWeights::new(&resolved, precision)?;
        let roles: Vec<Role> = resolved.into_iter().map(|(role, _)| role).collect();
        let layers = 0..config.layers.len();
        let scope = Scope::of(&layers, config);
        let workspace = Workspace::new(config, limits, (&weights, &roles[..]), scope)?;
        Ok(Self {
            config: config.clone(),
            limits,
            weights,
            roles,
            kv_layout: kv_layout(config, layers.len()),
            layers,
            workspace,
        })
    }

    /// The planned layers: all of a whole model's.
    pub fn layers(&self) -> Range<usize> {
        self.layers.clone()
    }

    /// Whether the first layer is planned, and the embeddings with it.
    pub const fn is_first(&self) -> bool {
        self.layers.start == 0
    }

    /// Whether the last layer is planned, and norm and output layer with it.
    pub fn is_last(&self) -> bool {
        self.layers.end == self.config.layers.len()
    }

    /// The model's configuration.
    pub const fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// The largest step.
    pub const fn limits(&self) -> StepLimits {
        self.limits
    }

    /// The tensors to place, in load order.
    pub fn tensors(&self) -> &[PlannedTensor] {
        self.weights.tensors()
    }

    /// What the weights take, alignment included.
    pub const fn weights_bytes(&self) -> usize {
        self.weights.len_bytes()
    }

    /// What inputs, activations and results of the largest step take.
    pub const fn workspace_bytes(&self) -> usize {
        self.workspace.len_bytes
    }

    /// What one KV block of [`BLOCK_TOKENS`] tokens takes: all planned layers, keys and values, f32.
    pub const fn kv_block_bytes(&self) -> usize {
        self.kv_layout.block_elements() * WORD_BYTES
    }

    /// The pages that loading maps for the weights.
    pub const fn weights_pages(&self) -> usize {
        self.weights.pages()
    }

    /// The pages that loading maps for the workspace.
    pub const fn workspace_pages(&self) -> usize {
        self.workspace_bytes().div_ceil(PAGE_BYTES)
    }

    /// The KV blocks of one sequence of full length.
    pub const fn sequence_blocks_max(&self) -> usize {
        sequence_blocks_max(&self.config)
    }

    /// The tensors, each with what it is.
    pub(crate) fn tensors_by_role(&self) -> impl Iterator<Item = (Role, &PlannedTensor)> {
        self.roles.iter().copied().zip(self.weights.tensors())
    }

    /// The most words that one upload of a step's inputs has.
    pub(crate) fn staging_words_max(&self) -> usize {
        let workspace = &self.workspace;
        let staged = [
            workspace.tokens,
            workspace.starts,
            workspace.tables,
            workspace.parameters,
            workspace.edits,
            workspace.masks,
        ];
        let longest = staged.into_iter().map(|area| area.len_bytes).max();
        longest.unwrap_or(0) / WORD_BYTES
    }

    pub(crate) const fn workspace(&self) -> &Workspace {
        &self.workspace
    }

    pub(crate) const fn kv_layout(&self) -> KvLayout {
        self.kv_layout
    }
}

impl ModelPlan for MemoryPlan {
    type Model<B: Backend> = DecoderModel<B>;

    fn weights(&self) -> &PlannedWeights {
        &self.weights
    }

    fn workspace_bytes(&self) -> usize {
        self.workspace.len_bytes
    }

    fn into_model<B: Backend>(
        self,
        backend: B,
        regions: ModelRegions,
    ) -> Result<DecoderModel<B>, DeviceError> {
        DecoderModel::new(backend, self, regions)
    }
}

fn kv_layout(config: &ModelConfig, layers: usize) -> KvLayout {
    KvLayout {
        layers,
        kv_heads: config.kv_heads,
        head_dim: config.head_dim,
    }
}

const fn sequence_blocks_max(config: &ModelConfig) -> usize {
    config.context_tokens_max.div_ceil(BLOCK_TOKENS)
}

/// Why a model cannot be planned.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// The tensors are not the model's.
    #[error("the tensors are not those of the configured model")]
    Tensors(#[source] TensorsError),
    /// A limit is zero.
    #[error("limits must not be zero: {limits:?}")]
    ZeroLimit {
        /// The limits given.
        limits: StepLimits,
    },
    /// The sizes overflow this machine's addresses.
    #[error("the model needs more bytes than this machine can address")]
    TooLarge,
}
