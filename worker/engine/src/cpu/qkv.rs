//! What happens to queries, keys and values between their projections and the attention, and where each
//! token's keys and values lie.
#![expect(unsafe_code, reason = "threads write to rows and blocks of one slice")]

use std::ops::Range;

use super::disjoint::Disjoint;
use super::norm::{Norm, RowNorm};
use super::simd::{Kernel, Level, Simd};
use super::threads::CpuThreads;
use crate::BLOCK_TOKENS;
use crate::backend::{BatchView, KV_UNIT_ELEMENTS, KvLayer};

/// The step's tokens: position and block table of each row.
#[derive(Clone, Copy, Debug)]
pub(super) struct TokenRows<'a> {
    positions: &'a [u32],
    starts: &'a [u32],
    tables: &'a [u32],
    table_blocks: usize,
}

impl<'a> TokenRows<'a> {
    pub(super) fn new(positions: &'a [u32], starts: &'a [u32], tables: &'a [u32], batch: &BatchView) -> Self {
        assert_eq!(
            starts.len(),
            batch.sequences + 1,
            "one start a sequence and the end"
        );
        assert_eq!(
            tables.len(),
            batch.sequences * batch.table_blocks,
            "one table a sequence"
        );
        Self {
            positions,
            starts,
            tables,
            table_blocks: batch.table_blocks,
        }
    }

    pub(super) const fn sequences(&self) -> usize {
        self.starts.len() - 1
    }

    /// The rows of a sequence in every activation.
    #[inline(always)]
    pub(super) fn rows(&self, sequence: usize) -> Range<usize> {
        self.starts[sequence] as usize..self.starts[sequence + 1] as usize
    }

    /// Where the blocks of a sequence start, in units.
    #[inline(always)]
    pub(super) fn table(&self, sequence: usize) -> &'a [u32] {
        &self.tables[sequence * self.table_blocks..][..self.table_blocks]
    }

    /// The position of a row in its sequence.
    #[inline(always)]
    pub(super) fn position(&self, row: usize) -> usize {
        self.positions[row] as usize
    }

    /// Where the block starts that holds a row's keys and values, in elements, and the place in it.
    fn slot(&self, row: usize) -> (usize, usize) {
        let sequence = self.starts.partition_point(|start| *start as usize <= row) - 1;
        let position = self.position(row);
        let block = self.table(sequence)[position / BLOCK_TOKENS];
        (block as usize * KV_UNIT_ELEMENTS, position % BLOCK_TOKENS)
    }
}

/// For each position, the cosines and then the sines of position times frequency, all times `factor`.
#[expect(clippy::cast_precision_loss, reason = "positions are below 2^24")]
pub(super) fn rotations(positions: &[u32], inverse_frequencies: &[f32], factor: f32, out: &mut [f32]) {
    let pairs = inverse_frequencies.len();
    assert_eq!(
        out.len(),
        positions.len() * 2 * pairs,
        "a cosine and a sine for each pair"
    );
    for (position, out) in positions.iter().zip(out.chunks_exact_mut(2 * pairs)) {
        let (cosines, sines) = out.split_at_mut(pairs);
        for ((frequency, cosine), sine) in inverse_frequencies.iter().zip(cosines).zip(sines) {
            let (sin, cos) = (*position as f32 * frequency).sin_cos();
            (*cosine, *sine) = (cos * factor, sin * factor);
        }
    }
}

/// How the heads of queries or keys are prepared.
#[derive(Clone, Copy, Debug)]
pub(super) struct HeadPrep<'a> {
    pub(super) head_dim: usize,
    /// Applied to each head by itself, before it is rotated.
    pub(super) norm: Option<Norm<'a>>,
    /// f32 \[tokens, 2, head_dim / 2]: each pair `(i, i + head_dim / 2)` of a head turns by its row's angle.
    pub(super) rotations: Option<&'a [f32]>,
}

impl HeadPrep<'_> {
    /// Prepares all heads of all rows in place.
    pub(super) fn apply(&self, level: Level, threads: &CpuThreads, x: &mut [f32], tokens: usize) {
        if self.norm.is_none() && self.rotations.is_none() {
            return;
        }
        let columns = x.len() / tokens;
        let x = Disjoint::new(x);
        let part_rows = (PART_ELEMENTS / columns).max(1);
        threads.run(tokens.div_ceil(part_rows), &|part| {
            let rows = part * part_rows..tokens.min((part + 1) * part_rows);
            level.run(HeadRows {
                prep: self,
                columns,
                first_row: rows.start,
                // SAFETY: rows belong to one part each.
                x: unsafe { x.part(rows.start * columns..rows.end * columns) },
            });
        });
    }
}

struct HeadRows<'a> {
    prep: &'a HeadPrep<'a>,
    columns: usize,
    first_row: usize,
    x: &'a mut [f32],
}

impl Kernel for HeadRows<'_> {
    type Output = ();

    #[inline(always)]
    fn call<S: Simd>(self, simd: S) {
        let head_dim = self.prep.head_dim;
        for (row, x) in self.x.chunks_exact_mut(self.columns).enumerate() {
            for head in x.chunks_exact_mut(head_dim) {
                if let Some(norm) = &self.prep.norm {
                    normalise_in_place(simd, norm, head);
                }
                if let Some(rotations) = self.prep.rotations {
                    rotate(head, &rotations[(self.first_row + row) * head_dim..][..head_dim]);
                }
            }
        }
    }
}

#[inline(always)]
fn normalise_in_place<S: Simd>(simd: S, norm: &Norm<'_>, head: &mut [f32]) {
    let mut copy = [0.0; HEAD_DIM_MAX];
    let copy = &mut copy[..head.len()];
    copy.copy_from_slice(head);
    norm.normalise(simd, copy, head);
}

/// Turns each pair `(i, i + head_dim / 2)` of a head by a row's rotation.
#[inline(always)]
fn rotate(head: &mut [f32], rotation: &[f32]) {
    let half = head.len() / 2;
    let (cosines, sines) = rotation.split_at(half);
    let (first, second) = head.split_at_mut(half);
    for (((a, b), cos), sin) in first.iter_mut().zip(second).zip(cosines).zip(sines) {
        (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
    }
}

/// Writes the keys and values of each token to its place in its sequence's blocks.
pub(super) fn write_blocks(
    threads: &CpuThreads,
    (k, v): (&[f32], &[f32]),
    tokens: TokenRows<'_>,
    blocks: &mut [f32],
    kv: &KvLayer,
) {
    let rows = tokens.positions.len();
    let layout = kv.layout;
    let columns = layout.kv_heads * layout.head_dim;
    let blocks = Disjoint::new(blocks);
    let part_rows = (PART_ELEMENTS / columns).max(1);
    threads.run(rows.div_ceil(part_rows), &|part| {
        for row in part * part_rows..rows.min((part + 1) * part_rows) {
            let (start, place) = tokens.slot(row);
            for head in 0..layout.kv_heads {
                let elements =
                    row * columns + head * layout.head_dim..row * columns + (head + 1) * layout.head_dim;
                let keys = start + layout.key_start(kv.layer, head) + place;
                for (element, key) in k[elements.clone()].iter().enumerate() {
                    let target = keys + element * BLOCK_TOKENS;
                    // SAFETY: a place in a block is one token's, whose row belongs to one part.
                    let place = unsafe { blocks.part(target..target + 1) };
                    place[0] = *key;
                }
                let values = start + layout.value_start(kv.layer, head) + place * layout.head_dim;
                // SAFETY: as above.
                unsafe { blocks.part(values..values + layout.head_dim) }.copy_from_slice(&v[elements]);
            }
        }
    });
}

/// The longest head that may be normalised; no model comes near it.
pub(super) const HEAD_DIM_MAX: usize = 1024;

/// Elements of a part that outweigh handing it to a thread.
const PART_ELEMENTS: usize = 16 << 10;
