//! How much memory the CPU device gets: as configured, or a part of what this process may use.

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

/// Bytes of the CPU device.
///
/// # Errors
/// [`MemoryError`] when the configuration leaves it to the system and the system does not say.
pub(crate) fn cpu_memory_bytes(cpu: &WorkerCpu) -> Result<u64, MemoryError> {
    if let Some(bytes) = cpu.memory_bytes {
        return Ok(bytes);
    }
    let total = machine_bytes(Path::new(MEMINFO))?;
    let usable = match cgroup_path(Path::new(SELF_CGROUP)) {
        Some(group) => total.min(cgroup_bytes(Path::new(CGROUP_ROOT), &group).unwrap_or(total)),
        None => total,
    };
    Ok(part(usable, cpu.memory_fraction))
}

fn machine_bytes(path: &Path) -> Result<u64, MemoryError> {
    let text = fs::read_to_string(path).map_err(|source| MemoryError::Unreadable {
        path: path.to_owned(),
        source,
    })?;
    total_bytes(&text).ok_or_else(|| MemoryError::NoTotal {
        path: path.to_owned(),
    })
}

/// `MemTotal:       16303428 kB`
fn total_bytes(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
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

const MEMINFO: &str = "/proc/meminfo";
const SELF_CGROUP: &str = "/proc/self/cgroup";
const CGROUP_ROOT: &str = "/sys/fs/cgroup";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn total_is_read_from_the_kernels_own_format() {
        let meminfo = "MemFree: 1 kB\nMemTotal:       16303428 kB\nBuffers: 2 kB\n";
        assert_eq!(total_bytes(meminfo), Some(16_303_428 << 10));
        assert_eq!(total_bytes("MemFree: 1 kB\n"), None);
        assert_eq!(total_bytes("MemTotal: much kB\n"), None);
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
            memory_bytes: Some(12_345_678),
            memory_fraction: 0.5,
            threads: None,
        };
        assert_eq!(cpu_memory_bytes(&cpu).unwrap(), 12_345_678);
        assert_eq!(part(1000, 0.25), 250);
    }
}
