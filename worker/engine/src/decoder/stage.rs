//! Layers of a decoder that lie on one device, with what belongs to them.

use std::collections::HashMap;

use super::kv::KvMemory;
use super::results::Results;
use super::weights::{LayerNorm, LayerRole, Linear, Role};
use crate::MemoryPlan;
use crate::backend::{Backend, DeviceError, KV_UNIT_BYTES, Matrix, RegionId, Span};
use crate::plan::{Area, ModelRegions, PlannedTensor};

/// Some layers of a model that follow each other, on one device.
#[derive(Debug)]
pub(crate) struct Stage<B: Backend> {
    pub(super) backend: B,
    pub(super) plan: MemoryPlan,
    pub(super) weights: Weights,
    pub(super) workspace: RegionId,
    pub(super) kv: KvMemory,
    /// Step inputs on their way to the device; kept so that a step does not allocate.
    pub(super) staging: Vec<u32>,
    pub(super) results: Results,
}

#[derive(Debug)]
pub(super) struct Weights {
    region: RegionId,
    pub(super) first: Option<First>,
    pub(super) layers: Vec<Layer>,
    pub(super) last: Option<Last>,
}

/// What comes before all layers.
#[derive(Clone, Copy, Debug)]
pub(super) struct First {
    pub(super) embedding: Matrix,
    /// What embeddings are multiplied by, in the precision that they are stored in.
    pub(super) scale: f32,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Layer {
    pub(super) input_norm: Span,
    pub(super) query: Projection,
    pub(super) key: Projection,
    pub(super) value: Projection,
    pub(super) query_norm: Option<Span>,
    pub(super) key_norm: Option<Span>,
    pub(super) output: Projection,
    pub(super) output_norm: Option<Span>,
    pub(super) feed_forward_norm: Span,
    pub(super) gate: Projection,
    pub(super) up: Projection,
    pub(super) down: Projection,
    pub(super) down_norm: Option<Span>,
}

/// What comes after all layers.
#[derive(Clone, Copy, Debug)]
pub(super) struct Last {
    pub(super) norm: Span,
    pub(super) head: Matrix,
}

/// The weights of a linear layer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Projection {
    pub(super) weights: Matrix,
    pub(super) bias: Option<Span>,
}

impl<B: Backend> Stage<B> {
    /// Takes over loaded weights and a workspace, and writes the constants.
    pub(super) fn new(backend: B, plan: MemoryPlan, regions: ModelRegions) -> Result<Self, DeviceError> {
        let weights = Weights::new(&plan, regions.weights);
        let staging = Vec::with_capacity(plan.staging_words_max());
        let results = Results::new(plan.limits());
        let kv = KvMemory::new(regions.kv, regions.kv_space, plan.kv_layout());
        let mut stage = Self {
            backend,
            plan,
            weights,
            workspace: regions.workspace,
            kv,
            staging,
            results,
        };
        for (index, rope) in stage.plan.config().ropes.clone().into_iter().enumerate() {
            let frequencies = rope.inverse_frequencies(stage.plan.config().head_dim);
            stage.staging.extend(frequencies.into_iter().map(f32::to_bits));
            stage.upload_staging(stage.plan.workspace().ropes[index].inverse_frequencies)?;
        }
        Ok(stage)
    }

    /// Takes the weights off the device and gives all other memory back.
    pub(super) fn into_image(mut self) -> Result<B::Image, DeviceError> {
        self.backend.take_out(self.weights.region)
    }

    pub(super) fn plan(&self) -> &MemoryPlan {
        &self.plan
    }

    pub(super) fn kv(&self) -> &KvMemory {
        &self.kv
    }

    /// The most bytes that it passes on, or takes, in a step.
    pub(super) fn passed_bytes_max(&self) -> usize {
        let workspace = self.plan.workspace();
        workspace.residual.len_bytes + workspace.addend.len_bytes
    }

    /// Puts memory behind a slab of KV blocks, or changes nothing.
    pub(super) fn map_kv_slab(&mut self, slab: usize) -> Result<(), DeviceError> {
        self.backend.map_pages(self.kv.region(), self.kv.pages(slab))?;
        self.kv.set_mapped(slab, true);
        Ok(())
    }

    /// Takes the memory behind a slab of KV blocks away, or changes nothing.
    pub(super) fn unmap_kv_slab(&mut self, slab: usize) -> Result<(), DeviceError> {
        self.backend.unmap_pages(self.kv.region(), self.kv.pages(slab))?;
        self.kv.set_mapped(slab, false);
        Ok(())
    }

    pub(super) fn copy_kv_block(&mut self, from: u32, to: u32) -> Result<(), DeviceError> {
        let (source, target) = (self.kv_block(from), self.kv_block(to));
        self.backend.copy(source, target)
    }

    /// Uploads what was staged to the start of an area and empties the staging.
    pub(super) fn upload_staging(&mut self, area: Area) -> Result<Span, DeviceError> {
        let target = self.span(area).first_words(self.staging.len());
        let uploaded = self.backend.upload(target, bytemuck::cast_slice(&self.staging));
        self.staging.clear();
        uploaded.map(|()| target)
    }

    pub(super) fn span(&self, area: Area) -> Span {
        area.in_region(self.workspace)
    }

    fn kv_block(&self, block: u32) -> Span {
        let start = self.kv.start(block).expect("the block has memory");
        Span {
            region: self.kv.region(),
            offset_bytes: start as usize * KV_UNIT_BYTES,
            len_bytes: self.plan.kv_block_bytes(),
        }
    }
}

impl Weights {
    fn new(plan: &MemoryPlan, region: RegionId) -> Self {
        let by_role: HashMap<Role, &PlannedTensor> = plan.tensors_by_role().collect();
        let matrix = |role| by_role.get(&role).map(|tensor| tensor.matrix(region));
        let vector = |role| by_role.get(&role).map(|tensor| tensor.area.in_region(region));
        let embedding = matrix(Role::Embedding);
        let first = plan.is_first().then(|| First {
            embedding: embedding.expect(PLANNED),
            scale: {
                let stored = by_role[&Role::Embedding].info.dtype;
                stored.round(plan.config().embedding_scale)
            },
        });
        let last = plan.is_last().then(|| Last {
            norm: vector(Role::Norm).expect(PLANNED),
            head: matrix(Role::Head).or(embedding).expect(PLANNED),
        });
        Self {
            region,
            first,
            layers: plan
                .layers()
                .map(|index| {
                    let layer = |role| Role::Layer(index, role);
                    Layer::new(|role| matrix(layer(role)), |role| vector(layer(role)))
                })
                .collect(),
            last,
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

const PLANNED: &str = "a plan has every weight that its layers need";
