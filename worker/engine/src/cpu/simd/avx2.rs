//! AVX2 with FMA and F16C: sixteen lanes in two registers.

use std::arch::x86_64::{
    __m256, __m256i, _CMP_LT_OQ, _MM_FROUND_NO_EXC, _MM_FROUND_TO_NEAREST_INT, _mm_add_ps, _mm_add_ss,
    _mm_cvtsi32_si128, _mm_cvtss_f32, _mm_loadu_si128, _mm_max_ps, _mm_max_ss, _mm_movehl_ps, _mm_shuffle_ps,
    _mm256_add_epi32, _mm256_add_ps, _mm256_and_si256, _mm256_blendv_ps, _mm256_castps256_ps128,
    _mm256_castsi256_ps, _mm256_cmp_ps, _mm256_cvtepi32_ps, _mm256_cvtepu16_epi32, _mm256_cvtph_ps,
    _mm256_cvtps_epi32, _mm256_div_ps, _mm256_extractf128_ps, _mm256_fmadd_ps, _mm256_loadu_ps,
    _mm256_loadu_si256, _mm256_max_ps, _mm256_min_ps, _mm256_mul_ps, _mm256_round_ps, _mm256_set1_epi32,
    _mm256_set1_ps, _mm256_sll_epi32, _mm256_slli_epi32, _mm256_srai_epi32, _mm256_srl_epi32,
    _mm256_storeu_ps, _mm256_sub_ps,
};

use super::scalar::{high_half, low_half};
use super::{Kernel, LANES, Simd, VECTOR_BYTES};

/// The proof that this processor has AVX2, FMA and F16C.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Avx2(());

type Floats = [__m256; 2];

impl Avx2 {
    pub(super) fn detect() -> Option<Self> {
        let has_all = is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c");
        has_all.then_some(Self(()))
    }
}

/// An intrinsic on both halves.
macro_rules! on_halves {
    ($intrinsic:ident($($vector:ident),+)) => {
        // SAFETY: the intrinsic demands features whose presence `self` proves; it touches registers alone.
        unsafe { [$intrinsic($($vector[0]),+), $intrinsic($($vector[1]),+)] }
    };
}

impl Simd for Avx2 {
    const HAS_WIDE_TILES: bool = false;

    type Floats = Floats;
    type Bytes = [__m256i; 2];
    /// The low halves and the high halves, widened.
    type Pairs = [Floats; 2];

    #[inline(always)]
    fn run<K: Kernel>(self, kernel: K) -> K::Output {
        #[target_feature(enable = "avx2,fma,f16c")]
        fn with_features<K: Kernel>(set: Avx2, kernel: K) -> K::Output {
            kernel.call(set)
        }
        // SAFETY: the function demands features whose presence `self` proves.
        unsafe { with_features(self, kernel) }
    }

    #[inline(always)]
    fn splat(self, value: f32) -> Floats {
        // SAFETY: the intrinsic demands AVX, whose presence `self` proves.
        [unsafe { _mm256_set1_ps(value) }; 2]
    }

    #[inline(always)]
    fn load(self, from: &[f32; LANES]) -> Floats {
        let (halves, _) = from.as_chunks::<8>();
        // SAFETY: AVX is there as `self` proves; each half is eight f32, and no alignment is demanded.
        unsafe {
            [
                _mm256_loadu_ps(halves[0].as_ptr()),
                _mm256_loadu_ps(halves[1].as_ptr()),
            ]
        }
    }

    #[inline(always)]
    fn store(self, floats: Floats, to: &mut [f32; LANES]) {
        let (halves, _) = to.as_chunks_mut::<8>();
        for (half, floats) in halves.iter_mut().zip(floats) {
            // SAFETY: AVX is there as `self` proves; a half is eight f32, and no alignment is demanded.
            unsafe { _mm256_storeu_ps(half.as_mut_ptr(), floats) }
        }
    }

    #[inline(always)]
    fn add(self, a: Floats, b: Floats) -> Floats {
        on_halves!(_mm256_add_ps(a, b))
    }

    #[inline(always)]
    fn sub(self, a: Floats, b: Floats) -> Floats {
        on_halves!(_mm256_sub_ps(a, b))
    }

    #[inline(always)]
    fn mul(self, a: Floats, b: Floats) -> Floats {
        on_halves!(_mm256_mul_ps(a, b))
    }

    #[inline(always)]
    fn div(self, a: Floats, b: Floats) -> Floats {
        on_halves!(_mm256_div_ps(a, b))
    }

    #[inline(always)]
    fn mul_add(self, a: Floats, b: Floats, c: Floats) -> Floats {
        on_halves!(_mm256_fmadd_ps(a, b, c))
    }

    #[inline(always)]
    fn max(self, a: Floats, b: Floats) -> Floats {
        on_halves!(_mm256_max_ps(a, b))
    }

    #[inline(always)]
    fn min(self, a: Floats, b: Floats) -> Floats {
        on_halves!(_mm256_min_ps(a, b))
    }

    #[inline(always)]
    fn round(self, a: Floats) -> Floats {
        const NEAREST: i32 = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
        // SAFETY: the intrinsic demands AVX, whose presence `self` proves.
        unsafe { [_mm256_round_ps::<NEAREST>(a[0]), _mm256_round_ps::<NEAREST>(a[1])] }
    }

    #[inline(always)]
    fn exp2_integer(self, a: Floats) -> Floats {
        // SAFETY: the function demands AVX2, whose presence `self` proves.
        unsafe { [exp2_integer(a[0]), exp2_integer(a[1])] }
    }

    #[inline(always)]
    fn select_less(self, a: Floats, b: Floats, yes: Floats, no: Floats) -> Floats {
        // SAFETY: the function demands AVX, whose presence `self` proves.
        unsafe {
            [
                select_less(a[0], b[0], yes[0], no[0]),
                select_less(a[1], b[1], yes[1], no[1]),
            ]
        }
    }

    #[inline(always)]
    fn sum(self, a: Floats) -> f32 {
        // SAFETY: the intrinsics demand AVX, whose presence `self` proves; they touch registers alone.
        unsafe {
            let eight = _mm256_add_ps(a[0], a[1]);
            let four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps::<1>(two, two)))
        }
    }

    #[inline(always)]
    fn largest(self, a: Floats) -> f32 {
        // SAFETY: the intrinsics demand AVX, whose presence `self` proves; they touch registers alone.
        unsafe {
            let eight = _mm256_max_ps(a[0], a[1]);
            let four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
            let two = _mm_max_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_max_ss(two, _mm_shuffle_ps::<1>(two, two)))
        }
    }

    #[inline(always)]
    fn load_bytes(self, from: &[u8; VECTOR_BYTES]) -> [__m256i; 2] {
        let (halves, _) = from.as_chunks::<32>();
        // SAFETY: AVX is there as `self` proves; each half is 32 bytes, and no alignment is demanded.
        unsafe {
            [
                _mm256_loadu_si256(halves[0].as_ptr().cast()),
                _mm256_loadu_si256(halves[1].as_ptr().cast()),
            ]
        }
    }

    #[inline(always)]
    fn load_f32(self, from: &[u8; VECTOR_BYTES]) -> Floats {
        let bytes = self.load_bytes(from);
        // SAFETY: the intrinsic demands AVX, whose presence `self` proves.
        unsafe { [_mm256_castsi256_ps(bytes[0]), _mm256_castsi256_ps(bytes[1])] }
    }

    #[inline(always)]
    fn widen_f16(self, from: &[u8; 32]) -> Floats {
        let (halves, _) = from.as_chunks::<16>();
        // SAFETY: the function demands F16C, whose presence `self` proves.
        unsafe { [widen_f16(&halves[0]), widen_f16(&halves[1])] }
    }

    #[inline(always)]
    fn widen_bf16(self, from: &[u8; 32]) -> Floats {
        let (halves, _) = from.as_chunks::<16>();
        // SAFETY: the function demands AVX2, whose presence `self` proves.
        unsafe { [widen_bf16(&halves[0]), widen_bf16(&halves[1])] }
    }

    #[inline(always)]
    fn pairs_bf16(self, bytes: [__m256i; 2]) -> [Floats; 2] {
        // SAFETY: the intrinsics demand AVX2, whose presence `self` proves; they touch registers alone.
        unsafe {
            let high = _mm256_set1_epi32(0xffff_0000_u32.cast_signed());
            let low = [
                _mm256_slli_epi32::<16>(bytes[0]),
                _mm256_slli_epi32::<16>(bytes[1]),
            ];
            let high = [_mm256_and_si256(bytes[0], high), _mm256_and_si256(bytes[1], high)];
            [
                [_mm256_castsi256_ps(low[0]), _mm256_castsi256_ps(low[1])],
                [_mm256_castsi256_ps(high[0]), _mm256_castsi256_ps(high[1])],
            ]
        }
    }

    #[inline(always)]
    fn pairs_int8(self, bytes: [__m256i; 2], index: usize) -> [Floats; 2] {
        let (low, high) = (24 - 16 * index, 16 - 16 * index);
        // SAFETY: the function demands AVX2, whose presence `self` proves.
        unsafe {
            [
                [signed_byte(bytes[0], low), signed_byte(bytes[1], low)],
                [signed_byte(bytes[0], high), signed_byte(bytes[1], high)],
            ]
        }
    }

    #[inline(always)]
    fn pairs_int4(self, bytes: [__m256i; 2], index: usize) -> [Floats; 2] {
        let (low, high) = (4 * index, 16 + 4 * index);
        // SAFETY: the function demands AVX2, whose presence `self` proves.
        unsafe {
            [
                [nibble(bytes[0], low), nibble(bytes[1], low)],
                [nibble(bytes[0], high), nibble(bytes[1], high)],
            ]
        }
    }

    #[inline(always)]
    fn dot_pairs(self, sum: Floats, pairs: [Floats; 2], pair: u32) -> Floats {
        let [low, high] = pairs;
        let sum = self.mul_add(high, self.splat(high_half(pair)), sum);
        self.mul_add(low, self.splat(low_half(pair)), sum)
    }
}

#[inline]
#[target_feature(enable = "avx2")]
fn exp2_integer(a: __m256) -> __m256 {
    let exponent = _mm256_add_epi32(_mm256_cvtps_epi32(a), _mm256_set1_epi32(127));
    _mm256_castsi256_ps(_mm256_slli_epi32::<23>(exponent))
}

#[inline]
#[target_feature(enable = "avx2")]
fn select_less(a: __m256, b: __m256, yes: __m256, no: __m256) -> __m256 {
    _mm256_blendv_ps(no, yes, _mm256_cmp_ps::<_CMP_LT_OQ>(a, b))
}

#[inline]
#[target_feature(enable = "avx2,f16c")]
fn widen_f16(from: &[u8; 16]) -> __m256 {
    // SAFETY: 16 bytes are read, and no alignment is demanded.
    _mm256_cvtph_ps(unsafe { _mm_loadu_si128(from.as_ptr().cast()) })
}

#[inline]
#[target_feature(enable = "avx2")]
fn widen_bf16(from: &[u8; 16]) -> __m256 {
    // SAFETY: 16 bytes are read, and no alignment is demanded.
    let wide = _mm256_cvtepu16_epi32(unsafe { _mm_loadu_si128(from.as_ptr().cast()) });
    _mm256_castsi256_ps(_mm256_slli_epi32::<16>(wide))
}

/// The byte that a left shift brings to the top of its lane, with its sign.
#[inline]
#[target_feature(enable = "avx2")]
fn signed_byte(lanes: __m256i, shift: usize) -> __m256 {
    let shifted = _mm256_sll_epi32(lanes, _mm_cvtsi32_si128(shift_count(shift)));
    _mm256_cvtepi32_ps(_mm256_srai_epi32::<24>(shifted))
}

/// The nibble that a right shift brings to the bottom of its lane, less 8.
#[inline]
#[target_feature(enable = "avx2")]
fn nibble(lanes: __m256i, shift: usize) -> __m256 {
    let shifted = _mm256_srl_epi32(lanes, _mm_cvtsi32_si128(shift_count(shift)));
    let nibble = _mm256_and_si256(shifted, _mm256_set1_epi32(15));
    _mm256_sub_ps(_mm256_cvtepi32_ps(nibble), _mm256_set1_ps(8.0))
}

#[inline(always)]
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    reason = "shifts are below 32"
)]
const fn shift_count(bits: usize) -> i32 {
    bits as i32
}
