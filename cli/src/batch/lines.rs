//! Files that grow by whole lines: a process that dies in the middle of one leaves a piece that the next one cuts off.

use std::fs::{File, TryLockError};
use std::io::{self, BufRead, BufReader, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use thiserror::Error;

/// Another process has the file.
#[derive(Debug, Error)]
#[error("another process is writing {}; wait for it or stop it", path.display())]
pub(crate) struct Occupied {
    path: PathBuf,
}

/// A file that this process alone appends to, for as long as the value lives.
#[derive(Debug)]
pub(crate) struct LineFile {
    path: PathBuf,
    file: File,
}

impl LineFile {
    /// Opens a file, and makes it where there is none; `take` gets each whole line that is there, with its number from 1.
    ///
    /// # Errors
    /// The file cannot be used, another process has it, or `take` refuses a line.
    pub(crate) fn open(
        path: &Path,
        take: impl FnMut(usize, &str) -> anyhow::Result<()>,
    ) -> anyhow::Result<Self> {
        let unusable = || format!("cannot write {}", path.display());
        let options = File::options().read(true).append(true).create(true).open(path);
        let file = options.with_context(unusable)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let path = path.to_owned();
                return Err(Occupied { path }.into());
            }
            Err(TryLockError::Error(error)) => return Err(error).with_context(unusable),
        }
        let whole = whole_lines(&file, 0, take).with_context(|| path.display().to_string())?;
        file.set_len(whole).with_context(unusable)?;
        Ok(Self {
            path: path.to_owned(),
            file,
        })
    }

    /// Appends a line. It survives the death of this process from here on, and that of the machine after
    /// [`LineFile::sync`].
    ///
    /// # Errors
    /// It cannot be written; a piece of it that was is cut off by the next who opens the file.
    pub(crate) fn push(&mut self, line: &str) -> anyhow::Result<()> {
        let line = format!("{line}\n");
        let written = self.file.write_all(line.as_bytes());
        written.with_context(|| format!("cannot write {}", self.path.display()))
    }

    /// Has everything written to the disk.
    ///
    /// # Errors
    /// The disk refuses.
    pub(crate) fn sync(&self) -> anyhow::Result<()> {
        let synced = self.file.sync_data();
        synced.with_context(|| format!("cannot write {}", self.path.display()))
    }
}

/// Gives every whole line of a file from an offset on to `take`, with its number from 1; returns the offset after the
/// last.
///
/// # Errors
/// The file cannot be read, or `take` refuses a line.
pub(crate) fn whole_lines(
    file: &File,
    offset: u64,
    mut take: impl FnMut(usize, &str) -> anyhow::Result<()>,
) -> anyhow::Result<u64> {
    let mut reader = BufReader::new(file);
    reader.seek(SeekFrom::Start(offset))?;
    let (mut end, mut line) = (offset, Vec::new());
    for number in 1.. {
        line.clear();
        let bytes = reader.read_until(b'\n', &mut line)?;
        if line.pop() != Some(b'\n') {
            break;
        }
        let text = std::str::from_utf8(&line).map_err(io::Error::other);
        take(number, text.with_context(|| format!("line {number}"))?)?;
        end += bytes as u64;
    }
    Ok(end)
}

/// Whether a process has a file open to append to it.
pub(crate) fn is_being_written(path: &Path) -> bool {
    // A file that cannot be opened is written by nobody whom it would matter to wait for.
    File::open(path).is_ok_and(|file| matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(path: &Path) -> Vec<String> {
        let mut lines = Vec::new();
        LineFile::open(path, |_, line| {
            lines.push(line.to_owned());
            Ok(())
        })
        .unwrap();
        lines
    }

    #[test]
    fn piece_of_a_line_is_cut_off_and_whole_lines_stay() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("f");
        std::fs::write(&path, "one\ntwo\nthr").unwrap();
        assert_eq!(read(&path), ["one", "two"]);
        LineFile::open(&path, |_, _| Ok(()))
            .unwrap()
            .push("three")
            .unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "one\ntwo\nthree\n");
    }

    #[test]
    fn one_process_writes_at_a_time_and_others_see_that() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("f");
        let held = LineFile::open(&path, |_, _| Ok(())).unwrap();
        assert!(is_being_written(&path));
        let error = LineFile::open(&path, |_, _| Ok(())).unwrap_err();
        assert!(error.is::<Occupied>(), "{error}");
        drop(held);
        assert!(!is_being_written(&path));
    }
}
