//! A process of ours.

use std::ffi::OsString;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::server::EXIT_PATIENCE;

/// The binary that was built beside this test.
///
/// # Panics
/// When it was not built: `make test` does, and so does `cargo build --bins`.
#[must_use]
pub fn flotilla_binary() -> PathBuf {
    let ours = std::env::current_exe().expect("a running program has a path");
    // A test lies in target/<profile>/deps, a program of this package beside flotilla.
    let folders = ours.ancestors().skip(1).take(2);
    let binary = folders
        .map(|folder| folder.join("flotilla"))
        .find(|binary| binary.exists());
    binary.unwrap_or_else(|| {
        panic!(
            "there is no flotilla beside {}: run `cargo build -p flotilla-cli` first",
            ours.display()
        )
    })
}

/// A signal to send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// Asks to end.
    Term,
    /// What Ctrl-C sends.
    Int,
    /// Stops without ending.
    Stop,
    /// Goes on after `Stop`.
    Continue,
    /// Ends without a chance to do anything.
    Kill,
}

impl Signal {
    fn flag(self) -> &'static str {
        match self {
            Self::Term => "-TERM",
            Self::Int => "-INT",
            Self::Stop => "-STOP",
            Self::Continue => "-CONT",
            Self::Kill => "-KILL",
        }
    }
}

pub(crate) fn send_signal(process: u32, signal: Signal) -> Result<()> {
    let status = Command::new("kill")
        .arg(signal.flag())
        .arg(process.to_string())
        .status()?;
    if !status.success() {
        bail!("process {process} is gone");
    }
    Ok(())
}

/// Sets the soft limit on the length of what a process writes.
pub(crate) fn limit_files(process: u32, bytes: Option<u64>) -> Result<()> {
    let soft = bytes.map_or_else(|| "unlimited".to_owned(), |bytes| bytes.to_string());
    let status = Command::new("prlimit")
        .args([
            "--pid",
            &process.to_string(),
            &format!("--fsize={soft}:unlimited"),
        ])
        .status()
        .context("there is no prlimit, which util-linux has")?;
    if !status.success() {
        bail!("the limits of process {process} cannot be changed");
    }
    Ok(())
}

/// A child process whose output goes to a file; killed when dropped.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
    /// Bytes of the log that an earlier process of the same name has written.
    log_begins: usize,
}

impl Process {
    /// Starts `flotilla ARGUMENTS` in a folder, with its output in `<folder>/<name>.log`.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn flotilla(name: &str, folder: &Path, arguments: &[String]) -> Result<Self> {
        Self::flotilla_at_home(name, folder, folder, arguments)
    }

    /// The same, with another folder to work in than that of its log.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn flotilla_at_home(name: &str, folder: &Path, home: &Path, arguments: &[String]) -> Result<Self> {
        // A write beyond a limit on files fails, as on a disk that is full, and does not end the process.
        let mut command = Command::new("sh");
        command
            .args(["-c", "trap '' XFSZ; exec \"$0\" \"$@\""])
            .arg(flotilla_binary())
            .args(arguments);
        Self::start(name, folder, home, command)
    }

    /// Starts another program, given with its arguments, in a folder, with its output in `<folder>/<name>.log`.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn program(name: &str, folder: &Path, words: &[OsString]) -> Result<Self> {
        let (program, arguments) = words.split_first().context("no program")?;
        let mut command = Command::new(program);
        command.args(arguments);
        Self::start(name, folder, folder, command)
    }

    fn start(name: &str, folder: &Path, home: &Path, mut command: Command) -> Result<Self> {
        let log = folder.join(format!("{name}.log"));
        let file = File::options().create(true).append(true).open(&log)?;
        let log_begins = usize::try_from(file.metadata()?.len())?;
        let child = command
            .current_dir(home)
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()
            .with_context(|| format!("cannot start {name}: {command:?}"))?;
        Ok(Self {
            name: name.to_owned(),
            child,
            log,
            log_begins,
        })
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// What it has written so far, after what an earlier process of the same name has.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// What it has written itself so far.
    pub(crate) fn own_log(&self) -> String {
        self.log().split_off(self.log_begins)
    }

    /// Lets it write no further than so many bytes into any file, as a disk does that is full; `None` for no limit any more.
    ///
    /// # Errors
    /// When the process is gone.
    pub fn limit_files(&self, bytes: Option<u64>) -> Result<()> {
        limit_files(self.id(), bytes)
    }

    /// Kills it without warning.
    ///
    /// # Errors
    /// When it cannot be killed.
    pub fn kill(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// When the process is gone.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        send_signal(self.id(), signal).with_context(|| format!("cannot signal {}", self.name))
    }

    /// Waits until it has ended.
    ///
    /// # Errors
    /// When it does not end in time; the error holds its output.
    pub async fn wait(&mut self) -> Result<ExitStatus> {
        let start = Instant::now();
        let mut pause = tokio::time::interval(std::time::Duration::from_millis(20));
        loop {
            pause.tick().await;
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            if start.elapsed() > EXIT_PATIENCE {
                bail!("{} does not end:\n{}", self.name, self.log());
            }
        }
    }

    /// Whether it still runs.
    ///
    /// # Errors
    /// When the system cannot tell.
    pub fn is_running(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_none())
    }

    /// What it ended with, or nothing while it runs; -1 when a signal ended it.
    ///
    /// # Errors
    /// When the system cannot tell.
    pub fn exit_code(&mut self) -> Result<Option<i32>> {
        let ended = self.child.try_wait()?;
        Ok(ended.map(|status| status.code().unwrap_or(-1)))
    }

    /// Resident memory, in bytes.
    ///
    /// # Errors
    /// When the process is gone.
    pub fn resident_bytes(&self) -> Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.id()))?;
        let line = status
            .lines()
            .find(|line| line.starts_with("VmRSS:"))
            .context("no VmRSS")?;
        let kibibytes: u64 = line.split_whitespace().nth(1).context("no number")?.parse()?;
        Ok(kibibytes * 1024)
    }
}

impl Drop for Process {
    #[expect(clippy::print_stderr, reason = "a failed test shows what its processes said")]
    fn drop(&mut self) {
        // One that has ended already is what we want.
        drop(self.child.kill());
        drop(self.child.wait());
        // Runners show the output of failed tests only, and those that return an error do not panic.
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        let tail = &lines[lines.len().saturating_sub(LOG_LINES_SHOWN)..];
        eprintln!("--- {} ---\n{}", self.name, tail.join("\n"));
    }
}

/// Lines of a process's log that a test shows at its end: some seconds of a busy process.
const LOG_LINES_SHOWN: usize = 120;
