//! Memory maps: files read in place, and address ranges that become memory where they are touched.
//!
//! Files are handed out as plain slices; of reserved ranges, [`crate::cpu`] hands out parts.
#![allow(
    unsafe_code,
    reason = "mapping a file and giving pages back cannot be expressed safely"
)]

use std::fs::File;
use std::io;
use std::ops::Range;

#[cfg(target_os = "linux")]
use memmap2::Advice;
use memmap2::{Mmap, MmapOptions, MmapRaw, UncheckedAdvice};

/// A whole file, mapped for reading.
#[derive(Debug)]
pub(crate) struct FileMapping {
    map: Mmap,
}

impl FileMapping {
    /// Maps a file that nobody writes to or truncates while the mapping lives.
    pub(crate) fn new(file: &File) -> io::Result<Self> {
        // SAFETY: `map` demands that the file is not changed while the mapping lives, because a change would
        // show through a shared slice and a truncation would fault. A worker's model files are replaced by
        // renaming a complete file over them and never written in place, which `ModelFolder::open` demands
        // of every other caller in its documentation. No reference outlives `self.map`, which unmaps on drop.
        let map = unsafe { Mmap::map(file) }?;
        Ok(Self { map })
    }

    /// The file's bytes.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.map
    }
}

/// An address range whose pages become memory when they are first written.
#[derive(Debug)]
pub(crate) struct ReservedMapping {
    map: MmapRaw,
}

impl ReservedMapping {
    /// Reserves addresses without taking memory or swap for them.
    pub(crate) fn new(len_bytes: usize) -> io::Result<Self> {
        let map = MmapOptions::new().len(len_bytes).no_reserve_swap().map_anon()?;
        // Weights are read from end to end at every step: small pages would cost a table walk for each 4 KiB.
        // A system without huge pages refuses, and everything works as well but for that.
        #[cfg(target_os = "linux")]
        if let Err(error) = map.advise(Advice::HugePage)
            && error.kind() != io::ErrorKind::InvalidInput
        {
            return Err(error);
        }
        Ok(Self { map: map.into() })
    }

    /// Where the range starts; it is a private mapping of its own, and a page never written to reads as zeros.
    pub(crate) fn start(&self) -> *mut u8 {
        self.map.as_mut_ptr()
    }

    /// Gives the memory behind a part of the range back to the system; the part reads as zeros afterwards.
    pub(crate) fn release(&mut self, range: Range<usize>) -> io::Result<()> {
        assert!(
            range.start <= range.end && range.end <= self.map.len(),
            "release lies inside the range"
        );
        if range.is_empty() {
            return Ok(());
        }
        // SAFETY: MADV_DONTNEED demands that nobody relies on the contents of the pages that it drops. The
        // mapping is private and anonymous, so the pages read as zeros afterwards, which is a valid value of
        // every `u8`. `&mut self` excludes any live slice into them, and the range was checked above.
        unsafe {
            self.map
                .unchecked_advise_range(UncheckedAdvice::DontNeed, range.start, range.len())
        }
    }
}
