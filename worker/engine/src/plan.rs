//! How much device memory a model needs, to the byte, and what lies where in it.

use crate::backend::{KvLayout, Matrix, RegionId, Span, WORD_BYTES};
use crate::decoder::weights::{self, Role, TensorsError};
use crate::tensor::{INT4_GROUP_COLUMNS, Precision, WeightFormat};
use crate::{
    BLOCK_TOKENS, Dtype, EDIT_WORDS, LOGPROB_WORDS, ModelConfig, PAGE_BYTES, PARAMETER_WORDS, TensorInfo,
};

/// The largest step that a model can be given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StepLimits {
    /// How many tokens all sequences of a step bring together, at least 1.
    pub batch_tokens_max: usize,
    /// How many sequences take part in a step, at least 1.
    pub sequences_max: usize,
}

/// The device memory of one model: weights, workspace, and the size of a KV block.
///
/// Keys and values are f32 whatever the weights are: activations are f32, and rounding keys and values to 16
/// bits would cost more accuracy than all else in a step (bf16: 2^-9 an element), so that logits would depend
/// on what was read back from a block rather than on the weights alone.
#[derive(Clone, Debug)]
pub struct MemoryPlan {
    config: ModelConfig,
    limits: StepLimits,
    tensors: Vec<PlannedTensor>,
    weights_bytes: usize,
    workspace: Workspace,
    kv_layout: KvLayout,
}

/// One tensor and its place in the weights.
#[derive(Clone, Debug)]
pub struct PlannedTensor {
    /// What it is, as its file stores it.
    pub info: TensorInfo,
    pub(crate) role: Role,
    pub(crate) placement: Placement,
    pub(crate) area: Area,
}

/// What a tensor is in device memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Placement {
    /// f32 \[n], so that no operation has to widen it at every step; norms and biases are small.
    Vector,
    /// See [`Matrix`].
    Matrix {
        format: WeightFormat,
        rows: usize,
        columns: usize,
    },
}

impl PlannedTensor {
    fn new(role: Role, info: TensorInfo, precision: Precision, weights: &mut Areas) -> Self {
        let placement = match info.shape.as_slice() {
            [_] => Placement::Vector,
            [rows, columns] => Placement::Matrix {
                format: format(role, info.dtype, precision, *columns),
                rows: *rows,
                columns: *columns,
            },
            shape => unreachable!("a decoder has vectors and matrices only, not {shape:?}"),
        };
        let area = weights.take_bytes(match placement {
            Placement::Vector => info.size_bytes_as(Dtype::F32),
            Placement::Matrix {
                format,
                rows,
                columns,
            } => format.matrix_bytes(rows, columns),
        });
        Self {
            info,
            role,
            placement,
            area,
        }
    }

    /// How its elements are kept on the device.
    pub const fn format(&self) -> WeightFormat {
        match self.placement {
            Placement::Vector => WeightFormat::F32,
            Placement::Matrix { format, .. } => format,
        }
    }

    /// The tensor as a weight matrix in its region.
    ///
    /// # Panics
    /// It is a vector.
    pub(crate) fn matrix(&self, region: RegionId) -> Matrix {
        let Placement::Matrix {
            format,
            rows,
            columns,
        } = self.placement
        else {
            panic!("{} is a vector", self.info.name);
        };
        Matrix {
            span: self.area.in_region(region),
            format,
            rows,
            columns,
        }
    }

    /// Its size in its file.
    pub(crate) fn stored_bytes(&self) -> usize {
        self.info
            .size_bytes()
            .expect("no larger than in device memory, where it was counted")
    }
}

fn format(role: Role, stored: Dtype, precision: Precision, columns: usize) -> WeightFormat {
    match (precision, role) {
        (Precision::Stored, _) => stored.into(),
        (Precision::Int4, Role::Layer(..)) if columns.is_multiple_of(INT4_GROUP_COLUMNS) => {
            WeightFormat::Int4
        }
        (Precision::Int8 | Precision::Int4, _) => WeightFormat::Int8,
    }
}

/// A range of a region that is not reserved yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Area {
    pub(crate) offset_bytes: usize,
    pub(crate) len_bytes: usize,
}

impl Area {
    pub(crate) const fn in_region(self, region: RegionId) -> Span {
        Span {
            region,
            offset_bytes: self.offset_bytes,
            len_bytes: self.len_bytes,
        }
    }
}

/// Where the inputs, activations and results of a step lie.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Workspace {
    /// One for each of the model's rotary embeddings; those beyond are empty.
    pub(crate) ropes: [RopeAreas; ROPES_MAX],
    /// u32 \[tensors]: one answer of `first_non_finite` each; used while loading only.
    pub(crate) non_finite: Area,
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
        if limits.batch_tokens_max == 0 || limits.sequences_max == 0 {
            return Err(PlanError::ZeroLimit { limits });
        }
        if u32::try_from(limits.batch_tokens_max.max(limits.sequences_max)).is_err() {
            return Err(PlanError::TooLarge);
        }
        let resolved = weights::resolve(config, tensors).map_err(PlanError::Tensors)?;
        let mut weights = Areas::default();
        let tensors: Vec<PlannedTensor> = resolved
            .into_iter()
            .map(|(role, info)| PlannedTensor::new(role, info, precision, &mut weights))
            .collect();
        let workspace = Workspace::new(config, limits, &tensors)?;
        Ok(Self {
            config: config.clone(),
            limits,
            tensors,
            weights_bytes: weights.len_bytes()?,
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
        &self.tensors
    }

    /// What the weights take, alignment included.
    pub const fn weights_bytes(&self) -> usize {
        self.weights_bytes
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
        self.weights_bytes().div_ceil(PAGE_BYTES)
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

impl Workspace {
    fn new(config: &ModelConfig, limits: StepLimits, tensors: &[PlannedTensor]) -> Result<Self, PlanError> {
        let StepLimits {
            batch_tokens_max: tokens,
            sequences_max: sequences,
        } = limits;
        let mut areas = Areas::default();
        let mut workspace = Self {
            ropes: areas.take_ropes(config, tokens),
            non_finite: areas.take_words(1, tensors.len()),
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
            inputs: areas.take_words(1, input_words_max(tensors, limits)),
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
fn input_words_max(tensors: &[PlannedTensor], limits: StepLimits) -> usize {
    let words = tensors
        .iter()
        .filter_map(|tensor| match (tensor.placement, tensor.role) {
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

/// Lays areas out one after the other; an overflow is remembered and told at the end.
struct Areas {
    next_bytes: Option<usize>,
}

impl Default for Areas {
    fn default() -> Self {
        Self { next_bytes: Some(0) }
    }
}

impl Areas {
    fn take_ropes(&mut self, config: &ModelConfig, tokens: usize) -> [RopeAreas; ROPES_MAX] {
        assert!(
            config.ropes.len() <= ROPES_MAX,
            "a family has at most {ROPES_MAX} rotary embeddings"
        );
        std::array::from_fn(|index| {
            let rows = usize::from(index < config.ropes.len());
            RopeAreas {
                inverse_frequencies: self.take_words(rows, config.head_dim / 2),
                rotations: self.take_words(rows * tokens, config.head_dim),
            }
        })
    }

    fn take_words(&mut self, rows: usize, columns: usize) -> Area {
        self.take_bytes(
            rows.checked_mul(columns)
                .and_then(|words| words.checked_mul(WORD_BYTES)),
        )
    }

    fn take_bytes(&mut self, len_bytes: Option<usize>) -> Area {
        let offset_bytes = self.next_bytes.unwrap_or(0);
        self.next_bytes = self
            .next_bytes
            .zip(len_bytes)
            .and_then(|(next, len)| next.checked_add(len)?.checked_next_multiple_of(ALIGNMENT_BYTES));
        Area {
            offset_bytes,
            len_bytes: len_bytes.unwrap_or(0),
        }
    }

    fn len_bytes(&self) -> Result<usize, PlanError> {
        self.next_bytes
            .filter(|len| *len <= isize::MAX as usize)
            .ok_or(PlanError::TooLarge)
    }
}

/// How many logits are edited by one upload and launch: a step with more of them makes several. 64 KiB of
/// workspace, and more edits than a batch without penalties over long prompts has.
pub(crate) const EDITS_AT_ONCE: usize = 4096;

/// Every area starts at a multiple of this: the widest load of a GPU's copy engines and a cache line's double.
const ALIGNMENT_BYTES: usize = 256;

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
