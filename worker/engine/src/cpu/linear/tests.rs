//! Products against plain sums, at every level, in every batch.

use std::num::NonZero;

use half::{bf16, f16};
use proptest::prelude::*;

use super::*;
use crate::cpu::panels::{StoredRows, unpack_row};
use crate::cpu::rounding::{Shape, write_inputs};
use crate::{Dtype, sampling::uniform};

/// A matrix in a format, packed, and its weights as the format keeps them.
struct Packed {
    format: WeightFormat,
    outputs: usize,
    columns: usize,
    bytes: Vec<u8>,
    kept: Vec<Vec<f32>>,
}

/// Numbers in -1..1, a function of the seed alone.
#[expect(clippy::cast_possible_truncation, reason = "any f32 near the number will do")]
fn numbers(seed: u64, count: usize) -> Vec<f32> {
    (0..count as u64)
        .map(|position| (uniform(seed, position) * 2.0 - 1.0) as f32)
        .collect()
}

fn stored(format: WeightFormat) -> Dtype {
    match format {
        WeightFormat::F32 | WeightFormat::Int8 => Dtype::F32,
        WeightFormat::F16 => Dtype::F16,
        WeightFormat::Bf16 | WeightFormat::Int4 => Dtype::Bf16,
    }
}

fn store(dtype: Dtype, values: &[f32]) -> Vec<u8> {
    let bytes = |value: &f32| match dtype {
        Dtype::F32 => value.to_le_bytes().to_vec(),
        Dtype::F16 => f16::from_f32(*value).to_le_bytes().to_vec(),
        Dtype::Bf16 => bf16::from_f32(*value).to_le_bytes().to_vec(),
    };
    values.iter().flat_map(bytes).collect()
}

impl Packed {
    fn new(format: WeightFormat, outputs: usize, columns: usize, seed: u64) -> Self {
        let dtype = stored(format);
        let rows = store(dtype, &numbers(seed, outputs * columns));
        let mut bytes = vec![0xaa; format.matrix_bytes(outputs, columns).unwrap()];
        let rows = StoredRows {
            dtype,
            columns,
            bytes: &rows,
        };
        assert_eq!(rows.place(Level::best(), &threads(), format, &mut bytes), None);
        let kept = (0..outputs).map(|row| {
            let mut out = vec![0.0; columns];
            unpack_row(format, &bytes, row, &mut out);
            out
        });
        let kept = kept.collect();
        Self {
            format,
            outputs,
            columns,
            bytes,
            kept,
        }
    }

    fn product(&self, level: Level, threads: &CpuThreads, x: &[f32], bias: Option<&[f32]>) -> Vec<f32> {
        let rows = x.len() / self.columns;
        let words = if self.format.takes_pairs() {
            let mut words = vec![0; rows * self.format.input_words(self.columns)];
            let shape = Shape {
                format: self.format,
                columns: self.columns,
            };
            write_inputs(level, threads, shape, x, &mut words);
            words
        } else {
            bits(x)
        };
        let mut out = vec![f32::NAN; rows * self.outputs];
        let weights = Weights {
            format: self.format,
            panels: &self.bytes,
            outputs: self.outputs,
            columns: self.columns,
            bias,
        };
        let task = Task::new(weights, Inputs { words: &words, rows }, &mut out);
        run(level, threads, &[Some(task)]);
        out
    }

    /// In f64, from the weights as they are kept and the inputs as they are read.
    fn exact(&self, x: &[f32], row: usize, output: usize) -> (f64, f64) {
        let input = |value: f32| {
            if self.format.takes_pairs() {
                bf16::from_f32(value).to_f32()
            } else {
                value
            }
        };
        let terms = x[row * self.columns..][..self.columns]
            .iter()
            .zip(&self.kept[output])
            .map(|(value, weight)| f64::from(input(*value)) * f64::from(*weight));
        terms.fold((0.0, 0.0), |(sum, magnitude), term| {
            (sum + term, magnitude + term.abs())
        })
    }
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

fn threads() -> CpuThreads {
    CpuThreads::new(NonZero::new(2).unwrap())
}

const FORMATS: [WeightFormat; 5] = [
    WeightFormat::F32,
    WeightFormat::F16,
    WeightFormat::Bf16,
    WeightFormat::Int8,
    WeightFormat::Int4,
];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn products_are_right_and_the_same_bits_at_every_level_and_in_every_batch(
        format in 0..FORMATS.len(),
        outputs in 1usize..130,
        columns in 1usize..200,
        rows in 1usize..20,
        seed: u64,
    ) {
        let format = FORMATS[format];
        let columns = if format == WeightFormat::Int4 { columns.next_multiple_of(32) } else { columns };
        let packed = Packed::new(format, outputs, columns, seed);
        let x = numbers(seed ^ 1, rows * columns);
        let bias = numbers(seed ^ 2, outputs);
        let threads = threads();
        let portable = *Level::available().last().unwrap();
        let expected = packed.product(portable, &threads, &x, Some(&bias));
        for (index, product) in expected.iter().enumerate() {
            let (row, output) = (index / outputs, index % outputs);
            let (exact, magnitude) = packed.exact(&x, row, output);
            let error = (f64::from(*product) - exact - f64::from(bias[output])).abs();
            // Each term takes part in one rounding a column at most, and in those of scale and bias.
            let bound = (magnitude + 1.0) * (columns + 3) as f64 * f64::from(f32::EPSILON);
            prop_assert!(error <= bound, "{format:?} {row} {output}: {error:e} > {bound:e}");
        }
        for level in Level::available() {
            let whole = packed.product(level, &threads, &x, Some(&bias));
            prop_assert_eq!(bits(&whole), bits(&expected), "{}", level);
            let alone = x.chunks_exact(columns).flat_map(|x| packed.product(level, &threads, x, Some(&bias)));
            prop_assert_eq!(bits(&alone.collect::<Vec<_>>()), bits(&expected), "{} alone", level);
        }
    }
}

/// More rows than a tile and more columns than a block, so that sums are put down and taken up again.
#[test]
fn blocks_of_columns_do_not_change_a_bit() {
    for format in FORMATS {
        let columns = BLOCK_UNITS * format.unit_columns() + 64;
        let packed = Packed::new(format, 21, columns, 3);
        let x = numbers(4, 19 * columns);
        for level in Level::available() {
            let whole = packed.product(level, &threads(), &x, None);
            let alone = x
                .chunks_exact(columns)
                .flat_map(|x| packed.product(level, &threads(), x, None));
            assert_eq!(
                bits(&whole),
                bits(&alone.collect::<Vec<_>>()),
                "{format:?} {level}"
            );
        }
    }
}

#[test]
fn quantised_weights_stay_near_those_they_were_made_from() {
    let columns = 256;
    let values = numbers(9, 16 * columns);
    // Half a step: of int8 1/127 of the row's largest, of int4 1/8 of the group's and bf16's rounding.
    for (format, step) in [
        (WeightFormat::Int8, 1.0 / 127.0),
        (WeightFormat::Int4, 1.01 / 8.0),
    ] {
        let packed = Packed::new(format, 16, columns, 9);
        for (kept, values) in packed.kept.iter().zip(values.chunks_exact(columns)) {
            for (kept, value) in kept.iter().zip(values) {
                // Int4 reaches to 7 of 8 steps on one side.
                let bound = if format == WeightFormat::Int4 {
                    step
                } else {
                    step / 2.0 + 1e-6
                };
                assert!((kept - value).abs() <= bound, "{format:?}: {value} became {kept}");
            }
        }
    }
}
