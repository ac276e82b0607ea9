//! Reading a model's text files, which come from outside and may be of any size or kind.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

/// Most bytes of one file that are read; the largest `tokenizer.json` in use (260 k tokens) has 34 MB.
pub(crate) const FILE_BYTES_MAX: u64 = 64 << 20;

/// Why a file of a model's folder could not be read.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// There is no such file.
    #[error("{} is missing: fetch the model again, or add the file to its folder", path.display())]
    Missing {
        /// The file that was looked for.
        path: PathBuf,
    },
    /// It is a folder, a pipe or a device.
    #[error("{} is not a regular file: replace it with the model's own file", path.display())]
    NotAFile {
        /// The file that was looked for.
        path: PathBuf,
    },
    /// It is larger than any real file of its kind.
    #[error("{} is larger than {limit_bytes} bytes: it is not this model's file, fetch it again", path.display())]
    TooLarge {
        /// The file that was looked for.
        path: PathBuf,
        /// Most bytes that are read.
        limit_bytes: u64,
    },
    /// The operating system refused.
    #[error("{} cannot be read: check its permissions and its disk", path.display())]
    Unreadable {
        /// The file that was looked for.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
}

/// The content of a file of at most `limit_bytes` bytes.
pub(crate) fn read_bounded(path: &Path, limit_bytes: u64) -> Result<Vec<u8>, FileError> {
    let unreadable = |source: io::Error| match source.kind() {
        io::ErrorKind::NotFound => FileError::Missing {
            path: path.to_owned(),
        },
        _ => FileError::Unreadable {
            path: path.to_owned(),
            source,
        },
    };
    // Asked before opening: opening a pipe would wait for its writer.
    if !path.metadata().map_err(unreadable)?.is_file() {
        return Err(FileError::NotAFile {
            path: path.to_owned(),
        });
    }
    let mut content = Vec::new();
    let file = File::open(path).map_err(unreadable)?;
    // One byte more than allowed, because a file can grow while it is read.
    let read = file
        .take(limit_bytes + 1)
        .read_to_end(&mut content)
        .map_err(unreadable)?;
    if u64::try_from(read).is_ok_and(|read| read <= limit_bytes) {
        Ok(content)
    } else {
        Err(FileError::TooLarge {
            path: path.to_owned(),
            limit_bytes,
        })
    }
}

/// Like [`read_bounded`], with `None` for a file that is not there.
pub(crate) fn read_if_there(path: &Path, limit_bytes: u64) -> Result<Option<Vec<u8>>, FileError> {
    match read_bounded(path, limit_bytes) {
        Ok(content) => Ok(Some(content)),
        Err(FileError::Missing { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_at_the_limit_is_read_and_one_byte_more_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tokenizer.json");
        std::fs::write(&path, b"12345").unwrap();
        assert_eq!(read_bounded(&path, 5).unwrap(), b"12345");
        assert!(matches!(
            read_bounded(&path, 4),
            Err(FileError::TooLarge { limit_bytes: 4, .. })
        ));
    }

    #[test]
    fn folder_in_place_of_a_file_is_named_in_the_error() {
        let folder = tempfile::tempdir().unwrap();
        let error = read_bounded(folder.path(), 5).unwrap_err();
        assert!(
            error.to_string().contains(folder.path().to_str().unwrap()),
            "{error}"
        );
        assert!(matches!(error, FileError::NotAFile { .. }));
    }
}
