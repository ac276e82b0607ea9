//! A hidden command: becomes another program that gets SIGTERM when its parent dies, so that a nats-server
//! started by `flotilla up` does not outlive it, whatever ended it.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

use anyhow::Context as _;
use clap::Args;

use crate::exit::Exit;

/// Arguments of the hidden command.
#[derive(Debug, Args)]
pub(crate) struct ChildArguments {
    /// Process id of the parent
    #[arg(long)]
    parent: u32,
    /// The program
    program: PathBuf,
    /// Its arguments
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<OsString>,
}

/// Replaces this process.
///
/// # Errors
/// When the parent is gone already or the program cannot be run.
pub(crate) fn run(arguments: &ChildArguments) -> anyhow::Result<Exit> {
    end_with_parent().context("cannot ask the system for a signal at the parent's end")?;
    // The parent may have died before the system was asked.
    let parent = rustix::process::getppid().map(rustix::process::Pid::as_raw_pid);
    if parent.and_then(|id| u32::try_from(id).ok()) != Some(arguments.parent) {
        anyhow::bail!("the parent {} is gone", arguments.parent);
    }
    let error = Command::new(&arguments.program).args(&arguments.arguments).exec();
    Err(error).with_context(|| format!("cannot run {}", arguments.program.display()))
}

#[cfg(target_os = "linux")]
fn end_with_parent() -> std::io::Result<()> {
    use rustix::process::{Signal, set_parent_process_death_signal};
    Ok(set_parent_process_death_signal(Some(Signal::TERM))?)
}

/// Other systems have no such signal: there, only a killed `up` leaves its nats-server behind.
#[cfg(not(target_os = "linux"))]
fn end_with_parent() -> std::io::Result<()> {
    Ok(())
}
