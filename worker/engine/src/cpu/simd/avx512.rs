//! AVX-512, with and without its bf16 dot product: sixteen lanes in one register.

use std::arch::x86_64::{
    __m256i, __m512, __m512bh, __m512i, _CMP_LT_OQ, _MM_FROUND_NO_EXC, _MM_FROUND_TO_NEAREST_INT, _mm_add_ps,
    _mm_add_ss, _mm_cvtsi32_si128, _mm_cvtss_f32, _mm_max_ps, _mm_max_ss, _mm_movehl_ps, _mm_shuffle_ps,
    _mm256_add_ps, _mm256_castps256_ps128, _mm256_extractf128_ps, _mm256_loadu_si256, _mm256_max_ps,
    _mm512_add_epi32, _mm512_add_ps, _mm512_and_si512, _mm512_castps_si512, _mm512_castps512_ps256,
    _mm512_castsi512_ps, _mm512_cmp_ps_mask, _mm512_cvtepi32_ps, _mm512_cvtepu16_epi32, _mm512_cvtph_ps,
    _mm512_cvtps_epi32, _mm512_div_ps, _mm512_dpbf16_ps, _mm512_extractf32x8_ps, _mm512_fmadd_ps,
    _mm512_loadu_ps, _mm512_loadu_si512, _mm512_mask_blend_ps, _mm512_max_ps, _mm512_min_ps, _mm512_mul_ps,
    _mm512_or_si512, _mm512_permutexvar_epi16, _mm512_permutexvar_ps, _mm512_roundscale_ps,
    _mm512_set1_epi32, _mm512_set1_ps, _mm512_sll_epi32, _mm512_slli_epi32, _mm512_srai_epi32,
    _mm512_srl_epi16, _mm512_srl_epi32, _mm512_srli_epi32, _mm512_storeu_ps, _mm512_sub_ps,
};
use std::mem::transmute;

use super::scalar::{high_half, low_half};
use super::{Kernel, LANES, Simd, VECTOR_BYTES};

/// The proof that this processor has AVX-512 F, BW, DQ and VL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Avx512(());

/// The proof that this processor has them and the bf16 dot product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Avx512Bf16(Avx512);

impl Avx512 {
    pub(super) fn detect() -> Option<Self> {
        let has_all = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c");
        has_all.then_some(Self(()))
    }
}

impl Avx512Bf16 {
    pub(super) fn detect() -> Option<Self> {
        let base = Avx512::detect()?;
        is_x86_feature_detected!("avx512bf16").then_some(Self(base))
    }
}

/// What both sets do alike.
macro_rules! lanes_of_f32 {
    ($features:literal) => {
        const HAS_WIDE_TILES: bool = true;

        type Floats = __m512;
        type Bytes = __m512i;

        #[inline(always)]
        fn run<K: Kernel>(self, kernel: K) -> K::Output {
            #[target_feature(enable = $features)]
            fn with_features<S: Simd, K: Kernel>(set: S, kernel: K) -> K::Output {
                kernel.call(set)
            }
            // SAFETY: the function demands features whose presence `self` proves.
            unsafe { with_features(self, kernel) }
        }

        #[inline(always)]
        fn splat(self, value: f32) -> __m512 {
            // SAFETY: the intrinsic demands AVX-512, whose presence `self` proves.
            unsafe { _mm512_set1_ps(value) }
        }

        #[inline(always)]
        fn load(self, from: &[f32; LANES]) -> __m512 {
            // SAFETY: AVX-512 is there as `self` proves; 16 f32 are read, and no alignment is demanded.
            unsafe { _mm512_loadu_ps(from.as_ptr()) }
        }

        #[inline(always)]
        fn store(self, floats: __m512, to: &mut [f32; LANES]) {
            // SAFETY: AVX-512 is there as `self` proves; 16 f32 are written, and no alignment is demanded.
            unsafe { _mm512_storeu_ps(to.as_mut_ptr(), floats) }
        }

        #[inline(always)]
        fn add(self, a: __m512, b: __m512) -> __m512 {
            // SAFETY: the intrinsic demands AVX-512, whose presence `self` proves.
            unsafe { _mm512_add_ps(a, b) }
        }

        #[inline(always)]
        fn sub(self, a: __m512, b: __m512) -> __m512 {
            // SAFETY: the intrinsic demands AVX-512, whose presence `self` proves.
            unsafe { _mm512_sub_ps(a, b) }
        }

        #[inline(always)]
        fn mul(self, a: __m512, b: __m512) -> __m512 {
            // SAFETY: the intrinsic demands AVX-512, whose presence `self` proves.
            unsafe { _mm512_mul_ps(a, b) }
        }

        #[inline(always)]
        fn div(self, a: __m512, b: __m512) -> __m512 {
            // SAFETY: the intrinsic demands AVX-512, whose presence `self` proves.
            unsafe { _mm512_div_ps(a, b) }
        }

        #[inline(always)]
        fn mul_add(self, a: __m512, b: __m512, c: __m512) -> __m512 {
            // SAFETY: the intrinsic demands AVX-512, whose presence `self` proves.
            unsafe { _mm512_fmadd_ps(a, b, c) }
        }

        #[inline(always)]
        fn max(self, a: __m512, b: __m512) -> __m512 {
            // SAFETY: the intrinsic demands AVX-512, whose presence `self` proves.
            unsafe { _mm512_max_ps(a, b) }
        }

        #[inline(always)]
        fn min(self, a: __m512, b: __m512) -> __m512 {
            // SAFETY: the intrinsic demands AVX-512, whose presence `self` proves.
            unsafe { _mm512_min_ps(a, b) }
        }

        #[inline(always)]
        fn round(self, a: __m512) -> __m512 {
            const NEAREST: i32 = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
            // SAFETY: the intrinsic demands AVX-512, whose presence `self` proves.
            unsafe { _mm512_roundscale_ps::<NEAREST>(a) }
        }

        #[inline(always)]
        fn exp2_integer(self, a: __m512) -> __m512 {
            // SAFETY: the intrinsics demand AVX-512, whose presence `self` proves; they touch registers alone.
            unsafe {
                let exponent = _mm512_add_epi32(_mm512_cvtps_epi32(a), _mm512_set1_epi32(127));
                _mm512_castsi512_ps(_mm512_slli_epi32::<23>(exponent))
            }
        }

        #[inline(always)]
        fn select_less(self, a: __m512, b: __m512, yes: __m512, no: __m512) -> __m512 {
            // SAFETY: the intrinsics demand AVX-512, whose presence `self` proves; they touch registers alone.
            unsafe { _mm512_mask_blend_ps(_mm512_cmp_ps_mask::<_CMP_LT_OQ>(a, b), no, yes) }
        }

        #[inline(always)]
        fn sum(self, a: __m512) -> f32 {
            // SAFETY: the intrinsics demand AVX-512, whose presence `self` proves; they touch registers alone.
            unsafe {
                let eight = _mm256_add_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps::<1>(a));
                let four = _mm_add_ps(
                    _mm256_castps256_ps128(eight),
                    _mm256_extractf128_ps::<1>(eight),
                );
                let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
                _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps::<1>(two, two)))
            }
        }

        #[inline(always)]
        fn largest(self, a: __m512) -> f32 {
            // SAFETY: the intrinsics demand AVX-512, whose presence `self` proves; they touch registers alone.
            unsafe {
                let eight = _mm256_max_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps::<1>(a));
                let four = _mm_max_ps(
                    _mm256_castps256_ps128(eight),
                    _mm256_extractf128_ps::<1>(eight),
                );
                let two = _mm_max_ps(four, _mm_movehl_ps(four, four));
                _mm_cvtss_f32(_mm_max_ss(two, _mm_shuffle_ps::<1>(two, two)))
            }
        }

        #[inline(always)]
        fn load_bytes(self, from: &[u8; VECTOR_BYTES]) -> __m512i {
            // SAFETY: AVX-512 is there as `self` proves; 64 bytes are read, and no alignment is demanded.
            unsafe { _mm512_loadu_si512(from.as_ptr().cast()) }
        }

        #[inline(always)]
        fn load_f32(self, from: &[u8; VECTOR_BYTES]) -> __m512 {
            // SAFETY: the intrinsic demands AVX-512, whose presence `self` proves.
            unsafe { _mm512_castsi512_ps(self.load_bytes(from)) }
        }

        #[inline(always)]
        fn widen_f16(self, from: &[u8; 32]) -> __m512 {
            // SAFETY: AVX-512 is there as `self` proves; 32 bytes are read, and no alignment is demanded.
            unsafe { _mm512_cvtph_ps(load_half(from)) }
        }

        #[inline(always)]
        fn widen_bf16(self, from: &[u8; 32]) -> __m512 {
            // SAFETY: AVX-512 is there as `self` proves; 32 bytes are read, and no alignment is demanded.
            unsafe {
                let wide = _mm512_cvtepu16_epi32(load_half(from));
                _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide))
            }
        }
    };
}

impl Simd for Avx512 {
    lanes_of_f32!("avx512f,avx512bw,avx512dq,avx512vl,fma,f16c");

    /// The low halves and the high halves, widened.
    type Pairs = [__m512; 2];

    #[inline(always)]
    fn pairs_bf16(self, bytes: __m512i) -> [__m512; 2] {
        // SAFETY: the intrinsics demand AVX-512, whose presence `self` proves; they touch registers alone.
        unsafe {
            let high = _mm512_and_si512(bytes, _mm512_set1_epi32(HIGH_HALF));
            [
                _mm512_castsi512_ps(_mm512_slli_epi32::<16>(bytes)),
                _mm512_castsi512_ps(high),
            ]
        }
    }

    #[inline(always)]
    fn pairs_int8(self, bytes: __m512i, index: usize) -> [__m512; 2] {
        // SAFETY: the function demands AVX-512, whose presence `self` proves.
        unsafe { widened_int8(bytes, index) }
    }

    #[inline(always)]
    fn pairs_int4(self, bytes: __m512i, index: usize) -> [__m512; 2] {
        let values = self.load(&INT4_VALUES);
        // SAFETY: the intrinsics demand AVX-512, whose presence `self` proves. The permutations look at the
        // lowest four bits of a lane alone.
        unsafe {
            let low = _mm512_srl_epi32(bytes, _mm_cvtsi32_si128(shift_count(4 * index)));
            let high = _mm512_srl_epi32(bytes, _mm_cvtsi32_si128(shift_count(16 + 4 * index)));
            [
                _mm512_permutexvar_ps(low, values),
                _mm512_permutexvar_ps(high, values),
            ]
        }
    }

    #[inline(always)]
    fn dot_pairs(self, sum: __m512, pairs: [__m512; 2], pair: u32) -> __m512 {
        let [low, high] = pairs;
        let sum = self.mul_add(high, self.splat(high_half(pair)), sum);
        self.mul_add(low, self.splat(low_half(pair)), sum)
    }
}

impl Simd for Avx512Bf16 {
    lanes_of_f32!("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,fma,f16c");

    /// As they lie in memory.
    type Pairs = __m512i;

    #[inline(always)]
    fn pairs_bf16(self, bytes: __m512i) -> __m512i {
        bytes
    }

    #[inline(always)]
    fn pairs_int8(self, bytes: __m512i, index: usize) -> __m512i {
        // A widened int8 has at most eight significant bits, so the lower half of its f32 is zero.
        // SAFETY: function and intrinsics demand AVX-512, whose presence `self` proves; they touch registers
        // alone.
        unsafe {
            let [low, high] = widened_int8(bytes, index);
            let low = _mm512_srli_epi32::<16>(_mm512_castps_si512(low));
            _mm512_or_si512(_mm512_castps_si512(high), low)
        }
    }

    #[inline(always)]
    fn pairs_int4(self, bytes: __m512i, index: usize) -> __m512i {
        // SAFETY: the intrinsics demand AVX-512 BW, whose presence `self` proves. The permutation looks at
        // the lowest five bits of each half lane; the fifth one does not matter, as the table repeats.
        unsafe {
            let nibbles = _mm512_srl_epi16(bytes, _mm_cvtsi32_si128(shift_count(4 * index)));
            _mm512_permutexvar_epi16(nibbles, _mm512_loadu_si512(INT4_VALUES_BF16.as_ptr().cast()))
        }
    }

    #[inline(always)]
    fn dot_pairs(self, sum: __m512, pairs: __m512i, pair: u32) -> __m512 {
        // SAFETY: the intrinsics demand AVX-512 with bf16, whose presence `self` proves; both types are 512
        // bits without invalid values.
        unsafe {
            let pair = _mm512_set1_epi32(pair.cast_signed());
            _mm512_dpbf16_ps(
                sum,
                transmute::<__m512i, __m512bh>(pairs),
                transmute::<__m512i, __m512bh>(pair),
            )
        }
    }
}

#[inline(always)]
fn load_half(from: &[u8; 32]) -> __m256i {
    // SAFETY: AVX-512, which every caller has, includes AVX; 32 bytes are read, no alignment is demanded.
    unsafe { _mm256_loadu_si256(from.as_ptr().cast()) }
}

/// The pair of each lane as f32, low element first.
#[inline]
#[target_feature(enable = "avx512f")]
fn widened_int8(bytes: __m512i, index: usize) -> [__m512; 2] {
    // The byte goes to the top of its lane, and from there back with its sign.
    let low = _mm512_sll_epi32(bytes, _mm_cvtsi32_si128(shift_count(24 - 16 * index)));
    let high = _mm512_sll_epi32(bytes, _mm_cvtsi32_si128(shift_count(16 - 16 * index)));
    [
        _mm512_cvtepi32_ps(_mm512_srai_epi32::<24>(low)),
        _mm512_cvtepi32_ps(_mm512_srai_epi32::<24>(high)),
    ]
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

const HIGH_HALF: i32 = 0xffff_0000_u32.cast_signed();

/// What each nibble stands for.
const INT4_VALUES: [f32; LANES] = {
    let mut values = [0.0; LANES];
    let mut nibble = 0;
    while nibble < LANES {
        values[nibble] = nibble as f32 - 8.0;
        nibble += 1;
    }
    values
};

/// The same as bf16, twice.
const INT4_VALUES_BF16: [u16; 32] = {
    let mut values = [0; 32];
    let mut index = 0;
    while index < values.len() {
        values[index] = (INT4_VALUES[index % LANES].to_bits() >> 16) as u16;
        index += 1;
    }
    values
};
