//! Sixteen lanes of f32 on every processor: kernels are written once over [`Simd`], and run at a [`Level`].
//!
//! Every operation is exact in IEEE 754 terms and works lane by lane, and the two reductions add in one fixed
//! order, so a kernel gives the same bits at every level. The one exception is below the normal numbers:
//! the bf16 dot product of x86 treats subnormal inputs and sums as zeros, the other levels do not.
#![expect(
    unsafe_code,
    reason = "vector instructions are reached through functions that demand their processor features"
)]

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod scalar;

use std::fmt;

#[cfg(target_arch = "x86_64")]
use {avx2::Avx2, avx512::Avx512, avx512::Avx512Bf16};

use scalar::Scalar;

/// How many lanes a vector has.
pub(super) const LANES: usize = 16;

/// The size in bytes of what [`Simd::load_bytes`] loads.
pub(super) const VECTOR_BYTES: usize = 64;

/// A vector instruction set. A value of an implementing type is the proof that this processor has it.
///
/// A *pair* is two bf16 in one u32: the element with the lower index in the low half. A vector of pairs has
/// one pair in each lane.
pub(super) trait Simd: Copy {
    /// Whether kernels should use large register tiles: 32 vector registers of all 16 lanes.
    const HAS_WIDE_TILES: bool;

    /// Sixteen f32.
    type Floats: Copy;
    /// 64 bytes as they lie in memory.
    type Bytes: Copy;
    /// Sixteen pairs, in whatever form [`Self::dot_pairs`] takes them fastest.
    type Pairs: Copy;

    /// Runs a kernel in a function that may use the instruction set.
    fn run<K: Kernel>(self, kernel: K) -> K::Output;

    fn splat(self, value: f32) -> Self::Floats;
    fn load(self, from: &[f32; LANES]) -> Self::Floats;
    fn store(self, floats: Self::Floats, to: &mut [f32; LANES]);
    fn add(self, a: Self::Floats, b: Self::Floats) -> Self::Floats;
    fn sub(self, a: Self::Floats, b: Self::Floats) -> Self::Floats;
    fn mul(self, a: Self::Floats, b: Self::Floats) -> Self::Floats;
    fn div(self, a: Self::Floats, b: Self::Floats) -> Self::Floats;
    /// `a * b + c`, rounded once.
    fn mul_add(self, a: Self::Floats, b: Self::Floats, c: Self::Floats) -> Self::Floats;
    /// The larger of each lane; `b` where one is NaN.
    fn max(self, a: Self::Floats, b: Self::Floats) -> Self::Floats;
    /// The smaller of each lane; `b` where one is NaN.
    fn min(self, a: Self::Floats, b: Self::Floats) -> Self::Floats;
    /// The nearest integer, halves to even.
    fn round(self, a: Self::Floats) -> Self::Floats;
    /// `2^a` for lanes that are integers in -126..=127; anything for others.
    fn exp2_integer(self, a: Self::Floats) -> Self::Floats;
    /// `if a < b { yes } else { no }`, lane by lane.
    fn select_less(
        self,
        a: Self::Floats,
        b: Self::Floats,
        yes: Self::Floats,
        no: Self::Floats,
    ) -> Self::Floats;
    /// The sum of all lanes: halves are added to each other until one lane is left.
    fn sum(self, a: Self::Floats) -> f32;
    /// The largest lane, of lanes without NaN.
    fn largest(self, a: Self::Floats) -> f32;

    fn load_bytes(self, from: &[u8; VECTOR_BYTES]) -> Self::Bytes;
    /// Sixteen f32.
    fn load_f32(self, from: &[u8; VECTOR_BYTES]) -> Self::Floats;
    /// Sixteen f16, widened.
    fn widen_f16(self, from: &[u8; 32]) -> Self::Floats;
    /// Sixteen bf16, widened.
    fn widen_bf16(self, from: &[u8; 32]) -> Self::Floats;
    /// The bytes as sixteen pairs of bf16.
    fn pairs_bf16(self, bytes: Self::Bytes) -> Self::Pairs;
    /// Lane `l` has bytes `4 l..4 l + 4`, signed; gives the pair `(b[2 index], b[2 index + 1])` of each.
    fn pairs_int8(self, bytes: Self::Bytes, index: usize) -> Self::Pairs;
    /// Lane `l` has eight unsigned nibbles: nibble `i` of its low half and nibble `i` of its high half are
    /// pair `i`; gives pair `index` of each, less 8.
    fn pairs_int4(self, bytes: Self::Bytes, index: usize) -> Self::Pairs;
    /// For each lane: first the product of the high halves is added to the sum, then that of the low halves,
    /// with one rounding each. `pair` meets all lanes.
    fn dot_pairs(self, sum: Self::Floats, pairs: Self::Pairs, pair: u32) -> Self::Floats;
}

/// Code over any instruction set. `call` must be `#[inline(always)]`, and so must all it calls that uses
/// the set: only then is it compiled for it.
pub(super) trait Kernel {
    type Output;
    fn call<S: Simd>(self, simd: S) -> Self::Output;
}

/// An instruction set that kernels run at; the best one of the processor is chosen at start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Level(Known);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Known {
    Scalar(Scalar),
    #[cfg(target_arch = "x86_64")]
    Avx2(Avx2),
    #[cfg(target_arch = "x86_64")]
    Avx512(Avx512),
    #[cfg(target_arch = "x86_64")]
    Avx512Bf16(Avx512Bf16),
}

impl Level {
    /// The levels of this processor, the best one first; the last one is portable code.
    pub fn available() -> Vec<Self> {
        let mut levels = Vec::new();
        #[cfg(target_arch = "x86_64")]
        {
            levels.extend(Avx512Bf16::detect().map(|set| Self(Known::Avx512Bf16(set))));
            levels.extend(Avx512::detect().map(|set| Self(Known::Avx512(set))));
            levels.extend(Avx2::detect().map(|set| Self(Known::Avx2(set))));
        }
        levels.push(Self(Known::Scalar(Scalar)));
        levels
    }

    /// The best level of this processor.
    pub fn best() -> Self {
        Self::available()[0]
    }

    /// Its name, as benchmarks and logs say it.
    pub const fn name(self) -> &'static str {
        match self.0 {
            Known::Scalar(_) => "scalar",
            #[cfg(target_arch = "x86_64")]
            Known::Avx2(_) => "avx2",
            #[cfg(target_arch = "x86_64")]
            Known::Avx512(_) => "avx512",
            #[cfg(target_arch = "x86_64")]
            Known::Avx512Bf16(_) => "avx512_bf16",
        }
    }

    /// Runs a kernel with this level's instructions.
    pub(super) fn run<K: Kernel>(self, kernel: K) -> K::Output {
        match self.0 {
            Known::Scalar(set) => set.run(kernel),
            #[cfg(target_arch = "x86_64")]
            Known::Avx2(set) => set.run(kernel),
            #[cfg(target_arch = "x86_64")]
            Known::Avx512(set) => set.run(kernel),
            #[cfg(target_arch = "x86_64")]
            Known::Avx512Bf16(set) => set.run(kernel),
        }
    }
}

impl fmt::Display for Level {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}
