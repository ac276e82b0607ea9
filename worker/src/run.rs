//! A worker's life, from its first look at NATS to its last report.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_nats::connection::State;
use flotilla_client::{Connection, Journal};
use flotilla_config::{Config, KeepAlive as ConfigKeepAlive, Worker};
use flotilla_protocol::fleet::Registration;
use flotilla_protocol::request::KeepAlive;
use flotilla_telemetry::Telemetry;
use flotilla_worker_core::residency::{LoadStall, ResidencySettings};
use flotilla_worker_core::worker::{Desk, DeskSettings};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tracing::{info, warn};

use crate::attempt::AttemptContext;
use crate::error::{WorkerError, chain};
use crate::hardware::Hardware;
use crate::identity::Identity;
use crate::jobs::Looks;
use crate::metrics::{self, APPEND_SECONDS};
use crate::outbox::Outbox;
use crate::owner::{Fetches, Inbox, Owner, OwnerParts, OwnerSettings};
use crate::registration::Registered;
use crate::scan::add_models;
use crate::start::Objects;
use crate::stop::Stop;
use crate::watch::{Change, watch};
use crate::weights::{Sharing, Weights};

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
    run_all(config, &hardware, &[connection], &Telemetry::off(), stop).await
}

/// Runs as many workers as [`Hardware::worker_count`] says, on connections that they share evenly. They end
/// together: when one fails, the others are told to stop at once. What they do and how they are goes to `telemetry`: one is
/// ready while it is registered, connected and takes work. Otherwise as [`run`].
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
    telemetry: &Telemetry,
    stop: Stop,
) -> Result<(), WorkerError> {
    metrics::register();
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
    // Each follows the catalog twice: for its models, and for the weights that it offers to others.
    let (mut inboxes, _following) = watch(objects.catalog.clone(), limit, identities.len() * 2);
    let offers = inboxes.split_off(identities.len());
    let config = Arc::new(config.clone());
    let members = identities.into_iter().zip(inboxes.into_iter().zip(offers));
    let members = members.zip(sites.iter().cycle());
    let members = members.map(|((identity, (changes, offers)), (connection, objects))| Member {
        config: Arc::clone(&config),
        telemetry: telemetry.clone(),
        hardware: hardware.clone(),
        connection: Connection::clone(connection),
        objects: Arc::clone(objects),
        identity,
        changes,
        offers,
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
    telemetry: Telemetry,
    hardware: Hardware,
    connection: Connection,
    objects: Arc<Objects>,
    identity: Identity,
    changes: mpsc::Receiver<Change>,
    /// The same once more.
    offers: mpsc::Receiver<Change>,
}

impl Member {
    async fn run(self, stop: Stop) -> Result<(), WorkerError> {
        let Self {
            config,
            telemetry,
            hardware,
            connection,
            objects,
            identity,
            changes,
            offers,
        } = self;
        let (weights, sharing) = share(&config, &hardware, &identity, &objects, offers)
            .await
            .unzip();
        let engines = hardware.start_engines().map_err(WorkerError::Thread)?;
        let device_pages = hardware.device_pages();
        let fetches = Fetches::default();
        let parts = OwnerParts {
            settings: owner_settings(&config),
            desk: Desk::new(desk_settings(&config.worker, &identity, &hardware)),
            catalog: objects.catalog.clone(),
            context: AttemptContext {
                worker: identity.worker.clone(),
                incarnation: identity.incarnation,
                connection: connection.clone(),
                journal: Journal::new(&connection),
                ahead_tokens_max: config.worker.answer_channel_tokens,
                step_tokens_max: config.worker.batch_tokens_max,
                fetches: fetches.follow(),
                append_seconds: APPEND_SECONDS.histogram(&[]),
            },
            outbox: Outbox::open(connection.client.clone(), connection.request_timeout),
            inbox: Inbox::open(&connection, &identity.worker).await?,
            engines,
            identity: identity.clone(),
            connection: connection.clone(),
            hardware: hardware.clone(),
            changes,
            weights,
            fetches,
            scrapes: telemetry.source(),
        };
        let registration = registration(&identity, &hardware);
        let registered = Registered::start(&objects, registration, &connection);
        let name = format!("worker {}", identity.worker);
        let health = telemetry.part(name, needs(connection.clone(), registered.is_there()));
        info!(worker_id = %identity.worker, ?device_pages, "worker started");
        let outcome = Owner::new(parts).run(stop, &health).await;
        health.set_not_ready("ends");
        health.while_waiting(registered.end()).await;
        if let Some(sharing) = sharing {
            health.while_waiting(sharing.end()).await;
        }
        info!(worker_id = %identity.worker, "worker ended");
        outcome
    }
}

/// What has to be there, beside the worker's own word, for it to be ready.
fn needs(
    connection: Connection,
    registered: Arc<AtomicBool>,
) -> impl Fn() -> Result<(), &'static str> + Send + Sync {
    move || match connection.client.connection_state() {
        State::Connected if registered.load(Ordering::Relaxed) => Ok(()),
        State::Connected => Err("not registered"),
        State::Pending | State::Disconnected => Err("not connected to NATS"),
    }
}

/// Takes part in the copying of weights, if there are weights. A fleet whose dispatcher made no relay works without.
async fn share(
    config: &Config,
    hardware: &Hardware,
    identity: &Identity,
    objects: &Objects,
    offers: mpsc::Receiver<Change>,
) -> Option<(Weights, Sharing)> {
    if !config.worker.weights.share || !hardware.has_weights() {
        return None;
    }
    match Weights::start(config, identity, objects.catalog.clone(), offers).await {
        Ok(started) => Some(started),
        Err(error) => {
            warn!(error = chain(&error), "weights are not shared with other workers");
            None
        }
    }
}

fn owner_settings(config: &Config) -> OwnerSettings {
    OwnerSettings {
        request_bytes_max: config.dispatcher.request_bytes_max,
        slots: config.worker.slots,
        batch_tokens_max: config.worker.batch_tokens_max,
        looks: Looks::new(config.worker.load_stall_timeout),
    }
}

fn desk_settings(config: &Worker, identity: &Identity, hardware: &Hardware) -> DeskSettings {
    DeskSettings {
        worker: identity.worker.clone(),
        incarnation: identity.incarnation,
        slots: u32::try_from(config.slots).expect("the configuration allows at most 4096 slots"),
        report_interval: config.report_interval,
        report_pause: REPORT_PAUSE.min(config.report_interval),
        drain_max: config.drain_timeout,
        residency: ResidencySettings {
            device_pages: hardware.device_pages(),
            host_pages: hardware.host_pages(),
            models_max: config.models_per_device_max.unwrap_or(usize::MAX),
            keep_alive: keep_alive(config.keep_alive),
            min_residency_max: config.min_residency_max,
            load_stall: Some(LoadStall {
                window: config.load_stall_timeout,
                bytes_min: config
                    .load_bytes_per_s_min
                    .saturating_mul(config.load_stall_timeout.as_secs()),
            }),
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
        devices: hardware.descriptions(),
    }
}

/// Shortest time between two reports: some round trips of a dispatcher.
const REPORT_PAUSE: std::time::Duration = std::time::Duration::from_millis(20);
