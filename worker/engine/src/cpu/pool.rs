//! One vector from the rows of each sequence.
#![expect(unsafe_code, reason = "threads write to rows of one slice")]

use super::disjoint::Disjoint;
use super::math;
use super::simd::{Kernel, Level, Simd};
use super::threads::CpuThreads;
use crate::backend::{Pooling, VectorScale};

/// What is pooled, and how.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rows<'a> {
    /// f32 \[tokens, columns].
    pub(super) x: &'a [f32],
    /// u32 \[sequences + 1].
    pub(super) starts: &'a [u32],
    pub(super) pooling: Pooling,
    pub(super) scale: VectorScale,
}

/// Writes one vector a sequence. Rows are added in their order.
pub(super) fn pool(level: Level, threads: &CpuThreads, rows: &Rows<'_>, out: &mut [f32]) {
    let sequences = rows.starts.len() - 1;
    let columns = out.len() / sequences;
    assert_eq!(out.len(), sequences * columns, "a vector for each sequence");
    let out = Disjoint::new(out);
    threads.run(sequences, &|sequence| {
        let first = rows.starts[sequence] as usize * columns;
        let end = rows.starts[sequence + 1] as usize * columns;
        level.run(Sequence {
            rows,
            x: &rows.x[first..end],
            // SAFETY: a vector belongs to one part.
            out: unsafe { out.part(sequence * columns..(sequence + 1) * columns) },
        });
    });
}

struct Sequence<'a> {
    rows: &'a Rows<'a>,
    /// f32 \[tokens of the sequence, columns].
    x: &'a [f32],
    out: &'a mut [f32],
}

impl Kernel for Sequence<'_> {
    type Output = ();

    #[inline(always)]
    fn call<S: Simd>(self, simd: S) {
        let columns = self.out.len();
        match self.rows.pooling {
            Pooling::First => self.out.copy_from_slice(&self.x[..columns]),
            Pooling::Mean => mean(self.x, self.out),
        }
        match self.rows.scale {
            VectorScale::Free => {}
            VectorScale::Unit => {
                let length = math::dot(simd, self.out, self.out).sqrt().max(LENGTH_MIN);
                self.out.iter_mut().for_each(|element| *element /= length);
            }
        }
    }
}

#[inline(always)]
#[expect(clippy::cast_precision_loss, reason = "a sequence has at most 2^24 tokens")]
fn mean(x: &[f32], out: &mut [f32]) {
    let rows = x.chunks_exact(out.len());
    let count = rows.len() as f32;
    out.fill(0.0);
    for row in rows {
        for (sum, element) in out.iter_mut().zip(row) {
            *sum += element;
        }
    }
    out.iter_mut().for_each(|sum| *sum /= count);
}

/// No vector is divided by less.
const LENGTH_MIN: f32 = 1e-12;
