//! Pieces of one tensor that wait for the rest of their group.

use std::collections::HashMap;
use std::ops::Range;

use super::ranges::ByteRanges;
use crate::plan::{Placement, PlannedTensor};
use crate::tensor::PANEL_ROWS;

/// What has arrived of a tensor. A group is what the device takes at once: [`PANEL_ROWS`] rows of a matrix, or
/// a whole vector; the last group of a matrix may be smaller.
#[derive(Debug)]
pub(super) struct Staging {
    len_bytes: usize,
    group_bytes: usize,
    arrived: ByteRanges,
    /// Groups of which a part has arrived.
    parts: HashMap<usize, Vec<u8>>,
}

impl Staging {
    pub(super) fn new(tensor: &PlannedTensor) -> Self {
        let len_bytes = tensor.stored_bytes();
        let group_bytes = match tensor.placement {
            Placement::Vector => len_bytes,
            Placement::Matrix { columns, .. } => PANEL_ROWS * columns * tensor.info.dtype.size_bytes(),
        };
        Self {
            len_bytes,
            group_bytes,
            arrived: ByteRanges::default(),
            parts: HashMap::new(),
        }
    }

    pub(super) fn is_complete(&self) -> bool {
        self.arrived.cover(&(0..self.len_bytes))
    }

    /// Takes a piece that lies within the tensor, and hands over what it completes: groups that follow each
    /// other at once, as the first one's index and their bytes.
    pub(super) fn add<E>(
        &mut self,
        offset_bytes: usize,
        bytes: &[u8],
        mut place: impl FnMut(usize, &[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let piece = offset_bytes..offset_bytes + bytes.len();
        let mut start = piece.start;
        while start < piece.end {
            let group = start / self.group_bytes;
            let whole = self.whole_groups(start, piece.end);
            let end = if whole > 0 {
                let end = self.group(group + whole - 1).end;
                place(group, &bytes[start - piece.start..end - piece.start])?;
                end
            } else {
                let end = piece.end.min(self.group(group).end);
                self.add_part(
                    group,
                    start,
                    &bytes[start - piece.start..end - piece.start],
                    &mut place,
                )?;
                end
            };
            self.arrived.add(start..end);
            start = end;
        }
        Ok(())
    }

    /// How many groups that nothing has arrived of a piece holds whole, from `start` on.
    fn whole_groups(&self, start: usize, end: usize) -> usize {
        let first = start / self.group_bytes;
        if start != self.group(first).start {
            return 0;
        }
        let groups = first..self.len_bytes.div_ceil(self.group_bytes);
        let is_whole = |group: &usize| {
            let range = self.group(*group);
            range.end <= end && !self.arrived.cover(&range) && !self.parts.contains_key(group)
        };
        groups.take_while(is_whole).count()
    }

    fn add_part<E>(
        &mut self,
        group: usize,
        start: usize,
        bytes: &[u8],
        place: &mut impl FnMut(usize, &[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let range = self.group(group);
        if self.arrived.cover(&range) {
            return Ok(());
        }
        let part = self.parts.entry(group).or_insert_with(|| vec![0; range.len()]);
        part[start - range.start..][..bytes.len()].copy_from_slice(bytes);
        self.arrived.add(start..start + bytes.len());
        if self.arrived.cover(&range)
            && let Some(part) = self.parts.remove(&group)
        {
            place(group, &part)?;
        }
        Ok(())
    }

    fn group(&self, index: usize) -> Range<usize> {
        index * self.group_bytes..self.len_bytes.min((index + 1) * self.group_bytes)
    }
}
