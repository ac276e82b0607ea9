//! This machine.

use std::fs;
use std::io;
use std::path::Path;

use super::Finding;
use crate::context::Context;
use crate::table::bytes;

/// Whether the folder for data can be written.
pub(super) fn data_dir(context: &Context) -> Finding {
    let folder = context.data_dir();
    match write_in(folder) {
        Ok(()) => Finding::ok("data folder", format!("{} is writable", folder.display())),
        Err(error) => Finding::fail(
            "data folder",
            format!("{} cannot be written: {error}", folder.display()),
            "mend its permissions, or choose another with --set worker.data_dir=DIR",
        ),
    }
}

/// A folder that is not there yet is made as the worker would, and taken away again.
fn write_in(folder: &Path) -> io::Result<()> {
    let is_new = !folder.exists();
    fs::create_dir_all(folder)?;
    tempfile::NamedTempFile::new_in(folder)?.close()?;
    if is_new {
        fs::remove_dir(folder)?;
    }
    Ok(())
}

/// Whether a worker on this machine would have the CPU as a device.
pub(super) fn cpu_device(context: &Context) -> Finding {
    let cpu = &context.config.worker.cpu;
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    if !cpu.enabled {
        return Finding::warn(
            "cpu",
            "a worker on this machine does not use the CPU",
            "set worker.cpu.enabled=true unless a GPU serves alone",
        );
    }
    let memory = match cpu.memory_bytes {
        Some(limit) => bytes(limit),
        None => format!("{:.0} % of the memory", cpu.memory_fraction * 100.0),
    };
    Finding::ok(
        "cpu",
        format!(
            "a worker here would use {cores} cores and {memory}, as {} device{}",
            cpu.devices,
            if cpu.devices == 1 { "" } else { "s" }
        ),
    )
}
