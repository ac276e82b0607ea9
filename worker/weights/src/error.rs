//! What goes wrong with files.

use std::io;
use std::path::{Path, PathBuf};

use flotilla_protocol::weights::SegmentId;
use flotilla_weights_core::ManifestError;
use thiserror::Error;

/// Why a model's files cannot be read or written.
#[derive(Debug, Error)]
pub enum FilesError {
    /// The system refuses.
    #[error("cannot {operation} {path}", path = path.display())]
    Io {
        /// What was tried.
        operation: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The bytes are not those of the manifest: the file was changed.
    #[error(
        "{path} has other bytes at {offset} than segment {segment} of its manifest; was it written to?",
        path = path.display()
    )]
    Changed {
        /// The file.
        path: PathBuf,
        /// Where in the file.
        offset: u64,
        /// What should be there.
        segment: SegmentId,
    },
    /// A weight file whose header cannot be read.
    #[error("{path} is not a safetensors file", path = path.display())]
    Header {
        /// The file.
        path: PathBuf,
        /// Why.
        source: serde_json::Error,
    },
    /// A weight file that was cut short, or to which something was added.
    #[error("{path} has {bytes} bytes, by its header it should have {expected}", path = path.display())]
    Length {
        /// The file.
        path: PathBuf,
        /// Its length.
        bytes: u64,
        /// The length that its tensors take.
        expected: u64,
    },
    /// A name that is not text, or could not be written on another machine.
    #[error("{path} has a name that cannot be listed in a manifest", path = path.display())]
    Name {
        /// The file.
        path: PathBuf,
    },
    /// There is no configuration, so it is no model.
    #[error("{folder} holds no model: there is no config.json", folder = folder.display())]
    NoModel {
        /// The folder.
        folder: PathBuf,
    },
    /// The files make no manifest.
    #[error("the files of {folder} make no manifest", folder = folder.display())]
    Manifest {
        /// The folder.
        folder: PathBuf,
        /// Why.
        source: ManifestError,
    },
}

impl FilesError {
    /// For `map_err`, with what was tried on which file.
    pub(crate) fn io(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io {
            operation,
            path,
            source,
        }
    }
}
