//! llama.cpp at work: a Python process that is told what to do, line by line.

use std::io::{BufRead, BufReader, Write};
use std::num::NonZeroUsize;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::CHUNK_TOKENS;
use super::work::Work;

/// The process, with the model of one folder.
#[derive(Debug)]
pub(crate) struct Peer {
    process: Child,
    requests: ChildStdin,
    answers: BufReader<ChildStdout>,
    version: String,
}

#[derive(Debug, Deserialize)]
struct Ready {
    version: String,
}

#[derive(Debug, Deserialize)]
struct Done {
    seconds: f64,
}

impl Peer {
    /// Starts it; the first time, the folder's weights are converted and kept beside them.
    ///
    /// # Errors
    /// When the Python lacks what it needs; it has said on standard error what that is.
    pub(crate) fn start(python: &Path, folder: &Path, threads: NonZeroUsize) -> anyhow::Result<Self> {
        let mut process = Command::new(python)
            .args(["-c", PROGRAM])
            .arg(folder)
            .args([threads.to_string(), CHUNK_TOKENS.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {}", python.display()))?;
        let requests = process.stdin.take().context("its input is a pipe")?;
        let answers = process.stdout.take().context("its output is a pipe")?;
        let mut peer = Self {
            process,
            requests,
            answers: BufReader::new(answers),
            version: String::new(),
        };
        let ready: Ready = peer
            .answer()
            .with_context(|| format!("{} cannot run llama.cpp", python.display()))?;
        peer.version = ready.version;
        Ok(peer)
    }

    /// Versions, and the processor's features that it uses.
    pub(crate) fn version(&self) -> &str {
        &self.version
    }

    /// Has it done and says how long it took, by the process's own clock.
    ///
    /// # Errors
    /// When it fails, and has said why on standard error.
    pub(crate) fn run(&mut self, work: &Work) -> anyhow::Result<Duration> {
        let mut line = serde_json::to_vec(work)?;
        line.push(b'\n');
        self.requests
            .write_all(&line)
            .and_then(|()| self.requests.flush())?;
        let done: Done = self.answer()?;
        Ok(Duration::try_from_secs_f64(done.seconds)?)
    }

    fn answer<T: DeserializeOwned>(&mut self) -> anyhow::Result<T> {
        let mut line = String::new();
        let read = self.answers.read_line(&mut line)?;
        ensure!(read > 0, "the process has ended");
        serde_json::from_str(&line).with_context(|| format!("not an answer: {}", line.trim_end()))
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // It holds nothing but memory. An error means that it has ended already.
        drop(self.process.kill());
        drop(self.process.wait());
    }
}

const PROGRAM: &str = include_str!("../../../../bench-models/llama_cpp.py");
