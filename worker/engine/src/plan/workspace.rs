//! Where the inputs, activations and results of a step lie.

use super::stages::Scope;
use super::{Area, Areas, Placement, PlanError, PlannedWeights, StepLimits, sequence_blocks_max};
use crate::decoder::weights::Role;
use crate::{EDIT_WORDS, LOGPROB_WORDS, ModelConfig, PARAMETER_WORDS, mask_words};

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
    /// u32 \[MASKS_AT_ONCE, mask_words]: used again for each part of a step's masks.
    pub(crate) masks: Area,
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
    pub(super) len_bytes: usize,
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

impl Workspace {
    /// The workspace of a stage; `weights` are the whole model's, so that stages of one kind have equal ones.
    pub(super) fn new(
        config: &ModelConfig,
        limits: StepLimits,
        (weights, roles): (&PlannedWeights, &[Role]),
        scope: Scope,
    ) -> Result<Self, PlanError> {
        let StepLimits {
            batch_tokens_max: tokens,
            sequences_max: sequences,
        } = limits;
        let mut areas = Areas::default();
        // For the loader, which looks for it at the start.
        areas.take_words(1, roles.len());
        let once = usize::from(scope.is_last);
        let embedded = if scope.is_first { tokens } else { 0 };
        let drawing = if scope.is_last { sequences } else { 0 };
        let mut workspace = Self {
            ropes: take_ropes(&mut areas, config, tokens),
            tokens: areas.take_words(1, embedded),
            positions: areas.take_words(1, tokens),
            starts: areas.take_words(1, sequences.saturating_add(1)),
            tables: areas.take_words(sequences, sequence_blocks_max(config)),
            sampled_rows: areas.take_words(1, drawing),
            parameters: areas.take_words(drawing, PARAMETER_WORDS),
            edits: areas.take_words(once * EDITS_AT_ONCE, EDIT_WORDS),
            masks: areas.take_words(once * MASKS_AT_ONCE, mask_words(config.vocab_size)),
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
            last_residual: areas.take_words(drawing, config.hidden),
            last_addend: areas.take_words(drawing, config.hidden),
            last_normed: areas.take_words(drawing, config.hidden),
            logits: areas.take_words(drawing, config.vocab_size),
            sample_scratch: areas.take_words(drawing, config.vocab_size),
            drawn: areas.take_words(1, drawing),
            logprobs: areas.take_words(drawing, LOGPROB_WORDS),
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

/// How many rows of logits are masked by one upload and launch; 128 KiB of workspace for the largest vocabularies.
pub(crate) const MASKS_AT_ONCE: usize = 4;
