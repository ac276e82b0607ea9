//! Rotary position embedding, and where each token's keys and values lie.

use crate::BLOCK_TOKENS;
use crate::backend::{BatchView, KvLayer};

/// The step's tokens: position and block table of each row.
#[derive(Clone, Copy, Debug)]
pub(super) struct TokenRows<'a> {
    positions: &'a [u32],
    starts: &'a [u32],
    tables: &'a [u32],
    table_blocks: usize,
}

/// One token of a step.
#[derive(Clone, Copy, Debug)]
pub(super) struct TokenRow<'a> {
    /// Its row in every activation.
    pub(super) row: usize,
    /// Its position in its sequence.
    pub(super) position: usize,
    /// Its sequence's KV blocks.
    pub(super) table: &'a [u32],
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

    pub(super) fn iter(self) -> impl Iterator<Item = TokenRow<'a>> {
        let tables = self.tables.chunks_exact(self.table_blocks);
        self.starts.windows(2).zip(tables).flat_map(move |(ends, table)| {
            let rows = ends[0] as usize..ends[1] as usize;
            rows.map(move |row| TokenRow {
                row,
                position: self.positions[row] as usize,
                table,
            })
        })
    }
}

impl TokenRow<'_> {
    /// Where a block of the sequence starts, in elements.
    pub(super) fn block_start(&self, index: usize, kv: &KvLayer) -> usize {
        self.table[index] as usize * kv.layout.block_elements()
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

/// Turns each pair `(i, i + head_dim / 2)` of each head of each row by the row's rotation.
pub(super) fn rotate(x: &mut [f32], rotations: &[f32], head_dim: usize) {
    let tokens = rotations.len() / head_dim;
    let columns = x.len() / tokens;
    for (row, rotation) in x.chunks_exact_mut(columns).zip(rotations.chunks_exact(head_dim)) {
        let (cosines, sines) = rotation.split_at(head_dim / 2);
        for head in row.chunks_exact_mut(head_dim) {
            let (first, second) = head.split_at_mut(head_dim / 2);
            for (((a, b), cos), sin) in first.iter_mut().zip(second).zip(cosines).zip(sines) {
                (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
            }
        }
    }
}

/// Writes the keys and values of each token to its place in its sequence's blocks.
pub(super) fn write_blocks(k: &[f32], v: &[f32], tokens: TokenRows<'_>, blocks: &mut [f32], kv: &KvLayer) {
    let head_dim = kv.layout.head_dim;
    let columns = kv.layout.kv_heads * head_dim;
    for token in tokens.iter() {
        let block = token.block_start(token.position / BLOCK_TOKENS, kv);
        let slot = token.position % BLOCK_TOKENS * head_dim;
        let row = token.row * columns..(token.row + 1) * columns;
        let heads = k[row.clone()]
            .chunks_exact(head_dim)
            .zip(v[row].chunks_exact(head_dim));
        for (head, (key, value)) in heads.enumerate() {
            let key_start = block + kv.layout.key_start(kv.layer, head) + slot;
            blocks[key_start..][..head_dim].copy_from_slice(key);
            let value_start = block + kv.layout.value_start(kv.layer, head) + slot;
            blocks[value_start..][..head_dim].copy_from_slice(value);
        }
    }
}
