//! Attention over paged keys and values, in tiles of query rows that share a key and value head.
//!
//! One pass with a running maximum, block by block from a row's first visible position. A lane is a
//! position while scores are made, and an element of a value while they are used; sums run over elements and
//! positions in ascending order. What is added when depends on a row's position alone: not on the tile it is
//! in, how its sequence was cut into steps, or how many threads there are.
#![expect(unsafe_code, reason = "threads write to rows of one slice")]
#![expect(
    clippy::needless_range_loop,
    reason = "loops over constant ranges are unrolled, so that what they index stays in registers"
)]

use std::array::from_fn;

use super::disjoint::Disjoint;
use super::math;
use super::qkv::TokenRows;
use super::simd::{Kernel, LANES, Level, Simd};
use super::threads::CpuThreads;
use crate::BLOCK_TOKENS;
use crate::backend::{KV_UNIT_ELEMENTS, KvLayer, Visible};

const _: () = assert!(BLOCK_TOKENS == LANES);

/// What an attention reads, and how.
#[derive(Clone, Copy, Debug)]
pub(super) struct Problem<'a> {
    /// f32 \[tokens, heads, head_dim].
    pub(super) q: &'a [f32],
    pub(super) heads: usize,
    pub(super) tokens: TokenRows<'a>,
    pub(super) blocks: &'a [f32],
    pub(super) kv: KvLayer,
    pub(super) scale: f32,
    pub(super) visible: Visible,
}

/// `out[token][head] = softmax(q . keys * scale) . values`, over the positions that the token sees.
pub(super) fn attention(level: Level, threads: &CpuThreads, problem: &Problem<'_>, out: &mut [f32]) {
    assert_eq!(problem.q.len(), out.len(), "as much out as in");
    let out = Disjoint::new(out);
    let sequences = problem.tokens.sequences();
    let parts = (0..sequences)
        .map(|sequence| problem.sequence_parts(sequence))
        .sum();
    threads.run(parts, &|part| {
        let (sequence, part) = problem.locate(part);
        level.run(Part {
            problem,
            out: &out,
            sequence,
            part,
        });
    });
}

impl Problem<'_> {
    /// How many query heads share a head of keys and values.
    fn group(&self) -> usize {
        self.heads / self.kv.layout.kv_heads
    }

    /// The keys and values of one head in the block that starts at `place`, in units, and whose first position is
    /// `first_position`.
    #[inline(always)]
    fn block(&self, place: usize, kv_head: usize, first_position: usize, positions: usize) -> Block<'_> {
        let layout = self.kv.layout;
        let elements = &self.blocks[place * KV_UNIT_ELEMENTS..][..layout.block_elements()];
        Block {
            keys: &elements[layout.key_start(self.kv.layer, kv_head)..][..layout.head_elements()],
            values: &elements[layout.value_start(self.kv.layer, kv_head)..][..layout.head_elements()],
            first_position,
            positions,
        }
    }

    fn head_parts(&self, sequence: usize) -> usize {
        (self.tokens.rows(sequence).len() * self.group()).div_ceil(PART_QUERIES)
    }

    fn sequence_parts(&self, sequence: usize) -> usize {
        self.head_parts(sequence) * self.kv.layout.kv_heads
    }

    /// The sequence of a part of the whole, and the part's index within the sequence.
    fn locate(&self, mut part: usize) -> (usize, usize) {
        let mut sequence = 0;
        while part >= self.sequence_parts(sequence) {
            part -= self.sequence_parts(sequence);
            sequence += 1;
        }
        (sequence, part)
    }
}

/// Some queries of one sequence and one head of keys and values.
struct Part<'p, 'a> {
    problem: &'p Problem<'a>,
    out: &'p Disjoint<'a, f32>,
    sequence: usize,
    part: usize,
}

impl Kernel for Part<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn call<S: Simd>(self, simd: S) {
        let problem = self.problem;
        let parts = problem.head_parts(self.sequence);
        let all = problem.tokens.rows(self.sequence).len() * problem.group();
        let kv_head = self.part / parts;
        let first_query = self.part % parts * PART_QUERIES;
        let count = PART_QUERIES.min(all - first_query);
        let mut queries: [Query<'_, S::Floats>; PART_QUERIES] = from_fn(|index| {
            let query = first_query + index.min(count - 1);
            self.query(simd, kv_head, query)
        });
        let mut outs: [&mut [f32]; PART_QUERIES] = from_fn(|_| &mut [][..]);
        let (mut first, mut end) = (usize::MAX, 0);
        for (index, query) in queries[..count].iter().enumerate() {
            outs[index] = self.out(kv_head, first_query + index);
            outs[index].fill(0.0);
            first = first.min(query.first);
            end = end.max(query.end);
        }
        let seen = first / BLOCK_TOKENS..end.div_ceil(BLOCK_TOKENS);
        for (index, place) in seen.clone().zip(&problem.tokens.table(self.sequence)[seen]) {
            // Positions that no query sees may never have been written.
            let positions = (end - index * BLOCK_TOKENS).min(BLOCK_TOKENS);
            let block = problem.block(*place as usize, kv_head, index * BLOCK_TOKENS, positions);
            block.meet(simd, problem.scale, &mut queries[..count], &mut outs[..count]);
        }
        for (query, out) in queries.iter().zip(outs).take(count) {
            let total = simd.sum(query.total);
            out.iter_mut().for_each(|sum| *sum /= total);
        }
    }
}

impl<'a> Part<'_, 'a> {
    #[inline(always)]
    fn query<S: Simd>(&self, simd: S, kv_head: usize, query: usize) -> Query<'a, S::Floats> {
        let problem = self.problem;
        let head_dim = problem.kv.layout.head_dim;
        let (row, head) = self.place(kv_head, query);
        let position = problem.tokens.position(row);
        let (first, end) = match problem.visible {
            Visible::Causal => (0, position + 1),
            Visible::Window(window) => (position + 1 - window.min(position + 1), position + 1),
            Visible::All => (0, problem.tokens.rows(self.sequence).len()),
        };
        Query {
            elements: &problem.q[(row * problem.heads + head) * head_dim..][..head_dim],
            first,
            end,
            maximum: f32::NEG_INFINITY,
            total: simd.splat(0.0),
            correction: None,
        }
    }

    /// Token and head of a query.
    #[inline(always)]
    fn place(&self, kv_head: usize, query: usize) -> (usize, usize) {
        let group = self.problem.group();
        let row = self.problem.tokens.rows(self.sequence).start + query / group;
        (row, kv_head * group + query % group)
    }

    /// Where a query's sums are, and in the end its result.
    #[inline(always)]
    fn out(&self, kv_head: usize, query: usize) -> &'a mut [f32] {
        let head_dim = self.problem.kv.layout.head_dim;
        let (row, head) = self.place(kv_head, query);
        let start = (row * self.problem.heads + head) * head_dim;
        // SAFETY: each query belongs to one part, whose thread takes its range once.
        unsafe { self.out.part(start..start + head_dim) }
    }
}

/// One query: what it is, and how far its softmax has come.
#[derive(Clone, Copy)]
struct Query<'a, F> {
    elements: &'a [f32],
    /// The positions it sees.
    first: usize,
    end: usize,
    /// The largest score so far.
    maximum: f32,
    /// The sum of weights so far, lane by lane.
    total: F,
    /// What the sums so far are multiplied by, as the maximum has grown.
    correction: Option<F>,
}

/// The keys and values of one head in a block.
#[derive(Clone, Copy)]
struct Block<'a> {
    keys: &'a [f32],
    values: &'a [f32],
    first_position: usize,
    /// How many positions may be looked at.
    positions: usize,
}

impl Block<'_> {
    /// Takes the block into the sums of all queries, a tile of them at a time.
    #[inline(always)]
    fn meet<S: Simd>(
        self,
        simd: S,
        scale: f32,
        queries: &mut [Query<'_, S::Floats>],
        outs: &mut [&mut [f32]],
    ) {
        let mut rest = queries;
        let mut outs = outs;
        while !rest.is_empty() {
            let taken = match rest.len() {
                1 => self.meet_tile::<S, 1>(simd, scale, rest, outs),
                2 => self.meet_tile::<S, 2>(simd, scale, rest, outs),
                3 => self.meet_tile::<S, 3>(simd, scale, rest, outs),
                QUERIES_WIDE.. if S::HAS_WIDE_TILES => {
                    self.meet_tile::<S, QUERIES_WIDE>(simd, scale, rest, outs)
                }
                _ => self.meet_tile::<S, QUERIES_NARROW>(simd, scale, rest, outs),
            };
            rest = &mut rest[taken..];
            outs = &mut outs[taken..];
        }
    }

    /// Takes the block into the sums of the first queries; gives their number.
    #[inline(always)]
    fn meet_tile<S: Simd, const QUERIES: usize>(
        self,
        simd: S,
        scale: f32,
        queries: &mut [Query<'_, S::Floats>],
        outs: &mut [&mut [f32]],
    ) -> usize {
        let queries: &mut [_; QUERIES] = queries.first_chunk_mut().expect(TILE);
        let outs: &mut [_; QUERIES] = outs.first_chunk_mut().expect(TILE);
        let scores = scores(simd, scale, queries, self.keys);
        let mut weights = [[0.0; LANES]; QUERIES];
        weigh(simd, queries, scores, self.first_position, &mut weights);
        add_values(simd, queries, &weights, self.values, self.positions, outs);
        QUERIES
    }
}

const TILE: &str = "a tile has no more queries than there are";

/// Corrects the sums and adds the weighted values of a block's first `positions` positions.
#[inline(always)]
fn add_values<S: Simd, const QUERIES: usize>(
    simd: S,
    queries: &[Query<'_, S::Floats>; QUERIES],
    weights: &[[f32; LANES]; QUERIES],
    values: &[f32],
    positions: usize,
    outs: &mut [&mut [f32]; QUERIES],
) {
    let head_dim = values.len() / BLOCK_TOKENS;
    let mut element = 0;
    while element + 2 * LANES <= head_dim {
        let mut sums = [[simd.splat(0.0); 2]; QUERIES];
        for index in 0..QUERIES {
            let (out, _) = outs[index][element..].as_chunks::<LANES>();
            sums[index][0] = corrected(simd, &queries[index], simd.load(&out[0]));
            sums[index][1] = corrected(simd, &queries[index], simd.load(&out[1]));
        }
        for (position, value) in values.chunks_exact(head_dim).take(positions).enumerate() {
            let (value, _) = value[element..].as_chunks::<LANES>();
            let value = [simd.load(&value[0]), simd.load(&value[1])];
            for index in 0..QUERIES {
                let weight = simd.splat(weights[index][position % LANES]);
                sums[index][0] = simd.mul_add(weight, value[0], sums[index][0]);
                sums[index][1] = simd.mul_add(weight, value[1], sums[index][1]);
            }
        }
        for index in 0..QUERIES {
            let (out, _) = outs[index][element..].as_chunks_mut::<LANES>();
            simd.store(sums[index][0], &mut out[0]);
            simd.store(sums[index][1], &mut out[1]);
        }
        element += 2 * LANES;
    }
    while element < head_dim {
        let end = head_dim.min(element + LANES);
        for index in 0..QUERIES {
            let out = &mut outs[index][element..end];
            let mut sums = corrected(simd, &queries[index], math::load_part(simd, out));
            for (position, value) in values.chunks_exact(head_dim).take(positions).enumerate() {
                let value = math::load_part(simd, &value[element..end]);
                sums = simd.mul_add(simd.splat(weights[index][position]), value, sums);
            }
            math::store_part(simd, sums, out);
        }
        element = end;
    }
}

/// The scaled products of queries and a block's keys; a lane is a position.
#[inline(always)]
fn scores<S: Simd, const QUERIES: usize>(
    simd: S,
    scale: f32,
    queries: &[Query<'_, S::Floats>; QUERIES],
    keys: &[f32],
) -> [S::Floats; QUERIES] {
    let mut scores = [simd.splat(0.0); QUERIES];
    let (keys, _) = keys.as_chunks::<LANES>();
    let mut elements = [&[][..]; QUERIES];
    for index in 0..QUERIES {
        elements[index] = &queries[index].elements[..keys.len()];
    }
    for (element, key) in keys.iter().enumerate() {
        let key = simd.load(key);
        for index in 0..QUERIES {
            scores[index] = simd.mul_add(simd.splat(elements[index][element]), key, scores[index]);
        }
    }
    for index in 0..QUERIES {
        scores[index] = simd.mul(scores[index], simd.splat(scale));
    }
    scores
}

/// Turns a block's scores into weights, and says what the sums of blocks before must be multiplied by.
#[inline(always)]
fn weigh<S: Simd, const QUERIES: usize>(
    simd: S,
    queries: &mut [Query<'_, S::Floats>; QUERIES],
    mut scores: [S::Floats; QUERIES],
    first_position: usize,
    weights: &mut [[f32; LANES]; QUERIES],
) {
    let hidden = simd.splat(f32::NEG_INFINITY);
    let lanes = simd.load(&LANE_INDEXES);
    for index in 0..QUERIES {
        let end = simd.splat(lane_bound(queries[index].end, first_position));
        let first = simd.splat(lane_bound(queries[index].first, first_position));
        scores[index] = simd.select_less(lanes, end, scores[index], hidden);
        scores[index] = simd.select_less(lanes, first, hidden, scores[index]);
    }
    for index in 0..QUERIES {
        let query = &mut queries[index];
        query.correction = None;
        let maximum = query.maximum.max(simd.largest(scores[index]));
        if maximum > query.maximum {
            let correction = math::exp(simd, simd.splat(query.maximum - maximum));
            query.total = simd.mul(query.total, correction);
            query.correction = Some(correction);
            query.maximum = maximum;
        }
        // A query that has seen nothing yet has no maximum; its scores stay minus infinity.
        let known = if maximum == f32::NEG_INFINITY {
            0.0
        } else {
            maximum
        };
        scores[index] = simd.sub(scores[index], simd.splat(known));
    }
    for index in 0..QUERIES {
        let exp = math::exp(simd, scores[index]);
        queries[index].total = simd.add(queries[index].total, exp);
        simd.store(exp, &mut weights[index]);
    }
}

#[inline(always)]
fn corrected<S: Simd>(simd: S, query: &Query<'_, S::Floats>, sums: S::Floats) -> S::Floats {
    match query.correction {
        Some(correction) => simd.mul(sums, correction),
        None => sums,
    }
}

/// A position as a lane of the block that starts at `first_position`: 0 for all before, 16 for all behind.
#[inline(always)]
#[expect(clippy::cast_precision_loss, reason = "the result is at most 16")]
fn lane_bound(position: usize, first_position: usize) -> f32 {
    position.saturating_sub(first_position).min(LANES) as f32
}

const LANE_INDEXES: [f32; LANES] = [
    0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 11.0, 12.0, 13.0, 14.0, 15.0,
];

/// Queries of the largest tiles: with two vectors of a value each they fill 32 and 16 registers.
const QUERIES_WIDE: usize = 8;
const QUERIES_NARROW: usize = 4;

/// Queries of a part: they share what is read of a block while it is in cache.
const PART_QUERIES: usize = 32;
