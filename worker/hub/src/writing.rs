//! One file on its way onto the disk: a thread that writes what comes and hashes it meanwhile.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use ring::digest::{Context, SHA256};
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, spawn_blocking};

use crate::error::HubError;

/// A file that is not whole yet. Its bytes lie beside the place that it gets when it is.
pub(crate) struct ComingFile {
    whole: PathBuf,
    part: PathBuf,
    file: File,
    /// Of the bytes that are there; `None` where no hash is known to compare it with.
    hash: Option<Context>,
    bytes: u64,
}

/// What writes a file.
pub(crate) struct Writer {
    queue: mpsc::Sender<Bytes>,
    task: JoinHandle<Result<ComingFile, HubError>>,
}

impl ComingFile {
    /// Opens the part that an earlier attempt left, or a new one. What is there is hashed, which blocks for as long as
    /// reading it takes; without a hash to compare with nobody knows whether it is good, and it begins anew.
    pub(crate) fn open(whole: PathBuf, is_hashed: bool, bytes_max: u64) -> Result<Self, HubError> {
        let folder = whole.parent().expect("a file lies in a folder");
        fs::create_dir_all(folder).map_err(HubError::io("make", folder))?;
        let mut part = whole.clone().into_os_string();
        part.push(PART);
        let part = PathBuf::from(part);
        let opened = OpenOptions::new()
            .read(true)
            .append(true)
            .create(true)
            .open(&part);
        let mut coming = Self {
            file: opened.map_err(HubError::io("open", &part))?,
            whole,
            hash: is_hashed.then(|| Context::new(&SHA256)),
            part,
            bytes: 0,
        };
        let there = coming
            .file
            .metadata()
            .map_err(HubError::io("look at", &coming.part))?
            .len();
        match is_hashed && there <= bytes_max {
            true => coming.rehash()?,
            false => coming.restart()?,
        }
        Ok(coming)
    }

    /// Bytes that are there.
    pub(crate) const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Forgets what is there.
    pub(crate) fn restart(&mut self) -> Result<(), HubError> {
        self.file.set_len(0).map_err(HubError::io("empty", &self.part))?;
        self.bytes = 0;
        self.hash = self.hash.as_ref().map(|_| Context::new(&SHA256));
        Ok(())
    }

    /// Compares the whole file with its hash. One that differs begins anew: `false`.
    pub(crate) fn finish(mut self, sha256: Option<[u8; 32]>) -> Result<Result<(), Self>, HubError> {
        let found = self.hash.take().map(Context::finish);
        if let (Some(found), Some(expected)) = (found, sha256)
            && found.as_ref() != expected
        {
            self.hash = Some(Context::new(&SHA256));
            self.restart()?;
            return Ok(Err(self));
        }
        self.file.sync_all().map_err(HubError::io("sync", &self.part))?;
        fs::rename(&self.part, &self.whole).map_err(HubError::io("rename", &self.part))?;
        Ok(Ok(()))
    }

    /// Goes on with the file on a thread of its own.
    pub(crate) fn write(self) -> Writer {
        let (queue, chunks) = mpsc::channel(QUEUE_MAX);
        Writer {
            queue,
            task: spawn_blocking(move || self.write_all(chunks)),
        }
    }

    fn write_all(mut self, mut chunks: mpsc::Receiver<Bytes>) -> Result<Self, HubError> {
        while let Some(chunk) = chunks.blocking_recv() {
            self.file
                .write_all(&chunk)
                .map_err(HubError::io("write", &self.part))?;
            if let Some(hash) = &mut self.hash {
                hash.update(&chunk);
            }
            self.bytes += chunk.len() as u64;
        }
        Ok(self)
    }

    fn rehash(&mut self) -> Result<(), HubError> {
        let mut reader = File::open(&self.part).map_err(HubError::io("open", &self.part))?;
        let mut buffer = vec![0; READ_BYTES];
        loop {
            let count = reader
                .read(&mut buffer)
                .map_err(HubError::io("read", &self.part))?;
            if count == 0 {
                return Ok(());
            }
            if let Some(hash) = &mut self.hash {
                hash.update(&buffer[..count]);
            }
            self.bytes += count as u64;
        }
    }
}

impl Writer {
    /// Hands on bytes, as soon as the disk takes them; `false` when it does not, which [`Self::end`] explains.
    pub(crate) async fn push(&self, chunk: Bytes) -> bool {
        self.queue.send(chunk).await.is_ok()
    }

    /// Waits until everything is written.
    pub(crate) async fn end(self) -> Result<ComingFile, HubError> {
        drop(self.queue);
        self.task.await.expect("writing does not panic")
    }
}

/// Whether a file came before, whole and compared.
pub(crate) fn is_whole(path: &Path, bytes: u64) -> bool {
    fs::metadata(path).is_ok_and(|metadata| metadata.is_file() && metadata.len() == bytes)
}

/// No file that loading reads ends in it.
const PART: &str = ".part";
/// Chunks of some 16 KiB that wait for the disk.
const QUEUE_MAX: usize = 64;
const READ_BYTES: usize = 1 << 20;
