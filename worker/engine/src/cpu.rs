//! The CPU as a device: operations run one after the other, each on the caller's thread and those that help it.
//!
//! Every sum is taken in a fixed order that depends on the vectors alone, never on what else is in the batch,
//! so a token's logits are bit-identical alone, in any batch, whole or in chunks.

mod attention;
mod disjoint;
mod elementwise;
mod layer_norm;
mod linear;
mod math;
mod memory;
mod norm;
mod panels;
mod pool;
mod qkv;
mod rounding;
mod sample;
mod simd;
mod threads;

use std::ops::Range;
use std::sync::Arc;

use crate::backend::{
    Activation, Attention, Backend, DeviceError, EditLogits, EmbedGather, Gated, LayerNorm, Linear,
    MaskLogits, PRODUCTS_MAX, PlaceRows, Pool, Product, QkvPrep, RegionId, RmsNorm, Rotations, Sample, Span,
    WORD_BYTES,
};
use crate::tensor::PANEL_ROWS;
use crate::{LOGPROB_WORDS, LogitEdit, PARAMETER_WORDS, Sampling, mask_words};
use memory::Memory;
use norm::RowNorm;

pub use memory::CpuImage;
pub use simd::Level;
pub use threads::CpuThreads;

/// One model's place on the CPU.
#[derive(Debug)]
pub struct CpuBackend {
    memory: Memory,
    threads: Arc<CpuThreads>,
    level: Level,
}

impl CpuBackend {
    /// A place without memory, whose operations run on these threads at the processor's best level.
    pub fn new(threads: Arc<CpuThreads>) -> Self {
        Self::at_level(threads, Level::best())
    }

    /// The same at another level: slower, with the same results.
    pub fn at_level(threads: Arc<CpuThreads>, level: Level) -> Self {
        Self {
            memory: Memory::default(),
            threads,
            level,
        }
    }

    fn head_prep(&mut self, operation: &QkvPrep, x: Span, norm: Option<Span>) {
        let tokens = operation.batch.positions.len_bytes / WORD_BYTES;
        let none = Span { len_bytes: 0, ..x };
        let reads = [norm.unwrap_or(none), operation.rotations.unwrap_or(none)];
        let ([weights, rotations], [x]) = self.memory.borrow(reads, [x]);
        let prep = qkv::HeadPrep {
            head_dim: operation.kv.layout.head_dim,
            norm: norm.map(|_| norm::Norm {
                weights: cast(weights),
                weight_offset: operation.norm_weight_offset,
                epsilon: operation.norm_epsilon,
            }),
            rotations: operation.rotations.map(|_| cast(rotations)),
        };
        prep.apply(self.level, &self.threads, cast_mut(x), tokens);
    }
}

impl Backend for CpuBackend {
    type Image = CpuImage;

    fn reserve(&mut self, len_bytes: usize) -> Result<RegionId, DeviceError> {
        self.memory.reserve(len_bytes)
    }

    fn map_pages(&mut self, region: RegionId, pages: Range<usize>) -> Result<(), DeviceError> {
        self.memory.map_pages(&self.threads, region, pages)
    }

    fn unmap_pages(&mut self, region: RegionId, pages: Range<usize>) -> Result<(), DeviceError> {
        self.memory.unmap_pages(region, pages)
    }

    fn mapped_pages(&self, region: RegionId) -> usize {
        self.memory.mapped_pages(region)
    }

    fn take_out(&mut self, region: RegionId) -> Result<CpuImage, DeviceError> {
        self.memory.take_out(region)
    }

    fn put_in(&mut self, image: CpuImage) -> Result<RegionId, DeviceError> {
        Ok(self.memory.put_in(image))
    }

    fn upload(&mut self, target: Span, bytes: &[u8]) -> Result<(), DeviceError> {
        let ([], [target]) = self.memory.borrow([], [target]);
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
        let ([source], [target]) = self.memory.borrow([source], [target]);
        target.copy_from_slice(source);
        Ok(())
    }

    fn place_rows(&mut self, operation: PlaceRows<'_>) -> Result<(), DeviceError> {
        let PlaceRows { matrix, .. } = operation;
        let panel_bytes = matrix
            .format
            .panel_bytes(matrix.columns)
            .expect("the matrix was planned");
        assert!(
            operation.first_row.is_multiple_of(PANEL_ROWS),
            "rows come in whole panels"
        );
        let row_bytes = matrix.columns * operation.stored.size_bytes();
        let panels = (operation.bytes.len() / row_bytes).div_ceil(PANEL_ROWS);
        let target = Span {
            offset_bytes: matrix.span.offset_bytes + operation.first_row / PANEL_ROWS * panel_bytes,
            len_bytes: panels * panel_bytes,
            ..matrix.span
        };
        let ([], [target, non_finite]) = self.memory.borrow([], [target, operation.non_finite]);
        let rows = panels::StoredRows {
            dtype: operation.stored,
            columns: matrix.columns,
            bytes: operation.bytes,
        };
        if let Some(element) = rows.place(self.level, &self.threads, matrix.format, target) {
            let first = operation.first_row * matrix.columns;
            let lowest = &mut cast_mut::<u32>(non_finite)[0];
            // An element beyond u32 is told as the last index that can be told.
            let element = u32::try_from(first + element).unwrap_or(crate::NO_ELEMENT - 1);
            *lowest = element.min(*lowest);
        }
        Ok(())
    }

    fn embed_gather(&mut self, operation: EmbedGather) -> Result<(), DeviceError> {
        let EmbedGather {
            table,
            tokens,
            scale,
            out,
        } = operation;
        let ([weights, tokens], [out]) = self.memory.borrow([table.span, tokens], [out]);
        elementwise::embed(
            &self.threads,
            (table.format, weights),
            cast(tokens),
            scale,
            cast_mut(out),
        );
        Ok(())
    }

    fn rms_norm(&mut self, operation: RmsNorm) -> Result<(), DeviceError> {
        if let Some(add) = operation.add {
            let ([add], [x]) = self.memory.borrow([add], [operation.x]);
            elementwise::add(self.level, &self.threads, cast_mut(x), cast(add));
        }
        let reads = [operation.weight, operation.x];
        let ([weights, x], [out]) = self.memory.borrow(reads, [operation.out]);
        let norm = norm::Norm {
            weights: cast(weights),
            weight_offset: operation.weight_offset,
            epsilon: operation.epsilon,
        };
        norm.apply(self.level, &self.threads, cast(x), cast_mut(out));
        Ok(())
    }

    fn linear(&mut self, operation: Linear<'_>) -> Result<(), DeviceError> {
        let Linear { x, inputs, products } = operation;
        let Some(first) = products.first() else {
            return Ok(());
        };
        let (format, columns) = (first.weights.format, first.weights.columns);
        let rows = x.len_bytes / WORD_BYTES / columns;
        let inputs = if format.takes_pairs() {
            let inputs = inputs.first_words(rows * format.input_words(columns));
            let ([x], [words]) = self.memory.borrow([x], [inputs]);
            let shape = rounding::Shape { format, columns };
            rounding::write_inputs(self.level, &self.threads, shape, cast(x), cast_mut(words));
            inputs
        } else {
            x
        };
        self.multiply(inputs, rows, products);
        Ok(())
    }

    fn rotations(&mut self, operation: Rotations) -> Result<(), DeviceError> {
        let reads = [operation.positions, operation.inverse_frequencies];
        let ([positions, frequencies], [out]) = self.memory.borrow(reads, [operation.out]);
        let factor = operation.attention_factor;
        qkv::rotations(cast(positions), cast(frequencies), factor, cast_mut(out));
        Ok(())
    }

    fn qkv_prep(&mut self, operation: QkvPrep) -> Result<(), DeviceError> {
        self.head_prep(&operation, operation.q, operation.q_norm);
        self.head_prep(&operation, operation.k, operation.k_norm);
        let QkvPrep { k, v, batch, kv, .. } = operation;
        let reads = [k, v, batch.positions, batch.starts, batch.tables];
        let ([k, v, positions, starts, tables], [blocks]) = self.memory.borrow_reserved(reads, [kv.blocks]);
        let rows = qkv::TokenRows::new(cast(positions), cast(starts), cast(tables), &batch);
        qkv::write_blocks(&self.threads, (cast(k), cast(v)), rows, cast_mut(blocks), &kv);
        Ok(())
    }

    fn attention(&mut self, operation: Attention) -> Result<(), DeviceError> {
        let Attention {
            q, out, batch, kv, ..
        } = operation;
        let reads = [q, kv.blocks, batch.positions, batch.starts, batch.tables];
        let ([q, blocks, positions, starts, tables], [out]) = self.memory.borrow_reserved(reads, [out]);
        let problem = attention::Problem {
            q: cast(q),
            heads: operation.heads,
            tokens: qkv::TokenRows::new(cast(positions), cast(starts), cast(tables), &batch),
            blocks: cast(blocks),
            kv,
            scale: operation.scale,
            visible: operation.visible,
        };
        attention::attention(self.level, &self.threads, &problem, cast_mut(out));
        Ok(())
    }

    fn add(&mut self, x: Span, add: Span) -> Result<(), DeviceError> {
        let ([add], [x]) = self.memory.borrow([add], [x]);
        elementwise::add(self.level, &self.threads, cast_mut(x), cast(add));
        Ok(())
    }

    fn layer_norm(&mut self, operation: LayerNorm) -> Result<(), DeviceError> {
        self.add(operation.x, operation.add)?;
        let reads = [operation.weight, operation.bias, operation.x];
        let ([weights, biases, x], [out]) = self.memory.borrow(reads, [operation.out]);
        let norm = layer_norm::LayerNorm {
            weights: cast(weights),
            biases: cast(biases),
            epsilon: operation.epsilon,
        };
        norm.apply(self.level, &self.threads, cast(x), cast_mut(out));
        Ok(())
    }

    fn activate(&mut self, activation: Activation, x: Span) -> Result<(), DeviceError> {
        let ([], [x]) = self.memory.borrow([], [x]);
        elementwise::activate(self.level, &self.threads, activation, cast_mut(x));
        Ok(())
    }

    fn pool(&mut self, operation: Pool) -> Result<(), DeviceError> {
        let Pool {
            x,
            starts,
            pooling,
            scale,
            out,
        } = operation;
        let ([x, starts], [out]) = self.memory.borrow([x, starts], [out]);
        let rows = pool::Rows {
            x: cast(x),
            starts: cast(starts),
            pooling,
            scale,
        };
        pool::pool(self.level, &self.threads, &rows, cast_mut(out));
        Ok(())
    }

    fn gated(&mut self, operation: Gated) -> Result<(), DeviceError> {
        let ([up], [gate]) = self.memory.borrow([operation.up], [operation.gate]);
        elementwise::gated(
            self.level,
            &self.threads,
            operation.activation,
            cast_mut(gate),
            cast(up),
        );
        Ok(())
    }

    fn gather_rows(&mut self, x: Span, rows: Span, out: Span) -> Result<(), DeviceError> {
        let ([x, rows], [out]) = self.memory.borrow([x, rows], [out]);
        elementwise::gather(cast(x), cast(rows), cast_mut(out));
        Ok(())
    }

    fn edit_logits(&mut self, operation: EditLogits) -> Result<(), DeviceError> {
        let ([edits], [logits]) = self.memory.borrow([operation.edits], [operation.logits]);
        let (edits, []) = cast(edits).as_chunks() else {
            panic!("edits are whole");
        };
        for words in edits {
            let (row, edit) = LogitEdit::from_words(words);
            sample::edit(cast_mut(logits), operation.vocab_size, row, &edit);
        }
        Ok(())
    }

    fn mask_logits(&mut self, operation: MaskLogits) -> Result<(), DeviceError> {
        let MaskLogits {
            logits,
            vocab_size,
            masks,
        } = operation;
        let ([masks], [logits]) = self.memory.borrow([masks], [logits]);
        for mask in cast::<u32>(masks).chunks_exact(mask_words(vocab_size)) {
            let row = &mut cast_mut(logits)[mask[0] as usize * vocab_size..][..vocab_size];
            sample::mask(row, &mask[1..]);
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
            let ([values, parameters], [candidates]) =
                self.memory.borrow(reads, [scratch.words(0, vocab_size)]);
            let words = cast(parameters)
                .first_chunk()
                .expect("the span has this many words");
            let (sampling, allowed) = Sampling::from_words(words);
            let token = sample::draw(cast(values), &sampling, allowed, cast_mut(candidates));
            let ([], [out]) = self.memory.borrow([], [out.words(row, 1)]);
            cast_mut(out)[0] = token;
            if let Some(count) = sampling.logprobs {
                let written = logprobs.words(row * LOGPROB_WORDS, LOGPROB_WORDS);
                let ([values], [written]) = self.memory.borrow([logits], [written]);
                let written = cast_mut(written)
                    .first_chunk_mut()
                    .expect("the span has this many words");
                sample::write_logprobs(cast(values), allowed, token, count.into(), written);
            }
        }
        Ok(())
    }
}

impl CpuBackend {
    /// Multiplies inputs as products read them.
    fn multiply(&mut self, inputs: Span, rows: usize, products: &[Product]) {
        assert!(
            products.len() <= PRODUCTS_MAX,
            "at most {PRODUCTS_MAX} products share their inputs"
        );
        let none = Span {
            len_bytes: 0,
            ..inputs
        };
        let mut weights = [none; PRODUCTS_MAX];
        let mut biases = [none; PRODUCTS_MAX];
        let mut outs = [none; PRODUCTS_MAX];
        for (index, product) in products.iter().enumerate() {
            weights[index] = product.weights.span;
            biases[index] = product.bias.unwrap_or(none);
            outs[index] = product.out;
        }
        let [first, second, third] = weights;
        let [first_bias, second_bias, third_bias] = biases;
        let reads = [inputs, first, second, third, first_bias, second_bias, third_bias];
        let ([words, first, second, third, first_bias, second_bias, third_bias], outs) =
            self.memory.borrow(reads, outs);
        let read = [(first, first_bias), (second, second_bias), (third, third_bias)];
        let inputs = linear::Inputs {
            words: cast(words),
            rows,
        };
        let mut tasks = [const { None }; PRODUCTS_MAX];
        for (((task, product), (panels, bias)), out) in tasks.iter_mut().zip(products).zip(read).zip(outs) {
            let weights = linear::Weights {
                format: product.weights.format,
                panels,
                outputs: product.weights.rows,
                columns: product.weights.columns,
                bias: product.bias.map(|_| cast(bias)),
            };
            *task = Some(linear::Task::new(weights, inputs, cast_mut(out)));
        }
        linear::run(self.level, &self.threads, &tasks);
    }
}

fn cast<T: bytemuck::AnyBitPattern>(bytes: &[u8]) -> &[T] {
    bytemuck::cast_slice(bytes)
}

fn cast_mut<T: bytemuck::Pod>(bytes: &mut [u8]) -> &mut [T] {
    bytemuck::cast_slice_mut(bytes)
}
