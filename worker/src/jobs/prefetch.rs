//! Bringing a model's weights into host memory before they are wanted: its files are read, so that the system
//! has them in its cache when they are mapped and placed.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use flotilla_protocol::ModelName;
use thiserror::Error;
use tokio::task::{JoinError, spawn_blocking};
use tokio_util::sync::CancellationToken;

use super::JobDone;

/// Why weights were not read.
#[derive(Debug, Error)]
pub(crate) enum PrefetchFault {
    /// A file cannot be read.
    #[error("cannot read {path}", path = path.display())]
    Unreadable {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The worker ends.
    #[error("the worker ends")]
    Cancelled,
    /// A bug in what reads the files.
    #[error("reading the model's files broke")]
    Broke(#[from] JoinError),
}

/// Reads the weights of a folder, at most so many bytes of them, on a thread for blocking work.
pub(crate) async fn prefetch_folder(
    model: ModelName,
    folder: PathBuf,
    bytes_max: u64,
    cancel: CancellationToken,
) -> JobDone {
    let read = spawn_blocking(move || read_weights(&folder, bytes_max, &cancel));
    let result = read.await.map_err(PrefetchFault::from).flatten();
    JobDone::Prefetched { model, result }
}

/// Tells how many bytes were read.
fn read_weights(folder: &Path, bytes_max: u64, cancel: &CancellationToken) -> Result<u64, PrefetchFault> {
    let mut buffer = vec![0; CHUNK_BYTES];
    let mut bytes = 0;
    for path in weight_files(folder).map_err(unreadable(folder))? {
        let mut file = File::open(&path).map_err(unreadable(&path))?;
        while bytes < bytes_max {
            if cancel.is_cancelled() {
                return Err(PrefetchFault::Cancelled);
            }
            match file.read(&mut buffer).map_err(unreadable(&path))? {
                0 => break,
                read => bytes += read as u64,
            }
        }
    }
    Ok(bytes)
}

/// In the order in which they are placed.
fn weight_files(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let paths = fs::read_dir(folder)?.map(|entry| Ok(entry?.path()));
    let mut paths = paths.collect::<io::Result<Vec<PathBuf>>>()?;
    paths.retain(|path| {
        path.extension()
            .is_some_and(|extension| extension == "safetensors")
    });
    paths.sort();
    Ok(paths)
}

fn unreadable(path: &Path) -> impl FnOnce(io::Error) -> PrefetchFault {
    let path = path.to_owned();
    move |source| PrefetchFault::Unreadable { path, source }
}

/// Bytes between two looks at whether the worker ends: milliseconds of any disk.
const CHUNK_BYTES: usize = 1 << 20;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::demo_folder;

    fn read(folder: &Path, bytes_max: u64) -> Result<u64, PrefetchFault> {
        read_weights(folder, bytes_max, &CancellationToken::new())
    }

    #[test]
    fn all_weights_are_read_and_nothing_else() {
        let folder = demo_folder("adder");
        let weights = fs::metadata(folder.join("model.safetensors")).unwrap().len();
        assert_eq!(read(&folder, u64::MAX).unwrap(), weights);
    }

    #[test]
    fn no_more_than_one_piece_beyond_the_limit_is_read() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["a.safetensors", "b.safetensors"] {
            fs::write(folder.path().join(name), vec![0; 3 * CHUNK_BYTES]).unwrap();
        }
        let limit = CHUNK_BYTES as u64 + 1;
        assert_eq!(read(folder.path(), limit).unwrap(), 2 * CHUNK_BYTES as u64);
    }

    #[test]
    fn missing_folder_is_named_and_a_worker_that_ends_reads_no_more() {
        let missing = Path::new("/nowhere/model");
        let fault = read(missing, 1).unwrap_err();
        assert!(fault.to_string().contains("/nowhere/model"), "{fault}");
        let cancel = CancellationToken::new();
        cancel.cancel();
        let fault = read_weights(&demo_folder("adder"), u64::MAX, &cancel).unwrap_err();
        assert!(matches!(fault, PrefetchFault::Cancelled), "{fault}");
    }
}
