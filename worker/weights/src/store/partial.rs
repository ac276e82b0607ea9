//! A model on its way into the store.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use flotilla_protocol::weights::SegmentSet;
use flotilla_weights_core::Manifest;
use rustix::fs::{FallocateFlags, fallocate};
use tracing::warn;

use super::unsynced::{self, Unsynced};
use super::{MANIFEST, Store, StoreError, StoredModel, busy};
use crate::arrival::Announcer;
use crate::error::FilesError;
use crate::files::{ModelFiles, segment_id};
use crate::lock::FolderLock;

/// A model of which some segments are there. Nobody else receives it while the value lives; dropped, it stays on disk
/// for the next attempt.
#[derive(Debug)]
pub struct PartialModel {
    manifest: Arc<Manifest>,
    folder: PathBuf,
    /// Where it belongs when it is whole.
    whole: PathBuf,
    files: Vec<File>,
    /// Places of the segments that were written, four bytes each: what an attempt leaves to the next one.
    log: File,
    have: SegmentSet,
    lock: FolderLock,
    announcer: Option<Announcer>,
}

impl PartialModel {
    pub(super) fn open(
        manifest: Arc<Manifest>,
        folder: PathBuf,
        whole: PathBuf,
        lock: FolderLock,
    ) -> Result<Self, StoreError> {
        write_whole(&folder.join(MANIFEST), manifest.json())?;
        unsynced::mark(&folder)?;
        let files = manifest
            .files()
            .iter()
            .map(|file| reserve(&folder.join(&file.path), file.bytes));
        let files = files.collect::<Result<Vec<_>, _>>()?;
        let path = folder.join(LOG);
        let log = OpenOptions::new()
            .read(true)
            .append(true)
            .create(true)
            .open(&path);
        let log = log.map_err(FilesError::io("open", &path))?;
        let mut partial = Self {
            have: SegmentSet::none(manifest.segments().len()),
            manifest,
            folder,
            whole,
            files,
            log,
            lock,
            announcer: None,
        };
        partial.resume()?;
        Ok(partial)
    }

    /// What it is made of.
    #[must_use]
    pub const fn manifest(&self) -> &Arc<Manifest> {
        &self.manifest
    }

    /// The segments that are there.
    #[must_use]
    pub const fn have(&self) -> &SegmentSet {
        &self.have
    }

    /// Tells, from now on too, what of it is there.
    pub fn tell(&mut self, announcer: &Announcer) {
        announcer.begin(&self.manifest, &self.folder, &self.have);
        self.announcer = Some(announcer.clone());
    }

    /// Keeps the bytes of a segment. `false` means that they are not its bytes, and nothing is kept.
    ///
    /// # Errors
    /// [`FilesError::Io`], as when the disk is full.
    ///
    /// # Panics
    /// The manifest has no such segment.
    pub fn write(&mut self, segment: usize, bytes: &[u8]) -> Result<bool, FilesError> {
        let wanted = self.manifest.segments()[segment];
        if segment_id(bytes) != wanted.id {
            return Ok(false);
        }
        let path = self.path_of(segment);
        self.files[wanted.file]
            .write_all_at(bytes, wanted.offset)
            .map_err(FilesError::io("write", &path))?;
        // If we die here, the segment is there and nobody knows: it comes again, with the same bytes.
        let place = u32::try_from(segment).expect("a manifest has fewer segments");
        self.log
            .write_all(&place.to_le_bytes())
            .map_err(FilesError::io("write", &self.folder.join(LOG)))?;
        self.have.insert(segment);
        // Not before it was compared and written: who is told may read it at once.
        if let Some(announcer) = &self.announcer {
            announcer.verified(segment, wanted.bytes);
        }
        Ok(true)
    }

    /// Reads a segment that is there into a buffer of its length.
    ///
    /// # Errors
    /// [`FilesError::Io`].
    ///
    /// # Panics
    /// It is not there.
    pub fn read(&self, segment: usize, buffer: &mut [u8]) -> Result<(), FilesError> {
        assert!(self.have.contains(segment), "segment {segment} is there");
        self.read_unchecked(segment, buffer)
    }

    /// Takes what it lacks and other models of the store have, until it is told to stop. Returns how many bytes.
    /// Blocks for as long as copying them takes.
    ///
    /// # Errors
    /// [`StoreError`] when its own files cannot be written; a model that cannot be read is passed over.
    pub fn reuse(&mut self, store: &Store, is_stopped: &dyn Fn() -> bool) -> Result<u64, StoreError> {
        let (mut reused_bytes, mut buffer) = (0, Vec::new());
        for state in store.models()?.into_iter().filter(|state| state.whole) {
            let Ok(Some(other)) = store.find(state.root) else {
                continue;
            };
            let theirs = other.files().manifest().segments();
            let places: std::collections::HashMap<_, _> = theirs
                .iter()
                .enumerate()
                .map(|(place, segment)| (segment.id, place))
                .collect();
            for segment in self.have.complement().iter() {
                let id = self.manifest.segments()[segment].id;
                let Some(place) = places.get(&id) else { continue };
                if is_stopped() {
                    return Ok(reused_bytes);
                }
                buffer.resize(self.manifest.segments()[segment].buffer_bytes(), 0);
                if let Err(error) = other.files().read(*place, &mut buffer) {
                    warn!(root = %state.root, %error, "a model of the store cannot be read");
                    break;
                }
                if self.write(segment, &buffer)? {
                    reused_bytes += buffer.len() as u64;
                }
            }
        }
        Ok(reused_bytes)
    }

    /// Makes a whole model of it, and waits until it is on disk.
    ///
    /// # Errors
    /// [`StoreError`].
    ///
    /// # Panics
    /// A segment is missing.
    pub fn finish(self) -> Result<StoredModel, StoreError> {
        let (model, unsynced) = self.finish_before_sync()?;
        unsynced.sync()?;
        Ok(model)
    }

    /// Makes a whole model of it, which is still to be synced.
    ///
    /// # Errors
    /// [`StoreError`].
    ///
    /// # Panics
    /// A segment is missing.
    pub fn finish_before_sync(self) -> Result<(StoredModel, Unsynced), StoreError> {
        assert!(self.have.is_all(), "every segment is there");
        let root = self.manifest.root();
        let lock = self.lock.share().map_err(FilesError::io("lock", &self.folder))?;
        let lock = lock.ok_or_else(|| busy(root))?;
        fs::rename(&self.folder, &self.whole).map_err(FilesError::io("rename", &self.folder))?;
        let names = self.manifest.files().iter().map(|file| PathBuf::from(&file.path));
        let unsynced = Unsynced {
            folder: self.whole.clone(),
            files: names.zip(self.files).collect(),
            directory: File::open(&self.whole).map_err(FilesError::io("open", &self.whole))?,
        };
        let files = Arc::new(ModelFiles::new(self.manifest, self.whole));
        Ok((StoredModel { files, _lock: lock }, unsynced))
    }

    /// Finds out what an earlier attempt left: what its log names is compared, as its bytes may never have reached
    /// the disk.
    fn resume(&mut self) -> Result<(), StoreError> {
        let mut log = Vec::new();
        self.log
            .read_to_end(&mut log)
            .map_err(FilesError::io("read", &self.folder.join(LOG)))?;
        let mut buffer = Vec::new();
        for place in log.chunks_exact(4) {
            let place = u32::from_le_bytes(place.try_into().expect("four bytes")) as usize;
            let Some(segment) = self.manifest.segments().get(place).copied() else {
                continue;
            };
            buffer.resize(segment.buffer_bytes(), 0);
            self.read_unchecked(place, &mut buffer)?;
            if segment_id(&buffer) == segment.id {
                self.have.insert(place);
            }
        }
        Ok(())
    }

    fn read_unchecked(&self, segment: usize, buffer: &mut [u8]) -> Result<(), FilesError> {
        let wanted = self.manifest.segments()[segment];
        assert_eq!(buffer.len() as u64, wanted.bytes, "a buffer for the segment");
        let read = self.files[wanted.file].read_exact_at(buffer, wanted.offset);
        read.map_err(FilesError::io("read", &self.path_of(segment)))
    }

    pub(super) fn path_of(&self, segment: usize) -> PathBuf {
        self.folder
            .join(&self.manifest.files()[self.manifest.segments()[segment].file].path)
    }
}

/// Opens a file of this length whose bytes the disk has room for.
fn reserve(path: &Path, bytes: u64) -> Result<File, FilesError> {
    let folder = path.parent().expect("a file lies in a folder");
    fs::create_dir_all(folder).map_err(FilesError::io("make", folder))?;
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path);
    let file = file.map_err(FilesError::io("open", path))?;
    if bytes > 0 {
        match fallocate(&file, FallocateFlags::empty(), 0, bytes) {
            // Some file systems cannot promise room; on those a full disk is found out later.
            Ok(()) | Err(rustix::io::Errno::OPNOTSUPP) => {}
            Err(error) => return Err(FilesError::io("reserve room for", path)(error.into())),
        }
    }
    file.set_len(bytes)
        .map_err(FilesError::io("set the length of", path))?;
    Ok(file)
}

/// Writes a file so that it is there with these bytes or not at all.
pub(super) fn write_whole(path: &Path, bytes: &[u8]) -> Result<(), FilesError> {
    let beside = path.with_extension("new");
    fs::write(&beside, bytes).map_err(FilesError::io("write", &beside))?;
    sync(&beside)?;
    fs::rename(&beside, path).map_err(FilesError::io("rename", &beside))
}

pub(super) fn sync(path: &Path) -> Result<(), FilesError> {
    let synced: io::Result<()> = File::open(path).and_then(|file| file.sync_all());
    synced.map_err(FilesError::io("sync", path))
}

pub(super) const LOG: &str = ".received";
