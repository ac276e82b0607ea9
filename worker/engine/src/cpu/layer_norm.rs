//! Normalisation of rows to mean 0 and variance 1.
#![expect(unsafe_code, reason = "threads write to rows of one slice")]

use super::disjoint::Disjoint;
use super::math;
use super::simd::{Kernel, LANES, Level, Simd};
use super::threads::CpuThreads;

/// A row less its mean, divided by the root of its variance, times the weights and plus the biases.
#[derive(Clone, Copy, Debug)]
pub(super) struct LayerNorm<'a> {
    /// f32 \[columns].
    pub(super) weights: &'a [f32],
    /// f32 \[columns].
    pub(super) biases: &'a [f32],
    /// Added to the variance.
    pub(super) epsilon: f32,
}

impl LayerNorm<'_> {
    /// `out[row] = (x[row] - mean) / sqrt(variance + epsilon) * weights + biases`.
    pub(super) fn apply(&self, level: Level, threads: &CpuThreads, x: &[f32], out: &mut [f32]) {
        let columns = self.weights.len();
        assert_eq!(columns, self.biases.len(), "a bias for each weight");
        assert_eq!(x.len(), out.len(), "as much out as in");
        let rows = x.len() / columns;
        let out = Disjoint::new(out);
        let part_rows = (PART_ELEMENTS / columns).max(1);
        threads.run(rows.div_ceil(part_rows), &|part| {
            let rows = part * part_rows..rows.min((part + 1) * part_rows);
            let elements = rows.start * columns..rows.end * columns;
            level.run(Rows {
                norm: self,
                x: &x[elements.clone()],
                // SAFETY: rows belong to one part each.
                out: unsafe { out.part(elements) },
            });
        });
    }
}

struct Rows<'a> {
    norm: &'a LayerNorm<'a>,
    x: &'a [f32],
    out: &'a mut [f32],
}

impl Kernel for Rows<'_> {
    type Output = ();

    #[inline(always)]
    fn call<S: Simd>(self, simd: S) {
        let columns = self.norm.weights.len();
        let rows = self
            .x
            .chunks_exact(columns)
            .zip(self.out.chunks_exact_mut(columns));
        for (x, out) in rows {
            normalise(simd, self.norm, x, out);
        }
    }
}

/// One row. The variance is taken of the differences from the mean, which are kept in `out` meanwhile: of the
/// squares alone it would lose what a large mean hides.
#[inline(always)]
#[expect(clippy::cast_precision_loss, reason = "rows are at most 2^20 long")]
fn normalise<S: Simd>(simd: S, norm: &LayerNorm<'_>, x: &[f32], out: &mut [f32]) {
    let mean = math::sum(simd, x) / x.len() as f32;
    for (x, out) in x.iter().zip(&mut *out) {
        *out = x - mean;
    }
    let variance = math::dot(simd, out, out) / x.len() as f32;
    let scale = simd.splat(1.0 / (variance + norm.epsilon).sqrt());
    let (weights, weights_tail) = norm.weights.as_chunks::<LANES>();
    let (biases, biases_tail) = norm.biases.as_chunks::<LANES>();
    let (out_chunks, out_tail) = out.as_chunks_mut::<LANES>();
    for ((out, weights), biases) in out_chunks.iter_mut().zip(weights).zip(biases) {
        let scaled = simd.mul(simd.load(out), scale);
        simd.store(simd.mul_add(scaled, simd.load(weights), simd.load(biases)), out);
    }
    if !out_tail.is_empty() {
        let scaled = simd.mul(math::load_part(simd, out_tail), scale);
        let weights = math::load_part(simd, weights_tail);
        let biases = math::load_part(simd, biases_tail);
        math::store_part(simd, simd.mul_add(scaled, weights, biases), out_tail);
    }
}

/// Elements of a part that outweigh handing it to a thread.
const PART_ELEMENTS: usize = 16 << 10;
