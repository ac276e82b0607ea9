//! One slice that several threads write to, each its own part.
#![expect(
    unsafe_code,
    reason = "the borrow checker cannot see that the parts of an operation differ"
)]

use std::marker::PhantomData;
use std::ops::Range;

/// A mutable slice whose parts are handed out on the caller's word that no two overlap.
#[derive(Debug)]
pub(super) struct Disjoint<'a, T> {
    start: *mut T,
    len: usize,
    slice: PhantomData<&'a mut [T]>,
}

// SAFETY: the value hands out `&mut [T]`, nothing else, so it may go where those may.
unsafe impl<T: Send> Send for Disjoint<'_, T> {}
// SAFETY: as above; that parts taken by different threads do not overlap is what `part` demands.
unsafe impl<T: Send> Sync for Disjoint<'_, T> {}

impl<'a, T> Disjoint<'a, T> {
    pub(super) fn new(slice: &'a mut [T]) -> Self {
        Self {
            start: slice.as_mut_ptr(),
            len: slice.len(),
            slice: PhantomData,
        }
    }

    /// A part of the slice.
    ///
    /// # Safety
    /// As long as the result lives, nobody takes another part that overlaps this one.
    ///
    /// # Panics
    /// The part does not lie in the slice.
    #[inline(always)]
    pub(super) unsafe fn part(&self, range: Range<usize>) -> &'a mut [T] {
        assert!(
            range.start <= range.end && range.end <= self.len,
            "a part lies in its slice"
        );
        // SAFETY: the range lies in a slice that is mutably borrowed for `'a`, and the caller promises that
        // no other part overlaps this one.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(range.start), range.len()) }
    }
}
