//! The inputs of a matrix product, in the words that its kernels read.
#![expect(unsafe_code, reason = "threads write to rows of one slice")]

use super::disjoint::Disjoint;
use super::simd::{Kernel, Level, Simd};
use super::threads::CpuThreads;
use crate::tensor::WeightFormat;

/// What inputs are written for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    /// The format of the weights, one that takes pairs.
    pub(super) format: WeightFormat,
    pub(super) columns: usize,
}

/// Writes rows of f32 as pairs of bf16: rounded to the nearest, halves to even, what lies below the normal
/// numbers to zero; zeros beyond the last column.
pub(super) fn write_inputs(level: Level, threads: &CpuThreads, shape: Shape, x: &[f32], words: &mut [u32]) {
    let Shape { format, columns } = shape;
    assert!(format.takes_pairs(), "other formats read f32 as they are");
    let stride = format.input_words(columns);
    let rows = x.len() / columns;
    assert_eq!(words.len(), rows * stride, "words for each row");
    let words = Disjoint::new(words);
    let part_rows = rows
        .div_ceil(threads.count())
        .max(PART_WORDS / stride.max(1))
        .max(1);
    threads.run(rows.div_ceil(part_rows), &|part| {
        let rows = part * part_rows..rows.min((part + 1) * part_rows);
        let taken = rows.start * stride..rows.end * stride;
        level.run(Rows {
            stride,
            columns,
            x: &x[rows.start * columns..rows.end * columns],
            // SAFETY: rows belong to one part each.
            words: unsafe { words.part(taken) },
        });
    });
}

struct Rows<'a> {
    stride: usize,
    columns: usize,
    x: &'a [f32],
    words: &'a mut [u32],
}

impl Kernel for Rows<'_> {
    type Output = ();

    #[inline(always)]
    fn call<S: Simd>(self, _: S) {
        let rows = self.x.chunks_exact(self.columns);
        for (x, words) in rows.zip(self.words.chunks_exact_mut(self.stride)) {
            write_pairs(x, words);
        }
    }
}

#[inline(always)]
fn write_pairs(x: &[f32], words: &mut [u32]) {
    let (pairs, last) = x.as_chunks::<2>();
    let (whole, rest) = words.split_at_mut(pairs.len());
    for (word, pair) in whole.iter_mut().zip(pairs) {
        *word = bf16_bits(pair[0]) | bf16_bits(pair[1]) << 16;
    }
    rest.fill(0);
    if let ([word, ..], [value]) = (rest, last) {
        *word = bf16_bits(*value);
    }
}

/// The nearest bf16, ties to even; NaN stays NaN; subnormal results become zero, as the bf16 dot product of
/// x86 takes them.
#[inline(always)]
fn bf16_bits(value: f32) -> u32 {
    let bits = value.to_bits();
    let rounded = (bits.wrapping_add(0x7fff + (bits >> 16 & 1))) >> 16;
    let is_nan = bits & 0x7fff_ffff > 0x7f80_0000;
    let kept = if is_nan { bits >> 16 | 0x40 } else { rounded };
    if kept & 0x7f80 == 0 { kept & 0x8000 } else { kept }
}

/// A part with the fewest rows that are worth handing to a thread.
const PART_WORDS: usize = 16 << 10;

#[cfg(test)]
mod tests {
    use half::bf16;
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_normal_number_is_rounded_as_the_half_crate_does(bits: u32) {
            let value = f32::from_bits(bits);
            let expected = bf16::from_f32(value);
            let rounded = bf16_bits(value);
            if expected.is_nan() {
                prop_assert!(bf16::from_bits(u16::try_from(rounded).unwrap()).is_nan());
            } else if expected.is_normal() || expected.is_infinite() {
                prop_assert_eq!(rounded, u32::from(expected.to_bits()));
            } else {
                prop_assert_eq!(rounded & 0x7fff, 0);
            }
        }
    }

    #[test]
    fn odd_rows_are_filled_up_with_zeros() {
        let threads = CpuThreads::new(std::num::NonZero::new(2).unwrap());
        for level in Level::available() {
            let [bf16, int8] =
                [WeightFormat::Bf16, WeightFormat::Int8].map(|format| Shape { format, columns: 3 });
            let mut words = [7; 4];
            write_inputs(
                level,
                &threads,
                bf16,
                &[1.0, -2.0, 0.5, 3.0, 1e-40, -0.0],
                &mut words,
            );
            assert_eq!(words, [0xc000_3f80, 0x0000_3f00, 0x0000_4040, 0x0000_8000]);
            write_inputs(
                level,
                &threads,
                int8,
                &[1.0, -2.0, 0.5, 1.0, 1.0, 1.0],
                &mut words,
            );
            assert_eq!(words, [0xc000_3f80, 0x0000_3f00, 0x3f80_3f80, 0x0000_3f80]);
        }
    }
}
