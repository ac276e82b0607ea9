//! The formats of weights, as tiles read them.

use crate::cpu::simd::{Simd, VECTOR_BYTES};
use crate::tensor::INT4_GROUP_COLUMNS;

/// How a format's units are read: see [`crate::cpu::panels`].
pub(super) trait Units {
    /// The bytes of a unit.
    const BYTES: usize = VECTOR_BYTES;
    /// Input words that meet a unit.
    const WORDS: usize;
    /// Units with one scale; 0 where there are no scales within a row.
    const GROUP_UNITS: usize = 0;
    type Unit<S: Simd>: Copy;
    type Weights<S: Simd>: Copy;

    fn load<S: Simd>(simd: S, bytes: &[u8]) -> Self::Unit<S>;
    /// What meets the unit's input word `word`.
    fn weights<S: Simd>(simd: S, unit: Self::Unit<S>, word: usize) -> Self::Weights<S>;
    fn multiply_add<S: Simd>(simd: S, weights: Self::Weights<S>, input: u32, sum: S::Floats) -> S::Floats;
}

/// Formats whose weights are f32 once they are loaded, and meet inputs in f32.
macro_rules! float_units {
    ($name:ident, $bytes:expr, $load:ident) => {
        pub(super) struct $name;

        impl Units for $name {
            const BYTES: usize = $bytes;
            const WORDS: usize = 1;
            type Unit<S: Simd> = S::Floats;
            type Weights<S: Simd> = S::Floats;

            #[inline(always)]
            fn load<S: Simd>(simd: S, bytes: &[u8]) -> S::Floats {
                simd.$load(unit(bytes))
            }

            #[inline(always)]
            fn weights<S: Simd>(_: S, unit: S::Floats, _: usize) -> S::Floats {
                unit
            }

            #[inline(always)]
            fn multiply_add<S: Simd>(simd: S, weights: S::Floats, input: u32, sum: S::Floats) -> S::Floats {
                simd.mul_add(weights, simd.splat(f32::from_bits(input)), sum)
            }
        }
    };
}

float_units!(F32Units, VECTOR_BYTES, load_f32);
float_units!(F16Units, VECTOR_BYTES / 2, widen_f16);

/// Formats whose weights are pairs of bf16 once they are unpacked.
macro_rules! pair_units {
    ($name:ident, $words:literal, $group_units:expr, $pairs:ident($($word:ident)?)) => {
        pub(super) struct $name;

        impl Units for $name {
            const WORDS: usize = $words;
            const GROUP_UNITS: usize = $group_units;
            type Unit<S: Simd> = S::Bytes;
            type Weights<S: Simd> = S::Pairs;

            #[inline(always)]
            fn load<S: Simd>(simd: S, bytes: &[u8]) -> S::Bytes {
                simd.load_bytes(unit(bytes))
            }

            #[inline(always)]
            fn weights<S: Simd>(simd: S, unit: S::Bytes, _word: usize) -> S::Pairs {
                $(let $word = _word;)?
                simd.$pairs(unit $(, $word)?)
            }

            #[inline(always)]
            fn multiply_add<S: Simd>(simd: S, weights: S::Pairs, input: u32, sum: S::Floats) -> S::Floats {
                simd.dot_pairs(sum, weights, input)
            }
        }
    };
}

pair_units!(Bf16Units, 1, 0, pairs_bf16());
pair_units!(Int8Units, 2, 0, pairs_int8(word));
pair_units!(Int4Units, 4, INT4_GROUP_COLUMNS / 8, pairs_int4(word));

/// The bytes of a unit; tiles hand over at least these.
#[inline(always)]
fn unit<const BYTES: usize>(bytes: &[u8]) -> &[u8; BYTES] {
    bytes.first_chunk().expect("a unit has its bytes")
}
