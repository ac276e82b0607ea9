//! What was published of a batch, beside its file: which lines, and where their messages lie in the request stream.
//!
//! A request is noted when the server has confirmed it, so a submission that is killed in between publishes it once more
//! under the same id, which the server drops while it knows the id (`nats.dedupe_window_s`), and the dispatcher later: of
//! two messages with one id one is answered, and a journal that has an end is left alone. Publishing is preceded by a look
//! at the journal, so that what was answered long ago is not done again either.

use std::collections::HashMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use flotilla_client::Connection;
use flotilla_protocol::{Namespace, Owner};
use serde::{Deserialize, Serialize};

use super::lines::{LineFile, is_being_written, whole_lines};
use super::{BatchFile, BatchId, beside};
use crate::commands::UsageError;

/// The first line of a record: what its requests' ids are made of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RecordHead {
    /// The batch.
    pub(crate) batch: BatchId,
    /// Hash of the file, in hexadecimal digits.
    pub(crate) content: String,
    /// The namespace of the fleet.
    pub(crate) namespace: Namespace,
    /// Whose the requests are.
    pub(crate) owner: Option<Owner>,
}

/// A line that is published.
#[derive(Debug, Serialize, Deserialize)]
struct Entry {
    /// Its number in the file.
    line: usize,
    /// Place of its message in the request stream; `None` of one that was found to have begun.
    stream_seq: Option<u64>,
}

/// The record of a batch that this process submits.
#[derive(Debug)]
pub(crate) struct Record {
    file: LineFile,
    published: HashMap<usize, Option<u64>>,
}

/// The record of a batch that some process submits, or has submitted.
#[derive(Debug)]
pub(crate) struct RecordReader {
    path: PathBuf,
    file: File,
    offset: u64,
}

impl Record {
    /// Opens the record of a batch's file, or begins it.
    ///
    /// # Errors
    /// It cannot be written, somebody else writes it, or it is of another batch.
    pub(crate) fn open(batch: &Path, head: &RecordHead) -> anyhow::Result<Self> {
        let path = path_of(batch);
        let mut found = None;
        let mut published = HashMap::new();
        let mut file = LineFile::open(&path, |number, line| {
            match number {
                1 => found = Some(read_head(line)?),
                _ => {
                    let Entry { line, stream_seq } = read_entry(number, line)?;
                    published.insert(line, stream_seq);
                }
            }
            Ok(())
        })?;
        match found {
            Some(found) => found.check(&path, batch, head)?,
            None => file.push(&serde_json::to_string(head)?)?,
        }
        Ok(Self { file, published })
    }

    /// Where the message of a line lies; `None` when it was not published.
    pub(crate) fn published(&self, line: usize) -> Option<Option<u64>> {
        self.published.get(&line).copied()
    }

    /// Notes that a line is published.
    ///
    /// # Errors
    /// The file cannot be written.
    pub(crate) fn note(&mut self, line: usize, stream_seq: Option<u64>) -> anyhow::Result<()> {
        self.published.insert(line, stream_seq);
        self.file
            .push(&serde_json::to_string(&Entry { line, stream_seq })?)
    }

    /// Has everything written to the disk.
    ///
    /// # Errors
    /// The disk refuses.
    pub(crate) fn sync(&self) -> anyhow::Result<()> {
        self.file.sync()
    }
}

impl RecordReader {
    /// Opens the record of a batch's file; `None` where there is none, which is so on another machine than the one that
    /// submitted it.
    ///
    /// # Errors
    /// It cannot be read.
    pub(crate) fn open(batch: &Path) -> anyhow::Result<Option<(RecordHead, Self)>> {
        let path = path_of(batch);
        if !path.exists() {
            return Ok(None);
        }
        let file = File::open(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let head = head_of(&path)?;
        let reader = Self {
            path,
            file,
            offset: 0,
        };
        Ok(head.map(|head| (head, reader)))
    }

    /// Lines that were published since this was asked last, and where their messages lie.
    ///
    /// # Errors
    /// It cannot be read.
    pub(crate) fn news(&mut self) -> anyhow::Result<Vec<(usize, Option<u64>)>> {
        let mut news = Vec::new();
        let has_head = self.offset > 0;
        let read = whole_lines(&self.file, self.offset, |number, line| {
            if has_head || number > 1 {
                let Entry { line, stream_seq } = read_entry(number, line)?;
                news.push((line, stream_seq));
            }
            Ok(())
        });
        self.offset = read.with_context(|| format!("cannot read {}", self.path.display()))?;
        Ok(news)
    }

    /// Whether a submission is under way.
    pub(crate) fn is_being_written(&self) -> bool {
        is_being_written(&self.path)
    }
}

impl RecordHead {
    /// Of a batch's file under a name, or the one that its content gives it.
    pub(crate) fn new(file: &BatchFile, name: Option<BatchId>, connection: &Connection) -> Self {
        Self {
            batch: name.unwrap_or_else(|| BatchId::of_content(&file.content)),
            content: file.content.to_string(),
            namespace: connection.subjects.namespace().clone(),
            owner: connection.owner.clone(),
        }
    }

    /// Refuses another batch than the one that is meant.
    ///
    /// # Errors
    /// A [`UsageError`] that says what differs.
    pub(crate) fn check(&self, record: &Path, batch: &Path, meant: &Self) -> Result<(), UsageError> {
        let (record, file) = (record.display(), batch.display());
        let differs = if self.content != meant.content {
            format!(
                "{file} has changed since it was submitted as batch {}",
                self.batch
            )
        } else if self.batch != meant.batch {
            format!(
                "{file} was submitted as batch {}, not {}",
                self.batch, meant.batch
            )
        } else if self.namespace != meant.namespace {
            format!(
                "{file} was submitted in namespace {}, not {}",
                self.namespace, meant.namespace
            )
        } else if self.owner != meant.owner {
            let owner = |owner: &Option<Owner>| owner.as_ref().map_or("none".to_owned(), ToString::to_string);
            format!(
                "{file} was submitted with nats.owner {}, not {}",
                owner(&self.owner),
                owner(&meant.owner)
            )
        } else {
            return Ok(());
        };
        Err(UsageError::new(format!(
            "{differs}; remove {record} to have a new batch, whose requests are all done anew"
        )))
    }
}

/// Where the record of a batch's file is.
pub(crate) fn path_of(batch: &Path) -> PathBuf {
    beside(batch, SUFFIX)
}

/// The file in a folder that was submitted as a batch.
///
/// # Errors
/// The folder cannot be read.
pub(crate) fn records_of(folder: &Path, batch: &BatchId) -> anyhow::Result<Option<PathBuf>> {
    let unreadable = || format!("cannot read {}", folder.display());
    for entry in fs::read_dir(folder).with_context(unreadable)? {
        let path = entry.with_context(unreadable)?.path();
        let Some(file) = path.to_str().and_then(|path| path.strip_suffix(SUFFIX)) else {
            continue;
        };
        // Other files may have such a name; those that are no record are none of ours.
        let is_it =
            path.is_file() && head_of(&path).is_ok_and(|head| head.is_some_and(|it| it.batch == *batch));
        if is_it {
            return Ok(Some(file.into()));
        }
    }
    Ok(None)
}

fn head_of(path: &Path) -> anyhow::Result<Option<RecordHead>> {
    let file = File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut head = None;
    whole_lines(&file, 0, |number, line| {
        if number == 1 {
            head = Some(read_head(line)?);
        }
        Ok(())
    })
    .with_context(|| path.display().to_string())?;
    Ok(head)
}

fn read_head(line: &str) -> anyhow::Result<RecordHead> {
    serde_json::from_str(line).context("its first line does not say of which batch it is")
}

fn read_entry(number: usize, line: &str) -> anyhow::Result<Entry> {
    serde_json::from_str(line).with_context(|| format!("line {number} is no entry"))
}

const SUFFIX: &str = ".flotilla";

#[cfg(test)]
mod tests {
    use super::*;

    fn head(content: &str) -> RecordHead {
        RecordHead {
            batch: BatchId::of_content(&blake3::hash(content.as_bytes())),
            content: content.to_owned(),
            namespace: Namespace::new("flotilla").unwrap(),
            owner: None,
        }
    }

    #[test]
    fn record_tells_what_was_published_and_others_follow_it() {
        let folder = tempfile::tempdir().unwrap();
        let batch = folder.path().join("b.jsonl");
        assert!(RecordReader::open(&batch).unwrap().is_none());
        let mut record = Record::open(&batch, &head("a")).unwrap();
        record.note(1, Some(7)).unwrap();
        let (found, mut reader) = RecordReader::open(&batch).unwrap().unwrap();
        assert_eq!(found, head("a"));
        assert_eq!(reader.news().unwrap(), [(1, Some(7))]);
        record.note(2, None).unwrap();
        assert_eq!(reader.news().unwrap(), [(2, None)]);
        assert_eq!(reader.news().unwrap(), []);
        assert!(reader.is_being_written());
        drop(record);
        assert!(!reader.is_being_written());
        let record = Record::open(&batch, &head("a")).unwrap();
        assert_eq!(
            [1, 2, 3].map(|line| record.published(line)),
            [Some(Some(7)), Some(None), None]
        );
        let file = records_of(folder.path(), &head("a").batch).unwrap();
        assert_eq!(file, Some(batch));
        assert_eq!(records_of(folder.path(), &head("b").batch).unwrap(), None);
    }

    #[test]
    fn record_of_another_batch_is_refused_with_what_differs() {
        let folder = tempfile::tempdir().unwrap();
        let batch = folder.path().join("b.jsonl");
        drop(Record::open(&batch, &head("a")).unwrap());
        let other_owner = RecordHead {
            owner: Some(Owner::new("team-a").unwrap()),
            ..head("a")
        };
        let other_name = RecordHead {
            batch: "again".parse().unwrap(),
            ..head("a")
        };
        for (meant, told) in [
            (head("b"), "has changed since"),
            (other_name, "not again"),
            (other_owner, "nats.owner none, not team-a"),
        ] {
            let error = Record::open(&batch, &meant).unwrap_err().to_string();
            assert!(
                error.contains(told) && error.contains("b.jsonl.flotilla"),
                "{error}"
            );
        }
    }
}
