//! How much memory the CPU's devices get, as configured or a part of what this process may use, and how much it has.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use flotilla_config::WorkerCpu;
use thiserror::Error;

/// Why the machine's memory is not known.
#[derive(Debug, Error)]
pub enum MemoryError {
    /// The system's figures cannot be read.
    #[error("cannot read {path}; set worker.cpu.memory_bytes", path = path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The system's figures are not in the expected form.
    #[error("{path} names no MemTotal; set worker.cpu.memory_bytes", path = path.display())]
    NoTotal {
        /// The file.
        path: PathBuf,
    },
}

/// Bytes of all devices that the CPU is split into.
///
/// # Errors
/// [`MemoryError`] when the configuration leaves it to the system and the system does not say.
pub(crate) fn cpu_memory_bytes(cpu: &WorkerCpu) -> Result<u64, MemoryError> {
    if let Some(bytes) = cpu.memory_bytes {
        return Ok(bytes);
    }
    Ok(part(usable_bytes()?, cpu.memory_fraction))
}

/// Bytes of host memory for weights that are on no device.
///
/// # Errors
/// As [`cpu_memory_bytes`].
pub(crate) fn host_memory_bytes(configured: Option<u64>) -> Result<u64, MemoryError> {
    match configured {
        Some(bytes) => Ok(bytes),
        None => Ok(part(usable_bytes()?, HOST_FRACTION)),
    }
}

/// What this process may use of the machine's memory.
fn usable_bytes() -> Result<u64, MemoryError> {
    let total = machine_bytes(Path::new(MEMINFO))?;
    Ok(match cgroup_path(Path::new(SELF_CGROUP)) {
        Some(group) => total.min(cgroup_bytes(Path::new(CGROUP_ROOT), &group).unwrap_or(total)),
        None => total,
    })
}

/// What the CPU's devices have in use by the system's own count: what this process has grown by since it held no model.
/// What it keeps for itself besides, tokenizers above all, counts too and is small.
#[derive(Debug)]
pub(crate) struct ResidentMemory {
    baseline_bytes: Option<u64>,
}

impl ResidentMemory {
    /// Of a process that holds no model yet.
    pub(crate) fn begin() -> Self {
        Self {
            baseline_bytes: anonymous_bytes(),
        }
    }

    /// Bytes of all devices; `None` where the system does not count them.
    pub(crate) fn bytes(&self) -> Option<u64> {
        Some(anonymous_bytes()?.saturating_sub(self.baseline_bytes?))
    }
}

/// Bytes of memory behind no file that this process has, by the system's count; `None` where it does not say. Such
/// are weights, keys and values, and what the process keeps for itself; model files that are mapped are not.
fn anonymous_bytes() -> Option<u64> {
    // A system without this file has no such count.
    kibibytes(&fs::read_to_string(SELF_STATUS).ok()?, "RssAnon:")
}

fn machine_bytes(path: &Path) -> Result<u64, MemoryError> {
    let text = fs::read_to_string(path).map_err(|source| MemoryError::Unreadable {
        path: path.to_owned(),
        source,
    })?;
    kibibytes(&text, "MemTotal:").ok_or_else(|| MemoryError::NoTotal {
        path: path.to_owned(),
    })
}

/// `MemTotal:       16303428 kB`, in bytes.
fn kibibytes(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim_end().parse().ok()?;
    kibibytes.checked_mul(1 << 10)
}

/// This process's group in the unified hierarchy; `None` where there is none.
fn cgroup_path(path: &Path) -> Option<PathBuf> {
    // A system without control groups sets no limit, and neither does one that hides them.
    let text = fs::read_to_string(path).ok()?;
    let group = text.lines().find_map(|line| line.strip_prefix("0::/"))?;
    Some(PathBuf::from(group))
}

/// The smallest limit of a group and those above it.
fn cgroup_bytes(root: &Path, group: &Path) -> Option<u64> {
    let limit = |group: &Path| {
        // The root group has no such file, and "max" means no limit.
        let text = fs::read_to_string(root.join(group).join("memory.max")).ok()?;
        text.trim().parse::<u64>().ok()
    };
    group.ancestors().filter_map(limit).min()
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    clippy::cast_sign_loss,
    reason = "a fraction in 0..=1 of a machine's memory; the ledger rounds to pages of 2 MiB anyway"
)]
fn part(bytes: u64, fraction: f64) -> u64 {
    (bytes as f64 * fraction) as u64
}

/// Part of the machine's memory that weights take beside a CPU device with half of it: the rest is the system's.
const HOST_FRACTION: f64 = 0.2;
const MEMINFO: &str = "/proc/meminfo";
const SELF_STATUS: &str = "/proc/self/status";
const SELF_CGROUP: &str = "/proc/self/cgroup";
const CGROUP_ROOT: &str = "/sys/fs/cgroup";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn total_is_read_from_the_kernels_own_format() {
        let meminfo = "MemFree: 1 kB\nMemTotal:       16303428 kB\nBuffers: 2 kB\n";
        assert_eq!(kibibytes(meminfo, "MemTotal:"), Some(16_303_428 << 10));
        assert_eq!(kibibytes("MemFree: 1 kB\n", "MemTotal:"), None);
        assert_eq!(kibibytes("MemTotal: much kB\n", "MemTotal:"), None);
    }

    #[test]
    fn memory_that_was_written_to_is_counted() {
        const BYTES: usize = 64 << 20;
        let memory = ResidentMemory::begin();
        let written = vec![1_u8; BYTES];
        let grown = memory.bytes().unwrap();
        assert!(grown >= written.len() as u64 / 2, "{grown} of {BYTES}");
    }

    #[test]
    fn tightest_limit_of_all_groups_above_counts() {
        let root = tempfile::tempdir().unwrap();
        let inner = root.path().join("outer/inner");
        fs::create_dir_all(&inner).unwrap();
        fs::write(root.path().join("outer/memory.max"), "4096\n").unwrap();
        fs::write(inner.join("memory.max"), "max\n").unwrap();
        assert_eq!(cgroup_bytes(root.path(), Path::new("outer/inner")), Some(4096));
        assert_eq!(cgroup_bytes(root.path(), Path::new("elsewhere")), None);
    }

    #[test]
    fn configured_bytes_are_taken_as_they_are() {
        let cpu = WorkerCpu {
            enabled: true,
            devices: 1,
            memory_bytes: Some(12_345_678),
            memory_fraction: 0.5,
            threads: None,
        };
        assert_eq!(cpu_memory_bytes(&cpu).unwrap(), 12_345_678);
        assert_eq!(part(1000, 0.25), 250);
    }
}
