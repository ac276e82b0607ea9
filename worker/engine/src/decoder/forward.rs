//! The launches of one step, in order.

use super::stage::{First, Last, Projection, Stage};
use crate::backend::{
    Attention, Backend, BatchView, DeviceError, EditLogits, EmbedGather, Gated, KvLayer, Linear, MaskLogits,
    Product, QkvPrep, RegionId, RmsNorm, Rotations, Sample, Span, Visible,
};
use crate::plan::{Area, EDITS_AT_ONCE, MASKS_AT_ONCE};
use crate::step::Step;
use crate::{EDIT_WORDS, LOGPROB_WORDS, LogitEdits, MemoryPlan, PARAMETER_WORDS, mask_words};

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

impl<B: Backend> Stage<B> {
    /// Runs its layers of a checked step. What the stage before has left in `passed` it takes from there, and puts
    /// there what it leaves for the one after it.
    pub(super) fn run(&mut self, step: &Step<'_>, passed: &mut Vec<u8>) -> Result<(), DeviceError> {
        // A step that was given up in its middle may have left something.
        self.staging.clear();
        if step.sequences.is_empty() {
            return Ok(());
        }
        let batch = self.upload_inputs(step)?;
        let tokens = step.sequences.iter().map(|sequence| sequence.tokens.len()).sum();
        let activations = Activations::new(&self.plan, self.workspace, tokens);
        match self.weights.first {
            Some(first) => self.launch_embeddings(first, tokens, &activations)?,
            None => self.take_passed(passed, &activations)?,
        }
        self.launch_rotations(tokens, batch.positions)?;
        for layer in 0..self.weights.layers.len() {
            let rope = self.plan.config().layers[self.plan.layers().start + layer].rope;
            let rotations = rope.map(|rope| self.rotations(rope, tokens));
            self.launch_attention(layer, &activations, batch, rotations)?;
            self.launch_feed_forward(layer, &activations)?;
        }
        match self.weights.last {
            Some(last) => self.launch_draws(last, step, &activations),
            None => self.pass_on(passed, &activations),
        }
    }

    fn launch_embeddings(
        &mut self,
        first: First,
        tokens: usize,
        activations: &Activations,
    ) -> Result<(), DeviceError> {
        self.backend.embed_gather(EmbedGather {
            table: first.embedding,
            tokens: self.span(self.plan.workspace().tokens).first_words(tokens),
            scale: first.scale,
            out: activations.residual,
        })
    }

    /// Takes the residual stream, and what is to be added to it, from the stage before.
    fn take_passed(&mut self, passed: &[u8], activations: &Activations) -> Result<(), DeviceError> {
        let (residual, addend) = passed.split_at(activations.residual.len_bytes);
        self.backend.upload(activations.residual, residual)?;
        self.backend.upload(activations.addend, addend)
    }

    /// Leaves them to the stage after it.
    fn pass_on(&mut self, passed: &mut Vec<u8>, activations: &Activations) -> Result<(), DeviceError> {
        let Activations { residual, addend, .. } = *activations;
        passed.clear();
        passed.resize(residual.len_bytes + addend.len_bytes, 0);
        let (residual_bytes, addend_bytes) = passed.split_at_mut(residual.len_bytes);
        self.backend.download(residual, residual_bytes)?;
        self.backend.download(addend, addend_bytes)
    }

    fn launch_rotations(&mut self, tokens: usize, positions: Span) -> Result<(), DeviceError> {
        for (index, rope) in self.plan.config().ropes.iter().enumerate() {
            let out = self.rotations(index, tokens);
            let inverse_frequencies = self.plan.workspace().ropes[index].inverse_frequencies;
            self.backend.rotations(Rotations {
                positions,
                inverse_frequencies: inverse_frequencies.in_region(self.workspace),
                attention_factor: rope.attention_factor(),
                out,
            })?;
        }
        Ok(())
    }

    /// By what the step's tokens turn, for one of the model's rotary embeddings.
    fn rotations(&self, rope: usize, tokens: usize) -> Span {
        let rotations = self.plan.workspace().ropes[rope].rotations;
        self.span(rotations)
            .first_words(tokens * self.plan.config().head_dim)
    }

    fn launch_attention(
        &mut self,
        index: usize,
        activations: &Activations,
        batch: BatchView,
        rotations: Option<Span>,
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
        let config = self.plan.config();
        let (heads, scale) = (config.heads, config.attention_scale);
        let visible = config.layers[self.plan.layers().start + index]
            .window
            .map_or(Visible::Causal, Visible::Window);
        let (norm_epsilon, norm_weight_offset) = (config.rms_norm_epsilon, config.norm_weight_offset);
        let kv = KvLayer {
            blocks: self.kv.span(),
            layout: self.plan.kv_layout(),
            layer: index,
        };
        // The layer before has left its result to be added here, be it of the stage before.
        let is_first = self.plan.is_first() && index == 0;
        let add = (!is_first).then_some(addend);
        self.norm(layer.input_norm, residual, add, normed)?;
        self.linear(normed, [(layer.query, q), (layer.key, k), (layer.value, v)])?;
        self.backend.qkv_prep(QkvPrep {
            q,
            k,
            v,
            q_norm: layer.query_norm,
            k_norm: layer.key_norm,
            norm_weight_offset,
            norm_epsilon,
            rotations,
            batch,
            kv,
        })?;
        self.backend.attention(Attention {
            q,
            out: attended,
            heads,
            scale,
            visible,
            batch,
            kv,
        })?;
        self.linear_to_addend(layer.output, layer.output_norm, attended, activations)
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
        let activation = self.plan.config().activation;
        self.norm(layer.feed_forward_norm, residual, Some(addend), normed)?;
        self.linear(normed, [(layer.gate, gate), (layer.up, up)])?;
        self.backend.gated(Gated { activation, gate, up })?;
        self.linear_to_addend(layer.down, layer.down_norm, gate, activations)
    }

    /// The end of half a layer: what the next normalisation adds to the residual stream.
    fn linear_to_addend(
        &mut self,
        projection: Projection,
        norm: Option<Span>,
        x: Span,
        activations: &Activations,
    ) -> Result<(), DeviceError> {
        let Activations { addend, normed, .. } = *activations;
        match norm {
            None => self.linear(x, [(projection, addend)]),
            Some(weight) => {
                // What was normed has been read by now.
                self.linear(x, [(projection, normed)])?;
                self.norm(weight, normed, None, addend)
            }
        }
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
            bias: projection.bias,
            out,
        });
        let is_alike = |a: &Product, b: &Product| a.weights.format == b.weights.format;
        let mut alike = products.chunk_by(is_alike);
        alike.try_for_each(|products| self.backend.linear(Linear { x, inputs, products }))
    }

    fn norm(&mut self, weight: Span, x: Span, add: Option<Span>, out: Span) -> Result<(), DeviceError> {
        let config = self.plan.config();
        self.backend.rms_norm(RmsNorm {
            x,
            add,
            weight,
            weight_offset: config.norm_weight_offset,
            epsilon: config.rms_norm_epsilon,
            out,
        })
    }

    /// Edits the logits of the sequences that draw, in parts of bounded size.
    fn launch_edits(&mut self, step: &Step<'_>, logits: Span) -> Result<(), DeviceError> {
        let drawing = step.sequences.iter().filter(|sequence| sequence.sample.is_some());
        for (row, sequence) in (0u32..).zip(drawing) {
            for edit in sequence.edits.into_iter().flat_map(LogitEdits::iter) {
                self.staging.extend(edit.to_words(row));
                if self.staging.len() == EDITS_AT_ONCE * EDIT_WORDS {
                    self.launch_staged_edits(logits)?;
                }
            }
        }
        self.launch_staged_edits(logits)
    }

    fn launch_staged_edits(&mut self, logits: Span) -> Result<(), DeviceError> {
        if self.staging.is_empty() {
            return Ok(());
        }
        let edits = self.upload_staging(self.plan.workspace().edits)?;
        self.backend.edit_logits(EditLogits {
            logits,
            vocab_size: self.plan.config().vocab_size,
            edits,
        })
    }

    /// Masks the logits of the sequences that draw and have a mask, in parts of bounded size. Waits for the masks
    /// that are still in the making.
    fn launch_masks(&mut self, step: &Step<'_>, logits: Span) -> Result<(), DeviceError> {
        let vocab_size = self.plan.config().vocab_size;
        let drawing = step.sequences.iter().filter(|sequence| sequence.sample.is_some());
        for (row, sequence) in (0u32..).zip(drawing) {
            let Some(mask) = sequence.mask else { continue };
            self.staging.extend(mask.wait().to_words(row, vocab_size));
            if self.staging.len() == MASKS_AT_ONCE * mask_words(vocab_size) {
                self.launch_staged_masks(logits)?;
            }
        }
        self.launch_staged_masks(logits)
    }

    fn launch_staged_masks(&mut self, logits: Span) -> Result<(), DeviceError> {
        if self.staging.is_empty() {
            return Ok(());
        }
        let masks = self.upload_staging(self.plan.workspace().masks)?;
        self.backend.mask_logits(MaskLogits {
            logits,
            vocab_size: self.plan.config().vocab_size,
            masks,
        })
    }

    /// Norm, output layer, edits, masks and draw, for the last row of each sequence that draws.
    fn launch_draws(
        &mut self,
        last: Last,
        step: &Step<'_>,
        activations: &Activations,
    ) -> Result<(), DeviceError> {
        let drawing = step.sequences.iter().filter(|sequence| sequence.sample.is_some());
        let draws = drawing.count();
        if draws == 0 {
            return Ok(());
        }
        let (workspace, config) = (*self.plan.workspace(), self.plan.config());
        let (width, vocab_size) = (config.hidden, config.vocab_size);
        let rows = |area: Area, columns: usize| area.in_region(self.workspace).first_words(draws * columns);
        let x = rows(workspace.last_residual, width);
        let addend = rows(workspace.last_addend, width);
        let normed = rows(workspace.last_normed, width);
        let logits = rows(workspace.logits, vocab_size);
        let sampled_rows = rows(workspace.sampled_rows, 1);
        let parameters = rows(workspace.parameters, PARAMETER_WORDS);
        let scratch = rows(workspace.sample_scratch, vocab_size);
        let out = rows(workspace.drawn, 1);
        let logprobs = rows(workspace.logprobs, LOGPROB_WORDS);
        self.backend.gather_rows(activations.residual, sampled_rows, x)?;
        self.backend
            .gather_rows(activations.addend, sampled_rows, addend)?;
        self.norm(last.norm, x, Some(addend), normed)?;
        let head = Projection {
            weights: last.head,
            bias: None,
        };
        self.linear(normed, [(head, logits)])?;
        self.launch_edits(step, logits)?;
        self.launch_masks(step, logits)?;
        self.backend.sample(Sample {
            logits,
            vocab_size,
            parameters,
            scratch,
            out,
            logprobs,
        })
    }
}
