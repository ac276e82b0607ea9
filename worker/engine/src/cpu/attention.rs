//! Causal attention over paged keys and values.
//!
//! One pass with a running maximum, block by block from the first visible position. What is added when depends on a token's
//! position alone, not on how its sequence was cut into steps.

use super::dot::dot;
use super::qkv::{TokenRow, TokenRows};
use crate::BLOCK_TOKENS;
use crate::backend::KvLayer;

/// What all tokens and heads of one layer have in common.
#[derive(Clone, Copy, Debug)]
pub(super) struct Layer<'a> {
    pub(super) blocks: &'a [f32],
    pub(super) kv: &'a KvLayer,
    pub(super) scale: f32,
    /// How many positions a token sees, its own included.
    pub(super) window: Option<usize>,
}

/// `out[token][head] = softmax(q . keys * scale) . values`, over the positions that the token sees.
pub(super) fn attention(q: &[f32], heads: usize, tokens: TokenRows<'_>, layer: Layer<'_>, out: &mut [f32]) {
    let head_dim = layer.kv.layout.head_dim;
    let group = heads / layer.kv.layout.kv_heads;
    assert_eq!(q.len(), out.len(), "as much out as in");
    for token in tokens.iter() {
        let row = token.row * heads * head_dim..(token.row + 1) * heads * head_dim;
        let queries = q[row.clone()].chunks_exact(head_dim);
        for (head, (query, out)) in queries.zip(out[row].chunks_exact_mut(head_dim)).enumerate() {
            layer.attend(query, &token, head / group, out);
        }
    }
}

impl Layer<'_> {
    /// One head of one token; `out` is also the running sum of weighted values.
    fn attend(&self, query: &[f32], token: &TokenRow<'_>, head: usize, out: &mut [f32]) {
        let layout = &self.kv.layout;
        let first = self
            .window
            .map_or(0, |window| (token.position + 1).saturating_sub(window));
        let (mut maximum, mut total) = (f32::NEG_INFINITY, 0f32);
        out.fill(0.0);
        for index in first / BLOCK_TOKENS..=token.position / BLOCK_TOKENS {
            let block = &self.blocks[token.block_start(index, self.kv)..][..layout.block_elements()];
            let keys = &block[layout.key_start(self.kv.layer, head)..][..layout.head_elements()];
            let values = &block[layout.value_start(self.kv.layer, head)..][..layout.head_elements()];
            let start = index * BLOCK_TOKENS;
            let visible = first.saturating_sub(start)..(token.position + 1 - start).min(BLOCK_TOKENS);
            let keys = keys.chunks_exact(layout.head_dim).take(visible.end);
            let values = values.chunks_exact(layout.head_dim).take(visible.end);

            let mut scores = [f32::NEG_INFINITY; BLOCK_TOKENS];
            for (score, key) in scores.iter_mut().zip(keys).skip(visible.start) {
                *score = dot(query, key) * self.scale;
            }
            let before = maximum;
            maximum = scores.iter().copied().fold(maximum, f32::max);
            let correction = (before - maximum).exp();
            total *= correction;
            out.iter_mut().for_each(|sum| *sum *= correction);
            for (score, value) in scores.iter().zip(values).skip(visible.start) {
                let weight = (score - maximum).exp();
                total += weight;
                out.iter_mut()
                    .zip(value)
                    .for_each(|(sum, value)| *sum += weight * value);
            }
        }
        out.iter_mut().for_each(|sum| *sum /= total);
    }
}
