//! Weights as the matrix product reads them: sixteen rows interleaved in a panel.
//!
//! A panel holds 16 rows of a matrix, for a lane each; it starts with the rows' scales where the format has
//! scales, and goes on with *units*, each with some successive columns of all 16 rows:
//!
//! | format | scales | a unit | of columns |
//! |---|---|---|---|
//! | f32 | none | f32 \[16] | 1 |
//! | f16 | none | f16 \[16] | 1 |
//! | bf16 | none | bf16 \[16, 2] | 2 |
//! | int8 | f32 \[16] | i8 \[16, 4] | 4 |
//! | int4 | bf16 \[columns / 32, 16], to a multiple of 64 bytes | 16 u32 of 8 nibbles | 8 |
//!
//! The low half of a lane of int4 has its even columns, the high half its odd ones. Rows and columns beyond
//! the matrix are zero weights.

#![expect(unsafe_code, reason = "threads write to panels of one matrix")]

use std::sync::atomic::{AtomicUsize, Ordering};

use half::{bf16, f16};

use super::disjoint::Disjoint;
use super::simd::LANES;
use super::threads::CpuThreads;
use crate::Dtype;
use crate::tensor::{INT4_GROUP_COLUMNS, PANEL_ROWS, WeightFormat};

const _: () = assert!(PANEL_ROWS == LANES);

/// Rows of a matrix as a file stores them, each of `columns` elements.
#[derive(Clone, Copy, Debug)]
pub(super) struct StoredRows<'a> {
    pub(super) dtype: Dtype,
    pub(super) columns: usize,
    pub(super) bytes: &'a [u8],
}

impl StoredRows<'_> {
    fn row_bytes(&self) -> usize {
        self.columns * self.dtype.size_bytes()
    }

    /// Packs all rows into panels; gives the index of the first element that is NaN or infinite, if there is
    /// one.
    pub(super) fn place(
        &self,
        threads: &CpuThreads,
        format: WeightFormat,
        panels: &mut [u8],
    ) -> Option<usize> {
        let panel_bytes = format.panel_bytes(self.columns).expect("the matrix was planned");
        let stored_bytes = LANES * self.row_bytes();
        let first = AtomicUsize::new(usize::MAX);
        let parts = panels.len() / panel_bytes;
        let panels = Disjoint::new(panels);
        threads.run(parts, &|part| {
            let stored = part * stored_bytes..self.bytes.len().min((part + 1) * stored_bytes);
            let rows = StoredRows {
                bytes: &self.bytes[stored],
                ..*self
            };
            if let Some(element) = rows.first_non_finite() {
                first.fetch_min(part * LANES * self.columns + element, Ordering::Relaxed);
            }
            // SAFETY: a panel belongs to one part.
            rows.pack(format, unsafe {
                panels.part(part * panel_bytes..(part + 1) * panel_bytes)
            });
        });
        Some(first.into_inner()).filter(|element| *element != usize::MAX)
    }

    fn first_non_finite(&self) -> Option<usize> {
        match self.dtype {
            Dtype::F32 => position(self.bytes, |word| {
                u32::from_le_bytes(word) & 0x7f80_0000 == 0x7f80_0000
            }),
            Dtype::F16 => position(self.bytes, |word| u16::from_le_bytes(word) & 0x7c00 == 0x7c00),
            Dtype::Bf16 => position(self.bytes, |word| u16::from_le_bytes(word) & 0x7f80 == 0x7f80),
        }
    }

    /// Packs at most sixteen rows into a panel.
    pub(super) fn pack(&self, format: WeightFormat, panel: &mut [u8]) {
        assert_eq!(
            Some(panel.len()),
            format.panel_bytes(self.columns),
            "a panel of this format"
        );
        match (format, self.dtype) {
            (WeightFormat::F32, Dtype::F32) => self.interleave::<4>(panel, 1),
            (WeightFormat::F16, Dtype::F16) => self.interleave::<2>(panel, 1),
            (WeightFormat::Bf16, Dtype::Bf16) => self.interleave::<4>(panel, 2),
            (WeightFormat::Int8, _) => self.pack_int8(panel),
            (WeightFormat::Int4, _) => self.pack_int4(panel),
            (WeightFormat::F32 | WeightFormat::F16 | WeightFormat::Bf16, _) => {
                unreachable!("a plan gives unquantised weights the format of their stored elements")
            }
        }
    }

    /// Unit after unit, `BYTES` of each row, which are `columns` columns.
    fn interleave<const BYTES: usize>(&self, panel: &mut [u8], columns: usize) {
        let (slots, _) = panel.as_chunks_mut::<BYTES>();
        let whole = self.columns / columns;
        for (lane, row) in self.rows().enumerate() {
            let (row, tail) = match row {
                Some(row) => row.split_at(whole * BYTES),
                None => (&[][..], &[][..]),
            };
            let (elements, _) = row.as_chunks::<BYTES>();
            let targets = slots.iter_mut().skip(lane).step_by(LANES);
            let mut last = [0; BYTES];
            last[..tail.len()].copy_from_slice(tail);
            let padding = std::iter::once(last).chain(std::iter::repeat([0; BYTES]));
            for (slot, element) in targets.zip(elements.iter().copied().chain(padding)) {
                *slot = element;
            }
        }
    }

    fn pack_int8(&self, panel: &mut [u8]) {
        let (scales, units) = panel.split_at_mut(WeightFormat::Int8.scales_bytes(self.columns));
        let (scales, _) = scales.as_chunks_mut::<4>();
        units.fill(0);
        for (lane, (row, scale)) in self.rows().zip(scales).enumerate() {
            let largest = row.map_or(0.0, |row| self.largest(row));
            let step = largest / INT8_LARGEST;
            *scale = step.to_le_bytes();
            let Some(row) = row else { continue };
            let inverse = if step > 0.0 { 1.0 / step } else { 0.0 };
            for column in 0..self.columns {
                let quantised = (self.element(row, column) * inverse).round_ties_even();
                units[column / 4 * 64 + lane * 4 + column % 4] = int8_bits(quantised);
            }
        }
    }

    fn pack_int4(&self, panel: &mut [u8]) {
        let (scales, units) = panel.split_at_mut(WeightFormat::Int4.scales_bytes(self.columns));
        scales.fill(0);
        let (units, _) = units.as_chunks_mut::<4>();
        for (lane, row) in self.rows().enumerate() {
            for group in 0..self.columns / INT4_GROUP_COLUMNS {
                let columns = group * INT4_GROUP_COLUMNS..(group + 1) * INT4_GROUP_COLUMNS;
                let mut values = [0.0; INT4_GROUP_COLUMNS];
                if let Some(row) = row {
                    for (value, column) in values.iter_mut().zip(columns.clone()) {
                        *value = self.element(row, column);
                    }
                }
                let (scale, nibbles) = quantise_int4(&values);
                scales[(group * LANES + lane) * 2..][..2].copy_from_slice(&scale.to_le_bytes());
                for (eight, first) in nibbles.chunks_exact(8).zip(columns.step_by(8)) {
                    units[first / 8 * LANES + lane] = int4_lane(eight).to_le_bytes();
                }
            }
        }
    }

    /// Sixteen rows, none where there are fewer.
    fn rows(&self) -> impl Iterator<Item = Option<&[u8]>> {
        let rows = self.bytes.chunks_exact(self.row_bytes());
        rows.map(Some).chain(std::iter::repeat(None)).take(LANES)
    }

    fn largest(&self, row: &[u8]) -> f32 {
        (0..self.columns).fold(0.0, |largest: f32, column| {
            largest.max(self.element(row, column).abs())
        })
    }

    fn element(&self, row: &[u8], column: usize) -> f32 {
        match self.dtype {
            Dtype::F32 => f32::from_le_bytes(row.as_chunks().0[column]),
            Dtype::F16 => f16::from_le_bytes(row.as_chunks().0[column]).to_f32(),
            Dtype::Bf16 => bf16::from_le_bytes(row.as_chunks().0[column]).to_f32(),
        }
    }
}

/// The scale of a group and what is to be multiplied with it, plus 8.
///
/// The element of largest magnitude becomes -8, the far end of the range; the scale is rounded to bf16
/// first, so that the others are rounded with the scale they are multiplied with.
fn quantise_int4(values: &[f32; INT4_GROUP_COLUMNS]) -> (bf16, [u8; INT4_GROUP_COLUMNS]) {
    let extreme = values.iter().copied().fold(0.0, |extreme: f32, value| {
        if value.abs() > extreme.abs() {
            value
        } else {
            extreme
        }
    });
    let scale = bf16::from_f32(extreme / -8.0);
    let inverse = if scale == bf16::ZERO {
        0.0
    } else {
        1.0 / scale.to_f32()
    };
    (
        scale,
        values.map(|value| int4_bits((value * inverse).round_ties_even())),
    )
}

/// Eight nibbles of successive columns: even ones in the low half, odd ones in the high half.
fn int4_lane(eight: &[u8]) -> u32 {
    eight.iter().enumerate().fold(0, |lane, (column, nibble)| {
        lane | u32::from(*nibble) << (column / 2 * 4 + column % 2 * 16)
    })
}

#[expect(clippy::cast_possible_truncation, reason = "the value was made to fit")]
fn int8_bits(value: f32) -> u8 {
    (value.clamp(-INT8_LARGEST, INT8_LARGEST) as i8).cast_unsigned()
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "the value was made to fit"
)]
fn int4_bits(value: f32) -> u8 {
    (value.clamp(-8.0, 7.0) + 8.0) as u8
}

/// Where a word is that has a property; looks at whole chunks first, which vectorises.
fn position<const BYTES: usize>(bytes: &[u8], is_bad: impl Fn([u8; BYTES]) -> bool) -> Option<usize> {
    const CHUNK: usize = 1024;
    let (words, _) = bytes.as_chunks::<BYTES>();
    let suspect = |chunk: &[[u8; BYTES]]| chunk.iter().fold(false, |any, word| any | is_bad(*word));
    let chunk = words.chunks(CHUNK).position(suspect)?;
    let within = words[chunk * CHUNK..].iter().position(|word| is_bad(*word));
    within.map(|index| chunk * CHUNK + index)
}

/// Writes row `row` of a packed matrix to `out`, as f32.
pub(super) fn unpack_row(format: WeightFormat, matrix: &[u8], row: usize, out: &mut [f32]) {
    let columns = out.len();
    let panel_bytes = format.panel_bytes(columns).expect("the matrix was planned");
    let panel = &matrix[row / LANES * panel_bytes..][..panel_bytes];
    let (scales, units) = panel.split_at(format.scales_bytes(columns));
    let lane = row % LANES;
    match format {
        WeightFormat::F32 => {
            let (elements, _) = units.as_chunks();
            each(out, |column| f32::from_le_bytes(elements[column * LANES + lane]));
        }
        WeightFormat::F16 => {
            let (elements, _) = units.as_chunks();
            each(out, |column| {
                f16::from_le_bytes(elements[column * LANES + lane]).to_f32()
            });
        }
        WeightFormat::Bf16 => {
            let (elements, _) = units.as_chunks();
            let place = |column| (column / 2 * LANES + lane) * 2 + column % 2;
            each(out, |column| {
                bf16::from_le_bytes(elements[place(column)]).to_f32()
            });
        }
        WeightFormat::Int8 => {
            let scale = f32::from_le_bytes(scales.as_chunks().0[lane]);
            let place = |column| (column / 4 * LANES + lane) * 4 + column % 4;
            each(out, |column| {
                f32::from(units[place(column)].cast_signed()) * scale
            });
        }
        WeightFormat::Int4 => {
            let (scales, _) = scales.as_chunks();
            let (lanes, _) = units.as_chunks();
            each(out, |column| {
                let scale = bf16::from_le_bytes(scales[column / INT4_GROUP_COLUMNS * LANES + lane]);
                let bits = u32::from_le_bytes(lanes[column / 8 * LANES + lane]);
                let nibble = bits >> (column % 8 / 2 * 4 + column % 2 * 16) & 15;
                (f32::from(nibble as u8) - 8.0) * scale.to_f32()
            });
        }
    }
}

fn each(out: &mut [f32], element: impl Fn(usize) -> f32) {
    for (column, out) in out.iter_mut().enumerate() {
        *out = element(column);
    }
}

const INT8_LARGEST: f32 = 127.0;
