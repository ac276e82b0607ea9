//! The CPU as a device: operations run in the caller's thread, one after the other.
//!
//! Every sum is taken in a fixed order that depends on the vectors alone, never on what else is in the batch,
//! so a token's logits are bit-identical alone, in any batch, whole or in chunks.

mod attention;
mod dot;
mod elementwise;
mod linear;
mod memory;
mod norm;
mod qkv;
mod sample;

use half::{bf16, f16};

use crate::backend::{
    Attention, Backend, DeviceError, EditLogits, EmbedGather, Gated, Linear, Matrix, NO_ELEMENT, QkvPrep,
    RegionId, RmsNorm, Rotations, Sample, Span, WORD_BYTES,
};
use crate::{Dtype, LOGPROB_WORDS, LogitEdit, PARAMETER_WORDS, Sampling};
use memory::Memory;

/// One model's place on the CPU.
#[derive(Debug, Default)]
pub struct CpuBackend {
    memory: Memory,
}

impl CpuBackend {
    /// A place without memory.
    pub fn new() -> Self {
        Self::default()
    }
}

impl Backend for CpuBackend {
    fn reserve(&mut self, len_bytes: usize) -> Result<RegionId, DeviceError> {
        self.memory.reserve(len_bytes)
    }

    fn map_pages(&mut self, region: RegionId, pages: usize) -> Result<(), DeviceError> {
        self.memory.map_pages(region, pages)
    }

    fn unmap_pages(&mut self, region: RegionId, pages: usize) -> Result<(), DeviceError> {
        self.memory.unmap_pages(region, pages)
    }

    fn mapped_pages(&self, region: RegionId) -> usize {
        self.memory.mapped_pages(region)
    }

    fn upload(&mut self, target: Span, bytes: &[u8]) -> Result<(), DeviceError> {
        let ([], target) = self.memory.borrow([], target);
        target.copy_from_slice(bytes);
        Ok(())
    }

    fn download(&mut self, source: Span, into: &mut [u8]) -> Result<(), DeviceError> {
        into.copy_from_slice(self.memory.read(source));
        Ok(())
    }

    fn synchronize(&mut self) -> Result<(), DeviceError> {
        Ok(())
    }

    fn copy(&mut self, source: Span, target: Span) -> Result<(), DeviceError> {
        let ([source], target) = self.memory.borrow([source], target);
        target.copy_from_slice(source);
        Ok(())
    }

    fn first_non_finite(&mut self, weights: Matrix, out: Span) -> Result<(), DeviceError> {
        let ([bytes], out) = self.memory.borrow([weights.span], out);
        let found = match weights.dtype {
            Dtype::F32 => elementwise::first_non_finite::<f32>(cast(bytes)),
            Dtype::F16 => elementwise::first_non_finite::<f16>(cast(bytes)),
            Dtype::Bf16 => elementwise::first_non_finite::<bf16>(cast(bytes)),
        };
        // An element beyond u32 is told as the last index that can be told.
        let found = found.map_or(NO_ELEMENT, |index| u32::try_from(index).unwrap_or(NO_ELEMENT - 1));
        cast_mut(out)[0] = found;
        Ok(())
    }

    fn embed_gather(&mut self, operation: EmbedGather) -> Result<(), DeviceError> {
        let EmbedGather {
            table,
            tokens,
            scale,
            out,
        } = operation;
        let ([weights, tokens], out) = self.memory.borrow([table.span, tokens], out);
        let (tokens, out) = (cast(tokens), cast_mut(out));
        match table.dtype {
            Dtype::F32 => elementwise::gather_widened::<f32>(cast(weights), tokens, out, table.columns),
            Dtype::F16 => elementwise::gather_widened::<f16>(cast(weights), tokens, out, table.columns),
            Dtype::Bf16 => elementwise::gather_widened::<bf16>(cast(weights), tokens, out, table.columns),
        }
        if scale != 1.0 {
            elementwise::scale(out, scale);
        }
        Ok(())
    }

    fn rms_norm(&mut self, operation: RmsNorm) -> Result<(), DeviceError> {
        if let Some(add) = operation.add {
            let ([add], x) = self.memory.borrow([add], operation.x);
            elementwise::add(cast_mut(x), cast(add));
        }
        let reads = [floats(operation.weight), operation.x];
        let ([weights, x], out) = self.memory.borrow(reads, operation.out);
        let scales = norm::Scales {
            weights: cast(weights),
            offset: operation.weight_offset,
            epsilon: operation.epsilon,
        };
        norm::rms_norm(scales, cast(x), cast_mut(out));
        Ok(())
    }

    fn linear(&mut self, operation: Linear) -> Result<(), DeviceError> {
        let Linear {
            weights,
            bias,
            x,
            out,
        } = operation;
        let ([bytes, x], rows) = self.memory.borrow([weights.span, x], out);
        let (x, rows) = (cast(x), cast_mut(rows));
        let shape = linear::Shape {
            inputs: weights.columns,
            outputs: weights.rows,
        };
        match weights.dtype {
            Dtype::F32 => linear::linear::<f32>(cast(bytes), shape, x, rows),
            Dtype::F16 => linear::linear::<f16>(cast(bytes), shape, x, rows),
            Dtype::Bf16 => linear::linear::<bf16>(cast(bytes), shape, x, rows),
        }
        if let Some(bias) = bias {
            let ([bias], rows) = self.memory.borrow([floats(bias)], out);
            elementwise::add_to_rows(cast_mut(rows), cast(bias));
        }
        Ok(())
    }

    fn rotations(&mut self, operation: Rotations) -> Result<(), DeviceError> {
        let reads = [operation.positions, operation.inverse_frequencies];
        let ([positions, frequencies], out) = self.memory.borrow(reads, operation.out);
        let factor = operation.attention_factor;
        qkv::rotations(cast(positions), cast(frequencies), factor, cast_mut(out));
        Ok(())
    }

    fn qkv_prep(&mut self, operation: QkvPrep) -> Result<(), DeviceError> {
        let QkvPrep {
            q, k, v, batch, kv, ..
        } = operation;
        for (x, norm) in [(q, operation.q_norm), (k, operation.k_norm)] {
            if let Some(norm) = norm {
                let ([weights], x) = self.memory.borrow([floats(norm)], x);
                let scales = norm::Scales {
                    weights: cast(weights),
                    offset: operation.norm_weight_offset,
                    epsilon: operation.norm_epsilon,
                };
                norm::rms_norm_in_place(scales, cast_mut(x));
            }
            if let Some(rotations) = operation.rotations {
                let ([rotations], x) = self.memory.borrow([rotations], x);
                qkv::rotate(cast_mut(x), cast(rotations), kv.layout.head_dim);
            }
        }
        let reads = [k, v, batch.positions, batch.starts, batch.tables];
        let ([k, v, positions, starts, tables], blocks) = self.memory.borrow(reads, kv.blocks);
        let rows = qkv::TokenRows::new(cast(positions), cast(starts), cast(tables), &batch);
        qkv::write_blocks(cast(k), cast(v), rows, cast_mut(blocks), &kv);
        Ok(())
    }

    fn attention(&mut self, operation: Attention) -> Result<(), DeviceError> {
        let Attention {
            q,
            out,
            heads,
            scale,
            window,
            batch,
            kv,
        } = operation;
        let reads = [q, kv.blocks, batch.positions, batch.starts, batch.tables];
        let ([q, blocks, positions, starts, tables], out) = self.memory.borrow(reads, out);
        let rows = qkv::TokenRows::new(cast(positions), cast(starts), cast(tables), &batch);
        let layer = attention::Layer {
            blocks: cast(blocks),
            kv: &kv,
            scale,
            window,
        };
        attention::attention(cast(q), heads, rows, layer, cast_mut(out));
        Ok(())
    }

    fn gated(&mut self, operation: Gated) -> Result<(), DeviceError> {
        let ([up], gate) = self.memory.borrow([operation.up], operation.gate);
        elementwise::gated(operation.activation, cast_mut(gate), cast(up));
        Ok(())
    }

    fn gather_rows(&mut self, x: Span, rows: Span, out: Span) -> Result<(), DeviceError> {
        let columns = out.len_bytes / rows.len_bytes.max(1);
        let ([x, rows], out) = self.memory.borrow([x, rows], out);
        elementwise::gather_widened::<f32>(cast(x), cast(rows), cast_mut(out), columns);
        Ok(())
    }

    fn edit_logits(&mut self, operation: EditLogits) -> Result<(), DeviceError> {
        let ([edits], logits) = self.memory.borrow([operation.edits], operation.logits);
        let (edits, []) = cast(edits).as_chunks() else {
            panic!("edits are whole");
        };
        for words in edits {
            let (row, edit) = LogitEdit::from_words(words);
            sample::edit(cast_mut(logits), operation.vocab_size, row, &edit);
        }
        Ok(())
    }

    fn sample(&mut self, operation: Sample) -> Result<(), DeviceError> {
        let Sample {
            logits,
            vocab_size,
            parameters,
            scratch,
            out,
            logprobs,
        } = operation;
        for row in 0..out.len_bytes / WORD_BYTES {
            let logits = logits.words(row * vocab_size, vocab_size);
            let parameters = parameters.words(row * PARAMETER_WORDS, PARAMETER_WORDS);
            let reads = [logits, parameters];
            let ([values, parameters], candidates) = self.memory.borrow(reads, scratch.words(0, vocab_size));
            let words = cast(parameters)
                .first_chunk()
                .expect("the span has this many words");
            let sampling = Sampling::from_words(words);
            let token = sample::draw(cast(values), &sampling, cast_mut(candidates));
            let ([], out) = self.memory.borrow([], out.words(row, 1));
            cast_mut(out)[0] = token;
            if let Some(count) = sampling.logprobs {
                let written = logprobs.words(row * LOGPROB_WORDS, LOGPROB_WORDS);
                let ([values], written) = self.memory.borrow([logits], written);
                let written = cast_mut(written)
                    .first_chunk_mut()
                    .expect("the span has this many words");
                sample::write_logprobs(cast(values), token, count.into(), written);
            }
        }
        Ok(())
    }
}

/// Where a vector that was widened when it was loaded lies.
fn floats(vector: Matrix) -> Span {
    assert_eq!(
        vector.dtype,
        Dtype::F32,
        "norms and biases are f32 in device memory"
    );
    vector.span
}

fn cast<T: bytemuck::AnyBitPattern>(bytes: &[u8]) -> &[T] {
    bytemuck::cast_slice(bytes)
}

fn cast_mut<T: bytemuck::Pod>(bytes: &mut [u8]) -> &mut [T] {
    bytemuck::cast_slice_mut(bytes)
}
