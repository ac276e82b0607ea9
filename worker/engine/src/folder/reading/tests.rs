use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::*;

const FEW: Limits = Limits {
    readers: 3,
    buffers: 2,
    buffer_bytes: 1_000,
};

fn golden(name: &str) -> ModelFolder {
    ModelFolder::open(&golden_path(name)).unwrap()
}

fn golden_path(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden")
        .join(name)
}

#[test]
fn pieces_are_all_bytes_of_all_tensors_once() {
    // Groups of rows that are larger than a buffer and smaller ones, and several files.
    for name in ["gqa-f32", "sharded-bf16"] {
        let folder = golden(name);
        let mut read: Vec<_> = folder
            .tensors()
            .map(|tensor| vec![None; tensor.len_bytes()])
            .collect();
        let names: Vec<_> = folder.tensor_infos().map(|info| info.name.as_str()).collect();
        folder.read_within(
            FEW,
            |_| true,
            &AllHere,
            |pieces| {
                for piece in pieces.map(Result::unwrap) {
                    let tensor = names.iter().position(|name| *name == piece.info.name).unwrap();
                    assert!(!piece.bytes().is_empty() && piece.bytes().len() <= FEW.buffer_bytes);
                    for (index, byte) in piece.bytes().iter().enumerate() {
                        let before = read[tensor][piece.offset_bytes + index].replace(*byte);
                        assert_eq!(before, None, "{name} {}", piece.info.name);
                    }
                }
            },
        );
        for (tensor, read) in folder.tensors().zip(read) {
            let read: Option<Vec<u8>> = read.into_iter().collect();
            assert_eq!(read, Some(tensor.read().unwrap()), "{name} {}", tensor.info.name);
        }
    }
}

#[test]
fn pieces_that_hold_whole_groups_of_rows_end_with_one() {
    let folder = golden("gqa-f32");
    let buffer_bytes = 16 << 10;
    let mut seen = 0;
    for tensor in folder.tensors().filter(|tensor| tensor.info.shape.len() == 2) {
        let group_bytes = tensor.info.shape[1] * tensor.info.dtype.size_bytes() * PANEL_ROWS;
        for part in parts(tensor, buffer_bytes).filter(|_| group_bytes <= buffer_bytes) {
            let end = part.offset_bytes + part.len_bytes;
            assert!(end == tensor.len_bytes() || end.is_multiple_of(group_bytes));
            seen += 1;
        }
    }
    assert!(seen > 2);
}

#[test]
fn nothing_is_read_beyond_the_buffers() {
    let folder = golden("gqa-f32");
    let all = folder
        .tensors()
        .flat_map(|tensor| parts(tensor, FEW.buffer_bytes))
        .count();
    folder.read_within(
        FEW,
        |_| true,
        &AllHere,
        |mut pieces| {
            let waiting = |pieces: &Pieces<'_>| pieces.shared.state().waiting.len();
            let held = [pieces.next().unwrap().unwrap(), pieces.next().unwrap().unwrap()];
            assert_eq!(waiting(&pieces), all - FEW.buffers);
            drop(held);
            assert_eq!(pieces.by_ref().map(Result::unwrap).count(), all - FEW.buffers);
        },
    );
}

#[test]
fn reading_ends_with_who_takes_it() {
    let folder = golden("gqa-f32");
    let left = folder.read_within(
        FEW,
        |_| true,
        &AllHere,
        |mut pieces| {
            let piece = pieces.next().unwrap().unwrap();
            let shared = pieces.shared;
            drop(pieces);
            drop(piece);
            shared.state().waiting.len()
        },
    );
    assert!(left > 0, "the call returned and not all was read");
}

#[test]
fn file_that_got_shorter_is_an_error_that_names_it() {
    let scratch = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(golden_path("gqa-f32")).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, scratch.path().join(path.file_name().unwrap())).unwrap();
    }
    let weights = scratch.path().join("model.safetensors");
    let folder = ModelFolder::open(scratch.path()).unwrap();
    let len_bytes = fs::metadata(&weights).unwrap().len();
    let file = File::options().write(true).open(&weights).unwrap();
    file.set_len(len_bytes / 2).unwrap();
    let read = folder.read_ahead(|mut pieces| pieces.try_for_each(|piece| piece.map(drop)));
    let error = read.unwrap_err();
    assert!(
        matches!(&error, ModelError::Shrunk { path, len_bytes: before } if *path == weights && *before as u64 == len_bytes),
        "{error}"
    );
}

/// Files whose bytes come when they are waited for, from the golden ones, and not at all from a place on.
#[derive(Debug)]
struct OnDemand {
    golden: std::path::PathBuf,
    comes: std::path::PathBuf,
    end: u64,
}

impl OnDemand {
    /// A folder that has all of a golden one but the bytes of its weights.
    fn begin(name: &str, comes: &Path, end: u64) -> Self {
        let golden = golden_path(name);
        for entry in fs::read_dir(&golden).unwrap() {
            let path = entry.unwrap().path();
            let copy = comes.join(path.file_name().unwrap());
            match path
                .extension()
                .is_some_and(|extension| extension == "safetensors")
            {
                true => {
                    let len_bytes = fs::metadata(&path).unwrap().len();
                    File::create(copy).unwrap().set_len(len_bytes).unwrap();
                }
                false => drop(fs::copy(&path, copy).unwrap()),
            }
        }
        Self {
            golden,
            comes: comes.to_owned(),
            end,
        }
    }
}

impl Incoming for OnDemand {
    fn wait_for(&self, file: &Path, bytes: Range<u64>) -> io::Result<()> {
        if bytes.end > self.end {
            return Err(io::Error::other("the neighbour has gone"));
        }
        let mut part = vec![0; usize::try_from(bytes.end - bytes.start).unwrap()];
        File::open(self.golden.join(file))?.read_exact_at(&mut part, bytes.start)?;
        let comes = File::options().write(true).open(self.comes.join(file))?;
        comes.write_all_at(&part, bytes.start)
    }

    fn turn(&self, _file: &Path, bytes: Range<u64>) -> usize {
        // The last bytes come first.
        usize::MAX - usize::try_from(bytes.end).unwrap()
    }
}

#[test]
fn bytes_that_come_are_read_when_they_are_there_and_in_the_order_in_which_they_come() {
    for name in ["gqa-f32", "sharded-bf16"] {
        let scratch = tempfile::tempdir().unwrap();
        let incoming = OnDemand::begin(name, scratch.path(), u64::MAX);
        let folder = ModelFolder::open_incoming(scratch.path(), &incoming).unwrap();
        let golden = golden(name);
        let tensors: HashMap<&str, FolderTensor<'_>> = golden
            .tensors()
            .map(|tensor| (tensor.info.name.as_str(), tensor))
            .collect();
        let one = Limits { readers: 1, ..FEW };
        let (mut seen_bytes, mut ends) = (0, Vec::new());
        folder.read_within(
            one,
            |_| true,
            &incoming,
            |pieces| {
                for piece in pieces.map(Result::unwrap) {
                    let tensor = tensors[piece.info.name.as_str()];
                    let wanted = &tensor.read().unwrap()[piece.offset_bytes..][..piece.bytes().len()];
                    assert!(piece.bytes() == wanted, "{name} {}", piece.info.name);
                    seen_bytes += piece.bytes().len();
                    ends.push(tensor.file_offset + piece.offset_bytes + piece.bytes().len());
                }
            },
        );
        assert_eq!(seen_bytes, golden.weights_bytes());
        assert!(ends.is_sorted_by(|a, b| a >= b), "{name}: {ends:?}");
    }
}

#[test]
fn bytes_that_do_not_come_end_the_reading_with_file_and_reason() {
    let scratch = tempfile::tempdir().unwrap();
    let len_bytes = fs::metadata(golden_path("gqa-f32").join("model.safetensors")).unwrap();
    let incoming = OnDemand::begin("gqa-f32", scratch.path(), len_bytes.len() / 2);
    let folder = ModelFolder::open_incoming(scratch.path(), &incoming).unwrap();
    let read = folder.read_ahead_of(
        |_| true,
        &incoming,
        |mut pieces| pieces.try_for_each(|piece| piece.map(drop)),
    );
    let ModelError::Read { path, source } = read.unwrap_err() else {
        panic!("what cannot be read is the fault");
    };
    assert_eq!(path, scratch.path().join("model.safetensors"));
    assert_eq!(source.to_string(), "the neighbour has gone");

    let incoming = OnDemand::begin("gqa-f32", scratch.path(), 0);
    let opened = ModelFolder::open_incoming(scratch.path(), &incoming).unwrap_err();
    assert!(matches!(opened, ModelError::Read { .. }), "{opened}");
}
