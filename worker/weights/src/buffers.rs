//! Buffers for segments that are used again: touching new memory costs more than receiving into it.

use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;

/// Where buffers come from and go back to. Clones share everything.
#[derive(Debug, Clone)]
pub struct Buffers {
    // A buffer is given back wherever the last reader of its bytes happens to be, on any thread, so there is no one
    // task that a channel could lead to. Held for a push or a pop.
    spare: Arc<Mutex<Vec<Vec<u8>>>>,
    spare_max: usize,
}

/// A buffer, which goes back when it is dropped.
#[derive(Debug)]
pub struct Buffer {
    bytes: Vec<u8>,
    home: Buffers,
}

impl Buffers {
    /// Keeps up to so many that nobody uses.
    #[must_use]
    pub fn new(spare_max: usize) -> Self {
        let spare = Arc::default();
        Self { spare, spare_max }
    }

    /// One of so many bytes; what they are is not said.
    #[must_use]
    pub fn take(&self, bytes: usize) -> Buffer {
        let mut buffer = self.lock().pop().unwrap_or_default();
        buffer.resize(bytes, 0);
        Buffer {
            bytes: buffer,
            home: self.clone(),
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Vec<u8>>> {
        // Spare buffers have no invariant that a panic could have broken.
        self.spare.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Buffer {
    /// Its bytes, to be shared without a copy; the buffer goes back when the last reader is done.
    #[must_use]
    pub fn into_bytes(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.bytes
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let mut spare = self.home.lock();
        if spare.len() < self.home.spare_max {
            spare.push(std::mem::take(&mut self.bytes));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffer_goes_back_when_its_last_reader_is_done_and_no_more_are_kept_than_allowed() {
        let buffers = Buffers::new(1);
        let spare = || buffers.lock().len();
        let bytes = buffers.take(3).into_bytes();
        let reader = bytes.clone();
        drop(bytes);
        assert_eq!((spare(), reader.len()), (0, 3));
        drop(reader);
        assert_eq!(spare(), 1);
        let (first, second) = (buffers.take(2), buffers.take(9));
        assert_eq!((spare(), first.len(), second.len()), (0, 2, 9));
        drop((first, second));
        assert_eq!(spare(), 1);
    }
}
