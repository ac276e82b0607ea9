//! How much device memory a model needs, to the byte, and what lies where in it.

mod areas;
mod weights;

use crate::backend::{Backend, DeviceError, KvLayout, RegionId, WORD_BYTES};
use crate::decoder::DecoderModel;
use crate::decoder::weights::{Role, required};
use crate::tensor::Precision;
use crate::weights::{TensorsError, resolve};
use crate::{BLOCK_TOKENS, EDIT_WORDS, LOGPROB_WORDS, ModelConfig, PAGE_BYTES, PARAMETER_WORDS, TensorInfo};

pub(crate) use areas::{Area, Areas};
pub(crate) use weights::Placement;
pub use weights::{PlannedTensor, PlannedWeights};

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

    /// The pages that `blocks` KV blocks take, or none when that overflows; 0 for models that have none.
    fn kv_pages(&self, blocks: usize) -> Option<usize>;

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
    /// Reserved, not mapped.
    pub kv: RegionId,
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
    workspace: Workspace,
    kv_layout: KvLayout,
}

/// Where the inputs, activations and results of a step lie.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Workspace {
    /// One for each of the model's rotary embeddings; those beyond are empty.
    pub(crate) ropes: [RopeAreas; ROPES_MAX],
    /// u32 \[tokens].
    pub(crate) tokens: Area,
    /// u32 \[tokens].
    pub(crate) positions: Area,
    /// u32 \[sequences + 1].
    pub(crate) starts: Area,
    /// u32 \[sequences, blocks of a full context].
    pub(crate) tables: Area,
    /// u32 \[sequences]: the rows whose logits are wanted.
    pub(crate) sampled_rows: Area,
    /// u32 \[sequences, PARAMETER_WORDS].
    pub(crate) parameters: Area,
    /// u32 \[EDITS_AT_ONCE, EDIT_WORDS]: used again for each part of a step's edits.
    pub(crate) edits: Area,
    /// f32 \[tokens, hidden]: the residual stream.
    pub(crate) residual: Area,
    /// f32 \[tokens, hidden]: what the next normalisation adds to it.
    pub(crate) addend: Area,
    /// f32 \[tokens, hidden].
    pub(crate) normed: Area,
    /// f32 \[tokens, query_width].
    pub(crate) q: Area,
    /// f32 \[tokens, kv_width].
    pub(crate) k: Area,
    /// f32 \[tokens, kv_width].
    pub(crate) v: Area,
    /// f32 \[tokens, query_width].
    pub(crate) attended: Area,
    /// The inputs of a linear layer as its products read them; undefined between launches.
    pub(crate) inputs: Area,
    /// f32 \[tokens, intermediate].
    pub(crate) gate: Area,
    /// f32 \[tokens, intermediate].
    pub(crate) up: Area,
    /// f32 \[sequences, hidden]: the residual stream of the sampled rows.
    pub(crate) last_residual: Area,
    /// f32 \[sequences, hidden].
    pub(crate) last_addend: Area,
    /// f32 \[sequences, hidden].
    pub(crate) last_normed: Area,
    /// f32 \[sequences, vocab_size].
    pub(crate) logits: Area,
    /// u32 \[sequences, vocab_size].
    pub(crate) sample_scratch: Area,
    /// u32 \[sequences].
    pub(crate) drawn: Area,
    /// u32 \[sequences, LOGPROB_WORDS].
    pub(crate) logprobs: Area,
    len_bytes: usize,
}

/// What rotation needs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RopeAreas {
    /// f32 \[head_dim / 2]: written once.
    pub(crate) inverse_frequencies: Area,
    /// f32 \[tokens, 2, head_dim / 2]: written at the start of each step.
    pub(crate) rotations: Area,
}

/// No family has more rotary embeddings: one for layers that see everything, one for layers with a window.
const ROPES_MAX: usize = 2;

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
        let workspace = Workspace::new(config, limits, &weights, &roles)?;
        Ok(Self {
            config: config.clone(),
            limits,
            weights,
            roles,
            workspace,
            kv_layout: KvLayout {
                layers: config.layers.len(),
                kv_heads: config.kv_heads,
                head_dim: config.head_dim,
            },
        })
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

    /// What one KV block of [`BLOCK_TOKENS`] tokens takes: all layers, keys and values, f32.
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

    /// The pages that `blocks` KV blocks take, or none when that overflows.
    pub fn kv_pages(&self, blocks: usize) -> Option<usize> {
        Some(blocks.checked_mul(self.kv_block_bytes())?.div_ceil(PAGE_BYTES))
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

    fn kv_pages(&self, blocks: usize) -> Option<usize> {
        self.kv_pages(blocks)
    }

    fn into_model<B: Backend>(
        self,
        backend: B,
        regions: ModelRegions,
    ) -> Result<DecoderModel<B>, DeviceError> {
        DecoderModel::new(backend, self, regions)
    }
}

impl Workspace {
    fn new(
        config: &ModelConfig,
        limits: StepLimits,
        weights: &PlannedWeights,
        roles: &[Role],
    ) -> Result<Self, PlanError> {
        let StepLimits {
            batch_tokens_max: tokens,
            sequences_max: sequences,
        } = limits;
        let mut areas = Areas::default();
        // For the loader, which looks for it at the start.
        areas.take_words(1, roles.len());
        let mut workspace = Self {
            ropes: take_ropes(&mut areas, config, tokens),
            tokens: areas.take_words(1, tokens),
            positions: areas.take_words(1, tokens),
            starts: areas.take_words(1, sequences.saturating_add(1)),
            tables: areas.take_words(sequences, sequence_blocks_max(config)),
            sampled_rows: areas.take_words(1, sequences),
            parameters: areas.take_words(sequences, PARAMETER_WORDS),
            edits: areas.take_words(EDITS_AT_ONCE, EDIT_WORDS),
            residual: areas.take_words(tokens, config.hidden),
            addend: areas.take_words(tokens, config.hidden),
            normed: areas.take_words(tokens, config.hidden),
            q: areas.take_words(tokens, config.query_width()),
            k: areas.take_words(tokens, config.kv_width()),
            v: areas.take_words(tokens, config.kv_width()),
            attended: areas.take_words(tokens, config.query_width()),
            inputs: areas.take_words(1, input_words_max(weights, roles, limits)),
            gate: areas.take_words(tokens, config.intermediate),
            up: areas.take_words(tokens, config.intermediate),
            last_residual: areas.take_words(sequences, config.hidden),
            last_addend: areas.take_words(sequences, config.hidden),
            last_normed: areas.take_words(sequences, config.hidden),
            logits: areas.take_words(sequences, config.vocab_size),
            sample_scratch: areas.take_words(sequences, config.vocab_size),
            drawn: areas.take_words(1, sequences),
            logprobs: areas.take_words(sequences, LOGPROB_WORDS),
            len_bytes: 0,
        };
        workspace.len_bytes = areas.len_bytes()?;
        Ok(workspace)
    }
}

/// The most words that the rounded inputs of a linear layer take; those of unrounded ones are used where they
/// lie.
fn input_words_max(weights: &PlannedWeights, roles: &[Role], limits: StepLimits) -> usize {
    let words =
        weights
            .tensors()
            .iter()
            .zip(roles)
            .filter_map(|(tensor, role)| match (tensor.placement, role) {
                (Placement::Matrix { format, columns, .. }, role) if format.takes_pairs() => {
                    let rows = match role {
                        Role::Layer(..) => limits.batch_tokens_max,
                        // Of a tied model, the embeddings are the output layer as well.
                        Role::Embedding | Role::Head | Role::Norm => limits.sequences_max,
                    };
                    Some(rows.saturating_mul(format.input_words(columns)))
                }
                (Placement::Matrix { .. } | Placement::Vector, _) => None,
            });
    words.max().unwrap_or(0)
}

const fn sequence_blocks_max(config: &ModelConfig) -> usize {
    config.context_tokens_max.div_ceil(BLOCK_TOKENS)
}

fn take_ropes(areas: &mut Areas, config: &ModelConfig, tokens: usize) -> [RopeAreas; ROPES_MAX] {
    assert!(
        config.ropes.len() <= ROPES_MAX,
        "a family has at most {ROPES_MAX} rotary embeddings"
    );
    std::array::from_fn(|index| {
        let rows = usize::from(index < config.ropes.len());
        RopeAreas {
            inverse_frequencies: areas.take_words(rows, config.head_dim / 2),
            rotations: areas.take_words(rows * tokens, config.head_dim),
        }
    })
}

/// How many logits are edited by one upload and launch: a step with more of them makes several. 64 KiB of
/// workspace, and more edits than a batch without penalties over long prompts has.
pub(crate) const EDITS_AT_ONCE: usize = 4096;

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
