//! Address ranges that become memory where they are populated; [`crate::cpu`] hands out parts of them.
#![allow(
    unsafe_code,
    reason = "writing through a map and giving pages back cannot be expressed safely"
)]

use std::io;
use std::ops::Range;
#[cfg(target_os = "linux")]
use std::sync::{Mutex, PoisonError};

#[cfg(target_os = "linux")]
use memmap2::Advice;
use memmap2::{MmapOptions, MmapRaw, UncheckedAdvice};

use crate::PAGE_BYTES;

/// An address range, at a multiple of [`PAGE_BYTES`], that becomes memory where it is populated.
#[derive(Debug)]
pub(crate) struct ReservedMapping {
    map: MmapRaw,
    /// Where the range starts in `map`.
    offset: usize,
    len_bytes: usize,
}

impl ReservedMapping {
    /// Reserves addresses without taking memory or swap for them.
    pub(crate) fn new(len_bytes: usize) -> io::Result<Self> {
        // Our pages are to be the system's huge pages, so that each can be had and given back by itself.
        let reserved = len_bytes
            .checked_add(PAGE_BYTES)
            .ok_or(io::ErrorKind::OutOfMemory)?;
        let map = MmapOptions::new().len(reserved).no_reserve_swap().map_anon()?;
        // Weights are read from end to end at every step: small pages would cost a table walk for each 4 KiB.
        // A system without huge pages refuses, and everything works as well but for that.
        #[cfg(target_os = "linux")]
        if let Err(error) = map.advise(Advice::HugePage)
            && error.kind() != io::ErrorKind::InvalidInput
        {
            return Err(error);
        }
        let offset = map.as_ptr().addr().next_multiple_of(PAGE_BYTES) - map.as_ptr().addr();
        Ok(Self {
            map: map.into(),
            offset,
            len_bytes,
        })
    }

    /// Where the range starts; it is a private mapping of its own, and a page never written to reads as zeros.
    pub(crate) fn start(&self) -> *mut u8 {
        // SAFETY: the mapping is longer than the offset, which is less than a page, by at least one page.
        unsafe { self.map.as_mut_ptr().add(self.offset) }
    }

    /// Takes memory from the system for a part of the range, so that none is taken when it is written to. The system
    /// clears it first, which is most of the work, so `each` may do it for several parts at once: it is given how
    /// many there are and what is to be done with each.
    pub(crate) fn populate(
        &mut self,
        range: Range<usize>,
        each: impl FnOnce(usize, &(dyn Fn(usize) + Sync)),
    ) -> io::Result<()> {
        self.check(&range);
        #[cfg(target_os = "linux")]
        match self.populate_parts(&range, each) {
            // Linux before 5.14 does not know the advice.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => {}
            populated => return populated,
        }
        for at in range.step_by(SMALL_PAGE_BYTES) {
            // SAFETY: the byte lies inside the mapping, which is writable, as was checked above, and `&mut self`
            // excludes any live slice into it. What a page holds that is being populated is undefined, so it may
            // change.
            unsafe { self.start().add(at).write_volatile(0) };
        }
        Ok(())
    }

    #[cfg(target_os = "linux")]
    fn populate_parts(
        &self,
        range: &Range<usize>,
        each: impl FnOnce(usize, &(dyn Fn(usize) + Sync)),
    ) -> io::Result<()> {
        let first_error = Mutex::new(None);
        each(range.len().div_ceil(POPULATED_AT_ONCE_BYTES), &|part| {
            let start = range.start + part * POPULATED_AT_ONCE_BYTES;
            let len_bytes = POPULATED_AT_ONCE_BYTES.min(range.end - start);
            let populated = self
                .map
                .advise_range(Advice::PopulateWrite, self.offset + start, len_bytes);
            if let Err(error) = populated {
                let mut first = first_error.lock().unwrap_or_else(PoisonError::into_inner);
                first.get_or_insert(error);
            }
        });
        let first = first_error.into_inner().unwrap_or_else(PoisonError::into_inner);
        first.map_or(Ok(()), Err)
    }

    /// Gives the memory behind a part of the range back to the system; the part reads as zeros afterwards.
    pub(crate) fn release(&mut self, range: Range<usize>) -> io::Result<()> {
        self.check(&range);
        if range.is_empty() {
            return Ok(());
        }
        // SAFETY: MADV_DONTNEED demands that nobody relies on the contents of the pages that it drops. The
        // mapping is private and anonymous, so the pages read as zeros afterwards, which is a valid value of
        // every `u8`. `&mut self` excludes any live slice into them, and the range was checked above.
        unsafe {
            self.map
                .unchecked_advise_range(UncheckedAdvice::DontNeed, self.offset + range.start, range.len())
        }
    }

    fn check(&self, range: &Range<usize>) {
        assert!(
            range.start <= range.end && range.end <= self.len_bytes,
            "a part lies inside the range"
        );
    }
}

/// Some pages: enough work for a thread, and enough parts for all of them.
#[cfg(target_os = "linux")]
const POPULATED_AT_ONCE_BYTES: usize = 8 * PAGE_BYTES;
/// The smallest page of any system that this runs on.
const SMALL_PAGE_BYTES: usize = 4096;
