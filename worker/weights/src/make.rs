//! The manifest of a folder.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use flotilla_protocol::weights::SegmentId;
use flotilla_weights_core::{FileLayout, Manifest, ManifestFile, Piece, Segment, cut};
use safetensors::tensor::Metadata;
use thiserror::Error;

use crate::error::FilesError;
use crate::files::segment_id;
use crate::folder::model_files;

/// Why there is no manifest.
#[derive(Debug, Error)]
pub enum MakeError {
    /// The files.
    #[error(transparent)]
    Files(#[from] FilesError),
    /// It was told to stop.
    #[error("making the manifest was cancelled")]
    Cancelled,
}

/// Reads all files of a model's folder and writes their manifest. Blocks for as long as reading and hashing every
/// byte takes, on so many threads; between two segments it looks whether it is to stop.
///
/// Files that change meanwhile give a manifest that they do not match, which every reader of it finds out.
///
/// # Errors
/// [`MakeError`].
///
/// # Panics
/// No threads.
pub fn make_manifest(folder: &Path, threads: usize, stop: &AtomicBool) -> Result<Manifest, MakeError> {
    assert!(threads > 0, "somebody has to hash");
    let paths = model_files(folder)?;
    let (mut files, mut layouts) = (Vec::new(), Vec::new());
    for path in &paths {
        let whole = folder.join(path);
        let file = File::open(&whole).map_err(FilesError::io("open", &whole))?;
        layouts.push(layout(&file, &whole)?);
        files.push(file);
    }
    let pieces = cut(&layouts);
    let ids = hash(&pieces, threads, stop, &|piece, buffer| {
        let read = files[piece.file].read_exact_at(buffer, piece.offset);
        read.map_err(FilesError::io("read", &folder.join(&paths[piece.file])))
    })?;
    let segments = pieces.iter().zip(ids).map(|(piece, id)| Segment {
        id,
        file: piece.file,
        offset: piece.offset,
        bytes: piece.bytes,
    });
    let segments = segments.collect();
    let files = paths
        .into_iter()
        .zip(&layouts)
        .map(|(path, layout)| ManifestFile {
            path,
            bytes: layout.bytes,
        });
    Manifest::new(files.collect(), segments).map_err(|source| {
        MakeError::Files(FilesError::Manifest {
            folder: folder.to_owned(),
            source,
        })
    })
}

/// A file's length, and its tensors if it is one of weights.
fn layout(file: &File, path: &Path) -> Result<FileLayout, FilesError> {
    let metadata = file.metadata().map_err(FilesError::io("look at", path))?;
    let bytes = metadata.len();
    if path
        .extension()
        .is_none_or(|extension| extension != "safetensors")
    {
        return Ok(FileLayout {
            bytes,
            tensors: Vec::new(),
        });
    }
    let header = header(file, bytes).map_err(FilesError::io("read the header of", path))?;
    let json = header.get(LENGTH_BYTES..).unwrap_or_default();
    let metadata: Metadata = serde_json::from_slice(json).map_err(|source| FilesError::Header {
        path: path.to_owned(),
        source,
    })?;
    // The library compares the header with itself, not with the file.
    let data = header.len() as u64;
    let expected = data.saturating_add(metadata.data_len() as u64);
    if expected != bytes {
        let path = path.to_owned();
        return Err(FilesError::Length {
            path,
            bytes,
            expected,
        });
    }
    let tensors = metadata.tensors().into_iter().map(|(name, info)| {
        let (begin, end) = info.data_offsets;
        (name, data + begin as u64..data + end as u64)
    });
    let tensors = tensors.collect();
    Ok(FileLayout { bytes, tensors })
}

/// The bytes of a header with its length before it.
fn header(file: &File, file_bytes: u64) -> io::Result<Vec<u8>> {
    let mut length = [0; LENGTH_BYTES];
    file.read_exact_at(&mut length, 0)?;
    let wanted = u64::from_le_bytes(length).saturating_add(LENGTH_BYTES as u64);
    // What is cut short or absurdly long is for the library to refuse.
    let there = wanted.min(file_bytes).min(HEADER_BYTES_MAX);
    let mut header = vec![0; usize::try_from(there).expect("a header fits into memory")];
    file.read_exact_at(&mut header, 0)?;
    Ok(header)
}

/// Fills a buffer with a piece.
type ReadPiece<'a> = dyn Fn(&Piece, &mut [u8]) -> Result<(), FilesError> + Sync + 'a;

/// The names of pieces, read and hashed by several threads.
fn hash(
    pieces: &[Piece],
    threads: usize,
    stop: &AtomicBool,
    read: &ReadPiece<'_>,
) -> Result<Vec<SegmentId>, MakeError> {
    let next = AtomicUsize::new(0);
    let work = || {
        let (mut found, mut buffer) = (Vec::new(), Vec::new());
        while let Some((index, piece)) = {
            let index = next.fetch_add(1, Ordering::Relaxed);
            pieces.get(index).map(|piece| (index, piece))
        } {
            if stop.load(Ordering::Relaxed) {
                return Err(MakeError::Cancelled);
            }
            buffer.resize(
                usize::try_from(piece.bytes).expect("a segment fits into memory"),
                0,
            );
            if let Err(error) = read(piece, &mut buffer) {
                // The others need not go on.
                next.store(pieces.len(), Ordering::Relaxed);
                return Err(error.into());
            }
            found.push((index, segment_id(&buffer)));
        }
        Ok(found)
    };
    let found = thread::scope(|scope| {
        let workers: Vec<_> = (0..threads.min(pieces.len()))
            .map(|_| scope.spawn(work))
            .collect();
        let joined = workers
            .into_iter()
            .map(|worker| worker.join().expect("hashing does not panic"));
        joined.collect::<Result<Vec<Vec<(usize, SegmentId)>>, MakeError>>()
    })?;
    let mut ids: Vec<(usize, SegmentId)> = found.into_iter().flatten().collect();
    ids.sort_unstable_by_key(|(index, _)| *index);
    Ok(ids.into_iter().map(|(_, id)| id).collect())
}

const LENGTH_BYTES: usize = 8;
/// The largest header that is believed, as in the reference implementation.
const HEADER_BYTES_MAX: u64 = 100_000_000 + LENGTH_BYTES as u64;

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::PathBuf;
    use std::sync::Arc;

    use super::*;
    use crate::ModelFiles;

    fn demo(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../../cli/demo-models")
            .join(name)
    }

    fn made(folder: &Path, threads: usize) -> Manifest {
        make_manifest(folder, threads, &AtomicBool::new(false)).unwrap()
    }

    #[test]
    fn manifest_of_a_folder_is_the_same_with_any_number_of_threads_and_its_segments_are_readable() {
        let manifest = Arc::new(made(&demo("adder"), 1));
        assert_eq!(made(&demo("adder"), 3).root(), manifest.root());
        assert_ne!(made(&demo("sorter"), 1).root(), manifest.root());
        let paths: Vec<&str> = manifest.files().iter().map(|file| file.path.as_str()).collect();
        assert!(
            paths.contains(&"config.json") && paths.contains(&"model.safetensors"),
            "{paths:?}"
        );
        let files = ModelFiles::new(Arc::clone(&manifest), demo("adder"));
        let mut buffer = Vec::new();
        for (index, segment) in manifest.segments().iter().enumerate() {
            buffer.resize(segment.buffer_bytes(), 0);
            files.read(index, &mut buffer).unwrap();
        }
    }

    #[test]
    fn changed_byte_is_found_when_its_segment_is_read() {
        let folder = tempfile::tempdir().unwrap();
        for file in fs::read_dir(demo("adder")).unwrap() {
            let file = file.unwrap();
            fs::copy(file.path(), folder.path().join(file.file_name())).unwrap();
        }
        let manifest = Arc::new(made(folder.path(), 2));
        let weights = folder.path().join("model.safetensors");
        let mut bytes = fs::read(&weights).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        fs::write(&weights, &bytes).unwrap();
        let files = ModelFiles::new(Arc::clone(&manifest), folder.path().to_owned());
        let changed =
            |segment| match files.read(segment, &mut vec![0; manifest.segments()[segment].buffer_bytes()]) {
                Ok(()) => false,
                Err(FilesError::Changed { path, .. }) => path == weights,
                Err(error) => panic!("{error}"),
            };
        let changed = (0..manifest.segments().len())
            .filter(|segment| changed(*segment))
            .count();
        assert_eq!(changed, 1);
        assert_ne!(made(folder.path(), 1).root(), manifest.root());

        bytes.truncate(bytes.len() - 1);
        fs::write(&weights, &bytes).unwrap();
        let refused = make_manifest(folder.path(), 1, &AtomicBool::new(false)).unwrap_err();
        assert!(refused.to_string().contains("model.safetensors"), "{refused}");
    }

    #[test]
    fn making_a_manifest_can_be_stopped() {
        let stopped = make_manifest(&demo("adder"), 2, &AtomicBool::new(true));
        assert!(matches!(stopped, Err(MakeError::Cancelled)));
    }
}
