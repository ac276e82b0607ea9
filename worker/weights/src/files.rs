//! The files of one model, wherever they lie.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use flotilla_protocol::weights::SegmentId;
use flotilla_weights_core::Manifest;

use crate::error::FilesError;

/// The files of a model with their manifest. Reading compares every byte with its hash.
///
/// No file is kept open: a worker has as many models as it likes, and what is removed gives its disk space back.
#[derive(Debug)]
pub struct ModelFiles {
    manifest: Arc<Manifest>,
    folder: PathBuf,
}

impl ModelFiles {
    /// The files of a manifest in a folder, which are looked at when they are read.
    #[must_use]
    pub const fn new(manifest: Arc<Manifest>, folder: PathBuf) -> Self {
        Self { manifest, folder }
    }

    /// What the files are made of.
    #[must_use]
    pub const fn manifest(&self) -> &Arc<Manifest> {
        &self.manifest
    }

    /// Where they lie.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Reads a segment into a buffer of its length. Blocks for as long as the disk takes.
    ///
    /// # Errors
    /// [`FilesError::Io`], or [`FilesError::Changed`] when the bytes are not the segment's; the buffer's content
    /// must not be used then.
    ///
    /// # Panics
    /// The manifest has no such segment, or the buffer has another length.
    pub fn read(&self, segment: usize, buffer: &mut [u8]) -> Result<(), FilesError> {
        let segment = self.manifest.segments()[segment];
        let path = || self.folder.join(&self.manifest.files()[segment.file].path);
        assert_eq!(buffer.len() as u64, segment.bytes, "a buffer for the segment");
        let file = File::open(path()).map_err(|source| FilesError::io("open", &path())(source))?;
        let read = file.read_exact_at(buffer, segment.offset);
        read.map_err(|source| FilesError::io("read", &path())(source))?;
        if segment_id(buffer) == segment.id {
            return Ok(());
        }
        Err(FilesError::Changed {
            path: path(),
            offset: segment.offset,
            segment: segment.id,
        })
    }
}

/// The name of a segment of these bytes.
pub(crate) fn segment_id(bytes: &[u8]) -> SegmentId {
    SegmentId::new(*blake3::hash(bytes).as_bytes())
}
