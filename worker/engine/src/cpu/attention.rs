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

use super::disjoint::Disjoint;
use super::math;
use super::qkv::TokenRows;
use super::simd::{Kernel, LANES, Level, Simd};
use super::threads::CpuThreads;
use crate::BLOCK_TOKENS;
use crate::backend::KvLayer;

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

/// Which positions of its sequence a token sees.
#[derive(Clone, Copy, Debug)]
pub(super) enum Visible {
    /// Its own and those before it; only the last `window` of them if there is one.
    Causal { window: Option<usize> },
    /// All of them.
    All,
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
        let parts = self.problem.head_parts(self.sequence);
        let queries = self.problem.tokens.rows(self.sequence).len() * self.problem.group();
        let kv_head = self.part / parts;
        let mut query = self.part % parts * PART_QUERIES;
        let end = queries.min(query + PART_QUERIES);
        while query < end {
            let tile = Tile {
                part: &self,
                kv_head,
                first_query: query,
            };
            query += match end - query {
                1 => tile.run::<S, 1>(simd),
                2 => tile.run::<S, 2>(simd),
                3 => tile.run::<S, 3>(simd),
                QUERIES_WIDE.. if S::HAS_WIDE_TILES => tile.run::<S, QUERIES_WIDE>(simd),
                _ => tile.run::<S, QUERIES_NARROW>(simd),
            };
        }
    }
}

/// Queries that meet the same keys and values at once.
struct Tile<'p, 'a> {
    part: &'p Part<'p, 'a>,
    kv_head: usize,
    first_query: usize,
}

/// One query of a tile: what it is, and how far its softmax has come.
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

impl<'a> Tile<'_, 'a> {
    /// Gives the number of queries.
    #[inline(always)]
    fn run<S: Simd, const QUERIES: usize>(&self, simd: S) -> usize {
        let problem = self.part.problem;
        let layout = problem.kv.layout;
        let mut queries = [self.query(simd, 0); QUERIES];
        for (index, query) in queries.iter_mut().enumerate() {
            *query = self.query(simd, index);
            self.out(index).fill(0.0);
        }
        let (mut first, mut end) = (usize::MAX, 0);
        for query in &queries {
            first = first.min(query.first);
            end = end.max(query.end);
        }
        let table = problem.tokens.table(self.part.sequence);
        let mut weights = [[0.0; LANES]; QUERIES];
        let seen = first / BLOCK_TOKENS..end.div_ceil(BLOCK_TOKENS);
        for (block, place) in seen.clone().zip(&table[seen]) {
            let start = *place as usize * layout.block_elements();
            let elements = &problem.blocks[start..start + layout.block_elements()];
            let keys =
                &elements[layout.key_start(problem.kv.layer, self.kv_head)..][..layout.head_elements()];
            let values =
                &elements[layout.value_start(problem.kv.layer, self.kv_head)..][..layout.head_elements()];
            let scores = scores(simd, &queries, keys);
            for index in 0..QUERIES {
                let scores = simd.mul(scores[index], simd.splat(problem.scale));
                weigh(
                    simd,
                    &mut queries[index],
                    scores,
                    block * BLOCK_TOKENS,
                    &mut weights[index],
                );
            }
            // Positions that no query of the tile sees may never have been written.
            let positions = (end - block * BLOCK_TOKENS).min(BLOCK_TOKENS);
            self.add_values(simd, &queries, &weights, values, positions);
        }
        for (index, query) in queries.iter().enumerate() {
            let total = simd.sum(query.total);
            self.out(index).iter_mut().for_each(|sum| *sum /= total);
        }
        QUERIES
    }

    /// Token and head of a query.
    #[inline(always)]
    fn place(&self, index: usize) -> (usize, usize) {
        let group = self.part.problem.group();
        let query = self.first_query + index;
        let row = self.part.problem.tokens.rows(self.part.sequence).start + query / group;
        (row, self.kv_head * group + query % group)
    }

    #[inline(always)]
    fn query<S: Simd>(&self, simd: S, index: usize) -> Query<'a, S::Floats> {
        let problem = self.part.problem;
        let head_dim = problem.kv.layout.head_dim;
        let (row, head) = self.place(index);
        let position = problem.tokens.position(row);
        let (first, end) = match problem.visible {
            Visible::Causal { window } => {
                let seen = window.unwrap_or(usize::MAX).min(position + 1);
                (position + 1 - seen, position + 1)
            }
            Visible::All => (0, problem.tokens.rows(self.part.sequence).len()),
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

    /// Where a query's sums are, and in the end its result.
    #[inline(always)]
    #[expect(
        clippy::mut_from_ref,
        reason = "the part of the output that is this query's alone"
    )]
    fn out(&self, index: usize) -> &mut [f32] {
        let problem = self.part.problem;
        let head_dim = problem.kv.layout.head_dim;
        let (row, head) = self.place(index);
        let start = (row * problem.heads + head) * head_dim;
        // SAFETY: each query belongs to one part, whose thread takes one query's range at a time.
        unsafe { self.part.out.part(start..start + head_dim) }
    }

    /// Corrects the sums and adds the weighted values of a block's first `positions` positions.
    #[inline(always)]
    fn add_values<S: Simd, const QUERIES: usize>(
        &self,
        simd: S,
        queries: &[Query<'_, S::Floats>; QUERIES],
        weights: &[[f32; LANES]; QUERIES],
        values: &[f32],
        positions: usize,
    ) {
        let head_dim = self.part.problem.kv.layout.head_dim;
        let mut element = 0;
        while element + 2 * LANES <= head_dim {
            let mut sums = [[simd.splat(0.0); 2]; QUERIES];
            for index in 0..QUERIES {
                let (out, _) = self.out(index)[element..].as_chunks::<LANES>();
                sums[index] = [
                    corrected(simd, &queries[index], simd.load(&out[0])),
                    corrected(simd, &queries[index], simd.load(&out[1])),
                ];
            }
            for position in 0..positions {
                let (value, _) = values[position * head_dim + element..].as_chunks::<LANES>();
                let value = [simd.load(&value[0]), simd.load(&value[1])];
                for index in 0..QUERIES {
                    let weight = simd.splat(weights[index][position]);
                    sums[index][0] = simd.mul_add(weight, value[0], sums[index][0]);
                    sums[index][1] = simd.mul_add(weight, value[1], sums[index][1]);
                }
            }
            for index in 0..QUERIES {
                let (out, _) = self.out(index)[element..].as_chunks_mut::<LANES>();
                simd.store(sums[index][0], &mut out[0]);
                simd.store(sums[index][1], &mut out[1]);
            }
            element += 2 * LANES;
        }
        while element < head_dim {
            let end = head_dim.min(element + LANES);
            for index in 0..QUERIES {
                let out = &mut self.out(index)[element..end];
                let mut sums = corrected(simd, &queries[index], math::load_part(simd, out));
                for position in 0..positions {
                    let value = math::load_part(simd, &values[position * head_dim..][element..end]);
                    sums = simd.mul_add(simd.splat(weights[index][position]), value, sums);
                }
                math::store_part(simd, sums, out);
            }
            element = end;
        }
    }
}

/// The products of queries and a block's keys; a lane is a position.
#[inline(always)]
fn scores<S: Simd, const QUERIES: usize>(
    simd: S,
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
    scores
}

/// Turns a block's scores into weights, and says what the sums of blocks before must be multiplied by.
#[inline(always)]
fn weigh<S: Simd>(
    simd: S,
    query: &mut Query<'_, S::Floats>,
    scores: S::Floats,
    first_position: usize,
    weights: &mut [f32; LANES],
) {
    query.correction = None;
    if query.end <= first_position || query.first >= first_position + BLOCK_TOKENS {
        *weights = [0.0; LANES];
        return;
    }
    let hidden = simd.splat(f32::NEG_INFINITY);
    let lanes = simd.load(&LANE_INDEXES);
    let end = simd.splat(lane_bound(query.end, first_position));
    let first = simd.splat(lane_bound(query.first, first_position));
    let scores = simd.select_less(lanes, end, scores, hidden);
    let scores = simd.select_less(lanes, first, hidden, scores);
    let maximum = query.maximum.max(simd.largest(scores));
    if maximum > query.maximum {
        let correction = math::exp(simd, simd.splat(query.maximum - maximum));
        query.total = simd.mul(query.total, correction);
        query.correction = Some(correction);
        query.maximum = maximum;
    }
    let exp = math::exp(simd, simd.sub(scores, simd.splat(maximum)));
    query.total = simd.add(query.total, exp);
    simd.store(exp, weights);
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

/// Queries of a part: enough work to outweigh handing it out, even in short contexts.
const PART_QUERIES: usize = 16;
