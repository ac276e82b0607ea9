//! Models that are whole and perhaps not on disk yet.
//!
//! A disk writes more slowly than a network brings, and nobody who waits for a model needs its disk. So a model is whole
//! as soon as all of it was compared, and is synced afterwards. Until that is done its folder has a mark with the
//! boot of the machine: what was written in this boot is read back whatever becomes of the process. What has a mark
//! of another boot may have lost bytes and is a partial model again, whose segments are compared.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, unlinkat};
use rustix::io::Errno;
use tracing::{debug, warn};

use super::partial::{LOG, sync};
use super::{PARTIAL, StoreError};
use crate::error::FilesError;
use crate::lock::FolderLock;

/// A whole model that is to be synced. Dropped, it is left to the system, and compared again after a crash.
#[derive(Debug)]
pub struct Unsynced {
    /// Where it is.
    pub(super) folder: PathBuf,
    /// Its files.
    pub(super) files: Vec<(PathBuf, File)>,
    /// The folder itself: it may be removed meanwhile, and another one be in its place.
    pub(super) directory: File,
}

impl Unsynced {
    /// Waits until all of it is on disk.
    ///
    /// # Errors
    /// [`FilesError::Io`]: it is compared again after a crash.
    pub fn sync(self) -> Result<(), FilesError> {
        for (path, file) in &self.files {
            file.sync_all()
                .map_err(FilesError::io("sync", &self.folder.join(path)))?;
        }
        let synced = |file: &File| file.sync_all().map_err(FilesError::io("sync", &self.folder));
        synced(&self.directory)?;
        sync(self.folder.parent().expect("a store has a folder"))?;
        // The log goes last: with a mark and without a log, all of it would be received again.
        for name in [MARK, LOG] {
            match unlinkat(&self.directory, name, AtFlags::empty()) {
                // Removed meanwhile, with all of the model.
                Ok(()) | Err(Errno::NOENT) => synced(&self.directory)?,
                Err(error) => return Err(FilesError::io("remove", &self.folder.join(name))(error.into())),
            }
        }
        Ok(())
    }

    /// The same for somebody who does not wait.
    pub(crate) fn sync_and_tell(self) {
        let folder = self.folder.clone();
        match self.sync() {
            Ok(()) => debug!(folder = %folder.display(), "a model of the store is on disk"),
            Err(error) => {
                warn!(folder = %folder.display(), error = &error as &dyn std::error::Error, "a model of the store is not on disk");
            }
        }
    }
}

/// Marks a folder whose bytes are written in this boot.
pub(super) fn mark(folder: &Path) -> Result<(), FilesError> {
    let path = folder.join(MARK);
    fs::write(&path, boot()).map_err(FilesError::io("write", &path))?;
    // What the mark says may be lost, and then it is of another boot; that it is there may not.
    sync(folder)
}

/// Whether a whole model can be believed: it is on disk, or was written since the machine started.
pub(super) fn is_believed(folder: &Path) -> Result<bool, FilesError> {
    let path = folder.join(MARK);
    match fs::read(&path) {
        Ok(mark) => Ok(!mark.is_empty() && mark == boot()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
        Err(error) => Err(FilesError::io("read", &path)(error)),
    }
}

/// Makes a partial model of a whole one that cannot be believed, unless somebody uses it.
pub(super) fn demote(folder: &Path) -> Result<(), StoreError> {
    let lock = FolderLock::exclusive(folder).map_err(FilesError::io("lock", folder))?;
    if lock.is_some() {
        warn!(folder = %folder.display(), "the machine stopped before this model was on disk; it is compared when it is wanted");
        fs::rename(folder, folder.with_extension(PARTIAL)).map_err(FilesError::io("rename", folder))?;
    }
    Ok(())
}

/// The boot of this machine; empty, which no mark is believed with, where the system does not tell.
fn boot() -> Vec<u8> {
    fs::read("/proc/sys/kernel/random/boot_id").unwrap_or_default()
}

/// No file of a manifest has a name with a dot in front.
pub(super) const MARK: &str = ".unsynced";
