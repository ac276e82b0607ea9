//! What a worker's models run on: the machine's processor, or a device that is simulated.

use std::fs;
use std::io;
use std::num::NonZero;
use std::sync::Arc;
use std::time::Duration;

use flotilla_config::{Worker, WorkerCpu, WorkerEngine};
use flotilla_protocol::fleet::DeviceDescription;
use flotilla_worker_core::ledger::PAGE_BYTES;
use flotilla_worker_engine::{CpuThreads, Level};
use tokio::sync::oneshot;
use tracing::info;

use crate::engine::Engine;
use crate::error::WorkerError;
use crate::memory::cpu_memory_bytes;
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

/// The machine's processor as a device.
#[derive(Debug, Clone)]
pub(crate) struct Cpu {
    /// The threads that operations run on.
    pub(crate) threads: Arc<CpuThreads>,
    device_pages: u64,
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
            WorkerEngine::Cpu => HardwareKind::Cpu(Cpu {
                device_pages: cpu_memory_bytes(&config.cpu)? / PAGE_BYTES,
                threads: Arc::new(cpu_threads(&config.cpu)),
            }),
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

    /// Pages of the device.
    pub(crate) fn device_pages(&self) -> u64 {
        match &self.kind {
            HardwareKind::Cpu(cpu) => cpu.device_pages,
            HardwareKind::Simulated(simulation) => simulation.device_pages(),
        }
    }

    /// The device as the fleet sees it.
    pub(crate) fn description(&self) -> DeviceDescription {
        match &self.kind {
            HardwareKind::Cpu(cpu) => DeviceDescription {
                index: DEVICE,
                kind: "cpu".to_owned(),
                name: cpu_name(),
                memory_bytes: cpu.device_pages * PAGE_BYTES,
                memory_bytes_per_s: None,
                cost: None,
            },
            HardwareKind::Simulated(simulation) => simulation.description(DEVICE),
        }
    }

    /// Starts what runs the device. The receiver is closed when that ends, for whatever reason.
    ///
    /// # Errors
    /// The system gives no thread.
    pub(crate) fn start_engine(&self) -> io::Result<(Engine, oneshot::Receiver<()>)> {
        match &self.kind {
            HardwareKind::Cpu(_) => Engine::start(DEVICE),
            HardwareKind::Simulated(_) => Ok(Engine::start_simulated()),
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

fn cpu_threads(config: &WorkerCpu) -> CpuThreads {
    let configured = config.threads.and_then(NonZero::new);
    let threads = configured.map_or_else(CpuThreads::for_this_machine, CpuThreads::new);
    info!(
        level = Level::best().name(),
        threads = threads.count(),
        "cpu kernels"
    );
    threads
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
/// A worker's first device and, until there are others, its only one.
const DEVICE: u32 = 0;
/// What giving back the memory of an accelerator takes, about: nothing is moved.
const SIMULATED_UNLOAD_TIME: Duration = Duration::from_millis(10);
