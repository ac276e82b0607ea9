//! Dot products with a fixed order of additions.
//!
//! Element `i` is added to lane `i % LANES`; lanes are then added as a balanced tree. The order depends on
//! the length alone, and the lanes are what the compiler turns into vector instructions.

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

pub(super) const LANES: usize = 16;

/// An element type that weights are stored in.
pub(super) trait Weight: bytemuck::Pod {
    fn widen(self) -> f32;
    fn is_finite(self) -> bool;
    fn widen_lanes(chunk: &[Self; LANES]) -> [f32; LANES];
}

impl Weight for f32 {
    fn widen(self) -> f32 {
        self
    }

    fn is_finite(self) -> bool {
        Self::is_finite(self)
    }

    fn widen_lanes(chunk: &[Self; LANES]) -> [f32; LANES] {
        *chunk
    }
}

impl Weight for bf16 {
    fn widen(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }

    fn is_finite(self) -> bool {
        Self::is_finite(self)
    }

    fn widen_lanes(chunk: &[Self; LANES]) -> [f32; LANES] {
        chunk.map(Self::widen)
    }
}

impl Weight for f16 {
    fn widen(self) -> f32 {
        self.to_f32()
    }

    fn is_finite(self) -> bool {
        Self::is_finite(self)
    }

    fn widen_lanes(chunk: &[Self; LANES]) -> [f32; LANES] {
        let mut lanes = [0.0; LANES];
        chunk.convert_to_f32_slice(&mut lanes);
        lanes
    }
}

/// The dot products of one vector of weights with several rows, each as if it were alone.
pub(super) fn dot_rows<const ROWS: usize, W: Weight>(weights: &[W], rows: [&[f32]; ROWS]) -> [f32; ROWS] {
    let mut lanes = [[0f32; LANES]; ROWS];
    let (chunks, tail) = weights.as_chunks::<LANES>();
    let row_chunks = rows.map(|row| &row.as_chunks::<LANES>().0[..chunks.len()]);
    for (index, chunk) in chunks.iter().enumerate() {
        let weights = W::widen_lanes(chunk);
        for (lanes, row) in lanes.iter_mut().zip(row_chunks) {
            let values = &row[index];
            for lane in 0..LANES {
                lanes[lane] += weights[lane] * values[lane];
            }
        }
    }
    for (lanes, row) in lanes.iter_mut().zip(rows) {
        let values = &row[weights.len() - tail.len()..weights.len()];
        for ((lane, weight), value) in lanes.iter_mut().zip(tail).zip(values) {
            *lane += weight.widen() * value;
        }
    }
    lanes.map(sum_lanes)
}

/// The dot product of two vectors of one length.
pub(super) fn dot(a: &[f32], b: &[f32]) -> f32 {
    dot_rows(a, [b])[0]
}

fn sum_lanes(mut lanes: [f32; LANES]) -> f32 {
    let mut half = LANES / 2;
    while half > 0 {
        for lane in 0..half {
            lanes[lane] += lanes[lane + half];
        }
        half /= 2;
    }
    lanes[0]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn rows_together_equal_rows_alone_to_the_bit(
            values in prop::collection::vec(-4f32..4.0, 0..300),
        ) {
            let length = values.len() / 5;
            let row = |index: usize| &values[index * length..(index + 1) * length];
            let weights: Vec<bf16> = row(4).iter().copied().map(bf16::from_f32).collect();
            let together = dot_rows(&weights, [row(0), row(1), row(2), row(3)]);
            for (index, product) in together.iter().enumerate() {
                prop_assert_eq!(product.to_bits(), dot_rows(&weights, [row(index)])[0].to_bits());
            }
        }

        #[test]
        fn products_are_as_exact_as_sixteen_lanes_allow(
            pairs in prop::collection::vec((-4f32..4.0, -4f32..4.0), 0..200),
        ) {
            let (a, b): (Vec<f32>, Vec<f32>) = pairs.iter().copied().unzip();
            let exact: f64 = pairs.iter().map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
            let magnitude: f64 = pairs.iter().map(|(a, b)| f64::from((a * b).abs())).sum();
            // Each term takes part in at most ceil(200 / 16) + 4 + 1 roundings.
            let bound = magnitude * 18.0 * f64::from(f32::EPSILON);
            prop_assert!((f64::from(dot(&a, &b)) - exact).abs() <= bound);
        }
    }

    #[test]
    fn every_half_value_is_widened_alike_in_lanes_and_alone() {
        for bits in (0..=u16::MAX).step_by(LANES) {
            let halves: [f16; LANES] =
                std::array::from_fn(|lane| f16::from_bits(bits + u16::try_from(lane).unwrap()));
            let lanes = f16::widen_lanes(&halves);
            for (half, lane) in halves.iter().zip(lanes).filter(|(half, _)| !half.is_nan()) {
                assert_eq!(half.widen().to_bits(), lane.to_bits());
            }
        }
    }
}
