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

mod units;

use std::ops::Range;

use super::disjoint::Disjoint;
use super::simd::{Kernel, LANES, Level, Simd, VECTOR_BYTES};
use super::threads::CpuThreads;
use crate::tensor::WeightFormat;
use units::{Bf16Units, F16Units, F32Units, Int4Units, Int8Units, Units};

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
mod tests;
