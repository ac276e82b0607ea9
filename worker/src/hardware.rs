//! What a worker's models run on: the machine's processor, as one device or several, or a device that is simulated.

use std::fs;
use std::io;
use std::num::NonZero;
use std::sync::Arc;
use std::thread::available_parallelism;
use std::time::Duration;

use flotilla_config::{Worker, WorkerCpu, WorkerEngine};
use flotilla_protocol::fleet::DeviceDescription;
use flotilla_worker_core::ledger::{DeviceIndex, PAGE_BYTES};
use flotilla_worker_engine::{CpuThreads, Level};
use tokio::sync::oneshot;
use tracing::info;

use crate::engine::Engine;
use crate::error::WorkerError;
use crate::memory::{ResidentMemory, cpu_memory_bytes, host_memory_bytes};
use crate::simulated::Simulation;

/// What a worker's models run on. Cheap to clone; clones share everything.
#[derive(Debug, Clone)]
pub struct Hardware {
    kind: HardwareKind,
    worker_count: usize,
}

/// The kinds of hardware.
#[derive(Debug, Clone)]
pub(crate) enum HardwareKind {
    /// The machine's processor.
    Cpu(Cpu),
    /// A device that is simulated.
    Simulated(Arc<Simulation>),
}

/// The machine's processor as devices, all alike.
#[derive(Debug, Clone)]
pub(crate) struct Cpu {
    /// The threads that operations of each device run on.
    threads: Vec<Arc<CpuThreads>>,
    device_pages: u64,
    host_pages: u64,
}

impl Cpu {
    fn open(config: &Worker) -> Result<Self, WorkerError> {
        let count = config.cpu.devices as u64;
        Ok(Self {
            device_pages: cpu_memory_bytes(&config.cpu)? / count / PAGE_BYTES,
            host_pages: host_memory_bytes(config.host_memory_bytes)? / PAGE_BYTES,
            threads: cpu_threads(&config.cpu),
        })
    }

    /// The threads of a device.
    ///
    /// # Panics
    /// There is no such device.
    pub(crate) fn threads(&self, device: DeviceIndex) -> Arc<CpuThreads> {
        Arc::clone(&self.threads[device.0 as usize])
    }

    fn indices(&self) -> impl Iterator<Item = u32> {
        (0..).zip(&self.threads).map(|(index, _)| index)
    }
}

impl Hardware {
    /// Looks at what is configured: the machine's memory, or the profiles of a simulated device. Needs no server,
    /// so that a fault in them is told before anybody is asked.
    ///
    /// # Errors
    /// [`WorkerError`]: there is no device, its memory is not known, or a profile cannot be used.
    pub fn open(config: &Worker) -> Result<Self, WorkerError> {
        let worker_count = match config.engine {
            WorkerEngine::Cpu => 1,
            WorkerEngine::Simulated => config.simulated.count,
        };
        let kind = match config.engine {
            WorkerEngine::Cpu if !config.cpu.enabled => return Err(WorkerError::NoDevice),
            WorkerEngine::Cpu => HardwareKind::Cpu(Cpu::open(config)?),
            WorkerEngine::Simulated => {
                HardwareKind::Simulated(Arc::new(Simulation::open(&config.simulated)?))
            }
        };
        Ok(Self { kind, worker_count })
    }

    /// Workers of this process, each with such a device of its own; only simulated ones are ever several.
    #[must_use]
    pub fn worker_count(&self) -> usize {
        self.worker_count
    }

    /// Connections that so many workers want.
    #[must_use]
    pub fn connection_count(&self) -> usize {
        self.worker_count.div_ceil(WORKERS_PER_CONNECTION)
    }

    /// Which kind it is.
    pub(crate) fn kind(&self) -> &HardwareKind {
        &self.kind
    }

    /// Whether models have weights there.
    pub(crate) fn has_weights(&self) -> bool {
        match self.kind {
            HardwareKind::Cpu(_) => true,
            HardwareKind::Simulated(_) => false,
        }
    }

    /// Pages of each device, in the order of their indices.
    pub(crate) fn device_pages(&self) -> Vec<u64> {
        match &self.kind {
            HardwareKind::Cpu(cpu) => vec![cpu.device_pages; cpu.threads.len()],
            HardwareKind::Simulated(simulation) => vec![simulation.device_pages()],
        }
    }

    /// Pages of host memory for weights that are on no device. A simulated machine has a host tier of its own, which
    /// holds everything.
    pub(crate) fn host_pages(&self) -> u64 {
        match &self.kind {
            HardwareKind::Cpu(cpu) => cpu.host_pages,
            HardwareKind::Simulated(_) => 0,
        }
    }

    /// The devices as the fleet sees them.
    pub(crate) fn descriptions(&self) -> Vec<DeviceDescription> {
        let cpu = match &self.kind {
            HardwareKind::Simulated(simulation) => return vec![simulation.description(0)],
            HardwareKind::Cpu(cpu) => cpu,
        };
        let name = cpu_name();
        let describe = |index| DeviceDescription {
            index,
            kind: "cpu".to_owned(),
            name: name.clone(),
            memory_bytes: cpu.device_pages * PAGE_BYTES,
            memory_bytes_per_s: None,
            cost: None,
        };
        cpu.indices().map(describe).collect()
    }

    /// Starts what runs the devices, in the order of their indices. Each receiver gets what broke the device, or is
    /// closed when that ends for whatever other reason.
    ///
    /// # Errors
    /// The system gives no thread.
    pub(crate) fn start_engines(&self) -> io::Result<Vec<(Engine, oneshot::Receiver<String>)>> {
        match &self.kind {
            HardwareKind::Cpu(cpu) => {
                let devices = cpu.indices().zip(&cpu.threads);
                let start = |(index, threads)| Engine::start(index, Arc::clone(threads));
                devices.map(start).collect()
            }
            HardwareKind::Simulated(_) => Ok(vec![Engine::start_simulated()]),
        }
    }

    /// The system's own count of all devices' memory, from now on; `None` where there is nothing to count.
    pub(crate) fn resident_memory(&self) -> Option<ResidentMemory> {
        match &self.kind {
            HardwareKind::Cpu(_) => Some(ResidentMemory::begin()),
            HardwareKind::Simulated(_) => None,
        }
    }

    /// Time that it takes to give a model's memory back, beside what the engine needs for it.
    pub(crate) fn unload_time(&self) -> Duration {
        match &self.kind {
            HardwareKind::Cpu(_) => Duration::ZERO,
            HardwareKind::Simulated(_) => SIMULATED_UNLOAD_TIME,
        }
    }
}

/// The threads of each device: an equal share, of which the first devices have the rest, and one at least.
fn cpu_threads(config: &WorkerCpu) -> Vec<Arc<CpuThreads>> {
    let (devices, count) = (config.devices, thread_count(config));
    info!(
        level = Level::best().name(),
        threads = count,
        devices,
        "cpu kernels"
    );
    let share = |index| count / devices + usize::from(index < count % devices);
    let shares = (0..devices).map(|index| NonZero::new(share(index)).unwrap_or(NonZero::<usize>::MIN));
    shares.map(|share| Arc::new(CpuThreads::new(share))).collect()
}

fn thread_count(config: &WorkerCpu) -> usize {
    let offered = || available_parallelism().map_or(1, NonZero::get);
    config.threads.unwrap_or_else(offered)
}

fn cpu_name() -> String {
    // The name is for people: a system without this file has a CPU all the same.
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("model name"));
    let name = line
        .and_then(|line| line.split_once(':'))
        .map(|(_, name)| name.trim());
    name.unwrap_or("cpu").to_owned()
}

/// Workers that share a connection: enough that hundreds need few, and so few that the requests of one, which
/// may have megabytes, hold up its neighbours for no longer than a report may be late.
const WORKERS_PER_CONNECTION: usize = 32;
/// What giving back the memory of an accelerator takes, about: nothing is moved.
const SIMULATED_UNLOAD_TIME: Duration = Duration::from_millis(10);
