//! The Llama family: one definition over any [`Backend`].

pub(crate) mod weights;

use crate::backend::{
    Attention, Backend, BatchView, DeviceError, KvLayer, Matrix, QkvPrep, RegionId, RmsNorm, Sample, Span,
    WORD_BYTES,
};
use crate::plan::{Area, PlannedTensor};
use crate::step::{PendingStep, SequenceOutput, Step, StepError, StepOutput};
use crate::{BLOCK_TOKENS, MemoryPlan, NO_TOKEN, PAGE_BYTES, Sampling};
use weights::{LayerRole, Role};

/// A loaded model: weights, workspace and KV blocks on a device. Dropping it gives all its memory back.
#[derive(Debug)]
pub struct LlamaModel<B: Backend> {
    backend: B,
    plan: MemoryPlan,
    weights: Weights,
    workspace: RegionId,
    kv: RegionId,
    kv_blocks: usize,
    /// Step inputs on their way to the device; kept so that a step does not allocate.
    staging: Vec<u32>,
}

#[derive(Debug)]
struct Weights {
    embedding: Matrix,
    layers: Vec<Layer>,
    norm: Matrix,
    head: Matrix,
}

#[derive(Clone, Copy, Debug)]
struct Layer {
    input_norm: Matrix,
    query: Matrix,
    key: Matrix,
    value: Matrix,
    output: Matrix,
    feed_forward_norm: Matrix,
    gate: Matrix,
    up: Matrix,
    down: Matrix,
}

impl<B: Backend> LlamaModel<B> {
    /// Takes over loaded weights and a workspace, and writes the constants.
    pub(crate) fn new(
        backend: B,
        plan: MemoryPlan,
        weights: RegionId,
        workspace: RegionId,
        kv: RegionId,
    ) -> Result<Self, DeviceError> {
        let frequencies = inverse_frequencies(plan.config().head_dim, plan.config().rope_theta);
        let weights = Weights::new(&plan, weights);
        let mut model = Self {
            backend,
            plan,
            weights,
            workspace,
            kv,
            kv_blocks: 0,
            staging: Vec::new(),
        };
        model.staging.extend(frequencies.map(f32::to_bits));
        model.upload_staging(model.plan.workspace().inverse_frequencies)?;
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
        if !step.sequences.is_empty() {
            self.launch(step)?;
        }
        let draws = step
            .sequences
            .iter()
            .map(|sequence| sequence.sample.is_some())
            .collect();
        Ok(PendingStep { model: self, draws })
    }

    /// Reads what the last step drew.
    pub(crate) fn drawn(&mut self, draws: &[bool]) -> Result<StepOutput, DeviceError> {
        let rows = draws.iter().filter(|draws| **draws).count();
        let mut tokens = vec![NO_TOKEN; rows];
        let source = self.span(self.plan.workspace().drawn).first_words(rows);
        self.backend
            .download(source, bytemuck::cast_slice_mut(&mut tokens))?;
        let mut tokens = tokens.into_iter();
        let sequences = draws
            .iter()
            .map(|draws| match draws.then(|| tokens.next()).flatten() {
                None => SequenceOutput::Read,
                Some(NO_TOKEN) => SequenceOutput::NonFiniteLogits,
                Some(token) => SequenceOutput::Token(token),
            })
            .collect();
        Ok(StepOutput { sequences })
    }

    /// Reads the logits of the last step.
    pub(crate) fn logits(&mut self, rows: usize) -> Result<Vec<Vec<f32>>, DeviceError> {
        let vocab_size = self.plan.config().vocab_size;
        let mut logits = vec![0f32; rows * vocab_size];
        let source = self
            .span(self.plan.workspace().logits)
            .first_words(rows * vocab_size);
        self.backend
            .download(source, bytemuck::cast_slice_mut(&mut logits))?;
        Ok(logits.chunks_exact(vocab_size).map(<[f32]>::to_vec).collect())
    }

    fn launch(&mut self, step: &Step<'_>) -> Result<(), DeviceError> {
        let tokens = step.sequences.iter().map(|sequence| sequence.tokens.len()).sum();
        let batch = self.upload_inputs(step)?;
        let workspace = *self.plan.workspace();
        let width = self.plan.config().hidden;
        let token_ids = self.span(workspace.tokens).first_words(tokens);
        let residual = self.span(workspace.residual).first_words(tokens * width);
        self.backend
            .embed_gather(self.weights.embedding, token_ids, residual)?;
        for layer in 0..self.weights.layers.len() {
            self.launch_attention(layer, tokens, batch)?;
            self.launch_feed_forward(layer, tokens)?;
        }
        let draws = step
            .sequences
            .iter()
            .filter(|sequence| sequence.sample.is_some())
            .count();
        if draws > 0 {
            self.launch_sampling(tokens, draws)
        } else {
            Ok(())
        }
    }

    fn launch_attention(&mut self, index: usize, tokens: usize, batch: BatchView) -> Result<(), DeviceError> {
        let layer = self.weights.layers[index];
        let workspace = *self.plan.workspace();
        let (width, query_width, kv_width, heads, epsilon) = {
            let config = self.plan.config();
            (
                config.hidden,
                config.query_width(),
                config.kv_width(),
                config.heads,
                config.rms_norm_epsilon,
            )
        };
        let rows = |area: Area, columns| area.in_region(self.workspace).first_words(tokens * columns);
        let (q, k, v) = (
            rows(workspace.q, query_width),
            rows(workspace.k, kv_width),
            rows(workspace.v, kv_width),
        );
        let (normed, addend) = (rows(workspace.normed, width), rows(workspace.addend, width));
        let (x, out) = (
            rows(workspace.residual, width),
            rows(workspace.attended, query_width),
        );
        let kv = KvLayer {
            blocks: self.kv_span(),
            layout: self.plan.kv_layout(),
            layer: index,
        };
        let inverse_frequencies = self.span(workspace.inverse_frequencies);
        // The layer before has left its result to be added here.
        let add = (index > 0).then_some(addend);
        self.backend.rms_norm(RmsNorm {
            x,
            add,
            weight: layer.input_norm,
            epsilon,
            out: normed,
        })?;
        self.backend.linear(layer.query, normed, q)?;
        self.backend.linear(layer.key, normed, k)?;
        self.backend.linear(layer.value, normed, v)?;
        self.backend.qkv_prep(QkvPrep {
            q,
            k,
            v,
            inverse_frequencies,
            batch,
            kv,
        })?;
        self.backend.attention(Attention {
            q,
            out,
            heads,
            batch,
            kv,
        })?;
        self.backend.linear(layer.output, out, addend)
    }

    fn launch_feed_forward(&mut self, index: usize, tokens: usize) -> Result<(), DeviceError> {
        let layer = self.weights.layers[index];
        let workspace = *self.plan.workspace();
        let config = self.plan.config();
        let (width, inner_width, epsilon) = (config.hidden, config.intermediate, config.rms_norm_epsilon);
        let rows = |area: Area, columns| area.in_region(self.workspace).first_words(tokens * columns);
        let (x, addend) = (rows(workspace.residual, width), rows(workspace.addend, width));
        let normed = rows(workspace.normed, width);
        let (gate, up) = (rows(workspace.gate, inner_width), rows(workspace.up, inner_width));
        let weight = layer.feed_forward_norm;
        self.backend.rms_norm(RmsNorm {
            x,
            add: Some(addend),
            weight,
            epsilon,
            out: normed,
        })?;
        self.backend.linear(layer.gate, normed, gate)?;
        self.backend.linear(layer.up, normed, up)?;
        self.backend.silu_mul(gate, up)?;
        self.backend.linear(layer.down, gate, addend)
    }

    /// Norm, output layer and draw, for the last row of each sequence that draws.
    fn launch_sampling(&mut self, tokens: usize, draws: usize) -> Result<(), DeviceError> {
        let workspace = *self.plan.workspace();
        let config = self.plan.config();
        let (width, vocab_size, epsilon) = (config.hidden, config.vocab_size, config.rms_norm_epsilon);
        let sampled_rows = self.span(workspace.sampled_rows).first_words(draws);
        let gathered = |area: Area| area.in_region(self.workspace).first_words(draws * width);
        let (x, addend) = (gathered(workspace.last_residual), gathered(workspace.last_addend));
        let out = gathered(workspace.last_normed);
        for (all, last) in [(workspace.residual, x), (workspace.addend, addend)] {
            self.backend
                .gather_rows(self.span(all).first_words(tokens * width), sampled_rows, last)?;
        }
        let weight = self.weights.norm;
        self.backend.rms_norm(RmsNorm {
            x,
            add: Some(addend),
            weight,
            epsilon,
            out,
        })?;
        let logits = self.span(workspace.logits).first_words(draws * vocab_size);
        self.backend.linear(self.weights.head, out, logits)?;
        self.backend.sample(Sample {
            logits,
            vocab_size,
            parameters: self
                .span(workspace.parameters)
                .first_words(draws * crate::PARAMETER_WORDS),
            scratch: self
                .span(workspace.sample_scratch)
                .first_words(draws * vocab_size),
            out: self.span(workspace.drawn).first_words(draws),
        })
    }

    fn upload_inputs(&mut self, step: &Step<'_>) -> Result<BatchView, DeviceError> {
        let workspace = *self.plan.workspace();
        let sequences = step.sequences;
        self.staging
            .extend(sequences.iter().flat_map(|sequence| sequence.tokens));
        self.upload_staging(workspace.tokens)?;

        let positions = |first: usize, count: usize| (first..first + count).map(index_u32);
        self.staging.extend(
            sequences
                .iter()
                .flat_map(|sequence| positions(sequence.position, sequence.tokens.len())),
        );
        let positions = self.upload_staging(workspace.positions)?;

        let ends = sequences.iter().scan(0, |end, sequence| {
            *end += sequence.tokens.len();
            Some(*end)
        });
        self.staging.push(0);
        self.staging.extend(ends.clone().map(index_u32));
        let starts = self.upload_staging(workspace.starts)?;

        let last_rows = sequences
            .iter()
            .zip(ends)
            .filter(|(sequence, _)| sequence.sample.is_some());
        self.staging.extend(last_rows.map(|(_, end)| index_u32(end - 1)));
        self.upload_staging(workspace.sampled_rows)?;

        let samplings = sequences.iter().filter_map(|sequence| sequence.sample.as_ref());
        self.staging.extend(samplings.flat_map(Sampling::to_words));
        self.upload_staging(workspace.parameters)?;

        let blocks = |tokens: &[u32], position: usize| (position + tokens.len()).div_ceil(BLOCK_TOKENS);
        let table_blocks = sequences
            .iter()
            .map(|s| blocks(s.tokens, s.position))
            .max()
            .unwrap_or(0);
        for sequence in sequences {
            let row = self.staging.len();
            let used = blocks(sequence.tokens, sequence.position);
            self.staging.extend_from_slice(&sequence.block_table[..used]);
            self.staging.resize(row + table_blocks, 0);
        }
        let tables = self.upload_staging(workspace.tables)?;
        Ok(BatchView {
            sequences: sequences.len(),
            positions,
            starts,
            tables,
            table_blocks,
        })
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
        let place = |role: Role| {
            let tensor = plan.tensors().iter().find(|tensor| tensor.role == role);
            tensor.map(|tensor| matrix(tensor, region))
        };
        let planned = |role| place(role).expect("a plan has every weight of its model");
        let embedding = planned(Role::Embedding);
        let layer = |index| {
            let planned = |role| planned(Role::Layer(index, role));
            Layer {
                input_norm: planned(LayerRole::InputNorm),
                query: planned(LayerRole::Query),
                key: planned(LayerRole::Key),
                value: planned(LayerRole::Value),
                output: planned(LayerRole::Output),
                feed_forward_norm: planned(LayerRole::FeedForwardNorm),
                gate: planned(LayerRole::Gate),
                up: planned(LayerRole::Up),
                down: planned(LayerRole::Down),
            }
        };
        Self {
            embedding,
            layers: (0..plan.config().layers).map(layer).collect(),
            norm: planned(Role::Norm),
            head: place(Role::Head).unwrap_or(embedding),
        }
    }
}

fn matrix(tensor: &PlannedTensor, region: RegionId) -> Matrix {
    let (rows, columns) = match tensor.info.shape.as_slice() {
        [rows, columns] => (*rows, *columns),
        [columns] => (1, *columns),
        shape => unreachable!("a Llama model has vectors and matrices only, not {shape:?}"),
    };
    Matrix {
        span: tensor.area.in_region(region),
        dtype: tensor.info.dtype,
        rows,
        columns,
    }
}

/// `theta^(-2i / head_dim)`, rounded as the reference implementation rounds it: angles are position times this.
#[expect(clippy::cast_precision_loss, reason = "head_dim is at most 2^20")]
fn inverse_frequencies(head_dim: usize, theta: f32) -> impl Iterator<Item = f32> {
    (0..head_dim / 2).map(move |pair| 1.0 / theta.powf((2 * pair) as f32 / head_dim as f32))
}

fn index_u32(index: usize) -> u32 {
    u32::try_from(index).expect("positions and batches were checked against limits below 2^32")
}
