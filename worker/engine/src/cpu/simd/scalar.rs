//! Portable lanes: what every other level must equal to the bit.

use std::array::from_fn;

use half::{bf16, f16};

use super::{Kernel, LANES, Simd, VECTOR_BYTES};

/// Plain Rust, which the compiler may vectorise for the baseline of its target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Scalar;

type Floats = [f32; LANES];

impl Simd for Scalar {
    const HAS_WIDE_TILES: bool = false;

    type Floats = Floats;
    type Bytes = [u32; LANES];
    /// The low halves and the high halves, widened.
    type Pairs = [Floats; 2];

    #[inline(always)]
    fn run<K: Kernel>(self, kernel: K) -> K::Output {
        kernel.call(self)
    }

    #[inline(always)]
    fn splat(self, value: f32) -> Floats {
        [value; LANES]
    }

    #[inline(always)]
    fn load(self, from: &[f32; LANES]) -> Floats {
        *from
    }

    #[inline(always)]
    fn store(self, floats: Floats, to: &mut [f32; LANES]) {
        *to = floats;
    }

    #[inline(always)]
    fn add(self, a: Floats, b: Floats) -> Floats {
        from_fn(|lane| a[lane] + b[lane])
    }

    #[inline(always)]
    fn sub(self, a: Floats, b: Floats) -> Floats {
        from_fn(|lane| a[lane] - b[lane])
    }

    #[inline(always)]
    fn mul(self, a: Floats, b: Floats) -> Floats {
        from_fn(|lane| a[lane] * b[lane])
    }

    #[inline(always)]
    fn div(self, a: Floats, b: Floats) -> Floats {
        from_fn(|lane| a[lane] / b[lane])
    }

    #[inline(always)]
    fn mul_add(self, a: Floats, b: Floats, c: Floats) -> Floats {
        from_fn(|lane| a[lane].mul_add(b[lane], c[lane]))
    }

    #[inline(always)]
    fn max(self, a: Floats, b: Floats) -> Floats {
        from_fn(|lane| if a[lane] > b[lane] { a[lane] } else { b[lane] })
    }

    #[inline(always)]
    fn min(self, a: Floats, b: Floats) -> Floats {
        from_fn(|lane| if a[lane] < b[lane] { a[lane] } else { b[lane] })
    }

    #[inline(always)]
    fn round(self, a: Floats) -> Floats {
        from_fn(|lane| a[lane].round_ties_even())
    }

    #[inline(always)]
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "the exponent of a normal f32 fits 8 bits"
    )]
    fn exp2_integer(self, a: Floats) -> Floats {
        from_fn(|lane| f32::from_bits(((a[lane] as i32 + 127) << 23) as u32))
    }

    #[inline(always)]
    fn select_less(self, a: Floats, b: Floats, yes: Floats, no: Floats) -> Floats {
        from_fn(|lane| if a[lane] < b[lane] { yes[lane] } else { no[lane] })
    }

    #[inline(always)]
    fn sum(self, mut a: Floats) -> f32 {
        let mut half = LANES / 2;
        while half > 0 {
            for lane in 0..half {
                a[lane] += a[lane + half];
            }
            half /= 2;
        }
        a[0]
    }

    #[inline(always)]
    fn largest(self, a: Floats) -> f32 {
        a.into_iter().fold(f32::NEG_INFINITY, f32::max)
    }

    #[inline(always)]
    fn load_bytes(self, from: &[u8; VECTOR_BYTES]) -> [u32; LANES] {
        let (lanes, _) = from.as_chunks::<4>();
        from_fn(|lane| u32::from_le_bytes(lanes[lane]))
    }

    #[inline(always)]
    fn load_f32(self, from: &[u8; VECTOR_BYTES]) -> Floats {
        self.load_bytes(from).map(f32::from_bits)
    }

    #[inline(always)]
    fn widen_f16(self, from: &[u8; 32]) -> Floats {
        let (lanes, _) = from.as_chunks::<2>();
        from_fn(|lane| f16::from_le_bytes(lanes[lane]).to_f32())
    }

    #[inline(always)]
    fn widen_bf16(self, from: &[u8; 32]) -> Floats {
        let (lanes, _) = from.as_chunks::<2>();
        from_fn(|lane| bf16::from_le_bytes(lanes[lane]).to_f32())
    }

    #[inline(always)]
    fn pairs_bf16(self, bytes: [u32; LANES]) -> [Floats; 2] {
        [bytes.map(low_half), bytes.map(high_half)]
    }

    #[inline(always)]
    fn pairs_int8(self, bytes: [u32; LANES], index: usize) -> [Floats; 2] {
        [2 * index, 2 * index + 1]
            .map(|byte| bytes.map(|lane| f32::from(lane.to_le_bytes()[byte].cast_signed())))
    }

    #[inline(always)]
    fn pairs_int4(self, bytes: [u32; LANES], index: usize) -> [Floats; 2] {
        [4 * index, 16 + 4 * index].map(|shift| bytes.map(|lane| nibble(lane >> shift)))
    }

    #[inline(always)]
    fn dot_pairs(self, sum: Floats, pairs: [Floats; 2], pair: u32) -> Floats {
        let [low, high] = pairs;
        let sum = self.mul_add(high, self.splat(high_half(pair)), sum);
        self.mul_add(low, self.splat(low_half(pair)), sum)
    }
}

/// The bf16 in the low half, widened.
#[inline(always)]
pub(super) fn low_half(pair: u32) -> f32 {
    f32::from_bits(pair << 16)
}

/// The bf16 in the high half, widened.
#[inline(always)]
pub(super) fn high_half(pair: u32) -> f32 {
    f32::from_bits(pair & 0xffff_0000)
}

#[inline(always)]
#[expect(clippy::cast_precision_loss, reason = "four bits fit an f32")]
fn nibble(bits: u32) -> f32 {
    (bits & 15) as f32 - 8.0
}
