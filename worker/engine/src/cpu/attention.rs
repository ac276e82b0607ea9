//! Causal attention over paged keys and values.
//!
//! One pass with a running maximum, block by block from position 0. What is added when depends on a token's
//! position alone, not on how its sequence was cut into steps.

use super::dot::dot;
use super::qkv::{TokenRow, TokenRows};
use crate::BLOCK_TOKENS;
use crate::backend::KvLayer;

/// `out[token][head] = softmax(q . keys / sqrt(head_dim)) . values`, over positions up to the token's own.
pub(super) fn attention(
    q: &[f32],
    heads: usize,
    tokens: TokenRows<'_>,
    blocks: &[f32],
    kv: &KvLayer,
    out: &mut [f32],
) {
    let head_dim = kv.layout.head_dim;
    let group = heads / kv.layout.kv_heads;
    assert_eq!(q.len(), out.len(), "as much out as in");
    for token in tokens.iter() {
        let row = token.row * heads * head_dim..(token.row + 1) * heads * head_dim;
        let queries = q[row.clone()].chunks_exact(head_dim);
        for (head, (query, out)) in queries.zip(out[row].chunks_exact_mut(head_dim)).enumerate() {
            attend(query, &token, head / group, blocks, kv, out);
        }
    }
}

/// One head of one token; `out` is also the running sum of weighted values.
#[expect(clippy::cast_precision_loss, reason = "head_dim is at most 2^20")]
fn attend(query: &[f32], token: &TokenRow<'_>, head: usize, blocks: &[f32], kv: &KvLayer, out: &mut [f32]) {
    let layout = &kv.layout;
    let scale = 1.0 / (layout.head_dim as f32).sqrt();
    let (mut maximum, mut total) = (f32::NEG_INFINITY, 0f32);
    out.fill(0.0);
    for index in 0..=token.position / BLOCK_TOKENS {
        let block = &blocks[token.block_start(index, kv)..][..layout.block_elements()];
        let keys = &block[layout.key_start(kv.layer, head)..][..layout.head_elements()];
        let values = &block[layout.value_start(kv.layer, head)..][..layout.head_elements()];
        let visible = (token.position + 1 - index * BLOCK_TOKENS).min(BLOCK_TOKENS);

        let mut scores = [f32::NEG_INFINITY; BLOCK_TOKENS];
        for (score, key) in scores[..visible]
            .iter_mut()
            .zip(keys.chunks_exact(layout.head_dim))
        {
            *score = dot(query, key) * scale;
        }
        let before = maximum;
        maximum = scores.iter().copied().fold(maximum, f32::max);
        let correction = (before - maximum).exp();
        total *= correction;
        out.iter_mut().for_each(|sum| *sum *= correction);
        for (score, value) in scores[..visible].iter().zip(values.chunks_exact(layout.head_dim)) {
            let weight = (score - maximum).exp();
            total += weight;
            out.iter_mut()
                .zip(value)
                .for_each(|(sum, value)| *sum += weight * value);
        }
    }
    out.iter_mut().for_each(|sum| *sum /= total);
}
