//! `up.json`: how other commands in the same folder find the fleet of a running `flotilla up`.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use serde::{Deserialize, Serialize};

/// A running fleet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct UpFile {
    /// Where its server listens.
    pub(crate) url: String,
    /// Its namespace.
    pub(crate) namespace: String,
    /// Process id of `flotilla up`.
    pub(crate) pid: u32,
    /// Process id of its nats-server.
    pub(crate) nats_server_pid: u32,
    /// Process id of its dispatcher.
    pub(crate) dispatcher_pid: u32,
    /// Process ids of its workers.
    pub(crate) worker_pids: Vec<u32>,
    /// Where its dispatcher tells its metrics, if it does.
    #[serde(default)]
    pub(crate) dispatcher_http: Option<String>,
    /// Where its workers tell theirs, if they do.
    #[serde(default)]
    pub(crate) worker_http: Vec<String>,
}

impl UpFile {
    /// Where it lies.
    pub(crate) fn path(data_dir: &Path) -> PathBuf {
        data_dir.join("up.json")
    }

    /// The fleet of a folder; `None` without a file, or with one that says nothing of use: then the usual
    /// address is as good a guess.
    pub(crate) fn read(path: &Path) -> Option<Self> {
        let text = fs::read(path).ok()?;
        serde_json::from_slice(&text).ok()
    }

    /// Writes it whole: a reader sees the old file or the new one.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(crate) fn write(&self, path: &Path) -> anyhow::Result<()> {
        let beside = path.with_extension("json.partial");
        let text = serde_json::to_vec_pretty(self)?;
        fs::write(&beside, text)
            .and_then(|()| fs::rename(&beside, path))
            .with_context(|| format!("cannot write {}", path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_and_garbage_is_no_fleet() {
        let folder = tempfile::tempdir().unwrap();
        let path = UpFile::path(folder.path());
        assert_eq!(UpFile::read(&path), None);
        let up = UpFile {
            url: "nats://127.0.0.1:4223".into(),
            namespace: "flotilla".into(),
            pid: 1,
            nats_server_pid: 2,
            dispatcher_pid: 3,
            worker_pids: vec![4, 5],
            dispatcher_http: Some("http://127.0.0.1:9470".into()),
            worker_http: vec!["http://127.0.0.1:9480".into()],
        };
        up.write(&path).unwrap();
        assert_eq!(UpFile::read(&path), Some(up));
        fs::write(&path, "{").unwrap();
        assert_eq!(UpFile::read(&path), None);
    }
}
