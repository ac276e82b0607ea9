//! How far files are on their way.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Bytes that are there and bytes that there will be. Clones share them; they are for eyes, so a stale number does no
/// harm.
#[derive(Debug, Clone, Default)]
pub struct FetchProgress(Arc<Counters>);

#[derive(Debug, Default)]
struct Counters {
    bytes: AtomicU64,
    /// 0 while nobody knows.
    bytes_total: AtomicU64,
    /// Counts instead of these. Locked for a look or a change, and read by whoever asks, so no channel.
    followed: Mutex<Option<FetchProgress>>,
}

impl FetchProgress {
    /// Begins with so many bytes to come.
    pub fn begin(&self, bytes_total: u64) {
        *self.followed() = None;
        self.0.bytes.store(0, Ordering::Relaxed);
        self.0.bytes_total.store(bytes_total, Ordering::Relaxed);
    }

    /// Tells from now on what the other one tells: somebody else brings the same files.
    pub fn follow(&self, other: &Self) {
        // Nobody follows himself, nor who follows another: what is followed belongs to an arrival, which counts.
        *self.followed() = Some(other.clone());
    }

    /// Bytes came.
    pub fn add(&self, bytes: u64) {
        self.0.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Bytes that came have to come again.
    pub fn take_back(&self, bytes: u64) {
        self.0.bytes.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Bytes that are there.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        match &*self.followed() {
            Some(followed) => followed.bytes(),
            None => self.0.bytes.load(Ordering::Relaxed),
        }
    }

    /// How many hundredths are there; `None` while nobody knows.
    #[must_use]
    pub fn percent(&self) -> Option<u8> {
        let percent = u128::from(self.bytes()) * 100 / u128::from(self.bytes_total()?);
        Some(u8::try_from(percent).unwrap_or(100).min(100))
    }

    /// Bytes of all files; `None` while nobody knows.
    #[must_use]
    pub fn bytes_total(&self) -> Option<u64> {
        match &*self.followed() {
            Some(followed) => followed.bytes_total(),
            None => Some(self.0.bytes_total.load(Ordering::Relaxed)).filter(|total| *total > 0),
        }
    }

    fn followed(&self) -> MutexGuard<'_, Option<Self>> {
        // Nothing that happens under the lock can be left half done.
        self.0.followed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
