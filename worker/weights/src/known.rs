//! Manifests of folders that were read before: a folder is read again only when a file of it has changed.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use bytes::Bytes;
use flotilla_protocol::weights::Root;
use flotilla_weights_core::Manifest;
use serde::{Deserialize, Serialize};
use tracing::debug;

use crate::error::FilesError;
use crate::folder::model_files;
use crate::make::{MakeError, make_manifest};

/// Where manifests of folders are kept. Losing it costs reading the folders again.
#[derive(Debug, Clone)]
pub struct KnownManifests {
    folder: PathBuf,
}

/// A manifest and the files as they were before it was made.
#[derive(Debug, Serialize, Deserialize)]
struct Known {
    files: Vec<FileState>,
    root: Root,
    manifest: String,
}

/// What changes when a file is written to or replaced.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct FileState {
    path: String,
    device: u64,
    inode: u64,
    bytes: u64,
    modified_s: i64,
    modified_ns: i64,
}

impl KnownManifests {
    /// Opens the folder where they are kept.
    ///
    /// # Errors
    /// [`FilesError::Io`] when it cannot be made.
    pub fn open(folder: PathBuf) -> Result<Self, FilesError> {
        fs::create_dir_all(&folder).map_err(FilesError::io("make", &folder))?;
        Ok(Self { folder })
    }

    /// The manifest of a model's folder: the known one if no file has changed, or one that is made now as by
    /// [`make_manifest`].
    ///
    /// # Errors
    /// [`MakeError`].
    pub fn of(&self, model: &Path, threads: usize, stop: &AtomicBool) -> Result<Manifest, MakeError> {
        let files = states(model)?;
        let path = self.path_of(model);
        if let Some(manifest) = known(&path, &files) {
            return Ok(manifest);
        }
        let manifest = make_manifest(model, threads, stop)?;
        let known = Known {
            files,
            root: manifest.root(),
            manifest: String::from_utf8_lossy(manifest.json()).into_owned(),
        };
        self.keep(&path, &known)?;
        Ok(manifest)
    }

    fn keep(&self, path: &Path, known: &Known) -> Result<(), FilesError> {
        let json = serde_json::to_vec(known).expect("texts and numbers can be written as JSON");
        // Two processes may make the same one; each renames a whole file of its own.
        let beside = self.folder.join(format!("{}.new", std::process::id()));
        fs::write(&beside, json).map_err(FilesError::io("write", &beside))?;
        fs::rename(&beside, path).map_err(FilesError::io("rename", &beside))
    }

    fn path_of(&self, model: &Path) -> PathBuf {
        let name = blake3::hash(model.as_os_str().as_encoded_bytes());
        self.folder.join(format!("{}.json", name.to_hex()))
    }
}

/// A kept manifest of files that are still the same. One that cannot be read is made again.
fn known(path: &Path, files: &[FileState]) -> Option<Manifest> {
    let json = match fs::read(path) {
        Ok(json) => json,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
        Err(error) => {
            debug!(path = %path.display(), %error, "a kept manifest cannot be read");
            return None;
        }
    };
    let known: Known = serde_json::from_slice(&json).ok()?;
    let unchanged = known.files == files;
    unchanged.then(|| Manifest::from_json(known.root, Bytes::from(known.manifest)).ok())?
}

fn states(model: &Path) -> Result<Vec<FileState>, FilesError> {
    let state = |path: String| {
        let whole = model.join(&path);
        let metadata = fs::metadata(&whole).map_err(FilesError::io("look at", &whole))?;
        Ok(FileState {
            path,
            device: metadata.dev(),
            inode: metadata.ino(),
            bytes: metadata.len(),
            modified_s: metadata.mtime(),
            modified_ns: metadata.mtime_nsec(),
        })
    };
    model_files(model)?.into_iter().map(state).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folder_is_read_again_only_when_a_file_has_changed() {
        let (model, kept) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let config = model.path().join("config.json");
        fs::write(&config, "{}").unwrap();
        let manifests = KnownManifests::open(kept.path().join("manifests")).unwrap();
        // A stopped one makes none, and finds a known one.
        let of = |stop| manifests.of(model.path(), 1, &AtomicBool::new(stop));
        assert!(matches!(of(true), Err(MakeError::Cancelled)));
        let root = of(false).unwrap().root();
        assert_eq!(of(true).unwrap().root(), root);
        fs::write(&config, "{ }").unwrap();
        assert!(matches!(of(true), Err(MakeError::Cancelled)));
        assert_ne!(of(false).unwrap().root(), root);

        let file = fs::read_dir(kept.path().join("manifests"))
            .unwrap()
            .next()
            .unwrap()
            .unwrap();
        fs::write(file.path(), "broken").unwrap();
        assert!(matches!(of(true), Err(MakeError::Cancelled)));
    }
}
