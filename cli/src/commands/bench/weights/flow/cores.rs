//! Cores of their own for processes that would have a machine of their own.

use std::fs;

use anyhow::Context as _;
use rustix::process::Pid;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// The cores of this process, in two halves; both are all of them when there is only one.
pub(super) struct Halves {
    all: CpuSet,
    first: CpuSet,
    second: CpuSet,
}

impl Halves {
    /// Halves what this process may run on.
    ///
    /// # Errors
    /// When the system does not tell.
    pub(super) fn of_this_process() -> anyhow::Result<Self> {
        let all = sched_getaffinity(None).context("cannot read which cores there are")?;
        let count = all.count();
        let (mut first, mut second) = (CpuSet::new(), CpuSet::new());
        for (index, core) in (0..CpuSet::MAX_CPU).filter(|core| all.is_set(*core)).enumerate() {
            let half = index * 2 < usize::try_from(count)?;
            match half {
                true => first.set(core),
                false => second.set(core),
            }
        }
        if second.count() == 0 {
            second = all;
        }
        Ok(Self { all, first, second })
    }

    /// How many cores the first half has.
    pub(super) fn first_count(&self) -> u32 {
        self.first.count()
    }

    /// Binds all threads of a process to the first half; those that it starts later follow.
    ///
    /// # Errors
    /// When the process is gone.
    pub(super) fn give_first_to(&self, process: u32) -> anyhow::Result<()> {
        bind(process, &self.first)
    }

    /// The same with the second half.
    ///
    /// # Errors
    /// When the process is gone.
    pub(super) fn give_second_to(&self, process: u32) -> anyhow::Result<()> {
        bind(process, &self.second)
    }

    /// Lets a process run wherever this one could.
    ///
    /// # Errors
    /// When the process is gone.
    pub(super) fn give_all_to(&self, process: u32) -> anyhow::Result<()> {
        bind(process, &self.all)
    }
}

fn bind(process: u32, cores: &CpuSet) -> anyhow::Result<()> {
    let tasks = format!("/proc/{process}/task");
    let threads = fs::read_dir(&tasks).with_context(|| format!("cannot read {tasks}"))?;
    for thread in threads {
        let name = thread?.file_name();
        let id = name.to_str().and_then(|name| name.parse().ok());
        let id = id.and_then(Pid::from_raw).context("a thread has a number")?;
        match sched_setaffinity(Some(id), cores) {
            // A thread may end meanwhile.
            Ok(()) | Err(rustix::io::Errno::SRCH) => {}
            Err(error) => {
                return Err(error).with_context(|| format!("cannot bind thread {id:?} of {process}"));
            }
        }
    }
    Ok(())
}
