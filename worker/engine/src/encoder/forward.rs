//! The launches of one step, in order.

use super::plan::kv_layout;
use super::{EncoderModel, Norm, Projection};
use crate::BLOCK_TOKENS;
use crate::backend::{
    Attention, Backend, BatchView, DeviceError, EmbedGather, KvLayer, LayerNorm, Linear, Matrix, Pool,
    Product, QkvPrep, Span, Visible,
};
use crate::plan::Area;

/// The activations of a step, each as long as the step's tokens need.
#[derive(Clone, Copy)]
struct Activations {
    states: Span,
    addend: Span,
    attended_states: Span,
    q: Span,
    k: Span,
    v: Span,
    attended: Span,
    intermediate: Span,
}

impl<B: Backend> EncoderModel<B> {
    /// Launches a checked step of at least one sequence.
    pub(super) fn launch(&mut self, sequences: &[&[u32]]) -> Result<(), DeviceError> {
        let batch = self.upload_inputs(sequences)?;
        let activations = self.activations();
        self.launch_embeddings(batch.positions, &activations)?;
        for layer in 0..self.weights.layers.len() {
            self.launch_attention(layer, &activations, batch)?;
            self.launch_feed_forward(layer, &activations)?;
        }
        let config = self.plan.config();
        let vectors = sequences.len() * config.hidden;
        self.backend.pool(Pool {
            x: activations.states,
            starts: batch.starts,
            pooling: config.pooling,
            scale: config.scale,
            out: self.span(self.plan.workspace().vectors).first_words(vectors),
        })
    }

    fn activations(&self) -> Activations {
        let (workspace, config) = (self.plan.workspace(), self.plan.config());
        let rows = |area: Area, columns| self.span(area).first_words(self.tokens * columns);
        Activations {
            states: rows(workspace.states, config.hidden),
            addend: rows(workspace.addend, config.hidden),
            attended_states: rows(workspace.attended_states, config.hidden),
            q: rows(workspace.q, config.hidden),
            k: rows(workspace.k, config.hidden),
            v: rows(workspace.v, config.hidden),
            attended: rows(workspace.attended, config.hidden),
            intermediate: rows(workspace.intermediate, config.intermediate),
        }
    }

    /// Uploads tokens and positions; each sequence gets the next blocks.
    fn upload_inputs(&mut self, sequences: &[&[u32]]) -> Result<BatchView, DeviceError> {
        let workspace = *self.plan.workspace();
        self.staging.extend(sequences.iter().copied().flatten());
        self.upload_staging(workspace.tokens)?;
        for sequence in sequences {
            self.staging.extend((0..sequence.len()).map(index_u32));
        }
        let positions = self.upload_staging(workspace.positions)?;
        let mut end = 0;
        self.staging.push(0);
        self.staging.extend(sequences.iter().map(|sequence| {
            end += sequence.len();
            index_u32(end)
        }));
        let starts = self.upload_staging(workspace.starts)?;
        let blocks = |sequence: &&[u32]| sequence.len().div_ceil(BLOCK_TOKENS);
        let table_blocks = sequences.iter().map(blocks).max().unwrap_or(0);
        let block_units = kv_layout(self.plan.config()).block_units();
        let mut next_block = 0;
        for sequence in sequences {
            let row = self.staging.len();
            let end = next_block + blocks(sequence);
            let starts = (next_block..end).map(|block| index_u32(block * block_units));
            self.staging.extend(starts);
            self.staging.resize(row + table_blocks, 0);
            next_block = end;
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

    /// The sum of what word, position and type of each token stand for, normalised.
    fn launch_embeddings(&mut self, positions: Span, activations: &Activations) -> Result<(), DeviceError> {
        let Activations {
            states,
            addend,
            attended_states,
            ..
        } = *activations;
        let workspace = *self.plan.workspace();
        let tokens = self.span(workspace.tokens).first_words(self.tokens);
        let token_types = self.span(workspace.token_types).first_words(self.tokens);
        self.embed(self.weights.word, tokens, attended_states)?;
        self.embed(self.weights.token_type, token_types, addend)?;
        self.backend.add(attended_states, addend)?;
        self.embed(self.weights.position, positions, addend)?;
        self.norm(self.weights.norm, attended_states, addend, states)
    }

    fn launch_attention(
        &mut self,
        index: usize,
        activations: &Activations,
        batch: BatchView,
    ) -> Result<(), DeviceError> {
        let Activations {
            states,
            addend,
            attended_states,
            q,
            k,
            v,
            attended,
            ..
        } = *activations;
        let layer = self.weights.layers[index];
        let config = self.plan.config();
        let (heads, norm_epsilon) = (config.heads, config.layer_norm_epsilon);
        let scale = attention_scale(config.head_dim());
        let kv = KvLayer {
            blocks: self.span(self.plan.workspace().kv),
            layout: kv_layout(config),
            layer: 0,
        };
        self.linear(states, [(layer.query, q), (layer.key, k), (layer.value, v)])?;
        self.backend.qkv_prep(QkvPrep {
            q,
            k,
            v,
            q_norm: None,
            k_norm: None,
            norm_weight_offset: 0.0,
            norm_epsilon,
            rotations: None,
            batch,
            kv,
        })?;
        self.backend.attention(Attention {
            q,
            out: attended,
            heads,
            scale,
            visible: Visible::All,
            batch,
            kv,
        })?;
        self.linear(attended, [(layer.attention_output, addend)])?;
        self.norm(layer.attention_norm, states, addend, attended_states)
    }

    fn launch_feed_forward(&mut self, index: usize, activations: &Activations) -> Result<(), DeviceError> {
        let Activations {
            states,
            addend,
            attended_states,
            intermediate,
            ..
        } = *activations;
        let layer = self.weights.layers[index];
        self.linear(attended_states, [(layer.intermediate, intermediate)])?;
        let activation = self.plan.config().activation;
        self.backend.activate(activation, intermediate)?;
        self.linear(intermediate, [(layer.output, addend)])?;
        self.norm(layer.output_norm, attended_states, addend, states)
    }

    fn embed(&mut self, table: Matrix, tokens: Span, out: Span) -> Result<(), DeviceError> {
        self.backend.embed_gather(EmbedGather {
            table,
            tokens,
            scale: 1.0,
            out,
        })
    }

    /// Multiplies `x` with some weights: as one operation where they are kept alike, as nearly always.
    fn linear<const PRODUCTS: usize>(
        &mut self,
        x: Span,
        projections: [(Projection, Span); PRODUCTS],
    ) -> Result<(), DeviceError> {
        let inputs = self.span(self.plan.workspace().inputs);
        let products = projections.map(|(projection, out)| Product {
            weights: projection.weights,
            bias: Some(projection.bias),
            out,
        });
        let is_alike = |a: &Product, b: &Product| a.weights.format == b.weights.format;
        let mut alike = products.chunk_by(is_alike);
        alike.try_for_each(|products| self.backend.linear(Linear { x, inputs, products }))
    }

    fn norm(&mut self, norm: Norm, x: Span, add: Span, out: Span) -> Result<(), DeviceError> {
        self.backend.layer_norm(LayerNorm {
            x,
            add,
            weight: norm.weight,
            bias: norm.bias,
            epsilon: self.plan.config().layer_norm_epsilon,
            out,
        })
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    reason = "head_dim is at most 2^20, and the root of an f32's range is within it"
)]
fn attention_scale(head_dim: usize) -> f32 {
    (1.0 / (head_dim as f64).sqrt()) as f32
}

fn index_u32(index: usize) -> u32 {
    u32::try_from(index).expect("positions and batches were checked against limits below 2^32")
}
