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
use super::simd::{Kernel, LANES, Level, Simd};
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
        level: Level,
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
            level.run(Pack {
                stored: rows,
                format,
                // SAFETY: a panel belongs to one part.
                panel: unsafe { panels.part(part * panel_bytes..(part + 1) * panel_bytes) },
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

    /// Sixteen rows, none where there are fewer.
    #[inline(always)]
    fn rows(&self) -> [Option<&[u8]>; LANES] {
        let mut rows = [None; LANES];
        for (slot, row) in rows.iter_mut().zip(self.bytes.chunks_exact(self.row_bytes())) {
            *slot = Some(row);
        }
        rows
    }
}

/// Packs at most sixteen rows into a panel.
struct Pack<'a> {
    stored: StoredRows<'a>,
    format: WeightFormat,
    panel: &'a mut [u8],
}

impl Kernel for Pack<'_> {
    type Output = ();

    #[inline(always)]
    fn call<S: Simd>(self, _: S) {
        let Self {
            stored,
            format,
            panel,
        } = self;
        assert_eq!(
            Some(panel.len()),
            format.panel_bytes(stored.columns),
            "a panel of this format"
        );
        match (format, stored.dtype) {
            (WeightFormat::F32, Dtype::F32) => interleave::<4>(&stored, panel),
            (WeightFormat::F16, Dtype::F16) => interleave::<2>(&stored, panel),
            (WeightFormat::Bf16, Dtype::Bf16) => interleave::<4>(&stored, panel),
            (WeightFormat::Int8, _) => pack_int8(&stored, panel),
            (WeightFormat::Int4, _) => pack_int4(&stored, panel),
            (WeightFormat::F32 | WeightFormat::F16 | WeightFormat::Bf16, _) => {
                unreachable!("a plan gives unquantised weights the format of their stored elements")
            }
        }
    }
}

/// Unit after unit, `BYTES` of each row; a block of units at a time, so that it stays in cache for all rows.
#[inline(always)]
fn interleave<const BYTES: usize>(stored: &StoredRows<'_>, panel: &mut [u8]) {
    let (slots, _) = panel.as_chunks_mut::<BYTES>();
    let rows = stored.rows();
    for (block, slots) in slots.chunks_mut(BLOCK_UNITS * LANES).enumerate() {
        let first = block * BLOCK_UNITS;
        let units = slots.len() / LANES;
        for (lane, row) in rows.iter().enumerate() {
            let (elements, tail) = row.unwrap_or_default().as_chunks::<BYTES>();
            let whole = units.min(elements.len().saturating_sub(first));
            for (unit, element) in elements.iter().skip(first).take(whole).enumerate() {
                slots[unit * LANES + lane] = *element;
            }
            let mut last = [0; BYTES];
            last[..tail.len()].copy_from_slice(tail);
            for unit in whole..units {
                // The first one beyond the whole ones may hold half a unit's columns.
                slots[unit * LANES + lane] = if first + unit == elements.len() {
                    last
                } else {
                    [0; BYTES]
                };
            }
        }
    }
}

#[inline(always)]
fn pack_int8(stored: &StoredRows<'_>, panel: &mut [u8]) {
    let (scales, units) = panel.split_at_mut(WeightFormat::Int8.scales_bytes(stored.columns));
    let ((scales, _), (units, _)) = (scales.as_chunks_mut::<4>(), units.as_chunks_mut::<4>());
    // Zeros beyond the last column.
    let mut values = vec![0.0; stored.columns.next_multiple_of(4)];
    for ((lane, row), scale) in stored.rows().into_iter().enumerate().zip(scales) {
        match row {
            Some(row) => widen(stored.dtype, row, &mut values[..stored.columns]),
            None => values.fill(0.0),
        }
        let step = largest(&values).abs() / INT8_LARGEST;
        *scale = step.to_le_bytes();
        let inverse = if step > 0.0 { 1.0 / step } else { 0.0 };
        let (fours, _) = values.as_chunks::<4>();
        for (unit, four) in fours.iter().enumerate() {
            units[unit * LANES + lane] = four.map(|value| int8_bits((value * inverse).round_ties_even()));
        }
    }
}

#[inline(always)]
fn pack_int4(stored: &StoredRows<'_>, panel: &mut [u8]) {
    const GROUP_UNITS: usize = INT4_GROUP_COLUMNS / 8;
    let (scales, units) = panel.split_at_mut(WeightFormat::Int4.scales_bytes(stored.columns));
    scales.fill(0);
    let ((scales, _), (units, _)) = (scales.as_chunks_mut::<2>(), units.as_chunks_mut::<4>());
    let mut values = vec![0.0; stored.columns];
    for (lane, row) in stored.rows().into_iter().enumerate() {
        match row {
            Some(row) => widen(stored.dtype, row, &mut values),
            None => values.fill(0.0),
        }
        let (groups, _) = values.as_chunks::<INT4_GROUP_COLUMNS>();
        for (group, values) in groups.iter().enumerate() {
            let (scale, nibbles) = quantise_int4(values);
            scales[group * LANES + lane] = scale.to_le_bytes();
            let (eights, _) = nibbles.as_chunks::<8>();
            for (unit, eight) in eights.iter().enumerate() {
                units[(group * GROUP_UNITS + unit) * LANES + lane] = int4_lane(eight).to_le_bytes();
            }
        }
    }
}

/// Stored elements as f32.
#[inline(always)]
fn widen(dtype: Dtype, row: &[u8], out: &mut [f32]) {
    match dtype {
        Dtype::F32 => widen_with(row, out, f32::from_le_bytes),
        Dtype::F16 => widen_with(row, out, |bytes| f16::from_le_bytes(bytes).to_f32()),
        Dtype::Bf16 => widen_with(row, out, |bytes| {
            f32::from_bits(u32::from(u16::from_le_bytes(bytes)) << 16)
        }),
    }
}

#[inline(always)]
fn widen_with<const BYTES: usize>(row: &[u8], out: &mut [f32], element: impl Fn([u8; BYTES]) -> f32) {
    for (out, bytes) in out.iter_mut().zip(row.as_chunks::<BYTES>().0) {
        *out = element(*bytes);
    }
}

/// The element of largest magnitude, the first one of several.
#[inline(always)]
fn largest(values: &[f32]) -> f32 {
    // Magnitudes of floats are ordered like their bits.
    let magnitude = values
        .iter()
        .fold(0, |largest, value| largest.max(value.to_bits() & !SIGN));
    let is_largest = |value: &&f32| value.to_bits() & !SIGN == magnitude;
    values.iter().find(is_largest).copied().unwrap_or(0.0)
}

/// The scale of a group and what is to be multiplied with it, plus 8.
///
/// The element of largest magnitude becomes -8, the far end of the range; the scale is rounded to bf16
/// first, so that the others are rounded with the scale they are multiplied with.
#[inline(always)]
fn quantise_int4(values: &[f32; INT4_GROUP_COLUMNS]) -> (bf16, [u8; INT4_GROUP_COLUMNS]) {
    let scale = bf16::from_f32(largest(values) / -8.0);
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
#[inline(always)]
fn int4_lane(eight: &[u8; 8]) -> u32 {
    eight.iter().enumerate().fold(0, |lane, (column, nibble)| {
        lane | u32::from(*nibble) << (column / 2 * 4 + column % 2 * 16)
    })
}

#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "the value was made to fit")]
fn int8_bits(value: f32) -> u8 {
    (value.clamp(-INT8_LARGEST, INT8_LARGEST) as i8).cast_unsigned()
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "the value was made to fit"
)]
#[inline(always)]
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

const SIGN: u32 = 1 << 31;

/// Units that are interleaved at a time: 4 KiB.
const BLOCK_UNITS: usize = 64;
