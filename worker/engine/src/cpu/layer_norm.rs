//! Normalisation of rows to mean 0 and variance 1.

use super::math;
use super::norm::RowNorm;
use super::simd::{LANES, Simd};

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

impl RowNorm for LayerNorm<'_> {
    fn columns(&self) -> usize {
        assert_eq!(self.weights.len(), self.biases.len(), "a bias for each weight");
        self.weights.len()
    }

    /// `out = (x - mean) / sqrt(variance + epsilon) * weights + biases`. The variance is taken of the
    /// differences from the mean, which are kept in `out` meanwhile: of the squares alone it would lose what a
    /// large mean hides.
    #[inline(always)]
    #[expect(clippy::cast_precision_loss, reason = "rows are at most 2^20 long")]
    fn normalise<S: Simd>(&self, simd: S, x: &[f32], out: &mut [f32]) {
        let mean = math::sum(simd, x) / x.len() as f32;
        for (x, out) in x.iter().zip(&mut *out) {
            *out = x - mean;
        }
        let variance = math::dot(simd, out, out) / x.len() as f32;
        let scale = simd.splat(1.0 / (variance + self.epsilon).sqrt());
        let (weights, weights_tail) = self.weights.as_chunks::<LANES>();
        let (biases, biases_tail) = self.biases.as_chunks::<LANES>();
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
}
