//! Functions of sixteen lanes, each from exact operations alone: the same bits at every level.

use super::simd::{LANES, Simd};

/// `e^x`, to a relative error of 2e-7; 0 below -87.3, and e^88 above 88.
#[inline(always)]
pub(super) fn exp<S: Simd>(simd: S, x: S::Floats) -> S::Floats {
    let splat = |value| simd.splat(value);
    let clamped = simd.max(simd.min(x, splat(EXP_MAX)), splat(EXP_MIN));
    // x = n ln 2 + r, |r| <= ln 2 / 2; ln 2 in two parts so that n ln 2 is exact to more than an f32's bits.
    let n = simd.round(simd.mul(clamped, splat(std::f32::consts::LOG2_E)));
    let r = simd.mul_add(n, splat(-LN_2_HIGH), clamped);
    let r = simd.mul_add(n, splat(-LN_2_LOW), r);
    let mut series = splat(EXP_COEFFICIENTS[0]);
    let mut index = 1;
    while index < EXP_COEFFICIENTS.len() {
        series = simd.mul_add(series, r, splat(EXP_COEFFICIENTS[index]));
        index += 1;
    }
    let scaled = simd.mul(series, simd.exp2_integer(n));
    simd.select_less(x, splat(EXP_MIN), splat(0.0), scaled)
}

/// `x / (1 + e^-x)`.
#[inline(always)]
fn silu<S: Simd>(simd: S, x: S::Floats) -> S::Floats {
    let exp = exp(simd, simd.sub(simd.splat(0.0), x));
    simd.div(x, simd.add(simd.splat(1.0), exp))
}

/// `x / 2 (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))`, which is `x / (1 + e^-2u)` for tanh's argument `u`.
#[inline(always)]
fn gelu_tanh<S: Simd>(simd: S, x: S::Floats) -> S::Floats {
    let cubic = simd.mul_add(simd.mul(x, x), simd.splat(0.044_715), simd.splat(1.0));
    let minus_two_u = simd.mul(simd.mul(x, cubic), simd.splat(-2.0 * SQRT_2_OVER_PI));
    simd.div(x, simd.add(simd.splat(1.0), exp(simd, minus_two_u)))
}

/// `x / 2 (1 + erf(x / sqrt 2))`, with the rational approximation of erf by Abramowitz and Stegun, 7.1.26,
/// whose error is at most 1.5e-7.
#[inline(always)]
fn gelu<S: Simd>(simd: S, x: S::Floats) -> S::Floats {
    let splat = |value| simd.splat(value);
    let minus_x = simd.sub(splat(0.0), x);
    let z = simd.mul(simd.max(x, minus_x), splat(std::f32::consts::FRAC_1_SQRT_2));
    let t = simd.div(splat(1.0), simd.mul_add(z, splat(0.327_591_1), splat(1.0)));
    let mut series = splat(ERF_COEFFICIENTS[0]);
    let mut index = 1;
    while index < ERF_COEFFICIENTS.len() {
        series = simd.mul_add(series, t, splat(ERF_COEFFICIENTS[index]));
        index += 1;
    }
    let tail = simd.mul(
        simd.mul(series, t),
        exp(simd, simd.sub(splat(0.0), simd.mul(z, z))),
    );
    let erf = simd.sub(splat(1.0), tail);
    // erf is odd: 1 + erf(x) below zero is what erf of the magnitude lacks to 1.
    let one_plus = simd.select_less(x, splat(0.0), tail, simd.add(splat(1.0), erf));
    simd.mul(simd.mul(x, splat(0.5)), one_plus)
}

/// `x` where it is positive, else 0.
#[inline(always)]
fn relu<S: Simd>(simd: S, x: S::Floats) -> S::Floats {
    let zero = simd.splat(0.0);
    simd.select_less(zero, x, x, zero)
}

/// The sum of a row: lane `i % 16` sums element `i`.
#[inline(always)]
pub(super) fn sum<S: Simd>(simd: S, row: &[f32]) -> f32 {
    let (chunks, tail) = row.as_chunks::<LANES>();
    let mut sums = simd.splat(0.0);
    for chunk in chunks {
        sums = simd.add(sums, simd.load(chunk));
    }
    if !tail.is_empty() {
        sums = simd.add(sums, load_part(simd, tail));
    }
    simd.sum(sums)
}

/// A function of an element. Kernels take it as a type, so that it is compiled into them.
pub(super) trait Function {
    fn of<S: Simd>(simd: S, x: S::Floats) -> S::Floats;
}

macro_rules! functions {
    ($($name:ident: $function:ident),+) => {
        $(
            pub(super) struct $name;

            impl Function for $name {
                #[inline(always)]
                fn of<S: Simd>(simd: S, x: S::Floats) -> S::Floats {
                    $function(simd, x)
                }
            }
        )+
    };
}

functions!(Silu: silu, GeluTanh: gelu_tanh, Gelu: gelu, Relu: relu);

/// The dot product of two rows of one length: lane `i % 16` sums element `i`.
#[inline(always)]
pub(super) fn dot<S: Simd>(simd: S, a: &[f32], b: &[f32]) -> f32 {
    let (a_chunks, a_tail) = a.as_chunks::<LANES>();
    let (b_chunks, b_tail) = b.as_chunks::<LANES>();
    let mut sums = simd.splat(0.0);
    for (a, b) in a_chunks.iter().zip(b_chunks) {
        sums = simd.mul_add(simd.load(a), simd.load(b), sums);
    }
    if !a_tail.is_empty() {
        sums = simd.mul_add(load_part(simd, a_tail), load_part(simd, b_tail), sums);
    }
    simd.sum(sums)
}

/// Fewer than sixteen elements, then zeros.
#[inline(always)]
pub(super) fn load_part<S: Simd>(simd: S, from: &[f32]) -> S::Floats {
    let mut all = [0.0; LANES];
    all[..from.len()].copy_from_slice(from);
    simd.load(&all)
}

/// The first of sixteen lanes, as many as there is room for.
#[inline(always)]
pub(super) fn store_part<S: Simd>(simd: S, floats: S::Floats, to: &mut [f32]) {
    let mut all = [0.0; LANES];
    simd.store(floats, &mut all);
    let len = to.len();
    to.copy_from_slice(&all[..len]);
}

const EXP_MIN: f32 = -87.3;
const EXP_MAX: f32 = 88.0;

/// ln 2 to 9 bits (0.693359375 exactly), so that its product with an integer below 2^15 is exact; and the rest of it.
const LN_2_HIGH: f32 = 0.693_359_4;
const LN_2_LOW: f32 = -2.121_944_4e-4;

/// e^r as a polynomial for |r| <= ln 2 / 2, highest power first: the Taylor series to the seventh power, whose
/// next term is below 6e-9.
const EXP_COEFFICIENTS: [f32; 8] = [
    1.0 / 5040.0,
    1.0 / 720.0,
    1.0 / 120.0,
    1.0 / 24.0,
    1.0 / 6.0,
    0.5,
    1.0,
    1.0,
];

/// Of powers of t, highest first.
const ERF_COEFFICIENTS: [f32; 5] = [1.061_405_4, -1.453_152_1, 1.421_413_7, -0.284_496_74, 0.254_829_6];

const SQRT_2_OVER_PI: f32 = 0.797_884_6;

#[cfg(test)]
mod tests {
    use super::super::simd::{Kernel, Level};
    use super::*;

    #[derive(Clone, Copy)]
    enum Tested {
        Exp,
        Silu,
        GeluTanh,
        Gelu,
        Relu,
    }

    struct Apply(Tested, [f32; LANES]);

    impl Kernel for Apply {
        type Output = [f32; LANES];

        #[inline(always)]
        fn call<S: Simd>(self, simd: S) -> [f32; LANES] {
            let x = simd.load(&self.1);
            let y = match self.0 {
                Tested::Exp => exp(simd, x),
                Tested::Silu => silu(simd, x),
                Tested::GeluTanh => gelu_tanh(simd, x),
                Tested::Gelu => gelu(simd, x),
                Tested::Relu => relu(simd, x),
            };
            let mut out = [0.0; LANES];
            simd.store(y, &mut out);
            out
        }
    }

    /// Checks a function against f64 over -90..90 and that levels agree; gives the largest error, relative
    /// to the larger of the true value and `floor`.
    fn largest_error(function: Tested, floor: f64, exact: impl Fn(f64) -> f64) -> f64 {
        let mut largest: f64 = 0.0;
        for start in 0..36_000 / 16 {
            let x: [f32; LANES] =
                std::array::from_fn(|lane| (start * 16 + lane) as f32 * 0.005 - 90.0 + lane as f32 * 1e-4);
            let levels = Level::available();
            let expected = levels[0].run(Apply(function, x));
            for level in &levels[1..] {
                let found = level.run(Apply(function, x));
                assert_eq!(expected.map(f32::to_bits), found.map(f32::to_bits), "{level}");
            }
            for (x, y) in x.into_iter().zip(expected) {
                let exact = exact(f64::from(x));
                if f64::from(x) < f64::from(EXP_MAX) {
                    largest = largest.max((f64::from(y) - exact).abs() / exact.abs().max(floor));
                }
            }
        }
        largest
    }

    #[test]
    fn functions_are_as_near_as_they_say_and_the_same_at_every_level() {
        let error = largest_error(Tested::Exp, 1e-31, f64::exp);
        assert!(error < 2e-7, "exp {error:e}");
        let error = largest_error(Tested::Silu, 1e-6, |x| x / (1.0 + (-x).exp()));
        assert!(error < 5e-7, "silu {error:e}");
        let tanh_argument = |x: f64| (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x.powi(3));
        let error = largest_error(Tested::GeluTanh, 1e-3, |x| {
            x / 2.0 * (1.0 + tanh_argument(x).tanh())
        });
        assert!(error < 2e-6, "gelu_tanh {error:e}");
        let error = largest_error(Tested::Relu, 1e-6, |x| x.max(0.0));
        assert!(error < 1e-7, "relu {error:e}");
    }

    #[test]
    fn gelu_is_that_of_tables() {
        // Phi(x) of the standard normal distribution, from its tables.
        let table = [
            (0.0, 0.5),
            (0.5, 0.691_462_46),
            (1.0, 0.841_344_75),
            (2.0, 0.977_249_87),
            (-1.0, 0.158_655_25),
            (-3.0, 0.001_349_898),
        ];
        for (x, phi) in table {
            for level in Level::available() {
                let y = level.run(Apply(Tested::Gelu, [x; LANES]))[7];
                assert!(
                    (f64::from(y) - f64::from(x) * phi).abs() < 4e-7,
                    "{level} {x}: {y}"
                );
            }
        }
    }

    #[test]
    fn exp_of_minus_infinity_is_zero() {
        for level in Level::available() {
            assert_eq!(
                level.run(Apply(Tested::Exp, [f32::NEG_INFINITY; LANES])),
                [0.0; LANES]
            );
        }
    }
}
