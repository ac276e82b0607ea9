//! What the system and the runtime say of this process, under the names that Prometheus' own clients use.

use std::fs;

use rustix::param::{clock_ticks_per_second, page_size};
use rustix::process::{Resource, getrlimit};

use crate::readings::Readings;

crate::catalogue! {
    BUILD_INFO: gauge "flotilla_build_info" ["version", "role"]
        "1, with the version that runs and the role that it runs in.";
    TOKIO_TASKS: gauge "flotilla_process_tokio_tasks" []
        "Tasks of the asynchronous runtime that have not ended.";
    CPU_SECONDS: total "process_cpu_seconds_total" []
        "Processor time of the process, in seconds.";
    RESIDENT_BYTES: gauge "process_resident_memory_bytes" []
        "Memory of the process that is resident, in bytes.";
    VIRTUAL_BYTES: gauge "process_virtual_memory_bytes" []
        "Address space of the process, in bytes.";
    OPEN_FDS: gauge "process_open_fds" []
        "Open file descriptors.";
    MAX_FDS: gauge "process_max_fds" []
        "Most file descriptors that the process may open.";
    THREADS: gauge "process_threads" []
        "Threads of the process.";
    START_TIME: gauge "process_start_time_seconds" []
        "When the process began, in seconds since 1970.";
}

/// Reads everything; where the system has no such files, only what the runtime knows.
pub(crate) fn read(readings: &mut Readings, version: &str, role: &str, tasks: usize) {
    readings.count(&BUILD_INFO, &[version, role], 1);
    readings.count(&TOKIO_TASKS, &[], tasks as u64);
    if let Some(stat) = fs::read_to_string("/proc/self/stat")
        .ok()
        .as_deref()
        .and_then(Stat::of)
    {
        stat.read(readings);
    }
    if let Ok(open) = fs::read_dir("/proc/self/fd") {
        // One of them is that of the folder.
        let open = (open.count() as u64).saturating_sub(1);
        readings.count(&OPEN_FDS, &[], open);
    }
    if let Some(most) = getrlimit(Resource::Nofile).current {
        readings.count(&MAX_FDS, &[], most);
    }
}

/// What is of use in `/proc/self/stat`.
#[derive(Debug, PartialEq)]
struct Stat {
    cpu_ticks: u64,
    threads: u64,
    start_ticks: u64,
    virtual_bytes: u64,
    resident_pages: u64,
}

impl Stat {
    /// The fields behind the name, which may hold anything, blanks and brackets too.
    fn of(text: &str) -> Option<Self> {
        let (_, fields) = text.rsplit_once(')')?;
        let fields: Vec<&str> = fields.split_whitespace().collect();
        // The first of these is the third of the line.
        let number = |field: usize| fields.get(field - 3)?.parse::<u64>().ok();
        Some(Self {
            cpu_ticks: number(14)? + number(15)?,
            threads: number(20)?,
            start_ticks: number(22)?,
            virtual_bytes: number(23)?,
            resident_pages: number(24)?,
        })
    }

    #[expect(clippy::cast_precision_loss, reason = "Prometheus has no other numbers")]
    fn read(&self, readings: &mut Readings) {
        let ticks_per_s = clock_ticks_per_second() as f64;
        readings.read(&CPU_SECONDS, &[], self.cpu_ticks as f64 / ticks_per_s);
        readings.count(&THREADS, &[], self.threads);
        readings.count(&VIRTUAL_BYTES, &[], self.virtual_bytes);
        readings.count(&RESIDENT_BYTES, &[], self.resident_pages * page_size() as u64);
        if let Some(booted) = booted_at() {
            readings.read(&START_TIME, &[], booted + self.start_ticks as f64 / ticks_per_s);
        }
    }
}

/// When the machine booted, in seconds since 1970; the same at every look.
fn booted_at() -> Option<f64> {
    let stat = fs::read_to_string("/proc/stat").ok()?;
    let line = stat.lines().find_map(|line| line.strip_prefix("btime "))?;
    line.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use std::time::{SystemTime, UNIX_EPOCH};

    use super::*;

    #[test]
    fn a_line_is_read_whatever_the_process_is_called() {
        let line = "7 (a ) b) S 1 7 7 0 -1 4194560 9 0 0 0 250 50 0 0 20 0 12 0 9000 1000000 256 99 1 1";
        let wanted = Stat {
            cpu_ticks: 300,
            threads: 12,
            start_ticks: 9000,
            virtual_bytes: 1_000_000,
            resident_pages: 256,
        };
        assert_eq!(Stat::of(line), Some(wanted));
        assert_eq!(Stat::of("7 (a"), None);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn everything_is_read_here() {
        let mut readings = Readings::default();
        read(&mut readings, "1.2.3", "worker", 3);
        let mut text = String::new();
        readings.write(&mut text);
        for metric in METRICS {
            assert!(
                text.contains(&format!("# TYPE {} ", metric.name)),
                "{} in\n{text}",
                metric.name
            );
        }
        let started = text
            .lines()
            .find_map(|line| line.strip_prefix("process_start_time_seconds "));
        let started: f64 = started.unwrap().parse().unwrap();
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap()
            .as_secs_f64();
        assert!(started <= now + 2.0 && now - started < 3600.0, "{started} {now}");
    }
}
