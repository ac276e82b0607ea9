//! The memory that a thread holds, counted: what a decoder takes at its peak.
#![expect(unsafe_code, reason = "an allocator that counts is an unsafe trait")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

/// Every program that links this crate counts.
#[global_allocator]
static COUNTING: Counting = Counting;

/// Runs a call; also tells how many bytes more than before were allocated at once by this thread, at most.
pub(crate) fn peak_of<T>(call: impl FnOnce() -> T) -> (T, usize) {
    let before = LIVE.get();
    PEAK.set(before);
    let value = call();
    (value, usize::try_from(PEAK.get() - before).unwrap_or(0))
}

struct Counting;

// SAFETY: every demand of the trait is one on memory, and all memory is the system allocator's: the calls go to
// it as they come. Counting touches cells of the thread that need neither memory nor a destructor, so it cannot
// allocate, unwind, or be used after its end.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size().cast_signed());
        // SAFETY: the caller's promise about the layout is the one that the system allocator asks for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size().cast_signed());
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(-layout.size().cast_signed());
        // SAFETY: the pointer came from `System`, by one of these methods, with this layout.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // While it is moved, the old and the new place are both taken.
        count(size.cast_signed());
        count(-layout.size().cast_signed());
        // SAFETY: the pointer came from `System` with this layout, and the caller promises about the size what
        // the system allocator asks for.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

fn count(bytes: isize) {
    let live = LIVE.get() + bytes;
    LIVE.set(live);
    PEAK.set(PEAK.get().max(live));
}

thread_local! {
    /// Bytes that this thread has allocated and not freed; less than none when it frees what others allocated.
    static LIVE: Cell<isize> = const { Cell::new(0) };
    static PEAK: Cell<isize> = const { Cell::new(0) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peak_is_what_was_held_at_once_and_not_what_came_and_went() {
        let ((), one_after_the_other) = peak_of(|| {
            for _ in 0..10 {
                drop(std::hint::black_box(Vec::<u8>::with_capacity(1000)));
            }
        });
        assert_eq!(one_after_the_other, 1000);
        let (held, at_once) = peak_of(|| [0; 3].map(|_| Vec::<u8>::with_capacity(1000)));
        assert_eq!(at_once, 3000);
        let (_, after) = peak_of(|| drop(held));
        assert_eq!(after, 0);
    }
}
