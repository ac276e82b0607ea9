//! A worker's life, from its first look at NATS to its last report.

use std::fs;
use std::num::NonZero;
use std::sync::Arc;

use flotilla_client::{Connection, Journal};
use flotilla_config::{Config, KeepAlive as ConfigKeepAlive, Worker, WorkerCpu};
use flotilla_protocol::fleet::{DeviceDescription, Registration};
use flotilla_protocol::request::KeepAlive;
use flotilla_worker_core::ledger::PAGE_BYTES;
use flotilla_worker_core::residency::ResidencySettings;
use flotilla_worker_core::worker::{Desk, DeskSettings};
use flotilla_worker_engine::{CpuThreads, Level};
use tracing::info;

use crate::attempt::AttemptContext;
use crate::engine::Engine;
use crate::error::WorkerError;
use crate::identity::Identity;
use crate::memory::cpu_memory_bytes;
use crate::outbox::Outbox;
use crate::owner::{Inbox, Owner, OwnerParts, OwnerSettings};
use crate::registration::Registered;
use crate::scan::add_models;
use crate::start::Objects;
use crate::stop::Stop;

/// Runs a worker until it is drained or told to stop.
///
/// It waits up to 60 s for a dispatcher to make the streams and buckets, adds the models of
/// `worker.models_dir` to the catalog, registers, and works. When the connection is lost, what runs goes on and
/// is written when the connection is back. Cancelling the future drops what runs; its journals stay open and
/// the next attempts continue them.
///
/// # Errors
/// [`WorkerError`]: what it needs is missing, the connection was closed for good, or the engine is gone.
pub async fn run(config: &Config, connection: Connection, stop: Stop) -> Result<(), WorkerError> {
    let identity = Identity::new(&config.worker)?;
    let device_pages = device_pages(&config.worker)?;
    let objects = tokio::select! {
        objects = Objects::wait(&connection) => objects?,
        () = stop.drain.cancelled() => return Ok(()),
        () = stop.now.cancelled() => return Ok(()),
    };
    if let Some(models_dir) = &config.worker.models_dir {
        tokio::select! {
            () = add_models(models_dir.clone(), &objects.catalog) => {}
            () = stop.now.cancelled() => return Ok(()),
        }
    }
    let (engine, engine_ended) =
        Engine::start(CPU_DEVICE, Arc::new(cpu_threads(&config.worker.cpu))).map_err(WorkerError::Thread)?;
    let parts = OwnerParts {
        settings: owner_settings(config, device_pages),
        desk: Desk::new(desk_settings(&config.worker, &identity, device_pages)),
        catalog: objects.catalog.clone(),
        context: AttemptContext {
            worker: identity.worker.clone(),
            connection: connection.clone(),
            journal: Journal::new(&connection),
            engine,
            ahead_tokens_max: config.worker.answer_channel_tokens,
            step_tokens_max: config.worker.batch_tokens_max,
        },
        outbox: Outbox::open(connection.client.clone(), connection.request_timeout),
        inbox: Inbox::open(&connection, &identity.worker).await?,
        engine_ended,
        identity: identity.clone(),
        connection: connection.clone(),
    };
    let registration = registration(&identity, device_pages);
    let registered = Registered::start(&objects, registration, connection.request_timeout);
    info!(worker_id = %identity.worker, device_pages, "worker started");
    let outcome = Owner::new(parts).run(stop).await;
    registered.end().await;
    info!(worker_id = %identity.worker, "worker ended");
    outcome
}

fn device_pages(config: &Worker) -> Result<u64, WorkerError> {
    if !config.cpu.enabled {
        return Err(WorkerError::NoDevice);
    }
    Ok(cpu_memory_bytes(&config.cpu)? / PAGE_BYTES)
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

fn owner_settings(config: &Config, device_pages: u64) -> OwnerSettings {
    OwnerSettings {
        request_bytes_max: config.dispatcher.request_bytes_max,
        slots: config.worker.slots,
        batch_tokens_max: config.worker.batch_tokens_max,
        device_pages,
        load_timeout_floor: config.worker.load_timeout_floor,
        load_bytes_per_s_min: config.worker.load_bytes_per_s_min,
    }
}

fn desk_settings(config: &Worker, identity: &Identity, device_pages: u64) -> DeskSettings {
    DeskSettings {
        worker: identity.worker.clone(),
        incarnation: identity.incarnation,
        slots: u32::try_from(config.slots).expect("the configuration allows at most 4096 slots"),
        report_interval: config.report_interval,
        report_pause: REPORT_PAUSE.min(config.report_interval),
        drain_max: config.drain_timeout,
        residency: ResidencySettings {
            device_pages: vec![device_pages],
            models_max: config.models_per_device_max.unwrap_or(usize::MAX),
            keep_alive: keep_alive(config.keep_alive),
        },
    }
}

fn keep_alive(configured: ConfigKeepAlive) -> KeepAlive {
    match configured {
        ConfigKeepAlive::For(time) => KeepAlive::Ms(u64::try_from(time.as_millis()).unwrap_or(u64::MAX)),
        ConfigKeepAlive::UntilEvicted => KeepAlive::UntilEvicted,
    }
}

fn registration(identity: &Identity, device_pages: u64) -> Registration {
    Registration {
        worker: identity.worker.clone(),
        incarnation: identity.incarnation,
        host: identity.host.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        devices: vec![DeviceDescription {
            index: CPU_DEVICE,
            kind: "cpu".to_owned(),
            name: cpu_name(),
            memory_bytes: device_pages * PAGE_BYTES,
            memory_bytes_per_s: None,
            cost: None,
        }],
    }
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

/// The CPU is the first device and, until there are others, the only one.
const CPU_DEVICE: u32 = 0;
/// Shortest time between two reports: some round trips of a dispatcher.
const REPORT_PAUSE: std::time::Duration = std::time::Duration::from_millis(20);
