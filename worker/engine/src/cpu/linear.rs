//! Matrix products: tiles of input rows times panels of sixteen outputs.
//!
//! Each output is one lane's sum over the columns in ascending order, the higher of two columns of a pair
//! first, whatever the tile: so it does not matter which rows and outputs are computed together, nor by how
//! many threads, nor where the columns are cut into blocks. Quantised weights sum as integers: int8 over the
//! whole row, int4 over each group, and then meet their scale.
#![expect(
    unsafe_code,
    reason = "bounds are checked once a tile instead of once an element"
)]
#![expect(
    clippy::needless_range_loop,
    reason = "loops over constant ranges are unrolled, so that what they index stays in registers"
)]

use std::ops::Range;

use super::disjoint::Disjoint;
use super::simd::{Kernel, LANES, Level, Simd, VECTOR_BYTES};
use super::threads::CpuThreads;
use crate::tensor::{INT4_GROUP_COLUMNS, WeightFormat};

/// The inputs of a product: for each row the words that [`WeightFormat::input_words`] counts, either f32 or
/// pairs of bf16.
#[derive(Clone, Copy, Debug)]
pub(super) struct Inputs<'a> {
    pub(super) words: &'a [u32],
    pub(super) rows: usize,
}

/// A packed weight matrix, and what is added to its products.
#[derive(Clone, Copy, Debug)]
pub(super) struct Weights<'a> {
    pub(super) format: WeightFormat,
    pub(super) panels: &'a [u8],
    pub(super) outputs: usize,
    pub(super) columns: usize,
    pub(super) bias: Option<&'a [f32]>,
}

/// Runs some products, `out[row][output] = inputs[row] . weights[output] + bias[output]`, as one operation.
pub(super) fn run<const TASKS: usize>(level: Level, threads: &CpuThreads, tasks: &[Option<Task<'_>>; TASKS]) {
    let tasks = || tasks.iter().flatten();
    let parts = tasks().map(|task| task.parts(threads.count())).sum();
    threads.run(parts, &|mut part| {
        for task in tasks() {
            let parts = task.parts(threads.count());
            if part < parts {
                let panels = task.part_panels(threads.count());
                level.run(Part {
                    task,
                    panels: part * panels..task.panels().min((part + 1) * panels),
                });
                return;
            }
            part -= parts;
        }
    });
}

/// One task.
pub(super) struct Task<'a> {
    weights: Weights<'a>,
    inputs: Inputs<'a>,
    /// f32 \[rows, outputs].
    out: Disjoint<'a, f32>,
    panel_bytes: usize,
    /// Words in a row of inputs.
    stride: usize,
}

impl<'a> Task<'a> {
    pub(super) fn new(weights: Weights<'a>, inputs: Inputs<'a>, out: &'a mut [f32]) -> Self {
        let panel_bytes = weights
            .format
            .panel_bytes(weights.columns)
            .expect("the matrix was planned");
        let stride = weights.format.input_words(weights.columns);
        assert_eq!(
            weights.panels.len(),
            panel_bytes * weights.outputs.div_ceil(LANES),
            "a panel for each sixteen outputs"
        );
        assert_eq!(inputs.words.len(), inputs.rows * stride, "whole rows of inputs");
        assert_eq!(
            out.len(),
            inputs.rows * weights.outputs,
            "an output for each row and weight row"
        );
        assert!(
            weights.bias.is_none_or(|bias| bias.len() == weights.outputs),
            "a bias for each output"
        );
        Self {
            weights,
            inputs,
            out: Disjoint::new(out),
            panel_bytes,
            stride,
        }
    }

    fn panels(&self) -> usize {
        self.weights.outputs.div_ceil(LANES)
    }

    /// How many panels a part has: enough to outweigh handing it out, and some parts for each thread.
    fn part_panels(&self, threads: usize) -> usize {
        let by_bytes = PART_BYTES / (self.panel_bytes * self.inputs.rows.max(1)).max(1);
        let by_threads = self.panels().div_ceil(threads * PARTS_PER_THREAD);
        by_bytes
            .max(1)
            .min(by_threads.max(1))
            .next_multiple_of(PANELS_WIDE)
    }

    fn parts(&self, threads: usize) -> usize {
        self.panels().div_ceil(self.part_panels(threads))
    }

    fn panel(&self, index: usize) -> &'a [u8] {
        &self.weights.panels[index * self.panel_bytes..][..self.panel_bytes]
    }
}

/// Some panels of a product, for all rows.
struct Part<'p, 'a> {
    task: &'p Task<'a>,
    panels: Range<usize>,
}

impl Kernel for Part<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn call<S: Simd>(self, simd: S) {
        match self.task.weights.format {
            WeightFormat::F32 => self.run::<S, F32Units>(simd),
            WeightFormat::F16 => self.run::<S, F16Units>(simd),
            WeightFormat::Bf16 => self.run::<S, Bf16Units>(simd),
            WeightFormat::Int8 => self.run::<S, Int8Units>(simd),
            WeightFormat::Int4 => self.run::<S, Int4Units>(simd),
        }
    }
}

impl Part<'_, '_> {
    #[inline(always)]
    fn run<S: Simd, U: Units>(&self, simd: S) {
        let mut panel = self.panels.start;
        if S::HAS_WIDE_TILES {
            while panel + PANELS_WIDE <= self.panels.end {
                self.columns::<S, U, PANELS_WIDE>(simd, panel);
                panel += PANELS_WIDE;
            }
        }
        while panel < self.panels.end {
            self.columns::<S, U, 1>(simd, panel);
            panel += 1;
        }
    }

    /// Some panels, block of columns by block of columns, so that a block stays in cache for all rows.
    #[inline(always)]
    fn columns<S: Simd, U: Units, const PANELS: usize>(&self, simd: S, first_panel: usize) {
        let weights = &self.task.weights;
        let units = weights.format.units(weights.columns);
        let block = if self.task.inputs.rows > ROWS_WIDE {
            BLOCK_UNITS
        } else {
            units.max(1)
        };
        let mut start = 0;
        while start < units {
            let end = units.min(start + block);
            self.rows::<S, U, PANELS>(simd, first_panel, start..end);
            start = end;
        }
    }

    #[inline(always)]
    fn rows<S: Simd, U: Units, const PANELS: usize>(&self, simd: S, first_panel: usize, units: Range<usize>) {
        let rows = self.task.inputs.rows;
        let mut row = 0;
        while row < rows {
            let tile = Tile {
                task: self.task,
                first_row: row,
                first_panel,
                units: units.clone(),
            };
            // What is left over takes several tiles: they find the panels in cache.
            row += match rows - row {
                1 => tile.run::<S, U, 1, PANELS>(simd),
                2 | 3 => tile.run::<S, U, 2, PANELS>(simd),
                ROWS_WIDE.. if S::HAS_WIDE_TILES && U::GROUP_UNITS == 0 => {
                    tile.run::<S, U, ROWS_WIDE, PANELS>(simd)
                }
                _ => tile.run::<S, U, ROWS_NARROW, PANELS>(simd),
            };
        }
    }
}

/// Some rows times some panels, for some units of columns.
struct Tile<'p, 'a> {
    task: &'p Task<'a>,
    first_row: usize,
    first_panel: usize,
    units: Range<usize>,
}

impl Tile<'_, '_> {
    /// Gives the number of rows.
    #[inline(always)]
    fn run<S: Simd, U: Units, const ROWS: usize, const PANELS: usize>(&self, simd: S) -> usize {
        let mut sums = [[simd.splat(0.0); PANELS]; ROWS];
        if self.units.start > 0 {
            for row in 0..ROWS {
                for panel in 0..PANELS {
                    sums[row][panel] = self.load(simd, row, panel);
                }
            }
        }
        let (panels, inputs) = self.slices::<U, ROWS, PANELS>();
        if U::GROUP_UNITS == 0 {
            // SAFETY: the units are the tile's.
            unsafe { add::<S, U, ROWS, PANELS>(simd, panels, inputs, self.units.clone(), &mut sums) };
        } else {
            self.add_groups::<S, U, ROWS, PANELS>(simd, panels, inputs, &mut sums);
        }
        let task = self.task;
        let is_last = self.units.end == task.weights.format.units(task.weights.columns);
        for panel in 0..PANELS {
            for row in 0..ROWS {
                let sum = sums[row][panel];
                let sum = if is_last {
                    self.finish(simd, panel, sum)
                } else {
                    sum
                };
                self.store(simd, row, panel, sum);
            }
        }
        ROWS
    }

    /// Units and inputs of the tile, both at least as long as [`add`] demands for the tile's units.
    #[inline(always)]
    fn slices<U: Units, const ROWS: usize, const PANELS: usize>(&self) -> ([&[u8]; PANELS], [&[u32]; ROWS]) {
        let task = self.task;
        let scales_bytes = task.weights.format.scales_bytes(task.weights.columns);
        let mut panels = [&[][..]; PANELS];
        for (index, panel) in panels.iter_mut().enumerate() {
            *panel = &task.panel(self.first_panel + index)[scales_bytes..];
            assert!(
                self.units.end * U::BYTES <= panel.len(),
                "units lie in their panel"
            );
        }
        let mut inputs = [&[][..]; ROWS];
        for (index, row) in inputs.iter_mut().enumerate() {
            *row = &task.inputs.words[(self.first_row + index) * task.stride..][..task.stride];
            assert!(self.units.end * U::WORDS <= row.len(), "each unit has its inputs");
        }
        (panels, inputs)
    }

    /// Sums each group by itself, and adds it with its scale.
    #[inline(always)]
    fn add_groups<S: Simd, U: Units, const ROWS: usize, const PANELS: usize>(
        &self,
        simd: S,
        panels: [&[u8]; PANELS],
        inputs: [&[u32]; ROWS],
        sums: &mut [[S::Floats; PANELS]; ROWS],
    ) {
        assert!(
            self.units.start.is_multiple_of(U::GROUP_UNITS) && self.units.end.is_multiple_of(U::GROUP_UNITS),
            "groups are whole"
        );
        let mut scales = [&[][..]; PANELS];
        let groups = self.units.end / U::GROUP_UNITS;
        for (index, scales) in scales.iter_mut().enumerate() {
            *scales = &self
                .task
                .panel(self.first_panel + index)
                .as_chunks::<{ 2 * LANES }>()
                .0[..groups];
        }
        let mut local = *sums;
        for index in self.units.start / U::GROUP_UNITS..groups {
            let mut group = [[simd.splat(0.0); PANELS]; ROWS];
            let units = index * U::GROUP_UNITS..(index + 1) * U::GROUP_UNITS;
            // SAFETY: the units are some of the tile's.
            unsafe { add::<S, U, ROWS, PANELS>(simd, panels, inputs, units, &mut group) };
            for panel in 0..PANELS {
                let scales = simd.widen_bf16(&scales[panel][index]);
                for row in 0..ROWS {
                    local[row][panel] = simd.mul_add(scales, group[row][panel], local[row][panel]);
                }
            }
        }
        *sums = local;
    }

    /// Scales of whole rows, and the bias.
    #[inline(always)]
    fn finish<S: Simd>(&self, simd: S, panel: usize, sum: S::Floats) -> S::Floats {
        let weights = &self.task.weights;
        let panel = self.first_panel + panel;
        let scaled = match weights.format {
            WeightFormat::Int8 => {
                let (scales, _) = self.task.panel(panel).as_chunks::<VECTOR_BYTES>();
                simd.mul(sum, simd.load_f32(&scales[0]))
            }
            WeightFormat::F32 | WeightFormat::F16 | WeightFormat::Bf16 | WeightFormat::Int4 => sum,
        };
        match weights.bias {
            Some(bias) => simd.add(scaled, load_padded(simd, &bias[panel * LANES..])),
            None => scaled,
        }
    }

    #[inline(always)]
    fn load<S: Simd>(&self, simd: S, row: usize, panel: usize) -> S::Floats {
        load_padded(simd, self.outputs(row, panel))
    }

    #[inline(always)]
    fn store<S: Simd>(&self, simd: S, row: usize, panel: usize, sums: S::Floats) {
        let out = self.outputs(row, panel);
        match out.first_chunk_mut() {
            Some(out) => simd.store(sums, out),
            None => {
                let mut all = [0.0; LANES];
                simd.store(sums, &mut all);
                out.copy_from_slice(&all[..out.len()]);
            }
        }
    }

    /// The outputs of a panel in a row; fewer than sixteen in the last panel.
    #[inline(always)]
    #[expect(
        clippy::mut_from_ref,
        reason = "the part of the output that is this panel's alone"
    )]
    fn outputs(&self, row: usize, panel: usize) -> &mut [f32] {
        let outputs = self.task.weights.outputs;
        let first = (self.first_panel + panel) * LANES;
        let row_start = (self.first_row + row) * outputs;
        // SAFETY: every panel belongs to one part, whose thread takes one such range at a time; ranges of
        // different panels or rows do not overlap.
        unsafe {
            self.task
                .out
                .part(row_start + first..row_start + outputs.min(first + LANES))
        }
    }
}

/// Adds the products of a range of units to the sums.
///
/// # Safety
/// Each panel holds the range's last unit, and each row of inputs the words that meet it.
#[inline(always)]
unsafe fn add<S: Simd, U: Units, const ROWS: usize, const PANELS: usize>(
    simd: S,
    panels: [&[u8]; PANELS],
    inputs: [&[u32]; ROWS],
    units: Range<usize>,
    sums: &mut [[S::Floats; PANELS]; ROWS],
) {
    let mut local = *sums;
    for unit in units {
        let mut loaded = [U::load(simd, ZEROS); PANELS];
        for panel in 0..PANELS {
            // SAFETY: the caller promises that the unit lies in the panel.
            let bytes = unsafe { panels[panel].get_unchecked(unit * U::BYTES..(unit + 1) * U::BYTES) };
            loaded[panel] = U::load(simd, bytes);
        }
        for word in 0..U::WORDS {
            let mut weights = [U::weights(simd, loaded[0], word); PANELS];
            for panel in 1..PANELS {
                weights[panel] = U::weights(simd, loaded[panel], word);
            }
            for row in 0..ROWS {
                // SAFETY: the caller promises that the row has the unit's inputs.
                let input = unsafe { *inputs[row].get_unchecked(unit * U::WORDS + word) };
                for panel in 0..PANELS {
                    local[row][panel] = U::multiply_add(simd, weights[panel], input, local[row][panel]);
                }
            }
        }
    }
    *sums = local;
}

#[inline(always)]
fn load_padded<S: Simd>(simd: S, from: &[f32]) -> S::Floats {
    match from.first_chunk() {
        Some(all) => simd.load(all),
        None => {
            let mut all = [0.0; LANES];
            all[..from.len()].copy_from_slice(from);
            simd.load(&all)
        }
    }
}

/// How a format's units are read: see [`super::panels`].
trait Units {
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

struct F32Units;

impl Units for F32Units {
    const WORDS: usize = 1;
    type Unit<S: Simd> = S::Floats;
    type Weights<S: Simd> = S::Floats;

    #[inline(always)]
    fn load<S: Simd>(simd: S, bytes: &[u8]) -> S::Floats {
        simd.load_f32(unit(bytes))
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

struct F16Units;

impl Units for F16Units {
    const BYTES: usize = VECTOR_BYTES / 2;
    const WORDS: usize = 1;
    type Unit<S: Simd> = S::Floats;
    type Weights<S: Simd> = S::Floats;

    #[inline(always)]
    fn load<S: Simd>(simd: S, bytes: &[u8]) -> S::Floats {
        simd.widen_f16(unit(bytes))
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

/// Formats whose weights are pairs of bf16 once they are unpacked.
macro_rules! pair_units {
    ($name:ident, $words:literal, $group_units:expr, $pairs:ident($($word:ident)?)) => {
        struct $name;

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

const ZEROS: &[u8; VECTOR_BYTES] = &[0; VECTOR_BYTES];

/// Rows and panels of the largest tile: its sums, weights and an input fill 32 registers.
const ROWS_WIDE: usize = 8;
const PANELS_WIDE: usize = 3;

/// Rows of the largest tile where a vector takes two of 16 registers, or where each sum has a group's sum
/// beside it.
const ROWS_NARROW: usize = 4;

/// Units of columns that are worked through for all rows before the next: with three panels 192 KiB, which
/// stay in the second-level cache beside the inputs. A multiple of every format's group.
const BLOCK_UNITS: usize = 1024;

/// Work of a part that outweighs handing it to a thread, in bytes of weights times rows.
const PART_BYTES: usize = 64 << 10;

/// Parts that each thread gets at least, so that one that is held up does not hold up all.
const PARTS_PER_THREAD: usize = 4;

#[cfg(test)]
mod tests {
    use std::num::NonZero;

    use half::{bf16, f16};
    use proptest::prelude::*;

    use super::super::panels::{StoredRows, unpack_row};
    use super::super::rounding::{Shape, write_inputs};
    use super::*;
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
}
