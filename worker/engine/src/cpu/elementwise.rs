//! Operations that look at one element, or copy one row, at a time.
#![expect(unsafe_code, reason = "threads write to parts of one slice")]

use super::disjoint::Disjoint;
use super::math::{self, Function};
use super::panels;
use super::simd::{Kernel, LANES, Level, Simd};
use super::threads::CpuThreads;
use crate::backend::Activation;
use crate::tensor::WeightFormat;

/// `x += add`.
pub(super) fn add(level: Level, threads: &CpuThreads, x: &mut [f32], add: &[f32]) {
    assert_eq!(x.len(), add.len(), "one addend for each element");
    let len = x.len();
    let x = Disjoint::new(x);
    threads.run(len.div_ceil(PART_ELEMENTS), &|part| {
        let elements = part * PART_ELEMENTS..len.min((part + 1) * PART_ELEMENTS);
        level.run(AddPart {
            add: &add[elements.clone()],
            // SAFETY: elements belong to one part each.
            x: unsafe { x.part(elements) },
        });
    });
}

struct AddPart<'a> {
    x: &'a mut [f32],
    add: &'a [f32],
}

impl Kernel for AddPart<'_> {
    type Output = ();

    #[inline(always)]
    fn call<S: Simd>(self, _: S) {
        for (x, add) in self.x.iter_mut().zip(self.add) {
            *x += add;
        }
    }
}

/// `gate = activation(gate) * up`.
pub(super) fn gated(
    level: Level,
    threads: &CpuThreads,
    activation: Activation,
    gate: &mut [f32],
    up: &[f32],
) {
    assert_eq!(gate.len(), up.len(), "one factor for each element");
    run_activation(level, threads, activation, gate, Some(up));
}

/// `x = activation(x)`.
pub(super) fn activate(level: Level, threads: &CpuThreads, activation: Activation, x: &mut [f32]) {
    run_activation(level, threads, activation, x, None);
}

fn run_activation(
    level: Level,
    threads: &CpuThreads,
    activation: Activation,
    x: &mut [f32],
    factors: Option<&[f32]>,
) {
    let len = x.len();
    let x = Disjoint::new(x);
    threads.run(len.div_ceil(PART_ELEMENTS), &|part| {
        let elements = part * PART_ELEMENTS..len.min((part + 1) * PART_ELEMENTS);
        level.run(ActivatePart {
            activation,
            factors: factors.map(|factors| &factors[elements.clone()]),
            // SAFETY: elements belong to one part each.
            x: unsafe { x.part(elements) },
        });
    });
}

struct ActivatePart<'a> {
    activation: Activation,
    x: &'a mut [f32],
    /// What the results are multiplied by, if anything.
    factors: Option<&'a [f32]>,
}

impl Kernel for ActivatePart<'_> {
    type Output = ();

    #[inline(always)]
    fn call<S: Simd>(self, simd: S) {
        match self.activation {
            Activation::Silu => self.apply::<S, math::Silu>(simd),
            Activation::GeluTanh => self.apply::<S, math::GeluTanh>(simd),
            Activation::Gelu => self.apply::<S, math::Gelu>(simd),
            Activation::Relu => self.apply::<S, math::Relu>(simd),
        }
    }
}

impl ActivatePart<'_> {
    #[inline(always)]
    fn apply<S: Simd, F: Function>(self, simd: S) {
        let (chunks, tail) = self.x.as_chunks_mut::<LANES>();
        let (factors, factors_tail) = self.factors.unwrap_or_default().as_chunks::<LANES>();
        for (index, x) in chunks.iter_mut().enumerate() {
            let active = F::of(simd, simd.load(x));
            let result = match self.factors {
                Some(_) => simd.mul(active, simd.load(&factors[index])),
                None => active,
            };
            simd.store(result, x);
        }
        if !tail.is_empty() {
            let active = F::of(simd, math::load_part(simd, tail));
            let result = match self.factors {
                Some(_) => simd.mul(active, math::load_part(simd, factors_tail)),
                None => active,
            };
            math::store_part(simd, result, tail);
        }
    }
}

/// `out[i] = table[rows[i]] * scale`, as f32, from a packed table.
pub(super) fn embed(
    threads: &CpuThreads,
    (format, table): (WeightFormat, &[u8]),
    rows: &[u32],
    scale: f32,
    out: &mut [f32],
) {
    if rows.is_empty() {
        return;
    }
    let columns = out.len() / rows.len();
    assert_eq!(out.len(), rows.len() * columns, "a row out for each index");
    let out = Disjoint::new(out);
    threads.run(rows.len(), &|index| {
        // SAFETY: a row belongs to one part.
        let out = unsafe { out.part(index * columns..(index + 1) * columns) };
        panels::unpack_row(format, table, rows[index] as usize, out);
        if scale.to_bits() != 1f32.to_bits() {
            out.iter_mut().for_each(|element| *element *= scale);
        }
    });
}

/// `out[i] = x[rows[i]]`.
pub(super) fn gather(x: &[f32], rows: &[u32], out: &mut [f32]) {
    if rows.is_empty() {
        return;
    }
    let columns = out.len() / rows.len();
    assert_eq!(out.len(), rows.len() * columns, "a row out for each index");
    for (row, out) in rows.iter().zip(out.chunks_exact_mut(columns)) {
        out.copy_from_slice(&x[*row as usize * columns..][..columns]);
    }
}

/// Elements of a part that outweigh handing it to a thread.
const PART_ELEMENTS: usize = 8 << 10;
