//! A model that comes from its origin, whose root nobody knows yet.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use flotilla_weights_core::Manifest;
use serde::{Deserialize, Serialize};

use super::partial::{sync, write_whole};
use super::{MANIFEST, Store, StoreError, StoredModel};
use crate::error::FilesError;
use crate::files::ModelFiles;
use crate::lock::FolderLock;

/// A folder of the store into which a model's files come. Nobody else fills it while the value lives; dropped, it stays
/// on disk for the next attempt.
#[derive(Debug)]
pub struct ComingModel {
    origin: String,
    folder: PathBuf,
    store: Store,
    lock: FolderLock,
}

/// What the folder says of itself.
#[derive(Debug, Serialize, Deserialize)]
struct Note {
    origin: String,
    bytes: u64,
}

impl Store {
    /// Begins to take in a model of so many bytes, or goes on with what an earlier attempt left. Models that nobody
    /// uses make room for it, the longest unused first.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn begin(&self, origin: &str, bytes: u64) -> Result<ComingModel, StoreError> {
        let name = blake3::hash(origin.as_bytes()).to_hex();
        let folder = self.folder.join(format!("{name}.{COMING}"));
        self.make_room(origin, bytes, &[&folder])?;
        fs::create_dir_all(&folder).map_err(FilesError::io("make", &folder))?;
        let lock = FolderLock::exclusive(&folder).map_err(FilesError::io("lock", &folder))?;
        let lock = lock.ok_or_else(|| StoreError::Busy {
            model: origin.to_owned(),
        })?;
        let note = Note {
            origin: origin.to_owned(),
            bytes,
        };
        let note = serde_json::to_vec(&note).expect("a text and a number can be written as JSON");
        write_whole(&folder.join(NOTE), &note)?;
        Ok(ComingModel {
            origin: origin.to_owned(),
            folder,
            store: self.clone(),
            lock,
        })
    }
}

impl Store {
    /// A whole model that came from an origin of this name; `None` if it is not there.
    ///
    /// # Errors
    /// [`StoreError`] when it is there and cannot be read.
    pub fn find_origin(&self, origin: &str) -> Result<Option<StoredModel>, StoreError> {
        let whole = self.models()?.into_iter().filter(|state| state.whole);
        for state in whole {
            if note(&self.folder_of(state.root)).is_some_and(|note| note.origin == origin) {
                return self.find(state.root);
            }
        }
        Ok(None)
    }
}

impl ComingModel {
    /// Where its files belong.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Makes a whole model of it: the files of this manifest are there and on disk, and it gets its name. When the
    /// store has the model already, that one is kept.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn finish(self, manifest: Arc<Manifest>) -> Result<StoredModel, StoreError> {
        let root = manifest.root();
        if let Some(model) = self.store.find(root)? {
            let doomed = self.folder.with_extension(super::REMOVED);
            fs::rename(&self.folder, &doomed).map_err(FilesError::io("rename", &self.folder))?;
            fs::remove_dir_all(&doomed).map_err(FilesError::io("remove", &doomed))?;
            return Ok(model);
        }
        write_whole(&self.folder.join(MANIFEST), manifest.json())?;
        sync(&self.folder)?;
        let lock = self.lock.share().map_err(FilesError::io("lock", &self.folder))?;
        let lock = lock.ok_or(StoreError::Busy { model: self.origin })?;
        let whole = self.store.folder_of(root);
        fs::rename(&self.folder, &whole).map_err(FilesError::io("rename", &self.folder))?;
        sync(whole.parent().expect("a store has a folder"))?;
        let files = Arc::new(ModelFiles::new(manifest, whole));
        Ok(StoredModel { files, _lock: lock })
    }
}

/// Bytes that a coming model will have, and when it was last wanted; `None` of other folders.
pub(super) fn state(folder: &Path) -> Option<(u64, SystemTime)> {
    if folder.extension()? != COMING {
        return None;
    }
    // A folder without a note is one that somebody begins just now.
    let bytes = note(folder)?.bytes;
    let used = fs::metadata(folder.join(NOTE))
        .and_then(|metadata| metadata.modified())
        .ok()?;
    Some((bytes, used))
}

/// What a folder says of itself; `None` of one that came from no origin.
fn note(folder: &Path) -> Option<Note> {
    serde_json::from_slice(&fs::read(folder.join(NOTE)).ok()?).ok()
}

const COMING: &str = "coming";
/// No file of a model has a name with a dot in front.
const NOTE: &str = ".origin.json";
