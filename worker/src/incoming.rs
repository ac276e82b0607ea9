//! Weights that are read while they come: the engine's readers wait for what was compared.

use std::io;
use std::ops::Range;
use std::path::Path;

use flotilla_weights::ComingFiles;
use flotilla_worker_engine::Incoming;
use tokio_util::sync::CancellationToken;

/// Waits for files that may be on their way, all of which end with a token.
#[derive(Debug)]
pub(crate) struct Waits<'a> {
    files: Option<&'a ComingFiles>,
    end: &'a CancellationToken,
}

impl<'a> Waits<'a> {
    /// Waits for files that are on their way, if they are.
    pub(crate) const fn new(files: Option<&'a ComingFiles>, end: &'a CancellationToken) -> Self {
        Self { files, end }
    }
}

impl Incoming for Waits<'_> {
    fn wait_for(&self, file: &Path, bytes: Range<u64>) -> io::Result<()> {
        self.files.map_or(Ok(()), |files| {
            let waited = files.wait_for(file, bytes, self.end);
            waited.map_err(io::Error::other)
        })
    }

    fn turn(&self, file: &Path, bytes: Range<u64>) -> usize {
        self.files.map_or(0, |files| files.arrival().turn(file, bytes))
    }
}
