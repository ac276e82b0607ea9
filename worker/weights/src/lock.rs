//! Locks on folders that hold between processes and end with them.

use std::fs::File;
use std::io;
use std::path::Path;

use rustix::fs::{FlockOperation, flock};

/// A lock on a folder, for as long as the value lives. A process that dies lets it go.
#[derive(Debug)]
pub(crate) struct FolderLock {
    file: File,
}

impl FolderLock {
    /// Takes the lock for one of several readers; `None` while somebody writes or removes.
    pub(crate) fn shared(folder: &Path) -> io::Result<Option<Self>> {
        Self::take(folder, FlockOperation::NonBlockingLockShared)
    }

    /// Takes the lock for the only one; `None` while anybody has it.
    pub(crate) fn exclusive(folder: &Path) -> io::Result<Option<Self>> {
        Self::take(folder, FlockOperation::NonBlockingLockExclusive)
    }

    /// Lets other readers in. Somebody else may be quicker and have it instead: `None`.
    pub(crate) fn share(self) -> io::Result<Option<Self>> {
        Self::locked(self.file, FlockOperation::NonBlockingLockShared)
    }

    fn take(folder: &Path, operation: FlockOperation) -> io::Result<Option<Self>> {
        // The folder itself is locked, so that there is no file that could be left behind.
        Self::locked(File::open(folder)?, operation)
    }

    fn locked(file: File, operation: FlockOperation) -> io::Result<Option<Self>> {
        match flock(&file, operation) {
            Ok(()) => Ok(Some(Self { file })),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}
