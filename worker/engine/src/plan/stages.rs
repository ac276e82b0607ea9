//! A model in stages: which weights each has, and what it takes.

use std::ops::Range;

use super::workspace::Workspace;
use super::{MemoryPlan, PlanError, kv_layout};
use crate::ModelConfig;
use crate::backend::WORD_BYTES;
use crate::decoder::weights::Role;

/// What the stages of a model take, so that they can be counted before it is decided where they are cut. A stage of
/// `n` layers takes `n` times what one layer takes, and what comes with the first and the last where it has those.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StageSizes {
    /// How many layers the model has.
    pub layers: usize,
    /// Weights of the embeddings, which go with the first layer.
    pub first_bytes: usize,
    /// Weights of a layer, of the largest where they differ.
    pub layer_bytes: usize,
    /// Weights of norm and output layer, which go with the last layer.
    pub last_bytes: usize,
    /// Workspace of a stage that begins with the first layer and ends before the last.
    pub first_workspace_bytes: usize,
    /// Workspace of a stage without first and last layer.
    pub inner_workspace_bytes: usize,
    /// Workspace of a stage that ends with the last layer and begins after the first.
    pub last_workspace_bytes: usize,
    /// What one KV block of [`BLOCK_TOKENS`](crate::BLOCK_TOKENS) tokens takes for each layer.
    pub kv_layer_block_bytes: usize,
}

impl MemoryPlan {
    /// The plan of some of the model's layers, for a device that has no more of it.
    ///
    /// # Errors
    /// The sizes overflow.
    ///
    /// # Panics
    /// This is not the plan of a whole model, or it has no such layers.
    pub fn stage(&self, layers: Range<usize>) -> Result<Self, PlanError> {
        assert!(
            self.is_first() && self.is_last(),
            "a whole model is cut into stages"
        );
        assert!(
            !layers.is_empty() && layers.end <= self.layers.end,
            "a stage has layers of its model"
        );
        let scope = Scope::of(&layers, &self.config);
        let keeps = |role: Role| scope.keeps(role, &layers, self.config.tied_embeddings);
        let weights = self.weights.part(|index| keeps(self.roles[index]))?;
        let whole = (&self.weights, &self.roles[..]);
        Ok(Self {
            config: self.config.clone(),
            limits: self.limits,
            weights,
            roles: self.roles.iter().copied().filter(|role| keeps(*role)).collect(),
            workspace: Workspace::new(&self.config, self.limits, whole, scope)?,
            kv_layout: kv_layout(&self.config, layers.len()),
            layers,
        })
    }

    /// What stages of this model take; none when it has a single layer.
    ///
    /// # Panics
    /// This is not the plan of a whole model.
    pub fn stage_sizes(&self) -> Option<StageSizes> {
        assert!(
            self.is_first() && self.is_last(),
            "a whole model is cut into stages"
        );
        if self.layers.len() < 2 {
            return None;
        }
        let bytes_of = |keeps: &dyn Fn(Role) -> bool| {
            let part = self.weights.part(|index| keeps(self.roles[index]));
            part.expect("a part of a model is no larger than the model")
                .len_bytes()
        };
        let tied = self.config.tied_embeddings;
        let layer_bytes = |layer| bytes_of(&|role| matches!(role, Role::Layer(of, _) if of == layer));
        let workspace_bytes = |scope: Scope| {
            let whole = (&self.weights, &self.roles[..]);
            let workspace = Workspace::new(&self.config, self.limits, whole, scope);
            workspace
                .expect("a part of a workspace is no larger than all of it")
                .len_bytes
        };
        Some(StageSizes {
            layers: self.layers.len(),
            first_bytes: bytes_of(&|role| role == Role::Embedding),
            layer_bytes: self.layers().map(layer_bytes).max().unwrap_or(0),
            last_bytes: bytes_of(&|role| {
                matches!(role, Role::Norm | Role::Head) || tied && role == Role::Embedding
            }),
            first_workspace_bytes: workspace_bytes(Scope::FIRST),
            inner_workspace_bytes: workspace_bytes(Scope::INNER),
            last_workspace_bytes: workspace_bytes(Scope::LAST),
            kv_layer_block_bytes: kv_layout(&self.config, 1).block_elements() * WORD_BYTES,
        })
    }
}

/// Which ends of a model a stage has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Scope {
    pub(super) is_first: bool,
    pub(super) is_last: bool,
}

impl Scope {
    const FIRST: Self = Self {
        is_first: true,
        is_last: false,
    };
    const INNER: Self = Self {
        is_first: false,
        is_last: false,
    };
    const LAST: Self = Self {
        is_first: false,
        is_last: true,
    };

    pub(super) fn of(layers: &Range<usize>, config: &ModelConfig) -> Self {
        Self {
            is_first: layers.start == 0,
            is_last: layers.end == config.layers.len(),
        }
    }

    /// Whether a stage of these layers needs a weight. Of a tied model, the embeddings are the output layer as well.
    fn keeps(self, role: Role, layers: &Range<usize>, tied: bool) -> bool {
        match role {
            Role::Embedding => self.is_first || self.is_last && tied,
            Role::Layer(layer, _) => layers.contains(&layer),
            Role::Norm | Role::Head => self.is_last,
        }
    }
}
