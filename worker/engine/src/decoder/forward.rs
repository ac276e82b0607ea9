//! The launches of one step, in order.

use super::DecoderModel;
use crate::backend::{
    Attention, Backend, BatchView, DeviceError, KvLayer, QkvPrep, RegionId, RmsNorm, Sample, Span,
};
use crate::plan::Area;
use crate::step::Step;
use crate::{MemoryPlan, PARAMETER_WORDS};

/// The activations of a step, each as long as the step's tokens need.
#[derive(Clone, Copy)]
struct Activations {
    residual: Span,
    addend: Span,
    normed: Span,
    q: Span,
    k: Span,
    v: Span,
    attended: Span,
    gate: Span,
    up: Span,
}

impl Activations {
    fn new(plan: &MemoryPlan, region: RegionId, tokens: usize) -> Self {
        let (workspace, config) = (plan.workspace(), plan.config());
        let rows = |area: Area, columns: usize| area.in_region(region).first_words(tokens * columns);
        Self {
            residual: rows(workspace.residual, config.hidden),
            addend: rows(workspace.addend, config.hidden),
            normed: rows(workspace.normed, config.hidden),
            q: rows(workspace.q, config.query_width()),
            k: rows(workspace.k, config.kv_width()),
            v: rows(workspace.v, config.kv_width()),
            attended: rows(workspace.attended, config.query_width()),
            gate: rows(workspace.gate, config.intermediate),
            up: rows(workspace.up, config.intermediate),
        }
    }
}

impl<B: Backend> DecoderModel<B> {
    /// Launches a checked step of at least one sequence.
    pub(super) fn launch(&mut self, step: &Step<'_>) -> Result<(), DeviceError> {
        let batch = self.upload_inputs(step)?;
        let tokens = step.sequences.iter().map(|sequence| sequence.tokens.len()).sum();
        let draws = step
            .sequences
            .iter()
            .filter(|sequence| sequence.sample.is_some())
            .count();
        let activations = Activations::new(&self.plan, self.workspace, tokens);
        let token_ids = self.span(self.plan.workspace().tokens).first_words(tokens);
        self.backend
            .embed_gather(self.weights.embedding, token_ids, activations.residual)?;
        for layer in 0..self.weights.layers.len() {
            self.launch_attention(layer, &activations, batch)?;
            self.launch_feed_forward(layer, &activations)?;
        }
        if draws > 0 {
            self.launch_sampling(draws, &activations)
        } else {
            Ok(())
        }
    }

    fn launch_attention(
        &mut self,
        index: usize,
        activations: &Activations,
        batch: BatchView,
    ) -> Result<(), DeviceError> {
        let Activations {
            residual,
            addend,
            normed,
            q,
            k,
            v,
            attended,
            ..
        } = *activations;
        let layer = self.weights.layers[index];
        let (heads, epsilon) = (self.plan.config().heads, self.plan.config().rms_norm_epsilon);
        let kv = KvLayer {
            blocks: self.kv_span(),
            layout: self.plan.kv_layout(),
            layer: index,
        };
        let inverse_frequencies = self.span(self.plan.workspace().inverse_frequencies);
        // The layer before has left its result to be added here.
        let add = (index > 0).then_some(addend);
        let weight = layer.input_norm;
        self.backend.rms_norm(RmsNorm {
            x: residual,
            add,
            weight,
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
            out: attended,
            heads,
            batch,
            kv,
        })?;
        self.backend.linear(layer.output, attended, addend)
    }

    fn launch_feed_forward(&mut self, index: usize, activations: &Activations) -> Result<(), DeviceError> {
        let Activations {
            residual,
            addend,
            normed,
            gate,
            up,
            ..
        } = *activations;
        let layer = self.weights.layers[index];
        let epsilon = self.plan.config().rms_norm_epsilon;
        let weight = layer.feed_forward_norm;
        let add = Some(addend);
        self.backend.rms_norm(RmsNorm {
            x: residual,
            add,
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
    fn launch_sampling(&mut self, draws: usize, activations: &Activations) -> Result<(), DeviceError> {
        let (workspace, config) = (*self.plan.workspace(), self.plan.config());
        let (width, vocab_size, epsilon) = (config.hidden, config.vocab_size, config.rms_norm_epsilon);
        let rows = |area: Area, columns: usize| area.in_region(self.workspace).first_words(draws * columns);
        let x = rows(workspace.last_residual, width);
        let addend = rows(workspace.last_addend, width);
        let normed = rows(workspace.last_normed, width);
        let logits = rows(workspace.logits, vocab_size);
        let sampled_rows = rows(workspace.sampled_rows, 1);
        let parameters = rows(workspace.parameters, PARAMETER_WORDS);
        let scratch = rows(workspace.sample_scratch, vocab_size);
        let out = rows(workspace.drawn, 1);
        let weight = self.weights.norm;
        self.backend.gather_rows(activations.residual, sampled_rows, x)?;
        self.backend
            .gather_rows(activations.addend, sampled_rows, addend)?;
        self.backend.rms_norm(RmsNorm {
            x,
            add: Some(addend),
            weight,
            epsilon,
            out: normed,
        })?;
        self.backend.linear(self.weights.head, normed, logits)?;
        self.backend.sample(Sample {
            logits,
            vocab_size,
            parameters,
            scratch,
            out,
        })
    }
}
