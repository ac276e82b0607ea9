//! What a measurement was made on.

use std::fs;
use std::process::Command;
use std::thread::available_parallelism;

/// Processor and cores, such as `AMD EPYC 9R14, 2 cores`.
pub(crate) fn machine() -> String {
    let cores = available_parallelism().map_or_else(|_| "?".to_owned(), |count| count.to_string());
    format!("{}, {cores} cores", processor())
}

fn processor() -> String {
    // Only Linux has the file; elsewhere the kind of processor must do.
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info.lines().find_map(|line| line.strip_prefix("model name"));
    let name = model.and_then(|rest| rest.split_once(':'));
    name.map_or_else(
        || std::env::consts::ARCH.to_owned(),
        |(_, name)| name.trim().to_owned(),
    )
}

/// The commit of the working folder, if it is in a git repository.
pub(crate) fn commit() -> Option<String> {
    let output = Command::new("git").args(["rev-parse", "HEAD"]).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let commit = text.trim();
    (output.status.success() && !commit.is_empty()).then(|| commit.to_owned())
}
