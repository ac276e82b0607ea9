//! How fast the system gives a file, and how to make it forget one.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Instant;

use anyhow::Context as _;
use rustix::fs::{Advice, fadvise};

use super::engine::per_s;

/// Bytes a second of a file that is not in the system's cache, read once by as many threads and in parts as large
/// as a worker reads it, into memory that is there already.
///
/// # Errors
/// When the file cannot be read.
pub(super) fn read_bandwidth(path: &Path) -> anyhow::Result<f64> {
    drop_from_cache(path)?;
    cached_bandwidth(path)
}

/// The same of a file that is in the cache, as far as it is.
///
/// # Errors
/// When the file cannot be read.
pub(super) fn cached_bandwidth(path: &Path) -> anyhow::Result<f64> {
    read(path).with_context(|| format!("cannot read {}", path.display()))
}

fn read(path: &Path) -> io::Result<f64> {
    let file = File::open(path)?;
    let len_bytes = file.metadata()?.len();
    let mut buffers = vec![vec![1_u8; PART_BYTES]; READERS];
    let next = AtomicU64::new(0);
    let begun = Instant::now();
    thread::scope(|scope| {
        let readers: Vec<_> = buffers
            .iter_mut()
            .map(|buffer| scope.spawn(|| read_parts(&file, len_bytes, &next, buffer)))
            .collect();
        readers
            .into_iter()
            .try_for_each(|reader| reader.join().expect("reading does not panic"))
    })?;
    Ok(per_s(
        usize::try_from(len_bytes).unwrap_or(usize::MAX),
        begun.elapsed(),
    ))
}

/// Reads one part after another that no other thread reads.
fn read_parts(file: &File, len_bytes: u64, next: &AtomicU64, buffer: &mut [u8]) -> io::Result<()> {
    loop {
        let at = next.fetch_add(PART_BYTES as u64, Ordering::Relaxed);
        let left = len_bytes.saturating_sub(at);
        if left == 0 {
            return Ok(());
        }
        let part = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
        file.read_exact_at(&mut buffer[..part], at)?;
    }
}

/// Makes the system forget what it has of a file; what a process has mapped stays.
///
/// # Errors
/// When the system refuses.
pub(super) fn drop_from_cache(path: &Path) -> anyhow::Result<()> {
    let forget = || -> io::Result<()> {
        let file = File::open(path)?;
        // Only what is on the disk can be forgotten.
        file.sync_all()?;
        Ok(fadvise(&file, 0, None, Advice::DontNeed)?)
    };
    forget().with_context(|| format!("cannot drop {} from the file cache", path.display()))
}

/// What a worker reads with.
const READERS: usize = 4;
const PART_BYTES: usize = 2 << 20;
