//! Normalisation of rows.
#![expect(unsafe_code, reason = "threads write to rows of one slice")]

use super::disjoint::Disjoint;
use super::math;
use super::simd::{Kernel, LANES, Level, Simd};
use super::threads::CpuThreads;

/// Root-mean-square normalisation: a row divided by the root of its mean square, times the weights.
#[derive(Clone, Copy, Debug)]
pub(super) struct Norm<'a> {
    /// f32 \[columns].
    pub(super) weights: &'a [f32],
    /// Added to each weight.
    pub(super) weight_offset: f32,
    /// Added to the mean square.
    pub(super) epsilon: f32,
}

/// A normalisation that looks at one row at a time.
pub(super) trait RowNorm: Sync {
    /// The length of a row.
    fn columns(&self) -> usize;

    /// Normalises one row.
    fn normalise<S: Simd>(&self, simd: S, x: &[f32], out: &mut [f32]);

    /// Normalises all rows of `x`.
    fn apply(&self, level: Level, threads: &CpuThreads, x: &[f32], out: &mut [f32])
    where
        Self: Sized,
    {
        let columns = self.columns();
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

struct Rows<'a, N> {
    norm: &'a N,
    x: &'a [f32],
    out: &'a mut [f32],
}

impl<N: RowNorm> Kernel for Rows<'_, N> {
    type Output = ();

    #[inline(always)]
    fn call<S: Simd>(self, simd: S) {
        let columns = self.norm.columns();
        let rows = self
            .x
            .chunks_exact(columns)
            .zip(self.out.chunks_exact_mut(columns));
        for (x, out) in rows {
            self.norm.normalise(simd, x, out);
        }
    }
}

impl RowNorm for Norm<'_> {
    fn columns(&self) -> usize {
        self.weights.len()
    }

    /// `out = x / sqrt(mean(x^2) + epsilon) * (weights + weight_offset)`.
    #[inline(always)]
    #[expect(clippy::cast_precision_loss, reason = "rows are at most 2^20 long")]
    fn normalise<S: Simd>(&self, simd: S, x: &[f32], out: &mut [f32]) {
        let mean = math::dot(simd, x, x) / x.len() as f32;
        let scale = simd.splat(1.0 / (mean + self.epsilon).sqrt());
        let offset = simd.splat(self.weight_offset);
        let (x_chunks, x_tail) = x.as_chunks::<LANES>();
        let (weights, weights_tail) = self.weights.as_chunks::<LANES>();
        let (out_chunks, out_tail) = out.as_chunks_mut::<LANES>();
        for ((x, weights), out) in x_chunks.iter().zip(weights).zip(out_chunks) {
            let weights = simd.add(simd.load(weights), offset);
            simd.store(simd.mul(simd.mul(simd.load(x), scale), weights), out);
        }
        if !x_tail.is_empty() {
            let weights = simd.add(math::load_part(simd, weights_tail), offset);
            let scaled = simd.mul(math::load_part(simd, x_tail), scale);
            math::store_part(simd, simd.mul(scaled, weights), out_tail);
        }
    }
}

/// Elements of a part that outweigh handing it to a thread.
const PART_ELEMENTS: usize = 16 << 10;
