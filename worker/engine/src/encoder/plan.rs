//! How much device memory an encoder needs, and what lies where in it.

use super::EncoderModel;
use super::weights::{Role, required};
use crate::backend::{Backend, DeviceError, KvLayout};
use crate::plan::{Area, Areas, ModelPlan, ModelRegions, Placement, PlannedTensor, PlannedWeights};
use crate::tensor::Precision;
use crate::weights::{WeightRole, resolve};
use crate::{BLOCK_TOKENS, EncoderConfig, PlanError, StepLimits, TensorInfo};

/// The device memory of one encoder: weights and workspace.
///
/// Keys and values live for one layer of one step, so they are a part of the workspace that each layer uses
/// again.
#[derive(Clone, Debug)]
pub struct EncoderPlan {
    config: EncoderConfig,
    limits: StepLimits,
    weights: PlannedWeights,
    /// What each of the weights is.
    roles: Vec<Role>,
    workspace: Workspace,
}

/// Where the inputs, activations and results of a step lie.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Workspace {
    /// u32 \[tokens].
    pub(crate) tokens: Area,
    /// u32 \[tokens].
    pub(crate) positions: Area,
    /// u32 \[tokens]: zeros, written once.
    pub(crate) token_types: Area,
    /// u32 \[sequences + 1].
    pub(crate) starts: Area,
    /// u32 \[sequences, blocks of the longest sequence].
    pub(crate) tables: Area,
    /// f32 \[tokens, hidden].
    pub(crate) states: Area,
    /// f32 \[tokens, hidden]: what the next normalisation adds to it.
    pub(crate) addend: Area,
    /// f32 \[tokens, hidden]: the states after attention.
    pub(crate) attended_states: Area,
    /// f32 \[tokens, hidden].
    pub(crate) q: Area,
    /// f32 \[tokens, hidden].
    pub(crate) k: Area,
    /// f32 \[tokens, hidden].
    pub(crate) v: Area,
    /// f32 \[tokens, hidden].
    pub(crate) attended: Area,
    /// The inputs of a linear layer as its products read them; undefined between launches.
    pub(crate) inputs: Area,
    /// f32 \[tokens, intermediate].
    pub(crate) intermediate: Area,
    /// The keys and values of one layer.
    pub(crate) kv: Area,
    /// f32 \[sequences, hidden].
    pub(crate) vectors: Area,
    len_bytes: usize,
}

impl EncoderPlan {
    /// Plans a model of the given tensors; tensors that the model does not need are left out.
    ///
    /// # Errors
    /// A tensor is missing or has the wrong shape, a limit is zero, or the sizes overflow.
    pub fn new<'a>(
        config: &EncoderConfig,
        tensors: impl IntoIterator<Item = &'a TensorInfo>,
        limits: StepLimits,
        precision: Precision,
    ) -> Result<Self, PlanError> {
        limits.check()?;
        let tensors: Vec<&TensorInfo> = tensors.into_iter().collect();
        let is_there = |name: &str| tensors.iter().any(|tensor| tensor.name == name);
        let required = required(config, &is_there);
        let resolved = resolve(required, tensors).map_err(PlanError::Tensors)?;
        let weights = PlannedWeights::new(&resolved, precision)?;
        let roles: Vec<Role> = resolved.into_iter().map(|(role, _)| role).collect();
        let workspace = Workspace::new(config, limits, &weights, &roles)?;
        Ok(Self {
            config: config.clone(),
            limits,
            weights,
            roles,
            workspace,
        })
    }

    /// The model's configuration.
    pub const fn config(&self) -> &EncoderConfig {
        &self.config
    }

    /// The largest step.
    pub const fn limits(&self) -> StepLimits {
        self.limits
    }

    /// The tensors, each with what it is.
    pub(crate) fn tensors_by_role(&self) -> impl Iterator<Item = (Role, &PlannedTensor)> {
        self.roles.iter().copied().zip(self.weights.tensors())
    }

    pub(crate) const fn workspace(&self) -> &Workspace {
        &self.workspace
    }
}

impl ModelPlan for EncoderPlan {
    type Model<B: Backend> = EncoderModel<B>;

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
    ) -> Result<EncoderModel<B>, DeviceError> {
        EncoderModel::new(backend, self, regions)
    }
}

impl Workspace {
    fn new(
        config: &EncoderConfig,
        limits: StepLimits,
        weights: &PlannedWeights,
        roles: &[Role],
    ) -> Result<Self, PlanError> {
        let StepLimits {
            batch_tokens_max: tokens,
            sequences_max: sequences,
        } = limits;
        let hidden = config.hidden;
        let mut areas = Areas::default();
        // For the loader, which looks for it at the start.
        areas.take_words(1, roles.len());
        let table_blocks = config.positions.min(tokens).div_ceil(BLOCK_TOKENS);
        // All but one block of each sequence are full.
        let blocks = (tokens / BLOCK_TOKENS).saturating_add(sequences.min(tokens));
        let mut workspace = Self {
            tokens: areas.take_words(1, tokens),
            positions: areas.take_words(1, tokens),
            token_types: areas.take_words(1, tokens),
            starts: areas.take_words(1, sequences.saturating_add(1)),
            tables: areas.take_words(sequences, table_blocks),
            states: areas.take_words(tokens, hidden),
            addend: areas.take_words(tokens, hidden),
            attended_states: areas.take_words(tokens, hidden),
            q: areas.take_words(tokens, hidden),
            k: areas.take_words(tokens, hidden),
            v: areas.take_words(tokens, hidden),
            attended: areas.take_words(tokens, hidden),
            inputs: areas.take_words(tokens, input_words_max(weights, roles)),
            intermediate: areas.take_words(tokens, config.intermediate),
            kv: areas.take_words(blocks, kv_layout(config).block_elements()),
            vectors: areas.take_words(sequences, hidden),
            len_bytes: 0,
        };
        workspace.len_bytes = areas.len_bytes()?;
        Ok(workspace)
    }
}

/// One layer at a time.
pub(super) const fn kv_layout(config: &EncoderConfig) -> KvLayout {
    KvLayout {
        layers: 1,
        kv_heads: config.heads,
        head_dim: config.head_dim(),
    }
}

/// The most words that the rounded inputs of a linear layer take for one token.
fn input_words_max(weights: &PlannedWeights, roles: &[Role]) -> usize {
    let words = weights
        .tensors()
        .iter()
        .zip(roles)
        .filter_map(|(tensor, role)| match tensor.placement {
            Placement::Matrix { format, columns, .. } if role.is_of_layer() && format.takes_pairs() => {
                Some(format.input_words(columns))
            }
            Placement::Matrix { .. } | Placement::Vector => None,
        });
    words.max().unwrap_or(0)
}
