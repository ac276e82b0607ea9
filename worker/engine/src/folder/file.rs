//! A file of tensors: opened once, read at any place by any thread.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::{Incoming, ModelError};
use crate::header::LENGTH_BYTES;
use crate::{Header, HeaderError};

/// Read with calls rather than through a map: a file that gets shorter, or a disk that fails, is then an error of
/// the one load and not a signal that ends the process.
#[derive(Debug)]
pub(super) struct WeightsFile {
    path: PathBuf,
    file: File,
    len_bytes: usize,
}

impl WeightsFile {
    pub(super) fn open(path: PathBuf) -> Result<Self, ModelError> {
        let opened = super::regular(&path).and_then(|file| {
            let len_bytes = file.metadata()?.len();
            let len_bytes = usize::try_from(len_bytes).map_err(|_| io::ErrorKind::FileTooLarge)?;
            Ok((file, len_bytes))
        });
        match opened {
            Ok((file, len_bytes)) => Ok(Self {
                path,
                file,
                len_bytes,
            }),
            Err(source) => Err(ModelError::Read { path, source }),
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// What it begins with, up to the end of the header, and the header.
    pub(super) fn header(&self, incoming: &dyn Incoming) -> Result<(Vec<u8>, Header), ModelError> {
        let mut start = vec![0; LENGTH_BYTES.min(self.len_bytes)];
        self.read_at(0, &mut start, incoming)?;
        let end = Header::end(&start, self.len_bytes).map_err(|source| self.broken(source))?;
        let length_bytes = start.len();
        start.resize(end, 0);
        self.read_at(length_bytes, &mut start[length_bytes..], incoming)?;
        let header = Header::parse(&start, self.len_bytes).map_err(|source| self.broken(source))?;
        Ok((start, header))
    }

    /// Fills a buffer with what begins at an offset, as soon as it is there.
    pub(super) fn read_at(
        &self,
        offset: usize,
        into: &mut [u8],
        incoming: &dyn Incoming,
    ) -> Result<(), ModelError> {
        let bytes = offset as u64..(offset + into.len()) as u64;
        let read = incoming
            .wait_for(self.name(), bytes.clone())
            .and_then(|()| self.file.read_exact_at(into, bytes.start));
        match read {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Err(ModelError::Shrunk {
                path: self.path.clone(),
                len_bytes: self.len_bytes,
            }),
            Err(source) => Err(ModelError::Read {
                path: self.path.clone(),
                source,
            }),
        }
    }

    /// When what begins at an offset will be there.
    pub(super) fn turn(&self, offset: usize, len_bytes: usize, incoming: &dyn Incoming) -> usize {
        incoming.turn(self.name(), offset as u64..(offset + len_bytes) as u64)
    }

    fn name(&self) -> &Path {
        self.path.file_name().map_or(&self.path, Path::new)
    }

    fn broken(&self, source: HeaderError) -> ModelError {
        ModelError::Header {
            path: self.path.clone(),
            source,
        }
    }
}
