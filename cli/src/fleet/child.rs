//! A child process with a log file of its own.

use std::fmt;
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use anyhow::Context as _;
use rustix::process::{Pid, Signal, kill_process};
use tokio::process::Command;
use tokio::time::timeout;

/// How to start a child.
#[derive(Debug)]
pub(crate) struct Launch {
    /// What it is called in messages.
    pub(crate) name: String,
    /// The program.
    pub(crate) program: PathBuf,
    /// Its arguments.
    pub(crate) arguments: Vec<String>,
    /// Where its output goes.
    pub(crate) log: PathBuf,
}

/// A child process; killed when dropped.
#[derive(Debug)]
pub(crate) struct Child {
    name: String,
    log: PathBuf,
    pid: u32,
    process: tokio::process::Child,
    is_running: bool,
}

/// A child ended.
#[derive(Debug)]
pub(crate) struct Death {
    name: String,
    status: std::io::Result<ExitStatus>,
    log: PathBuf,
}

impl fmt::Display for Death {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.status {
            Ok(status) => write!(f, "{} ended with {status}", self.name)?,
            Err(error) => write!(f, "{} cannot be waited for: {error}", self.name)?,
        }
        write!(f, "; the end of {}:", self.log.display())?;
        for line in last_lines(&self.log) {
            write!(f, "\n    {line}")?;
        }
        Ok(())
    }
}

impl Child {
    /// Starts a child in a process group of its own, so that Ctrl-C reaches only its parent, which stops the
    /// children in order. The log of the last start is kept beside the new one.
    ///
    /// # Errors
    /// When the log cannot be written or the program cannot be started.
    pub(crate) fn start(launch: &Launch) -> anyhow::Result<Self> {
        let log = open_log(&launch.log).with_context(|| format!("cannot write {}", launch.log.display()))?;
        let process = Command::new(&launch.program)
            .args(&launch.arguments)
            .process_group(0)
            .kill_on_drop(true)
            .stdin(Stdio::piped())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("cannot start {}", launch.program.display()))?;
        Ok(Self {
            name: launch.name.clone(),
            log: launch.log.clone(),
            pid: process.id().expect("a child that was not waited for has an id"),
            process,
            is_running: true,
        })
    }

    /// What it is called.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Its process id, also after its end.
    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    /// Where its output goes.
    pub(crate) fn log(&self) -> &Path {
        &self.log
    }

    /// Whether its end has not been seen yet.
    pub(crate) fn is_running(&self) -> bool {
        self.is_running
    }

    /// Waits for its end. Nothing is lost when the future is dropped.
    pub(crate) async fn wait(&mut self) -> Death {
        // `Child::wait` would close standard input, which asks a role to drain.
        let input = self.process.stdin.take();
        let mut kept = Kept {
            process: &mut self.process,
            input,
        };
        let status = kept.process.wait().await;
        kept.input = None;
        drop(kept);
        self.is_running = false;
        Death {
            name: self.name.clone(),
            status,
            log: self.log.clone(),
        }
    }

    /// Closes its standard input, which asks a role to drain, and waits; kills it when it takes too long.
    pub(crate) async fn drain(&mut self, within: Duration) {
        drop(self.process.stdin.take());
        self.end(within).await;
    }

    /// Sends SIGTERM and waits; kills it when it takes too long.
    pub(crate) async fn terminate(&mut self, within: Duration) {
        let pid = i32::try_from(self.pid).ok().and_then(Pid::from_raw);
        if let Some(pid) = pid.filter(|_| self.is_running) {
            // A child that has ended meanwhile is what we want.
            let _ = kill_process(pid, Signal::TERM);
        }
        self.end(within).await;
    }

    /// Kills it.
    pub(crate) async fn kill(&mut self) {
        // Only a child that has ended already cannot be killed.
        drop(self.process.kill().await);
        self.is_running = false;
    }

    async fn end(&mut self, within: Duration) {
        match timeout(within, self.process.wait()).await {
            Ok(_) => self.is_running = false,
            Err(_) => {
                tracing::warn!(name = self.name, "a child did not end in time and is killed");
                self.kill().await;
            }
        }
    }
}

/// Gives the standard input back when the wait for a child is given up.
struct Kept<'a> {
    process: &'a mut tokio::process::Child,
    input: Option<tokio::process::ChildStdin>,
}

impl Drop for Kept<'_> {
    fn drop(&mut self) {
        self.process.stdin = self.input.take();
    }
}

fn open_log(path: &Path) -> std::io::Result<File> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    if path.exists() {
        fs::rename(path, path.with_extension("old.log"))?;
    }
    File::options().create(true).append(true).open(path)
}

/// The end of a log, or why there is none.
fn last_lines(path: &Path) -> Vec<String> {
    match tail(path) {
        Ok(text) => {
            let lines: Vec<&str> = text.lines().collect();
            let skipped = lines.len().saturating_sub(LAST_LINE_COUNT);
            lines[skipped..].iter().map(|&line| line.to_owned()).collect()
        }
        Err(error) => vec![format!("(cannot be read: {error})")],
    }
}

fn tail(path: &Path) -> std::io::Result<String> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(TAIL_BYTES)))?;
    let mut bytes = Vec::new();
    file.take(TAIL_BYTES).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

const TAIL_BYTES: u64 = 8 << 10;
const LAST_LINE_COUNT: usize = 10;

#[cfg(test)]
mod tests {
    use super::*;

    fn launch(folder: &Path, script: &str) -> Launch {
        Launch {
            name: "child".into(),
            program: "/bin/sh".into(),
            arguments: vec!["-c".into(), script.into()],
            log: folder.join("logs/child.log"),
        }
    }

    #[tokio::test]
    async fn a_death_tells_status_and_last_words() {
        let folder = tempfile::tempdir().unwrap();
        let mut child = Child::start(&launch(folder.path(), "echo no room >&2; exit 7")).unwrap();
        let told = child.wait().await.to_string();
        assert!(told.contains("exit status: 7"), "{told}");
        assert!(told.ends_with("no room"), "{told}");
        assert!(!child.is_running());
    }

    #[tokio::test]
    async fn a_wait_that_is_given_up_does_not_ask_the_child_to_stop() {
        let folder = tempfile::tempdir().unwrap();
        let mut child = Child::start(&launch(folder.path(), "read line; echo input ended")).unwrap();
        assert!(timeout(Duration::from_millis(20), child.wait()).await.is_err());
        assert!(child.process.stdin.is_some());
        child.drain(Duration::from_secs(10)).await;
        assert_eq!(fs::read_to_string(child.log()).unwrap(), "input ended\n");
    }

    #[tokio::test]
    async fn a_child_that_does_not_drain_is_killed() {
        let folder = tempfile::tempdir().unwrap();
        let mut child = Child::start(&launch(folder.path(), "exec tail -f /dev/null")).unwrap();
        child.drain(Duration::from_millis(20)).await;
        assert!(!child.is_running());
    }

    #[tokio::test]
    async fn the_log_before_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        for word in ["first", "second"] {
            let mut child = Child::start(&launch(folder.path(), &format!("echo {word}"))).unwrap();
            child.wait().await;
        }
        let read = |name: &str| fs::read_to_string(folder.path().join("logs").join(name)).unwrap();
        assert_eq!(read("child.log"), "second\n");
        assert_eq!(read("child.old.log"), "first\n");
    }
}
