//! A worker's life, from its first look at NATS to its last report.

use std::sync::Arc;

use flotilla_client::{Connection, Journal};
use flotilla_config::{Config, KeepAlive as ConfigKeepAlive, Worker};
use flotilla_protocol::fleet::Registration;
use flotilla_protocol::request::KeepAlive;
use flotilla_worker_core::residency::ResidencySettings;
use flotilla_worker_core::worker::{Desk, DeskSettings};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tracing::info;

use crate::attempt::AttemptContext;
use crate::error::WorkerError;
use crate::hardware::Hardware;
use crate::identity::Identity;
use crate::outbox::Outbox;
use crate::owner::{Inbox, Owner, OwnerParts, OwnerSettings};
use crate::registration::Registered;
use crate::scan::add_models;
use crate::start::Objects;
use crate::stop::Stop;
use crate::watch::{Change, watch};

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
    let hardware = Hardware::open(&config.worker)?;
    run_all(config, &hardware, &[connection], stop).await
}

/// Runs as many workers as [`Hardware::worker_count`] says, on connections that they share evenly. They end
/// together: when one fails, the others are told to stop at once. Otherwise as [`run`].
///
/// # Errors
/// The first [`WorkerError`] of any of them.
///
/// # Panics
/// There is no connection.
pub async fn run_all(
    config: &Config,
    hardware: &Hardware,
    connections: &[Connection],
    stop: Stop,
) -> Result<(), WorkerError> {
    let identities = Identity::all(&config.worker, hardware.worker_count())?;
    let mut sites = Vec::new();
    for connection in connections {
        let objects = tokio::select! {
            objects = Objects::wait(connection) => Arc::new(objects?),
            () = stop.drain.cancelled() => return Ok(()),
            () = stop.now.cancelled() => return Ok(()),
        };
        sites.push((connection, objects));
    }
    let (first, objects) = sites.first().expect("workers have a connection");
    if let Some(models_dir) = &config.worker.models_dir {
        tokio::select! {
            () = add_models(models_dir.clone(), &objects.catalog) => {}
            () = stop.now.cancelled() => return Ok(()),
        }
    }
    let limit = first.request_timeout * 2;
    let (inboxes, _following) = watch(objects.catalog.clone(), limit, identities.len());
    let config = Arc::new(config.clone());
    let members = identities.into_iter().zip(inboxes).zip(sites.iter().cycle());
    let members = members.map(|((identity, changes), (connection, objects))| Member {
        config: Arc::clone(&config),
        hardware: hardware.clone(),
        connection: Connection::clone(connection),
        objects: Arc::clone(objects),
        identity,
        changes,
    });
    run_members(members.collect(), stop).await
}

/// Runs workers until all have ended.
async fn run_members(members: Vec<Member>, stop: Stop) -> Result<(), WorkerError> {
    let mut running = JoinSet::new();
    for member in members {
        running.spawn(member.run(stop.clone()));
    }
    let mut outcome = Ok(());
    while let Some(ended) = running.join_next().await {
        let ended = ended.unwrap_or_else(|broken| match broken.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => unreachable!("nobody aborts a worker"),
        });
        if ended.is_err() && outcome.is_ok() {
            stop.now.cancel();
            outcome = ended;
        }
    }
    outcome
}

/// One worker that is about to start.
struct Member {
    config: Arc<Config>,
    hardware: Hardware,
    connection: Connection,
    objects: Arc<Objects>,
    identity: Identity,
    changes: mpsc::Receiver<Change>,
}

impl Member {
    async fn run(self, stop: Stop) -> Result<(), WorkerError> {
        let Self {
            config,
            hardware,
            connection,
            objects,
            identity,
            changes,
        } = self;
        let (engine, engine_ended) = hardware.start_engine().map_err(WorkerError::Thread)?;
        let device_pages = hardware.device_pages();
        let parts = OwnerParts {
            settings: owner_settings(&config),
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
            hardware: hardware.clone(),
            changes,
        };
        let registration = registration(&identity, &hardware);
        let registered = Registered::start(&objects, registration, connection.request_timeout);
        info!(worker_id = %identity.worker, device_pages, "worker started");
        let outcome = Owner::new(parts).run(stop).await;
        registered.end().await;
        info!(worker_id = %identity.worker, "worker ended");
        outcome
    }
}

fn owner_settings(config: &Config) -> OwnerSettings {
    OwnerSettings {
        request_bytes_max: config.dispatcher.request_bytes_max,
        slots: config.worker.slots,
        batch_tokens_max: config.worker.batch_tokens_max,
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

fn registration(identity: &Identity, hardware: &Hardware) -> Registration {
    Registration {
        worker: identity.worker.clone(),
        incarnation: identity.incarnation,
        host: identity.host.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        devices: vec![hardware.description()],
    }
}

/// Shortest time between two reports: some round trips of a dispatcher.
const REPORT_PAUSE: std::time::Duration = std::time::Duration::from_millis(20);
