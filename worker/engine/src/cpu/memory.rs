//! Host memory in regions of pages, and how operations borrow from it.
#![expect(
    unsafe_code,
    reason = "several parts of one region are written at once; that they differ is checked at run time"
)]

use std::ops::Range;

use super::threads::CpuThreads;
use crate::PAGE_BYTES;
use crate::backend::{DeviceError, RegionId, Span};
use crate::mapping::ReservedMapping;

/// All regions of one backend.
#[derive(Debug, Default)]
pub(super) struct Memory {
    regions: Vec<Region>,
}

/// A region of which no backend knows: its memory is where it was, and nothing was copied.
#[derive(Debug)]
pub struct CpuImage {
    region: Region,
}

#[derive(Debug)]
struct Region {
    mapping: ReservedMapping,
    /// For each page whether it has memory.
    is_mapped: Vec<bool>,
    mapped_pages: usize,
    /// Pages at the start that all have memory.
    mapped_first: usize,
}

impl Memory {
    pub(super) fn reserve(&mut self, len_bytes: usize) -> Result<RegionId, DeviceError> {
        let reserved_pages = len_bytes.div_ceil(PAGE_BYTES);
        let mapping = ReservedMapping::new(reserved_pages * PAGE_BYTES)
            .map_err(|source| DeviceError::Reserve { len_bytes, source })?;
        self.regions.push(Region {
            mapping,
            is_mapped: vec![false; reserved_pages],
            mapped_pages: 0,
            mapped_first: 0,
        });
        Ok(RegionId(self.regions.len() - 1))
    }

    pub(super) fn map_pages(
        &mut self,
        threads: &CpuThreads,
        region: RegionId,
        pages: Range<usize>,
    ) -> Result<(), DeviceError> {
        let region = &mut self.regions[region.0];
        if let Some(page) = region.find(&pages, true)? {
            return Err(DeviceError::Mapped { page });
        }
        let populated = region
            .mapping
            .populate(bytes(&pages), |parts, populate| threads.run(parts, populate));
        if let Err(source) = populated {
            let pages_asked = pages.len();
            // What was populated before the system had no more goes back with it. If it does not, it stays the
            // region's until that is dropped, which is all that can be done.
            let _ = region.mapping.release(bytes(&pages));
            return Err(DeviceError::Map {
                pages: pages_asked,
                source,
            });
        }
        region.set(pages, true);
        Ok(())
    }

    pub(super) fn unmap_pages(&mut self, region: RegionId, pages: Range<usize>) -> Result<(), DeviceError> {
        let region = &mut self.regions[region.0];
        if let Some(page) = region.find(&pages, false)? {
            return Err(DeviceError::NotMapped { page });
        }
        let released = region.mapping.release(bytes(&pages));
        released.map_err(|source| DeviceError::Unmap {
            pages: pages.len(),
            source,
        })?;
        region.set(pages, false);
        Ok(())
    }

    /// Hands a region over; what is left is one of no pages.
    pub(super) fn take_out(&mut self, region: RegionId) -> Result<CpuImage, DeviceError> {
        // A range of addresses is never empty, so the one that takes its place has a page that is never mapped.
        let left = self.reserve(1)?;
        let left = self.regions.swap_remove(left.0);
        let region = std::mem::replace(&mut self.regions[region.0], left);
        Ok(CpuImage { region })
    }

    pub(super) fn put_in(&mut self, image: CpuImage) -> RegionId {
        self.regions.push(image.region);
        RegionId(self.regions.len() - 1)
    }

    pub(super) fn mapped_pages(&self, region: RegionId) -> usize {
        self.regions[region.0].mapped_pages
    }

    pub(super) fn read(&self, span: Span) -> &[u8] {
        let region = &self.regions[span.region.0];
        region.check_mapped(span);
        let (start, len) = region.place(span);
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
        let spans = reads.iter().chain(&writes);
        spans.for_each(|span| self.regions[span.region.0].check_mapped(*span));
        self.borrow_reserved(reads, writes)
    }

    /// The same, but that spans may reach into unmapped pages, which nobody must write to.
    ///
    /// # Panics
    /// A span that is written overlaps another one, or a span is not within its region.
    pub(super) fn borrow_reserved<const READS: usize, const WRITES: usize>(
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
            // SAFETY: the bytes are the region's, as was checked, and stay so as long as `self` is borrowed. No
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

fn bytes(pages: &Range<usize>) -> Range<usize> {
    pages.start * PAGE_BYTES..pages.end * PAGE_BYTES
}

fn overlap(a: &Span, b: &Span) -> bool {
    a.region == b.region
        && a.offset_bytes < b.offset_bytes + b.len_bytes
        && b.offset_bytes < a.offset_bytes + a.len_bytes
}

impl Region {
    /// Where a span starts, and its length. Pages without memory read as zeros, and get memory when they are
    /// written to.
    fn place(&self, span: Span) -> (*mut u8, usize) {
        let end = span.offset_bytes.checked_add(span.len_bytes);
        let reserved = self.is_mapped.len() * PAGE_BYTES;
        assert!(
            end.is_some_and(|end| end <= reserved),
            "a span lies in its region"
        );
        // SAFETY: the offset lies within the mapping, or at its end.
        (
            unsafe { self.mapping.start().add(span.offset_bytes) },
            span.len_bytes,
        )
    }

    fn check_mapped(&self, span: Span) {
        let end = span
            .offset_bytes
            .saturating_add(span.len_bytes)
            .div_ceil(PAGE_BYTES);
        if end > self.mapped_first {
            let pages = self.is_mapped.get(span.offset_bytes / PAGE_BYTES..end);
            let is_mapped = pages.is_some_and(|pages| pages.iter().all(|is_mapped| *is_mapped));
            assert!(is_mapped, "a span lies in mapped pages");
        }
    }

    /// The first of some pages that is mapped, or is not.
    fn find(&self, pages: &Range<usize>, is_mapped: bool) -> Result<Option<usize>, DeviceError> {
        let range = self.is_mapped.get(pages.clone());
        let range = range.ok_or(DeviceError::RegionFull {
            end: pages.end,
            reserved: self.is_mapped.len(),
        })?;
        let found = range.iter().position(|page| *page == is_mapped);
        Ok(found.map(|index| pages.start + index))
    }

    fn set(&mut self, pages: Range<usize>, is_mapped: bool) {
        self.is_mapped[pages.clone()].fill(is_mapped);
        if is_mapped {
            self.mapped_pages += pages.len();
            let first = self.is_mapped[self.mapped_first..].iter();
            self.mapped_first += first.take_while(|is_mapped| **is_mapped).count();
        } else {
            self.mapped_pages -= pages.len();
            if !pages.is_empty() {
                self.mapped_first = self.mapped_first.min(pages.start);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZero;

    use super::*;

    fn threads() -> CpuThreads {
        CpuThreads::new(NonZero::new(2).unwrap())
    }

    fn span(region: RegionId, offset_bytes: usize, len_bytes: usize) -> Span {
        Span {
            region,
            offset_bytes,
            len_bytes,
        }
    }

    #[test]
    fn pages_come_and_go_anywhere_in_a_region() {
        let mut memory = Memory::default();
        let threads = threads();
        let region = memory.reserve(4 * PAGE_BYTES + 1).unwrap();
        let beyond = DeviceError::RegionFull { end: 6, reserved: 5 };
        assert_eq!(
            memory.map_pages(&threads, region, 4..6).unwrap_err().to_string(),
            beyond.to_string()
        );
        memory.map_pages(&threads, region, 3..5).unwrap();
        memory.map_pages(&threads, region, 0..2).unwrap();
        assert!(matches!(
            memory.map_pages(&threads, region, 2..4),
            Err(DeviceError::Mapped { page: 3 })
        ));
        memory
            .borrow([], [span(region, 3 * PAGE_BYTES, 2 * PAGE_BYTES)])
            .1[0]
            .fill(9);
        memory.unmap_pages(region, 4..5).unwrap();
        assert!(matches!(
            memory.unmap_pages(region, 3..5),
            Err(DeviceError::NotMapped { page: 4 })
        ));
        memory.map_pages(&threads, region, 4..5).unwrap();
        assert_eq!(memory.mapped_pages(region), 4);
        assert_eq!(memory.read(span(region, 4 * PAGE_BYTES - 1, 2)), [9, 0]);
        memory.map_pages(&threads, region, 2..3).unwrap();
        memory.borrow([], [span(region, 0, 5 * PAGE_BYTES)]);
    }

    #[test]
    fn pages_that_several_threads_map_all_have_memory() {
        let mut memory = Memory::default();
        let threads = threads();
        let region = memory.reserve(70 * PAGE_BYTES).unwrap();
        memory.map_pages(&threads, region, 1..70).unwrap();
        assert_eq!(memory.mapped_pages(region), 69);
        let ([], [bytes]) = memory.borrow([], [span(region, PAGE_BYTES, 69 * PAGE_BYTES)]);
        assert!(bytes.iter().all(|byte| *byte == 0));
        bytes.fill(1);
    }

    #[test]
    fn unmapped_pages_between_others_may_be_borrowed_for_what_is_around_them() {
        let mut memory = Memory::default();
        let threads = threads();
        let region = memory.reserve(3 * PAGE_BYTES).unwrap();
        memory.map_pages(&threads, region, 2..3).unwrap();
        let ([], [bytes]) = memory.borrow_reserved([], [span(region, 0, 3 * PAGE_BYTES)]);
        bytes[2 * PAGE_BYTES] = 7;
        assert_eq!(memory.read(span(region, 2 * PAGE_BYTES, 1)), [7]);
    }

    #[test]
    fn region_goes_from_one_backend_to_another_without_being_copied() {
        let (mut from, mut to) = (Memory::default(), Memory::default());
        let threads = threads();
        let region = from.reserve(2 * PAGE_BYTES).unwrap();
        from.map_pages(&threads, region, 0..2).unwrap();
        from.borrow([], [span(region, PAGE_BYTES, 4)]).1[0].fill(7);
        let before = from.read(span(region, 0, 1)).as_ptr();
        let image = from.take_out(region).unwrap();
        assert_eq!(from.mapped_pages(region), 0);
        to.reserve(1).unwrap();
        let back = to.put_in(image);
        assert_eq!(to.mapped_pages(back), 2);
        assert_eq!(to.read(span(back, PAGE_BYTES, 4)), [7; 4]);
        assert_eq!(to.read(span(back, 0, 1)).as_ptr(), before);
    }

    #[test]
    fn reads_come_from_both_sides_and_other_regions() {
        let mut memory = Memory::default();
        let threads = threads();
        let regions: [RegionId; 3] = std::array::from_fn(|_| memory.reserve(PAGE_BYTES).unwrap());
        for (value, region) in (10u8..).step_by(10).zip(regions) {
            memory.map_pages(&threads, region, 0..1).unwrap();
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
        let threads = threads();
        let region = memory.reserve(PAGE_BYTES).unwrap();
        memory.map_pages(&threads, region, 0..1).unwrap();
        memory.borrow([span(region, 0, 5)], [span(region, 4, 4)]);
    }

    #[test]
    #[should_panic(expected = "mapped pages")]
    fn touching_unmapped_pages_is_a_bug() {
        let mut memory = Memory::default();
        let threads = threads();
        let region = memory.reserve(2 * PAGE_BYTES).unwrap();
        memory.map_pages(&threads, region, 0..1).unwrap();
        memory.read(span(region, PAGE_BYTES - 1, 2));
    }

    #[test]
    #[should_panic(expected = "mapped pages")]
    fn touching_pages_before_mapped_ones_is_a_bug() {
        let mut memory = Memory::default();
        let threads = threads();
        let region = memory.reserve(2 * PAGE_BYTES).unwrap();
        memory.map_pages(&threads, region, 1..2).unwrap();
        memory.borrow([span(region, PAGE_BYTES - 1, 2)], []);
    }
}
