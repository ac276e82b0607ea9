//! What is measured of one input, and the folder that decoders of files read from.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::allocations::peak_of;

/// What a decoder made of an input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It is one.
    Accepted,
    /// It is none.
    Refused,
}

impl<T, E> From<&Result<T, E>> for Verdict {
    fn from(result: &Result<T, E>) -> Self {
        Self::from(result.is_ok())
    }
}

impl From<bool> for Verdict {
    fn from(is_accepted: bool) -> Self {
        match is_accepted {
            true => Self::Accepted,
            false => Self::Refused,
        }
    }
}

/// Measures decoders, one input after the other.
#[derive(Debug, Default)]
pub(crate) struct Probe {
    /// Of all that was measured for this input.
    pub(crate) cost: Cost,
    folder: Option<TempDir>,
}

/// What an input took.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Cost {
    /// Time; of a machine that is busy with other things too long a one.
    pub(crate) time: Duration,
    /// Bytes allocated at once.
    pub(crate) bytes: usize,
}

impl Probe {
    /// Runs what production runs for an input. What is done outside costs nothing.
    pub(crate) fn measure<T>(&mut self, call: impl FnOnce() -> T) -> T {
        let began = Instant::now();
        let (value, bytes) = peak_of(call);
        self.cost.time += began.elapsed();
        self.cost.bytes = self.cost.bytes.max(bytes);
        value
    }

    /// A folder in memory that is this decoder's and this thread's, made by the first call.
    pub(crate) fn folder(&mut self, prepare: impl FnOnce(&Path)) -> &Path {
        self.folder
            .get_or_insert_with(|| {
                let made = match Path::new(IN_MEMORY).is_dir() {
                    true => tempfile::tempdir_in(IN_MEMORY),
                    false => tempfile::tempdir(),
                };
                let made = made.expect("a folder for files can be made");
                prepare(made.path());
                made
            })
            .path()
    }
}

/// Writes a file that a decoder is about to read.
pub(crate) fn write(path: &Path, content: &[u8]) {
    fs::write(path, content).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
}

/// Where Linux keeps files that are on no disk.
const IN_MEMORY: &str = "/dev/shm";
