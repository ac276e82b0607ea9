//! The content store: models that came from elsewhere, on disk, within a bound.
//!
//! A folder of the store is either a whole model under its root, or one on its way under its root and `.partial`;
//! the file system is all the state there is, so that several processes can share a store and a crash leaves
//! nothing to repair:
//!
//! * A model becomes whole by a rename, after every segment was compared. Dying before it leaves a partial model, whose
//!   segments are compared again before they count; so does a crash of the machine before its files were synced
//!   (`unsynced.rs`).
//! * Whoever reads a model holds a shared lock on its folder, whoever receives or removes one an exclusive lock.
//!   Locks end with their process.
//! * A model is removed by a rename to `.removed` under its exclusive lock; what a crash leaves of that is deleted
//!   when the store is opened.

mod coming;
mod partial;
mod unsynced;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use flotilla_protocol::weights::Root;
use flotilla_weights_core::{Manifest, ManifestError};
use thiserror::Error;
use tracing::{info, warn};

use crate::error::FilesError;
use crate::files::ModelFiles;
use crate::lock::FolderLock;
pub use coming::ComingModel;
pub use partial::PartialModel;
pub use unsynced::Unsynced;

/// A folder of models by root, of at most so many bytes.
#[derive(Debug, Clone)]
pub struct Store {
    folder: PathBuf,
    bytes_max: u64,
}

/// A whole model of the store. It is not removed while the value lives.
#[derive(Debug)]
pub struct StoredModel {
    files: Arc<ModelFiles>,
    _lock: FolderLock,
}

/// What the store says of one of its models.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredState {
    /// Which.
    pub root: Root,
    /// Bytes that it takes, or will take when it is whole.
    pub bytes: u64,
    /// Whether all of it is there.
    pub whole: bool,
    /// When it was last wanted.
    pub used: SystemTime,
}

/// Why a model is not in the store.
#[derive(Debug, Error)]
pub enum StoreError {
    /// The files.
    #[error(transparent)]
    Files(#[from] FilesError),
    /// All other models together cannot make room for it.
    #[error(
        "model {model} of {bytes} bytes does not fit into the store {folder}: of its {bytes_max} bytes \
         {bytes_in_use} are in use; raise worker.weights.store_max_bytes or remove models",
        folder = folder.display()
    )]
    Full {
        /// The newcomer: its root, or what its origin calls it.
        model: String,
        /// Its bytes.
        bytes: u64,
        /// The store.
        folder: PathBuf,
        /// Its limit.
        bytes_max: u64,
        /// Bytes of models that are read or received at the moment.
        bytes_in_use: u64,
    },
    /// Another process of this machine receives it at the moment.
    #[error("model {model} is being received by another process already")]
    Busy {
        /// Its root, or what its origin calls it.
        model: String,
    },
    /// The store's own copy of a manifest is not one.
    #[error("{path} is broken", path = path.display())]
    Manifest {
        /// The file.
        path: PathBuf,
        /// Why.
        source: ManifestError,
    },
}

impl StoredModel {
    /// A whole model in any store's folder of it, also one of another worker of this machine; `None` if it is not
    /// there.
    ///
    /// # Errors
    /// [`StoreError`] when it is there and cannot be read.
    pub fn open(folder: PathBuf, root: Root) -> Result<Option<Self>, StoreError> {
        let lock = match FolderLock::shared(&folder) {
            Ok(Some(lock)) => lock,
            Ok(None) => return Ok(None),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(FilesError::io("lock", &folder)(error).into()),
        };
        // It may have been removed between the look and the lock; from here on it cannot.
        if !unsynced::is_believed(&folder)? {
            return Ok(None);
        }
        let Some(manifest) = manifest(&folder, root)? else {
            return Ok(None);
        };
        let files = ModelFiles::new(Arc::new(manifest), folder);
        Ok(Some(Self {
            files: Arc::new(files),
            _lock: lock,
        }))
    }

    /// Its files.
    #[must_use]
    pub const fn files(&self) -> &Arc<ModelFiles> {
        &self.files
    }
}

impl Store {
    /// Opens a store, clears away what was being removed from it and doubts what was not synced when the machine stopped. Models beyond the limit stay until the next
    /// one comes.
    ///
    /// # Errors
    /// [`StoreError`] when the folder cannot be made or listed.
    pub fn open(folder: PathBuf, bytes_max: u64) -> Result<Self, StoreError> {
        fs::create_dir_all(&folder).map_err(FilesError::io("make", &folder))?;
        let store = Self { folder, bytes_max };
        for path in store.folders()? {
            if path.extension().is_some_and(|extension| extension == REMOVED) {
                fs::remove_dir_all(&path).map_err(FilesError::io("remove", &path))?;
            } else if path.is_dir() && path.extension().is_none() && !unsynced::is_believed(&path)? {
                unsynced::demote(&path)?;
            }
        }
        Ok(store)
    }

    /// The folder of a whole model of this root, whether it is there or not.
    #[must_use]
    pub fn folder_of(&self, root: Root) -> PathBuf {
        self.folder.join(root.to_string())
    }

    /// A whole model, marked as wanted now; `None` if it is not there.
    ///
    /// # Errors
    /// [`StoreError`] when it is there and cannot be read.
    pub fn find(&self, root: Root) -> Result<Option<StoredModel>, StoreError> {
        let model = StoredModel::open(self.folder_of(root), root)?;
        if let Some(model) = &model {
            touch(model.files.folder())?;
        }
        Ok(model)
    }

    /// What an earlier attempt to receive a model left, compared again; `None` when it left nothing. Blocks for as
    /// long as reading it takes.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn resume(&self, root: Root) -> Result<Option<PartialModel>, StoreError> {
        let folder = self.partial_folder(root);
        match manifest(&folder, root)? {
            Some(manifest) => self.receive(Arc::new(manifest)).map(Some),
            None => Ok(None),
        }
    }

    /// Begins to receive a model, or goes on with what an earlier attempt left; what that one had is compared again
    /// first, which blocks for as long as reading it takes. Models that nobody uses make room for it, the longest
    /// unused first.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn receive(&self, manifest: Arc<Manifest>) -> Result<PartialModel, StoreError> {
        let root = manifest.root();
        let folder = self.partial_folder(root);
        self.make_room(
            &root.to_string(),
            manifest.bytes(),
            &[&folder, &self.folder_of(root)],
        )?;
        fs::create_dir_all(&folder).map_err(FilesError::io("make", &folder))?;
        let lock = FolderLock::exclusive(&folder).map_err(FilesError::io("lock", &folder))?;
        let lock = lock.ok_or_else(|| busy(root))?;
        PartialModel::open(manifest, folder, self.folder_of(root), lock)
    }

    /// Every model of the store, the longest unused first. One that cannot be read is left out.
    ///
    /// # Errors
    /// [`FilesError::Io`] when the store cannot be listed.
    pub fn models(&self) -> Result<Vec<StoredState>, FilesError> {
        let mut models: Vec<StoredState> = Vec::new();
        for path in self.folders()? {
            match self.state(&path) {
                Ok(state) => models.extend(state),
                Err(error) => warn!(folder = %path.display(), %error, "a folder of the store is skipped"),
            }
        }
        models.sort_by_key(|state| (state.used, state.root));
        Ok(models)
    }

    /// Removes a model, whole or partial; `false` if somebody uses it or it is not there.
    ///
    /// # Errors
    /// [`FilesError::Io`].
    pub fn remove(&self, root: Root) -> Result<bool, FilesError> {
        let whole = remove_folder(&self.folder_of(root))?;
        Ok(remove_folder(&self.partial_folder(root))? || whole)
    }

    fn partial_folder(&self, root: Root) -> PathBuf {
        self.folder.join(format!("{root}.{PARTIAL}"))
    }

    /// Makes room for a newcomer that may lie in these folders already.
    fn make_room(&self, newcomer: &str, newcomer_bytes: u64, own: &[&Path]) -> Result<(), StoreError> {
        let mut taken = self.taken()?;
        taken.retain(|taken| !own.contains(&taken.folder.as_path()));
        let mut bytes: u64 = taken.iter().map(|taken| taken.bytes).sum();
        let full = |bytes_in_use| StoreError::Full {
            model: newcomer.to_owned(),
            bytes: newcomer_bytes,
            folder: self.folder.clone(),
            bytes_max: self.bytes_max,
            bytes_in_use,
        };
        if newcomer_bytes > self.bytes_max {
            // Nothing is removed for one that fits nowhere.
            return Err(full(0));
        }
        for taken in taken {
            if bytes + newcomer_bytes <= self.bytes_max {
                return Ok(());
            }
            if remove_folder(&taken.folder)? {
                info!(folder = %taken.folder.display(), bytes = taken.bytes, newcomer, "model removed from the store");
                bytes -= taken.bytes;
            }
        }
        if bytes + newcomer_bytes <= self.bytes_max {
            return Ok(());
        }
        Err(full(bytes))
    }

    /// What takes room, the longest unused first. A folder that cannot be read is left out.
    fn taken(&self) -> Result<Vec<Taken>, FilesError> {
        let mut all: Vec<Taken> = Vec::new();
        for folder in self.folders()? {
            let taken = match self.state(&folder) {
                Ok(Some(state)) => Some((state.bytes, state.used)),
                Ok(None) => coming::state(&folder),
                Err(error) => {
                    warn!(folder = %folder.display(), %error, "a folder of the store is skipped");
                    None
                }
            };
            all.extend(taken.map(|(bytes, used)| Taken { folder, bytes, used }));
        }
        all.sort_by(|a, b| (a.used, &a.folder).cmp(&(b.used, &b.folder)));
        Ok(all)
    }

    fn folders(&self) -> Result<Vec<PathBuf>, FilesError> {
        let list = fs::read_dir(&self.folder).and_then(|list| list.map(|entry| Ok(entry?.path())).collect());
        list.map_err(FilesError::io("list", &self.folder))
    }

    fn state(&self, folder: &Path) -> Result<Option<StoredState>, StoreError> {
        let name = folder
            .file_name()
            .and_then(|name| name.to_str())
            .unwrap_or_default();
        let (name, whole) = match name.strip_suffix(&format!(".{PARTIAL}")) {
            Some(name) => (name, false),
            None => (name, true),
        };
        let Ok(root) = name.parse() else {
            return Ok(None);
        };
        let Some(manifest) = manifest(folder, root)? else {
            return Ok(None);
        };
        let path = folder.join(MANIFEST);
        let used = fs::metadata(&path).and_then(|metadata| metadata.modified());
        Ok(Some(StoredState {
            root,
            bytes: manifest.bytes(),
            whole,
            used: used.map_err(FilesError::io("look at", &path))?,
        }))
    }
}

/// A folder that takes room.
struct Taken {
    folder: PathBuf,
    bytes: u64,
    used: SystemTime,
}

/// Removes a folder that nobody uses; `false` if somebody does or it is not there.
fn remove_folder(folder: &Path) -> Result<bool, FilesError> {
    let lock = match FolderLock::exclusive(folder) {
        Ok(Some(lock)) => lock,
        Ok(None) => return Ok(false),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(FilesError::io("lock", folder)(error)),
    };
    let doomed = folder.with_extension(REMOVED);
    fs::rename(folder, &doomed).map_err(FilesError::io("rename", folder))?;
    fs::remove_dir_all(&doomed).map_err(FilesError::io("remove", &doomed))?;
    drop(lock);
    Ok(true)
}

fn busy(root: Root) -> StoreError {
    StoreError::Busy {
        model: root.to_string(),
    }
}

/// The manifest in a model's folder; `None` when there is none.
fn manifest(folder: &Path, root: Root) -> Result<Option<Manifest>, StoreError> {
    let path = folder.join(MANIFEST);
    let json = match fs::read(&path) {
        Ok(json) => Bytes::from(json),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(FilesError::io("read", &path)(error).into()),
    };
    let manifest = Manifest::from_json(root, json);
    manifest
        .map(Some)
        .map_err(|source| StoreError::Manifest { path, source })
}

/// Marks a model as wanted now.
fn touch(folder: &Path) -> Result<(), FilesError> {
    let path = folder.join(MANIFEST);
    let touched = fs::File::options().write(true).open(&path);
    touched
        .and_then(|file| file.set_modified(SystemTime::now()))
        .map_err(FilesError::io("mark", &path))
}

/// The manifest in a model's folder. No file of a manifest has a name with a dot in front.
const MANIFEST: &str = ".manifest.json";
const PARTIAL: &str = "partial";
const REMOVED: &str = "removed";

#[cfg(test)]
mod tests;
