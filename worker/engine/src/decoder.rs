//! Decoders of the Llama kind: one definition over any [`Backend`].

mod forward;
mod inputs;
mod results;
pub(crate) mod weights;

use std::collections::HashMap;

use crate::backend::{Backend, DeviceError, Matrix, RegionId, Span, WORD_BYTES};
use crate::plan::{Area, ModelRegions, PlannedTensor};
use crate::step::{PendingStep, Step, StepError};
use crate::{MemoryPlan, PAGE_BYTES};
use results::Results;
use weights::{LayerNorm, LayerRole, Linear, Role};

/// A loaded model: weights, workspace and KV blocks on a device. Dropping it gives all its memory back.
#[derive(Debug)]
pub struct DecoderModel<B: Backend> {
    backend: B,
    plan: MemoryPlan,
    weights: Weights,
    workspace: RegionId,
    kv: RegionId,
    kv_blocks: usize,
    /// What embeddings are multiplied by, in the precision that they are stored in.
    embedding_scale: f32,
    /// Step inputs on their way to the device; kept so that a step does not allocate.
    staging: Vec<u32>,
    results: Results,
}

#[derive(Debug)]
struct Weights {
    embedding: Matrix,
    layers: Vec<Layer>,
    norm: Span,
    head: Matrix,
}

#[derive(Clone, Copy, Debug)]
struct Layer {
    input_norm: Span,
    query: Projection,
    key: Projection,
    value: Projection,
    query_norm: Option<Span>,
    key_norm: Option<Span>,
    output: Projection,
    output_norm: Option<Span>,
    feed_forward_norm: Span,
    gate: Projection,
    up: Projection,
    down: Projection,
    down_norm: Option<Span>,
}

/// The weights of a linear layer.
#[derive(Clone, Copy, Debug)]
struct Projection {
    weights: Matrix,
    bias: Option<Span>,
}

impl<B: Backend> DecoderModel<B> {
    /// Takes over loaded weights and a workspace, and writes the constants.
    pub(crate) fn new(backend: B, plan: MemoryPlan, regions: ModelRegions) -> Result<Self, DeviceError> {
        let weights = Weights::new(&plan, regions.weights);
        let embedding = plan.tensors_by_role().find(|(role, _)| *role == Role::Embedding);
        let stored = embedding.expect(PLANNED).1.info.dtype;
        let embedding_scale = stored.round(plan.config().embedding_scale);
        let staging = Vec::with_capacity(plan.staging_words_max());
        let results = Results::new(plan.limits());
        let mut model = Self {
            backend,
            plan,
            weights,
            workspace: regions.workspace,
            kv: regions.kv,
            kv_blocks: 0,
            embedding_scale,
            staging,
            results,
        };
        for (index, rope) in model.plan.config().ropes.clone().into_iter().enumerate() {
            let frequencies = rope.inverse_frequencies(model.plan.config().head_dim);
            model.staging.extend(frequencies.into_iter().map(f32::to_bits));
            model.upload_staging(model.plan.workspace().ropes[index].inverse_frequencies)?;
        }
        Ok(model)
    }

    /// The model's memory plan, with its configuration and limits.
    pub const fn plan(&self) -> &MemoryPlan {
        &self.plan
    }

    /// How many KV blocks have memory.
    pub const fn kv_blocks(&self) -> usize {
        self.kv_blocks
    }

    /// Grows or shrinks the KV blocks to ids `0..blocks`; what remains keeps its contents.
    ///
    /// # Errors
    /// The device has not the memory, or `blocks` exceeds what was reserved at loading; nothing has changed.
    pub fn set_kv_blocks(&mut self, blocks: usize) -> Result<(), DeviceError> {
        let mapped = self.backend.mapped_pages(self.kv);
        let pages = self.plan.kv_pages(blocks).unwrap_or(usize::MAX);
        if pages > mapped {
            self.backend.map_pages(self.kv, pages - mapped)?;
        } else {
            self.backend.unmap_pages(self.kv, mapped - pages)?;
        }
        self.kv_blocks = blocks;
        Ok(())
    }

    /// Copies the contents of KV block `from` to block `to`, so that a sequence can fork within a block.
    ///
    /// # Errors
    /// The device failed.
    ///
    /// # Panics
    /// A block has no memory, or both are one.
    pub fn copy_kv_block(&mut self, from: u32, to: u32) -> Result<(), DeviceError> {
        let (source, target) = (self.kv_block(from), self.kv_block(to));
        self.backend.copy(source, target)
    }

    /// Checks a step and launches it.
    ///
    /// # Errors
    /// The step breaks a limit or names tokens, positions or blocks that do not exist: nothing was launched.
    /// Or the device failed.
    pub fn submit(&mut self, step: &Step<'_>) -> Result<PendingStep<'_, B>, StepError> {
        step.check(&self.plan, self.kv_blocks)?;
        // A step that was given up in its middle may have left something.
        self.staging.clear();
        self.results.expect(step);
        if !step.sequences.is_empty() {
            self.launch(step)?;
        }
        Ok(PendingStep { model: self })
    }

    /// Uploads what was staged to the start of an area and empties the staging.
    fn upload_staging(&mut self, area: Area) -> Result<Span, DeviceError> {
        let target = self.span(area).first_words(self.staging.len());
        let uploaded = self.backend.upload(target, bytemuck::cast_slice(&self.staging));
        self.staging.clear();
        uploaded.map(|()| target)
    }

    fn span(&self, area: Area) -> Span {
        area.in_region(self.workspace)
    }

    fn kv_span(&self) -> Span {
        let len_bytes = self.kv_blocks * self.plan.kv_block_bytes();
        assert!(
            len_bytes <= self.backend.mapped_pages(self.kv) * PAGE_BYTES,
            "blocks have memory"
        );
        Span {
            region: self.kv,
            offset_bytes: 0,
            len_bytes,
        }
    }

    fn kv_block(&self, block: u32) -> Span {
        let words = self.plan.kv_block_bytes() / WORD_BYTES;
        self.kv_span().words(block as usize * words, words)
    }
}

impl Weights {
    fn new(plan: &MemoryPlan, region: RegionId) -> Self {
        let by_role: HashMap<Role, &PlannedTensor> = plan.tensors_by_role().collect();
        let matrix = |role| by_role.get(&role).map(|tensor| tensor.matrix(region));
        let vector = |role| by_role.get(&role).map(|tensor| tensor.area.in_region(region));
        let embedding = matrix(Role::Embedding).expect(PLANNED);
        Self {
            embedding,
            layers: (0..plan.config().layers.len())
                .map(|index| {
                    let layer = |role| Role::Layer(index, role);
                    Layer::new(|role| matrix(layer(role)), |role| vector(layer(role)))
                })
                .collect(),
            norm: vector(Role::Norm).expect(PLANNED),
            head: matrix(Role::Head).unwrap_or(embedding),
        }
    }
}

impl Layer {
    fn new(matrix: impl Fn(LayerRole) -> Option<Matrix>, vector: impl Fn(LayerRole) -> Option<Span>) -> Self {
        let norm = |norm| vector(LayerRole::Norm(norm));
        let projection = |linear| Projection {
            weights: matrix(LayerRole::Weights(linear)).expect(PLANNED),
            bias: vector(LayerRole::Bias(linear)),
        };
        Self {
            input_norm: norm(LayerNorm::Input).expect(PLANNED),
            query: projection(Linear::Query),
            key: projection(Linear::Key),
            value: projection(Linear::Value),
            query_norm: norm(LayerNorm::Query),
            key_norm: norm(LayerNorm::Key),
            output: projection(Linear::Output),
            output_norm: norm(LayerNorm::AttentionOutput),
            feed_forward_norm: norm(LayerNorm::FeedForward).expect(PLANNED),
            gate: projection(Linear::Gate),
            up: projection(Linear::Up),
            down: projection(Linear::Down),
            down_norm: norm(LayerNorm::FeedForwardOutput),
        }
    }
}

const PLANNED: &str = "a plan has every weight that each model needs";
