//! Files that come from outside: of any kind and length.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use super::ModelError;

/// A configuration, which comes from outside: of any kind and length.
pub(crate) fn read(path: &Path) -> Result<Vec<u8>, ModelError> {
    read_bounded(path, CONFIG_BYTES_MAX)
}

pub(crate) fn read_if_there(path: &Path) -> Result<Option<Vec<u8>>, ModelError> {
    match read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(ModelError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// The index of files of weights.
pub(super) fn read_index(path: &Path) -> Result<Vec<u8>, ModelError> {
    read_bounded(path, INDEX_BYTES_MAX)
}

fn read_bounded(path: &Path, bytes_max: u64) -> Result<Vec<u8>, ModelError> {
    read_at_most(path, bytes_max).map_err(|source| ModelError::Read {
        path: path.to_owned(),
        source,
    })
}

fn read_at_most(path: &Path, bytes_max: u64) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    // One byte more than allowed, because a file can grow while it is read.
    regular(path)?.take(bytes_max + 1).read_to_end(&mut content)?;
    if content.len() as u64 > bytes_max {
        let message =
            format!("it has more than {bytes_max} bytes and is not this model's file: fetch it again");
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, message));
    }
    Ok(content)
}

/// Opens a file that is no folder, pipe or device.
pub(super) fn regular(path: &Path) -> io::Result<File> {
    // Asked before opening: opening a pipe would wait for its writer.
    match path.metadata()?.is_file() {
        true => File::open(path),
        false => Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "it is not a regular file: replace it with the model's own file",
        )),
    }
}

/// Longest configuration; most have a few KB.
const CONFIG_BYTES_MAX: u64 = 4 << 20;
/// Longest index: that of a model with half a million tensors.
const INDEX_BYTES_MAX: u64 = 64 << 20;
