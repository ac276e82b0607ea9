//! Host memory in regions of pages, and how operations borrow from it.
#![expect(
    unsafe_code,
    reason = "several parts of one region are written at once; that they differ is checked at run time"
)]

use crate::PAGE_BYTES;
use crate::backend::{DeviceError, RegionId, Span};
use crate::mapping::ReservedMapping;

/// All regions of one backend.
#[derive(Debug, Default)]
pub(super) struct Memory {
    regions: Vec<Region>,
}

#[derive(Debug)]
struct Region {
    mapping: ReservedMapping,
    reserved_pages: usize,
    mapped_pages: usize,
}

impl Memory {
    pub(super) fn reserve(&mut self, len_bytes: usize) -> Result<RegionId, DeviceError> {
        let reserved_pages = len_bytes.div_ceil(PAGE_BYTES);
        let mapping = ReservedMapping::new(reserved_pages * PAGE_BYTES)
            .map_err(|source| DeviceError::Reserve { len_bytes, source })?;
        self.regions.push(Region {
            mapping,
            reserved_pages,
            mapped_pages: 0,
        });
        Ok(RegionId(self.regions.len() - 1))
    }

    /// The system gives memory where pages are first written: mapping is the right to do so.
    pub(super) fn map_pages(&mut self, region: RegionId, pages: usize) -> Result<(), DeviceError> {
        let region = &mut self.regions[region.0];
        let (mapped, reserved) = (region.mapped_pages, region.reserved_pages);
        if pages > reserved - mapped {
            return Err(DeviceError::RegionFull {
                pages,
                mapped,
                reserved,
            });
        }
        region.mapped_pages += pages;
        Ok(())
    }

    pub(super) fn unmap_pages(&mut self, region: RegionId, pages: usize) -> Result<(), DeviceError> {
        let region = &mut self.regions[region.0];
        let mapped = region.mapped_pages;
        let remaining = mapped
            .checked_sub(pages)
            .ok_or(DeviceError::NotMapped { pages, mapped })?;
        region
            .mapping
            .release(remaining * PAGE_BYTES..mapped * PAGE_BYTES)
            .map_err(|source| DeviceError::Unmap { pages, source })?;
        region.mapped_pages = remaining;
        Ok(())
    }

    pub(super) fn mapped_pages(&self, region: RegionId) -> usize {
        self.regions[region.0].mapped_pages
    }

    pub(super) fn read(&self, span: Span) -> &[u8] {
        let (start, len) = self.regions[span.region.0].place(span);
        // SAFETY: the bytes are mapped, as was checked, and nobody writes to them while `self` is borrowed.
        unsafe { std::slice::from_raw_parts(start, len) }
    }

    /// Borrows some spans for reading and others for writing.
    ///
    /// # Panics
    /// A span that is written overlaps another one, or a span reaches into unmapped pages.
    pub(super) fn borrow<const READS: usize, const WRITES: usize>(
        &mut self,
        reads: [Span; READS],
        writes: [Span; WRITES],
    ) -> ([&[u8]; READS], [&mut [u8]; WRITES]) {
        for (index, write) in writes.iter().enumerate() {
            let mut others = reads.iter().chain(&writes[index + 1..]);
            assert!(
                !others.any(|other| overlap(write, other)),
                "what is written overlaps nothing else that is used"
            );
        }
        let writes = writes.map(|span| {
            let (start, len) = self.regions[span.region.0].place(span);
            // SAFETY: the bytes are mapped, as was checked, and stay so as long as `self` is borrowed. No
            // other slice that this call gives out covers them, as was asserted, and none of other calls is
            // alive, since they borrowed `self` too.
            unsafe { std::slice::from_raw_parts_mut(start, len) }
        });
        let reads = reads.map(|span| {
            let (start, len) = self.regions[span.region.0].place(span);
            // SAFETY: as above, but that others that are read may overlap.
            unsafe { std::slice::from_raw_parts(start, len) }
        });
        (reads, writes)
    }
}

fn overlap(a: &Span, b: &Span) -> bool {
    a.region == b.region
        && a.offset_bytes < b.offset_bytes + b.len_bytes
        && b.offset_bytes < a.offset_bytes + a.len_bytes
}

impl Region {
    /// Where a span starts, and its length.
    fn place(&self, span: Span) -> (*mut u8, usize) {
        let end = span.offset_bytes.checked_add(span.len_bytes);
        let mapped = self.mapped_pages * PAGE_BYTES;
        assert!(
            end.is_some_and(|end| end <= mapped),
            "a span lies in mapped pages"
        );
        // SAFETY: the offset lies within the mapping, or at its end.
        (
            unsafe { self.mapping.start().add(span.offset_bytes) },
            span.len_bytes,
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(region: RegionId, offset_bytes: usize, len_bytes: usize) -> Span {
        Span {
            region,
            offset_bytes,
            len_bytes,
        }
    }

    #[test]
    fn regions_grow_and_shrink_at_their_end() {
        let mut memory = Memory::default();
        let region = memory.reserve(2 * PAGE_BYTES + 1).unwrap();
        assert!(matches!(
            memory.map_pages(region, 4),
            Err(DeviceError::RegionFull {
                pages: 4,
                mapped: 0,
                reserved: 3
            })
        ));
        memory.map_pages(region, 3).unwrap();
        memory.borrow([], [span(region, 0, 3 * PAGE_BYTES)]).1[0].fill(9);
        memory.unmap_pages(region, 2).unwrap();
        assert!(matches!(
            memory.unmap_pages(region, 2),
            Err(DeviceError::NotMapped { pages: 2, mapped: 1 })
        ));
        memory.map_pages(region, 1).unwrap();
        assert_eq!(memory.mapped_pages(region), 2);
        assert_eq!(memory.read(span(region, PAGE_BYTES - 1, 2)), [9, 0]);
    }

    #[test]
    fn reads_come_from_both_sides_and_other_regions() {
        let mut memory = Memory::default();
        let regions: [RegionId; 3] = std::array::from_fn(|_| memory.reserve(PAGE_BYTES).unwrap());
        for (value, region) in (10u8..).step_by(10).zip(regions) {
            memory.map_pages(region, 1).unwrap();
            let ([], [bytes]) = memory.borrow([], [span(region, 0, 8)]);
            bytes
                .iter_mut()
                .zip(value..)
                .for_each(|(byte, value)| *byte = value);
        }
        let [first, second, third] = regions;
        let reads = [
            span(first, 1, 2),
            span(second, 0, 2),
            span(second, 4, 2),
            span(third, 7, 1),
        ];
        let (reads, [write]) = memory.borrow(reads, [span(second, 2, 2)]);
        assert_eq!(reads, [&[11u8, 12][..], &[20, 21], &[24, 25], &[37]]);
        assert_eq!(write, [22, 23]);
    }

    #[test]
    #[should_panic(expected = "overlaps nothing else")]
    fn reading_what_is_written_is_a_bug() {
        let mut memory = Memory::default();
        let region = memory.reserve(PAGE_BYTES).unwrap();
        memory.map_pages(region, 1).unwrap();
        memory.borrow([span(region, 0, 5)], [span(region, 4, 4)]);
    }

    #[test]
    #[should_panic(expected = "mapped pages")]
    fn touching_unmapped_pages_is_a_bug() {
        let mut memory = Memory::default();
        let region = memory.reserve(2 * PAGE_BYTES).unwrap();
        memory.map_pages(region, 1).unwrap();
        memory.read(span(region, PAGE_BYTES, 1));
    }
}
